"""What a start costs, and what it says: it looks at what it has to, and at that once."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import structlog

import aperion
from aperion.audit import AuditLog, Checkpoints, Rotation, verify
from aperion.audit.files import LogFile
from aperion.audit.live import Live
from aperion.audit.ring import Ring, lock

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

CAPACITY = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "events.jsonl"


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note each listing of a folder."""
    listed: list[str] = []
    scandir = os.scandir

    def noted(folder: Any = ".") -> Any:
        listed.append(os.fspath(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", noted)
    return listed


def crash(path: Path, lines: list[bytes]) -> None:
    """Leave behind what a process does that was killed with these lines in its ring."""
    path.parent.mkdir(exist_ok=True)
    live = Live(path, LogFile(path), durable=False)
    live.resume()
    live.begin()
    ring_path = path.with_name(f"{path.name}.ring")
    ring = Ring(ring_path, lock(ring_path, path), CAPACITY, live.place)
    ring.beyond = lambda _end: None
    for line in lines:
        ring.put(line)
    live.file.close()
    ring.close()


LINES = [b'{"time":%d,"kind":"accepted","payload":{"n":%d}}\n' % (n, n) for n in range(2_000)]


async def test_a_folder_is_not_listed_for_each_file_that_becomes_full(path: Path, lists: list[str]) -> None:
    """Neither while a ring is brought over, nor later: that would cost as much as there are files, for each of them."""
    crash(path, LINES)
    log = AuditLog(path, rotation=Rotation(max_bytes=2_000), checkpoints=Checkpoints(every=10**6))
    await log.start()
    for number in range(100):
        log.accepted(aperion.Event("order.placed", {"n": number}))
    await log.aclose()

    assert log.stats().rotations > 10
    assert len([*path.parent.glob("events.*.jsonl")]) > 100
    assert lists.count(os.fspath(path.parent)) < 20
    assert verify(path).ok


async def test_a_number_that_somebody_else_has_used_meanwhile_is_passed_over(path: Path) -> None:
    log = AuditLog(path, rotation=Rotation(max_bytes=2_000))
    await log.start()
    taken = path.with_name("events.000003.jsonl.gz")
    for number in range(100):
        log.accepted(aperion.Event("order.placed", {"n": number}))
        if log.stats().rotations == 1 and not taken.exists():
            taken.write_bytes(b"not ours")
        await anyio.sleep(0.001)
    await log.aclose()

    assert taken.read_bytes() == b"not ours"
    assert not path.with_name("events.000003.jsonl").exists()
    assert path.with_name("events.000004.jsonl").exists()


async def test_a_start_that_has_a_buffer_to_bring_over_says_so(path: Path) -> None:
    crash(path, LINES)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    with structlog.testing.capture_logs() as said:
        log = AuditLog(path)
        await log.start()
        await log.aclose()

    [line] = [line for line in said if "brought over" in line["event"]]
    assert (line["log_level"], line["path"], line["bytes"]) == ("info", str(path), sum(map(len, LINES)))
    assert log.stats().recovered == len(LINES)
    assert verify(path).ok


async def test_a_record_with_an_integer_that_no_fast_parser_knows_is_brought_over(path: Path) -> None:
    large = 10**400
    crash(path, [b'{"time":1,"kind":"accepted","payload":{"n":%d}}\n' % large, b'{"time":2,"kind":"x"\n'])
    log = AuditLog(path)
    await log.start()
    await log.aclose()

    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["payload"]["n"] for record in records if record["kind"] == "accepted"] == [large]
    assert path.with_name("events.jsonl.torn").read_bytes().startswith(b'{"time":2,"kind":"x"\n')
