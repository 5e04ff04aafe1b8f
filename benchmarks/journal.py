"""Durable events beside raw SQLite: ``python -m benchmarks.journal [folder]``.

A folder on the disk that is to be measured; by default one for temporary files. All of a row is measured in turns, and
the best of three counts.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import aperion

BODY = {"n": 1, "text": "x" * 280}
ROUNDS = 3
EVENTS = {1: 300, 16: 4_800, 256: 25_600}


class Durable(NamedTuple):
    """What one run has taken."""

    rate: float
    p99: float
    bytes_each: float


def raw(folder: Path, at_once: int, level: str) -> float:
    """Insert and delete rows of the same size in commits of the same size; return events a second."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        database = sqlite3.connect(Path(temporary, "raw.db"), isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(f"PRAGMA synchronous={'FULL' if level == 'disk' else 'NORMAL'}")
        database.execute("CREATE TABLE events(seq INTEGER PRIMARY KEY, plan TEXT, body BLOB, crc INTEGER)")
        body, before, total = b"x" * 430, range(0), EVENTS[at_once]
        begun = time.perf_counter()
        for start in range(0, total, at_once):
            numbers = range(start, start + at_once)
            database.execute("BEGIN")
            database.executemany("INSERT INTO events VALUES(?, '[\"ship\"]', ?, 7)", ((n, body) for n in numbers))
            database.executemany("DELETE FROM events WHERE seq = ?", ((n,) for n in before))
            database.execute("COMMIT")
            before = numbers
        seconds = time.perf_counter() - begun
        database.close()
        return total / seconds


def one_by_one(folder: Path) -> float:
    """Insert rows with a commit for each; return rows a second."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        database = sqlite3.connect(Path(temporary, "one.db"), isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE events(seq INTEGER PRIMARY KEY, body BLOB)")
        begun = time.perf_counter()
        for n in range(300):
            database.execute("INSERT INTO events VALUES(?, ?)", (n, b"x" * 430))
        seconds = time.perf_counter() - begun
        database.close()
        return 300 / seconds


async def durable(folder: Path, at_once: int, level: Any) -> Durable:
    """Emit from so many tasks, each waiting until its event is handled."""
    waits: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        bus = aperion.EventBus(journal=aperion.SQLiteJournal(temporary, level=level))

        @bus.on("order.placed", name="ship")
        async def ship(event: aperion.Event) -> None:
            pass

        async def emitter() -> None:
            for _ in range(EVENTS[at_once] // at_once):
                begun = time.perf_counter()
                receipt = await bus.emit("order.placed", BODY)
                waits.append(time.perf_counter() - begun)
                await receipt.settled()

        async with bus:
            await bus.emit("order.placed", BODY)
            begun = time.perf_counter()
            await asyncio.gather(*[emitter() for _ in range(at_once)])
            await bus.wait_settled()
            seconds = time.perf_counter() - begun
        size = sum(each.stat().st_size for each in Path(temporary).glob("*.db*"))
    waits.sort()
    return Durable(EVENTS[at_once] / seconds, waits[len(waits) * 99 // 100], size / EVENTS[at_once])


def main(folder: Path) -> None:
    """Measure, and print a table."""
    print(f"a commit for each row: {max(one_by_one(folder) for _ in range(ROUNDS)):,.0f} a second")
    print(
        f"{'level':<8} {'at once':>7} {'raw/s':>9} {'durable/s':>9} {'ratio':>6} {'p99 of emit':>12} {'bytes each':>10}"
    )
    for level in ("disk", "process"):
        for at_once in EVENTS:
            raws, runs = [], []
            for _ in range(ROUNDS):
                raws.append(raw(folder, at_once, level))
                runs.append(asyncio.run(durable(folder, at_once, level)))
            best = max(runs)
            share = best.rate / max(raws)
            print(
                f"{level:<8} {at_once:>7} {max(raws):>9,.0f} {best.rate:>9,.0f} {share:>6.0%} "
                f"{best.p99 * 1e3:>9.2f} ms {best.bytes_each:>10,.0f}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TMPDIR", tempfile.gettempdir())))
