"""Finding the application that a path such as ``package.module:app`` names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aperion.app import App
from aperion.bus import EventBus
from aperion.cli.screen import redacted, safe
from aperion.errors import ApplicationError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

_FORM = "write module:attribute, such as 'service:app' or 'shop.service:make_app'"
_NAMES_SHOWN = 8
_NOT_THE_USERS = (str(Path(__file__).parent.parent), "<frozen importlib")


def load_app(path: str) -> App:
    """Import what a path names and return it as an application.

    The current directory is importable, as it is for ``python -m``. A bus becomes an application
    of its own; a function or class without parameters is called and returns either.

    Raises:
        ApplicationError: saying which part of the path is wrong, and what is near it.
    """
    module_name, attribute = _parts(path)
    if (cwd := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, cwd)
    found = _attribute(_module(module_name), attribute)
    if not isinstance(found, App | EventBus) and callable(found):
        found = _made(found, path)
    if isinstance(found, EventBus):
        return App(found)
    if isinstance(found, App):
        return found
    raise ApplicationError(
        f"{path!r} is of type {type(found).__name__}; an application is an aperion.App or an aperion.EventBus, "
        "or a function without parameters that returns one"
    )


def about(path: str, bus: EventBus) -> str:
    """Return a few lines about what is going to run, and how to stop it."""
    subscriptions = bus.subscriptions
    names = ", ".join(sorted({each.name for each in subscriptions})[:_NAMES_SHOWN])
    more = ", …" if len(subscriptions) > _NAMES_SHOWN else ""
    log = getattr(bus.audit, "path", None) or ("none" if bus.audit is None else type(bus.audit).__name__)
    lines = [
        f"aperion: running {path}",
        f"  handlers   {len(subscriptions)}{': ' if subscriptions else ''}{names}{more}",
        f"  audit log  {log}",
        "  stop       Ctrl-C finishes what is in flight, a second Ctrl-C quits at once",
    ]
    return "\n".join(safe(line) for line in lines)


def _parts(path: str) -> tuple[str, str]:
    module, colon, attribute = path.partition(":")
    if "/" in module or "\\" in module or module.endswith(".py"):
        name = module.removesuffix(".py").replace("\\", "/").strip("./").replace("/", ".")
        raise ApplicationError(f"{shown(path)} names a file; name the module instead: '{name}:{attribute or 'app'}'")
    if not colon:
        raise ApplicationError(f"{shown(path)} has no colon, so it names no attribute of a module; {_FORM}")
    for part, of in ((module, "module"), (attribute, "attribute")):
        if not all(name.isidentifier() for name in part.split(".")):
            raise ApplicationError(f"{shown(path)} has {shown(part)} where the name of the {of} should be; {_FORM}")
    return module, attribute


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _raised(f"importing {name!r}", error) from error
        raise ApplicationError(_not_found(name, error.name)) from error
    except (Exception, SystemExit) as error:
        raise _raised(f"importing {name!r}", error) from error


def _not_found(name: str, missing: str) -> str:
    parent, _, last = missing.rpartition(".")
    found = f"there is no module {missing!r}" + (f", so {name!r} cannot be imported" if name != missing else "")
    near = difflib.get_close_matches(last, _siblings(parent), n=1)
    if near:
        return f"{found}; did you mean {f'{parent}.{near[0]}' if parent else near[0]!r}?"
    return f"{found}; modules are looked for in {Path.cwd()} and among the installed packages"


def _siblings(parent: str) -> set[str]:
    if parent:
        paths = list(getattr(sys.modules.get(parent), "__path__", ()))
        return {module.name for module in pkgutil.iter_modules(paths)}
    here = Path.cwd()
    folders = {entry.name for entry in here.iterdir() if entry.is_dir() and entry.name.isidentifier()}
    return folders | {module.name for module in pkgutil.iter_modules([str(here)])}


def _attribute(module: Any, path: str) -> Any:
    value, name = module, module.__name__
    for part in path.split("."):
        try:
            value, name = getattr(value, part), f"{name}{':' if value is module else '.'}{part}"
        except AttributeError as error:
            raise ApplicationError(_no_attribute(value, name, part)) from error
    return value


def _no_attribute(owner: object, name: str, part: str) -> str:
    public = [attribute for attribute in dir(owner) if not attribute.startswith("_")]
    near = difflib.get_close_matches(part, public, n=1)
    if near:
        return f"{name!r} has no attribute {part!r}; did you mean {near[0]!r}?"
    apps = [attribute for attribute in public if isinstance(getattr(owner, attribute, None), App | EventBus)]
    return f"{name!r} has no attribute {part!r}; {_choices(apps)}"


def _choices(apps: Iterable[str]) -> str:
    names = ", ".join(repr(name) for name in apps)
    return f"the applications there are {names}" if names else "there is no App and no EventBus in it"


def _made(factory: Any, path: str) -> Any:
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError) as error:
        raise ApplicationError(f"{path!r} cannot be called without arguments ({error}); {_FORM}") from error
    if inspect.iscoroutinefunction(factory):
        raise ApplicationError(f"{path!r} is an async function; a function that makes an application is a plain one")
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise _raised(f"calling {path!r}", error) from error


def _raised(action: str, error: BaseException) -> ApplicationError:
    text = redacted(str(error))
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return ApplicationError(f"{action} raised {what} (at {_place(error)}); --debug shows the traceback")


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    last = (theirs or list(frames))[-1]
    return f"{last.filename}:{last.lineno}"
