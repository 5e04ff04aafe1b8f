"""The event bus: a router that can run."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import weakref
from asyncio import _get_running_loop as running_loop  # 40 ns, and never raises
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, overload

import anyio

from aperion._gone import explains_gone
from aperion._telemetry import configured
from aperion.context import here_now
from aperion.deadletters import DeadLetterQueue
from aperion.engine.bridge import Bridge, not_running
from aperion.engine.facts import Facts
from aperion.engine.flight import DONE, Flight
from aperion.engine.ledger import Counters, Ledger
from aperion.engine.lifecycle import Engine
from aperion.engine.pulse import check_watchdog, watched
from aperion.engine.redrive import Redriver
from aperion.engine.settings import BusState, DrainReport, OverflowPolicy, Settings
from aperion.engine.stats import BusStats
from aperion.engine.threads import WorkerThreads
from aperion.errors import (
    BusNotRunningError,
    ConfigurationError,
    EventTypeError,
    RedriveError,
    ValidationError,
    WrongLoopError,
    explains_options,
    positive,
    shown,
)
from aperion.events import Event
from aperion.instruments import BusMetrics
from aperion.intake import Intake
from aperion.metrics import InMemoryMetrics
from aperion.middleware import compose
from aperion.observers.audit import AuditTrail
from aperion.observers.emission import Emission
from aperion.observers.events import SystemEvents
from aperion.observers.lines import LogLines
from aperion.observers.metrics import Measurements
from aperion.observers.recording import recorder_of
from aperion.observers.spans import check_tracing, spans_for
from aperion.outbox import Outbox
from aperion.outcomes import outcomes_of
from aperion.receipts import Receipt, receipt_of
from aperion.redaction import Redactor
from aperion.router import Router
from aperion.streams import DEFAULT_BUFFER, EventStream, first

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Unpack

    from aperion.engine.keeping import Keeping
    from aperion.events import Payload
    from aperion.intake import EventDetails
    from aperion.journal.letters import JournalLetters
    from aperion.journal.sqlite import SQLiteJournal
    from aperion.naming import Naming
    from aperion.observers.spans import Spans, Tracing
    from aperion.outcomes import Delivery, FailureReason, Outcomes
    from aperion.protocols import AuditSink, MetricsBackend, Middleware, Processor
    from aperion.router import M, Wanted
    from aperion.subscriptions import Filter, Subscription

__all__ = ["BusState", "BusStats", "DrainReport", "EventBus", "OverflowPolicy"]

# That of asyncio is written in Python before 3.12, and takes as long as half a bare await.
task_of: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None] = (
    asyncio.current_task if sys.version_info >= (3, 12) else asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]
)
_TURN = 64  # emits of one task after which the loop turns


@explains_gone
class EventBus(Router):
    """Accepts events and hands them to the handlers that subscribed.

    ``async with bus:`` runs it; leaving the block drains it. It can be run again. Subscribing works
    at any time, also before.

    Handlers run in a copy of the context in which the bus was started, however their event was emitted: what
    an emitter has set in context variables of its own does not reach them. What belongs to an event travels in
    it: payload, headers, correlation id.

    Args:
        audit: the audit log, or the path of one; every accepted event and every outcome goes there.
        journal: where accepted events are kept until they are handled, so that the next process goes on with what
            this one has not finished: ``aperion.SQLiteJournal("state/")``. Without one they live in memory.
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
        TypeError: for an option that there is not.
    """

    @explains_options("EventBus")
    def __init__(  # noqa: PLR0913 - the options of a bus, all by keyword
        self,
        *,
        audit: AuditSink | str | os.PathLike[str] | None = None,
        journal: SQLiteJournal | None = None,
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
        self.redactor = Redactor() if redactor is None else _checked_redactor(redactor)
        self.metrics = metrics
        self.journal = journal
        letters = _letters_of(journal)
        self._kept_letters = letters if dead_letter_queue is None else None
        self.dead_letters = (
            DeadLetterQueue(store=self._kept_letters) if dead_letter_queue is None else dead_letter_queue
        )
        self.dead_letters.use_redactor(self.redactor)
        self.audit, self._recorder = recorder_of(audit, self.redactor)
        self._settings = Settings(
            max_concurrent_events=max_concurrent_events,
            max_concurrent_handlers=max_concurrent_handlers,
            overflow_policy=_policy(overflow_policy),
            watchdog=check_watchdog(watchdog),
        )
        self._processors = _callables("processors", processors)
        self._middleware = _callables("middleware", middleware)
        compose(self._middleware, _nothing)  # refuses what is no middleware now, not at the first event
        self._intake = Intake(
            self._naming, max_payload_bytes=max_payload_bytes, max_hops=max_hops, max_cascade=max_cascade
        )
        self._ledger = Ledger(max_pending_events)
        self._system_ledger = Ledger(max_pending_events)
        self._counters = Counters()
        self._facts = Facts(self._counters)
        self._threads = WorkerThreads(max_concurrent_handlers)  # stuck ones outlive a run
        self._tracing = check_tracing(tracing)
        self._bus_metrics: BusMetrics | None = BusMetrics(metrics) if metrics is not None else None
        self._trail = AuditTrail(self._recorder, self._audit_failed) if self._recorder is not None else None
        self._spans: Spans | None = None
        self._watches = self._bus_metrics is not None  # whether somebody wants to know of each emit
        self._waits_for_disk = journal is not None or (self._recorder is not None and self._recorder.waits_for_disk)
        self._keeping: Keeping | None = None
        self._engine: Engine | None = None
        self._last_drain: DrainReport | None = None
        self._stop_watching: Callable[[], None] | None = None
        self._redriver = Redriver(self.dead_letters)
        self._streams: weakref.WeakSet[EventStream[Any]] = weakref.WeakSet()
        self._bridge = Bridge()
        self._turns = _TURN  # emits until the loop turns

    # Life

    @property
    def state(self) -> BusState:
        """Whether the bus runs, drains or stands still."""
        return self._engine.state if self._engine is not None else BusState.STOPPED

    @property
    def last_drain(self) -> DrainReport | None:
        """The report of the last drain; None before the first, and while the bus runs again."""
        return self._engine.report if self._engine is not None else self._last_drain

    async def __aenter__(self) -> Self:
        """Run the bus.

        Raises:
            AuditUnavailable: when the audit log cannot be opened.
            JournalUnavailable: when the journal cannot be opened.
            RuntimeError: when it runs already.
        """
        engine = self._engine
        if engine is not None and not (engine.state is BusState.STOPPED and engine.loop.is_closed()):
            raise RuntimeError("this bus runs already; one 'async with bus:' at a time")
        if self._recorder is not None:
            await self._recorder.start()
        try:
            await self._open_journal()
            self._begin()
        except BaseException:
            await self._close_journal()
            await self._close_log()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain the bus, and stop it; being cancelled meanwhile does not cut that short.

        Raises:
            DeadlockError: in a handler, which would wait for itself.
        """
        engine = self._engine
        if engine is None:  # pragma: no cover - left twice
            return
        engine.waiting.refuse_inside("leaving 'async with bus'")
        try:
            await engine.end(self.drain_timeout)
        finally:
            self._end(engine)
            await self._close_journal()
            await self._close_log()
        interrupted = engine.was_interrupted()
        if interrupted is not None:
            raise interrupted

    def _begin(self) -> None:
        self._attach()
        engine = Engine(
            self._settings,
            router=self,
            recorder=self._recorder,
            keeping=self._keeping,
            facts=self._facts,
            letters=self.dead_letters,
            redactor=self.redactor,
            ledger=self._ledger,
            system_ledger=self._system_ledger,
            counters=self._counters,
            threads=self._threads,
            middleware=self._middleware,
            drain_timeout=self.drain_timeout,
        )
        with self._lock:
            self._engine = engine
            for subscription in self._subscriptions:
                engine.execution.prepare(subscription)
        self._last_drain = None
        engine.start()
        self._stop_watching = watched(engine, self._bus_metrics, self._recorder, self.redactor)
        engine.admission.announce("system.startup", {"subscriptions": len(self._subscriptions)}, None, {})

    def _attach(self) -> None:
        """Find out who listens: only now, since OpenTelemetry is set up after buses are made at import."""
        import structlog  # noqa: F401 - the first failure may come when no file can be opened any more

        anyio.create_task_group()  # loads its back end: the first event may come then too
        if self._bus_metrics is None and configured.meter_provider() is not None:
            from aperion._telemetry.meters import OpenTelemetryMetrics

            self._bus_metrics = BusMetrics(OpenTelemetryMetrics())
        if self._bus_metrics is not None and isinstance(self.redactor, Redactor):
            self.redactor.report_to(self._bus_metrics.redacted)
        self._spans = spans_for(self._tracing, self.redactor)
        self._watches = self._bus_metrics is not None or self._spans is not None
        measurements = Measurements(self._bus_metrics) if self._bus_metrics is not None else None
        lines, events = LogLines(self.redactor), SystemEvents(self._announce)
        observers = (self._keeping, self._trail, measurements, self._spans, lines, events)
        self._facts.attach(observer for observer in observers if observer is not None)
        self._count_subscriptions()

    def _announce(
        self, event_type: str, payload: Mapping[str, Any], cause: Event[Any] | None, headers: Mapping[str, str]
    ) -> None:
        if self._engine is not None:
            self._engine.admission.announce(event_type, payload, cause, headers)

    def _end(self, engine: Engine) -> None:
        self._last_drain = engine.report
        self._engine = None
        if self._stop_watching is not None:
            self._stop_watching()
        for stream in tuple(self._streams):
            stream.close()
        self._bridge.close()

    async def _open_journal(self) -> None:
        if self.journal is not None:
            from aperion.engine.keeping import Keeping

            keeping = Keeping(self.journal, self._kept_letters)
            await keeping.open()
            self._keeping = keeping

    async def _close_journal(self) -> None:
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            with anyio.CancelScope(shield=True):
                await keeping.close()

    async def _close_log(self) -> None:
        if self._recorder is not None:
            with anyio.CancelScope(shield=True):
                await self._recorder.aclose()

    async def drain(self, timeout: float | None = None) -> DrainReport:
        """Stop accepting, let what is in flight finish, cancel what has not after ``timeout`` seconds.

        Events that handlers emit meanwhile still belong to what is in flight. What did not finish is
        named in the report and kept as dead letters, or left in the journal for the next start; a handler that ignores its cancellation is left behind a
        second later. The bus accepts nothing afterwards; leaving its block ends it. There is one drain, however
        many ask for it, with the timeout of the first. Cancelling the wait does not cut the drain short.

        Args:
            timeout: seconds; ``drain_timeout`` of the bus by default.

        Raises:
            BusNotRunningError: when the bus does not run and never did.
            DeadlockError: in a handler, which would wait for itself.
            WrongLoopError: outside the loop of the bus.
        """
        engine = self._engine
        if engine is None:
            if self._last_drain is None:
                raise BusNotRunningError("there is nothing to drain: the bus has not been started")
            return self._last_drain
        self._running("drain").waiting.refuse_inside("drain()")
        return await asyncio.shield(engine.begin_drain(self.drain_timeout if timeout is None else timeout))

    async def wait_settled(self) -> None:
        """Wait until no event is in flight, those that handlers emit meanwhile included.

        Raises:
            BusNotRunningError: when the bus does not run.
            DeadlockError: in a handler, which would wait for itself.
        """
        engine = self._running("wait_settled")
        engine.waiting.refuse_inside("wait_settled()")
        await engine.quiet()

    def _running(self, method: str) -> Engine:
        engine = self._engine
        if engine is None:
            raise not_running(method)
        here = running_loop()
        if here is engine.loop:
            return engine
        # In a forked child asyncio knows of no loop any more; there it is the audit log that refuses, and says why.
        is_forked = here is None and threading.get_ident() == engine.thread and engine.loop.is_running()
        if not is_forked:
            raise WrongLoopError(method)
        return engine

    # Emitting

    @overload
    async def emit(self, event: Payload, /, **details: Unpack[EventDetails]) -> Receipt: ...
    @overload
    async def emit(
        self, event: str, payload: Mapping[str, Any] | Payload, /, **details: Unpack[EventDetails]
    ) -> Receipt: ...
    async def emit(
        self,
        event: str | Payload,
        payload: Mapping[str, Any] | Payload | None = None,
        /,
        **details: Unpack[EventDetails],
    ) -> Receipt:
        """Hand an event to the bus; return when it is accepted.

        Waits where the bus is full and its policy is ``BLOCK``; cancelling that wait leaves nothing
        behind. Waits for the disk under an audit log with ``sync="disk"``; cancelling that drops the
        event, and the log says so, unless the disk has its record already. Handlers run later; ``receipt.settled()`` waits for them.

        A task that was cancelled is told before anything is accepted, and every 64th emit lets the loop turn, so
        that a loop of emits can be cancelled and leaves handlers their time.

        Args:
            event: a payload model, or an event type.
            payload: the payload where ``event`` is a type.
            details: what else to say of it, see ``EventDetails``.

        Raises:
            ValidationError: for an event that the bus does not accept; a dead letter says so too.
            BackpressureError: when the bus is full under ``RAISE``.
            BusNotRunningError: when the bus does not run, or drains.
            WrongLoopError: outside the loop of the bus.
            CascadeError: in a handler whose event has caused too many others.
            AuditUnavailable: when the audit log cannot record the event.
            JournalUnavailable: when the journal cannot keep it.
        """
        engine = self._engine
        if engine is None or running_loop() is not engine.loop:
            engine = self._running("emit")
        self._turns -= 1
        if not self._turns or getattr(task_of(engine.loop), "_must_cancel", False):
            self._turns = _TURN
            await asyncio.sleep(0)
            if engine.workers.is_starting:  # who is to handle the first events begins a turn later
                await asyncio.sleep(0)
        if self._watches or self._processors or self._waits_for_disk:
            return await self._emit_slowly(engine, event, payload, details)
        try:
            made = self._intake.event(event, payload, details, here_now())
        except ValidationError as error:
            self._reject(event, payload, details, error)
            raise
        if self._recorder is not None and self._recorder.is_crowded:
            await self._recorder.room()
        admission = engine.admission
        flight = admission.enter(made)
        if flight is None:
            flight = await admission.enter_when_free(made)
        if not flight.dropped:
            admission.queue(flight)
        return receipt_of(flight)

    async def _emit_slowly(self, engine: Engine, event: object, payload: object, details: Mapping[str, Any]) -> Receipt:
        """Do what ``emit`` does where somebody measures or processes it, or it waits for the disk."""
        emission = Emission(self._spans, self._bus_metrics) if self._watches else None
        try:
            made = self._made(event, payload, details, emission)
            flight = made if isinstance(made, Flight) else await self._enter(engine, made)
        except BaseException as error:
            if emission is not None:
                emission.refused(error)
            raise
        if emission is not None:
            emission.ended()
        return receipt_of(flight)

    @overload
    def emit_nowait(self, event: Payload, /, **details: Unpack[EventDetails]) -> Receipt: ...
    @overload
    def emit_nowait(
        self, event: str, payload: Mapping[str, Any] | Payload, /, **details: Unpack[EventDetails]
    ) -> Receipt: ...
    def emit_nowait(
        self,
        event: str | Payload,
        payload: Mapping[str, Any] | Payload | None = None,
        /,
        **details: Unpack[EventDetails],
    ) -> Receipt:
        """Do what ``emit`` does without ever waiting; takes the same arguments.

        Not for the disk either: under ``sync="disk"`` the event is handled once the disk has its record,
        and dropped visibly if the disk refuses it.

        Raises:
            BackpressureError: when the bus is full, under ``BLOCK`` too.
            ValidationError: and all else that ``emit`` raises.
        """
        engine = self._running("emit_nowait")
        emission = Emission(self._spans, self._bus_metrics) if self._watches else None
        try:
            made = self._made(event, payload, details, emission)
            flight = made if isinstance(made, Flight) else engine.admission.enter_now(made)
        except BaseException as error:
            if emission is not None:
                emission.refused(error)
            raise
        if emission is not None:
            emission.ended()
        return receipt_of(flight)

    @overload
    def emit_from_thread(
        self, event: Payload, /, *, timeout: float | None = ..., **details: Unpack[EventDetails]
    ) -> Receipt: ...
    @overload
    def emit_from_thread(
        self,
        event: str,
        payload: Mapping[str, Any] | Payload,
        /,
        *,
        timeout: float | None = ...,
        **details: Unpack[EventDetails],
    ) -> Receipt: ...
    def emit_from_thread(
        self,
        event: str | Payload,
        payload: Mapping[str, Any] | Payload | None = None,
        /,
        *,
        timeout: float | None = None,
        **details: Unpack[EventDetails],
    ) -> Receipt:
        """Do what ``emit`` does from any other thread, in a sync handler or not; blocks that thread.

        The correlation id and the event being handled are those of the calling thread's context.
        ``receipt.settled_from_thread()`` waits for the handlers.

        Raises:
            TimeoutError: when there was no room within ``timeout`` seconds; the event is not accepted. When
                the disk did not have its record under ``sync="disk"``, it is dropped, and the log says so.
            WrongLoopError: on the thread of the loop, which would wait for itself.
            ValidationError: and all else that ``emit`` raises.
        """
        engine = self._engine
        if engine is None:
            raise not_running("emit_from_thread")
        if threading.get_ident() == engine.thread:
            raise WrongLoopError("emit_from_thread", inside=True)
        emission = Emission(self._spans, self._bus_metrics) if self._watches else None
        try:
            if self._recorder is not None:
                self._recorder.room_for_thread()
            flight = self._bridge.emit(engine, lambda: self._made(event, payload, details, emission), timeout)
        except BaseException as error:
            if emission is not None:
                emission.refused(error)
            raise
        if emission is not None:
            emission.ended()
        return receipt_of(flight)

    @overload
    async def dispatch(self, event: Payload, /, **details: Unpack[EventDetails]) -> Outcomes: ...
    @overload
    async def dispatch(
        self, event: str, payload: Mapping[str, Any] | Payload, /, **details: Unpack[EventDetails]
    ) -> Outcomes: ...
    async def dispatch(
        self,
        event: str | Payload,
        payload: Mapping[str, Any] | Payload | None = None,
        /,
        **details: Unpack[EventDetails],
    ) -> Outcomes:
        """Run the handlers of an event now, in this task, and return how each ended.

        Takes what ``emit`` takes. A failing handler is an outcome here too, never an exception;
        ``outcomes.raise_for_failures()`` turns it into one. Retries are waited for. With a key it
        waits for its turn. Cancelling it cancels the handler that runs; those that did not run fail. The
        timeout of whoever waits reaches the handlers in the same way.

        Raises:
            KeyHeldError: in a handler whose own event holds the same key.
            ValidationError: and all else that ``emit`` raises.
        """
        engine = self._engine
        if engine is None or running_loop() is not engine.loop:
            engine = self._running("dispatch")
        self._turns -= 1
        if not self._turns:
            self._turns = _TURN
            await asyncio.sleep(0)
        here = here_now()
        within = None if here is None else here.unit
        if within is not None and within.flight.settled:
            within = None
        if self._spans is not None or self._waits_for_disk:
            return await self._dispatch_slowly(engine, event, payload, details, within)
        try:
            made = self._intake.event(event, payload, details, here)
        except ValidationError as error:
            self._reject(event, payload, details, error)
            raise
        if self._processors:
            processed = self._processed(made)
            if isinstance(processed, Flight):
                return processed.outcomes()
            made = processed
        if self._recorder is not None and self._recorder.is_crowded:
            await self._recorder.room()
        if made.key is not None or (flight := engine.admission.enter_here(made)) is None:
            return (await engine.dispatch_slowly(made, within)).outcomes()
        flight.begun, flight.within = True, within
        execution, context = engine.execution, engine.workers.context.copy()
        free = execution.free
        run = free.pop() if free else execution.another()
        try:
            waiting = context.run(run.send, flight)
        except BaseException as error:  # noqa: BLE001 - what comes out here is a fault of the engine
            engine.settlement.broke(flight, error)
        else:
            if waiting is DONE:
                free.append(run)
            else:
                await engine.finish(flight, run, context, waiting)
        if not flight.settled:
            await engine.waiting.wait_for(flight)
        return outcomes_of(made, flight.plan, flight.results)

    async def _dispatch_slowly(
        self, engine: Engine, event: object, payload: object, details: Mapping[str, Any], within: Any
    ) -> Outcomes:
        """Do what ``dispatch`` does where somebody traces it, or it waits for the disk."""
        emission = Emission(self._spans, None) if self._spans is not None else None
        try:
            made = self._made(event, payload, details, emission)
            if isinstance(made, Flight):
                flight = made
            else:
                if self._recorder is not None and self._recorder.is_crowded:
                    await self._recorder.room()
                flight = await engine.dispatch_slowly(made, within)
        except BaseException as error:
            if emission is not None:
                emission.refused(error)
            raise
        if emission is not None:
            emission.ended()
        return flight.outcomes()

    def _made(
        self, subject: object, payload: object, details: Mapping[str, Any], emission: Emission | None
    ) -> Event[Any] | Flight:
        """Make the event and run the processors; a flight is that of an event which one of them dropped."""
        try:
            event = self._intake.event(subject, payload, details, here_now())
        except ValidationError as error:
            self._reject(subject, payload, details, error)
            raise
        if emission is not None:
            event = emission.made(event)
        made = self._processed(event) if self._processors else event
        if self._keeping is not None and isinstance(made, Event) and not details.get("durable", True):
            self._keeping.pass_over(made)
        return made

    def _reject(self, subject: object, payload: object, details: Mapping[str, Any], error: ValidationError) -> None:
        self._counters.rejected += 1
        if isinstance(error, EventTypeError):  # somebody may pass anything as a type
            error.args = (self._hidden(str(error)),)
        told = self._hidden(subject) if isinstance(subject, str) else subject
        if self._engine is not None:
            self._engine.settlement.rejected(self._intake.rejected(told, payload, details), error)

    def _hidden(self, text: str) -> str:
        try:
            return self.redactor.redact_text(text)
        except BaseException as error:  # noqa: BLE001 - a redactor of the user's; why the event is refused is told all the same
            self._facts.fault("Redactor.redact_text", error)
            return "[REDACTED_ERROR]"

    def _processed(self, original: Event[Any]) -> Event[Any] | Flight:
        event = original
        for processor in self._processors:
            processed = processor(event)
            if processed is None:
                if self._engine is None:
                    raise not_running("emit")
                return self._engine.admission.drop(event, "processor")
            if not isinstance(processed, Event):
                raise ConfigurationError(
                    f"processor {shown(processor)} returned {shown(processed)}; return the event or None"
                )
            event = processed
        return event if event is original else self._intake.adopt(original, event)

    async def _enter(self, engine: Engine, event: Event[Any]) -> Flight:
        """Accept an event that was made, waiting for whatever it has to."""
        recorder, admission = self._recorder, engine.admission
        if recorder is not None and recorder.is_crowded:
            await recorder.room()
        flight = admission.enter(event)
        if flight is None:
            flight = await admission.enter_when_free(event)
        if not flight.dropped:
            admission.queue(flight)
            if admission.held:
                await admission.until_synced(flight)
        return flight

    @asynccontextmanager
    async def outbox(self) -> AsyncIterator[Outbox]:
        """Collect events that are accepted when the block ends well, and discarded when it raises.

        For what is only true once something else has gone well, such as a request, or a commit::

            async with bus.outbox() as outbox, database.begin():
                outbox.emit(OrderPlaced(number=7))

        Events are checked when they are collected. At the end the bus accepts them in order, which waits
        as ``emit`` does; what is discarded is counted, logged, and recorded as ``dropped``. They are held in
        memory: what kills the process in between takes them along.

        Raises:
            BusNotRunningError: when the bus does not run.
            AuditUnavailable: at the end, and what else ``emit`` raises; see ``Outbox.flush``.
        """
        outbox = Outbox(self, self._running("outbox").loop)
        try:
            yield outbox
            await outbox.flush()
        finally:
            outbox.close()

    def _hold(
        self, event: Any, payload: Any, details: Mapping[str, Any]
    ) -> tuple[Event[Any] | Receipt, Emission | None]:
        """Make an event for an outbox; a receipt is that of one which a processor dropped."""
        emission = Emission(self._spans, self._bus_metrics) if self._watches else None
        try:
            made = self._made(event, payload, details, emission)
        except BaseException as error:
            if emission is not None:
                emission.refused(error)
            raise
        return receipt_of(made) if isinstance(made, Flight) else made, emission

    async def _accept(self, event: Event[Any]) -> Flight:
        """Accept an event of an outbox."""
        recorder, admission = self._recorder, self._running("outbox").admission
        if recorder is not None and recorder.is_crowded:
            self._commit()
            await recorder.room()
        if self._keeping is not None:
            self._keeping.collect()
        flight = admission.enter(event)
        if flight is None:
            self._commit()  # what holds the places that are waited for
            flight = await admission.enter_when_free(event)
        if not flight.dropped:
            admission.queue(flight)
        return flight

    def _commit(self) -> None:
        """Have the journal commit what an outbox has collected."""
        if self._keeping is not None:
            self._keeping.commit()

    async def _accepted(self, flight: Flight) -> None:
        """Wait until the disk has an event of an outbox."""
        if self._engine is not None:
            await self._engine.admission.until_synced(flight)

    async def _relay(self, event: Event[Any]) -> None:
        """Accept an event that was made elsewhere, in a transaction of a database, by the rules of this bus."""
        engine = self._running("relay")
        try:
            made = self._intake.relayed(event)
        except ValidationError as error:
            self._reject(event.event_type, event.payload, {}, error)
            raise
        processed = self._processed(made) if self._processors else made
        if not isinstance(processed, Flight):
            await self._enter(engine, processed)

    def _discard(self, event: Event[Any], policy: str) -> None:
        """Drop an event of an outbox."""
        self._counters.dropped += 1
        if self._facts.dropped is not None:
            self._facts.dropped(event, policy)

    # Listening

    @overload
    def stream(self, event_types: type[M], /, *, where: Filter | None = ..., buffer: int = ...) -> EventStream[M]: ...
    @overload
    def stream(
        self, event_types: str | Iterable[Wanted], /, *, where: Filter | None = ..., buffer: int = ...
    ) -> EventStream[Any]: ...
    def stream(
        self,
        event_types: Wanted | Iterable[Wanted],
        /,
        *,
        where: Filter | None = None,
        buffer: int = DEFAULT_BUFFER,
    ) -> EventStream[Any]:
        """Iterate over matching events as they are accepted, from now on: ``async for event in bus.stream("*")``.

        Args:
            event_types: a pattern, a model, or a list of them.
            where: a filter.
            buffer: events kept for a reader that is slow; see ``EventStream``.

        Raises:
            PatternError: for a pattern that cannot match.
            BusNotRunningError: when the bus does not run.
        """
        engine = self._running("stream")
        stream: EventStream[Any] = EventStream(self._patterns(event_types), where, buffer)
        weak = weakref.ref(stream)

        def tap(receipt: Receipt) -> None:
            target = weak()
            if target is not None:
                target.offer(receipt.event)

        stop = self.listen(tap)
        weakref.finalize(stream, stop).atexit = False
        stream.listen(stop, engine.waiting.lent_here)
        self._streams.add(stream)
        return stream

    def listen(self, tap: Callable[[Receipt], None]) -> Callable[[], None]:
        """Call ``tap`` with the receipt of each event that is accepted from now on; return what ends that.

        It is called on the loop, before any handler, for system events too. It must be quick; what
        it raises is counted, and hurts no event. A handler that does work belongs into ``subscribe``.

        Raises:
            BusNotRunningError: when the bus does not run.
        """
        taps, name = self._running("listen").admission.taps, object()
        taps[name] = tap

        def stop() -> None:
            taps.pop(name, None)

        return stop

    @overload
    async def expect(
        self, event_types: type[M], /, *, where: Filter | None = ..., timeout: float | None = ...
    ) -> Event[M]: ...
    @overload
    async def expect(
        self, event_types: str | Iterable[Wanted], /, *, where: Filter | None = ..., timeout: float | None = ...
    ) -> Event[Any]: ...
    async def expect(
        self,
        event_types: Wanted | Iterable[Wanted],
        /,
        *,
        where: Filter | None = None,
        timeout: float | None = None,
    ) -> Event[Any]:
        """Wait for the next matching event to be accepted, and return it.

        It listens from its first step on: start it before what emits the event. A handler that waits here
        lends its place meanwhile.

        Raises:
            TimeoutError: when none came within ``timeout`` seconds.
            BusNotRunningError: when the bus does not run, or stops first.
        """
        return await first(self.stream(event_types, where=where), timeout, shown(event_types))

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
        engine, counters = self._engine, self._counters
        balance = self._ledger.balance()
        letters, evicted = self.dead_letters.counts()
        slots = self._threads.slots
        return BusStats(
            state=self.state.value,
            accepted=balance.accepted,
            settled=balance.settled,
            pending=balance.pending,
            queued=engine.queue.queued + engine.queue.again if engine is not None else 0,
            rejected=counters.rejected,
            dropped=counters.dropped,
            dropped_after=balance.dropped,
            deliveries=counters.deliveries,
            failures=counters.failures,
            retries=counters.retries,
            redriven=counters.redriven,
            dead_letters=letters,
            dead_letters_by_reason=self.dead_letters.by_reason(),
            dead_letters_evicted=evicted,
            dead_letters_lost=counters.letters_lost,
            subscriptions=len(self._subscriptions),
            subscriptions_active=self._open,
            event_types_subscribed=sorted({p for each in self.subscriptions if each.open for p in each.patterns}),
            validation_enabled=self._naming.enabled,
            threads_busy=slots.busy,
            threads_abandoned=self._threads.abandoned,
            threads_limit=slots.limit,
            max_pending_events=self._ledger.limit,
            overflow_policy=self._settings.overflow_policy.value,
            system_events=counters.system_events,
            system_dropped=counters.system_dropped,
            engine_errors=counters.engine_errors,
            extension_errors=counters.faults,
            loop_blocked=counters.loop_blocked,
            audit_enabled=self.audit is not None,
            audit_failures=self._trail.failures if self._trail is not None else 0,
            redactions=dict(getattr(self.redactor, "counts", {})),
            redaction_failures=getattr(self.redactor, "failures", 0),
            metrics_enabled=self._bus_metrics is not None,
            metrics_errors=self._bus_metrics.errors if self._bus_metrics is not None else 0,
            metrics=self.metrics.snapshot() if isinstance(self.metrics, InMemoryMetrics) else None,
            journal=self._keeping.stats() if self._keeping is not None else None,
        )

    # Its subscriptions

    def _add(self, subscription: Subscription) -> None:
        if math.isnan(subscription.timeout):
            subscription.timeout = self.handler_timeout
        if self._engine is not None:
            self._engine.execution.prepare(subscription)
        super()._add(subscription)
        self._count_subscriptions()

    def _remove(self, subscription: Subscription) -> None:
        super()._remove(subscription)
        self._count_subscriptions()

    def _count_subscriptions(self) -> None:
        if self._bus_metrics is not None:
            self._bus_metrics.subscriptions(len(self._subscriptions))

    def _audit_failed(self) -> None:
        if self._bus_metrics is not None:
            self._bus_metrics.audit_failed()


def _letters_of(journal: object) -> JournalLetters | None:
    """Return the store of the dead letters of a bus with a journal.

    Raises:
        ConfigurationError: for something that is no journal.
    """
    if journal is None:
        return None
    from aperion.journal.letters import JournalLetters
    from aperion.journal.sqlite import SQLiteJournal

    if not isinstance(journal, SQLiteJournal):
        raise ConfigurationError(f"journal={shown(journal)} is no journal; pass aperion.SQLiteJournal('state/')")
    return JournalLetters(10_000)


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


def _checked_redactor(redactor: Redactor) -> Redactor:
    for name in ("redact", "redact_text", "redact_exception"):
        if isinstance(redactor, type) or not callable(getattr(redactor, name, None)):
            raise ConfigurationError(
                f"redactor={shown(redactor)} has no {name}(); pass aperion.Redactor(...), or an object with redact, "
                "redact_text and redact_exception"
            )
    return redactor


async def _nothing(_delivery: Delivery) -> None:
    """End a chain that is made for being checked only."""
