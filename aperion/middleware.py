"""Middleware: wrapping what goes around every handler, and the one that ships."""

from __future__ import annotations

import functools
import inspect
from time import perf_counter
from typing import TYPE_CHECKING, Any

from aperion._logs import logger as _log
from aperion.errors import ConfigurationError, positive, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aperion.outcomes import Delivery
    from aperion.protocols import CallNext, Middleware


def compose(middlewares: Sequence[Middleware], handler: CallNext) -> CallNext:
    """Wrap a handler; the first middleware is the outermost. Without any, return the handler itself.

    Raises:
        ConfigurationError: for a middleware that is not async.
    """
    for middleware in reversed(middlewares):
        if not _is_async(middleware):
            raise ConfigurationError(
                f"the middleware {shown(middleware)} is not async, so it cannot await what it wraps; "
                "write it as 'async def name(delivery, call_next)', or give the object an async __call__"
            )
        handler = _linked(middleware, handler)
    return handler


def log_slow(threshold: float = 1.0) -> Middleware:
    """Return a middleware that logs a warning for each handler that took longer than ``threshold``.

    It sees handlers that fail or time out; the wait for a worker thread is not the handler's. The line
    names the event and the subscription and shows nothing of the payload.

    Args:
        threshold: seconds.

    Raises:
        ConfigurationError: for a threshold that is not a number of seconds above 0.
    """
    positive("threshold", threshold)

    async def timed(delivery: Delivery, call_next: CallNext) -> Any:
        started = perf_counter()
        try:
            return await call_next(delivery)
        finally:
            seconds = perf_counter() - started
            if seconds > threshold:
                _warn(delivery, seconds)

    return timed


def _warn(delivery: Delivery, seconds: float) -> None:
    _log.warning(
        "handler was slow",
        event_id=delivery.event.event_id,
        event_type=delivery.event.event_type,
        subscription=delivery.subscription.name,
        attempt=delivery.attempt,
        seconds=round(seconds, 6),
    )


def _linked(middleware: Middleware, call_next: CallNext) -> CallNext:
    return lambda delivery: middleware(delivery, call_next)


def _is_async(middleware: object) -> bool:
    # compose() may be called for each delivery, and this is how a function says it fastest.
    code = getattr(middleware, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_COROUTINE:
        return True
    while isinstance(middleware, functools.partial):
        middleware = middleware.func
    called = middleware if inspect.isroutine(middleware) else type(middleware).__call__
    return inspect.iscoroutinefunction(called)
