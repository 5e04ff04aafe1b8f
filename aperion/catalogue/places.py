"""Where something stands in the source."""

from __future__ import annotations

import functools
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line of a file, relative to the current directory where it lies below, and the function around it."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        """Show it as editors take it."""
        return f"{self.file}:{self.line}"


def place_of(function: Any) -> Place | None:
    """Return where a handler, or the class of one, is written: below its decorators and partials; None for builtins."""
    target = _innermost(function)
    try:
        _, line = inspect.getsourcelines(target)
        file = inspect.getsourcefile(target)
    except (OSError, TypeError):
        code = getattr(target, "__code__", None)
        if code is None:
            return None
        file, line = code.co_filename, code.co_firstlineno
    return None if file is None else Place(relative(file), line, getattr(target, "__qualname__", ""))


def relative(file: str) -> str:
    """Return a path below the current directory as a relative one, and others as they are."""
    path, here = os.path.realpath(file), Path.cwd().resolve()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _innermost(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    function = getattr(function, "__func__", function)  # of a bound method
    return function if inspect.isfunction(function) or inspect.isclass(function) else type(function)
