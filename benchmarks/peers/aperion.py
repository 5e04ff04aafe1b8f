"""The bus of this project."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aperion
from benchmarks.wiring import CLEAN, About, Driver, Durable, Form, Peer, Waits, Wiring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

POLL = 0.0005  # seconds between two looks at what the log's writer has left to do


class Small(aperion.Payload, type="bench.load"):
    """Three fields."""

    name: str
    count: int
    ratio: float


class Order(aperion.Payload, type="bench.order"):
    """300 bytes with nothing to hide."""

    order: str
    count: int
    ratio: float
    channel: str
    comment: str
    items: tuple[str, ...]
    courier: str


class Person(aperion.Payload, type="bench.person"):
    """300 bytes with much to hide, which nothing but the redactor knows."""

    name: str
    email: str
    phone: str
    password: str
    card: str
    address: str
    note: str
    count: int
    ok: bool


MODELS: dict[str, type[aperion.Payload]] = {"Small": Small, "Order": Order, "Person": Person}


def _open(wiring: Wiring, audit: aperion.AuditLog | None) -> aperion.EventBus:
    bus = aperion.EventBus(audit=audit, redactor=aperion.Redactor(enabled=wiring.redact))
    for number, handler in enumerate(wiring.handlers):
        bus.subscribe(handler, MODELS[wiring.load.model], name=f"handler-{number}")
    for number in range(wiring.strangers):
        bus.subscribe(wiring.handlers[0], f"stranger{number}.*")
    return bus


@asynccontextmanager
async def connect(wiring: Wiring) -> AsyncIterator[Driver]:
    """Yield a running bus with its defaults."""
    audit = aperion.AuditLog(wiring.audit, sync=wiring.level) if wiring.audit else None
    bus = _open(wiring, audit)
    model, fields = MODELS[wiring.load.model], wiring.load.fields
    ready, event_type = model(**fields), model.event_type
    event = aperion.Event(event_type, ready)

    async def dispatch(count: int) -> None:
        for _ in range(count):
            await bus.dispatch(model(**fields))

    async def dispatch_ready(count: int) -> None:
        for _ in range(count):
            await bus.dispatch(ready)

    async def dispatch_mapping(count: int) -> None:
        for _ in range(count):
            await bus.dispatch(event_type, fields)

    async def emit(count: int) -> None:
        for _ in range(count):
            await bus.emit(model(**fields))

    async def settle() -> None:
        while audit is not None and audit.stats().buffered_bytes:
            await asyncio.sleep(POLL)

    async def record(count: int) -> None:
        for _ in range(count):
            audit.accepted(event)  # type: ignore[union-attr]  # offered with a log only
        if wiring.level == "disk" and (synced := audit.when_synced()) is not None:  # type: ignore[union-attr]
            await synced

    ways = {Form.FRESH: dispatch, Form.READY: dispatch_ready, Form.MAPPING: dispatch_mapping}
    async with bus:
        yield Driver(
            dispatch=ways[wiring.form],
            emit=emit,
            drain=bus.wait_settled,
            settle=settle,
            record=record if audit is not None else None,
        )


@asynccontextmanager
async def durable(folder: Path, level: str) -> AsyncIterator[Durable]:
    """Yield what takes an event into a bus with a journal."""
    bus = aperion.EventBus(journal=aperion.SQLiteJournal(folder, level=level))  # type: ignore[arg-type]  # one of two

    async def handler(event: aperion.Event) -> None: ...

    bus.subscribe(handler, Order, name="handler")
    fields = CLEAN.fields

    async def take() -> Callable[[], Awaitable[object]]:
        return (await bus.emit(Order(**fields))).settled

    async with bus:
        yield take


PEER = Peer(
    about=About(
        name="aperion",
        module="aperion",
        distribution="aperion-bus",
        does="validates names and payloads (pydantic), bounded at 10,000 pending; isolates errors, timeouts; handlers "
        "of an event one by one, 64 events at once; waits for the event; sync handlers in a thread, the loop free",
        waits=Waits.ONE,
        guards=True,
    ),
    connect=connect,
    redact_text=aperion.Redactor().redact_text,
    redact=aperion.Redactor().redact,
    durable=durable,
)
