"""The logger of the library: structlog's, as the user configured it, loaded when the first line is written."""

from __future__ import annotations

import threading
from typing import Any


class Logger:
    """Pass lines on to ``structlog.get_logger("aperion")``.

    Importing structlog loads rich where it is installed, and takes longer than the rest of the core.
    A line that is written while one is written, on the same thread, is left out: where a log handler
    emits events, the lines about these would never end.
    """

    __slots__ = ()

    def debug(self, message: str, **fields: Any) -> None:
        """Write what only few want to know."""
        self._write("debug", message, fields)

    def info(self, message: str, **fields: Any) -> None:
        """Write what happened."""
        self._write("info", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        """Write what somebody should look at."""
        self._write("warning", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        """Write what went wrong."""
        self._write("error", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, Any]) -> None:
        if getattr(_writing, "now", False):
            return
        import structlog

        _writing.now = True
        try:
            getattr(structlog.get_logger("aperion"), level)(message, **fields)
        finally:
            _writing.now = False


_writing = threading.local()

logger = Logger()
