"""Turn events and outcomes into lines of plain ASCII, ready for the chain; nothing here waits, and nothing raises."""

from __future__ import annotations

import json
import re
from collections import Counter
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

import orjson
from pydantic_core import from_json

from aperion.events import jsonable
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aperion.events import Event
    from aperion.outcomes import Attempt, Outcome, OutcomeState

UNREDACTABLE: Final = "[REDACTED_ERROR]"
"""Stands for what the redactor raised at: a record without it is better than none, and than a secret."""

TOO_LARGE: Final = "[TOO_LARGE]"

# A UUID, or a word such as order-42: nothing that a redactor would hide, and 150 ns cheaper than
# asking one. No more than six digits in a row, since more may be the number of something.
_PLAIN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[A-Za-z][A-Za-z_.\-]{0,40}+[0-9]{0,6}").fullmatch
_ODD = re.compile(r"[^ -~\n]+")
_DELETE: Final = 0x7F
"""ASCII, and yet no character that a terminal should get."""
_LONGEST_NUMBER = 14_000
"""Bits; ``str`` refuses an integer of more than 4,300 digits, and ``hex`` does not."""
_LONGEST_CUT = 256
_DIGITS: Final = bytes.maketrans(b"123456789", b"0" * 9)
_BEYOND_64_BITS: Final = b"0" * 20
_OPTIONS: Final = orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATETIME  # for the reason, see aperion.events
_INFINITE = float("inf")


def accepted(event: Event[Any], redactor: Redactor) -> bytes:
    """Return the line for an event that was accepted, its payload redacted."""
    fields = _envelope("accepted", event, redactor)
    if event.headers:
        fields["headers"] = _redacted(redactor.redact, event.headers)
    if type(redactor) is not Redactor:
        fields["payload"] = _redacted(redactor.redact, event.payload)
        return line(fields)
    found = _Found()
    fields["payload"] = redactor.redact(event.payload, found)
    if found:
        fields["redacted"] = Counter(found)
    return line(fields)


class _Found(list[str]):
    """The types of what was hidden; made in a sixth of the time of a Counter, which most records do not need."""

    __slots__ = ()

    def update(self, types: Iterable[str], /) -> None:
        self.extend(types)


def ended(event: Event[Any], outcome: Outcome, redactor: Redactor) -> bytes:
    """Return the line for the end of a delivery, or of one attempt of it."""
    attempts = outcome.attempts
    last = attempts[-1] if attempts else None
    seconds = outcome.duration if last is None or len(attempts) > 1 else last.duration
    return _ended(event, outcome.subscription, last, outcome.state, seconds, redactor)


def attempted(event: Event[Any], subscription: str, attempt: Attempt, redactor: Redactor) -> bytes:
    """Return the line for the end of one attempt."""
    return _ended(event, subscription, attempt, attempt.state, attempt.duration, redactor)


def _ended(
    event: Event[Any],
    subscription: str,
    attempt: Attempt | None,
    state: OutcomeState,
    seconds: float,
    redactor: Redactor,
) -> bytes:
    fields = _envelope("outcome", event, redactor)
    fields["subscription"] = subscription
    if attempt is not None:
        fields["attempt"] = attempt.number
    fields["state"] = state._value_  # what value is, in a tenth of the time
    fields["duration"] = round(seconds * 1e9) / 1e9
    if attempt is not None and attempt.error is not None:
        fields["error_type"] = type(attempt.error).__name__
        fields["error"] = _redacted(_message, (redactor, attempt.error))
    if attempt is not None and attempt.returned is not None:
        fields["returned"] = _redacted(redactor.redact, attempt.returned)
    return line(fields)


def _message(of: tuple[Redactor, BaseException]) -> str:
    redactor, error = of
    return redactor.redact_exception(error)[0]


def noted(event: Event[Any], kind: str, detail: Mapping[str, Any], redactor: Redactor) -> bytes:
    """Return the line for whatever else happened to an event."""
    fields = _envelope(kind, event, redactor)
    if detail:
        fields["detail"] = _redacted(redactor.redact, detail)
    return line(fields)


def about_log(kind: str, detail: Mapping[str, Any]) -> bytes:
    """Return the line for what happened to the log itself; it belongs to no event."""
    return line({"time": time_ns(), "kind": kind, "detail": detail})


def segment(log: str, number: int, previous: str) -> bytes:
    """Return the line that begins a file: of which log, the how many-th, and the hash of the record before."""
    return line({"time": time_ns(), "kind": "segment", "log": log, "segment": number, "previous": previous})


def _envelope(kind: str, event: Event[Any], redactor: Redactor) -> dict[str, Any]:
    fields: dict[str, Any] = {"time": time_ns(), "kind": kind}
    fields["event_id"] = event_id = event.event_id
    fields["type"] = event.event_type
    if event.key is not None:
        fields["key"] = _identifier(event.key, redactor)
    if event.source is not None:
        fields["source"] = _identifier(event.source, redactor)
    correlation_id = event.correlation_id
    # An event that nothing caused has one id for both.
    fields["correlation_id"] = correlation_id if correlation_id is event_id else _identifier(correlation_id, redactor)
    if event.causation_id is not None:
        fields["causation_id"] = event.causation_id
    fields["hops"] = event.hops
    return fields


def _identifier(text: str, redactor: Redactor) -> object:
    try:
        return text if _PLAIN(text) else redactor.redact_text(text)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a redactor of the user's own, or an id that is no text
        return UNREDACTABLE


def _redacted(redact: Callable[[Any], object], value: object) -> object:
    try:
        return redact(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001
        return UNREDACTABLE


def line(fields: dict[str, Any]) -> bytes:
    """Write one record as one line of ASCII."""
    try:
        text = orjson.dumps(fields, default=jsonable, option=_OPTIONS)
    except TypeError:  # an odd key, an integer beyond 64 bits, a class that has no JSON form
        text = _slowly(fields)
    if b"null" in text and _holds_no_number(fields):  # which orjson writes like None
        text = _slowly(fields)
    return text if text.isascii() and _DELETE not in text else _escaped(text)


def _holds_no_number(value: object) -> bool:
    """Tell whether there is a NaN or an infinity somewhere."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if type(value) is float:
            if not abs(value) < _INFINITE:
                return True
        elif type(value) is dict:
            waiting.extend(value.values())
        elif type(value) is list:
            waiting.extend(value)
    return False


def parsed(text: bytes) -> Any:
    """Return what a line of JSON holds, integers of any size included.

    orjson turns those beyond 64 bits into floats, and refuses them where a float ends; pydantic's parser, which
    takes half as long again, does neither. (Looking for twenty digits by a pattern takes five times as long as orjson.)

    Raises:
        ValueError: for what is no JSON.
    """
    return from_json(text, allow_inf_nan=False) if _BEYOND_64_BITS in text.translate(_DIGITS) else orjson.loads(text)


def shrunk(text: bytes) -> bytes:
    """Return the line again without what makes it too large to keep: who and when stay, the rest does not."""
    fields: dict[str, Any] = parsed(text)
    for name, value in fields.items():
        if isinstance(value, dict | list):
            fields[name] = {TOO_LARGE: len(json.dumps(value, separators=(",", ":")))}
        elif isinstance(value, str) and len(value) > _LONGEST_CUT:
            fields[name] = f"{value[:_LONGEST_CUT]}{TOO_LARGE}"
    return line(fields)


def _escaped(text: bytes) -> bytes:
    return _ODD.sub(_as_escapes, text.decode()).encode("ascii")


def _as_escapes(match: re.Match[str]) -> str:
    # A run at a time, since a call for each character of a long text would hold the loop.
    return "\\u" + match[0].encode("utf-16-be").hex(",", 2).replace(",", "\\u")


def _slowly(fields: dict[str, Any]) -> bytes:
    try:
        return _dumped({name: _plain(value) for name, value in fields.items()})
    except Exception:  # noqa: BLE001 - whatever a value does, however deep it is, the rest is written
        return _dumped({name: _plain_or_marker(value) for name, value in fields.items()})


def _dumped(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _plain_or_marker(value: object) -> object:
    return value if value is None or type(value) in {str, int, float, bool} else _marker(value)


def _marker(value: object) -> str:
    return f"<{type(value).__name__}>"


def _plain(value: Any) -> Any:
    """Return what ``json.dumps`` writes, whatever the value is."""
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int | float):
        return _number(value)
    if isinstance(value, dict):
        return _mapping(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return _unknown(value)


def _unknown(value: object) -> object:
    try:
        known = jsonable(value)
    except Exception:  # noqa: BLE001 - its class is all that can be told
        return _marker(value)
    return _plain(known)


def _text(value: str) -> str:
    # A lone surrogate has no place in JSON; it stands as the six characters \udc80.
    return str.__str__(value).encode("utf-8", "backslashreplace").decode()


def _number(value: float | None) -> object:
    if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
        return hex(value)
    if isinstance(value, float) and not abs(value) < _INFINITE:
        return str(value)
    return value


def _mapping(value: dict[Any, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, item in value.items():
        shown[_unused(_key(key), shown)] = _plain(item)
    return shown


def _key(key: object) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    """Return a name that no entry has yet: 1 and "1" are two keys of one dict, and the same in JSON."""
    free, number = name, 2
    while free in taken:
        free, number = f"{name}#{number}", number + 1
    return free
