"""Reading the audit log: whatever the query, the order and the state of the files, the right records and no others."""

from __future__ import annotations

import itertools
import json
import random
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aperion
from aperion.audit import AuditLog, Rotation, index
from aperion.audit.chain import START, Link, seal
from aperion.audit.compression import build, compress
from aperion.audit.query import AuditRecord, Query
from aperion.audit.reading import Reading
from aperion.audit.record import line, segment
from aperion.audit.segments import sealed_path, sealed_segments

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
START_NS = 1_767_225_600_000_000_000
CODECS = ("gzip", "zstd")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def body(number: int, **fields: Any) -> bytes:
    """Return a record about an event, one a second."""
    kind = "outcome" if number % 3 == 0 else "accepted"
    about: dict[str, Any] = {"time": START_NS + number * 10**9, "kind": kind, "event_id": f"event-{number // 2}"}
    about |= {"type": ("order.placed", "chat.sent", "order.item.failed")[number % 3], "source": f"s{number % 4}"}
    about |= {"correlation_id": f"request-{number // 10}", "hops": 0, "payload": {"text": f"Käse {number} \x1b"}}
    if kind == "outcome":
        about |= {"subscription": f"shop.h{number % 2}", "state": "failed" if number % 5 == 0 else "ok"}
    return line(about | fields)


def write(log: Path, files: Sequence[Sequence[bytes]]) -> Link:
    """Write a log of several files, of which the last is the live one, each with its index."""
    link = START
    log.parent.mkdir(parents=True, exist_ok=True)
    for number, bodies in enumerate(files, start=1):
        lines, link = seal([segment("x", number, link.hash), *bodies], link)
        path = sealed_path(log, number) if number < len(files) else log
        path.write_bytes(b"".join(lines))
        if path is not log:
            build(path, "")
    return link


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of six files: plain, compressed, and without an index."""
    path = tmp_path_factory.mktemp("reading") / "events.jsonl"
    numbers = itertools.count()
    write(path, [[body(next(numbers)) for _ in range(count)] for count in (700, 900, 3, 800, 500, 400)])
    compress(sealed_path(path, 2), "gzip")
    pytest.importorskip("backports.zstd")
    compress(sealed_path(path, 4), "zstd")
    index.path_of(sealed_path(path, 4)).unlink()
    index.path_of(sealed_path(path, 5)).write_bytes(b"damaged")
    return path


def seqs(records: Any) -> list[int]:
    return [record.seq for record in records]


def naive(log: Path, query: Query) -> list[int]:
    """Return what a query wants, by looking at all records one by one."""
    found = []
    for record in Reading(log, Query()):
        text = json.dumps(dict(record.fields), ensure_ascii=False, separators=(",", ":"))
        if (
            (not query.kinds or record.kind in query.kinds)
            and (query.event_id in (None, record.event_id))
            and (query.correlation_id in (None, record.correlation_id))
            and (query.source in (None, record.fields.get("source")))
            and (query.state in (None, record.fields.get("state")))
            and (query.subscription in (None, record.fields.get("subscription")))
            and (query.since is None or record.at >= query.since)
            and (query.until is None or record.at < query.until)
            and (query.text is None or query.text.casefold() in text.casefold())
            and (not query.types or any(t.replace(".*", "") in str(record.event_type) for t in query.types))
        ):
            found.append(record.seq)
    found = found[::-1] if query.newest_first else found
    return found[: query.limit]


async def test_all_records_come_in_order_from_files_of_every_kind(log: Path) -> None:
    assert seqs(Reading(log, Query())) == list(range(1, 3310))
    assert seqs(Reading(log, Query(newest_first=True))) == list(range(3309, 0, -1))
    assert [s.compression for s in sealed_segments(log)] == ["", ".gz", "", ".zst", ""]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Query,
        types=st.sampled_from([(), ("order.*",), ("chat.*",)]),
        kinds=st.sampled_from([(), ("accepted",), ("outcome",), ("accepted", "segment")]),
        since=st.none() | st.integers(0, 3400).map(lambda n: BEGIN + timedelta(seconds=n)),
        until=st.none() | st.integers(0, 3400).map(lambda n: BEGIN + timedelta(seconds=n)),
        event_id=st.none() | st.integers(0, 1700).map(lambda n: f"event-{n}"),
        correlation_id=st.none() | st.integers(0, 340).map(lambda n: f"request-{n}"),
        source=st.none() | st.sampled_from(["s0", "s3", "nobody"]),
        subscription=st.none() | st.just("shop.h1"),
        state=st.none() | st.sampled_from(["ok", "failed"]),
        text=st.none() | st.sampled_from(["kÄSE 1", "käse 17 ", '"hops":0', "\x1b"]),
        limit=st.none() | st.integers(1, 20),
        newest_first=st.booleans(),
    )
)
def test_every_query_finds_what_looking_at_all_records_finds(log: Path, query: Query) -> None:
    text = query.text if query.text != "\x1b" else None  # in JSON it stands as an escape
    query = Query(**{name: getattr(query, name) for name in Query.__dataclass_fields__ if name != "text"}, text=text)

    assert seqs(Reading(log, query)) == naive(log, query)


async def test_an_event_is_found_by_its_id_through_the_index_and_without(log: Path, tmp_path: Path) -> None:
    """AUD-g: whatever its number, wherever it stands."""
    for number in (0, 555, 1649):
        found = list(Reading(log, Query(event_id=f"event-{number}")))
        assert [record.fields["event_id"] for record in found] == [f"event-{number}"] * 2


@pytest.mark.parametrize("identifier", ['quote"d', "back\\slash", "naïve", "tab\t"])
async def test_ids_that_json_escapes_are_found_too(tmp_path: Path, identifier: str) -> None:
    path = tmp_path / "events.jsonl"
    write(path, [[body(1, event_id=identifier), body(2)], [body(3)]])

    assert seqs(Reading(path, Query(event_id=identifier))) == [2]


def test_the_index_names_the_block_of_an_id_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, [[body(n) for n in range(5000)], []])
    full = sealed_path(path, 1)

    with full.open("rb") as file:
        loaded = index.load(full, file.fileno())

    assert loaded is not None
    assert len(loaded.blocks) > 5
    content = full.read_bytes()
    for number in (0, 1234, 2499):
        holding = loaded.holding(f"event-{number}")
        inside = [b for b in loaded.blocks if b'"event-%d"' % number in content[b.offset : b.offset + b.size]]
        assert holding == inside
    assert loaded.holding("event-x") == []
    with path.open("rb") as another:
        assert index.load(full, another.fileno()) is None


async def test_damaged_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    """AUD-8 AUD-h: neither ends the reading."""
    path = tmp_path / "events.jsonl"
    write(path, [[body(n) for n in range(10)]])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b"{}\n123\n\0\0\0\n\n", *lines[5:], b"{}\n123\n"]))

    for newest_first in (False, True):
        reading = Reading(path, Query(newest_first=newest_first))
        assert sorted(seqs(reading)) == list(range(1, 12))
        assert reading.skipped == 6


async def test_a_last_line_that_is_not_finished_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, [[body(n) for n in range(3)]])
    path.write_bytes(path.read_bytes()[:-5])

    assert seqs(Reading(path, Query())) == [1, 2, 3]
    assert seqs(Reading(path, Query(newest_first=True))) == [3, 2, 1]


async def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert list(Reading(tmp_path / "none" / "events.jsonl", Query())) == []
    assert list(Reading(tmp_path / "none" / "events.jsonl", Query(newest_first=True))) == []


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "real.jsonl", [[body(1)]])
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "real.jsonl")

    with pytest.raises(OSError, match="symbolic"):
        list(Reading(tmp_path / "events.jsonl", Query()))


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"types": ["chat*"]}, aperion.PatternError),
        ({"limit": 0}, aperion.ConfigurationError),
        ({"since": datetime(2026, 1, 1)}, aperion.ConfigurationError),  # noqa: DTZ001 - without a zone on purpose
    ],
)
def test_what_cannot_be_looked_for_is_refused(wanted: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        AuditLog("events.jsonl").read(**wanted)  # type: ignore[arg-type]  # any of them


async def test_newest_first_reads_the_end_alone(tmp_path: Path) -> None:
    """AUD-4 AUD-j2: a limit is honoured from the end, without reading the whole file."""
    path = tmp_path / "events.jsonl"
    write(path, [[body(n) for n in range(20_000)]])
    with path.open("r+b") as file:  # what is not read is not missed
        file.write(b"\0" * (path.stat().st_size - 400_000))

    reading = Reading(path, Query(limit=3, newest_first=True))

    assert seqs(reading) == [20001, 20000, 19999]
    assert reading.skipped == 0


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("killed_at", ["new", "both"])
async def test_compression_that_is_cut_short_loses_and_doubles_nothing(
    tmp_path: Path, codec: Any, killed_at: str
) -> None:
    path = tmp_path / "events.jsonl"
    write(path, [[body(n) for n in range(3000)], [body(3000)]])
    full = sealed_path(path, 1)
    content = full.read_bytes()
    packed = compress(full, codec)
    if killed_at == "new":
        packed.rename(f"{packed}.new")
    full.write_bytes(content)

    assert seqs(Reading(path, Query())) == list(range(1, 3004))
    compress(full, codec)
    assert seqs(Reading(path, Query(newest_first=True))) == list(range(3003, 0, -1))
    assert not full.exists()


async def test_reading_goes_on_while_files_are_rotated_compressed_and_removed(tmp_path: Path) -> None:
    """No record twice, none missed of those that were there at the start and stay."""
    path = tmp_path / "events.jsonl"
    log = AuditLog(path, rotation=Rotation(max_bytes=20_000, compress="gzip"))
    bus = aperion.EventBus(audit=log)
    stop = threading.Event()
    wrong: list[str] = []

    def read_all() -> None:
        while not stop.is_set():
            for newest_first in (False, True):
                found = seqs(log.read(newest_first=newest_first))
                expected = sorted(found, reverse=newest_first)
                if found != expected or (found and sorted(found) != list(range(1, max(found) + 1))):
                    wrong.append(f"{newest_first} {len(found)}")

    with anyio.fail_after(45):
        async with bus, anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, read_all)
            for number in range(3000):
                await bus.emit("order.placed", {"n": number})
                if number % 100 == 0:
                    await anyio.sleep(0.01)
            stop.set()

    assert wrong == []
    assert len(sealed_segments(path)) > 20


async def test_following_yields_each_record_once_across_files(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = AuditLog(path, rotation=Rotation(max_bytes=5_000, compress="gzip"))
    found: list[AuditRecord] = []

    async def follow() -> None:
        async for record in log.afollow(from_end=False, kinds=["accepted"], limit=300):
            found.append(record)

    with anyio.fail_after(45):
        async with anyio.create_task_group() as group:
            async with aperion.EventBus(audit=log) as bus:
                group.start_soon(follow)
                for number in range(300):
                    await bus.emit("order.placed", {"n": number})
                    if number % 20 == 0:
                        await anyio.sleep(0.02)

    assert [record.fields["payload"]["n"] for record in found] == list(range(300))


async def test_following_from_the_end_leaves_out_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    link = write(path, [[body(1)], [body(2)]])
    lines, _ = seal([body(3), body(4)], link)
    followed = AuditLog(path).follow(limit=1)

    def append() -> None:
        with path.open("ab") as file:
            file.write(lines[0][:20])
            file.flush()
            file.write(lines[0][20:] + lines[1])

    timer = threading.Timer(0.05, append)
    timer.start()

    assert [record.fields["event_id"] for record in followed] == ["event-1"]
    timer.join()


async def test_async_for_yields_what_for_yields(log: Path) -> None:
    reading = AuditLog(log).read(types=["order.*"], limit=600)

    assert [record.seq async for record in reading] == seqs(reading)


@pytest.mark.slow
def test_ids_are_found_in_a_log_of_random_blocks(tmp_path: Path) -> None:
    rng = random.Random(7)  # noqa: S311
    path = tmp_path / "events.jsonl"
    ids = [f"id-{rng.getrandbits(64):x}" for _ in range(400)]
    files = [[body(n, event_id=rng.choice(ids), pad="x" * rng.randrange(5000)) for n in range(500)] for _ in range(3)]
    write(path, files)

    for identifier in ids[:40]:
        assert seqs(Reading(path, Query(event_id=identifier))) == naive(path, Query(event_id=identifier))


def test_a_file_that_changes_its_name_while_the_folder_is_listed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aperion.audit import segments

    for number in (1, 2, 3):
        (tmp_path / f"events.{number:06d}.jsonl").touch()
    listed, looks = segments._files, []

    def first_without_the_second(folder: Path) -> list[str]:
        looks.append(1)
        return [name for name in listed(folder) if len(looks) > 1 or "000002" not in name]

    monkeypatch.setattr(segments, "_files", first_without_the_second)

    assert [each.number for each in segments.sealed_segments(tmp_path / "events.jsonl")] == [1, 2, 3]


def test_a_file_that_is_missing_is_looked_for_twice_and_no_more(tmp_path: Path) -> None:
    from aperion.audit import segments

    for number in (1, 3):
        (tmp_path / f"events.{number:06d}.jsonl").touch()

    assert [each.number for each in segments.sealed_segments(tmp_path / "events.jsonl")] == [1, 3]
