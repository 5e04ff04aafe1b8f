"""Imports go down the list of ranks only, those for types included."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import aperion

PACKAGE = Path(aperion.__file__).parent
# In order: a module may import those of a lower rank, and of its own rank those that stand before it.
RANKS: list[tuple[str, int]] = [
    ("errors", 0),
    ("_logs", 0),
    ("_gone", 0),
    ("_lazy", 0),
    ("_recent", 0),
    ("_frozen", 1),
    ("naming", 1),
    ("patterns", 1),
    ("_plain", 1),
    ("_restored", 1),
    ("events", 1),
    ("redaction", 1),
    ("context", 2),
    ("intake", 2),
    ("subscriptions", 2),
    ("outcomes", 2),
    ("receipts", 2),
    ("protocols", 3),
    ("router", 3),
    ("instruments", 3),
    ("metrics", 3),
    ("middleware", 4),
    ("_shown", 4),
    ("_fitting", 4),
    ("deadletters", 4),
    ("journal", 4),
    ("audit", 4),
    ("_telemetry", 4),
    ("engine", 5),
    ("observers", 5),
    ("streams", 5),
    ("outbox", 5),
    ("bus", 6),
    ("app", 7),
    ("blocking", 7),
    ("logging", 7),
    ("telemetry", 7),
    ("testing", 7),
    ("integrations", 7),
    ("catalogue", 7),
    ("cli", 8),
    ("__main__", 8),
]
PLACES = {name: place for place, (name, _) in enumerate(RANKS)}


def imported(source: str) -> set[str]:
    """Return the modules of aperion that a source imports, as dotted names below ``aperion``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add("<relative>")
        elif isinstance(node, ast.ImportFrom) and node.module == "aperion":
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aperion."):
            module = (node.module or "").removeprefix("aperion.")
            parts = {f"{module}.{alias.name}" for alias in node.names}
            found.update(part if _is_module(part) else module for part in parts)
        elif isinstance(node, ast.Import):
            found.update(
                alias.name.removeprefix("aperion.") or "<top>"
                for alias in node.names
                if alias.name.split(".")[0] == "aperion"
            )
    return found


def _is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def wrong(module: str, source: str) -> list[str]:
    """Return the imports of a module that do not go down."""
    own = module.split(".")[0]
    return sorted(
        name
        for name in imported(source)
        if name.split(".")[0] != own and PLACES.get(name.split(".")[0], len(RANKS)) >= PLACES[own]
    )


def modules() -> dict[str, str]:
    """Return every module below the top with its source."""
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path.read_text(
            encoding="utf-8"
        )
        for path in paths
    }


def test_every_import_goes_down() -> None:
    found = {name: bad for name, source in modules().items() if (bad := wrong(name, source))}

    assert found == {}


def test_every_module_has_a_rank() -> None:
    assert {name.split(".")[0] for name in modules()} <= set(PLACES)


def test_the_check_sees_an_import_that_goes_up() -> None:
    assert wrong("naming", "from aperion.bus import EventBus") == ["bus"]
    assert wrong("naming", "if TYPE_CHECKING:\n    from aperion.events import Event") == ["events"]
    assert wrong("naming", "import aperion") == ["aperion"]
    assert wrong("naming", "from . import events") == ["<relative>"]
    assert wrong("bus", "from aperion.events import Event") == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = modules()
    edges = {name: {target for target in imported(source) if target in sources} for name, source in sources.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " > ".join((*path, name))
        if name not in done:
            for target in edges[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in sources:
        visit(name, ())


def test_init_modules_hold_imports_and_names_only() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"__all__", "__getattr__"}
            imports = node.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" else [node]
            fine = names or all(isinstance(each, ast.Import | ast.ImportFrom | ast.Expr) for each in imports)
            assert fine, f"{path}: {ast.unparse(node)}"


def test_what_is_loaded_late_is_told_to_type_checkers_and_to_star_imports() -> None:
    from aperion import audit

    late = {"aperion": {"AuditLog", "SQLiteJournal"}, "aperion.audit": set(audit.__all__)}
    for name, expected in late.items():
        source = PACKAGE.parent.joinpath(*name.split("."), "__init__.py").read_text(encoding="utf-8")
        tree = ast.parse(source)
        told = [node for node in tree.body if isinstance(node, ast.If)][0]
        names = {alias.name for node in told.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert names == expected
        assert expected <= set(importlib.import_module(name).__all__)
        assert all(hasattr(importlib.import_module(name), each) for each in expected)
    with pytest.raises(AttributeError, match="'aperion' has no attribute 'AuditLogg'"):
        aperion.AuditLogg  # noqa: B018


def test_all_names_are_there_and_sorted() -> None:
    assert all(hasattr(aperion, name) for name in aperion.__all__)
    assert aperion.__all__ == sorted(aperion.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
