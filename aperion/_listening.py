"""The side of a bus on which others listen to what is accepted: streams, taps, waiting for one event."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, overload

from aperion._runs import Runs
from aperion._streams import DEFAULT_BUFFER, EventStream, first
from aperion.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aperion.delivery import Filter, Receipt
    from aperion.events import Event
    from aperion.router import M, Wanted


class Listening(Runs):
    """What ``EventBus`` tells those who listen."""

    _streams: weakref.WeakSet[EventStream[Any]]

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
        stream: EventStream[Any] = EventStream(self._patterns(event_types), where, buffer)
        weak = weakref.ref(stream)

        def tap(receipt: Receipt) -> None:
            target = weak()
            if target is not None:
                target.offer(receipt)

        stop = self.listen(tap)
        weakref.finalize(stream, stop).atexit = False
        stream.listen(stop)
        self._streams.add(stream)
        return stream

    def listen(self, tap: Callable[[Receipt], None]) -> Callable[[], None]:
        """Call ``tap`` with the receipt of each event that is accepted from now on; return what ends that.

        It is called on the loop, before any handler, for system events too. It must be quick; what
        it raises is counted, and hurts no event. A handler that does work belongs into ``subscribe``.

        Raises:
            BusNotRunningError: when the bus does not run.
        """
        taps, name = self._running("listen").taps, object()
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

        It listens from its first step on: start it before what emits the event.

        Raises:
            TimeoutError: when none came within ``timeout`` seconds.
            BusNotRunningError: when the bus does not run, or stops first.
        """
        return await first(self.stream(event_types, where=where), timeout, shown(event_types))
