"""aperion-event-bus 1.2.1, which this bus succeeds."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aperion_event_bus

from benchmarks.wiring import About, Driver, Peer, Waits, Wiring, refuse, refuse_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def _open(wiring: Wiring) -> aperion_event_bus.EventBus:
    refuse(wiring, "level")
    refuse_ready(wiring)
    redactor = aperion_event_bus.Redactor() if wiring.redact else None
    bus = aperion_event_bus.EventBus(
        event_log_path=wiring.audit, enable_audit=wiring.audit is not None, redactor=redactor
    )
    for handler in wiring.handlers:
        bus.subscribe(handler, "bench.load")
    for number in range(wiring.strangers):
        bus.subscribe(wiring.handlers[0], f"stranger{number}.*")
    return bus


@asynccontextmanager
async def connect(wiring: Wiring) -> AsyncIterator[Driver]:
    """Yield a bus with its defaults."""
    bus = _open(wiring)
    fields, emit_event, wait_for_pending = wiring.load.fields, bus.emit, bus.wait_for_pending
    event = aperion_event_bus.Event(event_type="bench.load", payload={**fields})
    log = aperion_event_bus.AuditLogger(wiring.audit, redactor=aperion_event_bus.Redactor(enabled=wiring.redact))

    async def dispatch(count: int) -> None:
        for _ in range(count):
            emit_event("bench.load", {**fields})
            await wait_for_pending()

    async def dispatch_sync(count: int) -> None:
        for _ in range(count):
            emit_event("bench.load", {**fields}, wait_for_handlers=True)

    async def emit(count: int) -> None:
        for _ in range(count):
            emit_event("bench.load", {**fields})

    async def drain() -> None:
        await wait_for_pending()

    async def record(count: int) -> None:
        for _ in range(count):
            log.log_event(event)

    yield Driver(
        dispatch=dispatch_sync if wiring.sync else dispatch,
        emit=emit,
        drain=drain,
        record=record if wiring.audit is not None else None,
    )
    bus.shutdown()


PEER = Peer(
    about=About(
        name="predecessor",
        module="aperion_event_bus",
        distribution="aperion-event-bus",
        does="payload must be a dict, names unchecked, unbounded (both off by default); isolates errors; a task per "
        "async handler, without timeout; waits for all that is pending; sync handlers in a thread, the loop blocked",
        waits=Waits.ALL,
        guards=True,
    ),
    connect=connect,
    redact_text=aperion_event_bus.Redactor().redact_string,
    redact=aperion_event_bus.Redactor().redact,
)
