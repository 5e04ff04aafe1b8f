"""Showing how far a replay or a filter is, on a terminal and nowhere else."""

from __future__ import annotations

import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from aperion.cli.screen import DEBUG, console, safe

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from aperion.cli.tally import Rejection

_EVERY = 0.1  # seconds between two updates


class Reporter:
    """Tells standard error what goes on: bad lines always, progress where somebody watches."""

    # Mutable: the time of the last update, and the position before the batch under way.
    __slots__ = ("_before", "_console", "_last", "_position", "_progress", "_start", "_task")

    def __init__(self, total: int | None, doing: str = "replaying", what: str = "events") -> None:
        self._console = console(sys.stderr)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn(f"{{task.fields[events]:,}} {what}, {{task.fields[rate]:,.0f}}/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
            redirect_stdout=False,  # what is printed there belongs to a file, or a pipe
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(doing, total=total, events=0, rate=0.0)
        self._start = self._last = time.monotonic()
        self._before = self._position = 0

    def __enter__(self) -> Self:
        """Start to show."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear away the progress."""
        self.close()

    def close(self) -> None:
        """Clear away the progress; fine to do twice."""
        self._progress.stop()

    def advance(self, events: int, position: int, share: float) -> None:
        """Tell that so many lines are done, and the given share of those that end at ``position``."""
        if position != self._position:
            self._before, self._position = self._position, position
        now = time.monotonic()
        if now - self._last >= _EVERY:
            self._last = now
            self._update(events, completed=self._before + (position - self._before) * share)

    def reject(self, rejection: Rejection) -> None:
        """Show a bad line."""
        self._show(("bad line ", "yellow"), f"{rejection.line}: {safe(rejection.reason)}")

    def note(self, text: str) -> None:
        """Show a remark."""
        self._show(text)

    def finishing(self, events: int) -> None:
        """Show that all lines are read, and the rest is waiting."""
        self._update(events, completed=self._position, description="finishing")

    def failure(self, error: BaseException) -> None:
        """Show the traceback of an error where tracebacks were asked for."""
        if DEBUG in sys.argv:
            self._console.print("".join(traceback.format_exception(error)), soft_wrap=True)

    def _update(self, events: int, **changes: Any) -> None:
        rate = events / max(time.monotonic() - self._start, _EVERY)
        self._progress.update(self._task, events=events, rate=rate, **changes)

    def _show(self, *parts: str | tuple[str, str]) -> None:
        self._console.print(Text.assemble(*parts), soft_wrap=True)
