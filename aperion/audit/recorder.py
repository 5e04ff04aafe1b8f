"""The recorder: turns what happens on one bus into records of a log, redacted as that bus redacts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from aperion._logs import logger as _log
from aperion.audit import record
from aperion.audit.options import OnFailure, Sync
from aperion.audit.subjects import HidesAll, UntoldSubjectError
from aperion.audit.writer import reason_of
from aperion.errors import AuditUnavailable
from aperion.redaction.modes import encrypting_with

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from aperion.audit.buffer import Buffer
    from aperion.audit.parts import AuditStats, Setup
    from aperion.audit.subjects import Subjects
    from aperion.events import Event
    from aperion.outcomes import Attempt, Outcome
    from aperion.redaction import Redactor

_HIDING: Any = HidesAll()


class Owner(Protocol):
    """The log that a recorder writes into."""

    async def start(self) -> None:
        """Open it."""

    async def aclose(self) -> None:
        """Close it."""

    def stats(self) -> AuditStats:
        """Return its state."""


class Recorder:
    """Records into one log with one redactor; ``AuditLog.recorder`` makes it, each bus has its own.

    Making one opens nothing, costs nothing, and changes nothing for others that record into the same log.

    Args:
        log: what is opened and closed.
        setup: what that was made with.
        buffer: where records go.
        redactor: hides what nobody should read.
    """

    # Mutable: _opened; and _redactor, as long as AuditLog.use_redactor is there.
    __slots__ = (
        *("_append", "_append_owed", "_buffer", "_kinds", "_log", "_opened", "_path", "_redactor", "_required"),
        *("_subjects", "_takes_accepted", "_takes_outcomes", "sync"),
    )

    def __init__(self, log: Owner, setup: Setup, buffer: Buffer, redactor: Redactor) -> None:
        self.sync: Final[Sync] = setup.sync
        self._log = log
        self._path = setup.path
        self._buffer = buffer
        self._redactor = redactor
        self._subjects = setup.subjects
        self._required = setup.on_failure is OnFailure.REQUIRED
        self._kinds = setup.kinds
        self._takes_accepted, self._takes_outcomes = "accepted" in setup.kinds, "outcome" in setup.kinds
        self._append = buffer.append if self._required else buffer.append_kept
        self._append_owed = buffer.append_owed
        self._opened = False

    # Recording

    def accepted(self, event: Event[Any]) -> None:
        """Record an event before it is dispatched; does not wait.

        Raises:
            AuditUnavailable: when the file cannot be written, when the buffer is full, when the log is not
                open, and in a forked child; under ``best_effort`` it counts as missing where that is a matter of the disk.
        """
        if not self._takes_accepted:
            return
        try:
            if self._subjects is None:
                line = record.accepted(event, self._redactor)
            else:
                line = self._encrypted(self._subjects, record.accepted, event)
            self._append(line)
        except AuditUnavailable as error:
            if not self._buffer.refused(error) or self._required:
                raise
            self._buffer.miss()

    def ended(self, event: Event[Any], outcome: Outcome) -> None:
        """Record how a delivery, or one attempt of it, ended; does not wait.

        Where the buffer is full it waits in memory behind it: what has happened cannot be refused.

        Raises:
            AuditUnavailable: when the file cannot be written, when the disk stands still, when the log is
                not open, and in a forked child; under ``best_effort`` only for the two last.
        """
        if self._takes_outcomes:
            self._owe(record.ended, event, outcome)

    def attempted(self, event: Event[Any], subscription: str, attempt: Attempt) -> None:
        """Record how an attempt at a delivery ended; does not wait.

        Raises:
            AuditUnavailable: as ``ended`` does.
        """
        if not self._takes_outcomes:
            return
        if self._subjects is not None:
            self._owe(record.attempted, event, subscription, attempt)
            return
        try:
            self._append_owed(record.attempted(event, subscription, attempt, self._redactor))
        except AuditUnavailable as error:
            if self._missed(error):
                raise

    def noted(self, kind: str, event: Event[Any], detail: Mapping[str, Any]) -> None:
        """Record what else happened to an event, under a kind of its own; does not wait.

        Raises:
            AuditUnavailable: as ``ended`` does.
        """
        if kind in self._kinds:
            self._owe(record.noted, event, kind, detail)

    def _owe(self, make: Callable[..., bytes], event: Event[Any], *rest: object) -> None:
        """Record what has happened already."""
        try:
            if self._subjects is None:
                line = make(event, *rest, self._redactor)
            else:
                line = self._encrypted(self._subjects, make, event, *rest)
            self._append_owed(line)
        except AuditUnavailable as error:
            if self._missed(error):
                raise

    def _missed(self, error: AuditUnavailable) -> bool:
        """Count a record that was refused; tell whether whoever recorded it has to know."""
        self._buffer.refused(error)
        is_open = self._buffer.is_open
        if is_open:
            self._buffer.miss()
        return self._required or not is_open

    def _encrypted(self, subjects: Subjects, make: Callable[..., bytes], event: Event[Any], *rest: object) -> bytes:
        """Make a line in which what tells of the event's subject is encrypted."""
        if not self._buffer.is_open:
            self._append(b"")  # refuses
        try:
            with encrypting_with(subjects.key_for(event)):
                return make(event, *rest, self._redactor)
        except UntoldSubjectError as error:
            _log.error(
                "audit log cannot tell whom an event is about", error_type=error.args[0], event_id=event.event_id
            )
            return make(event, *rest, _HIDING)
        except OSError as error:
            raise AuditUnavailable(self._path, f"{reason_of(error)}, for the keys in {subjects.path}") from error

    # What it passes on

    def wants(self, kind: str) -> bool:
        """Tell whether records of a kind are written."""
        return kind in self._kinds

    def when_synced(self) -> asyncio.Future[None] | None:
        """Return what is done when the disk has all that was recorded so far, see ``AuditLog.when_synced``."""
        return self._buffer.when_synced()

    @property
    def is_crowded(self) -> bool:
        """Whether who can wait should, see ``AuditLog.room``."""
        return self._buffer.is_crowded

    async def room(self) -> None:
        """Wait until there is room, see ``AuditLog.room``."""
        await self._buffer.room()

    def room_for_thread(self) -> None:
        """Do the same in another thread than the loop's; blocks."""
        self._buffer.room_for_thread()

    @property
    def waits_for_disk(self) -> bool:
        """Whether an event is handled only once the disk has its record."""
        return self.sync is Sync.DISK

    def stats(self) -> AuditStats:
        """Return the state of the log."""
        return self._log.stats()

    def buffered_bytes(self) -> int:
        """Return what waits to be written."""
        return self._log.stats().buffered_bytes

    async def start(self) -> None:
        """Open the log.

        Raises:
            AuditUnavailable: as ``AuditLog.start`` does.
        """
        await self._log.start()
        self._opened = True

    async def aclose(self) -> None:
        """Close the log if this recorder has opened it; that of another bus stays open.

        Raises:
            AuditUnavailable: as ``AuditLog.aclose`` does.
        """
        if self._opened:
            self._opened = False
            await self._log.aclose()
