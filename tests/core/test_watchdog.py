"""The watchdog that names a handler which holds up the event loop, and what beats while a bus runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog

import aperion
from aperion import CallbackMetrics, ConfigurationError, Event, EventBus, Retry

pytestmark = pytest.mark.anyio


class Told:
    """A back end that keeps what it is told, and lets a blocked thread go on once it was told of it."""

    def __init__(self) -> None:
        self.all: list[tuple[str, float, dict[str, str]]] = []
        self.barked = threading.Event()
        self.metrics = CallbackMetrics(self._tell)

    def _tell(self, _kind: str, name: str, value: float, labels: dict[str, str]) -> None:
        self.all.append((name, value, labels))
        if name == "aperion_loop_blocked_total":
            self.barked.set()

    def block(self) -> None:
        """Hold up the loop until the watchdog has noticed."""
        assert self.barked.wait(20)
        self.barked.clear()

    def of(self, name: str) -> list[tuple[float, dict[str, str]]]:
        return [(value, labels) for each, value, labels in self.all if each == name]


@contextmanager
def logged():
    """Give the lines that are logged, from whichever thread."""
    lines: list[dict[str, Any]] = []

    def keep(_logger: Any, _method: str, line: dict[str, Any]) -> dict[str, Any]:
        lines.append(line)
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(0))
    try:
        yield lines
    finally:
        structlog.configure(**before)


async def test_a_handler_that_holds_up_the_loop_is_named_with_its_stack() -> None:
    """It is counted, and the line shows where it stood, without values and without our own frames."""
    told = Told()

    async def greedy(event: Event) -> None:
        password = "hunter2"
        told.block()
        assert password

    with logged() as lines:
        async with EventBus(watchdog=0.02, metrics=told.metrics) as bus:
            bus.subscribe(greedy, "order.placed", name="shop.greedy")
            with anyio.fail_after(30):
                await bus.dispatch("order.placed", {})

            assert bus.stats().loop_blocked == 1

    assert told.of("aperion_loop_blocked_total") == [(1, {"subscription": "shop.greedy"})]
    [line] = [line for line in lines if "event loop" in line["event"]]
    assert (line["subscription"], line["event"]) == ("shop.greedy", "a handler holds up the event loop")
    assert line["seconds"] >= 0.02
    frames = [each for each in line["stack"].splitlines() if each.startswith('  File "')]
    assert "in greedy" in frames[0]
    assert "in block" in line["stack"]
    assert "execution.py" not in line["stack"]
    assert "hunter2" not in line["stack"]


async def test_a_handler_is_logged_once_a_minute_and_counted_each_time() -> None:
    """A line for each time would drown all else; another handler has a line of its own."""
    told = Told()
    with logged() as lines:
        async with EventBus(watchdog=0.02, metrics=told.metrics) as bus:
            for name in ("first", "second"):
                bus.subscribe(_blocking(told), "order.placed", name=name)
            with anyio.fail_after(45):
                for _ in range(2):
                    await bus.dispatch("order.placed", {})
                    beats = len(told.of("aperion_loop_lag_seconds"))
                    while len(told.of("aperion_loop_lag_seconds")) == beats:  # what follows is another time
                        await anyio.sleep(0.01)

            assert bus.stats().loop_blocked == 4

    assert [line["subscription"] for line in lines if "event loop" in line["event"]] == ["first", "second"]


async def test_a_retry_is_named_too() -> None:
    """The second attempt runs by another way than the first."""
    told, attempts = Told(), []

    async def flaky(event: Event) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError
        told.block()

    with logged():
        async with EventBus(watchdog=0.02, metrics=told.metrics) as bus:
            bus.subscribe(flaky, "order.placed", name="shop.flaky", retry=Retry(wait_initial=0.001))
            with anyio.fail_after(30):
                await (await bus.emit("order.placed", {})).settled()

    assert told.of("aperion_loop_blocked_total") == [(1, {"subscription": "shop.flaky"})]


async def test_what_is_no_handler_is_told_of_without_a_name() -> None:
    """Other code on the loop delays every handler just the same."""
    told = Told()
    with logged() as lines:
        async with EventBus(watchdog=0.02, metrics=told.metrics) as bus:
            told.block()

            assert bus.stats().loop_blocked == 1

    assert told.of("aperion_loop_blocked_total") == [(1, {"subscription": ""})]
    [line] = [line for line in lines if "event loop" in line["event"]]
    assert line["event"] == "the event loop is held up"
    assert "in block" in line["stack"]


STUCK = """
import asyncio, os, time, aperion
bus = aperion.EventBus(watchdog=0.02)
app = aperion.App(bus)
async def greedy(event=None):
    await deeper()
async def deeper():
    while not bus.stats().loop_blocked:
        time.sleep(0.01)
    time.sleep(0.3)  # in which the line is written
    os._exit(0)
async def emit():
    await bus.emit("order.placed", {})
async def schedule():
    asyncio.get_running_loop().create_task(greedy())
    await asyncio.sleep(30)
"""


@pytest.mark.parametrize(
    ("how", "command"),
    [
        ("app.service(greedy)", ("-m", "aperion", "run", "stuck:app")),
        ("app.service(emit); bus.subscribe(greedy, 'order.placed')", ("-m", "aperion", "run", "stuck:app")),
        ("aperion.run(app, greedy)", ("stuck.py",)),
        ("aperion.run(app, schedule)", ("stuck.py",)),
    ],
    ids=["a service", "a handler", "a main", "a task"],
)
def test_the_stack_begins_at_the_code_of_the_user_and_has_several_lines(how: str, command: Any, tmp_path: Path) -> None:
    """Whatever runs it: neither the command line is in it, nor the lines that start a loop, nor our own."""
    (tmp_path / "stuck.py").write_text(STUCK + how)

    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=45,
        env={**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parents[1])},
    )

    lines = done.stderr.splitlines()
    [told] = [number for number, line in enumerate(lines) if "event loop" in line]
    assert lines[told + 1].startswith('  File "'), done.stderr
    assert lines[told + 1].endswith('stuck.py", line 6, in greedy'), done.stderr
    assert lines[told + 3].endswith("in deeper")


async def test_a_sync_handler_may_take_its_time() -> None:
    """It is in a thread, and holds up nothing."""
    ended = threading.Event()
    with logged() as lines:
        async with EventBus(watchdog=0.05) as bus:
            bus.subscribe(lambda event: ended.wait(0.4), "order.placed")
            with anyio.fail_after(30):
                await bus.dispatch("order.placed", {})

            assert bus.stats().loop_blocked == 0
    assert not [line for line in lines if "event loop" in line["event"]]


async def test_the_thread_ends_with_the_bus() -> None:
    """One bus, one thread, and none afterwards."""
    async with EventBus(watchdog=True):
        during = [thread.name for thread in threading.enumerate()]

    assert during.count("aperion watchdog") == 1
    assert "aperion watchdog" not in [thread.name for thread in threading.enumerate()]


PROGRAM = """
import anyio, aperion, sys, threading
async def main():
    async with aperion.EventBus({option}):
        print("aperion watchdog" in [t.name for t in threading.enumerate()])
anyio.run(main)
"""


@pytest.mark.parametrize(
    ("arguments", "environment", "option", "on"),
    [
        ((), {}, "", False),
        (("-X", "dev"), {}, "", True),
        ((), {"PYTHONASYNCIODEBUG": "1"}, "", True),
        (("-X", "dev"), {}, "watchdog=False", False),
        ((), {"APERION_WATCHDOG": "0.5"}, "", True),
        (("-X", "dev"), {"APERION_WATCHDOG": "0"}, "", False),
        ((), {"APERION_WATCHDOG": "0"}, "watchdog=True", True),
    ],
)
def test_it_is_on_in_development_and_can_be_switched(arguments, environment, option, on) -> None:
    """What the bus says counts most, then the environment, then the debug mode."""
    done = subprocess.run(
        [sys.executable, *arguments, "-c", PROGRAM.format(option=option)],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=45,
    )

    assert done.stdout.strip() == str(on), done.stderr


@pytest.mark.parametrize("watchdog", [0, -1, "soon", float("inf"), float("nan")])
def test_a_limit_that_makes_no_sense_is_refused(watchdog: Any) -> None:
    """When the bus is made."""
    with pytest.raises(ConfigurationError, match="watchdog="):
        EventBus(watchdog=watchdog)


async def test_a_variable_that_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the bus starts, naming the variable."""
    monkeypatch.setenv("APERION_WATCHDOG", "often")

    with pytest.raises(ConfigurationError, match="APERION_WATCHDOG='often' makes no sense"):
        async with EventBus():
            pass


async def test_the_load_of_a_bus_is_told_while_it_runs(tmp_path) -> None:
    """Queue, events in flight, threads, audit log and loop: each has a gauge, or a histogram."""
    told, gate = Told(), threading.Event()
    audit = aperion.AuditLog(tmp_path / "log" / "events.jsonl")
    async with EventBus(max_concurrent_events=2, audit=audit, metrics=told.metrics) as bus:
        bus.subscribe(lambda event: gate.wait(20), "order.placed")
        for _ in range(5):
            await bus.emit("order.placed", {})
        with anyio.fail_after(20):
            while (2, {}) not in told.of("aperion_threads_busy"):
                await anyio.sleep(0.01)
        gate.set()

    assert (3, {}) in told.of("aperion_queue_depth")
    assert (2, {}) in told.of("aperion_events_in_flight")
    assert told.of("aperion_threads_abandoned")[-1] == (0, {})
    assert told.of("aperion_audit_buffered_bytes")
    assert all(value >= 0 for value, _ in told.of("aperion_loop_lag_seconds"))


async def test_a_late_loop_is_measured() -> None:
    """The lag is at least what the loop was held up beyond the beat."""
    told = Told()
    async with EventBus(metrics=told.metrics):
        time.sleep(0.4)
        with anyio.fail_after(20):
            while not told.of("aperion_loop_lag_seconds"):
                await anyio.sleep(0.01)

    assert max(value for value, _ in told.of("aperion_loop_lag_seconds")) >= 0.1


async def test_events_with_one_key_stand_in_the_queue() -> None:
    """They are accepted, and wait for the one before them."""
    gate = asyncio.Event()

    async def wait(event: Event) -> None:
        await gate.wait()

    async with EventBus() as bus:
        bus.subscribe(wait, "order.placed")
        for _ in range(4):
            await bus.emit("order.placed", {}, key="one")
        await anyio.wait_all_tasks_blocked()

        assert (bus.stats().queued, bus.stats().pending) == (3, 4)
        gate.set()
        await bus.wait_settled()
        assert bus.stats().queued == 0


def _blocking(told: Told) -> Callable[[Event], Any]:
    async def block(event: Event) -> None:
        told.block()

    return block
