"""pyee: Node's EventEmitter on asyncio."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pyee.asyncio

from benchmarks.wiring import About, Driver, Peer, Waits, Wiring, refuse, refuse_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def connect(wiring: Wiring) -> AsyncIterator[Driver]:
    """Yield one emitter; strangers listen to other names."""
    refuse(wiring, "audit", "redact")
    refuse_ready(wiring)
    emitter = pyee.asyncio.AsyncIOEventEmitter()
    for handler in wiring.handlers:
        emitter.on("bench.load", handler)
    for number in range(wiring.strangers):
        emitter.on(f"stranger{number}.load", wiring.handlers[0])
    fields, drain = wiring.load.fields, emitter.wait_for_complete

    async def dispatch(count: int) -> None:
        for _ in range(count):
            emitter.emit("bench.load", {**fields})
            await drain()

    async def emit(count: int) -> None:
        for _ in range(count):
            emitter.emit("bench.load", {**fields})

    yield Driver(dispatch=dispatch, emit=emit, drain=drain)


PEER = Peer(
    about=About(
        name="pyee",
        module="pyee",
        distribution="pyee",
        does="no validation, unbounded, no patterns; errors go to the 'error' event; a task per async handler, all at "
        "once; waits for all that is pending; sync handlers inline",
        waits=Waits.ALL,
    ),
    connect=connect,
)
