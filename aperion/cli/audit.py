"""``aperion audit``: the commands that read an audit log."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Group
from rich.text import Text
from typer.core import TyperGroup

from aperion.audit.following import POLL, Following
from aperion.audit.predecessor import import_log
from aperion.audit.query import Query
from aperion.audit.reading import Reading
from aperion.audit.trace import tree
from aperion.cli import audit_options as opt
from aperion.cli.audit_bars import sections
from aperion.cli.audit_export import STDOUT, Format, write_text
from aperion.cli.audit_export import export as exported
from aperion.cli.audit_progress import Watched
from aperion.cli.audit_rows import Rows, json_line, output, remark, skipped
from aperion.cli.audit_runs import by_run
from aperion.cli.audit_show import shown
from aperion.cli.audit_stats import census
from aperion.cli.audit_svg import chart
from aperion.cli.audit_tree import as_values, drawn
from aperion.cli.audit_verify import as_values as verification_values
from aperion.cli.audit_verify import end_of, newest_checkpoint, told, verified
from aperion.cli.screen import safe
from aperion.errors import AperionError, ApplicationError
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import Console

    from aperion.audit.query import AuditRecord


class _Commands(TyperGroup):
    """Runs a command, and says in one line which file could not be read or written."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # click's own class, under typer's name
        try:
            return super().invoke(ctx)
        except (AperionError, BrokenPipeError):
            raise
        except OSError as error:
            where = f" ({error.filename})" if isinstance(error.filename, str) else f" (in {ctx.invoked_subcommand})"
            reason = f"{error.strerror or error}{where}"
            raise ApplicationError(
                f"a file could not be read or written: {reason}; see what it is and whose"
            ) from error


audit = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_NOT_FOUND = 1


@audit.callback()
def about(*, debug: opt.Debug = False) -> None:
    """Read an audit log, search it, draw what one request led to, and check that nobody changed it."""


@audit.command(short_help="Show the last records.")
def tail(
    log: opt.Log,
    *,
    lines: opt.Last = 20,
    follow: opt.Follow = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001
) -> None:
    """Show the last records of LOG, and with -f those that come, from file to file, until Ctrl-C."""
    opt.found(log)
    following = Following(log, Query()) if follow else None  # first, so that nothing is missed in between
    with output() as out:
        rows = Rows(out, json_lines=as_json)
        last = _print_last(rows, log, lines)
        while following is not None:
            records = following.available()
            for record in records:
                if record.seq > last:
                    rows.print(record)
            sys.stdout.flush()
            if not records:
                time.sleep(POLL)


def _print_last(rows: Rows, log: Path, lines: int) -> int:
    if not lines:
        return 0
    reading = Reading(log, Query(newest_first=True, limit=lines))
    records = list(reading)
    for record in reversed(records):
        rows.print(record)
    skipped(reading.skipped, log)
    return records[0].seq if records else 0


@audit.command(short_help="Show the records that match.")
def search(  # noqa: PLR0913 - one for each filter
    log: opt.Log,
    *,
    types: opt.Types = None,
    kind: opt.Kinds = None,
    since: opt.Since = None,
    until: opt.Until = None,
    event_id: opt.Id = None,
    correlation: opt.Correlation = None,
    source: opt.Source = None,
    subscription: opt.Subscription = None,
    state: opt.State = None,
    text: opt.Words = None,
    limit: opt.Most = None,
    newest: opt.Newest = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001
) -> None:
    """Show the records of LOG that match all filters; of one that is repeated, any value does.

    Exits with 0 if it could read the log, whether anything matched or not.
    """
    query = Query(
        types=opt.listed(types),
        kinds=opt.kinds(kind),
        since=opt.moment(since, "--since"),
        until=opt.moment(until, "--until"),
        event_id=event_id,
        correlation_id=correlation,
        source=source,
        subscription=subscription,
        state=opt.state(state),
        text=text,
        limit=limit,
        newest_first=newest,
    )
    with output() as out, Watched(opt.found(log), query, "searching", aside=out.is_terminal) as reading:
        rows = Rows(out, json_lines=as_json)
        for record in reading:
            rows.print(record)
    skipped(reading.skipped, log)


@audit.command(short_help="Show all that became of one event.")
def show(log: opt.Log, event_id: opt.EventId, *, as_json: opt.Json = False, debug: opt.Debug = False) -> None:  # noqa: ARG001
    """Show one event of LOG with its payload, attempts and whatever else happened to it; exits with 1 if it is not there."""
    with Watched(opt.found(log), Query(event_id=event_id), "searching") as reading:
        records = list(reading)
    with output() as out:
        if as_json:
            for record in records:
                Rows(out, json_lines=True).print(record)
        elif records:
            _print(out, shown(records))
    skipped(reading.skipped, log)
    if not records:
        _missing(f"no event {event_id} in {log}")


@audit.command("trace", short_help="Draw what one request led to.")
def trace_(
    log: opt.Log,
    correlation_id: opt.CorrelationId,
    *,
    as_json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001
) -> None:
    """Draw the events with one correlation id as a tree: each below its cause, with handlers, attempts and times.

    Where the log was opened several times, and events with this id came in more than one of these runs, each run
    has a tree and a time axis of its own.
    """
    with Watched(opt.found(log), Query(correlation_id=correlation_id), "tracing") as reading:
        records = list(reading)
    runs = [tree(run) for run in by_run(records, _starts(log, records))]
    with output() as out:
        if as_json:
            print(json_line({"correlation_id": correlation_id, **as_values([root for run in runs for root in run])}))
        for number, roots in enumerate(() if as_json else runs, start=1):
            which = f", run {number} of {len(runs)}" if len(runs) > 1 else ""
            out.print(Text(f"correlation {safe(correlation_id)}{which}", style="bold"), soft_wrap=True)
            _print(out, drawn(roots, out.width))
    skipped(reading.skipped, log)
    if not records:
        _missing(f"no event with the correlation id {correlation_id} in {log}")


def _starts(log: Path, records: Sequence[AuditRecord]) -> list[int]:
    """Return at which records, between the first and the last of some, the log was opened."""
    if not records:
        return []
    first, last = records[0].seq, records[-1].seq
    return [record.seq for record in Reading(log, Query(kinds=["started"])) if first < record.seq < last]


@audit.command("import", short_help="Make a log of one of aperion-event-bus.")
def import_(
    old: opt.OldLog,
    new: opt.NewLog,
    *,
    as_json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001
) -> None:
    """Write NEW, a log with a chain, from OLD, a log of aperion-event-bus, and from its rotated files.

    Events become accepted records and errors of handlers outcomes, with their ids and times; secrets and personal
    data are hidden. OLD stays as it is. Exits with 1 where lines could not be brought over.
    """
    done = import_log(old, new, Redactor())
    with output() as out:
        if as_json:
            print(json_line(asdict(done)))
        else:
            told = f"{done.events:,} events, {done.failures:,} failures and {done.others:,} lines about the old bus"
            out.print(f"{told} from {', '.join(map(safe, done.files))} are in {safe(new)}", soft_wrap=True)
    if done.unreadable:
        places = ", ".join(map(safe, done.problems))
        _missing(f"{done.unreadable:,} lines could not be brought over: {places}")


@audit.command(short_help="Print the newest checkpoint.")
def checkpoint(
    log: opt.Log,
    *,
    at_end: opt.AtEnd = False,
    as_json: opt.Json = False,  # noqa: ARG001 - it always is
    debug: opt.Debug = False,  # noqa: ARG001
) -> None:
    """Print the newest checkpoint of LOG as JSON, to be kept on another machine; exits with 1 if there is none.

    Handed to verify --checkpoint, it shows whether the end of the log was cut off since. With --at-end it
    reaches to the last record there is now, and has no signature.
    """
    opt.found(log)
    with output():
        found = end_of(log) if at_end else newest_checkpoint(log)
        if found is not None:
            print(json_line(found))
    if found is None:
        later = "one is written when the bus stops, and every so many records; --at-end needs none"
        _missing(f"{log} has no record" if at_end else f"{log} has no checkpoint yet; {later}")


@audit.command(short_help="Count, and show how fast it went over time.")
def stats(
    log: opt.Log,
    *,
    since: opt.Since = None,
    until: opt.Until = None,
    svg: opt.Svg = None,
    as_json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001
) -> None:
    """Count the records of LOG by kind, type and outcome, and show rates and latencies over time."""
    counted = census(opt.found(log), opt.moment(since, "--since"), opt.moment(until, "--until"))
    if counted is None:
        _missing(f"{log} has no records in that time")
    if svg is not None:
        write_text(log, svg, chart(counted, safe(log.name)))
    with output() as out:
        if as_json:
            print(json_line(counted.to_dict()))
        else:
            out.print(Group(*sections(counted)))
    skipped(counted.skipped, log)


@audit.command(short_help="Check that nobody changed it.")
def verify(
    log: opt.Log,
    *,
    key: opt.Keys = None,
    checkpoint: opt.Copies = None,
    as_json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001
) -> None:
    """Follow the chain of hashes through all files of LOG, and say where it breaks.

    Exits with 0 if it is whole, with 1 if something is wrong, with 2 if it could not be read.
    """
    keys, copies = key or [], checkpoint or []
    result = verified(opt.found(log), keys, copies)
    with output() as out:
        if as_json:
            print(json_line(verification_values(result)))
        else:
            _print(out, told(result, keys, copies))
    raise typer.Exit(0 if result.ok else _NOT_FOUND)


@audit.command(short_help="Write records for other programs.")
def export(  # noqa: PLR0913 - one for each filter
    log: opt.Log,
    *,
    to: opt.To,
    form: Annotated[Format, typer.Option("--format", help="What to write.")],
    types: opt.Types = None,
    kind: opt.Kinds = None,
    since: opt.Since = None,
    until: opt.Until = None,
    event_id: opt.Id = None,
    correlation: opt.Correlation = None,
    source: opt.Source = None,
    subscription: opt.Subscription = None,
    state: opt.State = None,
    text: opt.Words = None,
    limit: opt.Most = None,
    newest: opt.Newest = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001
) -> None:
    """Write the records of LOG that match to a file: CSV, CloudEvents 1.0 as JSON lines, or Parquet with pyarrow."""
    query = Query(
        types=opt.listed(types),
        kinds=opt.kinds(kind),
        since=opt.moment(since, "--since"),
        until=opt.moment(until, "--until"),
        event_id=event_id,
        correlation_id=correlation,
        source=source,
        subscription=subscription,
        state=opt.state(state),
        text=text,
        limit=limit,
        newest_first=newest,
    )
    written, damaged = exported(opt.found(log), query, form, to)
    if as_json:
        told_to = sys.stderr if str(to) == STDOUT else sys.stdout
        print(json_line({"written": written, "skipped_lines": damaged, "file": str(to)}), file=told_to)
    else:
        remark(f"{written:,} records written to {to}")
    skipped(damaged, log)


def _print(out: Console, lines: Iterable[Text]) -> None:
    for line in lines:
        out.print(line, soft_wrap=True)


def _missing(text: str) -> NoReturn:
    remark(text)
    raise typer.Exit(_NOT_FOUND)
