"""Payloads as plain JSON, and the notes beside them that say what JSON cannot: which value was of which kind."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from aperion._frozen import FrozenDict, FrozenList

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_MINUTE: Final = timedelta(minutes=1)


class Plain:
    """One walk over one frozen payload: its plain form, and a note for each value that JSON has no kind for.

    A note is a JSON pointer (RFC 6901) into the plain form, and a tag. What cannot be restored, such as an enum
    or a dataclass, stays in the form as it is, without a note.

    Args:
        payload: what an event holds.
        models: whether models become mappings, to be validated again; otherwise they stay as they are.
    """

    # Mutable: the notes grow during the walk; _path is where it is now.
    __slots__ = ("_key_types", "_models", "_path", "_types", "value")

    def __init__(self, payload: object, *, models: bool) -> None:
        self._types: dict[str, str] = {}
        self._key_types: dict[str, str] = {}
        self._models = models
        self._path: list[str | int] = []
        self.value = self._plain(payload)

    @property
    def notes(self) -> dict[str, dict[str, str]]:
        """The fields that go beside the payload, none where JSON says it all."""
        notes = {"types": self._types, "key_types": self._key_types}
        return {field: tags for field, tags in notes.items() if tags}

    def _plain(self, value: Any) -> Any:
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if kind is FrozenDict or kind is dict:
            return self._mapping(value)
        if kind in _COLLECTIONS:
            return self._collection(value, _COLLECTIONS[kind])
        if kind in _WRITERS:
            text, tag = _WRITERS[kind](value)
            self._types[self._pointer()] = tag
            return text
        if self._models and isinstance(value, BaseModel):
            return self._model(value)
        return self._other(value)

    def _other(self, value: Any) -> Any:
        return value

    def _model(self, value: BaseModel) -> Any:
        if value.__pydantic_root_model__:
            return self._plain(value.root)  # type: ignore[attr-defined]  # a RootModel has one
        return self._mapping(jsonable_fields(value))

    def _mapping(self, mapping: Mapping[Any, Any]) -> Any:
        texts = [(key, "") if type(key) is str else _key_text(key) for key in mapping]
        if self._needs_pairs(mapping, len({text for text, _ in texts})):
            self._types[self._pointer()] = "mapping"
            return self._items([list(pair) for pair in mapping.items()])
        plain = {}
        for (text, tag), value in zip(texts, mapping.values(), strict=True):
            self._path.append(text)
            if tag:
                self._key_types[self._pointer()] = tag
            plain[text] = self._plain(value)
            self._path.pop()
        return plain

    def _needs_pairs(self, mapping: Mapping[Any, Any], texts: int) -> bool:
        return texts < len(mapping)  # 1 and "1": an object would lose one of them

    def _collection(self, values: Any, tag: str) -> list[Any]:
        if tag:
            self._types[self._pointer()] = tag
        return self._items(sorted(values, key=str) if isinstance(values, set | frozenset) else values)

    def _items(self, values: Iterable[Any]) -> list[Any]:
        plain = []
        for place, value in enumerate(values):
            self._path.append(place)
            plain.append(self._plain(value))
            self._path.pop()
        return plain

    def _pointer(self) -> str:
        return "".join(f"/{str(token).replace('~', '~0').replace('/', '~1')}" for token in self._path)


class Whole(Plain):
    """A walk that leaves nothing out: values of classes are noted by name, and what cannot be restored is refused.

    Raises:
        TypeError: for such a value, naming where it stands and its class.
    """

    __slots__ = ()

    def _other(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, Enum):
            return self._named("enum", kind, value.value if isinstance(value, Flag) else value.name)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return self._named("namedtuple", kind, list(value))
        if is_dataclass(value):
            return self._named("dataclass", kind, self._fields(value))
        if isinstance(value, BaseModel) and not value.__pydantic_private__:
            content = value.root if value.__pydantic_root_model__ else jsonable_fields(value)  # type: ignore[attr-defined]
            return self._named("model", kind, content)
        raise self._refusal(kind, "is of a class that it does not know")

    def _named(self, tag: str, kind: type, content: Any) -> Any:
        if found_by_name(kind.__module__, kind.__qualname__) is not kind:
            raise self._refusal(kind, "would not find that class again, since it is not at the top of a module")
        self._types[self._pointer()] = f"{tag}[{kind.__module__}:{kind.__qualname__}]"
        return self._plain(content)

    def _fields(self, value: Any) -> dict[str, Any]:
        names = [field.name for field in fields(value)]
        if set(getattr(value, "__dict__", names)) - set(names):
            raise self._refusal(type(value), "has attributes beside its fields")
        return {name: getattr(value, name) for name in names if hasattr(value, name)}

    def _needs_pairs(self, mapping: Mapping[Any, Any], texts: int) -> bool:
        return super()._needs_pairs(mapping, texts) or any(type(key) not in _KEY_WRITERS for key in mapping)

    def _refusal(self, kind: type, why: str) -> TypeError:
        where = ".".join(map(str, ("payload", *self._path)))
        return TypeError(f"{where} is a {kind.__module__}.{kind.__qualname__}, and {why}")


def jsonable_fields(model: BaseModel) -> dict[str, Any]:
    """Return the fields of a model, those included that were not declared."""
    return {**model.__dict__, **(model.__pydantic_extra__ or {})}


def found_by_name(module: str, name: str) -> Any:
    """Return what a module that is loaded holds under a dotted name, or None."""
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def moment_text(value: datetime) -> str:
    """Return a moment as RFC 3339 has it."""
    offset = value.utcoffset()
    if (
        offset is not None and offset % _MINUTE
    ):  # as before 1900: RFC 3339 has no seconds there, and pydantic reads none
        with suppress(OverflowError):
            return value.astimezone(UTC).isoformat()
    return value.isoformat()


def _moment(value: datetime) -> tuple[str, str]:
    return moment_text(value), f"datetime{_odd_offset(value)}{_zone_text(value.tzinfo)}"


def _time_of_day(value: time) -> tuple[str, str]:
    return to_jsonable_python(value), f"time{_odd_offset(value)}{_zone_text(value.tzinfo)}"


def _odd_offset(value: datetime | time) -> str:
    """Return an offset that the text of a time cannot tell, since it has seconds."""
    offset = value.utcoffset()
    if not offset or not offset % _MINUTE:
        return ""
    return time(tzinfo=timezone(offset)).isoformat().removeprefix("00:00:00")


def _zone_text(zone: tzinfo | None) -> str:
    # Hours that a clock shows twice are equal within their zone only.
    return f"[{zone.key}]" if type(zone) is ZoneInfo and zone.key else ""


def _tagged(tag: str, write: Callable[[Any], str]) -> Callable[[Any], tuple[str, str]]:
    return lambda value: (write(value), tag)


_AS_THEY_ARE: Final = frozenset({str, int, float, bool, type(None)})
_COLLECTIONS: Final[dict[type, str]] = {
    list: "",
    FrozenList: "",
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
}
# By exact class: a subclass would not come back as what it was.
_WRITERS: Final[dict[type, Callable[[Any], tuple[str, str]]]] = {
    datetime: _moment,
    time: _time_of_day,
    date: _tagged("date", date.isoformat),
    timedelta: _tagged("timedelta", to_jsonable_python),
    UUID: _tagged("uuid", str),
    Decimal: _tagged("decimal", str),
    bytes: _tagged("bytes", lambda value: value.decode("latin-1")),
    PosixPath: _tagged("posix_path", str),
    WindowsPath: _tagged("windows_path", str),
    PurePosixPath: _tagged("pure_posix_path", str),
    PureWindowsPath: _tagged("pure_windows_path", str),
}
_KEY_WRITERS: Final[dict[type, Callable[[Any], tuple[str, str]]]] = {
    **{kind: _WRITERS[kind] for kind in (datetime, date, time, UUID)},
    str: _tagged("", str),
    int: _tagged("int", str),
    float: _tagged("float", lambda key: orjson.dumps(key).decode()),
    bool: _tagged("bool", lambda key: "true" if key else "false"),
    type(None): _tagged("none", lambda _: "null"),
}


def _key_text(key: Any) -> tuple[str, str]:
    """Return a key as text, and its tag, which is empty where it cannot be restored."""
    write = _KEY_WRITERS.get(type(key))
    if write is not None:
        return write(key)
    if isinstance(key, Enum):
        return _key_text(key.value)[0], ""
    if isinstance(key, date | time):
        return key.isoformat(), ""
    if isinstance(key, UUID | str | int | float):
        return str(key), ""
    raise TypeError(f"a key is of type {type(key).__name__}")
