"""Turn results into plain text and JSON."""

# ruff: noqa: RUF001, RUF003 - × and – are meant
from __future__ import annotations

import json
from textwrap import fill
from typing import TYPE_CHECKING

from benchmarks.budgets import verdicts
from benchmarks.results import State
from benchmarks.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.budgets import Verdict
    from benchmarks.results import Cell, Results
    from benchmarks.scenarios import Scenario

WIDTH = 110
YARDSTICKS = ("bare", "to_thread")  # not shown where they have nothing to measure


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    lines = [headings, ["─" * width for width in widths], *rows]
    return "\n".join("  ".join(_cell(line, widths, column) for column in range(len(widths))).rstrip() for line in lines)


def _cell(line: list[str], widths: list[int], column: int) -> str:
    return line[column].ljust(widths[column]) if column == 0 else line[column].rjust(widths[column])


def text(results: Results) -> str:
    """Return the whole report."""
    parts = [_heading(results)]
    parts += [_scenario(SCENARIOS[name], results) for name in results.cells]
    parts += [_legend(results), _budgets(results), *failures(results)]
    return "\n\n".join(part for part in parts if part)


def _heading(results: Results) -> str:
    about = results.environment
    return (
        f"{about['implementation']} {about['python']}, {about['system']}, {about['cores']} cores, {about['loop']}; "
        f"medians, {about['rounds']} × {about['seconds']} s"
    )


def _scenario(scenario: Scenario, results: Results) -> str:
    cells = ranked(scenario, results)
    headings = ["peer", *(column.heading for column in scenario.columns)]
    rows = [[peer, *_figures(scenario, cell)] for peer, cell in cells if peer not in YARDSTICKS or cell.rounds]
    return f"{scenario.name}: {scenario.title}\n\n{table(headings, rows)}"


def ranked(scenario: Scenario, results: Results) -> list[tuple[str, Cell]]:
    """Return the cells, best first, those without figures last."""
    key, sign = scenario.columns[0].key, -1 if scenario.most_first else 1

    def rank(item: tuple[str, Cell]) -> tuple[bool, float]:
        value = item[1].median(key)
        return value is None, sign * (value or 0)

    return sorted(results.cells.get(scenario.name, {}).items(), key=rank)


def _figures(scenario: Scenario, cell: Cell) -> list[str]:
    if cell.state is State.FAILED:
        return ["failed", *[""] * (len(scenario.columns) - 1)]
    values = [(column, cell.median(column.key)) for column in scenario.columns]
    return ["–" if value is None else column.show(value) for column, value in values]


def _legend(results: Results) -> str:
    lines = ["what the peers do"]
    for name, about in results.peers.items():
        title = f"{name} {about['version']}".strip()
        lines.append(fill(f"{title}: {about['does']}", WIDTH, initial_indent="  ", subsequent_indent="    "))
    lines += [f"  {name}: absent ({reason})" for name, reason in results.absent.items()]
    return "\n".join(lines)


def _budgets(results: Results) -> str:
    rows = [
        [v.budget.what, v.budget.promise(), v.budget.show(v.value), f"{v.share:.2f}", str(v)] for v in verdicts(results)
    ]
    if not rows:
        return ""
    return f"budgets\n\n{table(['what', 'budget', 'figure', 'used', 'verdict'], rows)}"


def failures(results: Results) -> list[str]:
    """Return the paragraph about what broke, if anything did."""
    lines = results.failures()
    return ["failed\n" + "\n".join(f"  {line}" for line in lines)] if lines else []


def write_json(results: Results, path: Path, found: Sequence[Verdict]) -> None:
    """Write everything, every round included, and the verdicts."""
    budgets = [
        {
            "what": verdict.budget.what,
            "budget": verdict.budget.promise(),
            "figure": verdict.value,
            "used": verdict.share,
            "kept": verdict.kept,
        }
        for verdict in found
    ]
    path.write_text(json.dumps({**results.to_dict(), "budgets": budgets}, indent=2) + "\n")
