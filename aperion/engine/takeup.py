"""Taking up what an earlier life has left in the journal: in the order of acceptance, and a part at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from aperion._logs import logger as _log
from aperion.engine.flight import flight_of
from aperion.engine.kept import Kept, Later
from aperion.errors import BusNotRunningError, KilledError
from aperion.journal.rows import State
from aperion.outcomes import FailureReason
from aperion.subscriptions import Subscription

if TYPE_CHECKING:
    from aperion.engine.entry import KeptAdmission
    from aperion.engine.flight import Host
    from aperion.engine.kept import Volume
    from aperion.engine.ledger import Ledger
    from aperion.engine.settlement import Settlement
    from aperion.events import Event
    from aperion.journal.rows import Page, Row
    from aperion.router import Router

_PAGE: Final = 256
_ENOUGH: Final = 512
"""Events of an earlier life in flight at once; the others stay in the file until there is room."""


class TakeUp:
    """Puts events of an earlier life in flight again; on the loop's thread."""

    # Mutable: the counts, and what is in flight, which it shares with what keeps.
    __slots__ = (
        "_door",
        "_host",
        "_kept",
        "_ledger",
        "_max_starts",
        "_router",
        "_settlement",
        "bad",
        "orphans",
        "taken_up",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that an event goes through
        self,
        host: Host,
        router: Router,
        ledger: Ledger,
        settlement: Settlement,
        door: KeptAdmission,
        kept: dict[str, Kept],
        max_starts: int,
    ) -> None:
        self._host = host
        self._router = router
        self._ledger = ledger
        self._settlement = settlement
        self._door = door
        self._kept = kept
        self._max_starts = max_starts
        self.orphans = self.bad = self.taken_up = 0

    @property
    def is_ending(self) -> bool:
        """Whether what is not finished stays for the next life."""
        return not self._settlement.retries

    def go_on(self, volume: Volume) -> None:
        """Ask for the next events, suspects first and one at a time: who takes the process down is found alone."""
        if volume.asked or volume.suspect is not None or self.is_ending:
            return
        if volume.suspects:
            volume.asked = True
            volume.writer.ask("row", (volume.suspects.popleft(),), lambda row: self._suspect_read(volume, row))
        elif volume.has_more and volume.taken <= _ENOUGH - _PAGE:
            volume.asked = True
            volume.writer.ask("page", (volume.after, volume.before, _PAGE), lambda page: self._page_read(volume, page))

    def gone(self, volume: Volume) -> None:
        """Take note that an event of an earlier life has settled."""
        volume.taken -= 1
        if volume.taken <= _ENOUGH - _PAGE:
            self.go_on(volume)

    def _suspect_read(self, volume: Volume, row: Row | None) -> None:
        volume.asked = False
        kept = self._take_up(volume, row) if row is not None and not self.is_ending else None
        volume.suspect = kept
        if kept is None:
            self.go_on(volume)

    def passed(self, volume: Volume) -> None:
        """Go on, since a suspect has run and the process is still there."""
        volume.suspect = None
        self.go_on(volume)

    def _page_read(self, volume: Volume, page: Page) -> None:
        volume.asked = False
        if self.is_ending:
            return
        if page.bad:
            self.bad += page.bad
            _log.critical(
                "events in the journal are damaged; they were set aside",
                events=page.bad,
            )
        volume.after, volume.has_more = page.last, page.more
        for row in page.rows:
            if row.seq not in volume.seen_suspects:
                self._take_up(volume, row)
        if not volume.has_more:
            self._unpark(volume)
            if self.orphans:
                _log.warning(
                    "deliveries of an earlier life stay in the journal, since their subscriptions are gone",
                    deliveries=self.orphans,
                )
        self.go_on(volume)

    def _take_up(self, volume: Volume, row: Row) -> Kept | None:
        """Put an event in flight again, with those of its deliveries that are not over; None where there is nothing to do."""
        from aperion.journal.codec import read

        try:
            event = read(row.body)
        except Exception as error:  # noqa: BLE001 - a model of the user's may raise anything
            self._unreadable(volume, row, error)
            return None
        if event.event_id in self._kept:  # it was accepted again after the window
            volume.writer.later("settled", row.seq, 0, True)
            return None
        flight = flight_of(self._host, event)
        kept = Kept(volume, row.seq, row.plan, flight)
        plan = self._planned(volume, row, event, kept)
        self.orphans += len(kept.left)
        if not plan:
            if not kept.left:
                volume.writer.later("settled", row.seq, 0, True)
            return None
        kept.open = len(plan) - len(kept.later or ())
        flight.plan = tuple(plan)
        flight.started = time.monotonic()
        self._kept[event.event_id] = kept
        self.taken_up += 1
        volume.taken += 1
        self._ledger.accepted += 1
        self._ledger.pending += 1
        self._door.queue_now(flight)
        return kept

    def _planned(self, volume: Volume, row: Row, event: Event[Any], kept: Kept) -> list[Subscription]:
        """Return to whom an event still goes, and take note of what is kept of that."""
        plan: list[Subscription] = []
        names = list(row.plan)
        later: dict[int, Later] = {}
        starts: dict[int, int] = {}
        for place, name in enumerate(row.plan):
            state = row.states.get(place, State(row.seq, place))
            if state.over:
                continue
            subscription = self._named(name, event.event_type)
            if subscription is None:
                kept.left |= {place}
            elif subscription.name in names[:place]:  # under a name that it had before too
                volume.writer.later(state._replace(over=True))
            elif state.starts >= self._max_starts:
                killed = KilledError(name, state.starts)
                self._settlement.lost(event, name, FailureReason.KILLED, killed, state.starts)
                volume.writer.later(state._replace(over=True))
            else:
                names[place], starts[place] = subscription.name, state.starts
                if state.attempts:
                    wait = max(0.0, min(state.wait, state.due - time.time()))
                    later[len(plan)] = Later(subscription, state.attempts, wait)
                    subscription = _closed(subscription)
                plan.append(subscription)
        kept.names, kept.later, kept.starts, kept.stated = tuple(names), later, starts, True
        return plan

    def _unreadable(self, volume: Volume, row: Row, error: Exception) -> None:
        from aperion.journal.codec import unread

        event = unread(row.body)
        if event is None:
            self.bad += 1
            _log.critical("an event in the journal cannot be read; it stays there", seq=row.seq)
            return
        for place, name in enumerate(row.plan):
            if place not in row.states or not row.states[place].over:
                self._settlement.lost(event, name, FailureReason.SCHEMA, error, 0)
        volume.writer.later("settled", row.seq, 0, True)

    def _unpark(self, volume: Volume) -> None:
        parked, volume.parked = volume.parked, []
        for flight, future in parked:
            if flight.settled:
                continue
            if not flight.begun:
                self._door.queue_now(flight)
            elif future is not None and not future.done():
                self._door.reserve(flight)
                future.set_result(None)

    def leave_parked(self, volume: Volume) -> None:
        """Leave to the next life what waits behind that of an earlier one, since no more of that is taken up."""
        parked, volume.parked = volume.parked, []
        for flight, future in parked:
            if not flight.begun:
                self._settlement.give_up(flight, "the bus drained before it was the turn of this event")
            elif future is not None and not future.done():
                future.set_exception(BusNotRunningError("the bus drained before the event had its turn"))

    def _named(self, name: str, event_type: str) -> Subscription | None:
        return next((each for each in self._router.once_named(name) if each.wants(event_type)), None)


def _closed(subscription: Subscription) -> Subscription:
    """Return a stand-in that is passed over when its turn comes: its attempt is due later."""
    stand_in = Subscription(
        name=subscription.name, patterns=subscription.patterns, handler=subscription.handler, kind=subscription.kind
    )
    stand_in.set_paused(paused=True)
    return stand_in
