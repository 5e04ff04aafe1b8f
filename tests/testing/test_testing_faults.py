"""Deliveries that users have go wrong on purpose."""

from __future__ import annotations

import re
from collections import deque

import anyio
import pytest

import aperion
from aperion import Event, EventBus
from aperion.errors import InjectedError
from aperion.protocols import CallNext
from aperion.testing import Faults, duplicated, failing, faults, recording

pytestmark = pytest.mark.anyio


async def emit_and_settle(bus: EventBus, *types: str) -> None:
    with anyio.fail_after(10):
        for event_type in types:
            await bus.emit(event_type, {"tags": []})
        await bus.wait_settled()


async def test_duplicated_runs_each_handler_twice_with_the_same_event_and_a_payload_of_its_own() -> None:
    ran: list[tuple[str, str, object]] = []
    async with EventBus() as bus:

        @bus.on("order.*")
        async def first(event: Event) -> None:
            ran.append(("first", event.event_id, aperion.current_event() is event))

        @bus.on("order.*")
        def second(event: Event) -> None:
            ran.append(("second", event.event_id, aperion.current_event() is event))

        with duplicated(bus, "order.*") as made, recording(bus) as recorded:
            await emit_and_settle(bus, "order.placed", "chat.sent")
        await emit_and_settle(bus, "order.placed")

    event_id = recorded.events[0].event_id
    assert ran[:4] == [("first", event_id, True)] * 2 + [("second", event_id, True)] * 2
    assert len(ran) == 6
    assert [(f.kind, f.event_id) for f in made.made] == [("second run", event_id)] * 2


async def test_what_the_first_run_does_to_a_payload_the_second_does_not_see() -> None:
    class BasketFilled(aperion.Payload, type="testing.basket_filled"):
        items: deque[str]

    seen: list[tuple[int, bool]] = []
    async with EventBus() as bus:

        @bus.on(BasketFilled)
        async def fill(event: Event[BasketFilled]) -> None:
            seen.append((len(event.payload.items), aperion.current_event() is event))
            event.payload.items.append("chair")

        with duplicated(bus), anyio.fail_after(5):
            receipt = await bus.emit(BasketFilled(items=deque()))
            assert (await receipt.settled()).ok

    assert seen == [(0, True), (0, True)]


async def test_a_handler_that_cannot_be_run_twice_fails_in_the_second_run_and_says_so() -> None:
    paid: set[str] = set()
    async with EventBus() as bus:

        @bus.on("order.paid", name="pay")
        async def pay(event: Event) -> None:
            if event.event_id in paid:
                raise ValueError("paid twice")
            paid.add(event.event_id)

        with duplicated(bus), recording(bus) as recorded:
            await emit_and_settle(bus, "order.paid")

    error = recorded.outcomes_of("order.paid")[0]["pay"].error
    assert isinstance(error, ValueError)
    assert "in the second run of pay with the same event" in error.__notes__[0]


async def test_middleware_of_the_bus_sees_both_runs() -> None:
    """So that one which keeps doubles out can be tested."""
    ran: list[str] = []
    seen: set[tuple[str, str]] = set()

    async def once(delivery: aperion.Delivery, call_next: CallNext) -> object:
        key = (delivery.event.event_id, delivery.subscription.name)
        if key in seen:
            return None
        seen.add(key)
        return await call_next(delivery)

    async with EventBus(middleware=[once]) as bus:

        @bus.on("order.paid")
        async def pay(event: Event) -> None:
            ran.append(event.event_id)

        with duplicated(bus) as made:
            await emit_and_settle(bus, "order.paid")

    assert len(made.made) == 1
    assert len(ran) == 1


async def run_with_failures(seed: int | None, error: type[Exception] = InjectedError) -> tuple[Faults, list[str]]:
    ran: list[str] = []
    async with EventBus() as bus:

        @bus.on("*.*", name="a", retry=aperion.Retry(attempts=3, wait_initial=0))
        async def first(event: Event) -> None:
            await anyio.lowlevel.checkpoint()
            ran.append("a")

        @bus.on("order.*", name="b")
        def second(event: Event) -> None:
            ran.append("b")

        with failing(bus, "order.*", rate=0.4, seed=seed, error=error) as made:
            await emit_and_settle(bus, *["order.placed", "chat.sent"] * 20)
    return made, ran


def drawn(made: Faults) -> list[tuple[str, str, int]]:
    return sorted((f.subscription, f.kind, f.attempt) for f in made.made)


async def test_failing_fails_attempts_before_and_after_the_handler_the_same_with_one_seed() -> None:
    one, ran = await run_with_failures(7)
    two, _ = await run_with_failures(7)
    other, _ = await run_with_failures(8)

    assert drawn(one) == drawn(two) != drawn(other)
    assert {f.kind for f in one.made} == {"failed before", "failed after"}
    assert {f.attempt for f in one.made if f.subscription == "a"} >= {1, 2}
    assert {f.event_type for f in one.made} == {"order.placed"}
    befores = sum(f.kind == "failed before" and f.subscription == "b" for f in one.made)
    assert ran.count("b") == 20 - befores
    assert 8 <= len(one.made) <= 30


async def test_an_injected_error_is_an_error_of_the_handler_and_names_its_seed() -> None:
    async with EventBus() as bus:

        @bus.on("order.placed", name="a")
        async def handle(event: Event) -> None: ...

        with failing(bus, rate=1, seed=5), recording(bus) as recorded:
            await emit_and_settle(bus, "order.placed")
        with failing(bus, rate=1, seed=5, error=ConnectionError):
            await emit_and_settle(bus, "order.placed")
        await emit_and_settle(bus, "order.placed")

        outcome = recorded.outcomes_of("order.placed")[0]["a"]
        letters = bus.dead_letters.list("order.placed")

    assert isinstance(outcome.error, InjectedError)
    assert re.search(r"attempt 1 of a failed (before|after) it ran, by failing\(rate=1, seed=5\)", str(outcome.error))
    assert sorted(letter.error_type for letter in letters) == ["ConnectionError", "InjectedError"]


async def test_a_seed_comes_from_the_environment_or_from_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    async with EventBus() as bus:
        monkeypatch.setenv(faults.SEED, "42")
        with failing(bus) as made:
            assert made.seed == 42
        monkeypatch.delenv(faults.SEED)
        with failing(bus) as one, failing(bus) as two:
            assert one.seed != two.seed


async def test_faults_may_be_combined_and_end_with_their_blocks_in_any_order() -> None:
    ran: list[str] = []
    async with EventBus() as bus:

        @bus.on("order.placed", name="a", retry=aperion.Retry(attempts=20, wait_initial=0))
        async def handle(event: Event) -> None:
            ran.append("a")

        twice, fails = duplicated(bus), failing(bus, rate=1)
        twice.__enter__()
        fails.__enter__()
        twice.__exit__(None, None, None)
        fails.__exit__(None, None, None)
        await emit_and_settle(bus, "order.placed")
        with duplicated(bus), failing(bus, rate=0.5, seed=1) as made:
            await emit_and_settle(bus, "order.placed")

        assert ran[0] == "a"
        assert len(ran) >= 3
        assert made.made
        assert not bus.dead_letters.list()


async def test_of_two_runs_each_may_fail() -> None:
    async with EventBus() as bus:

        @bus.on("order.placed", name="a")
        async def handle(event: Event) -> None: ...

        with duplicated(bus), failing(bus, rate=0.5, seed=3), recording(bus) as recorded:
            await emit_and_settle(bus, *["order.placed"] * 20)

    errors = [outcomes["a"].error for outcomes in recorded.outcomes_of("order.placed")]
    seconds = [error for error in errors if error is not None and hasattr(error, "__notes__")]
    assert 0 < len(seconds) < len([error for error in errors if error]) < 20


async def test_faults_ask_for_a_rate_that_makes_sense_and_a_running_bus() -> None:
    async with EventBus() as bus:
        with pytest.raises(aperion.ConfigurationError, match="0 to 1"), failing(bus, rate=2):
            pass
    with pytest.raises(aperion.BusNotRunningError), duplicated(EventBus()):
        pass


async def test_a_bus_may_end_inside_the_block() -> None:
    bus = EventBus()
    await bus.__aenter__()
    with duplicated(bus):
        await bus.__aexit__(None, None, None)

    assert bus.state is aperion.BusState.STOPPED
