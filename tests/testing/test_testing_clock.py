"""The clock that users move in their tests, instead of waiting."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import anyio
import pytest

import aperion
from aperion import Event, EventBus
from aperion.outcomes import OutcomeState
from aperion.testing import recording, virtual_time
from aperion.testing.running import wait

pytestmark = pytest.mark.anyio
HOUR = 3600.0


async def test_retries_come_when_the_clock_is_moved_that_far_and_not_before() -> None:
    tried: list[float] = []
    async with EventBus() as bus:
        with virtual_time(bus) as clock:

            @bus.on("order.placed", retry=aperion.Retry(attempts=3, wait_initial=10, jitter=0))
            async def handle(event: Event) -> None:
                tried.append(round(clock.elapsed, 3))
                raise ValueError

            receipt = await bus.emit("order.placed", {})
            await clock.advance(9.9)
            assert tried == [0.0]
            await clock.advance(20.1)  # 10 and 20 seconds after one another

            assert tried == [0.0, 10.0, 30.0]
            assert receipt.is_settled


@pytest.mark.parametrize(("step", "times"), [(0.1, 10), (0.2, 5), (0.7, 9), (0.001, 1000), (1e-6, 500)])
async def test_steps_of_decimals_add_up(step: float, times: int) -> None:
    """A sum of floats would fall short: ten steps of 0.1 are 0.9999999999999999."""
    rung: list[float] = []
    whole = round(step * times, 9)
    async with EventBus() as bus:
        with virtual_time(bus) as clock:

            async def ring() -> None:
                await anyio.sleep(whole)
                rung.append(clock.elapsed)

            async with anyio.create_task_group() as group:
                group.start_soon(ring)
                for _ in range(times - 1):
                    await clock.advance(step)
                assert rung == []
                await clock.advance(step)
                assert rung == [whole]
                group.cancel_scope.cancel()

            assert clock.elapsed == whole


async def test_timers_that_follow_one_another_add_up() -> None:
    """Each begins where the one before has ended, and nothing is added in between."""
    rung: list[float] = []
    async with EventBus(handler_timeout=None) as bus:
        with virtual_time(bus) as clock:

            @bus.on("order.placed")
            async def sleepy(event: Event) -> None:
                for _ in range(300):
                    await anyio.sleep(0.1)
                    rung.append(clock.elapsed)

            await bus.emit("order.placed", {})
            took = await clock.settle()

    assert took == 30.0
    assert rung == [round(0.1 * n, 9) for n in range(1, 301)]


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
async def test_time_goes_forward_by_a_number_of_seconds(seconds: float) -> None:
    async with EventBus() as bus:
        with virtual_time(bus) as clock, pytest.raises(aperion.ConfigurationError, match="time goes forward"):
            await clock.advance(seconds)


async def test_a_handler_times_out_when_the_clock_passes_its_deadline() -> None:
    async with EventBus(handler_timeout=30) as bus:

        @bus.on("order.placed", name="slow")
        async def hang(event: Event) -> None:
            await anyio.sleep_forever()

        with virtual_time(bus) as clock:
            receipt = await bus.emit("order.placed", {})
            await clock.advance(29.9)
            assert not receipt.is_settled
            await clock.advance(0.1)

            assert receipt.outcomes is not None
            assert receipt.outcomes["slow"].state is OutcomeState.TIMED_OUT


async def test_a_handler_that_waits_already_obeys_too() -> None:
    async with EventBus(handler_timeout=30) as bus:

        @bus.on("order.placed", name="slow")
        async def hang(event: Event) -> None:
            await anyio.sleep_forever()

        receipt = await bus.emit("order.placed", {})
        await anyio.wait_all_tasks_blocked()
        with virtual_time(bus) as clock:
            await clock.advance(31)
            assert receipt.is_settled


async def test_the_timeout_of_a_sync_handler_obeys_the_clock_though_its_thread_does_not() -> None:
    go_on = threading.Event()
    async with EventBus() as bus:

        @bus.on("order.placed", name="slow", timeout=60)
        def hang(event: Event) -> None:
            go_on.wait(10)

        with virtual_time(bus) as clock:
            receipt = await bus.emit("order.placed", {})
            await clock.advance(61)
            assert bus.stats().threads_abandoned == 1
        go_on.set()

    assert receipt.outcomes is not None
    assert receipt.outcomes["slow"].state is OutcomeState.TIMED_OUT


async def test_threads_that_end_by_themselves_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before time moves: the timeout of one second does not strike."""
    monkeypatch.setattr("aperion.testing.clock._GRACE", 10)
    async with EventBus() as bus:

        @bus.on("order.placed", name="busy", timeout=1)
        def work(event: Event) -> None:
            time.sleep(0.02)

        with virtual_time(bus) as clock:
            receipt = await bus.emit("order.placed", {})
            await clock.advance(10)

    assert receipt.outcomes is not None
    assert receipt.outcomes.ok


async def test_sleeps_and_deadlines_of_anyio_and_asyncio_obey() -> None:
    ended: list[str] = []
    async with EventBus() as bus:

        @bus.on("sleep.begun", timeout=2 * HOUR)
        async def sleep(event: Event) -> None:
            await anyio.sleep(HOUR / 2)
            await asyncio.sleep(HOUR / 2)
            ended.append("slept")

        @bus.on("patience.begun")
        async def lose_patience(event: Event) -> None:
            with anyio.move_on_after(10) as scope:
                await anyio.sleep_forever()
            if scope.cancelled_caught:
                ended.append("anyio")
            try:
                await asyncio.wait_for(asyncio.Event().wait(), 10)
            except TimeoutError:
                ended.append("asyncio")

        with virtual_time(bus) as clock:
            await bus.emit("sleep.begun", {})
            await bus.emit("patience.begun", {})
            await clock.advance(20)
            assert ended == ["anyio", "asyncio"]
            await clock.advance(HOUR)

    assert ended == ["anyio", "asyncio", "slept"]


async def test_settling_moves_the_clock_as_far_as_it_takes() -> None:
    async with EventBus() as bus:

        @bus.on("a.happened", retry=aperion.Retry(attempts=2, wait_initial=20, jitter=0))
        async def first(event: Event) -> None:
            if not bus.stats().retries:
                raise ValueError
            await anyio.sleep(5)
            await bus.emit("b.happened", {})

        @bus.on("b.happened", timeout=math.inf)
        async def second(event: Event) -> None:
            await anyio.sleep(2 * HOUR)

        with virtual_time(bus) as clock, recording(bus) as recorded:
            await bus.emit("a.happened", {})
            seconds = await clock.settle(within=3 * HOUR)

    assert seconds == pytest.approx(25 + 2 * HOUR, abs=0.001)
    assert [o.ok for o in recorded.outcomes_of("*.happened")] == [True, True]
    assert recorded.assert_emitted("b.happened", within=25.1)


async def test_settling_gives_up_with_the_stacks_when_the_clock_is_of_no_help() -> None:
    async with EventBus(handler_timeout=None, drain_timeout=0.01) as bus:

        @bus.on("order.placed", name="stuck")
        async def hang(event: Event) -> None:
            await anyio.sleep_forever()  # the line that is looked for

        with virtual_time(bus) as clock:
            await bus.emit("order.placed", {})
            with pytest.raises(TimeoutError, match="nothing on the clock is awaited") as caught:
                await clock.settle()
            assert "is in stuck" in str(caught.value)
            assert "the line that is looked for" in str(caught.value)

            sleeper = asyncio.create_task(anyio.sleep(100))
            with pytest.raises(TimeoutError, match="50 s of the clock have passed"):
                await clock.settle(within=50)
            sleeper.cancel()


async def test_a_recorders_timeouts_are_real_on_a_clock_that_stands_still() -> None:
    async with EventBus(drain_timeout=0.01) as bus:

        @bus.on("order.placed")
        async def hang(event: Event) -> None:
            await anyio.sleep(HOUR)

        with virtual_time(bus), recording(bus) as recorded:
            await bus.emit("order.placed", {})
            with pytest.raises(TimeoutError):
                await recorded.settle(timeout=0.02)
            with pytest.raises(TimeoutError):
                await recorded.wait_for("chat.*", timeout=0.02)


async def test_timers_set_before_and_left_over_after_are_real() -> None:
    came: list[object] = []
    before, after = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: came.append(context))
    async with EventBus() as bus:
        loop.call_later(0.01, before.set)
        with anyio.fail_after(5):
            with virtual_time(bus) as clock:
                await before.wait()
                loop.call_later(10, came.append, "cancelled").cancel()
                cancelled_later = loop.call_later(10, came.append, "cancelled later")
                loop.call_later(10.01, after.set)
                await clock.advance(9.99)
                assert came == []
            cancelled_later.cancel()
            await after.wait()
    loop.set_exception_handler(None)

    assert came == []


async def test_time_is_real_again_after_the_block() -> None:
    loop = asyncio.get_running_loop()
    async with EventBus() as bus:
        with virtual_time(bus) as clock:
            stands_still = loop.time()
            assert loop.time() == stands_still
            await clock.advance(HOUR)
            assert loop.time() == pytest.approx(stands_still + HOUR)
            assert clock.elapsed == pytest.approx(HOUR)
        with anyio.fail_after(5):
            await anyio.sleep(0.001)
            receipt = await bus.emit("order.placed", {})
            await receipt.settled()

    assert loop.time() < stands_still + HOUR


async def test_a_handler_that_waits_as_the_block_ends_keeps_a_deadline() -> None:
    async with EventBus(handler_timeout=0.05) as bus:

        @bus.on("order.placed", name="slow")
        async def hang(event: Event) -> None:
            await anyio.sleep_forever()

        with anyio.fail_after(5):
            with virtual_time(bus):
                receipt = await bus.emit("order.placed", {})
                await anyio.lowlevel.checkpoint()
            outcomes = await receipt.settled()

    assert outcomes["slow"].state is OutcomeState.TIMED_OUT


async def test_wrong_uses_of_the_clock_say_so() -> None:
    with pytest.raises(aperion.BusNotRunningError), virtual_time(EventBus()):
        pass
    async with EventBus() as bus:
        with virtual_time(bus) as clock:
            with pytest.raises(aperion.ConfigurationError, match="virtual already"), virtual_time(bus):
                pass
            with pytest.raises(aperion.ConfigurationError, match="time goes forward"):
                await clock.advance(-1)


async def test_a_loop_that_never_rests_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aperion.testing.clock._MOST_ROUNDS", 100)

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    async with EventBus() as bus:
        spinner = asyncio.create_task(spin())
        with virtual_time(bus) as clock, pytest.raises(TimeoutError, match="does not come to rest"):
            await clock.advance(1)
        spinner.cancel()


def beats(metrics: aperion.InMemoryMetrics) -> int:
    return sum(found["count"] for name, found in metrics.snapshot()["histograms"].items() if "loop_lag" in name)


async def test_the_pulse_of_a_watched_bus_stays_real() -> None:
    """Or a clock that stands still would be taken for a loop that is held up, and an hour for lag."""
    metrics = aperion.InMemoryMetrics()
    async with EventBus(watchdog=0.04, metrics=metrics) as bus:
        before = beats(metrics)
        with anyio.fail_after(10), virtual_time(bus) as clock:
            await clock.advance(HOUR)
            assert beats(metrics) < before + 1000
            while beats(metrics) < before + 2:
                await wait(0.01)

        assert bus.stats().loop_blocked == 0
