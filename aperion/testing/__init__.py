"""What users need in their tests: a recorder of events, tools around a bus, and a pytest plugin that brings them."""

from aperion.testing.clock import VirtualClock, virtual_time
from aperion.testing.fakes import fake
from aperion.testing.faults import Fault, Faults, duplicated, failing
from aperion.testing.isolation import call
from aperion.testing.leaks import no_leaks
from aperion.testing.recorder import Recorder, recording

__all__ = [
    "Fault",
    "Faults",
    "Recorder",
    "VirtualClock",
    "call",
    "duplicated",
    "failing",
    "fake",
    "no_leaks",
    "recording",
    "virtual_time",
]
