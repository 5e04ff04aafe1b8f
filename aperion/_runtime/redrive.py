"""Delivers dead letters again, to the subscriptions that failed and to no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aperion._runtime.backlog import Rerun
from aperion.delivery import FailureReason, Outcome, Outcomes, OutcomeState, Receipt
from aperion.errors import RedriveError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aperion._runtime.reporter import Reporter
    from aperion._runtime.runtime import Runtime
    from aperion._runtime.stats import Counters
    from aperion.deadletters import DeadLetterQueue
    from aperion.delivery import DeadLetter, Subscription


class Redriver:
    """The redrives of one bus."""

    # Mutable: the ids of the letters that are being redriven.
    __slots__ = ("_counters", "_letters", "_reporter", "_running", "_subscriptions")

    def __init__(
        self,
        letters: DeadLetterQueue,
        reporter: Reporter,
        counters: Counters,
        subscriptions: Mapping[str, Subscription],
    ) -> None:
        self._letters = letters
        self._reporter = reporter
        self._counters = counters
        self._subscriptions = subscriptions
        self._running: set[str] = set()

    async def redrive(self, runtime: Runtime, letter_id: str, max_attempts: int) -> Outcomes:
        """Redrive one letter; see ``EventBus.redrive``."""
        letter = self._letters.get(letter_id)
        if letter.reason is FailureReason.ALL_HANDLERS_FAILED:
            return await self._redrive_event(runtime, letter, max_attempts)
        receipt, rerun = self._rerun(runtime, letter, max_attempts)
        self._running.add(letter_id)
        try:
            outcome = await runtime.rerun_here(receipt, rerun)
        finally:
            self._running.discard(letter_id)
        if not outcome.failed:
            self._counters.redriven += 1
            self._reporter.redriven(letter)
            self._forget_summary(letter.event.event_id)
        return receipt.outcomes_now()

    def _rerun(self, runtime: Runtime, letter: DeadLetter, max_attempts: int) -> tuple[Receipt, Rerun]:
        subscription = self._subscriptions.get(letter.subscription or "")
        refusal = self._refusal(runtime, letter, subscription, max_attempts)
        if refusal is not None or subscription is None:
            raise RedriveError(f"dead letter {letter.letter_id} cannot be redriven: {refusal}")
        receipt = Receipt(letter.event)
        receipt.system = receipt.begun = receipt.passed = True
        receipt.plan, receipt.retrying = (subscription,), 1
        receipt.results = [Outcome(subscription.name, OutcomeState.SKIPPED)]
        return receipt, Rerun(receipt, 0, subscription, letter.attempts + 1, letter)

    def _refusal(
        self, runtime: Runtime, letter: DeadLetter, subscription: Subscription | None, max_attempts: int
    ) -> str | None:
        if letter.subscription is None:
            return "the event was never accepted; correct it and emit it again"
        if subscription is None or not subscription.open:
            return f"its subscription {letter.subscription} is gone or paused"
        if letter.attempts >= max_attempts:
            return f"{letter.attempts} attempts were made and max_attempts is {max_attempts}"
        if letter.letter_id in self._running:
            return "it is being redriven"
        if runtime.threads.is_stuck(letter.event.event_id, letter.subscription):
            return "the thread of its last attempt still runs"
        return None

    async def _redrive_event(self, runtime: Runtime, summary: DeadLetter, max_attempts: int) -> Outcomes:
        event_id = summary.event.event_id
        letters = [each for each in self._letters if each.event.event_id == event_id and each.subscription is not None]
        if not letters:
            self._letters.remove(summary.letter_id)
        outcomes: list[Outcome] = []
        for letter in letters:
            outcomes += (await self.redrive(runtime, letter.letter_id, max_attempts)).values()
        plan = [self._subscriptions[outcome.subscription] for outcome in outcomes]
        return Outcomes(summary.event, plan, outcomes)

    def _forget_summary(self, event_id: str) -> None:
        """Not all handlers of an event have failed any more: the letter that said so goes."""
        for letter in self._letters.list(reason=FailureReason.ALL_HANDLERS_FAILED):
            if letter.event.event_id == event_id:
                self._letters.remove(letter.letter_id)
