"""The audit log of a bus."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import anyio.to_thread

from aperion._logs import logger as _log
from aperion.audit import record
from aperion.audit.buffer import Buffer
from aperion.audit.checkpoints import Checkpoints
from aperion.audit.options import NO_ROTATION, OnFailure, Rotation, Sync, chosen_kinds
from aperion.audit.parts import AuditStats, Parts, Setup, open_parts
from aperion.audit.predecessor import advice
from aperion.audit.reader import Reader
from aperion.audit.recorder import Recorder
from aperion.audit.writer import reason_of
from aperion.errors import AuditError, AuditUnavailable, ConfigurationError
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from aperion.audit.signing import SigningKey
    from aperion.audit.subjects import Subjects
    from aperion.events import Event
    from aperion.outcomes import Outcome

_SMALLEST: Final = 1 << 16
_DEFAULT: Final = 4 << 20


class AuditLog(Reader):
    r"""Appends one line of JSON for each accepted event and each outcome, in a chain of hashes.

    What was recorded survives ``kill -9`` by default: a record is copied into ``<path>.ring``, which is
    memory shared with the system, and a thread writes it to the file. The next ``start()`` brings over
    what a killed process left there, each line once; a line that was torn goes to ``<path>.torn``. Where
    the ring is full, emitters wait, and records of how events ended wait in the memory of the process.
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

    # Mutable: with which parts it is open.
    __slots__ = (
        *("__weakref__", "_buffer", "_has_own_redactor", "_on_failure", "_own", "_parts", "_setup", "_subjects"),
        "sync",
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
        if not Path(path).name:
            raise ConfigurationError(f"{os.fspath(path)!r} is no path of a file; pass one such as 'events.jsonl'")
        self.path = Path(path).absolute()  # the process may change its folder
        self.sync: Sync = _choice(Sync, "sync", sync)
        self._on_failure: OnFailure = _choice(OnFailure, "on_failure", on_failure)
        self._subjects = subjects
        self._setup = Setup(
            self.path,
            self.sync,
            self._on_failure,
            rotation,
            checkpoints if checkpoints is not None else Checkpoints(),
            chosen_kinds(kinds),
            buffer_bytes,
            subjects,
        )
        self._buffer = Buffer(self.path, buffer_bytes, fails=self._on_failure is OnFailure.REQUIRED)
        self._has_own_redactor = redactor is not None
        self._own = Recorder(self, self._setup, self._buffer, redactor if redactor is not None else Redactor())
        self._parts: Parts | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a log that records in a way of its own: a bus records through ``recorder()``, and would never ask it.

        Raises:
            ConfigurationError: naming the method.
        """
        super().__init_subclass__(**kwargs)
        for name in ("accepted", "ended", "noted"):
            if name in vars(cls):
                raise ConfigurationError(
                    f"{cls.__qualname__} overrides AuditLog.{name}(), which a bus does not call; write a sink of your "
                    "own around a log (see aperion.AuditSink)"
                )

    def __repr__(self) -> str:
        """Show the path."""
        return f"<AuditLog {str(self.path)!r}: {'open' if self._buffer.is_open else 'closed'}>"

    def recorder(self, redactor: Redactor) -> Recorder:
        """Return what records into this log with a redactor, such as that of a bus, unless the log has one of its own.

        Several may be made for one log, each with its own redactor; none changes what another writes.
        """
        return Recorder(self, self._setup, self._buffer, self._own._redactor if self._has_own_redactor else redactor)

    def wants(self, kind: str) -> bool:
        """Tell whether records of a kind are written."""
        return self._own.wants(kind)

    # Recording without a bus, with the redactor of the log

    def accepted(self, event: Event[Any]) -> None:
        """Record an event before it is dispatched; does not wait.

        Raises:
            AuditUnavailable: when the file cannot be written, when the buffer is full, when the log is not
                open, and in a forked child; not under ``best_effort``, where it counts as missing.
        """
        self._own.accepted(event)

    def ended(self, event: Event[Any], outcome: Outcome) -> None:
        """Record how a delivery, or one attempt of it, ended; does not wait.

        Where the buffer is full it waits in memory behind it: what has happened cannot be refused.

        Raises:
            AuditUnavailable: when the file cannot be written, when the disk is too far behind, when the log is
                not open, and in a forked child; under ``best_effort`` only for the two last.
        """
        self._own.ended(event, outcome)

    def noted(self, kind: str, event: Event[Any], detail: Mapping[str, Any]) -> None:
        """Record what else happened to an event, under a kind of its own; does not wait.

        Raises:
            AuditUnavailable: as ``ended`` does.
        """
        self._own.noted(kind, event, detail)

    # Waiting

    def when_synced(self) -> asyncio.Future[None] | None:
        """Return what is done when the disk has all that was recorded so far, in the order asked; None for a closed log.

        It fails with ``AuditUnavailable`` when the disk refuses, but not under ``best_effort``. Only for
        ``sync="disk"``: nobody else brings records to the disk.
        """
        return self._buffer.when_synced()

    @property
    def is_crowded(self) -> bool:
        """Whether who can wait should, see ``room``: more than half of the ring is full, and the writer gets on."""
        return self._buffer.is_crowded

    async def room(self) -> None:
        """Wait until the ring is less than half full, the log cannot be written, or the disk stands still for two seconds.

        The bus waits here before an event is accepted. The other half is for what cannot wait: how the
        events ended that are in flight. Cancelling the wait leaves nothing behind.
        """
        await self._buffer.room()

    def room_for_thread(self) -> None:
        """Do the same in another thread than the loop's; blocks."""
        self._buffer.room_for_thread()

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
        if self._subjects is None or not self._buffer.is_open:
            raise AuditError(
                f"the audit log {self.path} is closed or has no keys of subjects; open it, with AuditLog(subjects=Subjects(...))"
            )
        key = await anyio.to_thread.run_sync(self._subjects.forget, subject)
        if key is not None:
            self._buffer.append_owed(record.about_log("log", {"forgotten": {"key": key}}))
        return key is not None

    # Its state

    def stats(self) -> AuditStats:
        """Return the state of the log, without reading a file."""
        parts = self._parts
        writer = parts.writer if parts else None
        return AuditStats(
            path=str(self.path),
            available=self._buffer.is_open and writer is not None and writer.refusal is None,
            failure=writer.refusal if writer else None,
            records=self._buffer.records,
            bytes_written=parts.live.written if parts else 0,
            buffered_bytes=parts.ring.head - parts.ring.tail + parts.spill.size if parts else 0,
            failures=writer.failures if writer else 0,
            missing=self._buffer.missing,
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
        if self._buffer.is_open:
            raise AuditUnavailable(self.path, "it is open already; each bus needs a log of its own", opening=True)
        self._parts = await anyio.to_thread.run_sync(self._open)
        self._buffer.open(self._parts, asyncio.get_running_loop())
        _logs.add(self)

    def _open(self) -> Parts:
        try:
            return open_parts(self._setup)
        except AuditUnavailable as error:
            raise AuditUnavailable(self.path, advice(self.path) or error.reason, opening=True) from None
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
        if self._parts is None or not self._buffer.is_open:
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
        if parts is None or not self._buffer.is_open:
            return
        self._buffer.close()
        _logs.discard(self)
        left, lost = await anyio.to_thread.run_sync(parts.close)
        self._buffer.let_go(lost)
        if left or lost:
            self._tell_left(left, lost, parts)

    def _tell_left(self, left: int, lost: int, parts: Parts) -> None:
        reason = parts.writer.failure or "the disk stands still"
        if self.sync is Sync.NONE:
            left, lost = 0, left + lost
        waiting = f"{left:,} records wait in {parts.ring.path} for the next start"
        where = " and ".join([waiting] * (left > 0) + [f"{lost:,} records are lost"] * (lost > 0))
        if self._on_failure is OnFailure.REQUIRED:
            raise AuditUnavailable(self.path, f"{reason}; {where}")
        _log.error("audit log closed with records unwritten", reason=reason, records=left + lost)

    def _abandon(self) -> None:
        """Let go, in a forked child: the log belongs to the parent, and its lock must not outlive it."""
        self._buffer.abandon()
        if self._parts is not None:
            self._parts.ring.abandon()
            self._parts.live.file.abandon()


def _choice(kind: Any, name: str, value: object) -> Any:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(repr(member.value) for member in kind)
        raise ConfigurationError(f"{name}={value!r} is unknown; choose from {choices}") from None


_logs: WeakSet[AuditLog] = WeakSet()


def _abandon_all() -> None:
    for log in tuple(_logs):
        log._abandon()


# A flag that costs nothing as long as nobody forks, where asking for the process id would cost each record.
os.register_at_fork(after_in_child=_abandon_all)
