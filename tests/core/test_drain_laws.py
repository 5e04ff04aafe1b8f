"""The laws of the drain: there is one, its report is exact, and the process ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from accounts import check_balance

import aperion
from aperion import AuditLog, BusNotRunningError, Event, EventBus, FailureReason, OutcomeState

pytestmark = pytest.mark.anyio

ROOT = str(Path(aperion.__file__).parent.parent)


async def forever(event: Event) -> None:
    """Ignore every cancellation."""
    while True:
        try:
            await anyio.sleep(30)
        except BaseException:
            pass


async def test_a_second_drain_and_a_cancelled_one_have_the_same_report() -> None:
    with anyio.fail_after(10):
        async with EventBus(drain_timeout=5) as bus:

            @bus.on("drain.slow")
            async def slow(event: Event) -> None:
                await anyio.sleep(30)

            @bus.on("drain.quick")
            async def quick(event: Event) -> None:
                await anyio.sleep(0.001)

            late = [await bus.emit("drain.slow", {}) for _ in range(3)]
            for _ in range(5):
                await bus.emit("drain.quick", {})
            first = asyncio.create_task(bus.drain(0.05))
            await anyio.sleep(0)
            second = asyncio.create_task(bus.drain(30))
            await anyio.sleep(0)
            first.cancel()

            report = await second

            assert first.cancelled()
            assert report is await bus.drain()
            assert report is bus.last_drain
            assert sorted(report.unfinished) == sorted(("drain.slow", receipt.event_id) for receipt in late)
            assert report.settled == 5
        assert bus.last_drain is report


async def test_a_handler_that_ignores_its_cancellation_is_named_and_left_behind() -> None:
    with anyio.fail_after(20):
        async with EventBus(drain_timeout=0.01) as bus:
            bus.subscribe(forever, "drain.stuck", name="forever")
            bus.subscribe(lambda event: None, "drain.stuck", 1, name="after")
            receipts = [await bus.emit("drain.stuck", {}), await bus.emit("drain.stuck", {}, key="k")]
            receipts.append(await bus.emit("drain.stuck", {}, key="k"))
            dispatch = asyncio.create_task(bus.dispatch("drain.stuck", {}))
            await anyio.sleep(0.005)
        await asyncio.wait([dispatch])
        report = bus.last_drain
        assert report is not None
        assert len(report.unfinished) == 4
        assert set(report.unfinished) >= {("drain.stuck", receipt.event_id) for receipt in receipts}
        letters = bus.dead_letters.list(reason=FailureReason.NOT_FINISHED)
        assert sorted(str(letter.subscription) for letter in letters) == ["after"] * 4 + ["forever"] * 4
        check_balance(bus)
        assert bus.stats().pending == 0


@pytest.mark.parametrize("use_uvloop", [False, True], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("how", ["asyncio.run", "anyio.run", "aperion.run"])
def test_a_process_ends_whose_handler_ignores_its_cancellation(how: str, use_uvloop: bool) -> None:
    code = f"""
    import asyncio, anyio, aperion
    async def forever(event):
        while True:
            try:
                await asyncio.sleep(30)
            except BaseException:
                pass
    bus = aperion.EventBus(drain_timeout=0.01)
    bus.subscribe(forever, "drain.stuck")
    async def emit():
        await bus.emit("drain.stuck", {{}})
        await asyncio.sleep(0.01)
    async def main():
        async with bus:
            await emit()
        print(len(bus.last_drain.unfinished), len(bus.dead_letters))
    if {how!r} == "anyio.run":
        anyio.run(main, backend_options={{"use_uvloop": {use_uvloop}}})
    elif {how!r} == "aperion.run":
        try:
            aperion.run(bus, emit, use_uvloop={use_uvloop})
        except SystemExit as end:
            print(end.code, len(bus.dead_letters))
    elif {use_uvloop}:
        import uvloop
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    else:
        asyncio.run(main())
    """
    done = run(code)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "1 1"


def run(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program until it ends."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=40, check=False, cwd=ROOT, **options)


@pytest.mark.parametrize("answer", ["returns", "raises", "lets it pass"])
async def test_a_handler_that_the_drain_cancels_has_failed_whatever_it_answers(answer: str) -> None:
    with anyio.fail_after(10):
        async with EventBus() as bus:

            @bus.on("drain.slow", name="slow")
            async def slow(event: Event) -> None:
                try:
                    await anyio.sleep(30)
                except asyncio.CancelledError:
                    if answer == "lets it pass":
                        raise
                    if answer == "raises":
                        raise ValueError from None

            receipt = await bus.emit("drain.slow", {})
            await anyio.sleep(0.005)
            report = await bus.drain(0.001)
            assert report.unfinished == (("drain.slow", receipt.event_id),)
            assert receipt.outcomes is not None
            assert receipt.outcomes["slow"].state is OutcomeState.FAILED
            assert [letter.subscription for letter in bus.dead_letters] == ["slow"]


@pytest.mark.parametrize("method", ["emit", "emit_nowait", "dispatch"])
async def test_what_is_emitted_at_the_deadline_is_refused_or_accounted_for(method: str) -> None:
    met: list[str] = []
    with anyio.fail_after(10):
        async with EventBus() as bus:

            @bus.on("drain.slow")
            async def slow(event: Event) -> None:
                try:
                    await anyio.sleep(30)
                finally:
                    try:
                        done = getattr(bus, method)("drain.child", {})
                        if method != "emit_nowait":
                            await done
                        met.append("accepted")
                    except BusNotRunningError:
                        met.append("refused")

            await bus.emit("drain.slow", {})
            await anyio.sleep(0.005)
            await bus.drain(0.001)
            stats = bus.stats()
            assert stats.pending == 0
            assert stats.accepted == 1 + met.count("accepted")
    assert len(met) == 1


@pytest.mark.parametrize("lives", [20, pytest.param(100, marks=pytest.mark.slow)])
async def test_threads_that_emit_while_the_bus_is_left_are_told_or_heard(lives: int, tmp_path: Path) -> None:
    bus = EventBus(audit=AuditLog(tmp_path / "audit.jsonl"))
    handled: list[int] = []
    accepted, odd = 0, []
    stop = threading.Event()

    @bus.on("drain.threads")
    async def handler(event: Event) -> None:
        handled.append(1)

    def emits() -> None:
        nonlocal accepted
        while not stop.is_set():
            try:
                bus.emit_from_thread("drain.threads", {}, timeout=10)
            except BusNotRunningError:
                stop.wait(0.0005)
                continue
            except BaseException as error:
                odd.append(error)
                return
            with lock:
                accepted += 1

    lock = threading.Lock()
    threads = [threading.Thread(target=emits) for _ in range(2)]
    with anyio.fail_after(50):
        for thread in threads:
            thread.start()
        try:
            for _ in range(lives):
                async with bus:
                    await anyio.sleep(0.002)
                check_balance(bus)
                assert bus.stats().pending == 0
        finally:
            stop.set()
            for thread in threads:
                await anyio.to_thread.run_sync(thread.join)
        async with EventBus(audit=AuditLog(tmp_path / "audit.jsonl")) as other:  # its log is not locked
            await other.emit("drain.threads", {})
    assert odd == []
    assert bus.stats().accepted == len(handled) >= accepted


# Signals


COMPUTES = """
import sys, time, aperion
bus = aperion.EventBus(drain_timeout=60, handler_timeout=None)
@bus.on("drain.computes")
async def computes(event):
    print("computing", flush=True)
    while True:
        {work}
async def main():
    await bus.emit("drain.computes", {{}})
    import anyio
    await anyio.sleep(60)
aperion.run(bus, main, use_uvloop={use_uvloop})
"""


def interrupt(code: str, *, times: int) -> int:
    """Run a program, and interrupt it when it has written a line; return how it ends."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        for _ in range(times - 1):
            process.send_signal(signal.SIGINT)
            threading.Event().wait(0.2)  # signals of one kind that come at once are one
        process.send_signal(signal.SIGINT)
        return process.wait(20)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("use_uvloop", [False, True], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("work", ["time.sleep(0.01)", "sum(range(1000))"], ids=["sleeps", "computes"])
def test_a_second_interrupt_ends_a_process_whose_handler_computes(work: str, use_uvloop: bool) -> None:
    assert interrupt(COMPUTES.format(work=work, use_uvloop=use_uvloop), times=2) == 130


def test_an_interrupt_ends_a_process_under_asyncio_run() -> None:
    code = """
import asyncio, aperion
bus = aperion.EventBus(drain_timeout=0.1)
@bus.on("drain.slow")
async def slow(event):
    print("waits", flush=True)
    await asyncio.sleep(60)
async def main():
    async with bus:
        await bus.emit("drain.slow", {})
        await asyncio.sleep(60)
asyncio.run(main())
"""
    assert interrupt(code, times=1) in (1, 130, -signal.SIGINT)


def test_the_bus_is_left_when_no_file_can_be_opened_any_more() -> None:
    """The first failure comes only then, and with it the first log line."""
    done = run("""
    import asyncio, os, resource, aperion
    bus = aperion.EventBus(drain_timeout=1)
    async def fails(event):
        raise ValueError("no")
    bus.subscribe(fails, "drain.fails", name="fails")
    async def main():
        async with bus:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            await bus.emit("drain.fails", {})
        print(bus.last_drain.ok, len(bus.dead_letters), bus.stats().pending)
        os._exit(0)
    asyncio.run(main())
    """)
    assert done.stdout.strip().split("\n")[-1] == "True 1 0", done.stderr


async def test_a_bus_that_is_left_with_work_of_every_kind_accounts_for_all_of_it() -> None:
    gate = threading.Event()
    with anyio.fail_after(20):
        async with EventBus(max_concurrent_events=3, max_concurrent_handlers=1, drain_timeout=0.02) as bus:

            @bus.on("drain.slow", name="slow")
            async def slow(event: Event) -> None:
                await anyio.sleep(30)

            @bus.on("drain.thread", name="thread")
            def thread(event: Event) -> None:
                gate.wait(20)

            @bus.on("drain.retried", name="retried", retry=aperion.Retry(attempts=5, wait_initial=20, jitter=0))
            async def retried(event: Event) -> None:
                raise ValueError("again")

            await bus.emit("drain.retried", {})
            await anyio.sleep(0.005)
            for n in range(3):
                await bus.emit("drain.thread", {})
                await bus.emit("drain.slow", {}, key="k")
                await bus.emit("drain.slow", {})
            dispatches = [asyncio.create_task(bus.dispatch("drain.slow", {}, key="k")) for _ in range(2)]
            await anyio.sleep(0.005)
        gate.set()
        refused = await asyncio.gather(*dispatches, return_exceptions=True)
        assert {type(error) for error in refused} == {BusNotRunningError}
        stats = bus.stats()
        assert stats.pending == 0
        check_balance(bus)
        letters = {letter.event.event_id for letter in bus.dead_letters}
        assert len(letters) + stats.dropped_after == stats.accepted == 12
        assert bus.last_drain is not None
        assert {event_id for _, event_id in bus.last_drain.unfinished} <= letters


async def test_threads_of_the_pool_end_with_their_handlers() -> None:
    before = threading.active_count()
    with anyio.fail_after(20):
        async with EventBus() as bus:
            bus.subscribe(lambda event: None, "drain.thread")
            for _ in range(50):
                await bus.emit("drain.thread", {})
        while any(t.name == "aperion-worker" for t in threading.enumerate()):
            await anyio.sleep(0.001)
    assert threading.active_count() <= before


@pytest.mark.anyio
async def test_an_event_dispatched_by_a_handler_that_is_left_behind_is_accounted_for_too() -> None:
    bus = EventBus(drain_timeout=0.05)

    @bus.on("outer.called", name="outer")
    async def outer(event: Event) -> None:
        await bus.dispatch("inner.called", {})

    @bus.on("inner.called", name="inner")
    async def inner(event: Event) -> None:
        while True:
            try:
                await anyio.sleep(10)
            except BaseException:  # noqa: S110 - it ignores every cancellation
                pass

    with anyio.fail_after(20):
        async with bus:
            await bus.emit("outer.called", {})
            while bus.stats().accepted < 2:
                await anyio.sleep(0)

    stats = bus.stats()
    assert stats.pending == 0
    assert stats.accepted == stats.settled == 2
    assert bus.last_drain is not None
    assert {event_type for event_type, _ in bus.last_drain.unfinished} == {"outer.called", "inner.called"}
    assert {letter.subscription for letter in bus.dead_letters.list()} >= {"outer", "inner"}


@pytest.mark.anyio
async def test_a_thread_that_gives_up_before_the_loop_has_had_its_turn_gets_its_answer() -> None:
    answers: list[str] = []

    def give_up(bus: EventBus) -> None:
        try:
            bus.emit_from_thread("a.b", {}, timeout=0.05)
        except TimeoutError:
            answers.append("too late")

    with anyio.fail_after(20):
        async with EventBus(max_pending_events=1) as bus:
            gate = anyio.Event()

            @bus.on("a.b")
            async def holds(event: Event) -> None:
                await gate.wait()

            await bus.emit("a.b", {})
            thread = threading.Thread(target=give_up, args=(bus,))
            thread.start()
            time.sleep(0.2)  # both of its calls are queued before the loop looks at the first
            while thread.is_alive():
                await anyio.sleep(0.001)
            gate.set()
            await bus.wait_settled()
            assert bus.stats().accepted == 1

    assert answers == ["too late"]


def test_a_loop_that_goes_down_as_soon_as_the_drain_begins_leaves_nothing_in_flight() -> None:
    bus = EventBus(drain_timeout=30)

    @bus.on("a.b")
    async def slow(event: Event) -> None:
        await anyio.sleep(60)

    async def main() -> None:
        async with bus:
            await bus.emit("a.b", {})
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if task.get_name().startswith("aperion"):
                    task.cancel()
            bus._engine.begin_drain(30).cancel()  # type: ignore[union-attr]  # before its first step

    asyncio.run(asyncio.wait_for(main(), 20))

    stats = bus.stats()
    assert stats.pending == 0
    assert bus.last_drain is not None
    assert [event_type for event_type, _ in bus.last_drain.unfinished] == ["a.b"]


def test_a_thread_that_waits_for_a_loop_that_was_closed_is_told() -> None:
    from aperion.engine.waiting import answered

    loop = asyncio.new_event_loop()
    loop.close()

    with pytest.raises(BusNotRunningError, match="closed"):
        answered(concurrent.futures.Future(), loop, None)


def test_an_outbox_whose_loop_was_closed_refuses_what_a_thread_hands_in() -> None:
    held: list[aperion.Outbox] = []

    async def main() -> None:
        async with EventBus() as bus, bus.outbox() as outbox:
            held.append(outbox)

    asyncio.run(main())
    errors: list[BaseException] = []

    def emit() -> None:
        try:
            held[0].emit("a.b", {})
        except aperion.AperionError as error:
            errors.append(error)

    thread = threading.Thread(target=emit)
    thread.start()
    thread.join(20)

    assert not thread.is_alive()
    assert [type(error) for error in errors] == [BusNotRunningError]
