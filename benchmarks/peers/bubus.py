"""bubus: a bus with pydantic events and results."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import bubus

from benchmarks.wiring import About, Driver, Peer, Waits, Wiring, refuse, refuse_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# It refuses events at 100 pending, and counts the queued ones twice.
LIMIT = 40


class Small(bubus.BaseEvent[None]):  # type: ignore[misc]  # the package is untyped
    """Three fields."""

    name: str
    count: int
    ratio: float


class Order(bubus.BaseEvent[None]):  # type: ignore[misc]  # the package is untyped
    """300 bytes."""

    order: str
    count: int
    ratio: float
    channel: str
    comment: str
    items: list[str]
    courier: str


MODELS: dict[str, type[bubus.BaseEvent[Any]]] = {"Small": Small, "Order": Order}


def _open(wiring: Wiring) -> bubus.EventBus:
    refuse(wiring, "redact", "level")
    refuse_ready(wiring)
    bus = bubus.EventBus(wal_path=wiring.audit)
    for handler in wiring.handlers:
        bus.on(MODELS[wiring.load.model], handler)
    for number in range(wiring.strangers):
        bus.on(f"Stranger{number}", wiring.handlers[0])
    return bus


@asynccontextmanager
async def connect(wiring: Wiring) -> AsyncIterator[Driver]:
    """Yield a bus with its defaults."""
    bus = _open(wiring)
    model, fields, slots, emitted = MODELS[wiring.load.model], wiring.load.fields, asyncio.Semaphore(LIMIT), 0

    async def dispatch(count: int) -> None:
        for _ in range(count):
            async with slots:
                await bus.dispatch(model(**fields))

    async def drain() -> None:
        nonlocal emitted
        await bus.wait_until_idle()
        emitted = 0

    async def emit(count: int) -> None:
        nonlocal emitted
        for _ in range(count):
            if emitted == LIMIT:
                await drain()
            bus.dispatch(model(**fields))
            emitted += 1

    yield Driver(dispatch=dispatch, emit=emit, drain=drain)
    await bus.stop(clear=True)


PEER = Peer(
    about=About(
        name="bubus",
        module="bubus",
        distribution="bubus",
        does="validates with pydantic, keeps a history of 50; refuses at 100 pending (so drained at every 40th here), "
        "isolates errors, timeouts; one event at a time; waits for the event; sync handlers inline",
        waits=Waits.ONE,
        guards=True,
        pending_limit=LIMIT,
    ),
    connect=connect,
)
