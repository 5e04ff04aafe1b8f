"""What is kept of an event in flight, and what settles it has to tell of that."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import asyncio

    from aperion.engine.flight import Flight
    from aperion.events import Event
    from aperion.journal.rows import Summary
    from aperion.journal.writer import Writer
    from aperion.subscriptions import Subscription


class Later(NamedTuple):
    """A delivery that an earlier life has attempted, and that waits for its time."""

    subscription: Subscription
    attempts: int
    wait: float


class Keeps(Protocol):
    """The journal, as far as it is told how deliveries end."""

    def settled(self, flight: Flight) -> None:
        """Forget an event, but for what is left to the next life."""

    def resumed(self, flight: Flight, index: int) -> Later | None:
        """Return what is to become of a delivery that waits for its time, once its turn has come."""

    def retry(self, event: Event[Any], subscription: Subscription, attempts: int, wait: float, *, here: bool) -> bool:
        """Write down when a delivery is due again, here or in the next life; False where it is not kept."""

    def leave(self, event: Event[Any], subscription: Subscription) -> bool:
        """Leave a delivery that was not finished to the next life; False where it is not kept."""

    def over(self, event: Event[Any], subscription: Subscription) -> None:
        """Write down that a delivery has failed for good."""


_NONE: frozenset[int] = frozenset()


class Kept:
    """What is kept of one event in flight."""

    # Mutable: the entry among the starts, what is done and runs, what stays for the next life, what is due later.
    __slots__ = (
        "done",
        "entry",
        "flight",
        "later",
        "left",
        "names",
        "open",
        "running",
        "seq",
        "starts",
        "stated",
        "volume",
    )

    def __init__(self, volume: Volume, seq: int, names: tuple[str, ...], flight: Flight) -> None:
        self.volume = volume
        self.seq = seq
        self.names = names
        self.flight = flight
        self.entry = self.done = self.running = 0
        self.open = len(names)  # deliveries that were not attempted in this life
        self.left: frozenset[int] = _NONE
        self.later: dict[int, Later] | None = None  # by the index in the plan of the flight
        self.starts: dict[int, int] | None = None
        self.stated = False  # whether the file says of a delivery where it stands

    def place(self, subscription: Subscription) -> int:
        """Return where a subscription stands in the plan that is kept; -1 where it is not kept."""
        names, name = self.names, subscription.name
        return 0 if names[0] == name else names.index(name) if name in names else -1


class Volume:
    """One slot of the journal, and what of an earlier life is still to be taken up from it."""

    # Mutable: all but the writer.
    __slots__ = (
        "after",
        "asked",
        "before",
        "has_more",
        "next",
        "parked",
        "seen_suspects",
        "suspect",
        "suspects",
        "taken",
        "writer",
    )

    def __init__(self, writer: Writer, summary: Summary) -> None:
        self.writer = writer
        self.next = self.before = summary.last + 1
        self.suspects = deque(summary.suspects)
        self.seen_suspects = frozenset(summary.suspects)
        self.suspect: Kept | None = None
        self.after = 0
        self.taken = 0  # of an earlier life, in flight
        self.asked = False
        self.has_more = summary.events > 0
        # Accepted, with a key, behind what is still to be taken up; dispatches wait for their futures.
        self.parked: list[tuple[Flight, asyncio.Future[None] | None]] = []

    @property
    def is_behind(self) -> bool:
        """Whether there is more of an earlier life than was taken up so far."""
        return self.has_more or self.suspect is not None or bool(self.suspects)
