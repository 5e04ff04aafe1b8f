"""What a hop into a worker thread costs by itself, for the sync handlers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.wiring import About, Driver, Peer, UnsupportedError, Waits, Wiring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def connect(wiring: Wiring) -> AsyncIterator[Driver]:
    """Yield a loop of ``asyncio.to_thread``."""
    if not wiring.sync:
        raise UnsupportedError("is for sync handlers")
    (handler,) = wiring.handlers

    async def dispatch(count: int) -> None:
        for _ in range(count):
            await asyncio.to_thread(handler, wiring.load.fields)

    yield Driver(dispatch=dispatch)


PEER = Peer(
    about=About(
        name="to_thread",
        module="",
        distribution="",
        does="asyncio.to_thread(handler, event) in a loop: the price of a thread hop alone",
        waits=Waits.ONE,
    ),
    connect=connect,
    imports=False,
)
