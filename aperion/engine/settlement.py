"""Settlement: every unit of work ends here, once, whatever was raised and by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aperion._logs import logger as _log
from aperion.deadletters import letter_from
from aperion.engine.verdicts import Dead, RetryAt, Verdict, reason_of, verdict_on, wait_after
from aperion.errors import EngineError, NotDeliveredError, SerializationError
from aperion.outcomes import Attempt, DeadLetter, FailureReason, Outcome, OutcomeState

if TYPE_CHECKING:
    from collections.abc import Callable

    from aperion.deadletters import DeadLetterQueue
    from aperion.engine.due import Due
    from aperion.engine.facts import Facts
    from aperion.engine.flight import Flight, Rerun, Unit
    from aperion.engine.kept import Keeps, Later
    from aperion.engine.ledger import Counters, Ledger
    from aperion.engine.queue import Queue
    from aperion.events import Event
    from aperion.redaction import Redactor
    from aperion.subscriptions import Subscription


class Settlement:
    """What becomes of deliveries and events that have ended, in one run of a bus."""

    # Mutable: whether retries begin, by the engine; and what it calls, which is made after it.
    __slots__ = (
        *("_counters", "_facts", "_keeping", "_ledger", "_letters", "_queue", "_redactor", "_system", "_wake"),
        *("due", "retries"),
    )

    due: Due

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that it settles with
        self,
        ledger: Ledger,
        system: Ledger,
        counters: Counters,
        queue: Queue,
        facts: Facts,
        letters: DeadLetterQueue,
        redactor: Redactor,
        wake: Callable[[], None],
        keeping: Keeps | None = None,
    ) -> None:
        self._ledger = ledger
        self._system = system
        self._counters = counters
        self._queue = queue
        self._facts = facts
        self._letters = letters
        self._redactor = redactor
        self._wake = wake
        self._keeping = keeping
        self.retries = True

    # Events

    def settle(self, flight: Flight) -> None:
        """Give back what an event held, and tell who waits for it. Happens once an event."""
        if flight.settled:
            return
        flight.settled = True
        ledger, counters = self._ledger, self._counters
        counters.deliveries += len(flight.results)
        if flight.failures:
            counters.failures += flight.failures
            self._tell_if_all_failed(flight)
        if self._keeping is not None:
            self._keeping.settled(flight)
        if flight.system:
            ledger = self._system
        ledger.settled += 1
        ledger.pending -= 1
        if flight.waiters is not None:
            self._tell_waiters(flight)
        if flight.event.key is not None:
            self._release_key(flight)
        if ledger.line or ledger.quiet:
            ledger.tell()
        if self._facts.pending is not None:
            self._facts.pending(self._ledger.pending)

    def drop(self, flight: Flight, policy: str, *, queued: bool) -> None:
        """Drop an event that was accepted and has not begun, visibly."""
        flight.settled = flight.dropped = True
        if queued:
            self._queue.drop(flight)
            if self._queue.ready:
                self._wake()
        if self._keeping is not None:
            self._keeping.settled(flight)
        self._counters.dropped += 1
        self._ledger.dropped += 1
        self._ledger.pending -= 1
        if flight.waiters is not None:
            self._tell_waiters(flight)
        if self._facts.dropped is not None:
            self._facts.dropped(flight.event, policy)
        self._ledger.tell()
        if self._facts.pending is not None:
            self._facts.pending(self._ledger.pending)

    def give_up(self, flight: Flight, why: str) -> None:
        """End every delivery of an event that has no outcome yet, as failed, and settle it unless it is retried."""
        if flight.settled:
            return
        flight.results = list(flight.results)
        for subscription in flight.plan[len(flight.results) :]:
            self._failed_for_good(flight, subscription, NotDeliveredError(why))
        flight.passed = True
        if not flight.retrying:
            self.settle(flight)

    def broke(self, unit: Unit, error: BaseException) -> None:
        """Settle what a fault of the engine itself has left, and say so; never raises."""
        flight = unit.flight
        self._counters.engine_errors += 1
        try:
            if isinstance(error, KeyboardInterrupt) and self._facts.interrupt is not None:
                self._facts.interrupt(error)
            self._tell_of_fault(flight, error)
            if unit is not flight:
                self._rerun_broke(unit, error)  # type: ignore[arg-type]  # what is no flight is a rerun
            elif not flight.settled:
                flight.results = list(flight.results)
                for subscription in flight.plan[len(flight.results) :]:
                    self._failed_for_good(flight, subscription, EngineError(subscription.name, error))
                flight.passed = True
                if not flight.retrying:
                    self.settle(flight)
        except BaseException:  # noqa: BLE001 - whatever it is, the event must not stay in flight
            flight.failures = 0
            self.settle(flight)

    def _tell_of_fault(self, flight: Flight, error: BaseException) -> None:
        _log.critical(
            "the engine failed",
            event_id=flight.event.event_id,
            event_type=flight.event.event_type,
            error_type=type(error).__name__,
            error=self._text(error),
        )

    def left_behind(self, unit: Unit) -> None:
        """Settle a unit whose handler does not end although it was cancelled."""
        flight = unit.flight
        if flight.settled:
            return
        running = len(flight.results)
        if unit is not flight:
            self.failed(unit, unit.index, unit.subscription, _ignored(unit.subscription, unit.number))  # type: ignore[attr-defined]  # a rerun
            self.rerun_ended(unit)  # type: ignore[arg-type]
        elif running < len(flight.plan):
            subscription = flight.plan[running]
            self.failed(unit, running, subscription, _ignored(subscription, 1))
            self.give_up(flight, f"the handlers of {flight.event.event_type} were cancelled before this one ran")

    # Deliveries

    def skipped(self, unit: Unit, index: int, subscription: Subscription) -> None:
        """Take note of a delivery that was not to be made."""
        if self._keeping is not None and (later := self._keeping.resumed(unit.flight, index)) is not None:
            self._resume(unit.flight, index, later)
            return
        _put(unit.flight, index, Outcome(subscription.name, OutcomeState.SKIPPED, _earlier(unit.flight, index)))

    def failed(self, unit: Unit, index: int, subscription: Subscription, attempt: Attempt) -> None:
        """Take note of a failed attempt, and do what follows from it."""
        flight, facts = unit.flight, self._facts
        _put(flight, index, Outcome(subscription.name, attempt.state, (*_earlier(flight, index), attempt)))
        if facts.ended is not None:
            facts.ended(flight.event, subscription, attempt)
        letter: DeadLetter | None = getattr(unit, "letter", None)
        may_retry = (self.retries or self._keeping is not None) and letter is None
        verdict: Verdict = verdict_on(attempt, wait=self._wait_after(attempt, subscription) if may_retry else None)
        if isinstance(verdict, RetryAt) and self._retry(unit, index, subscription, attempt, verdict.wait):
            return
        if isinstance(verdict, RetryAt):
            verdict = Dead(reason_of(attempt))
        if isinstance(verdict, Dead):
            flight.failures += self._bury(flight.event, subscription, attempt, verdict.reason, letter)

    def _wait_after(self, attempt: Attempt, subscription: Subscription) -> float | None:
        try:
            return wait_after(attempt, subscription.retry)
        except BaseException as error:  # noqa: BLE001 - a predicate of the user's: no answer, and so no
            self._facts.fault("Retry.on", error)
            return None

    def went_well(self, rerun: Rerun, attempt: Attempt) -> None:
        """Take note of an attempt that went well after one that had not."""
        flight, subscription = rerun.flight, rerun.subscription
        _put(flight, rerun.index, Outcome(subscription.name, attempt.state, (*_earlier(flight, rerun.index), attempt)))
        if self._facts.ended is not None:
            self._facts.ended(flight.event, subscription, attempt)

    def rerun_ended(self, rerun: Rerun) -> None:
        """Take note that one more attempt was made, or never will be; the event settles with its last one."""
        flight = rerun.flight
        flight.retrying -= 1
        if flight.passed and not flight.retrying:
            self.settle(flight)

    def will_not_retry(self, rerun: Rerun) -> None:
        """Make the outcome of the last attempt final."""
        flight = rerun.flight
        outcome = flight.results[rerun.index]
        is_left = (
            not self.retries and self._keeping is not None and self._keeping.leave(flight.event, rerun.subscription)
        )
        if isinstance(outcome, Outcome) and not is_left:
            attempt = outcome.attempts[-1]
            flight.failures += self._bury(flight.event, rerun.subscription, attempt, reason_of(attempt), None)
        self.rerun_ended(rerun)

    def _retry(self, unit: Unit, index: int, subscription: Subscription, attempt: Attempt, wait: float) -> bool:
        """Have a delivery attempted again, in this life or the next; tell whether it will be."""
        from aperion.engine.flight import Rerun

        flight, keeping = unit.flight, self._keeping
        is_kept = keeping is not None and keeping.retry(
            flight.event, subscription, attempt.number, wait, here=self.retries
        )
        if not self.retries:
            return is_kept
        self._counters.retries += 1
        flight.retrying += 1
        job, unit.job = unit.job, None
        longest = subscription.retry.wait_max if subscription.retry is not None else wait
        self.due.retry(Rerun(flight, index, subscription, attempt.number + 1), wait, longest, job)
        if self._facts.retried is not None:
            self._facts.retried(flight.event, subscription, attempt)
        return True

    def _resume(self, flight: Flight, index: int, later: Later) -> None:
        """Have a delivery attempted again that an earlier life has attempted, once its time has come."""
        from aperion.engine.flight import Rerun

        attempt = Attempt(
            later.attempts, OutcomeState.FAILED, 0.0, NotDeliveredError("the process ended before its retry")
        )
        _put(flight, index, Outcome(later.subscription.name, OutcomeState.FAILED, (attempt,)))
        flight.retrying += 1
        self.due.retry(Rerun(flight, index, later.subscription, later.attempts + 1), later.wait, later.wait, None)

    def _rerun_broke(self, rerun: Rerun, error: BaseException) -> None:
        if rerun.flight.settled:
            return
        attempt = Attempt(rerun.number, OutcomeState.FAILED, 0.0, EngineError(rerun.subscription.name, error))
        retries, self.retries = self.retries, False
        try:
            self.failed(rerun, rerun.index, rerun.subscription, attempt)
        finally:
            self.retries = retries
            self.rerun_ended(rerun)

    def _failed_for_good(self, flight: Flight, subscription: Subscription, error: Exception) -> None:
        attempt = Attempt(0, OutcomeState.FAILED, 0.0, error)
        flight.results.append(Outcome(subscription.name, OutcomeState.FAILED, (attempt,)))
        flight.failures += self._bury(flight.event, subscription, attempt, reason_of(attempt), None)

    # Dead letters

    def rejected(self, event: Event[Any], error: Exception) -> None:
        """Leave a letter for an event that was refused."""
        is_serialization = isinstance(error, SerializationError)
        reason = FailureReason.SERIALIZATION_ERROR if is_serialization else FailureReason.VALIDATION_ERROR
        if self._facts.rejected is not None:
            self._facts.rejected(event, reason, self._text(error))
        self._leave(letter_from(event, None, reason, error, 0, self._redactor), None)

    def lost(self, event: Event[Any], name: str, reason: FailureReason, error: Exception, attempts: int) -> None:
        """Leave a letter for a delivery that an earlier life has begun, and that this one cannot make."""
        self._counters.failures += 1
        self._leave(letter_from(event, name, reason, error, attempts, self._redactor), None)

    def redriven(self, letter: DeadLetter) -> None:
        """Take out a letter that was delivered after all."""
        self._counters.redriven += 1
        self._remove(letter)
        if self._facts.redriven is not None:
            self._facts.redriven(letter)

    def _bury(
        self,
        event: Event[Any],
        subscription: Subscription,
        attempt: Attempt,
        reason: FailureReason,
        before: DeadLetter | None,
    ) -> bool:
        """Leave a letter for a delivery; False for one that was not finished, and is left to the next life instead."""
        if attempt.error is None:
            return True
        keeping = self._keeping if before is None else None
        is_unfinished = isinstance(attempt.error, NotDeliveredError) and not self.retries
        if keeping is not None and is_unfinished and keeping.leave(event, subscription):
            return False
        letter = letter_from(
            event, subscription.name, reason, attempt.error, attempt.number, self._redactor, before=before
        )
        self._leave(letter, attempt, again=before is not None)
        if keeping is not None:
            keeping.over(event, subscription)
        return True

    def _tell_if_all_failed(self, flight: Flight) -> None:
        failed = [result for result in flight.results if isinstance(result, Outcome) and result.failed]
        if flight.failures < len(failed) or len(failed) < 2 or len(failed) < len(flight.results):
            return
        error = RuntimeError(f"all {len(failed)} handlers failed: {', '.join(each.subscription for each in failed)}")
        attempts = max(len(outcome.attempts) for outcome in failed)
        reason = FailureReason.ALL_HANDLERS_FAILED
        self._leave(letter_from(flight.event, None, reason, error, attempts, self._redactor), None)

    def _leave(self, letter: DeadLetter, attempt: Attempt | None, *, again: bool = False) -> None:
        """Put a letter into the store, whatever that does, and tell of it."""
        try:
            self._letters.put(letter, self._redactor)
        except BaseException as error:  # noqa: BLE001 - a store of the user's
            self._counters.letters_lost += 1
            self._facts.fault("DeadLetterStore.put", error)
            self._tell_of_loss(letter, error)
        if self._facts.dead is not None:
            self._facts.dead(letter, attempt, again=again)

    def _tell_of_loss(self, letter: DeadLetter, error: BaseException) -> None:
        try:
            _log.critical(
                "a dead letter could not be kept",
                event_id=letter.event.event_id,
                event_type=letter.event.event_type,
                subscription=letter.subscription,
                reason=letter.reason.value,
                error_type=type(error).__name__,
            )
        except KeyboardInterrupt as interrupt:  # what else a log raises stays there
            self._facts.fault("log", interrupt)

    def _remove(self, letter: DeadLetter) -> None:
        try:
            self._letters.remove(letter.letter_id)
        except BaseException as error:  # noqa: BLE001 - a store of the user's
            self._facts.fault("DeadLetterStore.pop", error)

    def _text(self, error: BaseException) -> str:
        try:
            return self._redactor.redact_exception(error)[0]
        except BaseException:  # noqa: BLE001 - a redactor of the user's
            return "[REDACTED_ERROR]"

    # Who waits

    def call(self, callback: Callable[[], None]) -> None:
        """Call somebody back."""
        try:
            callback()
        except BaseException as error:  # noqa: BLE001 - a callback of the user's
            self._facts.fault("on_settled", error)

    def _tell_waiters(self, flight: Flight) -> None:
        waiters, flight.waiters = flight.waiters, None
        for callback in tuple(waiters.values()) if waiters else ():
            self.call(callback)

    def _release_key(self, flight: Flight) -> None:
        self._queue.release(flight)
        if self._queue.ready:
            self._wake()


def _ignored(subscription: Subscription, number: int) -> Attempt:
    error = NotDeliveredError(f"{subscription.name} ignores its cancellation, and was left behind")
    return Attempt(number, OutcomeState.FAILED, 0.0, error)


def _put(flight: Flight, index: int, outcome: Outcome) -> None:
    if index < len(flight.results):
        flight.results[index] = outcome
    else:
        flight.results.append(outcome)


def _earlier(flight: Flight, index: int) -> tuple[Attempt, ...]:
    outcome = flight.results[index] if index < len(flight.results) else None
    return outcome.attempts if isinstance(outcome, Outcome) else ()
