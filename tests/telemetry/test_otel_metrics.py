"""Measurements through OpenTelemetry: the conventions' names where they have one, ours for the rest."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric

from aperion import ConfigurationError, Event, EventBus, Retry
from aperion.instruments import INSTRUMENTS, Instrument
from aperion.protocols import MetricsBackend
from aperion.telemetry import OpenTelemetryMetrics

pytestmark = pytest.mark.anyio

ADVISED = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
"""What the semantic conventions for messaging, 1.40.0, advise for durations, in seconds."""


class Reader:
    """A provider of its own, and what can be read there."""

    def __init__(self, **options: Any) -> None:
        self._reader = InMemoryMetricReader()
        self.metrics = OpenTelemetryMetrics(MeterProvider([self._reader]), **options)

    def read(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        return {metric.name: metric for r in data.resource_metrics for s in r.scope_metrics for metric in s.metrics}

    def points(self, name: str) -> list[tuple[dict[str, Any], float]]:
        """Return attributes and value, or count, of each point."""
        data = self.read()[name].data.data_points
        return [(dict(point.attributes), getattr(point, "value", getattr(point, "count", None))) for point in data]


@pytest.mark.parametrize("instrument", INSTRUMENTS, ids=lambda each: each.name)
def test_every_instrument_has_a_name_a_unit_and_a_description(instrument: Instrument) -> None:
    """MET-7: told once, it is there, and no two share a name."""
    reader = Reader()
    backend: MetricsBackend = reader.metrics
    method = {"counter": backend.increment, "gauge": backend.gauge, "histogram": backend.observe}[instrument.kind]

    method(instrument.name, 2, dict.fromkeys(instrument.labels, "x"))

    [(name, metric)] = reader.read().items()
    assert name.startswith(("messaging.", "aperion."))
    assert "_total" not in name
    assert "_seconds" not in name
    assert metric.unit in {"s", "By", "1", "{message}"}
    assert (metric.unit == "s") == instrument.name.endswith("_seconds")
    assert metric.description == instrument.description


def test_no_two_instruments_have_one_name() -> None:
    """Or one would hide the other."""
    from aperion._telemetry.meters import otel_name

    assert len({otel_name(each) for each in INSTRUMENTS}) == len(INSTRUMENTS)


async def test_what_the_conventions_name_is_told_under_these_names() -> None:
    """Sent, how long that took, consumed, how long that took; with their attributes, and error.type on failures."""
    reader = Reader()

    async def fails(event: Event) -> None:
        raise ValueError

    async with EventBus(metrics=reader.metrics) as bus:
        bus.subscribe(fails, "order.placed", name="fails")
        bus.subscribe(lambda event: None, "order.placed", name="counts")
        await (await bus.emit("order.placed", {})).settled()

    shared = {"messaging.system": "aperion", "messaging.destination.name": "order.placed"}
    send = {**shared, "messaging.operation.name": "send", "messaging.operation.type": "send"}
    process = {**shared, "messaging.operation.name": "process", "messaging.operation.type": "process"}
    failed = {"messaging.destination.subscription.name": "fails", "aperion.outcome": "failed", "error.type": "failed"}
    counted = {"messaging.destination.subscription.name": "counts", "aperion.outcome": "ok"}
    assert reader.points("messaging.client.sent.messages") == [(send, 1)]
    assert reader.points("messaging.client.operation.duration") == [(send, 1)]
    for name in ("messaging.client.consumed.messages", "messaging.process.duration"):
        assert sorted(reader.points(name), key=str) == sorted(
            [({**process, **failed}, 1), ({**process, **counted}, 1)], key=str
        )


async def test_the_rest_is_told_under_ours() -> None:
    """Retries, dead letters, redactions, the queue, threads: counters, gauges and histograms."""
    reader, told = Reader(), anyio.Event()

    async def fails(event: Event) -> None:
        raise ValueError("password=hunter2")

    async with EventBus(metrics=reader.metrics) as bus:
        bus.subscribe(fails, "order.placed", name="fails", retry=Retry(attempts=2, wait_initial=0.001))
        bus.subscribe(lambda event: None, "order.placed", name="counts")
        await (await bus.emit("order.placed", {})).settled()
        with anyio.fail_after(20):
            while "aperion.loop_lag" not in reader.read():
                await anyio.sleep(0.02)
        told.set()

    assert reader.points("aperion.retries")[0][1] == 1
    reasons = [attributes["aperion.reason"] for attributes, _ in reader.points("aperion.dead_letters")]
    assert reasons == ["handler_error"]
    assert {"aperion.type": "KEYED"}.keys() <= reader.points("aperion.redactions")[0][0].keys()
    for gauge in ("queue_depth", "events_in_flight", "threads_busy", "threads_abandoned", "pending_events"):
        assert reader.points(f"aperion.{gauge}") == [({}, 0)]


def test_histograms_have_the_buckets_that_are_advised_and_finer_ones() -> None:
    """From 50 µs on: a handler in this process is faster than a broker."""
    reader = Reader()

    reader.metrics.observe(
        "aperion_handler_duration_seconds", 0.00007, {"event_type": "a.b", "subscription": "s", "outcome": "ok"}
    )

    [point] = reader.read()["messaging.process.duration"].data.data_points
    assert set(ADVISED) <= set(point.explicit_bounds)
    assert min(point.explicit_bounds) == 0.00005
    assert point.bucket_counts[1] == 1


def test_a_clock_that_was_set_back_is_no_negative_duration() -> None:
    """It counts as none."""
    reader = Reader()

    reader.metrics.observe("aperion_loop_lag_seconds", -1.0, {})

    [point] = reader.read()["aperion.loop_lag"].data.data_points
    assert (point.count, point.sum) == (1, 0)


def test_no_more_series_than_allowed_and_sums_stay_exact() -> None:
    """MET-l: what is too much goes into one series, whose attribute says so."""
    reader = Reader(max_series=3)
    for number in range(10):
        reader.metrics.increment("aperion_events_emitted_total", 1, {"event_type": f"shop.t{number}"})

    points = reader.points("messaging.client.sent.messages")
    assert len(points) == 4
    assert ({"overflow": "true"}, 7) in points
    assert sum(value for _, value in points) == 10


async def test_values_and_ids_are_no_attributes() -> None:
    """MET-l: neither of payloads nor of events, sources or keys."""
    reader = Reader()
    async with EventBus(metrics=reader.metrics) as bus:
        bus.subscribe(lambda event: None, "user.login")
        receipt = await bus.emit("user.login", {"username": "hunter2"}, key="key-of-mine", source="web-7")
        await receipt.settled()

    told = str(reader.read())
    assert not [value for value in ("hunter2", "key-of-mine", "web-7", receipt.event_id) if value in told]


async def test_the_same_back_end_serves_several_buses() -> None:
    """MET-c/e/f: they add up."""
    reader = Reader()
    async with EventBus(metrics=reader.metrics) as one, EventBus(metrics=reader.metrics) as two:
        await one.emit("user.login", {})
        await two.emit("user.login", {})

        assert one.stats().metrics_errors == two.stats().metrics_errors == 0
    assert [value for _, value in reader.points("messaging.client.sent.messages")] == [2]


@pytest.mark.parametrize("number", [0, -1])
def test_a_bound_that_makes_no_sense_is_refused(number: int) -> None:
    """At once."""
    with pytest.raises(ConfigurationError, match="max_series"):
        OpenTelemetryMetrics(max_series=number)


def test_a_metric_of_ones_own_keeps_its_name() -> None:
    """And its labels."""
    reader = Reader()

    reader.metrics.increment("jobs_total", 2, {"queue": "mail"})

    assert reader.points("jobs_total") == [({"queue": "mail"}, 2)]
