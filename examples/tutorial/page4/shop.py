"""The shop of the tutorial, page 4: the same service behind FastAPI, with an id for each request."""

from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field

import aperion
from aperion.integrations.fastapi import BusDep, CorrelationMiddleware, lifespan

bus = aperion.EventBus()
app = FastAPI(lifespan=lifespan(bus))
app.add_middleware(CorrelationMiddleware)


class OrderPlaced(aperion.Payload, type="order.placed"):
    """A customer placed an order."""

    order_id: str
    email: Annotated[str, aperion.Sensitive("email")]
    cents: int = Field(gt=0)


class MailSent(aperion.Payload, type="mail.sent"):
    """A customer was told."""

    order_id: str


@app.post("/orders", status_code=202)
async def place_order(order: OrderPlaced, bus: BusDep) -> dict[str, str]:
    """Accept an order; the handlers run after the response."""
    receipt = await bus.emit(order)
    return {"event_id": receipt.event_id}


@bus.on(OrderPlaced)
async def send_mail(event: aperion.Event[OrderPlaced]) -> None:
    """Tell the customer, and say that it was done."""
    await bus.emit(MailSent(order_id=event.payload.order_id))


@bus.on(["order.*", "mail.*"], priority=200)
async def trace(event: aperion.Event[Any]) -> None:
    """Print where each event comes from."""
    print(f"{event.event_type}: request {event.correlation_id}, hop {event.hops}")
