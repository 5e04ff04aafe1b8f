"""Use plain functions as handlers: they run in threads, and nobody waits for them longer than allowed.

Prints:
    resize: ok
    call_slow_service: timed_out
    convert: timed_out
    the event loop was free all the time: True
"""

import threading
import time
from typing import Any

import anyio

import aperion

bus = aperion.EventBus(handler_timeout=5)  # seconds, for handlers without a timeout of their own
loop_thread = threading.current_thread()


@bus.on("image.uploaded", name="resize")
def resize(event: aperion.Event[Any]) -> None:
    """Block a thread, not the event loop."""
    assert threading.current_thread() is not loop_thread
    time.sleep(0.01)


@bus.on("image.uploaded", name="call_slow_service", timeout=0.1)
async def call_slow_service(event: aperion.Event[Any]) -> None:
    """Be cancelled after 0.1 s."""
    await anyio.sleep(60)


@bus.on("image.uploaded", name="convert", timeout=0.1)
def convert(event: aperion.Event[Any]) -> None:
    """Ask now and then whether anybody still waits, since a thread cannot be cancelled."""
    while True:
        time.sleep(0.01)
        aperion.check_cancelled()


async def main() -> None:
    """Emit one event, and sleep a little while its handlers are at work."""
    receipt = await bus.emit("image.uploaded", {"name": "cat.png"})
    start = time.perf_counter()
    await anyio.sleep(0.05)
    free = time.perf_counter() - start < 0.15
    for name, outcome in (await receipt.settled()).items():
        print(f"{name}: {outcome.state.value}")
    print(f"the event loop was free all the time: {free}")


if __name__ == "__main__":
    aperion.run(bus, main)
