"""Admission: who is let in, and what is fixed at that moment: the record, the place, the plan."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from aperion._frozen import FrozenDict
from aperion.engine.flight import NO_RESULTS, Flight, flight_of
from aperion.engine.settings import BusState, OverflowPolicy
from aperion.errors import BackpressureError, BusNotRunningError, DeadlockError, KeyHeldError
from aperion.events import make_event, set_cascade
from aperion.receipts import receipt_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from aperion.engine.facts import Facts
    from aperion.engine.flight import Host
    from aperion.engine.ledger import Counters, Ledger
    from aperion.engine.queue import Queue
    from aperion.engine.settlement import Settlement
    from aperion.events import Event
    from aperion.protocols import Recorder
    from aperion.receipts import Receipt
    from aperion.router import Router

_RUNNING = BusState.RUNNING  # looking a member up costs 50 ns, for every event


class Admission:
    """The door of a bus: one bound, one policy, one line."""

    # Mutable: the state, by the engine; what is held until the disk has it; who listens.
    __slots__ = (
        *("_blocks", "_counters", "_engine", "_facts", "_ledger", "_limit", "_policy", "_queue", "_recorder"),
        *("_router", "_settlement", "_synced", "_system", "_wake", "_watched", "held", "refuses", "state", "taps"),
    )

    def __init__(  # noqa: PLR0913 - the parts that it stands between
        self,
        engine: Host,
        policy: OverflowPolicy,
        *,
        router: Router,
        recorder: Recorder | None,
        facts: Facts,
        ledger: Ledger,
        system_ledger: Ledger,
        counters: Counters,
        queue: Queue,
        settlement: Settlement,
        wake: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._router = router
        self._ledger = ledger
        self._system = system_ledger
        self._counters = counters
        self._queue = queue
        self._facts = facts
        self._settlement = settlement
        self._wake = wake
        self._recorder = recorder
        self._synced = recorder.when_synced if recorder is not None and recorder.waits_for_disk else None
        self._watched = recorder is not None or facts.accepted is not None or facts.begun is not None
        self._limit = ledger.limit
        self._policy = policy
        self._blocks = policy is OverflowPolicy.BLOCK
        self.state = BusState.STOPPED
        self.refuses = False  # the deadline of the drain has passed
        self.held: dict[Flight, asyncio.Future[None]] = {}  # accepted, and not on the disk yet
        self.taps: dict[object, Callable[[Receipt], None]] = {}

    def enter(self, event: Event[Any]) -> Flight | None:
        """Accept an event, or deal with it as the policy says; None when the emitter has to wait for a place.

        Raises:
            BusNotRunningError: after the drain began, but for what handlers emit.
            BackpressureError: when full, under RAISE.
            AuditUnavailable: when it could not be recorded.
        """
        ledger = self._ledger
        if self.state is not _RUNNING:
            self.check_open(event)
        if (ledger.pending >= self._limit or ledger.line) and not (self._blocks and event.hops):
            # A child is admitted at once under BLOCK: it must not wait for the place that its own parent holds.
            # Their number is bounded by max_cascade.
            return None if self._blocks else self._overflow(event)
        return self.accept(event)

    def enter_now(self, event: Event[Any]) -> Flight:
        """Accept and queue an event without waiting.

        Raises:
            BackpressureError: when the emitter would have to wait.
        """
        flight = self.enter(event)
        if flight is None:
            raise BackpressureError(self._limit)
        if not flight.dropped:
            self.queue(flight)
        return flight

    def enter_here(self, event: Event[Any]) -> Flight | None:
        """Do the same for ``dispatch``, which has no outcome to return for an event that was dropped."""
        ledger = self._ledger
        if self.state is not _RUNNING:
            self.check_open(event)
        if (ledger.pending >= self._limit or ledger.line) and not event.hops:
            if self._blocks:
                return None
            oldest = self._queue.oldest()
            if oldest is None:
                raise BackpressureError(self._limit)
            self._settlement.drop(oldest, self._policy.value, queued=True)
        return self.accept(event)

    def accept(self, event: Event[Any]) -> Flight:
        """Record an event, take its place, and fix its plan; nobody else comes in between.

        Raises:
            AuditUnavailable: when it could not be recorded; it is not accepted then.
        """
        ledger = self._ledger
        if self._recorder is not None:
            self._recorder.accepted(event)
        flight = Flight()
        # What flight_of() sets, without the calls.
        flight.limit = 0.0
        flight.rest = flight.halt = flight.within = flight.parked = flight.slot = flight.job = flight.waiters = None
        flight.placed = flight.moved = flight.begun = flight.passed = False
        flight.settled = flight.dropped = flight.system = False
        flight.lent = flight.failures = flight.retrying = 0
        flight.results = NO_RESULTS
        flight.event = event
        flight.engine = self._engine
        plan = self._router._plans.young.get(event.event_type)
        flight.plan = self._router.resolve(event.event_type) if plan is None else plan
        ledger.accepted += 1
        ledger.pending += 1
        if self._watched:
            flight.started = monotonic()
            if self._facts.accepted is not None:
                self._facts.accepted(event, ledger.pending)
        else:
            flight.started = 0.0
        if self.taps:
            self._tap(flight)
        return flight

    def queue(self, flight: Flight) -> None:
        """Hand an accepted event on to the workers, once the disk has its record where that is asked for."""
        if self._synced is not None and (synced := self._synced()) is not None:
            self.held[flight] = synced
            synced.add_done_callback(lambda _: self._let_go(flight, synced))
            return
        queue = self._queue
        if flight.event.key is None and not queue.by_age:  # what Queue.add does, without the call
            queue.queued += 1
            queue.ready.append(flight)
        else:
            queue.add(flight)
        self._wake()

    def check_open(self, event: Event[Any]) -> None:
        """Refuse what comes while the bus does not run; what handlers emit while it drains belongs to them."""
        draining = self.state is BusState.DRAINING and not self.refuses
        if self.state is not _RUNNING and not (draining and event.hops):
            raise BusNotRunningError(f"the bus is {self.state.value}, so {event.event_type!r} was not accepted")

    # Waiting for a place

    async def enter_when_free(self, event: Event[Any]) -> Flight:
        """Accept an event as soon as there is room, in the order in which emitters came."""
        place = self._engine.loop.create_future()
        self._ledger.wait(place)
        try:
            await place
            if self._recorder is not None and self._recorder.is_crowded:  # by those who were let in meanwhile
                await self._recorder.room()
        except BaseException:
            self._ledger.give_up(place)
            raise
        return self.accept_reserved(event)

    def accept_reserved(self, event: Event[Any]) -> Flight:
        """Accept an event on the place that was reserved for it."""
        self._ledger.use()
        try:
            if self.state is not _RUNNING:
                self.check_open(event)
            return self.accept(event)
        except BaseException:
            self._ledger.tell()
            raise

    # Dropping

    def drop(self, event: Event[Any], policy: str) -> Flight:
        """Drop an event that was not accepted, visibly; its receipt says so."""
        flight = flight_of(self._engine, event)
        flight.settled = flight.dropped = True
        self._counters.dropped += 1
        if self._facts.dropped is not None:
            self._facts.dropped(event, policy)
        return flight

    def _overflow(self, event: Event[Any]) -> Flight:
        if self._policy is OverflowPolicy.RAISE:
            raise BackpressureError(self._limit)
        oldest = self._queue.oldest()
        if oldest is None:
            return self.drop(event, self._policy.value)
        self._settlement.drop(oldest, self._policy.value, queued=True)
        return self.accept(event)

    # The disk

    async def until_synced(self, flight: Flight) -> None:
        """Wait until the disk has the record of an event; cancelling the wait drops the event.

        Raises:
            AuditUnavailable: when the disk has refused; the event is dropped.
        """
        waited = None
        # First the journal may be waited for, and then the log.
        while (synced := self.held.get(flight)) is not None and synced is not waited:
            waited = synced
            await synced

    async def synced_here(self, flight: Flight) -> None:
        """Do the same for ``dispatch``."""
        synced = self._synced() if self._synced is not None else None
        if synced is None:
            return
        self.held[flight] = synced
        try:
            await synced
        except BaseException:
            policy = "cancelled" if synced.cancelled() or not synced.done() else "audit_unavailable"
            self._settlement.drop(flight, policy, queued=False)
            raise
        finally:
            del self.held[flight]

    def give_up_held(self) -> list[Flight]:
        """Drop what the disk has not got in time, and return it."""
        held = [flight for flight, synced in self.held.items() if not synced.done()]
        for flight in held:
            error = BusNotRunningError("the bus drained before the disk had the record of the event; it was dropped")
            self.held[flight].set_exception(error)
        return held

    def _let_go(self, flight: Flight, synced: asyncio.Future[None]) -> None:
        del self.held[flight]
        if synced.cancelled():
            self._settlement.drop(flight, "cancelled", queued=False)
        elif synced.exception() is not None or self.refuses:
            self._settlement.drop(flight, "audit_unavailable", queued=False)
        else:
            self._queue.add(flight)
            self._wake()

    # Keys

    async def turn(self, flight: Flight) -> None:
        """Wait until the key of a dispatched event is free; giving up drops the event.

        Raises:
            KeyHeldError: when whoever has the key waits for this dispatch.
        """
        turn: asyncio.Future[None] = self._engine.loop.create_future()
        if not self._queue.wait_turn(flight, turn):
            await self._until_turn(flight, turn)

    async def _until_turn(self, flight: Flight, turn: asyncio.Future[None]) -> None:
        try:
            if flight.within is not None and self._engine.waiting.is_own(flight.within):
                self._check_key(flight)
            await turn
        except BaseException:
            self._queue.give_up_turn(flight)
            self._settlement.drop(flight, "cancelled", queued=False)
            if self._queue.ready:
                self._wake()
            raise

    def _check_key(self, flight: Flight) -> None:
        try:
            self._engine.waiting.check_no_cycle(flight, flight.within)
        except DeadlockError:
            raise KeyHeldError(flight.event.event_type, str(flight.event.key)) from None

    # Listeners and the bus's own events

    def _tap(self, flight: Flight) -> None:
        receipt = receipt_of(flight)
        for tap in tuple(self.taps.values()):
            try:
                tap(receipt)
            except BaseException as error:  # noqa: BLE001 - a listener must not hurt the event
                self._facts.fault("listener", error)

    def announce(
        self, event_type: str, payload: Mapping[str, Any], cause: Event[Any] | None, headers: Mapping[str, str]
    ) -> None:
        """Emit an event of the bus itself, in a ledger of its own; dropped, and counted, where that is full."""
        ledger = self._system
        if ledger.pending >= self._limit or self.state is BusState.STOPPED or self.refuses:
            self._counters.system_dropped += 1
            return
        correlation_id, causation_id = (cause.correlation_id, cause.event_id) if cause else (None, None)
        hops = cause.hops + 1 if cause else 0
        content = FrozenDict(payload)
        event = make_event(event_type, content, "event_bus", correlation_id, causation_id, hops, None, headers, False)
        if cause is not None:
            set_cascade(event, cause._cascade)
        self._counters.system_events += 1
        if self._facts.announced is not None:
            self._facts.announced(event, payload)
        flight = flight_of(self._engine, event)
        flight.system = True
        flight.plan = self._router.resolve(event_type)
        ledger.accepted += 1
        ledger.pending += 1
        if self.taps:
            self._tap(flight)
        if flight.plan:
            self._queue.add(flight)
            self._wake()
        else:
            self._settlement.settle(flight)
