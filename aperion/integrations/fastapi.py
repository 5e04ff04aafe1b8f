"""FastAPI: the bus for endpoints, beside the lifespan and the middleware.

>>> from fastapi import FastAPI
>>> bus = EventBus()
>>> app = FastAPI(lifespan=lifespan(bus))
>>> app.add_middleware(CorrelationMiddleware)
>>> @app.post("/orders/{number}")
... async def order(number: int, bus: BusDep) -> None:
...     await bus.emit("order.placed", {"number": number})
"""

from __future__ import annotations

from typing import Annotated

from aperion.bus import BusStats, EventBus
from aperion.integrations.asgi import ASGIApp, CorrelationMiddleware, Receive, Scope, Send, bus_of, lifespan
from aperion.integrations.outbox import OutboxMiddleware, outbox_of
from aperion.integrations.sse import ServerSentEvents
from aperion.integrations.status import Health, StatusApp, health_of
from aperion.outbox import Outbox

try:
    from fastapi import APIRouter, Depends, Response
    from fastapi.requests import HTTPConnection  # noqa: TC002 - FastAPI reads the annotation
except ImportError as error:
    raise ImportError(
        'aperion.integrations.fastapi needs FastAPI, which cannot be imported; run: pip install "aperion-bus[fastapi]"'
    ) from error

__all__ = [
    "AppResponse",
    "BusDep",
    "CorrelationMiddleware",
    "OutboxDep",
    "OutboxMiddleware",
    "ServerSentEvents",
    "StatusApp",
    "get_bus",
    "get_outbox",
    "lifespan",
    "status_router",
]


# Async although it never waits: FastAPI runs sync dependencies in worker threads, of which there are
# few, so that every endpoint with a bus would queue behind sync endpoints that are slow.
async def get_bus(connection: HTTPConnection) -> EventBus:
    """Return the bus of the application that a request or a websocket came to; a FastAPI dependency.

    Raises:
        BusNotRunningError: when the application was made or started without ``lifespan``.
    """
    return bus_of(connection.scope)


BusDep = Annotated[EventBus, Depends(get_bus)]
"""The bus, as a parameter of an endpoint: ``async def endpoint(bus: BusDep)``."""


async def get_outbox(connection: HTTPConnection, bus: BusDep) -> Outbox:
    """Return the outbox of a request; a FastAPI dependency.

    A dependency that is no generator: what FastAPI runs after an endpoint comes before the response in
    some of its versions and after it in others, and in none does it know the status of a response that
    the endpoint returned. The middleware does.

    Raises:
        ConfigurationError: without ``OutboxMiddleware``, and for a websocket.
    """
    return await outbox_of(connection.scope, bus)


OutboxDep = Annotated[Outbox, Depends(get_outbox)]
"""The outbox of the request, as a parameter of an endpoint: ``outbox.emit(...)``; see ``OutboxMiddleware``."""


def status_router(bus: EventBus) -> APIRouter:
    """Return a router with what ``StatusApp`` answers, for those who want dependencies on it, or a schema.

    ``app.include_router(status_router(bus), prefix="/bus", dependencies=[Depends(login)])``.
    """
    router = APIRouter(tags=["bus"])

    @router.get("/health/live")
    async def live() -> Health:
        """Tell whether the event loop answers."""
        return health_of(bus)

    @router.get("/health/ready", responses={503: {"model": Health}})
    @router.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Tell whether an event would be accepted now; 503 if not."""
        found = health_of(bus)
        response.status_code = 200 if found.ready else 503
        return found

    @router.get("/stats")
    async def stats() -> BusStats:
        """Tell what the bus has counted."""
        return bus.stats()

    return router


class AppResponse(Response):
    """The answer of an endpoint that leaves it to an ASGI application, such as ``ServerSentEvents``.

    Dependencies of the endpoint run first, so that they can refuse: ``return AppResponse(orders_for_browsers)``.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the application answer, then run the background tasks of the endpoint."""
        await self._app(scope, receive, send)
        if self.background is not None:
            await self.background()
