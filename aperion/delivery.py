"""Subscriptions, the deliveries to them, and how those end."""

from __future__ import annotations

import enum
import math
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from weakref import WeakSet

import anyio

from aperion._frozen import FrozenList
from aperion.context import current_event
from aperion.errors import ConfigurationError, DeliveryError
from aperion.events import Event, P
from aperion.patterns import matches

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

Handler: TypeAlias = Callable[[Event[P]], Awaitable[Any]] | Callable[[Event[P]], Any]
Filter: TypeAlias = Callable[[Event[Any]], object]


class OutcomeState(enum.Enum):
    """How a delivery, or one attempt of it, ended."""

    OK = "ok"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    SKIPPED = "skipped"


class FailureReason(enum.Enum):
    """Why something became a dead letter."""

    HANDLER_ERROR = "handler_error"
    HANDLER_TIMEOUT = "handler_timeout"
    ALL_HANDLERS_FAILED = "all_handlers_failed"
    VALIDATION_ERROR = "validation_error"
    SERIALIZATION_ERROR = "serialization_error"
    THREADS_EXHAUSTED = "threads_exhausted"
    NOT_FINISHED = "not_finished"


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
            is a ``TimeoutError``.

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
        if isinstance(self.on, type | tuple):
            return isinstance(error, self.on)
        return self.on(error)

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after the attempt with this number."""
        longest = min(self.wait_max, self.wait_initial * 2.0 ** min(attempt - 1, 64))
        return longest * (1 - self.jitter * random.random())  # noqa: S311 - spreads load, guards nothing


class Subscription:
    """Who wants which events: pattern(s), a handler, a priority and options, under a stable name.

    ``pause()`` and ``resume()`` are safe from any thread; a handler that runs goes on.
    """

    # Mutable: paused and removed (and open, which follows from them), changed under the router's lock.
    __slots__ = (
        *("__weakref__", "_changed", "_order", "_paused", "_removed", "_twins", "handler", "kind"),
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
    ) -> None:
        self.name = name
        self.patterns = patterns
        self.handler = handler
        self.kind = kind
        self.priority = priority
        self.timeout = timeout
        self.retry = retry
        self.where = where
        self.metadata = dict(metadata or {})
        self.origin = origin
        self.run: Any = None  # how the bus that has it runs the handler; None calls and awaits it as it is
        self.open = True
        self._paused = self._removed = False
        self._order = 0
        self._changed: Callable[[], None] | None = None
        self._twins: WeakSet[Subscription] = WeakSet()

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
        return self.open and any(matches(pattern, event_type) for pattern in self.patterns)

    def pause(self) -> None:
        """Stop deliveries until ``resume()``; events emitted meanwhile are not delivered later."""
        self._set(paused=True, removed=self._removed)

    def resume(self) -> None:
        """Deliver again."""
        self._set(paused=False, removed=self._removed)

    def remove(self) -> None:
        """End the subscription for good: the handler is not started again."""
        self._set(paused=self._paused, removed=True)

    def copy(self) -> Subscription:
        """Return a twin for an including router: paused as this one is, and ended with it."""
        twin = Subscription(
            name=self.name,
            patterns=self.patterns,
            handler=self.handler,
            kind=self.kind,
            priority=self.priority,
            timeout=self.timeout,
            retry=self.retry,
            where=self.where,
            metadata=self.metadata,
            origin=self,
        )
        twin._set(paused=self._paused, removed=self._removed)
        self._twins.add(twin)
        return twin

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever the subscription opens or closes."""
        self._changed = changed

    def _set(self, *, paused: bool, removed: bool) -> None:
        self._paused, self._removed = paused, removed
        self.open = not (paused or removed)
        if self._changed is not None:
            self._changed()
        for twin in tuple(self._twins):
            twin._set(paused=paused, removed=removed or twin._removed)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one subscription: what middleware gets."""

    event: Event[Any]
    subscription: Subscription
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a handler; ``duration`` in seconds.

    A handler should return nothing: what it ``returned`` reaches nobody. It stands here and, redacted, in
    the audit log, so that a forgotten ``emit`` is found; not what a handler in another process returns.
    """

    number: int
    state: OutcomeState
    duration: float
    error: BaseException | None = None
    returned: object = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the delivery of an event to one subscription ended, and every attempt at it."""

    subscription: str
    state: OutcomeState
    attempts: tuple[Attempt, ...] = ()

    @property
    def error(self) -> BaseException | None:
        """The error of the last attempt."""
        return self.attempts[-1].error if self.attempts else None

    @property
    def duration(self) -> float:
        """Seconds that the handler ran, all attempts together."""
        return sum(attempt.duration for attempt in self.attempts)

    @property
    def failed(self) -> bool:
        """Whether the delivery failed or timed out."""
        return self.state in _FAILURES


_FAILURES = frozenset({OutcomeState.FAILED, OutcomeState.TIMED_OUT})


class Outcomes(Mapping[str, Outcome]):
    """How an event ended: the outcome of each delivery by the name of its subscription."""

    # Mutable: the dict, made when it is first asked for.
    __slots__ = ("_made", "_plan", "_results", "dropped", "event")

    def __init__(
        self,
        event: Event[Any],
        plan: Sequence[Subscription],
        results: Sequence[float | Outcome],
        dropped: bool = False,  # noqa: FBT001, FBT002 - by position, since every dispatch makes one
    ) -> None:
        self.event = event
        self.dropped = dropped
        self._plan = plan
        self._results = results
        self._made: dict[str, Outcome] | None = None

    @property
    def _by_name(self) -> dict[str, Outcome]:
        if self._made is None:
            pairs = zip(self._plan, self._results, strict=False)
            self._made = {s.name: _as_outcome(s, result) for s, result in pairs}
        return self._made

    def __getitem__(self, name: str) -> Outcome:
        """Return the outcome of one subscription."""
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order the handlers ran."""
        return iter(self._by_name)

    def __len__(self) -> int:
        """Count the deliveries."""
        return len(self._by_name)

    def __repr__(self) -> str:
        """Show how each delivery ended."""
        states = ", ".join(f"{name}: {outcome.state.value}" for name, outcome in self._by_name.items())
        return f"<Outcomes of {self.event.event_type}: {'dropped' if self.dropped else states or 'no deliveries'}>"

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The deliveries that failed or timed out."""
        return tuple(outcome for outcome in self._by_name.values() if outcome.failed)

    @property
    def ok(self) -> bool:
        """Whether nothing failed and the event was not dropped."""
        return not self.dropped and not self.failures

    def raise_for_failures(self) -> None:
        """Raise when a delivery failed.

        Raises:
            DeliveryError: with the errors by subscription; the first is its cause.
        """
        failures = [(o.subscription, o.error) for o in self.failures if o.error is not None]
        if failures:
            raise DeliveryError(self.event.event_type, failures) from failures[0][1]


class Host(Protocol):
    """Where handlers run: what a receipt needs of the runtime."""

    def place_lent(self) -> AbstractContextManager[None]:
        """Let another event be handled while a handler waits, so that it does not wait for itself."""

    def lend_place(self) -> None:
        """Begin to do so."""

    def take_place_back(self) -> None:
        """End it."""

    def from_thread(self, callback: Callable[[], None]) -> None:
        """Call back on the loop, from another thread."""


class Run:
    """One pass over the handlers of an event, as the deadlines see it."""

    # Mutable, by the runtime alone: when the handler now running was started (seconds, monotonic),
    # how long it may take, the task it runs in once it has waited for something, the lane of the
    # deadlines that it stands in, and whether its time has run out.
    __slots__ = ("cancelling", "expired", "lane", "limit", "started", "task")

    def __init__(self) -> None:
        self.started = 0.0
        self.limit = math.inf
        self.task: Any = None
        self.cancelling = 0  # cancellations of that task which were under way before
        self.lane: dict[Run, float] | None = None
        self.expired = False


_NO_RESULTS: list[Any] = FrozenList()


class Receipt(Run):
    """What ``emit`` returns: the event, and a way to wait until it has settled."""

    # Mutable: all but the event, by the runtime, on the thread of its loop.
    __slots__ = (
        *("_callbacks", "_done", "_dropped", "begun", "event", "failures", "host", "passed", "plan"),
        *("results", "retrying", "system"),
    )

    def __init__(self, event: Event[Any]) -> None:
        self.event = event
        self._done = False
        self._dropped = False
        self._callbacks: list[Callable[[], None]] | None = None
        self.begun = False
        self.passed = False  # each handler was started once, or skipped
        self.failures = 0  # deliveries that failed for good
        self.system = False
        self.plan: Sequence[Subscription] = ()
        # Seconds where all went well at once, to save an object. A list only from the first handler
        # on: an empty one for each event that waits would take 56 bytes.
        self.results: list[float | Outcome] = _NO_RESULTS
        self.retrying = 0  # deliveries that wait for another attempt
        self.host: Host | None = None  # where a handler that waits for this event gives its place back
        # What Run.__init__ sets, without the cost of the call.
        self.started = 0.0
        self.limit = math.inf
        self.task = None
        self.cancelling = 0
        self.lane = None
        self.expired = False

    def __repr__(self) -> str:
        """Show the event and its state."""
        state = "dropped" if self._dropped else "settled" if self._done else "in flight"
        return f"<Receipt of {self.event.event_type} {self.event.event_id}: {state}>"

    @property
    def event_id(self) -> str:
        """The id of the event."""
        return self.event.event_id

    @property
    def dropped(self) -> bool:
        """Whether the event was dropped, by a full bus or by a processor."""
        return self._dropped

    @property
    def is_settled(self) -> bool:
        """Whether the last delivery has an outcome."""
        return self._done

    @property
    def outcomes(self) -> Outcomes | None:
        """The outcomes, or None while the event is in flight."""
        return self.outcomes_now() if self._done else None

    async def settled(self) -> Outcomes:
        """Wait until the event has settled, retries included; cancelling the wait changes nothing."""
        if not self._done:
            event = anyio.Event()
            self.on_settled(event.set)
            with self.host.place_lent() if self.host and current_event() else nullcontext():
                await event.wait()
        return self.outcomes_now()

    def settled_from_thread(self, timeout: float | None = None) -> Outcomes:
        """Do the same in a thread other than that of the bus's loop.

        Raises:
            TimeoutError: when the event is still in flight after ``timeout`` seconds.
        """
        if self._done or self.host is None:
            return self.outcomes_now()
        event = threading.Event()
        self.host.from_thread(lambda: event.set() if self._done else self.on_settled(event.set))
        if current_event() is not None:
            self.host.from_thread(self.host.lend_place)
        try:
            if not event.wait(timeout):
                raise TimeoutError(f"{self.event!r} has not settled within {timeout:g} s")
        finally:
            if current_event() is not None:
                self.host.from_thread(self.host.take_place_back)
        return self.outcomes_now()

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Call back once, on the thread of the loop, when the event settles."""
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)

    def settle(self, *, dropped: bool = False) -> None:
        """Tell all who wait; called once, by the runtime."""
        self._done = True
        self._dropped = dropped
        if self._callbacks is not None:
            for callback in self._callbacks:
                callback()

    def outcomes_now(self) -> Outcomes:
        """Return the outcomes there are."""
        return Outcomes(self.event, self.plan, self.results, self._dropped)


def _as_outcome(subscription: Subscription, result: float | Outcome) -> Outcome:
    if isinstance(result, Outcome):
        return result
    return Outcome(subscription.name, OutcomeState.OK, (Attempt(1, OutcomeState.OK, result),))


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class DeadLetter:
    """A delivery that failed for good, or an event that was not accepted.

    Args:
        letter_id: the id of the dead letter.
        event: the event as the handler got it, not redacted; ``to_dict`` of the queue redacts.
        subscription: the name of the subscription that failed; None for an event that was rejected,
            and for ``ALL_HANDLERS_FAILED``, which stands for the event as a whole.
        reason: what went wrong.
        error_type: the class of the last error.
        error: its text, redacted.
        traceback: its traceback, redacted, without locals.
        attempts: how often the handler was started, redrives included.
        first_failed_at: seconds since the epoch.
        failed_at: seconds since the epoch, of the last failure.
    """

    letter_id: str
    event: Event[Any]
    subscription: str | None
    reason: FailureReason
    error_type: str
    error: str
    traceback: str = field(default="", repr=False)
    attempts: int = 0
    first_failed_at: float
    failed_at: float


def positive(name: str, value: float, *, whole: bool = False, infinite: bool = False) -> None:
    """Check an option that has to be a number above zero.

    Raises:
        ConfigurationError: naming the option and its value.
    """
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number or not value > 0 or (math.isinf(value) and not infinite):
        kind = "a whole number" if whole else "a number of seconds"
        raise ConfigurationError(f"{name}={value!r} makes no sense; it is {kind} above 0")
