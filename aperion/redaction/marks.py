"""Keep what was hidden in a text out of the way of the rules that come after."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aperion.redaction.markers import REDACTED
from aperion.redaction.regexes import regex

if TYPE_CHECKING:
    import re

Hide = Callable[[str, str], str]
"""Takes the type of a value and the value, and returns what stands in its place."""

FIRST, LAST = "\ue000", "\uf8ff"
"""Characters of private use (Unicode, area U+E000 to U+F8FF) that stand for markers while rules run."""
_MOST: Final = ord(LAST) - ord(FIRST)
_STANDING = regex(f"[{FIRST}-{LAST}]")


class Marks:
    """The hidden values of one text: each is one character until the text is done.

    A rule therefore never takes a marker for a name, a value or a part of one, and a text that was
    redacted before is as good as one that is being redacted: doing it twice changes nothing.
    """

    # Mutable: all of it, while one text is redacted.
    __slots__ = ("_chars", "_kinds", "_marker", "_markers", "_shown", "lengths")

    def __init__(self, marker: Hide, shown: frozenset[str]) -> None:
        self.lengths: dict[str, int] | None = None  # of what each character stands for, where they are measured
        self._marker = marker
        self._shown = shown  # the types that are not hidden
        self._chars: dict[object, str] = {}
        self._markers: dict[str, str] = {}
        self._kinds: dict[str, str] = {}

    def hide(self, kind: str, value: str) -> str:
        """Return the character that stands for a value of a type."""
        if _is_standing(value) or kind in self._shown:
            return value
        if self.lengths is None:
            char = self._char(self._marker(kind, value))
        else:
            char = self._measured(self._marker(kind, value), value, self.lengths)
        self._kinds[char] = kind
        return char

    def _measured(self, marker: str, value: str, lengths: dict[str, int]) -> str:
        """Return a character that stands for this value alone, and note the length of the value."""
        char = self._char(marker, (marker, len(self._chars)))
        lengths[char] = sum(lengths.get(inner, 1) for inner in value)
        return char

    def protected(self, text: str, known: re.Pattern[str]) -> str:
        """Return a text with the markers that it has already, and characters like ours, set aside."""
        return known.sub(lambda found: self._char(found[0]), text)

    @property
    def is_full(self) -> bool:
        """Whether there were more values than characters, so that the last character stands for several."""
        return len(self._chars) > _MOST

    def kind(self, text: str) -> str | None:
        """Return the type of what was hidden if that is all that a text held."""
        return self._kinds.get(text)

    def restored(self, text: str, found: list[str]) -> str:
        """Return a text with its markers written out, and note the type of each value that was hidden."""
        if not self._markers:
            return text

        def marker(standing: re.Match[str]) -> str:
            char = standing[0]
            if char in self._kinds:
                found.append(self._kinds[char])
            return self._markers[char]

        return _STANDING.sub(marker, text)

    def _char(self, marker: str, value: object = None) -> str:
        value = value or marker
        known = self._chars.get(value)
        if known is not None:
            return known
        # A text with more different pseudonyms than there are characters loses what tells them apart.
        char = chr(ord(FIRST) + min(len(self._chars), _MOST))
        marker = REDACTED if char == LAST else marker
        self._chars[value] = char
        self._markers[char] = marker
        return char


def _is_standing(value: str) -> bool:
    return len(value) == 1 and FIRST <= value <= LAST
