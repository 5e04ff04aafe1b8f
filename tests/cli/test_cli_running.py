"""Finding applications, running them, and ending: signals, terminals, and missing packages."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import aperion
from aperion.cli.loading import load_app
from aperion.errors import ApplicationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    Start: TypeAlias = Callable[..., subprocess.Popen[str]]

COMMAND = (sys.executable, "-m", "aperion")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "NO_COLOR", "COLUMNS"}},
    "PYTHONPATH": str(Path(aperion.__file__).parent.parent),
    "TERM": "xterm",
}
GOOD = '{"type": "order.placed", "payload": {}}\n'

APP = """
    import anyio, aperion
    bus = aperion.EventBus()
    app = aperion.App(bus)
    number = 7

    class inner:
        bus = bus
        deeper = type("Deeper", (), {"app": app})

    @bus.on("order.*", name="tell")
    async def tell(event):
        print("handled", event.event_type, flush=True)

    @bus.on("order.slow", name="dawdle")
    async def dawdle(event):
        await anyio.sleep(60)

    def make():
        return aperion.App(aperion.EventBus())

    def make_wrong(needed):
        return app

    def make_and_fail():
        raise LookupError("password=hunter2")

    async def make_async():
        return app

    @app.service
    async def announce():
        print("ready", flush=True)
        await anyio.sleep_forever()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a directory with applications in it the current one."""
    (tmp_path / "service.py").write_text(textwrap.dedent(APP))
    (tmp_path / "syntax.py").write_text("def broken(:\n")
    (tmp_path / "fails.py").write_text(
        "import aperion\n\npassword = 'hunter2'\nraise ValueError(f'password={password}')\n"
    )
    (tmp_path / "quits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "needs.py").write_text("import package_that_nobody_has\n")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "main.py").write_text("from aperion import EventBus\nbus = EventBus()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with nothing on its standard input."""
    return subprocess.run(
        [*COMMAND, *args], env=ENVIRONMENT, input="", capture_output=True, text=True, timeout=45, check=False
    )


# Application paths


@pytest.mark.parametrize(
    "path",
    ["service:app", "service:bus", "service:make", "service:inner.bus", "service:inner.deeper.app", "shop.main:bus"],
)
def test_an_application_is_found(path: str) -> None:
    assert isinstance(load_app(path), aperion.App)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("service", ["has no colon", "module:attribute"]),
        ("service:", ["name of the attribute"]),
        (":app", ["name of the module"]),
        ("my-service:app", ["'my-service'", "name of the module"]),
        ("service.py:app", ["names a file", "'service:app'"]),
        ("./shop/main.py:bus", ["names a file", "'shop.main:bus'"]),
        ("servce:app", ["no module 'servce'", "did you mean 'service'"]),
        ("shop.mian:bus", ["no module 'shop.mian'", "did you mean 'shop.main'"]),
        ("nowhere.main:app", ["no module 'nowhere'", "'nowhere.main' cannot be imported"]),
        ("service.part:app", ["no module 'service.part'"]),
        ("service:ap", ["'service' has no attribute 'ap'", "did you mean 'app'"]),
        ("service:zzzzzz", ["no attribute 'zzzzzz'", "'app', 'bus'"]),
        ("service:inner.zzz", ["'service:inner' has no attribute 'zzz'"]),
        ("shop:zzzzzz", ["no attribute", "no App and no EventBus"]),
        ("service:number", ["of type int", "aperion.App"]),
        ("service:make_wrong", ["cannot be called without arguments", "needed"]),
        ("service:make_and_fail", ["calling 'service:make_and_fail' raised LookupError", "service.py:26"]),
        ("service:make_async", ["async function"]),
        ("fails:app", ["importing 'fails' raised ValueError", "fails.py:4"]),
        ("syntax:app", ["raised SyntaxError", "syntax.py:1"]),
        ("quits:app", ["raised SystemExit: 3", "quits.py:1"]),
        ("needs:app", ["raised ModuleNotFoundError", "package_that_nobody_has", "needs.py:1"]),
    ],
)
def test_an_application_path_that_is_wrong_says_where(path: str, parts: list[str]) -> None:
    with pytest.raises(ApplicationError) as caught:
        load_app(path)

    for part in parts:
        assert part in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("args", [["run", "servce:app"], ["replay", "-", "--app", "fails:app"]])
def test_a_wrong_application_is_one_line_and_exit_code_2(args: list[str]) -> None:
    done = run(*args)

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("args", [["--debug", "run", "fails:app"], ["run", "fails:app", "--debug"]])
def test_debug_shows_the_traceback(args: list[str]) -> None:
    done = run(*args)

    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert "fails.py" in done.stderr


@pytest.mark.parametrize(
    "args", [["replay"], ["replay", "x"], ["nonsense"], ["replay", "-", "--app", "service:app", "--limit", "0"]]
)
def test_a_wrong_command_line_exits_with_2(args: list[str]) -> None:
    done = run(*args)

    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_shown() -> None:
    done = run("--version")

    assert done.returncode == 0
    assert done.stdout.startswith("aperion ")


def test_missing_packages_are_named_with_what_to_install(folder: Path) -> None:
    (folder / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')\n")

    done = run("--version")

    assert done.returncode == 2
    assert 'pip install "aperion-bus[cli]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


# Running and ending


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the command with pipes to all three streams; what still runs at the end is killed."""
    with ExitStack() as stack:

        def started(*args: str) -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            command = [*COMMAND, *args]
            process = subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield started


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read standard output up to a line that starts so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(f"{text} never came; standard error says: {process.communicate()[1]}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("path", ["service:app", "service:make"])
def test_run_runs_until_a_signal_and_exits_with_0(
    start: Start, folder: Path, number: signal.Signals, path: str
) -> None:
    (folder / "service.py").write_text(textwrap.dedent(APP).replace("aperion.App(aperion.EventBus())", "app"))
    process = start("run", path)
    wait_for(process, "ready")

    process.send_signal(number)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == 0
    assert "Traceback" not in errors


def test_run_says_what_it_runs_what_it_waits_for_and_how_to_end_it(start: Start, folder: Path) -> None:
    service = """
        import anyio
        import aperion

        bus = aperion.EventBus(audit="events.jsonl")
        app = aperion.App(bus)

        @bus.on("order.*", name="shop.bill")
        async def bill(event):
            print("ready", flush=True)
            await anyio.sleep(0.3)
            raise ValueError("no such customer")

        @app.service
        async def emit():
            await bus.emit("order.placed", {})
    """
    (folder / "service.py").write_text(textwrap.dedent(service))
    process = start("run", "service:app")
    wait_for(process, "ready")

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == 0
    told = errors.splitlines()
    log = folder / "events.jsonl"
    assert told[:3] == ["aperion: running service:app", "  handlers   1: shop.bill", f"  audit log  {log}"]
    assert told[3].startswith("  stop       Ctrl-C")
    assert "event='stopping' signal='SIGINT' pending=1 hint='a second one quits at once'" in told[4]
    assert "event='delivery failed'" in told[5]
    trace = told[6:]
    assert trace[0] == "Traceback (most recent call last):"
    assert [line.split(", ")[-1] for line in trace if line.startswith("  File")] == ["in bill"]
    assert trace[-1] == "ValueError: no such customer"


def test_ctrl_c_ends_the_reading_drains_and_sums_up(start: Start) -> None:
    process = start("replay", "-", "--app", "service:app")
    assert process.stdin is not None
    process.stdin.write(GOOD * 3)
    process.stdin.flush()
    for _ in range(3):
        wait_for(process, "handled")

    process.send_signal(signal.SIGINT)  # while it waits for a line that never comes
    assert process.stdout is not None
    output = process.stdout.read()

    assert process.wait(30) == 130
    assert "Stopped replaying standard input" in output
    assert "3 read, 3 accepted, 0 rejected" in output
    assert "all settled" in output


def test_a_second_ctrl_c_ends_at_once(start: Start) -> None:
    process = start("replay", "-", "--app", "service:app")
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write('{"type": "order.slow", "payload": {}}\n')
    process.stdin.flush()
    wait_for(process, "handled")

    process.send_signal(signal.SIGINT)
    assert "stopping" in process.stderr.readline()
    process.send_signal(signal.SIGINT)

    assert process.wait(10) == 130
    assert "Traceback" not in process.stderr.read()


def test_a_service_that_fails_ends_the_replay_with_a_summary(start: Start, folder: Path) -> None:
    failing = '\n@app.service\nasync def fail():\n    await anyio.sleep(0.2)\n    raise OSError("password=hunter2")\n'
    (folder / "service.py").write_text(textwrap.dedent(APP) + failing)
    process = start("replay", "-", "--app", "service:app")
    assert process.stdin is not None
    process.stdin.write(GOOD)
    process.stdin.flush()  # and stays open

    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = process.stdout.read(), process.stderr.read()

    assert process.wait(30) == 1
    assert "Stopped replaying" in output
    assert "the application failed: OSError" in output
    assert "hunter2" not in output + errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_reload_starts_again_when_the_code_changes(start: Start, folder: Path) -> None:
    process = start("run", "service:app", "--reload")
    wait_for(process, "ready")

    # Of another length: bytecode of a file that keeps its size within one second counts as up to date.
    (folder / "service.py").write_text(textwrap.dedent(APP).replace('"ready"', '"once more"'))
    wait_for(process, "once more")
    process.send_signal(signal.SIGINT)

    assert process.wait(30) == 0


# Terminals


def on_terminal(*args: str, lines: str) -> str:
    """Run the command on a terminal of its own and return what reached it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, *args], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert process.stdin is not None
    process.stdin.write(lines.encode())
    process.stdin.close()
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # Linux: nobody has the other end open any more
        pass
    os.close(ours)
    process.wait(30)
    return seen.decode()


def test_a_terminal_sees_progress_colour_and_the_summary(folder: Path) -> None:
    (folder / "events.jsonl").write_text(GOOD * 30_000)

    seen = on_terminal("replay", "events.jsonl", "--app", "shop.main:bus", lines="")

    for part in ("replaying", "events,", "/s", "30,000 read", "\x1b["):
        assert part in seen


def test_control_characters_of_events_reach_no_terminal(folder: Path) -> None:
    (folder / "evil.py").write_text(
        "import aperion\nbus = aperion.EventBus()\n"
        "@bus.on('a.*')\ndef fail(event):\n    raise ValueError(event.payload['x'])\n"
    )
    evil = "\\u001b]0;owned\\u0007\\u009b31m\\u202e"
    lines = f'{{"type": "a.b", "payload": {{"x": "{evil}"}}}}\n{{"type": "{evil}", "payload": {{}}}}\n'

    seen = on_terminal("replay", "-", "--app", "evil:bus", lines=lines)

    assert "owned" in seen
    for control in ("\x1b]0", "\x07", "\x9b", "\u202e"):
        assert control not in seen
