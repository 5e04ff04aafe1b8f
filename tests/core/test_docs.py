"""What the README and the docs show is what the tests run, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aperion.instruments import INSTRUMENTS
from aperion.telemetry import CONVENTIONS

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_on_a_page_is_taken_from_an_example(page: Path) -> None:
    """Word for word."""
    examples = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").rglob("*.py"))]

    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        assert any(block in example for example in examples), f"in no example:\n{block}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_on_a_page_lead_to_files(page: Path) -> None:
    """Relative ones; the chart is drawn by the benchmarks."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    """Names, kinds, labels and what they tell."""
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(aperion_\w+)` \| (\w+) \|(.*?)\| (.*?) \|$", page, re.MULTILINE)

    told = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), about) for name, kind, labels, about in rows]
    assert told == [(each.name, each.kind, each.labels, each.description) for each in INSTRUMENTS]
    assert f"version {CONVENTIONS} " in page
