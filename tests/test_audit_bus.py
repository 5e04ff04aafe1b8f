"""The bus and its audit log: what is recorded, and what an emitter sees when it cannot be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

import aperion
from aperion import AuditLog, Event, EventBus

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
    """AUD-2: and the stats say so."""
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
