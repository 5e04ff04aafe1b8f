"""Regular expressions that are compiled at their first use: to compile all of them is a quarter of an import."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable

_METHODS: Final = ("findall", "finditer", "fullmatch", "match", "search", "split", "sub")


class _Uncompiled:
    """Stands for a compiled pattern, whose methods it gets when one of them is asked for."""

    # Mutable: the methods, set once; two threads would set the same.
    __slots__ = ("_flags", "_source", *_METHODS)

    def __init__(self, source: str, flags: int) -> None:
        self._source, self._flags = source, flags

    if not TYPE_CHECKING:  # a type checker knows the methods of what it stands for

        def __getattr__(self, name: str) -> Any:
            """Compile; Python asks here for what is not set yet."""
            compiled = re.compile(self._source, self._flags)
            for method in _METHODS:
                setattr(self, method, getattr(compiled, method))
            return getattr(compiled, name)


def regex(source: str, flags: int = 0) -> re.Pattern[str]:
    """Return a pattern that is compiled when it is first used."""
    return cast("re.Pattern[str]", _Uncompiled(source, flags))


def replaced(
    text: str,
    sign: re.Pattern[str],
    pattern: re.Pattern[str],
    replace: Callable[[re.Match[str]], str],
    begin: Callable[[str, int], int] | None = None,
) -> str:
    """Do what ``pattern.sub`` does, and look only around a sign that every match has.

    Args:
        text: what to look at.
        sign: found first, and in far less time than the pattern.
        pattern: what begins at the sign, or where ``begin`` says.
        replace: returns what stands in place of a match.
        begin: takes the text and the place of a sign, and returns the one place where its match can begin.
    """
    pieces: list[str] = []
    at = position = 0
    while (there := sign.search(text, position)) is not None:
        position = there.start() + 1
        start = there.start() if begin is None else begin(text, there.start())
        found = pattern.match(text, start) if start >= at else None
        if found is not None:
            pieces += text[at:start], replace(found)
            at = found.end()
            position = max(position, at)
    return "".join([*pieces, text[at:]]) if pieces else text
