"""Following a large log takes as little memory as following a small one."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import aperion
from aperion.audit.following import Following
from aperion.audit.query import Query

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = (sys.executable, "-m", "aperion", "audit", "tail", "--json", "-f")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parent.parent)}
MB = 1 << 20


async def written(path: Path, events: int = 100) -> None:
    """Write a log with some events."""
    async with aperion.EventBus(audit=aperion.AuditLog(path)) as bus:
        for n in range(events):
            await bus.emit("order.placed", {"n": n, "text": "x" * 2000})


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the lines of a small log."""
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    anyio.run(written, path)
    return path.read_bytes()


@pytest.fixture
def log(tmp_path: Path, content: bytes) -> Path:
    """Return a log of 6 MB."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(content * (6 * MB // len(content)))
    return path


def peak(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and the most memory in MB that was allocated meanwhile."""
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1] / MB
    finally:
        tracemalloc.stop()


def peak_of_tail(path: Path) -> float:
    """Return the most memory in MB that ``tail -f`` has taken when it has shown the last records."""
    with subprocess.Popen(
        [*COMMAND, str(path)], env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for _ in range(20):
            assert json.loads(process.stdout.readline())["kind"]
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        process.kill()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of a process")
def test_tail_takes_as_much_memory_for_a_large_log_as_for_a_small_one(tmp_path: Path, content: bytes) -> None:
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    small.write_bytes(content)
    large.write_bytes(content * (60 * MB // len(content)))

    assert peak_of_tail(large) < peak_of_tail(small) + 15


def test_following_from_the_end_reads_the_end_alone(log: Path, content: bytes) -> None:
    following, used = peak(lambda: Following(log, Query()))

    with closing(following), log.open("ab") as file:
        file.write(content)
        file.flush()
        found = following.available()
    assert used < 2
    assert len(found) == content.count(b"\n")
    assert following.skipped == 0


def test_following_from_the_end_of_a_compressed_file_unpacks_it_bit_by_bit(log: Path, content: bytes) -> None:
    packed = log.with_name("events.000001.jsonl.gz")
    packed.write_bytes(gzip.compress(log.read_bytes(), 1))
    log.unlink()
    following, used = peak(lambda: Following(log, Query()))

    with closing(following):
        log.write_bytes(content)
        found = following.available()
    assert used < 4
    assert len(found) == content.count(b"\n")


@pytest.mark.parametrize(("kinds", "share"), [((), 1.0), (["segment"], 0.01), (["gap"], 0.0)])
def test_what_has_come_in_the_meantime_is_handed_over_in_parts(log: Path, kinds: list[str], share: float) -> None:
    """Whoever reads the output may have been slow, or asleep."""

    def all_of_it() -> Counter[str]:
        seen: Counter[str] = Counter()
        with closing(Following(log, Query(kinds=kinds), from_end=False)) as following:
            while found := following.available():
                seen.update(record.kind for record in found)
        return seen

    seen, used = peak(all_of_it)

    there = Counter(json.loads(line)["kind"] for line in log.read_bytes().splitlines())
    assert seen == {kind: count for kind, count in there.items() if not kinds or kind in kinds}
    assert bool(seen) == bool(share)
    assert used < 8


def test_a_look_that_finds_nothing_ends_while_others_write_as_fast_as_it_reads(log: Path) -> None:
    class Growing(Following):
        def _read(self) -> bytes:
            with log.open("ab") as file:
                file.write(b"no record " * 30_000 + b"\n")
            return super()._read()

    with closing(Growing(log, Query(kinds=["gap"]), from_end=False)) as following:
        assert following.available() == []


@pytest.fixture
def long_line(tmp_path: Path) -> bytes:
    """Return a line of a log, of almost a megabyte."""
    path = tmp_path / "long.jsonl"

    async def write() -> None:
        log = aperion.AuditLog(path)
        await log.start()
        log.accepted(aperion.Event("order.placed", {"texts": ["x" * 60_000] * 15}))
        await log.aclose()

    anyio.run(write)
    return max(path.read_bytes().splitlines(keepends=True), key=len)


@pytest.mark.parametrize("cut", [0, 1, 500, 300_000])
def test_a_line_that_is_not_finished_is_kept_until_it_is(
    tmp_path: Path, content: bytes, long_line: bytes, cut: int
) -> None:
    """However long it is: its parts may have been read one by one."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(content + long_line[:cut])

    with closing(Following(path, Query())) as following, path.open("ab") as file:
        for start in range(cut, len(long_line), 200_000):
            assert following.available() == []
            file.write(long_line[start : start + 200_000])
            file.flush()
        (record,) = following.available()

    assert record.fields == json.loads(long_line)
    assert following.skipped == 0


def test_a_log_of_one_line_without_an_end_is_followed_from_its_beginning(tmp_path: Path, long_line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(long_line[:-1])

    with closing(Following(path, Query())) as following, path.open("ab") as file:
        file.write(b"\n")
        file.flush()
        (record,) = following.available()

    assert record.fields == json.loads(long_line)
