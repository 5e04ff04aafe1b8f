"""Delivers dead letters again, to the subscriptions that failed and to no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aperion.engine.flight import Flight, Rerun, flight_of
from aperion.errors import RedriveError
from aperion.outcomes import FailureReason, Outcome, Outcomes, OutcomeState, outcomes_of

if TYPE_CHECKING:
    from aperion.deadletters import DeadLetterQueue
    from aperion.engine.lifecycle import Engine
    from aperion.outcomes import DeadLetter
    from aperion.subscriptions import Subscription


class Redriver:
    """The redrives of one bus."""

    # Mutable: the ids of the letters that are being redriven.
    __slots__ = ("_letters", "_running")

    def __init__(self, letters: DeadLetterQueue) -> None:
        self._letters = letters
        self._running: set[str] = set()

    async def redrive(self, engine: Engine, letter_id: str, max_attempts: int) -> Outcomes:
        """Redrive one letter; see ``EventBus.redrive``."""
        letter = self._letters.get(letter_id)
        if letter.reason is FailureReason.ALL_HANDLERS_FAILED:
            return await self._redrive_event(engine, letter, max_attempts)
        flight = self._flight(engine, letter, max_attempts)
        self._running.add(letter_id)
        try:
            outcome = await _run(engine, flight, letter)
        finally:
            self._running.discard(letter_id)
        if not outcome.failed:
            engine.settlement.redriven(letter)
            self._forget_summary(letter.event.event_id)
        return flight.outcomes()

    def _flight(self, engine: Engine, letter: DeadLetter, max_attempts: int) -> Flight:
        subscription = _subscription(engine, letter)
        refusal = self._refusal(engine, letter, subscription, max_attempts)
        if refusal is not None or subscription is None:
            raise RedriveError(f"dead letter {letter.letter_id} cannot be redriven: {refusal}")
        flight = flight_of(engine, letter.event)
        flight.system = flight.begun = flight.passed = True  # admission does not count it among the events of users
        flight.plan, flight.retrying = (subscription,), 1
        flight.results = [Outcome(subscription.name, OutcomeState.SKIPPED)]
        return flight

    def _refusal(
        self, engine: Engine, letter: DeadLetter, subscription: Subscription | None, max_attempts: int
    ) -> str | None:
        if letter.subscription is None:
            return "the event was never accepted; correct it and emit it again"
        if subscription is None or not subscription.open:
            return f"its subscription {letter.subscription} is gone or paused"
        if letter.attempts >= max_attempts:
            return f"{letter.attempts} attempts were made and max_attempts is {max_attempts}"
        if letter.letter_id in self._running:
            return "it is being redriven"
        if engine.threads.is_stuck(letter.event.event_id, letter.subscription):
            return "the thread of its last attempt still runs"
        return None

    async def _redrive_event(self, engine: Engine, summary: DeadLetter, max_attempts: int) -> Outcomes:
        event_id = summary.event.event_id
        letters = [each for each in self._letters if each.event.event_id == event_id and each.subscription is not None]
        if not letters:
            self._letters.remove(summary.letter_id)
        plan: list[Subscription] = []
        outcomes: list[Outcome] = []
        for letter in letters:
            subscription = _subscription(engine, letter)
            outcomes += (await self.redrive(engine, letter.letter_id, max_attempts)).values()
            if subscription is not None:
                plan.append(subscription)
        return outcomes_of(summary.event, plan, outcomes)

    def _forget_summary(self, event_id: str) -> None:
        """Not all handlers of an event have failed any more: the letter that said so goes."""
        for letter in self._letters.list(reason=FailureReason.ALL_HANDLERS_FAILED):
            if letter.event.event_id == event_id:
                self._letters.remove(letter.letter_id)


async def _run(engine: Engine, flight: Flight, letter: DeadLetter) -> Outcome:
    """Run the one delivery of a flight once more, in the calling task."""
    rerun = Rerun(flight, 0, flight.plan[0], letter.attempts + 1, letter)
    ledger = engine.system_ledger
    ledger.accepted += 1
    ledger.pending += 1
    await engine.run_here(rerun)
    outcome = flight.results[0]
    if not isinstance(outcome, Outcome):  # pragma: no cover - a rerun always leaves one
        raise RedriveError("the delivery has no outcome")
    return outcome


def _subscription(engine: Engine, letter: DeadLetter) -> Subscription | None:
    named = engine.router.named(letter.subscription or "")
    return next((each for each in named if each.wants(letter.event.event_type)), None)
