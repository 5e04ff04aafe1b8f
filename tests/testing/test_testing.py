"""What users get for their own tests: recording, waiting, faking, and running one handler."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

import aperion
from aperion import Event, EventBus, blocking
from aperion.errors import HandlerTimeoutError
from aperion.outcomes import OutcomeState
from aperion.testing import Recorder, call, fake, recording, virtual_time
from aperion.testing.running import meant
from aperion.testing.stacks import in_flight

pytestmark = pytest.mark.anyio


class Login(aperion.Payload, type="testing.login"):
    username: str
    password: str = "hunter2"


async def test_a_recorder_keeps_what_was_accepted_in_order() -> None:
    async with EventBus() as bus:
        await bus.emit("before.recording", {})
        with recording(bus) as recorded:
            await bus.emit(Login(username="alice"))
            await bus.emit("chat.sent", {"n": 1})
            bus.emit_nowait("chat.read", {"n": 2})
        await bus.emit("after.recording", {})

    assert [e.event_type for e in recorded.events] == ["testing.login", "chat.sent", "chat.read"]
    assert [e.payload.username for e in recorded.of(Login)] == ["alice"]
    assert [e.payload["n"] for e in recorded.of("chat.*")] == [1, 2]
    assert len(recorded) == 3
    recorded.clear()
    assert len(recorded) == 0


async def test_a_recording_may_be_of_some_types_only() -> None:
    async with EventBus() as bus:
        with recording(bus, "chat.*", Login) as recorded:
            await bus.emit(Login(username="alice"))
            await bus.emit("order.placed", {})
            await bus.emit("chat.sent", {})

    assert [e.event_type for e in recorded.events] == ["testing.login", "chat.sent"]


async def test_assertions_pass_and_return_the_event_or_list_what_there_was() -> None:
    async with EventBus() as bus:
        with recording(bus) as recorded:
            with pytest.raises(AssertionError, match="nothing was emitted"):
                recorded.assert_emitted(Login)
            await bus.emit(Login(username="alice"))
            await bus.emit(Login(username="bob"))

    assert recorded.assert_emitted(Login, times=2).payload.username == "alice"
    assert recorded.assert_emitted(Login, where=lambda e: e.payload.username == "bob").payload.username == "bob"
    recorded.assert_not_emitted("order.*")
    recorded.assert_not_emitted(Login, where=lambda e: e.payload.username == "carol")
    with pytest.raises(AssertionError) as caught:
        recorded.assert_emitted("order.placed")
    assert "'order.placed' was emitted 0 times, expected at least once" in str(caught.value)
    assert "2 x testing.login" in str(caught.value)
    assert "alice" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(AssertionError, match="expected 3 times"):
        recorded.assert_emitted(Login, times=3)
    with pytest.raises(AssertionError, match="expected never"):
        recorded.assert_not_emitted("testing.*")


async def test_within_counts_seconds_from_the_begin_of_the_recording_or_since_it_was_cleared() -> None:
    async with EventBus() as bus:
        with virtual_time(bus) as clock, recording(bus) as recorded, anyio.fail_after(50):
            await clock.advance(10)
            await bus.emit("chat.sent", {"n": 1})
            await clock.advance(10)
            await bus.emit("chat.sent", {"n": 2})

            assert recorded.assert_emitted("chat.sent", within=10, times=1).payload["n"] == 1
            with pytest.raises(
                AssertionError, match=r"0 times within 9 s, expected at least once(.|\n)*after 10\.000 s"
            ):
                recorded.assert_emitted("chat.sent", within=9)
            recorded.clear()
            await clock.advance(3)
            await bus.emit("chat.sent", {"n": 3})
            assert recorded.assert_emitted("chat.sent", within=3.1).payload["n"] == 3


async def test_waiting_for_an_event_returns_it_at_once_or_when_it_comes() -> None:
    async with EventBus() as bus:
        with recording(bus) as recorded, anyio.fail_after(5):
            await bus.emit("chat.sent", {"n": 1})
            assert (await recorded.wait_for("chat.*")).payload["n"] == 1

            async with anyio.create_task_group() as group:
                group.start_soon(bus.emit, Login(username="alice"))
                group.start_soon(bus.emit, Login(username="bob"))
                second = await recorded.wait_for(Login, times=2)
                bob = await recorded.wait_for(Login, where=lambda e: e.payload.username == "bob")

    assert second is bob


async def test_waiting_in_vain_tells_what_came_instead() -> None:
    async with EventBus() as bus:
        with recording(bus) as recorded, anyio.fail_after(5):
            await bus.emit(Login(username="alice"))
            with pytest.raises(TimeoutError, match=r"'order\.\*' was emitted 0 times within 0\.01 s") as caught:
                await recorded.wait_for("order.*", timeout=0.01)

    assert "1 x testing.login" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_settle_waits_for_all_that_an_event_caused() -> None:
    """A chain of three, with a retry and a thread in it."""
    failed = False
    async with EventBus() as bus:

        @bus.on("a.happened", retry=aperion.Retry(attempts=2, wait_initial=0.01))
        async def first(event: Event) -> None:
            nonlocal failed
            if not failed:
                failed = True
                raise ValueError
            await bus.emit("b.happened", {})

        @bus.on("b.happened")
        def second(event: Event) -> None:
            time.sleep(0.01)
            bus.emit_from_thread("c.happened", {})

        @bus.on("c.happened")
        async def third(event: Event) -> None:
            await anyio.sleep(0.01)

        with recording(bus) as recorded, anyio.fail_after(5):
            await bus.emit("a.happened", {})
            await recorded.settle()

    assert [e.event_type for e in recorded.events] == ["a.happened", "b.happened", "c.happened"]
    assert [o.ok for o in recorded.outcomes_of("*.happened")] == [True] * 3


async def test_settle_shows_where_a_handler_waits() -> None:
    """Through what it calls, an async generator among them, and without the frames of the bus."""
    begun = anyio.Event()
    async with EventBus(drain_timeout=0.01) as bus:

        async def pages():
            begun.set()
            await anyio.sleep_forever()  # the line that is looked for
            yield 1

        async def read_all() -> None:
            async for _ in pages():
                pass

        @bus.on("slow.event", name="sleepyhead")
        async def slow(event: Event) -> None:
            await read_all()

        with recording(bus) as recorded, anyio.fail_after(5):
            await bus.emit("slow.event", {})
            await begun.wait()
            with pytest.raises(TimeoutError) as caught:
                await recorded.settle(timeout=0.01)

    told = str(caught.value)
    event_id = recorded.events[0].event_id
    assert told.startswith("still in flight after 0.01 s:\n")
    assert f"slow.event {event_id} is in sleepyhead\n" in told
    places = [told.index(text) for text in ("in slow\n", "in read_all\n", "in pages\n", "the line that is looked for")]
    assert places == sorted(places)
    assert "aperion/engine" not in told


async def test_settle_shows_where_the_threads_of_sync_handlers_are() -> None:
    """Each in its own handler."""
    both, go_on = threading.Barrier(3), threading.Event()

    def dig_deeper() -> None:
        both.wait(5)
        go_on.wait(10)  # the line that is looked for

    async with EventBus() as bus:

        @bus.on("a.happened", name="digger")
        def dig(event: Event) -> None:
            dig_deeper()

        @bus.on("b.happened", name="other")
        def dig_elsewhere(event: Event) -> None:
            dig_deeper()

        with recording(bus) as recorded, anyio.fail_after(5):
            await bus.emit("a.happened", {})
            await bus.emit("b.happened", {})
            await anyio.to_thread.run_sync(both.wait, 5)
            with pytest.raises(TimeoutError) as caught:
                await recorded.settle(timeout=0.01)
        go_on.set()

    first, second = str(caught.value).split("b.happened")
    assert "is in digger in its thread\n" in first
    assert first.index("in dig\n") < first.index("in dig_deeper\n")
    assert "in dig\n" not in second
    assert second.index("in dig_elsewhere\n") < second.index("in dig_deeper\n")


async def test_settle_tells_what_waits_for_a_retry_and_what_has_not_started() -> None:
    begun = anyio.Event()
    async with EventBus(drain_timeout=0.01, max_concurrent_events=1) as bus:

        @bus.on("bad.event", name="unlucky", retry=aperion.Retry(attempts=3, wait_initial=20))
        async def fail(event: Event) -> None:
            raise ValueError

        @bus.on("slow.event")
        async def slow(event: Event) -> None:
            begun.set()
            await anyio.sleep_forever()

        with recording(bus) as recorded, anyio.fail_after(5):
            await bus.emit("bad.event", {})
            await bus.emit("slow.event", {})
            await bus.emit("late.event", {})
            await begun.wait()
            with pytest.raises(TimeoutError) as caught:
                await recorded.settle(timeout=0.01)

    bad, _, late = recorded.events
    assert f"bad.event {bad.event_id} waits for attempt 2 in unlucky" in str(caught.value)
    assert f"late.event {late.event_id} is not started" in str(caught.value)


async def test_settle_shows_where_a_retry_waits_and_which_one_has_not_started() -> None:
    begun = anyio.Event()
    async with EventBus(drain_timeout=0.01, max_concurrent_events=1) as bus:

        @bus.on("bad.*", name="unlucky", retry=aperion.Retry(attempts=2, wait_initial=0))
        async def fail_then_hang(event: Event) -> None:
            if bus.stats().retries < 2:
                raise ValueError
            begun.set()
            await anyio.sleep_forever()  # the line that is looked for

        with recording(bus) as recorded, anyio.fail_after(5):
            await bus.emit("bad.first", {})
            await bus.emit("bad.second", {})
            await begun.wait()
            with pytest.raises(TimeoutError) as caught:
                await recorded.settle(timeout=0.01)

    told, (first, second) = str(caught.value), recorded.events
    assert f"bad.first {first.event_id} is in unlucky\n" in told
    assert "the line that is looked for" in told
    assert f"bad.second {second.event_id} waits for attempt 2 in unlucky" in told


async def test_what_waits_for_the_disk_is_told_too(tmp_path: Path) -> None:
    async with EventBus(audit=aperion.AuditLog(tmp_path / "events.jsonl", sync="disk")) as bus:
        receipt = bus.emit_nowait("order.placed", {})

        assert (
            in_flight(bus._running("test")) == f"  order.placed {receipt.event_id} waits for the disk of the audit log"
        )


async def test_what_waits_for_a_thread_is_told_too() -> None:
    """On its own, and within a handler or a task that dispatches."""
    begun, go = threading.Event(), threading.Event()
    async with EventBus(max_concurrent_handlers=1) as bus, anyio.create_task_group() as tasks:

        @bus.on("slow.one", name="slow")
        def slow(event: Event) -> None:
            begun.set()
            go.wait(5)

        @bus.on("quick.one", name="quick")
        def quick(event: Event) -> None: ...

        @bus.on("outer.one", name="outer")
        async def outer(event: Event) -> None:
            await bus.dispatch("quick.one", {"n": 2})

        with recording(bus) as recorded:
            await bus.emit("slow.one", {})
            assert await anyio.to_thread.run_sync(begun.wait, 5)
            await bus.emit("quick.one", {"n": 1})
            await bus.emit("outer.one", {})
            tasks.start_soon(bus.dispatch, "quick.one", {"n": 3})
            await anyio.wait_all_tasks_blocked()
            told = in_flight(bus._running("test"))
            go.set()
            await bus.wait_settled()

    quick_ones = [event for event in recorded.events if event.event_type == "quick.one"]
    assert len(quick_ones) == 3
    for event in quick_ones:
        assert f"quick.one {event.event_id} waits for a thread for quick" in told
    assert "is in slow in its thread" in told
    assert "is in outer\n" in told


async def test_recording_needs_a_running_bus() -> None:
    with pytest.raises(aperion.BusNotRunningError), recording(EventBus()):
        pass
    assert isinstance(Recorder(EventBus()).events, list)


async def test_a_fake_records_and_runs_no_handler_of_the_types_it_is_for() -> None:
    ran: list[str] = []
    async with EventBus() as bus:

        @bus.on("*", name="all")
        async def handle(event: Event) -> None:
            ran.append(event.event_type)

        with fake(bus, "email.*", Login) as faked, anyio.fail_after(5):
            mail = await bus.emit("email.sent", {"to": "alice"})
            await bus.emit(Login(username="alice"))
            await bus.emit("order.placed", {})
        with anyio.fail_after(5):
            await bus.emit("email.sent", {"to": "bob"})
            outcomes = await mail.settled()
            await bus.wait_settled()

    assert ran == ["order.placed", "email.sent", "system.shutdown"]
    assert [e.event_type for e in faked.events] == ["email.sent", "testing.login"]
    assert outcomes["all"].state is OutcomeState.SKIPPED
    assert outcomes.ok


async def test_everything_does_not_mean_the_events_of_the_bus_itself() -> None:
    assert [meant(wanted)("system.shutdown") for wanted in [(), ("*",), ("*.*",), ("system.*",)]] == [False] * 3 + [
        True
    ]
    assert [meant(wanted)("order.placed") for wanted in [(), ("*",), ("order.*", Login), ("system.*",)]] == [
        True
    ] * 3 + [False]


async def test_a_fake_of_everything_covers_dispatch_keys_and_events_that_start_after_it() -> None:
    ran: list[str] = []
    async with EventBus() as bus:

        @bus.on(["order.*", "system.*"])
        def handle(event: Event) -> None:
            ran.append(event.event_type)

        with anyio.fail_after(5):
            await bus.wait_settled()
            ran.clear()
            with fake(bus) as faked:
                assert len(await bus.dispatch("order.placed", {}, key="7")) == 1
                for _ in range(3):
                    bus.emit_nowait("order.paid", {}, key="7")  # none of them has started when the block ends
            real = await bus.emit("order.shipped", {}, key="7")
            assert (await real.settled()).ok

    assert ran == ["order.shipped", "system.shutdown"]
    assert len(faked) == 4


async def test_calling_a_handler_gives_what_it_returns_and_the_context_of_a_bus() -> None:
    seen: list[object] = []

    async def greet(event: Event[Login]) -> str:
        seen.append((aperion.current_event() is event, aperion.get_correlation_id()))
        return f"hello {event.payload.username}"

    def shout(event: Event) -> str:
        seen.append((aperion.current_event() is event, threading.current_thread() is threading.main_thread()))
        return event.payload["text"].upper()

    with anyio.fail_after(5):
        assert await call(greet, Login(username="alice"), correlation_id="req-1") == "hello alice"
        assert await call(shout, "chat.sent", {"text": "hi"}) == "HI"

    assert seen == [(True, "req-1"), (True, False)]


async def test_calling_a_handler_with_an_event_keeps_the_event_as_it_is() -> None:
    async with EventBus() as bus:
        event = (await bus.emit(Login(username="alice"), key="k", headers={"tenant": "7"})).event

    async def tell(handled: Event) -> tuple:
        return handled.event_id, handled.headers["tenant"], handled.key

    with anyio.fail_after(5):
        assert await call(tell, event) == (event.event_id, "7", "k")


async def test_calling_a_handler_raises_what_it_raises_and_applies_the_timeout() -> None:
    async def fail(event: Event) -> None:
        raise KeyError("gone")

    async def hang(event: Event) -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        with pytest.raises(KeyError, match="gone"):
            await call(fail, "chat.sent", {})
        with pytest.raises(HandlerTimeoutError, match=r"within 0\.01 s"):
            await call(hang, "chat.sent", {}, timeout=0.01)
        with pytest.raises(aperion.ValidationError):
            await call(fail, "no type", {})


async def test_what_a_called_handler_emits_goes_to_its_own_bus_as_a_child() -> None:
    async with EventBus() as bus:

        async def place(event: Event[Login]) -> None:
            await bus.emit("order.placed", {})

        with fake(bus) as faked, anyio.fail_after(5):
            await call(place, Login(username="alice"), correlation_id="req-1", event_id="parent")

    child = faked.assert_emitted("order.placed", times=1)
    assert (child.causation_id, child.correlation_id, child.hops) == ("parent", "req-1", 1)


def test_a_recorder_works_on_another_thread_than_its_bus() -> None:
    """As beside a TestClient: it records, waits, and says what is in flight; all from a plain function."""
    go = threading.Event()
    with blocking.EventBus() as running:
        running.subscribe(lambda event: go.wait(20), "order.slow", name="slow")
        with recording(running.running, "order.*") as recorded:
            running.emit("order.placed", {})
            recorded.settle_from_thread()
            recorded.assert_emitted("order.placed", times=1, within=20)
            running.emit("cart.opened", {})
            receipt = running.emit("order.slow", {})
            assert recorded.wait_for_from_thread("order.slow", timeout=5).event_id == receipt.event_id
            with pytest.raises(TimeoutError, match=r"order.slow \S+ is in slow in its thread"):
                recorded.settle_from_thread(0.1)
            go.set()
            recorded.settle_from_thread()
            recorded.clear()
            with pytest.raises(TimeoutError, match="nothing was emitted"):
                recorded.wait_for_from_thread("order.*", timeout=0.05)
        running.emit("order.placed", {})

    assert len(recorded) == 0
    with pytest.raises(aperion.BusNotRunningError):
        recorded.settle_from_thread()


def test_handlers_are_left_out_from_another_thread() -> None:
    called: list[str] = []
    with blocking.EventBus() as running:
        running.subscribe(lambda event: called.append(event.event_type), "order.*")
        with fake(running.running) as faked:
            running.emit_and_wait("order.placed", {}, timeout=20)

    faked.assert_emitted("order.placed", times=1)
    assert called == []


async def test_waiting_from_the_thread_of_the_loop_is_refused(bus: EventBus) -> None:
    """It would wait for itself."""
    with recording(bus) as recorded:
        with pytest.raises(aperion.WrongLoopError, match=r"use settle\(\) there"):
            recorded.settle_from_thread()
        with pytest.raises(aperion.WrongLoopError, match=r"use wait_for\(\) there"):
            recorded.wait_for_from_thread("order.*")
