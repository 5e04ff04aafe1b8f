"""Counting instructions: what callgrind says is understood, and told against the budgets."""

# ruff: noqa: RUF001, RUF003 - × and – are meant
from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from benchmarks import instructions
from benchmarks.__main__ import main
from benchmarks.budgets import COUNTS, OURS
from benchmarks.counting import SUBJECTS
from benchmarks.instructions import MISSING, ROWS, Row, collected, judged, text
from benchmarks.results import Results

SAID = """==7== Callgrind, a call-graph generating cache profiler
==7== Events    : Ir
==7== Collected : 1317355372
==7==
==7== I   refs:      1,317,355,372
"""
ENVIRONMENT = {"python": "3", "implementation": "CPython", "system": "here", "loop": "asyncio"}


def ended(stderr: str, code: int = 0) -> CompletedProcess[str]:
    """Make a process that has ended, and said this."""
    return CompletedProcess([], code, "", stderr)


def counted(**figures: dict[str, float]) -> Results:
    """Make results of these rows."""
    results = Results(environment=ENVIRONMENT)
    for name, row in figures.items():
        results.cell(name, OURS).take({"figures": row})
    return results


def cells(report: str, name: str) -> str:
    """Return what stands behind the name of a row."""
    line = next(line for line in report.splitlines() if line.startswith(f"{ROWS[name].what}  "))
    return " ".join(line.removeprefix(ROWS[name].what).split())


def fake(monkeypatch: pytest.MonkeyPatch, counts: dict[str, int]) -> None:
    """Let nothing be run; the last words of each command line say what it would count."""
    monkeypatch.setattr(instructions, "is_available", lambda: True)
    monkeypatch.setattr(
        instructions, "_run", lambda command: ended(f"==1== Collected : {counts[' '.join(command[-2:])]}\n")
    )


def test_the_count_of_callgrind_is_read() -> None:
    assert collected(ended(SAID)) == 1_317_355_372


def test_the_process_itself_ends_after_those_that_it_forked() -> None:
    assert collected(ended("==8== Collected : 12\n" + SAID)) == 1_317_355_372


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        (ended("Traceback\nKeyError: 'nothing'\n" + SAID, 1), "KeyError: 'nothing'"),
        (ended("==7== Callgrind\n"), "exit code 0, and no count"),
        (ended("", -9), "exit code -9, and no count"),
    ],
)
def test_a_process_without_a_count_says_why(done: CompletedProcess[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        collected(done)


def test_the_table_tells_each_row_against_its_budget() -> None:
    results = counted(
        bare={"thousands": 1.25, "ratio": 1},
        mapping={"thousands": 18, "ratio": 14.4},
        model={"thousands": 60, "ratio": 48},
        redactor={"thousands": 0.25, "ratio": 0.2},
    )
    results.cell("import", OURS).take({"figures": {"thousands": 1_500_000, "floor": 1_000_000, "growth": 1.5}})
    results.cell("emit", OURS).take({"failed": "KeyError: no"})

    report = text(results)

    told = {name: cells(report, name) for name in results.cells}
    assert told["bare"] == "1.25 1.0 × – – –"
    assert told["mapping"] == "18.0 14.4 × ≤ 36.0 0.50 ok"
    assert told["model"] == "60.0 48.0 × ≤ 40.0 1.50 over by 1.50 ×"
    assert told["redactor"] == "0.25 0.2 × ≤ 1.00 0.25 ok"
    assert told["import"] == "1,500,000.0 floor 1.500 × ≤ 1.300 × 1.15 over by 1.16 ×"
    assert told["emit"] == "failed – – – –"
    assert "emit, aperion: KeyError: no" in report


def test_every_row_is_something_that_can_be_counted_and_every_budget_has_a_row() -> None:
    assert set(SUBJECTS) == set(ROWS) - {"import"}
    assert set(COUNTS) <= set(ROWS)
    assert len(judged(counted(**{name: {"thousands": 1.0, "growth": 1.0} for name in ROWS}))) == len(COUNTS)


def test_what_start_and_warm_up_take_is_left_out(monkeypatch, tmp_path: Path, capsys) -> None:
    written = tmp_path / "out.json"
    fake(
        monkeypatch,
        {"bare 300": 500_300_000, "bare 1300": 501_300_000, "ten 300": 530_000_000, "ten 1300": 580_000_000},
    )

    code = main(["--instructions", "ten", "bare", "--json", str(written)])

    found = json.loads(written.read_text())
    medians = {name: row[OURS]["median"] for name, row in found["scenarios"].items()}
    assert code == 0
    assert medians == {"bare": {"thousands": 1, "ratio": 1}, "ten": {"thousands": 50, "ratio": 50}}
    assert [(budget["what"], budget["kept"]) for budget in found["budgets"]] == [("instructions, ten", True)]
    assert cells(capsys.readouterr().out, "ten").endswith("ok")


def test_strict_fails_over_a_budget(monkeypatch, capsys) -> None:
    fake(monkeypatch, {"ten 300": 0, "ten 1300": 90_000_000})

    assert main(["--instructions", "ten"]) == 0
    assert main(["--instructions", "ten", "--strict"]) == 1
    assert "over by 1.56 ×" in capsys.readouterr().out


def test_an_import_is_compared_with_what_it_needs_anyway(monkeypatch, capsys) -> None:
    monkeypatch.setattr(instructions, "is_available", lambda: True)
    monkeypatch.setattr(
        instructions,
        "_run",
        lambda command: ended(f"==1== Collected : {1_200_000 if command[-1] == 'import aperion' else 1_000_000}\n"),
    )

    assert main(["--instructions", "import"]) == 0
    assert cells(capsys.readouterr().out, "import") == "1,200.0 floor 1.200 × ≤ 1.300 × 0.92 ok"


def test_without_valgrind_it_says_what_to_install(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main(["--instructions"]) == 2
    assert capsys.readouterr().err == f"{MISSING}\n"
    assert "install valgrind" in MISSING


@pytest.mark.slow
@pytest.mark.skipif(not instructions.is_available(), reason="valgrind is not installed")
def test_a_bare_await_is_counted_alike_each_time(monkeypatch) -> None:
    monkeypatch.setattr(instructions, "ROWS", {"bare": Row(what="bare", few=10, many=1_010)})

    first, second = (instructions.count(["bare"], lambda _: None).figure("bare", OURS, "thousands") for _ in range(2))

    assert 0.3 < first < 5
    assert second == pytest.approx(first, rel=0.02)
