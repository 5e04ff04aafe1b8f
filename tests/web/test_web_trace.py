"""One trace from the client of a request to the last handler, with the spans that FastAPI's instrumentation makes."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from serving import served_apart

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"

SERVICE = """
from fastapi import BackgroundTasks, FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aperion import EventBus
from aperion.integrations.fastapi import BusDep, CorrelationMiddleware, OutboxDep, OutboxMiddleware, lifespan

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)

bus = EventBus()
app = FastAPI(lifespan=lifespan(bus))
app.add_middleware(OutboxMiddleware)
app.add_middleware(CorrelationMiddleware)

@bus.on("order.placed", name="reserve")
async def reserve(event):
    await bus.emit("stock.reserved", {"number": event.payload["number"]})

@bus.on("order.placed", name="mail")
def mail(event):
    pass

@bus.on("stock.reserved", name="ship")
async def ship(event):
    pass

@app.post("/async/{number}")
async def asynchronous(number: int, bus: BusDep):
    await bus.emit("order.placed", {"number": number})

@app.post("/sync/{number}")
def synchronous(number: int, bus: BusDep):
    bus.emit_from_thread("order.placed", {"number": number})

@app.post("/outbox/{number}")
async def outboxed(number: int, outbox: OutboxDep):
    outbox.emit("order.placed", {"number": number})

@app.post("/after/{number}")
async def afterwards(number: int, bus: BusDep, tasks: BackgroundTasks):
    tasks.add_task(bus.emit, "order.placed", {"number": number})

@app.get("/spans")
async def shown(bus: BusDep):
    await bus.wait_settled()
    return [
        {
            "name": span.name,
            "kind": span.kind.name,
            "trace": f"{span.context.trace_id:032x}",
            "id": f"{span.context.span_id:016x}",
            "parent": f"{span.parent.span_id:016x}" if span.parent else None,
            "about": dict(span.attributes),
        }
        for span in spans.get_finished_spans()
    ]

FastAPIInstrumentor.instrument_app(app, excluded_urls="spans")
"""


def tree(spans: list[dict[str, Any]], parent: str) -> list[Any]:
    """Return the names of the spans below one, each with those below it.

    The parts of an HTTP span are left out, and so is the span that newer instrumentations put around a background task.
    """
    found: list[Any] = []
    for span in spans:
        if span["parent"] == parent and not span["name"].endswith((" receive", " send")):
            below = tree(spans, span["id"])
            found.extend(below if span["name"].startswith("BackgroundTask") else [[span["name"], *below]])
    return sorted(found)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "way",
    ["async", pytest.param("sync", marks=pytest.mark.slow), "outbox", pytest.param("after", marks=pytest.mark.slow)],
)
async def test_a_request_and_all_that_it_causes_are_one_trace(way: str, tmp_path) -> None:
    """OTL-c: the traceparent of the client, the HTTP span, the event, its handlers, and the event of one of them."""
    with served_apart(tmp_path, SERVICE) as (url, _), anyio.fail_after(45):
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            answer = await client.post(f"/{way}/7", headers=headers)
            spans = (await client.get("/spans")).json()

    assert answer.status_code == 200
    assert {span["trace"] for span in spans} == {TRACE}
    handlers = [
        ["process order.placed"],
        ["process order.placed", ["send stock.reserved", ["process stock.reserved"]]],
    ]
    assert tree(spans, PARENT) == [[f"POST /{way}/{{number}}", ["send order.placed", *handlers]]]
    about = {
        span["about"].get("messaging.message.conversation_id") for span in spans if "messaging.system" in span["about"]
    }
    assert about == {TRACE}
    assert answer.headers["X-Correlation-ID"] == TRACE


@pytest.mark.slow
@pytest.mark.anyio
async def test_traces_of_requests_at_the_same_time_are_kept_apart(tmp_path) -> None:
    """OTL-c: fifty at once, each with the whole tree of its own and with nothing of another."""
    parents = [f"{n + 1:016x}" for n in range(50)]

    async def ask(client: httpx.AsyncClient, n: int) -> None:
        headers = {"traceparent": f"00-{n + 1:032x}-{parents[n]}-01"}
        await client.post(f"/{('async', 'sync', 'outbox', 'after')[n % 4]}/{n}", headers=headers)

    with served_apart(tmp_path, SERVICE) as (url, _), anyio.fail_after(45):
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            async with anyio.create_task_group() as group:
                for n in range(50):
                    group.start_soon(ask, client, n)
            spans = (await client.get("/spans")).json()

    assert len({span["trace"] for span in spans}) == 50
    for n, parent in enumerate(parents):
        own = [span for span in spans if span["trace"] == f"{n + 1:032x}"]
        ((_, (sent, *handlers)),) = tree(own, parent)
        assert (sent, len(handlers)) == ("send order.placed", 2)
