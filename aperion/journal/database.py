"""The SQLite file of a journal; everything here happens on the thread of its writer."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import orjson

from aperion.errors import JournalUnavailable
from aperion.journal.rows import Page, Row, State, Summary, check_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from aperion.journal.rows import Batch, Insert
    from aperion.journal.starts import Starts

APPLICATION_ID: Final = 0x41504A4C  # "APJL"
VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE events(seq INTEGER PRIMARY KEY, plan TEXT NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE deliveries(
    seq INTEGER NOT NULL, place INTEGER NOT NULL, over INTEGER NOT NULL, attempts INTEGER NOT NULL,
    starts INTEGER NOT NULL, due REAL NOT NULL, wait REAL NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY(seq, place)
) WITHOUT ROWID;
CREATE TABLE letters(n INTEGER PRIMARY KEY, letter_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE seen0(event_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE seen1(event_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE aside(n INTEGER PRIMARY KEY, what TEXT NOT NULL, seq INTEGER, body BLOB);
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES('life', 0), ('seen', 0), ('seen_since', 0), ('seen_count', 0);
"""
_SIZES: Final = (256, 64, 16, 4, 1)
"""Rows that one statement takes: each step lets go of the interpreter, and may wait long to have it back."""
_CHECKPOINT: Final = 16 << 20
_COUNTED: Final = 100_000
"""Events up to which the first line after a start counts them; beyond it says how many there can be."""


class Database:
    """One open file, with the only connection that writes.

    Args:
        path: the file.
        durable: whether a commit waits for the device.
        window: seconds for which the ids of events are remembered, at least.
        remembered: how many of them are, at most, for each half of the window.

    Raises:
        JournalUnavailable: for a file that is none of ours, or of a newer version.
        sqlite3.Error: when it cannot be opened.
    """

    # Mutable: the half of the window that ids go to, and since when.
    __slots__ = ("_old", "_remembered", "_seen", "_seen_count", "_since", "_window", "connection", "path")

    def __init__(self, path: Path, *, durable: bool, window: float, remembered: int) -> None:
        self.path = path
        self._window = window
        self._remembered = remembered
        is_new = _made_private(path)
        self.connection = sqlite3.connect(
            f"file:{quoted(path)}?mode=rw", uri=True, isolation_level=None, check_same_thread=False, timeout=2.0
        )
        try:
            self._prepare(durable=durable)
        except BaseException:
            self.connection.close()
            raise
        if is_new:
            sync_folder(path.parent)
        meta = dict(self._rows("SELECT name, value FROM meta"))
        self._seen, self._since, self._seen_count = meta["seen"], meta["seen_since"], meta["seen_count"]
        self._old = bool(self._rows(f"SELECT 1 FROM seen{1 - self._seen} LIMIT 1"))  # noqa: S608 - 0 or 1

    def _prepare(self, *, durable: bool) -> None:
        run = self.connection.execute
        run("PRAGMA trusted_schema=OFF")
        run("PRAGMA mmap_size=0")
        run("PRAGMA cell_size_check=ON")
        (application_id,), (version,) = run("PRAGMA application_id").fetchone(), run("PRAGMA user_version").fetchone()
        is_empty = not run("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        if not (is_empty and application_id == 0) and application_id != APPLICATION_ID:
            raise JournalUnavailable(self.path, "it is no journal", opening=True)
        if version > VERSION:
            raise JournalUnavailable(
                self.path,
                f"it was written by a newer Aperion, in version {version}; this one knows {VERSION}",
                opening=True,
            )
        (mode,) = run("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise JournalUnavailable(self.path, "SQLite cannot use its write-ahead log there", opening=True)
        run(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        run("PRAGMA wal_autocheckpoint=0")
        if is_empty:
            with self.transaction():
                for statement in _SCHEMA.split(";"):
                    run(statement)
                run(f"PRAGMA application_id={APPLICATION_ID}")
                run(f"PRAGMA user_version={VERSION}")

    # Writing

    def apply(self, batch: Batch) -> set[int]:
        """Commit a batch; return the numbers of events that were accepted before, and are not kept again.

        Raises:
            sqlite3.Error: when it cannot be committed; nothing of it is then.
        """
        try:
            self._commit(batch, batch.inserts)
        except _RepeatedError:
            duplicates = self._duplicates(batch.inserts)
            self._commit(batch, [insert for insert in batch.inserts if insert.seq not in duplicates])
            return duplicates
        return set()

    def _commit(self, batch: Batch, inserts: Sequence[Insert]) -> None:
        with self.transaction():
            if batch.forgotten:
                self._each("DELETE FROM events WHERE seq IN", batch.forgotten)
                self._each(f"DELETE FROM seen{self._seen} WHERE event_id IN", batch.forgotten.values())  # noqa: S608
            if inserts:
                self._remember([insert.event_id for insert in inserts])
                self._many("INSERT INTO events VALUES", [(i.seq, i.plan, i.body, i.check) for i in inserts])
            if batch.states:
                self._many("REPLACE INTO deliveries VALUES", [(*s, s.check) for s in batch.states.values()])
            if batch.letters:
                self._apply_letters(batch.letters)
            if batch.settled:
                self._each("DELETE FROM events WHERE seq IN", batch.settled)
            if batch.stated:
                self._each("DELETE FROM deliveries WHERE seq IN", batch.stated)
        self._seen_count += len(inserts)

    def _remember(self, ids: Sequence[str]) -> None:
        """Write down the ids of events.

        Raises:
            _RepeatedError: where one of them is known.
        """
        if self._old and self._each(f"SELECT 1 FROM seen{1 - self._seen} WHERE event_id IN", ids):  # noqa: S608
            raise _RepeatedError
        if self._many(f"INSERT OR IGNORE INTO seen{self._seen} VALUES", [(event_id,) for event_id in ids]) < len(ids):
            raise _RepeatedError

    def _duplicates(self, inserts: Sequence[Insert]) -> set[int]:
        if not inserts:
            return set()
        ids: dict[str, int] = {}
        duplicates = set()
        for insert in inserts:
            if ids.setdefault(insert.event_id, insert.seq) != insert.seq:
                duplicates.add(insert.seq)
        tables = (0, 1) if self._old else (self._seen,)
        for table in tables:
            known = self._each(f"SELECT event_id FROM seen{table} WHERE event_id IN", ids)  # noqa: S608
            duplicates.update(ids[event_id] for (event_id,) in known)
        return duplicates

    def _apply_letters(self, letters: dict[str, bytes | None]) -> None:
        run = self.connection.execute
        for letter_id, body in letters.items():
            if body is None:
                run("DELETE FROM letters WHERE letter_id = ?", (letter_id,))
            else:
                run(
                    "INSERT INTO letters(letter_id, body, crc) VALUES(?, ?, ?) "
                    "ON CONFLICT(letter_id) DO UPDATE SET body = excluded.body, crc = excluded.crc",
                    (letter_id, body, crc32(body)),
                )

    def forget_ids(self) -> None:
        """Forget the ids that are older than the window, or too many: half of them at a time."""
        now = int(time.time())
        if self._seen_count < self._remembered and 0 <= now - self._since < self._window:
            return
        other = 1 - self._seen
        with self.transaction():
            self.connection.execute(f"DELETE FROM seen{other}")  # noqa: S608 - 0 or 1
            values = {"seen": other, "seen_since": now, "seen_count": 0}
            for name, value in values.items():
                self.connection.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))
        self._seen, self._since, self._seen_count, self._old = other, now, 0, True

    def checkpoint(self, *, idle: bool) -> None:
        """Bring what was committed into the file itself, where the log of SQLite has grown, or nothing else is to do."""
        with suppress(FileNotFoundError):
            size = self.path.with_name(f"{self.path.name}-wal").stat().st_size
            if size > (0 if idle else _CHECKPOINT):
                self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def count_ids(self) -> None:
        """Write down how many ids this half of the window has; a life that is killed leaves an older count."""
        with self.transaction():
            self.connection.execute("UPDATE meta SET value = ? WHERE name = 'seen_count'", (self._seen_count,))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept."""
        return not self._rows("SELECT 1 FROM events UNION ALL SELECT 1 FROM letters LIMIT 1")

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    # Reading

    def recover(self, starts: Starts) -> Summary:
        """Take over what the last life has left, what its handlers were at included, and begin another life."""
        run = self.connection.execute
        ((life,),) = run("SELECT value FROM meta WHERE name = 'life'").fetchall()
        with self.transaction():
            if starts.life == life:  # else it was taken over before, and the process died before it was cleared
                self._take_over(starts)
            run("UPDATE meta SET value = ? WHERE name = 'life'", (life + 1,))
        starts.clear(life + 1)
        if not self._since:
            self.forget_ids()
        ((lowest, highest),) = run("SELECT min(seq), max(seq) FROM events").fetchall()
        ((last,),) = run("SELECT max(seq) FROM deliveries").fetchall()
        events = 0 if lowest is None else highest - lowest + 1
        is_exact = events <= _COUNTED
        if is_exact:
            ((events,),) = run("SELECT count(*) FROM events").fetchall()
        ((letters,),) = run("SELECT count(*) FROM letters").fetchall()
        suspects = [
            seq for (seq,) in run("SELECT DISTINCT seq FROM deliveries WHERE starts > 0 AND NOT over ORDER BY 1")
        ]
        return Summary(events, is_exact, self._made_at(lowest), letters, suspects, max(highest or 0, last or 0))

    def _made_at(self, seq: int | None) -> float | None:
        with suppress(ValueError, KeyError, TypeError):
            ((body,),) = self._rows("SELECT body FROM events WHERE seq = ?", (seq,))
            return float(orjson.loads(body)["timestamp"])
        return None

    def _take_over(self, starts: Starts) -> None:
        for start in starts.found():
            row = self._rows("SELECT plan FROM events WHERE seq = ?", (start.seq,))
            if not row:
                continue
            places = len(orjson.loads(row[0][0]))
            states = _states(self.connection, start.seq, start.seq)
            for place in range(places):
                state = states.get((start.seq, place), State(start.seq, place))
                bit = 1 << place
                if start.done & bit:
                    state = state._replace(over=True)
                elif start.running & bit:
                    state = state._replace(starts=state.starts + 1)
                else:
                    continue
                self.put_state(state)

    def put_state(self, state: State) -> None:
        """Write down where a delivery stands."""
        self._many("REPLACE INTO deliveries VALUES", [(*state, state.check)])

    def remove(self, seq: int) -> None:
        """Remove an event, and where its deliveries stand."""
        self._each("DELETE FROM events WHERE seq IN", [seq])
        self._each("DELETE FROM deliveries WHERE seq IN", [seq])

    def page(self, after: int, before: int, limit: int) -> Page:
        """Return the next events between two numbers, in order; what cannot be read is set aside."""
        page, bad = read_page(self.connection, after, before, limit)
        if bad:
            self._set_aside(bad)
        return page

    def row(self, seq: int) -> Row | None:
        """Return one event."""
        rows = self.page(seq - 1, seq + 1, 1).rows
        return rows[0] if rows else None

    def letters(self) -> list[tuple[str, bytes]]:
        """Return the dead letters, oldest first; what cannot be read is left where it is."""
        rows = self._rows("SELECT letter_id, body, crc FROM letters ORDER BY n")
        return [(name, body) for name, body, crc in rows if isinstance(body, bytes) and crc == crc32(body)]

    def _set_aside(self, bad: list[tuple[int, Any]]) -> None:
        with self.transaction():
            for seq, body in bad:
                self.connection.execute("INSERT INTO aside(what, seq, body) VALUES('event', ?, ?)", (seq, body))
                self.connection.execute("DELETE FROM events WHERE seq = ?", (seq,))

    # Statements

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block does, or nothing of it."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
            raise

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self.connection.execute(statement, values).fetchall()

    def _many(self, statement: str, rows: Sequence[Sequence[Any]]) -> int:
        width, changed = len(rows[0]), 0
        mark = f"({','.join('?' * width)})"
        for part in _parts(rows):
            values = list(chain.from_iterable(part))
            changed += self.connection.execute(f"{statement} {','.join([mark] * len(part))}", values).rowcount
        return changed

    def _each(self, statement: str, values: Iterable[Any]) -> list[Any]:
        found: list[Any] = []
        for part in _parts(list(values)):
            found += self.connection.execute(f"{statement} ({','.join('?' * len(part))})", part).fetchall()
        return found


def read_page(
    connection: sqlite3.Connection, after: int, before: int, limit: int
) -> tuple[Page, list[tuple[int, Any]]]:
    """Return the next events between two numbers, in order, and those that do not fit their check."""
    found = connection.execute(
        "SELECT seq, plan, body, crc FROM events WHERE seq > ? AND seq < ? ORDER BY seq LIMIT ?", (after, before, limit)
    ).fetchall()
    if not found:
        return Page([], 0, after, more=False), []
    states = _states(connection, found[0][0], found[-1][0])
    rows: list[Row] = []
    bad: list[tuple[int, Any]] = []
    for seq, plan, body, crc in found:
        if not isinstance(plan, str) or not isinstance(body, bytes) or crc != check_of(seq, plan, body):
            bad.append((seq, body))
            continue
        names = tuple(orjson.loads(plan))
        of_row = {place: state for place in range(len(names)) if (state := states.get((seq, place))) is not None}
        rows.append(Row(seq, names, body, of_row))
    return Page(rows, len(bad), found[-1][0], more=len(found) == limit), bad


def _states(connection: sqlite3.Connection, first: int, last: int) -> dict[tuple[int, int], State]:
    rows = connection.execute("SELECT * FROM deliveries WHERE seq BETWEEN ? AND ?", (first, last)).fetchall()
    states = (State(seq, place, bool(over), *rest) for seq, place, over, *rest, _ in rows)
    checked = zip(states, (row[-1] for row in rows), strict=True)
    return {(state.seq, state.place): state for state, crc in checked if state.check == crc}


class _RepeatedError(Exception):
    """An event of a batch was accepted before."""


def _parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut rows into parts of few sizes, so that their statements are prepared once."""
    at = 0
    for size in _SIZES:
        while len(rows) - at >= size:
            yield rows[at : at + size]
            at += size


def _made_private(path: Path) -> bool:
    """Create the file for its owner alone, so that SQLite makes its other files likewise; tell whether it is new."""
    try:
        # Before SQLite has it open: closing a descriptor of the file would end the locks of SQLite.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            with suppress(FileNotFoundError):
                found = each.lstat()
                if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                    raise JournalUnavailable(each, "it is a link, or no regular file", opening=True) from None
                if stat.S_IMODE(found.st_mode) != 0o600:
                    each.chmod(0o600)
        return False
    return True


def sync_folder(path: Path) -> None:
    """Wait until the device knows the names in a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def quoted(path: Path) -> str:
    """Return a path as it stands in a URI."""
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
