"""Where log lines go while the command runs, as long as the application does not say so itself."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from aperion.cli.screen import DEBUG, safe

_OURS = "aperion"


def log_to_stderr() -> None:
    """Show what is logged on standard error, and what is logged for debugging with ``--debug`` only.

    Values are shown as Python writes them, so that no control character reaches the terminal; a
    traceback, or the stack of what holds up the loop, is shown below its line. An application that calls ``structlog.configure`` when it is imported overrides all of this.
    """
    if DEBUG in sys.argv:
        logging.getLogger(_OURS).setLevel(logging.DEBUG)  # whole tracebacks, and what went well
    _configure(_to_stderr)


def log_others_to_stderr() -> None:
    """Do the same, but for what the bus logs: where a summary follows, that says it all."""
    _configure(_to_stderr if DEBUG in sys.argv else _others_to_stderr)


def _configure(factory: Any) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if DEBUG in sys.argv else logging.INFO),
        logger_factory=factory,
    )


_fields = structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"], drop_missing=True)


def _rendered(logger: Any, method_name: str, event_dict: Any) -> str:
    """Return a line of fields, and below it the stack and the traceback, if there are any."""
    below = [str(event_dict.pop(name, None) or "") for name in ("stack", "exception")]
    line = str(_fields(logger, method_name, event_dict))
    return "\n".join([line, *(safe(each) for text in below for each in text.splitlines())])


def _to_stderr(*_name: str) -> structlog.PrintLogger:
    return structlog.PrintLogger(sys.stderr)


def _others_to_stderr(*name: str) -> structlog.PrintLogger | structlog.ReturnLogger:
    return structlog.ReturnLogger() if name == (_OURS,) else structlog.PrintLogger(sys.stderr)
