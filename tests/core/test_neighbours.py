"""What one handler does, or waits for, is no other handler's trouble: places, threads, jobs, cancellations, clocks."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import aperion
from aperion import AuditLog, Event, EventBus, OutcomeState, Retry
from aperion.engine.slots import Slots

pytestmark = pytest.mark.anyio


async def test_dispatches_that_wait_for_a_thread_and_events_that_wait_for_a_place_do_not_wait_for_each_other() -> None:
    bus = EventBus(max_concurrent_events=2, max_concurrent_handlers=1, handler_timeout=None, drain_timeout=1)
    bus.subscribe(lambda e: time.sleep(0.001), "outer.called", 200, name="first")
    bus.subscribe(lambda e: None, "inner.called", name="inner")

    @bus.on("outer.called", name="second")
    async def second(event: Event) -> None:
        await bus.dispatch("inner.called", {})

    with anyio.fail_after(30):
        async with bus:
            receipts = [await bus.emit("outer.called", {}) for _ in range(50)]
            outcomes = [await receipt.settled() for receipt in receipts]
            assert bus._engine.workers.places == 2  # type: ignore[union-attr]

    assert all(each.ok for each in outcomes)


async def test_a_middleware_that_runs_a_sync_handler_twice_does_not_wait_for_itself() -> None:
    runs: list[int] = []

    async def twice(delivery: aperion.Delivery, call_next: aperion.CallNext) -> Any:
        await call_next(delivery)
        return await call_next(delivery)

    bus = EventBus(middleware=[twice], max_concurrent_events=2, max_concurrent_handlers=1)
    bus.subscribe(lambda e: runs.append(1), "a.b", name="sync")

    with anyio.fail_after(20):
        async with bus:
            for receipt in [await bus.emit("a.b", {}) for _ in range(20)]:
                assert (await receipt.settled()).ok
            assert bus._engine.workers.places == 2  # type: ignore[union-attr]
            assert bus.stats().threads_busy == 0

    assert len(runs) == 40


async def test_a_handler_that_awaits_a_task_without_end_does_not_keep_the_bus_from_ending() -> None:
    released = False

    async def stubborn() -> None:
        while not released:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass

    bus = EventBus(drain_timeout=0.05)

    @bus.on("a.b", name="handler")
    async def handler(event: Event) -> None:
        await asyncio.create_task(stubborn())

    with anyio.fail_after(20):
        async with bus:
            await bus.emit("a.b", {})
            await anyio.sleep(0.02)
    released = True
    await anyio.sleep(0.2)

    assert bus.stats().pending == 0
    assert [(letter.subscription, letter.attempts) for letter in bus.dead_letters.list()] == [("handler", 1)]
    assert "ignores its cancellation" in bus.dead_letters.list()[0].error


async def test_the_thread_of_one_handler_does_not_hold_up_the_retry_of_another() -> None:
    gate, attempts = threading.Event(), []
    bus = EventBus(drain_timeout=5)
    bus.subscribe(lambda e: gate.wait(20), "a.b", 200, name="stuck", timeout=0.05)

    @bus.on("a.b", name="flaky", retry=Retry(attempts=2, wait_initial=0.001, wait_max=0.002))
    async def flaky(event: Event) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError

    with anyio.fail_after(20):
        async with bus:
            outcomes = await (await bus.emit("a.b", {})).settled()
            gate.set()

    assert [each.state for each in outcomes.values()] == [OutcomeState.TIMED_OUT, OutcomeState.OK]
    assert len(attempts) == 2


async def test_a_cancellation_that_a_handler_leaves_behind_does_not_reach_the_next_event() -> None:
    with anyio.fail_after(20):
        async with EventBus(max_concurrent_events=1) as bus:

            @bus.on("a.bad", name="bad")
            async def bad(event: Event) -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()

            @bus.on("a.good", name="good")
            async def good(event: Event) -> None:
                await anyio.sleep(0.01)

            await bus.emit("a.bad", {})
            outcomes = await (await bus.emit("a.good", {})).settled()

    assert outcomes.ok


@pytest.mark.parametrize("kind", [ValueError, SystemExit, asyncio.CancelledError, GeneratorExit])
async def test_a_redactor_that_raises_costs_the_payload_of_the_record_and_no_event(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    class Broken(aperion.Redactor):
        def redact(self, *args: Any, **more: Any) -> object:
            raise kind

    log = AuditLog(tmp_path / "events.jsonl")
    with anyio.fail_after(20):
        async with EventBus(audit=log, redactor=Broken()) as bus:
            assert (await (await bus.emit("a.b", {"password": "hunter2"})).settled()).ok

    text = log.path.read_text()
    assert '"kind":"accepted"' in text
    assert "hunter2" not in text


def test_what_is_no_redactor_is_refused_at_once() -> None:
    with pytest.raises(aperion.ConfigurationError, match=r"has no redact\(\)"):
        EventBus(redactor=object())  # type: ignore[arg-type]


def test_a_bus_whose_loop_is_gone_may_be_entered_again() -> None:
    bus = EventBus()

    async def left_open() -> None:
        await bus.__aenter__()

    async def again() -> None:
        async with bus:
            assert (await bus.dispatch("a.b", {})).ok

    asyncio.run(left_open())
    asyncio.run(again())


def test_threads_lent_on_a_loop_that_is_gone_are_not_lent_in_the_next_life() -> None:
    bus = EventBus(drain_timeout=0.05, max_concurrent_handlers=1)

    @bus.on("a.b", name="waits")
    def waits(event: Event) -> None:
        bus.emit_from_thread("c.d", {}).settled_from_thread()

    @bus.on("c.d", name="long")
    async def long(event: Event) -> None:
        await anyio.sleep(60)

    async def life() -> None:
        async with bus:
            await bus.emit("a.b", {})
            await anyio.sleep(0.1)

    async def next_life() -> None:
        async with bus:
            assert bus._threads.slots.lent == 0

    asyncio.run(life())
    asyncio.run(next_life())


async def test_a_timeout_counts_from_its_own_start_whatever_waits_before_it() -> None:
    fired: list[float] = []
    bus = EventBus(drain_timeout=5)

    @bus.on("outer.called", name="outer", timeout=0.3)
    async def outer(event: Event) -> None:
        time.sleep(0.25)
        await bus.dispatch("inner.called", {})

    @bus.on("inner.called", name="inner", timeout=0.3)
    async def inner(event: Event) -> None:
        began = anyio.current_time()
        try:
            await anyio.sleep(10)
        finally:
            fired.append(anyio.current_time() - began)

    with anyio.fail_after(20):
        async with bus:
            outcomes = await (await bus.emit("outer.called", {})).settled()

    assert outcomes["outer"].state is OutcomeState.TIMED_OUT
    # By the deadline of the outer one, of which a sixth was left, and not by its own.
    assert bus.dead_letters.list(subscription="inner")[0].reason is aperion.FailureReason.NOT_FINISHED


async def test_outcomes_that_are_asked_for_a_name_they_lack_tell_those_they_have() -> None:
    async with EventBus() as bus:

        @bus.on("a.b", name="shop.pay")
        async def pay(event: Event) -> None: ...

        outcomes = await bus.dispatch("a.b", {})

    with pytest.raises(KeyError, match=r"deliveries: shop\.pay"):
        outcomes["pay"]


def test_who_waits_for_a_slot_is_not_overtaken_by_who_comes_when_one_is_free() -> None:
    granted: list[str] = []

    class Turn:
        def grant(self) -> None:
            granted.append("first")

        def refuse(self, error: Exception) -> None:
            raise AssertionError from error

    slots = Slots(1)
    assert slots.take()
    slots.wait(Turn())
    slots.release()  # by a thread; the loop hears of it a moment later

    assert not slots.take()
    slots.grant()
    assert granted == ["first"]
    assert slots.busy == 1
