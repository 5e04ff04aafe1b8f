"""The writer: a thread that brings what is in the ring into the log file, a batch at a time."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final

from aperion.audit.recovery import recover
from aperion.audit.ring import lock
from aperion.errors import AuditUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from aperion.audit.files import LogFile
    from aperion.audit.ring import Ring

_SHORTEST: Final = 0.002
"""Seconds between two batches while lines come: many small writes would fight the loop for the interpreter."""
_LONGEST: Final = 1.0
_AWAKE: Final = 0.05
"""A pause longer than this is ended by whoever puts a line; a shorter one is worth no call."""
_RETRY_FIRST: Final = 0.1
_BATCHES: Final = 8
"""How many fill the ring; the room of one is given back while the next is written."""
_PATIENCE: Final = 0.02
"""Seconds that a full ring may hold up the loop, once until the writer gets on: it may only lack its turn."""
_LOOK: Final = 0.25
"""Seconds between two looks at what has become of the files."""
_STALLED: Final = 10.0


class Writer:
    """Empties one ring into one file, and says no on its behalf when it cannot.

    Args:
        ring: what to empty.
        file: where to.
        path: how the user names the log.
    """

    # Mutable: failure, failures, bytes_written by the thread; _tried by the loop; _stopping once.
    __slots__ = (
        *("_batch", "_file", "_look_at", "_path", "_ring", "_stopping", "_thread", "_tried", "_wake"),
        *("bytes_written", "failure", "failures"),
    )

    def __init__(self, ring: Ring, file: LogFile, path: Path) -> None:
        self.failure: str | None = None
        self.failures = 0
        self.bytes_written = 0
        self._ring = ring
        self._file = file
        self._path = path
        self._batch = ring.capacity // _BATCHES
        self._look_at = 0.0
        self._tried = -1
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"aperion-audit-{path.name}", daemon=True)
        ring.beyond = self._beyond

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    # On the thread that puts

    def _beyond(self, end: int) -> None:
        """Decide about a line that would end past the mark of the ring: wake the writer, or refuse it.

        Raises:
            AuditUnavailable: when the file cannot be written, or the ring is full.
        """
        ring = self._ring
        if self.failure is not None:
            raise AuditUnavailable(self._path, self.failure)
        if ring.is_renewable and not ring.renew():
            raise AuditUnavailable(self._path, "its ring is being replaced")
        if not self._wake.is_set():
            self._wake.set()
        if end - ring.tail > ring.capacity:
            self._wait_for_room(end)

    def _wait_for_room(self, end: int) -> None:
        ring = self._ring
        deadline = 0.0 if self._tried == ring.tail else time.monotonic() + _PATIENCE
        while end - ring.tail > ring.capacity:
            if self.failure is not None or time.monotonic() > deadline:
                self._tried = ring.tail
                full = f"the buffer of {ring.capacity:,} bytes is full, and the disk does not keep up"
                raise AuditUnavailable(self._path, self.failure or full)
            time.sleep(_SHORTEST / 4)

    # On the thread of the writer

    def _run(self) -> None:
        pause = _SHORTEST
        while True:
            stopping = self._stopping
            moved = self._pass()
            if stopping and not moved:
                break
            pause = self._next_pause(pause, moved=moved)
            self._set_mark(pause)
            if not stopping and not self._is_behind():
                self._wake.wait(pause)
                self._wake.clear()

    def _is_behind(self) -> bool:
        return self.failure is None and self._ring.head - self._ring.written > self._batch

    def _next_pause(self, pause: float, *, moved: bool) -> float:
        if self.failure is not None:
            return max(_RETRY_FIRST, min(pause * 2, _LONGEST))
        return _SHORTEST if moved else min(pause * 2, _LONGEST)

    def _set_mark(self, pause: float) -> None:
        ring = self._ring
        if self.failure is not None or ring.is_renewable:
            ring.mark = -1
        else:
            ring.mark = ring.tail + (self._batch if pause <= _AWAKE else 0)

    def _pass(self) -> bool:
        """Bring over what there is, one batch; tell whether there was anything."""
        try:
            if time.monotonic() >= self._look_at:
                self._look_after_files()
            moved = self._move_batch()
        except AuditUnavailable as error:
            self._failed(error.reason)
        except OSError as error:
            self._failed(reason_of(error))
        except Exception as error:  # noqa: BLE001 - without its thread the log would fill up and never say why
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self.failure = None
            return moved
        return False

    def _failed(self, reason: str) -> None:
        self.failure = reason
        self.failures += 1
        self._look_at = 0.0  # the files may be the reason

    def _move_batch(self) -> bool:
        pieces = self._ring.pending(self._batch)
        if not pieces:
            return False
        size = self._file.write(pieces)
        self._ring.advance(size)
        self.bytes_written += size
        return True

    def _look_after_files(self) -> None:
        """See that both files are where they were, now and then: each call lets go of the interpreter."""
        self._follow_file()
        self._follow_ring()
        self._look_at = time.monotonic() + _LOOK

    def _follow_file(self) -> None:
        """Go on in a new file where the log was moved or removed: what is appended to the old one, nobody finds."""
        file, ring = self._file, self._ring
        if file.moved():
            file.reopen()
            file.mend()
            file.note({"continued": "the file before was moved or removed"})
        if file.identity != ring.log or file.size != ring.origin + ring.written:  # or somebody appended, or cut it
            file.mend()
            ring.aim(file.identity, file.size)

    def _follow_ring(self) -> None:
        """Prepare a new ring where its file was moved or removed; the loop goes over to it when this one is empty.

        Raises:
            AuditUnavailable: when another process has taken the place.
        """
        ring = self._ring
        if not ring.moved():
            return
        fd = lock(ring.path, self._path)
        try:
            recover(ring.path, fd, self._file)
            ring.aim(self._file.identity, self._file.size)  # a line in two halves was mended, and comes anew
            ring.prepare(fd)
        except BaseException:
            os.close(fd)
            raise

    # At the end

    def stop(self) -> int:
        """Write what there is, end the thread, and return how many lines could not be written. Waits.

        Called from a thread that may wait. A disk that stands still is given up after ten seconds; the
        thread then lives on.
        """
        self._look_at = 0.0  # one more look: the last lines must not go into a file that was removed
        self._stopping = True
        written = -1
        while self._thread.is_alive() and written != self.bytes_written:
            written = self.bytes_written
            self._wake.set()
            self._thread.join(_STALLED)
        return self._ring.lines()

    @property
    def is_stuck(self) -> bool:
        """Whether the thread has not come back from the disk after ``stop``."""
        return self._thread.is_alive()


def reason_of(error: OSError) -> str:
    """Return what the system said, without the numbers and names that are told elsewhere."""
    return (error.strerror or str(error) or type(error).__name__).lower()
