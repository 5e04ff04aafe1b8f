"""pymitter: EventEmitter2 with wildcards."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pymitter

from benchmarks.wiring import About, Driver, Peer, Waits, Wiring, refuse, refuse_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def _drain() -> None:
    # emit_future hands nothing back, so this waits for every other task of the process.
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


@asynccontextmanager
async def connect(wiring: Wiring) -> AsyncIterator[Driver]:
    """Yield one emitter with wildcards on."""
    refuse(wiring, "audit", "redact")
    refuse_ready(wiring)
    emitter = pymitter.EventEmitter(wildcard=True)
    for handler in wiring.handlers:
        emitter.on("bench.load", handler)
    for number in range(wiring.strangers):
        emitter.on(f"stranger{number}.*", wiring.handlers[0])
    fields = wiring.load.fields

    async def dispatch(count: int) -> None:
        for _ in range(count):
            await emitter.emit_async("bench.load", {**fields})

    async def emit(count: int) -> None:
        for _ in range(count):
            emitter.emit_future("bench.load", {**fields})

    yield Driver(dispatch=dispatch, emit=emit, drain=_drain)


PEER = Peer(
    about=About(
        name="pymitter",
        module="pymitter",
        distribution="pymitter",
        does="no validation, unbounded, patterns (on here); a handler's error reaches the emitter; a task per async "
        "handler, all at once; waits for the event, or not at all; sync handlers inline",
        waits=Waits.ONE,
    ),
    connect=connect,
)
