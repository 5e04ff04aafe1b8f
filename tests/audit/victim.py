"""A process that forks others and kills them: each runs a bus with an audit log until its death.

It reads one JSON object a line from standard input, and answers with the way in which the child ended.
Forking is cheap here, since nothing but the modules is loaded, and safe, since there is one thread.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import signal
import sys
import threading
import time
from typing import Any

import aperion
from aperion.audit import AuditLog, Checkpoints, Rotation

# What the audit log asks of the system and changes something there.
CALLS = (
    "open",
    "write",
    "pwrite",
    "fdatasync",
    "fsync",
    "ftruncate",
    "posix_fallocate",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "close",
)


def log_of(path: str, sync: str) -> AuditLog:
    """Return a log that rotates, compresses, removes nothing and writes checkpoints all the time."""
    rotation = Rotation(max_bytes=4_000, compress="gzip")
    return AuditLog(path, sync=sync, rotation=rotation, checkpoints=Checkpoints(every=20), buffer_bytes=1 << 16)


class Dying:
    """Counts calls of the system, and kills the process before, in the middle of or after the n-th."""

    def __init__(self, number: int, when: str) -> None:
        self.count = itertools.count(1)
        self.calls = 0
        self.number = number
        self.when = when
        for name in CALLS:
            setattr(os, name, self._in_place_of(getattr(os, name)))

    def _in_place_of(self, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls = number = next(self.count)
            if number != self.number:
                return real(*arguments, **named)
            if self.when == "after":
                real(*arguments, **named)
            elif self.when == "half" and real is REAL_WRITE:
                real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()  # the signal may reach another thread first

        return call


REAL_WRITE, REAL_READ = os.write, os.read


async def live(path: str, sync: str, told: int, events: int) -> None:
    """Emit, a few at a time, and tell of each event that was accepted before the next one is."""
    bus = aperion.EventBus(audit=log_of(path, sync))
    bus.subscribe(handle, "order.*")
    numbers = itertools.count()

    async def emit() -> None:
        while (number := next(numbers)) < events:
            try:
                receipt = await bus.emit("order.placed", {"text": "x" * (number * 37 % 700)})
            except aperion.AuditUnavailable:
                await asyncio.sleep(0.001)
            else:
                REAL_WRITE(told, receipt.event_id.encode() + b"\n")

    async with bus, asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(emit())


async def handle(event: Any) -> None:
    """Give others a turn, now and then."""
    if event.payload["text"]:
        await asyncio.sleep(0)


def child(order: dict[str, Any]) -> None:
    """Live until the death that was ordered."""
    told = os.open(order["told"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    dying = Dying(order["number"], order["when"]) if order["number"] is not None else None
    asyncio.run(live(order["path"], order["sync"], told, order["events"]))
    if dying is not None:
        REAL_WRITE(told, f"calls {dying.calls}\n".encode())


def main() -> None:
    """Fork a child for each line, and wait for its end."""
    gc.collect()
    gc.freeze()  # or each child looks through all modules once more, for half of its short life
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            sys.stdin.close()
            code = 1
            try:
                child(order)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        if order["seconds"] is not None:
            time.sleep(order["seconds"])
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    main()
