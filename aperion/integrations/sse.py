"""Server-sent events: a browser watches what happens on a bus. Pure ASGI, for any framework.

Nothing has to be installed for this module.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import anyio

from aperion._logs import logger as _log
from aperion.bus import BusState
from aperion.errors import BusNotRunningError, PatternError, StreamOverflowError, positive
from aperion.events import model_for, to_json
from aperion.patterns import check_pattern, matches
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

    from aperion.bus import EventBus
    from aperion.events import Event
    from aperion.integrations.asgi import Receive, Scope, Send
    from aperion.router import Wanted
    from aperion.streams import EventStream

__all__ = ["ServerSentEvents"]

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect it
]
_TICK: Final = 1.0  # how often a silent stream looks whether bus or server end
_REMEMBERED: Final = 256
_MOST_PATTERNS: Final = 20
_NOTHING: Final = object()


class ServerSentEvents:
    """Streams chosen events to browsers, as they are accepted: ``new EventSource("/events")`` on the other side.

    Each event has its type as ``event:``, its id as ``id:``, and as ``data:`` one line of JSON with
    ``event_id``, ``event_type``, ``timestamp``, ``source``, ``correlation_id`` and ``payload``, all hidden that the
    redactor of the bus hides. A client may ask for less than the service offers: ``?types=order.placed,cart.*``.

    The bus waits for no client. Who falls more than ``buffer`` events behind gets what is buffered, then an
    ``aperion.missed`` event with their number, and is let go; who takes nothing for ``heartbeat`` seconds is let
    go at once. A browser comes again by itself; what it missed meanwhile is not sent again. The stream ends
    when the client goes, when the bus has stopped, and when uvicorn begins to shut down.

    Anybody who can reach it sees what it offers. Give it ``where`` to show people their own events only, and let
    an endpoint of your own check who asks.

    Args:
        bus: the bus.
        event_types: what is offered: a pattern, a model, or a list of them.
        where: called on the loop with each event and the ASGI scope of the client; tells whether to send it.
        buffer: events kept for a client that is slow.
        max_clients: clients at a time; one more gets a 503.
        heartbeat: seconds of silence after which a comment is sent, so that nothing in between gives up.

    Raises:
        ConfigurationError: for an option that makes no sense, and for a pattern that cannot be parsed.
    """

    # Mutable: the number of clients, and the events that were written down last.
    __slots__ = ("_buffer", "_bus", "_clients", "_heartbeat", "_limit", "_patterns", "_where", "_written")

    def __init__(
        self,
        bus: EventBus,
        event_types: Wanted | Iterable[Wanted],
        *,
        where: Callable[[Event[Any], Scope], bool] | None = None,
        buffer: int = 1_000,
        max_clients: int = 100,
        heartbeat: float = 15.0,
    ) -> None:
        positive("buffer", buffer, whole=True)
        positive("max_clients", max_clients, whole=True)
        positive("heartbeat", heartbeat)
        self._bus = bus
        self._patterns = bus._patterns(event_types)
        self._where = where
        self._buffer = buffer
        self._limit = max_clients
        self._heartbeat = heartbeat
        self._clients = 0
        self._written: dict[int, tuple[Event[Any], bytes]] = {}

    @property
    def clients(self) -> int:
        """How many clients are being served."""
        return self._clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client until it goes, or until it is let go."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        if scope["method"] != "GET":
            await _refuse(send, 405, "use GET")
            return
        if self._clients >= self._limit:
            await _refuse(send, 503, f"{self._limit} clients are being served; try again later")
            return
        try:
            stream = self._stream(scope)
        except PatternError as error:
            await _refuse(send, 400, str(error))
        except BusNotRunningError:
            await _refuse(send, 503, "the bus does not run")
        else:
            await self._serve(stream, receive, send)

    def _stream(self, scope: Scope) -> EventStream[Any]:
        wanted, where = _asked_for(scope), self._where

        def shows(event: Event[Any]) -> bool:
            if wanted and not any(matches(pattern, event.event_type) for pattern in wanted):
                return False
            return where is None or where(event, scope)

        return self._bus.stream(self._patterns, where=shows, buffer=self._buffer)

    async def _serve(self, stream: EventStream[Any], receive: Receive, send: Send) -> None:
        self._clients += 1
        try:
            async with stream, anyio.create_task_group() as group:
                group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
                await self._send(stream, send)
                group.cancel_scope.cancel()
        finally:
            self._clients -= 1

    async def _send(self, stream: EventStream[Any], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        try:
            async with aclosing(self._chunks(stream)) as chunks:
                async for chunk in chunks:
                    with anyio.fail_after(self._heartbeat):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            _log.info("a client of server-sent events takes nothing, and was let go")
        except OSError:  # it has gone; some servers say so here
            return

    async def _chunks(self, stream: EventStream[Any]) -> AsyncGenerator[bytes, None]:
        """Write down events as they come, and a comment into a long silence."""
        yield b": welcome\n\n"  # so that the browser knows at once that it is connected
        spoke, server = monotonic(), _server_here()
        while not (self._bus.state is BusState.STOPPED or getattr(server, "should_exit", False) is True):
            try:
                event = await _next(stream, min(self._heartbeat, _TICK))
            except StreamOverflowError as error:
                yield b'event: aperion.missed\ndata: {"missed":%d}\n\n' % error.missed
                return
            if event is None:
                return
            if event is not _NOTHING:
                yield self._shown(event)
            elif monotonic() - spoke >= self._heartbeat:
                yield b": still here\n\n"
            else:
                continue
            spoke = monotonic()

    def _shown(self, event: Event[Any]) -> bytes:
        """Return an event as it goes out; written down once for all clients."""
        known = self._written.get(id(event))  # which is its own as long as it is kept here
        if known is not None:
            return known[1]
        chunk = _written(event, self._bus.redactor)
        if len(self._written) >= _REMEMBERED:
            del self._written[next(iter(self._written))]
        self._written[id(event)] = (event, chunk)
        return chunk


def _written(event: Event[Any], redactor: Redactor) -> bytes:
    """Return a frame. Nothing in an event may end the stream of every client, or look like another frame.

    What intake lets in is harmless. But processors, redactors and names that nobody checks may bring anything.
    """
    event_id, event_type = _line(event.event_id, redactor.redact_text), _line(event.event_type, str)
    fields = {
        "event_id": event_id,
        "event_type": event_type,
        "timestamp": event.timestamp,
        "source": None if event.source is None else _line(event.source, redactor.redact_text),
        "correlation_id": _line(event.correlation_id, redactor.redact_text),
        "payload": None,
    }
    try:
        data = to_json({**fields, "payload": _payload(event, redactor)})
    except Exception as error:  # noqa: BLE001 - whatever it is, the others want their events
        data = to_json({**fields, "payload": f"[NOT SHOWN: {type(error).__name__}]"})
    return b"event: %s\nid: %s\ndata: %s\n\n" % (event_type.encode(), event_id.encode(), data)


def _line(text: str, shown: Callable[[str], str]) -> str:
    """Return a text as one line that can be encoded, or a mark where that fails."""
    try:
        return " ".join(shown(text).encode("utf-8", "backslashreplace").decode().replace("\0", " ").split())
    except Exception:  # noqa: BLE001 - a redactor of the user's, or a text that is none
        return "[REDACTED_ERROR]"


def _payload(event: Event[Any], redactor: Redactor) -> object:
    if type(redactor) is Redactor and isinstance(event.payload, Mapping):
        return redactor.redact(event.payload, like=model_for(event.event_type))
    return redactor.redact(event.payload)


def _asked_for(scope: Scope) -> list[str]:
    """Return the patterns in the query: ``?types=a.b,c.*``, or several ``types=``.

    Raises:
        PatternError: for what is none, and for too many.
    """
    given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("types", [])
    patterns = [pattern.strip() for each in given for pattern in each.split(",")]
    if len(patterns) > _MOST_PATTERNS:
        raise PatternError(f"{len(patterns)} patterns", f"more than {_MOST_PATTERNS}")
    return [check_pattern(pattern) for pattern in patterns]


async def _next(stream: EventStream[Any], patience: float) -> Any:
    """Return the next event, ``_NOTHING`` when none came in time, and None at the end."""
    with anyio.move_on_after(patience):
        return await anext(stream, None)
    return _NOTHING


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _server_here() -> object:
    """Return the uvicorn that serves on this loop, if it is one; ``should_exit`` tells when it was told to stop.

    It waits for responses to end, and tells the application only then. It is found among the tasks of its loop, in
    whichever thread that runs; where somebody else makes these, it is what SIGTERM calls.
    """
    kind = getattr(sys.modules.get("uvicorn.server"), "Server", ())
    for task in asyncio.all_tasks() if kind else ():
        coroutine: Any = task.get_coro()
        while (frame := getattr(coroutine, "cr_frame", None)) is not None:
            if isinstance(found := frame.f_locals.get("self"), kind):
                return found
            coroutine = coroutine.cr_await
    return getattr(signal.getsignal(signal.SIGTERM), "__self__", None)


async def _refuse(send: Send, status: int, text: str) -> None:
    body = to_json({"detail": text})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode("ascii"))]
    if status == 405:
        headers.append((b"allow", b"GET"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
