"""One run of a bus, from start to stop: its queue, its workers, and how it ends."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from aperion._frozen import FrozenDict
from aperion._logs import logger as _log
from aperion._runtime.backlog import Backlog, Rerun
from aperion._runtime.deadlines import Deadlines
from aperion._runtime.driver import Suspended
from aperion._runtime.execution import Execution
from aperion._runtime.pulse import Pulse, Watchdog, limit_of
from aperion._threads import WorkerThreads
from aperion.delivery import Outcome, Receipt, Run
from aperion.errors import BackpressureError, BusNotRunningError, RedriveError
from aperion.events import Event, make_event, set_cascade
from aperion.instruments import ABANDONED, BUSY, IN_FLIGHT, QUEUED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from contextvars import Context

    from anyio.abc import TaskStatus

    from aperion._runtime.reporter import Reporter
    from aperion._runtime.stats import Counters
    from aperion._threads import Job
    from aperion.delivery import Subscription
    from aperion.protocols import Middleware

_BEAT = 0.25  # seconds between two looks at how much there is to do
_EVENTS_BEFORE_YIELD = 64  # handlers that never wait must not keep the loop from everything else


class OverflowPolicy(enum.Enum):
    """What happens to a new event when ``max_pending_events`` are accepted and unsettled."""

    BLOCK = "block"
    RAISE = "raise"
    DROP = "drop"
    DROP_OLDEST = "drop_oldest"


class BusState(enum.Enum):
    """Where a bus is in its life."""

    STOPPED = "stopped"
    RUNNING = "running"
    DRAINING = "draining"


_RUNNING = BusState.RUNNING  # looking a member up costs 50 ns, for every event


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The numbers of a bus; see ``EventBus``."""

    max_concurrent_events: int
    max_concurrent_handlers: int
    max_pending_events: int
    overflow_policy: OverflowPolicy
    watchdog: float | bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What a drain left behind.

    Args:
        settled: events that settled while it drained.
        unfinished: event type and id of those that did not; they are among the dead letters.
        seconds: how long it took.
    """

    settled: int
    unfinished: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything settled in time."""
        return not self.unfinished


class Runtime:
    """The moving parts of a bus while it runs. Everything here happens on the thread of its loop."""

    # Mutable: all of it. pending rises in _enter and falls in settle and drop, nowhere else.

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        reporter: Reporter,
        resolve: Callable[[str], tuple[Subscription, ...]],
        middleware: Sequence[Middleware],
    ) -> None:
        self.settings = settings
        self.counters = counters
        self.reporter = reporter
        self._observes = reporter.observes
        self._when_synced = reporter.when_synced
        self.held: dict[Receipt, asyncio.Future[None]] = {}  # accepted, and not on the disk yet
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.state = BusState.STOPPED
        self.pending = 0  # accepted and unsettled, and the places reserved for emitters just let in
        self.reserved = 0
        self.system_pending = 0
        self.threads = WorkerThreads(settings.max_concurrent_handlers)
        self.execution = Execution(self, reporter, self.threads, middleware)
        self.taps: dict[object, Callable[[Receipt], None]] = {}
        self._resolve = resolve
        self._limit = settings.max_pending_events
        self._blocks = settings.overflow_policy is OverflowPolicy.BLOCK
        self._backlog = Backlog(by_age=settings.overflow_policy is OverflowPolicy.DROP_OLDEST)
        self._deadlines = Deadlines(self.loop)
        self._context: Context = copy_context()
        self._waiting: deque[asyncio.Future[None]] = deque()  # emitters, by order; bounded by their number
        self._suspended: dict[Run, Suspended] = {}  # what waits in a handler, and where: tests look
        self._retries: dict[Rerun, asyncio.TimerHandle | None] = {}
        self._idle: list[asyncio.Future[None]] = []
        self._workers = 0
        self._awake = 0  # workers that will look at the queue before they wait for anything
        self._lent = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cancelled = False
        self._wanted = 0  # workers that the host has yet to start
        self._calls: asyncio.Future[None] = self.loop.create_future()  # wakes the host
        self._quiet: anyio.Event | None = None
        self._closed = False
        self._ended = anyio.Event()
        reporter.system = self.system

    # Admission

    def try_accept(self, event: Event[Any]) -> Receipt | None:
        """Accept an event, or deal with it as the policy says; None when the emitter has to wait.

        Raises:
            BusNotRunningError: after the drain began, but for what handlers emit.
            BackpressureError: when full, under RAISE.
            AuditUnavailable: when it could not be recorded.
        """
        if self.state is not _RUNNING:
            self._check_open(event)
        if self.pending < self._limit and not self._waiting:
            return self._accept(event)
        if self._blocks:
            # A child is admitted at once: it must not wait for the place that its own parent holds.
            # Its number is bounded by max_cascade.
            return self._accept(event) if event.hops else None
        return self._overflow(event)

    def _check_open(self, event: Event[Any]) -> None:
        """Refuse what comes while the bus does not run; what handlers emit while it drains belongs to them."""
        if self.state is BusState.STOPPED or (self.state is BusState.DRAINING and not event.hops):
            raise BusNotRunningError(f"the bus is {self.state.value}, so {event.event_type!r} was not accepted")

    async def accept_when_free(self, event: Event[Any]) -> Receipt:
        """Accept an event as soon as there is room, in the order in which emitters came."""
        place = self.wait_for_place()
        try:
            await place
        except BaseException:
            self.leave_line(place)
            raise
        return self.accept_reserved(event)

    def wait_for_place(self) -> asyncio.Future[None]:
        """Stand in line; the future is set when a place is reserved for this emitter."""
        place: asyncio.Future[None] = self.loop.create_future()
        self._waiting.append(place)
        return place

    def leave_line(self, place: asyncio.Future[None]) -> None:
        """Give up waiting, or the place that was reserved meanwhile."""
        if place.done() and not place.cancelled() and place.exception() is None:
            self._give_place_back()
        elif not place.done():
            place.cancel()

    def accept_reserved(self, event: Event[Any]) -> Receipt:
        """Accept an event on the place that was reserved for it."""
        self._use_place()
        try:
            return self._accept(event)
        except BaseException:
            self._let_next_in()
            raise

    def accept_now(self, event: Event[Any]) -> Receipt:
        """Accept an event without waiting.

        Raises:
            BackpressureError: when the emitter would have to wait.
        """
        receipt = self.try_accept(event)
        if receipt is None:
            raise BackpressureError(self._limit)
        return receipt

    def _accept(self, event: Event[Any]) -> Receipt:
        receipt = self._enter(event)
        if self._observes:
            receipt.started = monotonic()
        if self._when_synced is not None and (synced := self._when_synced()) is not None:
            self.held[receipt] = synced
            synced.add_done_callback(lambda _: self._let_go(receipt, synced))
            return receipt
        self._backlog.add(receipt)
        if not self._awake:
            self._wake()
        return receipt

    def _let_go(self, receipt: Receipt, synced: asyncio.Future[None]) -> None:
        """Hand an event on whose record the disk has now, or drop it where the disk has refused."""
        del self.held[receipt]
        if synced.cancelled():
            self._drop_held(receipt, "cancelled")
        elif synced.exception() is not None or self.state is BusState.STOPPED:
            self._drop_held(receipt, "audit_unavailable")
        else:
            self._backlog.add(receipt)
            if not self._awake:
                self._wake()

    async def until_synced(self, receipt: Receipt) -> None:
        """Wait until the disk has the record of an event; cancelling the wait drops the event.

        Raises:
            AuditUnavailable: when the disk has refused; the event is dropped.
        """
        synced = self.held.get(receipt)
        if synced is not None:
            await synced

    def _enter(self, event: Event[Any]) -> Receipt:
        if self._observes:
            self.reporter.accepted(event, self.pending + 1)
        self.counters.accepted += 1
        self.pending += 1
        receipt = Receipt(event)
        receipt.host = self
        if self.taps:
            self._tap(receipt)
        return receipt

    def _tap(self, receipt: Receipt) -> None:
        for tap in tuple(self.taps.values()):
            try:
                tap(receipt)
            except Exception as error:  # noqa: BLE001 - a listener must not hurt the event
                self.counters.tap_errors += 1
                _log.warning("a listener failed", error_type=type(error).__name__)

    def _overflow(self, event: Event[Any]) -> Receipt:
        policy = self.settings.overflow_policy
        if policy is OverflowPolicy.RAISE:
            raise BackpressureError(self._limit)
        oldest = self._backlog.pop_oldest() if policy is OverflowPolicy.DROP_OLDEST else None
        if oldest is None:
            return self.drop(event, policy.value)
        self._drop_accepted(oldest, policy.value)
        return self._accept(event)

    def drop(self, event: Event[Any], policy: str) -> Receipt:
        """Drop an event that was not accepted, visibly; its receipt says so."""
        self.counters.dropped += 1
        receipt = Receipt(event)
        receipt.settle(dropped=True)
        self.reporter.dropped(event, policy)
        return receipt

    def _drop_accepted(self, receipt: Receipt, policy: str) -> None:
        self._forget_accepted(receipt)
        self._follow_up(receipt)
        self.reporter.dropped(receipt.event, policy)

    async def _give_up_held(self) -> list[Receipt]:
        held = [receipt for receipt, synced in self.held.items() if not synced.done()]
        for receipt in held:
            error = BusNotRunningError("the bus drained before the disk had the record of the event; it was dropped")
            self.held[receipt].set_exception(error)
        with anyio.CancelScope(shield=True):
            await checkpoint()  # they are dropped; and those that the disk has by now come into the queue
        return held

    def _drop_held(self, receipt: Receipt, policy: str) -> None:
        """Drop an event that has not come into the queue."""
        self._forget_accepted(receipt)
        self._follow_up_without_key()
        self.reporter.dropped(receipt.event, policy)

    def _use_place(self) -> None:
        """Give a reserved place back, to take it as an event at once: nothing comes in between."""
        self.pending -= 1
        self.reserved -= 1

    def _give_place_back(self) -> None:
        self._use_place()
        self._let_next_in()
        self._check_quiet()

    def _let_next_in(self) -> None:
        while self._waiting and self.pending < self._limit:
            place = self._waiting.popleft()
            if not place.done():
                self.pending += 1
                self.reserved += 1
                place.set_result(None)

    # Handling

    async def run_here(self, event: Event[Any]) -> Receipt:
        """Run the handlers of an event now, in this task, within the same bound as the others."""
        if (self.pending >= self._limit or self._waiting or self.state is not _RUNNING) and not self._enters(event):
            place = self.wait_for_place()
            try:
                await place
            except BaseException:
                self.leave_line(place)
                raise
            self._use_place()
        try:
            receipt = self._enter(event)
        except BaseException:
            self._let_next_in()
            raise
        receipt.begun = True
        if self._when_synced is not None and (synced := self._when_synced()) is not None:
            await self._synced_here(receipt, synced)
        if event.key is not None:
            await self._turn(receipt)
        receipt.plan = receipt.plan or self._resolve(event.event_type)  # a listener may have decided who gets it
        coroutine = self.execution.deliver(receipt)
        context = copy_context()
        try:
            waiting = context.run(coroutine.send, None)
        except StopIteration:
            pass
        else:
            await self._finish_here(Suspended(coroutine, context, waiting, receipt, self._deadlines), receipt)
        if not receipt._done:
            await receipt.settled()
        return receipt

    async def _synced_here(self, receipt: Receipt, synced: asyncio.Future[None]) -> None:
        self.held[receipt] = synced
        try:
            await synced
        except BaseException:
            self._drop_held(receipt, "cancelled" if synced.cancelled() else "audit_unavailable")
            raise
        finally:
            del self.held[receipt]

    def _enters(self, event: Event[Any]) -> bool:
        """Tell whether ``dispatch`` may go on now, or has to wait for a place."""
        self._check_open(event)
        if (self.pending < self._limit and not self._waiting) or event.hops:
            return True
        if self._blocks:
            return False
        oldest = self._backlog.pop_oldest()
        if oldest is None:
            raise BackpressureError(self._limit)  # dispatch has no outcome to return for what was dropped
        self._drop_accepted(oldest, OverflowPolicy.DROP_OLDEST.value)
        return True

    async def rerun_here(self, receipt: Receipt, rerun: Rerun) -> Outcome:
        """Run one delivery once more, now, in this task; for redrives, which admission does not count."""
        self.system_pending += 1
        coroutine, context = self.execution.redeliver(rerun), copy_context()
        try:
            waiting = context.run(coroutine.send, None)
        except StopIteration:
            pass
        else:
            await self._finish_here(Suspended(coroutine, context, waiting, rerun, self._deadlines), rerun)
        result = receipt.results[rerun.index]
        if not isinstance(result, Outcome):  # pragma: no cover - conclude() always leaves an outcome
            raise RedriveError("the delivery has no outcome")
        return result

    async def _turn(self, receipt: Receipt) -> None:
        turn: asyncio.Future[None] = self.loop.create_future()
        if self._backlog.wait_turn(receipt, turn):
            return
        try:
            await turn
        except BaseException:
            self._forget_accepted(receipt)
            self._backlog.give_up_turn(receipt, turn)
            self._follow_up_without_key()
            self.reporter.dropped(receipt.event, "cancelled")
            raise

    async def _finish_here(self, rest: Suspended, run: Run) -> None:
        run.task = asyncio.current_task(self.loop)
        run.cancelling = run.task.cancelling()
        self._suspended[run] = rest
        try:
            await rest
        finally:
            self._suspended.pop(run, None)

    async def _work(self) -> None:
        task = asyncio.current_task(self.loop)
        if task is None:  # pragma: no cover - a coroutine that runs has a task
            return
        self._tasks.add(task)
        try:
            while True:
                await self._work_off(task)
                self._awake -= 1
                if self._workers > self.settings.max_concurrent_events + self._lent:
                    return
                await self._rest()
        finally:
            self._workers -= 1
            self._tasks.discard(task)

    async def _work_off(self, task: asyncio.Task[Any]) -> None:
        """Handle what is ready, until nothing is."""
        ready, execution, copy, count = self._backlog.ready, self.execution, self._context.copy, 0
        while ready:
            unit = ready.popleft()
            if type(unit) is Receipt:
                if unit.is_settled:  # dropped while it stood in line
                    continue
                unit.begun = True
                unit.plan = unit.plan or self._resolve(unit.event.event_type)
                if self._observes and not unit.system:
                    self.reporter.begun(unit.event, monotonic() - unit.started)
                coroutine = execution.deliver(unit)
            else:
                self._retries.pop(unit, None)  # type: ignore[arg-type]  # the other kind of unit
                coroutine = execution.redeliver(unit)  # type: ignore[arg-type]  # the other kind of unit
            context = copy()
            try:
                waiting = context.run(coroutine.send, None)
            except StopIteration:
                count += 1
                if count % _EVENTS_BEFORE_YIELD == 0:
                    await asyncio.sleep(0)
            else:
                await self._finish(task, Suspended(coroutine, context, waiting, unit, self._deadlines), unit)

    async def _finish(self, task: asyncio.Task[Any], rest: Suspended, run: Run) -> None:
        run.task = task
        self._suspended[run] = rest
        self._awake -= 1
        if self._backlog.ready and not self._awake:
            self._wake()
        try:
            await rest
        finally:
            self._awake += 1
            self._suspended.pop(run, None)

    async def _rest(self) -> None:
        future: asyncio.Future[None] = self.loop.create_future()
        self._idle.append(future)
        try:
            await future
        except BaseException:
            if not future.cancelled():  # woken and cancelled at once: somebody else has to look
                self._awake -= 1
                if self._backlog.ready:
                    self._wake()
            raise

    def _wake(self) -> None:
        """Have one worker look at the queue; when it has to wait in a handler, it wakes the next."""
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                self._awake += 1
                future.set_result(None)
                return
        if self._workers < self.settings.max_concurrent_events + self._lent:
            self._workers += 1
            self._awake += 1
            self._wanted += 1
            self._call_host()

    def _call_host(self) -> None:
        """Have the host start workers, or close: here may be a callback, where anyio finds no task to start from."""
        if not self._calls.done():
            self._calls.set_result(None)

    @contextmanager
    def place_lent(self) -> Iterator[None]:
        """Let another event be handled while a handler waits for one."""
        self.lend_place()
        try:
            yield
        finally:
            self.take_place_back()

    def lend_place(self) -> None:
        """Allow one more worker."""
        self._lent += 1
        if self._backlog.ready and not self._awake:
            self._wake()

    def take_place_back(self) -> None:
        """Allow one less; a worker too many ends when it has nothing to do."""
        self._lent -= 1

    def from_thread(self, callback: Callable[[], None]) -> None:
        """Call back on the loop, from another thread."""
        self.loop.call_soon_threadsafe(callback)

    def is_ours(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether a task is a worker that nobody meant to cancel."""
        return task in self._tasks and not self._cancelled

    # Settlement

    def settle(self, receipt: Receipt) -> None:
        """Give back what an event held, and tell who waits for it. Happens once an event."""
        receipt._done = True
        counters = self.counters
        counters.deliveries += len(receipt.results)
        if receipt.failures:
            counters.failures += receipt.failures
        if receipt._callbacks is not None:
            receipt.settle()
        if receipt.system:
            self.system_pending -= 1
        else:
            counters.settled += 1
            self.pending -= 1
        if receipt.event.key is not None or self._waiting or self._quiet is not None or self._observes:
            self._follow_up(receipt)

    def _forget_accepted(self, receipt: Receipt) -> None:
        """Drop an event that was accepted, visibly."""
        self.counters.dropped += 1
        self.counters.dropped_after += 1
        self.pending -= 1
        receipt.settle(dropped=True)

    def _follow_up(self, receipt: Receipt) -> None:
        """Let those go on who waited for a key, a place, or for quiet."""
        if receipt.event.key is not None:
            self._backlog.release(receipt)
        self._follow_up_without_key()

    def _follow_up_without_key(self) -> None:
        if self._backlog.ready and not self._awake:
            self._wake()
        if self._waiting:
            self._let_next_in()
        if self._quiet is not None:
            self._check_quiet()
        if self._observes:
            self.reporter.pending(self.pending)

    def _check_quiet(self) -> None:
        if self._quiet is not None and not (self.pending or self.system_pending):
            self._quiet.set()

    async def wait_settled(self) -> None:
        """Wait until nothing is in flight."""
        while self.pending or self.system_pending:
            if self._quiet is None or self._quiet.is_set():
                self._quiet = anyio.Event()
            await self._quiet.wait()

    # Retries

    def retry(self, receipt: Receipt, index: int, subscription: Subscription, job: Job | None) -> bool:
        """Schedule another attempt; False when the bus drains."""
        if self.state is not BusState.RUNNING or subscription.retry is None:
            return False
        result = receipt.results[index]
        attempt = result.attempts[-1].number if isinstance(result, Outcome) else 1
        rerun = Rerun(receipt, index, subscription, attempt + 1)
        receipt.retrying += 1
        self.counters.retries += 1
        wait = subscription.retry.wait(attempt)
        if job is None or job.ended:
            self._retries[rerun] = self.loop.call_later(wait, self._ready, rerun)
        else:
            # The thread of the last attempt still runs. The next one starts after it has ended, or
            # never, if it has not within the longest wait.
            give_up = self.loop.call_later(subscription.retry.wait_max, self._abandon_retry, rerun)
            self._retries[rerun] = give_up
            job.on_end = lambda: self._thread_ended(rerun, wait)
        return True

    def _thread_ended(self, rerun: Rerun, wait: float) -> None:
        timer = self._retries.get(rerun)
        if timer is not None:
            timer.cancel()
            self._retries[rerun] = self.loop.call_later(wait, self._ready, rerun)

    def _ready(self, rerun: Rerun) -> None:
        self._retries[rerun] = None
        self._backlog.ready.append(rerun)
        if not self._awake:
            self._wake()

    def _abandon_retry(self, rerun: Rerun) -> None:
        """Fail a delivery for good, with the outcome of its last attempt."""
        timer = self._retries.pop(rerun, None)
        if timer is not None:
            timer.cancel()
        outcome = rerun.receipt.results[rerun.index]
        if isinstance(outcome, Outcome):
            self.execution.conclude_without(rerun, outcome)

    # System events

    def system(self, event_type: str, payload: Mapping[str, Any], cause: Event[Any] | None) -> None:
        """Emit an event of the bus itself; bounded like the others, and dropped beyond."""
        if self.system_pending >= self._limit or self.state is BusState.STOPPED:
            self.counters.system_dropped += 1
            return
        correlation_id, causation_id = (cause.correlation_id, cause.event_id) if cause else (None, None)
        hops = cause.hops + 1 if cause else 0
        spans = self.reporter.spans
        headers = spans.followed(cause) if spans is not None and cause is not None else FrozenDict()
        content = FrozenDict(payload)
        event = make_event(event_type, content, "event_bus", correlation_id, causation_id, hops, None, headers, False)
        if cause is not None:
            set_cascade(event, cause._cascade)
        self.counters.system_events += 1
        self.reporter.noted("system", event, payload)
        receipt = Receipt(event)
        receipt.system = True
        if self.taps:
            self._tap(receipt)
        if self._resolve(event_type):
            self.system_pending += 1
            self._backlog.add(receipt)
            if not self._awake:
                self._wake()
        else:
            receipt.settle()

    # Life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Host the workers until the block is left; the caller drains before."""
        failure: Exception | None = None
        async with anyio.create_task_group() as outer:
            await outer.start(self._host)
            self.state = BusState.RUNNING
            try:
                with self._watched():
                    yield
            except Exception as error:  # noqa: BLE001 - raised below, as it is and not in a group
                failure = error
            finally:
                self.state = BusState.STOPPED
                self._close()
        if failure is not None:
            raise failure

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Beat, where somebody listens, as long as the bus runs."""
        limit = limit_of(self.settings.watchdog, self.loop)
        if limit is None and self.reporter.metrics is None:
            yield
            return
        pulse = Pulse(self.loop, _BEAT if limit is None else min(_BEAT, limit / 4), self._tell_load)
        watchdog = Watchdog(limit, pulse, self.reporter.redactor, self._tell_blocked) if limit is not None else None
        try:
            yield
        finally:
            pulse.stop()
            if watchdog is not None:
                watchdog.stop()

    def queued(self) -> int:
        """Count the events that wait for their turn."""
        return self._backlog.depth()

    def _tell_load(self, late: float) -> None:
        queued = self.queued()
        in_flight = max(0, self.pending - self.reserved - queued)
        self.reporter.load(
            late, {QUEUED: queued, IN_FLIGHT: in_flight, BUSY: self.threads.busy, ABANDONED: self.threads.abandoned}
        )

    def _tell_blocked(self, subscription: str) -> None:
        self.counters.loop_blocked += 1
        self.reporter.blocked(subscription)

    async def _host(self, *, task_status: TaskStatus[None]) -> None:
        # Shielded: when the task around the bus is cancelled, workers go on until the drain is over.
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                task_status.started()
                while not self._closed:
                    await self._calls
                    self._calls = self.loop.create_future()
                    while self._wanted:
                        self._wanted -= 1
                        group.start_soon(self._work, name="aperion worker")
                self._cancelled = True
                group.cancel_scope.cancel()
        self.threads.close()
        self._deadlines.close()
        self._ended.set()

    def _close(self) -> None:
        self._closed = True
        self._call_host()

    async def drain(self, timeout: float) -> DrainReport:
        """Stop accepting, finish what is in flight within ``timeout`` seconds, then cancel."""
        begun, settled = monotonic(), self.counters.settled
        self.system("system.shutdown", {"pending": self.pending}, None)
        self.state = BusState.DRAINING
        self._turn_away()
        for rerun in tuple(self._retries):
            if self._retries[rerun] is not None:
                self._abandon_retry(rerun)
        with anyio.CancelScope(shield=True), anyio.move_on_after(timeout):
            await self.wait_settled()
        unfinished = await self._stop() if self.pending or self.system_pending else ()
        self.state = BusState.STOPPED
        return DrainReport(settled=self.counters.settled - settled, unfinished=unfinished, seconds=monotonic() - begun)

    def _turn_away(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(BusNotRunningError("the bus began to drain before there was room for the event"))

    async def _stop(self) -> tuple[tuple[str, str], ...]:
        """Cancel what runs and give up what waits; each event that did not finish is named once."""
        held = await self._give_up_held() if self.held else []
        running = [run.receipt if isinstance(run, Rerun) else run for run in self._suspended]
        waiting = self._backlog.unstarted()
        for receipt in waiting:
            receipt.begun = True
            receipt.plan = receipt.plan or self._resolve(receipt.event.event_type)
            self.execution.give_up(receipt, "the bus drained, and its deadline passed before this handler ran")
        self._backlog.ready.clear()
        self._close()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        return tuple(dict.fromkeys((r.event.event_type, r.event.event_id) for r in (*held, *running, *waiting)))  # type: ignore[attr-defined]  # a run that is no rerun is a receipt
