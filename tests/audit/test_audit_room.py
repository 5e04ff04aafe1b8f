"""Who waits for the audit log when records come faster than the disk takes them: emitters, and never the loop."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from faulty_disk import Disk

import aperion
from aperion import EventBus
from aperion.audit import AuditLog, Checkpoints, Rotation, verify

pytestmark = pytest.mark.anyio

SMALL = 1 << 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "events.jsonl"


def records(path: Path) -> list[dict]:
    files = sorted(path.parent.glob("events*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("policy", ["required", "best_effort"])
@pytest.mark.parametrize("way", ["emit", "dispatch", "emit_from_thread", "outbox"])
async def test_no_event_is_refused_and_no_outcome_lost_on_a_disk_that_works(path: Path, way: str, policy: str) -> None:
    """However fast they come and however often the file is full: there is room for how events in flight end."""
    log = AuditLog(path, buffer_bytes=SMALL, on_failure=policy, rotation=Rotation(max_bytes=50_000))
    async with EventBus(audit=log) as bus:
        bus.subscribe(lambda event: None, "order.thread", name="thread")

        @bus.on("order.placed", name="count")
        async def count(event: aperion.Event) -> None: ...

        async def send() -> None:
            for number in range(300):
                payload = {"number": number, "text": "x" * 300}
                match way:
                    case "emit_from_thread":
                        await anyio.to_thread.run_sync(bus.emit_from_thread, "order.placed", payload)
                    case "outbox":
                        async with bus.outbox() as outbox:
                            outbox.emit("order.placed", payload)
                    case _:
                        await getattr(bus, way)("order.placed", payload)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(send)
            await bus.wait_settled()
        assert log.stats().missing == 0

    kinds = [record["kind"] for record in records(path)]
    assert (kinds.count("accepted"), kinds.count("outcome"), kinds.count("gap")) == (1_500, 1_500, 0)
    assert verify(path).ok


async def test_the_loop_goes_on_while_emitters_wait_for_a_disk_that_stands_still(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait; other tasks do not; and when it gets on, all that waited is accepted and handled."""
    disk = Disk(path.parent, monkeypatch)
    log = AuditLog(path, buffer_bytes=SMALL)
    accepted, turns = [], 0
    async with EventBus(audit=log) as bus:
        disk.stands_still("write")

        async def send() -> None:
            for number in range(200):
                accepted.append((await bus.emit("order.placed", {"number": number, "text": "x" * 500})).event_id)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                while not log.is_crowded:
                    await anyio.lowlevel.checkpoint()
                waiting = len(accepted)
                for _ in range(200):
                    await anyio.lowlevel.checkpoint()
                    turns += 1
                assert len(accepted) == waiting < 200
                disk.heals()
        assert log.stats().missing == 0

    assert turns == 200
    assert [record["event_id"] for record in records(path) if record["kind"] == "accepted"] == accepted
    assert len(accepted) == 200


async def test_a_disk_that_stands_still_for_long_is_waited_for_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the failure policy decides, for every emitter, until it gets on."""
    monkeypatch.setattr("aperion.audit.buffer._PATIENCE", 0.05)
    disk = Disk(path.parent, monkeypatch)
    log = AuditLog(path, buffer_bytes=SMALL)
    async with EventBus(audit=log) as bus:
        disk.stands_still("write")
        with anyio.fail_after(30), pytest.raises(aperion.AuditUnavailable, match="the disk does not keep up"):
            while True:
                await bus.emit("order.placed", {"text": "x" * 500})
        with pytest.raises(aperion.AuditUnavailable):
            await bus.emit("order.placed", {"text": "x" * 500})
        with pytest.raises(aperion.AuditUnavailable):
            await anyio.to_thread.run_sync(bus.emit_from_thread, "order.placed", {"text": "x" * 500})
        disk.heals()
        with anyio.fail_after(30):
            while log.stats().buffered_bytes:
                await anyio.sleep(0.01)
        await bus.emit("order.placed", {"text": "again"})

    assert [record["payload"]["text"] for record in records(path) if record["kind"] == "accepted"][-1] == "again"


async def test_emit_nowait_does_not_wait_for_the_disk_either(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the room there is, and raises."""
    disk = Disk(path.parent, monkeypatch)
    log = AuditLog(path, buffer_bytes=SMALL)
    async with EventBus(audit=log) as bus:
        disk.stands_still("write")
        number = 0
        with pytest.raises(aperion.AuditUnavailable):
            while True:
                bus.emit_nowait("order.placed", {"text": "x" * 500})
                number += 1
        disk.heals()

    assert number * 500 > SMALL // 2


async def test_checkpoints_come_after_as_many_records_as_was_asked_for(path: Path) -> None:
    """However many come at once."""
    done = threading.Event()
    log = AuditLog(path, checkpoints=Checkpoints(every=10))
    async with EventBus(audit=log) as bus:
        for number in range(200):
            bus.emit_nowait("order.placed", {"number": number})
        await bus.wait_settled()
        done.set()

    numbers = [record["seq"] for record in records(path) if record["kind"] == "checkpoint"]
    assert all(later - earlier <= 11 for earlier, later in zip([0, *numbers], numbers, strict=False))
    assert len(numbers) >= 20
