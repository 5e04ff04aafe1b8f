"""The hash chain: each record carries SHA-256 (FIPS 180-4) over the hash before it and its own bytes.

A line of the log is ``{"v":1,"seq":N,`` + the record's own fields + ``,"hash":"…"}`` and a newline. The
hash is that of the 64 hexadecimal digits of the hash before, followed by the line up to ``,"hash"``, so
that a few lines of any language can check it.
"""

from __future__ import annotations

import re
from binascii import hexlify
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION: Final = 1
"""Of the records' schema."""

GENESIS: Final = "0" * 64
"""Stands for the hash before the first record of a log."""

TAIL_LENGTH: Final = len(',"hash":""}\n') + 64
_HEAD: Final = b'{"v":%d,"seq":' % VERSION
_BEGIN: Final = b'{"v":'
_HEXADECIMAL: Final = b"0123456789abcdef"
_SIGNED: Final = _HEAD + b"%d,%b"
_PIECES: Final = 4
"""Of which a line is put together."""
_SEALED: Final = re.compile(rb'\{"v":(\d{1,18}),"seq":(\d{1,18}),(.*),"hash":"([0-9a-f]{64})"\}\n?', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the chain: the number of a record, and its hash."""

    seq: int
    hash: str


START: Final = Link(0, GENESIS)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A line taken apart.

    Args:
        version: of its schema.
        link: its number and the hash that it states.
        body: its own fields, as they were handed to ``seal``.
        signed: the bytes that go into the hash.
    """

    version: int
    link: Link
    body: bytes
    signed: bytes

    def follows(self, previous: str) -> bool:
        """Tell whether its hash is that of its bytes after another record."""
        return hashed(previous, self.signed) == self.link.hash


def hashed(previous: str, signed: bytes) -> str:
    """Return the hash of a record after another."""
    return sha256(previous.encode("ascii") + signed).hexdigest()


def seal(bodies: Iterable[bytes], after: Link) -> tuple[list[bytes], Link]:
    """Return records as lines of the log, and the last of their links.

    Args:
        bodies: each an object of JSON and a newline.
        after: the link before.
    """
    pieces, link = seal_fields((body[1:-2] for body in bodies), after)
    return [b"".join(pieces[at : at + _PIECES]) for at in range(0, len(pieces), _PIECES)], link


def seal_fields(records: Iterable[bytes], after: Link) -> tuple[list[bytes], Link]:
    """Return the pieces that those lines are joined from, for records without their braces and newline."""
    seq, previous = after.seq, after.hash.encode("ascii")
    pieces: list[bytes] = []
    for fields in records:
        seq += 1
        signed = _SIGNED % (seq, fields)
        previous = hexlify(sha256(previous + signed).digest())
        pieces += signed, b',"hash":"', previous, b'"}\n'
    return pieces, Link(seq, previous.decode("ascii"))


def sealed_length(body: bytes, seq: int) -> int:
    """Return how long a record is as a line of the log."""
    return len(_HEAD) + len(str(seq)) + len(",") + len(body) - len("{}\n") + TAIL_LENGTH


def filling(bodies: Iterable[bytes], after: Link, room: int) -> int:
    """Return how many records, one at least, fill so many bytes as lines of the log; all where they do not."""
    count = 0
    for count, body in enumerate(bodies, start=1):
        room -= sealed_length(body, after.seq + count)
        if room <= 0:
            break
    return count


def is_sealed(line: bytes) -> bool:
    """Tell whether a line without its newline begins and ends as a record does; what stands between is not looked at."""
    return (
        line.startswith(_BEGIN)
        and line[-75:-66] == b',"hash":"'
        and not line[-66:-2].translate(None, _HEXADECIMAL)
        and line[-2:] == b'"}'
    )


def opened(line: bytes) -> Sealed | None:
    """Take a line apart; None for one that is no record of the chain."""
    found = _SEALED.fullmatch(line)
    if found is None:
        return None
    version, seq, fields, digest = found.groups()
    signed = line[: found.end(3)]
    return Sealed(int(version), Link(int(seq), digest.decode()), b"{%b}\n" % fields, signed)
