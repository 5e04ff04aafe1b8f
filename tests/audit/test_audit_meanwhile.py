"""Reading and verifying while files are rotated, compressed and removed, and after a disk has failed."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from faulty_disk import Disk
from test_audit import open_log, placed, until
from test_audit_reading import body, seqs, write
from test_audit_verify import KEY, NEW_KEY, Writing, event

from aperion.audit import AuditLog, Checkpoints, Rotation, verify
from aperion.audit.chain import opened
from aperion.audit.compression import compress
from aperion.audit.query import Query
from aperion.audit.reading import Reading
from aperion.audit.record import about_log
from aperion.audit.segments import index_path, sealed_path, sealed_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "events.jsonl"


@pytest.fixture
def disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(path.parent, monkeypatch)
    yield disk
    disk.heals()


# While it is written


async def test_no_false_alarm_and_no_record_missed_while_files_are_written_compressed_and_removed(path: Path) -> None:
    """With files so small that many go while one verification or reading is under way."""
    rotation = Rotation(max_bytes=5_000, keep=1, compress="gzip")
    stop, wrong, done = threading.Event(), list[Any](), Counter[str]()

    def look(log: AuditLog) -> None:
        while not stop.is_set():
            found = log.verify(keys=[KEY.public])
            wrong.extend(found.problems)
            done["verified"] += 1
            for newest_first in (False, True):
                numbers = seqs(log.read(newest_first=newest_first))
                done["read"] += 1
                if numbers != sorted(set(numbers), reverse=newest_first):
                    wrong.append(numbers)

    async with open_log(path, rotation=rotation, checkpoints=Checkpoints(every=20, key=KEY)) as log:
        log.accepted(placed("0"))
        await until(lambda: log.stats().buffered_bytes == 0)
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, look, log)
            try:
                while done["verified"] < 20 or log.stats().rotations < 200:
                    for number in range(20):
                        log.accepted(placed(str(number)))
                    await until(lambda: log.stats().buffered_bytes < 100_000)
                    await anyio.sleep(0.001)
            finally:
                stop.set()

    assert wrong == []


def test_files_that_go_while_the_log_is_verified_are_no_alarm(path: Path) -> None:
    """Between two files, one of which has been opened; a file that goes without a record is one."""
    writing = Writing(path)
    path.parent.mkdir()
    ends = []
    for number in range(1, 8):
        writing.begin()
        writing.add(*(event(10 * number + each) for each in range(5)))
        if number == 7:
            names = [sealed_path(path, each).name for each in range(1, 6)]
            writing.add(about_log("log", {"pruned": names, "last_seq": ends[4].seq, "last_hash": ends[4].hash}))
        writing.end(live=number == 7)
        ends.append(writing.link)

    def goes(_done: int, _total: int) -> None:
        for number in (1, 2, 3, 4):
            sealed_path(path, number).unlink(missing_ok=True)

    assert verify(path, progress=goes).problems == ()
    sealed_path(path, 6).unlink()
    assert [problem.kind.value for problem in verify(path).problems] == ["missing_segment"]


def test_files_that_go_one_by_one_while_the_log_is_verified_are_no_alarm(path: Path) -> None:
    """Each with a record of its own, of which the first ones go too; what no record tells of is found."""
    writing = Writing(path)
    path.parent.mkdir()
    end = writing.link
    for number in range(1, 8):
        writing.begin()
        writing.add(*(event(10 * number + each) for each in range(5)))
        if number > 2:  # the one before the last is removed
            detail = {"pruned": [sealed_path(path, number - 2).name], "last_seq": end.seq, "last_hash": end.hash}
            writing.add(about_log("log", detail))
        writing.end(live=number == 7)
        end = opened(sealed_path(path, number - 1).read_bytes().splitlines()[-1]).link if number > 1 else end  # type: ignore[union-attr]
    sealed_path(path, 1).unlink()
    for number in (3, 4, 5):
        sealed_path(path, number).unlink()

    assert verify(path).problems == ()
    sealed_path(path, 6).unlink()
    assert [problem.kind.value for problem in verify(path).problems] == ["missing_segment"]


@pytest.mark.parametrize("gone", [1, 2, 3])
async def test_a_process_that_dies_between_two_removals_leaves_no_alarm(path: Path, gone: int) -> None:
    """The record names three files, of which some are still there."""
    writing = Writing(path)
    for number in range(1, 6):
        writing.begin()
        writing.add(*(event(10 * number + each) for each in range(5)))
        if number == 3:
            end = writing.link
        if number == 5:
            names = [sealed_path(path, each).name for each in (1, 2, 3)]
            writing.add(about_log("log", {"pruned": names, "last_seq": end.seq, "last_hash": end.hash}))
        path.parent.mkdir(exist_ok=True)
        writing.end(live=number == 5)
    for number in range(1, gone + 1):
        sealed_path(path, number).unlink()

    assert verify(path).ok
    sealed_path(path, 4).unlink()
    assert not verify(path).ok


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("becomes_full", ["listed", "opened"])
@pytest.mark.parametrize("becomes_compressed", [False, True])
def test_a_file_that_becomes_full_between_listing_and_opening_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, becomes_full: str, *, newest_first: bool, becomes_compressed: bool
) -> None:
    """Renamed, and the next one not there yet: what was recorded has no other place than a name that nobody listed."""
    write(path, [[body(number) for number in range(100)]])
    real_open, real_list = os.open, os.scandir

    def turn() -> None:
        if not sealed_path(path, 1).exists():
            path.rename(sealed_path(path, 1))
            if becomes_compressed:
                compress(sealed_path(path, 1), "gzip")

    def opening(name: Any, *arguments: Any, **named: Any) -> int:
        if becomes_full == "opened" and Path(os.fsdecode(name)) == path:
            monkeypatch.setattr(os, "open", real_open)
            turn()
        return real_open(name, *arguments, **named)

    def listing(folder: Any) -> Any:
        found = real_list(folder)
        if becomes_full == "listed":
            names = list(found)
            monkeypatch.setattr(os, "scandir", real_list)
            turn()
            return _Listed(names)
        return found

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "scandir", listing)

    found = seqs(Reading(path, Query(newest_first=newest_first)))

    assert sorted(found) == list(range(1, 102))
    assert not path.exists()


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_log_that_was_between_two_files_of_which_the_full_one_went_at_once_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, newest_first: bool
) -> None:
    """As where no full file is kept: neither was there when it was looked for."""
    write(path, [[body(number) for number in range(10)]])
    real = os.open

    def opening(name: Any, *arguments: Any, **named: Any) -> int:
        if Path(os.fsdecode(name)) == path:
            monkeypatch.setattr(os, "open", real)
            raise FileNotFoundError(errno.ENOENT, "between two files")
        return real(name, *arguments, **named)

    monkeypatch.setattr(os, "open", opening)

    assert len(seqs(Reading(path, Query(newest_first=newest_first)))) == 11


class _Listed(list[Any]):
    def __enter__(self) -> _Listed:
        return self

    def __exit__(self, *_error: object) -> None: ...


@pytest.mark.parametrize("what", ["read", "newest", "search", "verify", "follow"])
def test_the_folder_is_listed_a_few_times_however_many_files_there_are(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    write(path, [[body(number)] for number in range(60)])
    listed, real = Counter[str](), os.scandir

    def listing(folder: Any) -> Any:
        listed["folders"] += 1
        return real(folder)

    monkeypatch.setattr(os, "scandir", listing)
    log = AuditLog(path)
    does: dict[str, Callable[[], Any]] = {
        "read": lambda: len(list(log.read())) == 120,
        "newest": lambda: len(list(log.read(newest_first=True))) == 120,
        "search": lambda: len(list(log.read(event_id="event-7"))) == 2,
        "verify": lambda: log.verify().records == 120,
        "follow": lambda: len(list(log.follow(from_end=False, limit=120))) == 120,
    }

    assert does[what]()

    assert listed["folders"] <= 4


# After a device has failed


@pytest.mark.parametrize("codec", [None, "gzip"])
@pytest.mark.parametrize("cannot_cut", [False, True])
@pytest.mark.parametrize("call", ["checkpoint", "key"])
async def test_a_failed_synchronisation_of_a_record_about_the_one_before_reads_as_what_it_is(
    path: Path, disk: Disk, codec: Any, call: str, *, cannot_cut: bool
) -> None:
    """And is no forgery, although the record stands in another file then, after others; nor what is left behind."""
    checkpoints = Checkpoints(every=5, key=KEY)
    async with open_log(path, sync="disk", checkpoints=checkpoints, rotation=Rotation(compress=codec)) as log:
        for number in range(4 if call == "key" else 3):
            log.accepted(placed(str(number)))
            await until(lambda: log.stats().buffered_bytes == 0)
        if cannot_cut:
            disk.fails("ftruncate", errno.EIO, times=1)
        disk.fails("fdatasync", errno.EIO, times=1, after=0 if call == "key" else 1)
        if call == "key":
            log.rotate_key(NEW_KEY)
        else:
            for number in range(20):
                log.accepted(placed(str(number)))
        await until(lambda: sealed_segments(path))
        await until(lambda: log.stats().buffered_bytes == 0)
    async with open_log(path, sync="disk", checkpoints=Checkpoints(key=NEW_KEY if call == "key" else KEY)):
        pass
    for segment in sealed_segments(path):
        if codec is not None and not segment.compression:
            compress(segment.path, codec)

    assert verify(path, keys=[KEY.public]).problems == ()
    numbers = seqs(Reading(path, Query()))
    assert numbers == list(range(1, len(numbers) + 1))


def poisoned(path: Path, codec: Any, *, old: bool = False) -> Writing:
    """Write a log of two files, of which the first was left: its last records stand in the next one too."""
    writing = Writing(path, KEY)
    path.parent.mkdir(exist_ok=True)
    writing.begin()
    writing.add(*(event(number) for number in range(1, 4)))
    end = writing.link
    about_the_end = writing.check() if old else None
    writing.add(event(4), event(5))
    writing.end()
    writing.link = end
    writing.begin()
    detail = {"poisoned": {"segment": sealed_path(path, 1).name, "bytes": 1}, "error": "input/output error"}
    writing.add(about_log("log", detail), *([about_the_end] if about_the_end else []), event(4), event(5), event(6))
    writing.end(live=True)
    if codec is not None:
        compress(sealed_path(path, 1), codec)
    return writing


@pytest.mark.parametrize("codec", [None, "gzip", "zstd"])
@pytest.mark.parametrize("indexed", [True, False])
async def test_what_was_written_anew_after_a_failure_is_read_once(path: Path, codec: Any, *, indexed: bool) -> None:
    poisoned(path, codec)
    if not indexed:
        index_path(path, 1).unlink(missing_ok=True)

    for newest_first in (False, True):
        found = [record.event_id for record in Reading(path, Query(kinds=["accepted"], newest_first=newest_first))]
        assert sorted(found) == ["e1", "e2", "e3", "e4", "e5", "e6"]  # type: ignore[type-var]  # each has one
    assert [record.segment for record in Reading(path, Query(event_id="e4"))] == [path.name]
    assert verify(path).problems == ()


@pytest.mark.parametrize("codec", [None, "gzip"])
async def test_a_checkpoint_that_was_written_anew_as_it_was_is_not_forged(path: Path, codec: Any) -> None:
    """As logs have it that were written before; a checkpoint elsewhere that is about another record is forged."""
    writing = poisoned(path, codec, old=True)

    found = verify(path, keys=[KEY.public])

    assert found.problems == ()
    assert found.unsigned_tail == 6
    writing.check(last=opened(sealed_lines(path)[2]).link)  # type: ignore[union-attr]  # it is a record
    writing.end(live=True)
    assert [problem.kind.value for problem in verify(path, keys=[KEY.public]).problems] == ["forged"]


def sealed_lines(path: Path) -> list[bytes]:
    import gzip

    [segment] = sealed_segments(path)
    content = segment.path.read_bytes()
    return (gzip.decompress(content) if segment.compression else content).splitlines(keepends=True)


async def test_a_copy_of_a_checkpoint_is_compared_with_what_was_written_anew(path: Path) -> None:
    """And not with the record of the same number that was left behind."""
    writing = poisoned(path, None)

    assert verify(path, checkpoints=[{"count": 6, "last": opened(writing.lines[1]).link.hash}]).ok  # type: ignore[union-attr]


async def test_a_file_whose_end_was_written_anew_is_removed_without_an_alarm(path: Path) -> None:
    """The record of its removal tells the end that the next file goes on from."""
    poisoned(path, None)
    async with open_log(path, rotation=Rotation(max_bytes=100_000, keep=0), checkpoints=Checkpoints(key=KEY)) as log:
        log.accepted(placed("1"))
        await until(lambda: not sealed_segments(path))

    assert verify(path).problems == ()


@pytest.mark.parametrize("times", [1, 3])
async def test_lines_that_stand_twice_are_read_once_and_told_as_such(path: Path, times: int) -> None:
    write(path, [[body(number) for number in range(20)]])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:10], *(lines[6:10] * times), *lines[10:]]))

    found = verify(path)

    assert seqs(Reading(path, Query())) == list(range(1, 22))
    assert seqs(Reading(path, Query(newest_first=True))) == list(range(21, 0, -1))
    assert found.last.seq == 21
    assert {(problem.kind.value, problem.text.split(",")[0]) for problem in found.problems} == {
        ("out_of_place", "the records 7 to 10 stand here a second time")
    }
