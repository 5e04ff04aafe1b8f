"""The ledger: how many events are in flight, who waits for a place among them, and what was counted."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio


class Balance(NamedTuple):
    """What a ledger says at one moment: ``accepted == settled + dropped + pending``."""

    accepted: int
    settled: int
    dropped: int

    @property
    def pending(self) -> int:
        """The events in flight."""
        return self.accepted - self.settled - self.dropped


class Ledger:
    """Counts events in and out, and gives each place among those in flight to one of them.

    A place is taken in ``enter`` or reserved in ``let_in``, and given back in ``leave``, once an event.
    Those who wait for one are let in by order; who gives up is taken out, so that nothing of him is left.
    """

    # Mutable: all but the limit, on the loop's thread. The three counts only grow, so that another thread can
    # read them as they were at one moment.
    __slots__ = ("accepted", "dropped", "limit", "line", "pending", "quiet", "settled")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.accepted = 0
        self.settled = 0
        self.dropped = 0  # of those accepted
        self.pending = 0  # accepted and neither settled nor dropped, and the places that are reserved
        self.line: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.quiet: dict[asyncio.Future[None], None] = {}  # who waits until nothing is in flight

    def balance(self) -> Balance:
        """Return the counts of one moment; from any thread."""
        while True:
            settled, dropped = self.settled, self.dropped
            accepted = self.accepted
            if settled == self.settled and dropped == self.dropped:
                return Balance(accepted, settled, dropped)

    def wait(self, place: asyncio.Future[None]) -> None:
        """Stand in line; the future is set when a place is reserved, at once where there is room by now."""
        self.line[place] = None
        if self.pending < self.limit:
            self.tell()

    def give_up(self, place: asyncio.Future[None]) -> None:
        """Leave the line, or give the place back that was reserved meanwhile."""
        if self.line.pop(place, self) is None:
            place.cancel()
        elif place.done() and not place.cancelled() and place.exception() is None:
            self.give_back()

    def use(self) -> None:
        """Give up a reserved place in order to enter with an event at once."""
        self.pending -= 1

    def give_back(self) -> None:
        """Give up a reserved place."""
        self.pending -= 1
        self.tell()

    def turn_away(self, error: Exception) -> None:
        """Tell all who stand in line that there will be no place."""
        line, self.line = self.line, OrderedDict()
        for place in line:
            if not place.done():
                place.set_exception(error)

    def tell(self) -> None:
        """Let in who waits for a place that is free, and tell who waits for quiet."""
        line = self.line
        while line and self.pending < self.limit:
            place, _ = line.popitem(last=False)
            if not place.done():
                self.pending += 1
                place.set_result(None)
        if self.quiet and not self.pending:
            quiet, self.quiet = self.quiet, {}
            for future in quiet:
                if not future.done():
                    future.set_result(None)


@dataclass(slots=True)
class Counters:
    """What a bus has counted beside its events since it was made."""

    # Mutable: every field, on the loop's thread unless said otherwise.
    rejected: int = 0
    dropped: int = 0
    deliveries: int = 0
    failures: int = 0
    retries: int = 0
    redriven: int = 0
    system_events: int = 0
    system_dropped: int = 0
    letters_lost: int = 0
    faults: int = 0  # of what users have put in: observers, stores, callbacks, listeners
    engine_errors: int = 0
    loop_blocked: int = 0  # by the watchdog's thread
