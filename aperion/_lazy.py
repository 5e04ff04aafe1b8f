"""Names of a package that are loaded when they are first asked for (PEP 562), so that importing it stays cheap."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from aperion._gone import missing_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def loading(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package, which finds each of these names in its home; a module is its own."""

    def load(name: str) -> Any:
        if name not in homes:
            raise missing_from(package, name)
        home = import_module(homes[name])
        value = home if homes[name] == f"{package}.{name}" else getattr(home, name)
        setattr(sys.modules[package], name, value)
        return value

    return load
