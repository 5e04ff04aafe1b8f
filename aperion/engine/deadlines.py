"""Timeouts of handlers: one timer for all of them, which cancels the overdue one.

A scope of its own around each handler costs 3,200 ns (``asyncio.timeout``) or 8,600 ns
(``anyio.fail_after``); this costs nothing until a handler waits, and about 300 ns then.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING

from aperion.engine.flight import Halt

if TYPE_CHECKING:
    import asyncio

    from aperion.engine.flight import Unit


class Deadlines:
    """The units that wait for something, and when each has to be over.

    Units with the same limit stand in one lane in the order in which they were started, so that the
    first of each lane is due first.
    """

    # Mutable: all of it. At most one timer is set, for _due or earlier.
    __slots__ = ("_due", "_lanes", "_late", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lanes: dict[float, dict[Unit, float]] = {}
        self._late: dict[Unit, float] = {}  # what came to wait after others that were started later; few
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    def watch(self, unit: Unit) -> None:
        """Cancel the unit once ``started + limit`` has passed, unless forgotten before."""
        self.forget(unit)
        if unit.limit == math.inf:
            return
        lane = self._lanes.setdefault(unit.limit, {})
        if lane and next(reversed(lane.values())) > unit.started:  # a dispatch in it waits longer than it does
            lane = self._late
        lane[unit] = unit.started
        if unit.rest is not None:
            unit.rest.lane = lane
        if unit.started + unit.limit < self._due:
            self._set_timer(unit.started + unit.limit)

    def forget(self, unit: Unit) -> None:
        """Stop watching a unit; fine for one that is not watched."""
        rest = unit.rest
        if rest is not None and rest.lane is not None:
            rest.lane.pop(unit, None)
            rest.lane = None

    def close(self) -> None:
        """Drop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def fire(self) -> None:
        """Cancel what is overdue, and wait for the next."""
        now = monotonic()
        for unit in self._overdue(now):
            self.forget(unit)
            if unit.rest is not None and unit.halt is None:
                unit.halt = Halt.EXPIRED
                unit.rest.cancel()
        self._due = math.inf
        self._lanes = {limit: lane for limit, lane in self._lanes.items() if lane}
        firsts = [next(iter(lane.values())) + limit for limit, lane in self._lanes.items()]
        firsts += [started + unit.limit for unit, started in self._late.items()]
        if firsts:
            self._set_timer(min(firsts))

    def _set_timer(self, due: float) -> None:
        self.close()
        self._due = due
        self._timer = self._loop.call_later(max(0.0, due - monotonic()), self.fire)

    def _overdue(self, now: float) -> list[Unit]:
        overdue = [unit for unit, started in self._late.items() if started + unit.limit <= now]
        for limit, lane in self._lanes.items():
            for unit, started in lane.items():
                if started + limit > now:
                    break
                overdue.append(unit)
        return overdue
