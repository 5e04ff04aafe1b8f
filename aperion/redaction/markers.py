"""What stands in place of a hidden value, and what a field says about itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

REDACTED: Final = "[REDACTED]"
DEPTH: Final = "[REDACTED_DEPTH]"
SIZE: Final = "[REDACTED_SIZE]"
CYCLE: Final = "[REDACTED_CYCLE]"
FAILED: Final = "[REDACTED_ERROR]"
CUT: Final = "\n[REDACTED_LENGTH]"
"""The end of a text that was cut; on a line of its own, so that no rule takes it for a value."""

_NO_NAME = re.compile(r"[^A-Z0-9]+")
_LONGEST_KIND = 40


@dataclass(frozen=True, slots=True)
class Sensitive:
    """Say that a field is never shown: ``email: Annotated[str, Sensitive("email")]``.

    Args:
        kind: what it holds; ``"email"`` is shown as ``[REDACTED_EMAIL]``.
    """

    kind: str = ""

    @property
    def marker(self) -> str:
        """What is shown instead of the value."""
        name = _NO_NAME.sub("_", str(self.kind).upper()[:_LONGEST_KIND]).strip("_")
        return f"[REDACTED_{name}]" if name else REDACTED


@dataclass(frozen=True, slots=True)
class Public:
    """Say that a field is shown as it is, whatever its name or its text looks like."""
