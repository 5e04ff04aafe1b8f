"""The events that are ready to be handled: in the order accepted, and one at a time for each key."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from aperion.engine.flight import Flight

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from aperion.engine.flight import Rerun, Unit

_FEW = 64  # gaps that are not worth closing


class Queue:
    """What is ready for a worker, and behind it the events whose key is busy.

    Bounded by admission: an event stands here at most once, and one that is dropped leaves.
    """

    # Mutable: all of it, on the loop's thread. A key is in _lines while an event that has it is unsettled: the
    # first of its line has the key, the others wait for it.
    __slots__ = ("_age", "_gaps", "_lines", "_turns", "again", "by_age", "queued", "ready")

    def __init__(self, *, by_age: bool) -> None:
        self.ready: deque[Unit] = deque()
        self.queued = 0  # events of users of which no handler has begun
        self.again = 0  # attempts whose time has come
        self._lines: dict[str, deque[Flight]] = {}
        self._turns: dict[Flight, asyncio.Future[None]] = {}  # of events that somebody else handles
        self.by_age = by_age
        self._age: OrderedDict[Flight, None] | None = OrderedDict() if by_age else None
        self._gaps = 0  # dropped events that still stand in ``ready``

    def add(self, flight: Flight) -> None:
        """Queue an event that was accepted."""
        key = flight.event.key
        if not flight.system:
            self.queued += 1
            if self._age is not None:
                self._age[flight] = None
        if key is None or self._takes_key(flight, key):
            self.ready.append(flight)

    def add_again(self, rerun: Rerun) -> None:
        """Queue one more attempt, now that its time has come."""
        self.again += 1
        self.ready.append(rerun)

    def begun(self, flight: Flight) -> None:
        """Take note that the handlers of an event begin."""
        flight.begun = True
        if not flight.system:
            self.queued -= 1
            if self._age is not None:
                del self._age[flight]

    def passed_over(self) -> None:
        """Take note that a worker met an event that was dropped."""
        self._gaps -= 1

    def oldest(self) -> Flight | None:
        """Return the oldest event of a user that has not begun; None when all have."""
        return next(iter(self._age), None) if self._age is not None else None

    def drop(self, flight: Flight) -> None:
        """Take an event out that has not begun, and is marked as settled; the next of its key goes on."""
        self.begun(flight)
        key = flight.event.key
        line = self._lines.get(key) if key is not None else None
        if line is not None and line[0] is not flight:
            line.remove(flight)
            return
        self._gaps += 1
        if line is not None:
            self.release(flight)
        if self._gaps > _FEW and self._gaps * 2 > len(self.ready):
            self._refill([unit for unit in self.ready if not (isinstance(unit, Flight) and unit.settled)])
            self._gaps = 0

    # Keys

    def wait_turn(self, flight: Flight, turn: asyncio.Future[None]) -> bool:
        """Take the key of an event that is not queued; False when ``turn`` will be set once it is free."""
        key = flight.event.key
        if key is None or self._takes_key(flight, key):
            return True
        self._turns[flight] = turn
        return False

    def give_up_turn(self, flight: Flight) -> None:
        """Leave the line for a key, or give the key back if it was just had."""
        if self._turns.pop(flight, None) is not None:
            self._lines[flight.event.key or ""].remove(flight)
        else:
            self.release(flight)

    def holder(self, flight: Flight) -> Flight | None:
        """Return the event that an event waits for since it has the same key; None where it waits for none."""
        line = self._lines.get(flight.event.key or "")
        return line[0] if line and line[0] is not flight and flight in line else None

    def release(self, flight: Flight) -> None:
        """Give the key of a settled event to the next that has it; nothing where it only stood in line."""
        key = flight.event.key
        line = self._lines.get(key) if key is not None else None
        if line is None or key is None or line[0] is not flight:
            return
        line.popleft()
        while line:
            turn = self._turns.pop(line[0], None)
            if turn is None:
                self.ready.append(line[0])
                return
            if not turn.done():
                turn.set_result(None)
                return
            line.popleft()  # its dispatch was cancelled and has not run since
        del self._lines[key]

    def _takes_key(self, flight: Flight, key: str) -> bool:
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque([flight])
            return True
        line.append(flight)
        return False

    # At the end

    def unstarted(self) -> list[Flight]:
        """Return the events that no handler has seen."""
        lines: list[deque[Flight]] = [deque(u for u in self.ready if isinstance(u, Flight)), *self._lines.values()]
        flights = dict.fromkeys(flight for line in lines for flight in line)
        return [f for f in flights if not (f.begun or f.settled or f in self._turns)]

    def reruns(self) -> Iterator[Rerun]:
        """Go through the attempts that are ready, those left out that have begun and waited for a thread."""
        return (unit for unit in tuple(self.ready) if not isinstance(unit, Flight) and unit.parked is None)  # type: ignore[misc]  # what is no flight is a rerun

    def forget_reruns(self) -> None:
        """Take those out."""
        self._refill([unit for unit in self.ready if isinstance(unit, Flight) or unit.parked is not None])
        self.again = 0

    def refuse_turns(self, error: Exception) -> None:
        """Tell every dispatch that waits for its key that the key will not come."""
        turns, self._turns = self._turns, {}
        for flight, turn in turns.items():
            self._lines[flight.event.key or ""].remove(flight)
            if not turn.done():
                turn.set_exception(error)

    def _refill(self, units: list[Unit]) -> None:
        self.ready.clear()
        self.ready.extend(units)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is ready and no key is held."""
        return not (self.ready or self._lines or self.queued)
