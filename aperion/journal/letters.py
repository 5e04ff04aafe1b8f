"""Dead letters that outlive their process: in memory as ever, and in the file of the journal beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from aperion.deadletters import MemoryStore
from aperion.errors import AperionError
from aperion.journal.codec import read, unread, written
from aperion.outcomes import DeadLetter, FailureReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Write: TypeAlias = Callable[[str, bytes | None, int], None]
    """Writes a letter, or removes it, in the slot with a number."""

_MAIN = 0
_FIELDS = ("letter_id", "subscription", "error_type", "error", "traceback", "attempts", "first_failed_at", "failed_at")


class JournalLetters(MemoryStore):
    """Keeps the newest dead letters in memory, and tells a journal of each change; read again when the bus starts."""

    # Mutable: where changes go while the bus runs, those of other times, and the slots of letters that were read.
    __slots__ = ("_is_loading", "_owed", "_removed", "_slots", "_write")

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size)
        self._write: Write | None = None
        self._owed: dict[str, bytes | None] = {}
        self._slots: dict[str, int] = {}
        self._removed: set[str] = set()  # before the files were read
        self._is_loading = False

    def attach(self, write: Write) -> None:
        """Write changes from now on, and those that were made since the last run."""
        self._write = write
        owed, self._owed = self._owed, {}
        self._removed = {letter_id for letter_id, body in owed.items() if body is None}
        for letter_id, body in owed.items():
            write(letter_id, body, _MAIN)

    def detach(self) -> None:
        """Keep changes in mind until the bus runs again."""
        self._write = None
        self._slots.clear()

    def load(self, rows: Iterable[tuple[str, bytes]], slot: int) -> None:
        """Take in the letters of a slot, behind those that came since."""
        newer = {letter.letter_id: letter for letter in self}
        self._is_loading = True
        for letter_id, body in rows:
            if letter_id in self._removed:
                self._tell(letter_id, None, slot)
                continue
            self._slots[letter_id] = slot
            if letter_id not in newer and (letter := _letter(body)) is not None:
                super().put(letter)
        for letter in newer.values():
            super().pop(letter.letter_id)
            super().put(letter)
        self._is_loading = False

    def put(self, letter: DeadLetter) -> int:
        """Keep a letter, in place of the one with its id if there is one; return how many were evicted."""
        evicted = super().put(letter)
        self._tell(letter.letter_id, _body(letter))
        return evicted

    def _evict(self) -> str:
        oldest = super()._evict()
        if not self._is_loading:  # what there is no room for in memory stays in its file
            self._tell(oldest, None)
        return oldest

    def pop(self, letter_id: str) -> DeadLetter | None:
        """Take the letter with this id out; None when there is none."""
        found = super().pop(letter_id)
        if found is not None:
            self._tell(letter_id, None)
        return found

    def remove(self, letter_ids: Iterable[str]) -> int:
        """Take the letters with these ids out; return how many there were."""
        return len([1 for letter_id in letter_ids if self.pop(letter_id) is not None])

    def _tell(self, letter_id: str, body: bytes | None, slot: int | None = None) -> None:
        if self._write is None:
            self._owed[letter_id] = body
            return
        if slot is None:
            slot = self._slots.pop(letter_id, _MAIN) if body is None else self._slots.get(letter_id, _MAIN)
        self._write(letter_id, body, slot)


def _body(letter: DeadLetter) -> bytes:
    fields = {name: getattr(letter, name) for name in _FIELDS} | {"reason": letter.reason.value}
    return orjson.dumps(fields) + b"\n" + _event(letter)


def _event(letter: DeadLetter) -> bytes:
    event: Any = letter.event
    for write in (written, lambda event: event.to_jsonl().encode()):
        try:
            return bytes(write(event))
        except AperionError:  # what no handler could get from the journal; it is shown as far as JSON goes
            continue
    return written(event.replace(payload={"not_serialisable": type(event.payload).__name__}))


def _letter(body: bytes) -> DeadLetter | None:
    """Return a letter; None for one that cannot be read, which stays where it is."""
    head, _, event_body = body.partition(b"\n")
    try:
        event: Any = read(event_body)
    except Exception:  # noqa: BLE001 - its class or its model has changed: it is shown as far as JSON goes
        event = unread(event_body)
    try:
        fields = orjson.loads(head)
        return DeadLetter(event=event, **{**fields, "reason": FailureReason(fields["reason"])}) if event else None
    except (ValueError, TypeError, KeyError):  # of a version to come
        return None
