"""The event: an immutable envelope around a payload, and the models that payloads can have."""

from __future__ import annotations

import copy
import json
import time
from datetime import datetime
from inspect import signature
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import orjson
import pydantic
import uuid_utils
from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json, to_jsonable_python
from typing_extensions import TypeVar

from aperion._frozen import Freezer, FrozenDict
from aperion._plain import Plain, moment_text
from aperion._restored import restored
from aperion.errors import ConfigurationError, PayloadError, SerializationError, positive, shown
from aperion.naming import EVENT_TYPE_PATTERN, is_valid_event_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

P = TypeVar("P", default=Any, covariant=True)  # noqa: PLC0105 - users read Event[P]

PayloadT = TypeVar("PayloadT", bound="Payload")

# orjson 3.13 writes 10,000 microseconds of a time as a tenth of a second, and leaves out the seconds of an offset.
_JSON = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME


def new_event_id() -> str:
    """Return a UUID version 7 (RFC 9562) as text: sortable by time, and unique across processes and forks.

    uuid_utils seeds its generator anew in a child that was forked.
    """
    return str(uuid_utils.uuid7())


class Unvalidated(set[str]):
    """The set of given fields of a model that skipped validation, so that ``emit`` makes up for it.

    Every instance has such a set, copies keep its class, and looking at it costs 30 ns; pydantic
    answers a missing attribute only after 600 ns.
    """


def _marked(instance: PayloadT) -> PayloadT:
    object.__setattr__(instance, "__pydantic_fields_set__", Unvalidated(instance.__pydantic_fields_set__))
    return instance


class Payload(BaseModel):
    """The model of one event type's payload; immutable, and refuses fields that it does not know.

    Examples:
        >>> class UserLogin(Payload, type="user.login"):
        ...     username: str
        >>> UserLogin.event_type
        'user.login'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    event_type: ClassVar[str] = ""

    def __init_subclass__(cls, type: str | None = None, version: int = 1, **kwargs: Any) -> None:  # noqa: A002 - the public face
        """Register the model under its event type.

        Args:
            type: the event type.
            version: counts the changes after which older payloads do not fit any more; see ``upcaster``.
            kwargs: what pydantic takes.

        Raises:
            ConfigurationError: for a type that is no event type, or that another model has.
        """
        super().__init_subclass__(**kwargs)
        cls.event_type = ""
        positive("version", version, whole=True)
        _VERSIONS[cls] = Versions(version)
        if type is not None:
            _register(cls, type)

    @classmethod
    def upcaster(cls, *, from_version: int) -> Callable[[Upcast], Upcast]:
        """Decorate a function that makes of the fields of one version those of the next.

        It is called with the fields of a payload that was written before, by a journal or into a line, and returns
        them as the next version has them; the model validates what comes out at the end.

        >>> class UserMoved(Payload, type="user.moved", version=2):
        ...     city: str
        >>> @UserMoved.upcaster(from_version=1)
        ... def town_is_city(fields):
        ...     return {"city": fields["town"]}

        Raises:
            ConfigurationError: for a version that is not before that of the model, or that has one already.
        """
        versions = version_of(cls)

        def decorate(upcast: Upcast) -> Upcast:
            if not 1 <= from_version < versions.number or from_version in versions.upcasts:
                raise ConfigurationError(
                    f"from_version={from_version!r} makes no sense for {cls.__qualname__}: its version is {versions.number}, "
                    f"and there are upcasters from {sorted(versions.upcasts) or 'none'}"
                )
            versions.upcasts[from_version] = upcast
            return upcast

        return decorate

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a model that is not frozen: what one handler changed, another would see."""
        super().__pydantic_init_subclass__(**kwargs)
        if not cls.model_config.get("frozen"):
            raise ConfigurationError(f"{cls.__qualname__} sets frozen=False, but payloads are immutable; remove it")

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
        """Build an instance without validation; ``emit`` validates it after all."""
        return _marked(super().model_construct(_fields_set, **values))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy, without validating ``update``; ``emit`` validates it after all."""
        twin = super().model_copy(update=update, deep=deep)
        return _marked(twin) if update else twin


Upcast: TypeAlias = "Callable[[dict[str, Any]], Mapping[str, Any]]"


class Versions:
    """The version of a model, and what leads to it from earlier ones."""

    # Mutable: the functions, while modules are loaded.
    __slots__ = ("number", "upcasts")

    def __init__(self, number: int) -> None:
        self.number = number
        self.upcasts: dict[int, Upcast] = {}


_VERSIONS: WeakKeyDictionary[type, Versions] = WeakKeyDictionary()  # no attributes: fields may have any name


def version_of(model: type) -> Versions:
    """Return the version of a model."""
    return _VERSIONS.get(model) or Versions(1)


def upcast(model: type[Payload], payload: Any, version: object, event_type: str) -> Any:
    """Return a payload of an earlier version as the model has it now.

    Raises:
        SerializationError: where no function leads there, or one raises.
    """
    versions = version_of(model)
    if version == versions.number:
        return payload
    if not isinstance(version, int) or not 1 <= version < versions.number:
        raise SerializationError(
            f"the payload of {event_type!r} is of version {shown(version)}, and its model knows {versions.number}",
            event_type=event_type,
        )
    for number in range(version, versions.number):
        step = versions.upcasts.get(number)
        if step is None:
            raise SerializationError(
                f"nothing leads from version {number} of {event_type!r} to the next; "
                f"write @{model.__name__}.upcaster(from_version={number})",
                event_type=event_type,
            )
        try:
            payload = step(dict(payload))
        except Exception as error:
            raise SerializationError(
                f"the upcaster of {event_type!r} from version {number} raised {type(error).__name__}",
                event_type=event_type,
            ) from error
    return payload


_MODELS: WeakValueDictionary[str, type[Payload]] = WeakValueDictionary()
registered = 0
"""How many models have got an event type so far, those included that are gone."""


def model_for(event_type: str) -> type[Payload] | None:
    """Return the model that was declared for an event type, or None."""
    return _MODELS.get(event_type)


def known_event_types() -> frozenset[str]:
    """Return every event type that a living model has."""
    return frozenset(_MODELS)


def _register(model: type[Payload], event_type: str) -> None:
    global registered  # noqa: PLW0603 - it goes with the registry
    if not is_valid_event_type(event_type):
        raise ConfigurationError(
            f"type={shown(event_type)} of {model.__qualname__} is not an event type: it must match {EVENT_TYPE_PATTERN}, "
            "such as 'user.login'"
        )
    model.event_type = event_type
    other = _MODELS.get(event_type)
    if other is not None and _full_name(other) != _full_name(model) and "<locals>" not in other.__qualname__:
        raise ConfigurationError(
            f"{_full_name(model)} has the event type {event_type!r}, which {_full_name(other)} already has; rename one"
        )
    _MODELS[event_type] = model
    registered += 1


def _full_name(model: type) -> str:
    return f"{model.__module__}.{model.__qualname__}"


class _Fields:
    __slots__ = (
        "_cascade",
        "_opaque",
        "causation_id",
        "correlation_id",
        "event_id",
        "event_type",
        "headers",
        "hops",
        "key",
        "payload",
        "source",
        "timestamp",
    )


class Event(_Fields, Generic[P]):
    """A fact that happened. Immutable, its payload included; equal when every field is.

    Args:
        event_type: its name, ``{domain}.{action}``.
        payload: a ``Payload`` model or a mapping, of which an immutable copy is kept.
        timestamp: seconds since the epoch; now by default.
        event_id: a new UUID version 7 by default.
        source: who says so.
        correlation_id: ties together all that one request caused.
        causation_id: the id of the event that caused this one.
        hops: how many events lie between this one and the first cause.
        key: events with the same key are handled one after another.
        headers: text by text, for what travels along (W3C trace context).

    Raises:
        SerializationError: for a payload that JSON cannot hold.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        # Read-only, so that Event[Child] is an Event[Parent]; the slots are in _Fields.
        @property
        def event_type(self) -> str: ...  # noqa: D102
        @property
        def payload(self) -> P: ...  # noqa: D102
        @property
        def timestamp(self) -> float: ...  # noqa: D102
        @property
        def event_id(self) -> str: ...  # noqa: D102
        @property
        def source(self) -> str | None: ...  # noqa: D102
        @property
        def correlation_id(self) -> str: ...  # noqa: D102
        @property
        def causation_id(self) -> str | None: ...  # noqa: D102
        @property
        def hops(self) -> int: ...  # noqa: D102
        @property
        def key(self) -> str | None: ...  # noqa: D102
        @property
        def headers(self) -> Mapping[str, str]: ...  # noqa: D102
        @property
        def _cascade(self) -> Any: ...
        @property
        def _opaque(self) -> bool: ...

    def __init__(  # noqa: PLR0913 - the envelope has ten fields
        self,
        event_type: str,
        payload: P | Mapping[str, Any],
        timestamp: float | None = None,
        event_id: str | None = None,
        source: str | None = None,
        correlation_id: str | None = None,
        *,
        causation_id: str | None = None,
        hops: int = 0,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        freezer = Freezer(event_type)
        frozen = freezer.freeze(payload)
        event_id = event_id or new_event_id()
        values = (
            *(event_type, frozen, time.time() if timestamp is None else timestamp, event_id, source),
            *(correlation_id or event_id, causation_id, hops, key, FrozenDict(headers or {}), None, freezer.opaque),
        )
        for name, value in zip(_ORDER, values, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: an event is a fact."""
        raise AttributeError(f"an event cannot be changed: {name} was set; use event.replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        """Refuse: an event is a fact."""
        raise AttributeError(f"an event cannot be changed: {name} was deleted")

    def __repr__(self) -> str:
        """Show the envelope without the payload, which may hold secrets."""
        return f"<Event {self.event_type} {self.event_id}>"

    def __eq__(self, other: object) -> bool:
        """Compare every field."""
        return isinstance(other, Event) and all(getattr(self, n) == getattr(other, n) for n in _PUBLIC)

    def __hash__(self) -> int:
        """Hash by id."""
        return hash(self.event_id)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle every public field."""
        return _restore, tuple(getattr(self, name) for name in _PUBLIC)

    def replace(self, **changes: Any) -> Event[Any]:
        """Return a copy with some fields changed; the id stays unless it is changed too.

        Raises:
            TypeError: for a field that events do not have.
        """
        values = {name: getattr(self, name) for name in _PUBLIC}
        unknown = changes.keys() - values.keys()
        if unknown:
            raise TypeError(f"events have no {', '.join(sorted(unknown))}; their fields are {', '.join(_PUBLIC)}")
        twin = Event(**(values | changes))
        set_cascade(twin, self._cascade)
        return twin

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values, the payload thawed and not redacted."""
        fields: dict[str, Any] = from_json(_written(self, self._plain().value))
        return fields

    def to_jsonl(self) -> str:
        """Return one line of JSON without a newline, not redacted; ``from_jsonl`` reads it back.

        The payload is plain JSON. What JSON has no kind for is noted beside it, by JSON pointer, and comes back:
        dates and times, ``UUID``, ``Decimal``, ``bytes``, tuples, frozensets, paths, keys that are no text. Enums,
        dataclasses, named tuples, models within mappings and objects of other classes are written as JSON, without
        a note, and come back as that. A payload whose model restores it by itself has no notes.

        Raises:
            SerializationError: for a payload that JSON cannot hold.
        """
        plain = self._plain()
        notes = plain.notes
        if notes and isinstance(self.payload, Payload) and _restores_itself(self.payload, self.event_type, plain):
            notes = {}
        version = version_of(type(self.payload)).number if isinstance(self.payload, Payload) else 1
        return _written(self, plain.value, notes if version == 1 else {**notes, "version": version}).decode()

    def _plain(self) -> Plain:
        try:
            return Plain(self.payload, models=type(self.payload) is model_for(self.event_type))
        except (TypeError, ValueError) as error:
            raise _unwritable(self, error) from None

    @classmethod
    def from_jsonl(cls, line: str | bytes) -> Event[Any]:
        """Read an event from what ``to_jsonl`` wrote, with notes or without; a type with a model gets its model.

        Raises:
            SerializationError: for a line that is not such a JSON object, or whose notes do not fit its payload.
            PayloadError: for a payload that its model refuses.
        """
        fields = parsed(line)
        event_type, types, key_types = fields["event_type"], fields.get("types", {}), fields.get("key_types", {})
        payload = restored(fields["payload"], types, key_types, event_type)
        model = model_for(event_type)
        # Strictness is for what users hand in: a set has become a frozenset since.
        strict = False if types or key_types else None
        if model is not None:
            payload = upcast(model, payload, fields.get("version", 1), event_type)
        fields["payload"] = validated_by_name(model, event_type, payload, strict=strict) if model else payload
        return Event(**{name: fields[name] for name in _PUBLIC if name in fields})


_PUBLIC = (
    *("event_type", "payload", "timestamp", "event_id", "source"),
    *("correlation_id", "causation_id", "hops", "key", "headers"),
)
_ORDER = (*_PUBLIC, "_cascade", "_opaque")


class _Draft(_Fields, Generic[P]):
    """An event in the making: same slots, so that ``__class__`` can change, and plain assignment.

    Creating one costs 110 ns, and a frozen dataclass of this size 900 ns (CPython 3.11).
    """

    __slots__ = ()


def make_event(  # noqa: PLR0913, PLR0917 - the envelope has ten fields; all positional, since this is the hot path
    event_type: str,
    payload: Any,
    source: str | None,
    correlation_id: str | None,
    causation_id: str | None,
    hops: int,
    key: str | None,
    headers: Mapping[str, str],
    opaque: bool,  # noqa: FBT001
) -> Event[Any]:
    """Build an event now, from parts that are already checked and immutable."""
    draft: Any = _Draft()
    draft.event_type = event_type
    draft.payload = payload
    draft.timestamp = time.time()
    draft.event_id = event_id = str(uuid_utils.uuid7())
    draft.source = source
    draft.correlation_id = event_id if correlation_id is None else correlation_id
    draft.causation_id = causation_id
    draft.hops = hops
    draft.key = key
    draft.headers = headers
    draft._cascade = None
    draft._opaque = opaque
    draft.__class__ = Event
    event: Event[Any] = draft
    return event


def own_copy(event: Event[Any]) -> Event[Any]:
    """Return the event with a payload of its own, where the payload holds what can be changed."""
    if not event._opaque:
        return event
    twin: Any = _Draft()
    for name in _ORDER:
        setattr(twin, name, getattr(event, name))
    twin.payload = copy.deepcopy(event.payload)
    twin.__class__ = Event
    return twin  # type: ignore[no-any-return]  # a draft has become an event


def with_headers(event: Event[Any], headers: Mapping[str, str]) -> Event[Any]:
    """Return the event with other headers, which must be immutable; a tenth of the time of ``replace``."""
    twin: Any = _Draft()
    for name in _ORDER:
        setattr(twin, name, getattr(event, name))
    twin.headers = headers
    twin.__class__ = Event
    return twin  # type: ignore[no-any-return]  # a draft has become an event


def set_cascade(event: Event[Any], cascade: object) -> None:
    """Tie an event to the cascade that it belongs to; it is not part of its public state."""
    _set_cascade(event, cascade)


_set_cascade = _Fields._cascade.__set__  # type: ignore[attr-defined]  # a slot descriptor


def validated(model: type[Payload], event_type: str, payload: object) -> Payload:
    """Return the payload as an instance of its model.

    Raises:
        PayloadError: with the fields and the rules that they broke, without any value.
    """
    try:
        return model.model_validate(payload)
    except pydantic.ValidationError as error:
        raise payload_error(event_type, error) from None


def validated_by_name(model: type[Payload], event_type: str, payload: object, *, strict: bool | None = None) -> Payload:
    """Do what ``validated`` does for fields under their own names, as lines have them, whatever their aliases."""
    try:
        return model.model_validate(payload, strict=strict, **_BY_NAME)
    except pydantic.ValidationError as error:
        raise payload_error(event_type, error) from None


# Since pydantic 2.11.
_BY_NAME: Any = (
    {"by_alias": True, "by_name": True} if "by_name" in signature(BaseModel.model_validate).parameters else {}
)


def payload_error(event_type: str, error: pydantic.ValidationError) -> PayloadError:
    """Translate pydantic's error into one that shows no input."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    fields = [".".join(str(part) for part in detail["loc"]) or "payload" for detail in details]
    # The words of a user's own validator may quote the value, so only its kind is told.
    rules = [d["type"].replace("_", " ") if d["type"] in _OWN_WORDS else d["msg"] for d in details]
    text = "; ".join(f"{field}: {rule}" for field, rule in zip(fields, rules, strict=True))
    return PayloadError(
        f"the payload of {event_type!r} does not fit {error.title}: {text}", event_type=event_type, fields=fields
    )


_OWN_WORDS = frozenset({"value_error", "assertion_error"})


def to_json(value: object) -> bytes:
    """Write a value as one line of JSON: everything that a payload may hold has a form.

    Raises:
        TypeError: for what has none.
    """
    try:
        return orjson.dumps(value, default=jsonable, option=_JSON)
    except TypeError:  # most likely an integer beyond 64 bits, which only the standard library writes
        return json.dumps(value, default=jsonable, ensure_ascii=False, separators=(",", ":")).encode()


def jsonable(value: object) -> Any:
    """Turn what orjson does not know into what it knows; the ``default`` of every ``orjson.dumps`` here."""
    if isinstance(value, BaseModel):
        return {**value.__dict__, **(value.__pydantic_extra__ or {})}
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, datetime):
        return moment_text(value)
    if isinstance(value, PurePath):  # pydantic writes those of this system only
        return str(value)
    return to_jsonable_python(value)


def _written(event: Event[Any], payload: object, notes: Mapping[str, Any] = MappingProxyType({})) -> bytes:
    fields = {name: getattr(event, name) for name in _PUBLIC}
    try:
        return to_json({**fields, "payload": payload, **notes})
    except (TypeError, ValueError) as error:
        raise _unwritable(event, error) from None


def _unwritable(event: Event[Any], error: Exception) -> SerializationError:
    return SerializationError(
        f"event {event.event_id} of type {event.event_type!r} cannot be written as JSON: {error}",
        event_type=event.event_type,
    )


def _restores_itself(payload: Payload, event_type: str, plain: Plain) -> bool:
    """Tell whether a model makes of the plain form what was there, kind by kind."""
    try:
        fields = from_json(to_json(plain.value))
        again = Freezer(event_type).freeze(validated_by_name(type(payload), event_type, fields))
        twin = Plain(again, models=True)
        return twin.notes == plain.notes and to_json(twin.value) == to_json(plain.value)
    except Exception:  # noqa: BLE001 - a validator of the user may raise anything; notes are right for sure
        return False


def _restore(*values: Any) -> Event[Any]:
    return Event(**dict(zip(_PUBLIC, values, strict=True)))


def parsed(line: str | bytes) -> dict[str, Any]:
    """Return the fields of an event from a line of JSON.

    Raises:
        SerializationError: for a line that is no event.
    """
    try:
        fields = from_json(line)  # keeps integers beyond 64 bits, which orjson turns into floats
    except ValueError as error:
        raise SerializationError(f"the line is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise SerializationError(f"the line is not an event: it holds a {type(fields).__name__}, not an object")
    missing = {"event_type", "payload"} - fields.keys()
    if missing:
        raise SerializationError(f"the line is not an event: it has no {' and no '.join(sorted(missing))}")
    if not isinstance(fields["event_type"], str) or not isinstance(fields.get("headers") or {}, dict):
        raise SerializationError("the line is not an event: event_type is text, and headers are an object")
    return fields
