"""The audit log of a bus."""

from __future__ import annotations

import errno
import os
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
    """Appends one line of JSON for each accepted event and each outcome; what was recorded survives ``kill -9``.

    A record is copied into ``<path>.ring``, which is memory shared with the system, and a thread writes
    it to the file. The next ``start()`` brings over what a killed process left there, each line once;
    a line that was torn goes to ``<path>.torn``. What a power cut does is up to the file system.

    Lines are plain ASCII. Every one about an event has ``seq`` (1, 2, 3 … since the log was opened),
    ``time`` (nanoseconds since the epoch), ``kind``, ``event_id``, ``type``, ``correlation_id``,
    ``hops`` and, where there is one, ``key``, ``source`` and ``causation_id``.

    ==================  ==================================================================
    kind                further fields
    ==================  ==================================================================
    ``accepted``        ``payload``, and ``headers`` where there are any; both redacted
    ``outcome``         ``subscription``, ``attempt``, ``state``, ``duration`` in seconds;
                        after a failure ``error_type`` and ``error``, redacted
    what is noted       ``detail``, redacted
    ``log``             ``detail`` about the log itself; no event, and no ``seq``
    ==================  ==================================================================

    Whatever JSON has no form for gets one: dates and UUIDs their ISO text, decimals and paths their
    text, bytes as Latin-1, sets as lists, keys as text, infinities as ``"inf"``, a lone surrogate as
    ``\\\\udc80`` in six characters, and an object of any other class ``"<Class>"``. A part of a record
    too large for half the buffer becomes ``{"[TOO_LARGE]": bytes}``.

    Args:
        path: of the file, made with mode 0600 in a folder made with mode 0700; no link.
        redactor: hides what nobody should read; by default that of the bus.
        buffer_bytes: size of the ring, 64 KiB or more.

    Raises:
        ConfigurationError: for a buffer that is too small.
    """

    # Mutable: which of these the log is open with, and the number of the last record.
    __slots__ = (
        *("__weakref__", "_buffer", "_file", "_largest", "_put", "_recovered", "_redactor"),
        *("_ring", "_seq", "_writer", "path"),
    )

    def __init__(
        self, path: str | os.PathLike[str], *, redactor: Redactor | None = None, buffer_bytes: int = _DEFAULT
    ) -> None:
        if buffer_bytes < _SMALLEST:
            raise ConfigurationError(f"buffer_bytes={buffer_bytes!r} is too small; pass {_SMALLEST:,} or more")
