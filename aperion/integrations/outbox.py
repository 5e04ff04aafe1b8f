"""Events that go out with the response of the request that collected them, and only with one that tells of success.

Nothing has to be installed for this module.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aperion._logs import logger as _log
from aperion.errors import ConfigurationError
from aperion.integrations.asgi import bus_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

    from aperion.bus import EventBus
    from aperion.integrations.asgi import ASGIApp, Message, Receive, Scope, Send
    from aperion.outbox import Outbox

__all__ = ["OutboxMiddleware", "outbox_of"]

OUTBOX = "aperion_outbox"
"""The name in the state of a request."""

_FAILURES = 400  # the first status that tells a client that its request failed
_REFUSAL = json.dumps({"detail": "the events of this request could not be accepted"}).encode()


class OutboxMiddleware:
    """Give each request an outbox, whose events are accepted when the response begins.

    The response decides, however it was made. With a status below 400 the events are accepted, in order,
    before its first byte is sent. With any other status, and for a request that ends without a response, they
    are discarded, visibly: counted, logged, and recorded as ``dropped``. An exception that a handler turns
    into a response of status 200 has ended well.

    When the bus cannot accept them (it is full under ``RAISE``, the audit log refuses, it drains), the client gets
    a 503 in place of the response, and a line of the log says why. The error is raised inside the application, so
    that no background task of the response runs. Under ``BLOCK`` the response waits until there is room.

    One inside another one, such as in a mounted application, leaves it to the outer one.
    """

    __slots__ = ("app",)

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; what is none passes through."""
        if scope["type"] != "http" or OUTBOX in scope.setdefault("state", {}):
            await self.app(scope, receive, send)
            return
        held = scope["state"][OUTBOX] = _Held()
        try:
            await self.app(scope, receive, _ending(held, send))
        except Exception:
            if not held.refused:  # else it is answered, and this is what the refusal has made of the application
                raise
        finally:
            await held.discard()


async def outbox_of(scope: Mapping[str, Any], bus: EventBus | None = None) -> Outbox:
    """Return the outbox of a request, by its ASGI scope; each request has one, made when it is first asked for.

    Raises:
        BusNotRunningError: when no bus runs in this application.
        ConfigurationError: without the middleware, once the response has begun, and for a websocket.
    """
    if scope["type"] == "websocket":
        raise ConfigurationError(
            "a websocket has no response that tells how it ended; use 'async with bus.outbox() as outbox:' "
            "around what belongs together"
        )
    held = scope.get("state", {}).get(OUTBOX)
    if held is None:
        raise ConfigurationError("this application has no outboxes; add them: app.add_middleware(OutboxMiddleware)")
    return await held.open(bus or bus_of(scope))  # type: ignore[no-any-return]  # the state of a request holds anything


class _Held:
    """The outbox of one request."""

    # Mutable: all of it, while the request is served.
    __slots__ = ("_block", "_bus", "_ended", "_outbox", "refused")

    def __init__(self) -> None:
        self._block: AbstractAsyncContextManager[Outbox] | None = None
        self._bus: EventBus | None = None
        self._outbox: Outbox | None = None
        self._ended = False
        self.refused = False

    async def open(self, bus: EventBus) -> Outbox:
        """Return the outbox, or make it."""
        if self._ended:
            raise ConfigurationError("the response has begun, and the outbox with it has ended; emit to the bus itself")
        if self._outbox is None:
            block = bus.outbox()
            self._outbox = await block.__aenter__()
            self._block, self._bus = block, bus
        return self._outbox

    async def accept(self) -> None:
        """Have the bus accept what is held; raises what it raises."""
        try:
            await self._end()
        except Exception as error:
            self.refused = True
            text = self._bus.redactor.redact_exception(error)[0] if self._bus is not None else ""
            _log.error("the events of a request were not accepted", error_type=type(error).__name__, error=text)
            raise

    async def discard(self) -> None:
        """Drop what is held; never waits, since nothing is left to accept."""
        if self._outbox is not None and self._block is not None:
            self._outbox.discard()
        await self._end()

    async def _end(self) -> None:
        self._ended = True
        block, self._block = self._block, None
        if block is not None:
            await block.__aexit__(None, None, None)


def _ending(held: _Held, send: Send) -> Send:
    async def send_after_events(message: Message) -> None:
        if held.refused:
            return  # what the application makes of the refusal; the client has its answer
        if message["type"] == "http.response.start":
            if message["status"] >= _FAILURES:
                await held.discard()
            else:
                await _accept_or_refuse(held, send)
        await send(message)

    return send_after_events


async def _accept_or_refuse(held: _Held, send: Send) -> None:
    try:
        await held.accept()
    except Exception:
        length = str(len(_REFUSAL)).encode("ascii")
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": _REFUSAL})
        raise
