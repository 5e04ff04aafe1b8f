"""What every ASGI application can use: correlation ids for requests, and a bus that lives with it.

Nothing has to be installed for this module.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from aperion.app import App
from aperion.bus import BusState, EventBus
from aperion.context import (
    CORRELATION_ID_HEADER,
    REQUEST_ID_HEADER,
    CorrelationContext,
    generate_correlation_id,
    get_correlation_id,
    is_valid_correlation_id,
)
from aperion.errors import ApplicationError, BusNotRunningError, ConfigurationError, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["CorrelationMiddleware", "bus_of", "lifespan"]

# The words of the ASGI specification.
Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class HasState(Protocol):
    """What ``lifespan`` needs of an application; FastAPI, Starlette and Litestar have it."""

    @property
    def state(self) -> Any:
        """Where an application keeps what it shares."""


State: TypeAlias = Mapping[str, Any]
Inner: TypeAlias = Callable[[Any], AbstractAsyncContextManager[State | None]]
Lifespan: TypeAlias = Callable[[HasState], AbstractAsyncContextManager[State]]

BUS = "aperion"
"""The name of the bus in ``app.state`` and in the state of a request."""

_ID = "correlation_id"
# W3C Trace Context, level 1: version 00 has four parts, later ones may have more.
_TRACEPARENT = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-.*)?"
)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # what RFC 9110 takes for the name of a header
_WITH_HEADERS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class CorrelationMiddleware:
    """Give each request and each websocket a correlation id, and name it in the response.

    The id is that of ``header``, else that of ``fallback``, else the trace id of a W3C ``traceparent``,
    else a new one. What is no valid id (see ``is_valid_correlation_id``), or no valid ``traceparent``, is
    passed over; the request does not fail. All that the request
    causes sees the id: endpoints, those in threads too, background tasks, streamed responses, events.
    It stands in ``scope["state"]`` as well, which is ``request.state.correlation_id``.

    The response names the id in ``header``, in place of one that the application set itself. Around a
    whole application, ``CorrelationMiddleware(app)``, that includes the response to an unexpected
    error, which FastAPI and Starlette send from outside of what ``app.add_middleware`` adds.
    An instance inside another one keeps the id of the outer one.

    Args:
        app: the application.
        header: where an id is read and written.
        fallback: where an id is read when ``header`` has none; None for nowhere.

    Raises:
        ConfigurationError: for a name that no header can have.
    """

    __slots__ = ("_answered", "_read", "app")

    def __init__(
        self, app: ASGIApp, *, header: str = CORRELATION_ID_HEADER, fallback: str | None = REQUEST_ID_HEADER
    ) -> None:
        self.app = app
        self._answered = _header("header", header)
        self._read = [self._answered]
        if fallback is not None:
            self._read.append(_header("fallback", fallback))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one websocket; the lifespan passes through."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        with CorrelationContext(self._outer(scope) or self._incoming(scope["headers"])) as correlation_id:
            # In place, so that what the application puts there is seen by what is around it.
            scope.setdefault("state", {})[_ID] = correlation_id
            await self.app(scope, receive, _naming(send, self._answered, correlation_id.encode("ascii")))

    def _outer(self, scope: Scope) -> str | None:
        """Return the id that a middleware like this around it gave; it is in the state and in the context."""
        correlation_id = get_correlation_id()
        return correlation_id if scope.get("state", {}).get(_ID) == correlation_id else None

    def _incoming(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the first valid id among the headers, or that of the trace, or a new one."""
        given = [(name.lower(), value) for name, value in headers]
        for wanted in self._read:
            for value in (value.decode("latin-1").strip() for name, value in given if name == wanted):
                if is_valid_correlation_id(value):
                    return value
        return _trace_id(given) or generate_correlation_id()


def lifespan(bus: EventBus | App, inner: Inner | None = None) -> Lifespan:
    """Return a lifespan function that runs a bus as long as a FastAPI, Starlette or Litestar application lives.

    ``FastAPI(lifespan=lifespan(bus))``, ``Litestar(lifespan=[lifespan(bus)])``. The bus is started before ``inner`` and drained after it, so
    that ``inner`` can emit from its first line to its last. What handlers need until the last event
    has settled, such as a pool of connections, belongs around it instead, in a lifespan of your own::

        async with pool, lifespan(bus)(app):
            yield

    Meanwhile the bus is ``app.state.aperion``, and ``request.state.aperion`` where the server keeps
    the state that a lifespan yields; mounted applications find it there. That state holds what
    ``inner`` yields, too. The same bus can be started again when the application is.

    Args:
        bus: what to run: a bus, or an application with its services.
        inner: a lifespan of your own: an async context manager function of the application.

    Raises:
        ConfigurationError: for something else. (The lifespan function itself raises
            ``ApplicationError`` where the application has a bus already.)
    """
    event_bus = bus.bus if isinstance(bus, App) else bus
    if not isinstance(event_bus, EventBus):
        raise ConfigurationError(
            f"lifespan() takes an EventBus or an aperion.App, not {shown(bus)}; write FastAPI(lifespan=lifespan(bus))"
        )
    within = _nothing if inner is None else _checked(inner)

    @asynccontextmanager
    async def running(app: HasState) -> AsyncIterator[State]:
        with _kept(app, event_bus):
            async with bus, within(app) as state:
                yield {**(state or {}), BUS: event_bus}

    return running


def bus_of(scope: Mapping[str, Any]) -> EventBus:
    """Return the bus of the application that a request or a websocket came to, by its ASGI scope.

    In a mounted application it is that one's own, where it has one, and else that of the application which the
    server runs.

    Raises:
        BusNotRunningError: when the application was made or started without ``lifespan``.
    """
    application = getattr(scope.get("app"), "state", None)
    for bus in (getattr(application, BUS, None), scope.get("state", {}).get(BUS)):  # the nearest first
        if isinstance(bus, EventBus) and bus.state is not BusState.STOPPED:
            return bus
    raise BusNotRunningError(
        "no bus runs in this application; make it with FastAPI(lifespan=lifespan(bus)), and in tests "
        "enter its lifespan too: 'with TestClient(app) as client:'"
    )


@contextmanager
def _kept(app: HasState, bus: EventBus) -> Iterator[None]:
    if getattr(app.state, BUS, None) is not None:
        raise ApplicationError(
            f"this application has a bus in app.state.{BUS} already; start a second one with "
            "'async with' in a lifespan of your own"
        )
    setattr(app.state, BUS, bus)
    try:
        yield
    finally:
        delattr(app.state, BUS)


def _nothing(_app: HasState) -> AbstractAsyncContextManager[None]:
    return nullcontext()


def _checked(inner: Inner) -> Inner:
    advice = "pass a function of the application, decorated with @asynccontextmanager"
    if inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner):
        raise ConfigurationError(f"inner={shown(inner)} is a bare generator function; {advice}")
    if not callable(inner):
        raise ConfigurationError(f"inner={shown(inner)} cannot be called; {advice}")
    return inner


def _header(option: str, name: str) -> bytes:
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise ConfigurationError(
            f"{option}={shown(name)} is no name of a header; use one like {CORRELATION_ID_HEADER!r}"
        )
    return name.lower().encode("ascii")


def _trace_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the trace id of a valid ``traceparent``; sampled or not, it names the trace."""
    given = [value.strip() for name, value in headers if name == b"traceparent"]
    found = _TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
    if found is None or (found["version"] == b"00" and found["more"]):
        return None
    return found["trace"].decode("ascii")


def _naming(send: Send, header: bytes, value: bytes) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] in _WITH_HEADERS:
            others = [(name, each) for name, each in message.get("headers") or () if name.lower() != header]
            message = {**message, "headers": [*others, (header, value)]}
        await send(message)

    return send_with_id
