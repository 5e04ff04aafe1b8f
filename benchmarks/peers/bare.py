"""The bare loop that everything is compared with."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.loops import bare_loop
from benchmarks.wiring import About, Driver, Peer, Waits, Wiring, refuse, refuse_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def connect(wiring: Wiring) -> AsyncIterator[Driver]:
    """Yield the loop itself."""
    refuse(wiring, "audit", "redact", "strangers")
    refuse_ready(wiring)
    loop = bare_loop(wiring)

    async def drain() -> None:
        return

    yield Driver(dispatch=loop, emit=loop, drain=drain)


PEER = Peer(
    about=About(
        name="bare",
        module="",
        distribution="",
        does="a for loop over the handlers with a ready event: no names, no bounds, no isolation; waits",
        waits=Waits.ONE,
        pending_limit=0,
    ),
    connect=connect,
    imports=False,
)
