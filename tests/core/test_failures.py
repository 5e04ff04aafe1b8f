"""Handlers that raise, hang, are stuck or come late: what becomes of the others, and what is left behind."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import threading
import time
from typing import Any

import anyio
import pytest

import aperion
from aperion import Event, EventBus, FailureReason, OutcomeState, Retry

pytestmark = pytest.mark.anyio


class Boom(BaseException):
    """What no ``except Exception`` catches."""


FAILURES: list[BaseException] = [
    ValueError("bad"),
    SystemExit(3),
    asyncio.CancelledError(),
    ExceptionGroup("many", [ValueError(1), KeyError(2)]),
    BaseExceptionGroup("base", [SystemExit(1)]),
    StopIteration(5),
    StopAsyncIteration(),
    TimeoutError("db connect timed out"),
    Boom("base"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("way", ["emit", "dispatch"])
async def test_a_failing_handler_hurts_neither_the_others_nor_the_emitter(
    error: BaseException, kind: str, way: str
) -> None:
    """ERR-1 ERR-3 ERR-a/c ERR-b2 TMO-e: whatever it raises is one failed outcome, with its own error."""
    ran: list[str] = []

    async def fails_async(event: Event) -> None:
        raise error

    def fails_sync(event: Event) -> None:
        raise error

    async with EventBus() as bus:
        bus.subscribe(lambda e: ran.append("before"), "chat.sent", 200, name="before")
        bus.subscribe(fails_async if kind == "async" else fails_sync, "chat.sent", name="fails")
        bus.subscribe(lambda e: ran.append("after"), "chat.sent", 1, name="after")
        with anyio.fail_after(5):
            if way == "emit":
                outcomes = await (await bus.emit("chat.sent", {})).settled()
            else:
                outcomes = await bus.dispatch("chat.sent", {})
            await bus.dispatch("chat.sent", {})
            await bus.wait_settled()
        letters = bus.dead_letters.list()

        assert bus.stats().failures == 2

    assert ran == ["before", "after"] * 2
    assert [o.state for o in outcomes.values()] == [OutcomeState.OK, OutcomeState.FAILED, OutcomeState.OK]
    # PEP 479: Python itself turns a StopIteration that leaves a coroutine into a RuntimeError.
    assert type(outcomes["fails"].error) is (RuntimeError if isinstance(error, StopIteration) else type(error))
    assert {letter.reason for letter in letters} == {FailureReason.HANDLER_ERROR}


async def test_a_failure_is_an_event_an_outcome_and_a_dead_letter() -> None:
    """ERR-2 ERR-4 SYS-a SYS-b COR-err DLQ-8: with type, redacted text, handler, original and correlation id."""
    errors: list[Event] = []
    everything: list[str] = []
    async with EventBus() as bus:
        bus.subscribe(lambda e: errors.append(e), "system.handler_error", name="errors")
        bus.subscribe(lambda e: everything.append(e.event_type), "*", name="everything")

        @bus.on("chat.sent", name="fails")
        async def fails(event: Event) -> None:
            raise ValueError("password=hunter2 is wrong")

        with aperion.CorrelationContext("req-7"):
            receipt = await bus.emit("chat.sent", {})
        await receipt.settled()
        await bus.wait_settled()
        (letter,) = bus.dead_letters.list()

    (error,) = errors
    assert error.source == "event_bus"
    assert error.correlation_id == "req-7"
    assert error.causation_id == receipt.event_id
    assert error.payload["original_event_id"] == receipt.event_id
    assert error.payload["original_event_type"] == "chat.sent"
    assert error.payload["subscription"] == error.payload["handler_name"] == "fails"
    assert error.payload["error_type"] == "ValueError"
    assert "hunter2" not in str(error.payload)
    assert "system.handler_error" in everything
    assert (letter.subscription, letter.reason, letter.attempts) == ("fails", FailureReason.HANDLER_ERROR, 1)
    assert letter.event.correlation_id == "req-7"
    assert letter.error_type == "ValueError"
    assert "hunter2" not in letter.error + letter.traceback
    assert "raise ValueError" in letter.traceback


async def test_handlers_of_system_events_that_fail_do_not_loop() -> None:
    """SYS-c and rule 5: a failure of one is a dead letter and no further event; forging one is refused."""
    calls = 0
    async with EventBus() as bus:

        @bus.on("system.*", name="broken")
        async def broken(event: Event) -> None:
            nonlocal calls
            calls += 1
            raise ValueError

        @bus.on("chat.sent")
        async def fails(event: Event) -> None:
            raise ValueError

        await bus.emit("chat.sent", {})
        with anyio.fail_after(5):
            await bus.wait_settled()
        assert calls == 1  # the one handler_error
        with pytest.raises(aperion.EventTypeError, match="reserved"):
            await bus.emit("system.handler_error", {})


async def test_startup_and_shutdown_are_events_and_shutdown_comes_once() -> None:
    """SHD-d/e/f/g/h: handlers get both; draining twice makes no second one."""
    seen: list[str] = []
    bus = EventBus()
    bus.subscribe(lambda e: seen.append(e.event_type), "system.*")
    async with bus:
        await bus.drain()
        await bus.drain()

    assert seen == ["system.startup", "system.shutdown"]


async def test_a_hundred_handlers_that_exit_leave_the_workers_alive() -> None:
    """ERR-d: after handlers that call sys.exit() or raise CancelledError, good events are handled."""
    good = 0
    async with EventBus(max_concurrent_events=4, max_concurrent_handlers=4) as bus:

        @bus.on("bad.one")
        def exits(event: Event) -> None:
            sys.exit(1)

        @bus.on("bad.one")
        async def cancels(event: Event) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await anyio.sleep(1)

        @bus.on("good.one")
        def works(event: Event) -> None:
            nonlocal good
            good += 1

        with anyio.fail_after(20):
            for _ in range(50):
                await bus.emit("bad.one", {})
            for _ in range(50):
                await bus.emit("good.one", {})
            await bus.wait_settled()

        assert bus.stats().failures == 100
    assert good == 50


# Timeouts


async def test_the_default_timeout_is_30_seconds_and_one_of_the_subscription_wins() -> None:
    """TMO-2: 30 s unless said otherwise."""
    bus = EventBus()
    assert bus.handler_timeout == 30.0
    assert bus.subscribe(lambda e: None, "chat.sent", name="the default").timeout == 30.0
    assert bus.subscribe(lambda e: None, "chat.sent", timeout=2, name="its own").timeout == 2
    assert EventBus(handler_timeout=None).handler_timeout == float("inf")


@pytest.mark.parametrize("way", ["emit", "dispatch"])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_timeout_ends_the_wait_and_the_next_handler_runs(way: str, kind: str) -> None:
    """TMO-1 TMO-3 TMO-c/d DLQ-9: every way of emitting and both kinds; it is a failure with its own reason."""
    release = threading.Event()
    cancelled: list[bool] = []
    ran: list[str] = []

    async def hangs_async(event: Event) -> None:
        try:
            await anyio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    def hangs_sync(event: Event) -> None:
        release.wait(60)

    async with EventBus(handler_timeout=0.05) as bus:
        bus.subscribe(hangs_async if kind == "async" else hangs_sync, "chat.sent", 200, name="hangs")
        bus.subscribe(lambda e: ran.append("next"), "chat.sent")
        with anyio.fail_after(5):
            if way == "emit":
                outcomes = await (await bus.emit("chat.sent", {})).settled()
            else:
                outcomes = await bus.dispatch("chat.sent", {})
        release.set()
        (letter,) = bus.dead_letters.list()

    assert outcomes["hangs"].state is OutcomeState.TIMED_OUT
    assert isinstance(outcomes["hangs"].error, aperion.HandlerTimeoutError)
    assert letter.reason is FailureReason.HANDLER_TIMEOUT
    assert ran == ["next"]
    assert cancelled == ([True] if kind == "async" else [])  # TMO-b: it really is cancelled


async def test_a_handler_that_keeps_its_cancellation_to_itself_has_timed_out() -> None:
    """TMO-b: swallowing CancelledError, or raising something else instead, does not make it a success."""

    async def swallows(event: Event) -> None:
        try:
            await anyio.sleep(60)
        except asyncio.CancelledError:
            pass

    async def transforms(event: Event) -> None:
        try:
            await anyio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("cleanup went wrong") from None

    async with EventBus(handler_timeout=0.03) as bus:
        bus.subscribe(swallows, "chat.sent", name="swallows")
        bus.subscribe(transforms, "chat.sent", name="transforms")
        with anyio.fail_after(5):
            outcomes = await (await bus.emit("chat.sent", {})).settled()
            assert (await bus.dispatch("quiet.event", {})).ok

    assert [o.state for o in outcomes.values()] == [OutcomeState.TIMED_OUT] * 2
    assert isinstance(outcomes["transforms"].error.__cause__, ValueError)  # type: ignore[union-attr]


async def test_timeouts_work_inside_scopes_and_groups_and_dispatches_of_the_handler() -> None:
    """The cancellation of the watchdog and those of anyio and asyncio do not mix."""

    async def inner(event: Event) -> None:
        await anyio.sleep(60)

    async def outer(event: Event) -> None:
        with anyio.CancelScope():
            async with anyio.create_task_group():
                with anyio.move_on_after(30):
                    await bus.dispatch("inner.event", {})

    async def own_scope(event: Event) -> None:
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep(60)
        assert scope.cancelled_caught

    async def own_timeout(event: Event) -> None:
        async with asyncio.timeout(0.01):
            await anyio.sleep(60)

    async with EventBus() as bus:
        bus.subscribe(inner, "inner.event", timeout=30)
        bus.subscribe(outer, "outer.event", timeout=0.05, name="outer")
        bus.subscribe(own_scope, "outer.event", timeout=5, name="own_scope")
        bus.subscribe(own_timeout, "outer.event", timeout=5, name="own_timeout")
        with anyio.fail_after(5):
            outcomes = await (await bus.emit("outer.event", {})).settled()
            await bus.wait_settled()

        assert bus.stats().pending == 0
    assert outcomes["outer"].state is OutcomeState.TIMED_OUT
    assert outcomes["own_scope"].state is OutcomeState.OK
    assert outcomes["own_timeout"].state is OutcomeState.FAILED  # TMO-e: its own TimeoutError
    assert type(outcomes["own_timeout"].error) is TimeoutError


async def test_a_nested_dispatch_times_out_before_its_parent() -> None:
    """A stack of deadlines in one task: the inner one ends alone."""

    async def inner(event: Event) -> None:
        await anyio.sleep(60)

    seen: list[OutcomeState] = []

    async def outer(event: Event) -> None:
        outcomes = await bus.dispatch("inner.event", {})
        seen.extend(o.state for o in outcomes.values())

    async with EventBus() as bus:
        bus.subscribe(inner, "inner.event", timeout=0.03)
        bus.subscribe(outer, "outer.event", timeout=20)
        with anyio.fail_after(5):
            assert (await bus.dispatch("outer.event", {})).ok

    assert seen == [OutcomeState.TIMED_OUT]


async def test_many_timeouts_of_different_lengths_each_fire() -> None:
    """One timer serves them all: shorter ones that start later are not forgotten."""
    async with EventBus(max_concurrent_events=100) as bus:

        async def hangs(event: Event) -> None:
            await anyio.sleep(60)

        for n in range(20):
            bus.subscribe(hangs, f"hang.n{n}", timeout=0.2 - 0.009 * n)
        with anyio.fail_after(5):
            for n in range(20):
                await bus.emit(f"hang.n{n}", {})
            await bus.wait_settled()

        assert len(bus.dead_letters.list(reason=FailureReason.HANDLER_TIMEOUT)) == 20


async def test_waiting_for_a_thread_is_not_the_handlers_time() -> None:
    """TMO-f: on one thread, three handlers of 60 ms with a timeout of 150 ms all go well."""
    async with EventBus(max_concurrent_handlers=1, handler_timeout=0.15) as bus:
        bus.subscribe(lambda e: time.sleep(0.06), "chat.sent")
        with anyio.fail_after(5):
            receipts = [await bus.emit("chat.sent", {}) for _ in range(4)]
            outcomes = [await receipt.settled() for receipt in receipts]

    assert all(o.ok for o in outcomes)


async def test_abandoned_threads_are_counted_and_their_places_not_given_away() -> None:
    """TMO-a TMO-f: two stuck threads of two; others fail with a reason that says so, and recover after."""
    release = threading.Event()
    started: list[int] = []
    async with EventBus(max_concurrent_handlers=2, handler_timeout=0.05) as bus:

        @bus.on("stuck.one")
        def stuck(event: Event) -> None:
            started.append(threading.get_ident())
            release.wait(30)

        bus.subscribe(lambda e: None, "quick.one", name="quick")
        with anyio.fail_after(10):
            first = [await bus.emit("stuck.one", {}) for _ in range(2)]
            waiting = await bus.emit("quick.one", {})  # waits for a thread, and is told when the last is lost
            for receipt in first:
                await receipt.settled()
            outcome = (await waiting.settled())["quick"]
            assert isinstance(outcome.error, aperion.ThreadsExhaustedError)
            assert bus.stats().threads_abandoned == bus.stats().threads_busy == 2
            again = (await bus.dispatch("quick.one", {}))["quick"]
            assert isinstance(again.error, aperion.ThreadsExhaustedError)
            assert {e.reason for e in bus.dead_letters.list(subscription="quick")} == {FailureReason.THREADS_EXHAUSTED}

            release.set()
            while bus.stats().threads_abandoned:
                await anyio.sleep(0.001)
            assert (await bus.dispatch("quick.one", {})).ok
            assert bus.stats().threads_busy == 0
    assert len(started) == 2


async def test_a_handler_can_notice_that_nobody_waits_for_it() -> None:
    """check_cancelled() stops it and frees the thread; elsewhere it does nothing."""
    stopped = threading.Event()
    async with EventBus(handler_timeout=0.05) as bus:

        @bus.on("chat.sent")
        def works_on(event: Event) -> None:
            try:
                while True:
                    time.sleep(0.001)
                    aperion.check_cancelled()
            finally:
                stopped.set()

        with anyio.fail_after(5):
            await bus.dispatch("chat.sent", {})
            await anyio.to_thread.run_sync(stopped.wait, 5)
            while bus.stats().threads_abandoned:
                await anyio.sleep(0.001)
    aperion.check_cancelled()
    assert stopped.is_set()


def test_a_stuck_thread_does_not_delay_the_exit_of_the_process() -> None:
    """TMO-h: main ends, and so does the process."""
    code = """
import time, aperion
bus = aperion.EventBus(handler_timeout=0.05)
bus.subscribe(lambda e: time.sleep(60), "chat.sent")
async def main():
    await (await bus.emit("chat.sent", {})).settled()
aperion.run(bus, main)
print("over")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)

    assert "over" in done.stdout


def kill_me_slowly(event: Event) -> None:
    """Run in another process, and leave a mark there."""
    if event.payload.get("hang"):
        time.sleep(60)
    path = event.payload["path"]
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(f"{os.getpid()} {aperion.get_correlation_id()}")


async def test_isolation_in_a_process_runs_and_kills(tmp_path: Any) -> None:
    """Rule 6: the handler runs elsewhere with its correlation id, and a timeout really ends it."""
    async with EventBus() as bus:
        bus.subscribe(kill_me_slowly, "chat.sent", isolation="process", timeout=30)
        bus.subscribe(kill_me_slowly, "slow.sent", isolation="process", timeout=0.1, name="slow")
        mark = tmp_path / "mark"
        with anyio.fail_after(45):
            await bus.dispatch("chat.sent", {"path": str(mark)}, correlation_id="req-9")
            outcomes = await bus.dispatch("slow.sent", {"path": str(tmp_path / "never"), "hang": True})

    pid, correlation_id = mark.read_text().split()
    assert int(pid) != os.getpid()
    assert correlation_id == "req-9"
    assert outcomes["slow"].state is OutcomeState.TIMED_OUT
    assert not (tmp_path / "never").exists()


# Kinds of handlers


class Greeter:
    """Handlers of every shape; each notes its name in ``ran``."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def __call__(self, event: Event) -> None:
        await anyio.sleep(0)
        self.ran.append("callable object")

    async def method(self, event: Event) -> None:
        self.ran.append("async method")

    def sync_method(self, event: Event) -> None:
        self.ran.append("sync method")

    async def two(self, extra: str, event: Event) -> None:
        self.ran.append(extra)

    @staticmethod
    async def static(event: Event) -> None: ...

    @classmethod
    async def of_class(cls, event: Event) -> None: ...


async def test_every_kind_of_callable_is_handled_for_what_it_is() -> None:
    """ASY-d FAST-6: objects with an async __call__, methods, partials, lambdas that return coroutines, wrappers."""
    greeter = Greeter()

    @functools.wraps(greeter.method)
    def wrapper(event: Event) -> Any:  # noqa: ANN401
        return greeter.method(event)

    handlers = [
        greeter,
        greeter.method,
        greeter.sync_method,
        functools.partial(greeter.two, "partial"),
        functools.partial(functools.partial(greeter.two), "partial of partial"),
        lambda e: greeter.two("lambda", e),
        wrapper,
        greeter.static,
        greeter.of_class,
    ]
    async with EventBus() as bus:
        for n, handler in enumerate(handlers):
            bus.subscribe(handler, "chat.sent", name=f"h{n}")
        with anyio.fail_after(5):
            outcomes = await bus.dispatch("chat.sent", {})

    outcomes.raise_for_failures()
    assert len(outcomes) == len(handlers)
    assert greeter.ran == [
        "callable object",
        "async method",
        "sync method",
        "partial",
        "partial of partial",
        "lambda",
        "async method",
    ]


async def test_names_tell_methods_of_different_classes_apart() -> None:
    """MET-l..r: A1.handle and B1.handle are two subscriptions, in metrics too."""

    class A1:
        async def handle(self, event: Event) -> None: ...

    class B1:
        async def handle(self, event: Event) -> None: ...

    bus = EventBus()
    names = [bus.subscribe(x.handle, "chat.sent").name for x in (A1(), B1())]

    assert names[0].endswith("A1.handle")
    assert names[1].endswith("B1.handle")
    with pytest.raises(aperion.ConfigurationError, match=r"A1\.handle' is taken .* pass another name="):
        bus.subscribe(A1().handle, "chat.sent")
    assert bus.subscribe(A1().handle, "chat.sent", name="a second").name == "a second"


async def _generator(event: Event) -> Any:  # noqa: ANN401
    yield event


@pytest.mark.parametrize(
    ("handler", "options", "error", "says"),
    [
        (5, {}, aperion.HandlerError, "no handler"),
        (Greeter, {}, aperion.HandlerError, "no handler"),
        (lambda: None, {}, aperion.HandlerError, "one event"),
        (lambda a, b: None, {}, aperion.HandlerError, "one event"),
        (_generator, {}, aperion.HandlerError, "generator"),
        (print, {"priority": "high"}, aperion.ConfigurationError, "priority='high'"),
        (print, {"timeout": 0}, aperion.ConfigurationError, "timeout=0"),
        (print, {"timeout": -1}, aperion.ConfigurationError, "timeout=-1"),
        (print, {"retry": 3}, aperion.ConfigurationError, "Retry"),
        (print, {"where": 3}, aperion.ConfigurationError, "where=3"),
        (print, {"name": ""}, aperion.ConfigurationError, "name=''"),
        (print, {"isolation": "moon"}, aperion.ConfigurationError, "isolation='moon'"),
        (lambda e: None, {"isolation": "process"}, aperion.HandlerError, "top level"),
        (Greeter().method, {"isolation": "process"}, aperion.HandlerError, "process"),
    ],
)
def test_wrong_registration_fails_at_once(
    handler: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:  # noqa: ANN401
    """PAT-a/c/d: with what to do instead, and nothing is subscribed."""
    bus = EventBus()

    with pytest.raises(error, match=says):
        bus.subscribe(handler, "chat.sent", **options)
    assert bus.subscriptions == ()


@pytest.mark.parametrize("event_types", [[], (), int, aperion.Payload])
def test_an_empty_list_and_a_model_without_type_are_refused(event_types: Any) -> None:  # noqa: ANN401
    """PAT-a/c/d: the handler would never run."""
    with pytest.raises(aperion.ConfigurationError):
        EventBus().subscribe(print, event_types)


def test_a_name_is_taken_once() -> None:
    """A stable name is one subscription's alone."""
    bus = EventBus()
    bus.subscribe(print, "chat.sent", name="printer")

    with pytest.raises(aperion.ConfigurationError, match="'printer' is taken"):
        bus.subscribe(print, "chat.read", name="printer")


@pytest.mark.parametrize(
    "options",
    [
        {"max_pending_events": 0},
        {"max_pending_events": 1.5},
        {"max_concurrent_events": -1},
        {"max_concurrent_handlers": 0},
        {"handler_timeout": 0},
        {"max_hops": True},
        {"max_cascade": 0},
        {"max_payload_bytes": -5},
        {"drain_timeout": float("inf")},
        {"overflow_policy": "explode"},
        {"processors": [5]},
        {"middleware": ["x"]},
    ],
)
def test_absurd_options_are_refused(options: dict[str, Any]) -> None:
    """With the option and its value."""
    with pytest.raises(aperion.ConfigurationError, match=next(iter(options))):
        EventBus(**options)


def test_options_that_do_not_exist_are_refused() -> None:
    """DLQ-e: no parameter is accepted and then not read."""
    with pytest.raises(TypeError, match="persist_path"):
        aperion.DeadLetterQueue(persist_path="x")  # type: ignore[call-arg]


# Retries


async def test_retries_back_off_and_each_attempt_is_on_the_outcome() -> None:
    """Two failures, then success; nothing is left in the dead letters."""
    calls = 0
    async with EventBus() as bus:

        @bus.on("chat.sent", retry=Retry(attempts=3, wait_initial=0.01), name="flaky")
        async def flaky(event: Event) -> None:
            nonlocal calls
            calls += 1
            if calls < 3:
                raise ValueError(calls)

        with anyio.fail_after(5):
            outcome = (await (await bus.emit("chat.sent", {})).settled())["flaky"]

        assert bus.stats().retries == 2
        assert len(bus.dead_letters) == 0
    assert outcome.state is OutcomeState.OK
    assert [(a.number, a.state) for a in outcome.attempts] == [
        (1, OutcomeState.FAILED),
        (2, OutcomeState.FAILED),
        (3, OutcomeState.OK),
    ]


async def test_attempts_that_run_out_are_one_dead_letter() -> None:
    """With the number of attempts; errors that ``on`` does not name are not retried; dispatch waits."""
    async with EventBus() as bus:

        @bus.on("chat.sent", retry=Retry(attempts=3, wait_initial=0.001, on=ValueError), name="fails")
        def fails(event: Event) -> None:
            raise ValueError if event.payload["retry"] else KeyError

        with anyio.fail_after(5):
            tried = await bus.dispatch("chat.sent", {"retry": True})
            untried = await bus.dispatch("chat.sent", {"retry": False})

        assert [letter.attempts for letter in bus.dead_letters.list()] == [1, 3]
    assert len(tried["fails"].attempts) == 3
    assert len(untried["fails"].attempts) == 1


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ExceptionGroup("two", [ConnectionError(), ConnectionResetError()]), 2),
        (ExceptionGroup("outer", [ExceptionGroup("inner", [ConnectionError()])]), 2),
        (ExceptionGroup("mixed", [ConnectionError(), KeyError()]), 1),
        (ExceptionGroup("other", [KeyError()]), 1),
    ],
    ids=["each matches", "nested", "one does not", "none does"],
)
async def test_an_exception_group_is_retried_when_every_exception_in_it_is_worth_it(
    error: ExceptionGroup[Exception], attempts: int
) -> None:
    """Task groups raise groups: what comes out of two requests that failed is a failed connection like any other."""

    async def fails(event: Event) -> None:
        raise error

    async with EventBus() as bus:
        bus.subscribe(fails, "chat.sent", name="fails", retry=Retry(attempts=2, wait_initial=0.001, on=ConnectionError))
        with anyio.fail_after(5):
            outcomes = await bus.dispatch("chat.sent", {})

    assert len(outcomes["fails"].attempts) == attempts


async def test_a_retry_never_holds_up_the_handlers_after_it() -> None:
    """Priority orders first attempts; the retry comes when its time has come."""
    ran: list[str] = []
    async with EventBus() as bus:

        @bus.on("chat.sent", priority=200, retry=Retry(attempts=2, wait_initial=0.05, jitter=0))
        async def fails_once(event: Event) -> None:
            ran.append("first")
            if ran.count("first") == 1:
                raise ValueError

        bus.subscribe(lambda e: ran.append("second"), "chat.sent")
        with anyio.fail_after(5):
            await bus.dispatch("chat.sent", {})

    assert ran == ["first", "second", "first"]


async def test_a_retry_waits_for_the_abandoned_thread_of_its_delivery() -> None:
    """Never two attempts of one delivery at once, even when the first cannot be stopped."""
    running = 0
    most = 0
    attempts = 0
    async with EventBus(max_concurrent_handlers=4) as bus:

        @bus.on("chat.sent", timeout=0.03, retry=Retry(attempts=2, wait_initial=0.001, wait_max=5), name="slow")
        def slow_once(event: Event) -> None:
            nonlocal running, most, attempts
            attempts += 1
            running += 1
            most = max(most, running)
            time.sleep(0.2 if attempts == 1 else 0)
            running -= 1

        with anyio.fail_after(5):
            outcomes = await bus.dispatch("chat.sent", {})

    assert most == 1
    assert [a.state for a in outcomes["slow"].attempts] == [OutcomeState.TIMED_OUT, OutcomeState.OK]


async def test_a_retry_gives_up_on_a_thread_that_stays_stuck() -> None:
    """After the longest wait of the retry the delivery has failed, and says with what."""
    release = threading.Event()
    async with EventBus() as bus:
        bus.subscribe(
            lambda e: release.wait(20),
            "chat.sent",
            timeout=0.02,
            retry=Retry(attempts=5, wait_initial=0.001, wait_max=0.05),
            name="stuck",
        )
        with anyio.fail_after(5):
            outcomes = await bus.dispatch("chat.sent", {})
        release.set()
        (letter,) = bus.dead_letters.list()

    assert outcomes["stuck"].state is OutcomeState.TIMED_OUT
    assert (letter.reason, letter.attempts) == (FailureReason.HANDLER_TIMEOUT, 1)


async def test_no_retry_starts_after_the_drain_began() -> None:
    """Its last failure is final, and the letter says how often it was tried."""
    calls = 0
    async with EventBus() as bus:

        @bus.on("chat.sent", retry=Retry(attempts=5, wait_initial=10))
        async def fails(event: Event) -> None:
            nonlocal calls
            calls += 1
            raise ValueError("each time")

        receipt = await bus.emit("chat.sent", {})
        while not calls:
            await anyio.sleep(0)
        with anyio.fail_after(5):
            report = await bus.drain()

    assert report.ok
    assert calls == 1
    assert receipt.is_settled
    assert [letter.reason for letter in bus.dead_letters.list()] == [FailureReason.HANDLER_ERROR]


@pytest.mark.parametrize("ends", [True, False], ids=["the worker comes free", "the patience ends"])
async def test_a_retry_that_is_ready_when_the_drain_begins_has_failed_for_good(ends: bool) -> None:
    """Its time has come, and every worker was busy: it is neither attempted once more nor lost."""
    begun, gate = anyio.Event(), anyio.Event()
    calls = 0
    async with EventBus(max_concurrent_events=1) as bus:

        @bus.on("chat.sent", retry=Retry(attempts=5, wait_initial=0.05, jitter=0))
        async def fails(event: Event) -> None:
            nonlocal calls
            calls += 1
            raise ValueError("each time")

        @bus.on("chat.left")
        async def holds(event: Event) -> None:
            begun.set()
            await gate.wait()

        receipt = await bus.emit("chat.sent", {})
        with anyio.fail_after(5):
            while not bus.stats().retries:
                await anyio.sleep(0)
            await bus.emit("chat.left", {})
            await begun.wait()
            while not bus.stats().queued:  # the retry is ready, behind what holds the only worker
                await anyio.sleep(0.001)
            async with anyio.create_task_group() as group:
                group.start_soon(bus.drain, 5 if ends else 0.01)
                await receipt.settled()
                if ends:
                    gate.set()

    unfinished = set() if ends else {("chat.left", FailureReason.NOT_FINISHED)}
    assert calls == 1
    assert {(letter.event.event_type, letter.reason) for letter in bus.dead_letters.list()} == {
        ("chat.sent", FailureReason.HANDLER_ERROR),
        *unfinished,
    }


async def test_a_retry_that_was_given_a_thread_when_the_drain_begins_is_made() -> None:
    """It began before the drain did, waited for a thread, and waits for its worker: it runs, once, and settles."""
    freed, begun, gate = threading.Event(), anyio.Event(), anyio.Event()
    calls = 0
    async with EventBus(max_concurrent_events=1, max_concurrent_handlers=1) as bus:

        @bus.on("chat.sent", retry=Retry(attempts=5, wait_initial=0.05, jitter=0))
        def fails(event: Event) -> None:
            nonlocal calls
            calls += 1
            raise ValueError("each time")

        @bus.on("chat.read")
        def has_the_thread(event: Event) -> None:
            freed.wait(20)

        @bus.on("chat.left")
        async def has_the_worker(event: Event) -> None:
            begun.set()
            await gate.wait()

        with anyio.fail_after(10):
            receipt = await bus.emit("chat.sent", {})
            while not bus.stats().retries:
                await anyio.sleep(0)
            async with anyio.create_task_group() as group:
                group.start_soon(bus.dispatch, "chat.read", {})
                while not bus._engine.workers.parked:  # type: ignore[union-attr]
                    await anyio.sleep(0.001)
                await bus.emit("chat.left", {})
                await begun.wait()
                freed.set()
                while bus._engine.workers.parked:  # type: ignore[union-attr]
                    await anyio.sleep(0.001)
                group.start_soon(bus.drain, 5)
                await anyio.sleep(0)
                gate.set()
        outcomes = await receipt.settled()
        stats = bus.stats()

    assert calls == 2
    assert [attempt.number for attempt in outcomes[fails.__module__ + "." + fails.__qualname__].attempts] == [1, 2]
    assert [letter.attempts for letter in bus.dead_letters.list()] == [2]
    assert (stats.failures, stats.pending, stats.threads_busy) == (1, 0, 0)


async def test_a_handler_that_fails_while_the_bus_drains_is_not_retried() -> None:
    """It was in flight when the drain began; waiting for its retry would hold the drain up."""
    gate = anyio.Event()
    calls = 0
    async with EventBus() as bus:

        @bus.on("chat.sent", retry=Retry(attempts=5, wait_initial=0.01))
        async def fails(event: Event) -> None:
            nonlocal calls
            calls += 1
            await gate.wait()
            raise ValueError

        await bus.emit("chat.sent", {})
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(bus.drain)
                while bus.stats().state != "draining":
                    await anyio.sleep(0)
                gate.set()

        assert bus.stats().retries == 0
        assert [letter.attempts for letter in bus.dead_letters.list()] == [1]
    assert calls == 1


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"wait_initial": -1},
        {"wait_initial": 5, "wait_max": 1},
        {"jitter": 2},
        {"wait_max": float("inf")},
    ],
)
def test_a_retry_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    """When it is declared."""
    with pytest.raises(aperion.ConfigurationError):
        Retry(**options)


def test_the_waits_double_up_to_the_longest_and_jitter_only_shortens() -> None:
    """Exponential back-off."""
    plain = Retry(wait_initial=1, wait_max=5, jitter=0)
    shaken = Retry(wait_initial=1, wait_max=5, jitter=0.5)

    assert [plain.wait(n) for n in range(1, 6)] == [1, 2, 4, 5, 5]
    assert all(plain.wait(n) / 2 <= shaken.wait(n) <= plain.wait(n) for n in range(1, 200))
    assert plain.wait(100_000) == 5


# Dead letters on the bus


async def test_without_care_for_dead_letters_nothing_raises_and_stats_tell() -> None:
    """DLQ-6 DLQ-10: the queue is always there, bounded, and shows in the stats."""
    async with EventBus(dead_letter_queue=aperion.DeadLetterQueue(max_size=2)) as bus:

        @bus.on("chat.sent")
        async def fails(event: Event) -> None:
            raise ValueError

        for _ in range(5):
            await bus.dispatch("chat.sent", {})

        assert (bus.stats().dead_letters, bus.stats().dead_letters_evicted) == (2, 3)


async def test_a_redrive_runs_only_what_failed_with_the_same_event() -> None:
    """DLQ-11 DLQ-c: same event id, attempt + 1; the handler that went well is not run again."""
    charged: list[str] = []
    mailed: list[tuple[str, str]] = []
    broken = True
    async with EventBus() as bus:
        bus.subscribe(lambda e: charged.append(e.event_id), "order.paid", name="charge")

        @bus.on("order.paid", name="mail")
        async def mail(event: Event) -> None:
            if broken:
                raise ConnectionError
            mailed.append((event.event_id, event.correlation_id))

        receipt = await bus.emit("order.paid", {}, correlation_id="req-1")
        await receipt.settled()
        (letter,) = bus.dead_letters.list()
        broken = False
        with anyio.fail_after(5):
            outcomes = await bus.redrive(letter.letter_id)

        assert bus.stats().redriven == 1
        assert len(bus.dead_letters) == 0
        with pytest.raises(aperion.DeadLetterNotFoundError):
            await bus.redrive(letter.letter_id)
    assert charged == [receipt.event_id]
    assert mailed == [(receipt.event_id, "req-1")]
    assert outcomes["mail"].attempts[-1].number == 2


async def test_a_redrive_that_fails_says_so_and_the_queue_does_not_grow() -> None:
    """DLQ-a/b DLQ-d DLQ-13: honest result, one letter, attempts counted, a ceiling."""
    calls = 0
    async with EventBus() as bus:

        @bus.on("chat.sent", name="fails")
        async def fails(event: Event) -> None:
            nonlocal calls
            calls += 1
            raise ValueError(calls)

        for _ in range(3):
            await bus.dispatch("chat.sent", {})
        with anyio.fail_after(5):
            rounds = [await bus.redrive_all(max_attempts=3) for _ in range(5)]
        letters = bus.dead_letters.list()

        assert [len(r) for r in rounds] == [3, 3, 0, 0, 0]
        assert not any(outcomes.ok for r in rounds for outcomes in r.values())
        assert len(letters) == 3
        assert {letter.attempts for letter in letters} == {3}
        assert all(letter.failed_at > letter.first_failed_at for letter in letters)
        with pytest.raises(aperion.RedriveError, match="3 attempts were made"):
            await bus.redrive(letters[0].letter_id, max_attempts=3)
    assert calls == 9


async def test_a_redrive_is_refused_where_it_could_do_harm() -> None:
    """DLQ-f..k: the last attempt still runs, the subscription is gone, the event was never accepted."""
    release = threading.Event()
    async with EventBus() as bus:
        bus.subscribe(lambda e: release.wait(20), "chat.sent", timeout=0.02, name="stuck")
        await bus.dispatch("chat.sent", {})
        (letter,) = bus.dead_letters.list()
        with pytest.raises(aperion.RedriveError, match="still runs"):
            await bus.redrive(letter.letter_id)
        release.set()
        bus.unsubscribe("stuck")
        with pytest.raises(aperion.RedriveError, match="gone"):
            await bus.redrive(letter.letter_id)
        with pytest.raises(aperion.EventTypeError):
            await bus.emit("Bad", {})
        with pytest.raises(aperion.RedriveError, match="never accepted"):
            await bus.redrive(bus.dead_letters.list()[0].letter_id)


async def test_every_reason_is_really_produced(monkeypatch: pytest.MonkeyPatch) -> None:
    """DLQ-7 DLQ-f..k: an error, a timeout, all handlers, validation, serialisation, threads, the drain, the engine."""

    class Strict(aperion.Payload, type="strict.event"):
        n: int

    release = threading.Event()
    async with EventBus(handler_timeout=0.02, max_concurrent_handlers=1, drain_timeout=0.05) as bus:

        @bus.on("error.one")
        async def fails(event: Event) -> None:
            raise ValueError

        @bus.on("error.*")
        async def fails_too(event: Event) -> None:
            raise ValueError

        bus.subscribe(lambda e: release.wait(20), "stuck.one")

        @bus.on("late.one", timeout=60)
        async def late(event: Event) -> None:
            await anyio.sleep(60)

        @bus.on("fault.one")
        async def never_runs(event: Event) -> None: ...

        with monkeypatch.context() as patch:
            patch.setattr("aperion.engine.execution.monotonic", lambda: 1 / 0)
            await bus.dispatch("fault.one", {})
        await bus.dispatch("error.one", {})
        await bus.dispatch("stuck.one", {})
        await bus.dispatch("stuck.one", {})
        with pytest.raises(aperion.PayloadError):
            await bus.emit("strict.event", {"n": "x"})
        with pytest.raises(aperion.SerializationError):
            await bus.emit("free.event", {"n": float("nan")})
        await bus.emit("late.one", {})
        await anyio.sleep(0)
        release.set()

    assert {letter.reason for letter in bus.dead_letters.list()} == set(FailureReason) - {
        FailureReason.KILLED,  # by a journal only
        FailureReason.SCHEMA,
    }


async def test_when_all_handlers_failed_a_letter_stands_for_the_event() -> None:
    """DLQ-7: redriving it redrives each; it goes when one of them has gone well."""
    broken = True
    async with EventBus() as bus:
        for name in ("a", "b"):

            @bus.on("chat.sent", name=name)
            async def handler(event: Event) -> None:
                if broken:
                    raise ValueError

        await bus.dispatch("chat.sent", {})
        (summary,) = bus.dead_letters.list(reason=FailureReason.ALL_HANDLERS_FAILED)
        assert len(bus.dead_letters) == 3
        broken = False
        with anyio.fail_after(5):
            outcomes = await bus.redrive(summary.letter_id)

        assert outcomes.ok
        assert set(outcomes) == {"a", "b"}
        assert len(bus.dead_letters) == 0


async def test_raise_for_failures_names_who_failed() -> None:
    """The errors are on the exception, the first is its cause."""
    async with EventBus() as bus:

        @bus.on("chat.sent", name="fails")
        async def fails(event: Event) -> None:
            raise ValueError("why")

        outcomes = await bus.dispatch("chat.sent", {})

    with pytest.raises(aperion.DeliveryError, match=r"fails \(ValueError\)") as caught:
        outcomes.raise_for_failures()
    assert isinstance(caught.value.errors["fails"], ValueError)
    assert isinstance(caught.value.__cause__, ValueError)


async def test_a_later_handler_of_an_event_waits_for_a_thread_without_holding_up_others() -> None:
    """Its first handler has run in a thread that somebody else has now; the only worker goes on with another event."""
    first, other, begun, order = threading.Event(), threading.Event(), threading.Event(), list[str]()
    async with EventBus(max_concurrent_events=1, max_concurrent_handlers=1) as bus:

        @bus.on("chat.sent", priority=2, name="first")
        def runs_first(event: Event) -> None:
            begun.set()
            first.wait(20)
            order.append("first")

        @bus.on("chat.sent", priority=1, name="second")
        def runs_second(event: Event) -> None:
            order.append("second")

        @bus.on("chat.read")
        def has_the_thread(event: Event) -> None:
            order.append("other")
            other.wait(20)

        @bus.on("chat.left")
        async def needs_no_thread(event: Event) -> None:
            await anyio.sleep(0)
            order.append("async")

        with anyio.fail_after(10):
            receipt = await bus.emit("chat.sent", {})
            while not begun.is_set():
                await anyio.sleep(0.001)
            async with anyio.create_task_group() as group:
                group.start_soon(bus.dispatch, "chat.read", {})
                await anyio.sleep(0)
                first.set()
                while "other" not in order:
                    await anyio.sleep(0.001)
                await (await bus.emit("chat.left", {})).settled()
                other.set()
            outcomes = await receipt.settled()
        assert bus._engine.workers.places == 1  # type: ignore[union-attr]

    assert order == ["first", "other", "async", "second"]
    assert {name: outcome.state for name, outcome in outcomes.items()} == dict.fromkeys(
        ("first", "second"), OutcomeState.OK
    )


async def test_a_handler_in_a_thread_lends_the_place_of_its_own_bus_while_it_waits_for_another_bus() -> None:
    """The other bus may need this one to go on: its only worker, and its only thread."""
    async with (
        EventBus(max_concurrent_events=1, max_concurrent_handlers=1, handler_timeout=10) as here,
        EventBus(max_concurrent_events=1, max_concurrent_handlers=1, handler_timeout=10) as there,
    ):

        @here.on("shop.opened")
        def asks(event: Event) -> None:
            there.emit_from_thread("stock.asked", {}).settled_from_thread(8).raise_for_failures()

        @there.on("stock.asked")
        async def asks_back(event: Event) -> None:
            receipt = await here.emit("shelf.counted", {})
            (await receipt.settled()).raise_for_failures()

        @here.on("shelf.counted")
        def counts(event: Event) -> None: ...

        for _ in range(3):
            receipt = await here.emit("shop.opened", {})
            with anyio.fail_after(10):
                (await receipt.settled()).raise_for_failures()
        assert (here._engine.workers.places, there._engine.workers.places) == (1, 1)  # type: ignore[union-attr]
