"""What stands in place of a hidden value, and what a field says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aperion.redaction.regexes import regex

REDACTED: Final = "[REDACTED]"
KEY: Final = "KEY"
"""The type of what is hidden for the name it stands under."""
DROPPED: Final = "".join((REDACTED[:-1], REDACTED[-1]))
"""Told from ``REDACTED`` by identity: the entry of this value is to be left out."""
DEPTH: Final = "[REDACTED_DEPTH]"
SIZE: Final = "[REDACTED_SIZE]"
CYCLE: Final = "[REDACTED_CYCLE]"
TIME: Final = "[REDACTED_TIME]"
FAILED: Final = "[REDACTED_ERROR]"
CUT: Final = "\n[REDACTED_LENGTH]"
"""The end of a text that was cut; on a line of its own, so that no rule takes it for a value."""

_NO_NAME = regex(r"[^A-Z0-9]+")
_LONGEST_KIND = 40


@dataclass(frozen=True, slots=True)
class Sensitive:
    """Say that a field is never shown: ``email: Annotated[str, Sensitive("email")]``.

    Args:
        kind: what it holds; ``"email"`` is shown as ``[REDACTED_EMAIL]``.
    """

    kind: str = ""

    @property
    def type(self) -> str:
        """The name of the type in capitals: ``EMAIL``; ``KEY`` where no kind is given."""
        return kind_name(str(self.kind)) or KEY

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> Any:
        """Say so in JSON schemas too, as ``x-aperion-sensitive``."""
        return {**handler(core_schema), "x-aperion-sensitive": self.type}


@dataclass(frozen=True, slots=True)
class Public:
    """Say that a field is shown as it is, whatever its name or its text looks like."""


def kind_name(text: str) -> str:
    """Return a text as the name of a type: ``user-id`` becomes ``USER_ID``."""
    return _NO_NAME.sub("_", text.upper()[:_LONGEST_KIND]).strip("_")


def kind_marker(kind: str) -> str:
    """Return what stands in place of a value of a type."""
    return REDACTED if kind == KEY else f"[REDACTED_{kind}]"


def kept(value: Any) -> Any:
    """Return what to show where an entry cannot be left out."""
    return REDACTED if value is DROPPED else value
