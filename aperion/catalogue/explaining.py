"""Why a handler gets an event type, and why another does not."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aperion.catalogue.contents import ALL, SYSTEM_TYPES, Reaction, reactions
from aperion.errors import EventTypeError, UnknownEventTypeError
from aperion.events import known_event_types, model_for
from aperion.patterns import STAR, is_exact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aperion.bus import EventBus


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """A subscription that nearly matches, and why it does not."""

    subscription: str
    pattern: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Who handles a type, in the order in which they run, and who nearly does.

    Args:
        event_type: what was asked.
        valid: whether ``emit`` takes it, by the naming of this bus.
        refusal: what ``emit`` says where it does not; None where it does.
        model: the name of its payload model.
        near: types that are written alike, where nobody knows this one.
        handlers: those whose patterns match.
        misses: those that nearly do.
    """

    event_type: str
    valid: bool
    refusal: str | None
    model: str | None
    near: tuple[str, ...]
    handlers: tuple[Reaction, ...]
    misses: tuple[Miss, ...]


def explain(bus: EventBus, event_type: str, others: Iterable[str] = ()) -> Explanation:
    """Return what happens to an event of a type, and why.

    Args:
        bus: whose subscriptions count; it need not run.
        event_type: any name.
        others: more types that are known, for what is written alike.
    """
    exact = {pattern for each in bus.subscriptions for pattern in each.patterns if is_exact(pattern)}
    known = {*known_event_types(), *exact, *others, *SYSTEM_TYPES}
    handlers = reactions(bus, event_type)
    matching = {handler.subscription for handler in handlers}
    model = model_for(event_type)
    refusal, meant = _refusal(bus, event_type)
    alike = () if event_type in known else difflib.get_close_matches(event_type, sorted(known), n=3, cutoff=0.7)
    near = dict.fromkeys([*([meant] if meant else []), *alike])
    misses = (
        Miss(subscription=each.name, pattern=pattern, why=why)
        for each in bus.subscriptions
        if each.name not in matching
        for pattern in each.patterns
        if (why := _near_miss(pattern, event_type)) is not None
    )
    return Explanation(
        event_type=event_type,
        valid=refusal is None,
        refusal=refusal,
        model=f"{model.__module__}.{model.__qualname__}" if model is not None else None,
        near=tuple(near),
        handlers=handlers,
        misses=tuple(misses),
    )


def _refusal(bus: EventBus, event_type: str) -> tuple[str | None, str | None]:
    """Return what ``emit`` says to a type that it refuses, and the type that was perhaps meant."""
    if event_type in SYSTEM_TYPES:  # which the bus emits itself
        return None, None
    try:
        bus._intake.check_type(event_type)
    except EventTypeError as error:
        return str(error), error.near if isinstance(error, UnknownEventTypeError) else None
    return None, None


def _near_miss(pattern: str, event_type: str) -> str | None:
    """Return why a pattern that shares a beginning or an end with a type does not match it."""
    wanted, names = pattern.split("."), event_type.split(".")
    if pattern == ALL or (wanted[0] != names[0] and wanted[-1] != names[-1]):
        return None
    if wanted[-1] == STAR and len(names) < len(wanted):
        return f"it wants {len(wanted)} segments or more, and {event_type!r} has {len(names)}"
    if wanted[-1] != STAR and len(names) != len(wanted):
        return f"it wants {len(wanted)} segments, and {event_type!r} has {len(names)}"
    for number, (want, name) in enumerate(zip(wanted, names, strict=False), start=1):
        if want not in (STAR, name):
            return f"segment {number} is {name!r}, and it wants {want!r}"
    return None
