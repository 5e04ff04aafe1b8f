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
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from faulty_disk import Disk

import aperion
from aperion.audit import AuditLog, Checkpoints, verify
from aperion.audit import record as records
from aperion.audit.spill import SPILL_BYTES

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


async def idle(log: AuditLog) -> None:
    """Wait until the writer has nothing to do."""
    await until(lambda: not log.stats().buffered_bytes)


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
        await idle(bus.audit)
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
        await idle(bus.audit)
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
        await idle(bus.audit)
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
        await idle(bus.audit)
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
        await idle(bus.audit)
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
        await idle(bus.audit)
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
        await idle(bus.audit)
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
        await idle(bus.audit)
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

        await idle(bus.audit)
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


class SlowLine(deque[Any]):
    """A waiting line in which everybody arrives when the writer has done all there is."""

    def __init__(self, log: AuditLog) -> None:
        super().__init__()
        self.log = log

    def append(self, waiting: Any) -> None:
        deadline = time.monotonic() + 5
        while self.log.stats().buffered_bytes and time.monotonic() < deadline:
            time.sleep(0.001)
        super().append(waiting)


async def test_an_emitter_that_comes_to_wait_when_all_is_done_does_not_wait_for_ever(path: Path, disk: Disk) -> None:
    log = AuditLog(path, sync="disk")
    async with open_bus(disk, log) as bus:
        log._buffer._waiting = SlowLine(log)
        for _ in range(3):
            await bus.emit("order.placed", {})

    assert len(ids(path)) == 3


# A device that stands still for long


@pytest.mark.parametrize(
    "sync", [pytest.param("none", marks=pytest.mark.slow), "process", pytest.param("disk", marks=pytest.mark.slow)]
)
async def test_while_the_device_stands_still_the_loop_runs_and_memory_is_bounded(
    path: Path, disk: Disk, sync: str
) -> None:
    """AUD-k/l: what the buffer cannot hold is refused, and what is refused is not handled."""
    handled, told, refusals, ticks = [], [], [], 0
    log = AuditLog(path, sync=sync, buffer_bytes=SMALL)
    async with open_bus(disk, log) as bus:
        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        await bus.wait_settled()
        disk.stands_still("write")
        async with anyio.create_task_group() as group:

            async def emit() -> None:
                try:
                    told.append((await bus.emit("order.placed", {"text": "x" * 500})).event_id)
                except aperion.AuditUnavailable as error:
                    refusals.append(error.reason)

            for _ in range(300):
                group.start_soon(emit)
            while not refusals:
                await anyio.sleep(0.001)
                ticks += 1
            for _ in range(50):
                await anyio.sleep(0)
            state = log.stats()
            disk.heals()
        await bus.wait_settled()

    assert ticks
    assert set(refusals) == {"the buffer of 65,536 bytes is full, and the disk does not keep up"}
    assert (state.available, state.failure) == (False, refusals[0])
    assert state.buffered_bytes <= SMALL + SPILL_BYTES
    assert len(told) + len(refusals) == 300
    assert sorted(handled) == sorted(told) == sorted(ids(path))
    assert (log.stats().missing, of(path, "gap")) == (0, [])
    assert verify(path).problems == ()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a disk that stands still for one that does not work at once, and keep nothing behind the ring."""
    monkeypatch.setattr("aperion.audit.buffer._PATIENCE", 0)
    monkeypatch.setattr("aperion.audit.spill.SPILL_BYTES", 0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sync", LEVELS)
async def test_with_best_effort_a_device_that_stands_still_costs_records_and_never_an_event(
    path: Path, disk: Disk, sync: str
) -> None:
    handled, told = [], []
    log = AuditLog(path, sync=sync, on_failure="best_effort", buffer_bytes=SMALL, kinds={"accepted"})
    async with open_bus(disk, log) as bus:
        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        await bus.wait_settled()
        disk.stands_still("write")
        before = time.time_ns()
        told += [bus.emit_nowait("order.placed", {"text": "x" * 500}).event_id for _ in range(300)]
        after = time.time_ns()
        state = log.stats()
        disk.heals()
        await until(lambda: log.stats().available)
        told.append(bus.emit_nowait("order.placed", {}).event_id)
        await bus.wait_settled()

    assert (state.available, state.missing) == (False, log.stats().missing)
    assert "the disk does not keep up" in str(state.failure)
    [gap] = of(path, "gap")
    detail = gap["detail"]
    assert detail["missing"] == state.missing == 301 - len(ids(path)) > 0
    assert before <= detail["from"] <= detail["to"] <= after
    assert sorted(handled) == sorted(told)
    assert ids(path) == [*told[: 300 - state.missing], told[-1]]


KILLED = """
import logging, os, signal, sys, threading, time
import anyio, structlog, aperion

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

async def main():
    path, sync, on_failure = sys.argv[1:]
    log = aperion.AuditLog(path, sync=sync, on_failure=on_failure, buffer_bytes=1 << 16, kinds={"accepted"})
    bus = aperion.EventBus(audit=log)
    async with bus:
        await bus.emit("order.placed", {"n": 0})
        await bus.wait_settled()
        while log.stats().buffered_bytes:
            await anyio.sleep(0.001)
        os.write = lambda fd, content: threading.Event().wait()  # the device stands still
        with anyio.move_on_after(0.2 if sync == "disk" else 10):
            for n in range(1, 20 if on_failure == "required" else 200):
                event = await bus.emit("order.placed", {"n": n, "text": "x" * 500})
                print(event.event_id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


def killed(*arguments: object) -> list[str]:
    """Run a process that is killed while its device stands still; return what it was told."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("sync", "told", "kept"),
    [
        pytest.param("none", 19, 0, marks=pytest.mark.slow),
        ("process", 19, 19),
        pytest.param("disk", 0, 0, marks=pytest.mark.slow),
    ],
)
async def test_when_the_process_is_killed_before_a_device_that_stands_still_has_anything(
    path: Path, sync: str, told: int, kept: int
) -> None:
    """AUD-m/n: each level keeps its own promise, and no more is said than is kept."""
    acknowledged = await anyio.to_thread.run_sync(killed, path, sync, "required")
    async with aperion.EventBus(audit=AuditLog(path)):
        pass

    assert len(acknowledged) == told
    assert len([event_id for event_id in acknowledged if event_id in ids(path)]) == kept
    assert [start["detail"]["clean"] for start in of(path, "started")] == [True, False]
    assert verify(path).problems == ()


async def test_what_was_missing_when_the_process_was_killed_is_told_by_the_next_start(path: Path) -> None:
    told = await anyio.to_thread.run_sync(killed, path, "process", "best_effort")
    async with aperion.EventBus(audit=AuditLog(path)):
        pass

    [gap] = of(path, "gap")
    assert gap["detail"]["missing"] == 200 - len(ids(path)) > 0
    assert gap["detail"]["from"] <= gap["detail"]["to"]
    assert set(ids(path)[1:]) <= set(told)


# What is missing is never forgotten


@pytest.mark.parametrize("end", ["all works again", "nothing works", "it works once more"])
async def test_an_outcome_that_could_not_be_recorded_is_told_even_when_the_log_closes_at_once(
    path: Path, disk: Disk, end: str
) -> None:
    release = anyio.Event()
    log = AuditLog(path)
    with contextlib.suppress(aperion.AuditUnavailable):
        async with aperion.EventBus(audit=log) as bus:

            @bus.on("order.placed")
            async def handle(event: aperion.Event[Any]) -> None:
                await release.wait()

            await bus.emit("order.placed", {})
            await idle(log)
            disk.fails("write", errno.ENOSPC)
            log._parts.ring.put(b'{"time":1,"kind":"system"}\n')  # type: ignore[union-attr]  # it is open
            await until(lambda: not log.stats().available)
            await until(lambda: log._parts.ring.mark < 0)  # type: ignore[union-attr]
            release.set()
            await bus.wait_settled()
            assert log.stats().missing == 1
            if end == "all works again":
                disk.heals()
            elif end == "it works once more":
                disk.fails("write", errno.ENOSPC, after=1)
    disk.heals()
    async with aperion.EventBus(audit=AuditLog(path)):
        pass

    assert of(path, "outcome") == []
    assert sum(gap["detail"]["missing"] for gap in of(path, "gap")) == log.stats().missing
    assert verify(path).problems == ()


@pytest.mark.usefixtures("impatient")
async def test_a_new_ring_in_place_of_one_that_was_removed_still_knows_what_is_missing(path: Path, disk: Disk) -> None:
    log = AuditLog(path, on_failure="best_effort", buffer_bytes=SMALL, kinds={"accepted"})
    ring = path.with_name("events.jsonl.ring")
    async with open_bus(disk, log) as bus:
        disk.stands_still("write")
        for _ in range(300):
            bus.emit_nowait("order.placed", {"text": "x" * 500})
        missing = log.stats().missing
        ring.unlink()
        disk.heals()
        await until(lambda: log._parts.ring.is_renewable and not log.stats().buffered_bytes)  # type: ignore[union-attr]
        assert log._parts.ring.renew()  # type: ignore[union-attr]  # as the next event does
        copy = ring.read_bytes()

    assert missing.to_bytes(8, sys.byteorder) in copy[:4096]
    assert [gap["detail"]["missing"] for gap in of(path, "gap")] == [missing]


# Which records there are


async def test_by_default_every_kind_but_that_of_handlers_starting_is_written(path: Path, disk: Disk) -> None:
    log = AuditLog(path)
    async with open_bus(disk, log, max_pending_events=1, overflow_policy="drop") as bus:
        bus.subscribe(lambda event: None, "order.placed")
        failing = aperion.Retry(attempts=1)
        bus.subscribe(lambda event: 1 / 0, "order.paid", retry=failing)
        await bus.emit("order.placed", {})
        await bus.emit("order.placed", {})
        await bus.wait_settled()
        await bus.emit("order.paid", {})
        await bus.wait_settled()
        with pytest.raises(aperion.PayloadError):
            await bus.emit("order.placed", 5)  # type: ignore[call-overload]

    kinds = {record["kind"] for record in lines(path)}
    assert kinds == {
        *("segment", "started", "system", "accepted", "outcome", "dropped", "rejected", "dead_lettered"),
        *("stopped", "checkpoint"),
    }


async def test_only_the_kinds_that_were_chosen_are_written(path: Path, disk: Disk) -> None:
    log = AuditLog(path, kinds={"accepted", "handler_started"})
    async with open_bus(disk, log) as bus:
        bus.subscribe(lambda event: None, "order.placed", name="shop.pay")
        event = await bus.emit("order.placed", {}, correlation_id="req-1")
        await event.settled()

    accepted, started = [record for record in lines(path) if "event_id" in record and record["type"] == "order.placed"]
    assert (accepted["kind"], started["kind"]) == ("accepted", "handler_started")
    assert (started["event_id"], started["correlation_id"]) == (event.event_id, "req-1")
    assert started["detail"] == {"subscription": "shop.pay", "attempt": 1}
    assert {record["kind"] for record in lines(path)} == {
        *("segment", "started", "accepted", "handler_started", "stopped", "checkpoint"),
    }


@pytest.mark.parametrize("sync", LEVELS)
async def test_without_records_of_accepted_events_they_are_handled_all_the_same(
    path: Path, disk: Disk, sync: str
) -> None:
    handled = []
    async with open_bus(disk, AuditLog(path, sync=sync, kinds={"outcome"})) as bus:
        bus.subscribe(lambda event: handled.append(event.event_id), "order.placed")
        told = [(await bus.emit("order.placed", {})).event_id for _ in range(3)]
        await bus.wait_settled()

    assert sorted(record["event_id"] for record in of(path, "outcome")) == sorted(handled) == sorted(told)
    assert ids(path) == []


def test_a_kind_that_there_is_not_is_refused_at_once(path: Path) -> None:
    with pytest.raises(aperion.ConfigurationError, match="'excepted'"):
        AuditLog(path, kinds={"accepted", "excepted"})


async def test_each_life_of_a_log_begins_and_ends_with_a_record_of_it(path: Path, disk: Disk) -> None:
    for _ in range(2):
        async with open_bus(disk, AuditLog(path)) as bus:
            await bus.emit("order.placed", {})

    kinds = [record["kind"] for record in lines(path) if record["kind"] not in {"system", "accepted"}]
    assert kinds == ["segment", "started", "stopped", "checkpoint", "started", "stopped", "checkpoint"]
    for start in of(path, "started"):
        assert start["detail"] == {
            "pid": os.getpid(),
            "clean": True,
            "recovered": 0,
            "version": start["detail"]["version"],
        }
    assert [stop["detail"]["pid"] for stop in of(path, "stopped")] == [os.getpid()] * 2


async def test_a_checkpoint_sums_up_the_chain_every_so_many_records_and_at_the_end(path: Path, disk: Disk) -> None:
    log = AuditLog(path, checkpoints=Checkpoints(every=10), sync="disk")
    async with open_bus(disk, log) as bus:
        for _ in range(50):
            await bus.emit("order.placed", {})
        assert log.stats().checkpoints >= 4

    written = lines(path)
    before = 0
    for checkpoint in of(path, "checkpoint"):
        last = written[checkpoint["seq"] - 2]
        assert (checkpoint["count"], checkpoint["last"]) == (last["seq"], last["hash"])
        assert checkpoint["checkpoint_before"] == before
        before = checkpoint["seq"]
    assert log.stats().checkpoints == len(of(path, "checkpoint"))
    assert before == len(written)


async def test_a_checkpoint_comes_after_some_time_too_but_not_twice_about_the_same(path: Path, disk: Disk) -> None:
    log = AuditLog(path, checkpoints=Checkpoints(every=10**6, seconds=0.01))
    async with open_bus(disk, log) as bus:
        await bus.emit("order.placed", {})
        await until(lambda: log.stats().checkpoints)
        await anyio.sleep(0.05)  # several times the interval, in which nothing comes
        log.reopen()
        count = len(of(path, "checkpoint"))
        await anyio.sleep(0.05)

        assert len(of(path, "checkpoint")) == count


@pytest.mark.parametrize("is_open", [True, False])
async def test_stats_ask_no_file(path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, is_open: bool) -> None:
    log = AuditLog(path)
    asked = []
    async with open_bus(disk, log) as bus:
        await bus.emit("order.placed", {})
        await until(lambda: not log.stats().buffered_bytes)
        if is_open:
            shutil.rmtree(path.parent)
            stats = _watched_stats(log, asked, monkeypatch)
            path.parent.mkdir()
    if not is_open:
        shutil.rmtree(path.parent)
        stats = _watched_stats(log, asked, monkeypatch)

    assert asked == []
    assert stats.available is is_open
    assert stats.records >= 2
    assert stats.bytes_written > 500


def _watched_stats(log: AuditLog, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    me = threading.get_ident()
    with monkeypatch.context() as patch:
        for module, name in ((os, "open"), (os, "stat"), (os, "lstat"), (os, "fstat"), (os, "pread"), (os, "listdir")):
            real = getattr(module, name)

            def watched(*arguments: Any, _real: Any = real, _name: str = name, **named: Any) -> Any:
                if threading.get_ident() == me:
                    asked.append(_name)
                return _real(*arguments, **named)

            patch.setattr(module, name, watched)
        return log.stats()


async def test_where_the_clock_steps_back_the_numbers_keep_the_order(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    back = itertools.count(now, -(10**9))
    monkeypatch.setattr(records, "time_ns", lambda: next(back))
    log = AuditLog(path, checkpoints=Checkpoints(every=7))
    async with open_bus(disk, log) as bus:
        told = [(await bus.emit("order.placed", {})).event_id for _ in range(30)]

    times = [record["time"] for record in of(path, "accepted")]
    assert times == sorted(times, reverse=True)
    assert ids(path) == told
    assert [record["seq"] for record in lines(path)] == list(range(1, len(lines(path)) + 1))
    assert [record.event_id for record in log.read(kinds=("accepted",), types=("order.*",))] == told
    newest = log.read(kinds=("accepted",), types=("order.*",), newest_first=True)
    assert [record.event_id for record in newest] == told[::-1]
    assert verify(path).problems == ()


@pytest.mark.parametrize("on_failure", ["required", "best_effort"])
@pytest.mark.parametrize("sync", LEVELS)
async def test_a_forked_child_is_refused_at_every_level_and_harms_nothing(
    path: Path, disk: Disk, sync: str, on_failure: str
) -> None:
    log = AuditLog(path, sync=sync, on_failure=on_failure)
    async with open_bus(disk, log) as bus:
        first = await bus.emit("order.placed", {})
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                try:
                    bus.emit_nowait("order.placed", {})
                except aperion.AuditUnavailable as error:
                    code = 0 if "forked" in str(error) else 2
            os._exit(code)
        second = await bus.emit("order.placed", {})
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert ids(path) == [first.event_id, second.event_id]
    assert verify(path).problems == ()


async def test_an_emit_that_could_wait_is_refused_in_a_forked_child_too(path: Path, disk: Disk) -> None:
    log = AuditLog(path)
    async with open_bus(disk, log) as bus:
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                try:
                    await bus.emit("order.placed", {})
                except aperion.AuditUnavailable as error:
                    code = 0 if "forked" in str(error) else 2
            os._exit(code)
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
