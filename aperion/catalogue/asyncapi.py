"""The catalogue as an AsyncAPI 3.0 document: https://www.asyncapi.com/docs/reference/specification/v3.0.0."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from pydantic import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from aperion.catalogue.contents import sensitivity
from aperion.events import model_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aperion.bus import EventBus
    from aperion.catalogue.contents import Catalogue, EventType
    from aperion.events import Payload

SENSITIVE: Final = "x-aperion-sensitive"
"""Says of a property that it is hidden wherever events are shown, and under which type."""

_REF: Final = "#/components/schemas/{model}"
_ODD: Final = re.compile(r"[^\w.\-]")
_HEADERS: Final = {
    "type": "object",
    "properties": {
        "event_id": {"type": "string"},
        "timestamp": {"type": "number", "description": "Seconds since the epoch."},
        "source": {"type": ["string", "null"]},
        "correlation_id": {"type": "string"},
        "causation_id": {"type": ["string", "null"]},
        "hops": {"type": "integer", "minimum": 0},
        "key": {"type": ["string", "null"]},
        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["event_id", "timestamp", "correlation_id", "hops"],
}


def asyncapi(contents: Catalogue, bus: EventBus, *, version: str = "0.0.0") -> dict[str, Any]:
    """Return the document as JSON values: a channel for each type, who sends and who receives, payload schemas.

    Properties that a redactor hides, by their annotation or their name, have ``x-aperion-sensitive``.
    """
    models = {each.name: model for each in contents.types if (model := model_for(each.name)) is not None}
    schemas, refs = _schemas(models)
    for schema in schemas.values():
        _mark(schema, bus)
    return {
        "asyncapi": "3.0.0",
        "info": {"title": contents.title or "Aperion", "version": version},
        "defaultContentType": "application/json",
        "channels": {each.name: _channel(each) for each in contents.types},
        "operations": {name: operation for each in contents.types for name, operation in _operations(each)},
        "components": {
            "messages": {each.name: _message(each, refs.get(each.name)) for each in contents.types},
            "schemas": {"EventHeaders": _HEADERS, **schemas},
        },
    }


def _channel(event_type: EventType) -> dict[str, Any]:
    message = {event_type.name: {"$ref": f"#/components/messages/{event_type.name}"}}
    about = {"description": event_type.description} if event_type.description else {}
    return {"address": event_type.name, **about, "messages": message}


def _message(event_type: EventType, payload: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": event_type.name,
        **({"summary": event_type.description} if event_type.description else {}),
        "contentType": "application/json",
        "headers": {"$ref": _REF.format(model="EventHeaders")},
        "payload": payload or {"type": "object"},
        "correlationId": {"location": "$message.header#/correlation_id"},
    }


def _operations(event_type: EventType) -> list[tuple[str, dict[str, Any]]]:
    channel = {"$ref": f"#/channels/{event_type.name}"}
    found: list[tuple[str, dict[str, Any]]] = []
    if event_type.emitters:
        places = [str(place) for place in event_type.emitters]
        found.append((f"send.{event_type.name}", {"action": "send", "channel": channel, "x-aperion-emitters": places}))
    for handler in event_type.handlers:
        about = {"x-aperion-pattern": handler.pattern, "x-aperion-priority": handler.priority}
        name = f"receive.{event_type.name}.{_ODD.sub('_', handler.subscription)}"
        found.append((name, {"action": "receive", "channel": channel, "title": handler.subscription, **about}))
    return found


class _Schemas(GenerateJsonSchema):
    """Leaves out a default that JSON cannot hold, such as bytes, without a warning: no reader of the document can act on it."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - pydantic's own attribute


def _schemas(models: Mapping[str, type[Payload]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the schemas of payloads and of all they hold, by name, and how each type refers to its own."""
    told = {name: model for name, model in models.items() if _has_schema(model)}
    wanted = [(model, "validation") for model in told.values()]
    by_model, defined = models_json_schema(wanted, ref_template=_REF, schema_generator=_Schemas)  # type: ignore[arg-type]  # literals
    refs: dict[str, dict[str, Any]] = {name: by_model[model, "validation"] for name, model in told.items()}
    return dict(defined.get("$defs", {})), refs


def _has_schema(model: type[Payload]) -> bool:
    try:
        model.model_json_schema(schema_generator=_Schemas)
    except (PydanticInvalidForJsonSchema, PydanticUserError):  # a field of a class that JSON schema knows nothing of
        return False
    return True


def _mark(schema: Any, bus: EventBus) -> None:
    """Mark the properties that are hidden for their names; those that are annotated say so themselves."""
    if isinstance(schema, list):
        for each in schema:
            _mark(each, bus)
    elif isinstance(schema, dict):
        for name, held in schema.get("properties", {}).items():
            if isinstance(held, dict) and SENSITIVE not in held and (kind := sensitivity(name, None, bus)):
                held[SENSITIVE] = kind
        for each in schema.values():
            _mark(each, bus)
