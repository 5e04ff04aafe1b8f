"""What a piece of code belongs to: the event being handled, and the correlation id."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

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


class Here(Protocol):
    """What code runs for: one pass of the engine over an event, or a scope that somebody opened in it."""

    @property
    def correlation_id(self) -> str | None:
        """The id that what is emitted here gets."""

    @property
    def event(self) -> Event[Any] | None:
        """The event that is handled here, if any."""

    @property
    def unit(self) -> Any:
        """The work of the engine that this is part of, if any."""


class Scope:
    """A correlation id that the user set, or a copy of an event that one handler got."""

    # Never changed.
    __slots__ = ("correlation_id", "event", "outer", "owner", "unit")

    def __init__(
        self, correlation_id: str | None, event: Event[Any] | None, outer: Here | None, owner: object = None
    ) -> None:
        self.correlation_id = correlation_id
        self.event = event
        self.outer = outer  # what is there again when its block ends
        self.owner = owner  # the block
        self.unit = None if outer is None else outer.unit


# One variable for all of it, because setting and resetting each costs 50 ns for every event.
current: ContextVar[Here | None] = ContextVar("aperion_current", default=None)
here_now, be_here = current.get, current.set  # an imported name is looked up in full for each call of a method


def handing(event: Event[Any], unit: Here | None) -> Scope:
    """Return the scope of a handler that got a copy of an event for itself."""
    return Scope(event.correlation_id, event, unit)


def go(here: Here | None) -> None:
    """Be somewhere else in this context, and have the engine notice: the next handler begins where its event is."""
    current.set(here)
    if here is not None and here.unit is not None:
        here.unit.moved = True


def _around() -> Here | None:
    """Return what is here, without what ``set_correlation_id`` has set: a chain of those would never end."""
    here = current.get()
    return here.outer if isinstance(here, Scope) and here.owner is None else here


def current_event() -> Event[Any] | None:
    """Return the event that is being handled here, in threads of sync handlers too; None outside."""
    here = current.get()
    return None if here is None else here.event


def get_correlation_id() -> str | None:
    """Return the correlation id of the context, or of the event being handled; None without either."""
    here = current.get()
    return None if here is None else here.correlation_id


def set_correlation_id(correlation_id: str) -> None:
    """Set the correlation id for the rest of this context.

    Raises:
        ValueError: for text that is no id, see ``is_valid_correlation_id``.
    """
    go(Scope(_checked(correlation_id), current_event(), _around()))


def clear_correlation_id() -> None:
    """Forget the correlation id of this context; inside a handler, that of its event too."""
    event = current_event()
    go(None if event is None else Scope(None, event, _around()))


def generate_correlation_id() -> str:
    """Return a new id: a UUID version 4 (RFC 9562) as text of 36 characters."""
    return str(uuid.uuid4())


def is_valid_correlation_id(value: object) -> bool:
    """Tell whether a value may be an id: 1 to 128 of letters, digits and ``._:/+=-``, starting with a letter or digit.

    Spaces, line breaks and ``@`` are refused: ids stand in logs and headers as they are.
    """
    return isinstance(value, str) and bool(_ID.fullmatch(value))


class CorrelationContext:
    """Give everything inside the block a correlation id; may be nested, entered again, and shared by tasks.

    A block that is left in another context than it was entered in, as generators of frameworks do, changes
    nothing there.

    Examples:
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

    __slots__ = ("_id",)  # nothing of a block that is open: several tasks may have opened one each

    def __init__(self, correlation_id: str | None = None) -> None:
        self._id = None if correlation_id is None else _checked(correlation_id)

    def __enter__(self) -> str:
        """Open the block and return its id."""
        correlation_id = self._id or generate_correlation_id()
        go(Scope(correlation_id, current_event(), current.get(), self))
        return correlation_id

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the block: what was there before is there again."""
        here = current.get()
        while isinstance(here, Scope) and here.owner is not self:  # set_correlation_id() inside the block
            here = here.outer
        if isinstance(here, Scope):
            go(here.outer)


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
