"""The benchmarks run, and report what they found; what they find is not tested here."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import orjson
import pytest

from aperion.audit import verify
from benchmarks.__main__ import main
from benchmarks.archive import make
from benchmarks.budgets import BUDGETS, Budget, Verdict, verdicts
from benchmarks.memory import peak, reset_peak
from benchmarks.peers import NAMES
from benchmarks.report import text
from benchmarks.results import Cell, Results, State
from benchmarks.runner import Plan, measure
from benchmarks.scenarios import SCENARIOS, nanoseconds
from benchmarks.wiring import CLEAN, PRIVATE, Load

ENVIRONMENT = {
    "python": "3",
    "implementation": "CPython",
    "system": "here",
    "cores": 1,
    "loop": "asyncio",
    "scale": "tiny",
    "rounds": 1,
    "seconds": 0.1,
}


def found(*figures: dict[str, float]) -> Cell:
    """Make a cell that has these rounds."""
    return Cell(rounds=list(figures))


def about(*, guards: bool = False) -> dict[str, object]:
    """Make what a peer says of itself."""
    return {"version": "1", "does": "something", "guards": guards}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_tiny_run_writes_tables_json_and_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers, chart = tmp_path / "out.json", tmp_path / "docs" / "out.svg"
    names = ["dispatch", "emit", "latency", "memory", "import"]

    code = main(["--tiny", "--only", *names, "--peers", "bare", "aperion", "--json", str(numbers), "--svg", str(chart)])

    report, written = capsys.readouterr().out, json.loads(numbers.read_text())
    assert code == 0
    assert list(written["scenarios"]) == names
    assert [row["aperion"]["state"] for row in written["scenarios"].values()] == ["measured"] * len(names)
    assert written["scenarios"]["dispatch"]["bare"]["median"]["ratio"] > 0
    assert {"what", "budget", "figure", "used", "kept"} == written["budgets"][0].keys()
    assert "budgets" in report
    assert "aperion" in report
    assert ET.fromstring(chart.read_text()).tag.endswith("svg")  # noqa: S314 - our own file


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_audit_log_is_measured_at_each_level_and_against_grep() -> None:
    scenarios = ["audit_none", "audit_process", "audit_disk", "audit_emit", "audit_search", "audit_files"]
    results = measure(Plan(scenarios=scenarios, peers=["aperion"], scale="tiny", rounds=1), lambda _: None)

    assert results.failures() == []
    for name in scenarios:
        for column in SCENARIOS[name].columns:
            assert results.figure(name, "aperion", column.key) is not None, column
    assert results.figure("audit_search", "aperion", "ns") > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_delivers_to_a_sync_handler_and_says_what_it_does(name: str) -> None:
    results = measure(Plan(scenarios=["sync"], peers=[name], scale="tiny", rounds=1), lambda _: None)
    if name in results.absent:
        pytest.skip(results.absent[name])

    assert results.failures() == []
    assert results.cell("sync", name).state is State.MEASURED
    assert len(results.peers[name]["does"]) > 40


def test_a_missing_peer_is_absent_and_no_error() -> None:
    results = measure(Plan(scenarios=["dispatch"], peers=["nobody"], scale="tiny", rounds=1), lambda _: None)

    assert "nobody" in results.absent
    assert results.failures() == []
    assert "nobody: absent" in text(results)


@pytest.mark.parametrize("load", [CLEAN, PRIVATE], ids=lambda load: load.model)
def test_the_payloads_of_the_audit_scenarios_have_300_bytes(load: Load) -> None:
    assert len(orjson.dumps(dict(load.fields))) == 300


def test_the_middle_round_counts() -> None:
    cell = found({"ns": 9}, {"ns": 1}, {"ns": 2})

    assert cell.median("ns") == 2


def test_what_a_peer_cannot_do_is_a_dash_and_has_no_figure() -> None:
    results = Results(environment=ENVIRONMENT, peers={"pyee": about()})
    results.cell("redact", "pyee").take({"unsupported": "has no redact"})

    assert results.figure("redact", "pyee", "ns") is None
    assert "–" in text(results)  # noqa: RUF001 - the dash of the tables
    assert results.failures() == []


def test_what_a_peer_cannot_do_is_a_dash_beside_what_it_can() -> None:
    results = Results(environment=ENVIRONMENT, peers={"predecessor": about()})
    results.cell("audit_process", "predecessor").take({"figures": {"ratio": 12, "one": 40_000, "append": 500_000}})

    row = next(line for line in text(results).splitlines() if line.startswith("predecessor"))

    assert row.split() == ["predecessor", "12.0", "×", "40,000/s", "–", "–", "500,000/s"]  # noqa: RUF001
    assert results.figure("audit_process", "predecessor", "alone") is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
def test_the_peak_of_memory_is_that_since_the_last_reset() -> None:
    large = 64 << 20

    del (block := bytearray(large))[:]
    before = peak()
    reset_peak()
    after = peak()
    block = bytearray(large)

    assert before - after > large // 2
    assert peak() - after >= large // 2
    assert len(block) == large


def test_a_log_to_search_is_whole_and_has_two_records_an_event(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"

    make(log, 100, files=4)
    verification = verify(log)

    assert verification.ok, verification.problems
    assert verification.records == 4 + 4 * 12 * 2
    assert len(verification.segments) == 4


def test_a_worker_that_breaks_is_named_and_spoils_nothing_else() -> None:
    results = Results(environment=ENVIRONMENT, peers={"pyee": about(), "bare": about()})
    results.cell("dispatch", "pyee").take({"failed": "ValueError: no"})
    results.cell("dispatch", "bare").take({"figures": {"ns": 70, "bare_ns": 70, "ratio": 1}})

    assert results.failures() == ["dispatch, pyee: ValueError: no"]
    assert "70 ns" in text(results)


@pytest.mark.parametrize(
    ("value", "floor", "said"),
    [
        (90, False, "ok"),
        (100, False, "ok"),
        (150, False, "over by 1.50 ×"),
        (110, True, "ok"),
        (50, True, "over by 2.00 ×"),
    ],
)
def test_a_budget_is_a_ceiling_or_a_floor(value: float, floor: bool, said: str) -> None:  # noqa: FBT001
    budget = Budget(what="x", figure=lambda _: value, limit=100, show=nanoseconds, floor=floor)

    verdict = Verdict(budget=budget, value=value, share=budget.share(value))

    assert str(verdict) == said
    assert verdict.kept is (said == "ok")


def test_the_predecessor_is_compared_through_the_bare_loop_of_each_process() -> None:
    results = Results(environment=ENVIRONMENT)
    results.cells["dispatch"] = {
        "aperion": found({"ns": 2_000, "bare_ns": 100, "ratio": 20}),
        "predecessor": found({"ns": 20_000, "bare_ns": 50, "ratio": 400}),
    }

    values = {verdict.budget.what: verdict.value for verdict in verdicts(results)}

    assert values == {"dispatch, one handler, × bare": 20, "dispatch, one handler, against the predecessor": 20}  # noqa: RUF001


def test_only_peers_that_validate_or_bound_must_be_outrun() -> None:
    results = Results(
        environment=ENVIRONMENT,
        peers={"aperion": about(guards=True), "psygnal": about(), "bubus": about(guards=True)},
    )
    rates = {"aperion": 50.0, "psygnal": 10.0, "bubus": 500.0}
    results.cells["emit"] = {name: found({"ratio": ratio, "rate": 1e7 / ratio}) for name, ratio in rates.items()}

    values = {verdict.budget.what: verdict.value for verdict in verdicts(results)}

    assert values["emit and drain, against the best peer that validates or bounds"] == 10


def test_every_budget_is_measured_by_some_scenario() -> None:
    results = Results(environment=ENVIRONMENT, peers={"bubus": about(guards=True)})
    for name, scenario in SCENARIOS.items():
        keys = dict.fromkeys((column.key for column in scenario.columns), 1.0)
        results.cells[name] = {peer: found(keys) for peer in ("aperion", "predecessor", "bubus")}

    assert [verdict.budget.what for verdict in verdicts(results)] == [budget.what for budget in BUDGETS]
