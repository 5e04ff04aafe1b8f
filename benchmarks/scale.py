"""How much to measure: in full, quickly, or just enough for the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The sizes of every scenario."""

    rounds: int
    seconds: float  # per figure and round
    patience: float  # what one batch or a memory run may take before it is cut short, in seconds
    events: int
    emitters: int
    strangers: tuple[int, int]
    steady_seconds: float
    pending: int
    growth: int
    imports: int
    text: int


FULL = Scale(
    rounds=5,
    seconds=0.5,
    patience=60,
    events=10_000,
    emitters=100,
    strangers=(1_000, 10_000),
    steady_seconds=5,
    pending=5_000,
    growth=1_000_000,
    imports=15,
    text=50_000,
)
QUICK = Scale(
    rounds=3,
    seconds=0.2,
    patience=2,
    events=10_000,
    emitters=100,
    strangers=(1_000, 10_000),
    steady_seconds=2,
    pending=5_000,
    growth=100_000,
    imports=5,
    text=50_000,
)
TINY = Scale(
    rounds=1,
    seconds=0.005,
    patience=0.1,
    events=50,
    emitters=5,
    strangers=(10, 20),
    steady_seconds=0.05,
    pending=20,
    growth=100,
    imports=1,
    text=500,
)
SCALES = {"full": FULL, "quick": QUICK, "tiny": TINY}
