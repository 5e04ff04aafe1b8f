"""What the engine moves: an accepted event on its way, and one more attempt at one of its deliveries."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Protocol

from aperion._frozen import FrozenList
from aperion.outcomes import Outcome, Outcomes, outcomes_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator, Sequence

    from aperion.engine.threads import Job
    from aperion.events import Event
    from aperion.outcomes import DeadLetter
    from aperion.subscriptions import Subscription

NO_RESULTS: list[Any] = FrozenList()  # an empty list for each event that waits would take 56 bytes


DUPLICATE: list[Subscription] = FrozenList()
"""The plan of an event whose id was accepted before, known by its identity."""
DONE = object()
"""What is yielded when all handlers of an event have run."""


class Halt(enum.Enum):
    """Why the engine itself cancels what runs."""

    EXPIRED = "the time of this handler is over"
    STOPPED = "the drain is over"
    CLOSED = "somebody closes the coroutine"


class Waits(Protocol):
    """What waits for an event to settle."""

    def is_own(self, unit: Unit) -> bool:
        """Tell whether the task that runs here is the one that runs a unit."""

    def check_no_cycle(self, target: Flight, unit: Unit | None) -> None:
        """Refuse to wait for an event that waits for the unit itself."""

    def awaited(self, flight: Flight) -> Sequence[Flight]:
        """Return the events that handlers of an event wait for."""

    def begin(self, flight: Flight, awaited: Flight) -> None:
        """Take note that a handler of an event waits for another event."""

    def end(self, flight: Flight, awaited: Flight) -> None:
        """Take note that it does not any more."""

    async def wait_for(self, flight: Flight) -> None:
        """Wait until an event has settled."""

    def wait_in_thread(self, flight: Flight, timeout: float | None) -> None:
        """Do the same in another thread."""


class Host(Protocol):
    """The engine that a flight belongs to, as far as flights and what admits them have to know it."""

    loop: asyncio.AbstractEventLoop

    @property
    def waiting(self) -> Waits:
        """What waits for its events."""

    def owns(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether a task is one of its workers."""

    def holder(self, flight: Flight) -> Flight | None:
        """Return the event whose key an event waits for."""

    def lend(self, unit: Unit) -> Unit | None:
        """Let another event begin while a handler waits; return who has lent his place, if anybody."""

    def take_back(self, root: Unit | None) -> None:
        """End that."""

    def lend_thread(self, unit: Unit) -> Callable[[], None]:
        """Lend the thread of a handler that waits, and its place; return what takes them back."""

    def call(self, callback: Callable[[], None]) -> None:
        """Call somebody back, whatever that raises."""


class Rest(Protocol):
    """What makes the further steps of a unit once it waits."""

    task: asyncio.Task[Any]
    baseline: int
    requested: bool
    disturbed: asyncio.CancelledError | None
    lane: dict[Unit, float] | None

    def cancel(self) -> None:
        """Cancel the unit, and nothing else that its task does."""

    def calm(self) -> None:
        """Take note that a cancellation has done its work."""


class Park:
    """What a unit yields to its worker that waits for a slot and needs no task meanwhile."""

    __slots__ = ("unit",)

    def __init__(self, unit: Unit) -> None:
        self.unit = unit

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait until the worker goes on."""
        try:
            yield self
        except GeneratorExit:
            self.unit.halt = Halt.CLOSED
            raise


class Unit:
    """Work that a task does in one go: the handlers of an event, or one of them once more."""

    # Mutable, on the loop's thread: when the handler that runs was started (monotonic seconds) and how long it may
    # take; how the rest is driven once it waits; why it is cancelled; the unit around a dispatch; whether a handler
    # has moved to another context (``context.go``); whether a worker runs it, which then holds a place, and how many of its waits have lent that place, until each handler was started once, or skipped; what
    # is parked while it waits for a thread, and the thread that it has.
    __slots__ = (
        *("event", "halt", "job", "lent", "limit", "moved"),
        *("parked", "passed", "placed", "rest", "slot", "started", "within"),
    )

    event: Event[Any]
    started: float
    limit: float
    rest: Rest | None
    halt: Halt | None
    moved: bool
    within: Unit | None
    passed: bool
    placed: bool
    lent: int
    parked: Any
    slot: Any
    job: Job | None

    @property
    def correlation_id(self) -> str:
        """The id that what is emitted here gets."""
        return self.event.correlation_id

    @property
    def unit(self) -> Unit:
        """This; where code runs is told by a unit, or by a scope inside of one."""
        return self

    @property
    def flight(self) -> Flight:
        """The event that is on its way."""
        raise NotImplementedError


class Flight(Unit):
    """One accepted event, from acceptance to its settling: its plan, and how each delivery ended."""

    # Mutable, on the loop's thread; each change is made by one module. Results: seconds where a delivery went well
    # at once, to save an object; a list of its own only from the first handler on.
    __slots__ = (
        *("__weakref__", "begun", "dropped", "engine", "failures", "plan", "results"),
        *("retrying", "settled", "system", "waiters"),
    )

    engine: Host
    plan: Sequence[Subscription]
    results: list[float | Outcome]
    waiters: dict[object, Callable[[], None]] | None
    failures: int  # deliveries that failed for good
    retrying: int  # deliveries that wait for another attempt
    begun: bool
    settled: bool
    dropped: bool
    system: bool

    @property
    def flight(self) -> Flight:
        """This; a rerun belongs to another."""
        return self

    @property
    def duplicate(self) -> bool:
        """Whether its id was accepted before, so that it is not handled again."""
        return self.plan is DUPLICATE

    def outcomes(self) -> Outcomes:
        """Return the outcomes there are."""
        return outcomes_of(self.event, self.plan, self.results, self.dropped)

    async def wait(self) -> None:
        """Wait until it has settled."""
        await self.engine.waiting.wait_for(self)

    def wait_in_thread(self, timeout: float | None) -> None:
        """Do the same in another thread than the loop's; blocks it."""
        self.engine.waiting.wait_in_thread(self, timeout)

    def call_back(self, callback: Callable[[], None]) -> None:
        """Call back once it has settled."""
        if self.settled:
            self.engine.call(callback)
        else:
            self.when_settled(object(), callback)

    def when_settled(self, name: object, callback: Callable[[], None]) -> None:
        """Call back when it settles, unless the name is taken out of ``waiters`` before."""
        if self.waiters is None:
            self.waiters = {}
        self.waiters[name] = callback


class Rerun(Unit):
    """One more attempt at one delivery of an event, on its own: a retry or a redrive."""

    # Mutable: what a unit has.
    __slots__ = ("_flight", "index", "letter", "number", "subscription")

    def __init__(
        self, flight: Flight, index: int, subscription: Subscription, number: int, letter: DeadLetter | None = None
    ) -> None:
        begin(self)
        self.passed = False
        self.event = flight.event
        self._flight = flight
        self.index = index
        self.subscription = subscription
        self.number = number  # of the attempt
        self.letter = letter  # what is redriven; None for a retry

    @property
    def flight(self) -> Flight:
        """The event that it is an attempt at."""
        return self._flight


def begin(unit: Unit) -> None:
    """Set what every unit begins with."""
    unit.started = unit.limit = 0.0
    unit.rest = unit.halt = unit.within = unit.parked = unit.slot = unit.job = None
    unit.placed = unit.moved = False
    unit.lent = 0


def flight_of(engine: Host, event: Event[Any]) -> Flight:
    """Return a flight for an event, with the parts that do not depend on how it came in."""
    flight = Flight()
    begin(flight)
    flight.event = event
    flight.engine = engine
    flight.plan = ()
    flight.results = NO_RESULTS
    flight.waiters = None
    flight.failures = flight.retrying = 0
    flight.passed = flight.begun = flight.settled = flight.dropped = flight.system = False
    return flight


def root_of(unit: Unit) -> Unit:
    """Return the unit that a worker or an emitter runs, with the dispatches inside of it left out."""
    while unit.within is not None:
        unit = unit.within
    return unit
