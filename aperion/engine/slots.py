"""Slots for what is scarce, threads and processes: how many there are, and who waits for one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Turn(Protocol):
    """Somebody who waits for a slot."""

    def grant(self) -> None:
        """Take note that a slot is taken for him."""

    def refuse(self, error: Exception) -> None:
        """Take note that there will be none."""


class Slots:
    """At most ``limit`` at a time, and more where those that have one lend it while they wait.

    Taken on the loop's thread, and given back on any: what had a slot may outlive the loop.
    """

    # Mutable: all but the limit, under the lock.
    __slots__ = ("_lock", "_waiting", "busy", "lent", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy = 0
        self.lent = 0
        self._lock = threading.Lock()
        self._waiting: OrderedDict[Turn, None] = OrderedDict()

    def take(self) -> bool:
        """Take a slot, if one is free and nobody waits for it."""
        with self._lock:
            if self._waiting or self.busy >= self.limit + self.lent:
                return False
            self.busy += 1
            return True

    def wait(self, turn: Turn) -> None:
        """Stand in line for a slot."""
        with self._lock:
            self._waiting[turn] = None

    def leave(self, turn: Turn) -> bool:
        """Leave the line; False when a slot was granted before."""
        with self._lock:
            return self._waiting.pop(turn, self) is None

    def release(self) -> None:
        """Give a slot back; who waits gets it in ``grant``, on the loop's thread."""
        with self._lock:
            self.busy -= 1

    def lend(self, count: int) -> None:
        """Allow so many more; a negative number takes back what was lent."""
        with self._lock:
            self.lent += count

    def grant(self) -> None:
        """Give the slots that are free to those who wait; on the loop's thread."""
        while True:
            with self._lock:
                if not self._waiting or self.busy >= self.limit + self.lent:
                    return
                turn, _ = self._waiting.popitem(last=False)
                self.busy += 1
            turn.grant()

    def refuse(self, error: Callable[[], Exception]) -> None:
        """Tell all who wait that there will be no slot."""
        with self._lock:
            waiting, self._waiting = self._waiting, OrderedDict()
        for turn in waiting:
            turn.refuse(error())
