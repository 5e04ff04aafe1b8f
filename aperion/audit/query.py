"""Which records of a log are wanted, and what a record is."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypedDict

import orjson

from aperion.audit.chain import is_sealed
from aperion.audit.record import parsed
from aperion.errors import ConfigurationError, positive
from aperion.patterns import check_pattern, matches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PLAIN: Final = re.compile(r"[ !#-\[\]-~]+")
"""ASCII that stands in JSON as it is."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One line of a log.

    Args:
        fields: all of it, as JSON says it.
        segment: the name of the file that it stands in.
    """

    fields: Mapping[str, Any]
    segment: str

    @property
    def seq(self) -> int:
        """Its number in the log."""
        return int(self.fields["seq"])

    @property
    def kind(self) -> str:
        """What it tells of: ``accepted``, ``outcome`` and so on."""
        return str(self.fields["kind"])

    @property
    def time(self) -> int:
        """When it was made, in nanoseconds since the epoch."""
        return int(self.fields["time"])

    @property
    def at(self) -> datetime:
        """When it was made, in UTC."""
        return datetime.fromtimestamp(self.time / 1e9, UTC)

    @property
    def event_id(self) -> str | None:
        """Of the event that it is about, if it is about one."""
        return self.fields.get("event_id")

    @property
    def event_type(self) -> str | None:
        """Of the event that it is about."""
        return self.fields.get("type")

    @property
    def correlation_id(self) -> str | None:
        """Of the event that it is about."""
        return self.fields.get("correlation_id")


class Wanted(TypedDict, total=False):
    """What ``Query`` takes, by keyword."""

    types: Collection[str]
    kinds: Collection[str]
    since: datetime | None
    until: datetime | None
    event_id: str | None
    correlation_id: str | None
    source: str | None
    subscription: str | None
    state: str | None
    text: str | None
    limit: int | None
    newest_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which records are wanted; what is None or empty does not matter.

    Args:
        types: patterns of event types, as subscriptions have them.
        kinds: of records.
        since: the earliest time, inclusive; with a time zone.
        until: the latest time, exclusive; with a time zone.
        event_id: of the event.
        correlation_id: of the event.
        source: of the event.
        subscription: of the outcome.
        state: of the outcome: ``ok``, ``failed``, ``timed_out``, ``skipped``.
        text: stands somewhere in the record as compact JSON, whatever its case.
        limit: how many records at most.
        newest_first: from the end of the log.

    Raises:
        PatternError: for a pattern that cannot be parsed.
        ConfigurationError: for a value of another kind, a time without a zone, or a limit below 1.
    """

    types: Collection[str] = ()
    kinds: Collection[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    event_id: str | None = None
    correlation_id: str | None = None
    source: str | None = None
    subscription: str | None = None
    state: str | None = None
    text: str | None = None
    limit: int | None = None
    newest_first: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be looked for."""
        for name in ("types", "kinds"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for pattern in self.types:
            check_pattern(pattern, any_name=True)
        for name in ("event_id", "correlation_id", "source", "subscription", "state", "text"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, str):
                raise ConfigurationError(f"{name}={given!r} is no text; pass a str, or None")
        for name in ("since", "until"):
            _check_time(name, getattr(self, name))
        if self.limit is not None:
            positive("limit", self.limit, whole=True)


def _texts(name: str, given: object) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Collection) or not all(isinstance(text, str) for text in given):
        raise ConfigurationError(
            f"{name}={given!r} is no text and no collection of texts; pass such as ('order.placed',)"
        )
    return tuple(given)


def _check_time(name: str, time: object) -> None:
    if time is None:
        return
    if not isinstance(time, datetime):
        raise ConfigurationError(f"{name}={time!r} is no datetime; pass such as datetime.fromtimestamp(seconds, UTC)")
    if time.tzinfo is None:
        raise ConfigurationError(f"{name}={time} has no time zone; pass datetime(..., tzinfo=UTC)")


class Search:
    """A query made ready: what must stand in a line, and what must be true of a record."""

    __slots__ = ("_checks", "ids", "needles", "query", "since", "until")

    def __init__(self, query: Query) -> None:
        self.query = query
        self.since = nanoseconds(query.since) if query.since else 0
        self.until = nanoseconds(query.until) if query.until else 2**63
        equal = {
            "event_id": query.event_id,
            "correlation_id": query.correlation_id,
            "source": query.source,
            "subscription": query.subscription,
            "state": query.state,
        }
        wanted = {name: value for name, value in equal.items() if value is not None}
        self.ids = [wanted[name] for name in ("event_id", "correlation_id") if _PLAIN.fullmatch(wanted.get(name, ""))]
        self.needles = [f'"{name}":"{value}"'.encode() for name, value in wanted.items() if _PLAIN.fullmatch(value)]
        if len(query.kinds) == 1 and _PLAIN.fullmatch(kind := next(iter(query.kinds))):
            self.needles.append(f'"kind":"{kind}"'.encode())
        self._checks = [_equals(name, value) for name, value in wanted.items()]
        self._checks += _other_checks(query)

    def in_time(self, since: int, until: int) -> bool:
        """Tell whether something between two times may be wanted."""
        return until >= self.since and since < self.until

    def record(self, line: bytes, segment: str) -> AuditRecord | None:
        """Return the record of a line, without its newline, if it is wanted.

        Raises:
            ValueError: for a line that is no record.
            KeyError: for one that lacks what each record has.
        """
        if not is_sealed(line):
            raise ValueError
        fields: dict[str, Any] = parsed(line)
        time = fields["time"]
        if type(time) is not int or type(fields["seq"]) is not int or type(fields["kind"]) is not str:
            raise ValueError
        if not self.since <= time < self.until:
            return None
        for check in self._checks:
            if not check(fields):
                return None
        return AuditRecord(fields, segment)


def nanoseconds(time: datetime) -> int:
    """Return a time in nanoseconds since the epoch."""
    delta = time - datetime(1970, 1, 1, tzinfo=UTC)
    return ((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds) * 1_000


def _compact(fields: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(fields).decode()
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _equals(name: str, value: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda fields: fields.get(name) == value


def _other_checks(query: Query) -> list[Callable[[Mapping[str, Any]], bool]]:
    checks: list[Callable[[Mapping[str, Any]], bool]] = []
    if query.kinds:
        kinds = frozenset(query.kinds)
        checks.append(lambda fields: fields.get("kind") in kinds)
    if query.types:
        patterns = tuple(query.types)
        checks.append(lambda fields: any(matches(pattern, fields.get("type") or "") for pattern in patterns))
    if query.text is not None:
        text = query.text.casefold()
        checks.append(lambda fields: text in _compact(fields).casefold())
    return checks
