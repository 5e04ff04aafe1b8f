"""Read from a class, once, what its fields say about themselves."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices

from aperion.redaction.markers import Public, Sensitive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic.fields import FieldInfo

_DEEPEST_TYPE = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field of a class: its other names, and the marker on it."""

    names: tuple[str, ...]
    marker: Sensitive | Public | None = None


def fields_of(kind: type[Any]) -> dict[str, Field]:
    """Return the fields that instances of a model, dataclass or named tuple show."""
    declared = getattr(kind, "__pydantic_fields__", None)
    if isinstance(declared, dict):
        return {name: _of_pydantic(name, info) for name, info in declared.items() if not info.exclude}
    hints = _hints(kind)
    if dataclasses.is_dataclass(kind):
        names: Iterable[str] = (field.name for field in dataclasses.fields(kind))
    else:
        names = kind._fields
    return {name: Field((name,), _marker(hints.get(name))) for name in names}


def is_named_tuple(kind: type[Any]) -> bool:
    """Tell whether a class comes from ``NamedTuple`` or ``namedtuple``."""
    return issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple)


def _of_pydantic(name: str, info: FieldInfo) -> Field:
    aliases = (info.alias, info.serialization_alias, *_choices(info.validation_alias))
    names = (name, *(alias for alias in aliases if isinstance(alias, str)))
    return Field(names, _chosen(info.metadata) or _marker(info.annotation))


def _choices(alias: object) -> tuple[object, ...]:
    return tuple(alias.choices) if isinstance(alias, AliasChoices) else (alias,)


def _hints(kind: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception:  # noqa: BLE001 - a name that only a type checker sees; what is written must do
        return {name: Annotated[str, Sensitive()] for name in _written(kind)}


def _written(kind: type[Any]) -> Iterator[str]:
    for base in kind.__mro__:
        annotations = vars(base).get("__annotations__") or {}
        yield from (name for name, hint in annotations.items() if "Sensitive" in str(hint))


def _chosen(metadata: Iterable[object]) -> Sensitive | Public | None:
    markers = [item for item in map(_called, metadata) if isinstance(item, Sensitive | Public)]
    return min(markers, key=lambda marker: isinstance(marker, Public), default=None)


def _called(item: object) -> object:
    """Take ``Annotated[str, Sensitive]`` for what it means."""
    return item() if item is Sensitive or item is Public else item


def _marker(hint: object) -> Sensitive | Public | None:
    """Return what an annotation says: Sensitive wherever it stands, Public only about the whole value."""
    hidden = next(_sensitive(hint, _DEEPEST_TYPE), None)
    return hidden or _public(hint)


def _public(hint: object) -> Public | None:
    if get_origin(hint) is Annotated:
        found = _chosen(get_args(hint)[1:])
        return found if isinstance(found, Public) else None
    members = [member for member in get_args(hint) if member is not type(None)]
    if get_origin(hint) in (Union, types.UnionType) and len(members) == 1:
        return _public(members[0])
    return None


def _sensitive(hint: object, depth: int) -> Iterator[Sensitive]:
    if depth == 0:
        return
    hint = getattr(hint, "__value__", hint)  # type Email = Annotated[…]
    if get_origin(hint) is Annotated:
        found = _chosen(get_args(hint)[1:])
        if isinstance(found, Sensitive):
            yield found
    for part in get_args(hint):
        yield from _sensitive(part, depth - 1)
