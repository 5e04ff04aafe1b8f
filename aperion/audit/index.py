"""A sparse index beside each full file: where its blocks are, their times, and which ids stand in which.

The index is a help and never a truth: one that is missing, damaged or of another file makes a search
slow, and not wrong.
"""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

BLOCK: Final = 128 << 10
"""Bytes of whole lines, about: what is read and unpacked to find one record."""

_MAGIC: Final = b"AperIdx1"
_HEAD: Final = struct.Struct("<8sQII")
_ENTRY: Final = struct.Struct("<QQQQQQ")
_ID: Final = re.compile(rb'"(?:event_id|correlation_id)":"([^"\\]*)"')
_TIME: Final = re.compile(rb'\n\{"v":\d+,"seq":\d+,"time":(\d+)')  # begins with a literal; ^ is tried at each byte


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

    def covers(self, size: int) -> bool:
        """Tell whether the blocks stand one behind the other in a file of this size, with nothing in between."""
        end = 0
        for block in self.blocks:
            if block.offset != end:
                return False
            end += block.size
        return end == size


class Builder:
    """Collects what an index says, block by block."""

    __slots__ = ("_blocks", "_ends", "_ids")

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._ends: list[int] = []
        self._ids = bytearray()

    def add(self, content: bytes, offset: int, size: int) -> None:
        """Add a block: its lines, and where it stands in the file."""
        times = [int(time) for time in _TIME.findall(b"\n" + content)]
        self._blocks.append(Block(offset, size, min(times, default=0), max(times, default=2**63)))
        self._ids += b"".join(_checksum(identifier) for identifier in set(_ID.findall(content)))
        self._ends.append(len(self._ids) // 4)

    def save(self, path: Path, file_size: int) -> None:
        """Write the index in one go: to a file of its own first.

        Raises:
            OSError: when it cannot be written.
        """
        parts = [_HEAD.pack(_MAGIC, file_size, len(self._blocks), crc32(self._ids))]
        for block, end in zip(self._blocks, self._ends, strict=True):
            parts.append(_ENTRY.pack(block.offset, block.size, block.since, block.until, end, 0))
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.writelines([*parts, self._ids])
        new.replace(path)


def build(segment: Path) -> None:
    """Write the index of a full file that is not compressed."""
    builder, offset = Builder(), 0
    with segment.open("rb") as file:
        for content in blocks(file):
            builder.add(content, offset, len(content))
            offset += len(content)
    builder.save(path_of(segment), offset)


def path_of(segment: Path) -> Path:
    """Return where the index of a file is, compressed or not."""
    plain = segment.with_suffix("") if segment.suffix in {".gz", ".zst"} else segment
    return plain.with_name(f"{plain.name}.idx")


def load(segment: Path, size: int) -> Index | None:
    """Read the index of a file of this size; None where there is none that fits."""
    try:
        content = path_of(segment).read_bytes()
        magic, file_size, count, checksum = _HEAD.unpack_from(content)
        entries = [_ENTRY.unpack_from(content, _HEAD.size + n * _ENTRY.size) for n in range(count)]
    except (OSError, struct.error):
        return None
    ids = content[_HEAD.size + count * _ENTRY.size :]
    if magic != _MAGIC or file_size != size or crc32(ids) != checksum:
        return None
    return Index(tuple(Block(*entry[:4]) for entry in entries), tuple(entry[4] for entry in entries), ids)


def blocks(file: BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    """Cut what a file holds into blocks of whole lines; only the last may end without a newline."""
    read = file.read  # type: ignore[union-attr]  # a file opened for reading
    rest = b""
    while chunk := read(BLOCK):
        rest += chunk
        end = rest.rfind(b"\n") + 1
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _checksum(identifier: bytes) -> bytes:
    return struct.pack("<I", crc32(identifier))
