"""The commands, as typer sees them."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import IO, TYPE_CHECKING, Annotated

import anyio
import typer

from aperion.app import serve
from aperion.cli.audit import audit
from aperion.cli.catalogue import events, explain_type
from aperion.cli.journal import journal
from aperion.cli.lines import STDIN, open_lines
from aperion.cli.loading import about, load_app
from aperion.cli.logs import log_others_to_stderr, log_to_stderr
from aperion.cli.progress import Reporter
from aperion.cli.redact import Filter, Redaction
from aperion.cli.reload import run_reloading
from aperion.cli.rendering import rendered
from aperion.cli.replay import Replay, Replayer
from aperion.cli.screen import DEBUG, console
from aperion.cli.stdout import own_stdout
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from aperion.cli.summary import Summary

command = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
command.command(short_help="List event types, who emits and who handles them.")(events)
command.command("explain", short_help="Show who gets an event type, and why.")(explain_type)
command.add_typer(audit, name="audit", short_help="Read, search and check an audit log.")
command.add_typer(journal, name="journal", short_help="Look into a journal, and put it in order.")


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - how typer calls it
    if wanted:
        print(f"aperion {_version()}")
        raise typer.Exit


def _version() -> str:
    try:
        return importlib.metadata.version("aperion-bus")
    except importlib.metadata.PackageNotFoundError:
        return "from a checkout that is not installed"


# Accepted before and after the command; what it does, see screen.DEBUG.
_Debug = Annotated[bool, typer.Option(DEBUG, help="Show tracebacks and what the bus logs.")]
_Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
]
_File = Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, plain or gzip; - for standard input.")]
_AppPath = Annotated[str, typer.Option("--app", metavar="MODULE:APP", help="The application, such as service:app.")]
_RunPath = Annotated[str, typer.Argument(metavar="MODULE:APP", help="The application, such as service:app.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")]
_Text = Annotated[
    str, typer.Argument(metavar="[FILE]", help="Text or JSON lines, plain or gzip; - for standard input.")
]
_Check = Annotated[bool, typer.Option("--check", help="Write nothing; say which lines have something to hide, exit 1.")]
_Report = Annotated[bool, typer.Option("--report", help="Print counts by type to standard error.")]
_JsonReport = Annotated[bool, typer.Option("--json", help="Print them as one JSON object.")]
_Keys = Annotated[list[str] | None, typer.Option("--key", metavar="NAME", help="Hide this name too; may be repeated.")]
_Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Replay the first N events only.")]
_Drain = Annotated[
    float | None,
    typer.Option("--drain-timeout", min=0, metavar="S", help="Seconds for what is in flight at the end."),
]
_Reload = Annotated[bool, typer.Option("--reload", help="Start again when a Python file changes.")]


@command.callback()
def aperion(*, version: _Version = False, debug: _Debug = False) -> None:
    """Replay files of events through an application, run applications, and take secrets out of files."""


@command.command(short_help="Emit the events of a file, and sum up.")
def replay(
    file: _File,
    *,
    app: _AppPath,
    as_json: _Json = False,
    limit: _Limit = None,
    drain_timeout: _Drain = None,
    debug: _Debug = False,  # noqa: ARG001
) -> None:
    """Emit the events of FILE through an application, and sum up what became of them.

    One JSON object a line: "type" and "payload", and if you like "id", "time", "correlation_id",
    "key", "source" and "headers". Exits with 0 when all went well, 1 when a line was bad or a
    delivery failed, 2 when nothing could be run, 130 after Ctrl-C.
    """
    with own_stdout(aside=as_json) as out:
        log_others_to_stderr()
        application, source = load_app(app), open_lines(file)
        if drain_timeout is not None:
            application.bus.drain_timeout = drain_timeout
        summary = _replayed(Replay(app=application, app_path=app, source=source, limit=limit))
        _print(summary, out, as_json=as_json)
    raise typer.Exit(summary.exit_code)


@command.command(short_help="Run an application until a signal.")
def run(app: _RunPath, *, reload: _Reload = False, debug: _Debug = False) -> None:  # noqa: ARG001
    """Run an application until a signal; what is in flight is finished first.

    Says at the start what it runs. A second signal ends it at once. Exits with 0 when everything
    settled, 1 when something did not before the deadline, 130 after a second signal.
    """
    log_to_stderr()
    if reload:
        raise typer.Exit(run_reloading(app))
    application = load_app(app)
    print(about(app, application.bus), file=sys.stderr)
    raise typer.Exit(serve(application))


@command.command(short_help="Hide secrets and personal data in a file or a stream.")
def redact(
    file: _Text = STDIN,
    *,
    check: _Check = False,
    report: _Report = False,
    as_json: _JsonReport = False,
    key: _Keys = None,
    debug: _Debug = False,  # noqa: ARG001
) -> None:
    """Write FILE, or standard input, to standard output without secrets and personal data.

    Lines that are JSON objects or arrays are redacted by their structure, others as text; a line with
    nothing to hide comes out as it went in. A line of more than 65,536 characters is cut, and says so.
    Exits with 0, with 1 if --check found something, with 2 when the file could not be read.
    """
    source = open_lines(file)
    with Reporter(source.size, "redacting", "lines") as reporter:
        lines = Filter(source, Redactor(redact_keys=key or ()), reporter, None if check else sys.stdout.buffer)
        for number, types in lines.run():
            if check:
                found = ", ".join(f"{kind} x{count}" for kind, count in sorted(types.items()))
                print(f"{'<stdin>' if file == STDIN else file}:{number}: {found}")
    if report or as_json:
        _print_report(lines.found, as_json=as_json)
    raise typer.Exit(1 if check and lines.found.changed else 0)


def _print_report(found: Redaction, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_dict()), file=sys.stderr)
        return
    print(f"{found.changed:,} of {found.lines:,} lines changed", file=sys.stderr)
    width = max(map(len, found.types), default=0)
    for kind, count in found.types.most_common():
        print(f"  {kind:<{width}} {count:>9,}", file=sys.stderr)


def _replayed(replay: Replay) -> Summary:
    with Reporter(replay.source.size) as reporter:
        return anyio.run(Replayer(replay, reporter).run)


def _print(summary: Summary, out: IO[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary.to_dict()), file=out)
    else:
        screen = console(out)
        screen.print(rendered(summary, screen.width))
