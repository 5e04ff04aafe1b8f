"""Starting, draining and stopping: of a bus, of an application, of the process."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

import aperion
from aperion import App, Event, EventBus, FailureReason
from aperion.app import serve

pytestmark = pytest.mark.anyio


async def test_leaving_the_block_finishes_what_is_in_flight() -> None:
    """SHD-a SHD-b TMO-g: a hundred events of 20 ms, none lost, none cancelled."""
    done = 0
    async with EventBus() as bus:

        @bus.on("chat.sent")
        async def handler(event: Event) -> None:
            nonlocal done
            await anyio.sleep(0.02)
            done += 1

        for _ in range(100):
            await bus.emit("chat.sent", {})

    assert done == 100
    assert bus.last_drain is not None
    assert bus.last_drain.ok
    assert bus.last_drain.settled == 100
    assert bus.stats().pending == 0


async def test_what_did_not_finish_is_named_and_kept() -> None:
    """SHD-a: one deadline, then cancel; started, queued, keyed: each is in the report and a dead letter."""
    cancelled: list[str] = []
    async with EventBus(max_concurrent_events=2) as bus:

        @bus.on("slow.event", name="slow")
        async def slow(event: Event) -> None:
            try:
                await anyio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(event.event_id)
                raise

        bus.subscribe(lambda e: None, "slow.event", 1, name="after")
        receipts = [await bus.emit("slow.event", {}, key="k" if n > 2 else None) for n in range(6)]
        await anyio.sleep(0.01)
        with anyio.fail_after(5):
            report = await bus.drain(0.05)

        assert not report.ok
        assert sorted(report.unfinished) == sorted(("slow.event", r.event_id) for r in receipts)
        letters = bus.dead_letters.list(reason=FailureReason.NOT_FINISHED)
        assert {(e.event.event_id, e.subscription) for e in letters} == {
            (r.event_id, name) for r in receipts for name in ("slow", "after")
        }
        assert all(r.is_settled and not r.outcomes.ok for r in receipts)  # type: ignore[union-attr]
        assert bus.stats().pending == 0
    assert len(cancelled) == 2


async def test_while_it_drains_the_bus_accepts_only_what_handlers_emit() -> None:
    """SHD-d/e/f/g/h: intake closes first; a child of what is in flight still belongs to it."""
    seen: list[str] = []
    gate = anyio.Event()
    async with EventBus() as bus:

        @bus.on("parent.event")
        async def parent(event: Event) -> None:
            await gate.wait()
            await bus.emit("child.event", {})

        bus.subscribe(lambda e: seen.append(e.event_type), "child.event")
        await bus.emit("parent.event", {})
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(bus.drain)
                await anyio.sleep(0.01)
                assert bus.stats().state == "draining"
                with pytest.raises(aperion.BusNotRunningError, match="draining"):
                    await bus.emit("late.event", {})
                gate.set()
        with pytest.raises(aperion.BusNotRunningError):
            await bus.emit("late.event", {})
    assert seen == ["child.event"]
    with pytest.raises(aperion.BusNotRunningError, match="async with bus"):
        await bus.emit("late.event", {})
    with pytest.raises(aperion.BusNotRunningError):
        bus.emit_from_thread("late.event", {})
    with pytest.raises(aperion.BusNotRunningError):
        await bus.dispatch("late.event", {})


async def test_an_emitter_that_waits_for_room_is_told_of_the_drain() -> None:
    """Nothing is lost without a word: it gets an error, in the loop and in a thread."""
    errors: list[str] = []
    async with EventBus(max_pending_events=1, drain_timeout=0.05) as bus:

        @bus.on("slow.event")
        async def slow(event: Event) -> None:
            await anyio.sleep(60)

        await bus.emit("slow.event", {})

        async def in_loop() -> None:
            try:
                await bus.emit("slow.event", {})
            except aperion.BusNotRunningError:
                errors.append("loop")

        def in_thread() -> None:
            try:
                bus.emit_from_thread("slow.event", {})
            except aperion.BusNotRunningError:
                errors.append("thread")

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(in_loop)
                group.start_soon(anyio.to_thread.run_sync, in_thread)
                await anyio.sleep(0.05)
                await bus.drain()

    assert sorted(errors) == ["loop", "thread"]


async def test_a_cancelled_block_still_drains() -> None:
    """The task around the bus is cancelled; what was accepted is finished all the same."""
    done: list[int] = []
    with anyio.fail_after(10):
        with anyio.move_on_after(0.02):
            async with EventBus(drain_timeout=5) as bus:

                @bus.on("chat.sent")
                async def handler(event: Event) -> None:
                    await anyio.sleep(0.05)
                    done.append(event.payload["n"])

                for n in range(3):
                    await bus.emit("chat.sent", {"n": n})
                await anyio.sleep(60)

    assert sorted(done) == [0, 1, 2]


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    """Not wrapped into a group, and after the drain."""
    done: list[int] = []
    with pytest.raises(ValueError, match="mine"):
        async with EventBus() as bus:
            bus.subscribe(lambda e: done.append(1), "chat.sent")
            await bus.emit("chat.sent", {})
            raise ValueError("mine")

    assert done == [1]


async def test_a_bus_in_use_elsewhere_says_so() -> None:
    """ASY-a/b/c: from another loop or thread, with what to use instead; on its own thread too."""
    async with EventBus() as bus:

        def elsewhere() -> None:
            for call in (bus.emit, bus.dispatch):
                with pytest.raises(aperion.WrongLoopError, match="emit_from_thread"):
                    asyncio.run(call("chat.sent", {}))
            with pytest.raises(aperion.WrongLoopError):
                bus.emit_nowait("chat.sent", {})

        await anyio.to_thread.run_sync(elsewhere)
        with pytest.raises(aperion.WrongLoopError, match="use emit"):
            bus.emit_from_thread("chat.sent", {})
        with pytest.raises(RuntimeError, match="already"):
            async with bus:
                pass


async def test_the_loop_runs_on_while_handlers_of_both_kinds_work() -> None:
    """ASY-a/b/c: waiting for a sync handler never freezes the loop; a handler may use the loop's own things."""
    ticks = 0
    queue: asyncio.Queue[int] = asyncio.Queue()
    async with EventBus() as bus:
        bus.subscribe(lambda e: time.sleep(0.1), "chat.sent")

        @bus.on("chat.sent")
        async def uses_the_loop(event: Event) -> None:
            await queue.put(1)

        async def tick() -> None:
            nonlocal ticks
            while True:
                await anyio.sleep(0.005)
                ticks += 1

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(tick)
                await bus.dispatch("chat.sent", {})
                group.cancel_scope.cancel()
            assert await queue.get() == 1
    assert ticks >= 5


async def test_a_cancelled_dispatch_cancels_its_handler_and_settles() -> None:
    """The rest of its handlers do not run, and are dead letters."""
    ran: list[str] = []
    async with EventBus() as bus:

        @bus.on("chat.sent", priority=200, name="slow")
        async def slow(event: Event) -> None:
            try:
                await anyio.sleep(60)
            finally:
                ran.append("cleaned up")

        bus.subscribe(lambda e: ran.append("never"), "chat.sent", name="after")
        with anyio.fail_after(5):
            with anyio.move_on_after(0.02):
                await bus.dispatch("chat.sent", {})
            assert bus.stats().pending == 0
        assert {e.subscription for e in bus.dead_letters.list(reason=FailureReason.NOT_FINISHED)} == {"slow", "after"}
    assert ran == ["cleaned up"]


# Applications


async def test_an_application_starts_and_stops_its_parts_in_order() -> None:
    """Lifespan around the bus, services beside it; events of the last moment find their resources."""
    trace: list[str] = []

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        trace.append("open")
        yield
        trace.append("close")

    app = App(lifespan=lifespan)

    @app.bus.on("chat.sent")
    async def handler(event: Event) -> None:
        await anyio.sleep(0.02)
        trace.append("handled")

    @app.service
    async def service() -> None:
        trace.append("service")
        try:
            await anyio.sleep(60)
        finally:
            trace.append("service ended")

    for _ in range(2):
        with anyio.fail_after(5):
            async with app:
                await anyio.sleep(0.01)
                await app.bus.emit("chat.sent", {})

    assert trace == ["open", "service", "service ended", "handled", "close"] * 2


async def test_a_service_that_raises_ends_the_application() -> None:
    """Its error comes out."""
    app = App()

    @app.service
    async def fails() -> None:
        raise ValueError("service is broken")

    with anyio.fail_after(5), pytest.raises(BaseExceptionGroup) as caught:
        async with app:
            await anyio.sleep(60)
    assert caught.group_contains(ValueError, match="service is broken")


@pytest.mark.parametrize("wrong", [5, lambda: None, print])
def test_what_cannot_run_is_refused(wrong: object) -> None:
    """With what it should have been."""
    with pytest.raises(aperion.ApplicationError, match="async function"):
        App().service(wrong)  # type: ignore[type-var]
    with pytest.raises(aperion.ApplicationError, match="async function"):
        aperion.run(EventBus(), wrong)  # type: ignore[arg-type]
    with pytest.raises(aperion.ApplicationError, match="EventBus"):
        aperion.run(5)  # type: ignore[arg-type]


async def test_run_inside_a_loop_says_what_to_do() -> None:
    """It starts a loop of its own."""
    with pytest.raises(aperion.ApplicationError, match="async with app"):
        aperion.run(EventBus())


def test_run_returns_when_everything_settled_and_exits_with_1_otherwise() -> None:
    """The code says whether everything settled; what main raises comes out."""
    bus = EventBus(drain_timeout=0.05)

    @bus.on("slow.event")
    async def slow(event: Event) -> None:
        await anyio.sleep(60)

    async def fine() -> None:
        await bus.emit("quick.event", {})

    async def unfinished() -> None:
        await bus.emit("slow.event", {})

    async def broken() -> None:
        raise ValueError("main is broken")

    aperion.run(bus, fine)
    assert serve(bus, unfinished) == 1
    with pytest.raises(SystemExit, match="1"):
        aperion.run(bus, unfinished)
    with pytest.raises(ValueError, match="main is broken"):
        aperion.run(bus, broken)


SIGNALLED = """
import sys, time, anyio, aperion
bus = aperion.EventBus(drain_timeout=float(sys.argv[1]))
@bus.on("slow.event")
async def slow(event):
    await anyio.sleep(float(sys.argv[2]))
    print("handled", flush=True)
app = aperion.App(bus)
@app.service
async def begin():
    await bus.emit("slow.event", {})
    print("ready", flush=True)
aperion.run(app)
"""


def _signalled(drain: float, handler: float, signals: list[int]) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SIGNALLED), str(drain), str(handler)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        while "ready" not in process.stdout.readline():
            pass
        for number in signals:
            process.send_signal(number)
            time.sleep(0.3)
        out, _ = process.communicate(timeout=20)
    return process.returncode, out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_the_code_says_that_all_settled(number: int) -> None:
    """SHD-b: what is in flight is finished first."""
    assert _signalled(10, 0.5, [number])[0] == 0


def test_a_signal_with_a_deadline_that_passes_exits_with_1() -> None:
    """Something did not settle."""
    code, out = _signalled(0.2, 60, [signal.SIGTERM])

    assert code == 1
    assert "handled" not in out


def test_a_second_signal_stops_at_once() -> None:
    """Without waiting for the deadline."""
    assert _signalled(30, 60, [signal.SIGINT, signal.SIGINT])[0] == 130


# Stability


async def test_subscriptions_come_and_go_without_a_trace() -> None:
    """STB-1: 100 handlers, all garbage afterwards."""
    import weakref  # noqa: PLC0415

    gone: list[weakref.ref[object]] = []
    async with EventBus() as bus:
        for _ in range(100):

            async def handler(event: Event) -> None: ...

            gone.append(weakref.ref(handler))
            subscription = bus.subscribe(handler, "chat.sent")
            await bus.dispatch("chat.sent", {})
            bus.unsubscribe(subscription)
        del handler, subscription
        gc.collect()

        assert bus.subscriptions == ()
        assert not bus._index._root.children
        assert [ref for ref in gone if ref() is not None] == []


async def test_ten_thousand_events_leave_nothing_behind() -> None:
    """STB-2 STB-6 STB-8: all delivered, no object and no task left of them."""
    count = 0
    async with EventBus() as bus:

        @bus.on("chat.sent")
        async def handler(event: Event) -> None:
            nonlocal count
            count += 1

        async def round_of(number: int) -> None:
            for _ in range(number):
                await bus.emit("chat.sent", {})
            await bus.wait_settled()

        await round_of(1_000)
        gc.collect()
        objects, tasks = len(gc.get_objects()), len(asyncio.all_tasks())
        await round_of(10_000)
        for _ in range(10_000):
            await bus.dispatch("chat.sent", {})
        gc.collect()

        assert len(gc.get_objects()) - objects < 1_000
        assert len(asyncio.all_tasks()) <= tasks + 1
    assert count == 21_000


async def test_ten_tasks_emit_a_hundred_each() -> None:
    """STB-3 STB-5: exactly 1,000 distinct events, also as a burst."""
    seen: set[tuple[int, int]] = set()
    async with EventBus() as bus:

        @bus.on("chat.sent")
        async def handler(event: Event) -> None:
            await anyio.sleep(0)
            seen.add((event.payload["task"], event.payload["n"]))

        async def emit(task: int) -> None:
            for n in range(100):
                await bus.emit("chat.sent", {"task": task, "n": n})

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for task in range(10):
                    group.start_soon(emit, task)
            await bus.wait_settled()

    assert len(seen) == 1_000


async def test_stopping_ends_threads_and_workers() -> None:
    """STB-7: no task and no thread is left, and the bus delivers nothing any more."""
    before = set(threading.enumerate())
    tasks = len(asyncio.all_tasks())
    async with EventBus() as bus:
        bus.subscribe(lambda e: None, "chat.sent")
        for _ in range(20):
            await bus.emit("chat.sent", {})
    with anyio.fail_after(5):
        while {t for t in threading.enumerate() if t.name == "aperion-worker"} - before:
            await anyio.sleep(0.001)

    assert len(asyncio.all_tasks()) == tasks
    assert bus.stats().state == "stopped"


@pytest.mark.slow
async def test_a_soak_of_some_seconds_with_churn_loses_nothing() -> None:
    """STB-9 STB-4: steady events, sync and async, failing ones, subscriptions and threads that come and go."""
    handled = failed = 0
    async with EventBus(max_concurrent_handlers=4) as bus:

        @bus.on("soak.*", name="counts")
        async def counts(event: Event) -> None:
            nonlocal handled
            if event.payload["n"] % 10 == 0:
                await anyio.sleep(0.001)
            handled += 1

        @bus.on("soak.*", name="fails")
        def fails(event: Event) -> None:
            nonlocal failed
            if event.payload["n"] % 50 == 0:
                failed += 1
                raise ValueError

        emitted = 0

        async def from_loop(stop: float) -> None:
            nonlocal emitted
            while anyio.current_time() < stop:
                for _ in range(5):
                    await bus.emit("soak.loop", {"n": emitted})
                    emitted += 1
                await anyio.sleep(0.002)

        def from_thread(stop: float) -> int:
            count = 0
            while time.monotonic() < stop:
                bus.emit_from_thread("soak.thread", {"n": count + 1}, timeout=5)
                count += 1
                time.sleep(0.002)
            return count

        async def churn(stop: float) -> None:
            while anyio.current_time() < stop:
                subscription = bus.subscribe(lambda e: None, "soak.*", name="comes and goes")
                await anyio.sleep(0.003)
                bus.unsubscribe(subscription)

        counts_of_threads: list[int] = []

        async def threaded() -> None:
            counts_of_threads.append(await anyio.to_thread.run_sync(from_thread, time.monotonic() + 2))

        with anyio.fail_after(45):
            async with anyio.create_task_group() as group:
                group.start_soon(from_loop, anyio.current_time() + 2)
                group.start_soon(churn, anyio.current_time() + 2)
                for _ in range(2):
                    group.start_soon(threaded)
            await bus.wait_settled()
        stats = bus.stats()

    assert handled == emitted + sum(counts_of_threads) == stats.accepted == stats.settled
    assert stats.failures == failed > 0
    assert stats.pending == 0
