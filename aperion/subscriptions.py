"""Subscriptions: who wants which events, and how they are handled."""

from __future__ import annotations

import enum
import functools
import inspect
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

from aperion.errors import ConfigurationError, positive
from aperion.events import Event, P
from aperion.patterns import matches

Handler: TypeAlias = Callable[[Event[P]], Awaitable[Any]] | Callable[[Event[P]], Any]
Filter: TypeAlias = Callable[[Event[Any]], object]


class HandlerKind(enum.Enum):
    """Where a handler runs."""

    ASYNC = "async"
    THREAD = "thread"
    PROCESS = "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When and how often a failed delivery is attempted again: exponential back-off with jitter.

    The n-th wait is ``min(wait_max, wait_initial * 2 ** (n - 1))`` seconds, of which a random part of
    up to ``jitter`` is taken off, so that many failures do not come back at the same moment.

    Args:
        attempts: how often at most, the first included.
        wait_initial: seconds before the second attempt.
        wait_max: seconds that no wait exceeds.
        jitter: the part of each wait that is random, 0 to 1.
        on: the exceptions that are worth another attempt, or a function that decides. A timeout
            is a ``TimeoutError``. An exception group is worth one when every exception in it is.

    Raises:
        ConfigurationError: for numbers that make no sense.
    """

    attempts: int = 3
    wait_initial: float = 0.1
    wait_max: float = 30.0
    jitter: float = 0.5
    on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool] = Exception

    def __post_init__(self) -> None:
        """Check the numbers."""
        positive("Retry(attempts)", self.attempts, whole=True)
        if not 0 <= self.wait_initial <= self.wait_max < math.inf:
            raise ConfigurationError(
                f"Retry(wait_initial={self.wait_initial!r}, wait_max={self.wait_max!r}): "
                "both are seconds, and 0 <= wait_initial <= wait_max"
            )
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"Retry(jitter={self.jitter!r}): the random part of a wait lies between 0 and 1")

    def wants(self, attempt: int, error: BaseException) -> bool:
        """Tell whether another attempt follows the one with this number."""
        if attempt >= self.attempts:
            return False
        if not isinstance(self.on, type | tuple):
            return self.on(error)
        if isinstance(error, self.on) or not isinstance(error, BaseExceptionGroup):
            return isinstance(error, self.on)
        return error.split(self.on)[1] is None

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after the attempt with this number."""
        longest = min(self.wait_max, self.wait_initial * 2.0 ** min(attempt - 1, 64))
        return longest * (1 - self.jitter * random.random())  # noqa: S311 - spreads load, guards nothing


class Owner(Protocol):
    """The router that a subscription belongs to."""

    def _opened_or_closed(self, subscription: Subscription, *, paused: bool) -> None:
        """Pause or resume a subscription, under the lock of the router."""

    def unsubscribe(self, subscription: Subscription) -> bool:
        """End a subscription."""


class Subscription:
    """Who wants which events: pattern(s), a handler, a priority and options, under a stable name.

    ``pause()``, ``resume()`` and ``remove()`` are safe from any thread. Once ``pause()`` or ``remove()`` has
    returned, the handler is not started again; a run under way goes on.
    """

    # Mutable: whether it is paused or removed, and what follows from that, under the router's lock; what the bus
    # that has it sets when it starts.
    __slots__ = (
        *(
            "__weakref__",
            "_is_direct",
            "_order",
            "_owner",
            "_paused",
            "_removed",
            "_twins",
            "aliases",
            "direct",
            "durable",
            "handler",
            "is_named",
            "kind",
        ),
        *("metadata", "name", "open", "origin", "patterns", "priority", "retry", "run", "timeout", "where"),
    )

    def __init__(  # noqa: PLR0913 - one argument for each option of subscribe()
        self,
        *,
        name: str,
        patterns: tuple[str, ...],
        handler: Handler[Any],
        kind: HandlerKind,
        priority: int = 100,
        timeout: float = math.nan,
        retry: Retry | None = None,
        where: Filter | None = None,
        metadata: Mapping[str, Any] | None = None,
        origin: Subscription | None = None,
        is_named: bool = False,
        durable: bool = True,
        aliases: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.is_named = is_named  # by the user, and not for its function
        self.patterns = patterns
        self.handler = handler
        self.kind = kind
        self.priority = priority
        self.timeout = timeout
        self.retry = retry
        self.where = where
        self.metadata = dict(metadata or {})
        self.durable = durable  # whether the journal keeps its deliveries
        self.aliases = aliases  # names that it had, whose deliveries in a journal are its own
        self.origin = origin
        self.open = True
        self.run: Any = None  # what the bus puts around the handler; None calls it as it is
        self.direct: Any = None  # the handler, where nothing has to be done before it is called and awaited
        self._is_direct = kind is HandlerKind.ASYNC and _makes_coroutines(handler)
        self._paused = self._removed = False
        self._order = 0
        self._owner: Owner | None = None
        self._twins: WeakSet[Subscription] = WeakSet()
        self._prepare()

    def __repr__(self) -> str:
        """Show what routing depends on."""
        return f"<Subscription {self.name} to {', '.join(self.patterns)}, priority {self.priority}>"

    @property
    def paused(self) -> bool:
        """Whether ``pause()`` was called and ``resume()`` was not."""
        return self._paused

    @property
    def active(self) -> bool:
        """Whether new events are delivered: neither paused nor unsubscribed."""
        return self.open

    def matches(self, event_type: str) -> bool:
        """Tell whether events of a type are delivered here now."""
        return self.open and self.wants(event_type)

    def wants(self, event_type: str) -> bool:
        """Tell whether events of a type are delivered here while it is open."""
        return any(matches(pattern, event_type) for pattern in self.patterns)

    def pause(self) -> None:
        """Stop deliveries until ``resume()``; events emitted meanwhile are not delivered later."""
        self._pause(paused=True)

    def resume(self) -> None:
        """Deliver again what is emitted from now on."""
        self._pause(paused=False)

    def remove(self) -> None:
        """End the subscription for good, as ``unsubscribe`` does."""
        if self._owner is None or not self._owner.unsubscribe(self):
            self.end()

    def end(self) -> None:
        """Close it, and every twin of it; its router calls this."""
        self._removed = True
        self._prepare()
        for twin in tuple(self._twins):
            twin.remove()

    def copy(self) -> Subscription:
        """Return a twin for an including router: paused as this one is, and ended with it."""
        twin = Subscription(
            name=self.name,
            is_named=self.is_named,
            patterns=self.patterns,
            handler=self.handler,
            kind=self.kind,
            priority=self.priority,
            timeout=self.timeout,
            retry=self.retry,
            where=self.where,
            metadata=self.metadata,
            durable=self.durable,
            aliases=self.aliases,
            origin=self,
        )
        twin.set_paused(paused=self._paused)
        self._twins.add(twin)
        return twin

    def belongs_to(self, owner: Owner, order: int) -> None:
        """Take note of its router, and of its place among those of one priority."""
        self._owner, self._order = owner, order

    def runs_through(self, run: Any) -> None:
        """Have the handler run in something that the bus puts around it; None for the handler as it is."""
        self.run = run
        self._prepare()

    def set_paused(self, *, paused: bool) -> None:
        """Pause or resume it; its router calls this."""
        self._paused = paused
        self._prepare()

    def _pause(self, *, paused: bool) -> None:
        if self._owner is not None:
            self._owner._opened_or_closed(self, paused=paused)
        else:
            self.set_paused(paused=paused)
        for twin in tuple(self._twins):
            twin._pause(paused=paused)

    def _prepare(self) -> None:
        """Work out what every delivery asks: one attribute then tells that the handler can be called at once."""
        self.open = not (self._paused or self._removed)
        plain = self.open and self.where is None and self.run is None and self._is_direct
        self.direct = self.handler if plain else None


def _makes_coroutines(handler: Any) -> bool:
    """Tell whether a handler returns a coroutine of Python's own: what others return has to be awaited with care."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    target = handler if inspect.isroutine(handler) else type(handler).__call__
    code = getattr(getattr(target, "__func__", target), "__code__", None)
    return code is not None and bool(code.co_flags & inspect.CO_COROUTINE)
