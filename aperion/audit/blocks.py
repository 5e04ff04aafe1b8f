"""What a file of a log holds, as blocks of whole lines, in bounded memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BLOCK: Final = 128 << 10
"""Bytes of whole lines, about: what is read and unpacked to find one record."""
CHUNK: Final = 256 << 10
"""Bytes read at once where all is read."""
LONGEST = 64 << 20
"""Bytes of a line; a longer one is no record, and is cut."""


def chunks(fd: int, size: int, most: int = CHUNK, *, at: int = 0) -> Iterator[bytes]:
    """Yield what stands in a file up to a size, which a live file may have passed since, or be short of again."""
    most = min(most, LONGEST)
    while at < size and (chunk := os.pread(fd, min(most, size - at), at)):
        at += len(chunk)
        yield chunk


def whole_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut what comes in pieces into blocks of whole lines.

    An empty piece stands for what cannot be read, and comes as an empty block. Only the block before one, the last one,
    and parts of a line that is too long end without a newline.
    """
    begun: list[bytes] = []  # a line
    size = 0
    for piece in pieces:
        if not piece:
            yield from _cut(begun)
            yield b""
            begun, size = [], 0
            continue
        end = piece.rfind(b"\n") + 1
        if end and size <= LONGEST - len(piece):
            yield b"".join((*begun, piece[:end]))
            begun, size = [], 0
        elif end:
            first = piece.find(b"\n") + 1
            yield from _cut([*begun, piece[:first]])
            yield from (piece[first:end],) * (first < end)
            begun, size = [], 0
        if end < len(piece):
            begun.append(piece[end:])
            size += len(piece) - end
        if size >= 2 * LONGEST:
            *whole, rest = _cut(begun)
            yield from whole
            begun, size = [rest], len(rest)
    yield from _cut(begun)


def lines_backwards(fd: int, size: int) -> Iterator[bytes]:
    """Yield what stands in a file up to a size as blocks of whole lines, from the end on; the first may lack its newline."""
    behind: list[bytes] = []  # of the line whose beginning is not read yet, the last part first
    held = 0
    while size > 0:
        start = max(size - min(CHUNK, LONGEST), 0)
        piece, size = os.pread(fd, size - start, start), start
        begin = piece.find(b"\n") + 1
        if not begin:
            behind.append(piece)
            held += len(piece)
            if held > LONGEST:
                yield from reversed(list(_cut(behind[::-1])))
                behind, held = [], 0
            continue
        if block := piece[begin:] + b"".join(reversed(behind)):
            yield block
        behind, held = [piece[:begin]], begin
    if behind:
        yield b"".join(reversed(behind))


def _cut(parts: list[bytes]) -> Iterator[bytes]:
    line = b"".join(parts)
    for at in range(0, len(line), LONGEST):
        yield line[at : at + LONGEST]
