"""Who redacts what reaches a log: each bus for itself, whatever others do with the same log."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import Field, SecretStr

import aperion
from aperion import Event, EventBus, Redactor
from aperion.audit import AuditLog, Subjects, record, verify
from aperion.outcomes import Attempt, Outcome, OutcomeState
from aperion.redaction import Mode, RedactionKey

pytestmark = pytest.mark.anyio

SECRET = {"badge": "b-17", "room": "r-4"}
SEEN = aperion.Event("audit_user.seen", SECRET)
HIDDEN = "[REDACTED]"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "events.jsonl"


def hides(*keys: str) -> Redactor:
    return Redactor(redact_keys=set(keys))


def of(path: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [r for r in records if r["kind"] == kind and not r.get("type", "").startswith("system.")]


def returned(value: object) -> Outcome:
    state = OutcomeState.OK
    return Outcome("shop.look", state, (Attempt(number=1, state=state, duration=0.001, returned=value),))


async def test_each_recorder_of_a_log_redacts_with_its_own_redactor(path: Path) -> None:
    log = AuditLog(path)
    badges, rooms = log.recorder(hides("badge")), log.recorder(hides("room"))

    with anyio.fail_after(20):
        await badges.start()
        for recorder in (badges, rooms, badges):
            recorder.accepted(SEEN)
            recorder.ended(SEEN, returned(SECRET))
            recorder.noted("dropped", SEEN, SECRET)
        await badges.aclose()

    without_badge, without_room = {**SECRET, "badge": HIDDEN}, {**SECRET, "room": HIDDEN}
    told = [without_badge, without_room, without_badge]
    assert [record["payload"] for record in of(path, "accepted")] == told
    assert [record["returned"] for record in of(path, "outcome")] == told
    assert [record["detail"] for record in of(path, "dropped")] == told
    assert verify(path).ok


async def test_a_log_with_a_redactor_of_its_own_keeps_it_whoever_records(path: Path) -> None:
    log = AuditLog(path, redactor=hides("badge"))
    recorder = log.recorder(hides("room"))

    with anyio.fail_after(20):
        await recorder.start()
        recorder.accepted(SEEN)
        log.accepted(SEEN)
        await recorder.aclose()

    assert [record["payload"] for record in of(path, "accepted")] == [{**SECRET, "badge": HIDDEN}] * 2


async def test_a_log_without_a_bus_redacts_as_a_redactor_does_by_default_whoever_else_records(path: Path) -> None:
    log, event = AuditLog(path), aperion.Event("audit_user.seen", {"password": "hunter2", **SECRET})
    recorder = log.recorder(hides("badge"))

    with anyio.fail_after(20):
        await log.start()
        log.accepted(event)
        recorder.accepted(event)
        log.ended(event, returned({"password": "hunter2"}))
        log.noted("dropped", event, {"password": "hunter2"})
        await log.aclose()

    payloads = [record["payload"] for record in of(path, "accepted")]
    assert payloads[0] == {**SECRET, "password": HIDDEN}
    assert payloads[1]["badge"] == HIDDEN
    assert "hunter2" not in path.read_text()


async def test_with_keys_of_subjects_too_each_recorder_redacts_with_its_own_redactor(
    path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    subjects = Subjects(tmp_path / "subjects.keys", of=lambda event: "c-7")
    log = AuditLog(path, subjects=subjects)
    secret = RedactionKey("own", b"thirty-two bytes or more, as told")
    badges, rooms = (log.recorder(Redactor(key_modes={key: Mode.ENCRYPT}, key=secret)) for key in ("badge", "room"))

    with anyio.fail_after(20):
        await badges.start()
        for recorder in (badges, rooms):
            recorder.accepted(SEEN)
        shown = [record["payload"] for record in of(path, "accepted")]
        while len(shown) < 2:
            await anyio.sleep(0.002)
            shown = [record["payload"] for record in of(path, "accepted")]
        assert [subjects.reveal(shown[0]["badge"]), subjects.reveal(shown[1]["room"])] == ["b-17", "r-4"]
        await badges.aclose()

    assert [shown[0]["room"], shown[1]["badge"]] == ["r-4", "b-17"]


async def test_a_recorder_passes_on_what_its_log_says(path: Path) -> None:
    log = AuditLog(path, sync="disk", kinds={"accepted", "handler_started"})
    recorder = log.recorder(hides("badge"))
    assert recorder.when_synced() is None
    assert not recorder.is_crowded

    with anyio.fail_after(20):
        await recorder.start()
        assert recorder.sync is log.sync
        assert [recorder.wants(kind) for kind in ("accepted", "outcome")] == [True, False]
        recorder.accepted(SEEN)
        recorder.ended(SEEN, returned(SECRET))
        synced = recorder.when_synced()
        assert synced is not None
        await synced
        assert recorder.stats() == log.stats()
        assert recorder.stats().records == 1
        await recorder.room()
        recorder.room_for_thread()
        await recorder.aclose()

    assert not log.stats().available
    assert isinstance(recorder, aperion.protocols.AuditSink)
    with pytest.raises(aperion.AuditUnavailable, match="not open"):
        recorder.accepted(SEEN)


async def test_a_recorder_that_did_not_open_its_log_does_not_close_it_either(path: Path) -> None:
    log = AuditLog(path)
    first, second = log.recorder(hides("badge")), log.recorder(hides("room"))

    with anyio.fail_after(20):
        await first.start()
        with pytest.raises(aperion.AuditUnavailable, match="open already"):
            await second.start()
        await second.aclose()
        first.accepted(SEEN)
        await first.aclose()
        await second.start()
        await first.aclose()
        second.accepted(SEEN)
        await second.aclose()

    assert [record["payload"]["room"] for record in of(path, "accepted")] == ["r-4", HIDDEN]


async def test_a_bus_that_is_merely_made_with_the_log_of_another_changes_nothing_there(path: Path) -> None:
    log = AuditLog(path)
    bus = EventBus(audit=log, redactor=hides("badge"))

    with anyio.fail_after(20):
        async with bus:
            EventBus(audit=log)
            await bus.emit("audit_user.seen", SECRET)

    assert [record["payload"] for record in of(path, "accepted")] == [{**SECRET, "badge": HIDDEN}]


@pytest.mark.parametrize("name", ["accepted", "ended", "noted"])
def test_a_log_that_records_in_a_way_of_its_own_is_refused_when_it_is_declared(name: str) -> None:
    with pytest.raises(aperion.ConfigurationError, match=f"overrides AuditLog.{name}"):
        type("OwnLog", (AuditLog,), {name: lambda *_: None})


class Plain(aperion.Payload, type="plain.payload"):
    name: str
    numbers: tuple[int, ...] = (1, 2)
    ratio: float = 0.5
    note: str | None = None
    hidden: str = Field(default="not for others", exclude=True)


class Shown(aperion.Payload, type="shown.payload"):
    name: str
    numbers: tuple[int, ...] = (1, 2)
    ratio: float = 0.5
    when: date = date(2026, 1, 2)
    text: str | None = None
    raw: bytes = b"\xff"
    secret: SecretStr | None = None


@pytest.mark.parametrize(
    "payload",
    [
        Plain(name="ann"),
        Shown(name="ann"),
        Shown(name="ann", text="é" * 100),
        Shown(name="ann", text="x" * 5_000),
        Shown(name="ann", secret=SecretStr("hunter2")),
    ],
    ids=["with a field that is left out", "atoms", "not ASCII", "long", "a secret"],
)
def test_a_redactor_that_is_switched_off_gives_the_same_record_whichever_way_it_goes(payload: aperion.Payload) -> None:
    class Other(Redactor):
        """Of a class of its own, so that it is always asked."""

    event = Event(payload.event_type, payload)
    lines = [
        json.loads(record.accepted(event, redactor)) for redactor in (Redactor(enabled=False), Other(enabled=False))
    ]

    assert lines[0]["payload"] == lines[1]["payload"]
    assert "not for others" not in str(lines)
    assert "hunter2" not in str(lines)
