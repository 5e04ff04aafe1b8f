"""What an open audit log consists of, and how it is opened and closed."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from aperion.audit.files import LogFile, make_folder
from aperion.audit.housekeeping import Housekeeper
from aperion.audit.live import Live
from aperion.audit.options import OnFailure, Sync
from aperion.audit.recovery import recover
from aperion.audit.ring import Ring, is_unused, lock
from aperion.audit.segments import index_path, sealed_segments
from aperion.audit.spill import Spill
from aperion.audit.writer import Writer

if TYPE_CHECKING:
    from pathlib import Path

    from aperion.audit.checkpoints import Checkpoints
    from aperion.audit.options import Rotation
    from aperion.audit.subjects import Subjects


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditStats:
    """The state of an audit log, counted since it was last opened.

    Args:
        path: of the log file.
        available: whether it takes records now.
        failure: why not.
        records: accepted from the bus.
        bytes_written: to the files.
        buffered_bytes: in the ring or waiting for room there, and not in the file yet.
        failures: how often writing failed, each new attempt included.
        missing: records that could not be taken, all told.
        recovered: records that the process before had left in its ring.
        rotations: files that became full.
        checkpoints: written.
        background_failures: of indexing, compression, removal and copies of checkpoints.
    """

    path: str
    available: bool
    failure: str | None
    records: int
    bytes_written: int
    buffered_bytes: int
    failures: int
    missing: int
    recovered: int
    rotations: int
    checkpoints: int
    background_failures: int


@dataclass(frozen=True, slots=True)
class Setup:
    """What a log was made with, as far as its parts need it."""

    path: Path
    sync: Sync
    on_failure: OnFailure
    rotation: Rotation
    checkpoints: Checkpoints
    kinds: frozenset[str]
    buffer_bytes: int
    subjects: Subjects | None


@dataclass(frozen=True, slots=True)
class Parts:
    """What an open log consists of."""

    live: Live
    ring: Ring
    spill: Spill
    writer: Writer
    housekeeper: Housekeeper
    recovered: int
    subjects: Subjects | None

    def close(self) -> tuple[int, int]:
        """Write what there is, and let go of the files. Waits.

        Returns:
            How many records stay in the ring, and how many waited for room there and are lost.
        """
        lost = self.writer.bring_over(self.spill)
        left = self.writer.stop()
        if self.writer.is_stuck:
            return left, lost  # the thread still uses the files
        self.housekeeper.stop()
        if not left and self.ring.missed is None:
            self.ring.remove()
        self.live.close()
        self.ring.close()
        if self.subjects is not None:
            self.subjects.close()
        return left, lost


def open_parts(log: Setup) -> Parts:
    """Open the files of a log, and bring over what a killed process left in the ring. Waits.

    Raises:
        AuditError: when another process writes it, and for files that are not ours to write.
        OSError: when the system refuses.
    """
    path = log.path
    make_folder(path.parent, durable=log.sync is Sync.DISK)
    ring_path = path.with_name(f"{path.name}.ring")
    with ExitStack() as on_failure:
        live = Live(path, LogFile(path), durable=log.sync is Sync.DISK)
        on_failure.callback(lambda: live.file.close())  # noqa: PLW0108 - it may be another file by then
        fd = lock(ring_path, log.path)
        on_failure.callback(os.close, fd)
        on_failure.callback(_remove_empty, fd, ring_path)
        if live.file.moved():  # by whoever had the lock until now
            live.file.close()
            live.file = LogFile(path)
        live.file.lock()
        subjects = log.subjects
        if subjects is not None:
            subjects.open()
            on_failure.callback(subjects.close)
        recovered = recover(ring_path, fd, live, limit=log.rotation.max_bytes)
        started = {"pid": os.getpid(), "version": _version(), "clean": recovered.clean, "recovered": recovered.records}
        live.note("started", started)
        ring = Ring(ring_path, fd, log.buffer_bytes, live.place, shared=log.sync is not Sync.NONE)
        on_failure.callback(ring.remove)
        housekeeper = Housekeeper(path, log.rotation.compress)
        on_failure.callback(housekeeper.stop)
        housekeeper.start()
        writer = Writer(
            ring,
            live,
            rotation=log.rotation,
            checkpoints=log.checkpoints,
            housekeeper=housekeeper,
            subjects=subjects,
            keeps_going=log.on_failure is OnFailure.BEST_EFFORT,
        )
        writer.start()
        on_failure.pop_all()
    return Parts(live, ring, Spill(ring), writer, housekeeper, recovered.records, subjects)


def clear(path: Path) -> list[Path]:
    """Remove all files of a log that nobody writes, and return their paths. Waits.

    Raises:
        AuditUnavailable: when a process writes it.
        OSError: when the system refuses; what is left begins where the log began.
    """
    if not path.parent.exists():
        return []
    ring_path = path.with_name(f"{path.name}.ring")
    fd = lock(ring_path, path)
    try:
        # The newest first: whoever finds what a fault left sees the beginning of the log.
        full = list(reversed(sealed_segments(path)))
        beside = [path, *(segment.path for segment in full), *(index_path(path, s.number or 0) for s in full)]
        removed = [found for found in (*beside, path.with_name(f"{path.name}.torn")) if _unlinked(found)]
    finally:
        _unlinked(ring_path)
        os.close(fd)
    return removed


def _remove_empty(fd: int, ring_path: Path) -> None:
    """Leave no ring behind where a log could not be opened and there was none."""
    if is_unused(fd):
        _unlinked(ring_path)


def _unlinked(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _version() -> str:
    try:
        return version("aperion-bus")
    except PackageNotFoundError:
        return "unknown"
