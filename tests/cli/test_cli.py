"""The ``aperion`` command, run as a user runs it: exit codes, what is printed, and where."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import aperion

COMMAND = (sys.executable, "-m", "aperion")
PACKAGES = str(Path(aperion.__file__).parent.parent)
GOOD = '{"type": "order.placed", "payload": {"n": 1}}\n'

APP = """
    import os, sys, time, anyio, aperion
    bus = aperion.EventBus()
    app = aperion.App(bus)
    inner = type("Inner", (), {"bus": bus})
    number = 7

    @bus.on("order.*", name="count")
    async def count(event):
        pass

    @bus.on("order.failed", name="fail")
    async def fail(event):
        raise RuntimeError(event.payload["why"])

    @bus.on("order.slow", name="dawdle")
    async def dawdle(event):
        print("handling", flush=True)
        await anyio.sleep(3600)  # far longer than replay() waits

    @bus.on("order.noisy", name="chatter")
    def chatter(event):
        print("printed by the application", flush=True)
        os.write(1, b"written past Python\\n")

    failures = []

    @bus.on("order.retried", name="recover", retry=aperion.Retry(wait_initial=0.3))
    async def recover(event):
        failures.append(1)
        if len(failures) == 1:
            raise OSError("once")

    @bus.on("order.parent", name="parent")
    async def parent(event):
        await bus.emit("order.child", {})

    def make():
        return aperion.App(aperion.EventBus())

    def make_wrong(needed):
        return app

    def make_and_fail():
        raise LookupError("password=hunter2")

    async def make_async():
        return app
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a directory with an application in it."""
    (tmp_path / "service.py").write_text(textwrap.dedent(APP))
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what colours the output."""
    unwanted = {"FORCE_COLOR", "NO_COLOR", "COLUMNS", "TERM", "PYTHONSTARTUP"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONPATH": PACKAGES, "TERM": "xterm", **more}


def run(folder: Path, *args: str, lines: str | bytes = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder; ``lines`` go to its standard input."""
    text = lines if isinstance(lines, str) else lines.decode()
    return subprocess.run(
        [*COMMAND, *args],
        cwd=folder,
        env=environment(**more),
        input=text,
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )


def replay(folder: Path, lines: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Replay lines from standard input through the application in the folder."""
    return run(folder, "replay", "-", "--app", "service:app", *args, lines=lines)


def as_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Read the summary, which must be all that is on standard output."""
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


# What goes well


def test_a_replay_without_trouble_exits_with_0_and_counts_everything(folder: Path) -> None:
    done = replay(folder, GOOD * 3, "--json")

    summary = as_json(done)
    assert done.returncode == summary["exit_code"] == 0
    assert summary["lines"] == {"read": 3, "rejected": 0, "left_out": 0}
    assert summary["events"]["accepted"] == 3
    assert summary["events"]["by_type"] == {"order.placed": 3}
    assert summary["deliveries"]["count"]["ok"] == 3
    assert summary["deliveries"]["count"]["p50"] > 0
    assert summary["dead_letters"] == {"total": 0, "groups": []}
    assert summary["audit_log"] is None
    assert done.stderr == ""


def test_the_printed_summary_says_the_same_in_words(folder: Path) -> None:
    done = replay(folder, GOOD * 3)

    assert done.returncode == 0
    for part in ("3 read, 3 accepted, 0 rejected", "Events by type", "order.placed", "p95", "count", "no audit log"):
        assert part in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("lines", "code", "reasons"),
    [
        (GOOD, 0, "all went well"),
        ("oops\n" + GOOD, 1, "1 line rejected"),
        ('{"type": "order.failed", "payload": {"why": "x"}}\n' * 2, 1, "2 deliveries failed; 2 dead letters"),
    ],
)
def test_the_summary_ends_with_the_exit_code_and_why_it_is_so(
    folder: Path, lines: str, code: int, reasons: str
) -> None:
    """So that nobody has to add up the columns; the same for machines."""
    done = replay(folder, lines)
    told = as_json(replay(folder, lines, "--json"))["exit_reasons"]

    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == f"Exit code  {code}: {reasons}"
    assert told == ([] if code == 0 else reasons.split("; "))


LONG = "a_handler_with_a_name_that_says_all_it_does"


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_columns_give_way_on_a_narrow_terminal_and_never_the_name_of_the_handler(folder: Path, columns: int) -> None:
    """What did not happen goes first; whole columns go, and no number is cut."""
    names = "".join(
        f'bus.subscribe(count, "order.*", name="{name}")\n' for name in (LONG, "short_one", "examples_of_handlers")
    )
    (folder / "wide.py").write_text(f"from service import *\n{names}")
    (folder / "some.jsonl").write_text('{"type": "order.failed", "payload": {"why": "x"}}\n' * 1234)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "replay", "some.jsonl", "--app", "wide:app"],
        cwd=folder,
        env=environment(COLUMNS=str(columns)),
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    ) as process:
        os.close(theirs)
        printed = _everything(ours)
        assert process.wait(30) == 1

    lines = [line.rstrip() for line in printed.splitlines()]
    begin = next(number for number, line in enumerate(lines) if line.startswith("handler "))
    shown = lines[begin : lines.index("", begin)]
    assert max(map(len, shown)) <= columns
    assert shown[0].split()[:3] == ["handler", "ok", "failed"]
    assert [name in shown[0] for name in ("p95", "skipped", "timed out")] == [columns >= 60, columns == 80, False]
    assert any(line.startswith("fail ") and line.split()[1:3] == ["0", "1,234"] for line in shown)
    first = [line.split("  ")[0].split(" ")[0] for line in shown]  # a name that is folded goes on below
    assert LONG in "".join(first)


def _everything(terminal: int) -> str:
    output = b""
    while True:
        try:
            block = os.read(terminal, 65_536)
        except OSError:  # the other side is closed
            block = b""
        if not block:
            os.close(terminal)
            return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
        output += block


def test_a_piped_summary_is_not_cut_to_the_width_of_a_terminal(folder: Path) -> None:
    long = "order." + "x" * 200

    done = run(
        folder, "replay", "-", "--app", "service:app", lines=f'{{"type": "{long}", "payload": {{}}}}\n', COLUMNS="40"
    )

    assert f"{long}  " in done.stdout


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_may_be_plain_or_gzip(folder: Path, packed: bool) -> None:  # noqa: FBT001
    file = folder / ("events.jsonl.gz" if packed else "events.jsonl")
    file.write_bytes(gzip.compress(GOOD.encode() * 5) if packed else GOOD.encode() * 5)

    done = run(folder, "replay", file.name, "--app", "service:app", "--json")

    assert done.returncode == 0
    assert as_json(done)["events"]["accepted"] == 5


def test_events_that_handlers_emit_are_counted_apart(folder: Path) -> None:
    done = replay(folder, '{"type": "order.parent", "payload": {}}\n', "--json")

    events = as_json(done)["events"]
    assert (events["accepted"], events["emitted_by_application"]) == (1, 1)
    assert events["by_type"] == {"order.parent": 1, "order.child": 1}
    assert as_json(done)["deliveries"]["count"]["ok"] == 2


def test_only_the_20_most_frequent_types_are_listed(folder: Path) -> None:
    lines = "".join(f'{{"type": "order.t{n}", "payload": {{}}}}\n' for n in range(23))

    done = replay(folder, GOOD * 2 + lines)

    assert "… and 4 more types" in done.stdout


def test_a_limit_stops_after_that_many_lines(folder: Path) -> None:
    done = replay(folder, f"\n{GOOD}\n" * 9, "--limit", "4", "--json")

    assert as_json(done)["lines"]["read"] == 4


def test_what_the_application_prints_does_not_mix_with_the_json(folder: Path) -> None:
    done = replay(folder, '{"type": "order.noisy", "payload": {}}\n', "--json")

    assert as_json(done)["exit_code"] == 0
    assert "printed by the application" in done.stderr
    assert "written past Python" in done.stderr


def test_fields_that_mean_nothing_are_named(folder: Path) -> None:
    done = replay(folder, '{"type": "order.placed", "payload": {}, "tiem": 3}\n')

    assert done.returncode == 0
    assert "tiem (1)" in done.stdout


def test_retries_are_waited_for_before_the_drain(folder: Path) -> None:
    done = replay(folder, '{"type": "order.retried", "payload": {}}\n', "--json")

    assert done.returncode == 0
    recover = as_json(done)["deliveries"]["recover"]
    assert (recover["ok"], recover["retried"]) == (1, 1)


_HELD = """
@app.on("a.b")
async def hold(event):  # who emits lets the loop turn now and then: what was accepted keeps its place meanwhile
    while app.stats().dropped < 295:
        await anyio.sleep(0.001)
"""


@pytest.mark.parametrize(
    ("options", "handler", "code", "accepted", "lost", "filtered"),
    [
        ("overflow_policy='block', max_pending_events=5", "", 0, 300, 0, 0),
        ("overflow_policy='raise', max_pending_events=5", "", 0, 300, 0, 0),
        ("overflow_policy='drop', max_pending_events=5", _HELD, 1, 5, 295, 0),
        ("processors=[lambda event: event if event.payload['n'] < 100 else None]", "", 0, 100, 0, 200),
    ],
)
def test_what_a_full_bus_and_processors_do_is_told(  # noqa: PLR0913, PLR0917 - a table
    folder: Path, options: str, handler: str, code: int, accepted: int, lost: int, filtered: int
) -> None:
    (folder / "service.py").write_text(f"import anyio, aperion\napp = aperion.EventBus({options})\n{handler}")

    done = replay(folder, "".join(f'{{"type": "a.b", "payload": {{"n": {n}}}}}\n' for n in range(300)), "--json")

    events = as_json(done)["events"]
    assert done.returncode == code
    assert (events["accepted"], events["lost"], events["filtered"]) == (accepted, lost, filtered)
    assert as_json(done)["lines"] == {"read": 300, "rejected": 0, "left_out": 0}


def test_what_a_processor_refuses_is_a_bad_line_and_redacted(folder: Path) -> None:
    (folder / "service.py").write_text(
        "import aperion\ndef refuse(event):\n    raise LookupError('password=hunter2')\n"
        "app = aperion.EventBus(processors=[refuse])\n"
    )

    done = replay(folder, GOOD)

    assert done.returncode == 1
    assert "bad line 1: LookupError" in done.stderr
    assert "hunter2" not in done.stderr


# What goes wrong with events


def test_a_failed_delivery_exits_with_1_and_is_listed_redacted(folder: Path) -> None:
    done = replay(folder, GOOD + '{"type": "order.failed", "payload": {"why": "password=hunter2"}}\n', "--json")

    summary = as_json(done)
    assert done.returncode == summary["exit_code"] == 1
    assert summary["deliveries"]["fail"]["failed"] == 1
    [group] = summary["dead_letters"]["groups"]
    assert (group["reason"], group["handler"], group["count"]) == ("handler_error", "fail", 1)
    assert group["error"].startswith("RuntimeError")
    assert "hunter2" not in done.stdout + done.stderr


def test_a_bad_line_is_reported_with_its_number_and_stops_nothing(folder: Path) -> None:
    done = replay(folder, f'{GOOD}\n  \n{{"type": "order.pl\n{GOOD}', "--json")

    summary = as_json(done)
    assert done.returncode == 1
    assert summary["events"]["accepted"] == 2
    [bad] = summary["rejected_lines"]
    assert bad["line"] == 4
    assert "not JSON" in bad["reason"]
    assert "bad line 4: the line is not JSON" in done.stderr
    assert "Traceback" not in done.stderr


def test_at_most_20_bad_lines_are_shown_and_all_are_counted(folder: Path) -> None:
    done = replay(folder, "nonsense\n" * 50)

    assert done.returncode == 1
    assert done.stderr.count("bad line") == 20
    assert "50, of which the first 20 were shown" in done.stdout


def test_an_event_that_the_bus_refuses_is_a_bad_line(folder: Path) -> None:
    done = replay(folder, f'{{"type": "Not A Type", "payload": {{}}}}\n{GOOD}', "--json")

    summary = as_json(done)
    assert done.returncode == 1
    assert summary["lines"] == {"read": 2, "rejected": 1, "left_out": 0}
    assert "event type" in summary["rejected_lines"][0]["reason"]


def test_what_a_line_says_of_an_event_reaches_the_handlers(folder: Path) -> None:
    (folder / "service.py").write_text(
        "import aperion\nbus = app = aperion.EventBus()\n@bus.on('a.b')\nasync def show(event):\n"
        "    print(event.event_id, event.timestamp, event.correlation_id, event.key, event.source, dict(event.headers))\n"
    )
    line = {"type": "a.b", "payload": {}, "id": "e1", "time": 5, "correlation_id": "c1", "key": "k1", "source": "s1"}

    done = replay(folder, json.dumps({**line, "headers": {"h": "1"}}) + "\n")

    assert "e1 5.0 c1 k1 s1 {'h': '1'}" in done.stdout


def test_unfinished_events_exit_with_1_and_the_drain_is_bounded(folder: Path) -> None:
    done = replay(folder, '{"type": "order.slow", "payload": {}}\n', "--drain-timeout", "0.2", "--json")

    assert done.returncode == 1
    assert as_json(done)["events"]["unfinished"] == 1


def test_an_audit_log_that_cannot_be_written_ends_the_replay_without_a_traceback(folder: Path) -> None:
    (folder / "service.py").write_text(
        "import aperion\napp = aperion.EventBus(audit=aperion.AuditLog('/proc/nope/a.jsonl'))\n"
    )

    done = replay(folder, GOOD)

    assert done.returncode == 2
    assert "/proc/nope/a.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


# Reading


def test_a_truncated_gzip_file_is_reported_and_what_it_holds_is_replayed(folder: Path) -> None:
    lines = "".join(f'{{"type": "order.placed", "payload": {{"n": "{os.urandom(20).hex()}"}}}}\n' for n in range(5000))
    whole = gzip.compress(lines.encode())
    (folder / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])

    done = run(folder, "replay", "cut.jsonl.gz", "--app", "service:app", "--json")

    summary = as_json(done)
    assert done.returncode == 1
    assert 2000 < summary["events"]["accepted"] < 3000
    [bad] = summary["rejected_lines"]
    assert bad["line"] == summary["events"]["accepted"] + 1
    assert "compressed data break off" in bad["reason"]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("missing.jsonl", None, "No such file"),
        (".", None, "Is a directory"),
        ("fake.gz", b"not gzip", "not a gzip file"),
        ("empty.gz", b"", "not a gzip file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_and_exit_code_2(
    folder: Path, name: str, content: bytes | None, part: str
) -> None:
    if content is not None:
        (folder / name).write_bytes(content)

    done = run(folder, "replay", name, "--app", "service:app")

    assert done.returncode == 2
    assert part in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("module", ["aperion", "aperion.cli"])
def test_the_command_runs_as_a_module_too(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=45, check=True
    )
    assert done.stdout.startswith("aperion ")
