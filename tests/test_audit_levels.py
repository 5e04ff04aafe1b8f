"""The audit log's levels of safety on a bus: who waits for what, and what that is worth."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from faulty_disk import Disk

import aperion
from aperion.audit import AuditLog, Checkpoints, verify
from aperion.audit import record as records

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.anyio

SMALL = 1 << 16
LEVELS = ("none", "process", "disk")
NO_CHECKPOINTS = Checkpoints(every=10**9, seconds=10**9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "events.jsonl"


@pytest.fixture
def disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(path.parent, monkeypatch)
    yield disk
    disk.heals()


@contextlib.asynccontextmanager
async def open_bus(disk: Disk, log: AuditLog, **options: Any) -> AsyncIterator[aperion.EventBus]:
    """Run a bus; a disk that stands still goes on before it ends."""
    with anyio.fail_after(20):
        async with aperion.EventBus(audit=log, **options) as bus:
            try:
                yield bus
            finally:
                disk.heals()


async def reached(disk: Disk) -> None:
    """Wait until the writer stands still in a call."""
    assert await anyio.to_thread.run_sync(disk.reached.wait, 10)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread brings about; the caller bounds it."""
    while not condition():
        await anyio.sleep(0.002)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def of(path: Path, *kinds: str) -> list[dict[str, Any]]:
    """Return the records of some kinds, without those about the bus itself."""
    return [r for r in lines(path) if r["kind"] in kinds and not r.get("type", "").startswith("system.")]


def ids(path: Path) -> list[str]:
    return [record["event_id"] for record in of(path, "accepted")]


# Who waits


@pytest.mark.parametrize("sync", ["none", "process"])
async def test_emit_does_not_wait_for_the_disk_below_the_level_of_the_disk(path: Path, disk: Disk, sync: str) -> None:
    """AUD-k/l: not even for one that stands still."""
    handled = []
    async with open_bus(disk, AuditLog(path, sync=sync)) as bus:
        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        disk.stands_still("write")
        told = [(await bus.emit("order.placed", {})).event_id for _ in range(100)]
        await bus.wait_settled()
        await reached(disk)
        assert sorted(handled) == sorted(told)
        assert ids(path) == []

    assert ids(path) == told


async def test_what_emit_said_yes_to_stands_in_shared_memory_at_once(path: Path, disk: Disk) -> None:
    async with open_bus(disk, AuditLog(path)) as bus:
        disk.stands_still("write")
        for _ in range(10):
            told = await bus.emit("order.placed", {})
            assert told.event_id.encode() in path.with_name("events.jsonl.ring").read_bytes()


async def test_at_the_level_of_the_disk_emit_and_handlers_wait_for_the_device_and_the_loop_does_not(
    path: Path, disk: Disk
) -> None:
    """AUD-k/l: a stalled device stalls those who asked to wait."""
    handled, told = [], []
    async with open_bus(disk, AuditLog(path, sync="disk")) as bus, anyio.create_task_group() as group:

        async def emit() -> None:
            told.append((await bus.emit("order.placed", {})).event_id)

        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        await bus.wait_settled()
        disk.stands_still("fdatasync")
        group.start_soon(emit)
        await reached(disk)
        for _ in range(50):  # the loop goes on
            await anyio.sleep(0)
        written = ids(path)
        assert (told, handled) == ([], [])

        disk.heals()
        await until(lambda: handled)

    assert written == told == handled


async def test_emitters_that_come_together_share_one_synchronisation(path: Path, disk: Disk) -> None:
    async with open_bus(disk, AuditLog(path, sync="disk", checkpoints=NO_CHECKPOINTS)) as bus:
        disk.calls.clear()
        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(bus.emit, "order.placed", {})
        synced = disk.calls["fdatasync"]

    assert len(ids(path)) == 200
    assert 1 <= synced <= 40


async def test_emit_nowait_waits_for_nothing_and_its_handlers_do(path: Path, disk: Disk) -> None:
    handled = []
    async with open_bus(disk, AuditLog(path, sync="disk")) as bus:
        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        disk.stands_still("fdatasync")
        receipt = bus.emit_nowait("order.placed", {})
        await reached(disk)
        for _ in range(50):
            await anyio.sleep(0)
        assert not handled
        assert not receipt.is_settled

        disk.heals()
        await receipt.settled()

    assert handled == [receipt.event_id]


async def test_dispatch_waits_for_the_device_before_its_handlers_run(path: Path, disk: Disk) -> None:
    handled = []
    async with open_bus(disk, AuditLog(path, sync="disk")) as bus, anyio.create_task_group() as group:
        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        disk.stands_still("fdatasync")
        group.start_soon(bus.dispatch, "order.placed", {})
        await reached(disk)
        assert not handled

        disk.heals()
        await until(lambda: handled)

    assert handled == ids(path)


async def test_emit_from_thread_waits_for_the_device(path: Path, disk: Disk) -> None:
    handled, told = [], []
    async with open_bus(disk, AuditLog(path, sync="disk")) as bus, anyio.create_task_group() as group:

        def emit() -> None:
            told.append(bus.emit_from_thread("order.placed", {}).event_id)

        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        disk.stands_still("fdatasync")
        group.start_soon(anyio.to_thread.run_sync, emit)
        await reached(disk)
        assert (told, handled) == ([], [])

        disk.heals()
        await until(lambda: told and handled)

    assert told == handled


# Who stops waiting


async def test_an_emit_that_is_cancelled_while_it_waits_is_dropped_and_the_log_says_so(path: Path, disk: Disk) -> None:
    handled = []
    async with open_bus(disk, AuditLog(path, sync="disk"), max_pending_events=1) as bus:
        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        disk.stands_still("fdatasync")
        async with anyio.create_task_group() as group:
            group.start_soon(bus.emit, "order.placed", {})
            await reached(disk)
            group.cancel_scope.cancel()
        assert bus.stats().pending == 0  # its place is free again
        disk.heals()
        after = await bus.emit("order.placed", {})
        await after.settled()

    cancelled, kept = ids(path)
    assert handled == [kept] == [after.event_id]
    [dropped] = of(path, "dropped")
    assert (dropped["event_id"], dropped["detail"]) == (cancelled, {"policy": "cancelled"})


async def test_a_dispatch_that_is_cancelled_while_it_waits_is_dropped_and_the_log_says_so(
    path: Path, disk: Disk
) -> None:
    handled = []
    async with open_bus(disk, AuditLog(path, sync="disk")) as bus:
        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        disk.stands_still("fdatasync")
        async with anyio.create_task_group() as group:
            group.start_soon(bus.dispatch, "order.placed", {})
            await reached(disk)
            group.cancel_scope.cancel()
        assert bus.stats().pending == 0

    assert handled == []
    assert [record["event_id"] for record in of(path, "dropped")] == ids(path)


async def test_a_thread_that_gives_up_waiting_for_the_device_is_told_the_truth(path: Path, disk: Disk) -> None:
    handled, errors = [], []
    async with open_bus(disk, AuditLog(path, sync="disk")) as bus:

        def emit() -> None:
            try:
                bus.emit_from_thread("order.placed", {}, timeout=0.05)
            except TimeoutError as error:
                errors.append(str(error))

        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        disk.stands_still("fdatasync")
        await anyio.to_thread.run_sync(emit)
        disk.heals()
        await bus.wait_settled()

    assert "dropped" in errors[0]
    assert handled == []
    assert [record["event_id"] for record in of(path, "dropped")] == ids(path)


@pytest.mark.parametrize("way", ["emit", "emit_nowait", "dispatch", "emit_from_thread"])
async def test_what_the_device_still_lacks_when_the_drain_ends_is_named_and_never_handled(
    path: Path, disk: Disk, way: str
) -> None:
    handled, errors = [], []
    log = AuditLog(path, sync="disk")
    async with open_bus(disk, log) as bus, anyio.create_task_group() as group:

        async def emit() -> None:
            try:
                if way == "emit_from_thread":
                    await anyio.to_thread.run_sync(bus.emit_from_thread, "order.placed", {})
                elif way == "emit_nowait":
                    bus.emit_nowait("order.placed", {})
                else:
                    await getattr(bus, way)("order.placed", {})
            except aperion.BusNotRunningError as error:
                errors.append(str(error))

        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        await bus.wait_settled()
        disk.stands_still("fdatasync")
        group.start_soon(emit)
        await reached(disk)
        report = await bus.drain(timeout=0.05)
        await until(lambda: errors or way == "emit_nowait")

    assert handled == []
    assert [event_id for _, event_id in report.unfinished] == ids(path)
    assert [record["event_id"] for record in of(path, "dropped")] == ids(path)


# In which order


async def test_events_of_one_key_keep_their_order_however_they_come(path: Path, disk: Disk) -> None:
    handled = []
    async with open_bus(disk, AuditLog(path, sync="disk")) as bus, anyio.create_task_group() as group:

        @bus.on("order.placed")
        async def handle(event: aperion.Event[Any]) -> None:
            handled.append(event.payload["n"])
            await anyio.sleep(0)

        disk.stands_still("fdatasync")
        bus.emit_nowait("order.placed", {"n": 0}, key="k")
        await reached(disk)
        for n in range(1, 10):
            emit = bus.dispatch if n % 3 == 0 else bus.emit
            group.start_soon(lambda emit=emit, n=n: emit("order.placed", {"n": n}, key="k"))
            await anyio.sleep(0)
        assert handled == []
        disk.heals()
        await until(lambda: len(handled) == 10)

    assert handled == list(range(10))


async def test_an_event_that_the_device_has_already_does_not_overtake_one_that_is_being_handed_on(
    path: Path, disk: Disk
) -> None:
    handled = []
    log = AuditLog(path, sync="disk")
    async with open_bus(disk, log) as bus:

        @bus.on("order.placed")
        async def handle(event: aperion.Event[Any]) -> None:
            handled.append(event.payload["n"])

        def slow(event: aperion.Event[Any]) -> bool:
            deadline = time.monotonic() + 5
            while event.payload["n"] and log.stats().buffered_bytes and time.monotonic() < deadline:
                time.sleep(0.001)  # the writer gets on while the second event is looked at
            return event.payload["n"] > 1

        await bus.wait_settled()
        async with bus.stream("order.placed", where=slow):
            bus.emit_nowait("order.placed", {"n": 0}, key="k")
            bus.emit_nowait("order.placed", {"n": 1}, key="k")
            await bus.wait_settled()

    assert handled == [0, 1]


class SlowLoop:
    """A loop on which the writer always gets on before an emitter has begun to wait."""

    def __init__(self, loop: Any, log: AuditLog) -> None:
        self._loop, self._log = loop, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def create_future(self) -> Any:
        deadline = time.monotonic() + 5
        while self._log.stats().buffered_bytes and time.monotonic() < deadline:
            time.sleep(0.001)
        return self._loop.create_future()


async def test_an_emitter_that_comes_to_wait_when_all_is_done_does_not_wait_for_ever(path: Path, disk: Disk) -> None:
    log = AuditLog(path, sync="disk")
    async with open_bus(disk, log) as bus:
        log._loop = SlowLoop(log._loop, log)  # type: ignore[assignment]  # it is one in all else
        for _ in range(3):
            await bus.emit("order.placed", {})

    assert len(ids(path)) == 3
