"""What is done to full files behind the writer's back: indexing, compression, removal, copies of checkpoints."""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from aperion._logs import logger as _log
from aperion.audit.live import end_of
from aperion.audit.opening import Behind, begin_of, open_full, open_live
from aperion.audit.segments import SUFFIXES, index_path, sealed_path, sealed_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from aperion.audit.chain import Link
    from aperion.audit.options import Codec, Rotation
    from aperion.audit.segments import Segment

_PATIENCE: Final = 10.0
"""Seconds that closing a log waits for the file that is compressed just then; the next start does what is left."""
_RETRY: Final = 1.0
"""Seconds until what failed for want of descriptors is tried again; and for which who was told to hurry is waited for."""


class Housekeeper:
    """A thread that does one thing after another; what fails is counted and logged, and never hurts the log.

    Copies of checkpoints and removals come before files that are indexed and compressed, which takes long, and are done
    when it stops too.
    """

    # Mutable: failures, by the thread; what is to be done, by anybody.
    __slots__ = ("_codec", "_ending", "_files", "_is_hurried", "_jobs", "_path", "_thread", "_wake", "failures")

    def __init__(self, path: Path, codec: Codec | None) -> None:
        self.failures = 0
        self._path = path
        self._codec = codec
        # As many as files become full and checkpoints are due; each is a few words.
        self._jobs: deque[Callable[[], object]] = deque()
        self._files: deque[Segment] = deque()
        self._is_hurried = False
        self._ending, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"aperion-audit-{path.name}-files", daemon=True)

    def start(self) -> None:
        """Start the thread, and do what the process before has left undone."""
        full = sealed_segments(self._path)  # first: without a descriptor for that there is no thread either
        self._files.extend(full)
        self._thread.start()

    def later(self, job: Callable[[], object]) -> None:
        """Do something when it is its turn."""
        self._jobs.append(job)
        self._wake.set()

    def full(self, segment: Segment) -> None:
        """Index a full file, and compress it."""
        self._files.append(segment)
        self._wake.set()

    def remove(self, segments: Iterable[Segment]) -> None:
        """Remove files and their indexes."""
        for segment in segments:
            self.later(lambda segment=segment: self._remove(segment))  # type: ignore[misc]  # bound early

    def stop(self) -> None:
        """End when the file that is compressed just then is, or after ten seconds, and leave others to the next start. Waits."""
        self._ending.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)
            self._is_hurried = True
            self._thread.join(_RETRY)

    def _run(self) -> None:
        while True:
            self._wake.clear()  # first: what comes from here on wakes it again
            is_ending = self._ending.is_set()
            if self._jobs:
                self._do(self._jobs.popleft())
            elif is_ending:
                return
            elif self._files:
                segment = self._files.popleft()
                self._do(lambda segment=segment: self._tidy(segment))  # type: ignore[misc]  # bound early
            else:
                self._wake.wait()

    def _do(self, job: Callable[[], object]) -> None:
        while not self._done(job) and not self._ending.wait(_RETRY):
            pass

    def _done(self, job: Callable[[], object]) -> bool:
        """Do something; tell whether that is all, since what fails for want of descriptors is tried again."""
        try:
            job()
        except Exception as error:  # noqa: BLE001 - whatever it is, the log itself is whole
            self.failures += 1
            _log.error("audit log housekeeping failed", error_type=type(error).__name__, reason=str(error))
            return not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE)
        return True

    def _tidy(self, segment: Segment) -> None:
        from aperion.audit import compression, index

        if (found := open_full(self._path, segment.number or 0)) is None:  # removed meanwhile
            return
        segment, file = found
        with file:
            is_indexed = index.load(segment.path, file.fileno()) is not None
        if self._codec is not None and not segment.compression:
            compression.compress(segment.path, self._codec, lambda: not self._is_hurried)
        elif not is_indexed:
            compression.build(segment.path, segment.compression)

    def _remove(self, segment: Segment) -> None:
        number = segment.number or 0
        plain = sealed_path(self._path, number)
        # The compressed one first: as long as the plain one is there, that counts.
        packed = [plain.with_name(f"{plain.name}{suffix}") for suffix in SUFFIXES if suffix]
        for found in (*packed, plain, index_path(self._path, number)):
            with suppress(FileNotFoundError):
                found.unlink()


def outdated(log: Path, rotation: Rotation) -> tuple[list[Segment], Link | None]:
    """Return the full files that need not stay, oldest first, and the last record in them; those after one that stays do too."""
    while True:
        with suppress(FileNotFoundError):  # compressed, or removed, since it was listed: look again
            full = sealed_segments(log)
            count = _outdated(full, rotation)
            return full[:count], _end(log, full[:count])


def _end(log: Path, full: list[Segment]) -> Link | None:
    """Return the last record in some files, which is the one after which the next file goes on."""
    end = end_of(full)
    if end is None:
        return None
    segment, link, _ = end
    number = segment.number or 0
    with ExitStack() as files:
        own, after = open_full(log, number), open_full(log, number + 1) or open_live(log)
        for found in (own, after):
            if found is not None:
                files.enter_context(found[1])
        begin = begin_of(after[0], after[1].fileno()) if after is not None else None
        if own is None or begin is None or not Behind(*own, begin).has(link.seq, link.hash):
            return link
    return begin.before  # the device had failed: what is behind stands in the next file


def _outdated(full: list[Segment], rotation: Rotation) -> int:
    if rotation.keep is None and rotation.keep_bytes is None and rotation.keep_age is None:
        return 0
    found = {segment: segment.path.stat() for segment in full}
    stay = total = 0
    for segment in reversed(full):
        total += found[segment].st_size
        if (
            (rotation.keep is not None and stay >= rotation.keep)
            or (rotation.keep_bytes is not None and total > rotation.keep_bytes)
            or (rotation.keep_age is not None and found[segment].st_mtime < time.time() - rotation.keep_age)
        ):
            break
        stay += 1
    return len(full) - stay
