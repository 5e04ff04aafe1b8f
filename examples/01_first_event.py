"""Decorate an async function, emit an event, and see who handled it.

Prints:
    hello alice, welcome back
    user.login was handled by: greet
"""

import aperion


class UserLogin(aperion.Payload, type="user.login"):
    """Somebody logged in; emitting anything but a username is refused."""

    username: str


bus = aperion.EventBus()


@bus.on(UserLogin, name="greet")
async def greet(event: aperion.Event[UserLogin]) -> None:
    """React to a login; ``event.payload`` is a ``UserLogin``."""
    print(f"hello {event.payload.username}, welcome back")


async def main() -> None:
    """Emit one event; ``emit`` returns once it is accepted, ``settled`` once it is handled."""
    receipt = await bus.emit(UserLogin(username="alice"))
    outcomes = await receipt.settled()
    print(f"{receipt.event.event_type} was handled by: {', '.join(outcomes)}")


if __name__ == "__main__":
    aperion.run(bus, main)  # starts the bus, runs main, drains, stops
