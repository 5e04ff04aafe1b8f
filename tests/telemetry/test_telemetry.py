"""OpenTelemetry for services: one call, spans around functions, contexts in headers, and nothing where it is not set up."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import aperion
from aperion import ConfigurationError, EventBus, telemetry
from aperion.telemetry import traced

pytestmark = pytest.mark.anyio

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Set a global provider for one test: the API keeps it in one variable, and takes no second by its own function."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    [span] = exporter.get_finished_spans()
    return span


def unsampled() -> trace.Span:
    return trace.NonRecordingSpan(
        trace.SpanContext(int(TRACE, 16), 7, is_remote=False, trace_flags=trace.TraceFlags(0))
    )


# A decorator


async def _call(function: Any) -> object:
    """Call what is decorated, whatever kind of function it is, to its end."""
    made = function(2)
    if inspect.isawaitable(made):
        return await made
    if inspect.isasyncgen(made):
        return [value async for value in made]
    return list(made) if inspect.isgenerator(made) else made


def sync(number: int) -> object:
    """Double it."""
    return [number, number]


async def coroutine(number: int) -> object:
    return [number, number]


def generator(number: int) -> Iterator[int]:
    yield number
    yield number


async def async_generator(number: int):
    yield number
    yield number


KINDS = [sync, coroutine, generator, async_generator]
each_kind = pytest.mark.parametrize("function", KINDS, ids=lambda function: function.__name__)


@each_kind
async def test_a_function_of_any_kind_gets_a_span_for_each_call(exporter: InMemorySpanExporter, function: Any) -> None:
    """OTL-3: named after the function; what it returns, its signature and its kind stay."""
    decorated = traced(function)

    assert await _call(decorated) == [2, 2]
    assert only(exporter).name == function.__qualname__
    assert (only(exporter).kind, only(exporter).status.status_code) == (SpanKind.INTERNAL, StatusCode.UNSET)
    assert inspect.signature(decorated) == inspect.signature(function)
    assert (decorated.__name__, decorated.__doc__) == (function.__name__, function.__doc__)
    for is_kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        assert is_kind(decorated) == is_kind(function)


@each_kind
async def test_name_kind_and_attributes_can_be_given(exporter: InMemorySpanExporter, function: Any) -> None:
    """OTL-3 OTL-a: ``name=`` as the predecessor's README had it; attributes are redacted."""
    about = {"queue": "mail", "n": 2, "to": "ada@example.com", "password": "hunter2", "tags": ["a", "b"], "odd": {1}}

    await _call(traced(name="send mail", kind="client", attributes=about)(function))

    span = only(exporter)
    assert (span.name, span.kind) == ("send mail", SpanKind.CLIENT)
    assert dict(span.attributes or {}) == {
        "queue": "mail",
        "n": 2,
        "to": "[REDACTED_EMAIL]",
        "password": "[REDACTED]",
        "tags": ("a", "b"),
        "odd": "{1}",
    }


def test_a_kind_of_opentelemetry_is_taken_too(exporter: InMemorySpanExporter) -> None:
    """OTL-3: and another is refused, when the function is decorated."""
    traced(kind=SpanKind.SERVER)(sync)(1)

    assert only(exporter).kind is SpanKind.SERVER
    with pytest.raises(ConfigurationError, match="kind='boss' is not a kind of span"):
        traced(kind="boss")(sync)  # type: ignore[call-overload]  # that is the test
    with pytest.raises(ConfigurationError, match="decorates a function"):
        traced(3)  # type: ignore[call-overload]  # that is the test


def fails(number: int) -> None:
    secret = "hunter2-local"
    raise ValueError(f"password=hunter2 {len(secret)}")


async def coroutine_fails(number: int) -> None:
    fails(number)


def generator_fails(number: int) -> Iterator[int]:
    yield number
    fails(number)


async def async_generator_fails(number: int):
    yield number
    fails(number)


@pytest.mark.parametrize(
    "function", [fails, coroutine_fails, generator_fails, async_generator_fails], ids=lambda f: f.__name__
)
async def test_an_exception_is_recorded_once_and_goes_on(exporter: InMemorySpanExporter, function: Any) -> None:
    """OTL-3 OTL-d/e: redacted, without local variables."""
    with pytest.raises(ValueError, match="hunter2"):
        await _call(traced(function))

    span = only(exporter)
    [event] = span.events
    told = dict(event.attributes or {})
    assert (event.name, told["exception.type"], told["exception.message"]) == (
        "exception",
        "ValueError",
        "password=[REDACTED] 13",
    )
    assert "in fails" in told["exception.stacktrace"]
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "ValueError")
    assert "hunter2" not in span.to_json()


def test_the_span_of_a_generator_lasts_as_long_and_is_current_while_it_runs(exporter: InMemorySpanExporter) -> None:
    """OTL-d/e: and not for who asks for the next value; sent and thrown values and the result come through."""

    @traced
    def conversation() -> Iterator[Any]:
        got = yield telemetry.get_trace_correlation_id()
        try:
            yield got
        except KeyError as error:
            yield f"caught {error}"
        return "bye"

    talk = conversation()
    trace_id = next(talk)
    assert telemetry.get_current_span() is None
    assert exporter.get_finished_spans() == ()
    assert talk.send("hello") == "hello"  # type: ignore[attr-defined]  # it is a generator
    assert talk.throw(KeyError("k")) == "caught 'k'"  # type: ignore[attr-defined]
    with pytest.raises(StopIteration, match="bye"):
        next(talk)
    span = only(exporter)
    assert f"{span.context.trace_id:032x}" == trace_id
    assert span.events == ()


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_generator_that_is_closed_early_ends_its_span(exporter: InMemorySpanExporter, is_async: bool) -> None:
    """OTL-d/e: without an error; what it does on closing is done."""
    closed = []

    @traced
    def numbers() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(1)

    @traced
    async def async_numbers():
        try:
            for number in range(10):
                yield number
        finally:
            closed.append(1)

    if is_async:
        made = async_numbers()
        await made.__anext__()
        await made.aclose()
    else:
        made_sync = numbers()
        next(made_sync)
        made_sync.close()  # type: ignore[attr-defined]  # it is a generator

    assert closed == [1]
    assert (only(exporter).status.status_code, only(exporter).events) == (StatusCode.UNSET, ())


async def test_an_async_generator_is_sent_to_and_thrown_into(exporter: InMemorySpanExporter) -> None:
    """OTL-d/e: as without the decorator."""

    @traced
    async def conversation():
        got = yield 1
        try:
            yield got
        except KeyError:
            yield "caught"

    talk = conversation()
    assert [await talk.__anext__(), await talk.asend("hello"), await talk.athrow(KeyError())] == [1, "hello", "caught"]
    with pytest.raises(StopAsyncIteration):
        await talk.__anext__()
    assert only(exporter).events == ()


def test_methods_are_decorated_as_functions_are(exporter: InMemorySpanExporter) -> None:
    """OTL-3: of instances and classes."""

    class Shop:
        @traced
        def sell(self) -> str:
            return type(self).__name__

        @staticmethod
        @traced
        def close() -> str:
            return "closed"

    assert (Shop().sell(), Shop.close()) == ("Shop", "closed")
    assert [span.name.rpartition(".")[2] for span in exporter.get_finished_spans()] == ["sell", "close"]


def test_spans_nest(exporter: InMemorySpanExporter) -> None:
    """OTL-3: one inside the other is its child."""
    outer = traced(name="outer")(lambda: traced(name="inner")(sync)(1))

    outer()

    inner, around = exporter.get_finished_spans()
    assert inner.parent.span_id == around.context.span_id


# The current span


def test_the_current_trace_is_told_as_32_hex_digits(exporter: InMemorySpanExporter) -> None:
    """OTL-2 OTL-f/g/h: None outside of any; a span that is not sampled counts."""
    assert telemetry.get_trace_correlation_id() is None
    assert telemetry.get_current_span() is None

    with telemetry.get_tracer("test").start_as_current_span("request") as span:
        assert telemetry.get_trace_correlation_id() == f"{span.get_span_context().trace_id:032x}"
        assert telemetry.get_current_span() is span
    with trace.use_span(unsampled()):
        assert telemetry.get_trace_correlation_id() == TRACE


def test_events_and_attributes_go_to_the_current_span(exporter: InMemorySpanExporter) -> None:
    """OTL-4: redacted; outside of any, and on one that is not recorded, nothing happens."""
    telemetry.add_event_to_span("outside")
    telemetry.set_span_attribute("outside", 1)
    with trace.use_span(unsampled()):
        telemetry.add_event_to_span("unsampled", {"n": 1})
        telemetry.set_span_attribute("n", 1)

    with telemetry.get_tracer().start_as_current_span("request"):
        telemetry.add_event_to_span("paid", {"card": "4111 1111 1111 1111", "amount": 3})
        telemetry.set_span_attribute("user.token", "hunter2")
        telemetry.set_span_attribute("items", 3)

    span = only(exporter)
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("paid", {"card": "[REDACTED_CC]", "amount": 3})
    ]
    assert dict(span.attributes or {}) == {"user.token": "[REDACTED]", "items": 3}


# Headers


def test_a_context_is_put_into_a_copy_of_headers(exporter: InMemorySpanExporter) -> None:
    """OTL-5 OTL-f/g/h: the argument stays as it is, and another context, in any letter case, does not stay beside."""
    given = {"TraceParent": PARENT, "X-Other": "kept"}

    with telemetry.get_tracer().start_as_current_span("request") as span:
        found = telemetry.inject_trace_context_to_headers(given)

    about = span.get_span_context()
    assert found.pop("traceparent").startswith(f"00-{about.trace_id:032x}-{about.span_id:016x}-")
    assert found == {"X-Other": "kept"}
    assert given == {"TraceParent": PARENT, "X-Other": "kept"}
    assert telemetry.inject_trace_context_to_headers(given) == given
    assert telemetry.inject_trace_context_to_headers(given) is not given
    assert telemetry.inject_trace_context_to_headers() == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": PARENT, "baggage": "tenant=acme"},
        {"Traceparent": PARENT, "Baggage": "tenant=acme"},
        {"TRACEPARENT": PARENT, "BAGGAGE": "tenant=acme"},
        [(b"host", b"x"), (b"traceparent", PARENT.encode()), (b"baggage", b"tenant=acme")],
        [("TraceParent", PARENT), ("baggage", "tenant=acme")],
    ],
)
def test_a_context_is_read_from_headers_in_any_letter_case(headers: Any) -> None:
    """OTL-5 OTL-f/g/h: of a mapping, or the pairs of ASGI."""
    found = telemetry.extract_trace_context_from_headers(headers)

    span = trace.get_current_span(found).get_span_context()
    assert (f"{span.trace_id:032x}", f"{span.span_id:016x}") == (TRACE, "b7ad6b7169203331")
    assert baggage.get_baggage("tenant", found) == "acme"


def test_headers_without_a_context_give_the_current_one(exporter: InMemorySpanExporter) -> None:
    """OTL-5: as those of a broken one do."""
    with telemetry.get_tracer().start_as_current_span("request") as span:
        for headers in ({}, {"traceparent": "00-nonsense"}):
            found = telemetry.extract_trace_context_from_headers(headers)
            assert trace.get_current_span(found) is span


# Correlation ids and traces


async def test_the_trace_id_can_be_the_correlation_id(exporter: InMemorySpanExporter) -> None:
    """OTL-c: for all that is emitted inside; outside of any span there is a new id."""
    async with EventBus() as bus:
        with (
            telemetry.get_tracer().start_as_current_span("request"),
            telemetry.correlation_from_trace() as correlation_id,
        ):
            inside = await bus.emit("user.login", {})
            trace_id = telemetry.get_trace_correlation_id()
        with telemetry.correlation_from_trace() as other:
            outside = await bus.emit("user.login", {})

    assert inside.event.correlation_id == correlation_id == trace_id
    assert outside.event.correlation_id == other != correlation_id
    assert aperion.get_correlation_id() is None


@pytest.mark.parametrize("correlation_id", ["0af76519-16cd-43dd-8448-eb211c80319c", TRACE, TRACE.upper()])
def test_the_correlation_id_can_be_the_trace_id(exporter: InMemorySpanExporter, correlation_id: str) -> None:
    """The same id gives the same trace everywhere."""
    found = telemetry.trace_from_correlation(correlation_id)

    telemetry.get_tracer().start_span("work", found).end()
    assert f"{only(exporter).context.trace_id:032x}" == TRACE


@pytest.mark.parametrize("correlation_id", ["req-1", "", "0" * 32, "g" * 32, TRACE + "0", "0" * 16 + "-" * 16])
def test_an_id_that_no_trace_can_have_gives_no_context(correlation_id: str) -> None:
    """None, and no error."""
    assert telemetry.trace_from_correlation(correlation_id) is None


# Without OpenTelemetry


NOTHING = """
import sys
from aperion import telemetry

@telemetry.traced(name="x", kind="server", attributes={"a": 1})
def work(n):
    telemetry.add_event_to_span("e", {"a": 1})
    telemetry.set_span_attribute("a", 1)
    return n

given = {"a": "b"}
print(work(2), telemetry.is_otel_available(), telemetry.get_current_span(), telemetry.get_trace_correlation_id())
print(telemetry.inject_trace_context_to_headers(given) == given, [name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_without_an_sdk_all_of_it_does_nothing_and_loads_nothing() -> None:
    """OTL-1: not even the API."""
    done = subprocess.run([sys.executable, "-c", NOTHING], capture_output=True, text=True, timeout=45, check=True)

    assert done.stdout.splitlines() == ["2 False None None", "True []"]


def test_whether_there_is_one_is_told(exporter: InMemorySpanExporter) -> None:
    """OTL-1: once a provider is set."""
    assert telemetry.is_otel_available()


# One call that sets it up


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, timeout=45
    )


SHOP = """
import anyio, aperion
from aperion import telemetry
with telemetry.configure(service_name="shop", {options}) as sdk:
    bus = aperion.EventBus()
    @bus.on("order.placed")
    async def pack(event): ...
    async def main():
        async with bus:
            await (await bus.emit("order.placed", {{}})).settled()
    anyio.run(main)
"""


def test_one_call_prints_spans_and_metrics_of_a_bus() -> None:
    """In development: each span as it ends, the metrics at the end."""
    done = run(SHOP.format(options='console=True, attributes={"service.version": "1.2"}'))

    assert done.returncode == 0, done.stderr
    for told in ('"name": "send order.placed"', '"name": "process order.placed"', '"service.name": "shop"'):
        assert told in done.stdout
    assert '"service.version": "1.2"' in done.stdout
    assert "messaging.client.sent.messages" in done.stdout


class Collector:
    """A server that takes what an exporter sends over OTLP/HTTP."""

    def __init__(self) -> None:
        posted = self.posted = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posted.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_spans_and_metrics_go_to_a_collector(by: str) -> None:
    """OTLP over HTTP: to the address given, or the one that OpenTelemetry's own variables tell."""
    collector = Collector()
    try:
        if by == "argument":
            done = run(SHOP.format(options=f"otlp={collector.url!r}"))
        else:
            done = run(SHOP.format(options="otlp=True"), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    finally:
        collector.server.shutdown()
        collector.server.server_close()

    assert done.returncode == 0, done.stderr
    assert {path for path, _ in collector.posted} == {"/v1/traces", "/v1/metrics"}
    sent = b"".join(body for _, body in collector.posted)
    for told in (b"send order.placed", b"process order.placed", b"messaging.process.duration", b"shop"):
        assert told in sent


def test_a_part_of_the_traces_is_kept() -> None:
    """And one that a sender has sampled is kept whatever the part."""
    program = (
        SHOP.format(options="console=True, sample=0")
        + f"""
from opentelemetry import trace
print("kept" if trace.get_tracer("x").start_span("x", telemetry.extract_trace_context_from_headers({{"traceparent": "{PARENT}"}})).is_recording() else "lost")
"""
    )
    done = run(program)

    assert done.returncode == 0, done.stderr
    assert '"name": "send order.placed"' not in done.stdout
    assert "kept" in done.stdout


def test_a_second_call_is_refused_and_the_first_stays() -> None:
    """OpenTelemetry would ignore it, and only log that."""
    program = """
import aperion
from aperion import telemetry
first = telemetry.configure(service_name="shop")
try:
    telemetry.configure(service_name="other")
except aperion.ConfigurationError as error:
    print(error)
from opentelemetry import trace
print(trace.get_tracer_provider() is first.tracer_provider, first.flush(), first.shutdown())
"""
    done = run(program)

    assert "takes one provider a process" in done.stdout, done.stderr
    assert "True True None" in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"service_name": ""}, "service_name='' is no name"),
        ({"service_name": "shop", "sample": 1.5}, "sample=1.5 makes no sense"),
        ({"service_name": "shop", "sample": True}, "sample=True makes no sense"),
        ({"service_name": "shop", "otlp": "collector:4318"}, "otlp='collector:4318' is no address"),
        ({"service_name": "shop", "metrics_every": 0}, "metrics_every=0 makes no sense"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    """Before anything is set up."""
    with pytest.raises(ConfigurationError, match=told):
        telemetry.configure(**options)

    assert not telemetry.is_otel_available()


def test_a_missing_exporter_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra by its name."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)

    with pytest.raises(ConfigurationError, match=r"aperion-bus\[otlp\]"):
        telemetry.configure(service_name="shop", otlp=True)


def test_context_is_left_as_it_was(exporter: InMemorySpanExporter) -> None:
    """No decorator, block or call leaves a span behind."""
    before = context.get_current()

    traced(sync)(1)
    list(traced(generator)(1))
    with pytest.raises(ValueError, match="hunter2"):
        traced(fails)(1)
    with telemetry.correlation_from_trace():
        pass

    assert context.get_current() == before
    assert json.dumps(str(before))
