"""Whether OpenTelemetry's SDK is set up in this process; asking loads nothing that is not loaded."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


def tracer_provider() -> TracerProvider | None:
    """Return the global tracer provider, unless it is one of those that stand for none."""
    if not _may_be_set_up("opentelemetry.trace", "OTEL_PYTHON_TRACER_PROVIDER"):
        return None
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    return None if type(provider).__module__.startswith("opentelemetry.trace") else provider


def meter_provider() -> MeterProvider | None:
    """Return the global meter provider, unless it is one of those that stand for none."""
    if not _may_be_set_up("opentelemetry.metrics", "OTEL_PYTHON_METER_PROVIDER"):
        return None
    from opentelemetry import metrics

    provider = metrics.get_meter_provider()
    return None if type(provider).__module__.startswith("opentelemetry.metrics") else provider


def _may_be_set_up(module: str, variable: str) -> bool:
    """Tell whether the API was loaded, without which nobody can have set a provider, or will be by its variable."""
    return module in sys.modules or variable in os.environ
