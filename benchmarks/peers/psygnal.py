"""psygnal: signals and slots, compiled."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psygnal

from benchmarks.wiring import About, Driver, Peer, Waits, Wiring, refuse, refuse_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Emitter:
    """The object that signals belong to."""

    load = psygnal.Signal(object)
    drained = psygnal.Signal()


@asynccontextmanager
async def connect(wiring: Wiring) -> AsyncIterator[Driver]:
    """Yield one emitter on psygnal's asyncio back end."""
    refuse(wiring, "audit", "redact", "strangers")
    refuse_ready(wiring)
    backend = psygnal.set_async_backend("asyncio")
    await backend.running.wait()
    emitter = Emitter()
    for handler in wiring.handlers:
        emitter.load.connect(handler)
    fields, load, mark = wiring.load.fields, emitter.load, asyncio.Event()

    async def drained() -> None:
        mark.set()

    emitter.drained.connect(drained)

    async def emit(count: int) -> None:
        for _ in range(count):
            load.emit({**fields})

    async def drain() -> None:
        # The queue is first in, first out, so this slot runs after all the others.
        mark.clear()
        emitter.drained.emit()
        await mark.wait()

    yield Driver(dispatch=emit if wiring.sync else None, emit=emit, drain=drain)
    backend.close()
    await asyncio.sleep(0)


PEER = Peer(
    about=About(
        name="psygnal",
        module="psygnal",
        distribution="psygnal",
        does="types unchecked (off by default), unbounded, a signal object instead of names; async errors are printed; "
        "one queue, one event at a time; cannot wait (a last signal marks the end here); sync handlers inline",
        waits=Waits.NONE,
    ),
    connect=connect,
)
