"""The buffer: what was recorded and is on its way into the file, what is missing, and who waits for room or for the disk."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from time import monotonic, sleep, time_ns
from typing import TYPE_CHECKING, Final

from aperion._logs import logger as _log
from aperion.audit import record
from aperion.audit.recovery import gap
from aperion.audit.ring import Missed
from aperion.errors import AuditUnavailable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any, NoReturn

    from aperion.audit.parts import Parts

_LOOK: Final = 0.001
_PATIENCE: Final = 2.0
"""Seconds that an emitter waits for a device that stands still, once until it gets on."""
_GAP: Final = 512
"""Bytes that are enough for the record of a gap, which goes into the ring together with the one after it."""
_MANY: Final = 64


class Buffer:
    """Takes records on the loop's thread, in order, and never waits.

    What can be refused goes into the ring or is refused. What cannot, since it has happened already, goes
    behind a ring that is full into a spill, and all that comes later behind that, until it is empty again.

    Args:
        path: of the log, for errors.
        capacity: bytes of the ring.
        fails: whether a disk that refuses fails those who wait for it.
    """

    # Mutable: with which parts it is open, what is counted, and who waits.
    __slots__ = (
        *(
            "_crowd",
            "_fails",
            "_half",
            "_is_plain",
            "_largest",
            "_loop",
            "_missed",
            "_moved_at",
            "_moved_to",
            "_parts",
            "_path",
        ),
        *("_purge_at", "_put", "_ring", "_stood_at", "_waiting", "is_open", "missing", "records"),
    )

    def __init__(self, path: Path, capacity: int, *, fails: bool) -> None:
        self._path = path
        self._half = capacity // 2
        self._largest = capacity // 2 - _GAP
        self._fails = fails
        self.is_open = False
        self._is_plain = False  # whether the next record goes into the ring as it is, with nothing before it
        self.records = self.missing = 0
        self._missed: Missed | None = None
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()  # emitters; bounded by their number
        self._purge_at = _MANY
        self._crowd: dict[asyncio.Future[None], None] = {}  # those who wait for room, in order; bounded likewise
        self._stood_at = self._moved_to = -1
        self._moved_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._parts: Parts | None = None
        self._ring: Any = None  # that of the parts, where it is plain
        self._put: Callable[[bytes], None] = self.refuse

    def open(self, parts: Parts, loop: asyncio.AbstractEventLoop) -> None:
        """Take records from now on."""
        self._parts, self._ring, self._loop = parts, parts.ring, loop
        self.records = self.missing = 0
        self._missed = None
        self._stood_at = self._moved_to = -1
        self._put = parts.ring.put
        self.is_open = self._is_plain = True
        parts.writer.on_progress = self._progressed

    def close(self) -> None:
        """Refuse from now on; what is on its way stays so."""
        self.is_open = self._is_plain = False
        self._put = self.refuse

    def let_go(self, lost: int) -> None:
        """End every wait, when nothing is written any more, and count what could not be brought over."""
        self.missing += lost
        if self._parts is not None:
            self._release(self._parts.ring.tail, self._parts.writer.failure or "the disk stands still")

    def abandon(self) -> None:
        """Refuse from now on, in a forked child, and forget what the parent brings over."""
        self.is_open = self._is_plain = False
        self._put = self._refuse_in_child
        if self._parts is not None:
            self._parts.spill.clear()

    # Taking

    def append(self, line: bytes) -> None:
        """Take a record that may be refused.

        Raises:
            AuditUnavailable: when there is no room, when the log cannot be written, and when it is not open.
        """
        ring = self._ring
        if self._is_plain and ring.head + len(line) <= ring.mark:  # so much fits into any ring
            ring.store(line)
            self.records += 1
            return
        if len(line) > self._largest:
            line = record.shrunk(line)
        if self._missed is None:
            self._put(line)
        else:
            self._put_after_gap(line, self._missed)
        self.records += 1

    def append_kept(self, line: bytes) -> None:
        """Take a record that may wait behind the ring, of an event that is dispatched without it too.

        Raises:
            AuditUnavailable: when the log cannot be written, when too much waits, and when it is not open.
        """
        try:
            self.append(line)
        except AuditUnavailable:
            parts = self._parts
            if parts is None or not parts.spill.takes(len(line)) or not self._spilled(line, parts):
                raise

    def append_owed(self, line: bytes) -> None:
        """Take a record of what has happened already, and is not undone when it is refused.

        Raises:
            AuditUnavailable: when the log cannot be written, when the disk stands still, and when it is not open.
        """
        ring = self._ring
        if self._is_plain and ring.head + len(line) <= ring.mark:  # what append does, without the call
            ring.store(line)
            self.records += 1
            return
        try:
            self.append(line)
        except AuditUnavailable:
            parts = self._parts
            if parts is None or not self._spilled(line, parts):
                raise

    def refused(self, error: AuditUnavailable) -> bool:
        """Remember that a record was refused; tell whether the log is to blame, and not the haste of whoever records."""
        parts = self._parts
        if parts is None:
            return False
        parts.writer.refused(error.reason)
        return self.is_open and not (error.reason == parts.writer.full and self._gets_on(parts))

    def miss(self) -> None:
        """Count a record that could not be taken; the next one that is says so."""
        now = time_ns()
        missed = self._missed
        self.missing += 1
        self._is_plain = False
        self._missed = Missed(missed.count + 1 if missed else 1, missed.since if missed else now, now)
        if missed is None:
            _log.error("audit log unavailable, records are missing", path=str(self._path))
        if self._parts is not None:
            self._parts.ring.miss(self._missed)

    def _put_after_gap(self, line: bytes, missed: Missed) -> None:
        # Both or neither: a gap alone would take the room of the line, and the next gap would follow.
        self._put(_after_gap(line, missed))
        self._tell_gap()

    def _tell_gap(self) -> None:
        self._missed = None
        if self._parts is not None:
            self._parts.ring.miss(None)
            self._is_plain = not self._parts.spill.size

    def refuse(self, _line: bytes) -> None:
        """Refuse for a log that is not open."""
        raise AuditUnavailable(self._path, "it is not open; the bus opens it when it starts")

    def _refuse_in_child(self, _line: bytes) -> NoReturn:
        raise AuditUnavailable(self._path, "it belongs to the process that this one was forked from")

    # Behind a ring that is full

    def _spilled(self, line: bytes, parts: Parts) -> bool:
        """Keep a record behind the ring, unless the log is closed or cannot be written, or the disk stands still.

        While it gets on, all that the events in flight still owe has room here, which is what bounds it: as long
        as anything waits, emitters do too, and who cannot wait is refused.
        """
        spill, missed, now = parts.spill, self._missed, time_ns()
        if not self.is_open or parts.writer.failure is not None:
            return False
        if not spill.takes(len(line)) and not self._gets_on(parts):
            return False
        if len(line) > self._largest:
            line = record.shrunk(line)
        if missed is None:
            spill.push(line, Missed(1, now, now))
        else:
            spill.push(_after_gap(line, missed), Missed(missed.count + 1, missed.since, now))
            self._tell_gap()
        self._put, self._is_plain = self._put_behind, False
        self.records += 1
        parts.writer.hurry()
        return True

    def _gets_on(self, parts: Parts) -> bool:
        """Tell whether the disk works, be it slowly."""
        tail, now = parts.ring.tail, monotonic()
        if tail != self._moved_to:
            self._moved_to, self._moved_at = tail, now
        return parts.writer.failure is None and now - self._moved_at < _PATIENCE

    def _put_behind(self, line: bytes) -> None:
        """Append to the ring when all that waited before it is there."""
        parts = self._parts
        if parts is None:
            self.refuse(line)
        elif self._pour(parts):
            parts.ring.put(line)
        else:
            raise AuditUnavailable(self._path, parts.writer.failure or parts.writer.full)

    def _pour(self, parts: Parts) -> bool:
        is_empty = parts.spill.pour()
        if parts.writer.failure is None:  # it tries again when it is time; not for each record
            parts.writer.hurry()
        if is_empty:
            self._put, self._is_plain = parts.ring.put, self._missed is None
        return is_empty

    # Waiting

    def when_synced(self) -> asyncio.Future[None] | None:
        """Return what is done when the disk has all that was recorded so far; None for a closed log."""
        parts, loop = self._parts, self._loop
        if parts is None or loop is None:
            return None
        waiting: asyncio.Future[None] = loop.create_future()
        ring = parts.ring
        end = ring.head + parts.spill.size  # what waits behind the ring goes through it, as long as it is
        if not self._fails and parts.writer.failure is not None:  # nobody waits for what is known not to work
            parts.writer.hurry()
            loop.call_soon(_done, waiting)
        elif self._waiting or end != ring.tail:
            if len(self._waiting) >= self._purge_at:
                self._purge()
            self._waiting.append((end, waiting))
            parts.writer.hurry()
        else:  # not at once: those before were let go, and may not have been handed on yet
            loop.call_soon(_done, waiting)
        return waiting

    def _purge(self) -> None:
        """Forget those who gave up; now and then, since who waits for the disk seldom does."""
        self._waiting = deque(one for one in self._waiting if not one[1].done())
        self._purge_at = max(_MANY, 2 * len(self._waiting))

    @property
    def is_crowded(self) -> bool:
        """Whether who can wait should: more than half of the ring is full, and the writer gets on."""
        parts = self._parts
        if parts is None:
            return False
        ring = parts.ring
        tail = ring.tail
        if ring.head - tail <= self._half and not parts.spill.size:
            return False
        return tail != self._stood_at and parts.writer.failure is None

    async def room(self) -> None:
        """Wait until there is room for whoever can wait, see ``AuditLog.room``."""
        loop, parts = self._loop, self._parts
        while parts is not None and loop is not None and self.is_crowded:
            tail = parts.ring.tail
            waiting: asyncio.Future[None] = loop.create_future()
            self._crowd[waiting] = None
            parts.writer.hurry()
            timer = loop.call_later(_PATIENCE, _done, waiting)
            try:
                await waiting
            finally:
                timer.cancel()
                self._crowd.pop(waiting, None)
            if parts.ring.tail == tail:  # the disk stands still: from now on the failure policy decides
                self._stood_at = tail

    def room_for_thread(self) -> None:
        """Do the same in another thread than the loop's; blocks."""
        parts = self._parts
        if parts is None:
            return
        tail, given_up = parts.ring.tail, monotonic() + _PATIENCE
        while self.is_crowded:
            if parts.ring.tail != tail:
                tail, given_up = parts.ring.tail, monotonic() + _PATIENCE
            elif monotonic() > given_up:
                self._stood_at = tail
            sleep(_LOOK)

    def _progressed(self, tail: int, failure: str | None) -> None:
        """Tell the loop how far the writer is; on the writer's thread."""
        parts, loop = self._parts, self._loop
        if loop is not None and (self._waiting or self._crowd or (parts is not None and parts.spill.size)):
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(self._release, tail, failure)

    def _release(self, tail: int, failure: str | None) -> None:
        parts = self._parts
        if parts is not None and parts.spill.size and self.is_open:  # a log that closes pours in another thread
            self._pour(parts)
        if self._crowd and not self.is_crowded:
            for future in self._crowd:
                _done(future)
            self._crowd.clear()
        waiting = self._waiting
        while waiting and (waiting[0][0] <= tail or failure is not None):
            position, future = waiting.popleft()
            if future.done():
                continue
            if position <= tail or not self._fails:
                future.set_result(None)
            else:
                future.set_exception(AuditUnavailable(self._path, failure or "the disk stands still"))


def _after_gap(line: bytes, missed: Missed) -> bytes:
    return record.about_log("gap", gap(missed)) + line


def _done(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
