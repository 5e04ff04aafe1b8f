"""One run of a bus, from start to stop: its parts, who waits for what, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio

from aperion._logs import logger as _log
from aperion.engine.admission import Admission
from aperion.engine.deadlines import Deadlines
from aperion.engine.due import Due
from aperion.engine.execution import Execution
from aperion.engine.flight import Flight, Halt
from aperion.engine.queue import Queue
from aperion.engine.settings import BusState, DrainReport, OverflowPolicy
from aperion.engine.settlement import Settlement
from aperion.engine.waiting import Waiting
from aperion.engine.workers import Workers
from aperion.errors import BusNotRunningError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aperion.deadletters import DeadLetterQueue
    from aperion.engine.facts import Facts
    from aperion.engine.flight import Unit
    from aperion.engine.keeping import Keeping
    from aperion.engine.ledger import Counters, Ledger
    from aperion.engine.settings import Settings
    from aperion.engine.threads import WorkerThreads
    from aperion.events import Event
    from aperion.protocols import Middleware, Recorder
    from aperion.redaction import Redactor
    from aperion.router import Router

GRACE = 1.0
"""Seconds that handlers have to end once the drain has cancelled them; then they are left behind."""


class Engine:
    """The moving parts of a bus while it runs. Everything here happens on the thread of its loop."""

    # Mutable: the task that hosts the workers, that of the drain, and what has interrupted the bus.

    def __init__(  # noqa: PLR0913 - the parts of a bus that outlive a run
        self,
        settings: Settings,
        *,
        router: Router,
        recorder: Recorder | None,
        keeping: Keeping | None,
        facts: Facts,
        letters: DeadLetterQueue,
        redactor: Redactor,
        ledger: Ledger,
        system_ledger: Ledger,
        counters: Counters,
        threads: WorkerThreads,
        middleware: Sequence[Middleware],
        drain_timeout: float,
    ) -> None:
        self.settings = settings
        self.router = router
        self.recorder = recorder
        self.keeping = keeping
        self.facts = facts
        self.ledger = ledger
        self.system_ledger = system_ledger
        self.counters = counters
        self.threads = threads
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.queue = Queue(by_age=settings.overflow_policy is OverflowPolicy.DROP_OLDEST)
        self.settlement = Settlement(
            ledger,
            system_ledger,
            counters,
            self.queue,
            facts,
            letters,
            redactor,
            lambda: self.workers.wake(),  # noqa: PLW0108 - made below
            keeping,
        )
        self.deadlines = Deadlines(self.loop)
        self.execution = Execution(self.settlement, threads, middleware, facts)
        self.workers = Workers(
            settings.max_concurrent_events, self.queue, self.execution, self.settlement, self.deadlines, facts
        )
        self.execution.workers = self.workers
        self.due = Due(self.loop, self.queue, self.workers.wake, self.settlement.will_not_retry)
        self.settlement.due = self.due
        admission = Admission if keeping is None else keeping.admission
        self.admission = admission(
            self,
            settings.overflow_policy,
            router=router,
            recorder=recorder,
            facts=facts,
            ledger=ledger,
            system_ledger=system_ledger,
            counters=counters,
            queue=self.queue,
            settlement=self.settlement,
            wake=self.workers.wake,
        )
        self.waiting = Waiting(self)
        self.report: DrainReport | None = None
        self.interrupted: KeyboardInterrupt | None = None
        self._drain_timeout = drain_timeout
        self._owner = asyncio.current_task()
        self._host: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[DrainReport] | None = None

    @property
    def state(self) -> BusState:
        """Whether it runs, drains or stands still."""
        return self.admission.state

    # Life

    def start(self) -> None:
        """Begin to accept."""
        self.threads.open(self.loop)
        self.facts.interrupt = self.interrupt
        self.admission.state = BusState.RUNNING
        self._host = self.loop.create_task(self._hosted(), name="aperion host")
        if self.keeping is not None:
            self.keeping.begin(self, self.router, self.ledger, self.settlement, self.facts)

    async def _hosted(self) -> None:
        try:
            await self.workers.host()
        except asyncio.CancelledError:
            _log.warning("the loop goes down while the bus runs; what is in flight is given up")
        except BaseException as error:  # noqa: BLE001 - the end below is what matters
            self.counters.engine_errors += 1
            _log.critical("the engine failed", error_type=type(error).__name__)
        finally:
            self._end()

    def _end(self) -> dict[Flight, None]:
        """Leave nothing in flight, and nobody waiting, however the workers have ended; return what was given up."""
        self.admission.refuses = True
        self.admission.state = BusState.STOPPED
        self._turn_away()
        unfinished = self._cancel_all()
        self._give_up(unfinished)
        self.deadlines.close()
        self.threads.close()
        self.facts.interrupt = None
        return unfinished

    def interrupt(self, error: KeyboardInterrupt) -> None:
        """Begin the drain, and have the interrupt raised where the bus was entered once it is over."""
        if self.interrupted is not None:
            return
        self.interrupted = error
        self.begin_drain(self._drain_timeout)
        if self._owner is not None and not self._owner.done():
            self._owner.cancel()

    def was_interrupted(self) -> KeyboardInterrupt | None:
        """Return what has interrupted the bus, once, and take back that its owner was cancelled for it."""
        error, self.interrupted = self.interrupted, None
        owner = self._owner
        if error is not None and owner is not None and owner is asyncio.current_task() and owner.cancelling():
            owner.uncancel()
        return error

    # The drain

    def begin_drain(self, timeout: float) -> asyncio.Task[DrainReport]:
        """Begin the drain, or return the one that is under way: there is one, however many ask for it."""
        if self._drain is None:
            self._drain = self.loop.create_task(self._drained(timeout), name="aperion drain")
            # From now on, not from the first step of the task: what comes in between is refused already.
            self.admission.announce("system.shutdown", {"pending": self.ledger.pending}, None, {})
            self.admission.state = BusState.DRAINING
            self._turn_away()
            self._give_up_retries()
        return self._drain

    async def end(self, timeout: float) -> None:
        """Drain and stop; cancelling this changes nothing until that is done."""
        drain, cancelled = self.begin_drain(timeout), False
        # The host ends with the last worker, and that never, where a handler awaits a task that does not end.
        for task, longest in ((drain, None), (self._host, GRACE)):
            until = None if longest is None else monotonic() + longest
            while task is not None and not task.done() and (until is None or monotonic() < until):
                with anyio.CancelScope(shield=True):
                    try:
                        await asyncio.wait([task], timeout=longest)
                    except asyncio.CancelledError:
                        cancelled = True
        if self.report is None:  # the loop goes down, and has cancelled both before their first step
            unfinished = self._end()
            names = dict.fromkeys((flight.event.event_type, flight.event.event_id) for flight in unfinished)
            self.report = DrainReport(settled=0, unfinished=tuple(names))
        if cancelled and self.interrupted is None:  # else its owner was cancelled for that
            raise asyncio.CancelledError

    async def _drained(self, timeout: float) -> DrainReport:
        begun, before = monotonic(), self.ledger.settled
        unfinished: dict[Flight, None] = {}
        settled = 0
        try:
            await self._quiet(timeout)
            settled = self.ledger.settled - before
            unfinished = await self._stop()
        except asyncio.CancelledError:  # the loop goes down: at once, then
            settled = self.ledger.settled - before
            unfinished = self._cancel_all()
        except BaseException as error:  # noqa: BLE001 - the report is owed all the same
            self.counters.engine_errors += 1
            _log.critical("the engine failed while it drained", error_type=type(error).__name__)
        finally:
            self._give_up(unfinished)
            self.admission.state = BusState.STOPPED
            self.workers.close()
        names = dict.fromkeys((flight.event.event_type, flight.event.event_id) for flight in unfinished)
        self.report = DrainReport(settled=settled, unfinished=tuple(names), seconds=monotonic() - begun)
        return self.report

    async def _quiet(self, timeout: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(None if timeout == inf else timeout):
                await self.quiet()

    async def quiet(self) -> None:
        """Wait until nothing is in flight, the bus's own events included."""
        while ledger := next((each for each in (self.ledger, self.system_ledger) if each.pending), None):
            future: asyncio.Future[None] = self.loop.create_future()
            ledger.quiet[future] = None
            try:
                await future
            finally:
                ledger.quiet.pop(future, None)

    async def _stop(self) -> dict[Flight, None]:
        """Cancel what runs and give up what waits; return each event that did not finish."""
        if not (self.ledger.pending or self.system_ledger.pending):
            return {}
        unfinished = self._cancel_all()
        await asyncio.sleep(0)  # what the disk has not got in time is dropped now
        await self._quiet(GRACE)
        for driver in tuple(self.workers.running.values()):
            driver.leave()
        if self.workers.running:
            await self._quiet(GRACE)
        for unit in tuple(self.workers.running):  # whose task waits for another one that does not end
            self.settlement.left_behind(unit)
        return unfinished

    def _cancel_all(self) -> dict[Flight, None]:
        """Accept nothing any more, give up what has not begun, and cancel what has; return the events."""
        self.admission.refuses = True
        refusal = BusNotRunningError("the bus drained before the event had its turn")
        running = dict(self.workers.running)
        parked = [unit for unit in (*self.workers.parked, *self.queue.ready) if unit.parked is not None]
        unstarted = self.queue.unstarted()
        found = dict.fromkeys(
            [*self.admission.give_up_held(), *(unit.flight for unit in (*running, *parked)), *unstarted]
        )
        self._give_up_retries()
        for flight in unstarted:
            self.queue.begun(flight)
        for flight in unstarted:
            self.settlement.give_up(flight, "the bus drained, and its deadline passed before this handler ran")
        self.queue.refuse_turns(refusal)
        for unit in parked:
            self.workers.unpark(unit)
        self.queue.ready.clear()
        for unit, driver in running.items():
            if unit.halt is None and not self._is_inner(unit):
                unit.halt = Halt.STOPPED
                driver.cancel()
        return {flight: None for flight in found if not flight.dropped}

    def _is_inner(self, unit: Unit) -> bool:
        """Tell whether a unit runs in the task of a unit around it, which is cancelled with all that is in it."""
        outer = unit.within
        return (
            outer is not None and outer.rest is not None and unit.rest is not None and outer.rest.task is unit.rest.task
        )

    def _give_up(self, unfinished: dict[Flight, None]) -> None:
        """See that each of these is settled, whatever has happened to it."""
        for flight in unfinished:
            flight.retrying = 0
            self.settlement.give_up(flight, "the bus stopped before this handler ran")

    def _give_up_retries(self) -> None:
        self.settlement.retries = False
        waiting = [*self.due.close(), *self.queue.reruns()]
        self.queue.forget_reruns()
        for rerun in waiting:
            self.settlement.will_not_retry(rerun)
        if self.keeping is not None:
            self.keeping.leave_parked()

    def _turn_away(self) -> None:
        self.ledger.turn_away(BusNotRunningError("the bus began to drain before there was room for the event"))

    # Dispatch

    async def finish(self, flight: Flight, coroutine: Any, context: Any, waiting: Any) -> None:
        """Make the rest of the steps of a dispatch, and wait for its retries."""
        await self.workers.finish_here(flight, coroutine, context, waiting)
        if not flight.settled:
            await self.waiting.wait_for(flight)

    async def dispatch_slowly(self, event: Event[Any], within: Unit | None) -> Flight:
        """Run the handlers of an event in this task, where something has to be waited for before."""
        flight = self.admission.enter_here(event)
        if flight is None:
            flight = await self.admission.enter_when_free(event)
        flight.begun, flight.within = True, within
        if self.keeping is not None:
            await self.keeping.kept_here(flight)
            if flight.settled:  # its id was accepted before
                return flight
        await self.admission.synced_here(flight)
        if event.key is not None:
            await self.admission.turn(flight)
        await self.run_here(flight)
        if not flight.settled:
            await self.waiting.wait_for(flight)
        return flight

    async def run_here(self, unit: Unit) -> None:
        """Run a unit in the calling task."""
        try:
            await self.workers.run_here(unit)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a fault of the engine
            self.settlement.broke(unit, error)

    # What its flights ask of it

    def owns(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether a task is one of its workers."""
        return self.workers.owns(task)

    def holder(self, flight: Flight) -> Flight | None:
        """Return the event whose key an event waits for; None where it waits for none."""
        return self.queue.holder(flight)

    def call(self, callback: Callable[[], None]) -> None:
        """Call somebody back, whatever that raises."""
        self.settlement.call(callback)

    def lend(self, unit: Unit) -> Unit | None:
        """Let another event begin while a handler waits; return who has lent his place, if anybody."""
        return self.workers.lend(unit)

    def take_back(self, root: Unit | None) -> None:
        """End that."""
        self.workers.take_back(root)

    def lend_thread(self, unit: Unit) -> Callable[[], None]:
        """Lend the thread of a handler that waits, and its place; return what takes them back."""
        slots, workers = self.threads.slots, self.workers
        slots.lend(1)
        slots.grant()
        root = workers.lend(unit)

        def take_back() -> None:
            slots.lend(-1)
            workers.take_back(root)

        return take_back
