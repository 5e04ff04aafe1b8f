"""Writes ``events.jsonl``: a morning in the shop, the same each time.

Run it with ``python examples/shop/generate.py``.
"""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("events.jsonl")
ORDERS = 90
MESSAGES = 150
OPENING = datetime(2024, 5, 2, 9, tzinfo=UTC)

_ITEMS = ("chair", "table", "shelf", "lamp", "carpet", "clock", "mirror", "desk")
_CUSTOMERS = ("ada", "grace", "alan", "edsger", "barbara", "donald", "frances", "tony")
_CARRIERS = ("swift", "swift", "parcel", "parcel", "parcel")
_TEXTS = (
    *("where is my parcel?", "thank you!", "@support the clock is late", "is the lamp in stock?"),
    *("the desk wobbles", "@support I was charged twice", "good morning", "how big is the carpet?"),
)
# The two lines that cannot be replayed, by their number: one is no JSON, one breaks its model.
_BAD = {
    137: '{"type": "chat.message.sent", "payload": {"room": "general", "author": "ada", "te',
    268: '{"type": "order.placed", "payload": {"order_id": "order-999", "customer": "ada", "items": []}}',
}


class Dice:
    """Chance that is the same in every version of Python: only ``random()`` is promised to be."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, limit: int) -> int:
        """Return a number from 0 to below the limit."""
        return int(self._random.random() * limit)

    def pick(self, choices: tuple[str, ...]) -> str:
        """Return one of them."""
        return choices[self.below(len(choices))]


def lines() -> Iterator[str]:
    """Return the lines of the file."""
    dice = Dice(2024)
    happened = [*_all_orders(dice), *_chat(dice)]
    happened.sort(key=lambda pair: pair[0])
    number = 0
    for second, event in happened:
        number += 1
        while number in _BAD:
            yield _BAD[number]
            number += 1
        yield json.dumps({**event, "id": f"shop-{number:04}", "time": _time(second, number)})


def _all_orders(dice: Dice) -> Iterator[tuple[int, dict[str, Any]]]:
    for number in range(1, ORDERS + 1):
        second = dice.below(3 * 3600)
        for event_type, payload in _order(number, dice):
            order = payload["order_id"]
            yield second, _event(event_type, payload, key=order, correlation_id=f"checkout-{number}", source="web")
            second += 30 + dice.below(600)


def _order(number: int, dice: Dice) -> Iterator[tuple[str, dict[str, Any]]]:
    order, customer = f"order-{number}", dice.pick(_CUSTOMERS)
    items = [dice.pick(_ITEMS) for _ in range(1 + dice.below(3))]
    cents = 120_000 if number % 18 == 0 else 1_000 + dice.below(80_000)
    email = f"{customer}@example.com"
    placed = {"order_id": order, "customer": customer, "email": email, "items": items, "total_cents": cents}
    yield "order.placed", placed
    if number % 10 == 3:
        yield "order.cancelled", {"order_id": order, "reason": "found it cheaper"}
        return
    yield "order.paid", {"order_id": order, "amount_cents": cents, "card_number": "4111 1111 1111 1111"}
    if cents < 100_000:
        carrier = "snail" if number % 20 == 7 else dice.pick(_CARRIERS)
        yield "order.shipped", {"order_id": order, "carrier": carrier}


def _chat(dice: Dice) -> Iterator[tuple[int, dict[str, Any]]]:
    for number in range(MESSAGES):
        room, author = dice.pick(("general", "returns", "lighting")), dice.pick(_CUSTOMERS)
        event_type, payload = "chat.message.sent", {"room": room, "author": author, "text": dice.pick(_TEXTS)}
        if number % 15 == 0:
            event_type, payload = "chat.room.joined", {"room": room, "author": author}
        yield dice.below(3 * 3600), _event(event_type, payload, key=f"room-{room}", source="chat")


def _event(event_type: str, payload: dict[str, Any], **envelope: str) -> dict[str, Any]:
    return {"type": event_type, "payload": payload, **envelope}


def _time(second: int, number: int) -> str | float:
    moment = OPENING + timedelta(seconds=second)
    # Both ways of writing a time are understood.
    return moment.timestamp() if number % 50 == 0 else moment.isoformat().replace("+00:00", "Z")


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8")
