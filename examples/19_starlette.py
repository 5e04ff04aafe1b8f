"""Serve a Starlette application with a bus, with a lifespan of your own inside that of the bus.

Needs: pip install aperion-bus starlette httpx

Prints:
    the bus runs: True
    POST /orders/1: 201, the id is req-1
    mail about order 1 for req-1
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

import aperion
from aperion.integrations.asgi import CorrelationMiddleware, bus_of, lifespan
from aperion.integrations.status import StatusApp

bus = aperion.EventBus()
mails: list[str] = []


async def place_order(request: Request) -> Response:
    """Emit and answer at once; ``bus_of`` finds the bus of the application, in one that is mounted too."""
    await bus_of(request.scope).emit("order.placed", {"number": request.path_params["number"]})
    return Response(status_code=201)


@asynccontextmanager
async def yours(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Run inside the lifespan of the bus; what it yields is in ``request.state`` beside the bus."""
    print(f"the bus runs: {app.state.aperion.state is aperion.BusState.RUNNING}")
    yield {"shop": "ours"}


@bus.on("order.placed")
async def send_mail(event: aperion.Event[Any]) -> None:
    """See the id of the request."""
    mails.append(f"mail about order {event.payload['number']} for {event.correlation_id}")


app = Starlette(
    routes=[Route("/orders/{number:int}", place_order, methods=["POST"]), Mount("/bus", StatusApp(bus))],
    middleware=[Middleware(CorrelationMiddleware)],
    lifespan=lifespan(bus, inner=yours),
)


async def main() -> None:
    """Do what a server such as uvicorn does, with one request."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        response = await client.post("/orders/1", headers={"X-Correlation-ID": "req-1"})
    print(f"POST /orders/1: {response.status_code}, the id is {response.headers['X-Correlation-ID']}")
    print(*mails, sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
