"""One walk over one value: builds the redacted copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from pathlib import PurePath
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from pydantic import BaseModel, Secret, SecretBytes, SecretStr
from pydantic_core import MultiHostUrl, Url

from aperion.redaction.checks import is_card
from aperion.redaction.fields import is_named_tuple
from aperion.redaction.markers import CYCLE, DEPTH, DROPPED, FAILED, KEY, REDACTED, SIZE, TIME, kept
from aperion.redaction.names import NAMING, LikeView, Role, Verdict, View, key_text, tells_of_error
from aperion.redaction.tracebacks import message_of
from aperion.redaction.vendors import is_random

if TYPE_CHECKING:
    from pydantic import RootModel

    from aperion.redaction.rules import Rules

_ATOMS: Final = frozenset({int, float, bool, type(None), datetime, date, time, timedelta, UUID, Decimal})
_SHORT_ATOMS: Final = _ATOMS - {int, float, Decimal}
_NUMBERS: Final = frozenset({int, float})
_SEQUENCES: Final = frozenset({list, tuple})
_LOW, _HIGH, _HIGHEST = -(10**12), 10**12, 10**19  # a card has 13 to 19 digits
_SUBCLASSED: Final = (complex, date, time, timedelta, tzinfo, UUID)
_SECRETS: Final = (SecretStr, SecretBytes, Secret)
_ADDRESSES: Final = (IPv4Address, IPv4Network, IPv6Address, IPv6Network)
_LISTS: Final = (list, tuple, set, frozenset, deque, Sequence, AbstractSet)
_PAIR = 2
_REMEMBERED = 1024


class Walk:
    """The state of one copy: how much may still be visited, and what is open above."""

    # Mutable: all of it, during one call.
    __slots__ = ("_deadline", "_deepest", "_found", "_left", "_parents", "_rules", "_top")

    def __init__(self, rules: Rules, found: list[str]) -> None:
        self._top = self._rules = rules
        self._found = found  # the type of each value that was hidden
        self._deepest, self._left, seconds = rules.limits
        self._deadline = monotonic() + seconds
        self._parents: list[int] = []

    def value(self, value: Any) -> object:
        """Return the redacted copy of any value."""
        kind = type(value)
        if kind is str:
            clean = self._rules.clean
            return value if clean is None or hash(value) in clean else self._rules.scrub(value, self._found)
        if kind in _SHORT_ATOMS or (kind in _NUMBERS and _LOW < value < _HIGH):
            return value
        return self.number(value) if kind in _ATOMS else self._read(value)

    def number(self, value: Any) -> object:
        """Keep a number, unless it is one of a card."""
        if isinstance(value, Decimal) and not value.is_finite():  # a NaN of Decimal refuses to be compared
            return value
        if not _HIGH <= value < _HIGHEST or value != int(value) or self._rules.public is self._rules:
            return value
        number = str(int(value))
        return self._rules.hide("CC", number, self._found) if is_card(number) else value

    def _read(self, value: Any) -> object:
        if id(value) in self._parents:
            return CYCLE
        self._parents.append(id(value))
        try:
            read = _READERS.get(type(value)) or _learned(type(value))
            return read(self, value)
        except Exception:  # noqa: BLE001 - whatever a value does, it is not shown and nothing else suffers
            self._top.failures += 1
            return FAILED
        finally:
            self._parents.pop()

    def _refusal(self, size: int) -> str | None:
        """Count the entries of a container, and return what to show when they may not be visited."""
        if len(self._parents) > self._deepest:
            return DEPTH
        self._left -= size
        if self._left < 0:
            return SIZE
        return TIME if monotonic() > self._deadline else None

    def mapping(self, value: Any) -> object:
        """Copy a mapping, deciding by its keys."""
        if isinstance(value, dict):
            return self._entries(dict.items(value), len(value), self._rules.names)
        pairs = list(islice(value.items(), self._bound()))
        return self._entries(pairs, len(pairs), self._rules.names)

    def mapping_like(self, value: Mapping[Any, Any], kind: type[Any]) -> object:
        """Copy a mapping that was meant to become an instance of a class, deciding by its fields too."""
        pairs = list(islice(value.items(), self._bound()))
        return self._entries(pairs, len(pairs), LikeView(kind, self._rules.fields(kind), self._rules.names))

    def items(self, value: Any) -> object:
        """Copy anything like a list, and a pair as what it may be: a name and its value."""
        is_short = type(value) in _SEQUENCES and len(value) <= self._left
        values = value if is_short else list(islice(value, self._bound()))
        refusal = self._refusal(len(values))
        if refusal is not None:
            return refusal
        if len(values) == _PAIR and isinstance(values[0], str | bytes) and self._names_secret(values[0]):
            return [kept(self.value(values[0])), kept(self._hidden(values[1], KEY))]
        clean = self._rules.clean
        copy = [
            item if type(item) is str and (clean is None or hash(item) in clean) else self.value(item)
            for item in values
        ]
        return [item for item in copy if item is not DROPPED] if self._rules.drops else copy

    def model(self, value: BaseModel) -> object:
        """Copy a model by its fields, without its serialisers."""
        fields = value.__dict__
        shown = self._entries(fields.items(), len(fields), self._rules.fields(type(value)))
        extra = value.__pydantic_extra__
        if not extra or isinstance(shown, str):
            return shown
        more = self._entries(extra.items(), len(extra), self._rules.names)
        return more if isinstance(more, str) else shown | more

    def root(self, value: RootModel[Any]) -> object:
        """Copy a root model as what it wraps."""
        shown = self.model(value)
        return shown["root"] if isinstance(shown, dict) else shown

    def record(self, value: Any) -> object:
        """Copy a dataclass by its fields."""
        view = self._rules.fields(type(value))
        pairs = [(name, getattr(value, name)) for name in view.names if hasattr(value, name)]
        return self._entries(pairs, len(pairs), view)

    def named_tuple(self, value: Any) -> object:
        """Copy a named tuple by its fields."""
        pairs = list(zip(value._fields, tuple(value), strict=True))
        return self._entries(pairs, len(pairs), self._rules.fields(type(value)))

    def text(self, value: Any) -> object:
        """Copy text in a class of its own as plain text."""
        return self._rules.scrub(str.__str__(value), self._found)

    def written(self, value: object) -> object:
        """Copy a URL or an address as its text."""
        return self._rules.scrub(str(value), self._found)

    def error(self, value: BaseException) -> object:
        """Copy an exception as its class and its message."""
        return f"{type(value).__name__}: {message_of(value, lambda text: self._rules.scrub(text, self._found))}"

    def enum(self, value: Enum) -> object:
        """Keep a member, unless its value has something to hide."""
        shown = self.value(value.value) if isinstance(value.value, str | int) else value.value
        return value if shown == value.value else shown

    def path(self, value: PurePath) -> object:
        """Keep a path, unless its text has something to hide."""
        text = str(value)
        return value if (clean := self._rules.scrub(text, self._found)) == text else clean

    def binary(self, value: Any) -> object:
        """Keep bytes, unless read as text they have something to hide."""
        text = bytes(value).decode("latin-1")
        return self._rules.scrub(text, self._found).encode("latin-1", "replace")

    def _bound(self) -> int:
        return max(self._left, 0) + 1

    def _entries(self, pairs: Pairs, size: int, view: View) -> dict[Any, object] | str:
        refusal = self._refusal(size)
        if refusal is not None:
            return refusal
        copy: dict[Any, object] = {}
        plain, rules, found = view.plain, self._rules, self._found
        scrub, clean = rules.scrub, rules.clean
        for key, value in pairs:
            name = plain.get(key)
            if name is None:
                verdict = view.verdict(key)
                if verdict.role is not Role.ABSENT:
                    copy[_unused(verdict.name, copy)] = self._decided(verdict, value, pairs)
                continue
            kind = type(value)
            if kind is str:
                # As in value(), whose call for each entry would be half of what a payload with nothing to hide costs.
                copy[name] = value if clean is None or hash(value) in clean else scrub(value, found)
            elif kind in _SHORT_ATOMS or (kind in _NUMBERS and _LOW < value < _HIGH):
                copy[name] = value
            else:
                copy[name] = self.number(value) if kind in _ATOMS else self._read(value)
        return {name: value for name, value in copy.items() if value is not DROPPED} if rules.drops else copy

    def _decided(self, verdict: Verdict, value: Any, pairs: Pairs) -> object:
        role = verdict.role
        if role is Role.HIDDEN or self._is_told(role, value, pairs):
            return self._hidden(value, verdict.kind, verdict.name)
        if role is Role.VERSION and isinstance(value, str):
            return self._rules.scrub_version(value, self._found)
        return self._in_public(value) if role is Role.PUBLIC else self.value(value)

    def _is_told(self, role: Role, value: object, pairs: Pairs) -> bool:
        """Tell whether a value is hidden for what it is, or for what stands beside it."""
        if role is Role.HELD:
            return self._sibling_names_secret(pairs)
        if not self._rules.default_names:
            return False
        if role is Role.INPUT:
            return tells_of_error(key for key, _ in pairs)
        return role is Role.SERVICE and isinstance(value, str) and is_random(value)

    def _hidden(self, value: object, kind: str, name: object = "") -> object:
        return None if value is None else self._rules.hide(kind, value, self._found, name)

    def _in_public(self, value: Any) -> object:
        rules, self._rules = self._rules, self._rules.public
        try:
            return self.value(value)
        finally:
            self._rules = rules

    def _sibling_names_secret(self, pairs: Pairs) -> bool:
        named = (value for key, value in pairs if isinstance(key, str) and key.casefold() in NAMING)
        return any(self._names_secret(value) for value in named)

    def _names_secret(self, value: object) -> bool:
        name = key_text(value) if isinstance(value, str | bytes) else None
        return name is not None and self._rules.hides(name)


Reader = Callable[[Walk, Any], object]
Pairs = Iterable[tuple[Any, Any]]


def _unused(name: Any, taken: dict[Any, object]) -> Any:
    """Return a name that no entry has yet: two keys may become the same text."""
    free, number = name, len(taken)
    while free in taken:
        free, number = f"{name} #{number}", number + 1
    return free


def _kept(_walk: Walk, value: object) -> object:
    return value


def _withheld(_walk: Walk, _value: object) -> object:
    return REDACTED


def _unknown(_walk: Walk, value: object) -> object:
    return f"<{type(value).__name__}>"


@cache
def _kinds() -> tuple[tuple[type[Any] | tuple[type[Any], ...], Reader], ...]:
    """Return how each kind of value is read, in this order: an Enum may be a str, a model a mapping."""
    from pydantic import AnyUrl, PostgresDsn, RootModel  # URLs take long to import, and few events hold one

    # pydantic's URLs are no strings; their common base classes have no public name.
    urls = (*AnyUrl.__mro__[:-1], *PostgresDsn.__mro__[:-1], Url, MultiHostUrl)
    return (
        (_SECRETS, _withheld),
        (Enum, Walk.enum),
        (bool, _kept),
        ((int, float, Decimal), Walk.number),
        (_SUBCLASSED, _kept),
        (str, Walk.text),
        ((bytes, bytearray, memoryview), Walk.binary),
        (PurePath, Walk.path),
        (BaseException, Walk.error),
        ((*urls, *_ADDRESSES), Walk.written),
        (RootModel, Walk.root),
        (BaseModel, Walk.model),
        (Mapping, Walk.mapping),
    )


_READERS: dict[type[Any], Reader] = {dict: Walk.mapping, list: Walk.items}


def _learned(kind: type[Any]) -> Reader:
    reader = _reader(kind)
    if len(_READERS) >= _REMEMBERED:
        _READERS.clear()
    _READERS[kind] = reader
    return reader


def _reader(kind: type[Any]) -> Reader:
    for base, reader in _kinds():
        if issubclass(kind, base):
            return reader
    if is_dataclass(kind):
        return Walk.record
    if is_named_tuple(kind):
        return Walk.named_tuple
    return Walk.items if issubclass(kind, _LISTS) else _unknown
