"""Logs of aperion-event-bus 1.2.1: how they are told, what their lines say, and a log of ours made of one."""

from __future__ import annotations

import math
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from aperion._recent import Recent
from aperion.audit import record
from aperion.audit.chain import GENESIS, START, seal
from aperion.audit.segments import segments
from aperion.errors import AuditError
from aperion.naming import RESERVED_DOMAIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from aperion.audit.chain import Link
    from aperion.redaction import Redactor

_FIELDS: Final = {"event_type", "payload", "timestamp", "event_id", "source", "correlation_id"}  # of every line
_ERROR: Final = "system.handler_error"
_LONGEST_LINE: Final = 64 << 20
_MOST_FILES: Final = 1_000
_AT_ONCE: Final = 1_000
_EVENTS_REMEMBERED: Final = 65_536
_PROBLEMS_SHOWN: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an old log came to.

    Args:
        files: those that were read, oldest first.
        events: how many became ``accepted`` records.
        failures: how many errors of handlers became ``outcome`` records.
        others: how many lines about the old bus itself became ``system`` records.
        unreadable: how many lines could not be brought over.
        problems: the first of them, as ``file:line``.
    """

    files: tuple[str, ...]
    events: int
    failures: int
    others: int
    unreadable: int
    problems: tuple[str, ...]


def is_old(fields: object) -> bool:
    """Tell whether a line of JSON is one of an old log."""
    return isinstance(fields, dict) and fields.keys() == _FIELDS


def is_of_old_bus(fields: dict[str, Any]) -> bool:
    """Tell whether a line is about the old bus itself: only it emitted such, and none of ours accepts them."""
    return str(fields["event_type"]).partition(".")[0] == RESERVED_DOMAIN


def advice(path: Path) -> str | None:
    """Return what to do about a file that is an old log; None for any other."""
    try:
        with path.open("rb") as file:
            first = file.readline(_LONGEST_LINE)
        old = is_old(record.parsed(first))
    except (OSError, ValueError):
        return None
    if not old:
        return None
    return (
        f"the file there is a log of aperion-event-bus; 'aperion audit import {path} NEW' makes a new log of it, "
        f"and 'aperion replay {path} --app MODULE:APP' emits its events again"
    )


def import_log(old: Path, new: Path, redactor: Redactor) -> Imported:
    """Write a new log, chained and redacted, with what an old one and its rotated files say. Waits.

    Raises:
        AuditError: when there is no old log there, or something else, and where there is a new one already.
        OSError: when the system refuses; the new log is not there then.
    """
    files = [path for path in _rotated(old) if path.is_file()]
    if not files or all(advice(path) is None for path in files):
        raise AuditError(f"{old} is no log of aperion-event-bus; name the file that was its event_log_path")
    if segments(new):
        raise AuditError(f"there is a log at {new} already; name a path where none is, and let the bus go on in it")
    writing = _Import(redactor)
    draft = new.with_name(f".{new.name}.import")
    try:
        with draft.open("xb") as file:
            for lines in writing.written(files):
                file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, new)  # which replaces nothing
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
    return writing.result(files)


def _rotated(old: Path) -> Iterator[Path]:
    """Yield the names that the files of an old log may have, oldest first."""
    numbered = [old.with_suffix(f".{number}.jsonl") for number in range(1, _MOST_FILES)]
    there = [path for path in numbered if path.exists()]
    yield from reversed(there)
    yield old


class _Import:
    """Turns lines of old files into records."""

    # Mutable: all of it.
    __slots__ = ("_correlations", "_counts", "_link", "_problems", "_redactor")

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._counts: Counter[str] = Counter()
        self._problems: list[str] = []
        self._correlations: Recent[str] = Recent(_EVENTS_REMEMBERED)  # of events whose handlers may have failed
        self._link: Link = START

    def written(self, files: Iterable[Path]) -> Iterator[list[bytes]]:
        bodies = self._bodies(files)
        while some := list(islice(bodies, _AT_ONCE)):
            lines, self._link = seal(some, self._link)
            yield lines

    def result(self, files: Iterable[Path]) -> Imported:
        counts = self._counts
        return Imported(
            files=tuple(map(str, files)),
            events=counts["accepted"],
            failures=counts["outcome"],
            others=counts["system"],
            unreadable=counts["unreadable"],
            problems=tuple(self._problems),
        )

    def _bodies(self, files: Iterable[Path]) -> Iterator[bytes]:
        began = False
        for path in files:
            with path.open("rb") as file:
                for number, text in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
                    fields = self._fields(text)
                    if fields is None:
                        self._lost(f"{path.name}:{number}")
                        continue
                    if not began:
                        began = True
                        yield record.line(_segment(fields["time"]))
                    self._counts[fields["kind"]] += 1
                    yield record.line(fields)
        counts = {name: self._counts[name] for name in ("accepted", "outcome", "system", "unreadable")}
        yield record.about_log("log", {"imported": {"from": "aperion-event-bus", **counts}})

    def _lost(self, place: str) -> None:
        self._counts["unreadable"] += 1
        if len(self._problems) < _PROBLEMS_SHOWN:
            self._problems.append(place)

    def _fields(self, text: bytes) -> dict[str, Any] | None:
        """Return the fields of a record; None for a line that is none."""
        try:
            old = record.parsed(text)
        except ValueError:
            return None
        if not is_old(old) or not isinstance(old["payload"], dict) or not _is_time(old["timestamp"]):
            return None
        payload = old["payload"]
        if old["event_type"] == _ERROR and "original_event_id" in payload:
            return self._failure(old, payload)
        event_id = str(old["event_id"])
        correlation_id = str(old.get("correlation_id") or event_id)
        self._correlations.put(event_id, correlation_id)
        fields = self._envelope("accepted", old, event_id, str(old["event_type"]), correlation_id)
        if is_of_old_bus(old):
            return {**fields, "kind": "system", "detail": record._redacted(self._redactor.redact, payload)}
        return {**fields, "payload": record._redacted(self._redactor.redact, payload)}

    def _failure(self, old: dict[str, Any], payload: dict[str, Any]) -> dict[str, Any]:
        """Return the outcome that the old log knows as an event of its own; how long it took is not said."""
        event_id = str(payload["original_event_id"])
        correlation_id = self._correlations.get(event_id) or event_id
        event_type = str(payload.get("original_event_type"))
        return {
            **self._envelope("outcome", {**old, "source": None}, event_id, event_type, correlation_id),
            "subscription": str(payload.get("handler_name")),
            "attempt": 1,
            "state": "failed",
            "error": record._redacted(self._redactor.redact_text, str(payload.get("error"))),
        }

    def _envelope(
        self, kind: str, old: dict[str, Any], event_id: str, event_type: str, correlation_id: str
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "time": round(old["timestamp"] * 1e9),
            "kind": kind,
            "event_id": event_id,
            "type": event_type,
        }
        if old.get("source") is not None:
            fields["source"] = record._identifier(str(old["source"]), self._redactor)
        same = correlation_id == event_id
        fields["correlation_id"] = event_id if same else record._identifier(correlation_id, self._redactor)
        return {**fields, "hops": 0}


def _segment(time_ns: int) -> dict[str, Any]:
    """Return the first record of a log, as old as the first event."""
    return {"time": time_ns, "kind": "segment", "log": str(uuid4()), "segment": 1, "previous": GENESIS}


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e10
