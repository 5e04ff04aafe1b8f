"""The log file: opened so that nobody is fooled, appended to, and mended where a line was torn."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from aperion.audit.record import about_log
from aperion.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

Identity: TypeAlias = tuple[int, int]
"""Device and inode: which file it is, whatever its name."""

_BLOCK: Final = 1 << 16
# Not to be led elsewhere by a link, nor held up by a pipe without a reader.
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class LogFile:
    """One open log file, mode 0600 if it was not there before.

    Raises:
        AuditUnavailable: when the path leads to anything but a regular file.
        OSError: when it cannot be opened.
    """

    # Mutable: the descriptor, and which file it is, by reopen.
    __slots__ = ("_fd", "identity", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd, self.identity = _opened(path)

    def write(self, pieces: Sequence[Any]) -> int:
        """Append, and return how many bytes were written, which may be fewer.

        Raises:
            OSError: when the system refuses.
        """
        return os.writev(self._fd, pieces)

    def note(self, detail: Mapping[str, Any]) -> None:
        """Append a line about the log itself.

        Raises:
            OSError: when the system refuses.
        """
        self.write_all(about_log(detail))

    def write_all(self, content: bytes) -> None:
        """Append all of it.

        Raises:
            OSError: when the system refuses; a part may be written.
        """
        _write_all(self._fd, content)

    @property
    def size(self) -> int:
        """How long the file is."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, most: int) -> bytes:
        """Return what stands there."""
        return os.pread(self._fd, most, offset)

    def moved(self) -> bool:
        """Tell whether another file, or none, has the path now."""
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != self.identity

    def reopen(self) -> None:
        """Open what has the path now, or a new file; the folder is not made: it may be a volume that is away.

        Raises:
            AuditUnavailable: when the path leads to anything but a regular file.
            OSError: when it cannot be opened.
        """
        fd, identity = _opened(self.path)
        os.close(self._fd)
        self._fd, self.identity = fd, identity

    def mend(self) -> None:
        """Set aside a last line without an end, so that the next one is not glued to it.

        Raises:
            OSError: when the system refuses.
        """
        end = self.size
        start = end
        while start > 0:
            start = max(end - _BLOCK, 0)
            block = self.read(start, end - start)
            if b"\n" in block:
                start += block.rindex(b"\n") + 1
                break
            end = start
        self.set_aside(start)

    def set_aside(self, offset: int) -> None:
        """Move what stands behind an offset to ``<path>.torn``, and note it; nothing is thrown away.

        Raises:
            OSError: when the system refuses; what was moved may then stand in both files.
        """
        size = self.size
        if offset < size:
            self._keep(self.read(at, _BLOCK) for at in range(offset, size, _BLOCK))
            os.ftruncate(self._fd, offset)
            self.note({"torn_bytes": size - offset, "moved_to": self._aside.name})

    def keep_aside(self, content: bytes) -> None:
        """Append to ``<path>.torn`` what has no place in a log, and note it.

        Raises:
            OSError: when the system refuses.
        """
        self._keep([content])
        self.note({"torn_bytes": len(content), "moved_to": self._aside.name})

    @property
    def _aside(self) -> Path:
        return self.path.with_name(f"{self.path.name}.torn")

    def _keep(self, blocks: Iterable[bytes]) -> None:
        fd, _ = _opened(self._aside)
        try:
            for block in (*blocks, b"\n"):
                _write_all(fd, block)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _write_all(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _opened(path: Path) -> tuple[int, Identity]:
    fd = os.open(path, _FLAGS, 0o600)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise AuditUnavailable(path, "it is no regular file")
    return fd, (found.st_dev, found.st_ino)
