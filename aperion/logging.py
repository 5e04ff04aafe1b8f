"""Log lines without secrets and with the ids of what they belong to: structlog processors, and one call that sets up.

Importing this module configures nothing; ``configure`` does.
"""

from __future__ import annotations

import json as standard_json
import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TextIO

import orjson
import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter

from aperion.context import current_event, get_correlation_id
from aperion.errors import ConfigurationError
from aperion.events import jsonable
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    EventDict = MutableMapping[str, Any]

WITHHELD: Final = "[REDACTED_ERROR]"
_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME  # for the reason, see aperion.events
_KEPT: Final = ("level", "timestamp", "logger", "_record", "_from_structlog")


class Redact:
    """A structlog processor that redacts a whole line: the text, every field, exceptions, tracebacks.

    It goes right before the renderer, after whatever renders exceptions. Exceptions that are not
    rendered by then are: as text, without local variables. It never raises: a line that cannot be
    redacted goes out with its text and fields withheld, and says so.

    Args:
        redactor: hides what nobody should read; one with the defaults if None.
    """

    __slots__ = ("_redactor",)

    def __init__(self, redactor: Redactor | None = None) -> None:
        self._redactor = Redactor() if redactor is None else redactor

    def __call__(self, logger: Any, method_name: str, event_dict: EventDict) -> EventDict:  # noqa: ARG002 - structlog's
        """Return the line, redacted."""
        kept = {name: event_dict[name] for name in _KEPT if name in event_dict}
        try:
            return self._redacted(event_dict) | kept
        except Exception as error:  # noqa: BLE001 - the line is not to be lost, nor what calls the logger to fail
            return {"event": WITHHELD, "redaction_error": type(error).__name__} | kept

    def _redacted(self, event_dict: EventDict) -> dict[str, Any]:
        fields = {name: value for name, value in event_dict.items() if name not in _KEPT}
        error = _exception(fields.pop("exc_info", None))
        if error is not None:
            fields["exception"] = self._redactor.redact_exception(error)[1]
        for name in ("exception", "stack", "stack_info"):
            if isinstance(fields.get(name), list):
                fields[name] = _without_locals(fields[name])
        shown = self._redactor.redact(fields)
        if not isinstance(shown, dict):
            return {"event": shown}
        return shown


def bind_correlation(logger: Any, method_name: str, event_dict: EventDict) -> EventDict:  # noqa: ARG001 - structlog's
    """Add ``correlation_id``, and ``event_id`` and ``event_type`` of the event being handled, to a line.

    Inside a span of OpenTelemetry, ``trace_id`` and ``span_id`` too, as hex digits. What the line has
    already stays, and outside of events, spans and ``CorrelationContext`` nothing is added.
    """
    correlation_id = get_correlation_id()
    if correlation_id is not None:
        event_dict.setdefault("correlation_id", correlation_id)
    event = current_event()
    if event is not None:
        event_dict.setdefault("event_id", event.event_id)
        event_dict.setdefault("event_type", event.event_type)
    trace = sys.modules.get("opentelemetry.trace")  # without which there is no span
    span = trace.get_current_span().get_span_context() if trace is not None else None
    if span is not None and span.is_valid:
        event_dict.setdefault("trace_id", f"{span.trace_id:032x}")
        event_dict.setdefault("span_id", f"{span.span_id:016x}")
    return event_dict


redact: Final = Redact()
"""The processor with the default redactor."""


def configure(
    *,
    level: int | str = "INFO",
    json: bool | None = None,
    redactor: Redactor | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send structlog and the standard library's loggers through one chain: ids, redaction, rendering.

    Lines are JSON, one object each, unless they go to a terminal; there they are coloured text. Calling it
    again replaces what it set up; handlers of the user's own stay. Times are UTC.

    Args:
        level: the least level that is written.
        json: True for JSON, False for text, None to decide by the stream.
        redactor: hides what nobody should read; one with the defaults if None.
        stream: where to write; standard error if None.

    Raises:
        ConfigurationError: for a level that does not exist.
    """
    out = sys.stderr if stream is None else stream
    to_terminal = not json if json is not None else out.isatty()
    handler = _Handler(out)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*_before(), ExtraAdder()],
            processors=[ProcessorFormatter.remove_processors_meta, Redact(redactor), _renderer(to_terminal)],
        )
    )
    root = logging.getLogger()
    root.setLevel(_level(level))
    for other in [other for other in root.handlers if isinstance(other, _Handler)]:
        root.removeHandler(other)
    root.addHandler(handler)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_before(),
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


class _Handler(logging.StreamHandler[TextIO]):
    """The handler of ``configure``; told from others by its class."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Say that a line is lost, without the message and the arguments that the standard library would print."""
        error = sys.exc_info()[1]
        sys.stderr.write(f"a log line of {record.name} could not be written: {type(error).__name__}\n")


def _before() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        bind_correlation,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _renderer(to_terminal: bool) -> Callable[[Any, str, EventDict], str]:  # noqa: FBT001 - of this module only
    if to_terminal:
        return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    return _as_json


def _as_json(logger: Any, method_name: str, event_dict: EventDict) -> str:  # noqa: ARG001 - structlog's
    try:
        return orjson.dumps(event_dict, default=jsonable, option=_OPTIONS).decode()
    except (TypeError, ValueError):  # integers beyond 64 bits, half a surrogate pair
        return standard_json.dumps({str(name): value for name, value in event_dict.items()}, default=str)


def _level(level: int | str) -> int:
    known = logging.getLevelNamesMapping()
    number = known.get(level.upper()) if isinstance(level, str) else level
    if not isinstance(number, int) or isinstance(number, bool):
        raise ConfigurationError(
            f"level={level!r} is no level; pass one of {', '.join(sorted(known, key=known.__getitem__))}"
        )
    return number


def _exception(exc_info: object) -> BaseException | None:
    """Return the exception that a line is about: it may be given, in a tuple, or as the one being handled."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return next((part for part in exc_info if isinstance(part, BaseException)), None)
    return sys.exc_info()[1] if exc_info else None


def _without_locals(rendered: Any) -> Any:
    """Return the output of structlog's ``dict_tracebacks`` without the local variables of its frames."""
    if isinstance(rendered, dict):
        return {name: _without_locals(value) for name, value in rendered.items() if name != "locals"}
    if isinstance(rendered, list):
        return [_without_locals(item) for item in rendered]
    return None if isinstance(rendered, TracebackType) else rendered
