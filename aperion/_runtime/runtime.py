"""One run of a bus, from start to stop: its queue, its workers, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from aperion._frozen import FrozenDict
from aperion._logs import logger as _log
from aperion._runtime.backlog import Backlog, Rerun
from aperion._runtime.execution import Execution
from aperion._runtime.pulse import Pulse, Watchdog, limit_of
from aperion._runtime.retries import Retries
from aperion._runtime.settings import BusState, DrainReport, OverflowPolicy
from aperion._runtime.workers import Workers
from aperion._threads import WorkerThreads
from aperion.delivery import Outcome, Receipt
from aperion.errors import BackpressureError, BusNotRunningError, RedriveError
from aperion.events import Event, make_event, set_cascade
from aperion.instruments import ABANDONED, BUSY, IN_FLIGHT, QUEUED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from anyio.abc import TaskStatus

    from aperion._runtime.reporter import Reporter
    from aperion._runtime.settings import Settings
    from aperion._runtime.stats import Counters
    from aperion._threads import Job
    from aperion.delivery import Subscription
    from aperion.protocols import Middleware

_BEAT = 0.25  # seconds between two looks at how much there is to do
_RUNNING = BusState.RUNNING  # looking a member up costs 50 ns, for every event


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
        self.backlog = Backlog(by_age=settings.overflow_policy is OverflowPolicy.DROP_OLDEST)
        self._waiting: deque[asyncio.Future[None]] = deque()  # emitters, by order; bounded by their number
        self.workers = Workers(settings.max_concurrent_events, self.backlog, self.execution, reporter, resolve)
        self.retries = Retries(self.loop, self.backlog, self.execution, self.workers)
        self._quiet: anyio.Event | None = None
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
        self.backlog.add(receipt)
        if not self.workers.awake:
            self.workers.wake()
        return receipt

    def _let_go(self, receipt: Receipt, synced: asyncio.Future[None]) -> None:
        """Hand an event on whose record the disk has now, or drop it where the disk has refused."""
        del self.held[receipt]
        if synced.cancelled():
            self._drop_held(receipt, "cancelled")
        elif synced.exception() is not None or self.state is BusState.STOPPED:
            self._drop_held(receipt, "audit_unavailable")
        else:
            self.backlog.add(receipt)
            if not self.workers.awake:
                self.workers.wake()

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
        receipt.host = self.workers
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
        oldest = self.backlog.pop_oldest() if policy is OverflowPolicy.DROP_OLDEST else None
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
        await self.workers.run_here(receipt, self.execution.deliver(receipt))
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
        oldest = self.backlog.pop_oldest()
        if oldest is None:
            raise BackpressureError(self._limit)  # dispatch has no outcome to return for what was dropped
        self._drop_accepted(oldest, OverflowPolicy.DROP_OLDEST.value)
        return True

    async def rerun_here(self, receipt: Receipt, rerun: Rerun) -> Outcome:
        """Run one delivery once more, now, in this task; for redrives, which admission does not count."""
        self.system_pending += 1
        await self.workers.run_here(rerun, self.execution.redeliver(rerun))
        result = receipt.results[rerun.index]
        if not isinstance(result, Outcome):  # pragma: no cover - conclude() always leaves an outcome
            raise RedriveError("the delivery has no outcome")
        return result

    async def _turn(self, receipt: Receipt) -> None:
        turn: asyncio.Future[None] = self.loop.create_future()
        if self.backlog.wait_turn(receipt, turn):
            return
        try:
            await turn
        except BaseException:
            self._forget_accepted(receipt)
            self.backlog.give_up_turn(receipt, turn)
            self._follow_up_without_key()
            self.reporter.dropped(receipt.event, "cancelled")
            raise

    def is_ours(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether a task is a worker that nobody meant to cancel."""
        return self.workers.is_ours(task)

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
            self.backlog.release(receipt)
        self._follow_up_without_key()

    def _follow_up_without_key(self) -> None:
        if self.backlog.ready and not self.workers.awake:
            self.workers.wake()
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

    def retry(self, receipt: Receipt, index: int, subscription: Subscription, job: Job | None) -> bool:
        """Schedule another attempt; False when the bus drains."""
        if self.state is not BusState.RUNNING or subscription.retry is None:
            return False
        self.counters.retries += 1
        self.retries.schedule(receipt, index, subscription, subscription.retry, job)
        return True

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
            self.backlog.add(receipt)
            if not self.workers.awake:
                self.workers.wake()
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
                self.workers.close()
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
        return self.backlog.depth()

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
        await self.workers.host(task_status=task_status)
        self.threads.close()
        self._ended.set()

    async def drain(self, timeout: float) -> DrainReport:
        """Stop accepting, finish what is in flight within ``timeout`` seconds, then cancel."""
        begun, settled = monotonic(), self.counters.settled
        self.system("system.shutdown", {"pending": self.pending}, None)
        self.state = BusState.DRAINING
        self._turn_away()
        self.retries.abandon_all()
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
        running = [run.receipt if isinstance(run, Rerun) else run for run in self.workers.suspended]
        waiting = self.backlog.unstarted()
        for receipt in waiting:
            receipt.begun = True
            receipt.plan = receipt.plan or self._resolve(receipt.event.event_type)
            self.execution.give_up(receipt, "the bus drained, and its deadline passed before this handler ran")
        self.backlog.ready.clear()
        self.workers.close()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        return tuple(dict.fromkeys((r.event.event_type, r.event.event_id) for r in (*held, *running, *waiting)))  # type: ignore[attr-defined]  # a run that is no rerun is a receipt
