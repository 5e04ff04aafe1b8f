"""Rotation of the audit log: full files at their limit, each line once, and nobody else's files touched."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import orjson
import pytest
from test_audit import chained, child_environment, open_log, orders, placed, read_all, run_in_child, until

import aperion
from aperion.audit import AuditLog, Checkpoints, Rotation, verify
from aperion.audit.chain import GENESIS, START, Link, seal
from aperion.audit.compression import open_lines
from aperion.audit.following import Following
from aperion.audit.query import Query
from aperion.audit.ring import Place, Ring, lock
from aperion.audit.segments import sealed_segments, segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aperion.audit.query import AuditRecord

pytestmark = pytest.mark.anyio

TINY = Rotation(max_bytes=1)
"""A file for each record."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "events.jsonl"


def lines_of(path: Path) -> list[bytes]:
    """Return the lines of one file, compressed or not."""
    with open_lines(path, path.suffix if path.suffix in {".gz", ".zst"} else "") as file:
        return list(file)


def records(path: Path) -> list[dict[str, Any]]:
    """Return the records of all files of a log."""
    return [json.loads(line) for segment in segments(path) for line in lines_of(segment.path)]


def all_orders(path: Path) -> list[str]:
    return [line["payload"]["order"] for line in records(path) if line["kind"] == "accepted"]


def names(path: Path) -> list[str]:
    """Return the names of the full files of a log."""
    return [segment.path.name for segment in sealed_segments(path)]


async def written(log: AuditLog) -> None:
    await until(lambda: log.stats().buffered_bytes == 0)


# When a file is full


async def test_a_full_file_ends_with_the_record_that_made_it_full(path: Path) -> None:
    """ROT-1 ROT-a: whatever the batches, with checkpoints in between and over restarts; the live file too."""
    limit, numbers = 1_500, itertools.count()
    rotation, often = Rotation(max_bytes=limit), Checkpoints(every=5)
    for _ in range(3):
        async with open_log(path, rotation=rotation, checkpoints=often) as log:
            for number in itertools.islice(numbers, 150):
                log.accepted(placed("x" * (number * 37 % 600)))
                if number % 40 == 0:
                    await written(log)

    full = names(path)
    assert len(full) > 60
    assert full == [f"events.{number:06d}.jsonl" for number in range(1, len(full) + 1)]
    for segment in segments(path):
        lines = lines_of(segment.path)
        last = 2 if b'"kind":"stopped"' in lines[-2] else 1  # the two that end a log stay together
        assert sum(map(len, lines[:-last])) < limit
        assert segment.number is None or sum(map(len, lines)) >= limit
    assert verify(path).ok


async def test_a_limit_below_the_shortest_record_gives_each_a_file_of_its_own(path: Path) -> None:
    async with open_log(path, rotation=Rotation(max_bytes=1, keep=5)) as log:
        for number in range(40):
            log.accepted(placed(str(number)))
        await written(log)
        assert log.stats().rotations >= 39

    assert len(names(path)) == 5
    assert all_orders(path) == ["35", "36", "37", "38", "39"][-len(all_orders(path)) :]
    assert verify(path).ok


@pytest.mark.parametrize("rotation", [Rotation(), Rotation(keep=0, keep_bytes=1, keep_age=0.001)])
async def test_without_a_limit_there_is_one_file(path: Path, rotation: Rotation) -> None:
    """ROT-4: and nothing to remove."""
    for _ in range(2):
        async with open_log(path, rotation=rotation) as log:
            for number in range(300):
                log.accepted(placed(str(number)))

    assert os.listdir(path.parent) == [path.name]
    assert orders(path) == [str(number) for number in range(300)] * 2


async def test_what_a_killed_process_left_goes_into_files_of_the_same_size(path: Path) -> None:
    """ROT-a: however much it is."""
    async with open_log(path, rotation=Rotation(max_bytes=2_000)) as log:
        log.accepted(placed("before"))
    file, ring_path = path.stat(), path.with_name("events.jsonl.ring")
    last = chained(path)
    place = Place((file.st_dev, file.st_ino), file.st_size, Link(last, read_all(path)[-1]["hash"]))
    ring = Ring(ring_path, lock(ring_path, path), 1 << 17, place)
    ring.beyond = lambda _end: None
    for number in range(200):
        ring.put(orjson.dumps({"time": 1, "kind": "accepted", "payload": {"order": str(number)}}) + b"\n")
    ring.close()

    async with open_log(path, rotation=Rotation(max_bytes=2_000)) as log:
        assert log.stats().recovered == 200

    assert len(names(path)) > 10
    assert all(sum(map(len, lines_of(s.path)[:-1])) < 2_000 for s in sealed_segments(path))
    assert all_orders(path) == ["before", *map(str, range(200))]
    assert verify(path).ok


def write_aged(path: Path, seconds: float) -> None:
    """Write a log whose only file began so many seconds ago."""
    path.parent.mkdir()
    begin = {"time": time.time_ns() - int(seconds * 1e9), "kind": "segment", "log": "x", "segment": 1}
    event = {"time": begin["time"], "kind": "accepted", "event_id": "e", "payload": {"order": "old"}}
    bodies = [orjson.dumps({**begin, "previous": GENESIS}) + b"\n", orjson.dumps(event) + b"\n"]
    path.write_bytes(b"".join(seal(bodies, START)[0]))


@pytest.mark.parametrize(("age", "files"), [(3_700, 1), (3_000, 0)])
async def test_a_file_is_full_when_it_is_old_enough_over_restarts_too(path: Path, age: float, files: int) -> None:
    """ROT-1: and not before."""
    write_aged(path, age)

    async with open_log(path, rotation=Rotation(max_age=3_600)) as log:
        log.accepted(placed("new"))

    assert len(names(path)) == files
    assert orders(path)[-1] == "new"
    assert all_orders(path) == ["old", "new"]
    assert verify(path).ok


async def test_a_clock_that_was_set_back_does_not_keep_a_file_young(path: Path) -> None:
    write_aged(path, -10_000)

    async with open_log(path, rotation=Rotation(max_age=0.05)) as log:
        await until(lambda: log.stats().rotations)

    assert names(path) == ["events.000001.jsonl"]


@pytest.mark.parametrize("rotation", [Rotation(max_age=0.02, keep=2), Rotation(max_bytes=1, keep=2)])
async def test_a_log_without_events_does_not_push_out_those_it_has(path: Path, rotation: Rotation) -> None:
    """What it says of itself, that files went and how the chain stands, fills no file."""
    async with open_log(path, rotation=rotation, checkpoints=Checkpoints(seconds=0.001)) as log:
        for number in range(4):
            log.accepted(placed(str(number)))
            await until(lambda number=number: log.stats().rotations > number)  # type: ignore[misc]  # bound early
        await until(lambda: len(names(path)) == 2)
        before = names(path)
        for _ in range(100):
            log.reopen()  # makes the writer look
            await anyio.sleep(0.003)
        assert log.stats().rotations == 4
        assert log.stats().checkpoints > 1

    assert names(path) == before
    assert all_orders(path) == ["2", "3"]


# Names and numbers


async def test_logs_in_one_folder_that_share_a_stem_are_series_of_their_own(tmp_path: Path) -> None:
    """ROT-c/d: each keeps its ending, its numbers and what it was told to keep."""
    kept = {"app.log": 2, "app.json": 4, "app": 1, "app.log.jsonl": 3}
    for name, keep in kept.items():
        async with open_log(tmp_path / name, rotation=Rotation(max_bytes=1, keep=keep)) as log:
            for number in range(8):
                log.accepted(placed(f"{name} {number}"))

    for name, keep in kept.items():
        path = tmp_path / name
        ending = f"{path.stem}.{{:06d}}{path.suffix}"
        assert len(names(path)) == keep
        newest = int(re.findall(r"\d{6}", names(path)[-1])[0])
        assert names(path) == [ending.format(number) for number in range(newest - keep + 1, newest + 1)]
        found = all_orders(path)
        assert found[-1] == f"{name} 7"
        assert {order.partition(" ")[0] for order in found} == {name}
        assert verify(path).ok


async def test_numbers_only_grow_whatever_is_removed_and_however_often_it_starts(path: Path) -> None:
    """ROT-2 ROT-e: with keep=0 there is no full file from which to count."""
    seen: list[str] = []
    for _ in range(4):
        async with open_log(path, rotation=Rotation(max_bytes=1, keep=0)) as log:
            for number in range(5):
                log.accepted(placed(str(number)))
                await written(log)
        assert names(path) == []
        seen += [name for record in read_all(path) for name in record.get("detail", {}).get("pruned", [])]

    told = [int(re.findall(r"\d{6}", name)[0]) for name in seen]
    assert told == sorted(set(told))
    assert told[-1] >= 16
    assert os.listdir(path.parent) == [path.name]
    assert verify(path).ok


async def test_a_full_file_keeps_the_name_that_it_got(path: Path) -> None:
    """ROT-3: renamed once, so that who reads it may go on."""
    found: dict[int, set[str]] = {}
    async with open_log(path, rotation=TINY) as log:
        for number in range(60):
            log.accepted(placed(str(number)))
            await written(log)
            for segment in sealed_segments(path):
                found.setdefault(segment.path.stat().st_ino, set()).add(segment.path.name)

    assert len(found) > 50
    assert {len(known) for known in found.values()} == {1}
    assert all_orders(path) == [str(number) for number in range(60)]


# What stays


@pytest.mark.parametrize("keep", [0, 1, 3])
async def test_the_oldest_files_go_first_and_a_record_tells_what_went(path: Path, keep: int) -> None:
    """ROT-2 ROT-3 ROT-e: never more than keep and the live one; zero is zero; nothing missing in between."""
    async with open_log(path, rotation=Rotation(max_bytes=1_000, keep=keep)) as log:
        for number in range(60):
            log.accepted(placed(str(number)))
            if number % 4 == 0:
                await written(log)
                await until(lambda: len(names(path)) <= keep)

    full = log.stats().rotations
    assert full > 10
    assert names(path) == [f"events.{number:06d}.jsonl" for number in range(full - keep + 1, full + 1)]
    there = records(path)
    pruned = [record["detail"] for record in there if "pruned" in record.get("detail", {})]
    went = [name for detail in pruned for name in detail["pruned"]]
    assert went == [f"events.{number:06d}.jsonl" for number in range(full - keep - len(went) + 1, full - keep + 1)]
    there = records(path)
    assert there[0]["seq"] == pruned[-1]["last_seq"] + 1
    assert there[0]["previous"] == pruned[-1]["last_hash"]
    assert [record["seq"] for record in there] == list(range(there[0]["seq"], there[-1]["seq"] + 1))
    assert verify(path).ok
    async with open_log(path):  # which indexes what the one before has left
        await until(lambda: len(list(path.parent.glob("*.idx"))) == keep)
    assert {found.suffix for found in path.parent.iterdir()} <= {".jsonl", ".idx"}


async def test_files_beyond_so_many_bytes_go(path: Path) -> None:
    """ROT-2: with the limit of bytes that they may have together."""
    async with open_log(path, rotation=Rotation(max_bytes=1_000, keep_bytes=5_000)) as log:
        for number in range(100):
            log.accepted(placed(str(number)))

    sizes = [segment.path.stat().st_size for segment in sealed_segments(path)]
    assert sum(sizes) <= 5_000 < sum(sizes) + max(sizes)
    assert all_orders(path)[-1] == "99"
    assert verify(path).ok


async def test_files_that_are_old_enough_go(path: Path) -> None:
    """ROT-2: by the time of their last record."""
    async with open_log(path, rotation=Rotation(max_bytes=1_000)) as log:
        for number in range(40):
            log.accepted(placed(str(number)))
    before = names(path)
    for segment in sealed_segments(path)[:3]:
        os.utime(segment.path, (0, time.time() - 7_200))

    async with open_log(path, rotation=Rotation(max_bytes=1_000, keep_age=3_600)):
        pass

    assert [name for name in before if name not in names(path)] == before[:3]
    assert all_orders(path)[-1] == "39"
    assert verify(path).ok


# Threads and processes


@pytest.mark.parametrize(
    ("each", "limit", "files"),
    [pytest.param(4_000, 40_000, 200, marks=[pytest.mark.slow, pytest.mark.timeout(120)]), (20, 1, 150)],
)
async def test_lines_of_eight_threads_are_in_the_files_once_each(path: Path, each: int, limit: int, files: int) -> None:
    """ROT-f ROT-3: through the bus, with a file every few lines; in the order of each thread, and the chain whole."""
    log = AuditLog(path, rotation=Rotation(max_bytes=limit))
    with anyio.fail_after(100):
        async with aperion.EventBus(audit=log) as bus, anyio.create_task_group() as group:

            def emit(thread: int) -> None:
                for number in range(each):
                    bus.emit_from_thread("line.written", {"thread": thread, "n": number})

            for thread in range(8):
                group.start_soon(anyio.to_thread.run_sync, emit, thread)

    content = b"".join(segment.path.read_bytes() for segment in segments(path))
    found = [(int(t), int(n)) for t, n in re.findall(rb'"payload":\{"thread":(\d),"n":(\d+)\}', content)]
    for thread in range(8):
        assert [n for t, n in found if t == thread] == list(range(each))
    assert len(found) == 8 * each
    assert len(names(path)) > files
    assert verify(path).ok


LIVES = """
import os, sys
import anyio, anyio._backends._asyncio, aperion  # the backend now, and not in each child
from aperion.audit import Rotation

async def live(number):
    log = aperion.AuditLog(sys.argv[1], rotation=Rotation(max_bytes=10_000))
    async with aperion.EventBus(audit=log) as bus:
        for n in range(50):
            await bus.emit("order.placed", {"order": f"{number}-{n}"})

for number in range(40):
    pid = os.fork()  # before there is a loop or a thread
    if pid == 0:
        anyio.run(live, number)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


async def test_processes_that_live_shortly_rotate_too(path: Path) -> None:
    """ROT-b: none of them writes as much as a file holds."""
    await run_in_child(LIVES, path)

    expected = [f"{number}-{n}" for number in range(40) for n in range(50)]
    found = [r["payload"]["order"] for r in records(path) if r["kind"] == "accepted" and r["type"] == "order.placed"]
    assert found == expected
    full = sealed_segments(path)
    assert len(full) > 50
    for segment in full:
        content = lines_of(segment.path)
        assert sum(map(len, content[:-2])) < 10_000
    assert path.stat().st_size < 11_000
    assert verify(path).ok


OWNER = """
import sys
import anyio, aperion
from aperion.audit import Rotation

async def main():
    log = aperion.AuditLog(sys.argv[1], rotation=Rotation(max_bytes=1_000))
    async with aperion.EventBus(audit=log) as bus:
        print("ready", flush=True)
        for n in range(400):
            await bus.emit("order.placed", {"order": str(n)})
            if n % 10 == 0:
                await anyio.sleep(0.001)
        await anyio.to_thread.run_sync(sys.stdin.read)

anyio.run(main)
"""


async def test_a_second_process_is_refused_and_told_who_writes_the_log(path: Path) -> None:
    """ROT-g ROT-3: while files are rotated; nothing is lost, and it may write when the first is gone."""
    pipe, command = subprocess.PIPE, [sys.executable, "-W", "ignore", "-c", OWNER, str(path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=child_environment()) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        for _ in range(50):
            with pytest.raises(aperion.AuditUnavailable, match=f"process {owner.pid} writes it"):
                await AuditLog(path, rotation=TINY).start()
        owner.communicate(timeout=30)
        assert owner.returncode == 0

    async with aperion.EventBus(audit=AuditLog(path, rotation=TINY)) as bus:
        await bus.emit("order.placed", {"order": "400"})

    found = [r["payload"]["order"] for r in records(path) if r["kind"] == "accepted" and r["type"] == "order.placed"]
    assert found == [str(number) for number in range(401)]
    assert verify(path).ok


# Compression


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
async def test_full_files_are_compressed_behind_the_scenes_and_read_and_verify_as_before(
    path: Path, codec: Any
) -> None:
    if codec == "zstd":
        pytest.importorskip("backports.zstd")
    ending = {"gzip": ".gz", "zstd": ".zst"}[codec]
    async with open_log(path, rotation=Rotation(max_bytes=4_000, compress=codec)) as log:
        events = [placed(f"order-{number}") for number in range(100)]
        for event in events:
            log.accepted(event)
        await written(log)
        await until(lambda: all(name.endswith(ending) for name in names(path)))

        assert len(names(path)) > 5
        assert [record.event_id for record in log.read(kinds="accepted")] == [event.event_id for event in events]
        for event in events[::20]:
            (found,) = log.read(event_id=event.event_id, newest_first=True)
            assert found.fields["payload"]["order"] == event.payload.order
        assert len(list(log.read(text="ORDER-7"))) == 11
        assert verify(path).ok
        assert log.stats().background_failures == 0

    for there in path.parent.iterdir():
        assert there == path or there.name.endswith((f".jsonl{ending}", ".jsonl.idx"))
        assert stat.S_IMODE(there.stat().st_mode) == 0o600


COMPRESSING = """
import os, sys
from pathlib import Path

folders, codec, when, tests = sys.argv[1:]
sys.path.insert(0, tests)
from aperion.audit.compression import compress
from victim import Dying

for number, folder in enumerate(sorted(Path(folders).iterdir()), start=1):
    pid = os.fork()
    if pid == 0:
        dying = Dying(number, when)
        compress(folder / "events.000001.jsonl", codec)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
async def test_compression_that_is_killed_anywhere_leaves_each_record_once(
    tmp_path: Path, codec: Any, when: str
) -> None:
    """Before the next start and after it, which does what was left."""
    if codec == "zstd":
        pytest.importorskip("backports.zstd")
    template = tmp_path / "template" / "events.jsonl"
    async with open_log(template, rotation=Rotation(max_bytes=30_000)) as log:
        for number in range(90):
            log.accepted(placed(str(number)))
    template.with_name("events.000001.jsonl.idx").unlink(missing_ok=True)  # as if it had just become full
    paths = [tmp_path / "killed" / f"{number:02d}" / "events.jsonl" for number in range(1, 17)]
    for path in paths:
        shutil.copytree(template.parent, path.parent)

    codes = (await run_in_child(COMPRESSING, tmp_path / "killed", codec, when, Path(__file__).parent)).split()

    assert codes.count("-9") > 8
    assert codes[-1] == "0"  # so that each call of the system was the last one of one of them
    for path in paths:
        assert all_orders(path) == [str(number) for number in range(90)]
        assert verify(path).ok
        async with open_log(path, rotation=Rotation(max_bytes=30_000, compress=codec)) as log:
            assert log.stats().rotations == 0
            await until(lambda: not path.with_name("events.000001.jsonl").exists())  # which goes last
        assert names(path) == [f"events.000001.jsonl.{'gz' if codec == 'gzip' else 'zst'}"]
        assert len(os.listdir(path.parent)) == 3  # the index and the live file
        assert all_orders(path) == [str(number) for number in range(90)]
        assert verify(path).ok


# Readers


async def test_a_reading_goes_on_in_order_while_the_files_before_it_are_removed(path: Path) -> None:
    """What went while it read is left out; nothing comes twice, and the latest is there."""
    async with open_log(path, rotation=Rotation(max_bytes=1_000, keep=20)) as log:
        for number in range(100):
            log.accepted(placed(str(number)))
        await written(log)
        oldest, newest = iter(log.read(kinds="accepted")), iter(log.read(kinds="accepted", newest_first=True))
        begun, ended = next(oldest), next(newest)
        for number in range(100, 200):
            log.accepted(placed(str(number)))
        await written(log)
        await until(lambda: len(names(path)) == 20)
        forwards = [begun.fields["payload"]["order"], *(r.fields["payload"]["order"] for r in oldest)]
        backwards = [ended.fields["payload"]["order"], *(r.fields["payload"]["order"] for r in newest)]

    found, there = [int(order) for order in forwards], [int(order) for order in all_orders(path)]
    assert found == sorted(set(found))
    assert found[0] < there[0]  # it had begun
    assert found[-len(there) :] == there
    assert [int(order) for order in backwards] == sorted(map(int, set(backwards)), reverse=True)
    assert backwards[0] == "99"


async def test_following_goes_on_when_the_log_is_moved_away_by_others(path: Path) -> None:
    """Also what is written into the file between its move and the call to go on elsewhere."""
    async with open_log(path, rotation=Rotation(max_bytes=2_000)) as log:
        log.accepted(placed("0"))
        await written(log)
        numbers, found = itertools.count(1), []
        followed = Following(path, Query(kinds=["accepted"]), from_end=False)
        for lap in range(8):
            found += followed.available()
            path.rename(path.with_name(f"moved.{lap}"))
            for number in itertools.islice(numbers, 12):
                log.accepted(placed(str(number)))
            await written(log)
            found += followed.available()
            log.reopen()
            await until(path.exists)
            for number in itertools.islice(numbers, 12):
                log.accepted(placed(str(number)))
            await written(log)
        found += followed.available()
        followed.close()

    assert [record.fields["payload"]["order"] for record in found] == [str(number) for number in range(193)]
    assert followed.skipped == 0


class Interrupted(Following):
    """Follows a log that goes on from file to file after each look for the next one."""

    between: Callable[[], None]

    def _read(self) -> bytes:
        self.between()
        return super()._read()


async def test_following_leaves_out_no_file_however_fast_they_come(path: Path) -> None:
    numbers, looks = itertools.count(), itertools.count()
    async with open_log(path, rotation=TINY) as log:

        def append() -> None:
            for number in itertools.islice(numbers, 3 if next(looks) % 4 == 0 else 0):
                log.accepted(placed(str(number)))
            while log.stats().buffered_bytes:
                time.sleep(0.001)

        append()
        followed = Interrupted(path, Query(kinds=["accepted"], limit=60), from_end=False)
        followed.between = append
        found: list[AuditRecord] = []
        while len(found) < 60:
            found += followed.available()
        followed.close()

    assert [record.fields["payload"]["order"] for record in found] == [str(number) for number in range(60)]


async def test_following_begins_with_a_file_that_is_empty_and_compressed_before_the_next_look(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    followed = Following(path, Query(kinds=["accepted"]), from_end=False)
    async with open_log(path, rotation=Rotation(max_bytes=1, compress="gzip")) as log:
        for number in range(10):
            log.accepted(placed(str(number)))
        await written(log)
        await until(lambda: names(path) and all(name.endswith(".gz") for name in names(path)))
        found = followed.available()
    followed.close()

    assert [record.fields["payload"]["order"] for record in found] == [str(number) for number in range(10)]


# Rotation by others


async def test_reopening_goes_on_in_a_new_file_at_once(path: Path) -> None:
    """What came before the call is in the file that was moved, and the chain goes on from there."""
    moved = path.with_name("events.jsonl.1")
    async with open_log(path) as log:
        log.accepted(placed("old"))
        await written(log)
        path.rename(moved)

        def reopened() -> bool:
            log._parts.writer._look_at = math.inf  # type: ignore[union-attr]  # it would find out by itself
            log.reopen()
            return path.exists()

        await until(reopened)
        log.accepted(placed("new"))

    assert orders(moved) == ["old"]
    assert orders(path) == ["new"]
    assert chained(moved, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_log_may_be_moved_by_others_while_it_rotates_itself(path: Path) -> None:
    """Each line once, in its own full files and in those that were taken."""
    taken: list[Path] = []
    async with open_log(path, rotation=Rotation(max_bytes=2_000, compress="gzip")) as log:
        for number in range(300):
            log.accepted(placed(str(number)))
            if number % 29 == 0:
                taken.append(path.with_name(f"taken-{number:03d}"))
                with contextlib.suppress(FileNotFoundError):  # the log is between two files itself
                    path.rename(taken[-1])
                log.reopen()
            await anyio.sleep(0.001)

    lines = [json.loads(line) for path_ in taken if path_.exists() for line in lines_of(path_)] + records(path)
    lines.sort(key=lambda line: line["seq"])
    assert [line["payload"]["order"] for line in lines if line["kind"] == "accepted"] == list(map(str, range(300)))
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))


async def test_a_log_that_is_moved_at_the_moment_of_its_rotation_goes_on_without_a_failure(path: Path) -> None:
    """Between the look at the file and its renaming, where the system has no way to do both at once."""
    moved: list[Path] = []
    rename = Path.rename

    def first_somebody_else(self: Path, target: Path) -> Path:
        if self == path and not moved:
            moved.append(path.with_name("taken"))
            rename(self, moved[0])
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", first_somebody_else)
        async with open_log(path, rotation=Rotation(max_bytes=2_000)) as log:
            for number in range(30):
                log.accepted(placed(str(number)))
                await anyio.sleep(0.002)
            assert log.stats().failures == 0

    lines = sorted([*map(json.loads, lines_of(moved[0])), *records(path)], key=lambda line: line["seq"])
    assert [line["payload"]["order"] for line in lines if line["kind"] == "accepted"] == list(map(str, range(30)))


SERVICE = """
import sys
import anyio, aperion

audit = aperion.AuditLog(sys.argv[1]) if sys.argv[1] else None
app = aperion.App(aperion.EventBus(audit=audit))

@app.service
async def work():
    for n in range(1_000_000):
        if audit is not None:
            audit._parts.writer._look_at = float("inf")  # it would find out by itself
        receipt = await app.bus.emit("order.placed", {"order": str(n)})
        print("accepted", receipt.event_id, flush=True)
        await anyio.sleep(0.002)

aperion.run(app)
"""


@pytest.fixture
def service() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start an application that tells of each event that was accepted."""
    with contextlib.ExitStack() as stack:

        def start(path: Path | str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
            command = [sys.executable, "-W", "ignore", "-c", SERVICE, str(path)]
            pipe, devnull = subprocess.PIPE, subprocess.DEVNULL
            process = subprocess.Popen(
                command, stdin=stdin, stdout=pipe, stderr=devnull, text=True, env=child_environment()
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


async def test_a_hangup_after_a_move_lets_an_application_go_on_in_a_new_file(
    path: Path, service: Callable[..., subprocess.Popen[str]]
) -> None:
    """As logrotate does it: SIGHUP neither ends the process nor costs a line, and SIGTERM still drains."""
    process = service(path)
    assert process.stdout is not None
    output, moved = "", [path.with_name(f"events.jsonl.{number}") for number in (1, 2)]
    with anyio.fail_after(30):
        for target in moved:
            output += "".join(process.stdout.readline() for _ in range(10))
            path.rename(target)
            process.send_signal(signal.SIGHUP)
            await until(path.exists)
        output += "".join(process.stdout.readline() for _ in range(10))
        process.send_signal(signal.SIGTERM)
        output += process.communicate()[0]

    assert process.returncode == 0
    files, told = [*moved, path], re.findall("accepted (.+)", output)
    lines = [line for file in files for line in read_all(file)]
    found = [r["event_id"] for r in lines if r["kind"] == "accepted" and r["type"] == "order.placed"]
    assert len(told) >= 30
    assert found[: len(told)] == told
    assert len(found) <= len(told) + 1  # the signal may come before it has told
    assert chained(*files) == len(lines)


@pytest.mark.parametrize("reason", ["no log", "terminal"])
async def test_a_hangup_ends_an_application_without_a_log_and_one_whose_terminal_is_gone(
    path: Path, service: Callable[..., subprocess.Popen[str]], reason: str
) -> None:
    """And what was accepted until then is brought over by the next start."""
    ours, theirs = pty.openpty()
    process = service("", theirs) if reason == "no log" else service(path, theirs)
    assert process.stdout is not None
    output = "".join(process.stdout.readline() for _ in range(10))

    process.send_signal(signal.SIGHUP)
    output += process.communicate(timeout=30)[0]
    os.close(ours)
    os.close(theirs)

    assert process.returncode == -signal.SIGHUP
    if reason == "terminal":
        async with open_log(path):
            pass
        told = re.findall("accepted (.{36})\n", output)
        assert set(told) <= {record.get("event_id") for record in read_all(path)}
        assert len(told) >= 10


# What stands in the way


@pytest.mark.parametrize("ending", ["", ".idx", ".idx.new", ".gz", ".gz.new"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
async def test_what_stands_in_the_place_of_a_full_file_is_not_followed(path: Path, ending: str, kind: str) -> None:
    """Neither written through nor waited for nor read; it goes, and what it leads to stays."""
    path.parent.mkdir()
    target, planted = path.parent / "precious", path.with_name(f"events.000001.jsonl{ending}")
    if kind == "pipe":
        os.mkfifo(planted)
    else:
        planted.symlink_to(target)
    if kind == "link":
        target.write_text("precious\n")

    async with open_log(path, rotation=Rotation(max_bytes=1_000, compress="gzip", keep=50)) as log:
        for number in range(40):
            log.accepted(placed(str(number)))
        await written(log)
        await until(lambda: all(name.endswith(".gz") for name in names(path)))

    assert not planted.is_symlink()
    assert not planted.exists() or planted.is_file()
    assert target.exists() == (kind == "link")
    assert kind != "link" or target.read_text() == "precious\n"
    assert names(path)[0] == "events.000001.jsonl.gz"
    assert all_orders(path) == [str(number) for number in range(40)]
    assert verify(path).ok


async def test_a_file_of_others_with_the_name_of_a_full_one_is_not_overwritten(path: Path) -> None:
    path.parent.mkdir()
    theirs = path.with_name("events.000007.jsonl")
    theirs.write_text("precious\n")

    async with open_log(path, rotation=TINY) as log:
        for number in range(10):
            log.accepted(placed(str(number)))

    assert theirs.read_text() == "precious\n"
    assert names(path)[1] == "events.000008.jsonl"


async def test_a_link_in_the_place_of_a_log_that_was_moved_is_refused_until_it_is_gone(path: Path) -> None:
    """The emitter is told; what the link leads to stays as it is."""
    target = path.with_name("precious")
    async with open_log(path, rotation=Rotation(max_bytes=1_000)) as log:
        log.accepted(placed("before"))
        await written(log)
        target.write_text("precious\n")
        path.rename(path.with_name("moved"))
        path.symlink_to(target)
        log.reopen()

        await until(lambda: not log.stats().available)
        with pytest.raises(aperion.AuditUnavailable, match="symbolic links"):
            log.accepted(placed("meanwhile"))
        path.unlink()
        log.reopen()
        await until(lambda: log.stats().available)
        log.accepted(placed("after"))

    assert target.read_text() == "precious\n"
    assert orders(path) == ["after"]
