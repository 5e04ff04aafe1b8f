"""Metrics: the back ends that ship; what a bus measures is in ``instruments``."""

from __future__ import annotations

import inspect
import json
import math
import re
import threading
from bisect import bisect_left
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from aperion.errors import ConfigurationError, positive, shown
from aperion.instruments import INSTRUMENTS, BusMetrics, Instrument, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = [
    "DEFAULT_BUCKETS",
    "INSTRUMENTS",
    "BusMetrics",
    "CallbackMetrics",
    "Elapsed",
    "HistogramSnapshot",
    "InMemoryMetrics",
    "Instrument",
    "Kind",
    "NoopMetrics",
    "elapsed",
]

V = TypeVar("V")
_Labels: TypeAlias = frozenset[tuple[str, str]]

DEFAULT_BUCKETS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds in seconds, from 50 µs to 60 s."""

_OVERFLOW: _Labels = frozenset({("overflow", "true")})
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramSnapshot:
    """The measurements of a histogram at one moment; all zero when there were none.

    ``buckets`` tells how many lie in each bucket, by the text of its upper bound, which belongs to it;
    the last is ``+Inf``. The percentiles are estimated, see ``InMemoryMetrics.quantile``.
    """

    count: int
    sum: float
    min: float
    max: float
    buckets: dict[str, int]
    p50: float
    p95: float
    p99: float


class _Histogram:
    # Mutable: all of it, under the lock of the back end.
    __slots__ = ("bounds", "count", "counts", "max", "min", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.sum = 0.0
        self.min = math.inf
        self.max = -math.inf

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.count += 1
        self.sum += value
        if value < self.min:  # noqa: PLR1730 - min() and max() make all of this take twice as long
            self.min = value
        if value > self.max:  # noqa: PLR1730
            self.max = value

    def merge(self, other: _Histogram) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.count += other.count
        self.sum += other.sum
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)

    def quantile(self, q: float) -> float:
        rank, below = q * self.count, 0
        for index, inside in enumerate(self.counts):
            if inside and rank <= below + inside:
                return self._between(index, (rank - below) / inside)
            below += inside
        return 0.0

    def _between(self, index: int, part: float) -> float:
        """Interpolate inside a bucket; its part outside of all measurements does not count."""
        lower = max(self.min, self.bounds[index - 1]) if index else self.min
        upper = min(self.max, self.bounds[index]) if index < len(self.bounds) else self.max
        return upper if part >= 1 else min(lower + (upper - lower) * part, upper)

    def snapshot(self) -> HistogramSnapshot:
        return HistogramSnapshot(
            count=self.count,
            sum=self.sum,
            min=self.min if self.count else 0.0,
            max=self.max if self.count else 0.0,
            buckets=dict(zip([*map(repr, self.bounds), "+Inf"], self.counts, strict=True)),
            p50=self.quantile(0.50),
            p95=self.quantile(0.95),
            p99=self.quantile(0.99),
        )


class _Table(Generic[V]):
    """The series of all instruments of one kind. It takes no lock; its owner does."""

    # Mutable: the dicts in by_name. Each holds limit series at most, and the one for all others.
    __slots__ = ("by_name", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.by_name: dict[str, dict[_Labels, V]] = {}

    def place(self, name: str, labels: Mapping[str, str]) -> tuple[dict[_Labels, V], _Labels]:
        """Return where the value of a series is kept, and under which key."""
        series = self.by_name.get(name)
        if series is None:
            series = self.by_name[name] = {}
        key = frozenset(labels.items())
        if key in series:
            return series, key
        if not all(isinstance(label, str) and isinstance(value, str) for label, value in key):
            raise ConfigurationError(f"labels of {name} are not all text; convert them with str()")
        return series, key if len(series) - (_OVERFLOW in series) < self.limit else _OVERFLOW

    def carrying(self, name: str, labels: Mapping[str, str]) -> list[V]:
        """Return the values of the series that carry these labels, whatever others they have."""
        wanted = frozenset(labels.items())
        return [value for key, value in self.by_name.get(name, {}).items() if wanted <= key]

    def flat(self) -> list[tuple[str, _Labels, V]]:
        return [(name, key, value) for name, series in self.by_name.items() for key, value in series.items()]


class InMemoryMetrics:
    """Keeps every measurement in this process, in bounded memory; exact under threads.

    Each name may have ``max_series`` sets of labels. What comes with others is added up in one series
    labelled ``overflow="true"``, so that sums without labels stay exact.

    Examples:
        >>> metrics = InMemoryMetrics()
        >>> metrics.increment("jobs_total", 1, {"queue": "mail"})
        >>> metrics.increment("jobs_total", 2, {"queue": "print"})
        >>> metrics.counter("jobs_total"), metrics.counter("jobs_total", queue="mail")
        (3, 1)

    Args:
        max_series: sets of labels for each name.
        buckets: upper bounds of the histograms' buckets in seconds, rising.

    Raises:
        ConfigurationError: for a ``max_series`` below 1, or bounds that do not rise.
    """

    # Mutable: the three tables, under _lock.
    __slots__ = ("_bounds", "_counters", "_gauges", "_histograms", "_lock", "_max_series")

    def __init__(self, *, max_series: int = 1_000, buckets: Sequence[float] = DEFAULT_BUCKETS) -> None:
        positive("max_series", max_series, whole=True)
        self._max_series = max_series
        self._bounds = _rising(buckets)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget every measurement."""
        with self._lock:
            self._counters: _Table[int] = _Table(self._max_series)
            self._gauges: _Table[float] = _Table(self._max_series)
            self._histograms: _Table[_Histogram] = _Table(self._max_series)

    def increment(self, name: str, value: int, labels: Mapping[str, str]) -> None:
        """Add to a counter; ``ConfigurationError`` for less than zero, or a label that is not text."""
        if not 0 <= value < math.inf:
            raise ConfigurationError(f"{name} cannot grow by {value!r}: a counter only rises; use a gauge")
        with self._lock:
            series, key = self._counters.place(name, labels)
            series[key] = series.get(key, 0) + value

    def gauge(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge; ``ConfigurationError`` for NaN, infinity, or a label that is not text."""
        _check_finite(name, value)
        with self._lock:
            series, key = self._gauges.place(name, labels)
            series[key] = value

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add one measurement; ``ConfigurationError`` for NaN, infinity, or a label that is not text.

        A negative one counts as zero: it is a duration, and the clock was set back meanwhile.
        """
        _check_finite(name, value)
        with self._lock:
            series, key = self._histograms.place(name, labels)
            histogram = series.get(key)
            if histogram is None:
                histogram = series[key] = _Histogram(self._bounds)
            histogram.add(max(0.0, value))

    def counter(self, name: str, /, **labels: str) -> int:
        """Return the sum over all series of a counter that carry these labels; 0 when there are none."""
        with self._lock:
            return sum(self._counters.carrying(name, labels))

    def gauge_value(self, name: str, /, **labels: str) -> float | None:
        """Return what the gauge with exactly these labels was set to last; None when it never was."""
        with self._lock:
            return self._gauges.by_name.get(name, {}).get(frozenset(labels.items()))

    def histogram(self, name: str, /, **labels: str) -> HistogramSnapshot:
        """Return the measurements of all series of a histogram that carry these labels, taken together."""
        return self._merged(name, labels).snapshot()

    def quantile(self, name: str, q: float, /, **labels: str) -> float:
        """Estimate what a part ``q`` of the measurements does not exceed; 0 when there are none.

        The estimate lies in the same bucket as the true value; the smallest (``q=0``) and the largest
        (``q=1``) are exact. ``ConfigurationError`` for a ``q`` outside of these.
        """
        if not 0 <= q <= 1:
            raise ConfigurationError(f"q={q!r} makes no sense; it is a number from 0 to 1, such as 0.99")
        return self._merged(name, labels).quantile(q)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Return everything at this moment as JSON values, by kind and by series.

        A series is named as in ``jobs_total{queue="mail"}``: labels sorted, values as JSON text, so that
        no two series have the same name.
        """
        with self._lock:
            counters, gauges = self._counters.flat(), self._gauges.flat()
            histograms = [(name, key, self._sum([one])) for name, key, one in self._histograms.flat()]
        return {
            "counters": {_series_name(name, key): value for name, key, value in counters},
            "gauges": {_series_name(name, key): value for name, key, value in gauges},
            "histograms": {_series_name(name, key): asdict(one.snapshot()) for name, key, one in histograms},
        }

    def _merged(self, name: str, labels: Mapping[str, str]) -> _Histogram:
        with self._lock:
            return self._sum(self._histograms.carrying(name, labels))

    def _sum(self, histograms: Iterable[_Histogram]) -> _Histogram:
        total = _Histogram(self._bounds)
        for histogram in histograms:
            total.merge(histogram)
        return total


class CallbackMetrics:
    """Hands every measurement to a function: ``callback(kind, name, value, labels)``.

    Raises:
        ConfigurationError: for what cannot be called, or is async and would never run.
    """

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[Kind, str, float, dict[str, str]], object]) -> None:
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise ConfigurationError(
                f"{shown(callback)} is no callback; pass a plain function of kind, name, value and labels"
            )
        self._callback = callback

    def increment(self, name: str, value: int, labels: Mapping[str, str]) -> None:
        """Call back with the kind "counter"."""
        self._callback("counter", name, value, dict(labels))

    def gauge(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Call back with the kind "gauge"."""
        self._callback("gauge", name, value, dict(labels))

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Call back with the kind "histogram"."""
        self._callback("histogram", name, value, dict(labels))


class NoopMetrics:
    """Measures nothing: for code that wants a back end where none is wished for."""

    __slots__ = ()

    def increment(self, name: str, value: int, labels: Mapping[str, str]) -> None:
        """Do nothing."""

    def gauge(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Do nothing."""

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Elapsed:
    """How long a block took."""

    # Mutable: set when the block ends.
    seconds: float = 0.0


@contextmanager
def elapsed() -> Iterator[Elapsed]:
    """Time a block, also one that raises.

    Examples:
        >>> with elapsed() as timer:
        ...     total = sum(range(100))
        >>> timer.seconds > 0
        True
    """
    timer = Elapsed()
    started = perf_counter()
    try:
        yield timer
    finally:
        timer.seconds = perf_counter() - started


def _rising(buckets: Sequence[float]) -> tuple[float, ...]:
    bounds = tuple(float(bound) for bound in buckets)
    rising = all(low < high for low, high in zip((0.0, *bounds), (*bounds, math.inf), strict=True))
    if not bounds or not rising:
        raise ConfigurationError(
            f"buckets={shown(buckets)} makes no sense; pass seconds above 0, each more than the last"
        )
    return bounds


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ConfigurationError(f"{name} cannot be {value!r}, which JSON cannot hold; leave the measurement out")


def _series_name(name: str, labels: _Labels) -> str:
    pairs = ",".join(f"{_word(label)}={json.dumps(value)}" for label, value in sorted(labels))
    return f"{_word(name)}{{{pairs}}}" if pairs else _word(name)


def _word(text: str) -> str:
    return text if _IDENTIFIER.fullmatch(text) else json.dumps(text)
