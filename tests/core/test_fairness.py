"""``emit`` plays fair: the loop turns, cancellations are noticed, and handlers have their time."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from accounts import check_empty

from aperion import Event, EventBus, OverflowPolicy

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("policy", [OverflowPolicy.DROP, OverflowPolicy.RAISE, OverflowPolicy.DROP_OLDEST])
async def test_a_loop_of_emits_loses_nothing_to_a_handler_that_never_waits(policy: OverflowPolicy) -> None:
    handled = 0
    with anyio.fail_after(20):
        async with EventBus(max_pending_events=100, overflow_policy=policy) as bus:

            @bus.on("fair.emitted")
            async def handler(event: Event) -> None:
                nonlocal handled
                handled += 1

            for _ in range(2_000):
                assert not (await bus.emit("fair.emitted", {})).dropped
            await bus.wait_settled()
            check_empty(bus)
    assert handled == 2_000


@pytest.mark.parametrize("method", ["emit", "dispatch"])
async def test_a_deadline_around_a_loop_of_emits_fires(method: str) -> None:
    with anyio.fail_after(20):
        async with EventBus() as bus:

            @bus.on("fair.emitted")
            async def handler(event: Event) -> None: ...

            with anyio.move_on_after(0.01) as scope:
                while True:
                    await getattr(bus, method)("fair.emitted", {})
            assert scope.cancelled_caught
            await bus.wait_settled()


@pytest.mark.parametrize("method", ["emit", "dispatch"])
async def test_others_have_their_turn_during_a_loop_of_emits(method: str) -> None:
    turns = 0
    with anyio.fail_after(20):
        async with EventBus() as bus:

            async def count() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            task = asyncio.create_task(count())
            for _ in range(640):
                await getattr(bus, method)("fair.emitted", {})
            task.cancel()
    assert turns >= 9


async def test_a_cancellation_that_is_pending_is_noticed_before_anything_is_accepted() -> None:
    with anyio.fail_after(20):
        async with EventBus() as bus:

            async def emits() -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await bus.emit("fair.emitted", {})

            task = asyncio.create_task(emits())
            await asyncio.wait([task])
            assert task.cancelled()
            assert bus.stats().accepted == 0


async def test_handlers_that_never_wait_let_the_loop_turn() -> None:
    turns = 0
    with anyio.fail_after(20):
        async with EventBus() as bus:

            @bus.on("fair.emitted")
            async def handler(event: Event) -> None: ...

            for _ in range(1_000):
                bus.emit_nowait("fair.emitted", {})
            while bus.stats().pending:
                await asyncio.sleep(0)
                turns += 1
    assert turns >= 10


async def test_a_thread_that_finds_the_bus_full_is_let_in_although_room_is_made_before_it_stands_in_line() -> None:
    with anyio.fail_after(20):
        async with EventBus(max_pending_events=1) as bus:
            for turns in range(6):
                gate = asyncio.Event()

                async def held(event: Event, gate: asyncio.Event = gate) -> None:
                    await gate.wait()

                bus.subscribe(held, "fair.held", name="held")
                await bus.emit("fair.held", {})
                emits = asyncio.create_task(anyio.to_thread.run_sync(lambda: bus.emit_from_thread("fair.emitted", {})))
                while not (bus._bridge._waiting or emits.done()):
                    await asyncio.sleep(0)
                for _ in range(turns):
                    await asyncio.sleep(0)
                gate.set()
                assert not (await emits).dropped
                await bus.wait_settled()
                bus.unsubscribe("held")


async def test_tasks_that_emit_take_turns() -> None:
    """Of two loops under BLOCK neither waits for the end of the other."""
    order: list[str] = []
    with anyio.fail_after(20):
        async with EventBus(max_pending_events=4) as bus:

            @bus.on("fair.emitted")
            async def handler(event: Event) -> None:
                await asyncio.sleep(0)

            async def emits(name: str) -> None:
                for _ in range(200):
                    await bus.emit("fair.emitted", {})
                    order.append(name)

            async with anyio.create_task_group() as group:
                group.start_soon(emits, "a")
                group.start_soon(emits, "b")
    assert "b" in order[:100]
    assert "a" in order[-200:]
