"""What a journal can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """What an accepted event survives."""

    PROCESS = "process"
    """The death of the process, ``kill -9`` included; not that of the machine."""
    DISK = "disk"
    """A power cut: ``emit`` waits until the device has the event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How safe, and how much is remembered; see ``SQLiteJournal``."""

    level: Level = Level.DISK
    max_starts: int = 3
    window: float = 86_400.0
    remembered: int = 1_000_000

    @property
    def durable(self) -> bool:
        """Whether a commit waits for the device."""
        return self.level is Level.DISK
