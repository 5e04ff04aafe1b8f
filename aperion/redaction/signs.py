"""What a text shows at one look: signs without which a rule cannot match, such as ``@``, a digit, a long run."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Final

from aperion.redaction.regexes import regex

if TYPE_CHECKING:
    from collections.abc import Iterable

# A letter is no sign, so that letters are free to stand for what is more than one character.
DIGIT: Final = "0"
LONG: Final = "L"
"""Fifteen characters without a break, as every token and key has, and few other words."""
CODED: Final = "C"
"""Twenty-six letters and digits without a break, as every address of a coin has."""
PASSWORD: Final = "P"  # noqa: S105
"""A word after which a sentence may tell a password."""
SCHEME: Final = "S"
"""The name of a scheme of HTTP, after which credentials may follow."""

_MARKS: Final = "@/%&\\<:=-.+([\"'"
_ALL: Final = frozenset(map(ord, (*_MARKS, DIGIT, LONG, CODED, PASSWORD, SCHEME)))
_LETTERS: Final = string.ascii_letters.encode()
_DIGITS: Final = string.digits.encode()
_NO_SIGNS: Final = bytes(set(range(256)) - set(_MARKS.encode()) - set(_DIGITS))
_AS_SIGNS: Final = bytes.maketrans(_DIGITS, DIGIT.encode() * 10)


def _table(members: bytes) -> bytes:
    return bytes(ord("x") if char in members else ord(" ") for char in range(256))


_WIDE: Final = _table(_LETTERS + _DIGITS + b"_-.=+/~?")
_NARROW: Final = _table(_LETTERS + _DIGITS + b"?")
_LONG_RUN: Final = b"x" * 15
_CODED_RUN: Final = b"x" * 26
# Digits of other scripts and the other sign of e-mail, and what is a Latin letter to a pattern that ignores case.
_FOREIGN = regex("[\\d\uff20\u0130\u0131\u017f\u212a](?<![0-9])")


def is_foreign(text: str) -> bool:
    """Tell whether a text has characters outside ASCII that rules look at."""
    return not text.isascii() and _FOREIGN.search(text) is not None


def signs(text: str) -> frozenset[int]:
    """Return the signs in a text without foreign characters."""
    plain = text.encode("ascii", "replace")  # a question mark for all else, which may be a letter
    found = plain.translate(_AS_SIGNS, _NO_SIGNS)
    # To look for a run in a copy of x and spaces takes a few steps for fifteen characters; a pattern, some for each.
    if _LONG_RUN in plain.translate(_WIDE):
        found += b"LC" if _CODED_RUN in plain.translate(_NARROW) else b"L"
    lowered = plain.lower().decode()
    if "pass" in lowered or "key" in lowered or "token" in lowered or "secret" in lowered or "pwd" in lowered:
        found += b"P"
    if "bearer" in lowered or "basic" in lowered:
        found += b"S"
    return frozenset(found)


def all_signs() -> frozenset[int]:
    """Return every sign there is, for a text that is to be looked at by every rule."""
    return _ALL


def needed(alternatives: Iterable[str]) -> tuple[frozenset[int], ...]:
    """Return signs as ``signs`` does: a text must show one of each group."""
    return tuple(frozenset(map(ord, group)) for group in alternatives)
