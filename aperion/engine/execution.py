"""Runs handlers: one event through its plan, and one delivery once more."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import types
from time import monotonic
from typing import TYPE_CHECKING, Any

from aperion.context import Scope, be_here, go, handing
from aperion.engine.driver import interrupted
from aperion.engine.flight import DONE, Flight, Halt, Park, root_of
from aperion.engine.slots import Slots
from aperion.engine.threads import Job
from aperion.errors import HandlerTimeoutError, NotDeliveredError
from aperion.events import own_copy
from aperion.middleware import compose
from aperion.outcomes import Attempt, Delivery, Outcome, OutcomeState, went_well
from aperion.subscriptions import HandlerKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from aperion.engine.facts import Facts
    from aperion.engine.flight import Rerun, Unit
    from aperion.engine.settlement import Settlement
    from aperion.engine.threads import WorkerThreads
    from aperion.engine.workers import Workers
    from aperion.events import Event
    from aperion.protocols import CallNext, Middleware
    from aperion.subscriptions import Subscription


_KEPT = 64
"""Coroutines that wait for another event; more are made when more events are handled at once."""


class _Skipped(Exception):  # noqa: N818 - never leaves this module
    """The subscription is closed, or its filter says no."""


class Execution:
    """How the handlers of one bus are run. It owns no task: workers and ``dispatch`` step its coroutines."""

    # Mutable: the workers, which are made after it; the middleware, by tools for tests; what is free.
    __slots__ = ("_facts", "_processes", "_settlement", "_threads", "free", "middleware", "workers")

    workers: Workers
    free: list[Generator[Any, Flight, None]]  # which wait for an event

    def __init__(
        self,
        settlement: Settlement,
        threads: WorkerThreads,
        middleware: Sequence[Middleware],
        facts: Facts,
    ) -> None:
        self._settlement = settlement
        self._facts = facts
        self._threads = threads
        self._processes = Slots(os.cpu_count() or 1)
        self.middleware = tuple(middleware)
        self.free = []

    def prepare(self, subscription: Subscription) -> None:
        """Decide once for a subscription what goes around its handler."""
        inner = _INNER[subscription.kind]
        wrapped = self.middleware or subscription.kind is not HandlerKind.ASYNC
        subscription.runs_through(functools.partial(inner, self) if wrapped else None)

    @types.coroutine
    def deliveries(self) -> Generator[Any, Flight, None]:
        """Run every handler of an event in order, and then those of the next one; ``begin`` starts it.

        It is sent an event, and yields ``DONE`` once each handler has an outcome or waits for a retry. What a
        handler raises becomes its outcome, whatever it is. Only a cancellation of the task that dispatches comes out
        of here, and the closing of the coroutine; after that it is no good for another event.

        A coroutine for each event would cost as much as a handler: to make it, and to raise that it has ended.
        """
        ended, left = self._facts.ended, self._facts.left  # fixed when the bus starts
        watched = self._facts.started is not None
        flight = yield DONE
        while True:
            event = flight.event
            results = flight.results = []
            careful = watched or event._opaque
            be_here(flight)
            flight.started = monotonic()
            for subscription in flight.plan:
                flight.limit = subscription.timeout
                direct = subscription.direct
                try:
                    if direct is None or careful:
                        returned = yield from self._handle(flight, subscription, 1)
                    else:
                        returned = yield from direct(event)
                    rest = flight.rest
                    if rest is not None and rest.disturbed and (flight.halt is not None or interrupted(flight)):
                        raise _cancelled(flight)  # noqa: TRY301 - the handler has kept that to itself
                except BaseException as error:  # noqa: BLE001 - SystemExit, CancelledError and groups are failures too
                    end = self._judged(flight, len(results), subscription, 1, error)
                    if end is not None:
                        if left is not None:
                            left(event, subscription, 1)
                        self._settlement.give_up(
                            flight, f"the handlers of {event.event_type} were cancelled before this one ran"
                        )
                        if flight.halt is not Halt.STOPPED:
                            raise end from None
                        break
                    flight.started = monotonic()
                else:
                    now = monotonic()
                    seconds = now - flight.started
                    flight.started = now
                    results.append(seconds if returned is None else _returned(subscription, seconds, returned))
                    if ended is not None:
                        ended(event, subscription, went_well(1, seconds, returned))
                if left is not None:
                    left(event, subscription, 1)
                if flight.moved:  # the handler has changed where it is, or had a copy of the event
                    flight.moved = False
                    be_here(flight)
            else:
                flight.passed = True
                if not flight.retrying:
                    self._settlement.settle(flight)
            # Nothing of an event is kept until the next one comes.
            flight = event = results = subscription = direct = returned = rest = None  # type: ignore[assignment]
            flight = yield DONE

    def begin(self, unit: Unit) -> tuple[Any, Any]:
        """Return a coroutine that runs the handlers of a unit, and what it has to be sent first."""
        if type(unit) is not Flight:
            return self.redeliver(unit), None  # type: ignore[arg-type]  # the other kind
        return (self.free.pop() if self.free else self.another()), unit

    def another(self) -> Generator[Any, Flight, None]:
        """Return one more coroutine that waits for an event; those that have ended one are in ``free``."""
        run = self.deliveries()
        run.send(None)  # type: ignore[arg-type]  # up to where it waits
        return run

    def keep(self, run: Generator[Any, Flight, None]) -> None:
        """Keep a coroutine for another event."""
        if len(self.free) < _KEPT:
            self.free.append(run)

    async def redeliver(self, rerun: Rerun) -> None:
        """Run one handler of an event once more."""
        subscription, number, facts = rerun.subscription, rerun.number, self._facts
        be_here(rerun)
        rerun.limit = subscription.timeout
        rerun.started = monotonic()
        end: BaseException | None = None
        try:
            if not subscription.open:
                raise NotDeliveredError(f"{subscription.name} was paused or unsubscribed before it")  # noqa: TRY301
            returned = await self._handle(rerun, subscription, number)
            rest = rerun.rest
            if rest is not None and rest.disturbed and (rerun.halt is not None or interrupted(rerun)):
                raise _cancelled(rerun)  # noqa: TRY301
        except BaseException as error:  # noqa: BLE001
            end = self._judged(rerun, rerun.index, subscription, number, error)
        else:
            self._settlement.went_well(rerun, went_well(number, monotonic() - rerun.started, returned))
        if facts.left is not None:
            facts.left(rerun.event, subscription, number)
        rerun.passed = True
        self._settlement.rerun_ended(rerun)
        if end is not None and rerun.halt is not Halt.STOPPED:
            raise end

    # One attempt

    async def _handle(self, unit: Unit, subscription: Subscription, number: int) -> Any:
        """Run a handler about which something has to be done before."""
        if not subscription.open:
            raise _Skipped
        event = unit.event
        if number == 1 and subscription.where is not None and not _says_yes(subscription, event):
            raise _Skipped
        handed = own_copy(event)
        if handed is not event:
            go(handing(handed, unit))
        if subscription.kind is not HandlerKind.ASYNC:
            await self._slot(unit, subscription, between=True)
        try:
            if self._facts.started is not None:
                self._facts.started(event, subscription, number)
            unit.started = monotonic()
            if subscription.run is None:
                return await subscription.handler(handed)
            handler: CallNext = functools.partial(subscription.run, unit)
            if self.middleware:
                handler = compose(self.middleware, handler)
            return await handler(Delivery(handed, subscription, number))
        finally:
            _give_back(unit)  # if it was not used, by a middleware that does not go on for example

    async def _slot(self, unit: Unit, subscription: Subscription, *, between: bool) -> None:
        """Wait for a thread or a process, which is not the handler's time, and holds up nobody.

        Only ``between`` handlers may another task go on with the unit: what a middleware has opened is tied to its own.

        Raises:
            ThreadsExhaustedError: when every thread is stuck.
        """
        is_thread = subscription.kind is HandlerKind.THREAD
        slots = self._threads.slots if is_thread else self._processes
        if slots.take():
            unit.slot = slots
            return
        if is_thread and self._threads.are_exhausted:
            raise self._threads.exhausted()
        limit, unit.limit, unit.started = unit.limit, float("inf"), monotonic()
        turn = _Turn(self.workers, unit, slots, parks=between and unit.placed and unit.within is None)
        slots.wait(turn)
        # Who cannot be parked lends his place meanwhile: those who have the slots may be waiting for one.
        host = root_of(unit).flight.engine
        root = None if turn.parks else host.lend(unit)
        try:
            await turn.wait()
            if not subscription.open:
                raise _Skipped  # noqa: TRY301 - the slot is given back in one place
        except BaseException:
            slots.leave(turn)
            _give_back(unit)
            raise
        finally:
            host.take_back(root)
        unit.limit = limit

    async def _in_task(self, _unit: Unit, delivery: Delivery) -> Any:
        return await delivery.subscription.handler(delivery.event)

    async def _in_thread(self, unit: Unit, delivery: Delivery) -> Any:
        subscription = delivery.subscription
        if unit.slot is None:  # a middleware runs the handler twice
            await self._slot(unit, subscription, between=False)
        unit.slot = None  # the thread gives it back when it has ended

        def call() -> Any:
            if not subscription.open:  # in the thread: nobody has waited for it since
                raise _Skipped
            return subscription.handler(delivery.event)

        job = unit.job = Job(subscription.name, (delivery.event.event_id, subscription.name), call)
        unit.started = monotonic()
        result = await self._threads.run(job)
        unit.job = None
        # A plain function may return an awaitable (a lambda around an async function, a wrapper).
        return await result if inspect.isawaitable(result) else result

    async def _in_process(self, unit: Unit, delivery: Delivery) -> Any:
        import anyio.to_process  # loads the machinery of subprocesses, which few need

        if unit.slot is None:
            await self._slot(unit, delivery.subscription, between=False)
        unit.started = monotonic()
        handler = delivery.subscription.handler
        one = anyio.CapacityLimiter(1)  # the slot says how many there are; it is given back when this has ended
        return await anyio.to_process.run_sync(_call_in_process, handler, delivery.event, cancellable=True, limiter=one)

    # How it ended

    def _judged(
        self, unit: Unit, index: int, subscription: Subscription, number: int, error: BaseException
    ) -> BaseException | None:
        """Settle an attempt that did not simply go well; return what has to end the whole unit."""
        if isinstance(error, _Skipped):
            self._settlement.skipped(unit, index, subscription)
            return None
        outside = interrupted(unit)
        attempt = _attempt(unit, subscription, number, error, outside=outside)
        if isinstance(error, KeyboardInterrupt) and self._facts.interrupt is not None:
            self._facts.interrupt(error)
        if unit.halt is Halt.EXPIRED:
            unit.halt = None
            if unit.rest is not None:
                unit.rest.calm()
        end = _cancelled(unit) if outside or unit.halt is Halt.STOPPED else None
        if unit.rest is not None:
            unit.rest.disturbed = None
        self._settlement.failed(unit, index, subscription, attempt)
        unit.job = None  # a retry of this delivery has it; the next delivery has nothing to do with it
        if unit.halt is Halt.CLOSED:
            return error if isinstance(error, GeneratorExit) else GeneratorExit()
        return end


class _Turn:
    """A unit that waits for a slot: parked, where a worker runs it, or in its own task."""

    __slots__ = ("_future", "_refusal", "_slots", "_unit", "_workers", "parks")

    def __init__(self, workers: Workers, unit: Unit, slots: Slots, *, parks: bool) -> None:
        self._workers = workers
        self._unit = unit
        self._slots = slots
        self._refusal: Exception | None = None
        self.parks = parks
        self._future = None if parks else asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        if self._future is not None:
            await self._future
            return
        self._workers.parked[self._unit] = self._slots, self
        await Park(self._unit)
        if self._refusal is not None:
            raise self._refusal

    def grant(self) -> None:
        if self._future is None:
            self._unit.slot = self._slots
            self._workers.ready_again(self._unit)
        elif self._future.done():  # it has left just now
            self._slots.release()
            self._slots.grant()
        else:
            self._unit.slot = self._slots
            self._future.set_result(None)

    def refuse(self, error: Exception) -> None:
        self._refusal = error
        if self._future is None:
            self._workers.ready_again(self._unit)
        elif not self._future.done():
            self._future.set_exception(error)


def _give_back(unit: Unit) -> None:
    slots, unit.slot = unit.slot, None
    if slots is not None:
        slots.release()
        slots.grant()


def _attempt(unit: Unit, subscription: Subscription, number: int, error: BaseException, *, outside: bool) -> Attempt:
    """Return how an attempt ended with an error: whose doing it was decides what it is called."""
    seconds = monotonic() - unit.started
    if unit.halt is Halt.EXPIRED:
        late = HandlerTimeoutError(subscription.name, unit.limit)
        late.__cause__ = None if isinstance(error, asyncio.CancelledError) else error
        return Attempt(number, OutcomeState.TIMED_OUT, seconds, late)
    is_cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
    if is_cancelled and (outside or unit.halt is not None):
        error = NotDeliveredError(f"{subscription.name} was cancelled before it ended")
    return Attempt(number, OutcomeState.FAILED, seconds, error)


def _cancelled(unit: Unit) -> asyncio.CancelledError:
    """Return the cancellation that a unit has met, so that its owner knows it again."""
    return (unit.rest and unit.rest.disturbed) or asyncio.CancelledError()


def _says_yes(subscription: Subscription, event: Event[Any]) -> bool:
    if subscription.where is None:
        return True
    answer = subscription.where(own_copy(event))
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise TypeError(f"the filter of {subscription.name} returned an awaitable; a filter is a plain function")
    return bool(answer)


def _returned(subscription: Subscription, seconds: float, returned: object) -> Outcome:
    return Outcome(subscription.name, OutcomeState.OK, (went_well(1, seconds, returned),))


def _call_in_process(handler: Callable[[Event[Any]], Any], event: Event[Any]) -> None:
    """Run a handler in the other process: the correlation id goes along in the event."""
    be_here(Scope(event.correlation_id, event, None))
    handler(event)


_INNER: dict[HandlerKind, Callable[..., Awaitable[Any]]] = {
    HandlerKind.ASYNC: Execution._in_task,
    HandlerKind.THREAD: Execution._in_thread,
    HandlerKind.PROCESS: Execution._in_process,
}
