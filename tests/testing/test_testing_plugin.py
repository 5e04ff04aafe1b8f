"""The pytest plugin, in suites of users."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import anyio
import asyncio
import pytest
import aperion
from aperion.testing import failing

pytestmark = pytest.mark.anyio

@pytest.fixture(params=["asyncio"])
def anyio_backend():
    return "asyncio"
"""


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    """Run a suite of a user in a process of its own."""
    pytester.makepyfile(HEAD + source)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


def test_the_plugin_brings_a_running_bus_and_a_recorder(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
async def test_passes(bus, recorded):
    await bus.emit("chat.sent", {})
    await recorded.settle()
    recorded.assert_emitted("chat.sent", times=1)

async def test_starts_anew(recorded):
    recorded.assert_not_emitted("chat.sent")

async def test_has_an_app(app, bus, clock):
    assert app.bus is bus
    await clock.advance(3600)
    assert clock.elapsed == pytest.approx(3600)  # the sum of its steps may be a bit less

async def test_fails(bus, recorded):
    await bus.emit("chat.sent", {})
    recorded.assert_emitted("order.placed")
""",
    )

    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*1 x chat.sent*"])


@pytest.mark.slow
def test_a_user_may_bring_an_application_whose_lifespan_and_services_run(pytester: pytest.Pytester) -> None:
    """Also one that is made at import, and serves every test anew."""
    result = run(
        pytester,
        """
from contextlib import asynccontextmanager

@asynccontextmanager
async def lifespan(app):
    opened.append("open")
    yield
    opened.append("closed")

opened = []
own = aperion.App(aperion.EventBus(drain_timeout=3), lifespan=lifespan)

@own.service
async def tick():
    opened.append("tick")
    await anyio.sleep_forever()

@pytest.fixture
def aperion_app():
    return own

@pytest.mark.parametrize("time", [1, 2])
async def test_it(app, bus, recorded, time):
    assert app is own
    assert bus is own.bus
    await anyio.lowlevel.checkpoint()
    assert opened == ["open", "tick", "closed"] * (time - 1) + ["open", "tick"]

async def test_the_bus_alone_brings_its_application(bus):
    assert "closed" not in opened[-2:]
""",
    )

    result.assert_outcomes(passed=3)


@pytest.mark.slow
def test_a_user_may_define_any_fixture(pytester: pytest.Pytester) -> None:
    """An ``app`` of a web framework does not matter to the bus; a bus of one's own has no application."""
    result = run(
        pytester,
        """
class TestWebFramework:
    @pytest.fixture
    def app(self):
        return "FastAPI"

    async def test_it(self, app, bus, recorded):
        await bus.emit("chat.sent", {})
        assert app == "FastAPI"
        recorded.assert_emitted("chat.sent")

class TestOwnBus:
    @pytest.fixture
    async def bus(self, anyio_backend):
        async with aperion.EventBus(max_pending_events=7) as bus:
            yield bus

    async def test_it(self, bus, recorded):
        assert recorded.bus is bus
        assert bus.stats().max_pending_events == 7

    async def test_app(self, app):
        pass
""",
    )

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*bus is not the bus of aperion_app; define the fixture aperion_app instead*"])


LEAKS = """
other = aperion.EventBus()

async def test_leaves_a_task(bus):
    asyncio.get_running_loop().kept = asyncio.create_task(anyio.sleep(60), name="leftover")

async def test_leaves_a_subscription(bus):
    other.subscribe(print, "chat.*", name="forgotten")

@pytest.mark.aperion_leaks(check=False)
async def test_may_leave(bus):
    other.subscribe(print, "chat.*")

async def test_is_clean(bus, recorded, app):
    bus.subscribe(print, "chat.*")
    await bus.emit("chat.sent", {})

def test_is_sync():
    pass
"""


def test_a_setting_checks_every_async_test_for_leaks(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naperion_leaks = true")

    result = run(pytester, LEAKS)

    result.assert_outcomes(passed=5, errors=2)
    result.stdout.fnmatch_lines(["*task 'leftover' runs sleep*", "*test_leaves_a_task*", "*subscription forgotten to*"])


@pytest.mark.slow
def test_without_the_setting_a_marker_or_the_fixture_asks_for_the_check(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        LEAKS
        + """
@pytest.mark.aperion_leaks
async def test_is_marked(bus):
    other.subscribe(print, "chat.*", name="with a marker")

async def test_has_the_fixture(no_leaks, bus):
    other.subscribe(print, "chat.*", name="with a fixture")
""",
        "--strict-markers",
    )

    result.assert_outcomes(passed=7, errors=2)
    result.stdout.fnmatch_lines(["*subscription with a marker*", "*subscription with a fixture*"])


SEEDED = """
async def test_fails(bus):
    with failing(bus, rate=0.5) as faults:
        pass
    print("the seed was", faults.seed)
    assert False

async def test_passes():
    pass

async def test_fails_without():
    assert False
"""


@pytest.mark.slow
def test_a_test_that_fails_shows_its_seeds_and_an_option_sets_them(pytester: pytest.Pytester) -> None:
    free = run(pytester, SEEDED)
    fixed = run(pytester, SEEDED, "--aperion-seed=4711")

    seed = next(line for line in free.outlines if line.startswith("the seed was")).split()[-1]
    free.stdout.fnmatch_lines([f"failing(rate=0.5, seed={seed}); for the same again: --aperion-seed={seed}"])
    assert free.stdout.str().count("--aperion-seed") == 1
    fixed.stdout.fnmatch_lines(["the seed was 4711", "failing(rate=0.5, seed=4711); *"])


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    "arguments", [pytest.param((), id="alone"), pytest.param(("-n", "2"), id="xdist", marks=pytest.mark.slow)]
)
def test_the_suite_of_the_example_passes(arguments: tuple[str, ...]) -> None:
    """Every tool is in it, Hypothesis too."""
    command = [sys.executable, "-m", "pytest", "examples/tested", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    sources = (ROOT / "examples" / "tested").glob("test_*.py")
    tests = sum(len(re.findall(r"^(?:async )?def test_", path.read_text(encoding="utf-8"), re.M)) for path in sources)
    assert f"{tests} passed" in done.stdout


@pytest.mark.slow
def test_a_suite_may_be_spread_over_processes_with_seeds_and_leaks(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naperion_leaks = true")

    result = run(pytester, LEAKS + SEEDED, "-n", "2", "--aperion-seed=4711")

    result.assert_outcomes(passed=6, failed=2, errors=2)
    result.stdout.fnmatch_lines(["*seed=4711*"])
