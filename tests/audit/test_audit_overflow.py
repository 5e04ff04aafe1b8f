"""More records than the buffer holds: on a disk that works none is lost, and where one is, that is told exactly."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from faulty_disk import Disk

import aperion
from aperion.audit import AuditLog, Rotation, Subjects, verify
from aperion.audit.spill import SPILL_BYTES
from aperion.outcomes import Attempt, Outcome, OutcomeState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.anyio

SMALL = 1 << 16
LEVELS = ("none", "process", "disk")
POLICIES = ("required", "best_effort")
MANY = 500
"""Outcomes; their records are more than twice what the smallest ring holds."""
PLACED = aperion.Event("order.placed", {"order": 7})
FULL = "the buffer of 65,536 bytes is full"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "events.jsonl"


@pytest.fixture
def disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(path.parent, monkeypatch)
    yield disk
    disk.heals()


@contextlib.asynccontextmanager
async def open_log(path: Path, **options: Any) -> AsyncIterator[AuditLog]:
    log = AuditLog(path, **{"buffer_bytes": SMALL, **options})
    with anyio.fail_after(40):
        await log.start()
        try:
            yield log
        finally:
            await log.aclose()


def outcome(number: int) -> Outcome:
    """Return how a handler ended, whose name is a number."""
    state = OutcomeState.OK
    return Outcome(f"handler-{number}", state, (Attempt(number=1, state=state, duration=0.001),))


def end(log: AuditLog, count: int = MANY, *, first: int = 0) -> None:
    """Record how so many handlers ended, in one go."""
    for number in range(first, first + count):
        log.ended(PLACED, outcome(number))


def subscribe(bus: aperion.EventBus, count: int = MANY) -> None:
    for number in range(count):
        bus.subscribe(lambda event: None, "order.placed", name=f"handler-{number}")


def every_record(path: Path) -> list[dict[str, Any]]:
    files = sorted(path.parent.glob("events.*.jsonl")) + [path]
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def of(path: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in every_record(path) if r["kind"] == kind and not r.get("type", "").startswith("system.")]


def ended(path: Path) -> list[int]:
    """Return the numbers of the handlers of which the log says how they ended, in its order."""
    return [int(record["subscription"].removeprefix("handler-")) for record in of(path, "outcome")]


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread brings about; the caller bounds it."""
    while not condition():
        await anyio.sleep(0.002)


# On a disk that works


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sync", LEVELS)
async def test_an_event_that_ends_in_more_records_than_the_ring_holds_loses_none(
    path: Path, sync: str, policy: str
) -> None:
    log = AuditLog(path, sync=sync, on_failure=policy, buffer_bytes=SMALL, rotation=Rotation(max_bytes=50_000))
    with anyio.fail_after(40):
        async with aperion.EventBus(audit=log) as bus:
            subscribe(bus)
            for _ in range(3):
                receipt = await bus.emit("order.placed", {"order": 7})
                await receipt.settled()
        assert bus.stats().audit_failures == 0

    assert ended(path) == [*range(MANY)] * 3
    assert log.stats().missing == 0
    assert of(path, "gap") == []
    assert verify(path).ok


@pytest.mark.parametrize("policy", POLICIES)
async def test_small_events_from_five_outboxes_lose_no_outcome(path: Path, policy: str) -> None:
    log = AuditLog(path, on_failure=policy, buffer_bytes=SMALL, rotation=Rotation(max_bytes=50_000))
    with anyio.fail_after(60):
        async with aperion.EventBus(audit=log) as bus:
            subscribe(bus, 1)

            async def send() -> None:
                for number in range(300):
                    async with bus.outbox() as outbox:
                        outbox.emit("order.placed", {"number": number})

            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(send)
            await bus.wait_settled()

    assert (len(of(path, "accepted")), len(of(path, "outcome")), log.stats().missing) == (1_500, 1_500, 0)
    assert verify(path).ok


@pytest.mark.parametrize("sync", LEVELS)
async def test_outcomes_that_come_while_the_ring_is_full_are_kept_in_their_order(
    path: Path, disk: Disk, sync: str
) -> None:
    async with open_log(path, sync=sync) as log:
        disk.stands_still("write")
        end(log)
        waiting = log.stats()
        disk.heals()
        await until(lambda: not log.stats().buffered_bytes)
        log.accepted(PLACED)

    assert SMALL < waiting.buffered_bytes < SMALL + SPILL_BYTES
    assert ended(path) == [*range(MANY)]
    assert [record["kind"] for record in every_record(path)][-4:] == ["outcome", "accepted", "stopped", "checkpoint"]
    assert log.stats().missing == 0
    assert verify(path).ok


async def test_notes_that_come_while_the_ring_is_full_are_kept_between_the_outcomes(path: Path, disk: Disk) -> None:
    async with open_log(path) as log:
        disk.stands_still("write")
        end(log)
        log.noted("dead_lettered", PLACED, {"number": 1})
        end(log, 1, first=MANY)
        disk.heals()

    kinds = [record["kind"] for record in every_record(path)]
    assert kinds[-4:] == ["dead_lettered", "outcome", "stopped", "checkpoint"]
    assert ended(path) == [*range(MANY + 1)]


async def test_when_the_ring_is_empty_again_what_waits_goes_first_and_emitters_still_wait(
    path: Path, disk: Disk
) -> None:
    """The loop had no turn since, in which it would have moved that."""
    async with open_log(path) as log:
        ring = log._parts.ring
        disk.stands_still("write")
        end(log)
        disk.heals()
        while ring.head != ring.tail:
            time.sleep(0.001)
        assert log.stats().buffered_bytes > 0
        assert log.is_crowded
        end(log, 1, first=MANY)

    assert ended(path) == [*range(MANY + 1)]


async def test_a_log_that_closes_brings_over_what_waits_behind_the_ring(path: Path, disk: Disk) -> None:
    """The loop has no turn between the record and the end."""
    log = AuditLog(path, buffer_bytes=SMALL, rotation=Rotation(max_bytes=20_000))
    with anyio.fail_after(40):
        await log.start()
        disk.stands_still("write")
        end(log)
        disk.heals()
        await log.aclose()

    assert ended(path) == [*range(MANY)]
    assert log.stats().missing == 0
    assert verify(path).ok
    assert not path.with_name("events.jsonl.ring").exists()


@pytest.mark.parametrize("size", range(420, 600, 30))
async def test_a_log_that_closes_just_when_the_note_of_a_removed_file_has_filled_its_own_brings_over_all(
    path: Path, size: int
) -> None:
    async with open_log(path, rotation=Rotation(max_bytes=3_000, keep_age=0.02)) as log:
        for text in (*["x" * 300] * 8, "x" * size):
            log.accepted(aperion.Event("order.placed", {"text": text}))
        await until(lambda: not log.stats().buffered_bytes)
        await anyio.sleep(0.05)  # the full files become too old
        log._parts.writer._prune_at = 0  # it would look for them in a minute
        log.accepted(aperion.Event("order.placed", {"text": "last"}))

    assert of(path, "accepted")[-1]["payload"]["text"] == "last"
    assert not path.with_name("events.jsonl.ring").exists()
    assert verify(path).ok


async def test_an_outcome_larger_than_what_fits_beside_others_is_kept(path: Path, disk: Disk) -> None:
    """It is nearly half of the ring, and comes when that is full."""
    state = OutcomeState.OK
    large = Outcome("large", state, (Attempt(number=1, state=state, duration=0.001, returned="x" * 31_000),))
    async with open_log(path) as log:
        disk.stands_still("write")
        for _ in range(8):
            log.ended(PLACED, large)
        log.ended(PLACED, Outcome("huge", state, (Attempt(number=1, state=state, duration=0.1, returned="y" * 10**6),)))
        disk.heals()

    returned = [record["returned"] for record in of(path, "outcome")]
    assert returned[:8] == ["x" * 31_000] * 8
    assert returned[8].endswith("[TOO_LARGE]")
    assert verify(path).ok


@pytest.mark.parametrize(("size", "is_whole"), [(31_900, True), (32_450, False)])
async def test_the_largest_record_has_room_behind_that_of_a_gap_in_a_ring_that_is_half_full(
    path: Path, disk: Disk, size: int, is_whole: bool
) -> None:
    """Which is when emitters that wait are let in."""
    async with open_log(path) as log:
        await until(lambda: not log.stats().buffered_bytes)
        disk.stands_still("write")
        log.noted("system", PLACED, {"text": ""})
        empty = log.stats().buffered_bytes
        while (left := SMALL // 2 - log.stats().buffered_bytes) > 0:
            log.noted("system", PLACED, {"text": "x" * (left - empty if left < 3_000 else 1_000)})
        assert not log.is_crowded
        log._buffer.miss()
        log.accepted(aperion.Event("order.placed", {"text": "x" * size}))
        disk.heals()

    [record] = of(path, "accepted")
    assert ("text" in record["payload"]) is is_whole
    assert [gap["detail"]["missing"] for gap in of(path, "gap")] == [1]


async def test_no_outcome_is_lost_while_a_ring_that_was_removed_is_replaced(path: Path) -> None:
    ring, count = path.with_name("events.jsonl.ring"), 0
    async with open_log(path) as log:
        for _ in range(3):
            ring.unlink()
            while not ring.exists() or f'"handler-{count - 1}"'.encode() not in ring.read_bytes():
                end(log, 5, first=count)
                count += 5
                await anyio.sleep(0.001)

    assert ended(path) == [*range(count)]
    assert log.stats().missing == 0


async def test_the_record_of_a_key_that_was_destroyed_is_kept_when_the_ring_is_full(
    path: Path, disk: Disk, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    subjects = Subjects(tmp_path / "subjects.keys", of=lambda event: "c-7")
    async with open_log(path, subjects=subjects) as log:
        log.accepted(PLACED)
        await until(lambda: not log.stats().buffered_bytes)
        disk.stands_still("write")
        end(log)
        assert await log.forget("c-7")
        disk.heals()

    assert [record["detail"].keys() for record in of(path, "log")] == [{"forgotten"}]


# Who waits, and who is refused


async def test_while_outcomes_wait_for_room_who_can_wait_does_and_who_cannot_is_refused(path: Path, disk: Disk) -> None:
    told: list[str] = []
    log = AuditLog(path, buffer_bytes=SMALL)
    with anyio.fail_after(40):
        async with aperion.EventBus(audit=log) as bus, anyio.create_task_group() as tasks:
            subscribe(bus)
            bus.subscribe(lambda event: None, "order.paid", name=f"handler-{MANY}")
            disk.stands_still("write")
            receipt = await bus.emit("order.placed", {"order": 7})
            await receipt.settled()

            async def emit() -> None:
                told.append((await bus.emit("order.paid", {})).event_id)

            tasks.start_soon(emit)
            for _ in range(50):
                await anyio.sleep(0)
            with pytest.raises(aperion.AuditUnavailable, match=FULL):
                bus.emit_nowait("order.paid", {})
            assert (told, log.is_crowded, log.stats().available) == ([], True, False)
            disk.heals()
            await until(lambda: told)

    assert [record["event_id"] for record in of(path, "accepted")] == [receipt.event_id, *told]
    assert ended(path) == [*range(MANY + 1)]


async def test_outcomes_that_wait_do_not_make_a_log_unavailable_that_has_refused_nothing(
    path: Path, disk: Disk
) -> None:
    async with open_log(path) as log:
        disk.stands_still("write")
        end(log)
        state = log.stats()
        disk.heals()

    assert (state.available, state.failure) == (True, None)


async def test_the_disk_has_what_waited_behind_the_ring_before_it_is_said_to_have_what_came_later(
    path: Path, disk: Disk
) -> None:
    async with open_log(path, sync="disk") as log:
        disk.stands_still("fdatasync")
        end(log)
        synced = log.when_synced()
        assert synced is not None
        for _ in range(20):
            await anyio.sleep(0)
        assert not synced.done()
        disk.heals()
        await synced
        there = ended(path)

    assert there == [*range(MANY)]


def futures() -> int:
    gc.collect()
    return sum(type(found) is asyncio.Future for found in gc.get_objects())


async def test_5000_emitters_that_gave_up_waiting_for_room_leave_nothing_behind(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aperion.audit.buffer._PATIENCE", 60)
    log = AuditLog(path, buffer_bytes=SMALL)
    with anyio.fail_after(50):
        async with aperion.EventBus(audit=log) as bus:
            subscribe(bus)
            disk.stands_still("write")
            receipt = await bus.emit("order.placed", {"order": 7})
            await receipt.settled()
            before = futures()
            async with anyio.create_task_group() as tasks:
                for _ in range(5_000):
                    tasks.start_soon(bus.emit, "order.paid", {})
                for _ in range(5):
                    await anyio.sleep(0)
                waiting = futures()
                tasks.cancel_scope.cancel()
            after = futures()
            disk.heals()

    assert waiting - before > 4_900
    assert after - before < 50
    assert len(of(path, "accepted")) == 1


async def test_5000_who_gave_up_waiting_for_the_disk_do_not_pile_up(path: Path, disk: Disk) -> None:
    async with open_log(path, sync="disk") as log:
        disk.stands_still("fdatasync")
        log.accepted(PLACED)
        before = futures()
        for _ in range(5_000):
            waiting = log.when_synced()
            assert waiting is not None
            waiting.cancel()
        after = futures()
        last = log.when_synced()
        assert last is not None
        disk.heals()
        await last

    assert after - before < 200


async def test_a_thread_waits_as_long_as_the_disk_gets_on_however_slowly(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes many times the patience for a disk that stands still."""
    monkeypatch.setattr("aperion.audit.buffer._PATIENCE", 0.1)
    write = os.write

    def slow(fd: int, content: bytes) -> int:
        time.sleep(0.02)
        return write(fd, content)

    monkeypatch.setattr(os, "write", slow)
    log = AuditLog(path, buffer_bytes=SMALL)
    with anyio.fail_after(60):
        async with aperion.EventBus(audit=log) as bus:

            def send() -> None:
                for _ in range(20):
                    bus.emit_from_thread("order.placed", {"text": "x" * 7_000})

            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(anyio.to_thread.run_sync, send)

    assert len(of(path, "accepted")) == 80


# On a disk that does not work


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_disk_that_stands_still_for_long_costs_outcomes_and_memory_stays_bounded(
    path: Path, disk: Disk, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aperion.audit.spill.SPILL_BYTES", 100_000)
    monkeypatch.setattr("aperion.audit.buffer._PATIENCE", 0)
    refusals = 0
    async with open_log(path, on_failure=policy) as log:
        disk.stands_still("write")
        for number in range(2 * MANY):
            try:
                log.ended(PLACED, outcome(number))
            except aperion.AuditUnavailable as error:
                assert FULL in str(error)
                refusals += 1
        state = log.stats()
        disk.heals()
        await until(lambda: log.stats().available and not log.stats().buffered_bytes)
        end(log, 1, first=2 * MANY)

    assert 0 < state.missing == log.stats().missing
    assert refusals == (state.missing if policy == "required" else 0)
    assert SMALL < state.buffered_bytes <= SMALL + 100_000
    assert not state.available
    assert ended(path) == [*range(2 * MANY - state.missing), 2 * MANY]
    assert [gap["detail"]["missing"] for gap in of(path, "gap")] == [state.missing]


async def _until_it_refuses(log: AuditLog) -> None:
    with contextlib.suppress(aperion.AuditUnavailable):
        while log.stats().failure is None:
            log.noted("system", PLACED, {})
            await anyio.sleep(0.001)
    await until(lambda: log.stats().failure)


@pytest.mark.parametrize("sync", LEVELS)
async def test_what_waits_behind_the_ring_outlasts_a_failure_of_the_disk(path: Path, disk: Disk, sync: str) -> None:
    """What comes while it fails is missing, and the gap stands where it was."""
    async with open_log(path, sync=sync) as log:
        disk.stands_still("write")
        end(log)
        disk.heals()
        disk.fails("write", errno.ENOSPC)
        await until(lambda: log.stats().failure)
        waiting = log.stats().buffered_bytes
        with pytest.raises(aperion.AuditUnavailable, match="no space"):
            log.ended(PLACED, outcome(MANY))
        disk.heals()
        await until(lambda: log.stats().available and not log.stats().buffered_bytes)
        end(log, 1, first=MANY + 1)

    assert waiting > 0
    assert ended(path) == [*range(MANY), MANY + 1]
    kinds = [record["kind"] for record in every_record(path)]
    assert kinds[-4:] == ["gap", "outcome", "stopped", "checkpoint"]
    assert of(path, "gap")[0]["detail"]["missing"] == log.stats().missing == 1
    assert verify(path).ok


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_log_that_closes_on_a_disk_that_fails_says_what_waits_and_what_is_lost(
    path: Path, disk: Disk, policy: str
) -> None:
    log = AuditLog(path, buffer_bytes=SMALL, on_failure=policy)
    with anyio.fail_after(40):
        await log.start()
        disk.stands_still("write")
        end(log)
        disk.fails("write", errno.ENOSPC)
        disk.goes_on()
        closing = contextlib.nullcontext()
        if policy == "required":
            closing = pytest.raises(aperion.AuditUnavailable, match=r"no space.* wait in .* and \d+ records are lost")
        with closing:
            await log.aclose()
        disk.heals()
        async with open_log(path):
            pass

    there = ended(path)
    assert there == [*range(len(there))]
    assert [gap["detail"]["missing"] for gap in of(path, "gap")] == [MANY - len(there)] == [log.stats().missing]
    assert verify(path).ok


async def test_a_log_that_closes_on_a_disk_that_stands_still_gives_up_and_the_gap_is_told_when_it_gets_on(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aperion.audit.writer._STALLED", 0.1)
    log = AuditLog(path, buffer_bytes=SMALL)
    with anyio.fail_after(40):
        await log.start()
        disk.stands_still("write")
        end(log)
        with pytest.raises(aperion.AuditUnavailable, match="the disk stands still; .* records are lost"):
            await log.aclose()
        disk.heals()
        await until(lambda: of(path, "stopped"))

    there = ended(path)
    assert there == [*range(len(there))]
    assert [gap["detail"]["missing"] for gap in of(path, "gap")] == [MANY - len(there)] == [log.stats().missing]


KILLED = """
import os, signal, sys, threading
import anyio, aperion

async def main():
    log = aperion.AuditLog(sys.argv[1], buffer_bytes=1 << 16)
    async with aperion.EventBus(audit=log) as bus:
        for number in range(500):
            bus.subscribe(lambda event: None, "order.placed", name=f"handler-{number}")
        while log.stats().buffered_bytes:
            await anyio.sleep(0.001)
        os.write = lambda fd, content: threading.Event().wait()  # the device stands still
        receipt = await bus.emit("order.placed", {})
        await receipt.settled()
        print(receipt.event_id, log.stats().missing, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def test_what_waited_behind_the_ring_of_a_killed_process_is_told_by_the_next_start(path: Path) -> None:
    """It is in memory of the process, other than what is in the ring: lost, and counted."""
    done = run(KILLED, path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    event_id, missing = done.stdout.split()

    async def start_again() -> None:
        async with open_log(path):
            pass

    anyio.run(start_again)

    there = ended(path)
    assert int(missing) == 0
    assert [record["event_id"] for record in of(path, "accepted")] == [event_id]
    assert there == [*range(len(there))]
    assert 0 < [gap["detail"]["missing"] for gap in of(path, "gap")][0] == MANY - len(there) < MANY
    assert verify(path).ok


async def test_a_forked_child_brings_nothing_over_of_what_waits_in_its_parent(path: Path, disk: Disk) -> None:
    async with open_log(path) as log:
        disk.stands_still("write")
        end(log)
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                try:
                    end(log, 1)
                except aperion.AuditUnavailable as error:
                    code = 0 if "forked" in str(error) and not log.stats().buffered_bytes > SMALL else 2
            os._exit(code)
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
        disk.heals()

    assert os.waitstatus_to_exitcode(status) == 0
    assert Counter(ended(path)) == Counter(range(MANY))
    assert of(path, "gap") == []
    assert verify(path).ok


# No descriptor is left

STARVED = """
import logging, os, resource, sys
import anyio, structlog, aperion
from aperion.audit import Rotation

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

def leave(count):
    taken = [os.dup(0) for _ in range(count)]
    last = os.dup(0)
    for fd in (*taken, last):
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last, HARD))

SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
"""
CLOSED = (
    STARVED
    + """
async def main():
    path, sync, policy = sys.argv[1:]
    log = aperion.AuditLog(path, sync=sync, on_failure=policy, rotation=Rotation(max_bytes=5_000), buffer_bytes=1 << 16)
    bus = aperion.EventBus(audit=log, drain_timeout=5)
    with anyio.fail_after(40):
        try:
            async with bus:
                bus.subscribe(lambda event: None, "order.placed", name="handler-0")
                await bus.emit("order.placed", {})
                leave(0)
                try:
                    for _ in range(300):
                        print((await bus.emit("order.placed", {"text": "x" * 200})).event_id)
                        if log.stats().failures > 1:
                            break
                except aperion.AuditUnavailable as error:
                    print("refused", error.reason, file=sys.stderr)
        except* aperion.AuditUnavailable as error:
            print("closed", error, file=sys.stderr)
        resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, HARD))
        await log.start()
        await log.aclose()

anyio.run(main)
"""
)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sync", ["process", "disk"])
def test_a_bus_without_a_descriptor_ends_and_all_it_said_yes_to_is_there_after_the_next_start(
    path: Path, sync: str, policy: str
) -> None:
    done = run(CLOSED, path, sync, policy)

    assert done.returncode == 0, done.stderr
    written = [record["event_id"] for record in of(path, "accepted")]
    gaps = sum(gap["detail"]["missing"] for gap in of(path, "gap"))
    told = done.stdout.split()
    assert told
    if policy == "required":
        assert [event_id for event_id in told if event_id not in written] == []
    else:
        assert len([event_id for event_id in told if event_id not in written]) <= gaps
    assert [event_id for event_id, count in Counter(written).items() if count > 1] == []
    assert verify(path).ok


@pytest.mark.parametrize("call", ["open", "rename"])
async def test_a_log_that_cannot_begin_its_next_file_says_in_the_full_one_that_it_ends(
    path: Path, disk: Disk, call: str
) -> None:
    log = AuditLog(path, rotation=Rotation(max_bytes=2_000), buffer_bytes=SMALL)
    with anyio.fail_after(20):
        await log.start()
        disk.fails(call, errno.EMFILE)
        log.accepted(aperion.Event("order.placed", {"text": "x" * 3_000}))
        await until(lambda: log.stats().failure)
        await log.aclose()
    disk.heals()

    assert [record["kind"] for record in every_record(path)][-3:] == ["accepted", "stopped", "checkpoint"]
    assert verify(path).ok


STARTED = (
    STARVED
    + """
async def main():
    path = sys.argv[1]
    log = aperion.AuditLog(path, rotation=Rotation(max_bytes=5_000), buffer_bytes=1 << 16)
    with anyio.fail_after(40):
        for count in range(12):
            leave(count)
            try:
                await log.start()
            except aperion.AuditUnavailable as error:
                print(error.reason)
            else:
                print("started")
            resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, HARD))
            if not log.stats().available:
                assert not os.path.exists(path + ".ring")
                await log.start()
            log.accepted(aperion.Event("order.placed", {"count": count}))
            await log.aclose()
            print(len(os.listdir("/proc/self/fd")))

anyio.run(main)
"""
)


def test_a_start_without_a_descriptor_is_refused_and_the_next_one_finds_everything_free(path: Path) -> None:
    """Wherever the start has come to when there is none any more."""
    done = run(STARTED, path)

    assert done.returncode == 0, done.stderr
    answers, left = done.stdout.splitlines()[::2], done.stdout.splitlines()[1::2]
    assert answers[0] == "too many open files"
    assert answers[-1] == "started"
    assert set(answers) == {"too many open files", "started"}
    assert len(set(left)) == 1
    assert [record["payload"]["count"] for record in of(path, "accepted")] == [*range(12)]
    assert verify(path).ok
