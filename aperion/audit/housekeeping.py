"""What is done to full files behind the writer's back: indexing, compression, removal, copies of checkpoints."""

from __future__ import annotations

import errno
import queue
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aperion._logs import logger as _log
from aperion.audit.live import end_of
from aperion.audit.segments import index_path, sealed_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from aperion.audit.chain import Link
    from aperion.audit.options import Codec, Rotation
    from aperion.audit.segments import Segment

_PATIENCE: Final = 10.0
"""Seconds that closing a log waits for what is under way; the next start does what is left."""


_RETRY: Final = 1.0


class Housekeeper:
    """A thread that does one thing after another; what fails is counted and logged, and never hurts the log."""

    # Mutable: failures, by the thread.
    __slots__ = ("_codec", "_ending", "_jobs", "_path", "_thread", "failures")

    def __init__(self, path: Path, codec: Codec | None) -> None:
        self.failures = 0
        self._path = path
        self._codec = codec
        # As many jobs as files become full and checkpoints are due; each is a few words.
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"aperion-audit-{path.name}-files", daemon=True)

    def start(self) -> None:
        """Start the thread, and do what the process before has left undone."""
        full = sealed_segments(self._path)  # first: without a descriptor for that there is no thread either
        self._thread.start()
        for segment in full:
            if not segment.compression or not index_path(self._path, segment.number or 0).exists():
                self.later(lambda segment=segment: self._tidy(segment))  # type: ignore[misc]  # bound early

    def later(self, job: Callable[[], object]) -> None:
        """Do something when it is its turn."""
        self._jobs.put(job)

    def full(self, segment: Segment) -> None:
        """Index a full file, and compress it."""
        self.later(lambda: self._tidy(segment))

    def remove(self, segments: Iterable[Segment]) -> None:
        """Remove files and their indexes."""
        for segment in segments:
            self.later(lambda segment=segment: self._remove(segment))  # type: ignore[misc]  # bound early

    def stop(self) -> None:
        """End when all is done, or after ten seconds. Waits."""
        self._ending.set()
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
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

        if not segment.path.exists():  # removed, or compressed, meanwhile
            return
        if self._codec is not None and not segment.compression:
            compression.compress(segment.path, self._codec)
        else:
            index.build(segment.path)

    def _remove(self, segment: Segment) -> None:
        number = segment.number or 0
        for found in (
            *[s.path for s in sealed_segments(self._path) if s.number == number],
            index_path(self._path, number),
        ):
            with suppress(FileNotFoundError):
                found.unlink()


def outdated(log: Path, rotation: Rotation) -> tuple[list[Segment], Link | None]:
    """Return the full files that need not stay, oldest first, and the last link in them; those after one that stays do too."""
    while True:
        with suppress(FileNotFoundError):  # compressed, or removed, since it was listed: look again
            segments = _outdated(sealed_segments(log), rotation)
            found = end_of(segments)
            return segments, found[1] if found is not None else None


def _outdated(full: list[Segment], rotation: Rotation) -> list[Segment]:
    if rotation.keep is None and rotation.keep_bytes is None and rotation.keep_age is None:
        return []
    found = {segment: segment.path.stat() for segment in full}
    stay: list[Segment] = []
    total = 0
    for segment in reversed(full):
        total += found[segment].st_size
        if (
            (rotation.keep is not None and len(stay) >= rotation.keep)
            or (rotation.keep_bytes is not None and total > rotation.keep_bytes)
            or (rotation.keep_age is not None and found[segment].st_mtime < time.time() - rotation.keep_age)
        ):
            break
        stay.append(segment)
    return full[: len(full) - len(stay)]
