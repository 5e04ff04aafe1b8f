"""The storage of the journal alone: what was told to be committed is found again, whatever happens."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import aperion
from aperion.journal.database import Database
from aperion.journal.options import Level, Options
from aperion.journal.rows import Batch, Insert, State
from aperion.journal.salvage import salvage
from aperion.journal.slots import Slots
from aperion.journal.starts import Starts
from aperion.journal.writer import Writer

pytestmark = pytest.mark.anyio


class Told:
    """What a writer has told of its commits."""

    def __init__(self) -> None:
        self.answers: dict[Any, str | None] = {}
        self.duplicates: set[int] = set()
        self.news = asyncio.Event()
        self.calls = 0

    def __call__(self, tickets: list[Any], duplicates: set[int], reason: str | None) -> None:
        self.calls += 1
        self.answers.update(dict.fromkeys(tickets, reason))
        self.duplicates |= duplicates
        self.news.set()

    async def until(self, count: int) -> None:
        with anyio.fail_after(10):
            while len(self.answers) < count:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def opened(folder: Path, **options: Any):
    told = Told()
    writer = Writer(Slots(folder).first_free(), Options(**options), asyncio.get_running_loop(), told)
    summary = await writer.open()
    try:
        yield writer, told, summary
    finally:
        await writer.close()


def insert(seq: int, event_id: str | None = None, body: bytes = b"{}") -> Insert:
    return Insert(seq, event_id or f"id-{seq}", '["a","b"]', body)


async def page(writer: Writer, after: int = 0, limit: int = 100) -> Any:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    writer.ask("page", (after, 1 << 60, limit), answer.set_result)
    with anyio.fail_after(10):
        return await answer


@pytest.mark.parametrize("level", list(Level))
async def test_what_was_committed_is_there_in_the_next_life_in_order(tmp_path: Path, level: Level) -> None:
    async with opened(tmp_path / "state", level=level) as (writer, told, _):
        for seq in range(1, 301):
            writer.insert([(insert(seq, body=b"x" * seq), seq)])
        await told.until(300)
        for seq in range(1, 301, 2):
            writer.later("settled", seq, 0, True)

    async with opened(tmp_path / "state", level=level) as (writer, _, summary):
        found = await page(writer, limit=1000)

    assert set(told.answers.values()) == {None}
    assert summary.events == 150
    assert summary.last == 300
    assert [row.seq for row in found.rows] == list(range(2, 301, 2))
    assert all(row.body == b"x" * row.seq and row.plan == ("a", "b") for row in found.rows)


async def test_a_commit_is_told_of_once_for_all_that_came_together(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as (writer, told, _):
        for seq in range(1, 1001):
            writer.insert([(insert(seq), seq)])
        await told.until(1000)

        assert told.calls <= 10
        assert writer.commits == told.calls


async def test_what_nobody_waits_for_is_written_soon_although_nothing_else_comes(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("aperion.journal.writer._TEND", 60.0)
    async with opened(tmp_path / "state") as (writer, told, _):
        writer.insert([(insert(1), 1)])
        await told.until(1)
        await anyio.sleep(0.1)  # the writer waits for more, and not for ever
        before = writer.commits
        writer.later("settled", 1, 0, False)
        with anyio.fail_after(10):
            while writer.commits == before:
                await anyio.sleep(0.005)


async def test_where_a_delivery_stands_is_there_in_the_next_life(tmp_path: Path) -> None:
    retry = State(1, 1, attempts=2, due=12345.5, wait=0.25)
    async with opened(tmp_path / "state") as (writer, told, _):
        writer.insert([(insert(1), 1)])
        await told.until(1)
        writer.later(State(1, 1, attempts=1))
        writer.later(retry)
        writer.later("letter", "l1", b"first")
        writer.later("letter", "l2", b"second")
        writer.later("letter", "l1", None)

    async with opened(tmp_path / "state") as (writer, _, summary):
        (row,) = (await page(writer)).rows

    assert row.states == {1: retry}
    assert summary.letters == 1


async def test_an_id_that_was_accepted_before_is_a_duplicate_also_in_the_next_life(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as (writer, told, _):
        writer.insert([(insert(1, "same"), 1)])
        writer.insert([(insert(2, "same"), 2)])
        writer.insert([(insert(3, "other"), 3)])
        await told.until(3)
        writer.later("settled", 1, 0, True)
        assert told.duplicates == {2}

    async with opened(tmp_path / "state") as (writer, told, _):
        writer.insert([(insert(4, "same"), 4)])
        await told.until(1)
        found = await page(writer)

    assert told.duplicates == {4}
    assert [row.seq for row in found.rows] == [3]


def test_ids_are_forgotten_half_a_window_at_a_time(tmp_path: Path) -> None:
    database = Database(tmp_path / "j.db", durable=False, window=1000, remembered=2)
    database.forget_ids()

    def kept(seq: int, event_id: str) -> bool:
        duplicates = database.apply(Batch(inserts=[insert(seq, event_id)]))
        database.forget_ids()
        return not duplicates

    assert kept(1, "a")
    assert kept(2, "b")
    assert not kept(3, "a")
    assert kept(4, "c")
    assert kept(5, "d")  # now a and b are older than two halves
    assert kept(6, "a")
    assert not kept(7, "d")
    database.close()


def test_a_window_that_has_passed_is_forgotten_although_few_ids_came(tmp_path: Path, monkeypatch: Any) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("aperion.journal.database.time.time", lambda: now)
    database = Database(tmp_path / "j.db", durable=False, window=100, remembered=1000)
    database.forget_ids()
    database.apply(Batch(inserts=[insert(1, "a")]))
    now += 101
    database.forget_ids()
    assert database.apply(Batch(inserts=[insert(2, "a")])) == {2}
    now += 101
    database.forget_ids()
    assert database.apply(Batch(inserts=[insert(3, "a")])) == set()
    database.close()


# Which handlers ran


def test_what_ran_and_what_was_done_is_known_after_the_process_died(tmp_path: Path) -> None:
    database = Database(tmp_path / "j.db", durable=False, window=1000, remembered=1000)
    starts = Starts(tmp_path / "j.starts")
    database.recover(starts)
    database.apply(Batch(inserts=[insert(1), insert(2)]))
    for seq, done, running in ((1, 0b01, 0b10), (2, 0b11, 0), (99, 1, 1)):
        starts.change(starts.enter(seq, 0), seq, done, running)
    again = Starts(tmp_path / "j.starts")

    summary = database.recover(again)
    states = {row.seq: row.states for row in database.page(0, 1 << 60, 10).rows}

    assert summary.suspects == [1]
    assert states[1] == {0: State(1, 0, over=True), 1: State(1, 1, starts=1)}
    assert states[2] == {0: State(2, 0, over=True), 1: State(2, 1, over=True)}
    assert again.found() == []
    database.close()


def test_a_start_is_counted_once_although_the_takeover_is_interrupted(tmp_path: Path, monkeypatch: Any) -> None:
    database = Database(tmp_path / "j.db", durable=False, window=1000, remembered=1000)
    starts = Starts(tmp_path / "j.starts")
    database.recover(starts)
    database.apply(Batch(inserts=[insert(1)]))
    starts.change(starts.enter(1, 0), 1, 0, 0b01)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Starts, "clear", lambda *_: signal.raise_signal(signal.SIGINT))
        database.recover(Starts(tmp_path / "j.starts"))
    database.recover(Starts(tmp_path / "j.starts"))

    assert database.row(1).states == {0: State(1, 0, starts=1)}
    database.close()


def test_an_entry_that_was_given_back_says_nothing(tmp_path: Path) -> None:
    starts = Starts(tmp_path / "j.starts")
    starts.clear(1)
    entry = starts.enter(7, 0)
    starts.change(entry, 7, 1, 2)
    starts.leave(entry)

    assert Starts(tmp_path / "j.starts").found() == []


def test_each_bit_of_an_entry_is_checked(tmp_path: Path) -> None:
    starts = Starts(tmp_path / "j.starts")
    starts.clear(1)
    starts.change(starts.enter(7, 0), 7, 0b101, 0b10)
    content = bytearray((tmp_path / "j.starts").read_bytes())
    at = 64 + 16 * 16_383

    for bit in range(128):
        flipped = bytearray(content)
        flipped[at + bit // 8] ^= 1 << bit % 8
        (tmp_path / "f.starts").write_bytes(flipped)
        assert Starts(tmp_path / "f.starts").found() == []


# Files


async def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with opened(tmp_path / "state") as (writer, told, _):
            writer.insert([(insert(1), 1)])
            await told.until(1)
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "state").iterdir()}
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert len(modes) == 5
    assert set(modes.values()) == {0o600}


async def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(aperion.errors.JournalUnavailable, match="link"):
        Slots(tmp_path / "link")

    (tmp_path / "real" / "journal-0.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(aperion.errors.JournalUnavailable, match="link"):
        async with opened(tmp_path / "real"):
            pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("aperion.journal.slots.file_system", lambda _: "nfs4")

    with pytest.raises(aperion.errors.JournalUnavailable, match="nfs4, a network file system"):
        Slots(tmp_path / "state")


@pytest.mark.parametrize("number", [0, 1])
async def test_a_file_of_somebody_else_is_refused_and_left_alone(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "state"
    Slots(folder).first_free().release()
    other = sqlite3.connect(folder / "journal-0.db")
    other.execute("CREATE TABLE mine(a)")
    if number:
        other.execute("PRAGMA application_id=7")
    other.close()

    with pytest.raises(aperion.errors.JournalUnavailable, match="it is no journal"):
        async with opened(folder):
            pass


async def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "state"):
        pass
    other = sqlite3.connect(tmp_path / "state" / "journal-0.db")
    other.execute("PRAGMA user_version=2")
    other.close()

    with pytest.raises(aperion.errors.JournalUnavailable, match="newer Aperion, in version 2; this one knows 1"):
        async with opened(tmp_path / "state"):
            pass


async def test_two_at_once_have_slots_of_their_own_and_one_that_is_gone_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first, second = Slots(folder).first_free(), Slots(folder).first_free()
    assert (first.number, second.number) == (0, 1)
    assert Slots(folder).abandoned() == []

    first.release()
    (found,) = Slots(folder).abandoned()

    assert found.number == 0
    found.release(is_empty=True)
    assert Slots(folder).abandoned() == []
    second.release()


async def test_the_log_of_sqlite_does_not_grow_for_ever(tmp_path: Path) -> None:
    wal = tmp_path / "state" / "journal-0.db-wal"
    async with opened(tmp_path / "state", level="process") as (writer, told, _):
        for seq in range(1, 1201):
            writer.insert([(insert(seq, body=os.urandom(32_000)), seq)])
            writer.later("settled", seq, 0, True)
            if not seq % 100:
                await told.until(seq)

        assert wal.stat().st_size < 24 << 20


# Damage


def test_of_a_damaged_file_no_wrong_row_is_read_and_the_rest_goes_on(tmp_path: Path) -> None:
    rng, lost = random.Random(7), 0
    database = Database(tmp_path / "j.db", durable=False, window=1000, remembered=1000)
    rows = {seq: f"{seq}-".encode() * 60 for seq in range(1, 201)}
    database.apply(Batch(inserts=[insert(seq, body=body) for seq, body in rows.items()]))
    database.checkpoint(idle=True)
    database.close()
    content = (tmp_path / "j.db").read_bytes()

    for number in range(60):
        flipped = bytearray(content)
        at = rng.randrange(100, len(content))
        flipped[at] ^= 1 << rng.randrange(8)
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / "j.db").write_bytes(flipped)
        found = _all_rows(folder / "j.db")
        assert all(rows.get(seq) == body for seq, body in found.items())
        lost += len(rows) - len(found)

    assert lost < 60 * 12  # about a page for each


def _all_rows(path: Path) -> dict[int, bytes]:
    for _ in range(2):
        try:
            database = Database(path, durable=False, window=1000, remembered=1000)
            try:
                return {row.seq: row.body for row in database.page(0, 1 << 60, 1000).rows}
            finally:
                database.close()
        except sqlite3.DatabaseError:
            salvage(path)
    raise AssertionError("what was saved cannot be read")


async def test_a_file_that_is_damaged_while_it_is_open_is_replaced_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with opened(folder) as (writer, told, _):
        for seq in range(1, 101):
            writer.insert([(insert(seq, body=b"x" * 500), seq)])
        await told.until(100)
    size = (folder / "journal-0.db").stat().st_size
    with (folder / "journal-0.db").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))

    async with opened(folder) as (writer, told, _):
        await page(writer)
        with anyio.fail_after(10):
            while writer.failure is not None:
                await anyio.sleep(0.01)
        writer.insert([(insert(1000, "new"), 1000)])
        await told.until(1)
        found = await page(writer)

    assert told.answers == {1000: None}
    assert [row.seq for row in found.rows] == [1000]
    assert (folder / "journal-0.db.damaged-1").exists()


# Processes


def test_a_forked_child_is_refused_and_leaves_the_files_alone(tmp_path: Path) -> None:
    code = """
    import asyncio, os, sys, threading
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_storage import insert, opened, page

    ready, forked, writers = threading.Event(), threading.Event(), []

    async def main():
        async with opened(Path(sys.argv[1])) as (writer, told, _):
            writer.insert([(insert(1), 1)])
            await told.until(1)
            writers.append(writer)
            ready.set()
            while not forked.is_set():
                await asyncio.sleep(0.01)
            writer.insert([(insert(3), 3)])
            await told.until(2)
            assert told.answers == {{1: None, 3: None}}
            assert [row.seq for row in (await page(writer)).rows] == [1, 3]
            assert Path(sys.argv[1], "journal-0.db-wal").exists()

    # The loop in another thread: a child of its own thread would close what the loop of the parent waits with.
    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    ready.wait()
    child = os.fork()
    if not child:
        if "forked" in writers[0].failure:
            sys.exit(7)  # with all that an interpreter does at its end
        os._exit(1)
    _, status = os.waitpid(child, 0)
    forked.set()
    thread.join()
    sys.exit(os.waitstatus_to_exitcode(status))
    """
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c"),
            textwrap.dedent(code).format(tests=str(Path(__file__).parent)),
            str(tmp_path / "state"),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stderr) == (7, "")
