"""What happens to a value because of the name it stands under."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, Protocol

from aperion.redaction.checks import is_card
from aperion.redaction.fields import fields_of
from aperion.redaction.markers import KEY, Public, Sensitive, kept, kind_marker
from aperion.redaction.vendors import names_key

if TYPE_CHECKING:
    from collections.abc import Iterable

Hides = Callable[[str], bool]
Scrub = Callable[[str, list[str]], str]
"""Takes a text and a list to which it adds the type of each value that it hides."""

_REMEMBERED = 4096
_LONGEST_NAME = 128

# A mapping may be one entry: its name "DB_PASSWORD" and its value, or its field "email", old and new.
NAMING: Final = frozenset(
    {"name", "key", "field", "header", "variable", "parameter", "param", "property", "attribute", "label"}
)
_VERSIONS: Final = ("version", "versions", "release", "firmware", "build")
_HELD: Final = frozenset(
    {"value", "values", "val"}
    | {"string_value", "stringvalue", "old_value", "oldvalue", "new_value", "newvalue"}
    | {"default", "current", "previous", "old", "new", "before", "after", "from", "to"}
)
# What one of pydantic's ErrorDetails quotes, as in FastAPI's "detail", and what tells it from another mapping.
_INPUTS: Final = frozenset({"input", "ctx"})
_OF_ERRORS: Final = frozenset({"type", "loc", "msg"})


class Role(Enum):
    """What a name asks for."""

    PLAIN = auto()
    HIDDEN = auto()
    HELD = auto()  # hidden when a sibling names something sensitive
    PUBLIC = auto()
    VERSION = auto()  # four numbers with dots are no address here
    INPUT = auto()  # hidden where its siblings say what was wrong with it
    SERVICE = auto()  # hidden when it is random, as a key is
    ABSENT = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The name to write, and what to do with the value."""

    name: Any
    role: Role = Role.PLAIN
    kind: str = KEY


class View(Protocol):
    """What is known about the names in one kind of mapping."""

    plain: dict[Any, str]
    """Names that ask for nothing and are written as they are: the fast way through a mapping."""

    def verdict(self, key: Any) -> Verdict:
        """Return what happens to the value under a key."""


class KeyView:
    """The names in mappings, decided one by one and remembered up to a bound."""

    # Mutable: plain and _known grow to their bound and are then emptied.
    __slots__ = ("_cards", "_hides", "_known", "_scrub", "plain")

    def __init__(self, hides: Hides, scrub: Scrub, *, cards: bool) -> None:
        self.plain: dict[Any, str] = {}
        self._cards = cards  # whether a number that could be one of a card is hidden
        self._known: dict[str, Verdict] = {}
        self._hides = hides
        self._scrub = scrub

    def verdict(self, key: Any) -> Verdict:
        """Return what happens to the value under a key of any type."""
        name = key_text(key)
        if name is None:
            return Verdict(kind_marker("CC") if self._cards and isinstance(key, int) and is_card(str(key)) else key)
        known = self._known.get(name)
        return self._learned(name) if known is None else known

    def _learned(self, name: str) -> Verdict:
        verdict = Verdict(kept(self._scrub(name, [])), Role.HIDDEN if self._hides(name) else _role(name))
        if len(name) <= _LONGEST_NAME:
            self._remember(name, verdict)
        return verdict

    def _remember(self, name: str, verdict: Verdict) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
            self.plain.clear()
        self._known[name] = verdict
        if verdict.role is Role.PLAIN and verdict.name == name:
            self.plain[name] = name


class FieldView:
    """The fields of one class, decided at once."""

    __slots__ = ("_verdicts", "names", "plain")

    def __init__(self, kind: type[Any], hides: Hides, *, markers: bool) -> None:
        self._verdicts = {
            name: _field_verdict(field.names, field.marker if markers else None, hides)
            for name, field in fields_of(kind).items()
        }
        self.names = tuple(self._verdicts)
        self.plain: dict[Any, str] = {n: n for n, v in self._verdicts.items() if v.role is Role.PLAIN}

    def verdict(self, key: Any) -> Verdict:
        """Return what happens to a field; what is no field is not shown."""
        return self._verdicts.get(key) or Verdict(key, Role.ABSENT)


class LikeView:
    """The names of a mapping that was meant to become a model: its fields say what is sensitive."""

    __slots__ = ("_fields", "_names", "plain")

    def __init__(self, kind: type[Any], fields: FieldView, names: KeyView) -> None:
        self._names = names
        self.plain: dict[Any, str] = {}
        self._fields = {
            alias: fields.verdict(name)
            for name, field in fields_of(kind).items()
            for alias in field.names
            if fields.verdict(name).role is Role.HIDDEN
        }

    def verdict(self, key: Any) -> Verdict:
        """Return what happens to the value under a key."""
        hidden = self._fields.get(key) if isinstance(key, str) else None
        return self._names.verdict(key) if hidden is None else Verdict(key, Role.HIDDEN, hidden.kind)


def _field_verdict(names: tuple[str, ...], marker: Sensitive | Public | None, hides: Hides) -> Verdict:
    name = names[0]
    if isinstance(marker, Sensitive):
        return Verdict(name, Role.HIDDEN, marker.type)
    if isinstance(marker, Public):
        return Verdict(name, Role.PUBLIC)
    if any(map(hides, names)):
        return Verdict(name, Role.HIDDEN)
    return Verdict(name, _role(name))


def _role(name: str) -> Role:
    lowered = name.casefold()
    if lowered in _HELD:
        return Role.HELD
    if lowered in _INPUTS:
        return Role.INPUT
    if lowered.endswith(_VERSIONS):
        return Role.VERSION
    return Role.SERVICE if names_key(name) else Role.PLAIN


def tells_of_error(keys: Iterable[Any]) -> bool:
    """Tell whether the keys of a mapping are those of one error in what pydantic's ``ValidationError.errors()`` returns."""
    return {key_text(key) for key in keys} >= _OF_ERRORS


def key_text(key: Any) -> str | None:
    """Return a key as text, without calling code of the user's; None where JSON takes it as it is."""
    if isinstance(key, Enum):
        key = key.value if isinstance(key.value, str) else key.name
    if isinstance(key, str):
        return key if type(key) is str else str.__str__(key)
    if key is None or isinstance(key, int | float):
        return None
    return _odd_key(key)


def _odd_key(key: Any) -> str:
    if isinstance(key, bytes):
        return key.decode(errors="backslashreplace")
    if isinstance(key, tuple):
        return "(" + ", ".join(str(part) if (text := key_text(part)) is None else text for part in key) + ")"
    if type(key).__module__ in {"datetime", "uuid", "decimal", "pathlib", "ipaddress", "fractions"}:
        return str(key)
    return f"<{type(key).__name__}>"
