"""Opening the files of a log one after another, whatever is rotated, compressed or removed meanwhile."""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final

from aperion.audit.chain import Link, opened
from aperion.audit.compression import beginning, lines
from aperion.audit.record import parsed
from aperion.audit.segments import SUFFIXES, Segment, sealed_numbers, sealed_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

_HEAD: Final = 4096
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Begin:
    """What the first line of a file says.

    Args:
        number: of the file.
        before: the record before the file.
    """

    number: int
    before: Link


def open_full(log: Path, number: int) -> tuple[Segment, BinaryIO] | None:
    """Open a full file by its number, whether it has been compressed since or not; None if it is not there."""
    plain = sealed_path(log, number)
    for suffix in SUFFIXES:  # in this order: the plain file goes when the compressed one is there
        path = plain.with_name(plain.name + suffix) if suffix else plain
        try:
            fd = os.open(path, _FLAGS)
        except FileNotFoundError:
            continue
        except OSError:
            if path.is_symlink():  # is no file of the log
                continue
            raise
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return Segment(path, number, suffix), os.fdopen(fd, "rb", buffering=0)
        os.close(fd)
    return None


def open_live(log: Path) -> tuple[Segment, BinaryIO] | None:
    """Open the live file; None if it is not there.

    Raises:
        OSError: where there is a link, or when the system refuses.
    """
    try:
        fd = os.open(log, _FLAGS)
    except FileNotFoundError:
        return None
    return Segment(log, None), os.fdopen(fd, "rb", buffering=0)


def begin_of(segment: Segment, fd: int) -> Begin | None:
    """Return what the first line of a file says; None where it is none that begins a file."""
    record = opened(beginning(fd, segment.compression, _HEAD).partition(b"\n")[0])
    try:
        fields: Any = parsed(record.body) if record is not None else None
        if record is None or fields["kind"] != "segment" or not fields["previous"].isascii():
            return None
        return Begin(int(fields["segment"]), Link(record.link.seq - 1, fields["previous"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class Files:
    """Opens the files of a log in the order in which they were written.

    Args:
        log: the path of the log.
    """

    # Mutable: all of it, file by file.
    __slots__ = ("_known", "_log", "after")

    def __init__(self, log: Path) -> None:
        self.after = 0
        """The number of the last full file that needs not be opened any more."""
        self._log = log
        self._known: deque[int] = deque()  # the folder is listed where counting on does not help

    def next(self) -> tuple[Segment, BinaryIO] | None:
        """Open the next file: the live one after the last full one, and then None.

        The live file comes when there is no full one between that is not read yet: it may have become full, and
        another one live, since the folder was listed.
        """
        while True:
            while self._known and self._known[0] <= self.after:
                self._known.popleft()
            # By its number first: a file that changes its name meanwhile may be in no list.
            found = self._open(self.after + 1)
            if found is None and self._known:
                found = self._open(self._known.popleft())
            if found is not None:
                return found
            if self._known:
                continue  # it was removed
            live = open_live(self._log)
            self._known.extend(number for number in sealed_numbers(self._log) if number > self.after)
            if not self._known and (live is not None or not self._log.exists()):
                return live  # otherwise it was between two files, of which the full one is gone again
            if live is not None:
                live[1].close()

    def _open(self, number: int) -> tuple[Segment, BinaryIO] | None:
        found = open_full(self._log, number)
        if found is not None:
            self.after = number
        return found


def oldest_first(log: Path) -> Iterator[tuple[Segment, BinaryIO]]:
    """Open the files of a log one after another, each when it is asked for."""
    files = Files(log)
    while (found := files.next()) is not None:
        yield found
        if found[0].number is None:
            return


def newest_first(log: Path) -> Iterator[tuple[Segment, BinaryIO]]:
    """Do the same from the end."""
    live = open_live(log)
    numbers = set(sealed_numbers(log))  # later than the live one is opened, so that none is between them
    while live is None and log.exists():  # it was between two files
        live, numbers = open_live(log), set(sealed_numbers(log))
    begin = begin_of(live[0], live[1].fileno()) if live is not None else None
    if live is not None:
        yield live
    if begin is not None and begin.number > 1:
        numbers.add(begin.number - 1)
    for number in sorted(numbers, reverse=True):
        if (found := open_full(log, number)) is None:
            continue
        if begin is None or number < begin.number or not _begins_later(*found, begin):
            yield found
        else:  # became full since then: it is the live one, or newer
            found[1].close()


def _begins_later(segment: Segment, file: BinaryIO, begin: Begin) -> bool:
    own = begin_of(segment, file.fileno())
    return own is not None and own.before.seq >= begin.before.seq


class Behind:
    """What stands in a file behind the record from which the next file goes on.

    When a device fails, the file is left for ever, and what it took last is written anew into the next one.
    """

    # Mutable: what stands there, when it is first asked for.
    __slots__ = ("_end", "_fd", "_hashes", "_segment", "seq")

    def __init__(self, segment: Segment, file: BinaryIO, later: Begin | None) -> None:
        self._segment, self._fd = segment, file.fileno()
        self._end = later.before if later is not None else None
        self._hashes: frozenset[str] | None = None
        self.seq: float = inf if self._end is None else self._end.seq
        """The number of that record; where all is well it is the last one."""

    def begins_after(self, link: Link) -> bool:
        """Tell whether what follows a record of the chain in this file was written anew."""
        return link == self._end

    def has(self, seq: int, digest: str) -> bool:
        """Tell whether a record stands there; looks for it where its number is beyond that of the end."""
        if self._end is None or seq <= self._end.seq:
            return False
        if self._hashes is None:
            self._hashes = frozenset(self._written_anew(self._end))
        return digest in self._hashes

    def _written_anew(self, end: Link) -> Iterator[str]:
        tail, is_behind = b',"hash":"%b"}' % end.hash.encode(), False
        for content in lines(self._fd, os.fstat(self._fd).st_size, self._segment.compression):
            if not is_behind and tail not in content:
                continue
            for line in content.splitlines():
                record = opened(line) if is_behind else None
                if record is not None and record.follows(end.hash):
                    yield record.link.hash
                    end = record.link
                elif is_behind:
                    return
                is_behind = is_behind or line.endswith(tail)


def with_later(
    files: Iterable[tuple[Segment, BinaryIO]], *, backwards: bool = False
) -> Iterator[tuple[Segment, BinaryIO, Behind]]:
    """Add to each file what the one after it says, which comes next, or came before."""
    later: Begin | None = None
    held: tuple[Segment, BinaryIO] | None = None
    for segment, file in files:
        try:
            begin = begin_of(segment, file.fileno())
            if backwards:
                yield segment, file, Behind(segment, file, later)
            elif held is not None:
                yield *held, Behind(*held, begin)
        except BaseException:  # nobody asks for more
            file.close()
            raise
        held, later = (segment, file), begin
    if held is not None and not backwards:
        yield *held, Behind(*held, None)
