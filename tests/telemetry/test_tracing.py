"""The spans of a bus: one for each emit, one for each attempt of a handler, in one trace with what caused them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import aperion
from aperion import ConfigurationError, Event, EventBus, OverflowPolicy, Retry
from aperion.audit import AuditLog
from aperion.telemetry import Tracing

pytestmark = pytest.mark.anyio

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    """A provider of its own, and what it was given."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def tracing(self, **options: Any) -> Tracing:
        return Tracing(tracer_provider=self.provider, **options)

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span


@pytest.fixture
def spans() -> Spans:
    return Spans()


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def id_of(span: ReadableSpan) -> int:
    return span.get_span_context().span_id  # type: ignore[union-attr]


def trace_of(span: ReadableSpan) -> int:
    return span.get_span_context().trace_id  # type: ignore[union-attr]


def events_of(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


async def greet(event: Event) -> None: ...


async def fail(event: Event) -> None:
    secret = "hunter2-local"
    raise ValueError("password=hunter2", len(secret))


# What there is


async def test_an_emit_and_its_handler_are_two_spans_by_the_conventions(spans: Spans) -> None:
    """OTL-c: names, kinds and attributes of the semantic conventions for messaging."""
    async with EventBus(tracing=spans.tracing()) as bus:
        bus.subscribe(greet, "order.placed", name="shop.greet")
        with aperion.CorrelationContext("req-1"):
            receipt = await bus.emit("order.placed", {"n": 1}, source="web")
        await receipt.settled()

    sent, processed = spans.one("send order.placed"), spans.one("process order.placed")
    shared = {
        "messaging.system": "aperion",
        "messaging.destination.name": "order.placed",
        "messaging.message.id": receipt.event_id,
        "messaging.message.conversation_id": "req-1",
    }
    operation = {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    assert (sent.kind, dict(sent.attributes or {})) == (SpanKind.PRODUCER, {**shared, **operation, "aperion.hops": 0})
    assert processed.kind is SpanKind.CONSUMER
    assert dict(processed.attributes or {}) == {
        **shared,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.subscription.name": "shop.greet",
        "aperion.attempt": 1,
        "aperion.outcome": "ok",
    }
    assert (sent.status.status_code, processed.status.status_code) == (StatusCode.UNSET, StatusCode.UNSET)
    assert (
        processed.instrumentation_scope.schema_url
        == f"https://opentelemetry.io/schemas/{aperion.telemetry.CONVENTIONS}"
    )


async def test_one_request_two_events_and_three_handlers_are_one_trace(spans: Spans) -> None:
    """OTL-c: request, send, process, and what the handler sends; nothing stands alone."""
    async with EventBus(tracing=spans.tracing()) as bus:

        @bus.on("order.placed", name="bill")
        async def bill(event: Event) -> None:
            await bus.emit("bill.sent", {})

        bus.subscribe(greet, "order.placed", name="pack")
        bus.subscribe(greet, "bill.sent", name="file")
        with spans.tracer.start_as_current_span("POST /orders") as request:
            await bus.emit("order.placed", {})
        await bus.wait_settled()

    order, billing = spans.one("send order.placed"), spans.one("send bill.sent")
    by_handler = {
        span.attributes["messaging.destination.subscription.name"]: span
        for span in spans.all
        if span.kind is SpanKind.CONSUMER
    }
    assert parent_of(order) == request.get_span_context().span_id
    assert parent_of(by_handler["bill"]) == parent_of(by_handler["pack"]) == id_of(order)
    assert parent_of(billing) == id_of(by_handler["bill"])
    assert parent_of(by_handler["file"]) == id_of(billing)
    assert {trace_of(span) for span in spans.all} == {request.get_span_context().trace_id}
    assert not by_handler["bill"].parent.is_remote


async def test_handlers_can_begin_traces_of_their_own_linked_to_the_sender(spans: Spans) -> None:
    """A setting: for events that are handled much later."""
    async with EventBus(tracing=spans.tracing(handlers="link")) as bus:
        bus.subscribe(greet, "order.placed")
        with spans.tracer.start_as_current_span("request"):
            await (await bus.emit("order.placed", {})).settled()

    sent, processed = spans.one("send order.placed"), spans.one("process order.placed")
    assert parent_of(processed) is None
    assert trace_of(processed) != trace_of(sent)
    assert [link.context.span_id for link in processed.links] == [id_of(sent)]


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_the_span_is_current_inside_the_handler_and_not_after(spans: Spans, kind: str) -> None:
    """OTL-c: in the thread of a sync handler too."""
    seen: list[int] = []

    def note(event: Event) -> None:
        seen.append(trace.get_current_span().get_span_context().span_id)

    async def note_async(event: Event) -> None:
        note(event)
        await asyncio.sleep(0)
        note(event)

    async with EventBus(tracing=spans.tracing()) as bus:
        bus.subscribe(note_async if kind == "async" else note, "order.placed")
        await bus.dispatch("order.placed", {})
        after = trace.get_current_span().get_span_context().is_valid

    assert set(seen) == {id_of(spans.one("process order.placed"))}
    assert not after


@pytest.mark.parametrize("way", ["emit", "emit_nowait", "dispatch", "emit_from_thread", "outbox"])
async def test_every_way_of_emitting_is_traced(spans: Spans, way: str) -> None:
    """OTL-c: as a child of where it was called."""
    async with EventBus(tracing=spans.tracing()) as bus:
        bus.subscribe(greet, "order.placed")
        with spans.tracer.start_as_current_span("caller") as caller, anyio.fail_after(10):
            match way:
                case "emit_nowait":
                    bus.emit_nowait("order.placed", {})
                case "emit_from_thread":
                    await anyio.to_thread.run_sync(bus.emit_from_thread, "order.placed", {})
                case "outbox":
                    async with bus.outbox() as outbox:
                        outbox.emit("order.placed", {})
                case _:
                    await getattr(bus, way)("order.placed", {})
        await bus.wait_settled()

    sent = spans.one("send order.placed")
    assert parent_of(sent) == caller.get_span_context().span_id
    assert parent_of(spans.one("process order.placed")) == id_of(sent)


# How it ended


async def test_an_exception_is_recorded_once_redacted_and_without_locals(spans: Spans) -> None:
    """OTL-d/e: on the span of the attempt that raised it."""
    async with EventBus(tracing=spans.tracing()) as bus:
        bus.subscribe(fail, "order.placed")
        await bus.dispatch("order.placed", {})

    span = spans.one("process order.placed")
    [(name, told), (dead, reason)] = events_of(span)
    assert (name, told["exception.type"]) == ("exception", "ValueError")
    assert told["exception.message"] == "('password=[REDACTED]', 13)"
    assert "in fail" in told["exception.stacktrace"]
    assert (dead, reason) == ("aperion.dead_letter", {"aperion.reason": "handler_error"})
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, told["exception.message"])
    assert (span.attributes["error.type"], span.attributes["aperion.outcome"]) == ("ValueError", "failed")
    assert "hunter2" not in span.to_json()


async def test_each_attempt_has_a_span_and_says_what_follows(spans: Spans) -> None:
    """Retries and the dead letter are events of the spans; all attempts are children of the sender."""
    async with EventBus(tracing=spans.tracing()) as bus:
        bus.subscribe(fail, "order.placed", retry=Retry(attempts=3, wait_initial=0.001))
        await (await bus.emit("order.placed", {})).settled()

    attempts = spans.named("process order.placed")
    assert [span.attributes["aperion.attempt"] for span in attempts] == [1, 2, 3]
    assert [events_of(span)[-1] for span in attempts] == [
        ("aperion.retry", {"aperion.attempt": 2}),
        ("aperion.retry", {"aperion.attempt": 3}),
        ("aperion.dead_letter", {"aperion.reason": "handler_error"}),
    ]
    assert {parent_of(span) for span in attempts} == {id_of(spans.one("send order.placed"))}


@pytest.mark.parametrize("kind", ["async", "thread", "stubborn"])
async def test_a_timeout_is_told_as_one(spans: Spans, kind: str) -> None:
    """Also of a thread that goes on, and of a handler that keeps its cancellation to itself."""
    gate = threading.Event()

    async def wait(event: Event) -> None:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            if kind != "stubborn":
                raise

    async with EventBus(tracing=spans.tracing()) as bus:
        bus.subscribe((lambda event: gate.wait(10)) if kind == "thread" else wait, "order.placed", timeout=0.02)
        await bus.dispatch("order.placed", {})
        gate.set()

    span = spans.one("process order.placed")
    assert span.attributes["aperion.outcome"] == "timed_out"
    assert span.attributes["error.type"] == "aperion.errors.HandlerTimeoutError"
    assert [name for name, _ in events_of(span)] == ["exception", "aperion.dead_letter"]


async def test_a_redrive_is_one_more_attempt_in_the_same_trace(spans: Spans) -> None:
    """With its number."""
    broken = [True]

    async def mend(event: Event) -> None:
        if broken:
            raise ValueError

    async with EventBus(tracing=spans.tracing()) as bus:
        bus.subscribe(mend, "order.placed")
        await (await bus.emit("order.placed", {})).settled()
        broken.clear()
        [letter] = bus.dead_letters.list()
        await bus.redrive(letter.letter_id)

    first, second = spans.named("process order.placed")
    assert (first.attributes["aperion.outcome"], second.attributes["aperion.outcome"]) == ("failed", "ok")
    assert second.attributes["aperion.attempt"] == 2
    assert parent_of(first) == parent_of(second) == id_of(spans.one("send order.placed"))


async def test_a_rejected_event_is_told_on_its_span(spans: Spans) -> None:
    """And names no type that is none: the names of spans are few."""

    class Paid(aperion.Payload, type="tracing_bill.paid"):
        amount: int

    async with EventBus(tracing=spans.tracing()) as bus:
        with spans.tracer.start_as_current_span("request") as request:
            with pytest.raises(aperion.ValidationError):
                await bus.emit("tracing_bill.paid", {"amount": "hunter2"})
            with pytest.raises(aperion.ValidationError):
                await bus.emit("No Type At All", {})

    named, nameless = spans.one("send tracing_bill.paid"), spans.one("send")
    for span, error in ((named, "aperion.errors.PayloadError"), (nameless, "aperion.errors.EventTypeError")):
        assert events_of(span) == [("aperion.rejected", {"error.type": error})]
        assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, error)
        assert parent_of(span) == request.get_span_context().span_id
    assert "hunter2" not in named.to_json()


async def test_a_dropped_event_is_told_on_its_span(spans: Spans) -> None:
    """By a full bus, by a processor, by an outbox."""
    gate = anyio.Event()

    async def wait(event: Event) -> None:
        await gate.wait()

    def drop(event: Event) -> Event | None:
        return None if event.event_type == "order.unwanted" else event

    options: dict[str, Any] = {"overflow_policy": OverflowPolicy.DROP, "max_pending_events": 1, "processors": [drop]}
    async with EventBus(tracing=spans.tracing(), **options) as bus:
        bus.subscribe(wait, "order.held")
        await bus.emit("order.held", {})
        await bus.emit("order.late", {})
        await bus.emit("order.unwanted", {})
        async with bus.outbox() as outbox:
            outbox.emit("order.undone", {})
            outbox.discard()
        gate.set()

    for event_type, policy in (("order.late", "drop"), ("order.unwanted", "processor"), ("order.undone", "outbox")):
        span = spans.one(f"send {event_type}")
        about = {"messaging.message.id": span.attributes["messaging.message.id"], "aperion.policy": policy}
        assert events_of(span) == [("aperion.dropped", about)]


async def test_the_event_that_had_to_go_is_told_where_another_came(spans: Spans) -> None:
    """DROP_OLDEST: its own span has ended; the span of who pushed it out is current."""
    gate = anyio.Event()

    async def wait(event: Event) -> None:
        await gate.wait()

    options: dict[str, Any] = {"overflow_policy": OverflowPolicy.DROP_OLDEST, "max_pending_events": 2}
    async with EventBus(tracing=spans.tracing(), max_concurrent_events=1, **options) as bus:
        bus.subscribe(wait, "order.*")
        await bus.emit("order.first", {})
        await anyio.wait_all_tasks_blocked()
        oldest = await bus.emit("order.second", {})
        with spans.tracer.start_as_current_span("request"):
            await bus.emit("order.third", {})
        gate.set()

    about = {"messaging.message.id": oldest.event_id, "aperion.policy": "drop_oldest"}
    assert events_of(spans.one("request")) == [("aperion.dropped", about)]


async def test_an_event_that_could_not_be_recorded_is_told_on_its_span(spans: Spans, tmp_path) -> None:
    """The error of emit; nothing was processed."""
    audit = AuditLog(tmp_path / "log" / "events.jsonl")
    async with EventBus(tracing=spans.tracing(), audit=audit) as bus:
        bus.subscribe(greet, "order.placed")
        await audit.aclose()
        with pytest.raises(aperion.AuditUnavailable):
            await bus.emit("order.placed", {})

    assert spans.one("send order.placed").attributes["error.type"] == "aperion.errors.AuditUnavailable"
    assert spans.named("process order.placed") == []


async def test_an_emit_that_waits_for_room_takes_as_long(spans: Spans) -> None:
    """BLOCK: the span ends when the event is accepted; one that is given up says so."""
    gate = anyio.Event()

    async def wait(event: Event) -> None:
        await gate.wait()

    async with EventBus(tracing=spans.tracing(), max_pending_events=1) as bus:
        bus.subscribe(wait, "order.*")
        await bus.emit("order.first", {})
        with anyio.move_on_after(0.02):
            await bus.emit("order.second", {})
        during = [span.name for span in spans.all]
        gate.set()

    assert during == ["send order.first", "send order.second"]
    assert spans.one("send order.second").attributes["error.type"] == "asyncio.exceptions.CancelledError"


async def test_what_the_bus_says_of_a_failure_belongs_to_its_trace(spans: Spans) -> None:
    """Handlers of system events are part of it."""
    async with EventBus(tracing=spans.tracing()) as bus:
        bus.subscribe(fail, "order.placed")
        bus.subscribe(greet, "system.handler_error")
        await (await bus.emit("order.placed", {})).settled()
        await bus.wait_settled()

    assert trace_of(spans.one("process system.handler_error")) == trace_of(spans.one("send order.placed"))


# Contexts that travel


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT", "TraceParent"])
async def test_a_context_in_the_headers_counts_in_any_letter_case(spans: Spans, name: str) -> None:
    """OTL-f/g/h: what came from a wire; the event carries the new context in its place, and its other headers."""
    headers = {name: PARENT, "TraceState": "vendor=1", "Baggage": "tenant=acme", "X-Other": "kept"}
    async with EventBus(tracing=spans.tracing()) as bus:
        receipt = await bus.emit("order.placed", {}, headers=headers)

    sent = spans.one("send order.placed")
    assert f"{trace_of(sent):032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{parent_of(sent):016x}" == "b7ad6b7169203331"
    assert {name.lower(): value for name, value in receipt.event.headers.items()} == {
        "traceparent": f"00-{trace_of(sent):032x}-{id_of(sent):016x}-01",
        "tracestate": "vendor=1",
        "baggage": "tenant=acme",
        "x-other": "kept",
    }
    assert len(receipt.event.headers) == 4
    assert headers == {name: PARENT, "TraceState": "vendor=1", "Baggage": "tenant=acme", "X-Other": "kept"}


async def test_baggage_reaches_the_handler_and_what_it_emits(spans: Spans) -> None:
    """From the current context; tracestate too."""
    seen: list[object] = []
    async with EventBus(tracing=spans.tracing()) as bus:

        @bus.on("order.placed")
        async def bill(event: Event) -> None:
            seen.append(baggage.get_baggage("tenant"))
            await bus.emit("bill.sent", {})

        bus.subscribe(lambda event: seen.append(baggage.get_baggage("tenant")), "bill.sent")
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        try:
            await bus.emit("order.placed", {})
        finally:
            context.detach(token)
        await bus.wait_settled()

    assert seen == ["acme", "acme"]


async def test_headers_of_the_same_trace_do_not_hide_the_current_span(spans: Spans) -> None:
    """A handler that passes the headers of its event on stays the parent of what it emits."""
    async with EventBus(tracing=spans.tracing()) as bus:

        @bus.on("order.placed")
        async def forward(event: Event) -> None:
            await bus.emit("order.forwarded", {}, headers=event.headers)

        await bus.emit("order.placed", {})
        await bus.wait_settled()

    assert parent_of(spans.one("send order.forwarded")) == id_of(spans.one("process order.placed"))


async def test_an_unsampled_context_still_counts() -> None:
    """OTL-f/g/h: nothing is recorded, and the trace goes on in the headers."""
    spans = Spans(sampler=ALWAYS_OFF)
    seen: list[str] = []
    async with EventBus(tracing=spans.tracing()) as bus:
        bus.subscribe(lambda event: seen.append(aperion.telemetry.get_trace_correlation_id()), "order.placed")
        receipt = await bus.emit("order.placed", {}, headers={"traceparent": PARENT})
        await receipt.settled()

    assert spans.all == []
    assert receipt.event.headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert receipt.event.headers["traceparent"].endswith("-00")
    assert seen == ["0af7651916cd43dd8448eb211c80319c"]


@pytest.mark.parametrize("broken", ["", "00-0-0-0", "garbage", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "é" * 55])
async def test_a_broken_context_is_passed_over(spans: Spans, broken: str) -> None:
    """The event is not refused for it."""
    async with EventBus(tracing=spans.tracing()) as bus:
        bus.subscribe(greet, "order.placed")
        await bus.dispatch("order.placed", {}, headers={"traceparent": broken})

    assert parent_of(spans.one("send order.placed")) is None
    assert len(spans.named("process order.placed")) == 1


# On and off


async def test_nothing_is_done_where_tracing_is_switched_off(spans: Spans) -> None:
    """Headers stay as they are."""
    async with EventBus(tracing=False) as bus:
        bus.subscribe(greet, "order.placed")
        receipt = await bus.emit("order.placed", {}, headers={"traceparent": PARENT})
        await receipt.settled()

    assert receipt.event.headers == {"traceparent": PARENT}
    assert spans.all == []


PROGRAM = """
import sys, anyio, aperion
{before}
async def main():
    bus = aperion.EventBus({option})
    seen = []
    bus.subscribe(lambda event: seen.append(dict(event.headers)), "order.placed")
    async with bus:
        await (await bus.emit("order.placed", {{}})).settled()
    print("traceparent" in seen[0], bus.stats().metrics_enabled, "opentelemetry.trace" in sys.modules)
anyio.run(main)
"""
SDK = "import aperion.telemetry; telemetry = aperion.telemetry.configure(service_name='shop')"


@pytest.mark.parametrize(
    ("before", "option", "told"),
    [
        ("", "", "False False False"),
        ("import opentelemetry.trace, opentelemetry.metrics", "", "False False True"),
        (SDK, "", "True True True"),
        (SDK, "tracing=False, metrics=aperion.NoopMetrics()", "False True True"),
        ("", "tracing=True", "False False True"),
    ],
)
def test_a_bus_is_watched_where_an_sdk_is_set_up_and_loads_nothing_where_none_is(
    before: str, option: str, told: str
) -> None:
    """OTL-1: without one everything is a no-op, and not even the API is loaded."""
    program = PROGRAM.format(before=before, option=option)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=45)

    assert done.stdout.strip() == told, done.stderr


@pytest.mark.parametrize("tracing", ["on", 1, object()])
def test_an_option_that_is_none_is_refused(tracing: Any) -> None:
    """When the bus is made."""
    with pytest.raises(ConfigurationError, match="tracing="):
        EventBus(tracing=tracing)


def test_a_relation_that_is_none_is_refused() -> None:
    """With the choices."""
    with pytest.raises(ConfigurationError, match="use 'child' or 'link'"):
        Tracing(handlers="sibling")  # type: ignore[arg-type]  # that is the test


async def test_no_span_is_left_open(spans: Spans) -> None:
    """Whatever happens: each span that began has ended once the bus has."""
    begun: list[str] = []

    class Count:
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            begun.append(span.name)

        def _on_ending(self, span: Any) -> None: ...
        def on_end(self, span: Any) -> None: ...
        def shutdown(self) -> None: ...
        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    spans.provider.add_span_processor(Count())  # type: ignore[arg-type]  # has what it needs
    async with EventBus(tracing=spans.tracing(), drain_timeout=0.05, max_concurrent_handlers=1) as bus:

        @bus.on("order.*", name="exits")
        async def exits(event: Event) -> None:
            raise SystemExit

        @bus.on("order.*", name="cancels itself")
        async def cancels(event: Event) -> None:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(0)

        @bus.on("order.*", name="hangs", retry=Retry(attempts=2, wait_initial=0.001), timeout=0.01)
        async def hangs(event: Event) -> None:
            await anyio.sleep_forever()

        @bus.on("order.held", name="never ends", timeout=None)
        async def never_ends(event: Event) -> None:
            await anyio.sleep_forever()

        for event_type in ("order.placed", "order.paid", "order.held"):
            await bus.emit(event_type, {})
        await anyio.sleep(0.1)

    assert len(begun) > 10
    assert sorted(begun) == sorted(span.name for span in spans.all)
