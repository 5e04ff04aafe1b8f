"""A bus for programs without an event loop: Flask, Django, scripts, notebooks. Its loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeAlias, overload

import anyio

from aperion import bus as buses
from aperion._logs import logger as _log
from aperion.context import current_event
from aperion.engine.threads import in_handler_thread
from aperion.errors import BusNotRunningError, DeadlockError
from aperion.router import Router

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Unpack

    from aperion.bus import BusStats, DrainReport
    from aperion.deadletters import DeadLetterQueue
    from aperion.events import Payload
    from aperion.intake import EventDetails
    from aperion.outcomes import Outcomes
    from aperion.receipts import Receipt

__all__ = ["EventBus"]

_Ready: TypeAlias = "tuple[asyncio.AbstractEventLoop, asyncio.Future[float | None]]"

_CLOSED = "this bus was closed; make a new one, or close it when nothing emits any more"


class EventBus(Router):
    """A bus whose methods block instead of being awaited; it takes the options of ``aperion.EventBus``.

    It starts with the first event, or at ``with bus:``; leaving the block, or ``close()``, drains and ends it. What
    is still open when the process ends is drained then. All methods are safe from any thread.

    Handlers are those of any bus: a plain function runs in a worker thread, an async one on the loop. A plain one
    may emit here; an async one awaits ``bus.running.emit(...)`` instead.

    >>> bus = EventBus()
    >>> @bus.on("order.placed", name="ship")
    ... def ship(event):
    ...     print("order", event.payload["number"])
    >>> with bus:
    ...     outcomes = bus.emit_and_wait("order.placed", {"number": 7})
    order 7
    >>> outcomes["ship"].state.value
    'ok'

    Args:
        options: see ``aperion.EventBus``.

    Raises:
        ConfigurationError: for an option that makes no sense.
        TypeError: for an option that there is not.
    """

    # Mutable: what runs, under the lock; and what the thread of the loop has raised, by that thread.
    def __init__(self, **options: Any) -> None:
        self._bus = buses.EventBus(**options)
        super().__init__(naming=options.get("naming"))
        self._emit: Callable[..., Receipt] = self._bus.emit_from_thread
        self._bus.include(self)
        self._starting = threading.Lock()
        self._started: _Started | None = None
        self._is_closed = False

    @property
    def running(self) -> buses.EventBus:
        """The bus on the loop, for what this one has not; await its methods there, in async handlers."""
        return self._bus

    @property
    def dead_letters(self) -> DeadLetterQueue:
        """The dead letters of the bus."""
        return self._bus.dead_letters

    def stats(self) -> BusStats:
        """Return what the bus has counted."""
        return self._bus.stats()

    def __enter__(self) -> Self:
        """Start.

        Raises:
            AuditUnavailable: when the audit log cannot be opened.
            BusNotRunningError: when it was closed, or started before the process forked.
        """
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @overload
    def emit(self, event: Payload, /, *, timeout: float | None = ..., **details: Unpack[EventDetails]) -> Receipt: ...
    @overload
    def emit(
        self,
        event: str,
        payload: Mapping[str, Any] | Payload,
        /,
        *,
        timeout: float | None = ...,
        **details: Unpack[EventDetails],
    ) -> Receipt: ...
    def emit(
        self,
        event: str | Payload,
        payload: Mapping[str, Any] | Payload | None = None,
        /,
        *,
        timeout: float | None = None,
        **details: Unpack[EventDetails],
    ) -> Receipt:
        """Hand an event to the bus; return when it is accepted. ``receipt.settled_from_thread()`` waits for its handlers.

        Args:
            event: a payload model, or an event type.
            payload: the payload where ``event`` is a type.
            timeout: seconds to wait for room, where the bus is full and its policy is ``BLOCK``.
            details: what else to say of it, see ``EventDetails``.

        Raises:
            TimeoutError: when there was no room in time; the event is not accepted.
            DeadlockError: in an async handler, which would hold up the loop that has to accept the event.
            BusNotRunningError: when the bus was closed, or started before the process forked.
            ValidationError: and all else that ``aperion.EventBus.emit`` raises.
        """
        self._start()
        return self._emit(event, payload, timeout=timeout, **details)

    @overload
    def emit_and_wait(
        self, event: Payload, /, *, timeout: float | None = ..., **details: Unpack[EventDetails]
    ) -> Outcomes: ...
    @overload
    def emit_and_wait(
        self,
        event: str,
        payload: Mapping[str, Any] | Payload,
        /,
        *,
        timeout: float | None = ...,
        **details: Unpack[EventDetails],
    ) -> Outcomes: ...
    def emit_and_wait(
        self,
        event: str | Payload,
        payload: Mapping[str, Any] | Payload | None = None,
        /,
        *,
        timeout: float | None = None,
        **details: Unpack[EventDetails],
    ) -> Outcomes:
        """Do what ``emit`` does, and wait until every handler has ended, retries included; return their outcomes.

        What handlers raise is in the outcomes; ``outcomes.raise_for_failures()`` raises it.

        Raises:
            TimeoutError: when there was no room within ``timeout`` seconds, or when the handlers had not ended by
                then; they go on.
            DeadlockError: in a handler for which the event would wait.
            ValidationError: and all else that ``emit`` raises.
        """
        until = None if timeout is None else monotonic() + timeout
        self._start()
        receipt = self._emit(event, payload, timeout=timeout, **details)
        return receipt.settled_from_thread(None if until is None else max(0.0, until - monotonic()))

    def close(self, timeout: float | None = None) -> DrainReport | None:
        """Accept nothing more, wait for what is in flight, and end the thread; a second call does nothing more.

        Args:
            timeout: seconds after which what is in flight is cancelled; ``drain_timeout`` by default.

        Returns:
            What did not finish; None for a bus that never started.

        Raises:
            DeadlockError: in a handler, which would wait for itself.
            AuditUnavailable: when the audit log could not write all records.
            KeyboardInterrupt: when a handler has raised it.
        """
        with self._starting:
            self._is_closed, started = True, self._started
        if started is None or started.pid != os.getpid():  # in a forked child it is that of the parent
            return None
        started.end(timeout)
        return self._bus.last_drain

    def _start(self) -> None:
        """Start the loop, unless it runs."""
        started = self._started
        if started is None or self._is_closed or not started.is_ready:
            started = self._started_now()
        if started.pid != os.getpid():
            raise BusNotRunningError(
                f"this bus was started in process {started.pid}, and forked away from its thread; start it in each "
                "process, with its first event there"
            )
        if threading.get_ident() == started.thread.ident:
            raise DeadlockError(
                "this would hold up the event loop that has to accept the event; in an async handler write "
                "'await bus.running.emit(...)', or make the handler a plain function"
            )

    def _started_now(self) -> _Started:
        with self._starting:
            if self._is_closed:
                raise BusNotRunningError(_CLOSED)
            if self._started is None:
                self._started = _Started(self._bus)
            try:
                self._started.wait()
            except KeyboardInterrupt:  # here, and nothing of the bus: it goes on starting
                raise
            except BaseException:
                self._started = None
                raise
            return self._started


class _Started:
    """The thread with the loop on which a bus runs."""

    # Mutable: what the thread has raised, by itself.
    def __init__(self, bus: buses.EventBus) -> None:
        self._bus = bus
        self.pid = os.getpid()
        self._ready: concurrent.futures.Future[_Ready] = concurrent.futures.Future()
        self._failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="aperion loop", daemon=True)
        self.thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether the bus runs."""
        return self._ready.done()

    def wait(self) -> None:
        """Wait until the bus runs, and raise what keeps it from that."""
        self._ready.result()
        atexit.unregister(self._end_with_process)  # whoever else has waited
        atexit.register(self._end_with_process)

    def end(self, timeout: float | None) -> None:
        """Drain and stop, and raise what the end of the bus has raised."""
        if threading.get_ident() == self.thread.ident or (in_handler_thread() and current_event() is not None):
            raise DeadlockError("close() in a handler waits for that handler; close the bus outside of its handlers")
        self.wait()
        loop, asked = self._ready.result()
        with suppress(RuntimeError):  # the loop is closed: by another thread, or since a handler interrupted the bus
            loop.call_soon_threadsafe(_answer, asked, timeout)
        self.thread.join()
        atexit.unregister(self._end_with_process)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as error:  # noqa: BLE001 - raised to whoever starts or closes the bus
            if self._ready.done():
                self._failure = error
            else:
                self._ready.set_exception(error)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[float | None] = loop.create_future()  # to end, within so many seconds
        async with self._bus:
            self._ready.set_result((loop, asked))
            await self._bus.drain(await asked)

    def _end_with_process(self) -> None:
        if self.pid != os.getpid():
            return
        try:
            self.end(None)
        except BaseException as error:  # noqa: BLE001 - the process ends; nobody is left to handle it
            _log.error("the bus could not be closed", error_type=type(error).__name__)
        report = self._bus.last_drain
        if report is not None and not report.ok:
            _log.error("events did not settle before the process ended", events=len(report.unfinished))


def _answer(asked: asyncio.Future[float | None], timeout: float | None) -> None:
    if not asked.done():
        asked.set_result(timeout)
