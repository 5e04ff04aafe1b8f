"""Serve a Litestar application with a bus.

Needs: pip install "aperion-bus[litestar]" httpx

Prints:
    POST /orders/1: 201, the id is req-1
    POST /orders/2: 409, the id is req-2
    mail about order 1 for req-1
"""

import asyncio
from typing import Any

import httpx
from litestar import Litestar, post
from litestar.di import Provide
from litestar.exceptions import HTTPException

import aperion
from aperion.integrations.litestar import (
    BusDep,
    CorrelationMiddleware,
    OutboxDep,
    OutboxMiddleware,
    lifespan,
    provide_bus,
    provide_outbox,
)

bus = aperion.EventBus()
mails: list[str] = []


@post("/orders/{number:int}")
async def place_order(number: int, bus: BusDep, outbox: OutboxDep) -> None:
    """Emit at once with the bus, or with the response through the outbox."""
    outbox.emit("order.placed", {"number": number})
    await bus.emit("order.seen", {"number": number})
    if number > 1:
        raise HTTPException(status_code=409)


@bus.on("order.placed")
async def send_mail(event: aperion.Event[Any]) -> None:
    """See the id of the request."""
    mails.append(f"mail about order {event.payload['number']} for {event.correlation_id}")


app = Litestar(
    [place_order],
    lifespan=[lifespan(bus)],  # those of your own go behind it, into the same list
    middleware=[CorrelationMiddleware, OutboxMiddleware],
    dependencies={"bus": Provide(provide_bus), "outbox": Provide(provide_outbox)},
)


async def main() -> None:
    """Do what a server such as uvicorn does, with two requests."""
    transport = httpx.ASGITransport(app)
    answers = []
    async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        for number in (1, 2):
            headers = {"X-Correlation-ID": f"req-{number}"}
            response = await client.post(f"/orders/{number}", headers=headers)
            told = response.headers["X-Correlation-ID"]
            answers.append(f"POST /orders/{number}: {response.status_code}, the id is {told}")
    print(*answers, *mails, sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
