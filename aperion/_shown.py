"""Dead letters as plain JSON values without secrets; what cannot be shown leaves a mark, and the rest is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json

from aperion.events import model_for, to_json
from aperion.naming import is_valid_event_type
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aperion.outcomes import DeadLetter

_DEEPEST: Final = 100


def letter_shown(letter: DeadLetter, redactor: Redactor) -> dict[str, Any]:
    """Return a letter as plain JSON values, redacted; raises nothing but ``KeyboardInterrupt``."""
    shown: dict[str, Any] = plain(
        {
            "letter_id": _told(lambda: letter.letter_id),
            "event": _event(letter, redactor),
            "subscription": _told(lambda: letter.subscription),
            "reason": _told(lambda: letter.reason.value),
            "error_type": _told(lambda: letter.error_type),
            # Redacted when the letter was made, but a store may hold what others made.
            "error": _told(lambda: _whole(redactor.redact_text(letter.error))),
            "traceback": _told(lambda: _whole(redactor.redact_text(letter.traceback))),
            "attempts": _told(lambda: letter.attempts),
            "first_failed_at": _told(lambda: letter.first_failed_at),
            "failed_at": _told(lambda: letter.failed_at),
        }
    )
    return shown


def _event(letter: DeadLetter, redactor: Redactor) -> dict[str, Any]:
    def text(value: str | None) -> str | None:
        return None if value is None else redactor.redact_text(value)

    return {
        "event_id": _told(lambda: letter.event.event_id),
        "event_type": _told(lambda: name_shown(letter.event.event_type, redactor)),
        "payload": _told(lambda: _payload(letter, redactor)),
        "timestamp": _told(lambda: letter.event.timestamp),
        "source": _told(lambda: text(letter.event.source)),
        "correlation_id": _told(lambda: text(letter.event.correlation_id)),
        "causation_id": _told(lambda: letter.event.causation_id),
        "hops": _told(lambda: letter.event.hops),
        "key": _told(lambda: text(letter.event.key)),
        "headers": _told(lambda: redactor.redact(dict(letter.event.headers))),
    }


def _payload(letter: DeadLetter, redactor: Redactor) -> object:
    event = letter.event
    # What was refused is a mapping still; the model that it was meant for knows what is sensitive in it.
    if type(redactor) is Redactor and isinstance(event.payload, Mapping):
        return redactor.redact(event.payload, like=model_for(event.event_type))
    return redactor.redact(event.payload)


def name_shown(event_type: str, redactor: Redactor) -> str:
    """Return a name as it is, or redacted where it is none: what was refused may be an address or a key."""
    if is_valid_event_type(event_type):
        return event_type
    return str(_told(lambda: _whole(redactor.redact_text(event_type))))


def _whole(text: str) -> str:
    """Return a text with its lone surrogates spelt out: a message is more than the name of a file in it."""
    return text.encode("utf-8", "backslashreplace").decode()


def _told(read: Callable[[], Any]) -> Any:
    """Return what a function returns, or a mark that says what it raised; redactors and letters may be anybody's."""
    try:
        return read()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - one letter must not keep the others from being shown
        return _mark(f"reading it raised {_class_of(error)}")


def plain(value: object) -> Any:
    """Return a value as JSON has it; each part that JSON cannot hold is a mark instead."""
    try:
        return from_json(to_json(value), allow_inf_nan=False)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - some part of it, of a class that may raise anything
        return _piece(value, 0)


def _piece(value: Any, depth: int) -> Any:
    # By class, since an object may lie about its own.
    if issubclass(type(value), dict | list | tuple | set | frozenset) and depth == _DEEPEST:
        return _mark(f"{_class_of(value)} lies too deep")
    if issubclass(type(value), dict):
        return _entries(dict.items(value), depth + 1)
    for kind in (list, tuple, set, frozenset):
        if issubclass(type(value), kind):
            return [_piece(item, depth + 1) for item in kind.__iter__(value)]
    return _leaf(value)


def _entries(items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in items:
        text = _leaf({key: None})
        name = next(iter(text)) if type(text) is dict else f"{text} {len(entries)}"  # each by its own name
        entries[name] = _piece(value, depth)
    return entries


def _leaf(value: Any) -> Any:
    try:
        return from_json(to_json(value))
    except KeyboardInterrupt:
        raise
    except UnicodeEncodeError:
        return _mark(f"{_class_of(value)} with a lone surrogate")
    except BaseException as error:  # noqa: BLE001 - of a class that may raise anything
        return _mark(f"{_class_of(value)} raised {_class_of(error)}")


def _class_of(value: object) -> str:
    return _NAME(type(value))


_NAME: Final[Callable[[type], str]] = type.__dict__["__name__"].__get__  # not what a metaclass makes of it


def _mark(reason: str) -> str:
    return f"[NOT SHOWN: {reason}]"
