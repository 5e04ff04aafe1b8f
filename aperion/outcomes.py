"""How deliveries end: attempts, outcomes, dead letters."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aperion.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aperion.events import Event
    from aperion.subscriptions import Subscription


class OutcomeState(enum.Enum):
    """How a delivery, or one attempt of it, ended."""

    OK = "ok"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
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
    ENGINE_ERROR = "engine_error"
    KILLED = "killed"
    SCHEMA = "schema"


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


class _Draft:
    """An attempt in the making: the same slots, so that ``__class__`` can change, and plain assignment."""

    __slots__ = ("duration", "error", "number", "returned", "state")


def went_well(number: int, duration: float, returned: object) -> Attempt:
    """Return an attempt without an error; in a fifth of the time of a call of the class."""
    draft: Any = _Draft()
    draft.number = number
    draft.state = _OK
    draft.duration = duration
    draft.error = None
    draft.returned = returned
    draft.__class__ = Attempt
    return draft  # type: ignore[no-any-return]  # a draft has become an attempt


_OK = OutcomeState.OK  # looking a member up costs 50 ns


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

    event: Event[Any]
    dropped: bool
    _plan: Sequence[Subscription]
    _results: Sequence[float | Outcome]
    _made: dict[str, Outcome] | None

    @property
    def _by_name(self) -> dict[str, Outcome]:
        if self._made is None:
            pairs = zip(self._plan, self._results, strict=False)
            self._made = {s.name: _as_outcome(s, result) for s, result in pairs}
        return self._made

    def __getitem__(self, name: str) -> Outcome:
        """Return the outcome of one subscription.

        Raises:
            KeyError: naming those that there are.
        """
        try:
            return self._by_name[name]
        except KeyError:
            there = ", ".join(self._by_name) or "none"
            raise KeyError(f"{self.event.event_type} had no delivery to {name!r}; deliveries: {there}") from None

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


def outcomes_of(
    event: Event[Any],
    plan: Sequence[Subscription],
    results: Sequence[float | Outcome],
    dropped: bool = False,  # noqa: FBT001, FBT002 - by position, since every dispatch makes one
) -> Outcomes:
    """Return the outcomes of an event; in less time than an ``__init__`` would take."""
    outcomes = Outcomes()
    outcomes.event = event
    outcomes.dropped = dropped
    outcomes._plan = plan
    outcomes._results = results
    outcomes._made = None
    return outcomes


def _as_outcome(subscription: Subscription, result: float | Outcome) -> Outcome:
    if isinstance(result, Outcome):
        return result
    return Outcome(subscription.name, OutcomeState.OK, (went_well(1, result, None),))


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
