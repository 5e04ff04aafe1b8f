"""The scenarios about writing the audit log: what each level costs, and how long an emitter waits."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

from benchmarks.loops import idle_handlers
from benchmarks.timing import steady_collector
from benchmarks.wiring import CLEAN, Wiring

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from benchmarks.scale import Scale
    from benchmarks.wiring import Batch, Driver, Peer

    # Does something for so many seconds, and returns figures, records per second among them.
    Way = Callable[[float], Awaitable[dict[str, float]]]

TURNS = 3
EVERY = 0.002  # seconds between two events, so 500 a second


# What a level costs


def recording(level: str) -> Callable[[Peer, Scale], Coroutine[Any, Any, dict[str, float]]]:
    """Return the scenario that records events at a level, in turns with the same line written by hand."""

    async def measure(peer: Peer, scale: Scale) -> dict[str, float]:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            driver, line = await _connected(stack, peer, folder / "events.jsonl", level)
            ways = [_emitting(driver, 1, "one"), _emitting(driver, scale.emitters, "many")]
            if driver.record is not None:
                ways.append(_recording(driver, driver.record, scale.emitters))
            if level == "disk":
                fast, _ = await _connected(stack, peer, folder / "unsynced.jsonl", "process")
                ways.append(_emitting(fast, scale.emitters, "unsynced"))
            ways += _by_hand(folder / "by-hand.jsonl", line, level, scale.emitters)
            return await _in_turns(ways, scale.seconds)

    return measure


async def _connected(stack: AsyncExitStack, peer: Peer, log: Path, level: str) -> tuple[Driver, bytes]:
    """Set a peer up with a log, and return what it writes there for one event too."""
    driver = await stack.enter_async_context(peer.connect(Wiring(handlers=(), load=CLEAN, audit=log, level=level)))
    emit, drain = driver.require_emit()
    await emit(1)
    await _settled(driver, drain)
    lines = log.read_bytes().splitlines(keepends=True)
    if not lines:
        raise AssertionError(f"{peer.about.name} has not written the event to its log")
    return driver, lines[-1]


async def _settled(driver: Driver, drain: Callable[[], Awaitable[None]]) -> None:
    await drain()
    if driver.settle is not None:
        await driver.settle()


async def _in_turns(ways: list[Way], seconds: float) -> dict[str, float]:
    turns: list[dict[str, float]] = []
    with steady_collector():
        for _ in range(TURNS):
            turn: dict[str, float] = {}
            for way in ways:
                turn |= await way(seconds)
            turns.append(turn | _ratios(turn))
    return {name: median(turn[name] for turn in turns) for name in turns[0]}


def _ratios(turn: dict[str, float]) -> dict[str, float]:
    """Compare within a turn, so that a slow moment of the machine or its disk hits both sides."""
    if "grouped" not in turn:
        return {"ratio": turn["append"] / turn["one"]}
    many = turn["many"]
    return {"share": many / turn["grouped"], "reached": many / min(turn["grouped"], turn["unsynced"])}


def _emitting(driver: Driver, emitters: int, name: str) -> Way:
    """Emit until the time is over, and wait until the last record is in the file."""
    emit, drain = driver.require_emit()

    async def way(seconds: float) -> dict[str, float]:
        count, started = 0, perf_counter()

        async def emitter() -> None:
            nonlocal count
            while perf_counter() - started < seconds:
                await emit(1)
                count += 1
                if emitters > 1:  # whoever waits for nothing would not let the others in
                    await asyncio.sleep(0)

        with _counted_syncs() as syncs:
            await asyncio.gather(*(emitter() for _ in range(emitters)))
            await _settled(driver, drain)
        return {name: count / (perf_counter() - started), f"{name}_lines": count / max(len(syncs), 1)}

    return way


@contextmanager
def _counted_syncs() -> Iterator[list[int]]:
    """Note each fdatasync, of which a batch has one."""
    calls: list[int] = []
    fdatasync = os.fdatasync

    def counted(fd: int) -> None:
        calls.append(fd)
        fdatasync(fd)

    os.fdatasync = counted
    try:
        yield calls
    finally:
        os.fdatasync = fdatasync


def _recording(driver: Driver, record: Batch, lines: int) -> Way:
    """Record without the bus; where that waits for the disk, so many lines at once."""

    async def way(seconds: float) -> dict[str, float]:
        count, started = 0, perf_counter()
        while perf_counter() - started < seconds:
            await record(lines)
            count += lines
        if driver.settle is not None:
            await driver.settle()
        return {"alone": count / (perf_counter() - started)}

    return way


def _by_hand(path: Path, line: bytes, level: str, emitters: int) -> list[Way]:
    if level != "disk":
        return [_writing(path, line, "append", synced=False)]
    grouped = _writing(path, line * emitters, "grouped", lines=emitters, synced=True)
    return [_writing(path, line, "synced", synced=True), grouped]


def _writing(path: Path, content: bytes, name: str, *, lines: int = 1, synced: bool) -> Way:
    async def way(seconds: float) -> dict[str, float]:
        count, fd = 0, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        started = perf_counter()
        while (spent := perf_counter() - started) < seconds:
            os.write(fd, content)
            if synced:
                os.fdatasync(fd)
            count += lines
        os.close(fd)
        return {name: count / spent}

    return way


# How long an emitter waits


async def paced(peer: Peer, scale: Scale) -> dict[str, float]:
    """Time ``emit`` itself at 500 events a second, in turns with a log and redaction, and without."""
    handlers = idle_handlers(1)
    waits: dict[str, list[int]] = {"": [], "without_": []}
    with TemporaryDirectory() as folder:
        for turn in range(TURNS):
            log = Path(folder, f"{turn}.jsonl")
            with_log = Wiring(handlers=handlers, load=CLEAN, audit=log, redact=True)
            for name, wiring in (("", with_log), ("without_", Wiring(handlers=handlers, load=CLEAN))):
                waits[name] += await _waits(peer, wiring, scale.steady_seconds / TURNS)
    figures = {f"{name}{key}": value for name, each in waits.items() for key, value in _percentiles(each).items()}
    return {**figures, "ratio": figures["p99_ns"] / figures["without_p99_ns"]}


async def _waits(peer: Peer, wiring: Wiring, seconds: float) -> list[int]:
    waits = []
    async with peer.connect(wiring) as driver:
        emit, drain = driver.require_emit()
        clock = asyncio.get_running_loop()
        with steady_collector():
            due = clock.time()
            for _ in range(round(seconds / EVERY)):
                due += EVERY
                await asyncio.sleep(due - clock.time())
                started = perf_counter_ns()
                await emit(1)
                waits.append(perf_counter_ns() - started)
        await drain()
    return waits[len(waits) // 10 :]


def _percentiles(waits: list[int]) -> dict[str, float]:
    cuts = quantiles(waits, n=100, method="inclusive")
    return {"p50_ns": cuts[49], "p99_ns": cuts[98], "max_ns": float(max(waits))}
