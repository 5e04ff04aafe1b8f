"""Reading the lines of a file, a gzip file or standard input, in bounded memory."""

from __future__ import annotations

import gzip
import io
import os
import queue
import stat
import threading
import zlib
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.to_thread

from aperion.errors import ApplicationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator
    from types import TracebackType
    from typing import Self

MAX_LINE_BYTES = 8 * 1024 * 1024
STDIN = "-"
_STDIN_FD = 0

_CHUNK = 64 * 1024
_BATCHES_AHEAD = 4
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end, or the problem that stands in its place."""

    number: int
    text: bytes
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Some lines, and how many bytes of the file have been read so far."""

    lines: tuple[Line, ...]
    position: int


class LineFile:
    """An open file of lines; ``size`` in bytes, None where it cannot be known."""

    # Mutable: the two streams, by reading.
    __slots__ = ("_raw", "_stream", "name", "size")

    def __init__(self, name: str, raw: io.FileIO) -> None:
        self.name = name
        self.size = _size(raw)
        self._raw = raw
        buffered = io.BufferedReader(raw, _CHUNK)
        zipped = buffered.peek(2)[:2] == _GZIP
        if name.endswith(".gz") and not zipped:
            raw.close()
            raise ApplicationError(f"{name} is not a gzip file, whatever its name says; rename it or compress it")
        self._stream: io.BufferedIOBase = gzip.GzipFile(fileobj=buffered) if zipped else buffered

    def batches(self) -> Generator[Batch]:
        """Read to the end; a line that is too long, or that cannot be read, becomes a problem."""
        splitter = _Splitter()
        try:
            while chunk := self._stream.read1(_CHUNK):
                yield Batch(tuple(splitter.feed(chunk)), self.position())
        except Exception as error:  # noqa: BLE001 - in a thread of its own, whose end must be seen
            yield Batch((splitter.broken(error),), self.position())
        else:
            yield Batch(tuple(splitter.end()), self.position())
        finally:
            self._raw.close()

    def readline(self, limit: int) -> bytes:
        """Return the next line with its end, or so many bytes of it."""
        return self._stream.readline(limit)

    def position(self) -> int:
        """Return how many bytes of the file have been read; 0 where its size is not known."""
        return self._raw.tell() if self.size is not None else 0


class _Splitter:
    """Cuts chunks into lines, and keeps no more of a line than is allowed."""

    # Mutable: the line under way, whether it is too long already, and its number.
    __slots__ = ("_number", "_overlong", "_parts", "_size")

    def __init__(self) -> None:
        self._number = 1
        self._parts: list[bytes] = []
        self._size = 0
        self._overlong = False

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """Return the lines that a chunk completes."""
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            self._add(part)
            yield self._line()
        self._add(rest)

    def end(self) -> Iterator[Line]:
        """Return the last line where no line end follows it."""
        if self._size or self._overlong:
            yield self._line()

    def broken(self, error: BaseException) -> Line:
        """Return the problem that ended the reading."""
        broken = isinstance(error, EOFError | zlib.error | gzip.BadGzipFile)
        kind = "the compressed data break off or are damaged" if broken else "the file cannot be read further"
        return Line(self._number, b"", f"{kind} ({error}); what comes after is lost")

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        self._overlong = self._overlong or self._size > MAX_LINE_BYTES
        if self._overlong:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _line(self) -> Line:
        text, problem = b"".join(self._parts), None
        if self._overlong:
            problem = f"the line is longer than {MAX_LINE_BYTES // 1024**2} MiB; send a reference to the content"
        line = Line(self._number, text.removeprefix(_BOM) if self._number == 1 else text, problem)
        self._number += 1
        self._parts, self._size, self._overlong = [], 0, False
        return line


class Feed:
    """Reads batches in a thread of its own, a few ahead of who takes them.

    The thread is a daemon: a read from a terminal or a pipe cannot be cancelled, and must not keep
    the process from ending.
    """

    # Mutable: the queue, by both sides; _closed, by the reader of the feed.
    __slots__ = ("_closed", "_queue", "_source")

    def __init__(self, source: Generator[Batch]) -> None:
        self._source = source
        self._queue: queue.Queue[Batch | None] = queue.Queue(_BATCHES_AHEAD)
        self._closed = False

    def __enter__(self) -> Self:
        """Start reading."""
        threading.Thread(target=self._read, name="aperion replay reader", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop reading, and release the threads that wait at either end of the queue."""
        self._closed = True
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    async def batches(self) -> AsyncIterator[Batch]:
        """Wait for one batch after the other; cancelling the wait loses nothing but the rest."""
        while (batch := await self._next()) is not None:
            yield batch

    async def _next(self) -> Batch | None:
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return await anyio.to_thread.run_sync(self._queue.get, abandon_on_cancel=True)

    def _read(self) -> None:
        with closing(self._source) as batches:
            for batch in batches:
                self._queue.put(batch)
                if self._closed:
                    return
        self._queue.put(None)


def open_lines(path: str) -> LineFile:
    """Open a file, or standard input for ``-``; gzip is recognised by its first bytes.

    Raises:
        ApplicationError: when it cannot be opened.
    """
    try:
        if path == STDIN:
            # A raw file of our own: a daemon thread must not hold the lock of sys.stdin when Python ends.
            return LineFile("standard input", io.FileIO(_STDIN_FD, closefd=False))
        return LineFile(path, io.FileIO(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ApplicationError(
            f"{path} cannot be read: {reason}; name a file of events, or - for standard input"
        ) from error


def _size(raw: io.FileIO) -> int | None:
    status = os.fstat(raw.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None
