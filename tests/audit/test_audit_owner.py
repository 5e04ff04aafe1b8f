"""A process that is refused a log is told who has it, and never the number of a process that is dead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import aperion
from aperion.audit import AuditLog
from aperion.audit.ring import leftover, lock

pytestmark = pytest.mark.anyio

DEAD = """
import os, signal, sys
import anyio, aperion

async def main():
    log = aperion.AuditLog(sys.argv[1])
    await log.start()
    log.accepted(aperion.Event("order.placed", {}))
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "events.jsonl"


@pytest.fixture
def dead(path: Path) -> int:
    """Return the number of a process that has left its ring behind."""
    environment = {**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parents[1])}
    command = [sys.executable, "-c", DEAD, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    return int(done.stdout)


def ring_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.ring")


async def test_who_has_just_taken_a_ring_that_a_dead_process_left_is_named(path: Path, dead: int) -> None:
    """It has not yet looked at what is in it."""
    fd = lock(ring_of(path), path)
    with pytest.raises(aperion.AuditUnavailable) as refused:
        await AuditLog(path).start()
    left = leftover(fd, ring_of(path), path)
    os.close(fd)

    assert f"process {os.getpid()} writes it" in str(refused.value)
    assert left is not None
    # What the process has recorded is still there; its writer may have had time to bring it over.
    assert (left.content + path.read_bytes()).count(b'"kind":"accepted"') == 1


async def test_where_the_number_is_that_of_a_dead_process_none_is_named(
    path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the lock has had no time to write its own."""
    monkeypatch.setattr("aperion.audit.ring._sign", lambda fd: None)
    fd = lock(ring_of(path), path)
    with pytest.raises(aperion.AuditUnavailable) as refused:
        await AuditLog(path).start()
    os.close(fd)

    assert "another process writes it" in str(refused.value)
    assert str(dead) not in str(refused.value)


async def test_a_ring_that_was_only_locked_holds_nothing_and_can_be_used(path: Path) -> None:
    path.parent.mkdir()
    os.close(lock(ring_of(path), path))
    async with aperion.EventBus(audit=AuditLog(path)) as bus:
        await bus.emit("order.placed", {})

    assert path.read_text().count('"kind":"accepted"') == 1
    assert not ring_of(path).exists()


async def test_a_file_that_is_no_ring_is_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    ring_of(path).write_bytes(b"something else, longer than a few words of a header are")
    with pytest.raises(aperion.AuditUnavailable):
        await AuditLog(path).start()

    assert ring_of(path).read_bytes() == b"something else, longer than a few words of a header are"
