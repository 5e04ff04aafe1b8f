"""What a replay came to, as values: for people (``rendering.py``) and for machines (``to_dict``)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from aperion.naming import is_valid_event_type
from aperion.outcomes import OutcomeState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aperion.bus import EventBus
    from aperion.cli.tally import HandlerTally, Rejection, Tally
    from aperion.outcomes import DeadLetter

_OK, _SOME_FAILED, _SIGNALLED = 0, 1, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a replay ended.

    Args:
        seconds: how long it took, drain included.
        started_at: seconds since the epoch.
        signal: the signal that cut it short.
        stopped: why no further line could be emitted.
    """

    seconds: float
    started_at: float
    signal: int | None
    stopped: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSummary:
    """The deliveries to one handler; percentiles of handling in seconds, None where it never ran."""

    name: str
    ok: int
    failed: int
    timed_out: int
    skipped: int
    retried: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterGroup:
    """Dead letters that are alike."""

    reason: str
    handler: str | None
    event_type: str
    error: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All of it.

    ``lost`` events were dropped because the bus was full, ``filtered`` ones by processors, which is
    what these are for. Lines ``left_out`` are those with which an old log tells of the old bus.
    """

    file: str
    application: str
    ending: Ending
    read: int
    accepted: int
    lost: int
    filtered: int
    unfinished: int
    rejected: int
    left_out: int
    rejections: tuple[Rejection, ...]
    emitted_by_application: int
    types: tuple[tuple[str, int], ...]
    handlers: tuple[HandlerSummary, ...]
    letters: tuple[LetterGroup, ...]
    unknown_fields: Mapping[str, int]
    audit_log: str | None

    @property
    def rate(self) -> float:
        """Events of the file for each second."""
        return self.accepted / self.ending.seconds if self.ending.seconds else 0.0

    @property
    def dead_letters(self) -> int:
        """How many there are."""
        return sum(group.count for group in self.letters)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Say in a few words each what did not go well."""
        failed = sum(handler.failed for handler in self.handlers)
        timed_out = sum(handler.timed_out for handler in self.handlers)
        signal = Signals(self.ending.signal).name if self.ending.signal is not None else None
        told = (
            (signal, f"{signal} cut it short"),
            (self.ending.stopped, "it was stopped before the end of the file"),
            (self.rejected, f"{self.rejected:,} {_plural(self.rejected, 'line')} rejected"),
            (self.lost, f"{self.lost:,} {_plural(self.lost, 'event')} dropped because the bus was full"),
            (failed, f"{failed:,} {_plural(failed, 'delivery', 'deliveries')} failed"),
            (timed_out, f"{timed_out:,} timed out"),
            (self.unfinished, f"{self.unfinished:,} {_plural(self.unfinished, 'event')} unfinished"),
            (self.dead_letters, f"{self.dead_letters:,} {_plural(self.dead_letters, 'dead letter')}"),
        )
        return tuple(text for happened, text in told if happened)

    @property
    def exit_code(self) -> int:
        """0 when all went well, 1 when something did not, 128 + n after signal n."""
        if self.ending.signal is not None:
            return _SIGNALLED + self.ending.signal
        return _SOME_FAILED if self.reasons else _OK

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "file": self.file,
            "application": self.application,
            "exit_code": self.exit_code,
            "exit_reasons": list(self.reasons),
            "interrupted": self.ending.signal is not None,
            "stopped": self.ending.stopped,
            "seconds": round(self.ending.seconds, 6),
            "events_per_second": round(self.rate, 3),
            "lines": {"read": self.read, "rejected": self.rejected, "left_out": self.left_out},
            "rejected_lines": [{"line": r.line, "reason": r.reason} for r in self.rejections],
            "events": {
                "accepted": self.accepted,
                "emitted_by_application": self.emitted_by_application,
                "lost": self.lost,
                "filtered": self.filtered,
                "unfinished": self.unfinished,
                "by_type": dict(self.types),
            },
            "deliveries": {handler.name: _fields(handler, "name") for handler in self.handlers},
            "dead_letters": {"total": self.dead_letters, "groups": [_fields(group) for group in self.letters]},
            "unknown_fields": dict(self.unknown_fields),
            "audit_log": self.audit_log,
        }


def summarise(file: str, application: str, bus: EventBus, tally: Tally, ending: Ending) -> Summary:
    """Put together what was counted and what the bus knows."""
    stats, drained = bus.stats(), bus.last_drain
    return Summary(
        file=file,
        application=application,
        ending=ending,
        read=tally.read,
        accepted=tally.accepted,
        lost=stats.dropped - tally.filtered,
        filtered=tally.filtered,
        unfinished=len(drained.unfinished) if drained is not None else 0,
        rejected=tally.rejected,
        left_out=tally.left_out,
        rejections=tuple(tally.rejections),
        emitted_by_application=stats.accepted - tally.accepted,
        types=tuple(tally.types.most_common()),
        handlers=tuple(_handler(name, tally.handlers[name]) for name in sorted(tally.handlers)),
        letters=_letters(bus, ending.started_at),
        unknown_fields=dict(tally.unknown_fields),
        audit_log=_audit_path(bus),
    )


def _plural(count: int, one: str, more: str | None = None) -> str:
    return one if count == 1 else more or f"{one}s"


def _handler(name: str, tally: HandlerTally) -> HandlerSummary:
    return HandlerSummary(
        name=name,
        ok=tally.states[OutcomeState.OK],
        failed=tally.states[OutcomeState.FAILED],
        timed_out=tally.states[OutcomeState.TIMED_OUT],
        skipped=tally.states[OutcomeState.SKIPPED],
        retried=tally.retried,
        p50=tally.durations.percentile(50),
        p95=tally.durations.percentile(95),
        p99=tally.durations.percentile(99),
    )


def _letters(bus: EventBus, since: float) -> tuple[LetterGroup, ...]:
    # A store may outlive the process: what failed before this run is not its doing.
    new = [letter for letter in bus.dead_letters.list() if letter.failed_at >= since]
    alike = Counter((x.reason.value, x.subscription, _name(x, bus), f"{x.error_type}: {x.error}") for x in new)
    return tuple(
        LetterGroup(reason=reason, handler=handler, event_type=event_type, error=error, count=count)
        for (reason, handler, event_type, error), count in alike.most_common()
    )


def _name(letter: DeadLetter, bus: EventBus) -> str:
    # What was refused for its name may be anything, a password for example.
    name = letter.event.event_type
    return name if is_valid_event_type(name) else bus.redactor.redact_text(name)


def _audit_path(bus: EventBus) -> str | None:
    path = getattr(bus.audit, "path", None)  # a sink of the user's own may have none
    return None if path is None else str(Path(path).absolute())


def _fields(value: HandlerSummary | LetterGroup, *without: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__ if name not in without}
