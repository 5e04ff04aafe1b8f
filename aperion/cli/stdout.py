"""Keeping standard output for what a command prints."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def own_stdout(*, aside: bool) -> Iterator[IO[str]]:
    """Keep standard output for us alone: what the application prints goes to standard error."""
    if not aside:
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with os.fdopen(kept, "w", encoding="utf-8", errors="backslashreplace") as out:
        yield out
