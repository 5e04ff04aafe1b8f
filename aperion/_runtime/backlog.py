"""The events that wait to be handled: in the order accepted, and one at a time for each key."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from aperion.delivery import Receipt, Run

if TYPE_CHECKING:
    import asyncio

    from aperion.delivery import DeadLetter, Subscription


class Rerun(Run):
    """One more attempt at one delivery of an event, on its own: a retry or a redrive."""

    # Mutable: what Run has.
    __slots__ = ("attempt", "index", "letter", "receipt", "subscription")

    def __init__(
        self,
        receipt: Receipt,
        index: int,
        subscription: Subscription,
        attempt: int,
        letter: DeadLetter | None = None,
    ) -> None:
        super().__init__()
        self.letter = letter  # what is redriven; None for a retry
        self.receipt = receipt
        self.index = index
        self.subscription = subscription
        self.attempt = attempt


class Backlog:
    """What is ready to be handled, and behind it the events whose key is busy.

    Bounded by admission: a receipt stands here at most once.
    """

    # Mutable: all of it. A key is in _keys while an event that has it is unsettled: the first of its
    # line has the key, the others wait for it.
    __slots__ = ("_age", "_keys", "_turns", "ready")

    def __init__(self, *, by_age: bool) -> None:
        self.ready: deque[Receipt | Rerun] = deque()
        self._keys: dict[str, deque[Receipt]] = {}
        self._turns: dict[Receipt, asyncio.Future[None]] = {}
        self._age: deque[Receipt] | None = deque() if by_age else None

    def add(self, receipt: Receipt) -> None:
        """Queue an event that was accepted."""
        key = receipt.event.key
        if key is None or self._takes_key(receipt, key):
            self.ready.append(receipt)
        if self._age is not None:
            self._trim_age()
            self._age.append(receipt)

    def wait_turn(self, receipt: Receipt, turn: asyncio.Future[None]) -> bool:
        """Take the key of an event that is not queued; False when ``turn`` will be set once it is free."""
        key = receipt.event.key
        if key is None or self._takes_key(receipt, key):
            return True
        self._turns[receipt] = turn
        return False

    def give_up_turn(self, receipt: Receipt, turn: asyncio.Future[None]) -> None:
        """Leave the line for a key, or give the key back if it was just had."""
        if self._turns.pop(receipt, None) is not None:
            self._keys[receipt.event.key or ""].remove(receipt)
        elif not turn.cancelled():
            self.release(receipt)

    def release(self, receipt: Receipt) -> None:
        """Give the key of a settled event to the next that has it; nothing where it only stood in line."""
        key = receipt.event.key
        line = self._keys.get(key) if key is not None else None
        if line is None or key is None or line[0] is not receipt:
            return
        line.popleft()
        while line:
            if self._goes_on(line[0]):
                return
            line.popleft()
        del self._keys[key]

    def _goes_on(self, receipt: Receipt) -> bool:
        """Let the next in line have the key; False for one that has gone meanwhile."""
        if receipt.is_settled:  # dropped while it waited
            return False
        turn = self._turns.pop(receipt, None)
        if turn is None:
            self.ready.append(receipt)
        elif turn.cancelled():  # its dispatch was cancelled and has not run since
            return False
        else:
            turn.set_result(None)
        return True

    def pop_oldest(self) -> Receipt | None:
        """Return the oldest event that has not started, for it to be dropped; None when all have.

        It keeps its place in the line, where whoever meets it passes over it.
        """
        self._trim_age()
        return self._age.popleft() if self._age else None

    def depth(self) -> int:
        """Count what waits: for a worker, or for the event before it that has the same key."""
        return len(self.ready) + sum(len(line) - 1 for line in self._keys.values())

    def unstarted(self) -> list[Receipt]:
        """Return the events that no handler has seen."""
        lines: list[deque[Any]] = [self.ready, *self._keys.values()]
        receipts = dict.fromkeys(r for line in lines for r in line if isinstance(r, Receipt))
        return [receipt for receipt in receipts if not (receipt.begun or receipt.is_settled)]

    def forget_reruns(self) -> None:
        """Take out what is ready to be attempted once more."""
        events = [unit for unit in self.ready if not isinstance(unit, Rerun)]
        self.ready.clear()
        self.ready.extend(events)

    def _takes_key(self, receipt: Receipt, key: str) -> bool:
        line = self._keys.get(key)
        if line is None:
            self._keys[key] = deque([receipt])
            return True
        line.append(receipt)
        return False

    def _trim_age(self) -> None:
        while self._age and (self._age[0].begun or self._age[0].is_settled):
            self._age.popleft()
