"""Try again what fails, keep what fails for good, and deliver it once the cause is gone.

Prints:
    ship: ok after 3 attempts
    charge: failed
    dead letter: charge, handler_error, RuntimeError: the bank is closed
    redriven: charge ok
    dead letters left: 0
"""

from typing import Any

import aperion

bus = aperion.EventBus()
bank_is_open = False
calls = 0


@bus.on("order.placed", name="ship", retry=aperion.Retry(attempts=3, wait_initial=0.01, on=ConnectionError))
async def ship(event: aperion.Event[Any]) -> None:
    """Fail twice, in a way that passes."""
    global calls
    calls += 1
    if calls < 3:
        raise ConnectionError("the carrier does not answer")


@bus.on("order.placed", name="charge")
async def charge(event: aperion.Event[Any]) -> None:
    """Fail until somebody repairs it; nobody else is disturbed."""
    if not bank_is_open:
        raise RuntimeError("the bank is closed")


async def main() -> None:
    """Emit, look at the outcomes, repair, redrive."""
    global bank_is_open
    receipt = await bus.emit("order.placed", {"order_id": 7})
    outcomes = await receipt.settled()
    print(f"ship: {outcomes['ship'].state.value} after {len(outcomes['ship'].attempts)} attempts")
    print(f"charge: {outcomes['charge'].state.value}")
    for letter in bus.dead_letters.list():
        print(f"dead letter: {letter.subscription}, {letter.reason.value}, {letter.error_type}: {letter.error}")
        bank_is_open = True
        outcomes = await bus.redrive(letter.letter_id)  # to the handler that failed, and to no other
        print(f"redriven: {', '.join(f'{name} {outcome.state.value}' for name, outcome in outcomes.items())}")
    print(f"dead letters left: {len(bus.dead_letters.list())}")


if __name__ == "__main__":
    aperion.run(bus, main)
