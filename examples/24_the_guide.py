"""What the guide shows beside the other examples: keys, limits, ways to wait, extensions, a drain.

Prints:
    acct-1: opened, credited, closed
    refused: 3 events are accepted and unsettled, the limit of this bus; emit more slowly, raise max_pending_events, or choose OverflowPolicy.BLOCK
    dispatch: book ok
    expected: account.reviewed by eve
    dropped by a processor: True
    region: eu
    drained: True, 0 unfinished
"""

import asyncio
from collections import defaultdict
from typing import Any

import anyio

import aperion

booked: defaultdict[str, list[str]] = defaultdict(list)


def add_region(event: aperion.Event[Any]) -> aperion.Event[Any] | None:
    """Add a header to each event, and drop those that only a test wants."""
    if event.source == "load-test":
        return None
    return event.replace(headers={**event.headers, "region": "eu"})


async def in_transaction(delivery: aperion.Delivery, call_next: aperion.CallNext) -> Any:
    """Run around every attempt of every handler."""
    async with anyio.Lock():  # a transaction in a service
        return await call_next(delivery)


bus = aperion.EventBus(
    max_pending_events=3,
    overflow_policy=aperion.OverflowPolicy.RAISE,
    processors=[add_region],
    middleware=[in_transaction],
)


@bus.on("account.*", name="book")
async def book(event: aperion.Event[Any]) -> None:
    """Take a moment for each event."""
    await anyio.sleep(0.01)
    booked[event.key or ""].append(event.event_type.removeprefix("account."))


async def main() -> None:
    """Use each of it once."""
    async with bus:
        for action in ("opened", "credited", "closed"):
            await bus.emit(f"account.{action}", {}, key="acct-1")
        try:
            await bus.emit("account.opened", {}, key="acct-2")
        except aperion.BackpressureError as error:
            refused = str(error)
        await bus.wait_settled()
        print(f"acct-1: {', '.join(booked['acct-1'])}")
        print(f"refused: {refused}")

        outcomes = await bus.dispatch("account.opened", {}, key="acct-3")
        outcomes.raise_for_failures()
        print(f"dispatch: book {outcomes['book'].state.value}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(review)
            event = await bus.expect("account.reviewed", timeout=5)
        print(f"expected: {event.event_type} by {event.payload['who']}")

        receipt = await bus.emit("account.opened", {}, source="load-test")
        print(f"dropped by a processor: {receipt.dropped}")
        print(f"region: {event.headers['region']}")

        report = await bus.drain(timeout=5)
        print(f"drained: {report.ok}, {len(report.unfinished)} unfinished")


async def review() -> None:
    """Emit what somebody waits for."""
    await anyio.sleep(0.01)
    await bus.emit("account.reviewed", {"who": "eve"})


if __name__ == "__main__":
    asyncio.run(main())
