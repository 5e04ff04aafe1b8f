"""What stands in the file of a journal, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32


class State(NamedTuple):
    """Where one delivery stands that is not simply pending."""

    seq: int
    place: int  # in the plan of its event
    over: bool = False  # it went well, was skipped, or is a dead letter
    attempts: int = 0  # of its handler, that have failed
    starts: int = 0  # of its handler, that have ended with the process
    due: float = 0.0  # when the next attempt is due, by the clock
    wait: float = 0.0  # and how long after the last: clocks are set back

    @property
    def check(self) -> int:
        """The check of the other values."""
        return crc32(repr(tuple(self)).encode())


class Insert(NamedTuple):
    """An event to be kept."""

    seq: int
    event_id: str
    plan: str
    body: bytes

    @property
    def check(self) -> int:
        """The check of what is kept."""
        return check_of(self.seq, self.plan, self.body)


class Row(NamedTuple):
    """An event that was kept by an earlier life."""

    seq: int
    plan: tuple[str, ...]
    body: bytes
    states: dict[int, State]


class Page(NamedTuple):
    """Some events in the order of acceptance, and how many could not be read."""

    rows: list[Row]
    bad: int
    last: int  # the highest number that was looked at
    more: bool


class Summary(NamedTuple):
    """What an earlier life has left."""

    events: int
    is_exact: bool
    oldest: float | None  # when it was made; None where that cannot be read
    letters: int
    suspects: list[int]  # events whose handlers ran when the process died
    last: int  # the highest number of an event


@dataclass(slots=True)
class Batch:
    """What one commit does."""

    # Mutable: it grows until it is written.
    inserts: list[Insert] = field(default_factory=list)
    states: dict[tuple[int, int], State] = field(default_factory=dict)
    letters: dict[str, bytes | None] = field(default_factory=dict)
    settled: dict[int, int] = field(default_factory=dict)  # events, and their entries among the starts
    stated: list[int] = field(default_factory=list)  # those of them that have states
    forgotten: dict[int, str] = field(default_factory=dict)  # refused before, whatever the disk made of it

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.inserts or self.states or self.letters or self.settled or self.forgotten)


def check_of(seq: int, plan: str, body: bytes) -> int:
    """Return the check of a row of events."""
    return crc32(body, crc32(plan.encode(), seq & 0xFFFFFFFF))
