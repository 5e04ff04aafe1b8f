"""What the README and the docs show is what the tests run, and their links lead somewhere."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

import pytest

import aperion
from aperion import DeadLetterQueue, EventBus
from aperion.instruments import INSTRUMENTS
from aperion.telemetry import CONVENTIONS

ROOT = Path(__file__).parents[2]
TOP = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
PAGES = sorted([*(ROOT / name for name in TOP), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_on_a_page_is_taken_from_an_example(page: Path) -> None:
    """Word for word, though less indented."""
    examples = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").rglob("*.py"))]

    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        found = [example for example in examples for by in (0, 4, 8) if textwrap.indent(block, " " * by) in example]
        assert found, f"in no example:\n{block}"


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


def test_the_limits_on_the_page_are_the_defaults() -> None:
    """Those of a bus and of its dead letters."""
    page = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| ([\d,]+(?: MiB)?) \| `(?:DeadLetterQueue\()?(\w+)", page, re.MULTILINE)
    takes = {**inspect.signature(EventBus).parameters, **inspect.signature(DeadLetterQueue).parameters}

    assert len(rows) == 9
    assert [(name, _number(text)) for text, name in rows] == [(name, takes[name].default) for _, name in rows]


def _number(text: str) -> int:
    amount = int(text.removesuffix(" MiB").replace(",", ""))
    return amount * 1_048_576 if text.endswith("MiB") else amount


@pytest.mark.parametrize("page", ["docs/promises.md", "docs/architecture.md", "CONTRIBUTING.md"])
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    """Tests, modules of the package, and the folders of both."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:core|audit|redaction|tests|aperion)/[\w/.]+)`", text)

    places = [ROOT, ROOT / "tests", Path(aperion.__file__).parents[1]]
    assert named
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
