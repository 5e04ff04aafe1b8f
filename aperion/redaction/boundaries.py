"""Where a value may begin in a text."""

from __future__ import annotations

from typing import Final

_ESCAPED: Final = "nrt"


def begins(text: str, start: int) -> bool:
    r"""Tell whether a word may begin here: not inside another, but after a written-out ``\n`` or ``%3D``."""
    if start == 0 or not text[start - 1].isalnum():
        return True
    if text[start - 1] in _ESCAPED and text[start - 2 : start - 1] == "\\":
        return True
    return start > 2 and text[start - 3] == "%"
