"""What is scarce is shared, counted and given back: threads, processes, memory, readers."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from contextlib import suppress
from typing import Any

import anyio
import pytest
from accounts import check_balance, check_empty, resting

from aperion import Event, EventBus, FailureReason, OutcomeState, OverflowPolicy

pytestmark = pytest.mark.anyio


async def test_events_that_wait_for_a_stuck_thread_do_not_hold_up_the_others() -> None:
    """Seventy for ten threads, while sixty-four are handled at a time."""
    gate = threading.Event()
    healthy: list[int] = []
    try:
        with anyio.fail_after(20):
            async with EventBus(handler_timeout=None) as bus:

                @bus.on("scarce.stuck", name="stuck")
                def stuck(event: Event) -> None:
                    gate.wait(30)

                @bus.on("scarce.healthy")
                async def works(event: Event) -> None:
                    await anyio.sleep(0)
                    healthy.append(event.payload["n"])

                for _ in range(70):
                    await bus.emit("scarce.stuck", {})
                for n in range(200):
                    await (await bus.emit("scarce.healthy", {"n": n})).settled()
                assert bus.stats().threads_busy == 10
                assert bus.stats().pending == 70
                gate.set()
                await bus.wait_settled()
                check_empty(bus)
    finally:
        gate.set()
    assert healthy == list(range(200))


async def test_stuck_threads_are_still_counted_in_the_next_life() -> None:
    gate = threading.Event()
    bus = EventBus(max_concurrent_handlers=2, drain_timeout=0.01)

    @bus.on("scarce.stuck", name="stuck", timeout=0.01)
    def stuck(event: Event) -> None:
        gate.wait(30)

    @bus.on("scarce.healthy", name="healthy")
    def healthy(event: Event) -> None: ...

    try:
        with anyio.fail_after(20):
            for life in (1, 2, 3):
                async with bus:
                    if life < 3:
                        assert (await bus.dispatch("scarce.stuck", {}))["stuck"].state is OutcomeState.TIMED_OUT
                    assert bus.stats().threads_abandoned == min(life, 2)
                    assert bus.stats().threads_busy == min(life, 2)
                    outcome = (await bus.dispatch("scarce.healthy", {}))["healthy"]
                    assert outcome.state is (OutcomeState.OK if life == 1 else OutcomeState.FAILED)
            assert bus.dead_letters.list(reason=FailureReason.THREADS_EXHAUSTED)
            async with bus:
                gate.set()
                while bus.stats().threads_busy:
                    await anyio.sleep(0.001)
                assert (await bus.dispatch("scarce.healthy", {})).ok
                check_empty(bus)
    finally:
        gate.set()


async def test_a_thread_that_cannot_be_started_is_the_failure_of_its_delivery(monkeypatch: Any) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            if self.name == "aperion-worker" and broken:
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr(threading, "Thread", NoThread)
    broken = True
    with anyio.fail_after(20):
        async with EventBus(max_concurrent_handlers=2) as bus:
            bus.subscribe(lambda event: None, "scarce.healthy", name="sync")
            for _ in range(5):
                outcomes = await (await bus.emit("scarce.healthy", {})).settled()
                assert outcomes["sync"].state is OutcomeState.FAILED
            assert bus.stats().threads_busy == 0
            broken = False
            assert (await bus.dispatch("scarce.healthy", {})).ok
            await bus.wait_settled()
            check_empty(bus)


def note_pid(event: Event) -> None:
    with open(event.payload["path"], "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")


@pytest.mark.slow
async def test_more_events_than_processes_all_have_their_turn(tmp_path: Any) -> None:
    healthy: list[int] = []
    path = tmp_path / "pids"
    with anyio.fail_after(50):
        async with EventBus(max_concurrent_events=2) as bus:
            bus.subscribe(note_pid, "scarce.process", isolation="process", timeout=45)

            @bus.on("scarce.healthy")
            async def works(event: Event) -> None:
                healthy.append(1)

            count = 3 * (os.cpu_count() or 1) + 2
            for _ in range(count):
                await bus.emit("scarce.process", {"path": str(path)})
            for _ in range(10):
                await bus.emit("scarce.healthy", {})
            await bus.wait_settled()
            check_empty(bus)
            assert bus.stats().failures == 0
    pids = path.read_text().split()
    assert len(pids) == count
    assert len(set(pids)) <= (os.cpu_count() or 1)
    assert len(healthy) == 10


async def test_emitters_that_gave_up_leave_nothing() -> None:
    gate = anyio.Event()
    with anyio.fail_after(40):
        async with EventBus(max_pending_events=1) as bus:

            @bus.on("scarce.slow")
            async def slow(event: Event) -> None:
                await gate.wait()

            receipt = await bus.emit("scarce.slow", {})

            async def give_up(number: int) -> None:
                for make in (
                    lambda: bus.emit("scarce.slow", {}),
                    receipt.settled,
                    bus.wait_settled,
                    lambda: bus.expect("scarce.never"),
                ):
                    tasks = [asyncio.create_task(make()) for _ in range(number)]
                    await asyncio.sleep(0)
                    for task in tasks:
                        task.cancel()
                    await asyncio.wait(tasks)

            await give_up(10)
            gc.collect()
            before = len(gc.get_objects())
            await give_up(1_250)
            gc.collect()
            engine = bus._engine
            assert engine is not None
            assert len(engine.ledger.line) == len(engine.ledger.quiet) == 0
            assert len(receipt._ticket.waiters or ()) == 0  # type: ignore[attr-defined]
            assert not engine.admission.taps
            assert len(gc.get_objects()) - before < 500
            check_balance(bus)
            gate.set()
            await bus.wait_settled()
            check_empty(bus)


async def test_a_thread_that_gives_up_before_the_loop_has_begun_to_wait_for_it_is_answered() -> None:
    """Both reach the loop in one turn: that it emits, and that it has given up."""
    gate = anyio.Event()
    with anyio.fail_after(20):
        async with EventBus(max_pending_events=1) as bus:

            @bus.on("scarce.slow")
            async def slow(event: Event) -> None:
                await gate.wait()

            await bus.emit("scarce.slow", {})
            answers: list[BaseException] = []

            def give_up() -> None:
                try:
                    bus.emit_from_thread("scarce.slow", {}, timeout=0.001)
                except TimeoutError as error:
                    answers.append(error)

            thread = threading.Thread(target=give_up, daemon=True)
            thread.start()
            time.sleep(0.05)  # the loop stands still meanwhile
            while thread.is_alive():
                await anyio.sleep(0.001)
            assert len(answers) == 1
            assert not bus._bridge._tasks
            gate.set()
            await bus.wait_settled()
            check_empty(bus)


async def test_threads_that_gave_up_leave_nothing() -> None:
    gate = anyio.Event()
    with anyio.fail_after(40):
        async with EventBus(max_pending_events=1) as bus:

            @bus.on("scarce.slow")
            async def slow(event: Event) -> None:
                await gate.wait()

            receipt = await bus.emit("scarce.slow", {})

            def give_up() -> None:
                for _ in range(50):
                    with pytest.raises(TimeoutError):
                        bus.emit_from_thread("scarce.slow", {}, timeout=0.0001)
                    with pytest.raises(TimeoutError):
                        receipt.settled_from_thread(0.0001)

            await anyio.to_thread.run_sync(give_up)
            await anyio.sleep(0)
            assert not bus._bridge._tasks
            assert not bus._bridge._waiting
            assert not receipt._ticket.waiters  # type: ignore[attr-defined]
            assert bus.stats().accepted == 1
            gate.set()
            await bus.wait_settled()
            check_empty(bus)


@pytest.mark.parametrize("keyed", [False, True])
async def test_memory_follows_what_is_pending_and_not_what_was_dropped(keyed: bool) -> None:
    gate = anyio.Event()
    with anyio.fail_after(40):
        async with EventBus(
            max_pending_events=50, max_concurrent_events=1, overflow_policy=OverflowPolicy.DROP_OLDEST
        ) as bus:

            @bus.on("scarce.slow")
            async def slow(event: Event) -> None:
                await gate.wait()

            for n in range(5_000):
                await bus.emit("scarce.slow", {}, key=str(n % 7) if keyed else None)
            engine = bus._engine
            assert engine is not None
            queue = engine.queue
            assert len(queue.ready) + sum(map(len, queue._lines.values())) <= 300
            assert len(queue._age or ()) == queue.queued == 49
            assert bus.stats().dropped_after == 4_950
            check_balance(bus)
            gate.set()
            await bus.wait_settled()
            check_empty(bus)


async def test_two_readers_of_a_stream_share_its_events() -> None:
    got: list[tuple[str, int]] = []
    with anyio.fail_after(20):
        async with EventBus() as bus:
            async with bus.stream("scarce.seen") as stream:

                async def read(name: str) -> None:
                    async for event in stream:
                        got.append((name, event.payload["n"]))

                async with anyio.create_task_group() as group:
                    group.start_soon(read, "a")
                    group.start_soon(read, "b")
                    for n in range(20):
                        await anyio.sleep(0.0005)
                        await bus.emit("scarce.seen", {"n": n})
                    await anyio.sleep(0.005)
                    stream.close()
    assert sorted(n for _, n in got) == list(range(20))
    assert {name for name, _ in got} == {"a", "b"}


@pytest.mark.parametrize("others", [0, 1])
async def test_a_reader_that_is_cancelled_once_told_loses_no_event(others: int) -> None:
    got: list[int] = []
    with anyio.fail_after(20):
        async with EventBus() as bus:
            stream = bus.stream("scarce.seen")
            for n in range(20):
                reader = asyncio.create_task(stream.__anext__())  # type: ignore[arg-type]
                await asyncio.sleep(0)
                rest = [asyncio.create_task(stream.__anext__()) for _ in range(others)]  # type: ignore[arg-type]
                await asyncio.sleep(0)
                bus.emit_nowait("scarce.seen", {"n": n})
                reader.cancel()
                with suppress(asyncio.CancelledError):
                    got.append((await reader).payload["n"])
                for task in rest or [asyncio.create_task(stream.__anext__())]:  # type: ignore[arg-type]
                    got.append((await task).payload["n"])
    assert got == list(range(20))


async def test_a_stream_that_nobody_refers_to_any_more_listens_no_more() -> None:
    with anyio.fail_after(20):
        async with EventBus() as bus:
            engine = bus._engine
            assert engine is not None
            for _ in range(100):
                bus.stream("scarce.*")
            gc.collect()
            assert not engine.admission.taps
            await bus.emit("scarce.seen", {})


async def test_the_limit_of_threads_is_never_exceeded() -> None:
    now = peak = 0
    lock = threading.Lock()
    with anyio.fail_after(30):
        async with EventBus(max_concurrent_handlers=3) as bus:

            @bus.on("scarce.thread", retry=None)
            def handler(event: Event) -> None:
                nonlocal now, peak
                with lock:
                    now += 1
                    peak = max(peak, now)
                time.sleep(0.0005)
                with lock:
                    now -= 1

            for n in range(100):
                await bus.emit("scarce.thread", {}, key=str(n % 9))
                if n % 10 == 0:
                    await bus.dispatch("scarce.thread", {})
            await bus.wait_settled()
            await resting(bus)
            check_empty(bus)
    assert peak == 3
