"""The live file of a log: where the chain ends, and how it goes on, from file to file."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import orjson

from aperion.audit import record
from aperion.audit.chain import START, opened, seal
from aperion.audit.files import LogFile, sync_folder
from aperion.audit.ring import Place
from aperion.audit.segments import sealed_path, sealed_segments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from aperion.audit.chain import Link
    from aperion.audit.segments import Segment

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
        *("_is_torn", "began", "durable", "file", "first", "link", "log", "number", "path"),
        *("poisonings", "size", "written"),
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
        self.poisonings = 0  # in a row
        self.written = 0
        self._is_torn = False

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
        lines, link = seal(bodies, self.link)
        content = b"".join(lines)
        if self._is_torn:
            self._cut_back(content)
        try:
            self.file.write_all(content)
        except OSError:
            self._is_torn = True
            self._cut_back(content)
            raise
        if self.durable:
            try:
                self.file.sync()
            except OSError as error:
                self._go_on_elsewhere(error)
                self.append(bodies)
                return
        self.size += len(content)
        self.written += len(content)
        self.link = link

    def note(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Append a record about the log itself."""
        self.append([record.about_log(kind, detail)])

    def _cut_back(self, content: bytes) -> None:
        """Take away what an attempt that failed left behind the end; what others appended stays."""
        size = self.file.size
        if size > self.size and content.startswith(self.file.read(self.size, len(content) + 1)):
            self.file.cut(self.size)
        self._is_torn = False

    def _go_on_elsewhere(self, error: OSError) -> None:
        """Leave a file whose device has failed; what it took since the last synchronisation is written anew."""
        self.poisonings += 1
        if self.poisonings > 1:  # the next file failed as well: not a matter of one file
            self.poisonings = 0
            raise error
        bad, size = self.file, self.size
        with suppress(OSError):  # the record below says where the log ends in it
            bad.cut(size)
        name = self._seal_name()
        self._begin_next()
        bad.close()
        self.note("log", {"poisoned": {"segment": name, "bytes": size}, "error": _reason(error)})
        self.poisonings = 0

    # From file to file

    def rotate(self) -> tuple[int, Path]:
        """Begin the next file, and return number and path of the one that is full now.

        Raises:
            OSError: when the system refuses; the log then goes on in the file there is.
        """
        if self.durable:
            self.file.sync()
        full, sealed = self.file, self.path.with_name(self._seal_name())
        number = self.number
        try:
            self._begin_next()
        except OSError:
            if self.file is full:
                sealed.rename(self.path)
            raise
        full.close()
        return number, sealed

    def _seal_name(self) -> str:
        sealed = sealed_segments(self.path)
        taken = sealed[-1].number or 0 if sealed else 0
        self.number = max(self.number, taken + 1)
        target = sealed_path(self.path, self.number)
        self.path.rename(target)
        return target.name

    def _begin_next(self) -> None:
        file = LogFile(self.path)
        self.file, self.size, self.number = file, file.size, self.number + 1
        self.begin()

    def begin(self) -> None:
        """Write the line that begins a file."""
        self.began = time.time_ns()
        self.append([record.segment(self.log, self.number, self.link.hash)])
        self.first = self.link.seq
        if self.durable:
            sync_folder(self.path.parent)

    def follow(self) -> bool:
        """Go on in a new file where the log was moved or removed, or behind what somebody appended."""
        if self.file.moved():
            self.reopen()
            return True
        if self.file.size != self.size:
            self.mend()
            return True
        return False

    def reopen(self) -> None:
        """Open what has the path now, or a new file; the folder is not made: it may be a volume that is away."""
        file = LogFile(self.path)
        self.file.close()
        self.file, self.size = file, file.size
        self.mend()
        self.number += 1
        self.begin()
        self.note("log", {"continued": "the file before was moved or removed"})

    def mend(self) -> None:
        """Set aside a last line without an end, so that the next one is not glued to it."""
        self.size = self.file.last_line_end()
        self.set_aside()

    def set_aside(self) -> None:
        """Move what stands behind the end to ``<path>.torn``, and note it; nothing is thrown away.

        Raises:
            OSError: when the system refuses; what was moved may then stand in both files.
        """
        torn = self.file.size - self.size
        if torn > 0:
            name = self.file.keep_aside(self.file.blocks(self.size))
            self.file.cut(self.size)
            self.note("log", {"torn_bytes": torn, "moved_to": name})

    # At the start

    def resume(self) -> bytes:
        """Find the end of the chain, and return what stands behind the last whole line."""
        self.size = self.file.last_line_end()
        torn = b"".join(self.file.blocks(self.size))
        head = self.file.read(0, min(self.size, 4096)).partition(b"\n")[0]
        last = _last_link(self.file.read(max(self.size - _LOOK_BACK, 0), min(self.size, _LOOK_BACK)))
        before = end_of(sealed_segments(self.path))
        if last is not None:
            self.link = last
            self._take_over(head)
        elif before is not None:
            segment, self.link, head = before
            self._take_over(head)
            self.number = (segment.number or 0) + 1
        self.log = self.log or str(uuid4())
        self.number = self.number or 1
        return torn

    def _take_over(self, head: bytes) -> None:
        begin = opened(head)
        if begin is not None:
            fields = orjson.loads(head)
            self.log, self.number = fields.get("log", ""), fields.get("segment", 0)
            self.began, self.first = fields.get("time", self.began), begin.link.seq

    def last_checkpoint(self) -> int:
        """Return the number of the last checkpoint near the end; 0 where there is none."""
        block = self.file.read(max(self.size - _LOOK_BACK, 0), _LOOK_BACK)
        at = block.rfind(b',"kind":"checkpoint",')
        line = block[block.rfind(b"\n", 0, at) + 1 : block.find(b"\n", at) + 1] if at >= 0 else b""
        sealed = opened(line)
        return sealed.link.seq if sealed is not None else 0


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
    from aperion.audit.compression import open_lines

    with open_lines(segment.path, segment.compression) as lines:
        head = lines.readline(4096)
        return head, b"".join(deque(lines, maxlen=2))


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
