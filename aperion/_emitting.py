"""The side of a bus on which events come in: emit and its kin, dispatch, outboxes."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, overload

from aperion._runs import Runs
from aperion._runtime.bridge import not_running
from aperion._runtime.emission import Emission
from aperion._runtime.intake import Details
from aperion.context import current_event
from aperion.delivery import Receipt
from aperion.errors import ConfigurationError, EventTypeError, KeyHeldError, ValidationError, WrongLoopError, shown
from aperion.events import Event
from aperion.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from typing import Unpack

    from aperion._runtime.bridge import Bridge
    from aperion._runtime.intake import EventDetails, Intake
    from aperion._runtime.reporter import Reporter
    from aperion._runtime.stats import Counters
    from aperion.delivery import Outcomes
    from aperion.events import Payload
    from aperion.protocols import Processor
    from aperion.redaction import Redactor


class Emitting(Runs):
    """What ``EventBus`` can do with events before they are accepted."""

    redactor: Redactor
    _bridge: Bridge
    _counters: Counters
    _intake: Intake
    _processors: tuple[Processor, ...]
    _reporter: Reporter

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
        event, and the log says so. Handlers run later; ``receipt.settled()`` waits for them.

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
        """
        runtime = self._running("emit")
        paced = self._reporter.paced
        emission = Emission(self._reporter) if self._reporter.watches else None
        try:
            made = self._event(event, payload, Details(**details) if details else None, emission)
            if type(made) is Receipt:
                receipt = made
            else:
                if paced is not None and paced.is_crowded:
                    await paced.room()
                receipt = runtime.try_accept(made) or await runtime.accept_when_free(made)  # type: ignore[arg-type]  # what is no receipt is an event
                if runtime.held:
                    await runtime.until_synced(receipt)
        except BaseException as error:
            if emission is not None:
                emission.refused(error)
            raise
        if emission is not None:
            emission.ended()
        return receipt

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
        runtime = self._running("emit_nowait")
        emission = Emission(self._reporter) if self._reporter.watches else None
        try:
            made = self._event(event, payload, Details(**details) if details else None, emission)
            receipt = made if isinstance(made, Receipt) else runtime.accept_now(made)
        except BaseException as error:
            if emission is not None:
                emission.refused(error)
            raise
        if emission is not None:
            emission.ended()
        return receipt

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
        runtime = self._runtime
        if runtime is None:
            raise not_running("emit_from_thread")
        if threading.get_ident() == runtime.thread:
            raise WrongLoopError("emit_from_thread", inside=True)
        emission = Emission(self._reporter) if self._reporter.watches else None
        said = Details(**details) if details else None
        try:
            if self._reporter.paced is not None:
                self._reporter.paced.room_for_thread()
            receipt = self._bridge.emit(runtime, lambda: self._event(event, payload, said, emission), timeout)
        except BaseException as error:
            if emission is not None:
                emission.refused(error)
            raise
        if emission is not None:
            emission.ended()
        return receipt

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
        waits for its turn. Cancelling it cancels the handler that runs; those that did not run fail.

        Raises:
            KeyHeldError: in a handler whose own event holds the same key.
            ValidationError: and all else that ``emit`` raises.
        """
        runtime = self._running("dispatch")
        paced = self._reporter.paced
        emission = Emission(self._reporter, timed=False) if self._reporter.spans is not None else None
        try:
            made = self._event(event, payload, Details(**details) if details else None, emission)
            if isinstance(made, Receipt):
                receipt = made
            else:
                if made.key is not None:
                    _check_key_is_free(made)
                if paced is not None and paced.is_crowded:
                    await paced.room()
                receipt = await runtime.run_here(made)
        except BaseException as error:
            if emission is not None:
                emission.refused(error)
            raise
        if emission is not None:
            emission.ended()
        return receipt.outcomes_now()

    def _event(
        self, subject: object, payload: object, details: Details | None, emission: Emission | None = None
    ) -> Event[Any] | Receipt:
        """Make the event and run the processors; a receipt is that of an event which one of them dropped."""
        try:
            event = self._intake.event(subject, payload, details)
        except ValidationError as error:
            self._counters.rejected += 1
            if isinstance(error, EventTypeError):  # somebody may pass anything as a type
                error.args = (self.redactor.redact_text(str(error)),)
            told = self.redactor.redact_text(subject) if isinstance(subject, str) else subject
            self._reporter.rejected(self._intake.rejected(told, payload, details), error)
            raise
        if emission is not None:
            event = emission.made(event)
        return self._processed(event) if self._processors else event

    def _processed(self, event: Event[Any]) -> Event[Any] | Receipt:
        for processor in self._processors:
            processed = processor(event)
            if processed is None:
                return self._running("emit").drop(event, "processor")
            if not isinstance(processed, Event):
                raise ConfigurationError(
                    f"processor {shown(processor)} returned {shown(processed)}; return the event or None"
                )
            event = processed
        return event

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

    def _make(
        self, event: Any, payload: Any, details: Mapping[str, Any]
    ) -> tuple[Event[Any] | Receipt, Emission | None]:
        """Make an event for an outbox."""
        emission = Emission(self._reporter) if self._reporter.watches else None
        try:
            return self._event(event, payload, Details(**details) if details else None, emission), emission
        except BaseException as error:
            if emission is not None:
                emission.refused(error)
            raise

    async def _accept(self, event: Event[Any]) -> Receipt:
        """Accept an event of an outbox."""
        runtime, paced = self._running("outbox"), self._reporter.paced
        if paced is not None and paced.is_crowded:
            await paced.room()
        receipt = runtime.try_accept(event) or await runtime.accept_when_free(event)
        await runtime.until_synced(receipt)
        return receipt

    def _discard(self, event: Event[Any], policy: str) -> None:
        """Drop an event of an outbox."""
        self._counters.dropped += 1
        self._reporter.dropped(event, policy)


def _check_key_is_free(event: Event[Any]) -> None:
    parent = current_event()
    if parent is not None and parent.key == event.key:
        raise KeyHeldError(event.event_type, str(event.key))
