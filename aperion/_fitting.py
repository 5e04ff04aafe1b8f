"""Which dead letters fit the filters of ``list``, ``purge`` and ``export``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeAlias

from aperion.errors import ConfigurationError, positive, shown
from aperion.outcomes import FailureReason
from aperion.patterns import check_pattern, matches

if TYPE_CHECKING:
    from collections.abc import Callable

    from aperion.outcomes import DeadLetter
    from aperion.subscriptions import Subscription

Letters: TypeAlias = "list[DeadLetter]"
Rule: TypeAlias = "Callable[[Letters], Letters]"

_AT_ONCE: Final = 1024
"""Letters that are looked at in one go."""


def rules_of(
    event_type: str | None,
    *,
    reason: FailureReason | str | None = None,
    subscription: Subscription | str | None = None,
    older_than: float | None = None,
) -> list[Rule]:
    """Return one function for each filter that was given, from letters to those that fit it."""
    rules: list[Rule] = []
    if reason is not None:
        wanted = _reason(reason)
        rules.append(lambda letters: [letter for letter in letters if letter.reason is wanted])
    if subscription is not None:
        name = subscription if isinstance(subscription, str) else subscription.name
        rules.append(lambda letters: [letter for letter in letters if letter.subscription == name])
    if older_than is not None:
        positive("older_than", older_than)
        latest = time.time() - older_than
        rules.append(lambda letters: [letter for letter in letters if letter.failed_at <= latest])
    if event_type is not None:
        fits = _Fits(check_pattern(event_type, any_name=True))
        rules.append(lambda letters: [letter for letter in letters if fits[letter.event.event_type]])
    return rules


class _Fits(dict[str, bool]):
    """Whether a pattern matches a type, found out once for each."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def __missing__(self, event_type: str) -> bool:
        self[event_type] = found = matches(self._pattern, event_type)
        return found


def fitting(letters: Letters, rules: list[Rule], limit: int | None) -> Letters:
    """Return the letters that fit all rules, ``limit`` at most; a few at a time, so that a limit saves the rest."""
    found: Letters = []
    for start in range(0, len(letters), _AT_ONCE):
        part = letters[start : start + _AT_ONCE]
        for rule in rules:
            part = rule(part)
        found += part
        if limit is not None and len(found) >= limit:
            break
    return found[:limit]


def _reason(reason: FailureReason | str) -> FailureReason:
    try:
        return FailureReason(reason)
    except ValueError:
        choices = ", ".join(repr(choice.value) for choice in FailureReason)
        raise ConfigurationError(f"reason={shown(reason)} is not a reason; use one of {choices}") from None
