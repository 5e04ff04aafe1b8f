"""The bus and its audit log: what is recorded, and what an emitter sees when it cannot be."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

import aperion
from aperion import AuditLog, Event, EventBus
from aperion.audit import Rotation

pytestmark = pytest.mark.anyio


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records about events."""
    records = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    return [record for record in records if "event_id" in record]


async def test_every_event_and_every_outcome_is_one_line(tmp_path: Path) -> None:
    """AUD-1 AUD-6 AUD-7 AUD-10: accepted, each attempt, dead letters, drops, rejections, startup and shutdown."""
    path = tmp_path / "logs" / "events.jsonl"
    async with EventBus(audit=AuditLog(path), max_pending_events=1, overflow_policy="drop") as bus:
        bus.subscribe(lambda e: None, "chat.sent", name="fine")

        @bus.on("chat.sent", name="flaky", retry=aperion.Retry(attempts=2, wait_initial=0.001))
        async def flaky(event: Event) -> None:
            raise ValueError("password=hunter2")

        receipt = await bus.emit("chat.sent", {"text": "hi", "password": "hunter2"}, correlation_id="req-1")
        dropped = await bus.emit("chat.sent", {})
        with anyio.fail_after(5):
            await receipt.settled()
        with pytest.raises(aperion.PayloadError):
            await bus.emit("chat.sent", 5)  # type: ignore[call-overload]

    records = [r for r in read(path) if r["event_id"] == receipt.event_id]
    assert [r["kind"] for r in records] == ["accepted", "outcome", "outcome", "outcome", "dead_lettered"]
    assert records[0]["payload"] == {"text": "hi", "password": "[REDACTED]"}
    assert [(r["subscription"], r["attempt"], r["state"]) for r in records[1:4]] == [
        ("fine", 1, "ok"),
        ("flaky", 1, "failed"),
        ("flaky", 2, "failed"),
    ]
    assert {r["correlation_id"] for r in records} == {"req-1"}
    kinds = [r["kind"] for r in read(path)]
    assert kinds.count("dropped") == 1
    assert kinds.count("rejected") == 1
    assert [r["event_id"] for r in read(path) if r["kind"] == "dropped"] == [dropped.event_id]
    types = [r["type"] for r in read(path)]
    assert (types[0], types[-1]) == ("system.startup", "system.shutdown")
    assert types.count("system.shutdown") == 1
    assert "hunter2" not in path.read_text(encoding="ascii")


async def test_without_a_log_no_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUD-2 AUD-e: and the stats say so."""
    monkeypatch.chdir(tmp_path)
    async with EventBus() as bus:
        await bus.emit("chat.sent", {})
        assert not bus.stats().audit_enabled

    assert list(tmp_path.iterdir()) == []


class Full:
    """A log that cannot take any more, as long as it is full."""

    def __init__(self) -> None:
        self.full = False
        self.taken: list[str] = []

    def accepted(self, event: Event[Any]) -> None:
        if self.full:
            raise aperion.AuditUnavailable("events.jsonl", "no space left on device")
        self.taken.append(event.event_id)

    def ended(self, event: Event[Any], outcome: aperion.Outcome) -> None:
        if self.full:
            raise aperion.AuditUnavailable("events.jsonl", "no space left on device")

    def noted(self, kind: str, event: Event[Any], detail: Mapping[str, Any]) -> None:
        if self.full:
            raise aperion.AuditUnavailable("events.jsonl", "no space left on device")

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("way", ["emit", "emit_nowait", "dispatch", "emit_from_thread"])
async def test_what_cannot_be_recorded_is_not_accepted(way: str) -> None:
    """AUD-c: the emitter sees it, nothing is dispatched, no place leaks; outcomes that are lost are counted."""
    ran: list[str] = []
    log = Full()
    async with EventBus(audit=log, max_pending_events=2) as bus:

        @bus.on("chat.sent")
        async def handler(event: Event) -> None:
            ran.append(event.event_id)
            log.full = event.payload.get("fill", False)

        async def emit(payload: dict[str, Any]) -> object:
            if way == "emit_from_thread":
                return await anyio.to_thread.run_sync(bus.emit_from_thread, "chat.sent", payload)
            if way == "emit_nowait":
                return bus.emit_nowait("chat.sent", payload)
            return await getattr(bus, way)("chat.sent", payload)

        with anyio.fail_after(5):
            await emit({"fill": True})
            await bus.wait_settled()
            assert bus.stats().audit_failures == 1
            for _ in range(5):
                with pytest.raises(aperion.AuditUnavailable, match="no space left"):
                    await emit({})
            assert bus.stats().pending == 0
            log.full = False
            for _ in range(3):
                await emit({})
                await bus.wait_settled()
        assert bus.stats().accepted == 4

    assert ran == log.taken


async def test_the_log_hides_what_the_redactor_of_the_bus_hides(tmp_path: Path) -> None:
    """RED-fields: unless it has a redactor of its own."""
    ours, own = tmp_path / "ours.jsonl", tmp_path / "own.jsonl"
    for log in (aperion.AuditLog(ours), aperion.AuditLog(own, redactor=aperion.Redactor())):
        async with aperion.EventBus(audit=log, redactor=aperion.Redactor(redact_keys={"badge"})) as bus:
            await bus.dispatch("door.opened", {"badge": "B-4711"})

    assert "B-4711" not in ours.read_text()
    assert "B-4711" in own.read_text()


async def test_what_threads_emit_is_recorded_once_each(tmp_path: Path) -> None:
    """AUD-3: five threads, ten events each."""
    path = tmp_path / "events.jsonl"
    async with EventBus(audit=AuditLog(path)) as bus, anyio.create_task_group() as group:

        def emit(thread: int) -> None:
            for number in range(10):
                bus.emit_from_thread("batch.sent", {"thread": thread, "n": number})

        for thread in range(5):
            group.start_soon(anyio.to_thread.run_sync, emit, thread)

    sent = [(r["payload"]["thread"], r["payload"]["n"]) for r in read(path) if r["type"] == "batch.sent"]
    assert sorted(sent) == [(thread, number) for thread in range(5) for number in range(10)]
    assert all([n for t, n in sent if t == thread] == list(range(10)) for thread in range(5))


async def test_clearing_removes_every_file_of_a_log_and_nothing_else(tmp_path: Path) -> None:
    """AUD-5 AUD-i: full files too; not while it is open, and not those of others."""
    path, other = tmp_path / "events.jsonl", tmp_path / "events-2.jsonl"
    other.write_text("not ours\n")
    audit = AuditLog(path, rotation=Rotation(max_bytes=1_000, compress="gzip"))
    async with EventBus(audit=audit) as bus:
        for number in range(20):
            await bus.emit("order.placed", {"n": number})
            await anyio.sleep(0.002)
        with pytest.raises(aperion.AuditUnavailable, match=f"process {os.getpid()}"):
            audit.clear()
        with anyio.fail_after(20):
            while not {each.name for each in tmp_path.iterdir()} >= {
                f"events.000001.jsonl{end}" for end in (".gz", ".idx")
            }:
                await anyio.sleep(0.002)
    assert len(list(audit.read(kinds="accepted"))) == 20
    assert len(list(tmp_path.iterdir())) > 6

    removed = audit.clear()

    assert {found.name for found in removed} >= {"events.jsonl", "events.000001.jsonl.gz", "events.000001.jsonl.idx"}
    assert [found.name for found in tmp_path.iterdir()] == ["events-2.jsonl"]
    assert audit.clear() == []
    assert AuditLog(tmp_path / "nowhere" / "events.jsonl").clear() == []
    async with EventBus(audit=audit) as bus:
        await bus.emit("order.placed", {})
    assert audit.verify().ok
    assert audit.verify().first.seq == 0


async def test_stats_count_what_was_recorded(tmp_path: Path) -> None:
    """AUD-9: records and bytes."""
    audit = AuditLog(tmp_path / "events.jsonl")
    async with EventBus(audit=audit) as bus:
        before = audit.stats().records
        await bus.emit("order.placed", {})
        await bus.emit("order.placed", {})
        assert audit.stats().records == before + 2

    assert audit.stats().bytes_written == audit.path.stat().st_size


@pytest.mark.parametrize("thread", [False, True])
async def test_what_a_handler_returns_is_recorded_and_redacted(tmp_path: Path, thread: bool) -> None:
    """AUD-11: and a handler that returns nothing leaves nothing."""
    audit = AuditLog(tmp_path / "events.jsonl")
    bus = EventBus(audit=audit)
    calls = iter([ConnectionError("once"), None])

    def answer() -> dict[str, str]:
        if (error := next(calls)) is not None:
            raise error
        return {"order": "1", "password": "hunter2"}

    async def answer_async(event: Event) -> dict[str, str]:
        return answer()

    handler: Any = (lambda event: answer()) if thread else answer_async
    bus.subscribe(handler, "order.placed", name="answers", retry=aperion.Retry(attempts=2, wait_initial=0.001))
    bus.subscribe(lambda event: 7 if event.payload["odd"] else None, "order.*", name="odd")
    async with bus:
        outcomes = await (await bus.emit("order.placed", {"odd": True})).settled()

    records = {(r["subscription"], r["attempt"]): r.get("returned") for r in read(audit.path) if r["kind"] == "outcome"}
    assert records == {
        ("answers", 1): None,
        ("answers", 2): {"order": "1", "password": "[REDACTED]"},
        ("odd", 1): 7,
    }
    assert outcomes["odd"].attempts[-1].returned == 7
    assert "hunter2" not in audit.path.read_text()


async def test_a_log_is_verified_and_traced_where_it_is_written(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "events.jsonl")
    bus = EventBus(audit=audit)

    @bus.on("order.placed", name="bill")
    async def bill(event: Event) -> None:
        await bus.emit("order.billed", {})

    async with bus:
        await bus.emit("order.placed", {}, correlation_id="request-1")
        await bus.drain()

    (root,) = audit.trace("request-1")
    assert (root.event_type, [child.event_type for child in root.children]) == ("order.placed", ["order.billed"])
    assert [delivery.subscription for delivery in root.deliveries] == ["bill"]
    seen: list[tuple[int, int]] = []
    assert audit.verify(progress=lambda done, total: seen.append((done, total))).ok
    assert seen[-1] == (audit.path.stat().st_size,) * 2
