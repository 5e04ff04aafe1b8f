"""The exception zoo: whatever is raised, and wherever, the bus lives on and the event is accounted for."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import anyio
import pydantic
import pytest
import structlog
from accounts import check_empty

import aperion
from aperion import DeadLetterQueue, Event, EventBus, FailureReason, OutcomeState, Payload, Redactor, Retry

pytestmark = pytest.mark.anyio


class Odd(BaseException):
    """What no library expects."""


def recurse() -> None:
    recurse()


ZOO: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("no"),
    "AssertionError": lambda: AssertionError("no"),
    "StopIteration": lambda: StopIteration("no"),
    "StopAsyncIteration": lambda: StopAsyncIteration("no"),
    "SystemExit": lambda: SystemExit(3),
    "GeneratorExit": lambda: GeneratorExit("no"),
    "CancelledError": lambda: asyncio.CancelledError("no"),
    "MemoryError": lambda: MemoryError("no"),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("no", [SystemExit(3), ValueError("no")]),
    "ExceptionGroup": lambda: ExceptionGroup("no", [ValueError("no"), TypeError("no")]),
    "Odd": lambda: Odd("no"),
}
NAMES = [*ZOO, "RecursionError"]


def throw(name: str) -> Any:
    """Raise one of the zoo; a recursion really recurses."""
    if name == "RecursionError":
        recurse()
    if name == "KeyboardInterrupt":
        raise KeyboardInterrupt
    raise ZOO[name]()  # noqa: RSE102 - it makes the exception


# Places: each returns a bus that is about to raise, and where its users meet the exception.


class Place:
    """One place where something of a user's is called; ``ready`` once the bus runs."""

    event_type = "zoo.seen"

    def __init__(self, name: str) -> None:
        self.name = name
        self.armed = True
        self.reached = 0

    def throw(self, *_: object, **__: object) -> Any:
        if self.armed:
            self.reached += 1
            throw(self.name)

    def bus(self, **options: Any) -> EventBus:
        return EventBus(**options)

    def payload(self) -> Any:
        return {"n": 1}

    def ready(self, bus: EventBus) -> None:
        """Subscribe what is to fail."""

    async def provoke(self, bus: EventBus) -> None:
        """Do what else it takes."""


class AsyncHandler(Place):
    def ready(self, bus: EventBus) -> None:
        async def subject(event: Event) -> None:
            self.throw()

        bus.subscribe(subject, self.event_type, name="subject")


class AsyncHandlerThatWaited(Place):
    def ready(self, bus: EventBus) -> None:
        async def subject(event: Event) -> None:
            await anyio.sleep(0)
            self.throw()

        bus.subscribe(subject, self.event_type, name="subject")


class SyncHandler(Place):
    def ready(self, bus: EventBus) -> None:
        bus.subscribe(lambda event: self.throw(), self.event_type, name="subject")


class AwaitableOfAHandler(Place):
    def ready(self, bus: EventBus) -> None:
        async def later() -> None:
            self.throw()

        bus.subscribe(lambda event: later(), self.event_type, name="subject")


class SecondAttempt(Place):
    def ready(self, bus: EventBus) -> None:
        attempts = iter(range(9))

        async def subject(event: Event) -> None:
            if self.armed and next(attempts) == 0:
                raise ValueError("again")
            self.throw()

        bus.subscribe(subject, self.event_type, name="subject", retry=Retry(attempts=2, wait_initial=0))


class Filter(Place):
    def ready(self, bus: EventBus) -> None:
        async def subject(event: Event) -> None: ...

        bus.subscribe(subject, self.event_type, name="subject", where=lambda e: self.throw() or True)


class RetryPredicate(Place):
    def ready(self, bus: EventBus) -> None:
        async def subject(event: Event) -> None:
            if self.armed:
                raise ValueError("first")

        retry = Retry(attempts=3, wait_initial=0, on=self.throw)
        bus.subscribe(subject, self.event_type, name="subject", retry=retry)


class BeforeCallNext(Place):
    def bus(self, **options: Any) -> EventBus:
        async def middleware(delivery: Any, call_next: Any) -> Any:
            if delivery.subscription.name == "subject":
                self.throw()
            return await call_next(delivery)

        return EventBus(middleware=[middleware], **options)

    def ready(self, bus: EventBus) -> None:
        async def subject(event: Event) -> None: ...

        bus.subscribe(subject, self.event_type, name="subject")


class AfterCallNext(BeforeCallNext):
    def bus(self, **options: Any) -> EventBus:
        async def middleware(delivery: Any, call_next: Any) -> Any:
            await call_next(delivery)
            if delivery.subscription.name == "subject":
                self.throw()

        return EventBus(middleware=[middleware], **options)


class BeforeASyncHandler(BeforeCallNext):
    def ready(self, bus: EventBus) -> None:
        bus.subscribe(lambda event: None, self.event_type, name="subject")


FAIL = [
    AsyncHandler,
    AsyncHandlerThatWaited,
    SyncHandler,
    AwaitableOfAHandler,
    SecondAttempt,
    Filter,
    RetryPredicate,
    BeforeCallNext,
    AfterCallNext,
    BeforeASyncHandler,
]
"""Here the delivery fails."""


class Processor(Place):
    def bus(self, **options: Any) -> EventBus:
        return EventBus(processors=[lambda event: self.throw() or event], **options)


class Sink:
    """An audit sink of a user's own that raises in one of its methods."""

    def __init__(self, place: Place, where: str) -> None:
        self.place, self.where = place, where

    def accepted(self, event: Any) -> None:
        self._called("accepted")

    def ended(self, event: Any, outcome: Any) -> None:
        self._called("ended")

    def noted(self, kind: str, event: Any, detail: Any) -> None:
        self._called("noted")

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...

    def _called(self, where: str) -> None:
        if where == self.where:
            self.place.throw()


class SinkAccepted(Place):
    def bus(self, **options: Any) -> EventBus:
        return EventBus(audit=Sink(self, "accepted"), **options)


class Validator(Place):
    def payload(self) -> Any:
        place = self

        class Validated(Payload):
            n: int = 1

            @pydantic.field_validator("n")
            @classmethod
            def check(cls, value: int) -> int:
                place.throw()
                return value

        Validated.event_type = self.event_type
        return Validated.model_construct(n=1)


class Items(Place):
    def payload(self) -> Any:
        place = self

        class Mine(Mapping[str, Any]):
            def __getitem__(self, name: str) -> Any:
                return place.throw() or 1

            def __iter__(self) -> Iterator[str]:
                place.throw()
                return iter(["n"])

            def __len__(self) -> int:
                return 1

        return Mine()


REFUSE = [Processor, SinkAccepted, Validator, Items]
"""Here the emitter is told, and nothing was accepted."""


class OnSettled(Place):
    async def provoke(self, bus: EventBus) -> None:
        receipt = await bus.emit(self.event_type, {"n": 2})
        receipt.on_settled(self.throw)
        await receipt.settled()
        receipt.on_settled(self.throw)


class Tap(Place):
    def ready(self, bus: EventBus) -> None:
        bus.listen(self.throw)


class StreamFilter(Place):
    stream: Any = None

    def ready(self, bus: EventBus) -> None:
        self.stream = bus.stream("*", where=self.throw)


class Observed(AsyncHandler):
    """A handler fails with a plain error; what raises looks on."""

    fails = True

    def ready(self, bus: EventBus) -> None:
        async def subject(event: Event) -> None:
            if self.armed and self.fails:
                raise ValueError("first")

        bus.subscribe(subject, self.event_type, name="subject", retry=Retry(attempts=2, wait_initial=0))


class BrokenRedactor(Observed):
    def bus(self, **options: Any) -> EventBus:
        class Broken(Redactor):
            redact = redact_text = redact_exception = self.throw

        return EventBus(redactor=Broken(), **options)


class DuckRedactor(Observed):
    def bus(self, **options: Any) -> EventBus:
        class Duck:
            redact = redact_text = redact_exception = staticmethod(self.throw)

        return EventBus(redactor=Duck(), **options)  # type: ignore[arg-type]


class Store:
    """A dead letter store that raises in one of its methods."""

    def __init__(self, place: Place, where: str) -> None:
        self.place, self.where, self.letters = place, where, {}

    def put(self, letter: Any) -> int:
        self._called("put")
        self.letters[letter.letter_id] = letter
        return 0

    def pop(self, letter_id: str) -> Any:
        self._called("pop")
        return self.letters.pop(letter_id, None)

    def __iter__(self) -> Iterator[Any]:
        self._called("iter")
        return iter(tuple(self.letters.values()))

    def __len__(self) -> int:
        self._called("len")
        return len(self.letters)

    def _called(self, where: str) -> None:
        if where == self.where:
            self.place.throw()


class StorePut(Observed):
    where = "put"

    def bus(self, **options: Any) -> EventBus:
        return EventBus(dead_letter_queue=DeadLetterQueue(store=Store(self, self.where)), **options)


class StorePop(StorePut):
    where = "pop"

    async def provoke(self, bus: EventBus) -> None:
        await bus.wait_settled()
        letter = bus.dead_letters.list(subscription="subject")[0]
        self.fails = False
        assert (await bus.redrive(letter.letter_id)).ok


class StoreIter(StorePut):
    where = "iter"

    async def provoke(self, bus: EventBus) -> None:
        with suppress(BaseException):
            bus.dead_letters.list()


class StoreLen(StorePut):
    where = "len"

    async def provoke(self, bus: EventBus) -> None:
        with suppress(BaseException):
            len(bus.dead_letters)


class SinkEnded(Observed):
    where = "ended"

    def bus(self, **options: Any) -> EventBus:
        return EventBus(audit=Sink(self, self.where), **options)


class SinkNoted(SinkEnded):
    where = "noted"


class MetricsIncrement(Observed):
    where = "increment"

    def bus(self, **options: Any) -> EventBus:
        class Backend:
            increment = gauge = observe = staticmethod(lambda name, value, labels: None)

        setattr(Backend, self.where, staticmethod(self.throw))
        return EventBus(metrics=Backend(), **options)


class MetricsGauge(MetricsIncrement):
    where = "gauge"


class MetricsObserve(MetricsIncrement):
    where = "observe"


class LogProcessor(Observed):
    def bus(self, **options: Any) -> EventBus:
        def processor(logger: Any, name: str, fields: Any) -> Any:
            self.throw()
            raise structlog.DropEvent

        structlog.configure(processors=[processor], wrapper_class=structlog.make_filtering_bound_logger(0))
        return EventBus(**options)


class BrokenStoreAndLog(StorePut):
    """The store fails, and the line about that fails as well."""

    def bus(self, **options: Any) -> EventBus:
        bus = super().bus(**options)
        structlog.configure(processors=[self.throw], wrapper_class=structlog.make_filtering_bound_logger(0))
        return bus


class DeepCopy(Place):
    """A payload that can be emitted, but not copied for each handler."""

    def payload(self) -> Any:
        place, copies = self, itertools.count()

        @dataclasses.dataclass
        class Handmade:
            n: int = 1

            def __deepcopy__(self, memo: object) -> Any:
                if next(copies):
                    place.throw()
                return self

        return {"n": 1, "thing": Handmade()}


class Text(Place):
    """An error whose text cannot be had."""

    def ready(self, bus: EventBus) -> None:
        place = self

        class Unspeakable(Exception):
            def __str__(self) -> str:
                return place.throw() or ""

            __repr__ = __str__

        async def subject(event: Event) -> None:
            if place.armed:
                raise Unspeakable

        bus.subscribe(subject, self.event_type, name="subject")


HARMLESS = [
    OnSettled,
    Tap,
    StreamFilter,
    BrokenRedactor,
    DuckRedactor,
    StorePut,
    StorePop,
    StoreIter,
    StoreLen,
    SinkEnded,
    SinkNoted,
    MetricsIncrement,
    MetricsGauge,
    MetricsObserve,
    LogProcessor,
    BrokenStoreAndLog,
    DeepCopy,
    Text,
]
"""Here the event goes its way; the delivery to who fails for a reason of his own fails for that one."""


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def neighbours(bus: EventBus, ran: list[str]) -> None:
    """Subscribe what comes after, sync and async."""

    async def neighbour(event: Event) -> None:
        ran.append("async")

    bus.subscribe(neighbour, ["zoo.seen", "zoo.later"], priority=2, name="async neighbour")
    bus.subscribe(lambda event: ran.append("sync"), ["zoo.seen", "zoo.later"], priority=1, name="sync neighbour")


def cases(places: list[type[Place]]) -> Any:
    """Every place with every exception, under names that stay."""
    return pytest.mark.parametrize(
        ("kind", "name"), [pytest.param(p, n, id=f"{p.__name__}-{n}") for p in places for n in NAMES]
    )


@cases(FAIL)
async def test_what_a_delivery_raises_is_its_failure_and_nobody_elses(kind: type[Place], name: str) -> None:
    place, ran = kind(name), list[str]()
    with anyio.fail_after(20):
        async with place.bus() as bus:
            place.ready(bus)
            neighbours(bus, ran)

            outcomes = await (await bus.emit(place.event_type, place.payload())).settled()
            dispatched = await bus.dispatch(place.event_type, place.payload())

            place.armed = False
            later = await (await bus.emit("zoo.seen", {"n": 2})).settled()
            assert outcomes["subject"].state is OutcomeState.FAILED
            if kind is not SecondAttempt:
                assert dispatched["subject"].state is OutcomeState.FAILED
            assert [outcomes[n].state for n in ("async neighbour", "sync neighbour")] == [OutcomeState.OK] * 2
            assert later.ok
            assert place.reached
            await bus.wait_settled()
            check_empty(bus)
            assert bus.stats().engine_errors == 0
    letters = bus.dead_letters.list(reason=FailureReason.HANDLER_ERROR, subscription="subject")
    assert outcomes.event.event_id in {letter.event.event_id for letter in letters}
    assert ran == ["async", "sync"] * 3


@cases(REFUSE)
async def test_what_is_raised_at_the_door_is_raised_to_the_emitter(kind: type[Place], name: str) -> None:
    place, ran = kind(name), list[str]()
    with anyio.fail_after(20):
        async with place.bus() as bus:
            place.ready(bus)
            neighbours(bus, ran)

            for emit in (bus.emit, bus.dispatch):
                try:
                    payload = place.payload()
                    await (emit(payload) if isinstance(payload, Payload) else emit(place.event_type, payload))
                except BaseException as error:
                    assert not isinstance(error, TimeoutError)
                else:
                    pytest.fail("nothing was raised")

            place.armed = False
            assert (await (await bus.emit("zoo.later", {"n": 2})).settled()).ok
            assert place.reached
            assert bus.stats().accepted == 1
            await bus.wait_settled()
            check_empty(bus)
    assert ran == ["async", "sync"]


@cases(HARMLESS)
async def test_who_looks_on_hurts_nobody(kind: type[Place], name: str) -> None:
    place, ran = kind(name), list[str]()
    with anyio.fail_after(20):
        async with place.bus() as bus:
            place.ready(bus)
            neighbours(bus, ran)

            outcomes = await (await bus.emit(place.event_type, place.payload())).settled()
            wanted = OutcomeState.FAILED if kind is DeepCopy else OutcomeState.OK
            assert [outcomes[n].state for n in ("async neighbour", "sync neighbour")] == [wanted] * 2
            await place.provoke(bus)

            place.armed = False
            assert (await (await bus.emit("zoo.later", {"n": 2})).settled()).ok
            assert place.reached
            await bus.wait_settled()
            check_empty(bus)
            assert bus.stats().engine_errors == 0
    assert ran[-2:] == ["async", "sync"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", [BrokenRedactor, DuckRedactor])
async def test_a_redactor_that_raises_does_not_hide_why_an_event_was_refused(broken: type[Place], name: str) -> None:
    place = broken(name)
    with anyio.fail_after(20):
        async with place.bus() as bus:
            for event_type in ("Not A Type", 7, "zoo"):
                with pytest.raises(aperion.ValidationError):
                    await bus.emit(event_type, {})  # type: ignore[arg-type]
            with pytest.raises(aperion.ValidationError):
                await bus.emit("zoo.seen", {"n": float("nan")})
            assert bus.stats().rejected == 4
            check_empty(bus)


@pytest.mark.parametrize("name", NAMES)
async def test_a_sink_that_does_not_open_or_close_leaves_the_bus_stopped(name: str) -> None:
    place = Place(name)

    class Opening(Sink):
        async def start(self) -> None:
            self._called("start")

        async def aclose(self) -> None:
            self._called("aclose")

    with anyio.fail_after(20):
        for where in ("start", "aclose"):
            bus = EventBus(audit=Opening(place, where))
            place.armed = True
            with suppress(BaseException):
                async with bus:
                    await bus.emit("zoo.seen", {})
            assert place.reached
            assert bus.state.value == "stopped"
            place.armed = False
            async with bus:
                assert (await bus.dispatch("zoo.seen", {})).ok


# Processes


def in_a_process(event: Event) -> None:
    throw(event.payload["name"])


@pytest.mark.slow
async def test_what_a_handler_in_a_process_raises_is_its_failure_and_nobody_elses() -> None:
    ran: list[str] = []
    with anyio.fail_after(50):
        async with EventBus() as bus:
            bus.subscribe(in_a_process, "zoo.seen", name="subject", isolation="process", timeout=40)
            neighbours(bus, ran)
            for name in NAMES:
                outcomes = await bus.dispatch("zoo.seen", {"name": name})
                assert outcomes["subject"].state is OutcomeState.FAILED, name
            await bus.wait_settled()
            check_empty(bus)
    assert ran == ["async", "sync"] * len(NAMES)


# Ctrl-C


# Not those whose users call what raises themselves, or that are met before the bus runs.
INTERRUPTED = [
    *FAIL,
    *(OnSettled, Tap, StreamFilter, StorePut, StorePop, SinkEnded, MetricsIncrement, LogProcessor),
    *(BrokenStoreAndLog, DeepCopy),
]


@pytest.mark.parametrize("kind", INTERRUPTED, ids=lambda kind: kind.__name__)
async def test_an_interrupt_is_told_to_nobody_but_who_entered_the_bus(kind: type[Place]) -> None:
    place, ran, ended = kind("KeyboardInterrupt"), list[str](), list[str]()

    async def life() -> None:
        with pytest.raises(KeyboardInterrupt):
            async with place.bus() as bus:
                place.ready(bus)
                neighbours(bus, ran)
                try:
                    await bus.emit(place.event_type, place.payload())
                    await place.provoke(bus)
                    await anyio.sleep(3)
                finally:
                    ended.append(bus.state.value)
        stats = bus.stats()
        assert stats.accepted == stats.settled > 0
        assert stats.pending == 0
        assert bus._ledger.pending == 0
        assert bus._system_ledger.pending == 0
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        place.armed = False
        async with bus:
            assert (await bus.dispatch("zoo.later", {"n": 2})).ok

    with anyio.fail_after(20):
        await asyncio.create_task(life())
    assert ended == ["draining"] or ended == ["stopped"]
    assert ran[:2] == ["async", "sync"]
    assert ran[-2:] == ["async", "sync"]


async def test_an_interrupt_in_a_thread_ends_the_bus_too() -> None:
    seen: list[int] = []

    async def life() -> None:
        with pytest.raises(KeyboardInterrupt):
            async with EventBus() as bus:

                def handler(event: Event) -> None:
                    seen.append(threading.get_ident())
                    raise KeyboardInterrupt

                bus.subscribe(handler, "zoo.seen", name="subject")
                await bus.emit("zoo.seen", {})
                await anyio.sleep(30)
        assert [letter.subscription for letter in bus.dead_letters] == ["subject"]

    with anyio.fail_after(20):
        await asyncio.create_task(life())
    assert seen != [threading.get_ident()]
