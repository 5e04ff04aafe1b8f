"""Prometheus: a metrics back end, and the page that a server scrapes.

>>> from aperion import EventBus
>>> metrics = PrometheusMetrics()
>>> bus = EventBus(metrics=metrics)
>>> app = metrics.app()  # mount it where Prometheus looks: FastAPI().mount("/metrics", metrics.app())
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakKeyDictionary

from aperion.errors import ConfigurationError, positive, shown
from aperion.instruments import INSTRUMENTS
from aperion.metrics import DEFAULT_BUCKETS

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_asgi_app
except ImportError as error:
    raise ImportError(
        "aperion.integrations.prometheus needs prometheus_client, which cannot be imported; "
        'run: pip install "aperion-bus[prometheus]"'
    ) from error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aperion.instruments import Kind
    from aperion.integrations.asgi import ASGIApp

__all__ = ["PrometheusMetrics"]

_OVERFLOW: Final = "overflow"
_BY_NAME: Final = {instrument.name: instrument for instrument in INSTRUMENTS}
_TYPES: Final = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
_Made = dict[str, Any]
# A registry takes each name once, so that all back ends on one registry share what is there.
_made: WeakKeyDictionary[CollectorRegistry, _Made] = WeakKeyDictionary()
_lock = threading.Lock()


class PrometheusMetrics:
    """Keeps every measurement where Prometheus can scrape it; for any number of buses, from any thread.

    Names and labels are those of ``aperion.instruments``. Each name may have ``max_series`` sets of label
    values; what comes with others is added up in one series whose labels are all ``"overflow"``, so that
    sums stay exact.

    Args:
        registry: where the metrics are; one of their own if None. Pass ``prometheus_client.REGISTRY`` to have
            them beside those of the process. Several back ends on one registry share what is there.
        buckets: upper bounds of the histograms' buckets in seconds, rising.
        max_series: sets of label values for each name.

    Raises:
        ConfigurationError: for a ``max_series`` below 1.
    """

    # Mutable: the series that are known, and their number by name, under _lock.
    __slots__ = ("_buckets", "_lock", "_max_series", "_numbers", "_series", "registry")

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        buckets: Sequence[float] = DEFAULT_BUCKETS,
        max_series: int = 1_000,
    ) -> None:
        positive("max_series", max_series, whole=True)
        self.registry = CollectorRegistry() if registry is None else registry
        self._buckets = tuple(buckets)
        self._max_series = max_series
        self._lock = threading.Lock()
        self._series: dict[tuple[Kind, str, tuple[tuple[str, str], ...]], Any] = {}
        self._numbers: dict[str, int] = {}

    def increment(self, name: str, value: int, labels: Mapping[str, str]) -> None:
        """Add to a counter."""
        self._one(name, "counter", labels).inc(value)

    def gauge(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""
        self._one(name, "gauge", labels).set(value)

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add one measurement to a histogram; a negative one counts as zero, since the clock was set back."""
        self._one(name, "histogram", labels).observe(max(0.0, value))

    def app(self) -> ASGIApp:
        """Return an ASGI application that shows the metrics, as text or as OpenMetrics, compressed if asked for."""
        return cast("ASGIApp", make_asgi_app(registry=self.registry))

    def _one(self, name: str, kind: Kind, labels: Mapping[str, str]) -> Any:
        """Return the series of a measurement; most calls find it in one look."""
        key = (kind, name, tuple(labels.items()))
        found = self._series.get(key)
        if found is not None:
            return found
        with self._lock:
            family = self._family(name, kind, labels)
            if not labels:
                self._series[key] = family
                return family
            number = self._numbers.get(name, 0)
            if number >= self._max_series:
                return family.labels(**dict.fromkeys(labels, _OVERFLOW))
            self._numbers[name] = number + 1
            self._series[key] = series = family.labels(**labels)
            return series

    def _family(self, name: str, kind: Kind, labels: Mapping[str, str]) -> Any:
        """Return what all series of a name belong to, made at its first use.

        Raises:
            ConfigurationError: for a name with other labels than before, of another kind, or that is taken.
        """
        with _lock:
            made = _made.setdefault(self.registry, {})
            if name not in made:
                made[name] = self._new(name, kind, labels)
        family = made[name]
        if not isinstance(family, _TYPES[kind]) or set(family._labelnames) != set(labels):
            raise ConfigurationError(
                f"{name} is a {type(family).__name__.lower()} with the labels {shown(family._labelnames)}, and was now "
                f"told as a {kind} with {shown(tuple(labels))}; Prometheus wants both to stay the same"
            )
        return family

    def _new(self, name: str, kind: Kind, labels: Mapping[str, str]) -> Any:
        known = _BY_NAME.get(name)
        description = known.description if known is not None else name
        names = known.labels if known is not None else tuple(sorted(labels))
        options = {"buckets": self._buckets} if kind == "histogram" else {}
        try:
            return _TYPES[kind](name, description, names, registry=self.registry, **options)
        except ValueError as error:
            raise ConfigurationError(f"the registry does not take {name}: {error}; use a registry of its own") from None
