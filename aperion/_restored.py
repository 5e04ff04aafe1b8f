"""Payloads made of their plain form again, with the notes that ``_plain`` wrote beside it."""

from __future__ import annotations

import os
import re
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

from aperion._frozen import FrozenDict, FrozenList
from aperion.errors import SerializationError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    Finder: TypeAlias = Callable[[str, str, Any], Any]

CLASSES: Final = frozenset({"enum", "namedtuple", "dataclass", "model"})
"""The kinds of values whose notes name a class."""


def restored(payload: object, types: object, key_types: object, event_type: str, *, find: Finder | None = None) -> Any:
    """Return a plain payload with the values that its notes tell of.

    Args:
        payload: the plain form.
        types: the notes of its values.
        key_types: those of its keys.
        event_type: what is named where they do not fit.
        find: makes values of classes by name; without it such a note does not fit. Only for what nobody else has
            written, since it may load modules.

    Raises:
        SerializationError: for notes that do not fit the payload; the text shows where, and no value.
    """
    try:
        root = _Note()
        root.add("types", types)
        root.add("key_types", key_types)
        return _restored(payload, root, "", find)
    except _Misfit as error:
        raise SerializationError(
            f"the line of an event of type {shown(event_type)} does not fit its own notes: {error}",
            event_type=event_type,
        ) from None


class _Misfit(Exception):  # noqa: N818 - never leaves this module
    """What is wrong with a note."""

    def __init__(self, pointer: str, problem: str, field: str = "types") -> None:
        super().__init__(f"{shown(pointer)} in {field!r} {problem}")


class _Note:
    """What is noted of one value, and of those within it, by the next token of their pointers."""

    # Mutable: all of it, while the notes are read.
    __slots__ = ("below", "key_types", "types")

    def __init__(self) -> None:
        self.types: str | None = None
        self.key_types: str | None = None
        self.below: dict[str, _Note] = {}

    def add(self, field: str, notes: object) -> None:
        """Take in what a field of the envelope says."""
        if not isinstance(notes, dict):
            raise _Misfit("", f"is {_a(notes)}, not an object", field)
        for pointer, tag in notes.items():
            if not isinstance(tag, str):
                raise _Misfit(pointer, f"has {_a(tag)} for a tag, not text", field)
            note = self
            for token in _tokens(pointer, field):
                note = note.below.setdefault(token, _Note())
            if field == "key_types" and note is self:
                raise _Misfit(pointer, "is the payload, which has no key", field)
            setattr(note, field, tag)


def _tokens(pointer: str, field: str) -> list[str]:
    if (pointer and not pointer.startswith("/")) or _BAD_ESCAPE.search(pointer):
        raise _Misfit(pointer, "is no JSON pointer", field)
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def _restored(value: Any, note: _Note, pointer: str, find: Finder | None) -> Any:
    if note.below:
        value = _with_those_below(value, note, pointer, find)
    return value if note.types is None else _read(note.types, value, pointer, find)


def _with_those_below(value: Any, note: _Note, pointer: str, find: Finder | None) -> Any:
    is_mapping = isinstance(value, dict)
    there = value if is_mapping else {str(n): item for n, item in enumerate(value if isinstance(value, list) else ())}
    items: dict[Any, Any] = dict(there)
    renamed = False
    for token, below in note.below.items():
        where = f"{pointer}/{token}"
        if token not in there:
            raise _Misfit(where, "points to nothing", "types" if below.key_types is None else "key_types")
        if below.key_types is not None and not is_mapping:
            raise _Misfit(where, "is no entry of an object, and has no key", "key_types")
        items[token] = _restored(there[token], below, where, find)
        renamed = renamed or below.key_types is not None
    if renamed:
        items = {_key(text, note.below.get(text), pointer): item for text, item in items.items()}
    return items if is_mapping else list(items.values())


def _key(text: str, note: _Note | None, pointer: str) -> Any:
    if note is None or note.key_types is None:
        return text
    tag = _TAG.fullmatch(note.key_types)
    read = _KEY_READERS.get(tag["kind"]) if tag else None
    where = f"{pointer}/…"  # a key that does not fit may be anything
    if tag is None or read is None:
        raise _Misfit(where, f"has a tag that no key has; there are {', '.join(_KEY_READERS)}", "key_types")
    return _fitting(read, text, tag, _Misfit(where, f"says {tag['kind']}, and the key there is none", "key_types"))


def _read(tag_text: str, value: object, pointer: str, find: Finder | None) -> Any:
    tag = _TAG.fullmatch(tag_text)
    if find is not None and tag is not None and tag["kind"] in CLASSES:
        try:
            return find(tag["kind"], tag["zone"] or "", value)
        except Exception:  # noqa: BLE001 - a class of the user's, which may have changed
            raise _Misfit(pointer, f"says {tag_text}, which cannot be made of what is there") from None
    read = _READERS.get(tag["kind"]) if tag else None
    if tag is None or read is None:
        raise _Misfit(pointer, f"has a tag that is not known; there are {', '.join(_READERS)}")
    kind, wanted = tag["kind"], "an array" if read in _OF_ARRAYS else "text"
    if _a(value) != wanted:
        raise _Misfit(pointer, f"says {kind}, which is written as {wanted}, not as {_a(value)}")
    return _fitting(read, value, tag, _Misfit(pointer, f"says {kind}, and what is there is none"))


def _fitting(read: Callable[..., Any], value: object, tag: re.Match[str], misfit: _Misfit) -> Any:
    try:
        if tag["kind"] in _WITH_ZONES:
            return read(value, _offset(tag["offset"]), ZoneInfo(tag["zone"]) if tag["zone"] else None)
        if tag["offset"] or tag["zone"]:
            raise misfit
        return read(value)
    except (ValueError, TypeError, ArithmeticError, KeyError, OSError):  # the last two: a zone that is not known
        raise misfit from None


def _offset(text: str | None) -> tzinfo | None:
    if text is None:
        return None
    parts = _OFFSET.fullmatch(text)
    if parts is None:
        raise ValueError
    sign, hours, minutes, seconds, fraction = parts.groups(default="0")
    length = timedelta(hours=int(hours), minutes=int(minutes), seconds=int(seconds), microseconds=int(fraction))
    return timezone(-length if sign == "-" else length)


def _read_moment(text: str, offset: tzinfo | None, zone: ZoneInfo | None) -> datetime:
    moment = datetime.fromisoformat(text)
    if (offset or zone) and moment.tzinfo is None:
        raise ValueError
    if offset is not None:
        # In UTC, unless that would have been before the first year or after the last.
        moment = moment.astimezone(offset) if text.endswith("+00:00") else moment.replace(tzinfo=offset)
    if zone is None:
        return moment
    # By the clock, since it may show a time that is skipped, with which no instant answers.
    for fold in (0, 1):
        wall = moment.replace(tzinfo=zone, fold=fold)
        if wall.utcoffset() == moment.utcoffset():
            return wall
    return moment.astimezone(zone)  # the rules of the zone have changed since


def _read_time(text: str, offset: tzinfo | None, zone: ZoneInfo | None) -> time:
    value = time.fromisoformat(text)
    other = zone or offset
    return value if other is None else value.replace(tzinfo=other)


def _read_timedelta(text: str) -> timedelta:
    parts = _DURATION.fullmatch(text)
    if parts is None:
        raise ValueError
    days = 365 * int(parts["years"] or 0) + int(parts["days"] or 0)
    seconds = 60 * (60 * int(parts["hours"] or 0) + int(parts["minutes"] or 0)) + int(parts["seconds"] or 0)
    length = timedelta(days=days, seconds=seconds, microseconds=int((parts["fraction"] or "").ljust(6, "0")))
    return -length if parts["minus"] else length


def _read_pairs(pairs: list[Any]) -> dict[Any, Any]:
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError
    return {key: value for key, value in pairs}  # noqa: C416 - dict() would take texts of two letters for pairs


def _read_frozenset(items: list[Any]) -> frozenset[Any]:
    return frozenset(map(_hashable, items))


def _read_set(items: list[Any]) -> set[Any]:
    return set(map(_hashable, items))


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return FrozenDict(value)
    if isinstance(value, list):
        return FrozenList(value)
    return tuple(map(_hashable, value)) if isinstance(value, tuple) else value


_BAD_ESCAPE: Final = re.compile(r"~(?![01])")
_TAG: Final = re.compile(r"(?P<kind>[a-z_]+)(?P<offset>[+-][\d:.]+)?(?:\[(?P<zone>[^\]]+)\])?")
# ``fromisoformat`` takes an offset of less than a second for none.
_OFFSET: Final = re.compile(r"([+-])(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{6}))?)?", re.ASCII)
_DURATION: Final = re.compile(
    r"(?P<minus>-?)P(?:(?P<years>\d+)Y)?(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+)(?:\.(?P<fraction>\d{1,6}))?S)?)?",
    re.ASCII,
)
_WITH_ZONES: Final = ("datetime", "time")
_OF_ARRAYS: Final = (tuple, _read_frozenset, _read_set, _read_pairs)
_READERS: Final[dict[str, Callable[..., Any]]] = {
    "datetime": _read_moment,
    "time": _read_time,
    "date": date.fromisoformat,
    "timedelta": _read_timedelta,
    "uuid": UUID,
    "decimal": Decimal,
    "bytes": lambda text: text.encode("latin-1"),
    # A path of another system than this is a pure one here.
    "posix_path": PosixPath if os.name == "posix" else PurePosixPath,
    "windows_path": WindowsPath if os.name == "nt" else PureWindowsPath,
    "pure_posix_path": PurePosixPath,
    "pure_windows_path": PureWindowsPath,
    "tuple": tuple,
    "frozenset": _read_frozenset,
    "set": _read_set,
    "mapping": _read_pairs,
}
_KEY_READERS: Final[dict[str, Callable[..., Any]]] = {
    **{kind: _READERS[kind] for kind in ("datetime", "time", "date", "uuid")},
    "int": int,
    "float": float,
    "bool": {"true": True, "false": False}.__getitem__,
    "none": {"null": None}.__getitem__,
}


def _a(value: object) -> str:
    """Return what JSON calls the kind of a value."""
    names = {dict: "an object", list: "an array", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
