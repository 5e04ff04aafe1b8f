"""A service that is killed in the middle of its work, and goes on when it is started again.

Prints:
    first life: 3 orders accepted, and killed while the first is shipped
    second life: order 1 shipped
    second life: order 2 shipped
    second life: order 3 shipped
    third life: nothing is left to do
"""

import asyncio
import os
import signal
import subprocess
import sys

import aperion

LIFE = os.environ.get("LIFE")

bus = aperion.EventBus(journal=aperion.SQLiteJournal("state/"))


@bus.on("order.placed", name="ship")
async def ship(event: aperion.Event) -> None:
    """Ship an order; the first life does not get as far as that."""
    if LIFE == "first":
        print("first life: 3 orders accepted, and killed while the first is shipped", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"{LIFE} life: order {event.payload['number']} shipped", flush=True)


async def main() -> None:
    """Accept three orders in the first life, and none in those after it."""
    async with bus:
        if LIFE == "first":
            async with bus.outbox() as outbox:  # all three are in one commit
                for number in (1, 2, 3):
                    outbox.emit("order.placed", {"number": number}, key="orders")
        while bus.stats().journal["taking_up"]:
            await asyncio.sleep(0.01)
        await bus.wait_settled()
        if not bus.stats().journal["taken_up"]:
            print(f"{LIFE} life: nothing is left to do", flush=True)


if LIFE is not None:
    asyncio.run(main())
elif __name__ == "__main__":
    for life in ("first", "second", "third"):
        environment = {**os.environ, "LIFE": life}
        subprocess.run([sys.executable, __file__], env=environment, stderr=subprocess.DEVNULL, check=False)  # noqa: S603
