"""The shop of the tutorial, page 1: one event, one handler."""

from typing import Any

import aperion

bus = aperion.EventBus()


@bus.on("order.placed")
async def send_mail(event: aperion.Event[Any]) -> None:
    """Tell the customer."""
    print(f"mail: thank you for order {event.payload['order_id']}")


async def main() -> None:
    """Place one order."""
    receipt = await bus.emit("order.placed", {"order_id": "o-1"})
    print(f"accepted: {receipt.event.event_type}")
    outcomes = await receipt.settled()
    for name, outcome in outcomes.items():
        print(f"handled by {name}: {outcome.state.value}")


if __name__ == "__main__":
    aperion.run(bus, main)
