"""What can be read of a damaged file, in a new one."""

from __future__ import annotations

import math
import sqlite3
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from aperion.journal.database import Database, quoted, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def is_damage(error: BaseException) -> bool:
    """Tell whether an error of SQLite says that the file itself is damaged."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    return isinstance(error, sqlite3.DatabaseError) and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def salvage(path: Path) -> Path:
    """Make a new file of what can be read of a damaged one, which is set aside under the name that is returned."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    new = Database(fresh, durable=True, window=math.inf, remembered=1)
    old = sqlite3.connect(f"file:{quoted(path)}?mode=rw", uri=True, isolation_level=None)
    try:
        with new.transaction():
            for table, columns in _TABLES.items():
                for row in _readable(old, table, columns):
                    marks = ",".join("?" * len(row))
                    new.connection.execute(f"INSERT OR IGNORE INTO {table} VALUES({marks})", row)
            for name, value in _readable(old, "meta", "name"):
                new.connection.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))
        new.checkpoint(idle=True)
    finally:
        new.close()
        with suppress(sqlite3.Error):
            old.close()
    aside = next(name for n in count(1) if not (name := path.with_name(f"{path.name}.damaged-{n}")).exists())
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(f"{path.name}{end}").rename(f"{aside}{end}")
    fresh.rename(path)
    sync_folder(path.parent)
    return aside


_TABLES: Final = {
    "events": "seq",
    "deliveries": "seq, place",
    "letters": "n",
    "seen0": "event_id",
    "seen1": "event_id",
    "aside": "n",
}


def _readable(old: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """Go through the rows of a table, around what cannot be read where they are numbered."""
    first = columns.partition(",")[0]
    seek = f"SELECT * FROM {table} WHERE {first} > ? ORDER BY {columns} LIMIT 1"  # noqa: S608 - names of ours
    scan = f"SELECT * FROM {table} WHERE {first} >= ? ORDER BY {columns}"  # noqa: S608
    at: Any = -1 if first in {"seq", "n"} else ""
    step, missed = 1, 0
    while missed < _HOPELESS:
        try:
            found = old.execute(seek, (at,)).fetchone()
            if found is None:
                return
            for row in old.execute(scan, (found[0],)):
                yield row
                at, step, missed = row[0], 1, 0
            return  # noqa: TRY300
        except (sqlite3.DatabaseError, ValueError, OverflowError):
            if not isinstance(at, int):
                return
            at, step, missed = at + step, min(step * 2, 1 << 40), missed + 1


_HOPELESS: Final = 64
"""Places in a row at which nothing can be read any more."""
