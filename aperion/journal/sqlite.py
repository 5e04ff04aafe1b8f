"""The journal in SQLite: accepted events survive the process, and a new one goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aperion.errors import ConfigurationError, explains_options, positive
from aperion.journal.options import Level, Options

if TYPE_CHECKING:
    import os


class SQLiteJournal:
    """Keeps accepted events in a folder until their handlers are done: ``EventBus(journal=SQLiteJournal("state/"))``.

    Each process that runs a bus with this folder has a slot of its own in it, and takes over those of processes
    that are gone. Payloads stand there as they are, and are not redacted; the folder is for its owner alone.

    Args:
        folder: where the files are; made where it is missing.
        level: ``"disk"``: accepted events survive a power cut, and ``emit`` waits for the device. ``"process"``:
            they survive the death of the process, and not that of the machine.
        max_starts: how often a handler may take the process down before its delivery becomes a dead letter.
        window: seconds for which the ids of accepted events are remembered, so that one that comes again is
            not handled again; at least this long, and no more than about two million ids.

    Raises:
        ConfigurationError: for an option that makes no sense.
        TypeError: for an option that there is not.
    """

    __slots__ = ("folder", "options")

    @explains_options("SQLiteJournal")
    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        level: Literal["disk", "process"] = "disk",
        max_starts: int = 3,
        window: float = 86_400.0,
    ) -> None:
        positive("max_starts", max_starts, whole=True)
        positive("window", window)
        try:
            chosen = Level(level)
        except ValueError:
            raise ConfigurationError(f"level={level!r} is not a choice; use 'disk' or 'process'") from None
        self.folder = Path(folder)
        self.options = Options(level=chosen, max_starts=max_starts, window=window)

    def __repr__(self) -> str:
        """Show where it is, and how safe."""
        return f"<SQLiteJournal in {self.folder}, level {self.options.level.value}>"
