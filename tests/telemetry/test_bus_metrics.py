"""What the bus tells a metrics back end."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

import aperion
from aperion import CallbackMetrics, Event, EventBus, InMemoryMetrics

pytestmark = pytest.mark.anyio


async def test_the_bus_feeds_counts_and_durations() -> None:
    """MET-1 MET-2 MET-4 MET-5 MET-6 MET-d MET-g/h: emits, deliveries by outcome, seconds, gauges; in the stats."""
    metrics = InMemoryMetrics()
    async with EventBus(metrics=metrics, handler_timeout=0.2) as bus:

        @bus.on("chat.sent", name="sleeps")
        def sleeps(event: Event) -> None:
            time.sleep(0.1)

        @bus.on("chat.sent", name="fails")
        async def fails(event: Event) -> None:
            raise ValueError

        @bus.on("chat.sent", name="hangs")
        async def hangs(event: Event) -> None:
            await anyio.sleep(60)

        for _ in range(2):
            await bus.dispatch("chat.sent", {})
        with pytest.raises(aperion.EventTypeError):
            await bus.emit("Bad", {})
        snapshot = bus.stats().metrics
        assert metrics.gauge_value("aperion_subscriptions") == 3
        await (await bus.emit("quiet.event", {})).settled()
        bus.unsubscribe("hangs")

    assert metrics.counter("aperion_events_emitted_total", event_type="chat.sent") == 2
    assert metrics.counter("aperion_events_rejected_total") == 1
    for name, outcome in (("sleeps", "ok"), ("fails", "failed"), ("hangs", "timed_out")):
        assert metrics.counter("aperion_deliveries_total", subscription=name, outcome=outcome) == 2, name
    durations = metrics.histogram("aperion_handler_duration_seconds", subscription="sleeps")
    assert durations.count == 2
    assert durations.min >= 0.09
    assert durations.max < 5  # seconds, not milliseconds
    assert metrics.counter("aperion_dead_letters_total") == 5
    assert metrics.histogram("aperion_event_wait_seconds", event_type="quiet.event").count == 1
    assert metrics.gauge_value("aperion_subscriptions") == 2
    assert metrics.gauge_value("aperion_pending_events") == 0
    assert snapshot is not None
    json.dumps(snapshot)


class Broken:
    """A back end that is down."""

    def increment(self, name: str, value: int, labels: Mapping[str, str]) -> None:
        raise ConnectionError

    def gauge(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        raise ConnectionError

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        raise ConnectionError


async def test_a_broken_back_end_never_hurts_an_event() -> None:
    """MET-j/k: handlers run, the bus counts how often it failed."""
    ran: list[str] = []
    async with EventBus(metrics=Broken()) as bus:
        bus.subscribe(lambda e: ran.append("a"), "chat.sent", name="a")
        bus.subscribe(lambda e: ran.append("b"), "chat.sent", name="b")
        assert (await bus.dispatch("chat.sent", {})).ok

        assert bus.stats().metrics_errors > 0
        assert bus.stats().metrics is None
    assert ran == ["a", "b"]


async def test_a_callback_gets_every_measurement() -> None:
    """MET-7: kind, name, value, labels."""
    calls: list[tuple[str, str, float, Mapping[str, str]]] = []
    async with EventBus(metrics=CallbackMetrics(lambda *call: calls.append(call))) as bus:
        bus.subscribe(lambda e: None, "chat.sent", name="h")
        await bus.dispatch("chat.sent", {})

    kinds = {name: kind for kind, name, _, _ in calls}
    assert kinds["aperion_events_emitted_total"] == "counter"
    assert kinds["aperion_handler_duration_seconds"] == "histogram"
    assert kinds["aperion_pending_events"] == "gauge"


async def test_labels_hold_neither_ids_nor_values() -> None:
    """MET-l..r: what is bounded may be a label, what is not may not."""
    seen: list[Any] = []
    async with EventBus(metrics=CallbackMetrics(lambda *call: seen.append(call[3]))) as bus:
        bus.subscribe(lambda e: None, "chat.sent", name="h")
        await bus.emit("chat.sent", {"secret": "hunter2"}, key="key-1", correlation_id="req-1", source="src-1")
        await bus.wait_settled()

    text = str(seen)
    assert all(word not in text for word in ("hunter2", "key-1", "req-1", "src-1"))


async def test_retries_and_redrives_are_counted_as_attempts() -> None:
    """MET-4: each attempt is one delivery measured, each retry one more."""
    metrics = InMemoryMetrics()
    async with EventBus(metrics=metrics) as bus:

        @bus.on("chat.sent", name="fails", retry=aperion.Retry(attempts=3, wait_initial=0.001))
        async def fails(event: Event) -> None:
            raise ValueError

        with anyio.fail_after(5):
            await bus.dispatch("chat.sent", {})

    assert metrics.counter("aperion_deliveries_total", subscription="fails", outcome="failed") == 3
    assert metrics.counter("aperion_retries_total") == 2
    assert metrics.counter("aperion_dead_letters_total") == 1


async def test_what_is_hidden_is_counted_by_type_and_by_every_bus_of_the_redactor(tmp_path: Path) -> None:
    """MET-l..r: types are labels, values never are; a bus that is gone is told nothing."""
    redactor, gone, metrics = aperion.Redactor(), InMemoryMetrics(), InMemoryMetrics()
    EventBus(redactor=redactor, metrics=gone)
    gc.collect()
    async with EventBus(redactor=redactor, metrics=metrics, audit=aperion.AuditLog(tmp_path / "a.jsonl")) as bus:
        await bus.dispatch("chat.sent", {"to": "ada@example.com, bob@example.com", "password": "x"})

    assert metrics.counter("aperion_redactions_total", type="EMAIL") == 2
    assert metrics.counter("aperion_redactions_total", type="KEY") == 1
    assert gone.counter("aperion_redactions_total") == 0
    assert "ada" not in json.dumps(metrics.snapshot())
