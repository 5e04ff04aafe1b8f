"""A disk that works, however slowly, costs no record: it makes emitters wait, and refuses those who cannot."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from faulty_disk import Disk

import aperion
from aperion.audit import AuditLog, verify

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

SMALL = 1 << 16
POLICIES = ("required", "best_effort")
LITTLE = 20_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "events.jsonl"


@pytest.fixture
def slow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each write to the log take its time."""
    write = os.write

    def slowly(fd: int, content: Any) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") == str(path):
            time.sleep(0.005)
        return write(fd, content)

    monkeypatch.setattr(os, "write", slowly)


@pytest.fixture
def disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(path.parent, monkeypatch)
    yield disk
    disk.heals()


def kinds(path: Path) -> Counter[str]:
    """Count the records of each kind, without what the bus says of itself."""
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    return Counter(record["kind"] for record in records if not record.get("type", "").startswith("system."))


async def ignore(event: aperion.Event[Any]) -> None: ...


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("policy", POLICIES)
async def test_the_outcomes_of_what_was_accepted_have_room_however_many_there_are(
    path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the ring and all that waits behind it where a disk stands still."""
    monkeypatch.setattr("aperion.audit.spill.SPILL_BYTES", LITTLE)
    log = AuditLog(path, buffer_bytes=SMALL, on_failure=policy)
    with anyio.fail_after(60):
        async with aperion.EventBus(audit=log) as bus:
            for number in range(300):
                bus.subscribe(ignore, "order.placed", name=f"handler-{number}")
            for number in range(3):
                await bus.emit("order.placed", {"number": number})
            await bus.wait_settled()
            assert log.stats().buffered_bytes > SMALL + LITTLE

    assert (kinds(path)["accepted"], kinds(path)["outcome"], kinds(path)["gap"]) == (3, 900, 0)
    assert log.stats().missing == 0
    assert verify(path).ok


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("policy", POLICIES)
async def test_emit_nowait_is_refused_or_all_of_its_records_are_kept(
    path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aperion.audit.spill.SPILL_BYTES", LITTLE)
    log = AuditLog(path, buffer_bytes=SMALL, on_failure=policy)
    accepted = refused = 0
    with anyio.fail_after(60):
        async with aperion.EventBus(audit=log) as bus:
            for number in range(5):
                bus.subscribe(ignore, "order.placed", name=f"handler-{number}")
            while not refused or accepted < 200:
                try:
                    bus.emit_nowait("order.placed", {"text": "x" * 300})
                    accepted += 1
                except aperion.AuditUnavailable:
                    refused += 1
                await anyio.sleep(0)
            await bus.wait_settled()
            assert log.stats().buffered_bytes < SMALL + LITTLE + 300_000

    assert (kinds(path)["accepted"], kinds(path)["outcome"], kinds(path)["gap"]) == (accepted, 5 * accepted, 0)
    assert log.stats().missing == 0
    assert verify(path).ok


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["emit", "dispatch"])
async def test_emitters_that_had_to_wait_for_a_place_wait_for_room_too(path: Path, way: str, policy: str) -> None:
    log = AuditLog(path, buffer_bytes=SMALL, on_failure=policy)
    with anyio.fail_after(60):
        async with aperion.EventBus(audit=log, max_pending_events=10) as bus:

            @bus.on("order.placed")
            async def handle(event: aperion.Event[Any]) -> None:
                await anyio.sleep(0)

            async with anyio.create_task_group() as tasks:
                for _ in range(300):
                    tasks.start_soon(getattr(bus, way), "order.placed", {"text": "x" * 500})
            await bus.wait_settled()

    assert (kinds(path)["accepted"], kinds(path)["outcome"], kinds(path)["gap"]) == (300, 300, 0)


@pytest.mark.usefixtures("slow")
async def test_retries_and_dead_letters_of_what_was_accepted_have_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aperion.audit.spill.SPILL_BYTES", LITTLE)
    log = AuditLog(path, buffer_bytes=SMALL)

    async def fail(event: aperion.Event[Any]) -> None:
        raise ValueError("x" * 300)

    with anyio.fail_after(60):
        async with aperion.EventBus(audit=log) as bus:
            for number in range(60):
                bus.subscribe(
                    fail, "order.placed", name=f"handler-{number}", retry=aperion.Retry(attempts=5, wait_initial=0.001)
                )
            await bus.emit("order.placed", {})
            await bus.wait_settled()

    assert (kinds(path)["outcome"], kinds(path)["dead_lettered"], kinds(path)["gap"]) == (
        300,
        61,
        0,
    )  # and one that all have failed
    assert log.stats().missing == 0


async def test_an_emitter_that_gives_up_waiting_for_room_gives_its_place_back(path: Path, disk: Disk) -> None:
    log = AuditLog(path, buffer_bytes=SMALL)
    with anyio.fail_after(60):
        async with aperion.EventBus(audit=log, max_pending_events=1) as bus:
            go = anyio.Event()

            @bus.on("order.placed")
            async def handle(event: aperion.Event[Any]) -> None:
                await go.wait()
                for _ in range(10):
                    log.noted("system", event, {"text": "x" * 5_000})

            async with anyio.create_task_group() as tasks:
                await bus.emit("order.placed", {})
                tasks.start_soon(bus.emit, "order.placed", {})
                await anyio.sleep(0.01)
                disk.stands_still("write")
                go.set()
                while not log.is_crowded or bus.stats().settled < 1:
                    await anyio.sleep(0.001)
                await anyio.sleep(0.01)
                assert bus.stats().accepted == 1
                tasks.cancel_scope.cancel()
            disk.heals()
            await bus.emit("order.placed", {})
            await bus.wait_settled()

    assert kinds(path)["accepted"] == 2
