"""The grammar of event types, and the policy of one bus about them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from aperion.errors import ConfigurationError, EventTypeError, UnknownEventTypeError, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

EVENT_TYPE_PATTERN = r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$"
RESERVED_DOMAIN = "system"
MAX_LENGTH = 255
"""Characters in an event type: what NATS subjects and Kafka topics (249) carry without trouble."""

_GRAMMAR = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)+")
_SHORTEST_SEGMENT_WITH_HINT = 5


def is_valid_event_type(event_type: object) -> bool:
    """Tell whether the whole of ``event_type`` is a valid name, such as ``user.login``."""
    return isinstance(event_type, str) and len(event_type) <= MAX_LENGTH and bool(_GRAMMAR.fullmatch(event_type))


def extract_domain(event_type: str) -> str | None:
    """Return the first segment (``chat`` of ``chat.message.sent``), or None for an invalid name."""
    return event_type.partition(".")[0] if is_valid_event_type(event_type) else None


def extract_action(event_type: str) -> str | None:
    """Return what follows the domain (``message.sent``), or None for an invalid name."""
    return event_type.partition(".")[2] if is_valid_event_type(event_type) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What a bus demands of event types and sources.

    Args:
        enabled: False accepts any non-empty name.
        allowed_domains: the only domains that may be emitted; None allows all.
        require_source: whether each event must name its source.
        pattern: a regular expression that the whole name must match as well.
        unknown: what happens to a type that no payload model has. ``"allow"``: nothing;
            ``"suggest"`` (default): refused when it differs from a known type by one typing error;
            ``"refuse"``: always refused.

    Raises:
        ConfigurationError: for a pattern that does not compile or a domain that is no name.
    """

    enabled: bool = True
    allowed_domains: Collection[str] | None = None
    require_source: bool = False
    pattern: str | None = None
    unknown: Literal["allow", "suggest", "refuse"] = "suggest"
    _compiled: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        """Check the options, and compile the pattern once."""
        if self.unknown not in {"allow", "suggest", "refuse"}:
            raise ConfigurationError(f"unknown={self.unknown!r} is not a choice; use 'allow', 'suggest' or 'refuse'")
        if isinstance(self.allowed_domains, str):
            raise ConfigurationError(f"allowed_domains={self.allowed_domains!r} is one string; pass a set of domains")
        if self.pattern is not None:
            object.__setattr__(self, "_compiled", _compile(self.pattern))

    def check(self, event_type: object) -> str:
        """Return the name when it may be emitted.

        Raises:
            EventTypeError: with the rule that it breaks.
        """
        if not isinstance(event_type, str) or not event_type.strip():
            raise EventTypeError(f"an event type is a non-empty string such as 'user.login', not {shown(event_type)}")
        if self.enabled:
            self._check_rules(event_type)
        if event_type.partition(".")[0] == RESERVED_DOMAIN:
            raise EventTypeError(
                f"{event_type!r} is in the domain 'system', which is reserved for the bus itself; choose another domain",
                event_type=event_type,
            )
        return event_type

    def check_source(self, event_type: str, source: str | None) -> None:
        """Raise ``EventTypeError`` where a source is required and missing."""
        if self.require_source and not source:
            raise EventTypeError(
                f"{event_type!r} has no source, which this bus requires; pass source=", event_type=event_type
            )

    def check_known(self, event_type: str, known: Collection[str]) -> None:
        """Raise ``UnknownEventTypeError`` for a type outside ``known``, as far as the policy says so."""
        if self.unknown == "allow" or event_type in known:
            return
        near = nearest(event_type, known)
        if near is not None or self.unknown == "refuse":
            raise UnknownEventTypeError(event_type, near)

    def _check_rules(self, event_type: str) -> None:
        if not is_valid_event_type(event_type):
            raise EventTypeError(
                f"{shown(event_type)} is not an event type: it must match {EVENT_TYPE_PATTERN} "
                f"(lower case, at least two segments, at most {MAX_LENGTH} characters), such as 'user.login'",
                event_type=event_type,
            )
        domain = event_type.partition(".")[0]
        if self.allowed_domains is not None and domain not in self.allowed_domains:
            names = ", ".join(sorted(self.allowed_domains)) or "none"
            raise EventTypeError(
                f"the domain {domain!r} of {event_type!r} is not allowed here (allowed domains: {names})",
                event_type=event_type,
            )
        if self._compiled is not None and not self._compiled.fullmatch(event_type):
            raise EventTypeError(
                f"{event_type!r} does not match the pattern {self.pattern!r} of this bus", event_type=event_type
            )


def nearest(event_type: str, known: Iterable[str]) -> str | None:
    """Return the known type that one typing error away from ``event_type``, or None.

    One letter added, left out, replaced, or two neighbours swapped, in one segment of five letters
    or more: enough for a typing error, too little for ``order.v1`` and ``order.v2``.
    """
    return next((name for name in sorted(known) if _one_typo_apart(event_type, name)), None)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"pattern={pattern!r} is not a regular expression: {error}") from None


def _one_typo_apart(left: str, right: str) -> bool:
    lefts, rights = left.split("."), right.split(".")
    if len(lefts) != len(rights):
        return False
    different = [pair for pair in zip(lefts, rights, strict=True) if pair[0] != pair[1]]
    return len(different) == 1 and _one_edit_apart(*different[0])


def _one_edit_apart(left: str, right: str) -> bool:
    short, long = sorted((left, right), key=len)
    if len(short) < _SHORTEST_SEGMENT_WITH_HINT or len(long) - len(short) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if any(c.isdigit() for c in (short[start : start + 1] + long[start : start + 1])):
        return False
    if len(short) < len(long):
        return short[start:] == long[start + 1 :]
    swapped = short[:start] + short[start + 1 : start + 2] + short[start : start + 1] + short[start + 2 :]
    return swapped == long or short[start + 1 :] == long[start + 1 :]
