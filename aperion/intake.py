"""From what an emitter hands in to an event: name, payload, context."""

from __future__ import annotations

import datetime as dt
import enum
import re
import types
import typing
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from math import inf
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import pydantic
from orjson import dumps

from aperion import events
from aperion._frozen import Freezer, FrozenDict, plain_copy, plain_size
from aperion._recent import Recent
from aperion.context import is_valid_correlation_id
from aperion.errors import (
    CascadeError,
    EventTypeError,
    PayloadError,
    PayloadTooLargeError,
    SerializationError,
    ValidationError,
    check_options,
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
    payload_error,
    set_cascade,
    to_json,
    validated,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from aperion.context import Here
    from aperion.naming import Naming

_NO_HEADERS: Mapping[str, str] = FrozenDict()
_CHAIN_SHOWN = 12
_TYPES_REMEMBERED = 32_768
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What no id may hold: control characters forge lines and frames, and half a surrogate pair is no UTF-8."""


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
    durable: bool = True


_NO_DETAILS = Details()


class EventDetails(TypedDict, total=False):
    """What an emitter may say of an event beside its type and payload, all by keyword.

    ``key``: events with the same key are handled one after another, in the order accepted.
    ``source``: who says so.
    ``correlation_id``: ties together all that one request caused; that of the context by default.
    ``headers``: text by text, for what travels along.
    ``event_id``: the id; a new one by default. For events that come from elsewhere.
    ``timestamp``: seconds since the epoch; now by default.
    ``durable``: False keeps the event out of the journal of the bus, if it has one.
    """

    key: str | None
    source: str | None
    correlation_id: str | None
    headers: Mapping[str, str] | None
    event_id: str | None
    timestamp: float | None
    durable: bool


class Known(NamedTuple):
    """What is known of an event type that was checked."""

    event_type: str
    model: type[Payload] | None
    validate: Callable[[Any], Any] | None  # None for a model that validates in a way of its own
    flat: bool  # whether what the model holds cannot change: atoms, or tuples and frozensets of atoms


class Intake:
    """Makes events of what emitters hand in, by the rules of one bus."""

    # Mutable: what was checked once: types, and models that are emitted as they are.
    __slots__ = (
        *("_known", "_models", "_naming", "_needs_source", "_registrations"),
        *("max_cascade", "max_hops", "max_payload_bytes"),
    )

    def __init__(self, naming: Naming, *, max_payload_bytes: int, max_hops: int, max_cascade: int) -> None:
        self._naming = naming
        self._needs_source = naming.require_source
        self._known: Recent[Known] = Recent(_TYPES_REMEMBERED)
        self._models: dict[type, bool] = {}  # whose event types were checked, and whether they are flat
        self._registrations = events.registered
        self.max_payload_bytes = max_payload_bytes
        self.max_hops = max_hops
        self.max_cascade = max_cascade

    def event(self, subject: object, payload: object, details: Mapping[str, Any], here: Here | None) -> Event[Any]:
        """Return the event, which inherits from what is handled here.

        Raises:
            ValidationError: one of its kinds, for what the bus does not accept.
            CascadeError: for one descendant or generation too many.
            TypeError: for a detail that events do not have.
        """
        known = self._known.young.get(subject) if type(payload) is dict and type(subject) is str else None
        opaque = False
        if known is not None and known.flat and self._registrations == events.registered:
            event_type = known.event_type
            try:
                value: Any = known.validate(payload)  # type: ignore[misc]  # what is flat has a validator
            except pydantic.ValidationError as error:
                raise payload_error(event_type, error) from None
            flat = True
        elif payload is None and (is_flat := self._models.get(type(subject))) is not None:
            value = subject
            event_type = value.event_type
            flat = is_flat and type(value.__pydantic_fields_set__) is not Unvalidated
        else:
            event_type, value = self._checked(subject, payload)
            flat = False
        if flat:
            try:
                size = len(dumps(value.__dict__, jsonable))
            except TypeError:  # a big integer, which is harmless, or a text that cannot be written
                value, opaque = self._safe(event_type, value)
            else:
                if size > self.max_payload_bytes:
                    raise PayloadTooLargeError(event_type, size, self.max_payload_bytes)
        else:
            value, opaque = self._safe(event_type, value)
        if details or self._needs_source:
            return self._detailed(event_type, value, opaque, _details(details), here)
        if here is None:
            return make_event(event_type, value, None, None, None, 0, None, _NO_HEADERS, opaque)
        return self._inside(here, event_type, value, opaque, _NO_DETAILS)

    def check_type(self, event_type: object) -> None:
        """Raise the ``EventTypeError`` with which an event of this type would be refused, whatever its payload is."""
        self._know(event_type)

    def adopt(self, original: Event[Any], processed: Event[Any]) -> Event[Any]:
        """Return what a processor made of an event, with the line of causes that it may have left out.

        A cascade is counted by the engine, and is nothing that a processor could end.
        """
        changes: dict[str, Any] = {}
        if (processed.causation_id, processed.hops) != (original.causation_id, original.hops):
            changes = {"causation_id": original.causation_id, "hops": original.hops}
        if processed.correlation_id == processed.event_id and original.correlation_id != original.event_id:
            changes["correlation_id"] = original.correlation_id
        if changes:
            processed = processed.replace(**changes)
        if original._cascade is not processed._cascade:
            set_cascade(processed, original._cascade)
        return processed

    def relayed(self, event: Event[Any]) -> Event[Any]:
        """Return an event that was made elsewhere, if it is one that this bus accepts; it keeps its id and its causes.

        Raises:
            ValidationError: one of its kinds.
            CascadeError: for one generation too many.
        """
        details = Details(event.key, event.source, event.correlation_id, event.headers, event.event_id, event.timestamp)
        event_type, value = self._checked(event.event_type, event.payload)
        value, opaque = self._safe(event_type, value)
        if event.hops > self.max_hops:
            raise CascadeError(f"generation {event.hops} is more than max_hops={self.max_hops} allows", [event_type])
        return self._detailed(event_type, value, opaque, details, None).replace(
            causation_id=event.causation_id, hops=event.hops
        )

    def rejected(self, subject: object, payload: object, details: Mapping[str, Any]) -> Event[Any]:
        """Return a stand-in for an event that was refused, with as much of the payload as can be kept."""
        name = subject if isinstance(subject, str) else getattr(subject, "event_type", "")
        event_type = name[:255] if isinstance(name, str) and name else f"<{type(subject).__name__}>"
        content = payload if isinstance(subject, str) else subject
        source = details.get("source")
        if not isinstance(source, str) or _UNPRINTABLE.search(source):
            source = None
        try:
            freezer = Freezer(event_type)
            kept = freezer.freeze(content)
            if len(to_json(kept)) > self.max_payload_bytes:
                kept = FrozenDict({"too_large": type(content).__name__})
        except Exception:  # noqa: BLE001 - whatever a value does, the refusal is told
            kept = FrozenDict({"not_serialisable": type(content).__name__})
        return make_event(event_type, kept, source, None, None, 0, None, _NO_HEADERS, True)

    def _checked(self, subject: object, payload: object) -> tuple[str, Any]:
        known = self._known.young.get(subject) if type(subject) is str else None
        if known is None or self._registrations != events.registered:
            if isinstance(subject, Payload):
                return self._first_of_model(subject, payload)
            known = self._know(subject)
        if type(payload) is not dict:
            if isinstance(payload, Payload):
                return known.event_type, _of_type(known.event_type, payload)
            if not isinstance(payload, Mapping):
                raise PayloadError(
                    f"the payload of {known.event_type!r} is of type {type(payload).__name__}; "
                    "pass a mapping or a Payload model",
                    event_type=known.event_type,
                )
            payload = _read(known.event_type, payload)
        if known.model is None:
            return known.event_type, payload
        if known.validate is None:
            return known.event_type, validated(known.model, known.event_type, payload.copy())
        try:
            return known.event_type, known.validate(payload)
        except pydantic.ValidationError as error:
            raise payload_error(known.event_type, error) from None

    def _first_of_model(self, subject: Payload, payload: object) -> tuple[str, Any]:
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
        self._check_type(model.event_type)
        self._models[model] = is_flat(model)
        return model.event_type, subject

    def _know(self, subject: object) -> Known:
        if self._registrations != events.registered:  # a type without a model may have one now
            self._registrations = events.registered
            self._known = Recent(_TYPES_REMEMBERED)
        known = self._known.get(subject) if isinstance(subject, str) else None
        if known is not None:
            return known
        event_type = self._check_type(subject)
        model = model_for(event_type)
        if model is None:
            self._naming.check_known(event_type, known_event_types())
        validate = None if model is None else _validator_of(model)
        known = Known(event_type, model, validate, flat=model is not None and validate is not None and is_flat(model))
        self._known.put(event_type, known)
        return known

    def _check_type(self, subject: object) -> str:
        event_type = str(self._naming.check(subject))
        if _UNPRINTABLE.search(event_type):  # possible where names are not checked
            raise EventTypeError(
                f"{shown(event_type)} holds control characters or half a surrogate pair, which no event type may",
                event_type=event_type,
            )
        return event_type

    def _safe(self, event_type: str, payload: Any) -> tuple[Any, bool]:
        """Return the payload so that nobody can change it, and whether it still holds mutable objects."""
        if type(payload) is dict:
            plain = plain_copy(payload)
            if plain is not None and plain[1] <= self.max_payload_bytes // 8:
                return plain[0], False
        elif isinstance(payload, Payload):
            if type(payload.__pydantic_fields_set__) is Unvalidated:
                payload = validated(type(payload), event_type, payload.model_dump(by_alias=True, warnings=False))
            size = -1 if payload.__pydantic_extra__ else plain_size(payload.__dict__.values())
            if 0 <= size <= self.max_payload_bytes // 8:  # its values are atoms, whatever its annotations allow
                return payload, False
        freezer = Freezer(event_type)
        try:
            frozen = freezer.freeze(payload)
        except ValidationError:
            raise
        except Exception as error:  # a class of the user's, with an items() or __str__ that raises
            raise _unreadable(event_type, error) from error
        # The freezer's size is a lower bound: escapes and long numbers take up to 8 times more.
        if freezer.size > self.max_payload_bytes // 8:
            self._check_size(event_type, frozen)
        return frozen, freezer.opaque

    def _check_size(self, event_type: str, payload: Any) -> None:
        size = len(to_json(payload))
        if size > self.max_payload_bytes:
            raise PayloadTooLargeError(event_type, size, self.max_payload_bytes)

    def _detailed(
        self,
        event_type: str,
        value: Any,
        opaque: bool,  # noqa: FBT001
        details: Details,
        here: Here | None,
    ) -> Event[Any]:
        _check_details(event_type, details)
        self._naming.check_source(event_type, details.source)
        if here is None:
            headers = FrozenDict(details.headers) if details.headers else _NO_HEADERS
            event = make_event(
                *(event_type, value, details.source, details.correlation_id, None, 0, details.key, headers, opaque)
            )
        else:
            event = self._inside(here, event_type, value, opaque, details)
        changes = {n: v for n, v in (("event_id", details.event_id), ("timestamp", details.timestamp)) if v is not None}
        return event.replace(**changes) if changes else event

    def _inside(
        self,
        here: Here,
        event_type: str,
        value: Any,
        opaque: bool,  # noqa: FBT001
        details: Details,
    ) -> Event[Any]:
        """Make an event that inherits from the one being handled, or from a correlation scope."""
        parent = here.event
        correlation_id = details.correlation_id or here.correlation_id
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


def _read(event_type: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dict that a mapping of another kind stands for, through its own ``items``."""
    try:
        return dict(payload.items())
    except Exception as error:  # a class of the user's
        raise _unreadable(event_type, error) from error


def _unreadable(event_type: str, error: Exception) -> SerializationError:
    return SerializationError(
        f"the payload of {event_type!r} cannot be read: {type(error).__name__} in one of its values",
        event_type=event_type,
    )


def _details(details: Mapping[str, Any]) -> Details:
    try:
        return Details(**details)
    except TypeError:
        check_options("emit", details, Details._fields)
        raise


def _check_details(event_type: str, details: Details) -> None:
    for name in ("key", "source", "event_id"):
        value = getattr(details, name)
        if value is None:
            continue
        if not isinstance(value, str) or not value:
            raise ValidationError(
                f"{name}={shown(value)} of {event_type!r} is not a non-empty string", event_type=event_type
            )
        if _UNPRINTABLE.search(value):
            raise ValidationError(
                f"{name} of {event_type!r} holds control characters or half a surrogate pair; leave them out",
                event_type=event_type,
            )
    if details.correlation_id is not None and not is_valid_correlation_id(details.correlation_id):
        raise ValidationError(
            f"correlation_id={shown(details.correlation_id)} of {event_type!r} is no id: use up to 128 letters, digits and '._:/+=-'",
            event_type=event_type,
        )
    if details.timestamp is not None:
        _check_timestamp(event_type, details.timestamp)
    if details.headers:
        _check_headers(event_type, details.headers)


def _check_timestamp(event_type: str, timestamp: object) -> None:
    if not isinstance(timestamp, int | float) or isinstance(timestamp, bool) or not -inf < timestamp < inf:
        raise ValidationError(
            f"timestamp={shown(timestamp)} of {event_type!r} is no time; pass seconds since the epoch",
            event_type=event_type,
        )


def _check_headers(event_type: str, headers: Mapping[str, str]) -> None:
    texts = list(chain.from_iterable(headers.items()))
    if not all(isinstance(text, str) for text in texts):
        raise ValidationError(
            f"headers of {event_type!r} are not all text; convert them with str()", event_type=event_type
        )
    if any(_UNPRINTABLE.search(text) for text in texts):
        raise ValidationError(
            f"headers of {event_type!r} hold control characters or half a surrogate pair; leave them out",
            event_type=event_type,
        )


_IMMUTABLE = (
    *(str, int, float, bool, bytes, type(None), dt.date, dt.time, dt.timedelta),
    *(uuid.UUID, Decimal, enum.Enum, PurePath),
)


def is_flat(model: type[Payload]) -> bool:
    """Tell whether the fields of a model can hold nothing that can be changed, and no number that JSON lacks."""
    fields = model.model_fields.values()
    odd_numbers = any(getattr(about, "allow_inf_nan", False) for field in fields for about in field.metadata)
    return (
        model.model_config.get("extra") != "allow"
        and not model.model_config.get("allow_inf_nan")
        and not odd_numbers
        and all(_is_atom(field.annotation) for field in fields)
    )


def _is_atom(annotation: Any) -> bool:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return all(_is_atom(part) for part in parts)
    if origin in (tuple, frozenset):
        return all(part is ... or _is_atom(part) for part in parts)
    if origin is typing.Literal:
        return True
    if origin is typing.Annotated:
        return _is_atom(parts[0]) and not any(getattr(about, "allow_inf_nan", False) for about in parts[1:])
    # SecretStr and the like are immutable too, but JSON cannot show them: the slow way deals with them.
    return annotation is None or (isinstance(annotation, type) and issubclass(annotation, _IMMUTABLE))


def _of_type(event_type: str, payload: Payload) -> Payload:
    if type(payload).event_type != event_type:
        raise PayloadError(
            f"{event_type!r} was emitted with a payload of type {type(payload).event_type!r}; "
            "emit the payload alone, or the type that belongs to it",
            event_type=event_type,
        )
    return payload


def _validator_of(model: type[Payload]) -> Callable[[Any], Any] | None:
    """Return what validates a mapping, without the layers of ``model_validate``; None where those matter.

    A validator of the whole model may change the mapping that it gets, which belongs to the emitter.
    """
    if "model_validate" in {name for base in model.__mro__[: model.__mro__.index(Payload)] for name in vars(base)}:
        return None
    if model.__pydantic_decorators__.model_validators or not model.__pydantic_complete__:
        return None
    validate: Callable[[Any], Any] = model.__pydantic_validator__.validate_python
    return validate
