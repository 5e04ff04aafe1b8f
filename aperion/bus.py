"""The event bus: a router that can run."""

from __future__ import annotations

import math
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import anyio

from aperion._emitting import Emitting
from aperion._listening import Listening
from aperion._runtime import BusState, DrainReport, OverflowPolicy, Runtime, Settings
from aperion._runtime.bridge import Bridge
from aperion._runtime.intake import Intake
from aperion._runtime.pulse import check_watchdog
from aperion._runtime.redrive import Redriver
from aperion._runtime.reporter import Reporter
from aperion._runtime.stats import BusStats, Counters
from aperion._telemetry import configured
from aperion._telemetry.spans import check_tracing, spans_for
from aperion.audit import AuditLog
from aperion.deadletters import DeadLetterQueue
from aperion.delivery import FailureReason, Outcomes, positive
from aperion.errors import (
    BusNotRunningError,
    ConfigurationError,
    RedriveError,
    shown,
)
from aperion.metrics import BusMetrics, InMemoryMetrics
from aperion.middleware import compose
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aperion._streams import EventStream
    from aperion._telemetry.spans import Tracing
    from aperion._threads import WorkerThreads
    from aperion.delivery import Delivery, Subscription
    from aperion.naming import Naming
    from aperion.protocols import AuditSink, MetricsBackend, Middleware, Processor

__all__ = ["BusState", "BusStats", "DrainReport", "EventBus", "OverflowPolicy"]


class EventBus(Emitting, Listening, anyio.AsyncContextManagerMixin):
    """Accepts events and hands them to the handlers that subscribed.

    ``async with bus:`` runs it; leaving the block drains it. It can be run again. Subscribing works
    at any time, also before.

    Args:
        audit: the audit log; every accepted event and every outcome goes there.
        redactor: hides secrets in dead letters, log lines and error texts.
        handler_timeout: seconds that a handler may take, unless its subscription says otherwise;
            None for no limit.
        max_concurrent_events: events whose handlers run at the same time.
        max_concurrent_handlers: worker threads for sync handlers.
        max_pending_events: events accepted and unsettled; beyond, ``overflow_policy`` decides.
        overflow_policy: what happens to an event that finds the bus full; its value as text also works.
        naming: what is demanded of event types.
        dead_letter_queue: where deliveries that failed for good are kept.
        metrics: where measurements go; if None, to OpenTelemetry where a meter provider is configured.
        tracing: whether there are OpenTelemetry spans, and how they hang together; if None, with the
            defaults of ``Tracing`` where a tracer provider is configured when the bus starts.
        watchdog: seconds for which a handler may hold up the event loop before a log line names it; True
            for 0.2, False for never. If None, the variable ``APERION_WATCHDOG`` of the environment decides,
            or else it is 0.2 where asyncio is in debug mode (``python -X dev``); ``aperion run --reload`` sets it.
        processors: called in order before an event is admitted; each may replace or drop it.
        middleware: wrapped around every handler, the first outermost.
        max_hops: generations of events that one may cause.
        max_cascade: events that may descend from one.
        max_payload_bytes: the size of a payload as JSON.
        drain_timeout: seconds that leaving the block waits for what is in flight.

    Raises:
        ConfigurationError: for an option that makes no sense.
    """

    def __init__(  # noqa: PLR0913 - the options of a bus, all by keyword
        self,
        *,
        audit: AuditSink | None = None,
        redactor: Redactor | None = None,
        handler_timeout: float | None = 30.0,
        max_concurrent_events: int = 64,
        max_concurrent_handlers: int = 10,
        max_pending_events: int = 10_000,
        overflow_policy: OverflowPolicy | str = OverflowPolicy.BLOCK,
        naming: Naming | None = None,
        dead_letter_queue: DeadLetterQueue | None = None,
        metrics: MetricsBackend | None = None,
        tracing: Tracing | bool | None = None,
        watchdog: float | bool | None = None,
        processors: Sequence[Processor] = (),
        middleware: Sequence[Middleware] = (),
        max_hops: int = 64,
        max_cascade: int = 10_000,
        max_payload_bytes: int = 1_048_576,
        drain_timeout: float = 30.0,
    ) -> None:
        super().__init__(naming=naming)
        positive("max_concurrent_events", max_concurrent_events, whole=True)
        positive("max_concurrent_handlers", max_concurrent_handlers, whole=True)
        positive("max_pending_events", max_pending_events, whole=True)
        positive("max_hops", max_hops, whole=True)
        positive("max_cascade", max_cascade, whole=True)
        positive("max_payload_bytes", max_payload_bytes, whole=True)
        positive("drain_timeout", drain_timeout)
        if handler_timeout is not None:
            positive("handler_timeout", handler_timeout, infinite=True)
        self.handler_timeout = math.inf if handler_timeout is None else handler_timeout
        self.drain_timeout = drain_timeout
        self.audit = audit
        self.redactor = redactor if redactor is not None else Redactor()
        self.metrics = metrics
        self.dead_letters = DeadLetterQueue() if dead_letter_queue is None else dead_letter_queue
        self.dead_letters.use_redactor(self.redactor)
        if isinstance(audit, AuditLog):
            audit.use_redactor(self.redactor)
        self.last_drain: DrainReport | None = None
        self._settings = Settings(
            max_concurrent_events=max_concurrent_events,
            max_concurrent_handlers=max_concurrent_handlers,
            max_pending_events=max_pending_events,
            overflow_policy=_policy(overflow_policy),
            watchdog=check_watchdog(watchdog),
        )
        self._processors = _callables("processors", processors)
        self._middleware = _callables("middleware", middleware)
        compose(self._middleware, _nothing)  # refuses what is no middleware now, not at the first event
        self._intake = Intake(
            self._naming, max_payload_bytes=max_payload_bytes, max_hops=max_hops, max_cascade=max_cascade
        )
        self._counters = Counters()
        self._tracing = check_tracing(tracing)
        self._bus_metrics: BusMetrics | None = None
        if metrics is not None:
            self._measure(metrics)
        self._reporter = Reporter(audit, self._bus_metrics, self.dead_letters, self.redactor)
        self._runtime: Runtime | None = None
        self._threads: WorkerThreads | None = None  # those of the last run too: stuck ones outlive it
        self._redriver = Redriver(self.dead_letters, self._reporter, self._counters, self._subscriptions)
        self._streams: weakref.WeakSet[EventStream[Any]] = weakref.WeakSet()
        self._bridge = Bridge()

    # Life

    @property
    def state(self) -> BusState:
        """Whether the bus runs, drains or stands still."""
        return self._runtime.state if self._runtime is not None else BusState.STOPPED

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        """Run the bus; drain it at the end."""
        if self.audit is not None:
            await self.audit.start()
        try:
            self._watch()
            runtime = Runtime(self._settings, self._counters, self._reporter, self.resolve, self._middleware)
            async with runtime.running():
                self._begin(runtime)
                try:
                    yield self
                finally:
                    await self.drain()
        finally:
            self._end()
            if self.audit is not None:
                with anyio.CancelScope(shield=True):
                    await self.audit.aclose()

    def _watch(self) -> None:
        """Find out who listens: only now, since OpenTelemetry is set up after buses are made at import."""
        if self._bus_metrics is None and configured.meter_provider() is not None:
            from aperion._telemetry.meters import OpenTelemetryMetrics

            self._measure(OpenTelemetryMetrics())
        self._reporter.watch(self._bus_metrics, spans_for(self._tracing, self.redactor))
        self._count_subscriptions()

    def _measure(self, backend: MetricsBackend) -> None:
        self._bus_metrics = BusMetrics(backend)
        if isinstance(self.redactor, Redactor):
            self.redactor.report_to(self._bus_metrics.redacted)

    async def drain(self, timeout: float | None = None) -> DrainReport:
        """Stop accepting, let what is in flight finish, cancel what has not after ``timeout`` seconds.

        Events that handlers emit meanwhile still belong to what is in flight. What did not finish is
        named in the report and kept as dead letters. The bus accepts nothing afterwards; leaving its
        block ends it. Cancelling the wait does not cut the drain short.

        Args:
            timeout: seconds; ``drain_timeout`` of the bus by default.

        Raises:
            BusNotRunningError: when the bus does not run and never did.
        """
        runtime = self._runtime
        if runtime is None or runtime.state is not BusState.RUNNING:
            if self.last_drain is None:
                raise BusNotRunningError("there is nothing to drain: the bus has not been started")
            return self.last_drain
        self.last_drain = DrainReport(settled=0)  # for a second caller while this one is under way
        self.last_drain = await runtime.drain(self.drain_timeout if timeout is None else timeout)
        return self.last_drain

    async def wait_settled(self) -> None:
        """Wait until no event is in flight, those that handlers emit meanwhile included."""
        await self._running("wait_settled").wait_settled()

    def _begin(self, runtime: Runtime) -> None:
        with self._lock:
            self._runtime = runtime
            self._threads = runtime.threads
            for subscription in self._subscriptions.values():
                subscription.run = runtime.execution.runner(subscription)
        self.last_drain = None
        runtime.system("system.startup", {"subscriptions": len(self._subscriptions)}, None)

    def _end(self) -> None:
        self._runtime = None
        for stream in tuple(self._streams):
            stream.close()
        self._bridge.close()

    # Dead letters

    async def redrive(self, letter_id: str, *, max_attempts: int = 10) -> Outcomes:
        """Deliver a dead letter again, to the subscription that failed and to no other; wait for the outcome.

        The event keeps its id, and its attempt number goes on. When it goes well the letter is gone;
        when it fails again the same letter tells of it. One attempt is made, without retries.

        Args:
            letter_id: the id of the letter. That of an ``ALL_HANDLERS_FAILED`` letter redrives every
                letter of its event.
            max_attempts: attempts, redrives included, after which the letter is left alone.

        Raises:
            DeadLetterNotFoundError: when there is no such letter.
            RedriveError: when it cannot be redriven: too many attempts, the subscription is gone, it
                runs already, its last attempt still runs, or the event was never accepted.
        """
        return await self._redriver.redrive(self._running("redrive"), letter_id, max_attempts)

    async def redrive_all(
        self,
        event_type: str | None = None,
        *,
        reason: FailureReason | str | None = None,
        subscription: str | None = None,
        older_than: float | None = None,
        limit: int | None = None,
        max_attempts: int = 10,
    ) -> dict[str, Outcomes]:
        """Redrive the letters that match, oldest first, each once; return the outcomes by letter.

        Letters that cannot be redriven (see ``redrive``) are left out of the result and stay.
        """
        letters = self.dead_letters.list(
            event_type, reason=reason, subscription=subscription, older_than=older_than, limit=limit
        )
        outcomes: dict[str, Outcomes] = {}
        for letter in reversed(letters):
            if letter.subscription is None:
                continue
            try:
                outcomes[letter.letter_id] = await self.redrive(letter.letter_id, max_attempts=max_attempts)
            except (RedriveError, LookupError):
                continue
        return outcomes

    # Looking at it

    def stats(self) -> BusStats:
        """Return what the bus has counted; safe from any thread, and JSON-serialisable."""
        runtime, counters = self._runtime, self._counters
        subscriptions = self.subscriptions
        letters = self.dead_letters.stats()
        return BusStats(
            state=self.state.value,
            accepted=counters.accepted,
            settled=counters.settled,
            pending=runtime.pending - runtime.reserved if runtime is not None else 0,
            queued=runtime.queued() if runtime is not None else 0,
            rejected=counters.rejected,
            dropped=counters.dropped,
            dropped_after=counters.dropped_after,
            deliveries=counters.deliveries,
            failures=counters.failures,
            retries=counters.retries,
            redriven=counters.redriven,
            dead_letters=letters.size,
            dead_letters_evicted=letters.evicted,
            subscriptions=len(subscriptions),
            subscriptions_active=sum(subscription.open for subscription in subscriptions),
            threads_busy=self._threads.busy if self._threads is not None else 0,
            threads_abandoned=self._threads.abandoned if self._threads is not None else 0,
            threads_limit=self._settings.max_concurrent_handlers,
            max_pending_events=self._settings.max_pending_events,
            overflow_policy=self._settings.overflow_policy.value,
            system_events=counters.system_events,
            system_dropped=counters.system_dropped,
            loop_blocked=counters.loop_blocked,
            audit_enabled=self.audit is not None,
            audit_failures=self._reporter.audit_failures,
            redactions=dict(getattr(self.redactor, "counts", {})),
            redaction_failures=getattr(self.redactor, "failures", 0),
            metrics_enabled=self._reporter.metrics is not None,
            metrics_errors=self._reporter.metrics.errors if self._reporter.metrics is not None else 0,
            metrics=self.metrics.snapshot() if isinstance(self.metrics, InMemoryMetrics) else None,
        )

    def _add(self, subscription: Subscription, *, named: bool) -> None:
        if math.isnan(subscription.timeout):
            subscription.timeout = self.handler_timeout
        if self._runtime is not None:
            subscription.run = self._runtime.execution.runner(subscription)
        super()._add(subscription, named=named)
        self._count_subscriptions()

    def _remove(self, subscription: Subscription) -> None:
        super()._remove(subscription)
        self._count_subscriptions()

    def _count_subscriptions(self) -> None:
        if self._bus_metrics is not None:
            self._bus_metrics.subscriptions(len(self._subscriptions))


def _policy(policy: OverflowPolicy | str) -> OverflowPolicy:
    try:
        return OverflowPolicy(policy)
    except ValueError:
        choices = ", ".join(repr(choice.value) for choice in OverflowPolicy)
        raise ConfigurationError(f"overflow_policy={shown(policy)} is not a choice; use one of {choices}") from None


def _callables(name: str, given: Sequence[Any]) -> tuple[Any, ...]:
    for each in given:
        if not callable(each):
            raise ConfigurationError(f"{name} holds {shown(each)}, which cannot be called; pass functions")
    return tuple(given)


async def _nothing(_delivery: Delivery) -> None:
    """End a chain that is made for being checked only."""
