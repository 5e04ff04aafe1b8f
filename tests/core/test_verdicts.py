"""What follows from an attempt is decided in one function without effects."""

from __future__ import annotations

import pytest

import aperion
from aperion import Attempt, FailureReason, OutcomeState
from aperion.engine.verdicts import DONE, SKIPPED, Dead, RetryAt, verdict_on, wait_after
from aperion.errors import EngineError, HandlerTimeoutError, NotDeliveredError, ThreadsExhaustedError


def _failed(error: BaseException, state: OutcomeState = OutcomeState.FAILED) -> Attempt:
    return Attempt(1, state, 0.1, error)


def test_what_went_well_is_done_whatever_a_retry_would_want() -> None:
    assert verdict_on(Attempt(1, OutcomeState.OK, 0.1), wait=3.0) is DONE


def test_what_was_not_to_run_is_skipped() -> None:
    assert verdict_on(Attempt(1, OutcomeState.SKIPPED, 0.0), wait=None) is SKIPPED


def test_a_failure_with_a_wait_is_attempted_again_after_it() -> None:
    assert verdict_on(_failed(ValueError()), wait=0.25) == RetryAt(0.25)


def test_a_delivery_that_the_bus_gave_up_is_never_attempted_again() -> None:
    assert verdict_on(_failed(NotDeliveredError("drained")), wait=0.25) == Dead(FailureReason.NOT_FINISHED)


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        (_failed(ValueError()), FailureReason.HANDLER_ERROR),
        (_failed(SystemExit()), FailureReason.HANDLER_ERROR),
        (_failed(HandlerTimeoutError("h", 1.0), OutcomeState.TIMED_OUT), FailureReason.HANDLER_TIMEOUT),
        (_failed(TimeoutError("its own")), FailureReason.HANDLER_ERROR),
        (_failed(ThreadsExhaustedError(1, ["h"])), FailureReason.THREADS_EXHAUSTED),
        (_failed(EngineError("h", ZeroDivisionError())), FailureReason.ENGINE_ERROR),
    ],
    ids=["error", "exit", "timeout", "own timeout", "threads", "engine"],
)
def test_a_failure_for_good_has_the_reason_of_its_error(attempt: Attempt, reason: FailureReason) -> None:
    assert verdict_on(attempt, wait=None) == Dead(reason)


def test_a_retry_that_has_had_its_attempts_wants_none() -> None:
    retry = aperion.Retry(attempts=2, wait_initial=0.5, jitter=0)

    assert wait_after(Attempt(1, OutcomeState.FAILED, 0.1, ValueError()), retry) == 0.5
    assert wait_after(Attempt(2, OutcomeState.FAILED, 0.1, ValueError()), retry) is None
