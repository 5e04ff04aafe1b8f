"""The lines that a bus writes about events: one for each that is handled, one for each failure."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import structlog

import aperion
import aperion.telemetry
from aperion import Event, EventBus, Retry
from aperion.logging import configure

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, config = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)


def lines(stream: io.StringIO, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] == event]


class _Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError


async def greet(event: Event) -> None: ...


async def test_each_handled_event_leaves_one_line_at_debug() -> None:
    """With the ids, who handled it, which attempt that was and how long it took."""
    stream = io.StringIO()
    configure(stream=stream, level="DEBUG")
    async with EventBus() as bus:
        bus.subscribe(greet, "user.login", name="app.greet")
        bus.subscribe(lambda event: None, "user.login", name="app.count")
        with aperion.CorrelationContext("req-1"):
            outcomes = await bus.dispatch("user.login", {})

    told = lines(stream, "event handled")
    assert [line["subscription"] for line in told] == ["app.greet", "app.count"]
    expected = {
        "level": "debug",
        "event_id": outcomes.event.event_id,
        "event_type": "user.login",
        "correlation_id": "req-1",
        "attempt": 1,
        "logger": "aperion",
    }
    assert all(line.items() >= expected.items() for line in told)
    assert all(0 <= line["duration"] < 60 for line in told)


async def test_no_line_for_what_went_well_above_debug() -> None:
    """In production they would be most of the log."""
    stream = io.StringIO()
    configure(stream=stream, level="INFO")
    async with EventBus() as bus:
        bus.subscribe(greet, "user.login")
        await bus.dispatch("user.login", {})

    assert stream.getvalue() == ""


async def test_each_failure_leaves_one_line_at_error() -> None:
    """With the same fields and the redacted error; an attempt that is followed by another is no error yet."""
    stream = io.StringIO()
    configure(stream=stream, level="DEBUG")

    async def fails(event: Event) -> None:
        raise ValueError("password=hunter2")

    async with EventBus() as bus:
        bus.subscribe(fails, "user.login", name="app.fails", retry=Retry(attempts=2, wait_initial=0.001))
        receipt = await bus.emit("user.login", {})
        await bus.wait_settled()

    [failure] = lines(stream, "delivery failed")
    [retry] = lines(stream, "delivery will be retried")
    assert (failure["level"], failure["attempt"], retry["level"], retry["attempt"]) == ("error", 2, "info", 1)
    assert failure["event_id"] == retry["event_id"] == receipt.event_id
    assert (failure["subscription"], failure["event_type"]) == ("app.fails", "user.login")
    assert failure["correlation_id"] == receipt.event.correlation_id
    assert (failure["error_type"], failure["error"]) == ("ValueError", "password=[REDACTED]")
    assert lines(stream, "event handled") == []
    assert "hunter2" not in stream.getvalue()


async def test_the_line_of_a_failure_has_the_traceback_of_the_users_code() -> None:
    """Redacted, and without the frames of the package; at DEBUG they are there too."""

    async def fails(event: Event) -> None:
        json.loads("{")

    told = {}
    for level in ("INFO", "DEBUG"):
        stream = io.StringIO()
        configure(stream=stream, level=level)
        async with EventBus() as bus:
            bus.subscribe(fails, "user.login", name="app.fails")
            await bus.dispatch("user.login", {})
        [failure] = lines(stream, "delivery failed")
        told[level] = failure["exception"]

    frames = [line.split(", ")[-1] for line in told["INFO"].splitlines() if line.startswith("  File")]
    assert frames == ["in fails", "in loads", "in decode", "in raw_decode"]
    assert told["INFO"].startswith("Traceback (most recent call last):\n  File")
    assert "json.decoder.JSONDecodeError: Expecting property name" in told["INFO"]
    assert told["DEBUG"].count("  File") > len(frames)
    assert "in deliver" in told["DEBUG"]


def test_lines_go_to_standard_error_as_long_as_nobody_has_configured_structlog() -> None:
    """What a program prints is its own, and may be read by another one."""
    program = """
import asyncio, aperion

bus = aperion.EventBus()

@bus.on("a.b", name="fails")
async def fails(event):
    raise ValueError("broken")

async def main():
    async with bus:
        await bus.dispatch("a.b", {})

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=45, check=True)
    assert done.stdout == ""
    assert "delivery failed" in done.stderr
    assert "ValueError: broken" in done.stderr


async def test_lines_of_the_standard_library_carry_the_ids_too() -> None:
    """In a handler, and in the thread of a sync handler."""
    stream = io.StringIO()
    configure(stream=stream)

    def count(event: Event) -> None:
        logging.getLogger("other").warning("counted")

    async with EventBus() as bus:
        bus.subscribe(count, "user.login")
        outcomes = await bus.dispatch("user.login", {})

    [line] = lines(stream, "counted")
    assert (line["event_id"], line["event_type"]) == (outcomes.event.event_id, "user.login")
    assert line["correlation_id"] == outcomes.event.correlation_id


async def test_a_log_handler_that_emits_does_not_recurse() -> None:
    """Each line is an event here, and each event that is refused is a line: that must end."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            bus.emit_nowait("log line", {"text": record.getMessage()})  # refused, which is logged

    told: list[str] = []
    configure(stream=io.StringIO())
    root = logging.getLogger()
    async with EventBus() as bus:
        root.addHandler(forward := Forward())
        try:
            with pytest.raises(aperion.ValidationError), anyio.fail_after(10):
                await bus.emit("No Type", {})
        finally:
            root.removeHandler(forward)

        assert len(told) == 1
        assert bus.stats().rejected == 2


async def test_a_log_that_cannot_be_written_does_not_hurt_the_event() -> None:
    """Half a surrogate pair in an error, which no stream takes, is written as an escape; a logger that fails is left."""
    written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")

    async def fails(event: Event) -> None:
        raise ValueError("x\ud800y")

    for factory in (structlog.WriteLoggerFactory(written), structlog.WriteLoggerFactory(_Broken())):
        structlog.configure(logger_factory=factory, wrapper_class=structlog.make_filtering_bound_logger(0))
        async with EventBus() as bus:
            bus.subscribe(fails, "user.login")
            receipt = await bus.emit("user.login", {})
            with anyio.fail_after(10):
                outcomes = await receipt.settled()
            assert not outcomes.ok
    written.seek(0)
    assert "x\\ud800y" in written.read()


async def test_a_line_in_a_span_names_the_trace() -> None:
    """As hex digits, as OpenTelemetry writes them; an unsampled span counts too."""
    from opentelemetry import trace

    stream = io.StringIO()
    configure(stream=stream)
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(0))

    with trace.use_span(trace.NonRecordingSpan(context)):
        logging.getLogger("other").warning("inside")
    logging.getLogger("other").warning("outside")

    [inside] = lines(stream, "inside")
    [outside] = lines(stream, "outside")
    assert (inside["trace_id"], inside["span_id"]) == ("0" * 29 + "abc", "0" * 13 + "def")
    assert "trace_id" not in outside


def test_nothing_is_configured_at_import() -> None:
    """Not the root logger, and not structlog."""
    import subprocess
    import sys

    program = "import logging, aperion, aperion.logging, structlog; print(logging.getLogger().handlers, structlog.is_configured())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=45, check=True)

    assert done.stdout.strip() == "[] False"


async def test_what_the_bus_logs_of_a_delivery_names_its_span() -> None:
    """So that a line leads to the trace: of one that failed, and at debug of one that went well."""
    from opentelemetry.sdk.trace import TracerProvider

    stream = io.StringIO()
    configure(stream=stream, level="DEBUG")

    async def fails(event: Event) -> None:
        raise ValueError

    async with EventBus(tracing=aperion.telemetry.Tracing(tracer_provider=TracerProvider())) as bus:
        bus.subscribe(fails, "user.login", retry=Retry(attempts=2, wait_initial=0.001))
        bus.subscribe(greet, "user.login")
        receipt = await bus.emit("user.login", {})
        await bus.wait_settled()

    trace_id = receipt.event.headers["traceparent"].split("-")[1]
    told = [
        *lines(stream, "event handled"),
        *lines(stream, "delivery will be retried"),
        *lines(stream, "delivery failed"),
    ]
    assert [line["trace_id"] for line in told] == [trace_id] * 3
    assert len({line["span_id"] for line in told}) == 3
