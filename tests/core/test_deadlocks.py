"""Who would wait for himself is told at once; who waits for others lends them what they need."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import aperion
from aperion import DeadlockError, Event, EventBus, KeyHeldError, Outcomes, Receipt, WrongLoopError

pytestmark = pytest.mark.anyio


async def error_in(bus: EventBus, wait: Callable[[Event], Awaitable[Any]], **details: Any) -> BaseException | None:
    """Return what a handler meets that waits for something."""

    async def handler(event: Event) -> None:
        await wait(event)

    bus.subscribe(handler, "deadlock.asked", name="asks")
    with anyio.fail_after(5):
        outcomes = await (await bus.emit("deadlock.asked", {}, **details)).settled()
    return outcomes["asks"].error


async def test_waiting_for_an_event_behind_ones_own_key_raises_at_once() -> None:
    async with EventBus() as bus:

        async def wait(event: Event) -> None:
            await (await bus.emit("deadlock.behind", {}, key="k")).settled()

        assert isinstance(await error_in(bus, wait, key="k"), DeadlockError)
        with anyio.fail_after(5):
            await bus.wait_settled()


async def test_waiting_for_an_event_behind_another_that_has_ones_own_key_raises_at_once() -> None:
    async with EventBus() as bus:

        async def wait(event: Event) -> None:
            await bus.emit("deadlock.behind", {}, key="k")
            await (await bus.emit("deadlock.behind", {}, key="k")).settled()

        assert isinstance(await error_in(bus, wait, key="k"), DeadlockError)


async def test_waiting_for_ones_own_event_raises_at_once() -> None:
    receipts: list[Receipt] = []
    async with EventBus() as bus:
        bus.listen(lambda r: receipts.append(r) if r.event.event_type == "deadlock.asked" else None)

        async def wait(event: Event) -> None:
            await receipts[0].settled()

        assert isinstance(await error_in(bus, wait), DeadlockError)


async def test_a_dispatch_with_the_key_of_a_grandparent_raises_at_once() -> None:
    met: list[BaseException | None] = []
    async with EventBus() as bus:

        async def child(event: Event) -> None:
            await bus.dispatch("deadlock.grandchild", {})

        async def grandchild(event: Event) -> None:
            try:
                await bus.dispatch("deadlock.leaf", {}, key="k")
            except DeadlockError as error:
                met.append(error)
                raise

        bus.subscribe(child, "deadlock.child")
        bus.subscribe(grandchild, "deadlock.grandchild")
        assert await error_in(bus, lambda event: bus.dispatch("deadlock.child", {}), key="k") is None
        with anyio.fail_after(5):
            await bus.wait_settled()
    assert [type(each) for each in met] == [KeyHeldError]
    assert bus.stats().dropped_after == 1  # the leaf


@pytest.mark.parametrize("limit", [1, 2, 64])
async def test_two_handlers_that_wait_for_each_other_are_told(limit: int) -> None:
    receipts: dict[str, Receipt] = {}
    both = asyncio.Event()
    async with EventBus(max_concurrent_events=limit) as bus:

        async def handler(event: Event) -> None:
            await both.wait()
            await receipts["b" if event.payload["name"] == "a" else "a"].settled()

        bus.subscribe(handler, "deadlock.mutual", name="waits")
        for name in ("a", "b"):
            receipts[name] = await bus.emit("deadlock.mutual", {"name": name})
        await anyio.sleep(0.01)
        both.set()
        with anyio.fail_after(5):
            outcomes = [await receipt.settled() for receipt in receipts.values()]
        errors = [type(each["waits"].error) for each in outcomes]
        assert sorted(map(str, errors)) == sorted(map(str, [type(None), DeadlockError]))


async def test_three_handlers_that_wait_in_a_ring_are_told() -> None:
    receipts: dict[int, Receipt] = {}
    all_there = asyncio.Event()
    async with EventBus() as bus:

        async def handler(event: Event) -> None:
            await all_there.wait()
            await receipts[(event.payload["n"] + 1) % 3].settled()

        bus.subscribe(handler, "deadlock.ring", name="waits")
        for n in range(3):
            receipts[n] = await bus.emit("deadlock.ring", {"n": n})
        all_there.set()
        with anyio.fail_after(5):
            errors = [(await receipts[n].settled())["waits"].error for n in range(3)]
        assert [isinstance(error, DeadlockError) for error in errors].count(True) == 1


@pytest.mark.parametrize("method", ["wait_settled", "drain"])
async def test_waiting_for_all_that_is_in_flight_raises_in_a_handler(method: str) -> None:
    async with EventBus() as bus:
        error = await error_in(bus, lambda event: getattr(bus, method)())
        assert isinstance(error, DeadlockError)
        assert method in str(error)
        assert bus.state.value == "running"


async def test_a_thread_of_the_loop_is_not_blocked_by_a_wait_for_itself() -> None:
    async with EventBus() as bus:
        receipt = await bus.emit("deadlock.asked", {})
        with pytest.raises(WrongLoopError):
            receipt.settled_from_thread()
        with anyio.fail_after(5):
            assert (await receipt.settled()).ok
        assert receipt.settled_from_thread().ok  # it waits for nothing any more


@pytest.mark.parametrize("key", ["k", None])
async def test_a_sync_handler_that_waits_behind_its_own_event_is_told(key: str | None) -> None:
    receipts: list[Receipt] = []
    async with EventBus() as bus:
        bus.listen(lambda r: receipts.append(r) if r.event.event_type == "deadlock.asked" else None)

        def handler(event: Event) -> None:
            behind = bus.emit_from_thread("deadlock.behind", {}, key=key) if key else receipts[0]
            behind.settled_from_thread(timeout=5)

        bus.subscribe(handler, "deadlock.asked", name="asks")
        with anyio.fail_after(10):
            outcomes = await (await bus.emit("deadlock.asked", {}, key=key)).settled()
            await bus.wait_settled()
        assert isinstance(outcomes["asks"].error, DeadlockError)


# Lending


@pytest.mark.parametrize("how", ["settled", "expect", "stream", "thread"])
async def test_a_handler_that_waits_lends_its_place(how: str) -> None:
    got: list[str] = []
    async with EventBus(max_concurrent_events=1, max_concurrent_handlers=1) as bus:

        async def parent(event: Event) -> None:
            if how == "settled":
                got.append((await (await bus.emit("lend.child", {})).settled()).event.event_type)
                return
            stream = bus.stream("lend.grandchild")
            await bus.emit("lend.child", {})
            if how == "stream":
                got.append((await anext(stream)).event_type)
            else:
                got.append((await bus.expect("lend.grandchild")).event_type)

        def parent_in_thread(event: Event) -> None:
            receipt = bus.emit_from_thread("lend.child", {})
            got.append(receipt.settled_from_thread(5).event.event_type)

        async def child(event: Event) -> None:
            await bus.emit("lend.grandchild", {})

        bus.subscribe(parent_in_thread if how == "thread" else parent, "lend.parent")
        bus.subscribe(child, "lend.child", 200)
        bus.subscribe(lambda event: None, "lend.child")
        with anyio.fail_after(10):
            outcomes = await (await bus.emit("lend.parent", {})).settled()
        outcomes.raise_for_failures()
        assert got == ["lend.child" if how in ("settled", "thread") else "lend.grandchild"]


async def test_as_many_sync_handlers_as_there_are_threads_can_wait_for_others() -> None:
    peak, now, lock = 0, 0, threading.Lock()
    start = threading.Barrier(10, timeout=20)

    def child(event: Event) -> None:
        nonlocal peak, now
        with lock:
            now += 1
            peak = max(peak, now)
        time.sleep(0.001)
        with lock:
            now -= 1

    async with EventBus() as bus:

        def parent(event: Event) -> None:
            start.wait()
            bus.emit_from_thread("lend.child", {}).settled_from_thread(20).raise_for_failures()

        bus.subscribe(parent, "lend.parent")
        bus.subscribe(child, "lend.child")
        with anyio.fail_after(30):
            receipts = [await bus.emit("lend.parent", {}) for _ in range(10)]
            for receipt in receipts:
                (await receipt.settled()).raise_for_failures()
            await bus.wait_settled()
            assert bus._engine is not None
            assert bus._engine.threads.slots.lent == 0
            assert bus._engine.threads.slots.busy == 0
            for _ in range(40):
                await bus.emit("lend.child", {})
            await bus.wait_settled()
    assert peak <= 10


async def peak_of(bus: EventBus, events: int) -> int:
    """Return how many events are handled at once."""
    peak = now = 0

    async def handler(event: Event) -> None:
        nonlocal peak, now
        now += 1
        peak = max(peak, now)
        for _ in range(5):
            await anyio.sleep(0)
        now -= 1

    subscription = bus.subscribe(handler, "lend.measured", name="measure")
    for _ in range(events):
        await bus.emit("lend.measured", {})
    await bus.wait_settled()
    bus.unsubscribe(subscription)
    return peak


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("ends", ["well", "cancelled", "timed out", "leaves a task"])
async def test_after_lending_the_bound_holds_again(limit: int, ends: str) -> None:
    gate = asyncio.Event()
    tasks: list[asyncio.Task[Outcomes]] = []
    async with EventBus(max_concurrent_events=limit) as bus:

        async def parent(event: Event) -> None:
            receipts = [await bus.emit("lend.child", {}) for _ in range(2)]
            if ends == "leaves a task":
                tasks.extend(asyncio.create_task(receipt.settled()) for receipt in receipts)
                await anyio.sleep(0)
                return
            if ends == "cancelled":
                with anyio.move_on_after(0.01):
                    await asyncio.gather(*(receipt.settled() for receipt in receipts))
                return
            await asyncio.gather(*(receipt.settled() for receipt in receipts))

        async def child(event: Event) -> None:
            await gate.wait()

        bus.subscribe(parent, "lend.parent", timeout=0.01 if ends == "timed out" else 30)
        bus.subscribe(child, "lend.child")
        with anyio.fail_after(10):
            receipt = await bus.emit("lend.parent", {})
            if ends == "well":
                await anyio.sleep(0.01)
                gate.set()
            await receipt.settled()
            gate.set()
            await bus.wait_settled()
            assert await peak_of(bus, 10) == limit
            assert bus._engine is not None
            assert bus._engine.workers.places == limit
        await asyncio.gather(*tasks)


async def test_who_has_no_place_any_more_lends_none() -> None:
    """A task that a handler has left behind waits, while the event waits for its next attempt."""
    gate, waiting = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []
    async with EventBus(max_concurrent_events=1) as bus:

        async def fails(event: Event) -> None:
            if not tasks:
                tasks.append(asyncio.create_task(waits()))
                raise ValueError("again")

        async def waits() -> None:
            waiting.set()
            await bus.expect("lend.never", timeout=20)

        bus.subscribe(fails, "lend.parent", retry=aperion.Retry(attempts=2, wait_initial=20, jitter=0))
        with anyio.fail_after(10):
            await bus.emit("lend.parent", {})
            await waiting.wait()
            await anyio.sleep(0.01)
            gate.set()
            peak = now = 0

            async def handler(event: Event) -> None:
                nonlocal peak, now
                now += 1
                peak = max(peak, now)
                await anyio.sleep(0)
                now -= 1

            bus.subscribe(handler, "lend.measured")
            receipts = [await bus.emit("lend.measured", {}) for _ in range(5)]
            for receipt in receipts:
                await receipt.settled()
            assert peak == 1
            tasks[0].cancel()
            await bus.drain(1)


async def test_waits_that_are_no_ring_are_no_deadlock() -> None:
    """Many wait for one, one for many, and again for what has settled."""
    async with EventBus(max_concurrent_events=2) as bus:

        async def leaf(event: Event) -> None:
            await anyio.sleep(0)

        async def middle(event: Event) -> None:
            receipts = [await bus.emit("chain.leaf", {}, key=str(n)) for n in range(3)]
            await asyncio.gather(*(receipt.settled() for receipt in receipts * 2))

        async def top(event: Event) -> None:
            receipts = [await bus.emit("chain.middle", {}) for n in range(3)]
            for receipt in receipts:
                (await receipt.settled()).raise_for_failures()
            (await bus.dispatch("chain.middle", {})).raise_for_failures()

        bus.subscribe(leaf, "chain.leaf")
        bus.subscribe(middle, "chain.middle")
        bus.subscribe(top, "chain.top")
        with anyio.fail_after(10):
            for receipt in [await bus.emit("chain.top", {}, key="k") for _ in range(3)]:
                (await receipt.settled()).raise_for_failures()


async def test_a_task_that_a_handler_has_started_waits_for_itself_and_not_for_the_handler() -> None:
    receipts: dict[str, aperion.Receipt] = {}
    gate, waiting = anyio.Event(), []

    with anyio.fail_after(20):
        async with EventBus() as bus:

            @bus.on("x.a", name="a")
            async def a(event: Event) -> None:
                await gate.wait()
                waiting.append(asyncio.create_task(receipts["b"].settled()))
                await anyio.sleep(0.05)

            @bus.on("x.b", name="b")
            async def b(event: Event) -> None:
                while not waiting:
                    await anyio.sleep(0)
                await receipts["a"].settled()  # it ends by itself, whoever waits beside it

            receipts["a"] = await bus.emit("x.a", {})
            receipts["b"] = await bus.emit("x.b", {})
            gate.set()
            outcomes = await receipts["b"].settled()
            await waiting[0]

    assert outcomes["b"].error is None


async def test_a_task_that_a_handler_has_started_may_dispatch_behind_the_key_of_the_handler() -> None:
    tasks: list[asyncio.Task[aperion.Outcomes]] = []

    with anyio.fail_after(20):
        async with EventBus() as bus:

            @bus.on("x.a", name="a")
            async def a(event: Event) -> None:
                tasks.append(asyncio.create_task(bus.dispatch("x.b", {}, key="k")))
                await anyio.sleep(0.02)

            await (await bus.emit("x.a", {}, key="k")).settled()
            outcomes = await tasks[0]

    assert outcomes.ok


async def test_a_handler_that_leaves_the_bus_is_told_at_once() -> None:
    """It would wait for itself, as with ``drain()``; the bus runs on until its owner leaves it."""
    told: list[str] = []
    async with aperion.EventBus() as bus:

        @bus.on("chat.sent")
        async def leaves(event: aperion.Event) -> None:
            try:
                await bus.__aexit__(None, None, None)
            except DeadlockError as error:
                told.append(str(error))

        with anyio.fail_after(5):
            assert (await bus.dispatch("chat.sent", {})).ok
        assert bus.state is aperion.BusState.RUNNING

    assert "leaving 'async with bus' in a handler of 'chat.sent'" in told[0]


async def test_an_async_callback_is_refused_since_nobody_would_await_it() -> None:
    async def callback() -> None: ...

    async with aperion.EventBus() as bus:
        receipt = await bus.emit("chat.sent", {})
        with pytest.raises(aperion.HandlerError, match=r"await receipt.settled\(\)"):
            receipt.on_settled(callback)  # type: ignore[arg-type]
