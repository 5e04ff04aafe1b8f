"""What may be written to a terminal: text without control characters, colour only where it is wanted."""

from __future__ import annotations

import sys
from typing import IO

from rich.console import Console
from rich.text import Text

from aperion.redaction import Redactor

DEBUG = "--debug"
"""The option that shows tracebacks; looked for among the arguments, since it matters when all else fails."""

_LONGEST = 500
_PIPE_WIDTH = 10_000  # nothing is wrapped or cut for a program that reads the output


def safe(text: object, limit: int = _LONGEST) -> str:
    r"""Return text in which every control character is shown as an escape, on one line, cut at ``limit``.

    Line breaks, terminal sequences, and the marks that reorder text all count as control characters.

    >>> safe("red \x1b[31m\n")
    'red \\x1b[31m\\n'
    """
    string = str(text)
    cut = string if len(string) <= limit else f"{string[: limit - 1]}…"
    return "".join(char if char.isprintable() else _escaped(char) for char in cut)


def redacted(text: str) -> str:
    """Return the text of a foreign error without the secrets that it quotes."""
    return Redactor().redact_text(text)


def console(file: IO[str]) -> Console:
    """Return a console for a stream: plain and never wrapped unless the stream is a terminal."""
    width = None if file.isatty() else _PIPE_WIDTH
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def complain(message: str) -> None:
    """Write one error to standard error."""
    console(sys.stderr).print(Text.assemble(("error: ", "bold red"), safe(message, 2000)), soft_wrap=True)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
