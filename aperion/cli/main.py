"""The entry point: checks that the command's packages are there, and turns errors into exit codes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from typing import NoReturn

from aperion.errors import AperionError

_SOME_FAILED, _COULD_NOT_RUN, _INTERRUPTED = 1, 2, 130

_PACKAGES = frozenset({"typer", "rich"})
_MISSING = 'error: the aperion command needs packages that are not installed; run: pip install "aperion-bus[cli]"'


def main() -> NoReturn:
    """Run the ``aperion`` command and exit with its code."""
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show must not end the command
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_code())


def _code() -> int:
    try:
        return _run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:  # the reader of a pipe went away, which is its right
        _detach_stdout()
        return _SOME_FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - whatever it is, the user gets a line and a code
        return _explained(error)


def _run() -> int:
    try:
        from aperion.cli.commands import command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        print(_MISSING, file=sys.stderr)
        return _COULD_NOT_RUN
    command(prog_name="aperion")
    return 0


def _explained(error: BaseException) -> int:
    from aperion.cli import screen

    if screen.DEBUG in sys.argv:
        traceback.print_exception(error)
        return _COULD_NOT_RUN
    cause = _innermost(error)
    if isinstance(cause, AperionError):
        screen.complain(str(cause))
    else:
        text = f"{type(cause).__name__}: {screen.redacted(str(cause))}"
        screen.complain(f"{text}; run again with --debug for the traceback")
    return _COULD_NOT_RUN


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _nowhere() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - open as long as the process


def _detach_stdout() -> None:
    # Otherwise the interpreter tries to flush it once more on its way out, and complains.
    with contextlib.suppress(OSError):
        sys.stdout.close()
