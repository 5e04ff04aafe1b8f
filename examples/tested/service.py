"""A service that takes orders, asks a warehouse that is not always there, and sends mail."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aperion


class OrderPlaced(aperion.Payload, type="tested.order_placed"):
    """A customer ordered something."""

    order_id: str
    email: str


class OrderReserved(aperion.Payload, type="tested.order_reserved"):
    """The warehouse has it."""

    order_id: str


class MailSent(aperion.Payload, type="tested.mail_sent"):
    """A customer was told."""

    order_id: str


class Warehouse:
    """What the service needs from outside."""

    def __init__(self) -> None:
        """Start with nothing reserved, and with no outage ahead."""
        self.reserved: list[str] = []
        self.outages = 0
        self.is_open = False

    async def reserve(self, order_id: str) -> None:
        """Reserve an order, unless there is an outage."""
        if self.outages:
            self.outages -= 1
            raise ConnectionError("the warehouse does not answer")
        if order_id not in self.reserved:
            self.reserved.append(order_id)


warehouse = Warehouse()
bus = aperion.EventBus()


@asynccontextmanager
async def lifespan(_: aperion.App) -> AsyncIterator[None]:
    """Open the warehouse as long as the application runs."""
    warehouse.is_open = True
    yield
    warehouse.is_open = False


app = aperion.App(bus, lifespan=lifespan)


@bus.on(OrderPlaced, retry=aperion.Retry(attempts=5, wait_initial=10, on=ConnectionError))
async def reserve(event: aperion.Event[OrderPlaced]) -> None:
    """Reserve the goods; try again for some minutes when the warehouse does not answer."""
    await warehouse.reserve(event.payload.order_id)
    await bus.emit(OrderReserved(order_id=event.payload.order_id))


@bus.on(OrderReserved)
def send_mail(event: aperion.Event[OrderReserved]) -> str:
    """Send a mail, in a thread."""
    bus.emit_from_thread(MailSent(order_id=event.payload.order_id))
    return f"Your order {event.payload.order_id} is on its way ({event.correlation_id})"


async def place_order(order_id: str, email: str) -> aperion.Receipt:
    """Take an order."""
    return await bus.emit(OrderPlaced(order_id=order_id, email=email))
