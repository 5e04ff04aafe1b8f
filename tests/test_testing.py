"""What users get for their own tests."""

from __future__ import annotations

import time

import anyio
import pytest

import aperion
from aperion import Event, EventBus
from aperion.testing import Recorder, recording

pytest_plugins = ["pytester"]
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


async def test_settle_names_what_is_still_in_flight() -> None:
    async with EventBus(drain_timeout=0.01) as bus:

        @bus.on("slow.event", name="sleepyhead")
        async def slow(event: Event) -> None:
            await anyio.sleep(60)

        with recording(bus) as recorded, pytest.raises(TimeoutError, match=r"slow\.event .* \(in sleepyhead\)"):
            await bus.emit("slow.event", {})
            await recorded.settle(timeout=0.05)


def test_the_plugin_brings_a_running_bus_and_a_recorder(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        async def test_passes(bus, recorded):
            await bus.emit("chat.sent", {})
            await recorded.settle()
            recorded.assert_emitted("chat.sent", times=1)

        async def test_starts_anew(recorded):
            recorded.assert_not_emitted("chat.sent")

        async def test_fails(bus, recorded):
            await bus.emit("chat.sent", {})
            recorded.assert_emitted("order.placed")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*1 x chat.sent*"])


async def test_recording_needs_a_running_bus() -> None:
    with pytest.raises(aperion.BusNotRunningError), recording(EventBus()):
        pass
    assert isinstance(Recorder(EventBus()).events, list)
