"""A bounded memory of what was worked out once, without a cliff where it is full."""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Remembers values by name: at least the last ``size`` that were asked for, at most twice as many.

    Two generations instead of one dict that is emptied when it is full: what is asked for again moves to the
    young one, and the old one is let go as a whole. A lookup under way in another thread reads a dict that
    is not changed under it.
    """

    # Mutable: both, replaced as a whole when the young one is full.
    __slots__ = ("_old", "_size", "young")

    def __init__(self, size: int) -> None:
        self._size = size
        self.young: dict[str, V] = {}
        self._old: dict[str, V] = {}

    def get(self, name: str) -> V | None:
        """Return what is remembered under a name, or None."""
        value = self.young.get(name)
        if value is None:
            value = self._old.get(name)
            if value is not None:
                self.put(name, value)
        return value

    def put(self, name: str, value: V) -> None:
        """Remember a value."""
        if len(self.young) >= self._size:
            self._old, self.young = self.young, {}
        self.young[name] = value
