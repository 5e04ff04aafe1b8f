"""blinker: signals and receivers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import blinker

from benchmarks.wiring import About, Driver, Peer, Waits, Wiring, refuse, refuse_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SENDER = "bench"


@asynccontextmanager
async def connect(wiring: Wiring) -> AsyncIterator[Driver]:
    """Yield one signal; strangers are receivers of other senders."""
    refuse(wiring, "audit", "redact")
    refuse_ready(wiring)
    signal = blinker.Signal()
    for handler in wiring.handlers:
        signal.connect(handler, weak=False)
    for number in range(wiring.strangers):
        signal.connect(wiring.handlers[0], sender=f"stranger{number}", weak=False)
    fields = wiring.load.fields

    async def dispatch(count: int) -> None:
        for _ in range(count):
            await signal.send_async(SENDER, payload={**fields})

    async def dispatch_sync(count: int) -> None:
        for _ in range(count):
            signal.send(SENDER, payload={**fields})

    yield Driver(dispatch=dispatch_sync if wiring.sync else dispatch)


PEER = Peer(
    about=About(
        name="blinker",
        module="blinker",
        distribution="blinker",
        does="no validation, no queue, no patterns; a handler's error stops the rest and reaches the sender; waits, "
        "handlers one by one in no set order; sync handlers inline",
        waits=Waits.ONE,
    ),
    connect=connect,
)
