"""Whoever gives up while the disk is waited for leaves nothing: the event is dropped, or goes its way."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from faulty_disk import Disk

from aperion import AuditLog, Event, EventBus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "events.jsonl"


@pytest.fixture
def disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(path.parent, monkeypatch)
    yield disk
    disk.heals()


def check(bus: EventBus, handled: list[str]) -> None:
    """Each accepted event was handled once, or dropped; nothing of it is left."""
    stats, engine = bus.stats(), bus._engine
    assert engine is not None
    assert stats.pending == 0
    assert stats.accepted == stats.settled + stats.dropped_after
    assert stats.settled == len(handled) == len(set(handled))
    assert not engine.admission.held
    assert engine.queue.is_empty
    assert stats.engine_errors == 0


@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "once told"])
@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("method", ["emit", "dispatch"])
async def test_a_wait_for_the_disk_that_is_cancelled_leaves_nothing(
    path: Path, disk: Disk, method: str, key: str | None, late: bool
) -> None:
    handled: list[str] = []
    with anyio.fail_after(30):
        async with EventBus(audit=AuditLog(path, sync="disk")) as bus:

            @bus.on("disk.asked")
            async def handler(event: Event) -> None:
                handled.append(event.event_id)

            for turns in range(4):
                disk.stands_still("fdatasync")
                tasks = [asyncio.create_task(getattr(bus, method)("disk.asked", {}, key=key)) for _ in range(3)]
                for _ in range(turns + 1):
                    await asyncio.sleep(0)
                if late:
                    disk.heals()
                    while not any(future.done() for future in bus._engine.admission.held.values()):  # type: ignore[union-attr]
                        if all(task.done() for task in tasks) or not bus._engine.admission.held:  # type: ignore[union-attr]
                            break
                        await asyncio.sleep(0)
                tasks[0].cancel()
                tasks[2].cancel()
                disk.heals()
                await asyncio.wait(tasks)
                await bus.wait_settled()
                check(bus, handled)
            await (await bus.emit("disk.asked", {}, key=key)).settled()
            check(bus, handled)
            accepted, dropped = bus.stats().accepted, bus.stats().dropped_after
    kinds = Counter(json.loads(line)["kind"] for line in path.read_text().splitlines())
    assert kinds["accepted"] >= accepted
    assert kinds["dropped"] >= dropped


@pytest.mark.parametrize("method", ["emit", "dispatch"])
async def test_a_wait_for_the_disk_that_is_closed_leaves_nothing(path: Path, disk: Disk, method: str) -> None:
    handled: list[str] = []
    with anyio.fail_after(30):
        async with EventBus(audit=AuditLog(path, sync="disk")) as bus:

            @bus.on("disk.asked")
            async def handler(event: Event) -> None:
                handled.append(event.event_id)

            disk.stands_still("fdatasync")
            coroutine = getattr(bus, method)("disk.asked", {}, key="k")
            waiting = coroutine.send(None)
            assert waiting is not None
            coroutine.close()
            disk.heals()
            await (await bus.emit("disk.asked", {}, key="k")).settled()
            await bus.wait_settled()
            check(bus, handled)


async def test_a_deadline_around_an_emit_that_waits_for_the_disk_is_its_owners(path: Path, disk: Disk) -> None:
    handled: list[Any] = []
    with anyio.fail_after(30):
        async with EventBus(audit=AuditLog(path, sync="disk")) as bus:

            @bus.on("disk.asked")
            async def handler(event: Event) -> None:
                handled.append(event.event_id)

            disk.stands_still("fdatasync")
            for method in ("emit", "dispatch"):
                with anyio.move_on_after(0.01) as scope:
                    await getattr(bus, method)("disk.asked", {})
                assert scope.cancelled_caught
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await getattr(bus, method)("disk.asked", {})
            disk.heals()
            with suppress(TimeoutError):
                await anyio.to_thread.run_sync(lambda: bus.emit_from_thread("disk.asked", {}, timeout=10))
            await bus.wait_settled()
            assert bus.stats().dropped_after == 4
            check(bus, handled)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
