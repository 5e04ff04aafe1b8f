"""The spill: records that found the ring full, which nobody can refuse any more, in memory until there is room."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aperion.audit.ring import Missed

if TYPE_CHECKING:
    from aperion.audit.ring import Ring

SPILL_BYTES: Final = 16 << 20
"""What a spill holds at most where the disk stands still; what comes then is missing."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What goes into the ring in one piece: a record, and before it perhaps the one that tells of a gap."""

    content: bytes
    at_risk: Missed


class Spill:
    """Records on their way into a ring that is full, in the order in which they came.

    They do not survive the process, as what is in the ring does; the ring keeps their number, so that the
    next start can tell that they are missing.

    Args:
        ring: where they go.
    """

    # Mutable: all of it, by the thread that puts into the ring.
    __slots__ = ("_count", "_lines", "_ring", "size")

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._lines: deque[_Waiting] = deque()  # bounded by who asks "takes" first
        self._count = self.size = 0

    def takes(self, size: int) -> bool:
        """Tell whether so many bytes fit, however the disk does."""
        return self.size + size <= SPILL_BYTES

    def push(self, content: bytes, at_risk: Missed) -> None:
        """Keep a record behind those that wait.

        Args:
            content: one line, or the line about a gap and the one after it.
            at_risk: how many records are not kept if the process dies now, and since when they came.
        """
        self._lines.append(_Waiting(content, at_risk))
        self._count += at_risk.count
        self.size += len(content)
        self._tell(at_risk.until)

    def pour(self) -> bool:
        """Move into the ring what it has room for, and tell whether nothing waits any more."""
        ring, lines = self._ring, self._lines
        if not lines or (ring.is_renewable and not ring.renew()):
            return not lines
        until = lines[-1].at_risk.until
        while lines and ring.has_room(len(lines[0].content)):
            waiting = lines[0]
            count, size = self._count - waiting.at_risk.count, self.size - len(waiting.content)
            ring.store(waiting.content)  # nobody asks the writer: what is kept nowhere else has precedence
            lines.popleft()  # at once: what stays here would come twice
            self._count, self.size = count, size
            self._tell(until)
        return not lines

    def give_up(self) -> int:
        """Count what waits as missing, and return how many records that are."""
        lines, ring, given_up = self._lines, self._ring, len(self._lines)
        if not lines:
            return 0
        lost = Missed(self._count, lines[0].at_risk.since, lines[-1].at_risk.until)
        ring.miss(lost if ring.missed is None else ring.missed.with_those(lost))
        self.clear()
        ring.owe(None)
        return given_up

    def clear(self) -> None:
        """Forget what waits."""
        self._lines.clear()
        self._count = self.size = 0

    def _tell(self, until: int) -> None:
        lines = self._lines
        self._ring.owe(Missed(self._count, lines[0].at_risk.since, until) if lines else None)
