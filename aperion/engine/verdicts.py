"""What follows from an attempt: decided here, in one function without effects, and done elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from aperion.errors import EngineError, NotDeliveredError, ThreadsExhaustedError
from aperion.outcomes import Attempt, FailureReason, OutcomeState

if TYPE_CHECKING:
    from aperion.subscriptions import Retry


@dataclass(frozen=True, slots=True)
class Done:
    """The delivery went well."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """The handler was not to run."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Another attempt follows, so many seconds from now."""

    wait: float


@dataclass(frozen=True, slots=True)
class Dead:
    """The delivery has failed for good."""

    reason: FailureReason


Verdict: TypeAlias = Done | Skipped | RetryAt | Dead
DONE, SKIPPED = Done(), Skipped()


def verdict_on(attempt: Attempt, *, wait: float | None) -> Verdict:
    """Decide what follows from an attempt.

    Args:
        attempt: how it ended.
        wait: the seconds after which its retry wants another one; None where it wants none, or where none
            begins any more.
    """
    if attempt.state is OutcomeState.OK:
        return DONE
    if attempt.state is OutcomeState.SKIPPED:
        return SKIPPED
    if wait is not None and not isinstance(attempt.error, NotDeliveredError):
        return RetryAt(wait)
    return Dead(reason_of(attempt))


def reason_of(attempt: Attempt) -> FailureReason:
    """Return why a delivery failed."""
    if isinstance(attempt.error, EngineError):
        return FailureReason.ENGINE_ERROR
    if isinstance(attempt.error, NotDeliveredError):
        return FailureReason.NOT_FINISHED
    if attempt.state is OutcomeState.TIMED_OUT:
        return FailureReason.HANDLER_TIMEOUT
    if isinstance(attempt.error, ThreadsExhaustedError):
        return FailureReason.THREADS_EXHAUSTED
    return FailureReason.HANDLER_ERROR


def wait_after(attempt: Attempt, retry: Retry | None) -> float | None:
    """Return the seconds after which a retry wants another attempt, or None; raises what its predicate raises."""
    if retry is None or attempt.error is None or not retry.wants(attempt.number, attempt.error):
        return None
    return retry.wait(attempt.number)
