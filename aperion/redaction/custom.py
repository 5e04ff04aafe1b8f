"""Patterns that users bring: run on re2 where it is installed, else only if they cannot blow up."""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]  # the parser of re has no public name
from re import _parser as parser  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any, Final

from aperion.errors import ConfigurationError
from aperion.redaction.regexes import regex

if TYPE_CHECKING:
    from collections.abc import Mapping

_KIND = regex(r"[A-Z][A-Z0-9_]{0,39}")
_MOST_WAYS: Final = 1_024
"""In how many ways a pattern may be tried at one place of a text: that bounds the time for each character."""

_GROUPS: Final = (codes.SUBPATTERN, codes.ASSERT, codes.ASSERT_NOT, codes.ATOMIC_GROUP)


def compiled(patterns: Mapping[str, str]) -> tuple[tuple[str, Any], ...]:
    """Return the patterns of a user by type, ready to run.

    Raises:
        ConfigurationError: for a type that is no name in capitals, a pattern that does not compile, that
            matches nothing at all, or that could take more than linear time and cannot run on re2.
    """
    return tuple((_checked_kind(kind), _compiled(kind, pattern)) for kind, pattern in patterns.items())


def _checked_kind(kind: str) -> str:
    if not _KIND.fullmatch(kind):
        raise ConfigurationError(f"{kind!r} is no type of value; pass a name in capitals: 'BADGE_ID'")
    return kind


def _compiled(kind: str, pattern: str) -> Any:
    try:
        tree = parser.parse(pattern)
        simple = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigurationError(f"the pattern of {kind} does not compile: {error}") from error
    if simple.match("") is not None:
        raise ConfigurationError(
            f"the pattern of {kind} matches nothing at all, and so would everywhere; ask for a character"
        )
    if _ways(tree) <= _MOST_WAYS:
        return simple
    return _on_re2(kind, pattern)


def _on_re2(kind: str, pattern: str) -> Any:
    try:
        import re2  # type: ignore[import-untyped]  # has no types
    except ImportError:
        raise ConfigurationError(
            f"the pattern of {kind} can take more than linear time; give each repeat a small upper limit, as in "
            r"\d{6,10}, or install aperion-bus[re2]"
        ) from None
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0]
        raise ConfigurationError(
            f"the pattern of {kind} can take more than linear time, and re2 refuses it: "
            + (reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason))
        ) from error


def _ways(tree: Any) -> int:
    """Return an upper limit for the number of ways in which a pattern can match at one place."""
    ways = 1
    for code, argument in tree:
        ways = min(ways * _ways_of(code, argument), _MOST_WAYS + 1)
    return ways


def _ways_of(code: Any, argument: Any) -> int:
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
        least, most, inner = argument
        inside = _ways(inner)
        if most is codes.MAXREPEAT or (inside > 1 and most > 1 and inside ** min(int(most), 32) > _MOST_WAYS):
            return _MOST_WAYS + 1
        return int((int(most) - int(least) + 1) * inside ** min(int(most), 32))
    if code is codes.POSSESSIVE_REPEAT:
        least, most, inner = argument
        # What is not given back costs its length at each place where it is tried.
        return _MOST_WAYS + 1 if most is codes.MAXREPEAT else max(_ways(inner), int(most))
    if code is codes.BRANCH:
        return sum(_ways(branch) for branch in argument[1])
    if code in _GROUPS:
        return _ways(argument if code is codes.ATOMIC_GROUP else argument[-1])
    return _MOST_WAYS + 1 if code in (codes.GROUPREF, codes.GROUPREF_EXISTS) else 1
