"""Erasure: what a log says of one person is gone with that person's key, and the chain stays whole."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import aperion
from aperion.audit import AuditLog, Rotation, Subjects
from aperion.audit import subjects as module
from aperion.audit.chain import opened
from aperion.redaction import Mode, RedactionKey, Redactor

pytestmark = pytest.mark.anyio

OWN = RedactionKey("own", bytes(range(32)))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def keys(tmp_path: Path) -> Subjects:
    return Subjects(tmp_path / "keys" / "subjects.keys", of=lambda event: event.payload.get("customer"))


def log_with(subjects: Subjects | None, **options: Any) -> AuditLog:
    redactor = Redactor(modes={"EMAIL": Mode.ENCRYPT}, key_modes={"name": Mode.ENCRYPT}, key=OWN)
    path = subjects.path.parents[1] / "logs" / "events.jsonl" if subjects else Path("none")
    return AuditLog(path, redactor=redactor, subjects=subjects, **options)


async def recorded(audit: AuditLog, *payloads: dict[str, Any]) -> list[dict[str, Any]]:
    async with aperion.EventBus(audit=audit) as bus:
        for payload in payloads:
            await bus.emit("order.placed", payload)
    return [dict(record.fields["payload"]) for record in audit.read(kinds="accepted")]


async def test_each_subject_has_a_key_and_each_value_comes_back_with_it(keys: Subjects) -> None:
    ada, bob, again = await recorded(
        log_with(keys),
        {"customer": "c1", "name": "Ada", "mail": "ada@example.com"},
        {"customer": "c2", "name": "Bob"},
        {"customer": "c1", "name": "Ada"},
    )

    assert [keys.reveal(shown) for shown in (ada["name"], ada["mail"], bob["name"])] == [
        "Ada",
        "ada@example.com",
        "Bob",
    ]
    ids = [shown["name"].split(":")[1] for shown in (ada, bob, again)]
    assert ids[0] == ids[2] != ids[1]
    assert "own" not in ids


async def test_who_is_forgotten_cannot_be_read_in_any_file_and_the_chain_is_whole(keys: Subjects) -> None:
    audit = log_with(keys, rotation=Rotation(max_bytes=2_000, compress="gzip"))
    async with aperion.EventBus(audit=audit) as bus:
        for number in range(30):
            await bus.emit("order.placed", {"customer": f"c{number % 2}", "name": f"Person {number}"})
            await anyio.sleep(0.003)
        while audit.stats().buffered_bytes:  # what the log's own thread has not written yet
            await anyio.sleep(0.01)
        before = audit.verify()
        assert await audit.forget("c1") is True
        assert await audit.forget("c1") is False
        assert await audit.forget("nobody") is False

    shown = [record.fields["payload"] for record in audit.read(kinds="accepted")]
    assert [keys.reveal(payload["name"]) for payload in shown[::2]] == [f"Person {n}" for n in range(0, 30, 2)]
    destroyed = {payload["name"].split(":")[1] for payload in shown[1::2]}
    for payload in shown[1::2]:
        with pytest.raises(aperion.ConfigurationError, match="destroyed"):
            keys.reveal(payload["name"])
    assert len(before.segments) > 3
    assert audit.verify().ok
    told = [record.fields["detail"] for record in audit.read(kinds="log") if "forgotten" in record.fields["detail"]]
    assert told == [{"forgotten": {"key": destroyed.pop()}}]
    assert b"c1" not in keys.path.read_bytes()


async def test_the_secret_of_who_is_forgotten_is_overwritten_and_that_of_others_is_not(keys: Subjects) -> None:
    keys.open()
    gone, kept = keys.key("c1"), keys.key("c2")

    assert keys.forget("c1") == gone.id

    content = keys.path.read_bytes()
    keys.close()
    assert gone.secret not in content
    assert kept.secret in content


async def test_who_comes_again_has_a_new_key(keys: Subjects) -> None:
    audit = log_with(keys)
    async with aperion.EventBus(audit=audit) as bus:
        await bus.emit("order.placed", {"customer": "c1", "name": "Ada"})
        await audit.forget("c1")
        await bus.emit("order.placed", {"customer": "c1", "name": "Ada"})

    old, new = [record.fields["payload"]["name"] for record in audit.read(kinds="accepted")]
    assert keys.reveal(new) == "Ada"
    with pytest.raises(aperion.ConfigurationError):
        keys.reveal(old)


async def test_another_process_forgets_while_the_log_is_open(keys: Subjects) -> None:
    audit = log_with(keys)
    async with aperion.EventBus(audit=audit) as bus:
        await bus.emit("order.placed", {"customer": "c1", "name": "Ada"})
        code = "import sys; from aperion.audit import Subjects; print(Subjects(sys.argv[1], of=str).forget('c1') is not None)"
        done = await anyio.to_thread.run_sync(
            lambda: subprocess.run([sys.executable, "-c", code, str(keys.path)], capture_output=True, check=True)
        )
        await bus.emit("order.placed", {"customer": "c1", "name": "Ada"})

    old, new = [record.fields["payload"]["name"] for record in audit.read(kinds="accepted")]
    assert done.stdout.strip() == b"True"
    assert keys.reveal(new) == "Ada"
    with pytest.raises(aperion.ConfigurationError):
        keys.reveal(old)


async def test_what_is_of_nobody_has_the_key_of_the_redactor(keys: Subjects) -> None:
    audit = log_with(keys)

    (shown,) = await recorded(audit, {"name": "Ada"})

    assert shown["name"].split(":")[1] == "own"
    assert Redactor(modes={"EMAIL": Mode.ENCRYPT}, key=OWN).reveal(shown["name"]) == "Ada"


@pytest.mark.parametrize("of", [lambda event: event.payload["missing"], lambda event: 42])
async def test_what_is_of_nobody_knows_whom_is_hidden_and_the_record_is_there(tmp_path: Path, of: Any) -> None:
    audit = AuditLog(tmp_path / "events.jsonl", subjects=Subjects(tmp_path / "keys", of=of))
    async with aperion.EventBus(audit=audit) as bus:
        await bus.emit("order.placed", {"name": "Ada"}, key="order-1")

    (record,) = audit.read(kinds="accepted")
    assert record.fields["payload"] == "[REDACTED_ERROR]"
    assert record.event_type == "order.placed"
    assert "Ada" not in audit.path.read_text()


async def test_errors_of_handlers_are_encrypted_for_the_subject_too(keys: Subjects) -> None:
    audit = log_with(keys)
    bus = aperion.EventBus(audit=audit)

    @bus.on("order.placed")
    async def fail(event: Any) -> None:
        raise ValueError("no account for ada@example.com")

    async with bus:
        await (await bus.emit("order.placed", {"customer": "c1"})).settled()

    (ended,) = audit.read(kinds="outcome", state="failed")
    marker = ended.fields["error"].removeprefix("no account for ")
    assert keys.reveal(marker) == "ada@example.com"
    keys.forget("c1")
    with pytest.raises(aperion.ConfigurationError):
        keys.reveal(marker)


async def test_keys_survive_and_the_file_grows(keys: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MORE", 8)
    keys.open()
    made = {f"c{number}": keys.key(f"c{number}") for number in range(100)}
    keys.forget("c7")
    keys.tend(durable=True)
    keys.close()

    again = Subjects(keys.path, of=keys.of)
    again.open()
    known = {subject: again.key(subject) for subject in made}
    again.close()

    assert {subject for subject in made if known[subject] != made[subject]} == {"c7"}
    assert len({key.secret for key in made.values()}) == 100
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.path.parent.stat().st_mode) == 0o700


async def test_at_the_level_disk_a_key_is_on_the_disk_before_what_it_encrypts(
    keys: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    really = os.fdatasync

    def watched(fd: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        really(fd)

    audit = log_with(keys, sync="disk")
    async with aperion.EventBus(audit=audit) as bus:
        await bus.emit("order.placed", {})
        monkeypatch.setattr(os, "fdatasync", watched)
        await bus.emit("order.placed", {"customer": "c1", "name": "Ada"})
        first = list(calls)
        calls.clear()
        await bus.emit("order.placed", {"customer": "c1", "name": "Ada"})
        second = list(calls)

    assert first[:2] == ["subjects.keys", "events.jsonl"]
    assert "subjects.keys" not in second


async def test_two_processes_do_not_write_the_same_keys(keys: Subjects) -> None:
    keys.path.parent.mkdir()
    with keys.path.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(aperion.AuditError, match="another process"):
            await log_with(keys).start()


async def test_two_logs_of_one_process_share_keys(keys: Subjects, tmp_path: Path) -> None:
    one, two = log_with(keys), AuditLog(tmp_path / "two.jsonl", subjects=keys)
    async with aperion.EventBus(audit=one), aperion.EventBus(audit=two):
        key = keys.key("c1")
    await one.start()
    assert keys.key("c1") == key
    await one.aclose()


@pytest.mark.parametrize("content", [b"", b"something else\n" * 20, b"short"])
async def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    subjects = Subjects(path, of=str)

    with pytest.raises(aperion.AuditError):
        subjects.forget("c1")
    if content:
        with pytest.raises(aperion.AuditError):
            await AuditLog(tmp_path / "events.jsonl", subjects=subjects).start()
        assert path.read_bytes() == content


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(secrets.token_bytes(64))
    (tmp_path / "keys").symlink_to(tmp_path / "target")

    with pytest.raises(aperion.AuditUnavailable):
        await AuditLog(tmp_path / "events.jsonl", subjects=Subjects(tmp_path / "keys", of=str)).start()


async def test_a_log_without_subjects_says_so(tmp_path: Path) -> None:
    async with aperion.EventBus(audit=(audit := AuditLog(tmp_path / "events.jsonl"))):
        with pytest.raises(aperion.AuditError, match="subjects="):
            await audit.forget("c1")
    with pytest.raises(aperion.AuditError, match="closed"):
        await log_with(Subjects(tmp_path / "keys" / "k", of=str)).forget("c1")
    with pytest.raises(aperion.ConfigurationError, match="cannot be called"):
        Subjects(tmp_path / "keys", of="customer")  # type: ignore[arg-type]  # the mistake under test


async def test_a_disk_that_has_no_room_for_a_key_refuses_the_event(
    keys: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    audit, handled = log_with(keys), []
    bus = aperion.EventBus(audit=audit)
    bus.subscribe(handled.append, "order.*")
    async with bus:
        monkeypatch.setattr(keys, "_free", [])
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(aperion.AuditUnavailable, match="no space left on device, for the keys"):
            await bus.emit("order.placed", {"customer": "c1"})
        monkeypatch.undo()
        await (await bus.emit("order.placed", {"customer": "c1"})).settled()

    assert len(handled) == 1
    assert all(opened(line) for line in audit.path.read_bytes().splitlines())


@pytest.mark.parametrize("part", ["salt", "hash", "id", "secret"])
async def test_a_damaged_file_of_keys_never_says_that_there_is_nothing_to_forget(keys: Subjects, part: str) -> None:
    """One flipped bit, and the key of somebody would not be found, and would still open what was said of him."""
    audit = log_with(keys)
    async with aperion.EventBus(audit=audit) as bus:
        await bus.emit("order.placed", {"customer": "c1", "name": "Ada"})
    whole = keys.path.read_bytes()
    [slot] = [at for at in range(64, len(whole), 64) if any(whole[at : at + 16])]
    damaged = bytearray(whole)
    damaged[{"salt": 40, "hash": slot + 3, "id": slot + 20, "secret": slot + 50}[part]] ^= 4
    keys.path.write_bytes(damaged)

    with pytest.raises(aperion.AuditError, match="damaged"):
        keys.forget("c1")
    keys.path.write_bytes(whole)
    assert keys.forget("c1") is not None
    assert keys.forget("c1") is None


async def test_whose_key_is_damaged_gets_a_new_one_and_a_file_without_checksums_is_read(keys: Subjects) -> None:
    keys.open()
    old = keys.key("c1")
    keys.close()
    content = bytearray(keys.path.read_bytes())
    [slot] = [at for at in range(64, len(content), 64) if any(content[at : at + 16])]

    content[slot + 50] ^= 4
    keys.path.write_bytes(content)
    keys.open()
    new = keys.key("c1")
    keys.close()
    content[slot + 50] ^= 4
    content[slot + 26 : slot + 30] = content[28:32] = bytes(4)
    keys.path.write_bytes(content)
    keys.open()
    again = keys.key("c1")
    keys.close()

    assert new.secret != old.secret
    assert again.secret == old.secret
