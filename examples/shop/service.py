"""The service: who reacts to which event. Some of it goes wrong, so that there is something to see.

Run it with ``aperion run examples.shop.service:app``, or send it the bundled events with
``aperion replay examples/shop/events.jsonl --app examples.shop.service:app``.
"""

import os
from collections import Counter
from typing import Any

import anyio.lowlevel

import aperion
from examples.shop.events import (
    ChatMessageSent,
    InvoiceCreated,
    OrderPaid,
    OrderPlaced,
    OrderShipped,
)

bus = aperion.EventBus(
    audit=aperion.AuditLog(os.environ.get("SHOP_AUDIT_LOG", "events-audit.jsonl")),
    metrics=aperion.InMemoryMetrics(),
)
app = aperion.App(bus)

seen: Counter[str] = Counter()  # events by domain
orders: Counter[str] = Counter()  # orders by what happened to them
words: Counter[str] = Counter()  # words by room

_CARD_LIMIT_CENTS = 100_000
_asked_for_stock: set[str] = set()


class PaymentDeclined(Exception):  # noqa: N818 - named after what the bank says
    """The bank does not pay."""


@bus.on("*", priority=10)
async def count(event: aperion.Event[Any]) -> None:
    """Count every event there is, those of the bus itself too; runs last, since its priority is the lowest."""
    seen[event.event_type.partition(".")[0]] += 1


@bus.on("order.*", priority=200)
async def follow_order(event: aperion.Event[Any]) -> None:
    """Keep track of all orders; runs first."""
    orders[event.event_type.removeprefix("order.")] += 1


@bus.on(OrderPlaced, retry=aperion.Retry(attempts=3, wait_initial=0.01, on=ConnectionError))
async def reserve_stock(event: aperion.Event[OrderPlaced]) -> None:
    """Ask the warehouse, which does not answer at once where a lamp is wanted: the second attempt succeeds."""
    if "lamp" in event.payload.items and event.event_id not in _asked_for_stock:
        _asked_for_stock.add(event.event_id)
        raise ConnectionError("the warehouse does not answer")
    _asked_for_stock.discard(event.event_id)


@bus.on(OrderPlaced)
async def write_invoice(event: aperion.Event[OrderPlaced]) -> None:
    """Cause another event; it has the same correlation id, and this one as its cause."""
    order = event.payload
    await bus.emit(InvoiceCreated(order_id=order.order_id, total_cents=order.total_cents))


@bus.on(OrderPaid)
async def charge_card(event: aperion.Event[OrderPaid]) -> None:
    """Fail for amounts that the bank does not pay: a dead letter, and nobody else is disturbed."""
    if event.payload.amount_cents > _CARD_LIMIT_CENTS:
        raise PaymentDeclined("the card is over its limit")


@bus.on(OrderPaid)
def print_receipt(event: aperion.Event[OrderPaid]) -> str:
    """Work in a thread: this function is not async."""
    euros, cents = divmod(event.payload.amount_cents, 100)
    return f"{event.payload.order_id}: EUR {euros}.{cents:02}"


@bus.on(OrderShipped, timeout=0.2)
async def tell_carrier(event: aperion.Event[OrderShipped]) -> None:
    """Take too long with one carrier, and be cancelled."""
    await anyio.sleep(60 if event.payload.carrier == "snail" else 0.001)


@bus.on("chat.*")
async def relay(event: aperion.Event[Any]) -> None:
    """Pass on everything in the chat, also the types that no model describes."""
    await anyio.lowlevel.checkpoint()


@bus.on(ChatMessageSent)
def count_words(event: aperion.Event[ChatMessageSent]) -> None:
    """Count in a thread."""
    words[event.payload.room] += len(event.payload.text.split())


@bus.on(ChatMessageSent, where=lambda event: "@support" in event.payload.text)
async def call_support(event: aperion.Event[ChatMessageSent]) -> None:
    """See only the messages that ask for it; the others are skipped."""
    await anyio.lowlevel.checkpoint()


@app.service
async def keep_time() -> None:
    """Run beside the bus, from start to end."""
    while True:
        await anyio.sleep(60)
        await bus.emit("shop.minute.passed", {"seen": sum(seen.values())})
