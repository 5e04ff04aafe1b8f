"""Read a text as rules do: with ASCII in place of other spaces, hyphens and full-width forms, nothing invisible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aperion.redaction.regexes import regex

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPACES: Final = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_HYPHENS: Final = "\u2010-\u2013\u2212\ufe63"
_FULL_WIDTH: Final = "\uff01-\uff5e"
_UNSEEN: Final = "\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_ODD = regex(f"[{_SPACES}{_HYPHENS}{_FULL_WIDTH}{_UNSEEN}]")
_SEEN = regex(f"[^{_UNSEEN}]")
_FROM_ASCII: Final = 0xFF01 - ord("!")
_INSERTED: Final = "\\\"'`"
"""What a rule may add: quotes around the marker of a number in JSON."""


def is_odd(text: str) -> bool:
    """Tell whether a text has characters that stand for ASCII ones, or that nobody sees."""
    return not text.isascii() and _ODD.search(text) is not None


def plain(text: str) -> str:
    """Return a text as rules are to read it: one character for each that is seen."""
    return _ODD.sub(lambda found: _plain_char(found[0]), text)


def _plain_char(char: str) -> str:
    if _SEEN.match(char) is None:
        return ""
    if "\uff01" <= char <= "\uff5e":
        return chr(ord(char) - _FROM_ASCII)
    return " " if char.isspace() else "-"


def as_written(original: str, clean: str, lengths: Mapping[str, int]) -> str | None:
    """Return the original without what is hidden in ``clean``, which rules made of its plain view.

    Args:
        original: the text as it was written.
        clean: its plain view, with one character in place of each hidden value.
        lengths: how many characters of the view each of these stands for.

    Returns:
        None where the two cannot be laid side by side.
    """
    view = plain(original)
    places = [found.start() for found in _SEEN.finditer(original)]
    places.append(len(original))
    pieces: list[str] = []
    at = written = 0  # in the view, in the original
    for char in clean:
        length = lengths.get(char)
        if length is None and view[at : at + 1] == char:
            at += 1
            continue
        if length is None and char not in _INSERTED:
            return None
        pieces += original[written : places[at]], char
        at += length or 0
        if at > len(view):
            return None
        written = places[at - 1] + 1 if length else places[at]
    return "".join([*pieces, original[written:]]) if at == len(view) else None
