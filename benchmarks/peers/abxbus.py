"""abxbus: the successor of bubus."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import abxbus
from abxbus.middlewares import WALEventBusMiddleware

from benchmarks.wiring import About, Driver, Peer, Waits, Wiring, refuse, refuse_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Small(abxbus.BaseEvent[None]):  # type: ignore[misc]  # the package is untyped
    """Three fields."""

    name: str
    count: int
    ratio: float


class Order(abxbus.BaseEvent[None]):  # type: ignore[misc]  # the package is untyped
    """300 bytes."""

    order: str
    count: int
    ratio: float
    channel: str
    comment: str
    items: list[str]
    courier: str


MODELS: dict[str, type[abxbus.BaseEvent[Any]]] = {"Small": Small, "Order": Order}


def _open(wiring: Wiring) -> abxbus.EventBus:
    refuse(wiring, "redact", "level")
    refuse_ready(wiring)
    log = [WALEventBusMiddleware(wiring.audit)] if wiring.audit else None
    # Without max_history_drop it refuses the 101st event, even when the first hundred have long been handled.
    bus = abxbus.EventBus(max_history_drop=True, warn_on_duplicate_handler_names=False, middlewares=log)
    for handler in wiring.handlers:
        bus.on(MODELS[wiring.load.model], handler)
    for number in range(wiring.strangers):
        bus.on(f"Stranger{number}", wiring.handlers[0])
    return bus


@asynccontextmanager
async def connect(wiring: Wiring) -> AsyncIterator[Driver]:
    """Yield a bus that drops its history instead of refusing events."""
    bus = _open(wiring)
    model, fields, drain = MODELS[wiring.load.model], wiring.load.fields, bus.wait_until_idle

    async def dispatch(count: int) -> None:
        for _ in range(count):
            await bus.emit(model(**fields)).now()

    async def emit(count: int) -> None:
        for _ in range(count):
            bus.emit(model(**fields))

    yield Driver(dispatch=dispatch, emit=emit, drain=drain)
    await bus.destroy()


PEER = Peer(
    about=About(
        name="abxbus",
        module="abxbus",
        distribution="abxbus",
        does="validates with pydantic, keeps a history of 100, unbounded with max_history_drop=True (on here; off, it "
        "refuses the 101st event); isolates errors, timeouts; one event at a time; waits; sync handlers inline",
        waits=Waits.ONE,
        guards=True,
    ),
    connect=connect,
)
