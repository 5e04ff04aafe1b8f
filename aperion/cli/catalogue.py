"""``aperion events`` and ``aperion explain``: what there is in an application, and who gets what."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aperion.audit import AuditLog
from aperion.catalogue import Handled, asyncapi, catalogue, emitters_in, explain, mermaid
from aperion.catalogue.seen import modules_beside
from aperion.cli.catalogue_text import contents_shown, explanation_shown
from aperion.cli.loading import load_app
from aperion.cli.logs import log_others_to_stderr
from aperion.cli.screen import DEBUG, console
from aperion.cli.stdout import own_stdout
from aperion.errors import ApplicationError

if TYPE_CHECKING:
    from aperion.app import App
    from aperion.catalogue import Catalogue

_App = Annotated[str, typer.Argument(metavar="MODULE:APP", help="The application, such as service:app.")]
_Type = Annotated[str, typer.Argument(metavar="TYPE", help="An event type, such as order.created.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
_Mermaid = Annotated[bool, typer.Option("--mermaid", help="Print the flow of events as a Mermaid graph.")]
_AsyncApi = Annotated[bool, typer.Option("--asyncapi", help="Print an AsyncAPI 3.0 document, as JSON.")]
_Log = Annotated[
    Path | None, typer.Option("--log", metavar="LOG", help="An audit log: tells what was emitted, by which sources.")
]
_Debug = Annotated[bool, typer.Option(DEBUG, help="Show tracebacks and what the bus logs.")]
_SOURCES = 10


def events(
    app: _App,
    *,
    as_json: _Json = False,
    as_mermaid: _Mermaid = False,
    as_asyncapi: _AsyncApi = False,
    log: _Log = None,
    debug: _Debug = False,  # noqa: ARG001
) -> None:
    """List the event types of an application: fields, who emits them, who handles them in which order.

    Who emits is what the source of its modules shows: calls with a type or a model that stand there. What is
    decided while it runs is not seen; --log adds what an audit log knows. At the end stand the types that nobody
    handles, and the handlers that nothing reaches.
    """
    if as_json + as_mermaid + as_asyncapi > 1:
        raise ApplicationError("--json, --mermaid and --asyncapi are three formats; choose one")
    with own_stdout(aside=True) as out:
        log_others_to_stderr()
        application = load_app(app)
        contents = _contents(application, app, log)
        if as_mermaid:
            out.write(mermaid(contents))
        elif as_asyncapi:
            print(json.dumps(asyncapi(contents, application.bus, version=_version(app)), indent=2), file=out)
        elif as_json:
            print(json.dumps(asdict(contents), indent=2), file=out)
        else:
            for line in contents_shown(contents):
                console(out).print(line, soft_wrap=True)


def explain_type(app: _App, event_type: _Type, *, as_json: _Json = False, debug: _Debug = False) -> None:  # noqa: ARG001
    """Show which subscriptions an event type goes to, in the order in which they run, and why; and which not, nearly.

    Exits with 1 where no handler gets it, and where emit would refuse the type.
    """
    with own_stdout(aside=True) as out:
        log_others_to_stderr()
        application = load_app(app)
        seen = emitters_in(modules_beside(_module(app)))
        found = explain(application.bus, event_type, seen.by_type)
        if as_json:
            print(json.dumps(asdict(found), indent=2), file=out)
        else:
            for line in explanation_shown(found):
                console(out).print(line, soft_wrap=True)
    gets_it = found.valid and any(not handler.paused for handler in found.handlers)
    raise typer.Exit(0 if gets_it else 1)


def _contents(application: App, path: str, log: Path | None) -> Catalogue:
    emitters = emitters_in(modules_beside(_module(path)))
    return catalogue(application.bus, path, emitters=emitters, logged=_logged(log) if log is not None else None)


def _logged(log: Path) -> dict[str, Handled]:
    """Count the accepted events of a log by type; reads all of it, in memory that grows with types and not events."""
    if not log.exists():
        raise ApplicationError(f"there is no audit log {str(log)!r}")
    counts: Counter[str] = Counter()
    sources: defaultdict[str, set[str]] = defaultdict(set)
    for record in AuditLog(log).read(kinds=["accepted"]):
        event_type = str(record.fields.get("type"))
        counts[event_type] += 1
        source = record.fields.get("source")
        if source is not None and len(sources[event_type]) < _SOURCES:
            sources[event_type].add(str(source))
    return {name: Handled(count=count, sources=tuple(sorted(sources[name]))) for name, count in counts.items()}


def _module(path: str) -> str:
    return path.partition(":")[0]


def _version(path: str) -> str:
    version: Any = getattr(sys.modules.get(_module(path)), "__version__", None)
    return version if isinstance(version, str) else "0.0.0"
