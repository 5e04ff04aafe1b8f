"""A short notation for the shapes of tokens: ``ghp_{an 36+}`` is a prefix and 36 letters or digits or more.

One line of it gives the pattern that finds a token, and a sample.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from aperion.redaction.regexes import regex

CHARSETS: Final = {
    "an": "A-Za-z0-9",
    "lower": "a-z0-9",
    "upper": "A-Z0-9",
    "letter": "A-Za-z",
    "digit": "0-9",
    "hex": "0-9a-fA-F",
    "b32": "A-Z2-7",
    "b64": "A-Za-z0-9+/",
    "url": r"A-Za-z0-9_\-",
    "wide": r"A-Za-z0-9_\-.=+/~",
    "bech32": "ac-hj-np-z02-9AC-HJ-NP-Z",
}
"""What the names in the notation stand for, as the inside of a character class."""

_LONGEST_INNER = 512
_PART = regex(r"\{(?P<set>\w+) (?P<least>\d+)(?:(?P<more>\+)|-(?P<most>\d+))?\}")
_FILLING: Final = "7Kd3Qa9Zx2Mf5Wb8"
_OF_ONE_SORT: Final = {"digit": "7391", "hex": "7d3a9f2b", "lower": "7kd3qa9z", "upper": "7KD3QA9Z"}
_ODD: Final = {"b32": "7KD3QA5Z", "letter": "KdQaZxMf", "bech32": "7d3q9zx2"}


class Shape(NamedTuple):
    """What one line of the notation says."""

    regex: str
    sample: str


def shape(notation: str) -> Shape:
    """Read one line of the notation."""
    pattern, sample, at = "", "", 0
    for part in _PART.finditer(notation):
        literal = notation[at : part.start()]
        at = part.end()
        pattern += re.escape(literal) + _repeated(part, last=at == len(notation))
        sample += literal + _filled(part["set"], int(part["least"]))
    return Shape(pattern + re.escape(notation[at:]), sample + notation[at:])


def _repeated(part: re.Match[str], *, last: bool) -> str:
    """Return a repeat that never gives back what it took: a failing match costs its least length at most."""
    chars, least = CHARSETS[part["set"]], part["least"]
    if part["most"]:
        return f"[{chars}]{{{least},{part['most']}}}+"
    if part["more"]:
        return f"[{chars}]{{{least},{'' if last else _LONGEST_INNER}}}+"
    # A token of an exact length is no longer than that.
    return f"[{chars}]{{{least}}}" + (f"(?![{chars}])" if last else "")


def _filled(charset: str, length: int) -> str:
    filling = _OF_ONE_SORT.get(charset) or _ODD.get(charset) or _FILLING
    return (filling * (length // len(filling) + 1))[:length]


def trie(words: tuple[str, ...]) -> str:
    """Return a pattern that matches the words by shared beginnings, each looked at once."""
    heads: dict[str, list[str]] = {}
    for word in words:
        heads.setdefault(word[:1], []).append(word[1:])
    if list(heads) == [""]:
        return ""
    branches = [re.escape(head) + trie(tuple(tails)) for head, tails in sorted(heads.items(), reverse=True) if head]
    joined = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{joined})?" if "" in heads else joined
