"""What was measured: per scenario and peer the figures of every round, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Any


class State(Enum):
    """How the measurement of one scenario of one peer ended."""

    MEASURED = "measured"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


@dataclass(slots=True, kw_only=True)
class Cell:
    """One scenario of one peer. Grows by a round at a time."""

    state: State = State.MEASURED
    reason: str = ""
    rounds: list[dict[str, float]] = field(default_factory=list)

    def take(self, answer: dict[str, Any]) -> None:
        """Add a worker's answer."""
        if "figures" in answer:
            self.rounds.append(answer["figures"])
            return
        self.state = State.UNSUPPORTED if "unsupported" in answer else State.FAILED
        self.reason = answer.get("unsupported") or answer.get("absent") or answer.get("failed", "")

    def median(self, key: str) -> float | None:
        """Return the median round's figure, or None where it was not measured."""
        if self.state is not State.MEASURED or not self.rounds:
            return None
        values = [figures[key] for figures in self.rounds if key in figures]
        return median(values) if values else None


@dataclass(slots=True, kw_only=True)
class Results:
    """Everything that one run found out."""

    environment: dict[str, Any]
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def cell(self, scenario: str, peer: str) -> Cell:
        """Return the cell, made at first use."""
        return self.cells.setdefault(scenario, {}).setdefault(peer, Cell())

    def figure(self, scenario: str, peer: str, key: str) -> float | None:
        """Return one median figure, or None."""
        cell = self.cells.get(scenario, {}).get(peer)
        return None if cell is None else cell.median(key)

    def failures(self) -> list[str]:
        """Return a line for each measurement that broke."""
        return [
            f"{scenario}, {peer}: {cell.reason}"
            for scenario, row in self.cells.items()
            for peer, cell in row.items()
            if cell.state is State.FAILED
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "environment": self.environment,
            "peers": self.peers,
            "absent": self.absent,
            "scenarios": {name: {peer: _plain(cell) for peer, cell in row.items()} for name, row in self.cells.items()},
        }


def _plain(cell: Cell) -> dict[str, Any]:
    keys = cell.rounds[0] if cell.rounds else {}
    return {
        "state": cell.state.value,
        "reason": cell.reason,
        "median": {key: cell.median(key) for key in keys},
        "rounds": cell.rounds,
    }
