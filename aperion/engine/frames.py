"""Stacks of running code, shown without our own frames and without values."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame, and those that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_ours(frame: FrameType) -> bool:
    """Tell whether a frame runs code of this package."""
    return str(frame.f_globals.get("__name__", "")).startswith("aperion.")


def shown(frames: Iterable[FrameType]) -> str:
    """Return files, lines and source of frames, outermost first, as a traceback shows them."""
    return "".join(traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames).format()).rstrip()
