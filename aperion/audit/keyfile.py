"""The file in which the keys of subjects are: a header, and a slot for each key."""

from __future__ import annotations

import base64
import os
import secrets
import stat
from hashlib import blake2b
from typing import TYPE_CHECKING, Final
from zlib import crc32

from aperion.errors import AuditError
from aperion.redaction.modes import RedactionKey

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator
    from pathlib import Path

_MAGIC: Final = b"aperion subject keys 1\n"
HEADER: Final = 64
SALT: Final = slice(32, 64)
# A slot: the hash of a name, the id of its key, a checksum, the secret. Within one sector of any disk, so never half there.
SLOT: Final = 64
DIGEST, ID, _SECRET = slice(0, 16), slice(16, 26), slice(32, 64)
FREE: Final = bytes(16)
# Without checksums, a flipped bit would make ``forget`` say that there is no key, of one that still opens what was said.
_SLOT_SUM, _SALT_SUM = slice(26, 30), slice(28, 32)
_NO_SUM: Final = bytes(4)
"""In a file of an older version."""


class KeyFile:
    """The file of keys, opened for one thing; beside a log that writes it, if need be.

    Raises:
        AuditError: for a file that is something else, or is damaged.
        OSError: when there is no file.
    """

    # Mutable: whether a damaged slot was seen.
    __slots__ = ("_fd", "_is_damaged", "_path", "salt")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_damaged = False
        self._fd = open_keys(path, os.O_RDWR)
        header = os.pread(self._fd, HEADER, 0)
        try:
            check(path, header)
        except AuditError:
            self.close()
            raise
        self.salt = header[SALT]

    def find(self, wanted: bytes, part: slice) -> tuple[int, bytes] | None:
        """Return the first slot with this hash or id, and where it stands."""
        content, found = os.pread(self._fd, os.fstat(self._fd).st_size, 0), None
        for at, slot in slots(content):
            if slot[DIGEST] == FREE:
                continue
            if slot[part] == wanted and found is None:
                found = at, slot
            # Read again, if need be: a log may have been writing it.
            self._is_damaged |= not is_whole(slot) and not is_whole(os.pread(self._fd, SLOT, at))
        return found

    def check_slots(self) -> None:
        """See that the one that was looked for is none of those that are damaged.

        Raises:
            AuditError: where there are any.
        """
        if self._is_damaged:
            raise AuditError(
                f"a key in {self._path} is damaged, and whose it is cannot be told; put a whole copy of the file back"
            )

    def clear(self, at: int) -> None:
        """Overwrite a slot, the secret first, and wait until the disk has it."""
        os.pwrite(self._fd, bytes(SLOT), at)
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def open_keys(path: Path, flags: int) -> int:
    """Open the file, not through a link.

    Raises:
        AuditError: for what is no regular file.
        OSError: when the system refuses.
    """
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise AuditError(f"{path} is no regular file; pass the path of one that this log may write")
    return fd


def new_header() -> bytes:
    """Return what a new file begins with."""
    salt = secrets.token_bytes(32)
    return _MAGIC.ljust(_SALT_SUM.start, b"\0") + _sum(salt) + salt


def check(path: Path, header: bytes) -> None:
    """See that a file begins as one of keys does.

    Raises:
        AuditError: where it does not, or the salt is damaged, without which nobody's key is found.
    """
    if not header.startswith(_MAGIC) or len(header) < HEADER:
        raise AuditError(f"{path} holds no keys of subjects; pass another path, and it is made")
    if header[_SALT_SUM] not in (_NO_SUM, _sum(header[SALT])):
        raise AuditError(
            f"the beginning of {path} is damaged, so that no key is found; put a whole copy of the file back"
        )


def slots(content: bytes | mmap.mmap) -> Iterator[tuple[int, bytes]]:
    """Yield all slots, and where they stand."""
    for at in range(HEADER, len(content) - SLOT + 1, SLOT):
        yield at, content[at : at + SLOT]


def new_slot(digest: bytes) -> bytes:
    """Return a slot with a new key for somebody."""
    name, secret = secrets.token_bytes(10), secrets.token_bytes(32)
    return digest + name + _sum(digest + name + secret) + bytes(2) + secret


def is_whole(slot: bytes) -> bool:
    """Tell whether a slot is as it was written."""
    return slot[_SLOT_SUM] in (_NO_SUM, _sum(slot[DIGEST] + slot[ID] + slot[_SECRET]))


def digest_of(salt: bytes, subject: str) -> bytes:
    """Return the hash by which the key of somebody is found."""
    return blake2b(subject.encode("utf-8", "surrogatepass"), key=salt, digest_size=16).digest()


def key_in(slot: bytes) -> RedactionKey:
    """Return the key that a slot holds."""
    return RedactionKey(base64.b32encode(slot[ID]).decode().lower(), slot[_SECRET])


def id_of(name: str) -> bytes:
    """Return the id in a slot of a key with a name; empty where it is none."""
    try:
        return base64.b32decode(name.upper())
    except ValueError:
        return b""


def _sum(content: bytes) -> bytes:
    return crc32(content).to_bytes(4, "little")
