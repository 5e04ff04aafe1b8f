"""The writer of a journal: the one thread that has its file, and commits what came together at once."""

from __future__ import annotations

import ctypes
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakSet

from aperion._logs import logger as _log
from aperion.errors import JournalUnavailable
from aperion.journal.database import Database
from aperion.journal.rows import Batch, Insert, State
from aperion.journal.salvage import is_damage, salvage
from aperion.journal.starts import Starts

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aperion.journal.options import Options
    from aperion.journal.rows import Page, Row, Summary
    from aperion.journal.slots import Slot

    Told: TypeAlias = Callable[[list[Any], set[int], str | None], None]
    """Told once a commit: for whom it was, which of their events are duplicates, and why it was refused, if it was."""
    Answer: TypeAlias = Callable[[Any], None]

_LINGER: Final = 0.02
"""Seconds that what nobody waits for waits for something that somebody waits for."""
_TEND: Final = 1.0
_RETRY_FIRST: Final = 0.05
_RETRY_LONGEST: Final = 1.0
_MOST: Final = 4096
"""Events of one commit, at most; and bytes:"""
_MOST_BYTES: Final = 8 << 20

_writers: WeakSet[Writer] = WeakSet()


class Writer:
    """Writes one slot of a journal. Its methods are called on the loop's thread, but where they say otherwise.

    Args:
        slot: whose files.
        options: how safe, and how much is remembered.
        loop: where it is told of commits.
        told: by whom.
    """

    # Mutable: the failure, by the thread, and by fork; the queues by both sides, each by single calls.
    __slots__ = (
        *(
            "__weakref__",
            "_answers",
            "_asleep",
            "_bytes",
            "_closed",
            "_database",
            "_is_forked",
            "_lazy",
            "_loop",
            "_options",
        ),
        *("_owed", "_pause", "_queue", "_slot", "_stopping", "_tended", "_thread", "_tickets", "_told"),
        *("commits", "damaged", "failure", "failures", "starts"),
    )

    starts: Starts

    def __init__(self, slot: Slot, options: Options, loop: asyncio.AbstractEventLoop, told: Told) -> None:
        self.failure: str | None = None
        self.failures = self.commits = self.damaged = 0
        self._slot = slot
        self._options = options
        self._loop = loop
        self._told = told
        self._queue: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._lazy: deque[tuple[Any, ...]] = deque()
        self._asleep = self._stopping = self._is_forked = False
        self._owed = Batch()
        self._tickets: list[Any] = []
        self._answers: list[tuple[str, Any, Answer]] = []
        self._bytes = 0
        self._pause = _RETRY_FIRST
        self._tended = 0.0
        self._database: Database | None = None
        self._closed: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, name=f"aperion-journal-{slot.number}", daemon=True)
        _writers.add(self)

    # On the loop

    async def open(self) -> Summary:
        """Start the thread, and take over what the last life has left.

        Raises:
            JournalUnavailable: when the file cannot be opened.
        """
        opened: asyncio.Future[Summary] = self._loop.create_future()
        self._queue.put(("open", opened))
        self._thread.start()
        return await opened

    def insert(self, items: list[tuple[Insert | None, Any]]) -> None:
        """Keep events in one commit; their tickets are told of when that is done, or refused.

        A ticket without an event only stands in line.
        """
        self._queue.put((items,))

    def later(self, *what: Any) -> None:
        """Write something that nobody waits for: a ``State``, ``("letter", id, body)``, ``("settled", seq, entry, stated)``."""
        self._lazy.append(what)
        if self._asleep:
            self._asleep = False
            self._queue.put(None)

    def ask(self, method: str, argument: Any, answer: Answer) -> None:
        """Have the thread read something, and call back with it on the loop."""
        self._queue.put((method, argument, answer))

    async def close(self) -> None:
        """Write what is left, and let go of the files and of the slot."""
        if self._thread.ident is not None and not self._is_forked:
            self._stopping = True
            self._queue.put(None)
            await self._closed

    # On the thread

    def _run(self) -> None:
        item = self._queue.get()
        opened = item[1] if item is not None else None
        try:
            self.starts = Starts(self._slot.starts)
            summary = self._recovered()
        except BaseException as error:  # noqa: BLE001 - raised where the bus starts
            reason = error if isinstance(error, JournalUnavailable) else self._unopened(error)
            self._end()
            self._call(_fail, opened, reason)
            return
        self._call(_answer, opened, summary)
        while not (self._stopping and self._nothing_left()):
            try:
                self._pass()
            except Exception as error:  # noqa: BLE001 - without its thread every emit would wait for ever
                self._failed(error)
        self._end()

    def _recovered(self) -> Summary:
        try:
            return self._opened().recover(self.starts)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._failed(error)
            summary = self._opened().recover(self.starts)
            self.failure = None
            return summary

    def _unopened(self, error: BaseException) -> JournalUnavailable:
        return JournalUnavailable(self._slot.database, _reason(error), opening=True)

    def _opened(self) -> Database:
        if self._database is None:
            options = self._options
            self._database = Database(
                self._slot.database, durable=options.durable, window=options.window, remembered=options.remembered
            )
        return self._database

    def _nothing_left(self) -> bool:
        # What cannot be written at the end is done again by the next life.
        return (
            self._queue.empty() and not self._tickets and (self.failure is not None or not (self._lazy or self._owed))
        )

    def _pass(self) -> None:
        self._gather()
        batch = self._owed
        if self.failure is not None:
            self._probe()
        elif batch:
            self._commit(batch)
        elif self._tickets:
            self._tell(set(), None)
        if self.failure is None:
            self._reply()
            self._tend()

    def _gather(self) -> None:
        """Wait for something to do, and take what there is."""
        self._bytes = 0
        item: Any = None
        with suppress(queue.Empty):
            item = self._queue.get(timeout=self._patience())
        self._asleep = False
        if item is None and not self._stopping and self._lazy and self.failure is None:
            with suppress(queue.Empty):  # what nobody waits for goes with the next commit, if that comes soon
                item = self._queue.get(timeout=_LINGER)
        while True:
            if item is not None:
                self._take(item)
            if len(self._tickets) >= _MOST or self._bytes >= _MOST_BYTES:
                break
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
        self._take_lazy()

    def _patience(self) -> float | None:
        if self._stopping:
            return 0.0
        if self.failure is not None:
            return self._pause
        if self._lazy or self._owed:
            return _LINGER
        self._asleep = True
        if self._lazy:  # it came just now
            self._asleep = False
            return _LINGER
        return _TEND if self._tended else None  # the former while there may be something to bring into the file

    def _take(self, item: tuple[Any, ...]) -> None:
        if len(item) == 3:
            self._answers.append(item)
            return
        for insert, ticket in item[0]:
            self._tickets.append(ticket)
            if insert is not None:
                self._owed.inserts.append(insert)
                self._bytes += len(insert.body)

    def _take_lazy(self) -> None:
        lazy, batch = self._lazy, self._owed
        for _ in range(len(lazy)):
            what = lazy.popleft()
            if isinstance(what[0], State):
                batch.states[what[0][:2]] = what[0]
            elif what[0] == "letter":
                batch.letters[what[1]] = what[2]
            else:
                batch.settled[what[1]] = what[2]
                if what[3]:
                    batch.stated.append(what[1])

    def _commit(self, batch: Batch) -> None:
        try:
            duplicates = self._applied(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits is told
            self._failed(error)
            return
        self._owed = Batch()
        self.commits += 1
        for entry in batch.settled.values():
            if entry:
                self.starts.leave(entry)
        self._tended = self._tended or time.monotonic()
        if self._tickets:
            self._tell(duplicates, None)

    def _applied(self, batch: Batch) -> set[int]:
        database = self._opened()
        try:
            return database.apply(batch)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
                raise
            database.checkpoint(idle=True)  # gives back the room of the log of SQLite
            return database.apply(batch)

    def _failed(self, error: BaseException) -> None:
        """Refuse all that waits; what nobody waits for stays owed."""
        if self.failure is None:
            _log.error("the journal cannot be written", path=str(self._slot.database), reason=_reason(error))
        self.failure = _reason(error)
        self.failures += 1
        batch = self._owed
        # The disk may have them all the same: nothing of a commit that failed is certain.
        batch.forgotten.update({insert.seq: insert.event_id for insert in batch.inserts})
        batch.inserts.clear()
        # Of a descriptor that failed to synchronise nothing is trusted any more (fsyncgate, 2018).
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()
        if self._tickets:
            self._tell(set(), self.failure)
        if is_damage(error):
            self._salvage()

    def _salvage(self) -> None:
        try:
            aside = salvage(self._slot.database)
        except Exception as error:  # noqa: BLE001 - it is tried again
            self.failure = f"{self.failure}, and what can be read of it could not be saved: {_reason(error)}"
            return
        self.damaged += 1
        _log.critical(
            "the file of the journal was damaged; what could be read goes on in a new one",
            path=str(self._slot.database),
            aside=str(aside),
        )

    def _probe(self) -> None:
        """See whether the file can be written again, by a commit of what is owed."""
        if self._tickets:
            self._failed(_SameFault(self.failure))
        try:
            database = self._opened()
            database.checkpoint(idle=True)
            database.apply(self._owed)
            database.count_ids()
        except Exception as error:  # noqa: BLE001 - it stays as it is
            self._pause = min(self._pause * 2, _RETRY_LONGEST)
            self._failed(error)
            return
        for entry in self._owed.settled.values():
            if entry:
                self.starts.leave(entry)
        self._owed = Batch()
        self.failure, self._pause = None, _RETRY_FIRST
        _log.info("the journal can be written again", path=str(self._slot.database))

    def _tell(self, duplicates: set[int], reason: str | None) -> None:
        tickets, self._tickets = self._tickets, []
        self._call(self._told, tickets, duplicates, reason)

    def _reply(self) -> None:
        answers, self._answers = self._answers, []
        for place, (method, argument, answer) in enumerate(answers):
            try:
                found: Page | Row | None = getattr(self._opened(), method)(*argument)
            except BaseException:
                self._answers = answers[place:]  # once the file can be read again
                raise
            self._call(answer, found)

    def _tend(self) -> None:
        if not self._tended:
            return
        database, now = self._opened(), time.monotonic()
        is_idle = now - self._tended >= _TEND and self._queue.empty() and not self._lazy
        database.checkpoint(idle=is_idle)
        if is_idle:
            database.forget_ids()
            self._tended = 0.0

    def _end(self) -> None:
        database, self._database = self._database, None
        is_empty = False
        if database is not None:
            with suppress(sqlite3.Error):
                is_empty = self.failure is None and database.is_empty
                database.count_ids()
                database.checkpoint(idle=True)
            with suppress(sqlite3.Error):
                database.close()
        if hasattr(self, "starts"):
            self.starts.close()
        self._slot.release(is_empty=is_empty)
        self._call(_answer, self._closed, None)

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(callback, *arguments)

    # In a child that was forked

    def poison(self) -> None:
        """Refuse everything: the thread is not here, and the files belong to the parent."""
        if self._is_forked:
            return
        self._is_forked = True
        self._slot.release()  # the lock stays with the parent, and ends with it, although this process lives on
        self.failure = "this process was forked from the one that has the journal; start a bus of its own here"
        if self._database is not None:
            # Never to be closed here: SQLite would remove the log of the parent.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database.connection))


class _SameFault(Exception):  # noqa: N818 - never leaves this module
    """Who came meanwhile is refused for the reason that there was."""


def _reason(error: BaseException) -> str:
    if isinstance(error, JournalUnavailable):
        return error.reason
    if isinstance(error, _SameFault):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, sqlite3.Error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _answer(future: asyncio.Future[Any] | None, value: Any) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any] | None, error: BaseException) -> None:
    if future is not None and not future.done():
        future.set_exception(error)


def _forked() -> None:
    for writer in tuple(_writers):
        writer.poison()


if hasattr(os, "register_at_fork"):  # not where there is no fork
    os.register_at_fork(after_in_child=_forked)
