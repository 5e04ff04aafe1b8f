"""What users need in their tests: a recorder of events, and a pytest plugin that brings it."""

from aperion.testing.recorder import Recorder, recording

__all__ = ["Recorder", "recording"]
