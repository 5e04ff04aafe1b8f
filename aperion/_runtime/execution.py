"""Runs handlers: one event through its subscriptions, and one delivery once more."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from aperion._runtime.reporter import reason_of
from aperion.context import current
from aperion.delivery import (
    Attempt,
    Delivery,
    HandlerKind,
    Outcome,
    OutcomeState,
    Receipt,
    Run,
    Subscription,
)
from aperion.errors import HandlerTimeoutError, NotDeliveredError
from aperion.events import Event, own_copy
from aperion.middleware import compose

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aperion._runtime.backlog import Rerun
    from aperion._runtime.reporter import Reporter
    from aperion._telemetry.spans import Spans
    from aperion._threads import Job, WorkerThreads
    from aperion.protocols import Middleware


class Settling(Protocol):
    """What running handlers needs of the runtime."""

    def retry(self, receipt: Receipt, index: int, subscription: Subscription, job: Job | None) -> bool:
        """Schedule another attempt; False when the bus drains."""

    def settle(self, receipt: Receipt) -> None:
        """Take note that the last delivery of an event has an outcome."""

    def is_ours(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether a cancelled task is a worker that nobody meant to cancel."""


class _Skipped(Exception):  # noqa: N818 - never leaves this module
    """The subscription ended while its delivery waited for a thread."""


class Execution:
    """How the handlers of one bus are run. It owns no task: workers and ``dispatch`` step its coroutines."""

    __slots__ = ("_middleware", "_reporter", "_runtime", "_spans", "jobs", "threads")

    def __init__(
        self, runtime: Settling, reporter: Reporter, threads: WorkerThreads, middleware: Sequence[Middleware]
    ) -> None:
        self._runtime = runtime
        self._reporter = reporter
        self._spans = reporter.spans
        self._middleware = tuple(middleware)
        self.threads = threads
        self.jobs: dict[Run, Job] = {}  # the thread that a run now waits for

    def runner(self, subscription: Subscription) -> Callable[[Run, Delivery], Awaitable[Any]] | None:
        """Return how a handler is run; None for one that is simply called and awaited."""
        if subscription.kind is HandlerKind.ASYNC and not self._middleware and self._spans is None:
            return None
        inner = {
            HandlerKind.ASYNC: self._in_task,
            HandlerKind.THREAD: self._in_thread,
            HandlerKind.PROCESS: self._in_process,
        }[subscription.kind]
        run = functools.partial(self._wrapped, inner) if self._middleware else inner
        return run if self._spans is None else functools.partial(self._traced, self._spans, run)

    async def deliver(self, receipt: Receipt) -> None:
        """Run every handler of an event in order; returns when each has an outcome or waits for a retry."""
        event = handed = receipt.event
        results = receipt.results = []
        observes, tells, opaque = self._reporter.observes, self._reporter.tells_of_starts, event._opaque
        spans = self._spans
        current.set(event)
        receipt.started = monotonic()
        for subscription in receipt.plan:
            if (not subscription.open or subscription.where is not None) and not self._wants(receipt, subscription):
                continue
            if opaque:
                handed = own_copy(event)
            if current.get() is not handed:  # the handler before has changed it, or this one has a copy
                current.set(handed)
            receipt.limit = subscription.timeout
            if tells:
                self._reporter.started(event, subscription, 1)
            try:
                if subscription.run is None:
                    returned = await subscription.handler(handed)
                else:
                    returned = await subscription.run(receipt, Delivery(handed, subscription))
                if receipt.expired:  # cancelled, and the handler has kept that to itself
                    raise asyncio.CancelledError  # noqa: TRY301 - one place judges how it ended
            except BaseException as error:  # noqa: BLE001 - SystemExit, CancelledError and groups are failures too
                outcome = self._judged(receipt, subscription, 1, (), error)
                results.append(outcome)
                if outcome.failed:
                    self._failed(receipt, len(results) - 1, subscription, outcome, receipt)
                if (
                    isinstance(error, asyncio.CancelledError)
                    and receipt.task is not None
                    and self._interrupted(receipt)
                ):
                    self._give_up(receipt, error)
                receipt.started = monotonic()
            else:
                ended = monotonic()
                seconds = ended - receipt.started
                results.append(seconds if returned is None else _returned(subscription, seconds, returned))
                receipt.started = ended
                if observes:
                    self._reporter.ended(event, subscription, Attempt(1, OutcomeState.OK, seconds, None, returned))
            finally:
                if spans is not None:
                    spans.left(receipt)
        receipt.passed = True
        if not receipt.retrying:
            self._settle(receipt)

    async def redeliver(self, rerun: Rerun) -> None:
        """Run one handler of an event once more."""
        receipt, subscription = rerun.receipt, rerun.subscription
        handed = own_copy(receipt.event)
        current.set(handed)
        earlier = self._attempts(receipt, rerun.index)
        rerun.limit = subscription.timeout
        if self._reporter.tells_of_starts:
            self._reporter.started(receipt.event, subscription, rerun.attempt)
        rerun.started = monotonic()
        try:
            if not subscription.open:
                raise NotDeliveredError(f"{subscription.name} was paused or unsubscribed before it")  # noqa: TRY301
            if subscription.run is None:
                returned = await subscription.handler(handed)
            else:
                returned = await subscription.run(rerun, Delivery(handed, subscription, rerun.attempt))
            if rerun.expired:
                raise asyncio.CancelledError  # noqa: TRY301
        except BaseException as error:  # noqa: BLE001
            outcome = self._judged(rerun, subscription, rerun.attempt, earlier, error)
        else:
            attempt = Attempt(rerun.attempt, OutcomeState.OK, monotonic() - rerun.started, None, returned)
            outcome = Outcome(subscription.name, OutcomeState.OK, (*earlier, attempt))
            if self._reporter.observes:
                self._reporter.ended(receipt.event, subscription, attempt)
        interrupted = rerun.task is not None and outcome.failed and self._interrupted(rerun)
        self.conclude(rerun, outcome)
        if self._spans is not None:
            self._spans.left(rerun)
        if interrupted:
            raise asyncio.CancelledError

    def conclude(self, rerun: Rerun, outcome: Outcome) -> None:
        """Take note of how one more attempt ended, or that it will not be made."""
        receipt = rerun.receipt
        receipt.results[rerun.index] = outcome
        receipt.retrying -= 1
        if outcome.failed:
            self._failed(receipt, rerun.index, rerun.subscription, outcome, rerun)
        if receipt.passed and not receipt.retrying:
            self._settle(receipt)

    def conclude_without(self, rerun: Rerun, outcome: Outcome) -> None:
        """Take note that a retry will not be made: the outcome of the last attempt is final."""
        receipt = rerun.receipt
        receipt.retrying -= 1
        self._final(receipt, rerun.subscription, outcome)
        if receipt.passed and not receipt.retrying:
            self._settle(receipt)

    def give_up(self, receipt: Receipt, why: str) -> None:
        """End every delivery of an event that has no outcome yet, as failed, and settle it."""
        receipt.results = list(receipt.results)
        for subscription in receipt.plan[len(receipt.results) :]:
            error = NotDeliveredError(why)
            outcome = Outcome(subscription.name, OutcomeState.FAILED, (Attempt(0, OutcomeState.FAILED, 0.0, error),))
            receipt.results.append(outcome)
            self._final(receipt, subscription, outcome)
        self._passed(receipt)

    def _passed(self, receipt: Receipt) -> None:
        receipt.passed = True
        if not receipt.retrying:
            self._settle(receipt)

    def _settle(self, receipt: Receipt) -> None:
        if receipt.failures > 1 and receipt.failures == len(receipt.results):
            self._reporter.all_failed(receipt, [r for r in receipt.results if isinstance(r, Outcome)])
        self._runtime.settle(receipt)

    def _wants(self, receipt: Receipt, subscription: Subscription) -> bool:
        """Tell whether a handler is to run; where not, its outcome is there."""
        if not subscription.open:
            receipt.results.append(Outcome(subscription.name, OutcomeState.SKIPPED))
            return False
        try:
            wanted = subscription.where is None or subscription.where(own_copy(receipt.event))
        except Exception as error:  # noqa: BLE001 - a filter is part of the handler
            attempt = Attempt(1, OutcomeState.FAILED, 0.0, error)
            outcome = Outcome(subscription.name, OutcomeState.FAILED, (attempt,))
            receipt.results.append(outcome)
            self._failed(receipt, len(receipt.results) - 1, subscription, outcome, receipt)
            return False
        if not wanted:
            receipt.results.append(Outcome(subscription.name, OutcomeState.SKIPPED))
        return bool(wanted)

    def _judged(
        self, run: Run, subscription: Subscription, number: int, earlier: tuple[Attempt, ...], error: BaseException
    ) -> Outcome:
        """Return the outcome of an attempt that ended with an error."""
        if isinstance(error, KeyboardInterrupt | GeneratorExit):
            raise error
        if isinstance(error, _Skipped):
            return Outcome(subscription.name, OutcomeState.SKIPPED, earlier)
        seconds = monotonic() - run.started
        state = OutcomeState.FAILED
        if run.expired:
            run.expired = False
            run.task.uncancel()
            state = OutcomeState.TIMED_OUT
            late = HandlerTimeoutError(subscription.name, run.limit)
            late.__cause__ = None if isinstance(error, asyncio.CancelledError) else error
            error = late
        elif isinstance(error, asyncio.CancelledError) and run.task is not None and self._interrupted(run):
            error = NotDeliveredError(f"{subscription.name} was cancelled before it ended")
        attempt = Attempt(number, state, seconds, error)
        return Outcome(subscription.name, state, (*earlier, attempt))

    def _interrupted(self, run: Run) -> bool:
        """Tell whether the task itself is being cancelled, and not just the handler."""
        task = run.task
        if task.cancelling() <= run.cancelling:
            return False
        if not self._runtime.is_ours(task):
            return True
        while task.cancelling() > run.cancelling:  # a handler has cancelled the worker that runs it
            task.uncancel()
        return False

    def _failed(self, receipt: Receipt, index: int, subscription: Subscription, outcome: Outcome, run: Run) -> None:
        attempt = outcome.attempts[-1]
        if self._reporter.observes:
            self._reporter.ended(receipt.event, subscription, attempt)
        span = self._spans.failed(run, attempt) if self._spans is not None else None
        job = self.jobs.pop(run, None)
        letter = getattr(run, "letter", None)
        if letter is not None:
            self._reporter.redrive_failed(letter, outcome, reason_of(outcome))
        elif self._worth_retrying(subscription, attempt) and self._runtime.retry(receipt, index, subscription, job):
            self._reporter.retried(receipt.event, subscription, attempt)
            if self._spans is not None:
                self._spans.retried(span, attempt.number + 1)
            return
        else:
            self._final(receipt, subscription, outcome)
        if self._spans is not None:
            self._spans.dead(span, reason_of(outcome))

    def _final(self, receipt: Receipt, subscription: Subscription, outcome: Outcome) -> None:
        receipt.failures += 1
        self._reporter.failed(receipt, subscription, outcome, reason_of(outcome))

    def _worth_retrying(self, subscription: Subscription, attempt: Attempt) -> bool:
        if subscription.retry is None or attempt.error is None or isinstance(attempt.error, NotDeliveredError):
            return False
        try:
            return subscription.retry.wants(attempt.number, attempt.error)
        except Exception:  # noqa: BLE001 - a predicate that fails asks for nothing
            return False

    def _give_up(self, receipt: Receipt, error: BaseException) -> NoReturn:
        self.give_up(receipt, f"the handlers of {receipt.event.event_type} were cancelled before this one ran")
        raise error

    def _attempts(self, receipt: Receipt, index: int) -> tuple[Attempt, ...]:
        earlier = receipt.results[index]
        return earlier.attempts if isinstance(earlier, Outcome) else ()

    async def _traced(
        self, spans: Spans, inner: Callable[[Run, Delivery], Awaitable[Any]], run: Run, delivery: Delivery
    ) -> Any:
        """Run a handler inside a span, which stays the current one until what follows from its end is told."""
        spans.begun(run, delivery)
        try:
            returned = await inner(run, delivery)
        except GeneratorExit:
            spans.closed(run)
            raise
        except (_Skipped, KeyboardInterrupt):
            spans.ended(run, OutcomeState.SKIPPED.value)
            raise
        if not run.expired:  # or it has failed, as will be judged
            spans.ended(run, OutcomeState.OK.value)
        return returned

    async def _wrapped(self, inner: Callable[[Run, Delivery], Awaitable[Any]], run: Run, delivery: Delivery) -> Any:
        return await compose(self._middleware, functools.partial(inner, run))(delivery)

    async def _in_task(self, _run: Run, delivery: Delivery) -> Any:
        return await delivery.subscription.handler(delivery.event)

    async def _in_thread(self, run: Run, delivery: Delivery) -> Any:
        limit, run.limit = run.limit, math.inf  # waiting for a thread is not the handler's time
        run.started = monotonic()

        def started(job: Job) -> None:
            if not delivery.subscription.open:
                raise _Skipped
            self.jobs[run] = job
            job.delivery = (delivery.event.event_id, delivery.subscription.name)
            run.started, run.limit = monotonic(), limit

        call = functools.partial(delivery.subscription.handler, delivery.event)
        result = await self.threads.run(delivery.subscription.name, call, started)
        self.jobs.pop(run, None)
        # A plain function may return an awaitable (a lambda around an async function, a wrapper).
        return await result if inspect.isawaitable(result) else result

    async def _in_process(self, _run: Run, delivery: Delivery) -> Any:
        import anyio.to_process  # loads the machinery of subprocesses, which few need

        handler = delivery.subscription.handler
        return await anyio.to_process.run_sync(_call_in_process, handler, delivery.event, cancellable=True)


def _returned(subscription: Subscription, seconds: float, returned: object) -> Outcome:
    return Outcome(subscription.name, OutcomeState.OK, (Attempt(1, OutcomeState.OK, seconds, None, returned),))


def _call_in_process(handler: Callable[[Event[Any]], Any], event: Event[Any]) -> None:
    """Run a handler in the other process: the correlation id goes along in the event."""
    current.set(event)
    handler(event)
