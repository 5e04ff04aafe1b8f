"""What a test says that fails: what was emitted instead, what is still in flight, what is left behind.

Prints the texts of three errors, or of those that are named: ``emitted``, ``in-flight``, ``left-behind``.
"""

import asyncio
import sys
from typing import Any

import anyio

import aperion
from aperion.testing import no_leaks, recording

bus = aperion.EventBus()


@bus.on("order.placed", name="reserve")
async def reserve(event: aperion.Event[Any]) -> None:
    """Wait for a warehouse that does not answer."""
    await anyio.sleep(60)


async def poll() -> None:
    """Ask again and again."""
    await anyio.sleep(60)


async def what_was_emitted() -> None:
    """Expect a mail that nobody sent."""
    with recording(bus) as recorded:
        await bus.emit("cart.filled", {"items": 3, "email": "ada@example.com"})
        recorded.assert_emitted("mail.sent")


async def what_is_in_flight() -> None:
    """Wait for a handler that does not end."""
    with recording(bus) as recorded:
        await bus.emit("order.placed", {"order_id": "o-1"})
        await recorded.settle(timeout=0.1)


async def what_is_left_behind() -> None:
    """Start a task, and forget it."""
    async with no_leaks():
        tasks.append(asyncio.create_task(poll(), name="poller"))


tasks: list[asyncio.Task[None]] = []
FAILING = {"emitted": what_was_emitted, "in-flight": what_is_in_flight, "left-behind": what_is_left_behind}


async def main() -> None:
    """Print what each of them says."""
    async with bus:
        for name in sys.argv[1:] or FAILING:
            try:
                await FAILING[name]()
            except (AssertionError, TimeoutError) as error:
                print(f"{type(error).__name__}: {error}")
        for task in tasks:
            task.cancel()
        await bus.drain(timeout=0.1)


if __name__ == "__main__":
    asyncio.run(main())
