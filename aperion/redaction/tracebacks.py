"""Tell of an exception in text that shows no input, no local variables, and no more than it must."""

from __future__ import annotations

import textwrap
import traceback
from typing import TYPE_CHECKING, Final, get_args

from pydantic import ValidationError
from pydantic_core import core_schema

from aperion.redaction.markers import CUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic_core import ErrorDetails

    Scrub = Callable[[str], str]

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"

_LONGEST_CHAIN = 16
_MOST_FRAMES = 64
_MOST_SIBLINGS = 15
_DEEPEST_GROUP = 4
_MOST_DETAILS = 20

# The messages of these quote what was sent, or the words of a user's own validator, which may.
_QUOTING: Final = frozenset(
    {"value_error", "assertion_error", "union_tag_invalid", "uuid_parsing", "get_attribute_error"}
    | {"iteration_error", "mapping_type", "no_such_attribute", "datetime_object_invalid"}
)
_TELLING: Final = frozenset(get_args(core_schema.ErrorType)) - _QUOTING


def message_of(error: BaseException, scrub: Scrub) -> str:
    """Return the redacted text of one exception; its class where it has none."""
    name = type(error).__name__
    try:
        text = _validation_text(error, scrub) if isinstance(error, ValidationError) else scrub(str(error))
    except Exception:  # noqa: BLE001 - an exception may fail to say what it is
        return f"<{name} without a readable text>"
    return text or name


def traceback_of(error: BaseException, scrub: Scrub, longest: int) -> str:
    """Return the redacted traceback, with causes, contexts and notes, the oldest exception first."""
    text = "".join(_chain(error, scrub, _DEEPEST_GROUP))
    return text if len(text) <= longest else text[:longest] + CUT  # redacted already: cut anywhere


def _chain(error: BaseException, scrub: Scrub, groups: int) -> Iterator[str]:
    for member, link in reversed(_linked(error)):
        yield from _single(member, scrub, groups)
        yield link


def _linked(error: BaseException) -> list[tuple[BaseException, str]]:
    """Return an exception and what led to it, each with the words that follow it."""
    chain, seen, link = [(error, "")], {id(error)}, ""
    before: BaseException | None = error
    while before is not None and len(chain) < _LONGEST_CHAIN:
        before, link = _before(before)
        if before is None or id(before) in seen:
            break
        seen.add(id(before))
        chain.append((before, link))
    return chain


def _before(error: BaseException) -> tuple[BaseException | None, str]:
    if error.__cause__ is not None:
        return error.__cause__, _CAUSE
    return (None, "") if error.__suppress_context__ else (error.__context__, _CONTEXT)


def _single(error: BaseException, scrub: Scrub, groups: int) -> Iterator[str]:
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):\n"
        frames = traceback.walk_tb(error.__traceback__)
        stack = traceback.StackSummary.extract(frames, limit=-_MOST_FRAMES, capture_locals=False)
        # Each frame by itself: a bracket left open in one line of code hides nothing of the next frame.
        yield from (scrub(entry) for entry in stack.format())
    yield f"{_full_name(type(error))}: {message_of(error, scrub)}\n"
    yield from (f"{scrub(note)}\n" for note in _notes(error))
    if isinstance(error, BaseExceptionGroup):
        yield from _members(error, scrub, groups)


def _members(group: BaseExceptionGroup[BaseException], scrub: Scrub, groups: int) -> Iterator[str]:
    if groups == 0:
        yield "  … deeper groups are left out\n"
        return
    for number, member in enumerate(group.exceptions[:_MOST_SIBLINGS], 1):
        yield f"  +---- {number} of {len(group.exceptions)}\n"
        yield textwrap.indent("".join(_chain(member, scrub, groups - 1)), "  | ")


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", None)
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def _full_name(kind: type[BaseException]) -> str:
    module = "" if kind.__module__ in {"builtins", "__main__"} else f"{kind.__module__}."
    return module + kind.__qualname__


def _validation_text(error: ValidationError, scrub: Scrub) -> str:
    """Return which rules were broken where; places come last, so that nothing takes them for names."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    shown = [_detail_text(detail, scrub) for detail in details[:_MOST_DETAILS]]
    if len(details) > _MOST_DETAILS:
        shown.append(f"{len(details) - _MOST_DETAILS} more")
    return f"{error.title} does not fit: {'; '.join(shown)}"


def _detail_text(detail: ErrorDetails, scrub: Scrub) -> str:
    kind = detail["type"]
    rule = scrub(detail["msg"]) if kind in _TELLING else kind.replace("_", " ")
    place = ".".join(scrub(str(part)) for part in detail["loc"])
    return f"{rule} at {place!r}" if place else rule
