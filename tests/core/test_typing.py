"""The types that users see, checked by mypy and by pyright: what must pass, and what must not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "typing"
FILES = ["must_pass.py", "must_fail.py"]


def _mypy() -> dict[str, set[int]]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file=",
            "--no-incremental",
            "--disable-error-code=unused-coroutine",
            *FILES,
        ],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return _lines(re.findall(r"^(must_\w+\.py):(\d+): error", done.stdout, re.MULTILINE))


def _pyright() -> dict[str, set[int]]:
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *FILES],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    try:
        found = json.loads(done.stdout)["generalDiagnostics"]
    except ValueError:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"pyright does not start here: {done.stderr[-200:]}")
    return _lines([(Path(d["file"]).name, d["range"]["start"]["line"] + 1) for d in found if d["severity"] == "error"])


def _lines(pairs: list[tuple[str, str]] | list[tuple[str, int]]) -> dict[str, set[int]]:
    lines: dict[str, set[int]] = {name: set() for name in FILES}
    for name, line in pairs:
        lines[name].add(int(line))
    return lines


@pytest.mark.timeout(320)  # pyright fetches node first where there is none
@pytest.mark.parametrize("checker", [_mypy, _pyright], ids=["mypy", "pyright"])
def test_user_code_is_accepted_and_mistakes_are_found(checker: object) -> None:
    source = (HERE / "must_fail.py").read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(source, 1) if line.endswith("# error")}

    found = checker()  # type: ignore[operator]

    assert found["must_pass.py"] == set()
    assert found["must_fail.py"] == marked
