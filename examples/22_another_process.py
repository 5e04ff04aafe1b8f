"""Carry events to another process: publish them as lines, and emit them again where they arrive.

Prints:
    bill for order 7, the id is the same: True, the request too: True
"""

import asyncio
from typing import Any

import aperion

wire: asyncio.Queue[str] = asyncio.Queue()  # a broker in a service
shop, billing = aperion.EventBus(), aperion.EventBus()


@shop.on("order.*", name="publish", retry=aperion.Retry(attempts=5, on=ConnectionError))
async def publish(event: aperion.Event[Any]) -> None:
    """Return when the broker has confirmed the message; raise when it has not."""
    await wire.put(event.to_jsonl())


async def consume() -> aperion.Event[Any]:
    """Emit one message with the ids that it had; acknowledge it when this returns."""
    event = aperion.Event.from_jsonl(await wire.get())
    receipt = await billing.emit(
        event.event_type,
        event.payload,
        event_id=event.event_id,
        correlation_id=event.correlation_id,
        key=event.key,
        headers=event.headers,
    )
    await receipt.settled()
    return receipt.event


@billing.on("order.placed")
async def bill(event: aperion.Event[Any]) -> None:
    """Handle it as any other event."""
    print(f"bill for order {event.payload['number']}", end=", ")


async def main() -> None:
    """Emit on one bus, and look at what arrived on the other."""
    async with shop, billing:
        sent = (await shop.emit("order.placed", {"number": 7}, correlation_id="req-1")).event
        came = await consume()
    same = came.event_id == sent.event_id, came.correlation_id == sent.correlation_id
    print(f"the id is the same: {same[0]}, the request too: {same[1]}")


if __name__ == "__main__":
    asyncio.run(main())
