"""Erasure: what tells of one person is encrypted with a key of that person's own, and is gone when the key is.

The records stay as they are, so that the chain stays whole; what they say under a key that is destroyed
nobody can read any more.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from aperion._logs import logger as _log
from aperion.audit.keyfile import (
    DIGEST,
    FREE,
    HEADER,
    ID,
    SALT,
    SLOT,
    KeyFile,
    check,
    digest_of,
    id_of,
    is_whole,
    key_in,
    new_header,
    new_slot,
    open_keys,
    slots,
)
from aperion.errors import AuditError, ConfigurationError
from aperion.redaction.modes import check_encryption, key_of, revealed

if TYPE_CHECKING:
    from collections.abc import Callable

    from aperion.events import Event
    from aperion.redaction.modes import RedactionKey

SubjectOf: TypeAlias = "Callable[[Event[Any]], str | None]"

_MORE: Final = 4096
"""Slots by which the file grows."""


class Subjects:
    """The keys of the people that events are about, in a file: one each, made when first needed.

    With it, what the redactor of the log writes in ``Mode.ENCRYPT`` is encrypted with the key of the
    event's subject. ``forget`` destroys that key: in the log, in its compressed files and in every copy of
    them the values are then unreadable, and ``verify`` still finds the chain whole. Copies of this file
    would bring keys back: leave it out of backups that are kept longer than a request may take.

    Subjects of which 100,000 are known take 6 MB of disk and 15 MB of memory.

    Args:
        path: of the file, made with mode 0600; not in the folder of the log, whose copies go elsewhere.
        of: tells whom an event is about, such as ``lambda event: event.payload["customer_id"]``; None for
            nobody, whose values are encrypted with the redactor's own key. What an event says is hidden
            altogether when it raises.

    Raises:
        ConfigurationError: without the package cryptography, and for a path without a file name.
    """

    # Mutable: the open file, and which slot is whose.
    __slots__ = ("_by_digest", "_dirty", "_fd", "_free", "_lock", "_map", "_salt", "_users", "of", "path")

    def __init__(self, path: str | os.PathLike[str], of: SubjectOf) -> None:
        if not Path(path).name:
            raise ConfigurationError(f"{os.fspath(path)!r} is no path of a file; pass one such as 'subjects.keys'")
        self.path = Path(path).absolute()  # the process may change its folder
        if not callable(of):
            raise ConfigurationError(
                f"of={of!r} cannot be called; pass a function of an event: lambda event: event.key"
            )
        check_encryption()
        self.of = of
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._salt = b""
        self._by_digest: dict[bytes, int] = {}
        self._free: list[int] = []
        self._dirty = False
        self._users = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Show the path."""
        return f"<Subjects {str(self.path)!r}>"

    # While a log is open

    def open(self) -> None:
        """Open the file for a log; several logs of one process may share it. Waits.

        Raises:
            AuditError: when another process writes it, and for a file that is something else.
            OSError: when the system refuses.
        """
        with self._lock:
            if self._users == 0:
                self._open()
            self._users += 1

    def close(self) -> None:
        """Let go of it; the last log that does closes the file. Waits for the disk."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._close()

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = open_keys(self.path, os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AuditError(f"another process uses the keys in {self.path}; give each its own") from None
            if os.fstat(self._fd).st_size == 0:
                self._begin()
            self._map = mmap.mmap(self._fd, 0)
            self._load()
        except BaseException:
            self._close()
            raise

    def _begin(self) -> None:
        os.posix_fallocate(self._fd, 0, HEADER + _MORE * SLOT)
        os.pwrite(self._fd, new_header(), 0)
        os.fdatasync(self._fd)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _load(self) -> None:
        content = self._content()
        check(self.path, content[:HEADER])
        self._salt = content[SALT]
        self._by_digest, self._free = {}, []
        for at, slot in slots(content):
            if slot[DIGEST] == FREE:
                self._free.append(at)
            elif is_whole(slot):
                self._by_digest[slot[DIGEST]] = at
            else:  # nobody gets it, and ``forget`` says so
                _log.error("a key of a subject is damaged", path=str(self.path), offset=at)
        self._free.reverse()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        with suppress(OSError):
            os.fdatasync(fd)
        if self._map is not None:
            self._map.close()
            self._map = None
        self._by_digest, self._free = {}, []
        os.close(fd)

    def _content(self) -> mmap.mmap:
        if self._map is None:
            raise AuditError(f"the keys in {self.path} are not open; the log opens them when it starts")
        return self._map

    def key_for(self, event: Event[Any]) -> RedactionKey | None:
        """Return the key of whom an event is about; None for nobody.

        Raises:
            UntoldSubjectError: when ``of`` raises, or returns what is no text.
            OSError: when the file is full and cannot grow.
        """
        try:
            subject = self.of(event)
        except Exception as error:
            raise UntoldSubjectError(type(error).__name__) from error
        if subject is None:
            return None
        if not isinstance(subject, str):
            raise UntoldSubjectError(f"{type(subject).__name__} is no str")
        return self.key(subject)

    def key(self, subject: str) -> RedactionKey:
        """Return the key of somebody, a new one the first time; does not wait for the disk.

        Raises:
            OSError: when the file is full and cannot grow.
        """
        with self._lock:
            content, digest = self._content(), digest_of(self._salt, subject)
            at = self._by_digest.get(digest)
            slot = content[at : at + SLOT] if at is not None else b""
            # Another process may forget somebody, right now too: what was read must still be there.
            if at is None or not slot.startswith(digest) or content[at : at + SLOT] != slot:
                at = self._new(digest)
                slot = content[at : at + SLOT]
            return key_in(slot)

    def _new(self, digest: bytes) -> int:
        if not self._free:
            self._make_room()
            self._take_in()
        content, at = self._content(), self._free.pop()
        # The hash comes last: whoever is killed in between leaves a slot that is still free.
        slot = new_slot(digest)
        content[at + DIGEST.stop : at + SLOT] = slot[DIGEST.stop :]
        content[at : at + DIGEST.stop] = digest
        self._by_digest[digest] = at
        self._dirty = True
        return at

    def _make_room(self) -> None:
        # Now, so that a full disk says no here, and not by a signal when a key is written.
        os.posix_fallocate(self._fd, len(self._content()), _MORE * SLOT)

    def _take_in(self) -> None:
        content = self._content()
        size, larger = len(content), os.fstat(self._fd).st_size
        content.resize(larger)
        self._free += range(larger - SLOT, size - SLOT, -SLOT)

    def tend(self, *, durable: bool) -> None:
        """Make room for more, and bring new keys to the disk if they have to be there; for the writer. Waits.

        Raises:
            OSError: when the system refuses.
        """
        if len(self._free) < _MORE // 2:
            self._make_room()
            with self._lock:
                self._take_in()
        dirty, self._dirty = self._dirty, False
        if dirty and durable:
            try:
                os.fdatasync(self._fd)
            except OSError:
                self._dirty = True
                raise

    # At any time

    def forget(self, subject: str) -> str | None:
        """Destroy the key of somebody, whether a log is open or not; return the id of the key. Waits for the disk.

        What an event says of the same subject afterwards is encrypted with a new key.

        Returns:
            None when there is no key: nothing was encrypted for that subject, or it is forgotten already.

        Raises:
            AuditError: for a file that is something else, and where keys are damaged, one of which may be the subject's.
            OSError: when there is no file, and when the disk refuses; the key may then still be there.
        """
        with self._lock, closing(KeyFile(self.path)) as file:
            found = file.find(digest_of(file.salt, subject), DIGEST)
            if found is not None:
                file.clear(found[0])
            file.check_slots()  # after that: there may be an older key of the same subject
        return key_in(found[1]).id if found is not None else None

    def reveal(self, marker: str) -> str:
        """Return the value that a marker holds which the log wrote for a subject. Waits.

        Raises:
            ConfigurationError: where it is no such marker, or its key is not here: destroyed, or of another file.
            AuditError: where keys are damaged, one of which may be the one.
            OSError: when there is no file.
        """
        name = key_of(marker)
        with closing(KeyFile(self.path)) as file:
            found = file.find(id_of(name), ID)
            if found is None:
                file.check_slots()
        if found is None:
            raise ConfigurationError(f"the key {name!r} is not in {self.path}: it was destroyed, or is of another file")
        return revealed(marker, key_in(found[1]))


class UntoldSubjectError(AuditError):
    """Whom an event is about cannot be told; what it says is not written then, since nobody could erase it."""


class HidesAll:
    """Stands for a redactor where nothing that an event says may be written."""

    def redact(self, *_: object) -> NoReturn:
        """Raise, for which a record has a marker."""
        raise UntoldSubjectError("hidden")

    redact_text = redact_exception = redact
