"""What a bus is told when it is made, where it is in its life, and what it says at the end."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class OverflowPolicy(enum.Enum):
    """What happens to a new event when ``max_pending_events`` are accepted and unsettled."""

    BLOCK = "block"
    RAISE = "raise"
    DROP = "drop"
    DROP_OLDEST = "drop_oldest"


class BusState(enum.Enum):
    """Where a bus is in its life."""

    STOPPED = "stopped"
    RUNNING = "running"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The numbers of a bus; see ``EventBus``."""

    max_concurrent_events: int
    max_concurrent_handlers: int
    overflow_policy: OverflowPolicy
    watchdog: float | bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What a drain left behind.

    Args:
        settled: events that settled while it drained.
        unfinished: event type and id of those that did not; they are among the dead letters, or in the journal.
        seconds: how long it took.
    """

    settled: int
    unfinished: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything settled in time."""
        return not self.unfinished
