"""Collecting handlers, and finding those that an event type goes to; pure bookkeeping."""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar, overload
from weakref import WeakSet

from aperion.delivery import Filter, Handler, HandlerKind, Retry, Subscription, positive
from aperion.errors import ConfigurationError, HandlerError, shown
from aperion.events import Event, Payload, known_event_types
from aperion.naming import RESERVED_DOMAIN, Naming
from aperion.patterns import PatternIndex, check_pattern, is_exact

if TYPE_CHECKING:
    from typing import Unpack

M = TypeVar("M", bound=Payload)
R = TypeVar("R")
H = TypeVar("H", bound=Callable[..., Any])
Wanted: TypeAlias = str | type[Payload]

DEFAULT_PRIORITY = 100
_CACHED_TYPES = 4096  # event types whose subscriptions are remembered; beyond, all are found anew


class OnPayload(Protocol[M]):
    """The decorator that ``on(Model)`` returns: it takes handlers of ``Event[Model]``."""

    def __call__(self, handler: Callable[[Event[M]], R], /) -> Callable[[Event[M]], R]:
        """Subscribe the handler and return it unchanged."""


class SubscriptionOptions(TypedDict, total=False):
    """The options of ``on`` and ``subscribe``, all by keyword.

    ``name``: the stable name; module and qualified name of the handler by default.
    ``timeout``: seconds; the bus's ``handler_timeout`` by default, ``math.inf`` for none.
    ``retry``: when to attempt a failed delivery again; never by default.
    ``where``: a filter; an event for which it returns something false is skipped.
    ``metadata``: kept on the subscription, not interpreted.
    ``isolation``: ``"thread"`` (default) or ``"process"``: where a sync handler runs.
    """

    name: str
    timeout: float
    retry: Retry
    where: Filter
    metadata: Mapping[str, Any]
    isolation: Literal["thread", "process"]


class Router:
    """Collects handlers; a bus, or another router, includes it.

    All methods are safe from any thread and at any time. A handler added after ``include`` reaches
    the including bus too.

    >>> router = Router()
    >>> @router.on("chat.*")
    ... async def greet(event): ...
    >>> [subscription.name for subscription in router.subscriptions]
    ['aperion.router.greet']
    """

    def __init__(self, *, naming: Naming | None = None) -> None:
        self._naming = naming or Naming()
        self._lock = threading.RLock()
        # Changed under the lock. The cache is replaced, never emptied: a lookup under way then
        # writes its stale answer into a dict that nobody reads any more.
        self._subscriptions: dict[str, Subscription] = {}
        self._index: PatternIndex[Subscription] = PatternIndex()
        self._cache: dict[str, tuple[Subscription, ...]] = {}
        self._parents: WeakSet[Router] = WeakSet()
        self._made = 0

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The subscriptions, in the order in which they were made."""
        with self._lock:
            return tuple(self._subscriptions.values())

    @overload
    def on(
        self, event_types: type[M], /, priority: int = ..., **options: Unpack[SubscriptionOptions]
    ) -> OnPayload[M]: ...
    @overload
    def on(
        self, event_types: str | Iterable[Wanted], /, priority: int = ..., **options: Unpack[SubscriptionOptions]
    ) -> Callable[[H], H]: ...
    def on(
        self,
        event_types: Wanted | Iterable[Wanted],
        /,
        priority: int = DEFAULT_PRIORITY,
        **options: Unpack[SubscriptionOptions],
    ) -> Callable[[H], H]:
        """Subscribe the decorated handler, which is returned unchanged; see ``subscribe``."""

        def decorate(handler: H) -> H:
            self.subscribe(handler, event_types, priority, **options)
            return handler

        return decorate

    def subscribe(
        self,
        handler: Handler[Any],
        event_types: Wanted | Iterable[Wanted],
        priority: int = DEFAULT_PRIORITY,
        **options: Unpack[SubscriptionOptions],
    ) -> Subscription:
        """Deliver matching events to a handler from now on.

        A handler is an async function, or a sync one, which runs in a worker thread; it takes the
        event. An event that several patterns of one subscription match is delivered once.

        Args:
            handler: what to call.
            event_types: a pattern, a model, or a list of them.
            priority: higher runs earlier; equal ones run in the order in which they were made.
            options: see ``SubscriptionOptions``.

        Raises:
            HandlerError: for something that cannot be called with one event.
            PatternError: for a pattern that cannot match any event type.
            UnknownEventTypeError: for a type that no model has, where the naming policy minds.
            ConfigurationError: for an option that makes no sense, or a name that is taken.
        """
        if not isinstance(priority, int) or isinstance(priority, bool):
            raise ConfigurationError(f"priority={priority!r} makes no sense; it is a whole number, higher runs earlier")
        subscription = _make(handler, self._patterns(event_types), priority, **options)
        with self._lock:
            self._add(subscription, named="name" in options)
            for parent in tuple(self._parents):
                parent._adopt(subscription, named="name" in options)
        return subscription

    def unsubscribe(self, subscription: Subscription | str) -> bool:
        """End a subscription, given itself or its name; return False when there is none such.

        Once this has returned, the handler is not started again; a run under way goes on.
        """
        name = subscription if isinstance(subscription, str) else subscription.name
        with self._lock:
            found = self._subscriptions.get(name)
            if found is None or not (isinstance(subscription, str) or found is subscription):
                return False
            self._remove(found)
            for parent in tuple(self._parents):
                parent._disown(found)
        return True

    def include(self, router: Router) -> None:
        """Take over the subscriptions of a router, present and future.

        Raises:
            ConfigurationError: when it is included already, or includes this one.
        """
        if not isinstance(router, Router):
            raise ConfigurationError(f"include() takes a Router, not {shown(router)}")
        if router is self or self._is_above(router):
            raise ConfigurationError("a router cannot include itself, directly or through others")
        with router._lock, self._lock:
            if self in router._parents:
                raise ConfigurationError("this router is included already; each event would be handled twice")
            for subscription in router._subscriptions.values():
                self._adopt(subscription, named=False)
            router._parents.add(self)

    def resolve(self, event_type: str) -> tuple[Subscription, ...]:
        """Return the open subscriptions that an event type goes to, in the order in which they run."""
        found = self._cache.get(event_type)
        return self._found(event_type) if found is None else found

    def _found(self, event_type: str) -> tuple[Subscription, ...]:
        with self._lock:
            matching = {s for s in self._index.find(event_type) if s.open}
            found = tuple(sorted(matching, key=lambda s: (-s.priority, s._order)))
            if len(self._cache) >= _CACHED_TYPES:
                self._forget()
            self._cache[event_type] = found
        return found

    def _forget(self) -> None:
        self._cache = {}

    def _patterns(self, event_types: Wanted | Iterable[Wanted]) -> tuple[str, ...]:
        one = isinstance(event_types, str | type) or not isinstance(event_types, Iterable)
        many: Iterable[object] = [event_types] if one else event_types  # type: ignore[assignment]
        patterns = tuple(dict.fromkeys(self._pattern(wanted) for wanted in many))
        if not patterns:
            raise ConfigurationError(
                "the list of event types is empty, so the handler would never run; name at least one"
            )
        return patterns

    def _pattern(self, wanted: object) -> str:
        if isinstance(wanted, type):
            return _type_of(wanted)
        pattern = check_pattern(wanted, any_name=not self._naming.enabled)
        if is_exact(pattern) and pattern.partition(".")[0] != RESERVED_DOMAIN:
            self._naming.check(pattern)
            self._naming.check_known(pattern, known_event_types())
        return pattern

    def _add(self, subscription: Subscription, *, named: bool) -> None:
        if named and subscription.name in self._subscriptions:
            raise ConfigurationError(f"the name {subscription.name!r} is taken by another subscription; choose another")
        subscription.name = self._free_name(subscription.name)
        self._made += 1
        subscription._order = self._made
        subscription.watch(self._forget)
        self._subscriptions[subscription.name] = subscription
        for pattern in subscription.patterns:
            self._index.add(pattern, subscription)
        self._forget()

    def _remove(self, subscription: Subscription) -> None:
        del self._subscriptions[subscription.name]
        for pattern in subscription.patterns:
            self._index.remove(pattern, subscription)
        subscription.remove()

    def _adopt(self, origin: Subscription, *, named: bool) -> None:
        with self._lock:
            twin = origin.copy()
            self._add(twin, named=named)
            for parent in tuple(self._parents):
                parent._adopt(twin, named=named)

    def _disown(self, origin: Subscription) -> None:
        with self._lock:
            for twin in [s for s in self._subscriptions.values() if s.origin is origin]:
                self._remove(twin)
                for parent in tuple(self._parents):
                    parent._disown(twin)

    def _is_above(self, router: Router) -> bool:
        return any(parent is router or parent._is_above(router) for parent in tuple(self._parents))

    def _free_name(self, name: str) -> str:
        if name not in self._subscriptions:
            return name
        number = 2
        while f"{name}#{number}" in self._subscriptions:
            number += 1
        return f"{name}#{number}"


def _make(  # noqa: PLR0913 - one argument for each option
    handler: Handler[Any],
    patterns: tuple[str, ...],
    priority: int,
    *,
    name: str | None = None,
    timeout: float | None = None,
    retry: Retry | None = None,
    where: Filter | None = None,
    metadata: Mapping[str, Any] | None = None,
    isolation: str = "thread",
) -> Subscription:
    kind = _kind(handler, isolation)
    if timeout is not None:
        positive("timeout", timeout, infinite=True)
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigurationError(f"retry={shown(retry)} makes no sense; pass aperion.Retry(attempts=...)")
    if where is not None and not callable(where):
        raise ConfigurationError(f"where={shown(where)} cannot be called; pass a function of the event")
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ConfigurationError(f"name={shown(name)} makes no sense; pass a non-empty string")
    return Subscription(
        name=name or handler_name(handler),
        patterns=patterns,
        handler=handler,
        kind=kind,
        priority=priority,
        timeout=math.nan if timeout is None else timeout,  # not a number: that of the bus which has it
        retry=retry,
        where=where,
        metadata=metadata,
    )


def handler_name(handler: object) -> str:
    """Return module and qualified name of a handler, or of its class."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    owner = handler if hasattr(handler, "__qualname__") else type(handler)
    bound_to = getattr(handler, "__self__", None)
    if inspect.ismethod(handler) and bound_to is not None and not isinstance(bound_to, type):
        return f"{type(bound_to).__module__}.{type(bound_to).__qualname__}.{handler.__name__}"
    return f"{owner.__module__}.{owner.__qualname__}"


def _kind(handler: object, isolation: str) -> HandlerKind:
    if not callable(handler) or isinstance(handler, type):
        raise HandlerError(f"{shown(handler)} is no handler; pass a function, a method or an object with __call__")
    _check_takes_one_event(handler)
    if isolation not in {"thread", "process"}:
        raise ConfigurationError(f"isolation={isolation!r} is not a choice; use 'thread' or 'process'")
    target = _innermost(handler)
    if inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target):
        raise HandlerError(
            f"{handler_name(handler)} is a generator, which would never run; write a plain or async function"
        )
    is_async = inspect.iscoroutinefunction(target)
    if isolation == "thread":
        return HandlerKind.ASYNC if is_async else HandlerKind.THREAD
    if is_async or "<" in handler_name(handler):
        raise HandlerError(
            f"{handler_name(handler)} cannot run in a process of its own; isolation='process' takes "
            "a sync function at the top level of a module"
        )
    return HandlerKind.PROCESS


def _innermost(handler: Any) -> Any:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler if inspect.isroutine(handler) else type(handler).__call__


def _check_takes_one_event(handler: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise HandlerError(
            f"{handler_name(handler)}{signature} cannot be called with one event ({error}); give it one parameter"
        ) from None


def _type_of(model: type) -> str:
    if not issubclass(model, Payload):
        raise ConfigurationError(f"{model.__qualname__} is no payload model; derive it from aperion.Payload")
    if not model.event_type:
        raise ConfigurationError(
            f"{model.__qualname__} has no event type; declare it as class {model.__name__}(Payload, type='domain.action')"
        )
    return model.event_type
