"""A disk that fails: what cannot be kept is refused, nothing is silent, and it goes on when the disk does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from disk import built

COMMON = """
import asyncio, errno, json, os, sys, time
import aperion
from disk import CREATE, SYNC, TRUNCATE, WRITE, disk

folder, level = sys.argv[1:3]
control = disk()
handled = []

def bus_of():
    bus = aperion.EventBus(journal=aperion.SQLiteJournal(folder, level=level))
    bus.subscribe(lambda event: handled.append(event.payload["n"]), "order.*", name="ship")
    return bus

async def emit(bus, n):
    try:
        await asyncio.wait_for(bus.emit("order.placed", {"n": n}), 10)
        return "ok"
    except aperion.JournalUnavailable as error:
        return error.reason

async def healthy(bus):
    while bus.stats().journal["degraded"]:
        await asyncio.sleep(0.01)

async def caught_up(bus):
    while bus.stats().journal["taking_up"]:
        await asyncio.sleep(0.01)
    await bus.wait_settled()
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = built(tmp_path_factory.mktemp("disk"))
    if found is None:
        pytest.skip("there is no C compiler")
    return found


def run(library: str, folder: Path, code: str, level: str = "disk") -> Any:
    """Run code under the disk of ``disk.c``, and return what it prints as JSON."""
    program = f"{COMMON}\n{textwrap.dedent(code)}\nprint(json.dumps(asyncio.run(main())))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "state"), level],
        env={
            **os.environ,
            "LD_PRELOAD": library,
            "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("call", "error"), [("SYNC", "EIO"), ("WRITE", "EIO"), ("WRITE", "ENOSPC"), ("WRITE", "EDQUOT"), ("WRITE", "EFBIG")]
)
@pytest.mark.parametrize("times", [2, -1])
def test_what_the_disk_refuses_is_not_accepted_and_it_goes_on_when_the_disk_does(
    library: str, tmp_path: Path, call: str, error: str, times: int
) -> None:
    code = f"""
    async def main():
        async with bus_of() as bus:
            first = await emit(bus, 1)
            control.disk_fail({call}, errno.{error}, 0, {times})
            refused = [await emit(bus, n) for n in (2, 3)]
            nowait = None
            try:
                receipt = bus.emit_nowait("order.placed", {{"n": 4}})
                await receipt.settled()
                nowait = receipt.dropped
            except aperion.JournalUnavailable:
                nowait = True
            degraded = bus.stats().journal["degraded"]
            control.disk_fail({call}, 0, 0, 0)
            await healthy(bus)
            after = await emit(bus, 5)
            await bus.wait_settled()
            stats = bus.stats()
        async with bus_of() as bus:  # nothing that was refused comes back
            await caught_up(bus)
            taken = bus.stats().journal["taken_up"]
        return [first, refused, nowait, bool(degraded), after, handled, taken, stats.pending, stats.accepted == stats.settled + stats.dropped_after]
    """

    first, refused, nowait, degraded, after, handled, taken, pending, balanced = run(library, tmp_path, code)

    assert first == after == "ok"
    assert refused[0] != "ok"
    if times < 0:
        assert refused[1] != "ok"
        assert nowait
        assert degraded
    assert [n for n in handled if n in (1, 5)] == [1, 5]
    assert 2 not in handled
    assert taken == pending == 0
    assert balanced


def test_what_was_accepted_before_the_disk_failed_is_there_afterwards(library: str, tmp_path: Path) -> None:
    code = """
    async def main():
        bus = bus_of()
        gate = asyncio.Event()

        @bus.on("slow.*", name="slow")
        async def slow(event):
            await gate.wait()

        async with bus:
            for n in range(20):
                await bus.emit("slow.one", {"n": n})
            control.disk_fail(SYNC, errno.EIO, 0, -1)
            refused = await emit(bus, 1)
            gate.set()
            await bus.wait_settled()
            control.disk_fail(SYNC, 0, 0, 0)
            await healthy(bus)
        async with bus_of() as bus:
            await caught_up(bus)
            return [refused, bus.stats().journal["taken_up"]]
    """

    refused, taken = run(library, tmp_path, code)

    assert refused != "ok"
    assert taken == 0  # what had settled meanwhile was owed, and written when the disk was back


def test_a_disk_that_is_full_is_tried_once_more_after_room_was_made(library: str, tmp_path: Path) -> None:
    code = """
    async def main():
        async with bus_of() as bus:
            await emit(bus, 1)
            control.disk_fail(WRITE, errno.ENOSPC, 0, 1)
            return [await emit(bus, 2), bus.stats().journal["failures"]]
    """

    assert run(library, tmp_path, code) == ["ok", 0]


def test_a_process_without_descriptors_goes_on_when_there_are_some(library: str, tmp_path: Path) -> None:
    code = """
    async def main():
        async with bus_of() as bus:
            await emit(bus, 1)
            control.disk_fail(CREATE, errno.EMFILE, 0, -1)
            control.disk_fail(SYNC, errno.EIO, 0, 1)
            refused = [await emit(bus, n) for n in (2, 3)]
            await asyncio.sleep(0.3)
            degraded = bus.stats().journal["degraded"]
            control.disk_fail(CREATE, 0, 0, 0)
            await healthy(bus)
            return [refused, degraded, await emit(bus, 4)]
    """

    refused, degraded, after = run(library, tmp_path, code)

    assert "ok" not in refused
    assert degraded
    assert after == "ok"


def test_a_journal_that_cannot_be_opened_stops_the_start_and_says_why(library: str, tmp_path: Path) -> None:
    code = """
    async def main():
        control.disk_fail(CREATE, errno.EACCES, 0, -1)
        try:
            async with bus_of():
                return "started"
        except aperion.JournalUnavailable as error:
            return str(error)
    """

    text = run(library, tmp_path, code)

    assert "cannot be opened (Permission denied), so the bus did not start" in text


def test_a_limit_on_the_size_of_files_refuses_and_does_not_kill(library: str, tmp_path: Path) -> None:
    code = """
    import resource

    async def main():
        async with bus_of() as bus:
            await emit(bus, 1)
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
            answers = []
            for n in range(40):
                try:
                    await bus.emit("order.placed", {"n": 2, "text": "x" * 100_000})
                    answers.append("ok")
                except aperion.JournalUnavailable:
                    answers.append("refused")
                    break
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            await healthy(bus)
            return [answers[-1], await emit(bus, 3)]
    """

    assert run(library, tmp_path, code) == ["refused", "ok"]


def test_a_slow_disk_does_not_hold_up_the_loop(library: str, tmp_path: Path) -> None:
    code = """
    async def main():
        async with bus_of() as bus:
            await emit(bus, 0)
            control.disk_slow(200)
            turns = 0
            emits = [asyncio.ensure_future(emit(bus, n)) for n in range(1, 20)]
            while not all(each.done() for each in emits):
                await asyncio.sleep(0.001)
                turns += 1
            control.disk_slow(0)
            return turns
    """

    assert run(library, tmp_path, code) > 40  # two commits at least, each of which took 200 ms


def test_a_clock_that_is_set_back_changes_no_order(library: str, tmp_path: Path) -> None:
    code = """
    async def main():
        bus = bus_of()
        gate = asyncio.Event()
        bus.drain_timeout = 0.05

        @bus.on("slow.*", name="slow")
        async def slow(event):
            await gate.wait()

        async with bus:
            for n in range(10):
                aperion.journal.database.time.time = lambda now=time.time(), n=n: now - 3600 * n
                await bus.emit("slow.one", {"n": n}, key="k")
        again = bus_of()
        seen = []
        again.subscribe(lambda event: seen.append(event.payload["n"]), "slow.*", name="slow")
        async with again:
            await caught_up(again)
        return seen
    """

    assert run(library, tmp_path, code) == list(range(10))
