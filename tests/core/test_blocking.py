"""The bus for programs without an event loop, whose loop runs in a thread of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import aperion
from aperion import AuditUnavailable, BusNotRunningError, ConfigurationError, DeadlockError, OutcomeState, blocking

ROOT = str(Path(aperion.__file__).parents[1])


class Note(aperion.Payload, type="blocking.noted"):
    text: str


@pytest.fixture
def bus():
    with blocking.EventBus() as running:
        yield running


def run(program: str, *, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=45,
    )
    assert done.returncode == code, done.stderr
    return done


def test_emit_and_wait_returns_when_sync_and_async_handlers_have_ended(bus: blocking.EventBus) -> None:
    got: list[Any] = []

    @bus.on(Note, priority=200, name="first")
    def first(event: aperion.Event[Note]) -> None:
        got.append(("thread", event.payload.text, threading.current_thread() is threading.main_thread()))

    @bus.on("blocking.*", name="second")
    async def second(event: aperion.Event[Any]) -> None:
        got.append(("loop", aperion.get_correlation_id()))

    with aperion.CorrelationContext("req-1"):
        outcomes = bus.emit_and_wait(Note(text="hello"), timeout=20)

    assert got == [("thread", "hello", False), ("loop", "req-1")]
    assert {name: each.state for name, each in outcomes.items()} == {
        "first": OutcomeState.OK,
        "second": OutcomeState.OK,
    }


def test_a_bus_starts_with_its_first_event_and_emit_does_not_wait_for_handlers() -> None:
    go, bus = threading.Event(), blocking.EventBus()
    bus.subscribe(lambda event: go.wait(20), "order.placed", name="waits")
    assert bus.stats().state == "stopped"

    receipt = bus.emit("order.placed", {})

    assert (bus.stats().state, receipt.is_settled) == ("running", False)
    go.set()
    assert receipt.settled_from_thread(20)["waits"].state is OutcomeState.OK
    bus.close()
    assert bus.stats().state == "stopped"


def test_what_a_handler_raises_is_an_outcome_and_a_dead_letter(bus: blocking.EventBus) -> None:
    @bus.on("order.placed", name="fails")
    def fail(event: aperion.Event[Any]) -> None:
        raise ConnectionError("nobody is there")

    outcomes = bus.emit_and_wait("order.placed", {}, timeout=20)

    assert outcomes["fails"].state is OutcomeState.FAILED
    with pytest.raises(aperion.DeliveryError):
        outcomes.raise_for_failures()
    assert [letter.error for letter in bus.dead_letters.list()] == ["nobody is there"]


@pytest.mark.parametrize("event", ["", "Not A Type", "system.mine"])
def test_what_emit_refuses_is_raised_in_the_thread_that_emits(bus: blocking.EventBus, event: str) -> None:
    with pytest.raises(aperion.EventTypeError):
        bus.emit(event, {})
    with pytest.raises(aperion.PayloadError):
        bus.emit_and_wait("blocking.noted", {})


def test_options_are_those_of_a_bus() -> None:
    with pytest.raises(TypeError, match=r"EventBus\(\) has no option 'max_worker'"):
        blocking.EventBus(max_worker=3)
    with pytest.raises(ConfigurationError, match="max_pending_events=0"):
        blocking.EventBus(max_pending_events=0)
    strict = blocking.EventBus(naming=aperion.Naming(unknown="refuse"))
    with pytest.raises(aperion.UnknownEventTypeError):
        strict.subscribe(print, "nobody.knows")


def test_emit_waits_for_room_no_longer_than_it_is_told() -> None:
    go = threading.Event()
    with blocking.EventBus(max_pending_events=1) as bus:
        bus.subscribe(lambda event: go.wait(20), "order.placed")
        bus.emit("order.placed", {})
        with pytest.raises(TimeoutError, match="no room"):
            bus.emit("order.placed", {}, timeout=0.05)
        with pytest.raises(TimeoutError):
            bus.emit_and_wait("order.placed", {}, timeout=0.05)
        go.set()


def test_handlers_that_take_too_long_go_on_when_the_wait_ends(bus: blocking.EventBus) -> None:
    go, ended = threading.Event(), threading.Event()

    @bus.on("order.placed")
    def slow(event: aperion.Event[Any]) -> None:
        go.wait(20)
        ended.set()

    with pytest.raises(TimeoutError):
        bus.emit_and_wait("order.placed", {}, timeout=0.05)
    go.set()

    assert ended.wait(20)


def test_many_threads_emit_at_once_also_the_first_event() -> None:
    got: list[int] = []
    bus = blocking.EventBus()

    @bus.on("order.placed")
    async def collect(event: aperion.Event[Any]) -> None:
        got.append(event.payload["n"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: bus.emit_and_wait("order.placed", {"n": n}, timeout=30), range(200)))
    bus.close()

    assert sorted(got) == list(range(200))
    assert [thread.name for thread in threading.enumerate()].count("aperion loop") == 0


def test_a_sync_handler_emits_and_an_async_one_is_told_to_await(bus: blocking.EventBus) -> None:
    told: list[str] = []

    @bus.on("order.placed", name="parent")
    def parent(event: aperion.Event[Any]) -> None:
        assert bus.emit("order.billed", {}).event.causation_id == event.event_id

    @bus.on("order.placed", name="wrong")
    async def wrong(event: aperion.Event[Any]) -> None:
        bus.emit("order.billed", {})

    @bus.on("order.placed", name="right")
    async def right(event: aperion.Event[Any]) -> None:
        await bus.running.emit("order.billed", {})

    bus.subscribe(lambda event: told.append(event.event_type), "order.billed")
    outcomes = bus.emit_and_wait("order.placed", {}, timeout=20)

    states = {name: outcome.state.value for name, outcome in outcomes.items()}
    assert states == {"parent": "ok", "wrong": "failed", "right": "ok"}
    assert isinstance(outcomes["wrong"].error, DeadlockError)
    assert "await bus.running.emit" in str(outcomes["wrong"].error)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_closing_in_a_handler_is_refused_at_once(bus: blocking.EventBus, kind: str) -> None:
    if kind == "sync":
        bus.subscribe(lambda event: bus.close(), "order.placed", name="closes")
    else:

        @bus.on("order.placed", name="closes")
        async def closes(event: aperion.Event[Any]) -> None:
            bus.close()

    outcomes = bus.emit_and_wait("order.placed", {}, timeout=20)

    assert isinstance(outcomes["closes"].error, DeadlockError)


def test_closing_waits_for_what_is_in_flight_and_twice_is_once() -> None:
    ended: list[int] = []
    bus = blocking.EventBus()

    @bus.on("order.placed")
    def slow(event: aperion.Event[Any]) -> None:
        time.sleep(0.05)
        ended.append(1)

    for _ in range(5):
        bus.emit("order.placed", {})
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda _: bus.close(), range(3)))

    assert len(ended) == 5
    assert all(report is not None and report.ok for report in [*reports, bus.close()])
    with pytest.raises(BusNotRunningError, match="this bus was closed"):
        bus.emit("order.placed", {})
    with pytest.raises(BusNotRunningError, match="this bus was closed"), bus:
        pass


def test_closing_says_what_did_not_finish_in_time() -> None:
    go, bus = threading.Event(), blocking.EventBus()
    bus.subscribe(lambda event: go.wait(20), "order.placed")
    bus.emit("order.placed", {})

    report = bus.close(timeout=0.05)
    go.set()

    assert report is not None
    assert [event_type for event_type, _ in report.unfinished] == ["order.placed"]


def test_closing_a_bus_that_never_started_is_nothing_and_it_stays_closed() -> None:
    bus = blocking.EventBus()

    assert bus.close() is None
    with pytest.raises(BusNotRunningError):
        bus.emit("order.placed", {})


def test_a_bus_that_cannot_start_says_why_and_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("somebody else's\n")
    bus = blocking.EventBus(audit=path)

    with pytest.raises(AuditUnavailable, match="cannot be opened"):
        bus.emit("order.placed", {})
    path.unlink()
    bus.emit("order.placed", {})
    bus.close()

    assert "order.placed" in path.read_text()


def test_a_program_that_ends_without_closing_has_its_events_handled() -> None:
    done = run(
        """
        import time
        from aperion.blocking import EventBus
        bus = EventBus()
        @bus.on("order.placed")
        async def slow(event):
            import anyio
            await anyio.sleep(0.1)
            print("handled", event.payload["n"], flush=True)
        for n in range(3):
            bus.emit("order.placed", {"n": n})
        """
    )

    assert sorted(done.stdout.splitlines()) == ["handled 0", "handled 1", "handled 2"]


def test_ctrl_c_ends_the_wait_and_the_block_closes_the_bus() -> None:
    program = """
    import threading
    from aperion.blocking import EventBus
    go = threading.Event()
    with EventBus(drain_timeout=20) as bus:
        bus.subscribe(lambda event: go.wait(20), "order.placed")
        try:
            print("waiting", flush=True)
            bus.emit_and_wait("order.placed", {})
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            go.set()
    print(bus.stats().state, bus.stats().settled)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=40)

    assert (out.splitlines(), process.returncode) == (["interrupted", "stopped 1"], 0), errors


def test_what_a_handler_interrupts_is_raised_by_close() -> None:
    bus = blocking.EventBus()

    @bus.on("order.placed")
    def interrupt(event: aperion.Event[Any]) -> None:
        raise KeyboardInterrupt

    bus.emit("order.placed", {})

    with pytest.raises(KeyboardInterrupt):
        bus.close()
    bus.close()


def test_a_forked_child_is_told_to_start_a_bus_of_its_own() -> None:
    done = run(
        """
        import os, warnings
        warnings.simplefilter("ignore")
        from aperion import BusNotRunningError
        from aperion.blocking import EventBus
        started, fresh = EventBus(), EventBus()
        started.emit("order.placed", {})
        child = os.fork()
        if child == 0:
            try:
                started.emit("order.placed", {})
            except BusNotRunningError as error:
                print("forked away" in str(error), flush=True)
            print(started.close(), fresh.emit_and_wait("order.placed", {}, timeout=20), flush=True)
            fresh.close()
            os._exit(0)
        print(os.waitpid(child, 0)[1], started.close().ok)
        """
    )

    assert done.stdout.splitlines() == ["True", "None <Outcomes of order.placed: no deliveries>", "0 True"]


def test_unsubscribe_and_pause_reach_the_running_bus(bus: blocking.EventBus) -> None:
    got: list[str] = []
    one = bus.subscribe(lambda event: got.append("one"), "order.placed", name="one")
    bus.subscribe(lambda event: got.append("two"), "order.placed", name="two")

    one.pause()
    assert bus.unsubscribe("two")
    bus.emit_and_wait("order.placed", {}, timeout=20)
    one.resume()
    bus.emit_and_wait("order.placed", {}, timeout=20)

    assert got == ["one"]
    assert [each.name for each in bus.subscriptions] == ["one"]
