"""Write log lines that say what they belong to, and hold no secret.

Prints:
    info    login of [REDACTED_EMAIL]                api_key=[REDACTED]  correlation_id=req-42
    warning charged user.added                       card=[REDACTED_CC]  correlation_id=req-42
"""

import io
import json
import logging
from typing import Any

import structlog

import aperion
import aperion.logging

written = io.StringIO()  # to see them here; the default is standard error
aperion.logging.configure(stream=written, json=True)

log = structlog.get_logger("shop")
bus = aperion.EventBus()


@bus.on("user.added")
async def charge(event: aperion.Event[Any]) -> None:
    """The standard library's loggers go through the same chain."""
    logging.getLogger("billing").warning("charged %s", event.event_type, extra={"card": event.payload["card"]})


async def main() -> None:
    """Log around an event and inside its handler: both lines have the correlation id."""
    with aperion.CorrelationContext("req-42"):
        log.info("login of ada@example.com", api_key="k-123")
        receipt = await bus.emit("user.added", {"card": "4111 1111 1111 1111"})
    await receipt.settled()


if __name__ == "__main__":
    aperion.run(bus, main)
    for line in map(json.loads, written.getvalue().splitlines()):
        field = next(name for name in ("api_key", "card") if name in line)
        print(f"{line['level']:<7} {line['event']:<40} {field}={line[field]}  correlation_id={line['correlation_id']}")
