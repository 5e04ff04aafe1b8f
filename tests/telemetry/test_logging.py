"""Log lines: nothing secret in them, the ids of what they belong to, and one call that sets up."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from anyio import fail_after
from pydantic import BaseModel

import aperion
from aperion.errors import ConfigurationError
from aperion.logging import Redact, bind_correlation, configure, redact

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, config = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_redacted_whole() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    structlog.get_logger("shop").info(
        "login with password=hunter2", api_key="hunter2", user={"token": "hunter2", "name": "ada"}, to="ada@example.com"
    )

    [line] = lines(stream)
    assert line["event"] == "login with password=[REDACTED]"
    assert line["user"] == {"token": "[REDACTED]", "name": "ada"}
    assert line["to"] == "[REDACTED_EMAIL]"
    assert (line["level"], line["logger"]) == ("info", "shop")
    assert line["timestamp"].endswith("Z")
    assert "hunter2" not in stream.getvalue()


def test_the_standard_library_goes_through_the_same_chain() -> None:
    stream = io.StringIO()
    configure(stream=stream)

    logging.getLogger("other").warning("%s has %s", "password=hunter2", 3, extra={"secret_key": "hunter2", "n": 1})

    [line] = lines(stream)
    assert line["event"] == "password=[REDACTED] has 3"
    assert (line["secret_key"], line["n"], line["level"], line["logger"]) == ("[REDACTED]", 1, "warning", "other")


class Card(BaseModel):
    number: int


@pytest.mark.parametrize("as_json", [True, False])
def test_exceptions_are_told_without_secrets_and_without_locals(as_json: bool) -> None:
    stream = io.StringIO()
    configure(stream=stream, json=as_json)
    local = "hunter2-" + "local"

    try:
        try:
            Card(number="hunter2-" + "input")
        except ValueError as cause:
            raise RuntimeError("token=hunter2-" + "message") from cause
    except RuntimeError:
        structlog.get_logger().exception("failed")
        logging.getLogger().exception("failed too")

    text = stream.getvalue()
    assert text.count("RuntimeError") >= 2
    assert "ValidationError" in text
    assert local not in text
    for secret in ("hunter2-local", "hunter2-input", "hunter2-message"):
        assert secret not in text


def test_structlogs_own_tracebacks_show_locals_and_ours_take_them_out() -> None:
    def failed() -> dict[str, Any]:
        local_variable = "hunter2-" + "local"
        try:
            raise ValueError(local_variable[:0] or "oops")
        except ValueError:
            return {"event": "x", "exc_info": True} | structlog.processors.dict_tracebacks(
                None, "error", {"exc_info": True}
            )

    line = failed()

    assert "hunter2-local" in str(line["exception"])
    shown = redact(None, "error", {"event": "x", "exception": line["exception"]})
    assert "ValueError" in str(shown["exception"])
    assert "hunter2-local" not in str(shown["exception"])


async def test_lines_carry_the_ids_of_the_event_being_handled() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    with fail_after(10):
        async with aperion.EventBus() as bus:

            @bus.on("order.placed")
            async def handle(_event: aperion.Event[Any]) -> None:
                structlog.get_logger("shop").info("inside", event_type="mine")
                logging.getLogger("shop").info("inside too")

            with aperion.CorrelationContext("req-1"):
                structlog.get_logger("shop").info("around")
                receipt = await bus.emit("order.placed", {"a": 1})
            await receipt.settled()
    structlog.get_logger("shop").info("outside")

    around, inside, too, outside = (line for line in lines(stream) if line["logger"] == "shop")
    assert around["correlation_id"] == inside["correlation_id"] == too["correlation_id"] == "req-1"
    assert inside["event_id"] == too["event_id"] == receipt.event.event_id
    assert (inside["event_type"], too["event_type"]) == ("mine", "order.placed")
    assert not {"correlation_id", "event_id"} & outside.keys()


@pytest.mark.parametrize(
    "value",
    [
        *(2**70, float("nan"), {1: 2}, {"a"}, b"\xff", "\ud800", [[[{"a": (1,)}]]], {2**70: 1}),
        pytest.param(object(), id="object"),  # its repr has an address, which differs between workers
    ],
    ids=repr,
)
def test_whatever_is_logged_is_one_line_of_json(value: object) -> None:
    stream = io.StringIO()
    configure(stream=stream)

    structlog.get_logger().info("odd", value=value)

    [line] = lines(stream)
    assert line["event"] == "odd"


class Failing(aperion.Redactor):
    def redact(self, obj: object, report: Any = None) -> object:
        raise RuntimeError("hunter2")


def test_a_line_that_cannot_be_redacted_is_withheld() -> None:
    line = Redact(Failing())(None, "info", {"event": "password=hunter2", "level": "info", "a": "hunter2"})

    assert line == {"event": "[REDACTED_ERROR]", "redaction_error": "RuntimeError", "level": "info"}


def test_a_line_that_cannot_be_formatted_tells_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers.clear()  # pytest's own would raise
    configure(stream=io.StringIO())

    logging.getLogger("other").warning("%d", "hunter2")

    shown = capsys.readouterr().err
    assert "a log line of other could not be written: TypeError" in shown
    assert "hunter2" not in shown


def test_configuring_again_replaces_and_leaves_other_handlers() -> None:
    first, second = io.StringIO(), io.StringIO()
    others = [handler for handler in logging.getLogger().handlers if type(handler).__module__ != "aperion.logging"]

    configure(stream=first)
    configure(stream=second, level="warning")
    logging.getLogger().warning("once")
    logging.getLogger().info("too low")

    assert first.getvalue() == ""
    assert [line["event"] for line in lines(second)] == ["once"]
    assert all(handler in logging.getLogger().handlers for handler in others)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_text_and_a_file_gets_json() -> None:
    terminal = Terminal()
    configure(stream=terminal)

    structlog.get_logger().info("hello", password="hunter2")

    text = terminal.getvalue()
    assert "hello" in text
    assert "hunter2" not in text
    assert not text.startswith("{")


def test_the_processors_work_in_a_chain_of_the_users_own() -> None:
    written: list[dict[str, Any]] = []

    def write(_logger: Any, _name: str, event_dict: Any) -> Any:
        written.append(dict(event_dict))
        raise structlog.DropEvent

    structlog.configure(processors=[bind_correlation, redact, write], wrapper_class=structlog.BoundLogger)
    with aperion.CorrelationContext("req-1"):
        structlog.get_logger().info("x", password="hunter2")

    assert written == [{"event": "x", "password": "[REDACTED]", "correlation_id": "req-1"}]


@pytest.mark.parametrize("level", ["LOUD", True, None])
def test_an_unknown_level_is_refused(level: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no level; pass one of"):
        configure(level=level)


def test_importing_configures_nothing() -> None:
    code = "import logging, structlog, aperion.logging; print(structlog.is_configured(), logging.getLogger().handlers)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=45)

    assert done.stdout.strip() == "False []"


async def test_the_lines_of_the_bus_are_redacted_before_any_processor_sees_them() -> None:
    """RED-dlq/log: whoever logs in a way of their own gets no secret from the bus."""
    written: list[dict[str, Any]] = []

    def write(_logger: Any, _name: str, event_dict: Any) -> Any:
        written.append(dict(event_dict))
        raise structlog.DropEvent

    structlog.configure(processors=[write], wrapper_class=structlog.BoundLogger)
    token = "glpat-7Kd3Qa9Zx2Mf5Wb87Kd3"
    with fail_after(10):
        async with aperion.EventBus() as bus:

            @bus.on("order.placed")
            async def fail(_event: aperion.Event[Any]) -> None:
                raise ValueError("password=hunter2")

            await (await bus.emit("order.placed", {}, correlation_id=token)).settled()
            with pytest.raises(aperion.ValidationError):
                await bus.emit("password=hunter2", {})

    assert {line["event"] for line in written} >= {"delivery failed", "event rejected"}
    assert token not in str(written)
    assert "hunter2" not in str(written)
