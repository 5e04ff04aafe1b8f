"""Take times: calibrated, in turns with the bare loop, with a collector that starts clean."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.wiring import Batch

TURNS = 5

Settle = Callable[[], Awaitable[None]]


@contextmanager
def steady_collector() -> Iterator[None]:
    """Put what exists out of the collector's sight; it stays on for what comes."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def elapsed(batch: Batch, count: int, settle: Settle | None = None) -> int:
    """Return how many nanoseconds a batch of ``count`` takes, what it leaves to settle included."""
    started = perf_counter_ns()
    await batch(count)
    if settle is not None:
        await settle()
    return perf_counter_ns() - started


async def calibrated(batch: Batch, seconds: float) -> int:
    """Return the count that takes about ``seconds``; running up to it is the warm-up."""
    count, wanted = 1, seconds * 1e9
    while (spent := await elapsed(batch, count)) < wanted / 4:
        count *= 2
    return max(1, round(count * wanted / spent))


async def in_turns(
    batch: Batch, bare: Batch, seconds: float, *, per: int = 1, settle: Settle | None = None
) -> dict[str, float]:
    """Measure both in turns and return nanoseconds for one of ``per``, and the ratio.

    A batch that takes longer than ``seconds`` runs once only.
    """
    share = seconds / TURNS
    count, bare_count = await calibrated(batch, share), await calibrated(bare, share)
    if settle is not None:
        await settle()
    turns: list[tuple[float, float]] = []
    spent = 0
    with steady_collector():
        while len(turns) < TURNS and spent < seconds * 1e9 * 2:
            bare_ns = await elapsed(bare, bare_count) / bare_count / per
            spent += (took := await elapsed(batch, count, settle))
            turns.append((took / count / per, bare_ns))
    return {
        "ns": median(ns for ns, _ in turns),
        "bare_ns": median(bare_ns for _, bare_ns in turns),
        # Of each turn first, so that a slow moment of the machine hits both sides.
        "ratio": median(ns / bare_ns for ns, bare_ns in turns),
    }
