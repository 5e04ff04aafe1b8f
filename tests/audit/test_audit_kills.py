"""``kill -9``, hundreds of times: what each level promises is there, nothing is there twice, nothing is torn."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_audit import child_environment
from victim import log_of

from aperion.audit import verify
from aperion.audit.compression import open_lines
from aperion.audit.segments import segments

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

LEVELS = ("none", "process", "disk")
SEED = 20_261_124


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Victims:
    """Lives of processes that write one log after another, and are killed."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.path = folder / "log" / "events.jsonl"
        self.told = folder / "told"
        self.lives: list[list[str]] = []

    def live(
        self, sync: str, *, events: int = 10**9, seconds: float | None = None, number: int | None = None, when: str = ""
    ) -> int:
        """Run a process until its death; return how it ended."""
        self.told.write_bytes(b"")
        order = {"path": str(self.path), "told": str(self.told), "sync": sync, "events": events}
        self.process.stdin.write(json.dumps(order | {"seconds": seconds, "number": number, "when": when}) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        code = int(self.process.stdout.readline())  # type: ignore[union-attr]
        self.lives.append([told for told in self.told.read_text().splitlines() if not told.startswith("calls")])
        return code

    def calls(self) -> int:
        """Return how many calls of the system the last life made."""
        return int(self.told.read_text().split()[-1])

    async def check(self, sync: str) -> None:
        """Start the log again, close it, and look at all that it promised."""
        log = log_of(str(self.path), sync)
        await log.start()
        await log.aclose()
        lines = []
        for segment in segments(self.path):
            with open_lines(segment.path, segment.compression) as file:
                content = b"".join(file)
            assert content.endswith(b"\n"), segment.path.name
            lines += [json.loads(line) for line in content.splitlines()]
        written = Counter(line["event_id"] for line in lines if line["kind"] == "accepted")
        assert [event_id for event_id, count in written.items() if count > 1] == []
        for told in self.lives:
            missing = [event_id for event_id in told if event_id not in written]
            # What the buffer held is lost at the lowest level: the latest, and no others.
            assert missing == (told[len(told) - len(missing) :] if sync == "none" else [])
        assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
        assert verify(self.path).problems == ()


@pytest.fixture(scope="module")
def zygote() -> Iterator[subprocess.Popen[str]]:
    program = Path(__file__).parent / "victim.py"
    with subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    ) as process:
        yield process
        process.stdin.close()  # type: ignore[union-attr]


@pytest.fixture
def victims(zygote: subprocess.Popen[str], tmp_path: Path) -> Victims:
    return Victims(zygote, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sync", LEVELS)
async def test_100_lives_that_end_at_random_moments_leave_what_the_level_promises(victims: Victims, sync: str) -> None:
    """AUD-m/n: with rotation and compression under way; a quarter of them one after another in the same log."""
    rng = random.Random(f"{SEED} {sync}")
    told = 0
    for number in range(100):
        assert victims.live(sync, seconds=rng.uniform(0.002, 0.1)) == -9
        told += len(victims.lives[-1])
        if number % 4 == 3:
            await victims.check(sync)
            victims.lives.clear()
            victims.path = victims.path.with_name(f"events-{number}.jsonl")

    assert told > 20


@pytest.mark.parametrize(
    "when", ["before", pytest.param("half", marks=pytest.mark.slow), pytest.param("after", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "sync", [pytest.param("none", marks=pytest.mark.slow), "process", pytest.param("disk", marks=pytest.mark.slow)]
)
async def test_a_life_that_ends_at_any_call_of_the_system_leaves_what_the_level_promises(
    victims: Victims, sync: str, when: str
) -> None:
    assert victims.live(sync, events=40, number=0, when=when) == 0
    calls = victims.calls()
    numbers = sorted({*range(1, 12), *random.Random(f"{SEED} {sync} {when}").sample(range(12, calls), 14), calls - 2})
    for number in numbers:
        victims.lives.clear()
        victims.path = victims.path.with_name(f"events-{number}.jsonl")
        code = victims.live(sync, events=40, number=number, when=when)
        assert code in {-9, 0}  # threads take turns, so that a life may need fewer calls
        await victims.check(sync)

    assert calls > 60


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "half", "after"])
async def test_a_recovery_that_ends_at_any_call_of_the_system_can_be_done_again(victims: Victims, when: str) -> None:
    codes = []
    for number in range(1, 16):
        victims.lives.clear()
        victims.path = victims.path.with_name(f"events-{number}.jsonl")
        victims.live("process", seconds=0.04)
        codes += [victims.live("process", events=0, number=n, when=when) for n in (number, number + 3)]
        await victims.check("process")

    assert codes.count(-9) > 20


def test_the_victims_do_work_and_a_life_without_a_death_ends_well(victims: Victims) -> None:
    assert victims.live("process", events=50, number=0, when="after") == 0
    (told,) = victims.lives
    assert len(told) > 20
    assert victims.calls() > 60
    assert len(segments(victims.path)) > 3
