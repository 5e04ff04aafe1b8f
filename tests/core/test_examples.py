"""The examples run, and print what they say they print."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from webhooks import WEBHOOKS

import aperion

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))
BAD_LINES = [137, 268]


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which aperion is found, and the audit log lies in a folder."""
    packages = Path(aperion.__file__).parent.parent
    return {**os.environ, "PYTHONPATH": str(packages), "SHOP_AUDIT_LOG": str(folder / "audit.jsonl")}


def replay(file: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Replay a file through the shop and ask for JSON."""
    command = [sys.executable, "-m", "aperion", "replay", str(file), "--app", "examples.shop.service:app", "--json"]
    return subprocess.run(
        command, cwd=ROOT, env=environment(folder), capture_output=True, text=True, timeout=45, check=False
    )


def promised(script: Path) -> str:
    """Return what the docstring says that a script prints."""
    docstring = ast.get_docstring(ast.parse(script.read_text()), clean=True) or ""
    return textwrap.dedent(docstring.partition("Prints:\n")[2]).strip()


def test_there_are_examples() -> None:
    assert len(SCRIPTS) >= 5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_prints_what_it_says(script: Path, tmp_path: Path) -> None:
    if "Prints:\n" not in script.read_text():
        pytest.skip("says nothing of what it prints")

    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if not _is_log(line)] == promised(script).splitlines()


def _is_log(line: str) -> bool:
    return line[:4].isdigit()  # lines of the log start with the time


def test_the_bundled_file_is_what_its_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("shop_generate", EXAMPLES / "shop" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)

    written = "".join(f"{line}\n" for line in generate.lines())

    assert (EXAMPLES / "shop" / "events.jsonl").read_text(encoding="utf-8") == written


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The bundled file, replayed once."""
    folder = tmp_path_factory.mktemp("shop")
    start = time.monotonic()
    done = replay(EXAMPLES / "shop" / "events.jsonl", folder)
    summary: dict[str, Any] = json.loads(done.stdout)
    return {
        **summary,
        "code": done.returncode,
        "took": time.monotonic() - start,
        "audit": (folder / "audit.jsonl").read_text(),
    }


def test_the_shop_takes_the_bundled_file_within_10_seconds(shop: dict[str, Any]) -> None:
    assert shop["took"] < 10
    assert shop["code"] == shop["exit_code"] == 1
    assert [bad["line"] for bad in shop["rejected_lines"]] == BAD_LINES
    assert "email: Field required" in shop["rejected_lines"][1]["reason"]
    assert shop["lines"]["read"] == 408
    assert shop["events"]["unfinished"] == 0
    assert Path(shop["audit_log"]).name == "audit.jsonl"


def test_each_kind_of_trouble_can_be_seen_in_the_shop(shop: dict[str, Any]) -> None:
    handlers = {name.rpartition(".")[2]: counts for name, counts in shop["deliveries"].items()}

    assert handlers["charge_card"]["failed"] > 0
    assert handlers["tell_carrier"]["timed_out"] > 0
    assert handlers["tell_carrier"]["p99"] == pytest.approx(0.2, abs=0.15)
    assert handlers["reserve_stock"]["retried"] > 0
    assert handlers["reserve_stock"]["failed"] == 0
    assert handlers["call_support"]["skipped"] > 0
    assert handlers["count"]["ok"] == shop["events"]["accepted"] + shop["events"]["emitted_by_application"]
    assert {group["reason"] for group in shop["dead_letters"]["groups"]} == {
        "handler_error",
        "handler_timeout",
        "validation_error",
    }


def test_the_shop_writes_an_invoice_for_each_order(shop: dict[str, Any]) -> None:
    types = shop["events"]["by_type"]

    assert types["invoice.created"] == types["order.placed"] == shop["events"]["emitted_by_application"] == 90


def test_no_address_and_no_card_reaches_the_audit_log_or_the_summary(shop: dict[str, Any]) -> None:
    shown = json.dumps({name: value for name, value in shop.items() if name != "audit"})

    assert "order-42" in shop["audit"]
    for secret in ("@example.com", "4111 1111 1111 1111"):
        assert secret not in shop["audit"]
        assert secret not in shown


@pytest.mark.skipif(not WEBHOOKS.exists(), reason="the webhooks are not here")
def test_the_shop_takes_the_webhooks_of_github(tmp_path: Path) -> None:
    done = replay(WEBHOOKS, tmp_path)

    summary = json.loads(done.stdout)
    assert done.returncode == 0
    assert summary["lines"] == {"read": 329, "rejected": 0, "left_out": 0}
    assert summary["events"]["accepted"] == 329
    assert len(summary["events"]["by_type"]) == 161
    assert summary["deliveries"]["examples.shop.service.count"]["ok"] == 329
