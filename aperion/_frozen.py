"""Payloads that nobody can change: immutable copies of what an emitter handed in."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, NoReturn
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from aperion.errors import SerializationError

MAX_DEPTH = 128
"""Nested containers in a payload; orjson stops at 254, and the envelope and the audit log add some."""

_LONGEST_PATH = 120

_ATOMS = frozenset({int, bool, type(None), bytes, datetime, date, time, timedelta, UUID, Decimal})
_INFINITY = math.inf
_KEYS = (str, int, float, bool, type(None), UUID, date, time, Enum)


def _refuse(self: object, *_args: object, **_kwargs: object) -> NoReturn:
    raise TypeError(
        f"the payload of an event cannot be changed; work on a copy: {'dict' if isinstance(self, dict) else 'list'}(...)"
    )


class FrozenDict(dict[Any, Any]):
    """A dict that refuses every change; ``copy()``, ``dict()`` and ``|`` give a plain one."""

    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]  # dict sets it to None; this one never changes
        """Hash by keys, which are hashable where values may not be."""
        return hash(frozenset(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        """Thaw: a deep copy is plain and may be changed."""
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle through the constructor, since items cannot be set."""
        return FrozenDict, (dict(self),)


class FrozenList(list[Any]):
    """A list that refuses every change; ``copy()``, ``list()`` and ``+`` give a plain one."""

    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __hash__(self) -> int:  # type: ignore[override]  # list sets it to None; this one never changes
        """Hash by length: equal lists have equal hashes, whatever they hold."""
        return len(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        """Thaw: a deep copy is plain and may be changed."""
        return [copy.deepcopy(value, memo) for value in self]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle through the constructor, since items cannot be appended."""
        return FrozenList, (list(self),)


class _Unwritable(Exception):  # noqa: N818 - never leaves this module
    """A value without a JSON form, and the path to it, which grows on the way up."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


class Freezer:
    """One walk over one payload: copies what can change, and refuses what cannot be written down.

    After ``freeze``, ``size`` is a lower bound of the JSON length in bytes, and ``opaque`` says that
    the copy still holds objects that can be changed (a dataclass, a model that is not frozen), of
    which each handler must get its own.
    """

    # Mutable: size and opaque grow during the walk; _parents is the path of containers now open.
    __slots__ = ("_parents", "event_type", "opaque", "size")

    def __init__(self, event_type: str) -> None:
        self.event_type = event_type
        self.size = 0
        self.opaque = False
        self._parents: list[object] = []

    def freeze(self, value: Any) -> Any:
        """Return an immutable copy of a value, or the value where it already is one.

        Raises:
            SerializationError: for what JSON has no form for, with the path to it.
        """
        try:
            return self._frozen(value)
        except _Unwritable as error:
            path = "".join(["payload", *reversed(error.path)])
            where = path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}…"
            raise SerializationError(
                f"the payload of {self.event_type!r} cannot be serialised: {where} {error}",
                event_type=self.event_type,
                fields=(where,),
            ) from error.__cause__

    def _frozen(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            self.size += len(value)
            return value if value.isascii() else _checked_text(value)
        if kind in _ATOMS:
            self.size += 1
            return value
        if kind is float:
            self.size += 1
            return _checked_float(value)
        if isinstance(value, (dict, list, tuple, BaseModel, set, frozenset, Mapping)):  # the slow one last
            return self._container(value)
        return self._object(value)

    def _container(self, value: Any) -> Any:
        for parent in self._parents:
            if parent is value:
                raise _Unwritable("contains itself")
        if len(self._parents) >= MAX_DEPTH:
            raise _Unwritable(f"lies more than {MAX_DEPTH} levels deep")
        self._parents.append(value)
        frozen = self._copied(value)
        self._parents.pop()
        return frozen

    def _copied(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return FrozenDict(self._fields(value, "."))
        if isinstance(value, BaseModel):
            return self._model(value)
        items = self._items(value)
        if isinstance(value, list):
            return FrozenList(items)
        if isinstance(value, tuple):
            return value._make(items) if hasattr(value, "_make") else tuple(items)
        return frozenset(items)

    def _fields(self, mapping: Mapping[Any, Any], mark: str) -> dict[Any, Any]:
        self.size += 2 + 4 * len(mapping)  # quotes, colon, comma
        frozen, key = {}, None
        try:
            for key, item in mapping.items():
                name = key if type(key) is str and key.isascii() else self._key(key)
                frozen[name] = self._frozen(item)
                self.size += len(key) if type(key) is str else 1
        except _Unwritable as error:
            error.path.append(f"{mark}{key}")
            raise
        return frozen

    def _items(self, values: Any) -> list[Any]:
        self.size += 2 + len(values)
        items: list[Any] = []
        try:
            for item in values:
                items.append(self._frozen(item))  # noqa: PERF401 - len(items) names the culprit
        except _Unwritable as error:
            error.path.append(f"[{len(items)}]")
            raise
        return items

    def _key(self, key: Any) -> Any:
        if not isinstance(key, _KEYS):
            raise _Unwritable(f"has a key of type {type(key).__name__}, which JSON cannot hold; use text")
        return self._frozen(key)

    def _model(self, value: BaseModel) -> BaseModel:
        if not value.model_config.get("frozen"):
            return self._deep_copy(value)  # type: ignore[no-any-return]  # a copy of the same class
        twin = copy.copy(value)
        twin.__dict__.update(self._fields(value.__dict__, "."))
        if twin.__pydantic_extra__:
            object.__setattr__(twin, "__pydantic_extra__", self._fields(twin.__pydantic_extra__, "."))
        return twin

    def _object(self, value: Any) -> Any:
        self.size += 1
        if isinstance(value, bytearray | memoryview):
            return bytes(value)
        if isinstance(value, Enum | PurePath | UUID | date):
            return value
        if isinstance(value, str):
            return self._frozen(str(value))
        return self._deep_copy(value)

    def _deep_copy(self, value: Any) -> Any:
        try:
            plain = to_jsonable_python(value)
            twin = copy.deepcopy(value)
        except Exception as error:
            name = type(value).__name__
            raise _Unwritable(f"is of type {name}, which has no JSON form; send plain values or a model") from error
        self.opaque = True
        self._frozen(plain)  # NaN and the like may hide inside
        return twin


def plain_size(values: Iterable[Any]) -> int:
    """Return a lower bound of the JSON length of values that are atoms, or tuples and frozensets of atoms.

    -1 where one is something else, or cannot be written: the slow way then copies it, or says what is wrong.
    """
    size = 2
    for value in values:
        kind = type(value)
        if kind is str:
            if not value.isascii() and _holds_surrogate(value):
                return -1
            size += len(value) + 4
        elif kind is float:
            if not -_INFINITY < value < _INFINITY:
                return -1
            size += 4
        elif kind is bytes:
            size += len(value)
        elif kind is int:
            size += 4 + value.bit_length() // 4
        elif kind is tuple or kind is frozenset:
            inner = plain_size(value)
            if inner < 0:
                return -1
            size += inner
        elif kind in _ATOMS:
            size += 4
        else:
            return -1
    return size


def plain_copy(mapping: dict[Any, Any]) -> tuple[FrozenDict, int] | None:
    """Return an immutable copy of a dict of atoms under names, and its size as ``plain_size`` tells it; else None."""
    size = plain_size(mapping.values())
    if size < 0:
        return None
    for key in mapping:
        if type(key) is not str or not key.isascii():
            return None
        size += len(key) + 4
    return FrozenDict(mapping), size


def _holds_surrogate(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _checked_text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Unwritable("is text with a lone surrogate, which UTF-8 cannot hold") from None
    return value


def _checked_float(value: float) -> float:
    if not math.isfinite(value):
        raise _Unwritable(f"is {value}, which JSON cannot hold; send None or a string")
    return value
