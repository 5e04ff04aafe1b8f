"""The shop of the tutorial, page 2: models, validation, patterns and priorities."""

from typing import Annotated, Any

from pydantic import Field

import aperion

bus = aperion.EventBus()


class OrderPlaced(aperion.Payload, type="order.placed"):
    """A customer placed an order."""

    order_id: str
    email: Annotated[str, aperion.Sensitive("email")]
    cents: int = Field(gt=0)


@bus.on("order.*", priority=200)
async def count(event: aperion.Event[Any]) -> None:
    """See every event of the domain ``order``; runs first."""
    print(f"count: {event.event_type}")


@bus.on(OrderPlaced)
async def send_mail(event: aperion.Event[OrderPlaced]) -> None:
    """Tell the customer; an editor knows the fields of ``event.payload``."""
    print(f"mail: thank you for order {event.payload.order_id}")


async def main() -> None:
    """Place a good order, then make two mistakes."""
    receipt = await bus.emit(OrderPlaced(order_id="o-1", email="ada@example.com", cents=4900))
    await receipt.settled()

    try:
        await bus.emit("order.placed", {"order_id": "o-2", "cents": -5})
    except aperion.PayloadError as error:
        print(f"refused: {error}")

    try:
        await bus.emit("order.plced", {"order_id": "o-3"})
    except aperion.UnknownEventTypeError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    aperion.run(bus, main)
