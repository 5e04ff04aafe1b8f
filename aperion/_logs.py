"""The logger of the library: structlog's, as the user configured it, loaded when the first line is written.

As long as nobody has configured structlog, lines go to standard error: what a program prints is its own.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import Any


class Logger:
    """Pass lines on to ``structlog.get_logger("aperion")``.

    Importing structlog loads rich where it is installed, and takes longer than the rest of the core.
    What a logger of the user's raises is kept from the bus.
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

    def critical(self, message: str, **fields: Any) -> None:
        """Write what must not happen."""
        self._write("critical", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, Any]) -> None:
        if getattr(_writing, "now", False):
            return
        import structlog

        _writing.now = True
        logger = structlog.get_logger("aperion")
        if not structlog.is_configured():
            logger = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
        try:
            getattr(logger, level)(message, **fields)
        except UnicodeError:  # half a surrogate pair, which no stream takes
            escaped = {name: _escaped(value) for name, value in fields.items()}
            with suppress(Exception):
                getattr(logger, level)(message, **escaped)
        except KeyboardInterrupt:  # somebody at the keyboard, and no doing of the log
            raise
        except BaseException:  # noqa: BLE001, S110 - a log that cannot be written must not hurt what it tells of
            pass
        finally:
            _writing.now = False


_writing = threading.local()


def _escaped(value: Any) -> Any:
    return value.encode("ascii", "backslashreplace").decode() if isinstance(value, str) else value


logger = Logger()
