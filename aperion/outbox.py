"""Events that are held back until a block has ended well."""

from __future__ import annotations

import concurrent.futures
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol, overload

from aperion.engine.waiting import answered
from aperion.errors import BusNotRunningError, ConfigurationError
from aperion.receipts import Receipt

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping
    from typing import Unpack

    from aperion.engine.flight import Flight
    from aperion.events import Event, Payload
    from aperion.intake import EventDetails
    from aperion.observers.emission import Emission


class Host(Protocol):
    """What an outbox needs of its bus."""

    def _hold(
        self, event: Any, payload: Any, details: Mapping[str, Any]
    ) -> tuple[Event[Any] | Receipt, Emission | None]:
        """Make an event, and begin to watch it."""

    async def _accept(self, event: Event[Any]) -> Flight:
        """Accept an event that was made before, without waiting for the disk."""

    def _commit(self) -> None:
        """Have what was accepted so far brought to the disk, in one go."""

    async def _accepted(self, flight: Flight) -> None:
        """Wait until the disk has an event, where that is asked for."""

    def _discard(self, event: Event[Any], policy: str) -> None:
        """Drop an event that was made before, visibly."""


class Outbox:
    """Collects events inside ``async with bus.outbox() as outbox:``; see ``EventBus.outbox``."""

    # Mutable: what is held, and whether the block has ended; on the thread of the loop.
    __slots__ = ("_closed", "_held", "_host", "_loop", "_thread")

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._loop = loop
        self._thread = threading.get_ident()
        self._held: list[tuple[Event[Any], Emission | None]] = []
        self._closed = False

    def __len__(self) -> int:
        """Count the events that are held."""
        return len(self._held)

    @property
    def events(self) -> tuple[Event[Any], ...]:
        """The events that are held, in order."""
        return tuple(event for event, _ in self._held)

    @overload
    def emit(self, event: Payload, /, **details: Unpack[EventDetails]) -> Event[Any]: ...
    @overload
    def emit(
        self, event: str, payload: Mapping[str, Any] | Payload, /, **details: Unpack[EventDetails]
    ) -> Event[Any]: ...
    def emit(
        self,
        event: str | Payload,
        payload: Mapping[str, Any] | Payload | None = None,
        /,
        **details: Unpack[EventDetails],
    ) -> Event[Any]:
        """Make an event now, and hold it; takes what ``EventBus.emit`` takes, and may be called from any thread.

        It is checked here, and gets its id, its time, its correlation id and its cause. No handler sees it
        before the block ends.

        Raises:
            ValidationError: for an event that the bus does not accept.
            ConfigurationError: when the block has ended.
        """
        if threading.get_ident() == self._thread:
            return self._hold(event, payload, details)
        done: concurrent.futures.Future[Event[Any]] = concurrent.futures.Future()

        def hold() -> None:
            try:
                done.set_result(self._hold(event, payload, details))
            except BaseException as error:  # noqa: BLE001 - raised in the thread that emits
                done.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(hold, context=copy_context())
        except RuntimeError:
            raise BusNotRunningError("the loop of the bus is closed, so the event was not collected") from None
        answered(done, self._loop, None)
        return done.result()

    def discard(self) -> None:
        """Drop what is held, visibly, without ending the block: a counter, a log line and an audit record each."""
        held, self._held = self._held, []
        for event, emission in held:
            self._host._discard(event, "outbox")
            if emission is not None:
                emission.ended()

    async def flush(self) -> None:
        """Have the bus accept what is held, in order; waits as ``emit`` does. Leaving the block does it.

        A journal keeps all of it in one commit, as far as the bus has room for it at once.

        Raises:
            BackpressureError: and what else ``emit`` raises once an event is made. Those before that event
                are accepted, and those after it discarded.
            JournalUnavailable: when the disk refuses them, all of one commit; so for ``AuditUnavailable``.
        """
        accepted: list[tuple[Flight, Emission | None]] = []
        failure: BaseException | None = None
        try:
            while self._held:
                event, emission = self._held.pop(0)
                try:
                    accepted.append((await self._host._accept(event), emission))
                except BaseException as error:
                    if emission is not None:
                        emission.refused(error)
                    raise
        except BaseException as error:  # noqa: BLE001 - raised once those before it are on the disk
            failure = error
            self.discard()
        self._host._commit()
        for flight, emission in accepted:
            try:
                await self._host._accepted(flight)
            except BaseException as error:  # noqa: BLE001 - raised below
                failure = failure or error
                if emission is not None:
                    emission.refused(error)
            else:
                if emission is not None:
                    emission.ended()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Drop what is held, and take no more."""
        self._closed = True
        self.discard()

    def _hold(self, event: Any, payload: Any, details: Mapping[str, Any]) -> Event[Any]:
        if self._closed:
            raise ConfigurationError("the block of this outbox has ended; emit to the bus itself, or open another")
        made, emission = self._host._hold(event, payload, details)
        if isinstance(made, Receipt):  # a processor has dropped it, visibly
            if emission is not None:
                emission.ended()
            return made.event
        self._held.append((made, emission))
        return made
