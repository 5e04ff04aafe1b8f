"""Looking into the folder of a journal from outside of the service, and changing it where that stands still."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from aperion.errors import JournalError
from aperion.journal.codec import unread
from aperion.journal.database import Database, quoted, read_page
from aperion.journal.rows import State, check_of
from aperion.journal.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aperion.events import Event
    from aperion.journal.rows import Row
    from aperion.journal.slots import Slot

_PAGE: Final = 1000
_LAST: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One slot that was found.

    Args:
        number: its number.
        path: its file.
        owner: the process that has it; None where nobody has.
        connection: to its file; it only reads where somebody has it.
        database: the file itself, where nobody has it.
    """

    number: int
    path: Path
    owner: int | None
    connection: sqlite3.Connection
    database: Database | None

    def rows(self) -> Iterator[Row]:
        """Go through the events that can be read."""
        after, has_more = 0, True
        while has_more:
            page, _ = read_page(self.connection, after, _LAST, _PAGE)
            yield from page.rows
            after, has_more = page.last, page.more

    def damaged(self) -> list[int]:
        """Return the numbers of the events that cannot be read, those that were set aside included."""
        bad = [seq for (seq,) in self.connection.execute("SELECT seq FROM aside ORDER BY seq")]
        after, has_more = 0, True
        while has_more:
            page, found = read_page(self.connection, after, _LAST, _PAGE)
            bad += [seq for seq, _ in found]
            after, has_more = page.last, page.more
        return bad

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        ((count,),) = self.connection.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - a name of ours
        return int(count)


@contextmanager
def looking(folder: Path) -> Iterator[list[Found]]:
    """Open every slot of a folder.

    Raises:
        JournalError: for a folder without a journal, or a file that cannot be read.
    """
    if not next(folder.glob("journal-*.db"), None):
        raise JournalError(f"{folder} holds no journal; pass the folder of SQLiteJournal(...)")
    with ExitStack() as opened:
        yield [_found(Slots(folder), path, opened) for path in sorted(folder.glob("journal-*.db"), key=_number)]


def assign(found: Found, old: str, new: str) -> int:
    """Have what is kept for one subscription delivered to another; return how many deliveries that were."""
    database = _ours(found)
    changed = 0
    with database.transaction():
        for row in found.rows():
            if old not in row.plan:
                continue
            plan = orjson.dumps([new if name == old else name for name in row.plan]).decode()
            database.connection.execute(
                "UPDATE events SET plan = ?, crc = ? WHERE seq = ?", (plan, check_of(row.seq, plan, row.body), row.seq)
            )
            changed += 1
    return changed


def discard(found: Found, *, subscription: str | None = None, event_id: str | None = None) -> int:
    """Give up what is kept for a subscription, of an event, or both; return how many deliveries that were."""
    database = _ours(found)
    changed = 0
    with database.transaction():
        for row in found.rows():
            if event_id is not None and event_of(row).event_id != event_id:
                continue
            places = [place for place in open_places(row) if subscription in (None, row.plan[place])]
            for place in places:
                state = row.states.get(place, State(row.seq, place))._replace(over=True)
                database.put_state(state)
            if len(places) == len(open_places(row)):
                database.remove(row.seq)
            changed += len(places)
    return changed


def open_places(row: Row) -> list[int]:
    """Return the places in the plan of an event whose deliveries are not over."""
    return [place for place in range(len(row.plan)) if place not in row.states or not row.states[place].over]


def event_of(row: Row) -> Event[Any]:
    """Return an event with its payload as plain JSON, which needs none of the modules of the service.

    Raises:
        JournalError: for one that cannot be read.
    """
    event = unread(row.body)
    if event is None:  # pragma: no cover - its check is right, so that somebody has written it so
        raise JournalError(f"event number {row.seq} cannot be read")
    return event


class _Held:
    """A slot that nobody has, for as long as it is looked into."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.database: Database | None = None

    def __enter__(self) -> None:
        """Nothing: it is taken already."""

    def __exit__(self, *_error: object) -> None:
        """Close the file, and let somebody else have the slot."""
        is_empty = self.database is not None and self.database.is_empty
        if self.database is not None:
            self.database.close()
        self._slot.release(is_empty=is_empty)


def _ours(found: Found) -> Database:
    if found.database is None:
        raise JournalError(f"{found.path} cannot be changed: process {found.owner} has it; stop the service first")
    return found.database


def _found(slots: Slots, path: Path, opened: ExitStack) -> Found:
    number = _number(path)
    slot: Slot | None = slots.take(number)
    if slot is not None:
        opened.enter_context(held := _Held(slot))
        database = held.database = Database(path, durable=True, window=1.0, remembered=1)
        return Found(number=number, path=path, owner=None, connection=database.connection, database=database)
    connection = sqlite3.connect(f"file:{quoted(path)}?mode=ro", uri=True, isolation_level=None)
    opened.callback(connection.close)
    return Found(number=number, path=path, owner=slots.owner(number), connection=connection, database=None)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("journal-"))
