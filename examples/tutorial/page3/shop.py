"""The shop of the tutorial, page 3: failures, retries and dead letters."""

from typing import Annotated

from pydantic import Field

import aperion

bus = aperion.EventBus()
stock = {"chair": 5}
calls = 0


class OrderPlaced(aperion.Payload, type="order.placed"):
    """A customer placed an order."""

    order_id: str
    email: Annotated[str, aperion.Sensitive("email")]
    cents: int = Field(gt=0)
    item: str


@bus.on(OrderPlaced, name="reserve", retry=aperion.Retry(attempts=3, wait_initial=0.1, on=ConnectionError))
async def reserve(event: aperion.Event[OrderPlaced]) -> None:
    """Take the item from stock; the warehouse does not answer the first time."""
    global calls
    calls += 1
    print(f"reserve: attempt {calls} for {event.payload.item}")
    if calls == 1:
        raise ConnectionError("the warehouse does not answer")
    stock[event.payload.item] -= 1


@bus.on(OrderPlaced, name="mail", timeout=5)
async def send_mail(event: aperion.Event[OrderPlaced]) -> None:
    """Tell the customer; cancelled after five seconds."""
    print(f"mail: thank you for order {event.payload.order_id}")


async def main() -> None:
    """Place an order that works after a retry, and one that cannot work yet."""
    for number, item in enumerate(["chair", "lamp"], start=1):
        receipt = await bus.emit(OrderPlaced(order_id=f"o-{number}", email="ada@example.com", cents=4900, item=item))
        outcomes = await receipt.settled()
        print({name: outcome.state.value for name, outcome in outcomes.items()})

    (letter,) = bus.dead_letters.list()
    print(f"dead letter: {letter.subscription}, {letter.error_type}, {letter.attempts} attempt")

    stock["lamp"] = 3  # a delivery has come
    outcomes = await bus.redrive(letter.letter_id)
    print(f"redriven: {outcomes['reserve'].state.value}, {len(bus.dead_letters)} dead letters left")


if __name__ == "__main__":
    aperion.run(bus, main)
