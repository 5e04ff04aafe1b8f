"""The writer: a thread that brings what is in the ring into the log, a batch at a time."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from aperion.audit.chain import filling
from aperion.audit.checkpoints import checkpoint_body, copy_checkpoint, rotation_body
from aperion.audit.housekeeping import Housekeeper, outdated
from aperion.audit.recovery import gap, recover
from aperion.audit.ring import lock
from aperion.audit.segments import Segment
from aperion.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aperion.audit.checkpoints import Checkpoints
    from aperion.audit.live import Live
    from aperion.audit.options import Rotation
    from aperion.audit.ring import Ring
    from aperion.audit.signing import SigningKey
    from aperion.audit.spill import Spill
    from aperion.audit.subjects import Subjects

_SHORTEST: Final = 0.05
"""Seconds between two batches while lines come: many small ones would fight the loop for the interpreter."""
_LONGEST: Final = 1.0
_AWAKE: Final = 0.05
"""A pause longer than this is ended by whoever puts a line; a shorter one is worth no call."""
_RETRY_FIRST: Final = 0.1
_PROBE: Final = 0.05
"""Seconds between two attempts to write, at least, however many emitters ask for one."""
_BATCHES: Final = 8
"""How many fill the ring; the room of one is given back while the next is written."""
_LOOK: Final = 0.25
"""Seconds between two looks at what has become of the files."""
_PRUNE: Final = 60.0
"""Seconds between two looks for files that have become too old, if nothing else makes it look."""
_STALLED: Final = 10.0


class Writer:
    """Empties one ring into one log, and says no on its behalf when it cannot.

    Args:
        ring: what to empty.
        live: where to.
        keeps_going: whether lines are taken while the log cannot be written, as long as there is room.
        rotation: when a file is full.
        checkpoints: how often one is written.
        housekeeper: does the rest.
        subjects: keys that have to be on the disk before what is encrypted with them.
    """

    # Mutable: what is counted, by the thread; _tried by the loop; the requests from anywhere, once each.
    __slots__ = (
        *(
            "_batch",
            "_checkpoint_at",
            "_checkpoint_seq",
            "_checkpoints",
            "_event_seq",
            "_given_up",
            "_housekeeper",
            "_keeps_going",
            "_key",
            "_live",
        ),
        *("_look_at", "_new_key", "_prune_at", "_pruned", "_reopening", "_ring", "_rotation", "_stopping", "_subjects"),
        *("_thread", "_tried", "_wake", "checkpoints", "failure", "failures", "full", "on_progress", "rotations"),
    )

    def __init__(  # noqa: PLR0913 - the parts of a log
        self,
        ring: Ring,
        live: Live,
        *,
        rotation: Rotation,
        checkpoints: Checkpoints,
        housekeeper: Housekeeper,
        subjects: Subjects | None = None,
        keeps_going: bool = False,
    ) -> None:
        self.failure: str | None = None
        self.failures = self.checkpoints = self.rotations = 0
        self.on_progress: Callable[[int, str | None], None] | None = None
        self._ring = ring
        self._live = live
        self._rotation = rotation
        self._checkpoints = checkpoints
        self._key = checkpoints.key
        self._new_key: SigningKey | None = None
        self._housekeeper = housekeeper
        self._subjects = subjects
        self._keeps_going = keeps_going
        self._batch = ring.capacity // _BATCHES
        self._look_at = self._prune_at = 0.0
        self._pruned = 0  # the number of the last file whose removal is noted
        self._checkpoint_at = time.monotonic() + checkpoints.seconds
        self._checkpoint_seq = live.last_checkpoint()
        self._event_seq = live.link.seq - 1  # the number of the last record that came through the ring
        self._tried = -1
        self.full: Final = f"the buffer of {ring.capacity:,} bytes is full, and the disk does not keep up"
        self._stopping = self._reopening = self._given_up = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"aperion-audit-{live.path.name}", daemon=True)
        ring.beyond = self._beyond

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def reopen(self) -> None:
        """Open the file anew before the next batch."""
        self._reopening = True
        self._wake.set()

    def use_key(self, key: SigningKey) -> None:
        """Sign with another key from the next batch on."""
        self._new_key = key
        self._wake.set()

    # On the thread that puts

    def hurry(self) -> None:
        """Wake the thread: somebody waits."""
        if not self._wake.is_set():
            self._wake.set()

    def _beyond(self, end: int) -> None:
        """Decide about a line that would end past the mark of the ring: wake the writer, or refuse it.

        Raises:
            AuditUnavailable: when the file cannot be written, or the ring is full.
        """
        ring = self._ring
        self.hurry()
        if self.failure is not None and not self._keeps_going:
            raise AuditUnavailable(self._live.path, self.failure)
        if ring.is_renewable and not ring.renew():
            raise AuditUnavailable(self._live.path, "its ring is being replaced")
        room = ring.tail + ring.capacity
        if end > room:
            raise AuditUnavailable(self._live.path, self.failure or self.full)
        if self.failure is None:  # once is enough for a batch; the thread has its own say when it is awake
            ring.mark = min(end + self._batch, room)

    def refused(self, reason: str) -> None:
        """Remember that a record was refused because the ring was full, until there is room."""
        if reason == self.full:
            self._tried = self._ring.tail

    @property
    def refusal(self) -> str | None:
        """Why lines are refused now, or will be; None where all is well."""
        if self.failure is None and self._tried == self._ring.tail:
            return self.full
        return self.failure

    # On the thread of the writer

    def _run(self) -> None:
        pause = _SHORTEST
        while True:
            stopping = self._stopping
            moved = self._pass(self._work)
            # Not at the first batch of nothing: the file may have become full, and the next pass begins another.
            if stopping and (self.failure is not None or self._ring.head == self._ring.tail):
                break
            pause = self._next_pause(pause, moved=moved)
            self._set_mark(pause)
            if not stopping and not self._is_behind():
                if self.failure is not None and not self._stopping:
                    time.sleep(_PROBE)
                    pause -= _PROBE
                self._wake.wait(pause)
                self._wake.clear()
        if self._ring.head == self._ring.tail:  # after a failure too, such as one to begin the next file
            self._pass(self._finish)

    def _is_behind(self) -> bool:
        return self.failure is None and self._ring.head - self._ring.tail > self._batch

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

    def _pass(self, work: Callable[[], bool]) -> bool:
        """Do a piece of work; tell whether anything was brought over."""
        try:
            moved = work()
        except AuditUnavailable as error:
            self._failed(error.reason)
        except OSError as error:
            self._failed(reason_of(error))
        except BaseException as error:  # noqa: BLE001 - without its thread the log would fill up and never say why
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self.failure = None
            return moved
        return False

    def _failed(self, reason: str) -> None:
        self.failure = reason
        self.failures += 1
        self._look_at = 0.0  # the files may be the reason
        if self.on_progress is not None:
            with suppress(MemoryError):  # who waits is told by the next attempt
                self.on_progress(self._ring.tail, reason)

    def _work(self) -> bool:
        if self._reopening or time.monotonic() >= self._look_at:
            self._look_after_files()
        if self._new_key is not None:
            self._change_key(self._new_key)
        self._make_room()
        if time.monotonic() >= self._prune_at:
            self._prune()
        moved = self._move_batch()
        if self._checkpoint_is_due():
            self._make_room()
            self._checkpoint()
        return moved

    def _make_room(self) -> None:
        if self._is_full():
            self._look_after_files()  # what is renamed should be what was written
            if self._is_full():
                self._rotate()

    def _move_batch(self) -> bool:
        ring, live = self._ring, self._live
        if live.taken != ring.tail:  # the pass before came to grief in between
            self._commit()
        content = ring.oldest(self._batch)
        # What stands between two records cannot stand in one; to search for it costs half of what lines would.
        records = content[1:-2].split(b"}\n{") if content else []
        records = self._fitting(records)[: self._until_checkpoint()]
        if records:
            if self._subjects is not None:
                self._subjects.tend(durable=live.durable)
            live.take(records, ring.tail + sum(map(len, records)) + len("{}\n") * len(records))
            self._event_seq = live.link.seq
            self._commit()
        if self.on_progress is not None:  # of nothing too: somebody may have come to wait since the last batch
            self.on_progress(ring.tail, None)
        return bool(records)

    def _commit(self) -> None:
        """Tell the ring how far the log is."""
        self._ring.commit(self._live.taken - self._ring.tail, self._live.place)

    def _fitting(self, records: list[bytes]) -> list[bytes]:
        """Return as many records as the file takes before it is full, the one that makes it so included."""
        limit, live = self._rotation.max_bytes, self._live
        if limit is None:
            return records
        if live.size >= limit and self._has_events:
            return []
        return records[: filling((b"{%b}\n" % fields for fields in records), live.link, limit - live.size)]

    # Files

    def _look_after_files(self) -> None:
        """See that both files are where they were, now and then: each call lets go of the interpreter."""
        self._reopening = False
        if self._live.follow():
            self._commit()
        self._follow_ring()
        self._look_at = time.monotonic() + _LOOK

    def _follow_ring(self) -> None:
        """Prepare a new ring where its file was moved or removed; the loop goes over to it when this one is empty.

        Raises:
            AuditUnavailable: when another process has taken the place.
        """
        ring = self._ring
        if not ring.moved():
            return
        fd = lock(ring.path, self._live.path)
        try:
            recover(ring.path, fd, self._live)
            self._commit()
            ring.prepare(fd)
        except BaseException:
            os.close(fd)
            raise

    @property
    def _has_events(self) -> bool:
        # What a log says of itself fills no file: a new one begins with such records, and a log without
        # events would go on from file to file, and push out those that hold any.
        return self._event_seq > self._live.first

    def _is_full(self) -> bool:
        live, rotation = self._live, self._rotation
        if not self._has_events:
            return False
        if rotation.max_bytes is not None and live.size >= rotation.max_bytes:
            return True
        now = time.time_ns()
        live.began = min(live.began, now)  # the clock may have been ahead
        return rotation.max_age is not None and now - live.began >= rotation.max_age * 1e9

    def _rotate(self) -> None:
        try:
            number, path = self._live.rotate()
        except FileNotFoundError:  # somebody has moved it just now: then it is full no more
            if not self._live.follow():
                raise
            self._commit()
            return
        self.rotations += 1
        self._housekeeper.full(Segment(path, number))
        self._live.append([])
        self._commit()
        self._prune()

    def _prune(self) -> None:
        self._prune_at = time.monotonic() + _PRUNE
        rotation = self._rotation
        if rotation.keep is None and rotation.keep_bytes is None and rotation.keep_age is None:
            return  # before the folder is listed
        found, link = outdated(self._live.path, self._rotation)
        segments = [segment for segment in found if (segment.number or 0) > self._pruned]
        if segments:
            detail = {
                "pruned": [segment.path.name for segment in segments],
                "last_seq": link.seq if link else 0,
                "last_hash": link.hash if link else "",
            }
            self._note("log", detail)  # first: what is gone without a record looks like theft
            self._pruned = segments[-1].number or 0
            self._housekeeper.remove(segments)

    def _note(self, kind: str, detail: Mapping[str, Any]) -> None:
        self._live.note(kind, detail)
        self._commit()

    # Checkpoints

    def _checkpoint_is_due(self) -> bool:
        since = self._live.link.seq - self._checkpoint_seq
        if since >= self._checkpoints.every:
            return True
        return since > 0 and time.monotonic() >= self._checkpoint_at

    def _until_checkpoint(self) -> int:
        """Return how many records come before a checkpoint, one at least, so that it comes when it should."""
        return max(1, self._checkpoints.every - self._live.link.seq + self._checkpoint_seq)

    def _checkpoint(self) -> None:
        live = self._live
        body = live.append_about(
            lambda last: checkpoint_body(
                log=live.log,
                segment=live.number,
                last=last,
                before=self._checkpoint_seq,
                every=self._checkpoints.every,
                key=self._key,
                time_ns=time.time_ns(),
            )
        )
        self._checkpoint_seq = live.link.seq
        self._commit()
        self._checkpoint_at = time.monotonic() + self._checkpoints.seconds
        self.checkpoints += 1
        copy_to = self._checkpoints.copy_to
        if copy_to is not None:
            self._housekeeper.later(lambda: copy_checkpoint(body, copy_to))

    def _change_key(self, key: SigningKey) -> None:
        old, live = self._key, self._live
        if old is not None:
            live.append_about(lambda last: rotation_body(old, key, live.log, last, time.time_ns()))
        self._key, self._new_key = key, None
        self._commit()

    # At the end

    def _finish(self) -> bool:
        if self._ring.missed is not None:
            self._note("gap", gap(self._ring.missed))
            self._ring.miss(None)
        with suppress(OSError):  # a file that is a little too large is better than one that does not say its end
            self._make_room()
        self._note("stopped", {"pid": os.getpid()})
        self._checkpoint()
        self._live.file.sync()
        return False

    def bring_over(self, spill: Spill) -> int:
        """Move what waits for room into the ring, and return how many records could not be, which count as missing. Waits.

        Called before ``stop``, as that is: from a thread that may wait, and is the one that puts from now on.
        """
        ring, failures = self._ring, self.failures
        tail, since = ring.tail, time.monotonic()
        # Two failures: the first may be of an attempt that began before.
        while not spill.pour() and self._thread.is_alive() and self.failures < failures + 2:
            self._wake.set()
            self._thread.join(_SHORTEST)
            if ring.tail != tail:
                tail, since = ring.tail, time.monotonic()
            elif time.monotonic() - since > _STALLED:
                self._given_up = True
                break
        return spill.give_up()

    def stop(self) -> int:
        """Write what there is, end the thread, and return how many lines could not be written. Waits.

        Called from a thread that may wait. A disk that stands still is given up after ten seconds; the
        thread then lives on.
        """
        self._look_at = 0.0  # one more look: the last lines must not go into a file that was removed
        self._stopping = True
        self._wake.set()
        written = self._live.written if self._given_up else -1
        while self._thread.is_alive() and written != self._live.written:
            written = self._live.written
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
