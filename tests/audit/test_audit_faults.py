"""The audit log on a disk that fails: what was said yes to is there, what was refused was not handled."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import anyio
import pydantic
import pytest
from faulty_disk import Disk
from hypothesis import given, settings
from hypothesis import strategies as st

import aperion
from aperion.audit import AuditLog, Rotation, verify
from aperion.audit import record as records
from aperion.audit.files import LogFile
from aperion.audit.live import Live
from aperion.audit.segments import index_path, sealed_segments, segments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.anyio

SMALL = 1 << 16
OFTEN = Rotation(max_bytes=3000)


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


class Shop:
    """A bus with an audit log, and what became of the events that were emitted."""

    def __init__(self, log: AuditLog) -> None:
        self.log = log
        self.bus = aperion.EventBus(audit=log)
        self.yes: list[str] = []
        self.handled: list[str] = []
        self.refusals: list[str] = []
        self.bus.subscribe(self.pay, "order.placed", name="shop.pay")

    async def pay(self, event: aperion.Event[Any]) -> None:
        self.handled.append(event.event_id)

    async def emit(self, count: int = 1) -> None:
        for _ in range(count):
            try:
                self.yes.append((await self.bus.emit("order.placed", {"text": "x" * 40})).event_id)
            except aperion.AuditUnavailable as error:
                self.refusals.append(error.reason)

    async def emit_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self.emit()
            self.log.reopen()  # does not wait for the next attempt
            await anyio.sleep(0.001)

    async def until_available(self) -> None:
        while not self.log.stats().available:
            self.log.reopen()
            await anyio.sleep(0.002)


@contextlib.asynccontextmanager
async def open_shop(path: Path, **options: Any) -> AsyncIterator[Shop]:
    shop = Shop(AuditLog(path, **{"rotation": OFTEN, **options}))
    with anyio.fail_after(30):
        async with shop.bus:
            yield shop


def every_record(path: Path) -> list[dict[str, Any]]:
    """Return what is in all files of a log; fails where a line is torn."""
    found = []
    for segment in segments(path):
        content = segment.path.read_bytes()
        assert content.endswith(b"\n") or not content, segment
        found += [json.loads(line) for line in content.splitlines()]
    return found


def of(path: Path, kind: str) -> list[dict[str, Any]]:
    """Return the records of one kind, without those about the bus itself."""
    return [r for r in every_record(path) if r["kind"] == kind and not r.get("type", "").startswith("system.")]


def check(path: Path, shop: Shop) -> None:
    """Look at all that holds whatever has failed."""
    written = Counter(record["event_id"] for record in of(path, "accepted"))
    assert [event_id for event_id in shop.yes if event_id not in written] == []
    assert [event_id for event_id, count in written.items() if count > 1] == []
    assert verify(path).problems == ()


# One law for every fault

WRITING: dict[str, Callable[[Disk], object]] = {
    "no space": lambda disk: disk.fails("write", errno.ENOSPC),
    "input/output error": lambda disk: disk.fails("write", errno.EIO),
    "file too large": lambda disk: disk.fails("write", errno.EFBIG),
    "interrupted": lambda disk: disk.fails("write", errno.EINTR),
    "quota": lambda disk: disk.fails("write", errno.EDQUOT),
    "no space for the first line of a file": lambda disk: disk.fails("write", errno.ENOSPC, after=1),
    "no space in the second file": lambda disk: disk.fails("write", errno.ENOSPC, after=3),
    "no space in the middle of a line": lambda disk: disk.fills_up(100, errno.ENOSPC),
    "no space in the middle of a batch": lambda disk: disk.fills_up(1000, errno.ENOSPC),
    "no space, and what is torn cannot be cut off": lambda disk: (
        disk.fills_up(1500, errno.ENOSPC),
        disk.fails("ftruncate", errno.EIO),
    ),
    "no descriptors": lambda disk: disk.fails("open", errno.EMFILE),
    "no descriptors in the whole system": lambda disk: disk.fails("open", errno.ENFILE),
    "no renaming": lambda disk: disk.fails("rename", errno.EIO),
    "no space in the folder": lambda disk: disk.fails("rename", errno.ENOSPC),
    "no way forth or back": lambda disk: (
        disk.fails("open", errno.EMFILE),
        disk.fails("rename", errno.EIO, after=1),
    ),
}
SYNCING: dict[str, Callable[[Disk], object]] = {
    "lost writes": lambda disk: disk.fails("fdatasync", errno.EIO),
    "no space at last": lambda disk: disk.fails("fdatasync", errno.ENOSPC),
    "interrupted": lambda disk: disk.fails("fdatasync", errno.EINTR),
    "lost names": lambda disk: disk.fails("fsync", errno.EIO),
    "lost writes, no descriptors": lambda disk: (
        disk.fails("fdatasync", errno.EIO),
        disk.fails("open", errno.EMFILE),
    ),
    "lost writes, no renaming": lambda disk: (disk.fails("fdatasync", errno.EIO), disk.fails("rename", errno.EIO)),
    "lost writes, no space in the next file": lambda disk: (
        disk.fails("fdatasync", errno.EIO, times=1),
        disk.fails("write", errno.ENOSPC, after=1),
    ),
}
FAULTS = [(sync, name, fault) for sync in ("process", "disk") for name, fault in WRITING.items()]
FAULTS += [("disk", name, fault) for name, fault in SYNCING.items()]
every_fault = pytest.mark.parametrize(
    ("sync", "fault"),
    [pytest.param(sync, fault, id=f"{sync}-{name.replace(' ', '_')}") for sync, name, fault in FAULTS],
)


@every_fault
async def test_a_fault_that_passes_costs_no_record_that_emit_said_yes_to(
    path: Path, disk: Disk, sync: str, fault: Callable[[Disk], object]
) -> None:
    """AUD-c: refused events were not handled, no line is torn, and nothing has to be started anew."""
    async with open_shop(path, sync=sync) as shop:
        await shop.emit(20)
        fault(disk)
        await shop.emit_until(lambda: shop.log.stats().failures > 3)
        assert not shop.log.stats().available
        await shop.emit()

        disk.heals()
        await shop.until_available()
        await shop.emit(20)

    assert shop.refusals
    assert shop.handled == shop.yes
    assert len(shop.yes) >= 40
    assert disk.synced_again == []
    check(path, shop)


@every_fault
async def test_a_fault_that_outlasts_the_process_costs_nothing_either(
    path: Path, disk: Disk, sync: str, fault: Callable[[Disk], object]
) -> None:
    """AUD-c: what could not be written waits for the next start."""
    with contextlib.suppress(aperion.AuditUnavailable):
        async with open_shop(path, sync=sync) as shop:
            await shop.emit(20)
            fault(disk)
            await shop.emit_until(lambda: shop.log.stats().failures > 1)

    disk.heals()
    async with open_shop(path, sync=sync) as next_shop:
        await next_shop.emit()

    assert shop.handled == shop.yes
    shop.yes += next_shop.yes
    check(path, shop)
    assert not path.with_name("events.jsonl.ring").exists()


@pytest.mark.parametrize(
    ("sync", "fault"),
    [
        ("process", "no space"),
        ("process", "no renaming"),
        ("disk", "input/output error"),
        ("disk", "lost writes"),
    ],
)
async def test_with_best_effort_all_is_handled_and_a_gap_says_exactly_what_is_missing(
    path: Path, disk: Disk, sync: str, fault: str
) -> None:
    async with open_shop(path, sync=sync, on_failure="best_effort", buffer_bytes=SMALL) as shop:
        await shop.emit(20)
        {**WRITING, **SYNCING}[fault](disk)
        await shop.emit_until(lambda: shop.log.stats().missing > 20)
        state = shop.log.stats()

        disk.heals()
        await shop.until_available()
        await shop.emit(20)
        missing = shop.log.stats().missing
        await shop.bus.wait_settled()

    assert shop.refusals == []
    assert shop.handled == shop.yes
    assert not state.available
    assert state.failure
    found = len(of(path, "accepted")) + len(of(path, "outcome"))
    gaps = of(path, "gap")
    assert sum(gap["detail"]["missing"] for gap in gaps) == missing == 2 * len(shop.yes) - found
    assert all(gap["detail"]["from"] <= gap["detail"]["to"] <= gap["time"] for gap in gaps)
    assert verify(path).problems == ()


@pytest.mark.parametrize("most", [1, 7, 300])
@pytest.mark.parametrize("sync", ["process", "disk"])
async def test_writes_that_take_less_than_they_should_are_gone_on_with(
    path: Path, disk: Disk, sync: str, most: int
) -> None:
    async with open_shop(path, sync=sync) as shop:
        disk.takes_less(most)
        await shop.emit(20)

    assert len(shop.yes) == 20
    assert shop.log.stats().failures == 0
    check(path, shop)


# A device that fails to bring a file to the disk


async def test_after_a_failed_synchronisation_the_batch_is_in_a_new_file_and_nobody_notices(
    path: Path, disk: Disk
) -> None:
    async with open_shop(path, sync="disk", rotation=Rotation()) as shop:
        await shop.emit(3)
        await shop.bus.wait_settled()
        disk.fails("fdatasync", errno.EIO, times=1)
        await shop.emit(3)

    assert shop.refusals == []
    assert len(shop.yes) == 6
    [bad] = sealed_segments(path)
    first, note, *others = [
        record for record in every_record(path) if record["seq"] > bad.path.read_bytes().count(b"\n")
    ]
    assert (first["kind"], first["segment"]) == ("segment", 2)
    size = bad.path.stat().st_size
    assert note["detail"] == {"poisoned": {"segment": bad.path.name, "bytes": size}, "error": "input/output error"}
    assert [record["event_id"] for record in others if record["kind"] == "accepted"][:3] == shop.yes[3:]
    assert disk.synced_again == []
    check(path, shop)


async def test_a_device_that_keeps_failing_gets_a_new_file_each_time_and_leaves_no_litter(
    path: Path, disk: Disk
) -> None:
    async with open_shop(path, sync="disk", rotation=Rotation()) as shop:
        await shop.emit(3)
        opened = disk.calls["open"]
        disk.fails("fdatasync", errno.EIO)
        await shop.emit_until(lambda: disk.calls["open"] > opened + 10)
        disk.heals()
        await shop.until_available()
        await shop.emit(3)

    assert disk.synced_again == []
    assert sorted(os.listdir(path.parent)) == ["events.000001.jsonl", "events.jsonl"]
    check(path, shop)


async def test_what_cannot_be_cut_off_a_file_whose_device_failed_is_no_part_of_the_log(path: Path, disk: Disk) -> None:
    async with open_shop(path, sync="disk", rotation=Rotation()) as shop:
        await shop.emit(3)
        await shop.bus.wait_settled()
        disk.fails("ftruncate", errno.EIO)
        disk.fails("fdatasync", errno.EIO, times=1)
        await shop.emit(3)
        disk.heals()
        await shop.emit(3)

    [bad] = sealed_segments(path)
    [note] = of(path, "log")
    assert note["detail"]["poisoned"]["bytes"] < bad.path.stat().st_size
    assert set(shop.yes) <= {record["event_id"] for record in of(path, "accepted")}
    assert verify(path).problems == ()


async def test_no_record_is_promised_before_the_disk_knows_the_name_of_its_file(path: Path, disk: Disk) -> None:
    async with open_shop(path, sync="disk") as shop:
        await shop.emit(3)
        disk.fails("fsync", errno.EIO)
        await shop.emit_until(lambda: shop.refusals)
        tried = disk.calls["fsync"]
        assert len(sealed_segments(path)) >= 1
        await shop.emit(3)
        disk.heals()
        await shop.until_available()
        await shop.emit(3)

    assert disk.calls["fsync"] > tried
    assert shop.handled == shop.yes
    check(path, shop)


async def test_a_start_makes_sure_of_the_names_that_the_process_before_may_not_have(path: Path, disk: Disk) -> None:
    async with open_shop(path, sync="disk") as shop:
        await shop.emit()
    disk.calls.clear()

    async with open_shop(path, sync="disk") as shop:
        assert disk.calls["fsync"] == 1


@pytest.mark.parametrize("fault", ["no descriptors", "no renaming"])
async def test_a_file_that_could_not_be_sealed_at_first_is_indexed_like_every_other(
    path: Path, disk: Disk, fault: str
) -> None:
    async with open_shop(path) as shop:
        await shop.emit(20)
        WRITING[fault](disk)
        await shop.emit_until(lambda: shop.log.stats().failures > 3)
        disk.heals()
        await shop.until_available()
        await shop.emit(20)

    full = sealed_segments(path)
    assert shop.log.stats().rotations == len(full)
    async with open_shop(path):  # which does what the one before has left
        while [each for each in full if not index_path(path, each.number or 0).exists()]:
            await anyio.sleep(0.005)


async def test_what_cannot_be_cut_off_now_is_cut_off_before_the_next_record(path: Path, disk: Disk) -> None:
    path.parent.mkdir()
    live = Live(path, LogFile(path), durable=False)
    live.resume()
    live.begin()
    disk.fills_up(300, errno.ENOSPC)
    disk.fails("ftruncate", errno.EIO)
    with pytest.raises(OSError, match="No space"):
        live.append([b'{"time":1,"kind":"system"}\n'] * 3)

    disk.heals()
    live.append([b'{"time":2,"kind":"system"}\n'])
    live.file.close()

    assert [record["time"] for record in of(path, "system")] == [2]
    assert verify(path).problems == ()


async def test_to_reopen_a_log_that_nobody_moved_changes_nothing(path: Path, disk: Disk) -> None:
    async with open_shop(path) as shop:
        for _ in range(30):
            await shop.emit()
            shop.log.reopen()
            await anyio.sleep(0.001)

    assert len(sealed_segments(path)) > 1
    assert of(path, "log") == []
    check(path, shop)


# Disks that are really full, and folders that are really gone

CHILD = """
import logging, os, resource, sys
import anyio, structlog, aperion, aperion.audit

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

def limit(what):
    if what == "FSIZE":
        return 9_000
    free = os.dup(0)
    os.close(free)
    return free  # the next descriptor would have this number

async def main():
    path, sync, on_failure, what = sys.argv[1:]
    rotation = aperion.audit.Rotation(max_bytes=5_000) if what == "NOFILE" else aperion.audit.Rotation()
    log = aperion.AuditLog(path, sync=sync, on_failure=on_failure, rotation=rotation, buffer_bytes=1 << 16)
    bus = aperion.EventBus(audit=log)
    yes, handled = [], []

    @bus.on("order.placed")
    async def pay(event):
        handled.append(event.event_id)

    async def emit():
        try:
            yes.append((await bus.emit("order.placed", {"text": "x" * 40})).event_id)
        except aperion.AuditUnavailable as error:
            return error.reason
        await anyio.sleep(0.0005)

    with anyio.fail_after(30):
        async with bus:
            for _ in range(5):
                await emit()
            kind = getattr(resource, f"RLIMIT_{what}")
            before = resource.getrlimit(kind)
            resource.setrlimit(kind, (limit(what), before[1]))
            reason = None
            while reason is None and log.stats().missing < 50:
                reason = await emit()
            reason = reason or log.stats().failure
            resource.setrlimit(kind, before)
            while not log.stats().available:
                log.reopen()
                await anyio.sleep(0.002)
            for _ in range(5):
                assert await emit() is None
            await bus.wait_settled()
            print(reason, log.stats().missing, handled == yes, *yes, sep="\\n")

anyio.run(main)
"""


def in_child(*arguments: object) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=45, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


@pytest.mark.parametrize(
    ("limit", "sync", "on_failure", "reason"),
    [
        ("FSIZE", "disk", "required", "file too large"),
        pytest.param("FSIZE", "process", "best_effort", "file too large", marks=pytest.mark.slow),
        ("NOFILE", "process", "required", "too many open files"),
        pytest.param("NOFILE", "disk", "best_effort", "too many open files", marks=pytest.mark.slow),
    ],
)
def test_a_limit_of_the_system_is_survived_as_a_fault_is(
    path: Path, limit: str, sync: str, on_failure: str, reason: str
) -> None:
    """AUD-c: the file too large, or too many open: told, exact, and over as soon as the limit is."""
    why, missing, all_handled, *yes = in_child(path, sync, on_failure, limit)

    yes = [event_id for event_id in yes if event_id]
    written = [record["event_id"] for record in of(path, "accepted")]
    gaps = sum(gap["detail"]["missing"] for gap in of(path, "gap"))
    assert why == reason
    assert all_handled == "True"
    assert verify(path).problems == ()
    if on_failure == "required":
        assert set(yes) <= set(written)
    else:
        assert gaps == int(missing) == 2 * len(yes) - len(written) - len(of(path, "outcome"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own, where this may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("nobody may mount anything here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("sync", ["process", "disk"])
async def test_a_disk_that_is_full_refuses_until_there_is_room_again(small_disk: Path, sync: str) -> None:
    """AUD-c: on a real file system, which takes a part of the last line."""
    path, ballast = small_disk / "logs" / "events.jsonl", small_disk / "ballast"
    async with open_shop(path, sync=sync, buffer_bytes=SMALL) as shop:
        ballast.write_bytes(bytes(100_000))
        await shop.emit_until(lambda: shop.refusals)
        await shop.emit(10)
        ballast.unlink()
        await shop.until_available()
        await shop.emit(10)

    assert set(shop.refusals) == {"no space left on device"}
    assert shop.handled == shop.yes
    check(path, shop)


async def test_a_disk_that_is_full_at_the_start_is_told_and_nothing_is_left_behind(small_disk: Path) -> None:
    path, ballast = small_disk / "events.jsonl", small_disk / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(bytes(1_000_000))

    for _ in range(3):
        with pytest.raises(aperion.AuditUnavailable, match="no space left"):
            await AuditLog(path, buffer_bytes=SMALL).start()
    ballast.unlink()
    async with open_shop(path, buffer_bytes=SMALL) as shop:
        await shop.emit()

    check(path, shop)


@pytest.mark.parametrize("sync", ["process", "disk"])
async def test_after_the_folder_was_removed_nothing_is_promised_that_is_not_there_later(path: Path, sync: str) -> None:
    """AUD-d: emitters are told, what was said yes to since waits for the folder, and the log comes back with it."""
    async with open_shop(path, sync=sync) as shop:
        await shop.emit(10)
        shutil.rmtree(path.parent.rename(path.parents[1] / "gone"))
        before = len(shop.yes)
        await shop.emit_until(lambda: shop.refusals)

        path.parent.mkdir()
        await shop.until_available()
        await shop.emit(10)

    assert shop.refusals[0] == "no such file or directory"
    assert shop.handled == shop.yes
    written = Counter(record["event_id"] for record in of(path, "accepted"))
    assert [event_id for event_id in shop.yes[before:] if written[event_id] != 1] == []


async def test_folders_are_made_for_their_owner_alone_and_their_names_are_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUD-f: all that are missing, from the top; at the level of the disk."""
    synced, fsync = [], os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    old = os.umask(0)
    try:
        async with open_shop(tmp_path / "a" / "b" / "events.jsonl", sync="disk") as shop:
            await shop.emit()
    finally:
        os.umask(old)

    assert [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("a", "a/b")] == [0o700, 0o700]
    assert synced[:3] == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]


async def test_every_file_is_for_its_owner_alone_those_that_come_later_too(path: Path, disk: Disk) -> None:
    """AUD-f: full files, indexes, compressed ones, what was torn."""
    old = os.umask(0)
    try:
        async with open_shop(path, sync="disk", rotation=Rotation(max_bytes=3000, compress="gzip")) as shop:
            await shop.emit(20)
            with path.open("ab") as other:
                other.write(b"torn")
            while not path.with_name("events.jsonl.torn").exists():
                shop.log.reopen()
                await anyio.sleep(0.005)
            disk.fails("fdatasync", errno.EIO, times=1)
            await shop.emit(20)
            while not {".jsonl.gz", ".jsonl.idx"} <= {"".join(each.suffixes[-2:]) for each in path.parent.iterdir()}:
                await anyio.sleep(0.005)
    finally:
        os.umask(old)

    suffixes = {"".join(file.suffixes[-2:]) for file in path.parent.iterdir()}
    assert {".jsonl.gz", ".jsonl.torn", ".jsonl.idx"} <= suffixes
    assert {oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()} == {"0o600"}
    assert path.parent.stat().st_mode & 0o777 == 0o700


# Every payload type that Python programs put into events


class Colour(Enum):
    RED = "red"
    THREE = 3


class Size(IntEnum):
    LARGE = 9


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


class Model(pydantic.BaseModel):
    value: Any
    more: dict[str, int] = {}


class AnyOrder(list[Any]):
    """Equals a list of the same items: a set has no order."""

    __hash__ = None  # type: ignore[assignment]  # as list has it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and sorted(self, key=repr) == sorted(other, key=repr)


class Pair(NamedTuple):
    left: Any
    right: Any


TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    '\x00\x1b\x7f\x80\x85\x9f\u2028\u2029\ufeff\U0001f600é"\\/'
)
NUMBERS = st.integers() | st.integers(-(10**4000), 10**4000) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=10,
)
NO_TIME = st.just(None)
ZONES = NO_TIME | st.integers(-50_000, 50_000).map(lambda seconds: timezone(timedelta(seconds=seconds)))


def moment(value: datetime) -> str:
    """Return what stands for a moment: an offset has no seconds there, as those before 1900 had."""
    is_odd = value.tzinfo is not None and value.utcoffset() % timedelta(minutes=1)  # type: ignore[operator]  # it has one
    return (value.astimezone(UTC) if is_odd else value).isoformat()


# Each value with what stands in the log for it.
FORMS: list[st.SearchStrategy[tuple[Any, Any]]] = [
    JSON.map(lambda value: (value, value)),
    st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=ZONES).map(lambda value: (value, moment(value))),
    st.dates().map(lambda value: (value, value.isoformat())),
    st.times().map(lambda value: (value, value.isoformat())),
    st.uuids().map(lambda value: (value, str(value))),
    st.decimals().map(lambda value: (value, str(value))),
    st.lists(st.from_regex(r"[a-z.]{1,5}", fullmatch=True)).map(lambda parts: (Path(*parts), str(Path(*parts)))),
    st.sampled_from([(Colour.RED, "red"), (Colour.THREE, 3), (Size.LARGE, 9)]),
    st.binary().map(lambda value: (value, value.decode("latin-1"))),
    st.binary().map(lambda value: (bytearray(value), value.decode("latin-1"))),
    st.sets(st.integers()).map(lambda value: (value, AnyOrder(value))),
    st.frozensets(TEXT).map(lambda value: (value, AnyOrder(value))),
    st.sampled_from([(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")]),
    st.integers(min_value=2**14_001).map(lambda value: (value, hex(value))),
    st.dictionaries(st.integers(), st.integers()).map(lambda value: (value, {str(k): v for k, v in value.items()})),
    st.sampled_from([({None: 1}, {"null": 1}), ({True: 1}, {"true": 1}), ({1.5: 1}, {"1.5": 1})]),
    st.sampled_from([("a\udc80b", "a\\udc80b"), ({"\ud800": 1}, {"\\ud800": 1})]),
    st.sampled_from([({UUID(int=7): 1}, {str(UUID(int=7)): 1}), ({date(2026, 1, 2): 1}, {"2026-01-02": 1})]),
]


def _inside(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    """Put values with their forms into all that holds values."""
    several = st.lists(inner, max_size=3)
    return st.one_of(
        several.map(lambda pairs: ([v for v, _ in pairs], [f for _, f in pairs])),
        several.map(lambda pairs: (tuple(v for v, _ in pairs), [f for _, f in pairs])),
        st.dictionaries(TEXT, inner, max_size=3).map(
            lambda pairs: ({k: v for k, (v, _) in pairs.items()}, {k: f for k, (_, f) in pairs.items()})
        ),
        st.tuples(inner, inner).map(lambda p: (Point(p[0][0], p[1][0]), {"x": p[0][1], "y": p[1][1]})),
        st.tuples(inner, inner).map(lambda p: (Pair(p[0][0], p[1][0]), {"left": p[0][1], "right": p[1][1]})),
        inner.map(lambda p: (Model(value=p[0]), {"value": p[1], "more": {}})),
    )


SHOWN = st.recursive(st.one_of(FORMS), _inside, max_leaves=6)
OPEN = aperion.Redactor(enabled=False)
PLACED = aperion.Event("order.placed", {"order": 7})


def is_one_line(line: bytes) -> bool:
    return line.endswith(b"\n") and all(0x20 <= byte < 0x7F for byte in line[:-1])


@settings(max_examples=300, deadline=None)
@given(SHOWN)
def test_every_payload_type_has_its_documented_form(pair: tuple[Any, Any]) -> None:
    """AUD-types: what JSON has comes back equal, and all else as the page on the audit log says."""
    value, form = pair

    line = records.noted(PLACED, "rejected", {"value": value}, OPEN)

    assert is_one_line(line)
    assert json.loads(line)["detail"] == {"value": form}


@settings(max_examples=50, deadline=None)
@given(st.timedeltas())
def test_a_duration_is_read_back_as_it_was(value: timedelta) -> None:
    line = records.noted(PLACED, "rejected", {"value": value}, OPEN)

    assert pydantic.TypeAdapter(timedelta).validate_python(json.loads(line)["detail"]["value"]) == value


def cyclic(kind: str) -> Any:
    value: Any = {"list": [], "dict": {}, "point": Point(1), "model": Model(value=1)}[kind]
    inside = {"list": value}.get(kind)
    if inside is not None:
        value.append([value])
    elif kind == "dict":
        value["self"] = {"again": value}
    else:
        setattr(value, "y" if kind == "point" else "value", [value])
    return value


def deep(kind: str, depth: int) -> Any:
    value: Any = "end"
    for _ in range(depth):
        value = {"list": [value], "tuple": (value,), "dict": {"in": value}, "point": None}[kind]
    return value


ENDLESS = [
    *(pytest.param(lambda kind=kind: cyclic(kind), id=f"cyclic {kind}") for kind in ("list", "dict", "point", "model")),
    *(pytest.param(lambda kind=kind: deep(kind, 10_000), id=f"deep {kind}") for kind in ("list", "tuple", "dict")),
]


@pytest.mark.parametrize("made", ENDLESS)
@pytest.mark.parametrize("redactor", [aperion.Redactor(), OPEN, aperion.Redactor(max_depth=100_000)])
async def test_what_is_in_itself_or_too_deep_costs_no_record(
    path: Path, made: Callable[[], Any], redactor: aperion.Redactor
) -> None:
    """AUD-types: the rest of the event is there, and a marker in its place."""
    log = AuditLog(path, redactor=redactor)
    with anyio.fail_after(20):
        await log.start()
        log.noted("rejected", PLACED, {"before": 1, "value": made()})
        await log.aclose()

    assert all(is_one_line(line + b"\n") for line in path.read_bytes().splitlines())
    [rejected] = of(path, "rejected")
    assert rejected["event_id"] == PLACED.event_id
    assert verify(path).problems == ()


ANYTHING = SHOWN.map(lambda pair: pair[0]) | st.sampled_from(
    [
        object(),
        lambda: 1,
        Ellipsis,
        {(1, 2): 3},
        {frozenset({1}): 2},
        1 + 2j,
        range(3),
        Decimal("sNaN"),
        deep("list", 500),
    ]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(ANYTHING, min_size=1, max_size=20))
def test_whatever_is_emitted_is_accepted_or_refused_and_recorded_as_such(values: list[Any]) -> None:
    """AUD-types: no event goes by without a record."""
    told: list[str] = []

    async def emit_all(path: Path) -> None:
        async with aperion.EventBus(audit=AuditLog(path)) as bus:
            for value in values:
                try:
                    await bus.emit("order.placed", {"value": value})
                except aperion.ValidationError:
                    told.append("rejected")
                else:
                    told.append("accepted")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        anyio.run(emit_all, path)
        kinds = [r["kind"] for r in every_record(path) if r["kind"] in {"accepted", "rejected"}]
        assert all(is_one_line(line + b"\n") for line in path.read_bytes().splitlines())
        assert verify(path).problems == ()

    assert kinds == told
