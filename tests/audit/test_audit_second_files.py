"""What stands in a second file is checked before it is believed: an index, a copy of a checkpoint, another name."""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from test_audit import child_environment, open_log, placed, until
from test_audit_reading import BEGIN, body, seqs, write

import aperion
from aperion.audit import AuditLog, Checkpoints, Rotation, Subjects, verify
from aperion.audit.chain import START, seal
from aperion.audit.checkpoints import copy_checkpoint
from aperion.audit.compression import build, compress
from aperion.audit.index import load, path_of
from aperion.audit.query import Query
from aperion.audit.reading import Reading
from aperion.audit.record import segment
from aperion.audit.segments import index_path, sealed_path, sealed_segments

if TYPE_CHECKING:
    from aperion.audit.index import Index

pytestmark = pytest.mark.anyio

CODECS = ("gzip", "zstd")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "events.jsonl"


def loaded(full: Path) -> Index | None:
    with full.open("rb") as file:
        return load(full, file.fileno())


def everything(log: Path) -> list[list[int]]:
    """Return what queries find that use the index: by id, by time, from the end."""
    queries = [Query(event_id=f"event-{number}") for number in (0, 150, 299, 320)]
    queries += [Query(since=BEGIN + timedelta(seconds=100), until=BEGIN + timedelta(seconds=400), newest_first=True)]
    return [seqs(Reading(log, query)) for query in [*queries, Query()]]


# An index


@pytest.mark.parametrize("codec", CODECS)
async def test_compressed_files_without_an_index_are_read_and_get_one_at_the_next_start(path: Path, codec: Any) -> None:
    rotation = Rotation(max_bytes=20_000, compress=codec)
    async with open_log(path, rotation=rotation) as log:
        for number in range(300):
            log.accepted(placed(str(number)))
        await until(lambda: log.stats().buffered_bytes == 0)
        await until(lambda: all(each.compression for each in sealed_segments(path)))
    full = [each.path for each in sealed_segments(path)]
    assert len(full) > 3
    for each in full:
        path_of(each).unlink()
    lines = verify(path).records

    async with open_log(path, rotation=rotation):
        await until(lambda: all(path_of(each).exists() for each in full))

    assert verify(path).ok
    assert len(list(AuditLog(path).read(kinds=["accepted"]))) == 300
    assert seqs(AuditLog(path).read(newest_first=True)) == list(range(verify(path).records, 0, -1))
    assert verify(path).records > lines
    assert all(loaded(each) is not None for each in full)


@pytest.mark.parametrize("codec", [None, *CODECS])
def test_no_flipped_bit_of_an_index_and_no_cut_changes_what_is_found(path: Path, codec: Any) -> None:
    write(path, [[body(number) for number in range(600)], [body(600 + number) for number in range(100)]])
    full = sealed_path(path, 1)
    if codec is not None:
        full = compress(full, codec) or full
    index = path_of(full)
    content, expected = index.read_bytes(), everything(path)
    head = 12 + 24 + 2 * 40

    for at in [*range(head), *range(head, len(content), 97)]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        index.write_bytes(damaged)
        assert everything(path) == expected, at
        index.write_bytes(content[:at])
        assert everything(path) == expected, at


def test_an_index_of_another_file_is_not_believed_and_that_of_a_copy_is(path: Path, tmp_path: Path) -> None:
    """Of the same length, so that nothing but what they hold tells them apart; a copy has another time."""
    write(path, [[body(1, event_id="first")], [body(1, event_id="other")], []])
    first, second = sealed_path(path, 1), sealed_path(path, 2)
    aside = tmp_path / "aside"
    assert first.stat().st_size == second.stat().st_size
    path_of(first).rename(aside)
    path_of(second).rename(path_of(first))
    aside.rename(path_of(second))

    assert seqs(Reading(path, Query(event_id="first"))) == [2]
    assert seqs(Reading(path, Query(event_id="other"))) == [4]

    build(first, "")
    shutil.copyfile(first, aside)
    aside.replace(first)
    os.utime(first, (1, 1))
    assert loaded(first) is not None


def test_an_index_does_not_hide_what_was_changed_in_its_file(path: Path) -> None:
    """Edited in its place by hand, as long as before; ``verify`` tells that it was."""
    write(path, [[body(number) for number in range(50)], []])
    full = sealed_path(path, 1)
    content = full.read_bytes()
    with full.open("r+b") as file:
        file.write(content.replace(b'"event_id":"event-7"', b'"event_id":"eVENT-7"'))

    assert len(list(Reading(path, Query(event_id="eVENT-7")))) == 2
    assert not verify(path).ok


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_stands_in_the_place_of_an_index_is_neither_followed_nor_waited_for(path: Path, kind: str) -> None:
    write(path, [[body(number) for number in range(50)], []])
    index = index_path(path, 1)
    kept = index.rename(path.with_name("kept"))
    if kind == "link":
        kept.write_bytes(b"precious")
        index.symlink_to(kept)
    else:
        os.mkfifo(index) if kind == "pipe" else index.mkdir()

    assert len(list(Reading(path, Query(event_id="event-7")))) == 2


def test_a_line_without_a_time_hides_no_other_from_a_search_by_time(path: Path) -> None:
    first, second = body(1), body(2).replace(b'{"time":', b'{"a":1,"time":')
    write(path, [[first, second], []])

    found = seqs(Reading(path, Query(since=BEGIN + timedelta(seconds=2), until=BEGIN + timedelta(seconds=3))))

    assert found == [3]


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_that_somebody_else_compressed_is_read(path: Path, codec: Any) -> None:
    """As one frame, without an index, and with several that end in the middle of lines."""
    import gzip

    from backports import zstd

    pack = gzip.compress if codec == "gzip" else zstd.compress
    write(path, [[body(number) for number in range(3000)], [body(number) for number in range(3000)], []])
    for number, parts in ((1, 1), (2, 7)):
        full = sealed_path(path, number)
        content = full.read_bytes()
        size = len(content) // parts + 1
        packed = b"".join(pack(content[at : at + size]) for at in range(0, len(content), size))
        full.with_name(f"{full.name}.{'gz' if codec == 'gzip' else 'zst'}").write_bytes(packed)
        full.unlink()
        path_of(full).unlink()

    assert seqs(Reading(path, Query())) == list(range(1, 6004))
    assert seqs(Reading(path, Query(newest_first=True, limit=3))) == [6003, 6002, 6001]
    assert verify(path).ok


# Closing


async def test_closing_leaves_files_that_are_not_compressed_to_the_next_start(path: Path) -> None:
    path.parent.mkdir()
    link, count = START, 12
    for number in range(1, count + 1):
        bodies = [segment("x", number, link.hash), *(body(each, pad=os.urandom(2_000).hex()) for each in range(250))]
        lines, link = seal(bodies, link)
        sealed_path(path, number).write_bytes(b"".join(lines))
    rotation = Rotation(max_bytes=1_000_000, compress="gzip")

    async with open_log(path, rotation=rotation):
        pass
    left = [each for each in sealed_segments(path) if not each.compression]
    async with open_log(path, rotation=rotation):
        await until(lambda: all(each.compression for each in sealed_segments(path)))

    assert len(left) > 1
    assert len(sealed_segments(path)) == count
    assert verify(path).ok
    assert not list(path.parent.glob("*.new"))


@pytest.mark.parametrize("codec", CODECS)
def test_a_compression_that_is_not_to_go_on_leaves_the_file_as_it_was(path: Path, codec: Any) -> None:
    write(path, [[body(number) for number in range(3000)], []])
    before, asked = sorted(path.parent.iterdir()), [1, 2, 3]

    assert compress(sealed_path(path, 1), codec, lambda: asked.pop() != 1) is None
    assert sorted(path.parent.iterdir()) == before
    assert asked == []
    assert verify(path).ok


async def test_closing_copies_the_last_checkpoint_and_removes_what_has_its_time(path: Path, tmp_path: Path) -> None:
    """However much there is to compress."""
    kept = tmp_path / "kept"
    rotation = Rotation(max_bytes=10_000, compress="gzip", keep=2)
    async with open_log(path, rotation=rotation, checkpoints=Checkpoints(copy_to=kept)) as log:
        for number in range(2_000):
            log.accepted(placed(str(number)))

    assert len(sealed_segments(path)) == 2
    assert json.loads(kept.read_bytes().splitlines()[-1])["count"] == verify(path).last.seq - 1


# Copies of checkpoints


def test_a_copy_that_a_full_disk_has_cut_off_takes_no_other_with_it(path: Path) -> None:
    write(path, [[body(1), body(2)]])
    kept = path.with_name("kept")
    before, last = (json.loads(line) for line in path.read_bytes().splitlines()[-2:])
    for record in (before, last):
        copy_checkpoint(json.dumps({"count": record["seq"], "last": record["hash"]}).encode() + b"\n", kept)
        with kept.open("ab") as file:
            file.write(b'{"count":')

    found = verify(path, checkpoints=[kept])

    assert found.ok
    assert found.unwitnessed_tail == 0


# Names and folders


async def test_a_hard_link_to_a_log_gets_no_second_writer(path: Path) -> None:
    other = path.with_name("other.jsonl")
    async with open_log(path, rotation=Rotation(max_bytes=1_000)) as log:
        log.accepted(placed("1"))
        other.hardlink_to(path)
        with pytest.raises(aperion.AuditUnavailable, match="another log writes this file, under another name"):
            await AuditLog(other).start()
        for number in range(40):
            log.accepted(placed(str(number)))
        await until(lambda: log.stats().buffered_bytes == 0)
        await until(lambda: path.exists() and path.stat().st_size < 1_000)  # so that no other file becomes the live one
        assert log.stats().rotations > 2
        other.unlink()
        other.hardlink_to(path)
        with pytest.raises(aperion.AuditUnavailable, match="under another name"):
            await AuditLog(other).start()

    async with open_log(other) as log:  # nobody else writes it any more
        log.accepted(placed("41"))
    assert sorted(each.name for each in path.parent.glob("other*")) == ["other.jsonl"]


async def test_relative_paths_mean_the_folder_in_which_the_log_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, later = tmp_path / "made", tmp_path / "later"
    made.mkdir()
    later.mkdir()
    monkeypatch.chdir(made)
    subjects = Subjects("keys/subjects.keys", of=lambda _event: None)
    log = AuditLog("logs/events.jsonl", checkpoints=Checkpoints(copy_to="kept"), subjects=subjects)
    monkeypatch.chdir(later)

    with anyio.fail_after(20):
        await log.start()
        log.accepted(placed("1"))
        monkeypatch.chdir(tmp_path)
        await log.aclose()

    assert len(list(log.read(kinds={"accepted"}))) == 1
    assert log.verify(checkpoints=[made / "kept"]).ok
    assert (made / "keys" / "subjects.keys").exists()
    assert list(later.iterdir()) == []
    assert str(made) in repr(log)


# What is asked for


@pytest.mark.parametrize("kinds", [{"accepted"}, frozenset({"accepted"}), ["accepted"], ("accepted",), "accepted"])
def test_kinds_and_types_come_in_any_collection(path: Path, kinds: Any) -> None:
    write(path, [[body(number) for number in range(30)]])

    assert len(list(AuditLog(path).read(kinds=kinds, types={"order.*", "chat.*"}))) == 20


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"since": 1.5}, "since=1.5 is no datetime"),
        ({"until": 5}, "until=5 is no datetime"),
        ({"kinds": 5}, "kinds=5 is no text"),
        ({"types": [b"order.placed"]}, "types="),
        ({"event_id": 5}, "event_id=5 is no text"),
        ({"text": b"x"}, "text=b'x' is no text"),
        ({"limit": 1.5}, "limit=1.5"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(wanted: Any, text: str) -> None:
    with pytest.raises(aperion.ConfigurationError, match=text):
        AuditLog("events.jsonl").read(**wanted)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_log_that_is_not_there_and_an_empty_one_are_not_verified(path: Path, is_there: bool) -> None:  # noqa: FBT001
    path.parent.mkdir()
    if is_there:
        path.touch()

    [problem] = verify(path).problems

    assert problem.kind.value == "nothing"
    assert str(path) in problem.text
    assert ("there is no log at" in problem.text) is not is_there
    assert datetime.now(UTC) > BEGIN


# The ring


LEAVING = """
import asyncio, os, sys
from pathlib import Path
from test_audit import placed
from aperion.audit import AuditLog

async def main(path):
    log = AuditLog(path, buffer_bytes=1 << 16)
    await log.start()
    for number in range(20):
        log.accepted(placed(str(number)))
    while log.stats().buffered_bytes:
        await asyncio.sleep(0.001)
    os._exit(0)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_no_flipped_bit_of_a_ring_that_a_killed_process_left_leads_the_chain_astray(path: Path) -> None:
    """In what it says of where the log ended: a start refuses it, and the log does not go on from where it did not end."""
    environment = {**child_environment(), "PYTHONPATH": f"{Path(aperion.__file__).parents[1]}:{Path(__file__).parent}"}
    done = await anyio.run_process([sys.executable, "-W", "ignore", "-c", LEAVING, str(path)], env=environment)
    assert done.returncode == 0
    ring = path.with_name(f"{path.name}.ring")
    kept, content = ring.read_bytes(), path.read_bytes()
    slot = 8 * (24, 40)[kept[8 * 16] % 2]

    for at in (*range(slot, slot + 16, 3), *range(slot + 32, slot + 84, 3)):  # between them: which file it is
        damaged = bytearray(kept)
        damaged[at] ^= 1 << at % 8
        ring.write_bytes(damaged)
        with pytest.raises(aperion.AuditUnavailable, match="is damaged; move it away"):
            await AuditLog(path).start()
        assert path.read_bytes() == content

    ring.write_bytes(kept)
    async with open_log(path):
        pass
    assert verify(path).ok
