"""Verification: every promised kind of damage is found and located, and a log that is whole is never accused."""

from __future__ import annotations

import base64
import json
import os
import random
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import aperion
from aperion.audit import AuditLog, Checkpoints, Rotation, SigningKey, VerifyKey, verify
from aperion.audit.chain import START, Link, opened, seal
from aperion.audit.checkpoints import checkpoint_body, rotation_body
from aperion.audit.compression import compress
from aperion.audit.index import load
from aperion.audit.query import Query
from aperion.audit.reading import Reading
from aperion.audit.record import about_log, line, segment
from aperion.audit.segments import index_path, sealed_path, segments
from aperion.audit.verification import ProblemKind, Verification

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

FILES, RECORDS = 4, 40
KEY = SigningKey("k1", bytes(range(32)))
NEW_KEY = SigningKey("k2", bytes(range(1, 33)))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Writing:
    """A log in the making: bodies go into the chain, files are begun."""

    def __init__(self, log: Path, key: SigningKey | None = None) -> None:
        self.path, self.key, self.link, self.number, self.checkpoint = log, key, START, 0, 0
        self.lines: list[bytes] = []

    def add(self, *bodies: bytes) -> None:
        lines, self.link = seal(bodies, self.link)
        self.lines += lines

    def check(self, **changes: Any) -> bytes:
        fields = {"log": "x", "segment": self.number, "last": self.link, "before": self.checkpoint, "every": 50}
        body = checkpoint_body(**{**fields, "key": self.key, "time_ns": 1, **changes})
        self.add(body)
        self.checkpoint = self.link.seq
        return body

    def begin(self) -> None:
        self.number += 1
        self.lines = []
        self.add(segment("x", self.number, self.link.hash))

    def end(self, *, live: bool = False) -> None:
        (self.path if live else sealed_path(self.path, self.number)).write_bytes(b"".join(self.lines))


def event(number: int) -> bytes:
    return line({"time": number, "kind": "accepted", "event_id": f"e{number}", "payload": {"n": number}})


def whole(log: Path, key: SigningKey | None = None, records: int = RECORDS) -> list[bytes]:
    """Write a log of four files with a checkpoint at the end of each; return the checkpoints."""
    writing, kept = Writing(log, key), []
    for number in range(FILES):
        writing.begin()
        writing.add(*(event(100 * number + n) for n in range(records)))
        kept.append(writing.check())
        writing.end(live=number == FILES - 1)
    return kept


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    whole(path)
    return path


def found(result: Verification) -> list[tuple[str, str, int]]:
    return [(problem.kind.value, problem.segment, problem.line) for problem in result.problems]


def edit(path: Path, change: Callable[[list[bytes]], object]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


async def test_a_whole_log_has_no_problems_compressed_or_not(log: Path) -> None:
    plain = verify(log)
    compress(sealed_path(log, 1), "gzip")
    compress(sealed_path(log, 3), "zstd")

    mixed = verify(log)

    assert plain.ok
    assert (plain.records, plain.checkpoints, plain.first) == (FILES * (RECORDS + 2), FILES, START)
    assert (mixed.problems, mixed.records, mixed.last) == ((), plain.records, plain.last)
    assert mixed.segments == (
        "events.000001.jsonl.gz",
        "events.000002.jsonl",
        "events.000003.jsonl.zst",
        "events.jsonl",
    )


SECOND = "events.000002.jsonl"
DAMAGES: dict[str, tuple[Callable[[list[bytes]], object], list[tuple[str, str, int]]]] = {
    "a flipped byte": (
        lambda ls: ls.__setitem__(9, ls[9].replace(b"accepted", b"acceptes")),
        [("altered", SECOND, 10)],
    ),
    "a number made larger": (
        lambda ls: ls.__setitem__(9, ls[9].replace(b'"seq":5', b'"seq":9')),
        [("missing", SECOND, 10)],
    ),
    "a number made smaller": (
        lambda ls: ls.__setitem__(9, ls[9].replace(b'"seq":5', b'"seq":1')),
        [("out_of_place", SECOND, 10)],
    ),
    "a changed hash": (
        lambda ls: ls.__setitem__(9, ls[9][:-8] + (b"0000" if ls[9][-8:-4] != b"0000" else b"1111") + ls[9][-4:]),
        [("altered", SECOND, 10)],
    ),
    "a zeroed line": (lambda ls: ls.__setitem__(9, b"\0" * (len(ls[9]) - 1) + b"\n"), [("damaged", SECOND, 10)]),
    "a removed line": (lambda ls: ls.pop(9), [("missing", SECOND, 10)]),
    "five removed lines": (lambda ls: ls.__delitem__(slice(9, 14)), [("missing", SECOND, 10)]),
    "a doubled line": (lambda ls: ls.insert(10, ls[9]), [("out_of_place", SECOND, 11)]),
    "two swapped lines": (
        lambda ls: ls.__setitem__(slice(9, 11), [ls[10], ls[9]]),
        [("missing", SECOND, 10), ("out_of_place", SECOND, 11)],
    ),
    "an inserted line of nobody": (lambda ls: ls.insert(9, b'{"kind":"accepted"}\n'), [("damaged", SECOND, 10)]),
    "an inserted record": (
        lambda ls: ls.insert(9, seal([event(9)], opened(ls[8]).link)[0][0]),  # type: ignore[union-attr]  # it is one
        [("out_of_place", SECOND, 11)],
    ),
    "a removed first line": (lambda ls: ls.pop(0), [("damaged", SECOND, 1), ("missing_segment", SECOND, 1)]),
    "a removed last line": (lambda ls: ls.pop(), [("missing_segment", "events.000003.jsonl", 1)]),
    "a lost newline": (lambda ls: ls.__setitem__(9, ls[9][:-1]), [("altered", SECOND, 10)]),
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_a_damage_is_found_and_located_once(log: Path, name: str) -> None:
    damage, expected = DAMAGES[name]

    edit(log.with_name(SECOND), damage)

    assert found(verify(log)) == expected


async def test_a_removed_file_is_found(log: Path) -> None:
    log.with_name(SECOND).unlink()

    assert found(verify(log)) == [("missing_segment", "events.000003.jsonl", 1)]


async def test_a_removed_first_file_is_found(log: Path) -> None:
    sealed_path(log, 1).unlink()

    assert found(verify(log)) == [("missing_segment", SECOND, 0)]


async def test_swapped_files_are_found(log: Path) -> None:
    first, third, aside = sealed_path(log, 1), sealed_path(log, 3), log.with_name("aside")
    first.rename(aside)
    third.rename(first)
    aside.rename(third)

    told = [(problem.segment, problem.text) for problem in verify(log).problems]

    assert ("events.000001.jsonl", "this file was number 3 of its log") in told
    assert ("events.000003.jsonl", "this file was number 1 of its log") in told


async def test_a_file_of_another_log_is_found(log: Path, tmp_path: Path) -> None:
    writing = Writing(log)
    writing.number, writing.link = 2, opened(log.with_name("events.000003.jsonl").read_bytes().splitlines()[0]).link  # type: ignore[union-attr]
    edit(
        log.with_name("events.000003.jsonl"),
        lambda ls: ls.__setitem__(0, seal([segment("y", 3, "0")], Link(84, "0" * 64))[0][0]),
    )

    assert "another log" in " ".join(problem.text for problem in verify(log).problems)


async def test_a_last_line_that_is_being_written_is_no_problem_and_in_a_full_file_it_is(log: Path) -> None:
    log.write_bytes(log.read_bytes() + b'{"v":1,"seq":')

    assert verify(log).ok
    full = sealed_path(log, 2)
    full.write_bytes(full.read_bytes() + b'{"v":1,"seq":')
    assert found(verify(log)) == [("damaged", SECOND, RECORDS + 3)]


async def test_what_retention_removed_is_no_problem_and_more_is(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    audit = AuditLog(path, rotation=Rotation(max_bytes=3_000, keep=3))
    async with aperion.EventBus(audit=audit) as bus:
        for number in range(200):
            await bus.emit("order.placed", {"n": number})
            await anyio.sleep(0.001)

    left = [s for s in segments(path) if s.number]
    assert verify(path).ok
    assert len(left) == 3
    assert left[0].number > 5  # type: ignore[operator]  # they are numbered
    left[0].path.unlink()
    assert found(verify(path)) == [("missing_segment", left[1].path.name, 0)]


# Signatures


async def test_a_recomputed_chain_is_found_by_signatures_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole(path, KEY)
    assert verify(path, keys=[KEY.public]).ok
    link = START
    for there in segments(path):  # an insider changes a payload, and computes all hashes anew
        bodies = [opened(ln).body.replace(b'"n":110}', b'"n":911}') for ln in there.path.read_bytes().splitlines(True)]  # type: ignore[union-attr]
        begin = json.loads(bodies[0])
        begin["previous"] = link.hash
        renewed: list[bytes] = []
        for body in [line(begin), *bodies[1:]]:
            fields = json.loads(body)
            if fields["kind"] == "checkpoint":
                fields |= {"count": link.seq, "last": link.hash}
            lines, link = seal([line(fields)], link)
            renewed += lines
        there.path.write_bytes(b"".join(renewed))

    assert verify(path).ok  # nothing in the chain itself can tell
    kinds = [problem.kind for problem in verify(path, keys=[KEY.public]).problems]
    assert kinds == [ProblemKind.FORGED] * 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"key": None}, "not signed"),
        ({"key": NEW_KEY}, "none of those given"),
        ({"key": SigningKey("k1", bytes(32))}, "signature"),
        ({"last": Link(3, "0" * 64)}, "not about the record before it"),
    ],
)
async def test_a_checkpoint_of_somebody_else_is_found(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    path = tmp_path / "events.jsonl"
    writing = Writing(path, KEY)
    writing.begin()
    writing.check()
    writing.check(**changes)
    writing.end(live=True)

    result = verify(path, keys=[KEY.public])

    assert [(p.kind, p.line) for p in result.problems] == [(ProblemKind.FORGED, 3)]
    assert text in result.problems[0].text


async def test_checkpoints_that_stop_are_found_and_what_no_signature_covers_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writing = Writing(path, KEY)
    writing.begin()
    writing.check()
    writing.add(*(event(n) for n in range(1200)))
    writing.end(live=True)

    result = verify(path, keys=[KEY.public])

    assert [problem.kind for problem in result.problems] == [ProblemKind.UNSIGNED]
    assert result.unsigned_tail == 1200


@pytest.mark.parametrize("honest", [True, False])
async def test_a_change_of_keys_is_signed_with_both(tmp_path: Path, honest: bool) -> None:  # noqa: FBT001
    path = tmp_path / "events.jsonl"
    writing = Writing(path, KEY)
    writing.begin()
    writing.check()
    old = KEY if honest else replace(KEY, private=bytes(32))
    writing.add(rotation_body(old, NEW_KEY, "x", writing.link, 5))
    writing.check(key=NEW_KEY)
    writing.end(live=True)

    result = verify(path, keys=[KEY.public])

    assert [problem.line for problem in result.problems] == ([] if honest else [3, 4])


async def test_a_key_that_changes_without_a_record_is_found(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writing = Writing(path, KEY)
    writing.begin()
    writing.check()
    writing.check(key=NEW_KEY)
    writing.end(live=True)

    result = verify(path, keys=[KEY.public, NEW_KEY.public])

    assert "no record says so" in result.problems[0].text


async def test_a_running_log_changes_its_key(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    audit = AuditLog(path, checkpoints=Checkpoints(every=5, key=KEY))
    async with aperion.EventBus(audit=audit) as bus:
        await (await bus.emit("order.placed", {})).settled()
        audit.rotate_key(NEW_KEY)
        await (await bus.emit("order.placed", {})).settled()

    result = verify(path, keys=[KEY.public])

    assert result.ok
    assert result.unsigned_tail == 0
    assert '"key":"k2"' in path.read_text().splitlines()[-1]


def test_keys_are_saved_and_loaded_and_not_shown(tmp_path: Path) -> None:
    key = SigningKey.generate("prod-1")
    key.save(tmp_path / "key")
    key.public.save(tmp_path / "key.pub")

    assert SigningKey.load(tmp_path / "key") == key
    assert VerifyKey.load(tmp_path / "key.pub") == key.public
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert base64.b64encode(key.private).decode() not in repr(key)
    assert str(key.private) not in repr(key)
    with pytest.raises(FileExistsError):
        key.save(tmp_path / "key")


def test_the_wrong_half_of_a_key_is_refused(tmp_path: Path) -> None:
    """A private key taken for a public one would call every signature forged."""
    key = SigningKey.generate("prod-1")
    key.save(tmp_path / "key")
    key.public.save(tmp_path / "key.pub")

    with pytest.raises(aperion.ConfigurationError, match="holds a private key; pass the file with the public one"):
        VerifyKey.load(tmp_path / "key")
    with pytest.raises(aperion.ConfigurationError, match="holds a public key"):
        SigningKey.load(tmp_path / "key.pub")


@pytest.mark.parametrize("content", ["", "k1", "k1 not-base64!", "k1 public AAAA", "bad id public x", "ü public AAAA"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content, encoding="utf-8")

    with pytest.raises(aperion.ConfigurationError):
        VerifyKey.load(tmp_path / "key")


# Checkpoints kept elsewhere


async def test_a_cut_tail_a_missing_last_file_and_a_roll_back_are_found_by_a_copy_kept_elsewhere(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.jsonl"
    kept = [json.loads(body) for body in whole(path)]
    assert verify(path, checkpoints=kept).ok

    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(content[:20]))
    cut = verify(path, checkpoints=kept)
    path.unlink()
    sealed_path(path, 3).rename(path)
    rolled_back = verify(path, checkpoints=kept)
    edit(path, lambda ls: ls.__delitem__(slice(10, None)))
    writing = Writing(path)
    writing.link = opened(path.read_bytes().splitlines(True)[-1]).link  # type: ignore[union-attr]
    writing.add(*(event(7000 + n) for n in range(100)))
    path.write_bytes(path.read_bytes() + b"".join(writing.lines))
    other = verify(path, checkpoints=kept)

    assert verify(path).ok
    assert [p.kind for p in cut.problems] == [ProblemKind.TRUNCATED]
    assert [p.kind for p in rolled_back.problems] == [ProblemKind.TRUNCATED]
    assert [p.kind for p in other.problems] == [ProblemKind.ROLLED_BACK, ProblemKind.ROLLED_BACK][: len(other.problems)]
    assert other.problems


async def test_a_bus_copies_its_checkpoints_elsewhere(tmp_path: Path) -> None:
    path, kept = tmp_path / "logs" / "events.jsonl", tmp_path / "elsewhere"
    told: list[Any] = []
    for copy_to in (kept, told.append):
        audit = AuditLog(path, checkpoints=Checkpoints(every=3, key=KEY, copy_to=copy_to))
        async with aperion.EventBus(audit=audit) as bus:
            for _ in range(5):
                await (await bus.emit("order.placed", {})).settled()

    assert verify(path, keys=[KEY.public], checkpoints=[kept, *told]).ok
    assert len(kept.read_bytes().splitlines()) >= 2
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    edit(path, lambda ls: ls.pop())
    edit(path, lambda ls: ls.pop())
    assert [p.kind for p in verify(path, checkpoints=told).problems] == [ProblemKind.TRUNCATED]


async def test_what_came_after_the_last_checkpoint_kept_elsewhere_is_told(tmp_path: Path) -> None:
    """An old copy proves nothing about the end; an empty one proves nothing at all, and is refused."""
    path = tmp_path / "events.jsonl"
    kept = [json.loads(body) for body in whole(path)]
    empty = tmp_path / "kept"
    empty.touch()

    assert verify(path, checkpoints=kept).unwitnessed_tail == verify(path).last.seq - kept[-1]["count"] - 1
    assert verify(path, checkpoints=kept[:1]).unwitnessed_tail > verify(path, checkpoints=kept).unwitnessed_tail
    assert verify(path).unwitnessed_tail is None
    with pytest.raises(aperion.ConfigurationError, match="holds no checkpoint"):
        verify(path, checkpoints=[empty])


def test_a_path_may_be_text(log: Path) -> None:
    """As for the log itself."""
    assert verify(str(log)) == verify(log)


@pytest.mark.parametrize("content", [b"123\n", b"{}\n", b"no json\n"])
def test_what_is_no_checkpoint_is_refused(log: Path, content: bytes) -> None:
    kept = log.with_name("kept")
    kept.write_bytes(content)

    with pytest.raises(aperion.ConfigurationError, match="kept:1"):
        verify(log, checkpoints=[kept])


# A device that failed


@pytest.mark.parametrize("says_so", [True, False])
async def test_what_stands_behind_the_end_of_a_poisoned_file_is_no_part_of_the_log(
    tmp_path: Path, says_so: bool
) -> None:  # noqa: FBT001
    path = tmp_path / "events.jsonl"
    writing = Writing(path)
    writing.begin()
    writing.add(event(1), event(2))
    end, size = writing.link, sum(map(len, writing.lines))
    writing.add(event(3))
    writing.end()
    writing.link = end
    writing.begin()
    detail = {"poisoned": {"segment": sealed_path(path, 1).name, "bytes": size}, "error": "input/output error"}
    writing.add(*([about_log("log", detail)] if says_so else []), event(3), event(4))
    writing.end(live=True)

    assert verify(path).ok is says_so


# While it is written


async def test_no_false_alarm_while_the_log_is_written_rotated_and_compressed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    audit = AuditLog(
        path, rotation=Rotation(max_bytes=10_000, compress="gzip", keep=30), checkpoints=Checkpoints(every=20, key=KEY)
    )
    stop, results = threading.Event(), []

    def keep_verifying() -> None:
        while not stop.is_set():
            if path.exists():
                results.append(verify(path, keys=[KEY.public]))

    with anyio.fail_after(45):
        async with aperion.EventBus(audit=audit) as bus, anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, keep_verifying)
            try:
                for number in range(1500):
                    await bus.emit("order.placed", {"n": number})
                    if number % 50 == 0:
                        await anyio.sleep(0.02)
            finally:
                stop.set()

    assert len(results) > 3
    assert [result.problems for result in results if not result.ok] == []


# Anything


def damage(rng: random.Random, log: Path) -> str:
    """Do one thing to a log that must be found."""
    there = segments(log)
    chosen = rng.choice(there)
    content = bytearray(chosen.path.read_bytes())
    lines = bytes(content).splitlines(keepends=True)
    at = rng.randrange(len(content) - 1)
    what = rng.choice(["bit", "zero", "delete", "double", "swap", "insert", "cut", "remove", "garbage"])
    if what == "bit":
        content[at] ^= 1 << rng.randrange(8)
        lines = [bytes(content)]
    elif what == "zero":
        content[at : at + 512] = b"\0" * len(content[at : at + 512])
        lines = [bytes(content)]
    elif what == "garbage":
        content[at:at] = rng.randbytes(rng.randrange(1, 50))
        lines = [bytes(content)]
    elif what == "cut":
        lines = [bytes(content[:at])]
    elif what == "delete":
        lines.pop(rng.randrange(len(lines)))
    elif what == "double":
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    elif what == "swap":
        first, second = rng.sample(range(len(lines)), 2)
        lines[first], lines[second] = lines[second], lines[first]
    elif what == "insert":
        lines.insert(
            rng.randrange(len(lines)), seal([event(rng.randrange(99))], Link(rng.randrange(200), "0" * 64))[0][0]
        )
    if what == "remove":
        chosen.path.unlink()
    else:
        chosen.path.write_bytes(b"".join(lines))
    return f"{what} {chosen.path.name} {at}"


def is_a_mere_end(log: Path, before: bytes) -> bool:
    """Tell whether what is left is the beginning of the log: what a cut tail leaves, which no chain can show.

    A last line of the live file that is not finished looks like one that is being written.
    """
    left = b"".join(there.path.read_bytes() for there in segments(log))
    return before.startswith((left, left[: left.rfind(b"\n") + 1]))


def test_any_of_700_random_damages_is_found_or_a_mere_end(tmp_path: Path) -> None:
    rng = random.Random(20_261_123)  # noqa: S311
    path = tmp_path / "events.jsonl"
    kept = [json.loads(body) for body in whole(path, records=12)]
    files = {there.path: there.path.read_bytes() for there in segments(path)}
    before = b"".join(files.values())
    unseen, ends = [], 0
    for _ in range(700):
        what = damage(rng, path)
        changed = b"".join(there.path.read_bytes() for there in segments(path)) != before
        if changed and verify(path).ok:
            ends += 1
            if not is_a_mere_end(path, before) or verify(path, checkpoints=kept).ok:
                unseen.append(what)
        for name, content in files.items():
            name.write_bytes(content)

    assert unseen == []
    assert 0 < ends < 100
    assert verify(path).ok


@pytest.mark.parametrize("codec", [pytest.param("gzip", marks=pytest.mark.slow), "zstd"])
@pytest.mark.parametrize("indexed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_any_damage_of_a_compressed_file_is_found_or_changes_nothing(tmp_path: Path, codec: Any, indexed: bool) -> None:
    rng = random.Random(20_261_124)  # noqa: S311
    path = tmp_path / "events.jsonl"
    whole(path, records=600)  # two blocks a file
    packed = compress(sealed_path(path, 2), codec)
    if not indexed:
        index_path(path, 2).unlink()
    content = packed.read_bytes()
    lines = [record.seq for record in Reading(path, Query())]
    found = 0
    for _ in range(60):
        damaged, at = bytearray(content), rng.randrange(len(content))
        what = rng.choice(["bit", "zero", "cut", "garbage"])
        if what == "bit":
            damaged[at] ^= 1 << rng.randrange(8)
        elif what == "zero":
            damaged[at : at + 100] = bytes(len(damaged[at : at + 100]))
        else:
            damaged[at:] = b"" if what == "cut" else rng.randbytes(50)
        packed.write_bytes(damaged)

        problems, reading = verify(path).problems, Reading(path, Query())

        read = [record.seq for record in reading]
        assert read == sorted(set(read))
        assert set(lines) - set(read) <= set(range(lines[602], lines[1204]))
        if read != lines:
            assert problems
            assert problems[0].segment in {packed.name, "events.000003.jsonl"}
        found += bool(problems)

    assert found > 40


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_damaged_block_takes_no_other_with_it(tmp_path: Path, codec: Any) -> None:
    path = tmp_path / "events.jsonl"
    whole(path, records=2500)
    packed = compress(sealed_path(path, 2), codec)
    with packed.open("rb") as file:
        index = load(packed, file.fileno())
    assert index is not None
    block = index.blocks[1]
    content = bytearray(packed.read_bytes())
    content[block.offset + block.size // 2] ^= 0xFF
    packed.write_bytes(content)

    reading = Reading(path, Query(newest_first=True))
    read = [record.seq for record in reading]

    assert found(verify(path))[0][:2] == ("damaged", packed.name)
    assert {kind for kind, *_ in found(verify(path))} == {"damaged", "missing"}
    assert reading.skipped == 1
    missing = set(range(1, 4 * 2502 + 1)) - set(read)
    assert missing == set(range(min(missing), max(missing) + 1))
    assert 2503 < min(missing) < max(missing) < 5004


def test_a_line_of_any_length_is_judged_in_bounded_memory(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aperion.audit.blocks.LONGEST", 100_000)
    full = sealed_path(log, 2)
    full.write_bytes(full.read_bytes() + b"x" * 250_000 + b"\n")

    assert found(verify(log)) == [("damaged", SECOND, RECORDS + 3 + n) for n in range(3)]
    assert os.path.getsize(full) > 250_000


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"seq":', b'"seq":' + b"9" * 5_000),
        lambda line: line.replace(b'"previous":"', b'"previous":"\\u00e9'),
        lambda line: line.replace(b'"segment":2', b'"segment":' + b"9" * 5_000),
    ],
)
async def test_whatever_the_first_line_of_a_file_says_the_log_is_verified_and_read(
    log: Path, change: Callable[[bytes], bytes]
) -> None:
    """By somebody who computed its hash anew."""
    lines = log.with_name(SECOND).read_bytes().splitlines(keepends=True)
    before = opened(sealed_path(log, 1).read_bytes().splitlines()[-1]).link  # type: ignore[union-attr]  # it is a record
    changed = change(seal([change(opened(lines[0]).body)], before)[0][0])  # type: ignore[union-attr]
    log.with_name(SECOND).write_bytes(b"".join([changed, *lines[1:]]))

    assert verify(log).problems[0].segment == SECOND
    for newest_first in (False, True):
        assert len(list(Reading(log, Query(newest_first=newest_first)))) >= FILES * (RECORDS + 2) - 1
