"""The patterns of the redactor: compiled when they are first used, and every one of them good."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys

import pytest

from aperion import redaction
from aperion.redaction.regexes import regex

COUNTING = """
import re, sys
compiled, callers = re.compile, set()
def counted(*arguments):
    callers.add(sys._getframe(1).f_globals["__name__"])
    return compiled(*arguments)
re.compile = counted
import aperion
print(*sorted(name for name in callers if name.startswith("aperion.redaction")))
"""


def test_importing_aperion_compiles_no_pattern_of_the_redactor() -> None:
    done = subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True, check=True, timeout=45)

    assert done.stdout.split() == []


@pytest.mark.parametrize("module", [module.name for module in pkgutil.iter_modules(redaction.__path__)])
def test_every_pattern_compiles(module: str) -> None:
    """One that is broken must not wait for the text that needs it."""
    names = vars(importlib.import_module(f"aperion.redaction.{module}")).values()

    patterns = [value for value in names if type(value) is type(regex("a"))]

    for pattern in patterns:
        assert re.compile(pattern.pattern, pattern.flags)


def test_a_pattern_is_what_re_makes_of_it() -> None:
    """Its methods, and its attributes."""
    lazy, plain = regex(r"(?P<word>b+)", re.IGNORECASE), re.compile(r"(?P<word>b+)", re.IGNORECASE)

    assert (lazy.pattern, lazy.flags, lazy.groupindex) == (plain.pattern, plain.flags, plain.groupindex)
    assert lazy.sub("-", "aBbc") == plain.sub("-", "aBbc") == "a-c"
    assert lazy.findall("aBbcb") == plain.findall("aBbcb") == ["Bb", "b"]
