"""The files below the log: opened so that nobody is fooled, appended to, cut and synchronised."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from aperion.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Identity: TypeAlias = tuple[int, int]
"""Device and inode: which file it is, whatever its name."""

_BLOCK: Final = 1 << 16
_MODE: Final = 0o600
# Not to be led elsewhere by a link, nor held up by a pipe without a reader.
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class LogFile:
    """One open log file, for its owner alone.

    Raises:
        AuditUnavailable: when the path leads to anything but a regular file.
        OSError: when it cannot be opened.
    """

    __slots__ = ("_fd", "identity", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd, self.identity = _opened(path)

    def lock(self) -> None:
        """Keep everybody else from writing it, under whatever name: a hard link is one more.

        Raises:
            AuditUnavailable: when somebody else writes it.
            OSError: when the system refuses.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditUnavailable(self.path, "another log writes this file, under another name") from None

    def write(self, content: bytes | memoryview) -> int:
        """Append, and return how many bytes were written, which may be fewer.

        Raises:
            OSError: when the system refuses.
        """
        return os.write(self._fd, content)

    def write_all(self, content: bytes) -> None:
        """Append all of it.

        Raises:
            OSError: when the system refuses; a part may be written.
        """
        rest = memoryview(content)
        while rest:
            rest = rest[self.write(rest) :]

    def sync(self) -> None:
        """Wait until the device has what was written.

        Raises:
            OSError: when it does not; the system then forgets what it could not write (fsyncgate, 2018),
                so that asking again would say yes to what is lost.
        """
        os.fdatasync(self._fd)

    @property
    def size(self) -> int:
        """How long the file is."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, most: int) -> bytes:
        """Return what stands there."""
        return os.pread(self._fd, most, offset)

    def cut(self, size: int) -> None:
        """Take away what stands behind an offset."""
        os.ftruncate(self._fd, size)

    def protect(self) -> None:
        """See that only its owner can read it, which ``logrotate`` may have made otherwise."""
        found = os.fstat(self._fd)
        if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != _MODE:
            os.fchmod(self._fd, _MODE)

    def moved(self) -> bool:
        """Tell whether another file, or none, has the path now."""
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != self.identity

    @property
    def is_removed(self) -> bool:
        """Whether it has no name any more."""
        return os.fstat(self._fd).st_nlink == 0

    def last_line_end(self) -> int:
        """Return the offset behind the last newline."""
        start = end = self.size
        while start > 0:
            start = max(end - _BLOCK, 0)
            block = self.read(start, end - start)
            if b"\n" in block:
                return start + block.rindex(b"\n") + 1
            end = start
        return 0

    def keep_aside(self, blocks: Iterable[bytes]) -> str:
        """Append to ``<path>.torn`` what has no place in a log, and return the name of that file.

        Raises:
            OSError: when the system refuses.
        """
        aside = LogFile(self.path.with_name(f"{self.path.name}.torn"))
        try:
            for block in (*blocks, b"\n"):
                aside.write_all(block)
        finally:
            aside.close()
        return aside.path.name

    def blocks(self, start: int) -> Iterable[bytes]:
        """Read from an offset to the end."""
        while block := self.read(start, _BLOCK):
            yield block
            start += len(block)

    def close(self) -> None:
        """Close the file, and give up the lock: a child that was just forked may still hold the file open."""
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)

    def abandon(self) -> None:
        """Close it in a forked child; the lock is that of the parent."""
        os.close(self._fd)


def make_folder(path: Path, *, durable: bool) -> None:
    """Make a folder and those above it, where they are missing, for their owner alone.

    Raises:
        OSError: when the system refuses.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        if durable:
            sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Wait until the device knows the names in a folder: those of new and renamed files.

    Raises:
        OSError: when the system refuses.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _opened(path: Path) -> tuple[int, Identity]:
    fd = os.open(path, _FLAGS, _MODE)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise AuditUnavailable(path, "it is no regular file")
    return fd, (found.st_dev, found.st_ino)
