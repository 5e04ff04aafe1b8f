"""The pages of the reference show every public name, and the site has every page."""

from __future__ import annotations

import enum
import importlib
import pkgutil
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import aperion.integrations

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = [
    "aperion",
    "aperion.audit",
    "aperion.catalogue",
    "aperion.redaction",
    "aperion.telemetry",
    "aperion.testing",
]
MODULES = PACKAGES + [
    f"aperion.integrations.{module.name}" for module in pkgutil.iter_modules(aperion.integrations.__path__)
]
_DIRECTIVE = re.compile(r"^::: (\S+)$(\n    options:\n      show_if_no_docstring: true$)?", re.MULTILINE)
SHOWN = {
    name: bool(options)
    for page in sorted((DOCS / "reference").glob("*.md"))
    for name, options in _DIRECTIVE.findall(page.read_text(encoding="utf-8"))
}


def found(name: str) -> Any:
    """Return what a directive names."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("module", MODULES)
def test_each_public_name_of_a_module_is_in_the_reference(module: str) -> None:
    """Under this name or, where it is exported again, under another."""
    shown = {id(found(name)) for name in SHOWN}
    public = importlib.import_module(module).__all__

    missing = [
        name for name in public if f"{module}.{name}" not in SHOWN and id(found(f"{module}.{name}")) not in shown
    ]
    assert missing == []


def test_each_member_of_an_enumeration_is_shown() -> None:
    """Members have no docstrings, and what has none is left out otherwise."""
    enums = [name for name in SHOWN if isinstance(found(name), enum.EnumMeta)]

    assert enums
    assert [name for name in enums if not SHOWN[name]] == []


def test_each_page_is_in_the_navigation_and_each_entry_is_a_page() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]

    assert sorted(_pages(nav)) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav if isinstance(nav, list) else nav.values()
    return [page for part in parts for page in _pages(part)]
