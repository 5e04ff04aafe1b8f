"""The way from aperion-event-bus 1.2.1: each row of the page is tried, and its logs are read."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import aperion
import aperion.telemetry
from aperion import AuditLog, AuditUnavailable, Event, EventBus, OverflowPolicy, blocking
from aperion.audit import Rotation, verify
from aperion.audit.predecessor import import_log
from aperion.integrations.asgi import CorrelationMiddleware

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "from-aperion-event-bus.md").read_text(encoding="utf-8")
ROWS = [row for row in re.findall(r"^\| (.*?) \| (.*) \|$", PAGE, re.MULTILINE) if row[0] not in {"---"}]
Check = Callable[[Path], Awaitable[None]]
CHECKS: dict[str, Check] = {}


def row(start: str) -> Callable[[Check], Check]:
    """Name the row, by how its left side begins, that a check tries."""

    def add(check: Check) -> Check:
        CHECKS[start] = check
        return check

    return add


def rows_of(start: str) -> list[tuple[str, str]]:
    return [each for each in ROWS if each[0].startswith(start)]


def the_rows() -> list[tuple[str, str]]:
    return [each for each in ROWS if each[0] != "aperion-event-bus 1.2.1"]


def test_each_row_of_the_page_is_tried_by_one_check() -> None:
    assert len(the_rows()) > 50
    assert [left for left, _ in the_rows() if sum(left.startswith(start) for start in CHECKS) != 1] == []
    assert [start for start in CHECKS if len(rows_of(start)) != 1] == []


@pytest.mark.parametrize("left", [left for left, _ in the_rows()])
async def test_what_a_row_says_is_so(left: str, tmp_path: Path) -> None:
    [check] = [check for start, check in CHECKS.items() if left.startswith(start)]

    await check(tmp_path)


def gone(owner: object, name: str, instead: str) -> None:
    """Check that a name is not there, and that who asks for it is told what is."""
    with pytest.raises(AttributeError, match=re.escape(instead)):
        getattr(owner, name)
    assert not hasattr(owner, name)


def refused_option(name: str, instead: str) -> None:
    with pytest.raises(TypeError, match=re.escape(instead)):
        EventBus(**{name: None})


def fails(event: Event) -> None:
    raise ConnectionError("nobody is there")


# Making a bus


@row("`import aperion_event_bus`")
async def _(tmp: Path) -> None:
    assert aperion.EventBus is EventBus


@row("`EventBus(event_log_path=")
async def _(tmp: Path) -> None:
    refused_option("event_log_path", "pass audit='events.jsonl'")
    for audit in (str(tmp / "a.jsonl"), AuditLog(tmp / "b.jsonl")):
        async with EventBus(audit=audit) as bus:
            await bus.emit("a.b", {})
    assert verify(tmp / "a.jsonl").ok
    assert verify(tmp / "b.jsonl").ok


@row("`enable_audit=False`")
async def _(tmp: Path) -> None:
    refused_option("enable_audit", "without audit= there is no audit log")
    assert EventBus().audit is None


@row("`max_workers=`")
async def _(tmp: Path) -> None:
    refused_option("max_workers", "max_concurrent_handlers=")
    assert EventBus(max_concurrent_handlers=3, max_concurrent_events=2).stats().threads_limit == 3


@row("`max_pending_events=None`")
async def _(tmp: Path) -> None:
    assert EventBus().stats().max_pending_events == 10_000


@row("`overflow_policy=DROP`")
async def _(tmp: Path) -> None:
    assert EventBus().stats().overflow_policy == OverflowPolicy.BLOCK.value
    for policy in ("RAISE", "DROP", "DROP_OLDEST"):
        assert EventBus(overflow_policy=OverflowPolicy[policy]).stats().overflow_policy == policy.lower()


@row("`validate_events=`")
async def _(tmp: Path) -> None:
    refused_option("validate_events", "names are always checked; naming=Naming(...) says how")
    refused_option("validator", "names are always checked; naming=Naming(...) says how")
    gone(aperion, "EventValidator", "EventBus(naming=aperion.Naming(...))")
    assert EventBus().stats().validation_enabled
    async with EventBus(naming=aperion.Naming(enabled=False)) as bus:
        await bus.emit("Anything", {})
        assert not bus.stats().validation_enabled


@row("`EventValidator.validate_payload")
async def _(tmp: Path) -> None:
    class Login(aperion.Payload, type="predecessor.login"):
        username: str

    async with EventBus() as bus:
        with pytest.raises(aperion.PayloadError, match="username: Field required"):
            await bus.emit("predecessor.login", {})


@row("`ValidationResult`")
async def _(tmp: Path) -> None:
    gone(aperion, "ValidationResult", "aperion.ValidationError")
    async with EventBus() as bus:
        with pytest.raises(aperion.ValidationError):
            await bus.emit("nope", {})


@row("`dead_letter_queue=")
async def _(tmp: Path) -> None:
    queue = aperion.DeadLetterQueue(max_size=5)
    assert EventBus(dead_letter_queue=queue).dead_letters is queue
    assert EventBus().dead_letters is not None


@row("`metrics=MetricsCollector")
async def _(tmp: Path) -> None:
    async with EventBus(metrics=aperion.InMemoryMetrics()) as bus:
        await bus.dispatch("a.b", {})
        assert bus.stats().metrics


@row("`max_log_size_bytes=`")
async def _(tmp: Path) -> None:
    refused_option("max_log_size_bytes", "Rotation(max_bytes=...)")
    refused_option("max_log_files", "Rotation(keep=...)")
    async with EventBus(audit=AuditLog(tmp / "e.jsonl", rotation=Rotation(max_bytes=4096, keep=50))) as bus:
        for _ in range(40):
            await bus.emit("a.b", {"text": "x" * 300})
    numbers = [path.name for path in sorted(tmp.glob("e.0*.jsonl"))]
    assert numbers[:2] == ["e.000001.jsonl", "e.000002.jsonl"]
    assert '"seq":1,' in (tmp / numbers[0]).read_text()[:20]


@row("`pip install aperion-event-bus[otel]`")
async def _(tmp: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["otel"] == []
    assert extras["observability"] == ["aperion-bus[otlp,prometheus]"]


# Subscribing and emitting


@row("`bus.subscribe(handler, types, priority, metadata)`")
async def _(tmp: Path) -> None:
    bus = EventBus()
    subscription = bus.subscribe(fails, ["a.b", "c.*"], 5, metadata={"owner": "shop"})
    assert (subscription.priority, subscription.metadata) == (5, {"owner": "shop"})
    with pytest.raises(TypeError, match=r"metadata=\{\.\.\.\}"):
        bus.subscribe(fails, "d.e", 5, {"owner": "shop"})  # type: ignore[arg-type]
    assert bus.on("e.f", metadata={"a": 1})(print) is print


@row("`bus.unsubscribe(id)`")
async def _(tmp: Path) -> None:
    bus = EventBus()
    one, _ = bus.subscribe(fails, "a.b", name="one"), bus.subscribe(fails, "a.b", name="two")
    assert (bus.unsubscribe(one), bus.unsubscribe("two"), bus.unsubscribe("three")) == (True, True, False)


@row("`bus.get_subscriptions()`")
async def _(tmp: Path) -> None:
    gone(EventBus(), "get_subscriptions", "use bus.subscriptions")
    assert EventBus().subscriptions == ()


@row("`subscription.active = False`")
async def _(tmp: Path) -> None:
    subscription = EventBus().subscribe(fails, "a.b")
    with pytest.raises(AttributeError):
        subscription.active = False  # type: ignore[attr-defined]
    subscription.pause()
    assert not subscription.open
    subscription.resume()
    assert subscription.open


@row("`EventHandler`")
async def _(tmp: Path) -> None:
    gone(aperion, "EventHandler", "aperion.Handler")
    assert aperion.Handler is not None


@row("`bus.emit(type, payload)` from async code")
async def _(tmp: Path) -> None:
    async with EventBus() as bus:
        assert isinstance(await bus.emit("a.b", {}), aperion.Receipt)
        assert isinstance(bus.emit_nowait("a.b", {}), aperion.Receipt)


@row("`bus.emit(...)` from a thread")
async def _(tmp: Path) -> None:
    got: list[str] = []
    async with EventBus() as bus:
        thread = threading.Thread(target=lambda: got.append(bus.emit_from_thread("a.b", {}).event.event_type))
        thread.start()
        await bus.expect("a.b", timeout=20)
        thread.join(20)
    assert got == ["a.b"]


@row("`bus.emit(...)` where there is no event loop")
async def _(tmp: Path) -> None:
    with blocking.EventBus() as bus:
        assert bus.emit("a.b", {}).event.event_type == "a.b"


@row("the id that `emit` returns")
async def _(tmp: Path) -> None:
    async with EventBus() as bus:
        receipt = await bus.emit("a.b", {})
        assert receipt.event_id == receipt.event.event_id


@row('`""` that `emit` returns')
async def _(tmp: Path) -> None:
    async with EventBus(processors=[lambda event: None]) as bus:
        assert (await bus.emit("a.b", {})).dropped


@row("`emit(..., wait_for_handlers=True)`")
async def _(tmp: Path) -> None:
    async with EventBus() as bus:
        bus.subscribe(lambda event: None, "a.b", name="it")
        with pytest.raises(TypeError, match=r"await receipt\.settled\(\)"):
            await bus.emit("a.b", {}, wait_for_handlers=True)  # type: ignore[call-overload]
        assert list(await (await bus.emit("a.b", {})).settled()) == ["it"]
        assert list(await bus.dispatch("a.b", {})) == ["it"]


@row('`emit("system.custom", ...)`')
async def _(tmp: Path) -> None:
    async with EventBus() as bus:
        with pytest.raises(aperion.EventTypeError, match="reserved for the bus itself"):
            await bus.emit("system.custom", {})


@row("`event.correlation_id` is `None`")
async def _(tmp: Path) -> None:
    async with EventBus() as bus:
        event = (await bus.emit("a.b", {})).event
        assert event.correlation_id == event.event_id


@row("`bus.wait_for_pending(timeout)`")
async def _(tmp: Path) -> None:
    gone(EventBus(), "wait_for_pending", "await bus.wait_settled()")
    async with EventBus() as bus:
        bus.subscribe(lambda event: None, "a.b")
        await bus.emit("a.b", {})
        await bus.wait_settled()
        assert bus.stats().pending == 0


@row("`bus.shutdown(timeout)`")
async def _(tmp: Path) -> None:
    gone(EventBus(), "shutdown", "await bus.drain(timeout)")
    async with EventBus() as bus:
        assert (await bus.drain(5)).ok


# Looking at it


@row("`bus.get_stats()`")
async def _(tmp: Path) -> None:
    gone(EventBus(), "get_stats", "use bus.stats()")
    assert json.dumps(dataclasses.asdict(EventBus().stats()))


@row("`active_subscriptions`")
async def _(tmp: Path) -> None:
    bus = EventBus()
    bus.subscribe(fails, "a.b").pause()
    bus.subscribe(print, "a.b", name="printer")
    assert (bus.stats().subscriptions_active, bus.stats().subscriptions) == (1, 2)


@row("`event_types_subscribed`")
async def _(tmp: Path) -> None:
    bus = EventBus(metrics=aperion.InMemoryMetrics(), audit=tmp / "a.jsonl")
    bus.subscribe(fails, ["c.*", "a.b"])
    bus.subscribe(print, ["a.b", "z.z"], name="printer").pause()
    stats = bus.stats()
    assert stats.event_types_subscribed == ["a.b", "c.*"]
    assert stats.validation_enabled
    assert stats.audit_enabled
    assert stats.metrics_enabled == (bus._bus_metrics is not None) is True


@row("`dlq_enabled`")
async def _(tmp: Path) -> None:
    assert not hasattr(EventBus().stats(), "dlq_enabled")


@row("`bus.get_pending_count()`")
async def _(tmp: Path) -> None:
    gone(EventBus(), "get_pending_count", "use bus.stats().pending")


@row("`total_events_logged`")
async def _(tmp: Path) -> None:
    async with EventBus(audit=tmp / "a.jsonl") as bus:
        await bus.dispatch("a.b", {})
        assert bus.audit.stats().records >= 1
    assert 0 < bus.audit.stats().bytes_written <= (tmp / "a.jsonl").stat().st_size
    counted = json.loads(command("audit", "stats", str(tmp / "a.jsonl"), "--json").stdout)
    assert counted["types"] == {"a.b": 1}


@row("`bus.get_events(event_type, limit, since)`")
async def _(tmp: Path) -> None:
    gone(EventBus(), "get_events", "bus.audit.read(kinds=['accepted']")
    since = datetime.now(UTC)
    async with EventBus(audit=AuditLog(tmp / "a.jsonl")) as bus:
        for n in range(3):
            await bus.dispatch("a.b", {"n": n})
        await bus.dispatch("a.c", {})
    found = bus.audit.read(kinds=["accepted"], types=["a.b"], limit=2, since=since, newest_first=True)
    assert [record.fields["payload"]["n"] for record in found] == [2, 1]


@row("`since=time.time() - 60`")
async def _(tmp: Path) -> None:
    began = time.time() - 60
    async with EventBus(audit=AuditLog(tmp / "a.jsonl")) as bus:
        await bus.dispatch("a.b", {})
    for since in (datetime.now(UTC) - timedelta(minutes=1), datetime.fromtimestamp(began, UTC)):
        assert len(list(bus.audit.read(kinds=["accepted"], since=since))) == 1


@row("`AuditLogger`")
async def _(tmp: Path) -> None:
    gone(aperion, "AuditLogger", "aperion.AuditLog")


@row("`bus.clear_log()`")
async def _(tmp: Path) -> None:
    gone(EventBus(), "clear_log", "clear()")
    async with EventBus(audit=AuditLog(tmp / "a.jsonl")) as bus:
        with pytest.raises(AuditUnavailable):
            bus.audit.clear()
    assert [path.name for path in bus.audit.clear()] == ["a.jsonl"]


@row("audit-only `system.handler_error`")
async def _(tmp: Path) -> None:
    got: list[str] = []
    async with EventBus(processors=[lambda event: None if event.event_type == "a.c" else event]) as bus:
        bus.subscribe(lambda event: got.append(event.event_type), "system.*", name="sees")
        bus.subscribe(fails, "a.b")
        await bus.emit("a.b", {})
        await bus.emit("a.c", {})
        await bus.wait_settled()
    assert {"system.handler_error", "system.event_dropped", "system.shutdown"} <= set(got)


@row("`Event.to_jsonl()`")
async def _(tmp: Path) -> None:
    async with EventBus() as bus:
        event = (await bus.emit("a.b", {"n": 1})).event
    assert Event.from_jsonl(event.to_jsonl()) == event
    old = (
        '{"event_type":"a.b","payload":{"n":1},"timestamp":5.5,"event_id":"evt_1","source":null,"correlation_id":null}'
    )
    assert (Event.from_jsonl(old).timestamp, Event.from_jsonl(old).payload) == (5.5, {"n": 1})


# Dead letters


async def failed() -> EventBus:
    async with EventBus() as bus:
        bus.subscribe(fails, "a.b", name="it")
        await bus.dispatch("a.b", {"n": 1})
    return bus


@row("`dlq.add(event, reason, error)`")
async def _(tmp: Path) -> None:
    bus = await failed()
    gone(bus.dead_letters, "add", "put(aperion.DeadLetter(...))")
    letter = dataclasses.replace(bus.dead_letters.list()[0], letter_id="mine")
    bus.dead_letters.put(letter)
    assert bus.dead_letters.get("mine") is letter


@row("`dlq.get(id)`")
async def _(tmp: Path) -> None:
    with pytest.raises(aperion.DeadLetterNotFoundError):
        EventBus().dead_letters.get("none")


@row("`dlq.get_all()`")
async def _(tmp: Path) -> None:
    letters = (await failed()).dead_letters
    for name in ("get_all", "get_by_reason", "get_by_event_type"):
        gone(letters, name, "use list(")
    assert len(letters.list("a.*", reason="handler_error")) == len(letters.list()) == 1
    assert letters.list("c.d") == letters.list(reason="handler_timeout") == []


@row("`dlq.retry(id, bus)`")
async def _(tmp: Path) -> None:
    gone(EventBus().dead_letters, "retry", "await bus.redrive(letter_id)")
    gone(EventBus().dead_letters, "retry_all", "await bus.redrive_all(max_attempts=...)")
    async with EventBus() as bus:
        bus.subscribe(fails, "a.b", name="it")
        await bus.dispatch("a.b", {})
        [letter] = bus.dead_letters.list()
        assert list(await bus.redrive(letter.letter_id)) == ["it"]
        assert list(await bus.redrive_all(max_attempts=3)) == [letter.letter_id]
        assert await bus.redrive_all(max_attempts=3) == {}


@row("`dlq.clear()`")
async def _(tmp: Path) -> None:
    letters = (await failed()).dead_letters
    gone(letters, "clear", "use purge()")
    gone(letters, "clear_older_than", "purge(older_than=seconds)")
    assert (letters.purge(older_than=3600), letters.purge()) == (0, 1)


@row("`dlq.get_stats()`")
async def _(tmp: Path) -> None:
    bus = await failed()
    gone(bus.dead_letters, "get_stats", "use stats()")
    assert bus.dead_letters.stats().by_reason == bus.stats().dead_letters_by_reason == {"handler_error": 1}


@row("`FailedEvent`")
async def _(tmp: Path) -> None:
    gone(aperion, "FailedEvent", "aperion.DeadLetter")


@row("`FailedEvent.retry_count`")
async def _(tmp: Path) -> None:
    assert (await failed()).dead_letters.list()[0].attempts == 1


# Redaction


@row("`redactor=Redactor(...)` (off by default)")
async def _(tmp: Path) -> None:
    redactor = aperion.Redactor(redact_keys={"apiThing"})
    assert redactor.redact({"api_thing": "x", "password": "y"}) == dict.fromkeys(
        ("api_thing", "password"), "[REDACTED]"
    )
    assert isinstance(EventBus().redactor, aperion.Redactor)


@row("`Redactor(patterns=[(regex, text)])`")
async def _(tmp: Path) -> None:
    redactor = aperion.Redactor(patterns={"BADGE": r"B-\d{4}"})
    assert redactor.redact_text("B-1234 a@example.com") == "[REDACTED_BADGE] [REDACTED_EMAIL]"
    assert aperion.Redactor(only_types={"EMAIL"}, default_keys=False).redact({"password": "x"}) == {"password": "x"}


@row("`Redactor.redact_string(text)`")
async def _(tmp: Path) -> None:
    assert not hasattr(aperion.Redactor, "redact_string")
    assert aperion.Redactor().redact_text("a@example.com") == "[REDACTED_EMAIL]"


@row("`[REDACTED_EMAIL]` for an address under a key")
async def _(tmp: Path) -> None:
    old = pytest.importorskip("aperion_event_bus")
    payload = {"contact_email": "a@example.com", "email": "a@example.com", "note": "to a@example.com"}
    assert old.Redactor().redact(payload) == {
        "contact_email": "[REDACTED_EMAIL]",
        "email": "[REDACTED]",
        "note": "to [REDACTED_EMAIL]",
    }
    assert aperion.Redactor().redact(payload) == {
        "contact_email": "[REDACTED]",
        "email": "[REDACTED]",
        "note": "to [REDACTED_EMAIL]",
    }


@row("`[REDACTED_BASE64]`")
async def _(tmp: Path) -> None:
    arn = "arn:aws:iam::123456789012:user/ada"
    assert aperion.Redactor().redact_text(arn) == arn


# Correlation, metrics, traces


@row("`CorrelationContext`")
async def _(tmp: Path) -> None:
    old = pytest.importorskip("aperion_event_bus")
    for name in [name for name in old.__all__ if "orrelation" in name and "trace" not in name]:
        assert hasattr(aperion, name), name
    seen: list[str | None] = []
    async with EventBus() as bus:
        bus.subscribe(lambda event: seen.append(aperion.get_correlation_id()), "a.b")
        with aperion.CorrelationContext("req-1"):
            await bus.dispatch("a.b", {})
        with pytest.raises(ValueError, match="correlation"):
            aperion.set_correlation_id("two words\n")
    assert seen == ["req-1"]


@row("HTTP middleware of the README")
async def _(tmp: Path) -> None:
    assert CorrelationMiddleware(lambda *_: None) is not None  # type: ignore[arg-type]


@row("`is_valid_event_type`")
async def _(tmp: Path) -> None:
    assert aperion.is_valid_event_type("a.b")
    assert (aperion.extract_domain("a.b.c"), aperion.extract_action("a.b.c")) == ("a", "b.c")


@row("`PrometheusMetrics`")
async def _(tmp: Path) -> None:
    from aperion.integrations.prometheus import PrometheusMetrics

    metrics = PrometheusMetrics()
    EventBus(metrics=metrics)
    EventBus(metrics=metrics)


@row("`MetricsCollector`, `TimingContext`")
async def _(tmp: Path) -> None:
    gone(aperion, "MetricsCollector", "EventBus(metrics=aperion.InMemoryMetrics())")
    gone(aperion, "TimingContext", "the bus measures handlers itself")


@row("`is_otel_available()`")
async def _(tmp: Path) -> None:
    old = pytest.importorskip("aperion_event_bus")
    gone(aperion, "is_otel_available", "use aperion.telemetry.is_otel_available")
    assert old.is_otel_available() is True  # it is installed
    assert not aperion.telemetry.is_otel_available()  # and nobody has set it up


@row('`traced(span_name="charge")`')
async def _(tmp: Path) -> None:
    with pytest.raises(TypeError, match="the option is name="):
        aperion.telemetry.traced(span_name="charge")  # type: ignore[call-overload]
    with pytest.raises(aperion.ConfigurationError, match=r"@traced\(name='charge'\)"):
        aperion.telemetry.traced("charge")  # type: ignore[call-overload]
    assert aperion.telemetry.traced(name="charge")(fails).__name__ == "fails"


@row("`inject_trace_context_to_headers`")
async def _(tmp: Path) -> None:
    old = pytest.importorskip("aperion_event_bus")
    for name in [name for name in old.__all__ if "trace" in name or "span" in name]:
        gone(aperion, name, f"use aperion.telemetry.{name}")
        assert hasattr(aperion.telemetry, name)
    given = {"a": "b"}
    assert aperion.telemetry.inject_trace_context_to_headers(given) == given
    assert aperion.telemetry.inject_trace_context_to_headers(given) is not given


def test_every_public_name_of_the_predecessor_is_there_or_explained() -> None:
    old = pytest.importorskip("aperion_event_bus")

    for name in old.__all__:
        if not hasattr(aperion, name):
            with pytest.raises(AttributeError, match=f"module 'aperion' has no attribute '{name}'; "):
                getattr(aperion, name)


@pytest.mark.parametrize(("here", "there"), [("EventBus", "EventBus"), ("DeadLetterQueue", "DeadLetterQueue")])
def test_every_method_of_the_predecessor_is_there_or_explained(here: str, there: str) -> None:
    old = pytest.importorskip("aperion_event_bus")
    made = getattr(aperion, here)()

    for name in [name for name in vars(getattr(old, there)) if not name.startswith("_")]:
        if not hasattr(made, name):
            with pytest.raises(AttributeError, match=f"{here}' object has no attribute '{name}'; "):
                getattr(made, name)


# Logs


def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "aperion", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHOP_AUDIT_LOG": os.devnull},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=45,
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def old_log(tmp_path: Path) -> Path:
    """Have the predecessor write a log, in which one handler fails."""
    old = pytest.importorskip("aperion_event_bus")
    path = tmp_path / "old.jsonl"
    bus = old.EventBus(event_log_path=path)
    bus.subscribe(fails, ["order.placed"])
    for n in range(3):
        bus.emit(
            "order.placed",
            {"n": n, "password": "hunter2"},
            source="web",
            correlation_id=f"req-{n}",
            wait_for_handlers=True,
        )
    bus.emit("order.seen", {"text": "käse \u2028"})
    bus.shutdown()
    return path


async def test_a_bus_refuses_an_old_log_and_says_what_to_do(old_log: Path) -> None:
    before = old_log.read_bytes()

    with pytest.raises(AuditUnavailable) as refused:
        async with EventBus(audit=old_log):
            pass

    assert f"aperion audit import {old_log} NEW" in str(refused.value)
    assert f"aperion replay {old_log} --app" in str(refused.value)
    assert old_log.read_bytes() == before
    assert f"aperion audit import {old_log} NEW" in command("audit", "verify", str(old_log), code=2).stderr


async def test_an_old_log_becomes_a_new_one_with_a_chain_in_which_a_bus_goes_on(old_log: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.jsonl"

    done = command("audit", "import", str(old_log), str(new))
    assert "4 events, 3 failures and 1 lines about the old bus" in done.stdout
    async with EventBus(audit=new) as bus:
        await bus.dispatch("order.placed", {})

    records = list(AuditLog(new).read())
    assert verify(new).ok
    assert "hunter2" not in new.read_text()
    old = [json.loads(line) for line in old_log.read_text(encoding="utf-8").splitlines()]
    events = [record for record in records if record.kind == "accepted"]
    assert [record.event_id for record in events[:4]] == [
        each["event_id"] for each in old if each["event_type"].startswith("order.")
    ]
    assert abs(events[0].time / 1e9 - old[0]["timestamp"]) < 1e-6
    assert events[3].fields["payload"] == {"text": "käse \u2028"}
    [outcome, *_] = [record for record in records if record.kind == "outcome"]
    assert (outcome.event_id, outcome.correlation_id) == (events[0].event_id, "req-0")
    assert (outcome.fields["state"], outcome.fields["error"]) == ("failed", "nobody is there")
    assert "failed" in command("audit", "trace", str(new), "req-1").stdout


def test_rotated_files_of_an_old_log_come_first(old_log: Path, tmp_path: Path) -> None:
    line = (
        '{{"event_type":"a.b","payload":{{}},"timestamp":{0},"event_id":"e{0}","source":null,"correlation_id":null}}\n'
    )
    for number, time_ in ((1, 20), (2, 10)):
        old_log.with_suffix(f".{number}.jsonl").write_text(line.format(time_))

    done = import_log(old_log, tmp_path / "new.jsonl", aperion.Redactor())

    records = AuditLog(tmp_path / "new.jsonl").read(kinds=["accepted"])
    assert [record.event_id for record in records][:2] == ["e10", "e20"]
    assert len(done.files) == 3
    assert verify(tmp_path / "new.jsonl").ok


def test_lines_that_cannot_be_read_are_named_and_the_others_are_brought_over(old_log: Path, tmp_path: Path) -> None:
    with old_log.open("a") as file:
        file.write('{"event_type":"a.b","payl\n[]\n{"event_type":"a.b","payload":{},"timestamp":NaN}\n')

    done = command("audit", "import", str(old_log), str(tmp_path / "new.jsonl"), code=1)

    assert "3 lines could not be brought over: old.jsonl:9, old.jsonl:10, old.jsonl:11" in done.stderr
    assert verify(tmp_path / "new.jsonl").ok


def test_nothing_is_written_over_and_nothing_else_is_imported(old_log: Path, tmp_path: Path) -> None:
    new, other = tmp_path / "new.jsonl", tmp_path / "other.txt"
    import_log(old_log, new, aperion.Redactor())
    before = new.read_bytes()
    other.write_text("some text\n")

    assert "there is a log at" in command("audit", "import", str(old_log), str(new), code=2).stderr
    assert "is no log of aperion-event-bus" in command("audit", "import", str(other), str(new) + "2", code=2).stderr
    assert "is no log of aperion-event-bus" in command("audit", "import", str(new), str(new) + "2", code=2).stderr
    assert "is no log of aperion-event-bus" in command("audit", "import", "nowhere", str(new) + "2", code=2).stderr
    assert new.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.jsonl", "old.jsonl", "other.txt"]


def test_an_old_log_is_replayed_with_its_ids_and_what_the_old_bus_said_is_left_out(
    old_log: Path, tmp_path: Path
) -> None:
    (tmp_path / "old_service.py").write_text(
        "import aperion\n"
        "bus = aperion.EventBus()\n"
        "@bus.on('order.*', name='sees')\n"
        "async def sees(event):\n"
        "    print(event.event_id, event.correlation_id, event.source, event.timestamp, event.payload)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "aperion", "replay", str(old_log), "--app", "old_service:bus", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=45,
    )

    summary = json.loads(done.stdout)
    assert (done.returncode, summary["lines"]) == (0, {"read": 8, "rejected": 0, "left_out": 4}), done.stderr
    old = json.loads(old_log.read_text().splitlines()[0])
    assert f"{old['event_id']} req-0 web {old['timestamp']} {{'n': 0, 'password': 'hunter2'}}" in done.stderr
