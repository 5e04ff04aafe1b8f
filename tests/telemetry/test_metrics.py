"""Metrics: what a bus measures, and what the back ends make of it."""

from __future__ import annotations

import inspect
import json
import logging
import math
import sys
import threading
import time
import tracemalloc
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from aperion.errors import ConfigurationError
from aperion.instruments import ABANDONED, AUDIT_LAG, BUSY, IN_FLIGHT, QUEUED
from aperion.metrics import (
    DEFAULT_BUCKETS,
    INSTRUMENTS,
    BusMetrics,
    CallbackMetrics,
    InMemoryMetrics,
    NoopMetrics,
    elapsed,
)
from aperion.outcomes import FailureReason, OutcomeState
from aperion.protocols import MetricsBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping

    from aperion.metrics import Instrument

OK, FAILED = OutcomeState.OK, OutcomeState.FAILED
DURATION = "aperion_handler_duration_seconds"

seconds = st.floats(0, 1_000, allow_subnormal=False)


class BrokenMetrics:
    """A back end that always fails."""

    def increment(self, name: str, _value: int, _labels: Mapping[str, str]) -> None:
        """Fail with a secret in the text."""
        raise RuntimeError(f"{name}: password=hunter2")

    def gauge(self, name: str, _value: float, _labels: Mapping[str, str]) -> None:
        """Fail."""
        raise LookupError(name)

    def observe(self, name: str, _value: float, _labels: Mapping[str, str]) -> None:
        """Fail."""
        raise OSError(name)


@pytest.fixture
def memory() -> InMemoryMetrics:
    """Return a back end of the default size."""
    return InMemoryMetrics()


@pytest.fixture
def bus(memory: InMemoryMetrics) -> BusMetrics:
    """Return what a bus feeds, before that back end."""
    return BusMetrics(memory)


@pytest.fixture
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    """Return the log lines that the test writes."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
    with capture_logs() as captured:
        yield captured


# What a bus measures


def test_accepted_events_are_counted_by_type_and_in_total(bus: BusMetrics, memory: InMemoryMetrics) -> None:
    """MET-1: the total is the counter without labels."""
    for event_type in ("user.login", "user.login", "chat.sent"):
        bus.emitted(event_type, "web")

    assert memory.counter("aperion_events_emitted_total", event_type="user.login") == 2
    assert memory.counter("aperion_events_emitted_total", event_type="chat.sent") == 1
    assert memory.counter("aperion_events_emitted_total") == 3


def test_events_of_two_sources_are_counted_together(bus: BusMetrics, memory: InMemoryMetrics) -> None:
    """MET-n: two sources used to give a count of 1; a source is no label."""
    bus.emitted("user.login", "web")
    bus.emitted("user.login", "app")

    assert memory.counter("aperion_events_emitted_total", event_type="user.login") == 2
    assert "web" not in json.dumps(memory.snapshot())


def test_attempts_are_counted_by_handler_and_by_how_they_ended(bus: BusMetrics, memory: InMemoryMetrics) -> None:
    """MET-2: total, successes and failures of each handler; MET-g: a timeout is not an error."""
    for state in (OK, OK, FAILED, OutcomeState.TIMED_OUT):
        bus.handled("user.login", "app.greet", state, 0.1)
    bus.handled("user.login", "app.count", OK, 0.1)

    name = "aperion_deliveries_total"
    assert memory.counter(name) == 5
    assert memory.counter(name, subscription="app.greet") == 4
    assert memory.counter(name, subscription="app.greet", outcome="ok") == 2
    assert memory.counter(name, subscription="app.greet", outcome="failed") == 1
    assert memory.counter(name, subscription="app.greet", outcome="timed_out") == 1


def test_handlers_of_the_same_function_name_are_told_apart(bus: BusMetrics, memory: InMemoryMetrics) -> None:
    """MET-r: A1.handle and B1.handle used to be merged; subscriptions have names of their own."""
    bus.handled("user.login", "app.A1.handle", OK, 0.1)
    bus.handled("user.login", "app.B1.handle", FAILED, 0.1)

    assert memory.counter("aperion_deliveries_total", subscription="app.A1.handle", outcome="failed") == 0
    assert memory.histogram(DURATION, subscription="app.B1.handle").count == 1


def test_drops_are_counted_by_type_and_policy(bus: BusMetrics, memory: InMemoryMetrics) -> None:
    """MET-3: and a processor that drops is a policy too."""
    bus.dropped("chat.sent", "drop_oldest")
    bus.dropped("chat.sent", "processor")
    bus.dropped("user.login", "processor")

    assert memory.counter("aperion_events_dropped_total", event_type="chat.sent") == 2
    assert memory.counter("aperion_events_dropped_total", policy="processor") == 2


def test_each_attempt_is_one_sample_of_its_duration(bus: BusMetrics, memory: InMemoryMetrics) -> None:
    """MET-6: a handler of 0.1 s is a sample of at least 0.09 s."""
    bus.handled("user.login", "app.greet", OK, 0.1)
    bus.handled("user.login", "app.greet", FAILED, 0.2)

    measured = memory.histogram(DURATION, subscription="app.greet", event_type="user.login")

    assert (measured.count, measured.min, measured.max) == (2, 0.1, 0.2)
    assert measured.sum == pytest.approx(0.3)


def test_a_skipped_delivery_has_no_duration(bus: BusMetrics, memory: InMemoryMetrics) -> None:
    """MET-6: its handler was not started."""
    bus.handled("user.login", "app.greet", OutcomeState.SKIPPED, 0.0)

    assert memory.counter("aperion_deliveries_total", outcome="skipped") == 1
    assert memory.histogram(DURATION).count == 0


def test_the_wait_before_the_first_handler_is_a_sample_of_its_own(bus: BusMetrics, memory: InMemoryMetrics) -> None:
    """MET-p: time in the queue does not hide in the handler's."""
    bus.begun("user.login", 3.0)
    bus.handled("user.login", "app.count", OK, 0.1)

    waited = memory.histogram("aperion_event_wait_seconds", event_type="user.login")
    assert (waited.count, waited.sum) == (1, 3.0)


def test_no_back_end_is_told_of_a_negative_wait() -> None:
    """MET-p: it is counted from a timestamp, which may lie in the future."""
    told: list[float] = []
    backend = CallbackMetrics(lambda _kind, _name, value, _labels: told.append(value))

    bus = BusMetrics(backend)
    bus.handled("chat.sent", "app.greet", OK, 0.1)
    bus.begun("chat.sent", -5.0)

    assert told == [1, 0.1, 0.0]


def test_rejected_events_are_counted_by_reason_alone(bus: BusMetrics, memory: InMemoryMetrics) -> None:
    """MET-q: the names of refused events are not trusted and not bounded."""
    for number in range(5):
        bus.rejected(f"Mallory {number}", FailureReason.VALIDATION_ERROR)

    assert memory.snapshot()["counters"] == {'aperion_events_rejected_total{reason="validation_error"}': 5}


def test_retries_dead_letters_and_gauges_are_fed(bus: BusMetrics, memory: InMemoryMetrics) -> None:
    """MET-g: pending events and subscriptions used to be declared and never fed."""
    bus.retried("user.login", "app.greet")
    bus.dead_lettered("user.login", "app.greet", FailureReason.HANDLER_ERROR)
    bus.dead_lettered("user.login", None, FailureReason.ALL_HANDLERS_FAILED)
    bus.pending(7)
    bus.pending(3)
    bus.subscriptions(2)

    assert memory.counter("aperion_retries_total", subscription="app.greet", event_type="user.login") == 1
    assert memory.counter("aperion_dead_letters_total", subscription="app.greet", reason="handler_error") == 1
    assert memory.counter("aperion_dead_letters_total", reason="all_handlers_failed", subscription="") == 1
    assert memory.gauge_value("aperion_pending_events") == 3
    assert memory.gauge_value("aperion_subscriptions") == 2


def everything() -> list[tuple[str, str, float, dict[str, str]]]:
    """Return what a callback is told when a bus measures each thing once."""
    told: list[tuple[str, str, float, dict[str, str]]] = []
    bus = BusMetrics(CallbackMetrics(lambda *measurement: told.append(measurement)))
    bus.emitted("user.login", "web")
    bus.rejected("user.login", FailureReason.VALIDATION_ERROR)
    bus.dropped("user.login", "drop")
    bus.handled("user.login", "app.greet", OK, 0.5)
    bus.begun("user.login", 0.25)
    bus.retried("user.login", "app.greet")
    bus.dead_lettered("user.login", "app.greet", FailureReason.HANDLER_ERROR)
    bus.redacted(Counter({"EMAIL": 2}))
    bus.emitting("user.login", 0.001)
    bus.audit_failed()
    bus.blocked("app.greet")
    bus.late(0.002)
    bus.pending(1)
    bus.subscriptions(1)
    bus.load(dict.fromkeys((QUEUED, IN_FLIGHT, BUSY, ABANDONED, AUDIT_LAG), 1))
    assert bus.errors == 0
    return told


def test_what_a_bus_measures_is_what_the_table_says() -> None:
    """MET-f: a name always comes with the same kind and labels; a label more or less used to be an error."""
    told = sorted((name, kind, tuple(labels)) for kind, name, _, labels in everything())

    assert told == sorted((each.name, each.kind, each.labels) for each in INSTRUMENTS)


@pytest.mark.parametrize("instrument", INSTRUMENTS, ids=lambda instrument: instrument.name)
def test_names_say_what_they_hold(instrument: Instrument) -> None:
    """MET-d: one prefix, seconds in what is called seconds, and totals in counters."""
    assert instrument.name.count("aperion") == 1
    assert instrument.name.startswith("aperion_")
    assert instrument.name.endswith("_total") == (instrument.kind == "counter")
    assert instrument.name.endswith("_seconds") == (instrument.kind == "histogram")
    assert instrument.description


# A back end that fails


def test_a_back_end_that_fails_never_hurts_and_is_counted() -> None:
    """MET-j: it used to raise out of emit, and no handler ran."""
    bus = BusMetrics(BrokenMetrics())

    bus.emitted("user.login", "web")
    bus.pending(1)
    bus.handled("user.login", "app.greet", OK, 0.1)

    assert bus.errors == 4


def test_a_failing_back_end_is_logged_once_a_minute_and_by_kind_only(
    lines: list[MutableMapping[str, Any]],
) -> None:
    """MET-j: a log line for each measurement would be worse than none, and its text may hold anything."""
    times = [1_000.0, 1_000.1, 1_059.9, 1_060.0, 1_061.0]
    bus = BusMetrics(BrokenMetrics(), clock=iter(times).__next__)

    for _ in times:
        bus.emitted("user.login")

    assert [(line["log_level"], line["error_type"], line["errors"]) for line in lines] == [
        ("warning", "RuntimeError", 1),
        ("warning", "RuntimeError", 4),
    ]
    assert "hunter2" not in str(lines)


@pytest.mark.usefixtures("hectic")
def test_failures_are_counted_exactly_under_threads(lines: list[MutableMapping[str, Any]]) -> None:
    """MET-i: sync handlers run in threads, and back ends fail there too; still one line."""
    bus = BusMetrics(BrokenMetrics(), clock=lambda: float(threading.Event().wait(0.001)))

    in_threads(bus.pending, times=20)

    assert bus.errors == 160
    assert len(lines) == 1


def test_a_failure_of_one_measurement_does_not_keep_the_others_back() -> None:
    """MET-k: of two handlers only one used to run."""
    told: list[str] = []

    def callback(kind: str, name: str, _value: float, _labels: dict[str, str]) -> None:
        if kind == "counter":
            raise RuntimeError(name)
        told.append(name)

    bus = BusMetrics(CallbackMetrics(callback))
    bus.handled("user.login", "app.greet", OK, 0.1)
    bus.begun("user.login", 0.1)

    assert told == [DURATION, "aperion_event_wait_seconds"]


@pytest.mark.parametrize("backend", [None, object(), print, InMemoryMetrics])
def test_what_is_no_back_end_is_refused_when_declared(backend: Any) -> None:  # noqa: ANN401
    """MET-c: an unusable back end used to show as an AttributeError out of emit."""
    with pytest.raises(ConfigurationError, match="increment, gauge and observe"):
        BusMetrics(backend)


# Counters and gauges


def in_threads(call: Callable[[int], None], *, times: int) -> None:
    """Make calls with the same rising numbers in eight threads at once."""
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(10)
        for number in range(times):
            call(number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


@pytest.fixture
def hectic() -> Iterator[None]:
    """Switch threads as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hectic")
def test_counts_are_exact_under_threads(memory: InMemoryMetrics) -> None:
    """MET-i: 1,067,529 used to be counted of 1,600,000 with eight threads."""
    in_threads(lambda _: memory.increment("jobs_total", 1, {"queue": "mail"}), times=10_000)
    in_threads(lambda _: memory.observe("jobs_seconds", 0.5, {}), times=2_000)

    measured = memory.histogram("jobs_seconds")
    assert memory.counter("jobs_total") == 80_000
    assert (measured.count, measured.sum, measured.buckets["0.5"]) == (16_000, 8_000.0, 16_000)


@pytest.mark.usefixtures("hectic")
def test_a_series_that_many_threads_begin_at_once_is_one(memory: InMemoryMetrics) -> None:
    """MET-i: the first measurements of a series are not lost either."""
    in_threads(lambda number: memory.observe("jobs_seconds", 0.5, {"user": str(number)}), times=900)

    counts = {series["count"] for series in memory.snapshot()["histograms"].values()}
    assert counts == {8}


@pytest.mark.usefixtures("hectic")
def test_a_snapshot_taken_meanwhile_adds_up(memory: InMemoryMetrics) -> None:
    """MET-i: it tells of one moment, and of no measurement half."""

    def measure_and_look(_number: int) -> None:
        memory.observe("jobs_seconds", 0.5, {})
        (taken,) = memory.snapshot()["histograms"].values()
        sums.append((taken["count"] * 0.5, taken["sum"], sum(taken["buckets"].values()) * 0.5))

    sums: list[tuple[float, ...]] = []

    in_threads(measure_and_look, times=300)

    assert len(sums) == 2_400
    assert all(len(set(each)) == 1 for each in sums)


def test_a_counter_sums_the_series_that_carry_the_labels(memory: InMemoryMetrics) -> None:
    """MET-n: asking for one label finds the series that have others as well."""
    memory.increment("jobs_total", 1, {"queue": "mail", "host": "a"})
    memory.increment("jobs_total", 2, {"host": "b", "queue": "mail"})
    memory.increment("jobs_total", 4, {"queue": "print", "host": "a"})

    assert memory.counter("jobs_total", queue="mail") == 3
    assert memory.counter("jobs_total", queue="mail", host="b") == 2
    assert memory.counter("jobs_total", queue="fax") == memory.counter("other_total") == 0


def test_the_order_of_labels_makes_no_series(memory: InMemoryMetrics) -> None:
    """MET-q: the same labels in another order are the same series, and its name has them sorted."""
    labels = dict.fromkeys("abcdef", "x")
    memory.increment("jobs_total", 1, labels)
    memory.increment("jobs_total", 1, dict(reversed(labels.items())))

    assert memory.snapshot()["counters"] == {'jobs_total{a="x",b="x",c="x",d="x",e="x",f="x"}': 2}


def test_a_label_may_have_any_name(memory: InMemoryMetrics) -> None:
    """MET-o: also that of a parameter."""
    memory.increment("jobs_total", 1, {"name": "x", "self": "y"})
    memory.observe("jobs_seconds", 1.0, {"q": "z"})

    assert memory.counter("jobs_total", name="x", self="y") == 1
    assert memory.quantile("jobs_seconds", 1, q="z") == 1.0


def test_a_gauge_is_what_it_was_set_to_last(memory: InMemoryMetrics) -> None:
    """MET-7: and None where it was never set, which is not zero."""
    memory.gauge("pending", 3, {"queue": "mail"})
    memory.gauge("pending", 2, {"queue": "mail"})

    assert memory.gauge_value("pending", queue="mail") == 2
    assert memory.gauge_value("pending") is None
    assert memory.gauge_value("other") is None


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_a_counter_that_would_fall_is_refused(memory: InMemoryMetrics, value: Any) -> None:  # noqa: ANN401
    """MET-1: counters only rise."""
    with pytest.raises(ConfigurationError, match="jobs_total"):
        memory.increment("jobs_total", value, {})

    assert memory.counter("jobs_total") == 0


@pytest.mark.parametrize("labels", [{"n": 1}, {1: "n"}, {"n": None}])
def test_labels_that_are_not_text_are_refused(memory: InMemoryMetrics, labels: Any) -> None:  # noqa: ANN401
    """MET-o: 1 and "1" would be two series of one name."""
    with pytest.raises(ConfigurationError, match="not all text"):
        memory.increment("jobs_total", 1, labels)

    assert memory.snapshot()["counters"] == {}


def test_resetting_forgets_everything(memory: InMemoryMetrics) -> None:
    """MET-5: and what comes afterwards is counted."""
    memory.increment("jobs_total", 1, {})
    memory.gauge("pending", 1, {})
    memory.observe("jobs_seconds", 1.0, {})

    memory.reset()

    assert memory.snapshot() == {"counters": {}, "gauges": {}, "histograms": {}}
    memory.increment("jobs_total", 1, {})
    assert memory.counter("jobs_total") == 1


# Bounds


def test_label_sets_beyond_the_bound_are_added_up_in_one(memory: InMemoryMetrics) -> None:
    """MET-q: 1,000 series each, however many labels somebody invents; the sum without labels stays exact."""
    for number in range(3_000):
        memory.increment("jobs_total", 1, {"user": str(number)})
        memory.observe("jobs_seconds", 0.5, {"user": str(number)})
        memory.gauge("pending", number, {"user": str(number)})

    taken = memory.snapshot()
    assert {kind: len(series) for kind, series in taken.items()} == dict.fromkeys(taken, 1_001)
    assert memory.counter("jobs_total") == memory.histogram("jobs_seconds").count == 3_000
    assert memory.counter("jobs_total", overflow="true") == 2_000
    assert memory.gauge_value("pending", overflow="true") == 2_999


def test_a_series_that_exists_is_kept_when_others_overflow() -> None:
    """MET-q: each name has its own bound, and old series go on."""
    memory = InMemoryMetrics(max_series=2)
    for user in ("a", "b", "c", "d", "a"):
        memory.increment("jobs_total", 1, {"user": user})
    memory.increment("other_total", 1, {"user": "e"})

    assert memory.snapshot()["counters"] == {
        'jobs_total{user="a"}': 2,
        'jobs_total{user="b"}': 1,
        'jobs_total{overflow="true"}': 2,
        'other_total{user="e"}': 1,
    }


def test_the_overflow_takes_no_place_from_the_series() -> None:
    """MET-q: also when somebody uses its label before it is needed."""
    memory = InMemoryMetrics(max_series=2)
    for labels in ({"overflow": "true"}, {"user": "a"}, {"user": "b"}, {"user": "c"}):
        memory.increment("jobs_total", 1, labels)

    assert memory.counter("jobs_total", user="b") == 1
    assert memory.counter("jobs_total", overflow="true") == 2


def test_memory_does_not_grow_with_measurements(memory: InMemoryMetrics) -> None:
    """MET-l: each event used to cost 66 bytes for ever."""

    def measure(times: int) -> None:
        for number in range(times):
            memory.increment("jobs_total", 1, {"queue": "mail"})
            memory.observe("jobs_seconds", number / 1_000, {"queue": "mail"})

    measure(1_000)
    tracemalloc.start()
    measure(20_000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert grown < 2_000


def test_a_snapshot_does_not_grow_with_measurements(memory: InMemoryMetrics) -> None:
    """MET-m: get_stats used to return 50,001 latencies."""
    for number in range(10_000):
        memory.observe("jobs_seconds", number / 1_000, {})

    assert len(json.dumps(memory.snapshot())) < 1_000


@pytest.mark.parametrize("max_series", [0, -1, 1.5, True])
def test_a_bound_that_makes_no_sense_is_refused(max_series: Any) -> None:  # noqa: ANN401
    """MET-q: there is no such thing as no bound."""
    with pytest.raises(ConfigurationError, match="max_series"):
        InMemoryMetrics(max_series=max_series)


# Histograms


def test_a_measurement_falls_into_the_bucket_whose_bound_it_does_not_exceed() -> None:
    """MET-6: the bound belongs to its bucket, and what exceeds all is counted too."""
    memory = InMemoryMetrics(buckets=(0.1, 1))
    for value in (0.05, 0.1, 0.11, 1.0, 1.01, 500.0):
        memory.observe("jobs_seconds", value, {})

    assert memory.histogram("jobs_seconds").buckets == {"0.1": 2, "1.0": 2, "+Inf": 2}


def test_the_default_buckets_go_from_50_microseconds_to_a_minute() -> None:
    """MET-6: fine enough for a handler that never waits, wide enough for one that times out."""
    assert (DEFAULT_BUCKETS[0], DEFAULT_BUCKETS[-1]) == (0.00005, 60)
    assert list(DEFAULT_BUCKETS) == sorted(set(DEFAULT_BUCKETS))


def test_a_histogram_without_measurements_is_all_zero(memory: InMemoryMetrics) -> None:
    """MET-6: and no NaN, which JSON cannot hold."""
    empty = memory.histogram("jobs_seconds")

    assert (empty.count, empty.sum, empty.min, empty.max) == (0, 0.0, 0.0, 0.0)
    assert (empty.p50, empty.p95, empty.p99, memory.quantile("jobs_seconds", 0.5)) == (0.0, 0.0, 0.0, 0.0)
    assert set(empty.buckets.values()) == {0}


def test_a_histogram_takes_the_series_that_carry_the_labels_together(memory: InMemoryMetrics) -> None:
    """MET-6: as a counter does."""
    for queue, host, value in (("mail", "a", 1.0), ("mail", "b", 3.0), ("print", "a", 9.0)):
        memory.observe("jobs_seconds", value, {"queue": queue, "host": host})

    mail = memory.histogram("jobs_seconds", queue="mail")

    assert (mail.count, mail.sum, mail.min, mail.max) == (2, 4.0, 1.0, 3.0)
    assert mail.buckets["1.0"] == mail.buckets["5.0"] == 1


def test_the_percentiles_of_even_durations_are_where_they_should_be(memory: InMemoryMetrics) -> None:
    """MET-6: 1 to 1,000 ms, one each, come within a bucket's interpolation."""
    for milliseconds in range(1, 1_001):
        memory.observe("jobs_seconds", milliseconds / 1_000, {})

    measured = memory.histogram("jobs_seconds")

    assert measured.p50 == pytest.approx(0.50, abs=0.01)
    assert measured.p95 == pytest.approx(0.95, abs=0.01)
    assert measured.p99 == pytest.approx(0.99, abs=0.01)


@given(values=st.lists(seconds, min_size=1, max_size=60), q=st.floats(0, 1))
@example(values=[0.07, 0.08, 70.0, 90.0], q=0.5)
@example(values=[61.0, 600.0], q=0.25)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    """MET-6: between the bounds of that bucket, and never outside of what was measured."""
    memory = InMemoryMetrics()
    for value in values:
        memory.observe("jobs_seconds", value, {})
    true = sorted(values)[max(math.ceil(q * len(values)), 1) - 1]
    lower = max((bound for bound in DEFAULT_BUCKETS if bound < true), default=0.0)
    upper = min((bound for bound in DEFAULT_BUCKETS if bound >= true), default=math.inf)

    estimate = memory.quantile("jobs_seconds", q)

    assert max(lower, min(values)) <= estimate <= min(upper, max(values))


@given(values=st.lists(seconds, min_size=1, max_size=60))
@example(values=[60.16, 344.785])  # 60.16 + (344.785 - 60.16) is less than 344.785
def test_the_quantiles_at_both_ends_are_exact(values: list[float]) -> None:
    """MET-6: the smallest and the largest are known."""
    memory = InMemoryMetrics()
    for value in values:
        memory.observe("jobs_seconds", value, {})

    assert memory.quantile("jobs_seconds", 0) == min(values)
    assert memory.quantile("jobs_seconds", 1) == max(values)


@given(values=st.lists(seconds, min_size=1, max_size=60), qs=st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_a_higher_quantile_is_never_lower(values: list[float], qs: list[float]) -> None:
    """MET-6: quantiles rise with q."""
    memory = InMemoryMetrics()
    for value in values:
        memory.observe("jobs_seconds", value, {})

    estimates = [memory.quantile("jobs_seconds", q) for q in sorted(qs)]

    assert estimates == sorted(estimates)


@given(st.lists(seconds, max_size=60))
def test_each_measurement_is_one_sample_in_one_bucket(values: list[float]) -> None:
    """MET-6: one sample per observation, and the sum is their sum."""
    memory = InMemoryMetrics()
    for value in values:
        memory.observe("jobs_seconds", value, {})

    measured = memory.histogram("jobs_seconds")

    assert measured.count == sum(measured.buckets.values()) == len(values)
    assert measured.sum == pytest.approx(sum(values))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_refused_and_leaves_no_trace(memory: InMemoryMetrics, value: float) -> None:
    """MET-6: one NaN would make every later sum NaN."""
    with pytest.raises(ConfigurationError, match="jobs_seconds"):
        memory.observe("jobs_seconds", value, {})
    with pytest.raises(ConfigurationError, match="pending"):
        memory.gauge("pending", value, {})

    assert memory.snapshot() == {"counters": {}, "gauges": {}, "histograms": {}}


def test_a_negative_duration_counts_as_zero(memory: InMemoryMetrics) -> None:
    """MET-6: the clock was set back; the attempt happened all the same."""
    memory.observe("jobs_seconds", -0.5, {})

    measured = memory.histogram("jobs_seconds")

    assert (measured.count, measured.min, measured.sum) == (1, 0.0, 0.0)


@pytest.mark.parametrize("q", [-0.1, 1.1, 99, math.nan])
def test_a_quantile_outside_of_0_to_1_is_refused(memory: InMemoryMetrics, q: float) -> None:
    """MET-6: 99 for 0.99 is a mistake worth telling."""
    with pytest.raises(ConfigurationError, match="0 to 1"):
        memory.quantile("jobs_seconds", q)


@pytest.mark.parametrize("buckets", [(), (1, 1), (2, 1), (0, 1), (-1, 1), (1, math.inf), (math.nan,)])
def test_bounds_that_do_not_rise_are_refused(buckets: tuple[float, ...]) -> None:
    """MET-6: when declared, not when the first measurement comes."""
    with pytest.raises(ConfigurationError, match="buckets="):
        InMemoryMetrics(buckets=buckets)


# Snapshots


def test_a_snapshot_is_json_and_tells_everything(memory: InMemoryMetrics) -> None:
    """MET-5: what a statistics endpoint returns."""
    memory.increment("jobs_total", 2, {"queue": "mail"})
    memory.gauge("pending", 1.5, {})
    memory.observe("jobs_seconds", 0.5, {"queue": "mail"})

    taken = memory.snapshot()

    assert json.loads(json.dumps(taken, allow_nan=False)) == taken
    assert taken["counters"] == {'jobs_total{queue="mail"}': 2}
    assert taken["gauges"] == {"pending": 1.5}
    assert taken["histograms"] == {'jobs_seconds{queue="mail"}': asdict(memory.histogram("jobs_seconds"))}


def test_a_snapshot_does_not_change_afterwards(memory: InMemoryMetrics) -> None:
    """MET-5: it tells of one moment."""
    memory.observe("jobs_seconds", 0.5, {})
    taken = memory.snapshot()

    memory.observe("jobs_seconds", 0.5, {})

    assert taken["histograms"]["jobs_seconds"]["count"] == 1


words = st.text(st.sampled_from('a,=}{"\\ \n'), max_size=6)


@given(
    st.lists(st.tuples(words, st.dictionaries(words, words, max_size=3)), max_size=20),
)
@example([("x", {"a": '1",b="2'}), ("x", {"a": "1", "b": "2"})])
@example([('x{a="1"}', {}), ("x", {"a": "1"}), ("x", {}), ('"x"', {})])
@example([("x", {'a="1",b': "2"}), ("x", {"a": "1", "b": "2"})])
def test_different_series_never_have_the_same_name(series: list[tuple[str, dict[str, str]]]) -> None:
    """MET-o: a comma, an equals sign or a brace in a label used to break the parsing."""
    memory = InMemoryMetrics()
    for name, labels in series:
        memory.increment(name, 1, labels)

    different = {(name, frozenset(labels.items())) for name, labels in series}

    assert len(memory.snapshot()["counters"]) == len(different)
    assert sum(memory.snapshot()["counters"].values()) == len(series)


# The other back ends


@pytest.mark.parametrize("backend", [InMemoryMetrics(), NoopMetrics(), CallbackMetrics(print)])
def test_every_back_end_that_ships_is_a_back_end(backend: object) -> None:
    """MET-7: the port is the same for all, parameter names included."""
    assert isinstance(backend, MetricsBackend)
    for method in ("increment", "gauge", "observe"):
        assert list(inspect.signature(getattr(backend, method)).parameters) == ["name", "value", "labels"]


def test_a_callback_gets_kind_name_value_and_labels() -> None:
    """MET-7: each of them once for each measurement."""
    told = everything()

    labels = {"event_type": "user.login", "subscription": "app.greet", "outcome": "ok"}
    assert ("counter", "aperion_events_emitted_total", 1, {"event_type": "user.login"}) in told
    assert ("histogram", DURATION, 0.5, labels) in told
    assert ("gauge", "aperion_pending_events", 1, {}) in told


def test_a_callback_may_keep_and_change_the_labels() -> None:
    """MET-7: they are its own."""
    kept: list[dict[str, str]] = []
    backend = CallbackMetrics(lambda _kind, _name, _value, labels: kept.append(labels))
    given_labels = {"queue": "mail"}

    backend.increment("jobs_total", 1, given_labels)
    kept[0].clear()

    assert given_labels == {"queue": "mail"}


async def _async_callback(*_measurement: object) -> None: ...


@pytest.mark.parametrize("callback", [None, "print", _async_callback])
def test_what_cannot_be_called_back_is_refused_when_declared(callback: Any) -> None:  # noqa: ANN401
    """MET-7: an async function would be called and never run."""
    with pytest.raises(ConfigurationError, match="plain function"):
        CallbackMetrics(callback)


def test_the_no_op_back_end_takes_everything() -> None:
    """MET-7: and nothing of it is an error."""
    bus = BusMetrics(NoopMetrics())

    bus.emitted("user.login")
    bus.handled("user.login", "app.greet", OK, 0.1)
    bus.begun("user.login", 0.1)
    bus.pending(1)

    assert bus.errors == 0


# Timing


def test_elapsed_tells_how_long_a_block_took() -> None:
    """MET-p: the whole of it, and no more once it has ended."""
    started = time.perf_counter()
    with elapsed() as timer:
        threading.Event().wait(0.02)
    bound = time.perf_counter() - started

    assert 0.02 <= timer.seconds <= bound


def test_elapsed_tells_how_long_a_block_took_that_raised() -> None:
    """MET-7: and lets the error pass."""
    with pytest.raises(KeyError), elapsed() as timer:  # noqa: PT012 - it is the block that is timed
        threading.Event().wait(0.01)
        raise KeyError

    assert timer.seconds >= 0.01
