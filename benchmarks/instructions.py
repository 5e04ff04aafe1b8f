"""Count the instructions of an event with callgrind: ``python -m benchmarks --instructions``.

A time tells as much of the machine and its mood as of the program; a count is nearly the same every time, so that a
change of a few percent can be seen. It leaves out what a time has: memory that is far away, and waiting.
"""

# ruff: noqa: RUF001, RUF003 - × is meant
from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from subprocess import CompletedProcess, TimeoutExpired, run
from typing import TYPE_CHECKING, Any

from benchmarks.budgets import COUNTS, OURS, verdicts
from benchmarks.outside import FLOOR
from benchmarks.payloads import MOST, SORTS
from benchmarks.report import failures, table
from benchmarks.results import Results
from benchmarks.runner import DEADLINE, ROOT
from benchmarks.scenarios import thousands, times, times_exactly

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.budgets import Verdict

TOOL = "valgrind"
MISSING = f"--instructions needs {TOOL}, which counts them, and it is not installed: try apt-get install {TOOL}"
AT_ONCE = 2  # processes; more than cores would only delay each other
_COLLECTED = re.compile(r"^==\d+== Collected\s*:\s*(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table, which is counted with two counts of events, or, without any, as whole programs."""

    what: str
    few: int = 300
    many: int = 1_300


ROWS: Mapping[str, Row] = {
    "bare": Row(what="await handler(event), bare"),
    "mapping": Row(what="dispatch, from a mapping"),
    "model": Row(what="dispatch, a fresh model"),
    "pydantic": Row(what="the fresh model alone"),
    "ten": Row(what="dispatch, ten handlers"),
    "emit": Row(what="emit and drain"),
    "audit": Row(what="with audit log"),
    "redact": Row(what="with log and redaction, nothing to hide"),
    "private": Row(what="with log and redaction, much to hide"),
    "redactor": Row(what="a disabled redactor alone"),
    **{
        f"redact_{name}": Row(what=f"the redactor alone, {sort.what}", few=100, many=MOST)
        for name, sort in SORTS.items()
    },
    "import": Row(what="import aperion, against what it needs anyway (floor)", few=0, many=0),
}


def is_available() -> bool:
    """Tell whether there is something to count with."""
    return shutil.which(TOOL) is not None


# Counting


def count(names: Sequence[str], tell: Callable[[str], None]) -> Results:
    """Count what is named, two processes at a time; ``tell`` hears of each step."""
    results = Results(environment=_environment())
    with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
        answers = {name: pool.submit(_answer, name) for name in names}
        for number, (name, answer) in enumerate(answers.items(), start=1):
            tell(f"{number}/{len(answers)} instructions, {name}")
            results.cell(name, OURS).take(answer.result())
    _compare(results)
    return results


def _answer(name: str) -> dict[str, Any]:
    try:
        return {"figures": _imported() if name == "import" else _repeated(name, ROWS[name])}
    except (ValueError, TimeoutExpired) as error:
        return {"failed": str(error)}


def _repeated(name: str, row: Row) -> dict[str, float]:
    few, many = (_counted("-m", "benchmarks.counting", name, str(events)) for events in (row.few, row.many))
    return {"thousands": (many - few) / (row.many - row.few) / 1_000}


def _imported() -> dict[str, float]:
    """Count whole programs that do nothing but import, the start of Python included in both."""
    whole, floor = (_counted("-c", statement) for statement in ("import aperion", FLOOR))
    return {"thousands": whole / 1_000, "floor": floor / 1_000, "growth": whole / floor}


def _counted(*arguments: str) -> int:
    """Run Python once for the byte code that it leaves, and once to count its instructions, of all its threads."""
    command = [sys.executable, *arguments]
    _run(command)
    return collected(_run([TOOL, "--tool=callgrind", "--callgrind-out-file=/dev/null", *command]))


def _run(command: list[str]) -> CompletedProcess[str]:
    # Hashes alike in each process, and nothing of what the caller may have set up for Python or for the bus.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "APERION"))}
    environment = {**kept, "PYTHONHASHSEED": "0"}
    return run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False)


def collected(done: CompletedProcess[str]) -> int:
    """Return the instructions that callgrind tells at its end.

    Raises:
        ValueError: when the program failed, or callgrind said nothing.

    """
    found: list[str] = _COLLECTED.findall(done.stderr)
    if done.returncode == 0 and found:
        return int(found[-1])
    said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("==")]
    raise ValueError(said[-1] if said else f"exit code {done.returncode}, and no count")


def _compare(results: Results) -> None:
    bare = results.figure("bare", OURS, "thousands")
    for row in results.cells.values():
        for figures in row[OURS].rounds:
            if bare and "growth" not in figures:
                figures["ratio"] = figures["thousands"] / bare


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "loop": "asyncio",
    }


# The report


def judged(results: Results) -> list[Verdict]:
    """Return a verdict for each budget of instructions that was counted."""
    return verdicts(results, COUNTS.values())


def text(results: Results) -> str:
    """Return the whole report."""
    about = results.environment
    heading = (
        f"{about['implementation']} {about['python']}, {about['system']}, {about['loop']}; "
        f"thousands of instructions an event, counted by callgrind"
    )
    return "\n\n".join([heading, _table(results), *failures(results)])


def _table(results: Results) -> str:
    headings = ["what", "thousand instructions", "× bare", "budget", "used", "verdict"]
    found = {verdict.budget: verdict for verdict in judged(results)}
    rows = [[ROWS[name].what, *_figures(results, name), *_judgement(results, name, found)] for name in results.cells]
    return table(headings, rows)


def _figures(results: Results, name: str) -> list[str]:
    value, ratio, growth = (results.figure(name, OURS, key) for key in ("thousands", "ratio", "growth"))
    if value is None:
        return ["failed", "–"]
    compared = "–" if ratio is None else times(ratio)
    return [thousands(value), compared if growth is None else f"floor {times_exactly(growth)}"]


def _judgement(results: Results, name: str, found: Mapping[Any, Verdict]) -> list[str]:
    verdict = found.get(COUNTS.get(name))
    if verdict is None:
        return ["–"] * 3
    return [verdict.budget.promise(), f"{verdict.share:.2f}", str(verdict)]
