"""The scenarios about an audit log that is written: how fast one event is found, and what its files cost."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import orjson

from aperion.audit import AuditLog, verify
from aperion.audit.chain import START, seal
from aperion.audit.compression import build, compress
from aperion.audit.record import line, segment
from aperion.audit.segments import sealed_path
from aperion.errors import ConfigurationError
from benchmarks.memory import peak, reset_peak
from benchmarks.wiring import CLEAN, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.scale import Scale
    from benchmarks.wiring import Peer

SEGMENTS = 20
SOUGHT = 15
TURNS = 3


def _ours(peer: Peer) -> None:
    if peer.about.name != "aperion":
        raise UnsupportedError("has no such log")


# How fast one event is found


async def search(peer: Peer, scale: Scale) -> dict[str, float]:
    """Find single events by id in many records, in turns with grep over the same files."""
    _ours(peer)
    with TemporaryDirectory() as folder:
        log = Path(folder, "events.jsonl")
        # In another process, so that the memory of this one is that of searching.
        subprocess.run([sys.executable, "-m", "benchmarks.archive", str(log), str(scale.growth)], check=True)
        files = sorted(map(str, log.parent.glob("*.jsonl")))
        _found(log, 0)  # whatever is imported at first use
        reset_peak()
        before = peak()
        pairs = []
        for number in range(SOUGHT):
            wanted = number * SEGMENTS * _events(scale.growth) // SOUGHT
            ours = _timed(lambda wanted=wanted: _found(log, wanted))  # type: ignore[misc]  # bound early
            pairs.append((ours, _timed(lambda wanted=wanted: _grepped(files, wanted))))  # type: ignore[misc]
        memory = peak() - before
    return {
        "ns": median(ours for ours, _ in pairs),
        "worst_ns": max(ours for ours, _ in pairs),
        "grep_ns": median(grep for _, grep in pairs),
        "ratio": median(ours / grep for ours, grep in pairs),
        "bytes": memory,
        "records": float(scale.growth),
    }


def _found(log: Path, number: int) -> None:
    if len(list(AuditLog(log).read(event_id=_event_id(number)))) != 2:
        raise RuntimeError(number)


def _grepped(files: list[str], number: int) -> None:
    command = ["grep", "-c", "-F", _event_id(number), *files]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "LC_ALL": "C"})


def _timed(work: Callable[[], Any]) -> int:
    started = perf_counter_ns()
    work()
    return perf_counter_ns() - started


# What files cost


async def tending(peer: Peer, scale: Scale) -> dict[str, float]:
    """Verify, read, index and compress a file, in turns with nothing but SHA-256 over its lines, and nothing but orjson."""
    _ours(peer)
    with TemporaryDirectory() as folder:
        log = Path(folder, "events.jsonl")
        make(log, scale.growth // SEGMENTS, files=2)
        full = sealed_path(log, 1)
        both = full.stat().st_size + log.stat().st_size
        turns = [_tended(log, full, both) for _ in range(TURNS)]
    return {name: median(turn[name] for turn in turns) for name in turns[0]}


def _tended(log: Path, full: Path, both: int) -> dict[str, float]:
    size = full.stat().st_size
    hashed = _timed(lambda: _hashed(full)) / size
    verified = _timed(lambda: verify(log)) / both
    parsed = _timed(lambda: _parsed(full)) / size
    read = _timed(lambda: sum(1 for _ in AuditLog(log).read())) / both
    figures = {
        "sha256": 1e9 / hashed,
        "verified": 1e9 / verified,
        "ratio": verified / hashed,
        "parsed": 1e9 / parsed,
        "read": 1e9 / read,
        "read_ratio": read / parsed,
        "indexed": size / _timed(lambda: build(full, "")) * 1e9,
    }
    for codec in ("gzip", "zstd"):
        content = full.read_bytes()
        with suppress(ConfigurationError):  # zstd is an extra
            figures[codec] = size / _timed(lambda codec=codec: compress(full, codec)) * 1e9  # type: ignore[misc]
        full.write_bytes(content)
        for packed in full.parent.glob("*.jsonl.*z*"):
            packed.unlink()
    return figures


def _hashed(path: Path) -> None:
    with path.open("rb") as lines:
        for text in lines:
            sha256(text).hexdigest()


def _parsed(path: Path) -> None:
    with path.open("rb") as lines:
        for text in lines:
            orjson.loads(text)


# The log itself


def _event_id(number: int) -> str:
    return f"{number:08x}-0000-7000-8000-{number:012x}"


def _events(records: int, files: int = SEGMENTS) -> int:
    """Return how many events stand in each file, with two records each."""
    return max(records // files // 2, 1)


def make(log: Path, records: int, files: int = SEGMENTS) -> None:
    """Write a log of two records an event, in some files with their indexes."""
    link, number = START, 0
    for file in range(1, files + 1):
        bodies = [segment("benchmark", file, link.hash)]
        for _ in range(_events(records, files)):
            event_id = _event_id(number)
            about = {"event_id": event_id, "type": "bench.order", "correlation_id": event_id, "hops": 0}
            bodies.append(line({"time": number, "kind": "accepted", **about, "payload": dict(CLEAN.fields)}))
            ended = {"subscription": "bench.handler", "attempt": 1, "state": "ok", "duration": 0.001}
            bodies.append(line({"time": number, "kind": "outcome", **about, **ended}))
            number += 1
        lines, link = seal(bodies, link)
        path = sealed_path(log, file) if file < files else log
        path.write_bytes(b"".join(lines))
        if file < files:
            build(path, "")


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
