"""What one line of a replayed file says: an event to be emitted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from aperion.audit.predecessor import is_of_old_bus, is_old
from aperion.context import MAX_ID_LENGTH, is_valid_correlation_id
from aperion.errors import SerializationError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

FIELDS = frozenset({"type", "payload", "id", "time", "correlation_id", "key", "source", "headers"})

_NAMES = {"event_type": "type", "event_id": "id", "timestamp": "time"}  # of aperion-event-bus 1.2.1
_LONGEST_TEXT = 1024
_END_OF_TIME = 253_402_300_800  # the year 10000, which RFC 3339 cannot write
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_JSON_PLACE = re.compile(r" at line \d+ column (\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An event as a line tells it; ``unknown`` holds the names of fields that mean nothing here."""

    type: str
    payload: Mapping[str, Any]
    id: str | None = None
    time: float | None = None
    correlation_id: str | None = None
    key: str | None = None
    source: str | None = None
    headers: Mapping[str, str] | None = None
    unknown: frozenset[str] = frozenset()


def parse(line: bytes) -> Record | None:
    """Read one line; None for one of an old log that tells of the old bus itself, and not of an event.

    Lines of aperion-event-bus are read too: they have other names for the type, the id and the time.

    Raises:
        SerializationError: for a line that is no JSON object.
        ValidationError: for a field that is missing or of the wrong kind.
    """
    fields = _object(line)
    if is_old(fields):
        if is_of_old_bus(fields):
            return None
        fields = {_NAMES.get(name, name): value for name, value in fields.items()}
    missing = [name for name in ("type", "payload") if name not in fields]
    if missing:
        raise ValidationError(f"the line has no {' and no '.join(map(repr, missing))}; an event needs both")
    return Record(
        type=_typed(fields, "type", str, "a string"),
        payload=_typed(fields, "payload", dict, "an object"),
        id=_text(fields, "id"),
        time=_time(fields.get("time")),
        correlation_id=_correlation_id(fields),
        key=_text(fields, "key"),
        source=_text(fields, "source"),
        headers=_headers(fields),
        unknown=frozenset(fields) - FIELDS,
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = from_json(line, allow_inf_nan=False)  # keeps integers beyond 64 bits, which orjson turns into floats
    except ValueError as error:
        text = _JSON_PLACE.sub(r" at column \1", str(error))
        raise SerializationError(f"the line is not JSON: {text}") from None
    if not isinstance(value, dict):
        raise SerializationError(f"the line holds {_kind(value)}, and an event is an object")
    return value


def _typed(fields: Mapping[str, Any], name: str, kind: type, wanted: str) -> Any:
    value = fields[name]
    if not isinstance(value, kind):
        raise ValidationError(f"{name!r} is {_kind(value)}, and must be {wanted}", fields=(name,))
    return value


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    if fields.get(name) is None:
        return None
    value: str = _typed(fields, name, str, "a string")
    if not 0 < len(value) <= _LONGEST_TEXT:
        raise ValidationError(
            f"{name!r} has {len(value):,} characters; 1 to {_LONGEST_TEXT:,} are allowed", fields=(name,)
        )
    return value


def _correlation_id(fields: Mapping[str, Any]) -> str | None:
    value = _text(fields, "correlation_id")
    if value is not None and not is_valid_correlation_id(value):
        raise ValidationError(
            f"'correlation_id' is no correlation id: use 1 to {MAX_ID_LENGTH} letters, digits and '._:/+=-'",
            fields=("correlation_id",),
        )
    return value


def _headers(fields: Mapping[str, Any]) -> Mapping[str, str] | None:
    if fields.get("headers") is None:
        return None
    headers: dict[str, str] = _typed(fields, "headers", dict, "an object")
    wrong = [value for value in headers.values() if not isinstance(value, str)]
    if wrong:
        raise ValidationError(f"'headers' holds {_kind(wrong[0])}, and may hold strings only", fields=("headers",))
    return headers


def _time(value: object) -> float | None:
    if value is None:
        return None
    seconds = _rfc_3339(value) if isinstance(value, str) else value
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise ValidationError("'time' is neither a number nor a time such as '2024-05-01T12:00:00Z'", fields=("time",))
    if not (math.isfinite(seconds) and 0 <= seconds < _END_OF_TIME):
        raise ValidationError("'time' lies outside the years 1970 to 9999; it is in seconds", fields=("time",))
    return float(seconds)


def _rfc_3339(value: str) -> float | None:
    if not _RFC_3339.fullmatch(value):
        return None
    try:
        return datetime.fromisoformat(value.upper()).timestamp()
    except ValueError:  # such as the 31st of February
        return None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
