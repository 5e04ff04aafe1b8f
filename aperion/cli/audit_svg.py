"""A census as one SVG file that needs nothing else: events a second, and how long handling took."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from aperion.cli.audit_rows import clock, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aperion.cli.audit_stats import Census, Slice

_WIDTH, _HEIGHT = 900, 620
_LEFT, _RIGHT = 90, 880
_PANELS = ((70, 290), (370, 560))
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:16px;font-weight:600}.head{font-weight:600}"
    ".axis{stroke:#888}.grid{stroke:#ddd}.ok{fill:#2a78b8}.failed{fill:#c0392b}"
    ".p50{stroke:#2a78b8;fill:#2a78b8}.p99{stroke:#d07a00;fill:#d07a00}.line{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.paper{fill:#181818}.grid{stroke:#444}}.end{text-anchor:end}"
    ".middle{text-anchor:middle}"
)


def chart(census: Census, title: str) -> str:
    """Return the chart as the text of a file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{escape(title)}"><style>{_STYLE}</style>'
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    )
    return "\n".join([head, _text(_LEFT, 28, title, "title"), *_rates(census), *_latencies(census), "</svg>\n"])


def _rates(census: Census) -> Iterator[str]:
    top, bottom = _PANELS[0]
    rates = [piece.accepted / census.width for piece in census.slices]
    failures = [piece.failed / census.width for piece in census.slices]
    most = _nice(max(*rates, *failures))
    yield _text(_LEFT, top - 14, "Accepted events per second (blue), failed attempts per second (red)", "head")
    yield from _axes(census, top, bottom, most, lambda value: f"{value:,.4g}", "per second")
    for at, (rate, failed) in enumerate(zip(rates, failures, strict=True)):
        left, width = _x(at, census), (_RIGHT - _LEFT) / len(census.slices)
        yield _column(left + 1, width * 0.6, rate / most, "ok")
        yield _column(left + 1 + width * 0.62, width * 0.25, failed / most, "failed")


def _latencies(census: Census) -> Iterator[str]:
    top, bottom = _PANELS[1]
    most = _nice(max(piece.p99 or 0.0 for piece in census.slices))
    yield _text(_LEFT, top - 14, "How long handling took: p50 (blue), p99 (orange)", "head")
    yield from _axes(census, top, bottom, most, seconds, "duration")
    yield from _curve(census, most, "p50", [piece.p50 for piece in census.slices])
    yield from _curve(census, most, "p99", [piece.p99 for piece in census.slices])


def _curve(census: Census, most: float, name: str, values: Sequence[float | None]) -> Iterator[str]:
    top, bottom = _PANELS[1]
    half = (_RIGHT - _LEFT) / len(census.slices) / 2
    run: list[str] = []
    for at, value in enumerate([*values, None]):
        if value is not None:
            run.append(f"{_x(at, census) + half:.1f},{bottom - value / most * (bottom - top):.1f}")
            x, y = run[-1].split(",")
            yield f'<circle class="{name}" cx="{x}" cy="{y}" r="3"/>'
        elif run:  # a slice without outcomes leaves a gap, since there is nothing to say about it
            yield f'<polyline class="line {name}" style="fill:none" points="{" ".join(run)}"/>'
            run = []


def _axes(
    census: Census, top: int, bottom: int, most: float, label: Callable[[float], str], unit: str
) -> Iterator[str]:
    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 8, y + 4, label(most * part / 4) if part else "0", "end")
    middle = (top + bottom) / 2
    yield f'<text class="middle" transform="translate(18 {middle}) rotate(-90)">{escape(unit)}</text>'
    yield f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    yield f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{top}" y2="{bottom}"/>'
    pieces: Sequence[Slice] = census.slices
    for at in range(0, len(pieces), len(pieces) // 4):
        yield _text(_x(at, census), bottom + 18, clock(pieces[at].start), "")
    yield _text(_RIGHT, bottom + 36, "time (UTC)", "end")


def _column(x: float, width: float, share: float, name: str) -> str:
    top, bottom = _PANELS[0]
    height = share * (bottom - top)
    return f'<rect class="{name}" x="{x:.1f}" y="{bottom - height:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _x(at: int, census: Census) -> float:
    return _LEFT + (_RIGHT - _LEFT) * at / len(census.slices)


def _nice(value: float) -> float:
    """Return the next of 1, 2, 4, 8 and 10 times a power of ten, which four grid lines divide well."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in (1, 2, 4, 8) if step * power >= value), 10 * power)


def _text(x: float, y: float, text: str, name: str) -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
