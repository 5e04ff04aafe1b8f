"""Whoever may refuse an acceptance: what the engine asks of an audit log, whatever that can do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from aperion.errors import ConfigurationError, shown
from aperion.outcomes import Outcome
from aperion.protocols import AuditSink

if TYPE_CHECKING:
    from aperion.events import Event
    from aperion.outcomes import Attempt
    from aperion.protocols import Recorder
    from aperion.redaction import Redactor


def recorder_of(audit: object, redactor: Redactor) -> tuple[AuditSink | None, Recorder | None]:
    """Return the audit log of a bus, and what records for this bus alone, with its redactor.

    Raises:
        ConfigurationError: for something that is no audit log, and no path of one.
    """
    if audit is None:
        return None, None
    if isinstance(audit, str | os.PathLike):
        from aperion.audit import AuditLog  # a bus without a log needs none of it

        audit = AuditLog(audit)
    if isinstance(audit, type) or not isinstance(audit, AuditSink):
        raise ConfigurationError(
            f"audit={shown(audit)} is no audit log; pass aperion.AuditLog(...), the path of one, or an object with "
            "accepted, ended, noted, start and aclose"
        )
    make = getattr(audit, "recorder", None)
    return audit, SinkRecorder(audit) if make is None else make(redactor)


class SinkRecorder:
    """A sink of the user's own, which never asks anybody to wait."""

    __slots__ = ("_sink", "accepted", "ended", "noted")

    waits_for_disk = False
    is_crowded = False

    def __init__(self, sink: AuditSink) -> None:
        self._sink = sink
        self.accepted: Any = sink.accepted
        self.ended: Any = sink.ended
        self.noted: Any = sink.noted

    def attempted(self, event: Event[Any], subscription: str, attempt: Attempt) -> None:
        """Hand on how an attempt ended."""
        self.ended(event, Outcome(subscription, attempt.state, (attempt,)))

    def wants(self, kind: str) -> bool:
        """Tell whether records of a kind are written; what a sink was not made for, it is not told."""
        return kind != "handler_started"

    def when_synced(self) -> None:
        """Return nothing to wait for."""

    async def room(self) -> None:
        """Wait for nothing."""

    def room_for_thread(self) -> None:
        """Wait for nothing."""

    def buffered_bytes(self) -> int | None:
        """Return nothing: a sink does not tell."""
        return None

    async def start(self) -> None:
        """Open the sink."""
        await self._sink.start()

    async def aclose(self) -> None:
        """Close it."""
        await self._sink.aclose()
