"""The measurements of a bus, through OpenTelemetry's metrics API."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from aperion.errors import ConfigurationError
from aperion.instruments import DELIVERIES, DURATION, EMITTED, EMITTING, INSTRUMENTS, Instrument
from aperion.metrics import DEFAULT_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.metrics import MeterProvider

_OK = "ok"
_OVERFLOW: Final = {"overflow": "true"}
# What the semantic conventions for messaging (version 1.40.0, status "development") have a name for.
_CONVENTIONAL: Final = {
    EMITTED: ("messaging.client.sent.messages", "{message}", "send"),
    EMITTING: ("messaging.client.operation.duration", "s", "send"),
    DELIVERIES: ("messaging.client.consumed.messages", "{message}", "process"),
    DURATION: ("messaging.process.duration", "s", "process"),
}
_LABELS: Final = {
    "event_type": "messaging.destination.name",
    "subscription": "messaging.destination.subscription.name",
}
_UNITS: Final = {"_seconds": "s", "_bytes": "By"}
BUCKETS: Final = tuple(
    sorted({*DEFAULT_BUCKETS, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10})
)
"""Upper bounds in seconds: those that the conventions advise, and finer ones from 50 µs."""


class OpenTelemetryMetrics:
    """Hands every measurement to OpenTelemetry; a bus without ``metrics`` uses it where an SDK is configured.

    What the semantic conventions for messaging name has that name and their attributes; the rest is
    ``aperion.…``, see ``names``. Each instrument may have ``max_series`` sets of attributes; what comes with
    others is added up in one series with ``overflow="true"``.

    Args:
        meter_provider: where measurements go; the global provider if None.
        max_series: sets of attributes for each name.

    Raises:
        ConfigurationError: for a ``max_series`` below 1.
    """

    # Mutable: the instruments, made at their first use, and the known sets of attributes; under _lock.
    __slots__ = ("_instruments", "_known", "_lock", "_max_series", "_meter")

    def __init__(self, meter_provider: MeterProvider | None = None, *, max_series: int = 1_000) -> None:
        if not max_series >= 1:
            raise ConfigurationError(f"max_series={max_series!r} makes no sense; it is a whole number above 0")
        from opentelemetry import metrics

        provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
        self._meter = provider.get_meter("aperion", schema_url="https://opentelemetry.io/schemas/1.40.0")
        self._max_series = max_series
        self._lock = threading.Lock()
        self._instruments: dict[str, Any] = {}
        self._known: dict[str, dict[frozenset[tuple[str, str]], dict[str, str]]] = {}

    def increment(self, name: str, value: int, labels: Mapping[str, str]) -> None:
        """Add to a counter."""
        self._instrument(name, "counter").add(value, self._attributes(name, labels))

    def gauge(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""
        self._instrument(name, "gauge").set(value, self._attributes(name, labels))

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add one measurement to a histogram; a negative one counts as zero, since the clock was set back."""
        self._instrument(name, "histogram").record(max(0.0, value), self._attributes(name, labels))

    def _instrument(self, name: str, kind: str) -> Any:
        instrument = self._instruments.get(name)
        if instrument is None:
            with self._lock:
                instrument = self._instruments[name] = self._instruments.get(name) or self._made(name, kind)
        return instrument

    def _made(self, name: str, kind: str) -> Any:
        known = _BY_NAME.get(name)
        told, unit = (otel_name(known), otel_unit(known)) if known is not None else (name, "")
        description = known.description if known is not None else ""
        if kind == "histogram":
            return self._meter.create_histogram(told, unit, description, explicit_bucket_boundaries_advisory=BUCKETS)
        make = self._meter.create_counter if kind == "counter" else self._meter.create_gauge
        return make(told, unit, description)

    def _attributes(self, name: str, labels: Mapping[str, str]) -> dict[str, str]:
        """Return the attributes of a series, each set made once, and those of the overflow beyond the bound."""
        key = frozenset(labels.items())
        known = self._known.get(name)
        attributes = known.get(key) if known is not None else None
        if attributes is not None:
            return attributes
        with self._lock:
            known = self._known.setdefault(name, {})
            if len(known) >= self._max_series:
                return _OVERFLOW
            return known.setdefault(key, attributes_of(name, labels))


def otel_name(instrument: Instrument) -> str:
    """Return under which name OpenTelemetry gets an instrument."""
    if instrument in _CONVENTIONAL:
        return _CONVENTIONAL[instrument][0]
    words = instrument.name.removeprefix("aperion_").removesuffix("_total")
    for ending in _UNITS:
        words = words.removesuffix(ending)
    return f"aperion.{words}"


def otel_unit(instrument: Instrument) -> str:
    """Return the unit of an instrument, in UCUM's notation, as OpenTelemetry wants it."""
    if instrument in _CONVENTIONAL:
        return _CONVENTIONAL[instrument][1]
    return next((unit for ending, unit in _UNITS.items() if instrument.name.endswith(ending)), "1")


def attributes_of(name: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a measurement as OpenTelemetry's attributes."""
    known = _BY_NAME.get(name)
    if known is None:
        return dict(labels)
    attributes = {_LABELS.get(label, f"aperion.{label}"): value for label, value in labels.items()}
    if known not in _CONVENTIONAL:
        return attributes
    operation = _CONVENTIONAL[known][2]
    attributes |= {"messaging.system": "aperion", "messaging.operation.name": operation}
    attributes["messaging.operation.type"] = operation
    outcome = labels.get("outcome", _OK)
    if outcome != _OK:
        attributes["error.type"] = outcome.replace(" ", "_")
    return attributes


_BY_NAME: Final = {instrument.name: instrument for instrument in INSTRUMENTS}
