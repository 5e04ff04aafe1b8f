"""The ring: a bounded buffer in shared memory, whose content outlives the process that filled it.

Positions count the bytes that ever went through, so that they only grow: what lies between ``tail``
and ``head`` is not in the log yet, and position ``p`` of the ring belongs at ``origin + p`` of the log
file. Each is one aligned 8-byte store, which no kill can tear; the bytes of a line are stored before
the head that makes them count.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aperion.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aperion.audit.files import Identity

HEADER: Final = 4096
_MAGIC: Final = int.from_bytes(b"AperRing", sys.byteorder)
_VERSION: Final = 1
_WORDS: Final = struct.Struct("=17Q")
_WRAP: Final = 2**64

# Words of the header, 8 bytes each; head and tail are written by two threads, so each has a cache line.
_AT_MAGIC, _AT_VERSION, _AT_CAPACITY, _AT_PID, _AT_DEVICE, _AT_INODE, _AT_ORIGIN = range(7)
_AT_HEAD, _AT_TAIL = 8, 16


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a ring held when its process ended: lines that the log may lack.

    Args:
        log: which file the log was; None when the process was about to begin another one.
        offset: where in that file the content belongs.
        tail: where in the ring it begins.
        content: whole lines.
    """

    log: Identity | None
    offset: int
    tail: int
    content: bytes


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
                return fd
        except BlockingIOError:
            pid = _header(fd)[_AT_PID]
            os.close(fd)
            owner = f"process {pid}" if pid else "another process"
            raise AuditUnavailable(log, f"{owner} writes it; each process needs a log of its own") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its owner removed it between our open and our lock


def same_file(fd: int, path: Path) -> bool:
    """Tell whether a path still leads to an open file."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def leftover(fd: int, path: Path, log: Path) -> Leftover | None:
    """Read what a ring holds; None for a new one, and for one that its process had not begun to use.

    Raises:
        AuditUnavailable: for a file that is no ring, or one of another version.
    """
    words, size = _header(fd), os.fstat(fd).st_size
    if words[_AT_MAGIC] == 0:
        return None
    head, tail, capacity = words[_AT_HEAD], words[_AT_TAIL], words[_AT_CAPACITY]
    if (words[_AT_MAGIC], words[_AT_VERSION]) != (_MAGIC, _VERSION):
        raise AuditUnavailable(log, f"{path} is no ring of this version of aperion; move it away, or use another path")
    if size != HEADER + capacity or not 0 <= head - tail <= capacity:
        raise AuditUnavailable(log, f"the ring {path} is damaged; move it away, what it holds can be read as text")
    identity = (words[_AT_DEVICE], words[_AT_INODE]) if words[_AT_INODE] else None
    return Leftover(identity, (words[_AT_ORIGIN] + tail) % _WRAP, tail, _content(fd, capacity, tail, head))


def aim(fd: int, log: Identity, origin: int) -> None:
    """Say in the header of a leftover where its content now belongs, as ``Ring.aim`` does."""
    for at, value in ((_AT_INODE, 0), (_AT_ORIGIN, origin), (_AT_DEVICE, log[0]), (_AT_INODE, log[1])):
        os.pwrite(fd, struct.pack("=Q", value % _WRAP), 8 * at)


def _header(fd: int) -> tuple[int, ...]:
    return _WORDS.unpack(os.pread(fd, _WORDS.size, 0).ljust(_WORDS.size, b"\0"))


def _content(fd: int, capacity: int, tail: int, head: int) -> bytes:
    start = tail % capacity
    first = min(head - tail, capacity - start)
    return os.pread(fd, first, HEADER + start) + os.pread(fd, head - tail - first, HEADER)


class Ring:
    """One thread puts lines in, and one other takes them out; neither waits for the other.

    Args:
        path: its file.
        fd: that file, locked; what it held is lost.
        capacity: bytes.
        log: the file that the content belongs to.
        size: of that file: where the first line belongs.

    Raises:
        OSError: when the disk has no room for it.
    """

    # Mutable: head by the thread that puts; written, tail, mark, origin and log by the one that takes.
    # The mapping is replaced by the thread that puts, while nothing is in the ring.
    __slots__ = (
        *("_fd", "_map", "_spare", "_words", "beyond", "capacity", "head", "log", "mark", "origin"),
        *("_swap", "path", "tail", "written"),
    )

    def __init__(self, path: Path, fd: int, capacity: int, log: Identity, size: int) -> None:
        self.path = path
        self.capacity = capacity
        self.head = self.written = self.tail = 0
        self.mark = -1  # beyond asks first
        self.beyond: Callable[[int], None] = _nowhere
        self.log = log
        self.origin = size
        self._fd = fd
        self._spare: tuple[int, mmap.mmap] | None = None
        self._swap = threading.Lock()
        self._map = _mapped(fd, path, capacity)
        self._words = self._begun()

    def put(self, line: bytes) -> None:
        """Append a line; when this returns, the line survives the process.

        Raises:
            AuditUnavailable: from ``beyond``, which is asked before ``head`` passes ``mark``.
        """
        end = self.head + len(line)
        if end > self.mark:
            self.beyond(end)
        start = HEADER + self.head % self.capacity
        stop = start + len(line)
        if stop <= HEADER + self.capacity:
            self._map[start:stop] = line
        else:
            self._put_around(start, line)
        self._words[_AT_HEAD] = self.head = end

    def _put_around(self, start: int, line: bytes) -> None:
        first = HEADER + self.capacity - start
        self._map[start:] = line[:first]
        self._map[HEADER : HEADER + len(line) - first] = line[first:]

    def pending(self, most: int) -> list[memoryview]:
        """Return the oldest unwritten bytes, in one piece or, where they pass the end, in two."""
        size = min(self.head - self.written, most)
        start = self.written % self.capacity
        first = min(size, self.capacity - start)
        view = memoryview(self._map)[HEADER:]
        pieces = (view[start : start + first], view[: size - first])
        return [piece for piece in pieces if piece]

    def lines(self) -> int:
        """Count the lines that are not in the log, or only in part."""
        return sum(bytes(piece).count(b"\n") for piece in self.pending(self.capacity))

    def advance(self, size: int) -> None:
        """Give back the room of the lines that are in the log now.

        The tail stays in front of a line that was written in part: the log may be another file before
        the rest follows, and then the line is written there as a whole.
        """
        self.written += size
        tail = self.written if self.written == self.head else self._last_line_end()
        self._words[_AT_TAIL] = tail
        self.tail = tail

    def _last_line_end(self) -> int:
        """Return the position behind the last newline that was written; the tail where there is none."""
        size, stop = self.written - self.tail, HEADER + self.written % self.capacity
        found = self._map.rfind(b"\n", max(stop - size, HEADER), stop)
        if found >= 0:
            return self.written - (stop - found - 1)
        before = size - (stop - HEADER)  # bytes at the end of the ring, written before those at its beginning
        end = HEADER + self.capacity
        found = self._map.rfind(b"\n", end - before, end) if before > 0 else -1
        return self.tail if found < 0 else self.written - (stop - HEADER) - (end - found - 1)

    def aim(self, log: Identity, size: int) -> None:
        """Say that the content belongs to another file, from its end on.

        Before the first byte is written there: between the stores no file is named, so that a process
        killed in between leaves a ring of which nothing counts as written.
        """
        self.log, self.origin, self.written = log, size - self.tail, self.tail
        self._words[_AT_INODE] = 0
        self._words[_AT_ORIGIN] = self.origin % _WRAP
        self._words[_AT_DEVICE] = log[0]
        self._words[_AT_INODE] = log[1]

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
        mapped = _mapped(fd, self.path, self.capacity)
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
        os.close(fd)
        return True

    def _begun(self) -> memoryview:
        words = memoryview(self._map)[:HEADER].cast("Q")
        for at, value in (
            *((_AT_VERSION, _VERSION), (_AT_CAPACITY, self.capacity), (_AT_PID, os.getpid())),
            *((_AT_HEAD, self.head), (_AT_TAIL, self.tail), (_AT_ORIGIN, self.origin % _WRAP)),
            *((_AT_DEVICE, self.log[0]), (_AT_INODE, self.log[1])),
            (_AT_MAGIC, _MAGIC),  # last: from here on the file is a ring
        ):
            words[at] = value
        return words

    def remove(self) -> None:
        """Remove the file, with the lock still held, so that nobody takes it for a leftover."""
        if not self.moved():
            self.path.unlink()

    def close(self) -> None:
        """Let go of the memory and the file."""
        self._words.release()
        self._map.close()
        self.close_files()

    def close_files(self) -> None:
        """Let go of the file, and with it of the lock."""
        os.close(self._fd)
        if self._spare is not None:
            os.close(self._spare[0])


def _mapped(locked: int, path: Path, capacity: int) -> mmap.mmap:
    os.ftruncate(locked, 0)
    # Room on the disk now: a store to a page for which there is none would kill the process.
    os.posix_fallocate(locked, 0, HEADER + capacity)
    # Opened anew: a mapping keeps its descriptor, in a forked child too, and must not keep the lock.
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, HEADER + capacity)
    finally:
        os.close(fd)


def _nowhere(_end: int) -> None:
    raise RuntimeError("nothing empties this ring")
