"""Start the workers, one at a time, rounds of all peers interleaved."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired, run
from typing import TYPE_CHECKING, Any

from benchmarks.results import Results, State
from benchmarks.scale import SCALES
from benchmarks.scenarios import SCENARIOS
from benchmarks.worker import ABOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[1]
DEADLINE = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure, and how often."""

    scenarios: Sequence[str]
    peers: Sequence[str]
    scale: str
    rounds: int
    uvloop: bool = False


def measure(plan: Plan, tell: Callable[[str], None]) -> Results:
    """Carry out the plan; ``tell`` hears of each step."""
    results = Results(environment=_environment(plan))
    for peer in plan.peers:
        tell(f"looking for {peer}")
        _introduce(results, plan, peer)
    steps = list(_steps(plan, list(results.peers)))
    for number, (scenario, peer) in enumerate(steps, start=1):
        tell(f"{number}/{len(steps)} {scenario}, {peer}")
        cell = results.cell(scenario, peer)
        if cell.state is State.MEASURED:
            cell.take(_ask(plan, scenario, peer))
    return results


def _introduce(results: Results, plan: Plan, peer: str) -> None:
    answer = _ask(plan, ABOUT, peer)
    if "about" in answer:
        results.peers[peer] = answer["about"]
    else:
        results.absent[peer] = answer.get("absent") or answer["failed"]


def _steps(plan: Plan, peers: list[str]) -> Iterator[tuple[str, str]]:
    for scenario in plan.scenarios:
        for _ in range(1 if SCENARIOS[scenario].once else plan.rounds):
            for peer in peers:
                yield scenario, peer


def _ask(plan: Plan, scenario: str, peer: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.worker", scenario, peer, "--scale", plan.scale]
    if plan.uvloop:
        command.append("--uvloop")
    try:
        done = run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    except TimeoutExpired:
        return {"failed": f"took more than {DEADLINE:.0f} s"}
    if done.returncode == 0 and done.stdout:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}


def _environment(plan: Plan) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "loop": "uvloop" if plan.uvloop else "asyncio",
        "scale": plan.scale,
        "rounds": plan.rounds,
        "seconds": SCALES[plan.scale].seconds,
    }
