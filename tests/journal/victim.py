"""A process that forks others and kills them: each runs a bus with a journal until its death.

It reads one JSON object a line from standard input, and answers with the way in which the child ended. Forking is
cheap here, since nothing but the modules is loaded, and safe, since there is one thread.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from disk import disk

import aperion
import aperion.engine.keeping
import aperion.journal.codec
import aperion.journal.letters
import aperion.journal.writer

SUBSCRIPTIONS = ("first", "second", "third")


class Ledger:
    """What is known outside of the bus: which events were acknowledged, and which handlers began and ended."""

    def __init__(self, folder: str) -> None:
        self._fd = os.open(Path(folder) / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, *what: Any) -> None:
        os.write(self._fd, (" ".join(map(str, what)) + "\n").encode())


def bus_of(folder: str, level: Any, ledger: Ledger, poison: str | None) -> aperion.EventBus:
    bus = aperion.EventBus(journal=aperion.SQLiteJournal(Path(folder) / "state", level=level))
    for place, name in enumerate(SUBSCRIPTIONS):
        bus.subscribe(
            _handler(name, ledger, poison),
            "load.*",
            100 - place,
            name=name,
            retry=aperion.Retry(attempts=1000, wait_initial=0.002, wait_max=0.01),
        )
    return bus


def _handler(name: str, ledger: Ledger, poison: str | None) -> Any:
    failed: set[str] = set()

    async def handle(event: aperion.Event) -> None:
        ledger.note("start", event.event_id, name)
        if poison == f"{event.payload['n']}.{name}":
            os.kill(os.getpid(), signal.SIGKILL)
        if event.payload["wait"]:
            await asyncio.sleep(event.payload["wait"])
        if event.payload["fails"] == name and event.event_id not in failed:
            failed.add(event.event_id)
            raise RuntimeError("once")
        ledger.note("done", event.event_id, name)

    return handle


async def live(task: dict[str, Any]) -> None:
    """Emit until somebody kills the process; or handle what is left, and end."""
    ledger = Ledger(task["folder"])
    if "kill_at" in task:
        disk().disk_kill(task["kill_at"], task["half"])
    rng = random.Random(task["seed"])
    bus = bus_of(task["folder"], task["level"], ledger, task.get("poison"))
    async with bus:
        if task.get("ends"):
            while bus.stats().journal["taking_up"]:
                await asyncio.sleep(0.01)
            await bus.wait_settled()
            for letter in bus.dead_letters:
                ledger.note("letter", letter.event.event_id, letter.subscription, letter.reason.value)
            return
        await asyncio.gather(*[_emit(bus, ledger, rng, task, number) for number in range(8)])


async def _emit(bus: aperion.EventBus, ledger: Ledger, rng: random.Random, task: dict[str, Any], number: int) -> None:
    count = 0
    while count < task.get("count", 1 << 60):
        payload = {
            "n": count * 8 + number,
            "wait": rng.choice([0, 0, 0, 0.001]),
            "fails": rng.choice([None, None, None, *SUBSCRIPTIONS]),
        }
        key = f"k{number}" if number % 2 else None
        receipt = await bus.emit("load.one", payload, key=key)
        ledger.note("acked", receipt.event_id, key)
        count += 1
    await asyncio.sleep(3600)


def main() -> None:
    gc.freeze()
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                asyncio.run(live(task))
                code = 0
            finally:
                os._exit(code)
        if "kill_after" in task:
            time.sleep(task["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
