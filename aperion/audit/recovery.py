"""Bring what a killed process left in its ring into the log, each line once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import orjson

from aperion.audit.ring import aim, leftover

if TYPE_CHECKING:
    from pathlib import Path

    from aperion.audit.files import LogFile
    from aperion.audit.ring import Leftover


def recover(ring: Path, fd: int, file: LogFile) -> int:
    """Write into the log what the ring holds and the log lacks, and return how many lines that were.

    The ring stays as it is, so that this can be cut short anywhere and done again.

    Args:
        ring: the path of the ring.
        fd: the ring, locked.
        file: the log.

    Raises:
        AuditUnavailable: when the file is no ring of ours.
        OSError: when the system refuses to write; nothing is lost.
    """
    left = leftover(fd, ring, file.path)
    if left is None or not left.content:
        file.mend()
        return 0
    left, bad = _sorted(left)
    if left.log != file.identity or left.offset > file.size:  # moved away, or cut, since
        left = _anew(fd, file, left)
    rest = _missing(file, left)
    file.write_all(rest)
    file.mend()
    if bad:
        file.keep_aside(bad)
    return rest.count(b"\n")


def _sorted(left: Leftover) -> tuple[Leftover, bytes]:
    """Take out what is no record: after a power cut, the head may be on the disk and a line not."""
    lines = left.content.splitlines(keepends=True)
    bad = [line for line in lines if not _is_record(line)]
    if not bad:
        return left, b""
    good = b"".join(line for line in lines if _is_record(line))
    return dataclasses.replace(left, content=good), b"".join(bad)


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict) and line.isascii()
    except ValueError:
        return False


def _anew(fd: int, file: LogFile, left: Leftover) -> Leftover:
    """Let the content belong to the end of the file that is there now."""
    file.mend()
    offset = file.size
    aim(fd, file.identity, offset - left.tail)
    return dataclasses.replace(left, log=file.identity, offset=offset)


def _missing(file: LogFile, left: Leftover) -> bytes:
    """Return the part of the content that the log lacks, after setting aside what stands in its way."""
    there = file.read(left.offset, len(left.content))
    if left.content.startswith(there):  # a batch that was cut short, or whole but not yet accounted for
        return left.content[len(there) :]
    file.set_aside(left.offset)
    return left.content
