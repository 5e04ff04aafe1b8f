"""The runtime of a bus: admission, queue, workers, timeouts, settlement. It owns the bus's tasks."""

from aperion._runtime.runtime import Runtime
from aperion._runtime.settings import BusState, DrainReport, OverflowPolicy, Settings

__all__ = ["BusState", "DrainReport", "OverflowPolicy", "Runtime", "Settings"]
