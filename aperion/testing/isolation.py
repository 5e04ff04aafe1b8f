"""Running one handler alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from aperion.bus import EventBus
from aperion.context import here_now
from aperion.events import Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Unpack

    from aperion.events import Payload
    from aperion.intake import EventDetails
    from aperion.router import M

R = TypeVar("R")


@overload
async def call(
    handler: Callable[[Event[M]], Awaitable[R]],
    event: M | Event[M],
    /,
    *,
    timeout: float | None = ...,
    **details: Unpack[EventDetails],
) -> R: ...
@overload
async def call(
    handler: Callable[[Event[M]], R],
    event: M | Event[M],
    /,
    *,
    timeout: float | None = ...,
    **details: Unpack[EventDetails],
) -> R: ...
@overload
async def call(
    handler: Callable[[Event[Any]], Awaitable[R]],
    event: str,
    payload: Mapping[str, Any],
    /,
    *,
    timeout: float | None = ...,
    **details: Unpack[EventDetails],
) -> R: ...
@overload
async def call(
    handler: Callable[[Event[Any]], R],
    event: str,
    payload: Mapping[str, Any],
    /,
    *,
    timeout: float | None = ...,
    **details: Unpack[EventDetails],
) -> R: ...
async def call(
    handler: Callable[[Event[Any]], Any],
    event: Event[Any] | Payload | str,
    payload: Mapping[str, Any] | None = None,
    /,
    *,
    timeout: float | None = 30.0,
    **details: Unpack[EventDetails],
) -> Any:
    """Run one handler as a bus would, and return what it returns.

    A sync handler runs in a worker thread, the timeout counts, and inside the handler
    ``current_event()`` and ``get_correlation_id()`` are those of the event. No other handler runs, nothing
    is attempted again, and nothing is kept. What the handler emits goes to the bus that it names, which has
    to run; ``fake`` keeps other handlers out of it.

    Args:
        handler: what to call.
        event: a payload model, an event type with a ``payload``, or an event as it is.
        payload: the payload where ``event`` is a type.
        timeout: seconds; None for no limit.
        details: what else to say of the event, see ``EventDetails``.

    Raises:
        HandlerTimeoutError: when the handler did not end in time.
        ValidationError: for an event that a bus would not accept.
        Exception: what the handler raises.
    """
    async with EventBus(handler_timeout=timeout, tracing=False, watchdog=False, drain_timeout=1.0) as alone:
        made = event if isinstance(event, Event) else alone._intake.event(event, payload, details, here_now())
        subscription = alone.subscribe(handler, made.event_type)
        flight = await alone._running("call").dispatch_slowly(made, None)
    outcome = flight.outcomes()[subscription.name]
    if outcome.error is not None:
        raise outcome.error
    return outcome.attempts[-1].returned
