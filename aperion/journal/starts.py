"""Which handlers run, and which are done: in memory that outlives the process, so that it costs no write."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC: Final = 0x0001_54525453_4C4A_00  # "JLSTRT", version 1
_HEADER: Final = 64
_WORDS: Final = _HEADER // 8
ENTRIES: Final = 16_384
PLACES: Final = 24
"""Deliveries of one event that are told apart; those beyond may run once more after a crash."""
_ALL: Final = (1 << PLACES) - 1
_MASK: Final = (1 << 64) - 1


class Start(NamedTuple):
    """What was known of an event when its process died."""

    seq: int
    done: int  # one bit for each delivery of its plan
    running: int


class Starts:
    """A mapped file with one entry for each event that is being handled: two words.

    The first is its number, the second has a bit for each delivery that is done, one for each that runs, and a
    check. Each change is one store of one word, so that whenever the process dies an entry is whole. Nothing
    is ever synchronised: of a machine that dies the file may have any age, and each age of it is true, since bits
    of what is done are only added while the event is in the journal.
    """

    # Mutable: the free entries, by the loop and the writer, each by one call that nobody interrupts.
    __slots__ = ("_free", "_map", "_words")

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Room on the disk now: a store to a page for which there is none would kill the process.
            os.posix_fallocate(fd, 0, _HEADER + 16 * ENTRIES)
            self._map = mmap.mmap(fd, _HEADER + 16 * ENTRIES)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")
        self._free = list(range(_WORDS, _WORDS + 2 * ENTRIES, 2))

    @property
    def life(self) -> int:
        """The number of the life whose entries these are; 0 for a new file."""
        return self._words[1] if self._words[0] == _MAGIC else 0

    def found(self) -> list[Start]:
        """Return what a life before has left; entries that do not fit their check are left out."""
        if not self.life:
            return []
        starts = []
        for at in self._free:
            seq, word = self._words[at], self._words[at + 1]
            done, running = word >> 40, (word >> 16) & _ALL
            if seq and word == _word(seq, done, running):
                starts.append(Start(seq, done, running))
        return starts

    def clear(self, life: int) -> None:
        """Forget all of it, on the disk too, and begin another life."""
        self._map[_HEADER:] = bytes(16 * ENTRIES)
        self._words[0], self._words[1] = _MAGIC, life
        self._map.flush()

    def enter(self, seq: int, running: int) -> int:
        """Return an entry for an event of which something runs; 0 when all are taken, and it is not followed."""
        if not self._free:
            return 0
        at = self._free.pop()
        self._words[at + 1] = _word(seq, 0, running & _ALL)
        self._words[at] = seq
        return at

    def change(self, at: int, seq: int, done: int, running: int) -> None:
        """Say what is done and what runs now."""
        self._words[at + 1] = _word(seq, done & _ALL, running & _ALL)

    def leave(self, at: int) -> None:
        """Give an entry back, once the journal itself knows all of it."""
        self._words[at] = 0
        self._free.append(at)

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._map.close()


def _word(seq: int, done: int, running: int) -> int:
    mixed = (seq * 0x9E3779B97F4A7C15 ^ done * 0xC2B2AE3D27D4EB4F ^ running * 0x165667B19E3779F9) & _MASK
    return done << 40 | running << 16 | mixed >> 48
