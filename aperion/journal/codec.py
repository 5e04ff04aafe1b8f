"""Events as bytes and back: what comes back is what was put in, or it is refused by name."""

from __future__ import annotations

import importlib
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import orjson
from pydantic import BaseModel, TypeAdapter

from aperion._frozen import FrozenDict
from aperion._plain import Whole, found_by_name
from aperion._restored import restored
from aperion.errors import SerializationError
from aperion.events import Event, Payload, model_for, parsed, to_json, upcast, validated_by_name, version_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_ATOMS: Final = frozenset({str, int, float, bool, type(None)})


def written(event: Event[Any]) -> bytes:
    """Return an event as one JSON object.

    Raises:
        SerializationError: for a payload that would not come back as it is; it names the value and its class.
    """
    payload = event.payload
    is_model = isinstance(payload, Payload) and type(payload) is model_for(event.event_type)
    fields: dict[str, Any] = {
        "event_type": event.event_type,
        "timestamp": event.timestamp,
        "event_id": event.event_id,
        "source": event.source,
        "correlation_id": event.correlation_id,
        "causation_id": event.causation_id,
        "hops": event.hops,
        "key": event.key,
        "headers": event.headers,
    }
    if is_model and (version := version_of(type(payload)).number) > 1:
        fields["version"] = version
    flat: Mapping[str, Any] | None = None
    if is_model and not payload.__pydantic_extra__:
        flat = payload.__dict__
    elif type(payload) is FrozenDict:
        flat = payload
    if flat is not None and all(type(value) in _ATOMS for value in flat.values()):
        fields["payload"] = flat
        if is_model:
            fields["model"] = True
        if is_model or all(type(key) is str for key in flat):
            try:
                return orjson.dumps(fields)
            except TypeError:  # an integer beyond 64 bits, which the slow way writes
                pass
    try:
        plain = Whole(payload, models=is_model)
        fields |= {"payload": plain.value, "model": is_model, **plain.notes}
        return to_json(fields)
    except (TypeError, ValueError) as error:
        raise SerializationError(
            f"event {event.event_id} of type {event.event_type!r} cannot be kept in the journal: {error}; "
            "send plain values or a model, or emit it with durable=False",
            event_type=event.event_type,
        ) from None


def read(body: bytes) -> Event[Any]:
    """Return the event that was written.

    Raises:
        SerializationError: for what is no event any more: a class is gone, or has changed.
        PayloadError: for a payload that its model refuses by now.
    """
    fields = parsed(body)
    event_type, was_model = fields["event_type"], fields.pop("model", False)
    types, key_types = fields.pop("types", {}), fields.pop("key_types", {})
    payload, version = fields["payload"], fields.pop("version", 1)
    if types or key_types:
        payload = restored(payload, types, key_types, event_type, find=_made)
    model = model_for(event_type)
    if model is not None and not isinstance(payload, BaseModel):
        payload = upcast(model, payload, version, event_type)
        payload = validated_by_name(model, event_type, payload, strict=False if types or key_types else None)
    elif was_model and model is None:
        raise SerializationError(
            f"the payload of {event_type!r} had a model, and none has that type now; import its module",
            event_type=event_type,
        )
    fields["payload"] = payload
    return Event(**fields)


def unread(body: bytes) -> Event[Any] | None:
    """Return what can be shown of an event that cannot be read any more: its payload as plain JSON."""
    try:
        fields = parsed(body)
        for name in ("model", "types", "key_types", "version"):
            fields.pop(name, None)
        return Event(**fields)
    except Exception:  # noqa: BLE001 - whatever stands there
        return None


def _made(tag: str, name: str, content: Any) -> Any:
    """Make a value of a class that a note names; what is no class of that kind is refused."""
    module, _, qualname = name.partition(":")
    importlib.import_module(module)
    kind = found_by_name(module, qualname)
    if tag == "enum" and issubclass(kind, Enum):
        return kind(content) if isinstance(content, int) else kind[content]
    if tag == "namedtuple" and issubclass(kind, tuple):
        return kind(*content)
    if tag == "dataclass" and hasattr(kind, "__dataclass_fields__"):
        value = object.__new__(kind)  # not by its constructor, which may change what it gets
        for field, part in content.items():
            if field not in kind.__dataclass_fields__:
                raise TypeError(field)
            object.__setattr__(value, field, part)
        return value
    if tag == "model" and issubclass(kind, BaseModel):
        return TypeAdapter(kind).validate_python(content, strict=False)
    raise TypeError(name)
