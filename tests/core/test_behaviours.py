"""The table from the behaviours that Aperion keeps, and the promises it must not break, to their tests.

A test names the ids that it proves at the start of its docstring: ``CORE-1 CORE-2: what it says``.
``python tests/core/test_behaviours.py`` writes the table anew.
"""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

HERE = Path(__file__).parents[1]
TABLE = HERE / "BEHAVIOURS.md"
_ID = re.compile(r"[A-Z]{2,4}-[A-Za-z0-9*/.]+")

# Behaviours of the predecessor to keep, by family.
FAMILIES = {
    "CORE": 19,
    "PRI": 5,
    "PAT": 7,
    "ERR": 4,
    "DLQ": 13,
    "BP": 7,
    "TMO": 3,
    "VAL": 10,
    "MET": 7,
    "COR": 11,
    "OTL": 5,
    "FAST": 9,
    "STB": 10,
    "RED": 23,
    "AUD": 11,
    "ROT": 4,
}
# Promises that the predecessor broke, and that are kept here.
PROMISES = """
TMO-a TMO-b TMO-c/d TMO-e TMO-f TMO-g TMO-h ERR-a/c ERR-b2 ERR-d SYS-a SYS-b SYS-c COR-err
PRI-a0/a1 PRI-b0/b1 PRI-c PRI-d PRI-e/f PRI-g/h
BP-a BP-b BP-c BP-d BP-e BP-f BP-g BP-h BP-i
COR-* COR-nested COR-reent COR-hdr/2/3 API-fastapi
EVT-a/c/d ID-a/b/c DLQ-a/b DLQ-c DLQ-d DLQ-e DLQ-f..k
MET-c/e/f MET-d MET-g/h MET-i MET-j/k MET-l..r OTL-a OTL-c OTL-d/e OTL-f/g/h VAL-a..g PAT-a/c/d
RED-default RED-keys RED-case RED-readme RED-empty RED-values RED-fp RED-fields RED-dlq/log REDOS AUD-types
ROT-f ROT-g ROT-a ROT-b ROT-c/d ROT-e
AUD-c AUD-d AUD-e AUD-f AUD-g AUD-h AUD-i AUD-j2 AUD-k/l AUD-m/n
ASY-a/b/c ASY-d ASY-e ASY-f ASY-h SUB-a SHD-a SHD-b SHD-d/e/f/g/h SCL
""".split()
REQUIRED = [f"{family}-{n}" for family, count in FAMILIES.items() for n in range(1, count + 1)] + PROMISES


def proofs() -> dict[str, list[str]]:
    """Return, for each id, the tests that name it."""
    found: dict[str, list[str]] = {}
    for path in sorted(HERE.glob("*/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for name in _named(ast.get_docstring(node) or ""):
                    found.setdefault(name, []).append(f"{path.relative_to(HERE).as_posix()}::{node.name}")
    return found


def _named(docstring: str) -> list[str]:
    """Return the ids at the start of a docstring; the first word that is none ends them."""
    words = docstring.replace(":", " ").replace(",", " ").split()
    return list(itertools.takewhile(lambda word: _ID.fullmatch(word) or word in {"SCL", "REDOS"}, words))


def table() -> str:
    """Return the table as Markdown."""
    found = proofs()
    lines = ["# Behaviours and the tests that prove them", "", "Written by `python tests/core/test_behaviours.py`.", ""]
    lines += ["| id | tests |", "| --- | --- |"]
    for name in REQUIRED:
        tests = "<br>".join(f"`{test}`" for test in found.get(name, []))
        lines.append(f"| {name} | {tests} |")
    return "\n".join(lines) + "\n"


def test_every_behaviour_has_a_test() -> None:
    """No id is without one."""
    found = proofs()

    assert [name for name in REQUIRED if name not in found] == []


def test_the_table_is_that_of_the_tests() -> None:
    """It is written anew when tests change."""
    assert TABLE.read_text(encoding="utf-8") == table(), "run python tests/core/test_behaviours.py"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
