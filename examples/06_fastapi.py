"""Serve a FastAPI application with a bus: the id of a request goes through to all that it causes.

Needs: pip install "aperion-bus[fastapi]" httpx

Prints:
    POST /orders/1: 201, the id is req-42
    POST /orders/2: 201, the id is a new one
    mail about order 1 for req-42
    mail about order 2 for the same new id
    stock for order 2 failed: ConnectionError
"""

import asyncio
from typing import Any

import httpx
from fastapi import FastAPI

import aperion
from aperion.integrations.fastapi import BusDep, CorrelationMiddleware, lifespan

bus = aperion.EventBus()
mails: list[tuple[int, str]] = []

app = FastAPI(lifespan=lifespan(bus))  # starts the bus with the application, and drains it at the end
app.add_middleware(CorrelationMiddleware)  # reads X-Correlation-ID, makes one where there is none, echoes it


@app.post("/orders/{number}", status_code=201)
async def place_order(number: int, bus: BusDep) -> None:
    """Emit and answer at once; the handlers run while the client goes on."""
    await bus.emit("order.placed", {"number": number})


@bus.on("order.placed", priority=200, name="stock")
async def reserve_stock(event: aperion.Event[Any]) -> None:
    """Fail for one order: that makes a dead letter, and neither an HTTP 500 nor a lost mail."""
    if event.payload["number"] == 2:
        raise ConnectionError("the warehouse does not answer")


@bus.on("order.placed", name="mail")
def send_mail(event: aperion.Event[Any]) -> None:
    """See the id of the request, in a worker thread and after the response too."""
    mails.append((event.payload["number"], aperion.get_correlation_id() or ""))


async def main() -> None:
    """Do what a server such as uvicorn does, with two requests: one brings an id, one does not."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        first = await client.post("/orders/1", headers={"X-Correlation-ID": "req-42"})
        second = await client.post("/orders/2")
    made = second.headers["X-Correlation-ID"]
    print(f"POST /orders/1: {first.status_code}, the id is {first.headers['X-Correlation-ID']}")
    print(f"POST /orders/2: {second.status_code}, the id is {'missing' if not made else 'a new one'}")
    for number, correlation_id in sorted(mails):
        print(f"mail about order {number} for {'the same new id' if correlation_id == made else correlation_id}")
    for letter in bus.dead_letters.list():
        print(f"stock for order {letter.event.payload['number']} failed: {letter.error_type}")


if __name__ == "__main__":
    asyncio.run(main())
