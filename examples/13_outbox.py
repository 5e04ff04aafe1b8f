"""Emit only if the request succeeded, and after the response, in FastAPI.

Needs: pip install "aperion-bus[fastapi]" httpx

Prints:
    POST /orders/1: 201
    POST /orders/2: 409
    order 1 placed, for req-1
    invoice for order 1 sent, for req-1
    events accepted: 2, dropped: 1
"""

import asyncio
from typing import Any

import httpx
from fastapi import BackgroundTasks, FastAPI, HTTPException

import aperion
from aperion.integrations.fastapi import BusDep, CorrelationMiddleware, OutboxDep, OutboxMiddleware, lifespan

bus = aperion.EventBus()
seen: list[str] = []

app = FastAPI(lifespan=lifespan(bus))
app.add_middleware(OutboxMiddleware)
app.add_middleware(CorrelationMiddleware)


@app.post("/orders/{number}", status_code=201)
async def place_order(number: int, outbox: OutboxDep, bus: BusDep, after: BackgroundTasks) -> None:
    """Say first what happened, and find out then that it did not."""
    outbox.emit("order.placed", {"number": number})
    if number > 1:
        raise HTTPException(409, "sold out")
    after.add_task(send_invoice, bus, number)


async def send_invoice(bus: aperion.EventBus, number: int) -> None:
    """Run after the response; the event has the id of the request all the same."""
    await bus.emit("invoice.sent", {"number": number})


@bus.on("order.placed")
async def placed(event: aperion.Event[Any]) -> None:
    """Hear of orders that were placed, and of no others."""
    seen.append(f"order {event.payload['number']} placed, for {event.correlation_id}")


@bus.on("invoice.sent")
async def sent(event: aperion.Event[Any]) -> None:
    """Hear of invoices."""
    seen.append(f"invoice for order {event.payload['number']} sent, for {event.correlation_id}")


async def main() -> None:
    """Do what a server such as uvicorn does, with two requests."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        for number in (1, 2):
            headers = {"X-Correlation-ID": f"req-{number}"}
            response = await client.post(f"/orders/{number}", headers=headers)
            print(f"POST /orders/{number}: {response.status_code}")
    print(*seen, sep="\n")
    print(f"events accepted: {bus.stats().accepted}, dropped: {bus.stats().dropped}")


if __name__ == "__main__":
    asyncio.run(main())
