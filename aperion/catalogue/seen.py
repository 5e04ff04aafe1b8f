"""Who emits what, as far as the source tells: calls with a literal type or a payload model."""

from __future__ import annotations

import ast
import inspect
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aperion.bus import EventBus
from aperion.catalogue.places import Place, relative
from aperion.events import Payload
from aperion.naming import is_valid_event_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

_METHODS: Final = frozenset({"emit", "emit_nowait", "emit_from_thread", "dispatch"})
_NAMES: Final = frozenset({"bus", "outbox", "event_bus"})
_NOBODY: Final = object()


@dataclass(frozen=True, slots=True)
class Emitters:
    """Who emits what.

    Args:
        by_type: places by event type, in the order of the source.
        unknown: places that emit on a bus, and where the source does not tell what.
    """

    by_type: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    unknown: tuple[Place, ...] = ()


def emitters_in(modules: Iterable[ModuleType]) -> Emitters:
    """Look through the source of modules for ``emit`` and its kin.

    What is seen is a type as text, a payload model that is called there, or a name in the module that
    stands for either. Nothing is run.
    """
    found: dict[str, list[Place]] = defaultdict(list)
    unknown: list[Place] = []
    for module in modules:
        for event_type, place in _calls(module):
            (unknown if event_type is None else found[event_type]).append(place)
    by_type = {event_type: tuple(sorted(set(places))) for event_type, places in sorted(found.items())}
    return Emitters(by_type, tuple(sorted(set(unknown))))


def modules_beside(name: str) -> list[ModuleType]:
    """Return the loaded modules that belong to the same project as a module: those of its package, or its folder."""
    module = sys.modules[name]
    top = sys.modules.get(name.partition(".")[0], module)
    root = Path(str(getattr(top, "__file__", None) or next(iter(getattr(top, "__path__", ())), "."))).resolve()
    folder = root if root.is_dir() else root.parent
    return [each for each in tuple(sys.modules.values()) if _lies_in(each, folder)]


def _lies_in(module: Any, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py") or "site-packages" in file:
        return False
    name = getattr(module, "__name__", "")
    return Path(file).resolve().is_relative_to(folder) and name.partition(".")[0] != "aperion"


def _calls(module: ModuleType) -> Iterator[tuple[str | None, Place]]:
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):  # no source: a module that was built, or is gone
        return
    file = relative(str(module.__file__))
    for node, function in _with_functions(tree, ()):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS):
            continue
        place = Place(file, node.lineno, ".".join(function))
        event_type = _event_type(node.args[0], module) if node.args else None
        if event_type is not None or _is_bus(node.func.value, module):
            yield event_type, place


def _with_functions(node: ast.AST, around: tuple[str, ...]) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    for child in ast.iter_child_nodes(node):
        yield child, around
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _with_functions(child, (*around, child.name) if inner else around)  # type: ignore[attr-defined]  # those have names


def _event_type(argument: ast.expr, module: ModuleType) -> str | None:
    if isinstance(argument, ast.Constant):
        value: Any = argument.value
    elif isinstance(argument, ast.Call):
        value = _named(argument.func, module)
    else:
        value = _named(argument, module)
    if isinstance(value, type) and issubclass(value, Payload):
        return value.event_type or None
    if isinstance(value, Payload):
        return type(value).event_type or None
    return value if isinstance(value, str) and is_valid_event_type(value) else None


def _is_bus(receiver: ast.expr, module: ModuleType) -> bool:
    last = receiver.attr if isinstance(receiver, ast.Attribute) else getattr(receiver, "id", "")
    return last in _NAMES or isinstance(_named(receiver, module), EventBus)


def _named(node: ast.expr, module: ModuleType) -> Any:
    """Return what a dotted name means in a module; its attributes are looked up, and no code of them is run."""
    if isinstance(node, ast.Name):
        return vars(module).get(node.id, _NOBODY)
    if isinstance(node, ast.Attribute):
        return inspect.getattr_static(_named(node.value, module), node.attr, _NOBODY)
    return _NOBODY
