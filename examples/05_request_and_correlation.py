"""Follow one request through all the events it causes, those of handlers included.

Prints:
    order.placed    req-42  hop 0, caused by nothing
    invoice.created req-42  hop 1, caused by order.placed
    mail.sent       req-42  hop 2, caused by invoice.created
    outside: no correlation id
"""

from typing import Any

import aperion

bus = aperion.EventBus()
types: dict[str, str] = {}  # event types by event id


@bus.on(["order.*", "invoice.*", "mail.*"], priority=200)
async def trace(event: aperion.Event[Any]) -> None:
    """Print the line from each event to its cause."""
    types[event.event_id] = event.event_type
    cause = types[event.causation_id] if event.causation_id else "nothing"
    print(f"{event.event_type:<15} {event.correlation_id}  hop {event.hops}, caused by {cause}")


@bus.on("order.placed")
async def write_invoice(event: aperion.Event[Any]) -> None:
    """Emit from a handler: the new event belongs to the same request."""
    await bus.emit("invoice.created", {"order_id": event.payload["order_id"]})


@bus.on("invoice.created")
def send_mail(event: aperion.Event[Any]) -> None:
    """Emit from a handler in a thread: there is a way for that, and it belongs to the request too."""
    assert aperion.get_correlation_id() == event.correlation_id
    bus.emit_from_thread("mail.sent", {"to": "alice@example.com"})


async def main() -> None:
    """Do what a web framework does for each request: open a context with its id."""
    with aperion.CorrelationContext("req-42"):
        await bus.emit("order.placed", {"order_id": 7})
    report = await bus.drain()  # until everything has settled, children included
    assert report.ok
    print(f"outside: {aperion.get_correlation_id() or 'no correlation id'}")


if __name__ == "__main__":
    aperion.run(bus, main)
