"""What the commands about an audit log take: which log, which records, and times as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aperion.audit.options import EVENT_KINDS
from aperion.audit.predecessor import advice
from aperion.audit.segments import GZIP, ZSTD, segments
from aperion.cli.screen import DEBUG
from aperion.errors import ApplicationError
from aperion.outcomes import OutcomeState

if TYPE_CHECKING:
    from collections.abc import Sequence

Log = Annotated[Path, typer.Argument(metavar="LOG", help="The live file of the log, such as events.jsonl.")]
OldLog = Annotated[Path, typer.Argument(metavar="OLD", help="The event_log_path of aperion-event-bus.")]
NewLog = Annotated[Path, typer.Argument(metavar="NEW", help="Where the new log is to be; nothing may be there.")]
EventId = Annotated[str, typer.Argument(metavar="EVENT_ID", help="Of the event.")]
CorrelationId = Annotated[str, typer.Argument(metavar="CORRELATION_ID", help="Of the events.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Debug = Annotated[bool, typer.Option(DEBUG, help="Show tracebacks and what the bus logs.")]
Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on as records are written, like tail -F.")]
Last = Annotated[int, typer.Option("-n", "--lines", min=0, metavar="N", help="How many records.")]
Most = Annotated[int | None, typer.Option("-n", "--limit", min=1, metavar="N", help="At most so many records.")]
Newest = Annotated[bool, typer.Option("--newest", help="From the end of the log.")]
Types = Annotated[
    list[str] | None, typer.Option("--type", metavar="PATTERN", help="Event types, such as order.*; may be repeated.")
]
Kinds = Annotated[
    list[str] | None, typer.Option("--kind", metavar="KIND", help="Such as accepted or outcome; may be repeated.")
]
Since = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="From then on: 2024-05-01T12:00:00Z, or 15m, 2h, 7d ago.")
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then, said in the same way.")]
Id = Annotated[str | None, typer.Option("--id", metavar="EVENT_ID", help="About this event.")]
Correlation = Annotated[str | None, typer.Option("--correlation", metavar="ID", help="With this correlation id.")]
Source = Annotated[str | None, typer.Option("--source", metavar="NAME", help="Emitted by this source.")]
Subscription = Annotated[str | None, typer.Option("--subscription", metavar="NAME", help="Outcomes of this handler.")]
State = Annotated[
    str | None, typer.Option("--state", metavar="STATE", help="Outcomes: ok, failed, timed_out or skipped.")
]
Words = Annotated[str | None, typer.Option("--text", metavar="TEXT", help="With this text anywhere in the record.")]
Svg = Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Write a chart to this file, too.")]
Keys = Annotated[
    list[Path] | None, typer.Option("--key", metavar="FILE", help="A public key of the signatures; may be repeated.")
]
Copies = Annotated[
    list[Path] | None,
    typer.Option("--checkpoint", metavar="FILE", help="Checkpoints that were kept elsewhere; may be repeated."),
]
AtEnd = Annotated[bool, typer.Option("--at-end", help="Print the number and the hash of the last record instead.")]
To = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where to; - for standard output.")]

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_AGO = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_KINDS = EVENT_KINDS | {"segment", "started", "stopped", "checkpoint", "gap", "log", "key_rotated"}
_STATES = frozenset(state.name.lower() for state in OutcomeState)


def found(log: Path) -> Path:
    """Return the path of a log that is there.

    Raises:
        ApplicationError: where there is none, or something else, with what to do.
    """
    if log.is_dir():
        raise ApplicationError(
            f"{log} is a folder; name the live file of the log in it, such as {log / 'events.jsonl'}"
        )
    if log.is_symlink():
        raise ApplicationError(f"{log} is a symbolic link, which no log is; name the file itself, {log.resolve()}")
    if log.exists() and not log.is_file():  # reading a pipe would wait for ever
        raise ApplicationError(f"{log} is no regular file; give the path that was given to aperion.AuditLog")
    if log.suffix in {GZIP, ZSTD}:
        raise ApplicationError(f"{log} is one file of a log; name its live file, such as {log.parent / 'events.jsonl'}")
    if log.is_file() and (what := advice(log)) is not None:
        raise ApplicationError(f"{log} is no audit log of this version: {what}")
    if not segments(log):
        raise ApplicationError(f"there is no audit log at {log}; give the path that was given to aperion.AuditLog")
    return log


def moment(text: str | None, option: str) -> datetime | None:
    """Return the time that a text means: RFC 3339, or how long ago.

    Raises:
        ApplicationError: for one that means none.
    """
    if text is None:
        return None
    try:
        if ago := _AGO.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        if _RFC_3339.fullmatch(text):
            return datetime.fromisoformat(text.upper())
    except (ValueError, OverflowError):  # such as the 31st of February
        pass
    raise ApplicationError(f"{option} {text!r} is no time; write 2024-05-01T12:00:00Z, or 15m, 2h, 7d for so long ago")


def listed(values: Sequence[str] | None) -> tuple[str, ...]:
    """Return the values of an option that may be repeated."""
    return tuple(values or ())


def kinds(values: Sequence[str] | None) -> tuple[str, ...]:
    """Return kinds of records.

    Raises:
        ApplicationError: for one that there is not: that nothing matches it would say nothing about the log.
    """
    return tuple(_known(value, _KINDS, "--kind") for value in values or ())


def state(value: str | None) -> str | None:
    """Return the state of an outcome.

    Raises:
        ApplicationError: for one that there is not.
    """
    return None if value is None else _known(value, _STATES, "--state")


def _known(value: str, known: frozenset[str], option: str) -> str:
    if value not in known:
        near = get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(known))}"
        raise ApplicationError(f"{option} {value!r} is none that a log has; {hint}")
    return value
