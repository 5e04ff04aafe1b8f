"""What it costs that nothing accepted is lost: a bus with a journal, beside SQLite by hand."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.timing import steady_collector
from benchmarks.wiring import CLEAN, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from benchmarks.scale import Scale
    from benchmarks.wiring import Durable, Peer

    Way = Callable[[float], Awaitable[dict[str, float]]]

TURNS = 3
_SCHEMA = "CREATE TABLE events(seq INTEGER PRIMARY KEY, body BLOB NOT NULL)"


def handled(at_once: int) -> Callable[[Peer, Scale], Coroutine[Any, Any, dict[str, float]]]:
    """Return the scenario in which so many tasks emit events and wait until each is handled and gone."""

    async def measure(peer: Peer, scale: Scale) -> dict[str, float]:
        if peer.durable is None:
            raise UnsupportedError("keeps nothing")
        with TemporaryDirectory() as folder:
            where = Path(folder)
            async with peer.durable(where / "disk", "disk") as disk, peer.durable(where / "process", "process") as fast:
                ways = [
                    _bus(disk, at_once, "bus"),
                    _bus(fast, at_once, "process"),
                    _by_hand(where / "hand.db", at_once),
                ]
                ways += [_one_by_one(where / "plain.db"), *_queues(where), _synced(where / "synced")]
                return await _in_turns(ways, scale.seconds)

    return measure


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
    """Compare within a turn, so that a slow moment of the disk hits all sides."""
    return {
        "share": turn["bus"] / turn["raw"],
        "ahead": turn["bus"] / turn["plain"],
        "faster": turn["process"] / turn["bus"],
        "slower": turn["bus_p99"] / turn["sync_p99"],
    }


def _bus(durable: Durable, at_once: int, name: str) -> Way:
    async def way(seconds: float) -> dict[str, float]:
        count, waits, written = 0, [], _written()
        started = perf_counter()

        async def emitter() -> None:
            nonlocal count
            while perf_counter() - started < seconds:
                began = perf_counter_ns()
                settled = await durable()
                waits.append(perf_counter_ns() - began)
                await settled()
                count += 1

        await asyncio.gather(*(emitter() for _ in range(at_once)))
        rate = count / (perf_counter() - started)
        return {name: rate, f"{name}_p99": _p99(waits), f"{name}_bytes": (_written() - written) / count}

    return way


def _by_hand(path: Path, at_once: int) -> Way:
    """Insert as many rows, and delete those of the round before, in one commit."""
    connection = _opened(path)
    body, seq = orjson.dumps(CLEAN.fields), 0

    async def way(seconds: float) -> dict[str, float]:
        nonlocal seq
        count, started = 0, perf_counter()
        while (spent := perf_counter() - started) < seconds:
            connection.execute("BEGIN IMMEDIATE")
            rows = [(seq + number, body) for number in range(at_once)]
            connection.executemany("INSERT INTO events VALUES(?, ?)", rows)
            connection.executemany("DELETE FROM events WHERE seq = ?", [(row[0] - at_once,) for row in rows])
            connection.execute("COMMIT")
            seq += at_once
            count += at_once
        return {"raw": count / spent}

    return way


def _one_by_one(path: Path) -> Way:
    """Insert a row a commit, which is what a table of one's own comes to."""
    connection = _opened(path)
    body = orjson.dumps(CLEAN.fields)

    async def way(seconds: float) -> dict[str, float]:
        count, started = 0, perf_counter()
        while (spent := perf_counter() - started) < seconds:
            connection.execute("INSERT INTO events(body) VALUES(?)", (body,))
            count += 1
        return {"plain": count / spent}

    return way


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(_SCHEMA)
    return connection


def _queues(folder: Path) -> list[Way]:
    """Return the queues of others that keep items in SQLite, as far as they are installed; one item at a time."""
    ways: list[Way] = []
    with suppress(ModuleNotFoundError):
        import persistqueue

        acked = persistqueue.SQLiteAckQueue(str(folder / "persist"))

        def with_persistqueue() -> None:
            acked.put(CLEAN.fields)
            acked.ack(acked.get())

        ways.append(_queue("persistqueue", with_persistqueue))
    with suppress(ModuleNotFoundError):
        import litequeue

        lite, text = litequeue.LiteQueue(folder / "lite.db"), orjson.dumps(CLEAN.fields).decode()

        def with_litequeue() -> None:
            lite.put(text)
            lite.done(lite.pop().message_id)

        ways.append(_queue("litequeue", with_litequeue))
    return ways


def _queue(name: str, step: Callable[[], None]) -> Way:
    async def way(seconds: float) -> dict[str, float]:
        count, started = 0, perf_counter()
        while (spent := perf_counter() - started) < seconds:
            step()
            count += 1
        return {name: count / spent}

    return way


def _synced(path: Path) -> Way:
    """Write and synchronise: what the disk itself takes."""

    async def way(seconds: float) -> dict[str, float]:
        waits = []
        with ExitStack() as stack:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            stack.callback(os.close, fd)
            started = perf_counter()
            while perf_counter() - started < seconds:
                began = perf_counter_ns()
                os.write(fd, b"x" * 4096)
                os.fdatasync(fd)
                waits.append(perf_counter_ns() - began)
        return {"sync_p99": _p99(waits)}

    return way


def _p99(waits: list[int]) -> float:
    return quantiles(waits, n=100, method="inclusive")[98] if len(waits) > 1 else float(waits[0])


def _written() -> int:
    """Return the bytes that this process has sent to disks, where the system tells."""
    with suppress(OSError), Path("/proc/self/io").open(encoding="ascii") as lines:
        return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes")), 0)
    return 0
