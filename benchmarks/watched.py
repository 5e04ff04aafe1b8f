"""The scenarios about a bus that is watched: what spans, measurements and ids of requests cost."""

from __future__ import annotations

from contextlib import AsyncExitStack
from statistics import median
from typing import TYPE_CHECKING, Any

import aperion
from aperion.integrations.asgi import CorrelationMiddleware
from aperion.observers.spans import Tracing
from benchmarks.timing import calibrated, elapsed, steady_collector
from benchmarks.wiring import SMALL, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.scale import Scale
    from benchmarks.wiring import Batch, Peer

TURNS = 7


class Watched(aperion.Payload, type="bench.watched"):
    """Three fields."""

    name: str
    count: int
    ratio: float


async def dispatching(peer: Peer, scale: Scale) -> dict[str, float]:
    """Dispatch to one handler, in turns: unwatched, with metrics of two kinds, with few spans, with all."""
    _ours(peer)
    options: dict[str, dict[str, Any]] = {
        "off": {"tracing": False},
        "idle": {},
        "memory": {"metrics": aperion.InMemoryMetrics()},
        "prometheus": {"metrics": _prometheus()},
        "few": {"tracing": Tracing(tracer_provider=_provider(0.01))},
        "all": {"tracing": Tracing(tracer_provider=_provider(1.0))},
    }
    async with AsyncExitStack() as stack:
        batches = {}
        for name, option in options.items():
            bus = await stack.enter_async_context(aperion.EventBus(redactor=aperion.Redactor(), **option))
            batches[name] = _dispatching(bus)
        ns = await _in_turns(batches, scale.seconds)
    return {
        **{f"{name}_ns": value for name, value in ns.items()},
        **{name: value / ns["off"] for name, value in ns.items()},
    }


async def requests(peer: Peer, scale: Scale) -> dict[str, float]:
    """Serve requests, in turns: by a bare application, and by the same with ids for its requests."""
    _ours(peer)
    ns = await _in_turns({"bare": _serving(_answer), "with": _serving(CorrelationMiddleware(_answer))}, scale.seconds)
    return {"bare_ns": ns["bare"], "with_ns": ns["with"], "ns": ns["with"] - ns["bare"]}


def _ours(peer: Peer) -> None:
    if peer.about.name != "aperion":
        raise UnsupportedError("is not watched like this")


async def _in_turns(batches: Mapping[str, Batch], seconds: float) -> dict[str, float]:
    """Return nanoseconds for one of each, taken in turns, so that a slow moment hits all."""
    counts = {name: await calibrated(batch, seconds / TURNS) for name, batch in batches.items()}
    taken: dict[str, list[float]] = {name: [] for name in batches}
    with steady_collector():
        for _ in range(TURNS):
            for name, batch in batches.items():
                taken[name].append(await elapsed(batch, counts[name]) / counts[name])
    return {name: median(values) for name, values in taken.items()}


def _dispatching(bus: aperion.EventBus) -> Batch:
    async def idle(event: aperion.Event[Watched]) -> None:
        """Do nothing."""

    async def dispatch(count: int) -> None:
        for _ in range(count):
            await bus.dispatch(Watched(**SMALL.fields))

    bus.subscribe(idle, Watched)
    return dispatch


def _provider(part: float) -> Any:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(part)))
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


def _prometheus() -> Any:
    try:
        from aperion.integrations.prometheus import PrometheusMetrics
    except ImportError:
        raise UnsupportedError("lacks prometheus_client") from None
    return PrometheusMetrics()


async def _answer(_scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"ok"})


def _serving(app: Any) -> Batch:
    headers = [(b"host", b"localhost"), (b"accept", b"*/*"), (b"user-agent", b"bench"), (b"accept-encoding", b"gzip")]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Any) -> None:
        """Send it nowhere."""

    async def serve(count: int) -> None:
        for _ in range(count):
            scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "state": {}}
            await app(scope, receive, send)

    return serve
