"""The audit log of a bus."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import anyio.to_thread

from aperion.audit import record
from aperion.audit.files import LogFile
from aperion.audit.recovery import recover
from aperion.audit.ring import Ring, lock
from aperion.audit.writer import Writer, reason_of
from aperion.errors import AuditUnavailable, ConfigurationError
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

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
        records: accepted from the bus.
        bytes_written: to the file.
        buffered_bytes: in the ring, and not in the file yet.
        failures: how often writing failed, each new attempt included.
        recovered: records that the process before had left in its ring.
    """

    path: str
    available: bool
    records: int
    bytes_written: int
    buffered_bytes: int
    failures: int
    recovered: int


class AuditLog:
    r"""Appends one line of JSON for each accepted event and each outcome; what was recorded survives ``kill -9``.

    A record is copied into ``<path>.ring``, which is memory shared with the system, and a thread writes
    it to the file. The next ``start()`` brings over what a killed process left there, each line once;
    a line that was torn goes to ``<path>.torn``. What a power cut does is up to the file system.

    Lines are plain ASCII. Every one about an event has ``seq`` (1, 2, 3 … since the log was opened),
    ``time`` (nanoseconds since the epoch), ``kind``, ``event_id``, ``type``, ``correlation_id``,
    ``hops`` and, where there is one, ``key``, ``source`` and ``causation_id``.

    ==================  ==================================================================
    kind                further fields
    ==================  ==================================================================
    ``accepted``        ``payload``, and ``headers`` where there are any, both redacted; ``redacted``, how many
                        values of the payload were hidden, by type, where any were
    ``outcome``         ``subscription``, ``attempt``, ``state``, ``duration`` in seconds;
                        after a failure ``error_type`` and ``error``, redacted
    what is noted       ``detail``, redacted
    ``log``             ``detail`` about the log itself; no event, and no ``seq``
    ==================  ==================================================================

    Whatever JSON has no form for gets one: dates and UUIDs their ISO text, decimals and paths their
    text, bytes as Latin-1, sets as lists, keys as text, infinities as ``"inf"``, a lone surrogate as
    ``\udc80`` in six characters, and an object of any other class ``"<Class>"``. A part of a record
    too large for half the buffer becomes ``{"[TOO_LARGE]": bytes}``.

    Args:
        path: of the file, made with mode 0600 in a folder made with mode 0700; no link.
        redactor: hides what nobody should read; by default that of the bus.
        buffer_bytes: size of the ring, 64 KiB or more.

    Raises:
        ConfigurationError: for a path without a file name, or a buffer that is too small.
    """

    # Mutable: which of these the log is open with, and the number of the last record.
    __slots__ = (
        *("__weakref__", "_buffer", "_has_own_redactor", "_is_open", "_largest", "_parts", "_put"),
        *("_redactor", "_seq", "path"),
    )

    def __init__(
        self, path: str | os.PathLike[str], *, redactor: Redactor | None = None, buffer_bytes: int = _DEFAULT
    ) -> None:
        if not isinstance(buffer_bytes, int) or buffer_bytes < _SMALLEST:
            raise ConfigurationError(f"buffer_bytes={buffer_bytes!r} is too small; pass {_SMALLEST:,} or more")
        self.path = Path(path)
        if not self.path.name:
            raise ConfigurationError(f"{os.fspath(path)!r} is no path of a file; pass one such as 'events.jsonl'")
        self._redactor = redactor if redactor is not None else Redactor()
        self._has_own_redactor = redactor is not None
        self._buffer = buffer_bytes
        self._largest = buffer_bytes // 2
        self._seq = 0
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

    def accepted(self, event: Event[Any]) -> None:
        """Record an event before it is dispatched; does not wait.

        Raises:
            AuditUnavailable: when the file cannot be written, when the ring is full, when the log is not
                open, and in a forked child.
        """
        self._append(record.accepted(self._seq + 1, event, self._redactor))

    def ended(self, event: Event[Any], outcome: Outcome) -> None:
        """Record how a delivery, or one attempt of it, ended; does not wait.

        Raises:
            AuditUnavailable: as ``accepted`` does.
        """
        self._append(record.ended(self._seq + 1, event, outcome, self._redactor))

    def noted(self, kind: str, event: Event[Any], detail: Mapping[str, Any]) -> None:
        """Record what else happened to an event, under a kind of its own; does not wait.

        Raises:
            AuditUnavailable: as ``accepted`` does.
        """
        self._append(record.noted(self._seq + 1, kind, event, detail, self._redactor))

    def _append(self, line: bytes) -> None:
        if len(line) > self._largest:
            line = record.shrunk(line)
        self._put(line)
        self._seq += 1  # not before: a number that was refused is given again

    def _refuse(self, _line: bytes) -> None:
        raise AuditUnavailable(self.path, "it is not open; the bus opens it when it starts")

    def stats(self) -> AuditStats:
        """Return the state of the log, without reading a file."""
        parts = self._parts
        return AuditStats(
            path=str(self.path),
            available=self._is_open and parts is not None and parts.writer.failure is None,
            records=self._seq,
            bytes_written=parts.writer.bytes_written if parts else 0,
            buffered_bytes=parts.ring.head - parts.ring.tail if parts else 0,
            failures=parts.writer.failures if parts else 0,
            recovered=parts.recovered if parts else 0,
        )

    async def start(self) -> None:
        """Open the log, and bring over what a killed process left in the ring.

        Raises:
            AuditUnavailable: when it cannot be written, when another process writes it, when it is open
                already, and for a path or a ring that is not ours to write.
        """
        if self._is_open:
            raise AuditUnavailable(self.path, "it is open already; each bus needs a log of its own")
        self._parts = await anyio.to_thread.run_sync(self._open)
        self._is_open = True
        self._seq = 0
        self._put = self._parts.ring.put
        _logs.add(self)

    def _open(self) -> _Parts:
        try:
            return _open(self.path, self._buffer)
        except AuditUnavailable:
            raise
        except OSError as error:
            raise AuditUnavailable(self.path, reason_of(error)) from error

    async def aclose(self) -> None:
        """Wait until all that was recorded is in the file, and close the log; it may be started again.

        The log closes in any case. A disk that stands still is waited for ten seconds.

        Raises:
            AuditUnavailable: when records stay in the ring, for the next ``start()``.
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
            raise AuditUnavailable(self.path, f"{reason}; {where}")

    def _abandon(self) -> None:
        """Let go, in a forked child: the log belongs to the parent, and its lock must not outlive it."""
        self._is_open = False
        self._put = self._refuse_in_child
        if self._parts is not None:
            self._parts.ring.close_files()
            self._parts.file.close()

    def _refuse_in_child(self, _line: bytes) -> NoReturn:
        raise AuditUnavailable(self.path, "it belongs to the process that this one was forked from")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an open log consists of."""

    file: LogFile
    ring: Ring
    writer: Writer
    recovered: int

    def close(self) -> int:
        """Write what there is, let go of the files, and return how many records stay in the ring. Waits."""
        left = self.writer.stop()
        if self.writer.is_stuck:
            return left  # the thread still uses the files
        if not left:
            self.ring.remove()
        self.file.close()
        self.ring.close()
        return left


def _open(path: Path, capacity: int) -> _Parts:
    absolute = path.absolute()  # the process may change its folder
    absolute.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ring_path = absolute.with_name(f"{absolute.name}.ring")
    with ExitStack() as on_failure:
        file = LogFile(absolute)
        on_failure.callback(file.close)
        fd = lock(ring_path, path)
        on_failure.callback(os.close, fd)
        recovered = recover(ring_path, fd, file)
        ring = Ring(ring_path, fd, capacity, file.identity, file.size)
        on_failure.pop_all()
    writer = Writer(ring, file, path)
    writer.start()
    return _Parts(file, ring, writer, recovered)


_logs: WeakSet[AuditLog] = WeakSet()


def _abandon_all() -> None:
    for log in tuple(_logs):
        log._abandon()


# A flag that costs nothing as long as nobody forks, where asking for the process id would cost each record.
os.register_at_fork(after_in_child=_abandon_all)
