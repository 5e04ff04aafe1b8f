"""The commands that list the events of an application, and explain who gets one."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import aperion

ROOT = Path(__file__).parents[2]
SHOP = "examples.shop.service:app"

ODD = '''
import aperion
print("this application prints")
bus = aperion.EventBus()

class Note(aperion.Payload, type="odd.note"):
    """A note with \\x1b[31m in its words."""
    text: str

@bus.on("odd.note", name="red \\x1b[31m handler")
async def handle(event): ...

@bus.on("nowhere.*.done", name="lost")
async def lost(event): ...

async def send(event_type):
    await bus.emit(event_type, {})
'''


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aperion", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=45,
    )


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    (tmp_path / "odd_app.py").write_text(ODD)
    return tmp_path


def test_the_events_of_an_application_are_listed() -> None:
    """Types with fields, who emits, who handles in which order, with file and line."""
    done = run("events", SHOP)

    assert (done.returncode, done.stderr) == (0, "")
    block = done.stdout.split("\n\n")[[b.startswith("order.paid") for b in done.stdout.split("\n\n")].index(True)]
    lines = block.splitlines()
    assert lines[0].startswith("order.paid  examples.shop.events.OrderPaid  examples/shop/events.py:")
    assert "card_number: str, hidden as CARD" in block
    order = ["follow_order", "charge_card", "print_receipt", "count"]
    assert [name for line in lines for name in order if f"service.{name} " in line] == order
    assert "follow_order   order.* matches; priority 200; async; timeout 30 s  examples/shop/service.py:" in block
    assert "emitted  write_invoice  examples/shop/service.py:" in done.stdout
    assert "nobody handles: invoice.created, shop.minute.passed (but for handlers of everything)" in done.stdout


def test_it_is_explained_who_gets_a_type() -> None:
    """And the code says whether anybody does."""
    done = run("explain", SHOP, "order.placed")
    wrong = run("explain", SHOP, "order.plaecd")
    nobody = run("explain", "tests.odd:bus", "a.b")

    assert done.returncode == 0
    order = ["follow_order", "reserve_stock", "write_invoice", "count"]
    assert [
        name
        for line in done.stdout.splitlines()
        for name in order
        if line.lstrip()[:1].isdigit() and f".{name} " in line
    ] == order
    assert "charge_card  order.paid: segment 2 is 'placed', and it wants 'paid'" in done.stdout
    assert (
        "emit refuses it: no payload model has the event type 'order.plaecd'; did you mean 'order.placed'"
        in wrong.stdout
    )
    assert wrong.returncode == 1  # although a handler of everything would match
    assert "runs, in this order" not in wrong.stdout
    assert nobody.returncode == 2


def test_nobody_who_gets_a_type_is_a_code(odd: Path) -> None:
    """For scripts."""
    done = run("explain", "odd_app:bus", "odd.other", cwd=odd)

    assert done.returncode == 1
    assert "by nobody" in done.stdout
    assert "red \\x1b[31m handler  odd.note: segment 2 is 'other', and it wants 'note'" in done.stdout


def test_control_characters_and_prints_of_the_application_stay_out(odd: Path) -> None:
    """The names of handlers and the words of models may hold anything; what it prints goes to standard error."""
    done = run("events", "odd_app:bus", cwd=odd)

    assert "\x1b" not in done.stdout
    assert "red \\x1b[31m handler" in done.stdout
    assert "this application prints" in done.stderr
    assert "this application prints" not in done.stdout
    assert "nothing reaches: lost" in done.stdout
    assert "emitted, and the source does not tell what: odd_app.py:" in done.stdout


@pytest.mark.parametrize("command", [("events",), ("explain", "order.placed")])
def test_machines_get_json(command: tuple[str, ...]) -> None:
    """One document, and nothing else."""
    done = run(command[0], SHOP, *command[1:], "--json")

    found = json.loads(done.stdout)
    if command[0] == "events":
        names = [each["name"] for each in found["types"]]
        assert names == sorted(names)
        assert "order.placed" in names
        assert found["unhandled"] == ["invoice.created", "shop.minute.passed"]
    else:
        assert [each["priority"] for each in found["handlers"]] == [200, 100, 100, 10]


def test_a_graph_and_an_asyncapi_document_are_printed() -> None:
    """One format at a time."""
    graph, document, both = (
        run("events", SHOP, "--mermaid"),
        run("events", SHOP, "--asyncapi"),
        run("events", SHOP, "--json", "--mermaid"),
    )

    assert graph.stdout.startswith("flowchart LR\n")
    assert json.loads(document.stdout)["asyncapi"] == "3.0.0"
    assert json.loads(document.stdout)["info"] == {"title": SHOP, "version": "0.0.0"}
    assert (both.returncode, both.stdout) == (2, "")
    assert "choose one" in both.stderr


def test_an_audit_log_tells_what_was_emitted(odd: Path) -> None:
    """Counts and sources; types that nothing else knows of, too."""

    async def emit() -> None:
        async with aperion.EventBus(audit=aperion.AuditLog(odd / "log" / "events.jsonl")) as bus:
            for source in ("web", "web", "till"):
                await bus.emit("odd.note", {"text": "x"}, source=source)
            await bus.emit("odd.unknown", {})

    anyio.run(emit)
    done = run("events", "odd_app:bus", "--log", "log/events.jsonl", cwd=odd)
    missing = run("events", "odd_app:bus", "--log", "nowhere.jsonl", cwd=odd)

    assert "3 times in the audit log by till, web" in done.stdout
    assert "odd.unknown  no model" in done.stdout
    assert missing.returncode == 2
    assert "there is no audit log 'nowhere.jsonl'" in missing.stderr


def _on_a_terminal(*arguments: str, **environment: str) -> str:
    """Run the command with a terminal as its standard output, and return what that got."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "aperion", *arguments],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", **environment},
        stdout=slave,
        stderr=subprocess.DEVNULL,
    )
    os.close(slave)
    output = b""
    while True:
        try:
            block = os.read(master, 65_536)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        output += block
    os.close(master)
    process.wait(60)
    return output.decode()


@pytest.mark.parametrize("command", ["events", pytest.param("explain", marks=pytest.mark.slow)])
def test_colours_are_for_terminals_without_no_color(command: str) -> None:
    """As of every command."""
    arguments = (command, SHOP, *(("order.paid",) if command == "explain" else ()))
    environment = {name: value for name, value in os.environ.items() if name == "NO_COLOR"}

    assert not environment
    assert "\x1b[1m" in _on_a_terminal(*arguments)
    assert "\x1b[31m" not in _on_a_terminal(*arguments, NO_COLOR="1")
    assert "\x1b" not in run(*arguments).stdout
