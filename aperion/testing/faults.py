"""Deliveries that go wrong on purpose: made twice, or failed at random, the same at every run with one seed."""

from __future__ import annotations

import os
import random
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aperion.context import current, go, handing
from aperion.errors import ConfigurationError, InjectedError
from aperion.events import own_copy
from aperion.testing.running import Wanted, meant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aperion.bus import EventBus
    from aperion.outcomes import Delivery
    from aperion.protocols import CallNext, Middleware

SEED = "APERION_TEST_SEED"
"""The variable of the environment with the seed for what has none of its own; ``--aperion-seed`` sets it."""

used: deque[str] = deque(maxlen=16)
"""What was seeded how since the test began; the pytest plugin shows it where the test fails."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One delivery that went wrong on purpose.

    Args:
        kind: ``second run``, ``failed before`` or ``failed after`` its handler.
        event_type: of the event.
        event_id: of the event.
        subscription: whose handler it was.
        attempt: the number of the attempt.
    """

    kind: str
    event_type: str
    event_id: str
    subscription: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Faults:
    """The seed that decides, and what went wrong so far."""

    # Mutable: the list, the numbers of the events and how often was drawn, as deliveries come.
    seed: int
    made: list[Fault] = field(default_factory=list)
    _numbers: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict, repr=False)
    _draws: Counter[str] = field(default_factory=Counter, repr=False)

    def _draw(self, delivery: Delivery) -> random.Random:
        """Return the dice of one attempt: what it shows depends on its place among its like, on no timing of others."""
        event, name = delivery.event, delivery.subscription.name
        numbers = self._numbers.setdefault((name, event.event_type), {})
        number = numbers.setdefault(event.event_id, len(numbers))
        place = f"{self.seed}|{name}|{event.event_type}|{number}|{delivery.attempt}"
        self._draws[place] += 1  # more than one under duplicated()
        return random.Random(f"{place}|{self._draws[place]}")  # noqa: S311 - guards nothing

    def _note(self, kind: str, delivery: Delivery) -> None:
        event = delivery.event
        fault = Fault(kind, event.event_type, event.event_id, delivery.subscription.name, delivery.attempt)
        self.made.append(fault)


@contextmanager
def duplicated(bus: EventBus, *wanted: Wanted, rate: float = 1.0, seed: int | None = None) -> Iterator[Faults]:
    """Run handlers twice with the same event, as a broker may that delivers at least once.

    Both runs share one delivery: its timeout, and its outcome, so that the second one's error is an error.
    The bus's middleware goes around each, and what the handler emits, it emits twice. A delivery counts
    that begins while the block lasts: let the events settle inside.

    Args:
        bus: a bus that runs.
        wanted: the models and patterns; all, but for ``system.*``, without any.
        rate: which part of the deliveries.
        seed: decides which; see ``failing``.

    Raises:
        BusNotRunningError: when the bus does not run.
        ConfigurationError: for a rate that is not between 0 and 1.
    """
    faults, is_meant = _begun("duplicated", rate, seed), meant(wanted)

    async def twice(delivery: Delivery, call_next: CallNext) -> Any:
        if not is_meant(delivery.event.event_type) or faults._draw(delivery).random() >= rate:
            return await call_next(delivery)
        again = replace(delivery, event=own_copy(delivery.event))
        await call_next(delivery)
        faults._note("second run", delivery)
        here = current.get()
        go(handing(again.event, None if here is None else here.unit))
        try:
            return await call_next(again)
        except Exception as error:
            error.add_note(f"in the second run of {delivery.subscription.name} with the same event, by duplicated()")
            raise

    with _within(bus, lambda middleware: (twice, *middleware)):
        yield faults


@contextmanager
def failing(
    bus: EventBus,
    *wanted: Wanted,
    rate: float = 0.3,
    seed: int | None = None,
    error: Callable[[str], Exception] = InjectedError,
) -> Iterator[Faults]:
    """Fail attempts at random: half of them before the handler runs, half after it has done its work.

    What is drawn depends on the seed, the subscription, the type and the number of the event among those,
    and the attempt, so that it is the same at every run, however handlers overlap. The middleware of the
    bus sees the errors as those of the handler. A delivery counts that begins while the block lasts: let
    the events settle inside.

    Args:
        bus: a bus that runs.
        wanted: the models and patterns; all, but for ``system.*``, without any.
        rate: which part of the attempts.
        seed: decides which; if None, the variable ``APERION_TEST_SEED`` of the environment or the option
            ``--aperion-seed`` of pytest does, or else chance. The errors name it, and so does a test that fails.
        error: makes the exception of its text.

    Raises:
        BusNotRunningError: when the bus does not run.
        ConfigurationError: for a rate that is not between 0 and 1.
    """
    faults, is_meant = _begun("failing", rate, seed), meant(wanted)

    def fail(when: str, delivery: Delivery) -> None:
        faults._note(when, delivery)
        raise error(
            f"attempt {delivery.attempt} of {delivery.subscription.name} {when} it ran, "
            f"by failing(rate={rate:g}, seed={faults.seed})"
        )

    async def maybe(delivery: Delivery, call_next: CallNext) -> Any:
        dice = faults._draw(delivery)
        fails = is_meant(delivery.event.event_type) and dice.random() < rate
        after = dice.random() < 0.5
        if fails and not after:
            fail("failed before", delivery)
        returned = await call_next(delivery)
        if fails:
            fail("failed after", delivery)
        return returned

    with _within(bus, lambda middleware: (*middleware, maybe)):
        yield faults


def _begun(name: str, rate: float, seed: int | None) -> Faults:
    if not 0 <= rate <= 1:
        raise ConfigurationError(f"rate={rate!r} makes no sense; it is a part of the deliveries, 0 to 1")
    if seed is None:
        seed = int(os.environ.get(SEED) or random.SystemRandom().randrange(2**32))
    if 0 < rate < 1:
        used.append(f"{name}(rate={rate:g}, seed={seed}); for the same again: --aperion-seed={seed}")
    return Faults(seed)


@contextmanager
def _within(bus: EventBus, put: Callable[[tuple[Middleware, ...]], tuple[Middleware, ...]]) -> Iterator[None]:
    """Run the handlers of a bus through other middleware while the block lasts."""
    execution = bus._running("testing").execution
    before = execution.middleware
    added = set(put(before)) - set(before)
    _use(bus, put(before))
    try:
        yield
    finally:
        _use(bus, tuple(each for each in execution.middleware if each not in added))


def _use(bus: EventBus, middleware: tuple[Middleware, ...]) -> None:
    engine = bus._engine
    if engine is None:  # it has ended inside the block
        return
    with bus._lock:
        engine.execution.middleware = middleware
        for subscription in bus._subscriptions:
            engine.execution.prepare(subscription)
