"""The shop of the tutorial, page 6: the service that the tests run."""

from typing import Annotated

from pydantic import Field

import aperion

bus = aperion.EventBus()
app = aperion.App(bus)


class OrderPlaced(aperion.Payload, type="order.placed"):
    """A customer placed an order."""

    order_id: str
    email: Annotated[str, aperion.Sensitive("email")]
    cents: int = Field(gt=0)
    item: str


class MailSent(aperion.Payload, type="mail.sent"):
    """A customer was told."""

    order_id: str


class Warehouse:
    """What the shop needs from outside."""

    def __init__(self) -> None:
        """Start with five chairs, and with no outage ahead."""
        self.stock = {"chair": 5}
        self.outages = 0

    async def take(self, item: str) -> None:
        """Take an item from stock, unless there is an outage."""
        if self.outages:
            self.outages -= 1
            raise ConnectionError("the warehouse does not answer")
        self.stock[item] -= 1


warehouse = Warehouse()


@bus.on(OrderPlaced, name="reserve", retry=aperion.Retry(attempts=3, wait_initial=30, on=ConnectionError))
async def reserve(event: aperion.Event[OrderPlaced]) -> None:
    """Take the item from stock, and try again when the warehouse does not answer."""
    await warehouse.take(event.payload.item)


@bus.on(OrderPlaced, name="mail")
async def send_mail(event: aperion.Event[OrderPlaced]) -> None:
    """Tell the customer, and say that it was done."""
    await bus.emit(MailSent(order_id=event.payload.order_id))
