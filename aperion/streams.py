"""Waiting for events from outside of handlers: the next one, or all of them."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Generic

import anyio

from aperion.errors import BusNotRunningError, ConfigurationError, StreamOverflowError
from aperion.events import Event, P
from aperion.patterns import matches

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import TracebackType

    from aperion.subscriptions import Filter

DEFAULT_BUFFER = 1_000


class EventStream(Generic[P]):
    """An asynchronous iterator over the events that a bus accepts, as they are accepted.

    It listens from its creation until it is closed, the bus stops (iteration then ends), or nobody
    refers to it any more. A reader that falls more than ``buffer`` events behind gets what is
    buffered and then ``StreamOverflowError``: the bus never waits for it, and no event is left out
    without a word. Several readers of one stream share its events: each goes to one of them.
    """

    # Mutable: the buffer, the state and the wake-up, all on the thread of the loop.
    __slots__ = (
        "__weakref__",
        "_buffer",
        "_closed",
        "_lend",
        "_limit",
        "_missed",
        "_patterns",
        "_readers",
        "_stop",
        "_where",
    )

    def __init__(self, patterns: tuple[str, ...], where: Filter | None, limit: int) -> None:
        if limit < 1:
            raise ConfigurationError(
                f"buffer={limit!r} makes no sense; it is the number of events kept for a slow reader"
            )
        self._patterns = patterns
        self._where = where
        self._limit = limit
        self._buffer: deque[Event[Any]] = deque()
        self._missed = 0
        self._closed = False
        self._readers: dict[anyio.Event, None] = {}  # who waits, by order
        self._stop: Callable[[], None] | None = None
        self._lend: Callable[[], AbstractContextManager[None]] = nullcontext

    def __aiter__(self) -> EventStream[P]:
        """Iterate over what comes."""
        return self

    async def __anext__(self) -> Event[P]:
        """Wait for the next event; cancelling the wait loses none.

        Raises:
            StreamOverflowError: when events were missed because this reader was too slow.
        """
        while not self._buffer:
            if self._missed:
                missed, self._missed = self._missed, 0
                raise StreamOverflowError(self._limit, missed)
            if self._closed:
                raise StopAsyncIteration
            await self._news()
        return self._buffer.popleft()

    async def _news(self) -> None:
        news = anyio.Event()
        self._readers[news] = None
        try:
            with self._lend():
                await news.wait()
        except BaseException:
            if self._readers.pop(news, self) is not None and self._buffer:
                self._wake()  # told, and cancelled: the next one takes it
            raise

    async def __aenter__(self) -> EventStream[P]:
        """Listen until the block is left."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        self.close()

    def listen(self, stop: Callable[[], None], lend: Callable[[], AbstractContextManager[None]]) -> None:
        """Take note of how to stop listening, and how a handler that reads lends its place."""
        self._stop = stop
        self._lend = lend

    def offer(self, event: Event[Any]) -> None:
        """Take an event that was just accepted; never waits."""
        if self._closed or not any(matches(pattern, event.event_type) for pattern in self._patterns):
            return
        if self._where is not None and not self._where(event):
            return
        if len(self._buffer) < self._limit and not self._missed:
            self._buffer.append(event)
        else:
            self._missed += 1
        self._wake()

    def close(self) -> None:
        """Stop listening; what is buffered can still be read."""
        self._closed = True
        if self._stop is not None:
            self._stop()
            self._stop = None
        while self._readers:
            self._wake()

    def _wake(self) -> None:
        """Tell the reader who has waited longest."""
        reader = next(iter(self._readers), None)
        if reader is not None:
            del self._readers[reader]
            reader.set()


async def first(stream: EventStream[P], timeout: float | None, wanted: str) -> Event[P]:
    """Return the first event of a stream, and close it.

    Raises:
        TimeoutError: when none came within ``timeout`` seconds.
        BusNotRunningError: when the bus stopped first.
    """
    async with stream:
        with anyio.move_on_after(timeout):
            try:
                return await stream.__anext__()
            except StopAsyncIteration:
                raise BusNotRunningError(f"the bus stopped before an event came that matches {wanted}") from None
    raise TimeoutError(f"no event that matches {wanted} was emitted within {timeout:g} s")
