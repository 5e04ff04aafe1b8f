"""Cancellation: at every wait it leaves nothing behind, and it belongs to whoever asked for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import pytest
from accounts import check_balance, check_empty, resting

from aperion import Event, EventBus, FailureReason, OutcomeState, Retry

pytestmark = pytest.mark.anyio

Coro = Coroutine[Any, Any, Any]


# At every wait


async def over(waiting: Any) -> None:
    """Wait until what a coroutine waits for is done, as a task would."""
    if waiting is None:
        await asyncio.sleep(0)
    else:
        waiting._asyncio_future_blocking = False
        await asyncio.wait([waiting])


async def finish(coroutine: Coro) -> None:
    """Make all further steps."""
    while True:
        try:
            await over(coroutine.send(None))
        except StopIteration:
            return


async def throw_at(coroutine: Coro, number: int, how: str, release: Callable[[], Any] | None) -> bool:
    """Throw into a coroutine where it waits for the n-th time; tell whether it gets there.

    ``release`` ends what it waits for, so that it is thrown between the end of the wait and the next step.
    """
    for left in reversed(range(number)):
        try:
            waiting = coroutine.send(None)
        except StopIteration:
            return False
        if left:
            if release is not None:
                release()
            await over(waiting)
    if release is not None:
        release()
        await over(waiting)
    if how == "close":
        coroutine.close()
        return True
    with suppress(asyncio.CancelledError, StopIteration):
        await over(coroutine.throw(asyncio.CancelledError()))
        await finish(coroutine)
    return True


class Scene:
    """A bus on which something waits, and what ends that."""

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.thread_gate = threading.Event()

    def release(self) -> None:
        self.gate.set()
        self.thread_gate.set()

    def bus(self, **options: Any) -> EventBus:
        bus = EventBus(**options)

        @bus.on("gate.waits")
        async def waits(event: Event) -> None:
            await self.gate.wait()

        @bus.on("gate.blocks")
        def blocks(event: Event) -> None:
            self.thread_gate.wait(10)

        @bus.on("gate.fails", retry=Retry(attempts=2, wait_initial=0.001))
        async def fails(event: Event) -> None:
            await anyio.sleep(0)
            raise ValueError("again")

        @bus.on("gate.nests")
        async def nests(event: Event) -> None:
            await bus.dispatch("gate.waits", {})

        return bus


async def emit_to_a_full_bus(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus(max_pending_events=1))
    await bus.emit("gate.waits", {})
    return bus, bus.emit("gate.waits", {}, key="k")


async def emit_behind_another(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus, first = await emit_to_a_full_bus(scene, stack)
    task = asyncio.create_task(first)
    stack.push_async_callback(asyncio.wait, [task])
    await asyncio.sleep(0)
    return bus, bus.emit("gate.waits", {})


async def emit_when_the_loop_turns(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    for _ in range(63):
        await bus.emit("gate.nobody", {})
    return bus, bus.emit("gate.waits", {})


async def dispatch_on_a_full_bus(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus(max_pending_events=1))
    await bus.emit("gate.waits", {})
    return bus, bus.dispatch("gate.waits", {}, key="k")


async def dispatch_behind_its_key(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    await bus.emit("gate.waits", {}, key="k")
    coroutine = bus.dispatch("gate.waits", {}, key="k")
    return bus, coroutine


async def dispatch_that_waits(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    return bus, bus.dispatch("gate.waits", {})


async def dispatch_in_a_thread(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    return bus, bus.dispatch("gate.blocks", {})


async def dispatch_that_waits_for_a_thread(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus(max_concurrent_handlers=1))
    await bus.emit("gate.blocks", {})
    await anyio.sleep(0.005)
    return bus, bus.dispatch("gate.blocks", {})


async def dispatch_that_is_retried(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    return bus, bus.dispatch("gate.fails", {}, key="k")


async def dispatch_in_a_dispatch(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    return bus, bus.dispatch("gate.nests", {})


async def settled(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    return bus, (await bus.emit("gate.waits", {})).settled()


async def wait_settled(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    await bus.emit("gate.waits", {})
    return bus, bus.wait_settled()


async def expect(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    stack.callback(scene.release)
    emit = scene.release
    scene.release = lambda: (emit(), bus.emit_nowait("gate.seen", {}))[0]  # type: ignore[method-assign]
    return bus, bus.expect("gate.seen", timeout=20)


async def stream(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    source = bus.stream("gate.seen")
    emit = scene.release
    scene.release = lambda: (emit(), bus.emit_nowait("gate.seen", {}))[0]  # type: ignore[method-assign]
    return bus, source.__anext__()


async def redrive(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus())
    await bus.dispatch("gate.fails", {})
    return bus, bus.redrive(bus.dead_letters.list(subscription=None)[0].letter_id)


async def outbox(scene: Scene, stack: AsyncExitStack) -> tuple[EventBus, Coro]:
    bus = await stack.enter_async_context(scene.bus(max_pending_events=1))

    box = await stack.enter_async_context(bus.outbox())
    for _ in range(3):
        box.emit("gate.waits", {})
    return bus, box.flush()


SCENES: list[Callable[[Scene, AsyncExitStack], Awaitable[tuple[EventBus, Coro]]]] = [
    *(emit_to_a_full_bus, emit_behind_another, emit_when_the_loop_turns, dispatch_on_a_full_bus),
    *(dispatch_behind_its_key, dispatch_that_waits, dispatch_in_a_thread, dispatch_that_waits_for_a_thread),
    *(dispatch_that_is_retried, dispatch_in_a_dispatch, settled, wait_settled, expect, stream, redrive, outbox),
]


@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "once told"])
@pytest.mark.parametrize("how", ["cancel", "close"])
@pytest.mark.parametrize("make", SCENES, ids=lambda make: make.__name__)
async def test_a_wait_that_is_given_up_leaves_nothing(make: Any, how: str, late: bool) -> None:
    with anyio.fail_after(30):
        for number in range(1, 20):
            scene = Scene()
            async with AsyncExitStack() as stack:
                bus, coroutine = await make(scene, stack)
                if not late and number > 1 and make is not dispatch_that_is_retried:
                    coroutine.close()
                    scene.release()
                    break
                reached = await throw_at(coroutine, number, how, scene.release if late else None)
                check_balance(bus)
                scene.release()
                assert (await (await bus.emit("gate.waits", {}, key="k")).settled()).ok
                assert (await bus.dispatch("gate.blocks", {}, key="k")).ok
                await bus.wait_settled()
                check_empty(bus)
                await resting(bus)
                assert bus.stats().engine_errors == 0
            if not reached:
                break
        assert number > 1


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_drain_goes_on_without_who_asked_for_it(how: str) -> None:
    scene = Scene()
    with anyio.fail_after(10):
        async with scene.bus() as bus:
            receipt = await bus.emit("gate.waits", {})
            assert await throw_at(bus.drain(), 1, how, None)
            scene.release()
            assert (await bus.drain()).ok
            assert (await receipt.settled()).ok
            check_balance(bus)


@pytest.mark.parametrize("rounds", range(6))
async def test_a_task_cancelled_at_any_turn_of_the_loop_leaves_nothing(rounds: int) -> None:
    """Emitters under BLOCK, cancelled after so many turns, in every order with the handlers."""
    with anyio.fail_after(20):
        async with EventBus(max_pending_events=2, max_concurrent_events=1) as bus:

            @bus.on("turn.taken")
            async def handler(event: Event) -> None:
                await anyio.sleep(0)

            for turns in range(12):
                tasks = [asyncio.create_task(bus.emit("turn.taken", {}, key="k" * (n % 2) or None)) for n in range(6)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks[rounds:] + tasks[:rounds]:
                    task.cancel()
                    check_balance(bus)
                await asyncio.wait(tasks)
                await bus.wait_settled()
                check_empty(bus)


# Its owner


async def patient(event: Event) -> None:
    await anyio.sleep(30)


async def stubborn(event: Event) -> None:
    """Keep the first cancellation to itself."""
    try:
        await anyio.sleep(30)
    except asyncio.CancelledError:
        return


async def contrary(event: Event) -> None:
    """Answer the first cancellation with an error."""
    try:
        await anyio.sleep(30)
    except asyncio.CancelledError:
        raise ValueError("not now") from None


def nest(bus: EventBus, inner: Any, depth: int, timeouts: list[float]) -> None:
    """Subscribe handlers that dispatch to each other, so many deep."""
    for level in range(depth):

        async def handler(event: Event, level: int = level) -> None:
            await bus.dispatch(f"nest.level{level + 1}", {})

        last = level == depth - 1
        bus.subscribe(inner if last else handler, f"nest.level{level}", name=f"level{level}", timeout=timeouts[level])


async def with_fail_after(work: Coro) -> None:
    with anyio.fail_after(0.02):
        await work


async def with_move_on_after(work: Coro) -> None:
    with anyio.move_on_after(0.02) as scope:
        await work
    if scope.cancelled_caught:
        raise TimeoutError


async def with_asyncio_timeout(work: Coro) -> None:
    async with asyncio.timeout(0.02):
        await work


async def with_wait_for(work: Coro) -> None:
    await asyncio.wait_for(work, 0.02)


async def with_task_cancel(work: Coro) -> None:
    task = asyncio.create_task(work)
    await anyio.sleep(0.02)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        raise TimeoutError from None


async def with_a_group(work: Coro) -> None:
    done = False

    async def run() -> None:
        nonlocal done
        await work
        done = True

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.sleep(0.02)
        group.cancel_scope.cancel()
    if not done:
        raise TimeoutError


OWNERS = [with_fail_after, with_move_on_after, with_asyncio_timeout, with_wait_for, with_task_cancel, with_a_group]


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


@pytest.mark.parametrize("inner", [patient, stubborn, contrary], ids=lambda inner: inner.__name__)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
async def test_who_dispatches_is_cancelled_by_his_own_deadline(owner: Any, depth: int, inner: Any) -> None:
    with anyio.fail_after(10):
        async with EventBus() as bus:
            nest(bus, inner, depth, [30.0] * depth)

            with pytest.raises(TimeoutError):
                await owner(bus.dispatch("nest.level0", {}))

            assert cancelling() == 0
            await bus.wait_settled()
            check_empty(bus)
            await anyio.sleep(0)  # nothing of it reaches what comes next
            letters = bus.dead_letters.list()
    assert {letter.subscription for letter in letters} == {f"level{n}" for n in range(depth)}
    reasons = {letter.subscription: letter.reason for letter in letters}
    last = reasons.pop(f"level{depth - 1}")
    assert last is (FailureReason.HANDLER_ERROR if inner is contrary else FailureReason.NOT_FINISHED)
    assert set(reasons.values()) <= {FailureReason.NOT_FINISHED}


@pytest.mark.parametrize("inner", [patient, stubborn, contrary], ids=lambda inner: inner.__name__)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
async def test_a_deadline_inside_a_handler_is_the_handlers_own(owner: Any, depth: int, inner: Any) -> None:
    met: list[str] = []
    with anyio.fail_after(10):
        async with EventBus() as bus:
            nest(bus, inner, depth, [30.0] * depth)

            @bus.on("nest.outer", name="outer")
            async def outer(event: Event) -> None:
                with pytest.raises(TimeoutError):
                    await owner(bus.dispatch("nest.level0", {}))
                await anyio.sleep(0.001)
                met.append("went on")

            for _ in range(2):
                outcomes = await (await bus.emit("nest.outer", {})).settled()
                assert outcomes["outer"].state is OutcomeState.OK
            assert (await bus.dispatch("nest.outer", {})).ok
            assert cancelling() == 0
            await bus.wait_settled()
            check_empty(bus)
    assert met == ["went on"] * 3


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
async def test_a_deadline_around_a_handlers_own_wait_is_no_failure(owner: Any) -> None:
    with anyio.fail_after(10):
        async with EventBus() as bus:

            @bus.on("nest.outer", name="outer")
            async def outer(event: Event) -> None:
                with pytest.raises(TimeoutError):
                    await owner(patient(event))

            assert (await (await bus.emit("nest.outer", {})).settled())["outer"].state is OutcomeState.OK
            assert (await bus.dispatch("nest.outer", {}))["outer"].state is OutcomeState.OK
            assert cancelling() == 0


@pytest.mark.parametrize("inner", [patient, stubborn, contrary], ids=lambda inner: inner.__name__)
@pytest.mark.parametrize("shortest", [0, 1, 2])
async def test_the_shortest_timeout_of_nested_handlers_is_who_times_out(shortest: int, inner: Any) -> None:
    timeouts = [30.0] * 3
    timeouts[shortest] = 0.02
    states: dict[str, OutcomeState] = {}
    with anyio.fail_after(10):
        async with EventBus() as bus:
            nest(bus, inner, 3, timeouts)
            taps: list[Any] = []
            bus.listen(lambda receipt: taps.append(receipt))
            for way in ("emit", "dispatch"):
                taps.clear()
                if way == "emit":
                    await (await bus.emit("nest.level0", {})).settled()
                else:
                    await bus.dispatch("nest.level0", {})
                await bus.wait_settled()
                nested = [receipt for receipt in taps if receipt.event.event_type.startswith("nest.")]
                states = {name: outcome.state for r in nested for name, outcome in r.outcomes.items()}
                wanted = [OutcomeState.OK, OutcomeState.TIMED_OUT, OutcomeState.FAILED]
                for level in range(3):
                    assert states[f"level{level}"] is wanted[(level > shortest) - (level < shortest) + 1], level
            check_empty(bus)
            assert cancelling() == 0


@pytest.mark.parametrize("inner", [patient, stubborn, contrary], ids=lambda inner: inner.__name__)
@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
async def test_who_redrives_is_cancelled_by_his_own_deadline(owner: Any, inner: Any) -> None:
    with anyio.fail_after(10):
        async with EventBus() as bus:

            @bus.on("nest.again", name="again")
            async def again(event: Event) -> None:
                if len(bus.dead_letters):
                    return await inner(event)
                raise ValueError("first")

            await bus.dispatch("nest.again", {})
            letter = bus.dead_letters.list()[0]
            with pytest.raises(TimeoutError):
                await owner(bus.redrive(letter.letter_id))

            assert cancelling() == 0
            wanted = FailureReason.HANDLER_ERROR if inner is contrary else FailureReason.NOT_FINISHED
            assert bus.dead_letters.get(letter.letter_id).reason is wanted
            await bus.wait_settled()
            check_empty(bus)


async def test_who_cancels_the_task_that_runs_him_hurts_nobody_else() -> None:
    ran: list[str] = []
    with anyio.fail_after(10):
        async with EventBus(max_concurrent_events=1) as bus:

            @bus.on("self.cancelled", name="subject")
            async def subject(event: Event) -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                if event.payload["waits"]:
                    await anyio.sleep(0)

            @bus.on("self.cancelled", priority=1, name="neighbour")
            async def neighbour(event: Event) -> None:
                await anyio.sleep(0)

            @bus.on("self.calm")
            async def calm(event: Event) -> None:
                await anyio.sleep(0)
                ran.append("calm")

            for _ in range(20):
                outcomes = await (await bus.emit("self.cancelled", {"waits": True})).settled()
                assert outcomes["subject"].state is OutcomeState.FAILED
                assert outcomes["neighbour"].state is OutcomeState.OK
                await (await bus.emit("self.cancelled", {"waits": False})).settled()
                assert (await (await bus.emit("self.calm", {})).settled()).ok
            await bus.wait_settled()
            check_empty(bus)
            assert (await bus.drain()).ok
    assert ran.count("calm") == 20


async def test_a_handler_that_catches_a_cancellation_of_its_own_making_goes_on() -> None:
    with anyio.fail_after(10):
        async with EventBus() as bus:

            @bus.on("self.cancelled", name="subject")
            async def subject(event: Event) -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await anyio.sleep(1)
                task.uncancel()
                await anyio.sleep(0)

            for way in (bus.dispatch, bus.emit):
                done = await way("self.cancelled", {})
                outcomes = await done.settled() if way == bus.emit else done  # type: ignore[union-attr]
                assert outcomes["subject"].state is OutcomeState.OK  # type: ignore[index]
            assert cancelling() == 0


async def test_a_deadline_that_passes_as_the_handler_ends_is_not_lost() -> None:
    """The owner is cancelled in the very turn in which the last handler ends; it stays his."""
    with anyio.fail_after(10):
        async with EventBus() as bus:
            gate = asyncio.Event()

            @bus.on("turn.taken")
            async def handler(event: Event) -> None:
                await gate.wait()

            async def work() -> None:
                await bus.dispatch("turn.taken", {})
                await anyio.sleep(30)

            task = asyncio.create_task(work())
            await anyio.sleep(0.001)
            gate.set()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await bus.wait_settled()
            check_empty(bus)
