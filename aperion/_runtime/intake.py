"""From what an emitter hands in to an event: name, payload, context."""

from __future__ import annotations

import datetime as dt
import enum
import types
import typing
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import orjson

from aperion._frozen import Freezer, FrozenDict
from aperion.context import Scope, current, is_valid_correlation_id
from aperion.errors import (
    CascadeError,
    EventTypeError,
    PayloadError,
    PayloadTooLargeError,
    SerializationError,
    ValidationError,
    shown,
)
from aperion.events import (
    Event,
    Payload,
    Unvalidated,
    jsonable,
    known_event_types,
    make_event,
    model_for,
    registrations,
    set_cascade,
    to_json,
    validated,
)

if TYPE_CHECKING:
    from aperion.naming import Naming

_NO_HEADERS: Mapping[str, str] = FrozenDict()
_CHAIN_SHOWN = 12
_IMMUTABLE = (
    *(str, int, float, bool, bytes, type(None), dt.date, dt.time, dt.timedelta),
    *(uuid.UUID, Decimal, enum.Enum, PurePath),
)
_TYPES_REMEMBERED = 4096


@dataclass(slots=True)
class Cascade:
    """The line of events from a root to one event, and how many descend from that root."""

    # Mutable: the count, which all nodes of one root share.
    event_type: str
    parent: Cascade | None
    count: list[int]

    def chain(self) -> list[str]:
        """Return the event types from the root on, shortened in the middle."""
        line, node = [], self
        while node is not None:
            line.append(node.event_type)
            node = node.parent  # type: ignore[assignment]  # None ends the loop
        line.reverse()
        return line if len(line) <= _CHAIN_SHOWN else [*line[:2], "…", *line[3 - _CHAIN_SHOWN :]]


class Details(NamedTuple):
    """What an emitter may say of an event beside its type and payload."""

    key: str | None = None
    source: str | None = None
    correlation_id: str | None = None
    headers: Mapping[str, str] | None = None
    event_id: str | None = None
    timestamp: float | None = None


class EventDetails(TypedDict, total=False):
    """What an emitter may say of an event beside its type and payload, all by keyword.

    ``key``: events with the same key are handled one after another, in the order accepted.
    ``source``: who says so.
    ``correlation_id``: ties together all that one request caused; that of the context by default.
    ``headers``: text by text, for what travels along.
    ``event_id``: the id; a new one by default. For events that come from elsewhere.
    ``timestamp``: seconds since the epoch; now by default.
    """

    key: str | None
    source: str | None
    correlation_id: str | None
    headers: Mapping[str, str] | None
    event_id: str | None
    timestamp: float | None


class Intake:
    """Makes events of what emitters hand in, by the rules of one bus."""

    # Mutable: the two caches, of what was checked once.
    __slots__ = (
        "_flat",
        "_known",
        "_naming",
        "_needs_source",
        "_registrations",
        "max_cascade",
        "max_hops",
        "max_payload_bytes",
    )

    def __init__(self, naming: Naming, *, max_payload_bytes: int, max_hops: int, max_cascade: int) -> None:
        self._naming = naming
        self._needs_source = naming.require_source
        self._flat: dict[type, bool] = {}  # models whose names are checked, and whether they hold atoms only
        self._known: dict[str, type[Payload] | None] = {}
        self._registrations = registrations()
        self.max_payload_bytes = max_payload_bytes
        self.max_hops = max_hops
        self.max_cascade = max_cascade

    def event(self, subject: object, payload: object, details: Details | None) -> Event[Any]:
        """Return the event.

        Raises:
            ValidationError: one of its kinds, for what the bus does not accept.
            CascadeError: for one descendant or generation too many.
        """
        kind = type(subject)
        flat = self._flat.get(kind)
        opaque = False
        if flat is None or payload is not None:
            event_type, value, opaque = self._checked(subject, payload)
        else:
            event_type, value = subject.event_type, subject  # type: ignore[attr-defined]  # a known model
            if not flat or type(subject.__pydantic_fields_set__) is Unvalidated:  # type: ignore[attr-defined]
                value, opaque = self._safe(event_type, value)
            else:
                try:
                    size = len(orjson.dumps(value.__dict__, jsonable))
                except TypeError:
                    size = self._size(event_type, value)
                if size > self.max_payload_bytes:
                    raise PayloadTooLargeError(event_type, size, self.max_payload_bytes)
        if details is not None or self._needs_source:
            return self._detailed(event_type, value, opaque, details or Details())
        scope = current.get()
        if scope is None:
            return make_event(event_type, value, None, None, None, 0, None, _NO_HEADERS, opaque)
        return self._inside(scope, event_type, value, opaque, Details())

    def rejected(self, subject: object, payload: object, details: Details | None) -> Event[Any]:
        """Return a stand-in for an event that was refused, with as much of the payload as can be kept."""
        name = subject if isinstance(subject, str) else getattr(subject, "event_type", "")
        event_type = name[:255] if isinstance(name, str) and name else f"<{type(subject).__name__}>"
        content = payload if isinstance(subject, str) else subject
        source = details.source if details else None
        try:
            freezer = Freezer(event_type)
            kept = freezer.freeze(content)
            if len(to_json(kept)) > self.max_payload_bytes:
                kept = FrozenDict({"too_large": type(content).__name__})
        except Exception:  # noqa: BLE001 - whatever a value does, the refusal is told
            kept = FrozenDict({"not_serialisable": type(content).__name__})
        return make_event(event_type, kept, source, None, None, 0, None, _NO_HEADERS, True)

    def _checked(self, subject: object, payload: object) -> tuple[str, Any, bool]:
        if isinstance(subject, Payload):
            return self._first_of_model(subject, payload)
        model = self._model(subject)
        event_type = str(subject)
        if isinstance(payload, Payload):
            if type(payload).event_type != event_type:
                raise PayloadError(
                    f"{event_type!r} was emitted with a payload of type {type(payload).event_type!r}; "
                    "emit the payload alone, or the type that belongs to it",
                    event_type=event_type,
                )
            return event_type, *self._safe(event_type, payload)
        if not isinstance(payload, Mapping):
            raise PayloadError(
                f"the payload of {event_type!r} is of type {type(payload).__name__}; pass a mapping or a Payload model",
                event_type=event_type,
            )
        return event_type, *self._safe(event_type, validated(model, event_type, dict(payload)) if model else payload)

    def _first_of_model(self, subject: Payload, payload: object) -> tuple[str, Any, bool]:
        model = type(subject)
        if payload is not None:
            raise PayloadError(
                f"{model.__qualname__} was emitted with a second payload; emit the model alone",
                event_type=model.event_type or None,
            )
        if not model.event_type:
            raise EventTypeError(
                f"{model.__qualname__} has no event type; declare it as class {model.__name__}(Payload, type='domain.action')"
            )
        self._naming.check(model.event_type)
        self._flat[model] = _is_flat(model)
        return model.event_type, *self._safe(model.event_type, subject)

    def _model(self, subject: object) -> type[Payload] | None:
        if self._registrations != (count := registrations()):  # a type without a model may have one now
            self._registrations = count
            self._known = {name: model for name, model in self._known.items() if model is not None}
        try:
            return self._known[subject]  # type: ignore[index]  # only checked names are in it
        except (KeyError, TypeError):
            pass
        event_type = self._naming.check(subject)
        model = model_for(event_type)
        if model is None:
            self._naming.check_known(event_type, known_event_types())
        if len(self._known) < _TYPES_REMEMBERED:
            self._known[event_type] = model
        return model

    def _safe(self, event_type: str, payload: Any) -> tuple[Any, bool]:
        """Return the payload so that nobody can change it, and whether it still holds mutable objects."""
        if isinstance(payload, Payload) and type(payload.__pydantic_fields_set__) is Unvalidated:
            payload = validated(type(payload), event_type, payload.model_dump(by_alias=True, warnings=False))
        freezer = Freezer(event_type)
        try:
            frozen = freezer.freeze(payload)
        except ValidationError:
            raise
        except Exception as error:  # a class of the user's, with an items() or __str__ that raises
            raise SerializationError(
                f"the payload of {event_type!r} cannot be read: {type(error).__name__} in one of its values",
                event_type=event_type,
            ) from error
        if (
            freezer.size > self.max_payload_bytes // 8
        ):  # a lower bound; escapes and long numbers take up to 8 times more
            self._check_size(event_type, len(to_json(frozen)))
        return frozen, freezer.opaque

    def _size(self, event_type: str, payload: Any) -> int:
        """Return the size of a payload that orjson refuses: a harmless big integer, or a text that cannot be written."""
        Freezer(event_type).freeze(payload)
        return len(to_json(payload))

    def _check_size(self, event_type: str, size: int) -> None:
        if size > self.max_payload_bytes:
            raise PayloadTooLargeError(event_type, size, self.max_payload_bytes)

    def _detailed(self, event_type: str, value: Any, opaque: bool, details: Details) -> Event[Any]:  # noqa: FBT001
        _check_details(event_type, details)
        self._naming.check_source(event_type, details.source)
        scope = current.get()
        if scope is None:
            headers = FrozenDict(details.headers) if details.headers else _NO_HEADERS
            event = make_event(
                *(event_type, value, details.source, details.correlation_id, None, 0, details.key, headers, opaque)
            )
        else:
            event = self._inside(scope, event_type, value, opaque, details)
        changes = {n: v for n, v in (("event_id", details.event_id), ("timestamp", details.timestamp)) if v is not None}
        return event.replace(**changes) if changes else event

    def _inside(
        self,
        scope: Event[Any] | Scope,
        event_type: str,
        value: Any,
        opaque: bool,  # noqa: FBT001
        details: Details,
    ) -> Event[Any]:
        """Make an event that inherits from the one being handled, or from a correlation scope."""
        parent = scope.event if isinstance(scope, Scope) else scope
        correlation_id = details.correlation_id or scope.correlation_id
        headers = FrozenDict(details.headers) if details.headers else _NO_HEADERS
        if parent is None:
            return make_event(event_type, value, details.source, correlation_id, None, 0, details.key, headers, opaque)
        node = self.descend(parent, event_type)
        event = make_event(
            *(event_type, value, details.source, correlation_id, parent.event_id, parent.hops + 1),
            *(details.key, headers, opaque),
        )
        set_cascade(event, node)
        return event

    def descend(self, parent: Event[Any], event_type: str) -> Cascade:
        """Count one more descendant of the root of ``parent``.

        Raises:
            CascadeError: when there are too many, or too many generations.
        """
        node: Cascade | None = parent._cascade
        if node is None:
            node = Cascade(parent.event_type, None, [0])
            set_cascade(parent, node)
        chain = [*node.chain(), event_type]
        if parent.hops >= self.max_hops:
            raise CascadeError(
                f"{event_type!r} would be generation {parent.hops + 1} of max_hops={self.max_hops}", chain
            )
        if node.count[0] >= self.max_cascade:
            raise CascadeError(
                f"{event_type!r} would be one more than max_cascade={self.max_cascade:,} descendants", chain
            )
        node.count[0] += 1
        return Cascade(event_type, node, node.count)


def _check_details(event_type: str, details: Details) -> None:
    for name in ("key", "source", "event_id"):
        value = getattr(details, name)
        if value is not None and (not isinstance(value, str) or not value):
            raise ValidationError(
                f"{name}={shown(value)} of {event_type!r} is not a non-empty string", event_type=event_type
            )
    if details.correlation_id is not None and not is_valid_correlation_id(details.correlation_id):
        raise ValidationError(
            f"correlation_id={shown(details.correlation_id)} of {event_type!r} is no id: use up to 128 letters, digits and '._:/+=-'",
            event_type=event_type,
        )
    headers = details.headers
    if headers and not all(isinstance(k, str) and isinstance(v, str) for k, v in headers.items()):
        raise ValidationError(
            f"headers of {event_type!r} are not all text; convert them with str()", event_type=event_type
        )


def _is_flat(model: type[Payload]) -> bool:
    """Tell whether the fields of a model can hold nothing that can be changed."""
    return model.model_config.get("extra") != "allow" and all(
        _is_atom(field.annotation) for field in model.model_fields.values()
    )


def _is_atom(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return all(_is_atom(part) for part in typing.get_args(annotation))
    if origin is typing.Literal:
        return True
    if origin is typing.Annotated:
        return _is_atom(typing.get_args(annotation)[0])
    # SecretStr and the like are immutable too, but JSON cannot show them: the slow way deals with them.
    return annotation is None or (isinstance(annotation, type) and issubclass(annotation, _IMMUTABLE))
