"""Measurements where Prometheus finds them: names, labels, bounds, several buses, the page that is scraped."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import anyio
import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parsed

import aperion
from aperion import ConfigurationError, Event, EventBus, OverflowPolicy, Retry
from aperion.instruments import INSTRUMENTS, Instrument
from aperion.integrations.prometheus import PrometheusMetrics
from aperion.protocols import MetricsBackend

pytestmark = pytest.mark.anyio

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana.json"


class UserLogin(aperion.Payload, type="prom_user.login"):
    username: str


async def page(metrics: PrometheusMetrics, accept: str = "text/plain") -> httpx.Response:
    transport = httpx.ASGITransport(app=metrics.app())  # type: ignore[arg-type]  # two ways to say ASGI
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/metrics", headers={"accept": accept})


async def scraped(metrics: PrometheusMetrics) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return what a scrape shows, by name and labels, as Prometheus's own parser reads it."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in parsed((await page(metrics)).text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def fed(backend: MetricsBackend, instrument: Instrument) -> None:
    method = {"counter": backend.increment, "gauge": backend.gauge, "histogram": backend.observe}[instrument.kind]
    method(instrument.name, 2, dict.fromkeys(instrument.labels, "x"))


@pytest.mark.parametrize("instrument", INSTRUMENTS, ids=lambda each: each.name)
async def test_every_instrument_is_on_the_page(instrument: Instrument) -> None:
    """MET-7: under its own name, with its own labels and no others."""
    metrics = PrometheusMetrics()

    fed(metrics, instrument)

    found = await scraped(metrics)
    name = f"{instrument.name}_sum" if instrument.kind == "histogram" else instrument.name
    assert found[name] == {tuple(sorted(dict.fromkeys(instrument.labels, "x").items())): 2}


async def test_what_happens_on_a_bus_is_on_the_page() -> None:
    """MET-7 MET-c/e/f: emitted, handled, failed, timed out, retried, dropped, rejected, dead letters."""
    metrics, gate = PrometheusMetrics(), anyio.Event()

    async def fails(event: Event) -> None:
        raise ValueError

    async def waits(event: Event) -> None:
        await gate.wait()

    async with EventBus(metrics=metrics, max_pending_events=1, overflow_policy=OverflowPolicy.DROP) as bus:
        bus.subscribe(fails, "order.placed", name="fails", retry=Retry(attempts=2, wait_initial=0.001))
        bus.subscribe(lambda event: None, "order.placed", name="counts")
        bus.subscribe(lambda event: gate.set(), "order.late", name="late")
        bus.subscribe(waits, "order.held", name="waits", timeout=0.01)
        await (await bus.emit("order.placed", {})).settled()
        held = await bus.emit("order.held", {})
        await bus.emit("order.dropped", {})
        await held.settled()
        with pytest.raises(aperion.ValidationError):
            await bus.emit("No Type", {})
        await bus.wait_settled()

    found = await scraped(metrics)
    assert found["aperion_events_emitted_total"] == {
        (("event_type", "order.placed"),): 1,
        (("event_type", "order.held"),): 1,
    }
    deliveries = {
        (dict(key)["subscription"], dict(key)["outcome"]): n for key, n in found["aperion_deliveries_total"].items()
    }
    assert deliveries == {("fails", "failed"): 2, ("counts", "ok"): 1, ("waits", "timed_out"): 1}
    counts = {
        (dict(key)["subscription"], dict(key)["outcome"]): n
        for key, n in found["aperion_handler_duration_seconds_count"].items()
    }
    assert counts == deliveries
    assert sum(found["aperion_retries_total"].values()) == 1
    assert found["aperion_events_dropped_total"] == {(("event_type", "order.dropped"), ("policy", "drop")): 1}
    assert found["aperion_events_rejected_total"] == {(("reason", "validation_error"),): 1}
    assert found["aperion_emit_duration_seconds_count"][("event_type", "order.placed"),] == 1
    assert sum(found["aperion_dead_letters_total"].values()) == 3
    assert found["aperion_pending_events"] == {(): 0}
    assert bus.stats().metrics_errors == 0


async def test_a_second_bus_and_a_second_back_end_on_one_registry_add_up() -> None:
    """MET-c/e/f: it used to raise a duplicate time series out of emit."""
    registry = CollectorRegistry()
    first, second = PrometheusMetrics(registry), PrometheusMetrics(registry)
    async with EventBus(metrics=first) as one, EventBus(metrics=first) as two, EventBus(metrics=second) as three:
        for bus in (one, two, three):
            await bus.emit("user.login", {}, source=f"web-{id(bus)}")
            assert bus.stats().metrics_errors == 0

    assert (await scraped(second))["aperion_events_emitted_total"] == {(("event_type", "user.login"),): 3}


async def test_an_event_with_and_without_source_is_no_error() -> None:
    """MET-c/e/f: the source is no label, so that labels are always the same."""
    metrics = PrometheusMetrics()
    async with EventBus(metrics=metrics) as bus:
        await bus.emit("user.login", {}, source="web")
        await bus.emit("user.login", {})

        assert bus.stats().metrics_errors == 0
    assert (await scraped(metrics))["aperion_events_emitted_total"] == {(("event_type", "user.login"),): 2}


async def test_no_more_series_than_allowed_and_sums_stay_exact() -> None:
    """MET-l: what is too much goes into one series, whose labels say so."""
    metrics = PrometheusMetrics(max_series=3)
    for number in range(10):
        metrics.increment("aperion_events_emitted_total", 1, {"event_type": f"shop.t{number}"})
    metrics.increment("aperion_events_emitted_total", 1, {"event_type": "shop.t0"})

    series = (await scraped(metrics))["aperion_events_emitted_total"]
    assert len(series) == 4
    assert series[("event_type", "overflow"),] == 7
    assert series[("event_type", "shop.t0"),] == 2
    assert sum(series.values()) == 11


async def test_a_thousand_increments_from_each_of_eight_threads_are_eight_thousand() -> None:
    """MET-i: exact, also where a series is new."""
    metrics = PrometheusMetrics()

    def count() -> None:
        for number in range(1_000):
            metrics.increment("aperion_events_emitted_total", 1, {"event_type": f"shop.t{number % 50}"})

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    series = (await scraped(metrics))["aperion_events_emitted_total"]
    assert set(series.values()) == {160.0}
    assert len(series) == 50


async def test_metrics_of_ones_own_are_taken_and_a_change_of_labels_is_refused() -> None:
    """With the name, what it was and what it is now."""
    metrics = PrometheusMetrics()
    metrics.increment("jobs_total", 2, {"queue": "mail", "host": "a"})
    metrics.increment("jobs_total", 1, {"host": "a", "queue": "mail"})

    with pytest.raises(ConfigurationError, match="jobs_total is a counter with the labels .* told as a counter with"):
        metrics.increment("jobs_total", 1, {"queue": "mail"})
    with pytest.raises(ConfigurationError, match="was now told as a gauge"):
        metrics.gauge("jobs_total", 1, {"queue": "mail", "host": "a"})
    assert (await scraped(metrics))["jobs_total"] == {(("host", "a"), ("queue", "mail")): 3}


def test_a_name_that_somebody_else_has_is_refused() -> None:
    """Rather than shown in two ways, or not at all."""
    registry = CollectorRegistry()
    Counter("aperion_events_emitted", "mine", registry=registry)

    with pytest.raises(ConfigurationError, match="the registry does not take aperion_events_emitted_total"):
        PrometheusMetrics(registry).increment("aperion_events_emitted_total", 1, {"event_type": "a.b"})


async def test_the_page_speaks_openmetrics_to_who_asks() -> None:
    """Its own parser reads it, which is strict."""
    metrics = PrometheusMetrics()
    for instrument in INSTRUMENTS:
        fed(metrics, instrument)

    answer = await page(metrics, "application/openmetrics-text; version=1.0.0")

    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics(answer.text)}
    assert {instrument.name.removesuffix("_total") for instrument in INSTRUMENTS} <= names


async def test_values_and_ids_are_no_labels() -> None:
    """MET-l: neither of payloads nor of events, sources or keys."""
    metrics = PrometheusMetrics()
    async with EventBus(metrics=metrics) as bus:
        bus.subscribe(lambda event: None, UserLogin)
        receipt = await bus.emit(UserLogin(username="hunter2"), key="key-of-mine", source="web-7")
        await receipt.settled()

    text = (await page(metrics)).text
    assert not [value for value in ("hunter2", "key-of-mine", "web-7", receipt.event_id) if value in text]


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_a_bound_that_makes_no_sense_is_refused(number) -> None:
    """At once."""
    with pytest.raises(ConfigurationError, match="max_series"):
        PrometheusMetrics(max_series=number)


# The dashboard


def _expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = [*board["panels"], *(inner for panel in board["panels"] for inner in panel.get("panels", ()))]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


@pytest.mark.parametrize("expression", _expressions())
async def test_a_query_of_the_dashboard_asks_for_what_there_is(expression: str) -> None:
    """Each name is on the page, and each label is one of it."""
    metrics = PrometheusMetrics()
    for instrument in INSTRUMENTS:
        fed(metrics, instrument)
    known = {name: {label for key in series for label, _ in key} for name, series in (await scraped(metrics)).items()}

    names = re.findall(r"\baperion_\w+", expression)
    labels = {label for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in re.findall(r"\w+", group)}
    labels |= {label for group in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+)\s*=", group)}

    assert names
    assert set(names) <= known.keys()
    assert labels <= {"instance", "job"}.union(*(known[name] for name in names))


def test_the_dashboard_shows_every_instrument() -> None:
    """And one that is added is not forgotten there."""
    shown = " ".join(_expressions())

    assert [each.name for each in INSTRUMENTS if each.name not in shown] == []
