"""Sets OpenTelemetry's SDK up for a process, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aperion._telemetry import configured
from aperion.errors import ConfigurationError, shown

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The SDK as ``configure`` has set it up; ``with configure(...):`` shuts it down at the end."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider

    def flush(self, timeout: float = 10.0) -> bool:
        """Send what waits to be sent; return whether all of it went out within ``timeout`` seconds. Blocks."""
        millis = int(timeout * 1000)
        return self.tracer_provider.force_flush(millis) and self.meter_provider.force_flush(millis)

    def shutdown(self) -> None:
        """Send what waits to be sent, and send nothing more. Blocks. Exiting the process does it, too."""
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()

    def __enter__(self) -> Self:
        """Begin a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shut down."""
        self.shutdown()


def configure(
    *,
    service_name: str,
    otlp: bool | str = False,
    console: bool = False,
    sample: float = 1.0,
    attributes: dict[str, str] | None = None,
    metrics_every: float = 60.0,
) -> Telemetry:
    """Set OpenTelemetry up for this process: traces and metrics, for what buses do and for all else.

    Call it before the first bus starts. Traces that came with a request are sampled as their sender
    decided, others by ``sample``.

    Args:
        service_name: what the service is called in traces and metrics.
        otlp: whether to send over OTLP/HTTP, which needs the extra ``otlp``: True for where the variables
            ``OTEL_EXPORTER_OTLP_…`` say (by default this machine, port 4318), or the URL of a collector.
        console: whether to print spans as they end and metrics as they are read, for development.
        sample: the part of the traces that begin here which is kept, 0 to 1.
        attributes: more attributes of the resource, such as ``{"service.version": "1.2"}``.
        metrics_every: seconds between two readings of the metrics.

    Raises:
        ConfigurationError: for an option that makes no sense, a missing extra, or where the process has a
            provider already: OpenTelemetry takes one, and would ignore this one.
    """
    if not isinstance(service_name, str) or not service_name.strip():
        raise ConfigurationError(f"service_name={shown(service_name)} is no name; pass what the service is called")
    if isinstance(sample, bool) or not isinstance(sample, int | float) or not 0 <= sample <= 1:
        raise ConfigurationError(f"sample={shown(sample)} makes no sense; pass the part of traces to keep, 0 to 1")
    if not metrics_every > 0:
        raise ConfigurationError(f"metrics_every={metrics_every!r} makes no sense; it is a number of seconds above 0")
    _check_unset()
    resource = _resource(service_name, attributes or {})
    telemetry = Telemetry(
        _tracer_provider(resource, otlp, sample, console=console),
        _meter_provider(resource, otlp, metrics_every, console=console),
    )
    from opentelemetry import metrics, trace

    trace.set_tracer_provider(telemetry.tracer_provider)
    metrics.set_meter_provider(telemetry.meter_provider)
    return telemetry


def _check_unset() -> None:
    found = configured.tracer_provider() or configured.meter_provider()
    if found is not None:
        raise ConfigurationError(
            f"OpenTelemetry is set up already, with {type(found).__qualname__}, and takes one provider a process; "
            "call configure() once, or leave it out where something else sets OpenTelemetry up"
        )


def _resource(service_name: str, attributes: dict[str, str]) -> Resource:
    from opentelemetry.sdk.resources import Resource

    return Resource.create({**attributes, "service.name": service_name})


def _tracer_provider(resource: Resource, otlp: bool | str, sample: float, *, console: bool) -> TracerProvider:  # noqa: FBT001 - as it was passed
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    exporter = _otlp("trace", "OTLPSpanExporter", "traces", otlp) if otlp else None
    provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(sample)))
    if console:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _meter_provider(resource: Resource, otlp: bool | str, every: float, *, console: bool) -> MeterProvider:  # noqa: FBT001 - as it was passed
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

    exporters = [ConsoleMetricExporter()] if console else []
    if otlp:
        exporters.append(_otlp("metric", "OTLPMetricExporter", "metrics", otlp))
    readers = [PeriodicExportingMetricReader(each, every * 1000) for each in exporters]
    return MeterProvider(readers, resource)


def _otlp(module: str, name: str, signal: str, otlp: bool | str) -> Any:  # noqa: FBT001 - as it was passed
    from importlib import import_module

    try:
        exporter = getattr(import_module(f"opentelemetry.exporter.otlp.proto.http.{module}_exporter"), name)
    except ImportError as error:
        raise ConfigurationError(
            'otlp= needs the exporter over HTTP, which cannot be imported; run: pip install "aperion-bus[otlp]"'
        ) from error
    if otlp is True:
        return exporter()
    if not isinstance(otlp, str) or not otlp.startswith(("http://", "https://")):
        raise ConfigurationError(f"otlp={shown(otlp)} is no address; pass True, or a URL like http://collector:4318")
    return exporter(endpoint=f"{otlp.rstrip('/')}/v1/{signal}")
