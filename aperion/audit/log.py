"""The audit log of a bus."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep, time_ns
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import anyio.to_thread

from aperion._logs import logger as _log
from aperion.audit import record
from aperion.audit.checkpoints import Checkpoints
from aperion.audit.options import NO_ROTATION, OnFailure, Rotation, Sync, chosen_kinds
from aperion.audit.parts import AuditStats, Parts, Setup, open_parts
from aperion.audit.reader import Reader
from aperion.audit.recovery import gap
from aperion.audit.ring import Missed
from aperion.audit.subjects import HidesAll, UntoldSubjectError
from aperion.audit.writer import reason_of
from aperion.errors import AuditError, AuditUnavailable, ConfigurationError
from aperion.redaction import Redactor
from aperion.redaction.modes import encrypting_with

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import NoReturn

    from aperion.audit.signing import SigningKey
    from aperion.audit.subjects import Subjects
    from aperion.delivery import Outcome
    from aperion.events import Event

_SMALLEST: Final = 1 << 16
_DEFAULT: Final = 4 << 20
_LOOK: Final = 0.001
_PATIENCE: Final = 2.0
"""Seconds that an emitter waits for a device that stands still, once until it gets on."""


class AuditLog(Reader):
    r"""Appends one line of JSON for each accepted event and each outcome, in a chain of hashes.

    What was recorded survives ``kill -9`` by default: a record is copied into ``<path>.ring``, which is
    memory shared with the system, and a thread writes it to the file. The next ``start()`` brings over
    what a killed process left there, each line once; a line that was torn goes to ``<path>.torn``.
    ``docs/audit.md`` has the record's fields, and a table of what each level keeps in which fault.

    Args:
        path: of the file, made with mode 0600 in a folder made with mode 0700; no link.
        sync: what a record survives: ``"none"``, ``"process"`` or ``"disk"``, see ``Sync``.
        on_failure: ``"required"`` or ``"best_effort"``, see ``OnFailure``.
        rotation: when a file is full, and what becomes of full ones.
        checkpoints: how often the chain is summed up, signed and copied elsewhere.
        kinds: of records about events; all but ``handler_started`` by default.
        redactor: hides what nobody should read; by default that of the bus.
        subjects: the keys of the people that events are about, so that ``forget`` can erase what the log
            says of one of them; see ``Subjects``.
        buffer_bytes: size of the ring, 64 KiB or more.

    Raises:
        ConfigurationError: for a path without a file name, or an option that makes no sense.
    """

    # Mutable: which of these the log is open with, and what is counted.
    __slots__ = (
        *(
            "__weakref__",
            "_crowd",
            "_half",
            "_has_own_redactor",
            "_is_open",
            "_kinds",
            "_largest",
            "_loop",
            "_missed",
            "_missing",
        ),
        *(
            "_on_failure",
            "_parts",
            "_put",
            "_records",
            "_redactor",
            "_setup",
            "_stood_at",
            "_subjects",
            "_waiting",
            "sync",
        ),
    )

    def __init__(  # noqa: PLR0913 - the options of a log, all by keyword
        self,
        path: str | os.PathLike[str],
        *,
        sync: Sync | str = Sync.PROCESS,
        on_failure: OnFailure | str = OnFailure.REQUIRED,
        rotation: Rotation = NO_ROTATION,
        checkpoints: Checkpoints | None = None,
        kinds: Collection[str] | None = None,
        redactor: Redactor | None = None,
        subjects: Subjects | None = None,
        buffer_bytes: int = _DEFAULT,
    ) -> None:
        if not isinstance(buffer_bytes, int) or buffer_bytes < _SMALLEST:
            raise ConfigurationError(f"buffer_bytes={buffer_bytes!r} is too small; pass {_SMALLEST:,} or more")
        self.path = Path(path)
        if not self.path.name:
            raise ConfigurationError(f"{os.fspath(path)!r} is no path of a file; pass one such as 'events.jsonl'")
        self.sync: Sync = _choice(Sync, "sync", sync)
        self._on_failure: OnFailure = _choice(OnFailure, "on_failure", on_failure)
        self._kinds = chosen_kinds(kinds)
        self._redactor = redactor if redactor is not None else Redactor()
        self._has_own_redactor = redactor is not None
        self._subjects = subjects
        self._setup = Setup(
            self.path,
            self.sync,
            self._on_failure,
            rotation,
            checkpoints if checkpoints is not None else Checkpoints(),
            buffer_bytes,
            subjects,
        )
        self._largest = buffer_bytes // 2
        self._records = self._missing = 0
        self._missed: Missed | None = None
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()  # emitters; bounded by their number
        self._crowd: list[asyncio.Future[None]] = []  # and those who wait for room
        self._half = buffer_bytes // 2
        self._stood_at = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._parts: Parts | None = None
        self._put: Callable[[bytes], None] = self._refuse

    def __repr__(self) -> str:
        """Show the path."""
        return f"<AuditLog {str(self.path)!r}: {'open' if self._is_open else 'closed'}>"

    def use_redactor(self, redactor: Redactor) -> None:
        """Redact with this one from now on, unless the log was made with one of its own.

        The bus calls it, so that the keys it was told to hide are hidden here too.
        """
        if not self._has_own_redactor:
            self._redactor = redactor

    def wants(self, kind: str) -> bool:
        """Tell whether records of a kind are written."""
        return kind in self._kinds

    # Recording

    def accepted(self, event: Event[Any]) -> None:
        """Record an event before it is dispatched; does not wait.

        Raises:
            AuditUnavailable: when the file cannot be written, when the ring is full, when the log is not
                open, and in a forked child; not under ``best_effort``, where it counts as missing.
        """
        if "accepted" not in self._kinds:
            return
        try:
            self._append(self._line(record.accepted, event))
        except AuditUnavailable:
            if self._on_failure is OnFailure.REQUIRED or not self._is_open:
                raise
            self._miss()

    def ended(self, event: Event[Any], outcome: Outcome) -> None:
        """Record how a delivery, or one attempt of it, ended; does not wait.

        Raises:
            AuditUnavailable: as ``accepted`` does.
        """
        if "outcome" in self._kinds:
            self._append_or_miss(record.ended, event, outcome)

    def noted(self, kind: str, event: Event[Any], detail: Mapping[str, Any]) -> None:
        """Record what else happened to an event, under a kind of its own; does not wait.

        Raises:
            AuditUnavailable: as ``accepted`` does.
        """
        if kind in self._kinds:
            self._append_or_miss(record.noted, event, kind, detail)

    def _line(self, make: Callable[..., bytes], event: Event[Any], *rest: object) -> bytes:
        if self._subjects is None:
            return make(event, *rest, self._redactor)
        if not self._is_open:
            self._put(b"")  # refuses
        try:
            with encrypting_with(self._subjects.key_for(event)):
                return make(event, *rest, self._redactor)
        except UntoldSubjectError as error:
            _log.error(
                "audit log cannot tell whom an event is about", error_type=error.args[0], event_id=event.event_id
            )
            return make(event, *rest, _HIDING)
        except OSError as error:
            raise AuditUnavailable(self.path, f"{reason_of(error)}, for the keys in {self._subjects.path}") from error

    def _append(self, line: bytes) -> None:
        if len(line) > self._largest:
            line = record.shrunk(line)
        if self._missed is None:
            self._put(line)
        else:
            self._put_after_gap(line, self._missed)
        self._records += 1

    def _append_or_miss(self, make: Callable[..., bytes], event: Event[Any], *rest: object) -> None:
        try:
            self._append(self._line(make, event, *rest))
        except AuditUnavailable:
            if self._is_open:
                self._miss()
            if self._on_failure is OnFailure.REQUIRED or not self._is_open:
                raise

    def _miss(self) -> None:
        now = time_ns()
        missed = self._missed
        self._missing += 1
        self._missed = Missed(missed.count + 1 if missed else 1, missed.since if missed else now, now)
        if missed is None:
            _log.error("audit log unavailable, records are missing", path=str(self.path))
        if self._parts is not None:
            self._parts.ring.miss(self._missed)

    def _put_after_gap(self, line: bytes, missed: Missed) -> None:
        # Both or neither: a gap alone would take the room of the line, and the next gap would follow.
        self._put(record.about_log("gap", gap(missed)) + line)
        self._missed = None
        if self._parts is not None:
            self._parts.ring.miss(None)

    def _refuse(self, _line: bytes) -> None:
        raise AuditUnavailable(self.path, "it is not open; the bus opens it when it starts")

    def when_synced(self) -> asyncio.Future[None] | None:
        """Return what is done when the disk has all that was recorded so far, in the order asked; None for a closed log.

        It fails with ``AuditUnavailable`` when the disk refuses, but not under ``best_effort``. Only for
        ``sync="disk"``: nobody else brings records to the disk.
        """
        parts, loop = self._parts, self._loop
        if parts is None or loop is None:
            return None
        waiting: asyncio.Future[None] = loop.create_future()
        if self._waiting or parts.ring.head != parts.ring.tail:
            self._waiting.append((parts.ring.head, waiting))
            parts.writer.hurry()
        else:  # not at once: those before were let go, and may not have been handed on yet
            loop.call_soon(_done, waiting)
        return waiting

    @property
    def is_crowded(self) -> bool:
        """Whether who can wait should, see ``room``: more than half of the ring is full, and the writer gets on."""
        parts = self._parts
        if parts is None:
            return False
        tail = parts.ring.tail
        return parts.ring.head - tail > self._half and tail != self._stood_at and parts.writer.failure is None

    async def room(self) -> None:
        """Wait until the ring is less than half full, the log cannot be written, or two seconds are over.

        The bus waits here before an event is accepted. The other half is for what cannot wait: how the
        events ended that are in flight.
        """
        loop, parts = self._loop, self._parts
        while parts is not None and loop is not None and self.is_crowded:
            tail = parts.ring.tail
            waiting: asyncio.Future[None] = loop.create_future()
            self._crowd.append(waiting)
            parts.writer.hurry()
            timer = loop.call_later(_PATIENCE, _done, waiting)
            try:
                await waiting
            finally:
                timer.cancel()
            if parts.ring.tail == tail:  # the disk stands still: from now on the failure policy decides
                self._stood_at = tail

    def room_for_thread(self) -> None:
        """Do the same in another thread than the loop's; blocks."""
        parts, given_up = self._parts, monotonic() + _PATIENCE
        while parts is not None and self.is_crowded:
            if monotonic() > given_up:
                self._stood_at = parts.ring.tail
            sleep(_LOOK)

    def _progressed(self, tail: int, failure: str | None) -> None:
        """Tell the loop how far the writer is; on the writer's thread."""
        if (self._waiting or self._crowd) and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._release, tail, failure)

    def _release(self, tail: int, failure: str | None) -> None:
        if self._crowd and not self.is_crowded:
            crowd, self._crowd = self._crowd, []
            for future in crowd:
                _done(future)
        waiting = self._waiting
        while waiting and (waiting[0][0] <= tail or failure is not None):
            position, future = waiting.popleft()
            if future.done():
                continue
            if position <= tail or self._on_failure is OnFailure.BEST_EFFORT:
                future.set_result(None)
            else:
                future.set_exception(AuditUnavailable(self.path, failure or "the disk stands still"))

    # Erasure

    async def forget(self, subject: str) -> bool:
        """Destroy the key of somebody, so that nobody can read what this log says of them under it.

        Returns when the disk has it; a record says which key was destroyed, and not whose it was.

        Returns:
            False when there was no key: nothing was encrypted for that subject.

        Raises:
            AuditError: when the log was made without ``subjects``, or is not open.
            OSError: when the disk refuses; the key may then still be there.
        """
        if self._subjects is None or not self._is_open:
            raise AuditError(
                f"the audit log {self.path} is closed or has no keys of subjects; open it, with AuditLog(subjects=Subjects(...))"
            )
        key = await anyio.to_thread.run_sync(self._subjects.forget, subject)
        if key is not None:
            self._append(record.about_log("log", {"forgotten": {"key": key}}))
        return key is not None

    # Its state

    def stats(self) -> AuditStats:
        """Return the state of the log, without reading a file."""
        parts = self._parts
        writer = parts.writer if parts else None
        return AuditStats(
            path=str(self.path),
            available=self._is_open and writer is not None and writer.refusal is None,
            failure=writer.refusal if writer else None,
            records=self._records,
            bytes_written=parts.live.written if parts else 0,
            buffered_bytes=parts.ring.head - parts.ring.tail if parts else 0,
            failures=writer.failures if writer else 0,
            missing=self._missing,
            recovered=parts.recovered if parts else 0,
            rotations=writer.rotations if writer else 0,
            checkpoints=writer.checkpoints if writer else 0,
            background_failures=parts.housekeeper.failures if parts else 0,
        )

    # Life

    async def start(self) -> None:
        """Open the log, and bring over what a killed process left in the ring.

        Raises:
            AuditUnavailable: when it cannot be written, when another process writes it, when it is open
                already, and for a path or a ring that is not ours to write.
        """
        if self._is_open:
            raise AuditUnavailable(self.path, "it is open already; each bus needs a log of its own", opening=True)
        self._loop = asyncio.get_running_loop()
        self._parts = await anyio.to_thread.run_sync(self._open)
        self._parts.writer.on_progress = self._progressed
        self._is_open = True
        self._records = self._missing = 0
        self._missed = None
        self._stood_at = -1
        self._put = self._parts.ring.put
        _logs.add(self)

    def _open(self) -> Parts:
        try:
            return open_parts(self._setup)
        except AuditUnavailable as error:
            raise AuditUnavailable(self.path, error.reason, opening=True) from None
        except OSError as error:
            raise AuditUnavailable(self.path, reason_of(error), opening=True) from error

    def reopen(self) -> None:
        """Go on in whatever file has the path now, such as after ``logrotate``; from any thread, does not wait."""
        if self._parts is not None:
            self._parts.writer.reopen()

    def rotate_key(self, key: SigningKey) -> None:
        """Sign checkpoints with another key from now on; a record signed with both says so. Does not wait.

        Raises:
            AuditError: when the log is not open.
        """
        if self._parts is None or not self._is_open:
            raise AuditError(f"the audit log {self.path} is not open; pass the key as Checkpoints(key=...)")
        self._parts.writer.use_key(key)

    async def aclose(self) -> None:
        """Wait until all that was recorded is in the file, and close the log; it may be started again.

        The log closes in any case. A disk that stands still is waited for ten seconds.

        Raises:
            AuditUnavailable: when records stay in the ring, for the next ``start()``; under
                ``best_effort`` that is logged instead.
        """
        parts = self._parts
        if parts is None or not self._is_open:
            return
        self._is_open = False
        self._put = self._refuse
        _logs.discard(self)
        left = await anyio.to_thread.run_sync(parts.close)
        if left:
            reason = parts.writer.failure or "the disk stands still"
            where = f"{left:,} records wait in {parts.ring.path} for the next start"
            if self.sync is Sync.NONE:
                where = f"{left:,} records are lost"
            if self._on_failure is OnFailure.REQUIRED:
                raise AuditUnavailable(self.path, f"{reason}; {where}")
            _log.error("audit log closed with records unwritten", reason=reason, records=left)

    def _abandon(self) -> None:
        """Let go, in a forked child: the log belongs to the parent, and its lock must not outlive it."""
        self._is_open = False
        self._put = self._refuse_in_child
        if self._parts is not None:
            self._parts.ring.close_files()
            self._parts.live.file.close()

    def _refuse_in_child(self, _line: bytes) -> NoReturn:
        raise AuditUnavailable(self.path, "it belongs to the process that this one was forked from")


def _done(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _choice(kind: Any, name: str, value: object) -> Any:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(repr(member.value) for member in kind)
        raise ConfigurationError(f"{name}={value!r} is unknown; choose from {choices}") from None


_HIDING: Any = HidesAll()

_logs: WeakSet[AuditLog] = WeakSet()


def _abandon_all() -> None:
    for log in tuple(_logs):
        log._abandon()


# A flag that costs nothing as long as nobody forks, where asking for the process id would cost each record.
os.register_at_fork(after_in_child=_abandon_all)
