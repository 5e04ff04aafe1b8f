"""Listen to many types with one pattern, and decide who comes first.

Prints:
    order.created: security, mail, archive
    order.item.added: mail, archive
    chat.sent: archive
"""

from typing import Any

import aperion

bus = aperion.EventBus()
order: list[str] = []


@bus.on("*", priority=10, where=lambda event: not event.event_type.startswith("system."))
async def archive(event: aperion.Event[Any]) -> None:
    """See everything, but for what the bus says of itself; last, since the priority is the lowest."""
    order.append("archive")


@bus.on("order.*")
async def mail(event: aperion.Event[Any]) -> None:
    """See the whole domain, at any depth; the priority is 100 where none is given."""
    order.append("mail")


@bus.on(["order.created", "order.*.failed"], priority=200)
async def security(event: aperion.Event[Any]) -> None:
    """See one type, and what fails in orders; first, since the priority is the highest."""
    order.append("security")


async def main() -> None:
    """Emit three events, one after the other."""
    for event_type in ("order.created", "order.item.added", "chat.sent"):
        order.clear()
        receipt = await bus.emit(event_type, {})
        await receipt.settled()
        print(f"{event_type}: {', '.join(order)}")


if __name__ == "__main__":
    aperion.run(bus, main)
