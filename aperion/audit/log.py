"""The audit log of a bus."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import anyio.to_thread

from aperion._logs import logger as _log
from aperion.audit import record
from aperion.audit.checkpoints import Checkpoints
from aperion.audit.files import LogFile
from aperion.audit.following import POLL, Following, follow
from aperion.audit.housekeeping import Housekeeper
from aperion.audit.live import Live
from aperion.audit.options import NO_ROTATION, OnFailure, Rotation, Sync, chosen_kinds
from aperion.audit.query import Query
from aperion.audit.reading import Reading
from aperion.audit.recovery import gap, recover
from aperion.audit.ring import Missed, Ring, lock
from aperion.audit.writer import Writer, reason_of
from aperion.errors import AuditError, AuditUnavailable, ConfigurationError
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
    from typing import NoReturn, Unpack

    from aperion.audit.query import AuditRecord, Wanted
    from aperion.audit.signing import SigningKey
    from aperion.delivery import Outcome
    from aperion.events import Event

_SMALLEST: Final = 1 << 16
_DEFAULT: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditStats:
    """The state of an audit log, counted since it was last opened.

    Args:
        path: of the log file.
        available: whether it takes records now.
        failure: why not.
        records: accepted from the bus.
        bytes_written: to the files.
        buffered_bytes: in the ring, and not in the file yet.
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


class AuditLog:
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
        buffer_bytes: size of the ring, 64 KiB or more.

    Raises:
        ConfigurationError: for a path without a file name, or an option that makes no sense.
    """

    # Mutable: which of these the log is open with, and what is counted.
    __slots__ = (
        *("__weakref__", "_buffer", "_checkpoints", "_has_own_redactor", "_is_open", "_kinds", "_largest", "_loop"),
        *("_missed", "_missing", "_on_failure", "_parts", "_put", "_records", "_redactor", "_rotation", "_waiting"),
        *("path", "sync"),
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
        buffer_bytes: int = _DEFAULT,
    ) -> None:
        if not isinstance(buffer_bytes, int) or buffer_bytes < _SMALLEST:
            raise ConfigurationError(f"buffer_bytes={buffer_bytes!r} is too small; pass {_SMALLEST:,} or more")
        self.path = Path(path)
        if not self.path.name:
            raise ConfigurationError(f"{os.fspath(path)!r} is no path of a file; pass one such as 'events.jsonl'")
        self.sync: Sync = _choice(Sync, "sync", sync)
        self._on_failure: OnFailure = _choice(OnFailure, "on_failure", on_failure)
        self._rotation = rotation
        self._checkpoints = checkpoints if checkpoints is not None else Checkpoints()
        self._kinds = chosen_kinds(kinds)
        self._redactor = redactor if redactor is not None else Redactor()
        self._has_own_redactor = redactor is not None
        self._buffer = buffer_bytes
        self._largest = buffer_bytes // 2
        self._records = self._missing = 0
        self._missed: Missed | None = None
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()  # emitters; bounded by their number
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._parts: _Parts | None = None
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
            self._append(record.accepted(event, self._redactor))
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
            self._append_or_miss(record.ended(event, outcome, self._redactor))

    def noted(self, kind: str, event: Event[Any], detail: Mapping[str, Any]) -> None:
        """Record what else happened to an event, under a kind of its own; does not wait.

        Raises:
            AuditUnavailable: as ``accepted`` does.
        """
        if kind in self._kinds:
            self._append_or_miss(record.noted(kind, event, detail, self._redactor))

    def _append(self, line: bytes) -> None:
        if self._missed is not None:
            self._tell_of_gap()
        if len(line) > self._largest:
            line = record.shrunk(line)
        self._put(line)
        self._records += 1

    def _append_or_miss(self, line: bytes) -> None:
        try:
            self._append(line)
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

    def _tell_of_gap(self) -> None:
        if self._missed is not None and self._parts is not None:
            self._put(record.about_log("gap", gap(self._missed)))
            self._missed = None
            self._parts.ring.miss(None)

    def _refuse(self, _line: bytes) -> None:
        raise AuditUnavailable(self.path, "it is not open; the bus opens it when it starts")

    def when_synced(self) -> asyncio.Future[None] | None:
        """Return what is done when the disk has all that was recorded so far; None where it has.

        It fails with ``AuditUnavailable`` when the disk refuses, but not under ``best_effort``. Only for
        ``sync="disk"``: nobody else brings records to the disk.
        """
        parts, loop = self._parts, self._loop
        if parts is None or loop is None or parts.ring.head == parts.ring.tail:
            return None
        waiting: asyncio.Future[None] = loop.create_future()
        self._waiting.append((parts.ring.head, waiting))
        parts.writer.hurry()
        return waiting

    def _progressed(self, tail: int, failure: str | None) -> None:
        """Tell the loop how far the writer is; on the writer's thread."""
        if self._waiting and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._release, tail, failure)

    def _release(self, tail: int, failure: str | None) -> None:
        waiting = self._waiting
        while waiting and (waiting[0][0] <= tail or failure is not None):
            position, future = waiting.popleft()
            if future.done():
                continue
            if position <= tail or self._on_failure is OnFailure.BEST_EFFORT:
                future.set_result(None)
            else:
                future.set_exception(AuditUnavailable(self.path, failure or "the disk stands still"))

    # Reading

    def read(self, **wanted: Unpack[Wanted]) -> Reading:
        """Return the records that are wanted, oldest first; open or not, and while it is written.

        Iterate with ``for``, or with ``async for``, which reads in a worker thread. Memory stays constant.

        Args:
            wanted: see ``Query``; without any, all records.

        Raises:
            ConfigurationError: for what cannot be looked for.
        """
        return Reading(self.path.absolute(), Query(**wanted))

    def follow(self, *, from_end: bool = True, **wanted: Unpack[Wanted]) -> Iterator[AuditRecord]:
        """Yield records as they are written, from file to file, for ever or until ``limit``; waits for each."""
        return follow(self.path.absolute(), Query(**wanted), from_end=from_end)

    async def afollow(self, *, from_end: bool = True, **wanted: Unpack[Wanted]) -> AsyncIterator[AuditRecord]:
        """Do what ``follow`` does without holding up the loop."""
        with closing(Following(self.path.absolute(), Query(**wanted), from_end=from_end)) as following:
            while not following.ended:
                for found in (records := await anyio.to_thread.run_sync(following.available)):
                    yield found
                if not records:
                    await anyio.sleep(POLL)

    # Its state

    def stats(self) -> AuditStats:
        """Return the state of the log, without reading a file."""
        parts = self._parts
        writer = parts.writer if parts else None
        return AuditStats(
            path=str(self.path),
            available=self._is_open and writer is not None and writer.failure is None,
            failure=writer.failure if writer else None,
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
            raise AuditUnavailable(self.path, "it is open already; each bus needs a log of its own")
        self._loop = asyncio.get_running_loop()
        self._parts = await anyio.to_thread.run_sync(self._open)
        self._parts.writer.on_progress = self._progressed
        self._is_open = True
        self._records = self._missing = 0
        self._missed = None
        self._put = self._parts.ring.put
        _logs.add(self)

    def _open(self) -> _Parts:
        try:
            return _open(self)
        except AuditUnavailable:
            raise
        except OSError as error:
            raise AuditUnavailable(self.path, reason_of(error)) from error

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
        with suppress(AuditUnavailable):  # the ring keeps the count for the next start
            self._tell_of_gap()
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


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an open log consists of."""

    live: Live
    ring: Ring
    writer: Writer
    housekeeper: Housekeeper
    recovered: int

    def close(self) -> int:
        """Write what there is, let go of the files, and return how many records stay in the ring. Waits."""
        left = self.writer.stop()
        if self.writer.is_stuck:
            return left  # the thread still uses the files
        self.housekeeper.stop()
        if not left:
            self.ring.remove()
        self.live.file.close()
        self.ring.close()
        return left


def _open(log: AuditLog) -> _Parts:
    path = log.path.absolute()  # the process may change its folder
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ring_path = path.with_name(f"{path.name}.ring")
    with ExitStack() as on_failure:
        live = Live(path, LogFile(path), durable=log.sync is Sync.DISK)
        on_failure.callback(lambda: live.file.close())  # noqa: PLW0108 - it may be another file by then
        fd = lock(ring_path, log.path)
        on_failure.callback(os.close, fd)
        if live.file.moved():  # by whoever had the lock until now
            live.file.close()
            live.file = LogFile(path)
        recovered = recover(ring_path, fd, live)
        started = {"pid": os.getpid(), "version": _version(), "clean": recovered.clean, "recovered": recovered.records}
        live.note("started", started)
        ring = Ring(ring_path, fd, log._buffer, live.place, shared=log.sync is not Sync.NONE)
        on_failure.pop_all()
    housekeeper = Housekeeper(path, log._rotation.compress)
    housekeeper.start()
    writer = Writer(
        ring,
        live,
        rotation=log._rotation,
        checkpoints=log._checkpoints,
        housekeeper=housekeeper,
        keeps_going=log._on_failure is OnFailure.BEST_EFFORT,
    )
    writer.start()
    return _Parts(live, ring, writer, housekeeper, recovered.records)


def _version() -> str:
    try:
        return version("aperion-bus")
    except PackageNotFoundError:
        return "unknown"


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
