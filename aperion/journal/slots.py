"""The folder of a journal, and its slots: each has the files of one process, and a lock that dies with it."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from pathlib import Path
from typing import Final

from aperion.errors import JournalUnavailable

_SLOT: Final = re.compile(r"journal-(\d+)\.lock")
_SLOTS: Final = 1024
_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_REMOTE: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "ocfs2"}
)
"""File systems on which a lock, or what ``fsync`` says, is not to be trusted by SQLite in WAL mode."""


class Slot:
    """One slot, for as long as this process has its lock."""

    __slots__ = ("_fd", "folder", "number")

    def __init__(self, folder: Path, number: int, fd: int) -> None:
        self.folder = folder
        self.number = number
        self._fd = fd

    @property
    def database(self) -> Path:
        """The file with the events."""
        return self.folder / f"journal-{self.number}.db"

    @property
    def starts(self) -> Path:
        """The file that says which handlers run."""
        return self.folder / f"journal-{self.number}.starts"

    def release(self, *, is_empty: bool = False) -> None:
        """Let another process have it, which need not look into one that is empty."""
        if is_empty:
            os.ftruncate(self._fd, 0)
        os.close(self._fd)


class Slots:
    """The slots of one folder, made for its owner alone.

    Raises:
        JournalUnavailable: for a folder that is a link, belongs to somebody else, or lies on a network.
    """

    __slots__ = ("folder",)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
        except OSError as error:
            raise JournalUnavailable(folder, error.strerror or str(error), opening=True) from None
        if not stat.S_ISDIR(found.st_mode):
            raise JournalUnavailable(folder, "it is a link, or no folder", opening=True)
        if found.st_uid != os.geteuid():
            raise JournalUnavailable(folder, "it belongs to another user", opening=True)
        if stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)
        kind = file_system(folder)
        if kind in _REMOTE or kind.startswith("fuse.ssh"):
            raise JournalUnavailable(
                folder, f"it lies on {kind}, a network file system, whose locks do not hold", opening=True
            )

    def first_free(self) -> Slot:
        """Take the first slot that nobody has.

        Raises:
            JournalUnavailable: when there is none, or no lock can be made.
        """
        for number in range(_SLOTS):
            slot = self._take(number, create=True)
            if slot is not None:
                return slot
        raise JournalUnavailable(self.folder, f"all {_SLOTS} slots are taken", opening=True)

    def abandoned(self) -> list[Slot]:
        """Take every slot that its process has left with something in it."""
        locks = [(int(found[1]), path) for path in self.folder.iterdir() if (found := _SLOT.fullmatch(path.name))]
        numbers = sorted(number for number, path in locks if path.lstat().st_size)
        slots = (self._take(number, create=False) for number in numbers)
        return [slot for slot in slots if slot is not None]

    def take(self, number: int) -> Slot | None:
        """Take one slot, if nobody has it."""
        return self._take(number, create=True)

    def owner(self, number: int) -> int | None:
        """Return the process that has a slot, as it has written there."""
        text = (self.folder / f"journal-{number}.lock").read_text(encoding="ascii", errors="replace").strip()
        return int(text) if text.isdigit() else None

    def _take(self, number: int, *, create: bool) -> Slot | None:
        path = self.folder / f"journal-{number}.lock"
        flags = _LOCK_FLAGS if create else _LOCK_FLAGS & ~os.O_CREAT
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            if not create:
                return None
            raise JournalUnavailable(self.folder, error.strerror or str(error), opening=True) from None
        try:
            # Not by fcntl(), whose locks end when any descriptor of the file is closed.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return Slot(self.folder, number, fd)


def file_system(path: Path) -> str:
    """Return the kind of file system that a path lies on; empty where the system does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    device = f"{os.major(path.stat().st_dev)}:{os.minor(path.stat().st_dev)}"
    for line in reversed(lines):
        fields, _, rest = line.partition(" - ")
        if fields.split(" ")[2] == device:
            return rest.split(" ")[0]
    return ""
