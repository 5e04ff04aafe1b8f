"""What commands print on the pages is what they print now; ``python tests/core/test_samples.py`` writes it anew.

A sample is a block of ``console``: after each ``$`` a command, below it what that prints. ``…`` alone in a line stands
for lines that are left out. The commands of one page run one after another in a copy of the examples.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if _BLOCK.search(p.read_text("utf-8"))]
LEFT_OUT = "…"

# What differs from run to run, in the order in which it is looked for.
_VOLATILE = [
    (r"\b[0-9a-f]{64}\b", "<hash>"),
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f…-]*", "<id>"),
    (r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?", "<time>"),
    (r"\bduration=\S+", "duration=<seconds>"),
    (r"\b[\d.,]+(e-\d+)? ?(ns|µs|ms|s)\b", "<duration>"),
    (r"\bline \d+\b", "line <n>"),
    (r"[\d,]+ events/s", "<rate>"),
    (r"\bpid\W+\d+", "<pid>"),
    (r"[·█▼]{5,}", "<bar>"),
    (r":\d+: altered \(record \d+\)", ":<n>: altered (record <n>)"),
    (r'"(seq|time)": ?\d+', "<n>"),
    (r"^\d+ +(?=<time>)", "<n> "),
    (r" +", " "),
]


def compared(line: str) -> str:
    """Return a line without what differs from run to run."""
    for pattern, text in _VOLATILE:
        line = re.sub(pattern, text, line)
    return line.strip()


def printed(page: Path, folder: Path) -> Iterator[str]:
    """Run the commands of a page, and yield what each printed."""
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    is_tutorial = page.parent.name == "tutorial"
    where = folder / "examples" / "tutorial" / f"page{page.name[0]}" if is_tutorial else folder
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "100"}
    python = shlex.quote(sys.executable)
    commands = [line[2:] for block in _BLOCK.findall(page.read_text("utf-8")) for line in _commands(block)]
    for command in commands:
        done = subprocess.run(
            re.sub(r"^python ", f"{python} ", re.sub(r"^aperion ", f"{python} -m aperion ", command)),
            shell=True,
            cwd=where,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=45,
            check=False,
        )
        yield done.stdout.replace(str(where), "/home/ada/shop")


def anew(block: str, output: Iterator[str]) -> str:
    """Return a block with what its commands print now; where lines are left out, those that are shown stay the ones."""
    lines: list[str] = []
    for part in re.split(r"^(?=\$ )", block, flags=re.MULTILINE):
        if part:
            command, *shown = part.rstrip("\n").split("\n")
            blank = [""] if part.endswith("\n\n") else []
            now = next(output).rstrip("\n").splitlines()
            lines += [command, *(_runs(shown, now) if LEFT_OUT in shown else now), *blank]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _runs(shown: list[str], now: list[str]) -> list[str]:
    """Return the lines of ``now`` that stand where those shown do; a line that is not there any more is left out."""
    found, keys, at = [], [compared(line) for line in now], 0
    for line in shown:
        if line == LEFT_OUT:
            found.append(line)
        elif compared(line) in keys[at:]:
            at = keys.index(compared(line), at) + 1
            found.append(now[at - 1])
    return found


def _commands(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.startswith("$ ")]


def written(page: Path, folder: Path) -> str:
    """Return a page with what its commands print now."""
    output = printed(page, folder)
    return _BLOCK.sub(lambda block: anew(block.group(), output), page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_the_commands_print(page: Path, tmp_path: Path) -> None:
    now = written(page, tmp_path).splitlines()

    shown = page.read_text("utf-8").splitlines()
    assert [compared(line) for line in shown] == [compared(line) for line in now], f"run python {Path(__file__).name}"


if __name__ == "__main__":
    for page in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        with tempfile.TemporaryDirectory() as scratch:
            page.write_text(written(page, Path(scratch)), "utf-8")
