"""A sparse index beside each full file: where its blocks are, their times, and which ids stand in which.

The index is a help and never the truth. It is believed where its checksum fits and it is about this very file: one of
the same size and the same time, or, where a copy has another time, of the same checksum. Any other makes a search slow,
and not wrong.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from zlib import crc32

from aperion.audit.blocks import chunks

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC: Final = b"AperIdx2"
_SUM: Final = struct.Struct("<8sI")
_HEAD: Final = struct.Struct("<QQII")
"""Size, time and checksum of the file; how many blocks there are."""
_ENTRY: Final = struct.Struct("<QQQQQ")
_ID: Final = re.compile(rb'"(?:event_id|correlation_id)":"([^"\\]*)"')
_TIME: Final = re.compile(
    rb'\n\{"v":\d+,"seq":\d+,"time":(\d{1,19})(?!\d)'
)  # begins with a literal; ^ is tried at each byte
_ANY_TIME: Final = (0, 2**63)


@dataclass(frozen=True, slots=True)
class Block:
    """Some lines of a file that follow each other.

    Args:
        offset: of the bytes in the file, which may be compressed.
        size: of the bytes in the file.
        since: the earliest time in it, in nanoseconds.
        until: the latest.
    """

    offset: int
    size: int
    since: int
    until: int


@dataclass(frozen=True, slots=True)
class Index:
    """The blocks of one file, and the checksums of the ids in them, block after block."""

    blocks: tuple[Block, ...]
    ends: tuple[int, ...]
    ids: bytes

    def holding(self, identifier: str) -> list[Block]:
        """Return the blocks in which an event id or a correlation id may stand; it stands in no other."""
        numbers: dict[int, None] = {}
        wanted, at = _checksum(identifier.encode()), -1
        while (at := self.ids.find(wanted, at + 1)) >= 0:
            if at % 4 == 0:  # otherwise it stands across two of them
                numbers[bisect_right(self.ends, at // 4)] = None
        return [self.blocks[number] for number in numbers]


class Builder:
    """Collects what an index says, block by block."""

    __slots__ = ("_blocks", "_ids", "_offset", "_sum", "_time")

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._ids = bytearray()
        self._offset = self._sum = self._time = 0

    def add(self, content: bytes, packed: bytes) -> None:
        """Add a block: its lines, and the bytes of the file that they are."""
        times = [int(time) for time in _TIME.findall(b"\n" + content)]
        # Where one line does not tell its time, the block may hold any.
        since, until = (min(times), max(times)) if 0 < len(times) == content.count(b"\n") else _ANY_TIME
        self._ids += b"".join(_checksum(identifier) for identifier in set(_ID.findall(content)))
        self._blocks.append(_ENTRY.pack(self._offset, len(packed), since, until, len(self._ids) // 4))
        self._sum = crc32(packed, self._sum)
        self._offset += len(packed)

    def about(self, file: os.stat_result) -> None:
        """Say of which file it is the index."""
        self._time = file.st_mtime_ns

    def save(self, path: Path) -> None:
        """Write the index in one go: to a file of its own first.

        Raises:
            OSError: when it cannot be written.
        """
        head = _HEAD.pack(self._offset, self._time, self._sum, len(self._blocks))
        said = b"".join((head, *self._blocks, self._ids))
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.writelines((_SUM.pack(_MAGIC, crc32(said)), said))
        new.replace(path)


def path_of(segment: Path) -> Path:
    """Return where the index of a file is, compressed or not."""
    plain = segment.with_suffix("") if segment.suffix in {".gz", ".zst"} else segment
    return plain.with_name(f"{plain.name}.idx")


def load(segment: Path, fd: int) -> Index | None:
    """Read the index of a file that is open; None where there is none that is to be believed."""
    content = _read(path_of(segment))
    if len(content) < _SUM.size + _HEAD.size:
        return None
    magic, checksum = _SUM.unpack_from(content)
    if magic != _MAGIC or crc32(memoryview(content)[_SUM.size :]) != checksum:
        return None
    size, time, file_sum, count = _HEAD.unpack_from(content, _SUM.size)
    if not _is_of(fd, size, time, file_sum):
        return None
    begin = _SUM.size + _HEAD.size
    end = begin + count * _ENTRY.size
    entries = list(_ENTRY.iter_unpack(content[begin:end]))
    return Index(tuple(Block(*entry[:4]) for entry in entries), tuple(entry[4] for entry in entries), content[end:])


def _is_of(fd: int, size: int, time: int, file_sum: int) -> bool:
    found = os.fstat(fd)
    if found.st_size != size:
        return False
    if found.st_mtime_ns == time:
        return True
    actual = 0
    for chunk in chunks(fd, size):
        actual = crc32(chunk, actual)
    return actual == file_sum


def _read(path: Path) -> bytes:
    """Return what stands in a file; nothing for a link, and for a pipe, which would be waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        found = os.fstat(fd)
        return b"".join(chunks(fd, found.st_size)) if stat.S_ISREG(found.st_mode) else b""
    finally:
        os.close(fd)


def _checksum(identifier: bytes) -> bytes:
    return struct.pack("<I", crc32(identifier))
