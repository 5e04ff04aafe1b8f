"""What a piece of code belongs to: the event being handled, and the correlation id."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, NamedTuple

from aperion.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from aperion.events import Event

CORRELATION_ID_HEADER = "X-Correlation-ID"
REQUEST_ID_HEADER = "X-Request-ID"
MAX_ID_LENGTH = 128
"""Characters in an id from outside; W3C Trace Context ids have 32, UUIDs 36."""

_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/+=\-]{{0,{MAX_ID_LENGTH - 1}}}")


class Scope(NamedTuple):
    """A correlation id that the user set, and the event around it, if any."""

    correlation_id: str | None
    event: Event[Any] | None


# The event being handled, or the scope that the user opened. One variable, because setting and
# resetting each costs 50 ns for every event.
current: ContextVar[Event[Any] | Scope | None] = ContextVar("aperion_current", default=None)


def current_event() -> Event[Any] | None:
    """Return the event that is being handled here, in threads of sync handlers too; None outside."""
    scope = current.get()
    return scope.event if isinstance(scope, Scope) else scope


def get_correlation_id() -> str | None:
    """Return the correlation id of the context, or of the event being handled; None without either."""
    scope = current.get()
    return None if scope is None else scope.correlation_id


def set_correlation_id(correlation_id: str) -> None:
    """Set the correlation id for the rest of this context.

    Raises:
        ValueError: for text that is no id, see ``is_valid_correlation_id``.
    """
    current.set(Scope(_checked(correlation_id), current_event()))


def clear_correlation_id() -> None:
    """Forget the correlation id of this context; inside a handler, that of its event too."""
    event = current_event()
    current.set(Scope(None, event) if event is not None else None)


def generate_correlation_id() -> str:
    """Return a new id: a UUID version 4 (RFC 9562) as text of 36 characters."""
    return str(uuid.uuid4())


def is_valid_correlation_id(value: object) -> bool:
    """Tell whether a value may be an id: 1 to 128 of letters, digits and ``._:/+=-``, starting with a letter or digit.

    Spaces, line breaks and ``@`` are refused: ids stand in logs and headers as they are.
    """
    return isinstance(value, str) and bool(_ID.fullmatch(value))


class CorrelationContext:
    """Give everything inside the block a correlation id; may be nested and entered again.

    >>> with CorrelationContext("req-123") as correlation_id:
    ...     get_correlation_id()
    'req-123'
    >>> get_correlation_id() is None
    True

    Args:
        correlation_id: the id; a new one for each block when None.

    Raises:
        ValueError: for text that is no id, see ``is_valid_correlation_id``.
    """

    # Mutable: one token for each block that is open, since the same object may be entered again.
    __slots__ = ("_id", "_tokens")

    def __init__(self, correlation_id: str | None = None) -> None:
        self._id = None if correlation_id is None else _checked(correlation_id)
        self._tokens: list[Token[Event[Any] | Scope | None]] = []

    def __enter__(self) -> str:
        """Open the block and return its id."""
        correlation_id = self._id or generate_correlation_id()
        self._tokens.append(current.set(Scope(correlation_id, current_event())))
        return correlation_id

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the block: what was there before is there again."""
        current.reset(self._tokens.pop())


def extract_correlation_id_from_headers(
    headers: Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]],
) -> str:
    """Return the id in ``X-Correlation-ID``, else in ``X-Request-ID``, else a new one.

    Names in any letter case, as text or as the bytes of ASGI. What is no valid id is not taken over.
    """
    pairs = headers.items() if hasattr(headers, "items") else headers
    found = {_text(name).lower(): _text(value).strip() for name, value in pairs}
    candidates = (found.get(CORRELATION_ID_HEADER.lower()), found.get(REQUEST_ID_HEADER.lower()))
    return next((c for c in candidates if c and is_valid_correlation_id(c)), None) or generate_correlation_id()


def get_headers_with_correlation(headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a copy of the headers with ``X-Correlation-ID`` added where there is an id."""
    correlation_id = get_correlation_id()
    added = {CORRELATION_ID_HEADER: correlation_id} if correlation_id else {}
    return {**(headers or {}), **added}


def add_correlation_to_log_extra(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a copy of a logging call's ``extra`` with ``correlation_id`` added where there is one."""
    correlation_id = get_correlation_id()
    added = {"correlation_id": correlation_id} if correlation_id else {}
    return {**(extra or {}), **added}


def _checked(correlation_id: str) -> str:
    if not is_valid_correlation_id(correlation_id):
        raise ValueError(
            f"{shown(correlation_id)} is no correlation id: use 1 to {MAX_ID_LENGTH} letters, digits and '._:/+=-', "
            "starting with a letter or digit"
        )
    return correlation_id


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
