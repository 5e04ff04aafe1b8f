"""Collecting handlers, and finding those that an event type goes to; pure bookkeeping."""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Never, Protocol, TypeAlias, TypedDict, TypeVar, overload
from weakref import WeakSet

from aperion._recent import Recent
from aperion.errors import ConfigurationError, HandlerError, check_options, positive, shown
from aperion.events import Event, Payload, known_event_types
from aperion.naming import RESERVED_DOMAIN, Naming
from aperion.patterns import STAR, PatternIndex, check_pattern, is_exact, overlap
from aperion.subscriptions import Filter, Handler, HandlerKind, Retry, Subscription

if TYPE_CHECKING:
    from typing import Unpack

M = TypeVar("M", bound=Payload)
R = TypeVar("R")
H = TypeVar("H", bound=Callable[..., Any])
Wanted: TypeAlias = str | type[Payload]

DEFAULT_PRIORITY = 100
_PLANS = 32_768  # event types whose plans are remembered


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
    ``durable``: whether the journal of the bus, if it has one, keeps deliveries for the next process; True by default.
    ``aliases``: names that it had before; what a journal has kept for them is delivered here.
    """

    name: str
    timeout: float
    retry: Retry
    where: Filter
    metadata: Mapping[str, Any]
    isolation: Literal["thread", "process"]
    durable: bool
    aliases: Iterable[str]


class Router:
    """Collects handlers; a bus, or another router, includes it.

    All methods are safe from any thread and at any time. A handler added after ``include`` reaches
    the including bus too.

    Examples:
        >>> router = Router()
        >>> @router.on("chat.*")
        ... async def greet(event): ...
        >>> [subscription.name for subscription in router.subscriptions]
        ['aperion.router.greet']
    """

    def __init__(self, *, naming: Naming | None = None) -> None:
        self._naming = naming or Naming()
        self._lock = threading.RLock()
        # All of these change under the lock. What was remembered is replaced, never emptied: a lookup under
        # way then writes its stale answer into an object that nobody reads any more.
        self._subscriptions: dict[Subscription, None] = {}
        self._by_name: dict[str, dict[str, list[Subscription]]] = {}  # by name, then by what their patterns begin with
        self._index: PatternIndex[Subscription] = PatternIndex()
        self._plans: Recent[tuple[Subscription, ...]] = Recent(_PLANS)
        self._parents: WeakSet[Router] = WeakSet()
        self._counted = 0
        self._open = 0

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The subscriptions, in the order in which they were made."""
        with self._lock:
            return tuple(self._subscriptions)

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
        """Subscribe the decorated handler, which is returned unchanged; see ``subscribe``.

        Raises:
            ConfigurationError: without parentheses, and for an option that makes no sense.
            PatternError: for a pattern that cannot match any event type.
        """
        if callable(event_types) and not isinstance(event_types, type):
            raise ConfigurationError(
                f"@on needs to know which events {handler_name(event_types)} wants; write @bus.on('user.*') "
                "or @bus.on(UserLogin)"
            )
        self._patterns(event_types)  # a mistake shows here, and not when the decorator is used
        check_options("on", options, SubscriptionOptions.__annotations__)

        def decorate(handler: H) -> H:
            self.subscribe(handler, event_types, priority, **options)
            return handler

        return decorate

    def subscribe(
        self,
        handler: Handler[Any],
        event_types: Wanted | Iterable[Wanted],
        priority: int = DEFAULT_PRIORITY,
        *wrong: Never,
        **options: Unpack[SubscriptionOptions],
    ) -> Subscription:
        """Deliver matching events to a handler from now on.

        A handler is an async function, or a sync one, which runs in a worker thread; it takes the
        event. An event that several patterns of one subscription match is delivered once.

        Args:
            handler: what to call.
            event_types: a pattern, a model, or a list of them.
            priority: higher runs earlier; equal ones run in the order in which they were made.
            wrong: nothing more is taken by position.
            options: see ``SubscriptionOptions``.

        Raises:
            HandlerError: for something that cannot be called with one event.
            PatternError: for a pattern that cannot match any event type.
            UnknownEventTypeError: for a type that no model has, where the naming policy minds.
            ConfigurationError: for an option that makes no sense, or a name that is taken.
        """
        if wrong:
            raise TypeError(
                "subscribe() takes a handler, event types and a priority by position, and the rest by name, such as metadata={...}"
            )
        check_options("subscribe", options, SubscriptionOptions.__annotations__)
        if not isinstance(priority, int) or isinstance(priority, bool):
            raise ConfigurationError(f"priority={priority!r} makes no sense; it is a whole number, higher runs earlier")
        subscription = _make(handler, self._patterns(event_types), priority, **options)
        with self._family():
            self._check_name(subscription)
            self._add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription | str) -> bool:
        """End a subscription, given itself or its name; return False when there is none such.

        Once this has returned, the handler is not started again; a run under way goes on. A name that several
        subscriptions of one function share ends all of them.
        """
        with self._lock:
            if isinstance(subscription, str):
                found = self.named(subscription)
            else:
                found = [subscription] if subscription in self._subscriptions else []
            for each in found:
                self._remove(each)
        for each in found:
            each.end()  # outside of the lock: its twins take those of their routers
        return bool(found)

    def include(self, router: Router) -> None:
        """Take over the subscriptions of a router, present and future.

        Raises:
            ConfigurationError: when it is included already, or includes this one.
        """
        if not isinstance(router, Router):
            raise ConfigurationError(f"include() takes a Router, not {shown(router)}")
        if router is self or self._is_above(router):
            raise ConfigurationError("a router cannot include itself, directly or through others")
        with router._family(), self._family():
            if self in router._parents:
                raise ConfigurationError("this router is included already; each event would be handled twice")
            for subscription in router._subscriptions:
                self._check_name(subscription)
            for subscription in router._subscriptions:
                self._add(subscription.copy())
            router._parents.add(self)

    def resolve(self, event_type: str) -> tuple[Subscription, ...]:
        """Return the open subscriptions that an event type goes to, in the order in which they run."""
        found = self._plans.get(event_type)
        return self._found(event_type) if found is None else found

    def named(self, name: str) -> list[Subscription]:
        """Return the subscriptions of a name: one, or those of a function that several kinds of events go to."""
        with self._lock:
            return list(dict.fromkeys(chain(*self._by_name.get(name, {}).values())))

    def once_named(self, name: str) -> list[Subscription]:
        """Return the subscriptions of a name, or else those that had it before."""
        with self._lock:
            return self.named(name) or [each for each in self._subscriptions if name in each.aliases]

    def _found(self, event_type: str) -> tuple[Subscription, ...]:
        with self._lock:
            matching = self._index.find(event_type)
            if len(matching) > 1:
                matching = sorted(set(matching), key=_place)
            found = tuple([subscription for subscription in matching if subscription.open])
            self._plans.put(event_type, found)
        return found

    def _forget(self) -> None:
        self._plans = Recent(_PLANS)

    @contextmanager
    def _family(self) -> Iterator[None]:
        """Hold the locks of this router and of all that include it, the outermost last."""
        with ExitStack() as locks:
            for router in self._upwards():
                locks.enter_context(router._lock)
            yield

    def _upwards(self) -> dict[Router, None]:
        found = {self: None}
        for parent in tuple(self._parents):
            found |= parent._upwards()
        return found

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

    def _check_name(self, subscription: Subscription) -> None:
        """Refuse a name that would leave open who is meant, here and in every router that includes this one.

        One function may have several subscriptions, as long as no event goes to two of them.
        """
        for router in self._upwards():
            for other in _namesakes(subscription, router._by_name.get(subscription.name, {})):
                if subscription.is_named or other.is_named or _meet(subscription, other):
                    raise ConfigurationError(
                        f"the name {subscription.name!r} is taken by the subscription to {', '.join(other.patterns)}; "
                        "pass another name="
                    )

    def _add(self, subscription: Subscription) -> None:
        """Take a subscription in, and a twin of it in each including router; its name was checked."""
        self._counted += 1
        subscription.belongs_to(self, self._counted)
        self._subscriptions[subscription] = None
        namesakes = self._by_name.setdefault(subscription.name, {})
        for begin in _begins(subscription):
            namesakes.setdefault(begin, []).append(subscription)
        for pattern in subscription.patterns:
            self._index.add(pattern, subscription)
        self._open += subscription.open
        self._forget()
        for parent in tuple(self._parents):
            parent._add(subscription.copy())

    def _remove(self, subscription: Subscription) -> None:
        del self._subscriptions[subscription]
        namesakes = self._by_name[subscription.name]
        for begin in _begins(subscription):
            namesakes[begin].remove(subscription)
            if not namesakes[begin]:
                del namesakes[begin]
        if not namesakes:
            del self._by_name[subscription.name]
        for pattern in subscription.patterns:
            self._index.remove(pattern, subscription)
        self._open -= subscription.open
        self._forget()

    def _opened_or_closed(self, subscription: Subscription, *, paused: bool) -> None:
        with self._lock:
            before = subscription.open
            subscription.set_paused(paused=paused)
            if subscription in self._subscriptions:
                self._open += subscription.open - before
            self._forget()

    def _is_above(self, router: Router) -> bool:
        return any(parent is router or parent._is_above(router) for parent in tuple(self._parents))


def _place(subscription: Subscription) -> tuple[int, int]:
    return -subscription.priority, subscription._order


def _begins(subscription: Subscription) -> set[str]:
    return {pattern.partition(".")[0] for pattern in subscription.patterns}


def _namesakes(subscription: Subscription, by_begin: dict[str, list[Subscription]]) -> Iterable[Subscription]:
    """Return those of one name that an event of a new subscription could go to; a function may have thousands."""
    begins = _begins(subscription)
    first = next(iter(by_begin.values()), [None])[0]
    if subscription.is_named or STAR in begins or (first is not None and first.is_named):
        return chain(*by_begin.values())
    return chain(*(by_begin.get(begin, ()) for begin in (*begins, STAR)))


def _meet(one: Subscription, other: Subscription) -> bool:
    return any(overlap(left, right) for left in one.patterns for right in other.patterns)


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
    durable: bool = True,
    aliases: Iterable[str] = (),
) -> Subscription:
    kind = _kind(handler, isolation)
    if timeout is not None:
        positive("timeout", timeout, infinite=True)
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigurationError(f"retry={shown(retry)} makes no sense; pass aperion.Retry(attempts=...)")
    if where is not None and not callable(where):
        raise ConfigurationError(f"where={shown(where)} cannot be called; pass a function of the event")
    if where is not None and inspect.iscoroutinefunction(_innermost(where)):
        raise ConfigurationError(
            f"where={shown(where)} is async, and its answer would always count as yes; pass a plain function, "
            "and let the handler decide what has to be awaited"
        )
    if not isinstance(durable, bool):
        raise ConfigurationError(f"durable={shown(durable)} makes no sense; pass True or False")
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ConfigurationError(f"name={shown(name)} makes no sense; pass a non-empty string")
    return Subscription(
        name=name or handler_name(handler),
        is_named=name is not None,
        patterns=patterns,
        handler=handler,
        kind=kind,
        priority=priority,
        timeout=math.nan if timeout is None else timeout,  # not a number: that of the bus which has it
        retry=retry,
        where=where,
        metadata=metadata,
        durable=durable,
        aliases=_names("aliases", aliases),
    )


def _names(option: str, names: Iterable[str]) -> tuple[str, ...]:
    found = () if isinstance(names, str) else tuple(names)
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in found):
        raise ConfigurationError(f"{option}={shown(names)} makes no sense; pass a list of names")
    return found


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
