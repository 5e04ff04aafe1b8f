"""The scenarios about memory."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.loops import idle_handlers
from benchmarks.wiring import Driver, UnsupportedError, Wiring

if TYPE_CHECKING:
    from benchmarks.scale import Scale
    from benchmarks.wiring import Batch, Peer

STRIDE = 100


async def pending(peer: Peer, scale: Scale) -> dict[str, float]:
    """Hold every handler at a gate and see what the waiting events weigh."""
    events = _at_once(peer, scale)
    gate = asyncio.Event()
    gate.set()

    async def handler(event: object, payload: object = None) -> None:
        await gate.wait()

    async with peer.connect(Wiring(handlers=(handler,))) as driver:
        emit, drain = driver.require_emit()
        await emit(STRIDE)
        await drain()
        gate.clear()
        weight = await _traced(emit, events)
        gate.set()
        await drain()
    return {"bytes": weight / events, "events": events}


def _at_once(peer: Peer, scale: Scale) -> int:
    limit = peer.about.pending_limit
    if limit == 0:
        raise UnsupportedError("keeps nothing pending")
    return scale.pending if limit is None else min(scale.pending, limit)


async def _traced(emit: Batch, events: int) -> int:
    gc.collect()
    tracemalloc.start()
    before = traced()
    await emit(events)
    for _ in range(STRIDE):
        await asyncio.sleep(0)
    after = traced()
    tracemalloc.stop()
    return after - before


def traced() -> int:
    """Return the bytes of what is alive and was allocated since tracing began."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def resident() -> int:
    """Return the resident memory of this process, or 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    gc.collect()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def peak() -> int:
    """Return the most memory that was ever resident, or since ``reset_peak``; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def reset_peak() -> None:
    """Begin anew with what is resident now, where the system lets us."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


async def growth(peer: Peer, scale: Scale) -> dict[str, float]:
    """Run many events through and see what stays: once untraced, for resident memory, once traced."""
    async with peer.connect(Wiring(handlers=idle_handlers(1))) as driver:
        await _run(driver, scale.growth // 10, scale.patience)
        before = resident()
        resident_events = await _run(driver, scale.growth, scale.patience)
        resident_bytes = resident() - before

        tracemalloc.start()
        before = traced()
        events = await _run(driver, scale.growth, scale.patience)
        grown = traced() - before
        tracemalloc.stop()
    return {"bytes": grown, "events": events, "resident_bytes": resident_bytes, "resident_events": resident_events}


async def _run(driver: Driver, events: int, patience: float) -> int:
    """Send events, by both ways that the peer has, and return how many there was time for."""
    done, deadline = 0, perf_counter() + patience
    while done < events and perf_counter() < deadline:
        if driver.dispatch is not None:
            await driver.dispatch(STRIDE)
            done += STRIDE
        if driver.emit is not None and driver.drain is not None:
            await driver.emit(STRIDE)
            await driver.drain()
            done += STRIDE
    return done
