"""Regular expressions that are compiled at their first use: to compile all of them is a quarter of an import."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, cast

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
