"""The live file of a log: where the chain ends, and how it goes on, from file to file."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from aperion.audit import record
from aperion.audit.chain import START, opened, seal_fields
from aperion.audit.files import LogFile, sync_folder
from aperion.audit.ring import Place
from aperion.audit.segments import GZIP, ZSTD, sealed_path, sealed_segments
from aperion.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from aperion.audit.chain import Link
    from aperion.audit.segments import Segment

_BEGIN: Final = b'{"v":'
_LOOK_BACK: Final = 4 << 20
"""Bytes in which the last record and the last checkpoint are looked for; both stand close to the end."""


class Live:
    """Appends to the live file, all of a batch or nothing, and begins the next file.

    Args:
        path: of the log.
        file: what is open there.
        durable: whether what is appended is to survive a power cut.
    """

    # Mutable: all of it, by the thread that writes.
    __slots__ = (
        *("_attempt", "_due", "_is_begun", "_is_counted", "_next", "_names_changed", "_reason"),
        *("began", "durable", "file", "first", "link", "log", "number", "path", "size", "taken", "written"),
    )

    def __init__(self, path: Path, file: LogFile, *, durable: bool) -> None:
        self.path = path
        self.file = file
        self.durable = durable
        self.link: Link = START
        self.log = ""
        self.number = 0
        self.began = time.time_ns()
        self.first = 0  # number of the record that begins the file
        self.size = 0
        self.written = 0
        self.taken = 0  # how far the ring is in the log, also where the ring does not know it yet
        self._is_begun = True  # by the line that tells of which log it is
        self._next: LogFile | None = None  # the last one that was opened
        self._is_counted = False  # whether no full file has a higher number
        self._due: list[bytes] = []  # about the log: comes before anything else
        self._attempt = b""  # that failed; a part of it may stand behind the end
        self._reason: str | None = None  # why nothing is written into this file any more
        self._names_changed = True  # since the device was last told of the folder

    @property
    def place(self) -> Place:
        """Where the log ends now."""
        return Place(self.file.identity, self.size, self.link)

    @property
    def has_records(self) -> bool:
        """Whether there is more than the line that begins the file."""
        return self.link.seq > self.first

    # Appending

    def append(self, bodies: Sequence[bytes]) -> None:
        """Append records; when this raises, none of them is in the log.

        Raises:
            OSError: when the system refuses.
        """
        self.take([body[1:-2] for body in bodies], self.taken)

    def take(self, records: Sequence[bytes], taken: int) -> None:
        """Do the same with records from the ring.

        Args:
            records: without their braces and newlines.
            taken: how far the ring is in the log then.

        Raises:
            OSError: when the system refuses.
        """
        try:
            self._append(records, taken)
        except OSError:
            if self._reason is None:
                raise
            self._append(records, taken)  # in the next file; if that fails as well, it is not a matter of one file

    def append_about(self, make: Callable[[Link], bytes]) -> bytes:
        """Append a record that tells of the one before it, which in another file is another one; return it.

        Raises:
            OSError: when the system refuses.
        """
        if self._reason is not None or self._head():
            self.append([])
        body = make(self.link)
        try:
            self._append([body[1:-2]], self.taken)
        except OSError:
            if self._reason is None:
                raise
            self.append([])  # what begins the next file
            body = make(self.link)
            self._append([body[1:-2]], self.taken)
        return body

    def _append(self, records: Sequence[bytes], taken: int) -> None:
        if self._reason is not None:
            self._go_on_elsewhere(self._reason)
        pieces, link = seal_fields([*(body[1:-2] for body in self._head()), *records], self.link)
        content = b"".join(pieces)
        self._cut_back()
        first = self.first if self._is_begun else self.link.seq + 1
        size, written = self.size + len(content), self.written + len(content)
        due: list[bytes] = []
        self._attempt = content
        try:
            self._write(content)
        except OSError:
            with suppress(OSError):  # the next attempt does it otherwise
                self._cut_back()
            raise
        # Nothing from here on needs memory, nor can it fail in another way: what is in the log must be known to be
        # there, or it would be written twice. Until here the attempt is what tells, and is cut off.
        self._is_begun = True
        self._due = due
        self._attempt = b""
        self.first = first
        self.size = size
        self.written = written
        self.link = link
        self.taken = taken

    def _head(self) -> list[bytes]:
        if self._is_begun:
            return self._due
        return [record.segment(self.log, self.number, self.link.hash), *self._due]

    def _write(self, content: bytes) -> None:
        self.file.write_all(content)
        if self.durable:
            self._sync()
        if self.file.is_removed:  # what nobody can find is not recorded
            self._reason = "the file was removed"
            raise FileNotFoundError(errno.ENOENT, self._reason)

    def _sync(self) -> None:
        try:
            self.file.sync()
        except OSError as error:
            self._reason = _reason(error)
            raise
        if self._names_changed:
            sync_folder(self.path.parent)
            self._names_changed = False

    def note(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Append a record about the log itself."""
        self.append([record.about_log(kind, detail)])

    def _cut_back(self) -> None:
        """Take away what an attempt that failed left behind the end; what others appended stays."""
        attempt = self._attempt
        if attempt and self.file.size > self.size and attempt.startswith(self.file.read(self.size, len(attempt) + 1)):
            self.file.cut(self.size)
        self._attempt = b""

    def _go_on_elsewhere(self, reason: str) -> None:
        """Leave a file whose device has failed; what it took since the last synchronisation is written anew."""
        if self.file.moved():
            self._go_on_after_move()
            return
        if self.size:
            size, name = self.size, self._seal().name
            detail = {"poisoned": {"segment": name, "bytes": size}, "error": reason}
            self._due.insert(0, record.about_log("log", detail))
        else:
            self.path.unlink()  # nobody was told of anything in it
        self._go_over_to(self._opened())

    # From file to file

    def rotate(self) -> tuple[int, Path]:
        """Seal the file, open the next one, and return number and path of the one that is full now.

        Raises:
            OSError: when the system refuses; the log then goes on in the file there is.
        """
        before, sealed = self.number, self._seal()
        number = self.number - 1
        try:
            file = self._opened()
        except BaseException:
            sealed.rename(self.path)
            self.number, self._is_begun = before, True
            raise
        self._go_over_to(file)
        return number, sealed

    def make_room(self, limit: int | None) -> None:
        """Go on in the next file if this one is full and holds anything.

        Raises:
            OSError: when the system refuses.
        """
        if limit is not None and self.size >= limit and self.has_records:
            self.rotate()
            self.append([])

    def _seal(self) -> Path:
        number = self.number
        if not self._is_counted or _is_taken(self.path, number):
            # Once, and then only for what somebody else has put there: a listing costs as much as there are files.
            sealed = sealed_segments(self.path)
            number = max(number, (sealed[-1].number or 0) + 1 if sealed else 0)
            self._is_counted = True
        target, following = sealed_path(self.path, number), number + 1
        self.path.rename(target)
        self.number = following
        self._is_begun, self._names_changed = False, True
        return target

    def close(self) -> None:
        """Close the files."""
        if self._next is not None and self._next is not self.file:
            self._next.close()
        self.file.close()

    def _opened(self) -> LogFile:
        """Open the next file; one that an attempt which failed has left open would keep its lock for good."""
        left = self._next
        if left is not None and left is not self.file:
            self._next = None
            left.close()
        self._next = file = LogFile(self.path)
        file.lock()
        file.protect()
        return file

    def _go_over_to(self, file: LogFile) -> None:
        before, size, began, first = self.file, file.size, time.time_ns(), self.link.seq + 1
        number = self.number + 1 if self._is_begun else self.number  # moved by somebody else, if it was begun
        # All of it, or nothing.
        self.file = file
        self.size = size
        self.number = number
        self.began = began
        self.first = first
        self._reason, self._attempt = None, b""
        self._is_begun, self._names_changed = False, True
        with suppress(OSError):  # nothing is written there any more
            before.close()

    def begin(self) -> None:
        """Write the line that begins a file."""
        self.first = self.link.seq + 1
        self.began = time.time_ns()
        self._is_begun, self._names_changed = False, True
        self.append([])

    def follow(self) -> bool:
        """Go on in a new file where the log was moved or removed, or behind what somebody appended.

        The folder is not made: it may be a volume that is away.
        """
        if self.file.moved():
            self._go_on_after_move()
        elif self._reason is not None:
            self._go_on_elsewhere(self._reason)
        else:
            self._cut_back()
            if self.file.size == self.size:
                return False
            self._mend()
            self.append([])
        return True

    def _go_on_after_move(self) -> None:
        is_ours = not self._is_begun  # it was this log that moved it, and then could not go on
        self._go_over_to(self._opened())
        if not is_ours:
            self._due.append(record.about_log("log", {"continued": "the file before was moved or removed"}))
        self._mend()
        self.append([])

    def _mend(self) -> None:
        """Set aside a last line without an end, so that the next one is not glued to it; nothing is thrown away.

        Raises:
            OSError: when the system refuses; what was moved may then stand in both files.
        """
        self.size = self.file.last_line_end()
        torn = self.file.size - self.size
        if torn > 0:
            name = self.file.keep_aside(self.file.blocks(self.size))
            self.file.cut(self.size)
            self._due.append(record.about_log("log", {"torn_bytes": torn, "moved_to": name}))

    # At the start

    def resume(self) -> bytes:
        """Find the end of the chain, and return what stands behind it.

        That is a last line without an end, and after a power cut also lines before it with holes.

        Raises:
            AuditUnavailable: for a file of somebody else.
        """
        self._check_is_ours()
        self.file.protect()
        self.size = self.file.last_line_end()
        start = max(self.size - _LOOK_BACK, 0)
        block = self.file.read(start, self.size - start)
        if not _ends_well(block):
            end = _chain_end(block)
            self.size = start + end if end or not start else self.size
        torn = b"".join(self.file.blocks(self.size))
        head = self.file.read(0, min(self.size, 4096)).partition(b"\n")[0]
        last = _last_link(self.file.read(max(self.size - _LOOK_BACK, 0), min(self.size, _LOOK_BACK)))
        before = end_of(sealed_segments(self.path))
        if last is not None:
            self.link = last
            self._take_over(head)
        elif before is not None:  # and the process ended before it had begun this file
            segment, self.link, head = before
            self._take_over(head)
            self.number, self.first = (segment.number or 0) + 1, 0
        self.log = self.log or str(uuid4())
        self.number = self.number or 1
        return torn

    def _check_is_ours(self) -> None:
        """Leave alone what somebody else has written: a mistyped path must not cost a file.

        Raises:
            AuditUnavailable: for a file that does not begin as a log does, or as one that a power cut left: with
                zeros.
        """
        begin = self.file.read(0, len(_BEGIN))
        if not _BEGIN.startswith(begin) and begin.strip(b"\0"):
            raise AuditUnavailable(self.path, "the file there is no audit log")

    def _take_over(self, head: bytes) -> None:
        begin = opened(head)
        if begin is not None:
            fields = record.parsed(head)
            self.log, self.number = fields.get("log", ""), fields.get("segment", 0)
            self.began, self.first = fields.get("time", self.began), begin.link.seq

    def last_checkpoint(self) -> int:
        """Return the number of the last checkpoint near the end; 0 where there is none."""
        block = self.file.read(max(self.size - _LOOK_BACK, 0), _LOOK_BACK)
        at = block.rfind(b',"kind":"checkpoint",')
        line = block[block.rfind(b"\n", 0, at) + 1 : block.find(b"\n", at) + 1] if at >= 0 else b""
        sealed = opened(line)
        return sealed.link.seq if sealed is not None else 0


def _is_taken(log: Path, number: int) -> bool:
    plain = os.fspath(sealed_path(log, number))
    return any(os.path.lexists(plain + suffix) for suffix in ("", GZIP, ZSTD))


def _ends_well(block: bytes) -> bool:
    """Tell whether the log was closed: the two last records say so."""
    lines = block[block.rfind(b"\n", 0, block.rfind(b',"kind":"stopped",')) + 1 :].splitlines()
    if len(lines) != 2:
        return False
    stopped, checkpoint = map(opened, lines)
    return stopped is not None and checkpoint is not None and checkpoint.follows(stopped.link.hash)


def _chain_end(block: bytes) -> int:
    """Return the offset behind the last line that follows from one before it.

    JSON of others stays where it is; what is no JSON, or is of this log and follows from nothing here, and
    nothing follows from it, is what a power cut has left.
    """
    offset = end = 0
    link: Link | None = None
    is_whole = True
    for line in block.splitlines(keepends=True):
        offset += len(line)
        sealed = opened(line)
        if sealed is not None and (link is None or sealed.follows(link.hash)):
            link, end, is_whole = sealed.link, offset, True
        elif sealed is None and is_whole and _is_json(line):
            end = offset
        else:
            is_whole = False
    return end


def _is_json(line: bytes) -> bool:
    try:
        record.parsed(line)
    except ValueError:
        return False
    return True


def _last_link(block: bytes) -> Link | None:
    end = len(block)
    while end > 0:
        start = block.rfind(b"\n", 0, end - 1) + 1
        sealed = opened(block[start:end])
        if sealed is not None:
            return sealed.link
        end = start
    return None


def end_of(full: Sequence[Segment]) -> tuple[Segment, Link, bytes] | None:
    """Return the newest full file that has a record, with the last link in it and its first line."""
    for segment in reversed(full):
        head, tail = _ends(segment)
        link = _last_link(tail)
        if link is not None:
            return segment, link, head
    return None


def _ends(segment: Segment) -> tuple[bytes, bytes]:
    if not segment.compression:
        with segment.path.open("rb") as file:
            head = file.readline(4096)
            file.seek(max(os.fstat(file.fileno()).st_size - _LOOK_BACK, 0))
            return head, file.read()
    from aperion.audit.compression import beginning, ending

    with segment.path.open("rb") as file:
        fd = file.fileno()
        return beginning(fd, segment.compression, 4096).partition(b"\n")[0], ending(
            segment.path, fd, segment.compression
        )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
