"""``aperion journal``: the commands that look into a journal, and change it while its service stands still."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from aperion.cli.audit_rows import clock, json_line, output
from aperion.cli.screen import DEBUG, safe
from aperion.errors import ApplicationError
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from aperion.journal.looking import Found
    from aperion.journal.rows import Row

_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the journal, such as state/.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
_Debug = Annotated[bool, typer.Option(DEBUG, help="Show tracebacks.")]
_Most = Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Show so many at most.")]
_Name = Annotated[str | None, typer.Option("--subscription", metavar="NAME", help="What is kept for this one only.")]
_Id = Annotated[str | None, typer.Option("--id", metavar="ID", help="What is kept of this event only.")]
_Event = Annotated[str, typer.Argument(metavar="ID", help="The id of an event.")]
_Old = Annotated[str, typer.Argument(metavar="OLD", help="The name that a subscription had.")]
_New = Annotated[str, typer.Argument(metavar="NEW", help="The name of the one that gets what is kept for it.")]

journal = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@journal.callback()
def about(*, debug: _Debug = False) -> None:
    """Look into a journal, while its service runs too; change it while that stands still."""


@journal.command(short_help="Count what is kept.")
def stats(folder: _Folder, *, as_json: _Json = False, debug: _Debug = False) -> None:  # noqa: ARG001
    """Show for each slot of FOLDER who has it and what is kept there, and how many deliveries for each subscription."""
    from aperion.journal.looking import looking, open_places

    with output() as out, looking(folder) as slots:
        names: Counter[str] = Counter()
        for slot in slots:
            for row in slot.rows():
                names.update(row.plan[place] for place in open_places(row))
        counts = [_counts(slot) for slot in slots]
        if as_json:
            out.print(json_line({"slots": counts, "subscriptions": dict(names)}), soft_wrap=True)
            return
        out.print(_table(list(counts[0]), [list(map(_cell, each.values())) for each in counts]))
        if names:
            out.print(_table(["subscription", "deliveries"], [[safe(n), f"{c:,}"] for n, c in names.most_common()]))


@journal.command("list", short_help="List the events that are kept.")
def list_(
    folder: _Folder,
    *,
    subscription: _Name = None,
    limit: _Most = 50,
    as_json: _Json = False,
    debug: _Debug = False,  # noqa: ARG001
) -> None:
    """List the events in FOLDER that are not settled, the oldest of each slot first, without their payloads."""
    from aperion.journal.looking import looking, open_places

    with output() as out, looking(folder) as slots:
        rows = [(slot, row) for slot in slots for row in slot.rows()]
        if subscription is not None:
            rows = [(s, row) for s, row in rows if subscription in [row.plan[place] for place in open_places(row)]]
        values = [_values(slot, row) for slot, row in rows[:limit]]
        if as_json:
            for each in values:
                out.print(json_line(each), soft_wrap=True)
            return
        if values:
            shown = [[_cell(value) for name, value in each.items() if name != "time"] for each in values]
            out.print(_table([name for name in values[0] if name != "time"], shown))
        out.print(Text(f"{len(rows):,} events", style="dim"))


@journal.command(short_help="Show one event.")
def show(folder: _Folder, event_id: _Event, *, debug: _Debug = False) -> None:  # noqa: ARG001
    """Show the event of FOLDER with this id as JSON, its payload redacted, and where its deliveries stand."""
    from aperion.journal.looking import event_of, looking

    with output() as out, looking(folder) as slots:
        for slot in slots:
            for row in slot.rows():
                event = event_of(row)
                if event.event_id == event_id:
                    fields = {**event.to_dict(), **_values(slot, row)}
                    out.print(json_line(Redactor().redact(fields)), soft_wrap=True)
                    return
    raise ApplicationError(f"no event in {folder} has the id {safe(event_id)}; it has settled, or was never kept")


@journal.command(short_help="Check that all of it can be read.")
def check(folder: _Folder, *, debug: _Debug = False) -> None:  # noqa: ARG001
    """Read all of FOLDER; exits with 1 when an event is damaged."""
    from aperion.journal.looking import looking

    damaged = 0
    with output() as out, looking(folder) as slots:
        for slot in slots:
            bad = slot.damaged()
            damaged += len(bad)
            which = f"{len(bad)} damaged: {', '.join(map(str, bad[:20]))}" if bad else "all can be read"
            out.print(f"slot {slot.number}: {slot.count('events'):,} events, {which}", soft_wrap=True)
    raise typer.Exit(1 if damaged else 0)


@journal.command(short_help="Give what is kept for one subscription to another.")
def assign(folder: _Folder, old: _Old, new: _New, *, debug: _Debug = False) -> None:  # noqa: ARG001
    """Have what FOLDER keeps for the subscription OLD delivered to NEW, once the service is started."""
    from aperion.journal.looking import assign as assigned
    from aperion.journal.looking import looking

    with output() as out, looking(folder) as slots:
        count = sum(assigned(slot, old, new) for slot in slots)
        out.print(f"{count:,} deliveries of {safe(old)} go to {safe(new)}")


@journal.command(short_help="Give up what is kept for a subscription, or of an event.")
def discard(
    folder: _Folder,
    *,
    subscription: _Name = None,
    event_id: _Id = None,
    debug: _Debug = False,  # noqa: ARG001
) -> None:
    """Give up what FOLDER keeps for a subscription, of an event, or both. It is not handled any more."""
    from aperion.journal.looking import discard as discarded
    from aperion.journal.looking import looking

    if subscription is None and event_id is None:
        raise ApplicationError("discard needs --subscription or --id: it does not empty a journal")
    with output() as out, looking(folder) as slots:
        count = sum(discarded(slot, subscription=subscription, event_id=event_id) for slot in slots)
        out.print(f"{count:,} deliveries were given up")


def _counts(slot: Found) -> dict[str, Any]:
    return {
        "slot": slot.number,
        "process": slot.owner,
        "events": slot.count("events"),
        "dead_letters": slot.count("letters"),
        "set_aside": slot.count("aside"),
        "bytes": slot.path.stat().st_size,
    }


def _values(slot: Found, row: Row) -> dict[str, Any]:
    from aperion.journal.looking import event_of

    event = event_of(row)
    return {
        "slot": slot.number,
        "seq": row.seq,
        "accepted": clock(int(event.timestamp * 1e9)),
        "time": event.timestamp,
        "event_type": event.event_type,
        "event_id": event.event_id,
        "key": event.key,
        "deliveries": {name: _state(row, place) for place, name in enumerate(row.plan)},
    }


def _state(row: Row, place: int) -> str:
    state = row.states.get(place)
    if state is None:
        return "pending"
    if state.over:
        return "over"
    if state.attempts:
        wait = max(0.0, state.due - time.time())
        return f"retry {state.attempts + 1} in {wait:.0f} s"
    return f"pending, {state.starts} starts that ended with the process"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return safe(", ".join(f"{name}: {state}" for name, state in value.items()))
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else safe(value)


def _table(header: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*map(Text, row))
    return table
