"""The shop of the tutorial, page 5: the same service with an audit log."""

from typing import Annotated

from pydantic import Field

import aperion

bus = aperion.EventBus(audit=aperion.AuditLog("events.jsonl"))
stock = {"chair": 5}


class OrderPlaced(aperion.Payload, type="order.placed"):
    """A customer placed an order."""

    order_id: str
    email: Annotated[str, aperion.Sensitive("email")]
    cents: int = Field(gt=0)
    item: str


class MailSent(aperion.Payload, type="mail.sent"):
    """A customer was told."""

    order_id: str


@bus.on(OrderPlaced, name="reserve", priority=200)
async def reserve(event: aperion.Event[OrderPlaced]) -> None:
    """Take the item from stock."""
    stock[event.payload.item] -= 1


@bus.on(OrderPlaced, name="mail")
async def send_mail(event: aperion.Event[OrderPlaced]) -> None:
    """Tell the customer, and say that it was done."""
    await bus.emit(MailSent(order_id=event.payload.order_id))


async def main() -> None:
    """Place two orders; there is no lamp, so the second one fails."""
    for request, item in [("req-1", "chair"), ("req-2", "lamp")]:
        with aperion.CorrelationContext(request):
            await bus.emit(OrderPlaced(order_id=f"for-{request}", email="ada@example.com", cents=4900, item=item))


if __name__ == "__main__":
    aperion.run(bus, main)
