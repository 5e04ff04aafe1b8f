"""Litestar: the bus and the outbox for handlers, beside the lifespan and the middleware.

>>> from litestar import Litestar, post
>>> from litestar.di import Provide
>>> bus = EventBus()
>>> @post("/orders")
... async def order(bus: BusDep) -> None:
...     await bus.emit("order.placed", {"number": 1})
>>> app = Litestar(
...     [order],
...     lifespan=[lifespan(bus)],
...     middleware=[CorrelationMiddleware],
...     dependencies={"bus": Provide(provide_bus)},
... )
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from aperion.bus import EventBus
from aperion.integrations.asgi import CorrelationMiddleware, bus_of, lifespan
from aperion.integrations.outbox import OutboxMiddleware, outbox_of
from aperion.integrations.sse import ServerSentEvents
from aperion.integrations.status import StatusApp
from aperion.outbox import Outbox

try:
    from litestar.types import Scope  # noqa: TC002 - Litestar reads the annotation
except ImportError as error:
    raise ImportError(
        "aperion.integrations.litestar needs Litestar, which cannot be imported; "
        'run: pip install "aperion-bus[litestar]"'
    ) from error

__all__ = [
    "BusDep",
    "CorrelationMiddleware",
    "OutboxDep",
    "OutboxMiddleware",
    "ServerSentEvents",
    "StatusApp",
    "lifespan",
    "provide_bus",
    "provide_outbox",
]


async def provide_bus(scope: Scope) -> EventBus:
    """Return the bus of the application that a request or a websocket came to, for ``Provide(provide_bus)``.

    Raises:
        BusNotRunningError: when the application was made or started without ``lifespan``.
    """
    return bus_of(scope)


async def provide_outbox(scope: Scope) -> Outbox:
    """Return the outbox of a request, for ``Provide(provide_outbox)``; see ``OutboxMiddleware``.

    Raises:
        BusNotRunningError: when no bus runs in this application.
        ConfigurationError: without ``OutboxMiddleware``, once the response has begun, and for a websocket.
    """
    return await outbox_of(scope)


def _named(kind: type) -> Any:
    """Mark a type as that of a dependency, as Litestar wants it from 2.23 on."""
    try:
        from litestar.di import NamedDependency
    except ImportError:
        return kind
    marked: Any = NamedDependency
    return marked[kind]


if TYPE_CHECKING:
    BusDep: TypeAlias = EventBus
    OutboxDep: TypeAlias = Outbox
else:
    BusDep = _named(EventBus)
    OutboxDep = _named(Outbox)
