"""The audit log: what each level costs beside the same bytes written by hand, and how fast one event is found."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

import aperion
from aperion.audit import AuditLog, verify
from aperion.audit.chain import START, seal
from aperion.audit.index import build
from aperion.audit.record import line, segment
from aperion.audit.segments import sealed_path
from benchmarks.timing import steady_collector
from benchmarks.wiring import CLEAN, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.scale import Scale
    from benchmarks.wiring import Peer

TURNS = 3
EVERY = 0.002  # seconds between two events, so 500 a second
POLL = 0.0005
SEGMENTS = 20
SOUGHT = 7
MEGABYTE = 1e6


def _ours(peer: Peer) -> None:
    if peer.about.name != "aperion":
        raise UnsupportedError("has no such log")


# What a level costs


async def levels(peer: Peer, scale: Scale) -> dict[str, float]:
    """Record accepted events at each level, in turns with writes of the same lines by hand."""
    _ours(peer)
    seconds = scale.seconds / TURNS
    found: dict[str, list[float]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        sample = await _sample(folder)
        for turn in range(TURNS):
            for sync, emitters in (("none", 1), ("process", 1), ("disk", 1), ("disk", scale.emitters)):
                log = AuditLog(folder / f"{sync}-{emitters}-{turn}.jsonl", sync=sync)
                rate = await _recorded(log, seconds, emitters)
                found.setdefault(sync if emitters == 1 else f"{sync}_many", []).append(rate)
            by_hand = folder / f"by-hand-{turn}.jsonl"
            found.setdefault("append", []).append(_written(by_hand, sample, seconds, lines=1, synced=False))
            found.setdefault("append_synced", []).append(_written(by_hand, sample, seconds, lines=1, synced=True))
            grouped = _written(by_hand, sample, seconds, lines=scale.emitters, synced=True)
            found.setdefault("grouped", []).append(grouped)
    rates = {what: median(each) for what, each in found.items()}
    share = median(ours / raw for ours, raw in zip(found["disk_many"], found["grouped"], strict=True))
    return {**rates, "share": share}


async def _sample(folder: Path) -> bytes:
    path = folder / "sample.jsonl"
    async with aperion.EventBus(audit=AuditLog(path)) as bus:
        await bus.emit("bench.order", CLEAN.fields)
    return next(found for found in path.read_bytes().splitlines(keepends=True) if b'"kind":"accepted"' in found)


async def _recorded(log: AuditLog, seconds: float, emitters: int) -> float:
    """Emit for some time, and return events per second until the last is in the file."""
    counts = [0] * emitters
    redactor = aperion.Redactor(enabled=False)
    async with aperion.EventBus(audit=log, redactor=redactor) as bus:
        started = perf_counter()

        async def emit(number: int) -> None:
            while perf_counter() - started < seconds:
                await bus.emit("bench.order", CLEAN.fields)
                counts[number] += 1

        with steady_collector():
            async with asyncio.TaskGroup() as group:
                for number in range(emitters):
                    group.create_task(emit(number))
            while log.stats().buffered_bytes:
                await asyncio.sleep(POLL)
            spent = perf_counter() - started
    return sum(counts) / spent


def _written(path: Path, sample: bytes, seconds: float, *, lines: int, synced: bool) -> float:
    content, count = sample * lines, 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        started = perf_counter()
        while (spent := perf_counter() - started) < seconds:
            os.write(fd, content)
            if synced:
                os.fdatasync(fd)
            count += lines
    finally:
        os.close(fd)
    return count / spent


# How long an emitter waits


async def paced(peer: Peer, scale: Scale) -> dict[str, float]:
    """Time ``emit`` itself at 500 events a second, with the log and without."""
    _ours(peer)
    with TemporaryDirectory() as name:
        log = AuditLog(Path(name) / "events.jsonl")
        without = await _waits(None, scale.steady_seconds / 2)
        with_log = await _waits(log, scale.steady_seconds / 2)
    return {
        "p99_ns": with_log[98],
        "p50_ns": with_log[49],
        "without_p99_ns": without[98],
        "without_p50_ns": without[49],
        "ratio": with_log[98] / without[98],
    }


async def _waits(log: AuditLog | None, seconds: float) -> list[float]:
    async def handler(event: object) -> None:
        pass

    waits = []
    bus = aperion.EventBus(audit=log)
    bus.subscribe(handler, "bench.*")
    async with bus:
        clock = asyncio.get_running_loop()
        due = clock.time()
        with steady_collector():
            for _ in range(round(seconds / EVERY)):
                due += EVERY
                await asyncio.sleep(due - clock.time())
                started = perf_counter_ns()
                await bus.emit("bench.order", CLEAN.fields)
                waits.append(perf_counter_ns() - started)
    return quantiles(waits[len(waits) // 10 :], n=100, method="inclusive")


# How fast one event is found


async def search(peer: Peer, scale: Scale) -> dict[str, float]:
    """Find single events by id in many records, in turns with grep over the same files."""
    _ours(peer)
    with TemporaryDirectory() as name:
        log = Path(name) / "events.jsonl"
        # In another process, so that the memory of this one is that of searching.
        subprocess.run([sys.executable, "-m", "benchmarks.audit", str(log), str(scale.growth)], check=True)
        files = sorted(map(str, log.parent.glob("*.jsonl")))
        length = sum(Path(file).stat().st_size for file in files)
        before = _resident()
        ours, grep = [], []
        for number in range(SOUGHT):
            event_id = f"event-{number * SEGMENTS * _events(scale.growth) // SOUGHT:08d}"
            ours.append(_timed(lambda wanted=event_id: _found(log, wanted)))  # type: ignore[misc]  # bound early
            command = ["grep", "-F", "-h", event_id, *files]
            grep.append(_timed(lambda command=command: subprocess.run(command, check=True, capture_output=True)))  # type: ignore[misc]
        memory = _resident() - before
        verified = _timed(lambda: verify(log))
    return {
        "ns": median(ours),
        "grep_ns": median(grep),
        "ratio": median(mine / theirs for mine, theirs in zip(ours, grep, strict=True)),
        "bytes": memory,
        "records": float(scale.growth),
        "verified": length / verified * 1e9,
    }


def _found(log: Path, event_id: str) -> None:
    if len(list(AuditLog(log).read(event_id=event_id))) != 2:
        raise RuntimeError(event_id)


def _timed(work: Callable[[], Any]) -> float:
    started = perf_counter_ns()
    work()
    return perf_counter_ns() - started


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _events(records: int) -> int:
    """Return how many events stand in each file, with two records each."""
    return max(records // SEGMENTS // 2, 1)


def _make(log: Path, records: int) -> None:
    """Write a log of two records an event, in twenty files with their indexes."""
    link, number = START, 0
    for file in range(1, SEGMENTS + 1):
        bodies = [segment("benchmark", file, link.hash)]
        for _ in range(_events(records)):
            about = {"event_id": f"event-{number:08d}", "type": "bench.order", "correlation_id": f"request-{number}"}
            bodies.append(line({"time": number, "kind": "accepted", **about, "hops": 0, "payload": dict(CLEAN.fields)}))
            ended = {"subscription": "bench.handler", "attempt": 1, "state": "ok", "duration": 0.001}
            bodies.append(line({"time": number, "kind": "outcome", **about, "hops": 0, **ended}))
            number += 1
        lines, link = seal(bodies, link)
        path = sealed_path(log, file) if file < SEGMENTS else log
        path.write_bytes(b"".join(lines))
        if file < SEGMENTS:
            build(path)


if __name__ == "__main__":
    _make(Path(sys.argv[1]), int(sys.argv[2]))
