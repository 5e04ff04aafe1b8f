"""The ring: a bounded buffer in shared memory, whose content outlives the process that filled it.

Positions count the bytes that ever went through, so that they only grow: what lies between ``tail``
and ``head`` is not in the log yet. ``head`` is one aligned 8-byte store, which no kill can tear; the
bytes of a line are stored before the head that makes them count. Above it, in the same word, stand 16 bits of
the CRC-32 of all bytes up to there: a power cut leaves pages of different age, which it tells from lines. Where the log ended when ``tail`` was
reached is told by one of two slots: the other one is filled first, and then one store selects it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from zlib import crc32

from aperion.audit.chain import Link
from aperion.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aperion.audit.files import Identity

HEADER: Final = 4096
_MAGIC: Final = int.from_bytes(b"AperRing", sys.byteorder)
_VERSION: Final = 4
_WORDS: Final = struct.Struct("=64Q")
_SLOT: Final = struct.Struct("=6Q32s")
"""tail and the checksum there; device, inode and size of the file; number and hash of the last record."""
_SLOT_SUM: Final = struct.Struct("=I")
"""Of a slot, behind it: where the log ended is believed to the bit, or not at all."""
_POSITION: Final = 48
"""Bits of the word ``head`` that are the position; above it are those of the checksum that fit."""
_CHECKED: Final = (1 << 64 - _POSITION) - 1

# Words of the header, 8 bytes each; what two threads write has a cache line for each of them.
_AT_MAGIC, _AT_VERSION, _AT_CAPACITY, _AT_PID = range(4)
_AT_HEAD, _AT_MISSED, _AT_MISSED_FROM, _AT_MISSED_TO = 8, 9, 10, 11
_AT_SELECTED, _AT_SLOTS = 16, (24, 40)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a log ended: in which file, how long that was, and the last record of the chain."""

    file: Identity
    size: int
    link: Link


@dataclass(frozen=True, slots=True)
class Missed:
    """Records that could not be taken: how many, and from when to when, in nanoseconds since the epoch."""

    count: int
    since: int
    until: int

    def with_those(self, others: Missed) -> Missed:
        """Return both as one."""
        return Missed(self.count + others.count, min(self.since, others.since), max(self.until, others.until))


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a ring held when its process ended: lines that the log may lack.

    Args:
        place: where the log ended before them.
        content: whole lines.
        garbled: what does not fit its checksum, and is no lines any more.
        missed: what the process could not even put there.
    """

    place: Place
    content: bytes
    garbled: bytes
    missed: Missed | None


_SUM_OF_ZEROS: Final = crc32(bytes(_SLOT.size - 16))


def lock(path: Path, log: Path) -> int:
    """Open the ring's file, or create it, and keep every other process out of it.

    Raises:
        AuditUnavailable: when another process has it.
        OSError: when it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if same_file(fd, path):
                _sign(fd)
                return fd
        except BlockingIOError:
            pid = _header(fd)[_AT_PID]
            os.close(fd)
            owner = f"process {pid}" if _is_alive(pid) else "another process"
            raise AuditUnavailable(log, f"{owner} writes it; each process needs a log of its own") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its owner removed it between our open and our lock


def _sign(fd: int) -> None:
    """Tell who has the lock, at once: to bring over what the ring holds may take a while. It stays as it is."""
    if _header(fd)[_AT_MAGIC] in (0, _MAGIC):
        os.pwrite(fd, struct.pack("=Q", os.getpid()), 8 * _AT_PID)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return pid > 0


def same_file(fd: int, path: Path) -> bool:
    """Tell whether a path still leads to an open file."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def is_unused(fd: int) -> bool:
    """Tell whether a file is no ring yet: empty, or about to become one."""
    return _header(fd)[_AT_MAGIC] == 0


def leftover(fd: int, path: Path, log: Path) -> Leftover | None:
    """Read what a ring holds; None for a new one, and for one that its process had not begun to use.

    Raises:
        AuditUnavailable: for a file that is no ring, or one of another version.
    """
    words, size = _header(fd), os.fstat(fd).st_size
    if words[_AT_MAGIC] == 0:
        return None
    if (words[_AT_MAGIC], words[_AT_VERSION]) != (_MAGIC, _VERSION):
        raise AuditUnavailable(log, f"{path} is no ring of this version of aperion; move it away, or use another path")
    head, checksum = _parted(words[_AT_HEAD])
    capacity = words[_AT_CAPACITY]
    at = 8 * _AT_SLOTS[words[_AT_SELECTED] % 2]
    slot = os.pread(fd, _SLOT.size + _SLOT_SUM.size, at)
    tail, before, device, inode, length, seq, digest = _SLOT.unpack_from(slot)
    is_whole = _sum_of(slot[: _SLOT.size]) == _SLOT_SUM.unpack_from(slot, _SLOT.size)[0]
    if size != HEADER + capacity or not is_whole or not 0 <= head - tail <= capacity:
        raise AuditUnavailable(log, f"the ring {path} is damaged; move it away, what it holds can be read as text")
    count, since, until = words[_AT_MISSED : _AT_MISSED_TO + 1]
    missed = Missed(count, since, until) if count else None
    place = Place((device, inode), length, Link(seq, digest.hex()))
    content = _content(fd, capacity, tail, head)
    fits = _parted(_word(head, crc32(content, before))) == (head, checksum)
    return Leftover(place, content if fits else b"", b"" if fits else content, missed)


def _word(position: int, checksum: int) -> int:
    return (checksum & _CHECKED) << _POSITION | position


def _parted(word: int) -> tuple[int, int]:
    return word & (1 << _POSITION) - 1, word >> _POSITION


def _sum_of(slot: bytes) -> int:
    """Return the checksum of a slot: zero for one of zeros, as a ring has it that is a mere lock.

    Which file it is about is not in it: that is compared with the file there is.
    """
    return crc32(slot[32:], crc32(slot[:16])) ^ _SUM_OF_ZEROS


def _header(fd: int) -> tuple[int, ...]:
    return _WORDS.unpack(os.pread(fd, _WORDS.size, 0).ljust(_WORDS.size, b"\0"))


def _content(fd: int, capacity: int, tail: int, head: int) -> bytes:
    if head == tail:
        return b""
    start = tail % capacity
    first = min(head - tail, capacity - start)
    return os.pread(fd, first, HEADER + start) + os.pread(fd, head - tail - first, HEADER)


class Ring:
    """One thread puts lines in, and one other takes them out; neither waits for the other.

    Args:
        path: its file.
        fd: that file, locked; what it held is lost.
        capacity: bytes.
        place: where the log ends, which the first line continues.
        shared: whether it outlives the process; otherwise the file is a mere lock.

    Raises:
        OSError: when the disk has no room for it.
    """

    # Mutable: head by the thread that puts; tail, mark and place by the one that takes.
    # The mapping is replaced by the thread that puts, while nothing is in the ring.
    __slots__ = (
        *("_fd", "_map", "_owed", "_shared", "_spare", "_sum_taken", "_swap", "_whole", "_words"),
        *("beyond", "capacity", "head", "mark", "missed", "path", "place", "tail"),
    )

    def __init__(self, path: Path, fd: int, capacity: int, place: Place, *, shared: bool = True) -> None:
        self.path = path
        self.capacity = capacity
        self.head = self.tail = 0
        self.mark = -1  # beyond asks first
        self.beyond: Callable[[int], None] = _nowhere
        self.missed: Missed | None = None
        self._owed: Missed | None = None
        self.place = place
        self._whole = 0, 0  # head, and the checksum there, in one piece for the thread that takes
        self._sum_taken = 0
        self._fd = fd
        self._shared = shared
        self._spare: tuple[int, mmap.mmap] | None = None
        self._swap = threading.Lock()
        self._map = self._mapped(fd)
        self._words = self._begun()

    # On the thread that puts

    def put(self, line: bytes) -> None:
        """Append a line; when this returns, the line survives the process.

        Raises:
            AuditUnavailable: from ``beyond``, which is asked before ``head`` passes ``mark``.
        """
        end = self.head + len(line)
        if end > self.mark:
            self.beyond(end)
        self.store(line)

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes fit now."""
        return self.head + size - self.tail <= self.capacity

    def store(self, line: bytes) -> None:
        """Append a line that there is room for, without asking."""
        head, checksum = self._whole
        size, capacity = len(line), self.capacity
        start = head % capacity + HEADER
        if start + size <= HEADER + capacity:
            self._map[start : start + size] = line
        else:
            self._put_around(start, line)
        end, checksum = head + size, crc32(line, checksum)
        whole = end, checksum
        self._words[_AT_HEAD] = (checksum & _CHECKED) << _POSITION | end
        self._whole = whole  # what may fail for want of memory comes before: all of it or nothing
        self.head = end  # last: a tail beyond the head that others see would be damage

    def _put_around(self, start: int, line: bytes) -> None:
        first = HEADER + self.capacity - start
        self._map[start:] = line[:first]
        self._map[HEADER : HEADER + len(line) - first] = line[first:]

    def miss(self, missed: Missed | None) -> None:
        """Keep in mind what could not be put, for the next start."""
        self.missed = missed
        self._tell_missed()

    def owe(self, owed: Missed | None) -> None:
        """Keep in mind what waits elsewhere to be put: if the process dies before, it is missing."""
        self._owed = owed
        self._tell_missed()

    def _tell_missed(self) -> None:
        missed, words = self.missed, self._words
        if self._owed is not None:
            missed = self._owed if missed is None else missed.with_those(self._owed)
        words[_AT_MISSED] = 0
        if missed is not None:
            words[_AT_MISSED_FROM], words[_AT_MISSED_TO] = missed.since, missed.until
            words[_AT_MISSED] = missed.count

    # On the thread that takes

    def oldest(self, most: int) -> bytes:
        """Return the oldest lines, about so many bytes of them, one at least where there is any."""
        tail, size = self.tail, self.head - self.tail
        content = self._bytes(tail, min(size, most))
        if size > most and not content.endswith(b"\n"):
            end = content.rfind(b"\n") + 1
            content = content[:end] if end else self._bytes(tail, self._line_end(tail, size))
        return content

    def _line_end(self, tail: int, size: int) -> int:
        return self._bytes(tail, size).index(b"\n") + 1

    def _bytes(self, position: int, size: int) -> bytes:
        start = HEADER + position % self.capacity
        first = min(size, HEADER + self.capacity - start)
        return self._map[start : start + first] + self._map[HEADER : HEADER + size - first]

    def lines(self) -> int:
        """Count the lines that are not in the log."""
        return self._bytes(self.tail, self.head - self.tail).count(b"\n")

    def commit(self, size: int, place: Place) -> None:
        """Give back the room of lines that are in the log now, which ends there.

        Args:
            size: bytes of the ring; none where the log went on by itself.
            place: the new end of the log.
        """
        tail = self.tail + size
        head, checksum = self._whole
        if tail != head:
            checksum = crc32(self._bytes(self.tail, size), self._sum_taken)
        self.place = place
        with self._swap:
            self._select(self._map, self._words, tail, checksum)
            self._sum_taken = checksum
            self.tail = tail

    def _select(self, mapped: mmap.mmap, words: memoryview, tail: int, checksum: int) -> None:
        other = 1 - words[_AT_SELECTED] % 2
        place = self.place
        digest = bytes.fromhex(place.link.hash)
        _SLOT.pack_into(mapped, 8 * _AT_SLOTS[other], tail, checksum, *place.file, place.size, place.link.seq, digest)
        end = 8 * _AT_SLOTS[other] + _SLOT.size
        _SLOT_SUM.pack_into(mapped, end, _sum_of(mapped[end - _SLOT.size : end]))
        words[_AT_SELECTED] = other

    def moved(self) -> bool:
        """Tell whether the file was moved or removed, so that the next start would not find it."""
        spare = self._spare
        return not same_file(self._fd if spare is None else spare[0], self.path)

    @property
    def is_renewable(self) -> bool:
        """Whether another file is prepared."""
        return self._spare is not None

    def prepare(self, fd: int) -> None:
        """Map another file, locked, for the thread that puts to go over to."""
        mapped = self._mapped(fd)
        with self._swap:
            spare, self._spare = self._spare, (fd, mapped)
        if spare is not None:
            os.close(spare[0])

    def renew(self) -> bool:
        """Go over to the file that was prepared, if this one is empty; by the thread that puts."""
        with self._swap:
            if self._spare is None or self.head != self.tail:
                return False
            fd, (self._fd, self._map), self._spare = self._fd, self._spare, None
            self._words = self._begun()
        self._tell_missed()
        os.close(fd)
        return True

    # Its file

    def _begun(self) -> memoryview:
        words = memoryview(self._map)[:HEADER].cast("Q")
        words[_AT_VERSION], words[_AT_CAPACITY], words[_AT_PID] = _VERSION, self.capacity, os.getpid()
        words[_AT_HEAD] = _word(*self._whole)
        self._select(self._map, words, self.tail, self._sum_taken)
        if not self._shared:  # what others read of a lock: who has it, and that nothing is left in it
            os.pwrite(self._fd, struct.pack("=4Q", _MAGIC, _VERSION, 0, os.getpid()), 0)
        words[_AT_MAGIC] = _MAGIC  # last: from here on the file is a ring
        return words

    def _mapped(self, locked: int) -> mmap.mmap:
        os.ftruncate(locked, 0)
        if not self._shared:
            os.ftruncate(locked, HEADER)
            return mmap.mmap(-1, HEADER + self.capacity)
        # Room on the disk now: a store to a page for which there is none would kill the process.
        os.posix_fallocate(locked, 0, HEADER + self.capacity)
        # Opened anew: a mapping keeps its descriptor, in a forked child too, and must not keep the lock.
        fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return mmap.mmap(fd, HEADER + self.capacity)
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Remove the file, with the lock still held, so that nobody takes it for a leftover."""
        if not self.moved():
            self.path.unlink()

    def close(self) -> None:
        """Let go of the memory and the file."""
        self._words.release()
        self._map.close()
        with suppress(OSError):  # a child that was just forked may still hold the file open, and the lock with it
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file, but not of the lock: in a forked child that is its parent's."""
        os.close(self._fd)
        if self._spare is not None:
            os.close(self._spare[0])


def _nowhere(_end: int) -> None:
    raise RuntimeError("nothing empties this ring")
