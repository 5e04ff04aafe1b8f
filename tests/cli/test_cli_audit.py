"""``aperion audit``, run as a user runs it: what comes out for people and machines, exit codes, hostile data."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

import aperion
from aperion.audit.chain import START, seal
from aperion.audit.query import AuditRecord, Query
from aperion.audit.signing import SigningKey
from aperion.cli.audit_bars import bar
from aperion.cli.audit_export import cell
from aperion.cli.audit_options import moment
from aperion.cli.audit_progress import Watched
from aperion.cli.audit_runs import by_run
from aperion.errors import ApplicationError

COMMAND = (sys.executable, "-m", "aperion", "audit")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parent.parent)}
HOSTILE = "\x1b]0;owned\x07\x1b[31m \u202eevil \x9b2J \r\n"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**ENVIRONMENT, **environment},
        timeout=45,
        check=False,
    )


def with_terminal_for_errors(*arguments: object) -> tuple[bytes, str]:
    """Return what a pipe on standard output gets, and the terminal on standard error."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        env={**ENVIRONMENT, "COLUMNS": "140", "TERM": "xterm-256color"},
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait(30) == 0
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    return out, shown


def on_terminal(*arguments: object, **environment: str) -> str:
    """Return what a terminal of 140 columns gets."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env={**ENVIRONMENT, "COLUMNS": "140", "TERM": "xterm-256color", **environment},
    ) as process:
        os.close(theirs)
        got = b""
        try:
            while chunk := os.read(ours, 65536):
                got += chunk
        except OSError:  # what Linux says when the other side is closed
            pass
        os.close(ours)
        assert process.wait(30) == 0
    return got.decode()


async def _fill(path: Path, key: SigningKey | None) -> None:
    log = aperion.AuditLog(path, checkpoints=aperion.audit.Checkpoints(key=key))
    async with aperion.EventBus(audit=log) as bus:

        @bus.on("order.placed", name="pay")
        async def pay(event: aperion.Event) -> None:
            await bus.emit("payment.taken", {"n": 1})

        @bus.on("payment.taken", name="ship", retry=aperion.Retry(attempts=2, wait_initial=0.001))
        async def ship(event: aperion.Event) -> None:
            raise ValueError(f"no ship {HOSTILE}")

        with anyio.fail_after(10):
            await bus.emit("order.placed", {"note": HOSTILE}, correlation_id="req-1", source="=cmd()")
            await bus.emit("chat.sent", {"text": "hello"})
            await bus.wait_settled()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    anyio.run(_fill, path, None)
    return path


@pytest.fixture(scope="module")
def records(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="ascii").splitlines()]


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_tail_shows_the_last_records_in_their_order(log: Path, records: list[dict[str, Any]]) -> None:
    assert lines(run("tail", log, "-n", 3, "--json")) == records[-3:]
    assert [line.split()[0] for line in run("tail", log, "-n", 2).stdout.splitlines()] == [
        str(record["seq"]) for record in records[-2:]
    ]


@pytest.mark.slow
def test_tail_follows_until_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    anyio.run(_fill, path, None)
    before = len(path.read_bytes().splitlines())
    with subprocess.Popen(
        [*COMMAND, "tail", str(path), "-f", "-n", "1", "--json"], stdout=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["seq"] == before

        anyio.run(_fill, path, None)

        assert [json.loads(process.stdout.readline())["seq"] for _ in range(5)] == list(range(before + 1, before + 6))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


@pytest.mark.parametrize(
    ("options", "matches"),
    [
        (["--type", "order.*"], lambda r: r.get("type", "").startswith("order.")),
        (["--type", "order.*", "--type", "chat.sent"], lambda r: r.get("type") in {"order.placed", "chat.sent"}),
        (["--kind", "dead_lettered"], lambda r: r["kind"] == "dead_lettered"),
        (["--correlation", "req-1", "--kind", "accepted"], lambda r: r.get("correlation_id") == "req-1" and r["kind"] == "accepted"),
        (["--source", "event_bus"], lambda r: r.get("source") == "event_bus"),
        (["--subscription", "ship", "--state", "failed"], lambda r: r.get("subscription") == "ship"),
        (["--text", "HELLO"], lambda r: "hello" in str(r)),
        (["--since", "1h"], lambda r: True),
        (["--until", "2020-01-01T00:00:00Z"], lambda r: False),
    ],
)  # fmt: skip
def test_search_finds_what_matches_and_nothing_else(
    log: Path, records: list[dict[str, Any]], options: list[str], matches: Any
) -> None:
    assert lines(run("search", log, "--json", *options)) == [record for record in records if matches(record)]


def test_search_from_the_end_stops_at_its_limit(log: Path, records: list[dict[str, Any]]) -> None:
    assert lines(run("search", log, "--newest", "-n", 2, "--json")) == records[:-3:-1]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("search",), ("search", "--json"), ("export", "--format", "csv", "-o", "-")])
def test_what_a_pipe_gets_does_not_depend_on_the_progress_beside_it(log: Path, arguments: tuple[str, ...]) -> None:
    command, *rest = arguments

    out, shown = with_terminal_for_errors(command, log, *rest)

    assert out.decode().splitlines() == run(command, log, *rest).stdout.splitlines()
    assert "ing" in shown
    assert "order.placed" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("newest", [False, True])
def test_progress_goes_on_where_nothing_matches(tmp_path: Path, newest: bool) -> None:
    body = b'{"time":1,"kind":"accepted","event_id":"a","type":"a.b","correlation_id":"r","payload":"%b"}\n' % (
        b"x" * 1000
    )
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(seal([body] * 2000, START)[0]))
    told: list[int] = []

    class Telling(Watched):
        def _tell(self, done: int) -> None:
            super()._tell(done)
            told.append(done)

    with Telling(path, Query(text="nothing", newest_first=newest), "searching") as reading:
        assert list(reading) == []

    assert len(told) > 5
    assert told == sorted(told)
    assert told[-1] == path.stat().st_size


@pytest.mark.parametrize(
    ("options", "hint"),
    [(["--kind", "acepted"], "did you mean 'accepted'"), (["--state", "?"], "choose from failed, ok")],
)
def test_a_kind_or_state_that_no_log_has_is_an_error_and_not_an_empty_answer(
    log: Path, options: list[str], hint: str
) -> None:
    done = run("search", log, *options)

    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr


def test_show_tells_all_about_one_event_and_exits_with_1_without_it(log: Path, records: list[dict[str, Any]]) -> None:
    event_id = next(r["event_id"] for r in records if r.get("type") == "payment.taken")

    done, missing = run("show", log, event_id), run("show", log, "nobody")

    assert done.returncode == 0
    assert '"n": 1' in done.stdout
    assert done.stdout.count("failed ship") == 2
    assert lines(run("show", log, event_id, "--json")) == [r for r in records if r.get("event_id") == event_id]
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "no event nobody" in missing.stderr


def test_trace_draws_the_tree_with_a_bar_for_each_handler(log: Path) -> None:
    done = run("trace", log, "req-1")

    rows = done.stdout.splitlines()
    assert done.returncode == 0
    assert rows[3].startswith("order.placed")
    assert re.match(r"│  pay +·*█.*ok  1 attempt", rows[4])
    assert rows[5].startswith("└─ payment.taken")
    assert re.match(r"   │  ship +·*█.*failed  2 attempts, .*ValueError: no ship", rows[6])
    assert run("trace", log, "nothing").returncode == 1


def test_two_runs_with_one_log_are_traced_each_by_itself(tmp_path: Path) -> None:
    """A replay takes ids from its file: the second time the same events are accepted again, and neither tree has both."""
    path = tmp_path / "events.jsonl"

    async def replay_once() -> None:
        async with aperion.EventBus(audit=path) as bus:

            @bus.on("order.placed", name="pay")
            async def pay(event: aperion.Event) -> None:
                await bus.emit("payment.taken", {})

            bus.subscribe(lambda event: None, "payment.taken", name="ship")
            await bus.emit("order.placed", {}, correlation_id="req-1", event_id="order-1")

    for _ in range(3):
        anyio.run(replay_once)
    done = run("trace", path, "req-1")

    parts = done.stdout.split("correlation ")[1:]
    assert [part.splitlines()[0] for part in parts] == [f"req-1, run {n} of 3" for n in (1, 2, 3)]
    for part in parts:
        assert part.count("order.placed") == part.count("payment.taken") == part.count("  pay ") == 1
        assert "└─ payment.taken" in part
        assert "2 attempts" not in part
    assert len(lines(run("trace", path, "req-1", "--json"))[0]["events"]) == 6


def test_what_a_later_run_says_of_an_event_belongs_to_the_run_that_accepted_it() -> None:
    """As where a process goes on with what another one has left, and what it causes then."""
    records = [
        AuditRecord({"seq": seq, "time": seq, "kind": kind, "event_id": event, "causation_id": cause}, "")
        for seq, kind, event, cause in (
            (2, "accepted", "a", None),
            (12, "outcome", "a", None),
            (13, "accepted", "b", "a"),
            (14, "accepted", "c", None),
        )
    ]

    assert [[r.seq for r in run] for run in by_run(records, [1, 11])] == [[2, 12, 13], [14]]


def test_trace_as_json_is_flat_and_says_who_caused_whom(log: Path) -> None:
    (traced,) = lines(run("trace", log, "req-1", "--json"))

    first, second, *_ = traced["events"]
    assert traced["roots"] == [first["event_id"]]
    assert first["children"] == [second["event_id"]]
    assert second["deliveries"][0]["attempts"][1]["state"] == "failed"


@pytest.mark.slow
def test_trace_draws_a_thousand_generations(tmp_path: Path) -> None:
    bodies = [
        b'{"time":%d,"kind":"accepted","event_id":"e%d","type":"a.b","correlation_id":"r","causation_id":"e%d","payload":{}}\n'
        % (10**18 + n, n, n - 1)
        for n in range(1000)
    ]
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(seal(bodies, START)[0]))

    assert run("trace", path, "r").stdout.count("a.b") == 1000
    assert len(lines(run("trace", path, "r", "--json"))[0]["events"]) == 1000


@pytest.mark.slow
def test_stats_count_and_the_chart_is_an_svg_with_axes(log: Path, tmp_path: Path) -> None:
    svg = tmp_path / "chart.svg"

    (counted,) = lines(run("stats", log, "--svg", svg, "--json"))

    assert counted["types"] == {"order.placed": 1, "payment.taken": 1, "chat.sent": 1}
    assert counted["states"] == {"ok": 1, "failed": 2}
    assert counted["handlers"]["ship"]["states"] == {"failed": 2}
    assert sum(piece["accepted"] for piece in counted["slices"]) == 3
    texts = " ".join(ET.parse(svg).getroot().itertext())
    assert "per second" in texts
    assert "time (UTC)" in texts
    assert "href" not in svg.read_text(encoding="utf-8")
    assert "█" in run("stats", log).stdout


@pytest.mark.slow
def test_an_attempt_that_timed_out_is_found_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    async def main() -> None:
        async with aperion.EventBus(audit=aperion.AuditLog(path)) as bus:

            @bus.on("order.placed", name="slow", timeout=0.01)
            async def slow(event: aperion.Event) -> None:
                await anyio.sleep_forever()

            with anyio.fail_after(10):
                await bus.emit("order.placed", {"n": 1})
                await bus.wait_settled()

    anyio.run(main)

    (found,) = lines(run("search", path, "--state", "timed_out", "--json"))
    (counted,) = lines(run("stats", path, "--json"))
    assert found["subscription"] == "slow"
    assert counted["states"] == {"timed_out": 1}
    assert sum(piece["failed"] for piece in counted["slices"]) == 1


def test_verify_exits_with_0_and_says_what_is_not_proved(log: Path) -> None:
    done = run("verify", log)

    assert done.returncode == 0
    assert done.stdout.startswith("ok: ")
    assert "no signature was checked" in done.stdout
    assert "the end is still there" in done.stdout
    assert lines(run("verify", log, "--json"))[0]["ok"] is True


def test_verify_exits_with_1_and_names_the_line_that_was_changed(log: Path, tmp_path: Path) -> None:
    changed = tmp_path / "events.jsonl"
    changed.write_bytes(log.read_bytes().replace(b'"hello"', b'"hullo"'))

    done = run("verify", changed)
    found = json.loads(run("verify", changed, "--json").stdout)

    assert done.returncode == 1
    assert re.search(r"^events\.jsonl:\d+: altered", done.stdout, re.MULTILINE)
    assert (found["ok"], found["problems"][0]["kind"]) == (False, "altered")


@pytest.mark.slow
def test_a_checkpoint_kept_elsewhere_shows_that_the_end_was_cut(tmp_path: Path) -> None:
    path, kept, public = tmp_path / "events.jsonl", tmp_path / "kept.json", tmp_path / "key.pub"
    key = SigningKey.generate("audit-1")
    key.public.save(public)
    anyio.run(_fill, path, key)
    kept.write_text(run("checkpoint", path).stdout, encoding="ascii")
    whole = run("verify", path, "--key", public, "--checkpoint", kept)

    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    cut = run("verify", path, "--key", public, "--checkpoint", kept)

    assert (whole.returncode, whole.stdout.count("not proved")) == (0, 0), whole.stdout
    assert cut.returncode == 1
    assert "truncated" in cut.stdout


@pytest.mark.slow
def test_the_end_kept_elsewhere_shows_that_one_record_was_cut(tmp_path: Path) -> None:
    path, kept = tmp_path / "events.jsonl", tmp_path / "kept.json"
    anyio.run(_fill, path, None)
    rows = path.read_bytes().splitlines(keepends=True)
    kept.write_text(run("checkpoint", path, "--at-end").stdout, encoding="ascii")
    whole = run("verify", path, "--checkpoint", kept)

    path.write_bytes(b"".join(rows[:-1]))
    cut = run("verify", path, "--checkpoint", kept)

    last = json.loads(rows[-1])
    told = json.loads(kept.read_text(encoding="ascii"))
    assert (told["count"], told["last"], told["log"]) == (last["seq"], last["hash"], json.loads(rows[0])["log"])
    assert whole.returncode == 0, whole.stdout
    assert cut.returncode == 1
    assert "truncated" in cut.stdout


@pytest.mark.slow
def test_checkpoint_exits_with_1_where_there_is_none(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(log.read_bytes().splitlines(keepends=True)[0])

    done = run("checkpoint", path)

    assert (done.returncode, done.stdout) == (1, "")
    assert lines(run("checkpoint", log))[0]["kind"] == "checkpoint"


def test_cloudevents_are_valid_by_their_attribute_names(log: Path, records: list[dict[str, Any]]) -> None:
    events = lines(run("export", log, "--format", "cloudevents", "-o", "-"))

    assert len(events) == len(records)
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for event in events for name in event)
    assert all(event["specversion"] == "1.0" and event["id"] and event["type"] for event in events)
    assert len({(event["source"], event["id"]) for event in events}) == len(events)
    order = next(event for event in events if event["type"] == "order.placed")
    assert (order["correlationid"], order["data"]) == ("req-1", {"note": HOSTILE})
    assert order["source"] == "=cmd()"


@pytest.mark.slow
def test_csv_cells_are_no_formulas_and_hold_no_control_characters(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.csv"

    done = run("export", log, "--format", "csv", "-o", file, "--correlation", "req-1")

    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    assert done.returncode == 0
    assert rows[0]["source"] == "'=cmd()"
    assert json.loads(rows[0]["payload"]) == {"note": HOSTILE}
    assert not any(value.startswith(("=", "+", "-", "@")) for row in rows for value in row.values())
    assert not RAW.search("".join(value for row in rows for value in row.values()))
    assert file.stat().st_mode & 0o777 == 0o600
    (told,) = lines(run("export", log, "--format", "csv", "-o", file, "--json"))
    assert told == {"written": len(log.read_bytes().splitlines()), "skipped_lines": 0, "file": str(file)}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\uff1d1", "\t=1", "\r=1", "\n@x"])
def test_a_formula_loses_its_beginning(text: str) -> None:
    shown = str(cell("error", text))

    assert shown[0] in "'\\"
    assert not RAW.search(shown)


def test_a_number_of_our_own_stays_a_number() -> None:
    assert cell("duration", -1.5) == -1.5
    assert cell("error", None) == ""


@pytest.mark.slow
def test_export_refuses_to_overwrite_the_log_and_says_what_parquet_needs(log: Path, tmp_path: Path) -> None:
    before = log.read_bytes()

    over = run("export", log, "--format", "csv", "-o", log)

    assert over.returncode == 2
    assert log.read_bytes() == before
    for name in ("events.000007.jsonl", "events.000007.jsonl.idx", "events.jsonl.ring"):
        assert run("export", log, "--format", "csv", "-o", log.with_name(name)).returncode == 2
        assert not log.with_name(name).exists()
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError('pyarrow')", encoding="ascii")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    parquet = run("export", log, "--format", "parquet", "-o", tmp_path / "x", PYTHONPATH=path)
    assert parquet.returncode == 2
    assert "pip install pyarrow" in parquet.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("tail", "-n", 100), ("search",), ("trace", "req-1"), ("stats",), ("tail", "-n", 100, "--json")]
)
def test_no_control_character_of_the_data_is_printed(log: Path, arguments: tuple[Any, ...]) -> None:
    command, *rest = arguments

    done = run(command, log, *rest)

    assert done.returncode == 0
    assert not RAW.search(done.stdout)


ODD = [
    {},
    {"kind": 5, "detail": [1]},
    {"attempt": "x", "duration": "y", "state": None, "subscription": [1]},
    {"event_id": 7, "type": ["x"]},
    {"kind": "accepted", "headers": 5, "source": {"a": 1}, "type": "", "causation_id": ["a"], "payload": HOSTILE},
    {"error_type": 5, "error": {HOSTILE: 1}, "source": [HOSTILE]},
    {"kind": HOSTILE, "event_id": HOSTILE, "type": HOSTILE, "subscription": HOSTILE, "state": HOSTILE},
    {"subscription": HOSTILE, "state": HOSTILE, "duration": 1e308, "hops": HOSTILE, "key": HOSTILE},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("tail",), ("search",), ("show", "a"), ("show", HOSTILE), ("trace", "r"), ("trace", "r", "--json"), ("stats",),
        ("stats", "--svg", "/dev/null"), ("export", "--format", "csv", "-o", "-"),
        ("export", "--format", "cloudevents", "-o", "-"),
    ],
)  # fmt: skip
def test_records_that_somebody_else_wrote_are_shown_without_their_control_characters(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    command, *rest = arguments
    first = {"time": 10**18, "kind": "outcome", "event_id": "a", "type": "a.b", "correlation_id": "r", "hops": 0}
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(seal([orjson.dumps({**first, **odd}) + b"\n" for odd in ODD], START)[0]))

    done = run(command, path, *rest)

    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not RAW.search(done.stdout.replace("\r\n", "\n"))


@pytest.mark.slow
def test_a_terminal_gets_colours_and_with_no_color_none(log: Path) -> None:
    coloured, plain = on_terminal("tail", log), on_terminal("tail", log, NO_COLOR="1")

    assert "\x1b[" in coloured
    assert "event type" in coloured
    assert not RAW.search(re.sub("\x1b\\[[0-9;]*m", "", coloured).replace("\r\n", "\n"))
    assert "owned" in coloured
    assert "\x1b" not in plain
    assert "event type" in plain


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("tail",), ("search",), ("show", "x"), ("trace", "x"), ("stats",), ("verify",), ("checkpoint",)]
)
def test_a_log_that_is_not_there_is_one_line_and_exit_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    command, *rest = arguments

    done = run(command, tmp_path / "events.jsonl", *rest)

    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: there is no audit log at .*AuditLog\n", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [("search", "--since", "yesterday"), ("search", "--type", "order.pl*"), ("verify", "--key", "/nowhere")],
)
def test_a_wrong_option_is_one_line_and_exit_2(log: Path, arguments: tuple[str, ...]) -> None:
    command, *rest = arguments

    done = run(command, log, *rest)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_pipe_or_a_link_in_the_place_of_a_log_is_one_line_and_exit_2(log: Path, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe.jsonl", tmp_path / "link.jsonl"
    os.mkfifo(pipe)
    link.symlink_to(log)

    from_pipe, from_link = run("tail", pipe), run("tail", link)

    assert (from_pipe.returncode, from_link.returncode) == (2, 2)
    assert from_pipe.stderr == f"error: {pipe} is no regular file; give the path that was given to aperion.AuditLog\n"
    assert str(log) in from_link.stderr


@pytest.mark.slow
def test_a_full_file_that_cannot_be_unpacked_is_found_and_does_not_hide_the_others(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(log.read_bytes())
    (tmp_path / "events.000001.jsonl.gz").write_bytes(b"no gzip")

    verified, searched = run("verify", path), run("search", path, "--json")

    assert verified.returncode == 1
    assert "events.000001.jsonl.gz:1: damaged: this cannot be unpacked" in verified.stdout
    assert len(searched.stdout.splitlines()) == len(log.read_bytes().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["search", "stats"])
def test_a_pipe_that_is_closed_ends_it_quietly(log: Path, command: str) -> None:
    shell = f"{sys.executable} -m aperion audit {command} {log} | true"

    done = subprocess.run(["sh", "-c", shell], capture_output=True, env=ENVIRONMENT, timeout=45, check=True)

    assert (done.stdout, done.stderr) == (b"", b"")


def test_times_are_rfc_3339_or_so_long_ago() -> None:
    at = moment("2024-05-01T14:00:00+02:00", "--since")
    ago, longer = moment("15m", "--since"), moment("2h", "--since")

    assert at is not None
    assert at.isoformat() == "2024-05-01T14:00:00+02:00"
    assert ago is not None
    assert longer is not None
    assert ago > longer
    for wrong in ("2024-05-01", "2024-02-31T00:00:00Z", "h", "999999999w", "-5m"):
        with pytest.raises(ApplicationError, match="no time"):
            moment(wrong, "--since")


def test_a_bar_shows_even_the_smallest_value() -> None:
    assert bar(0, 10) == ""
    assert bar(1e-9, 10) == "▏"
    assert bar(10, 10, 4) == "████"
