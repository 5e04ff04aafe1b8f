"""Draw the results: horizontal bars on a logarithmic scale, readable on light and on dark."""

from __future__ import annotations

from html import escape
from math import floor, log10
from typing import TYPE_CHECKING

from benchmarks.budgets import OURS
from benchmarks.report import YARDSTICKS, ranked
from benchmarks.scenarios import SCENARIOS

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.results import Results
    from benchmarks.scenarios import Scenario

SHOWN = ("dispatch", "emit", "audit", "redact_private", "latency")
WIDTH, LEFT, RIGHT, BAR, GAP, TITLE = 760, 110, 110, 18, 6, 46
STYLE = """
  text { font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #24292f }
  .title { font-weight: 600 }
  .note { fill: #57606a; font-size: 12px }
  .bar { fill: #8c959f }
  .ours { fill: #0969da }
  .grid { stroke: #d0d7de; stroke-width: 1 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .note { fill: #9198a1 }
    .bar { fill: #656c76 }
    .ours { fill: #4493f8 }
    .grid { stroke: #3d444d }
  }
"""


def write_chart(results: Results, path: Path) -> None:
    """Write the chart of the scenarios that were measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(draw(results))


def draw(results: Results) -> str:
    """Return the chart as SVG."""
    top, parts = 16, []
    for name in SHOWN:
        bars = _bars(SCENARIOS[name], results)
        if bars:
            parts += _panel(SCENARIOS[name], bars, top)
            top += TITLE + len(bars) * (BAR + GAP) + 20
    about = results.environment
    note = f"{about['implementation']} {about['python']}, {about['loop']}, medians of {about['rounds']}; log scale"
    parts.append(f'<text class="note" x="16" y="{top + 4}">{escape(note)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 20}" width="{WIDTH}" height="{top + 20}" '
        f'role="img" aria-label="benchmarks of aperion and its peers">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bars(scenario: Scenario, results: Results) -> list[tuple[str, float]]:
    key = scenario.columns[0].key
    hidden = YARDSTICKS if key == "ratio" else ()  # bare is its own measure there
    cells = [(peer, cell) for peer, cell in ranked(scenario, results) if peer not in hidden]
    return [(peer, value) for peer, cell in cells if (value := cell.median(key))]


def _panel(scenario: Scenario, bars: list[tuple[str, float]], top: int) -> list[str]:
    low = 10 ** floor(log10(min(value for _, value in bars)))
    high = max(value for _, value in bars)
    per_decade = (WIDTH - LEFT - RIGHT) / max(log10(high / low), 0.1)
    better = "more is better" if scenario.most_first else "less is better"
    note = f'<tspan class="note" dx="8">{escape(scenario.columns[0].heading)}, {better}</tspan>'
    lines = [f'<text class="title" x="16" y="{top + 14}">{escape(scenario.title)}{note}</text>']
    bottom = top + TITLE + len(bars) * (BAR + GAP) - GAP
    lines += _grid(scenario, low, high, per_decade, (top + TITLE - 8, bottom))
    for row, (peer, value) in enumerate(bars):
        y = top + TITLE + row * (BAR + GAP)
        length = max(2, log10(value / low) * per_decade)
        kind = "ours" if peer == OURS else "bar"
        lines.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(peer)}</text>')
        lines.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>')
        lines.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 13}">{escape(scenario.columns[0].show(value))}</text>')
    return lines


def _grid(scenario: Scenario, low: float, high: float, per_decade: float, span: tuple[int, int]) -> list[str]:
    lines, decade = [], 0
    while low * 10**decade <= high:
        x = LEFT + decade * per_decade
        label = escape(scenario.columns[0].show(low * 10**decade))
        lines.append(f'<line class="grid" x1="{x:.1f}" y1="{span[0]}" x2="{x:.1f}" y2="{span[1]}"/>')
        lines.append(f'<text class="note" x="{x:.1f}" y="{span[0] - 4}" text-anchor="middle">{label}</text>')
        decade += 1
    return lines
