"""The catalogue of an application: what its models and subscriptions say, and what the source shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aperion.catalogue.places import Place, place_of
from aperion.catalogue.seen import Emitters
from aperion.events import known_event_types, model_for
from aperion.patterns import is_exact, matches
from aperion.redaction import Sensitive

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic.fields import FieldInfo

    from aperion.bus import EventBus
    from aperion.events import Payload
    from aperion.subscriptions import Subscription

SYSTEM_TYPES: Final = ("system.startup", "system.shutdown", "system.handler_error", "system.event_dropped")
"""What the bus itself emits."""

ALL: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a payload; ``sensitive`` names the type under which it is hidden, None where it is shown."""

    name: str
    type: str
    required: bool
    description: str | None
    sensitive: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """One handler of a type, and why it is one: the pattern of its subscription that matches."""

    subscription: str
    pattern: str
    priority: int
    kind: str
    timeout: float | None
    attempts: int
    filtered: bool
    paused: bool
    place: Place | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
    """How often a type stands in an audit log, and from which sources."""

    count: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventType:
    """One type of events: its model, who was seen to emit it, who handles it in which order."""

    name: str
    model: str | None
    description: str | None
    place: Place | None
    fields: tuple[Field, ...]
    emitters: tuple[Place, ...]
    logged: Handled | None
    handlers: tuple[Reaction, ...]

    @property
    def is_handled(self) -> bool:
        """Whether somebody wants it in particular: a handler of all there is does not count."""
        return any(handler.pattern != ALL for handler in self.handlers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What there is in an application.

    Args:
        title: what the application is called.
        types: by name; those of the bus itself where somebody asks for them.
        unhandled: types that no handler wants, except one of everything.
        unreached: subscriptions whose patterns match none of the types.
        unknown: places that emit what the source does not tell.
    """

    title: str
    types: tuple[EventType, ...]
    unhandled: tuple[str, ...]
    unreached: tuple[str, ...]
    unknown: tuple[Place, ...]


def catalogue(
    bus: EventBus, title: str = "", *, emitters: Emitters | None = None, logged: Mapping[str, Handled] | None = None
) -> Catalogue:
    """Return what there is on a bus: types that have a model, are subscribed by name, or were seen.

    Args:
        bus: whose subscriptions count; it need not run.
        title: what the application is called.
        emitters: who emits what, see ``emitters_in``.
        logged: what an audit log says of types.
    """
    seen, log = emitters or Emitters(), logged or {}
    subscriptions = _in_order(bus.subscriptions)
    exact = {pattern for each in subscriptions for pattern in each.patterns if is_exact(pattern)}
    wanted = {name for name in SYSTEM_TYPES if any(_pattern(each, name) not in (None, ALL) for each in subscriptions)}
    names = {*known_event_types(), *exact, *seen.by_type, *log, *wanted}
    types = tuple(_event_type(bus, name, subscriptions, seen, log.get(name)) for name in sorted(names))
    return Catalogue(
        title=title,
        types=types,
        unhandled=tuple(each.name for each in types if not each.is_handled),
        unreached=tuple(each.name for each in subscriptions if not _reaches(each, (*names, *SYSTEM_TYPES))),
        unknown=seen.unknown,
    )


def reactions(bus: EventBus, event_type: str) -> tuple[Reaction, ...]:
    """Return the handlers of a type in the order in which they run, paused ones included."""
    return _reactions(bus, event_type, _in_order(bus.subscriptions))


def _in_order(subscriptions: Iterable[Subscription]) -> list[Subscription]:
    return sorted(subscriptions, key=lambda each: -each.priority)  # stable: equal ones as they were made


def _reactions(bus: EventBus, event_type: str, subscriptions: Iterable[Subscription]) -> tuple[Reaction, ...]:
    pairs = ((each, _pattern(each, event_type)) for each in subscriptions)
    return tuple(_reaction(bus, each, pattern) for each, pattern in pairs if pattern is not None)


def _pattern(subscription: Subscription, event_type: str) -> str | None:
    return next((pattern for pattern in subscription.patterns if matches(pattern, event_type)), None)


def _reaches(subscription: Subscription, names: Iterable[str]) -> bool:
    return any(_pattern(subscription, name) is not None for name in names)


def _reaction(bus: EventBus, subscription: Subscription, pattern: str) -> Reaction:
    timeout = bus.handler_timeout if math.isnan(subscription.timeout) else subscription.timeout
    return Reaction(
        subscription=subscription.name,
        pattern=pattern,
        priority=subscription.priority,
        kind=subscription.kind.value,
        timeout=None if math.isinf(timeout) else timeout,
        attempts=subscription.retry.attempts if subscription.retry is not None else 1,
        filtered=subscription.where is not None,
        paused=not subscription.open,
        place=place_of(subscription.handler),
    )


def _event_type(
    bus: EventBus, name: str, subscriptions: Iterable[Subscription], seen: Emitters, logged: Handled | None
) -> EventType:
    model = model_for(name)
    return EventType(
        name=name,
        model=f"{model.__module__}.{model.__qualname__}" if model is not None else None,
        description=_first_line(model.__doc__) if model is not None else None,
        place=place_of(model) if model is not None else None,
        fields=_fields(model, bus) if model is not None else (),
        emitters=seen.by_type.get(name, ()),
        logged=logged,
        handlers=_reactions(bus, name, subscriptions),
    )


def _fields(model: type[Payload], bus: EventBus) -> tuple[Field, ...]:
    return tuple(
        Field(
            name=name,
            type=_shown_type(info.annotation),
            required=info.is_required(),
            description=info.description,
            sensitive=sensitivity(name, info, bus),
        )
        for name, info in model.model_fields.items()
    )


def sensitivity(name: str, info: FieldInfo | None, bus: EventBus) -> str | None:
    """Return the type under which a field is hidden, for its annotation or for its name; None where it is shown."""
    marks = [each for each in info.metadata if isinstance(each, Sensitive)] if info is not None else []
    if marks:
        return marks[0].type
    shown = bus.redactor.redact({name: _PROBE})
    return None if isinstance(shown, dict) and shown.get(name) == _PROBE else "KEY"


_PROBE: Final = "lamp"


def _shown_type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not _parts(annotation) else str(annotation)
    return text.replace("typing.", "")


def _parts(annotation: Any) -> bool:
    return bool(getattr(annotation, "__args__", ()))


def _first_line(text: str | None) -> str | None:
    return text.strip().partition("\n")[0] if text and text.strip() else None
