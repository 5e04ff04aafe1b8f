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

from aperion.bus import BusState, EventBus
from aperion.errors import BusNotRunningError
from aperion.integrations.asgi import BUS, CorrelationMiddleware, lifespan

try:
    from fastapi import Depends
    from fastapi.requests import HTTPConnection  # noqa: TC002 - FastAPI reads the annotation
except ImportError as error:
    raise ImportError(
        'aperion.integrations.fastapi needs FastAPI, which cannot be imported; run: pip install "aperion-bus[fastapi]"'
    ) from error

__all__ = ["BusDep", "CorrelationMiddleware", "get_bus", "lifespan"]


# Async although it never waits: FastAPI runs sync dependencies in worker threads, of which there are
# few, so that every endpoint with a bus would queue behind sync endpoints that are slow.
async def get_bus(connection: HTTPConnection) -> EventBus:
    """Return the bus of the application that a request or a websocket came to; a FastAPI dependency.

    Raises:
        BusNotRunningError: when the application was made or started without ``lifespan``.
    """
    for state in (connection.state, connection.app.state):
        bus = getattr(state, BUS, None)
        if isinstance(bus, EventBus) and bus.state is not BusState.STOPPED:
            return bus
    raise BusNotRunningError(
        "no bus runs in this application; make it with FastAPI(lifespan=lifespan(bus)), and in tests "
        "enter its lifespan too: 'with TestClient(app) as client:'"
    )


BusDep = Annotated[EventBus, Depends(get_bus)]
"""The bus, as a parameter of an endpoint: ``async def endpoint(bus: BusDep)``."""
