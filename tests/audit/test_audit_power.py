"""A power cut at any moment takes nothing from ``sync="disk"`` that an emitter was told is accepted."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from power import Recorder, cut_power

import aperion
from aperion.audit import AuditLog, Checkpoints, Rotation, verify
from aperion.audit.compression import open_lines
from aperion.audit.segments import segments

pytestmark = pytest.mark.anyio

SEED = 20_261_124
CUTS = 60


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def log_in(folder: Path) -> AuditLog:
    rotation = Rotation(max_bytes=20_000, compress="gzip", keep=6)
    return AuditLog(
        folder / "events.jsonl", sync="disk", rotation=rotation, checkpoints=Checkpoints(every=15), buffer_bytes=1 << 16
    )


async def emit(folder: Path, recorder: Recorder, rng: random.Random) -> None:
    """Run a bus, with several emitters that note what they are told."""
    bus = aperion.EventBus(audit=log_in(folder))

    async def emitter() -> None:
        for _ in range(40):
            receipt = await bus.emit("order.placed", {"text": "x" * rng.randrange(3000)})
            recorder.note("yes", receipt.event_id)
            await anyio.sleep(rng.choice([0, 0, 0.001]))

    async with bus, anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(emitter)


def read(log: Path) -> list[dict[str, Any]]:
    lines = []
    for segment in segments(log):
        with open_lines(segment.path, segment.compression) as file:
            lines += [json.loads(line) for line in file]
    return lines


@pytest.mark.parametrize("run", [0, *(pytest.param(run, marks=pytest.mark.slow) for run in range(1, 4))])
async def test_what_was_said_yes_to_is_there_after_a_power_cut_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    rng = random.Random(f"{SEED} {run}")
    folder = tmp_path / "log"
    with monkeypatch.context() as patching:
        recorder = Recorder(folder, patching)
        await emit(folder, recorder, rng)
    steps = recorder.steps
    numbers = _numbers(steps)

    for cut in range(CUTS):
        until = rng.randrange(len(steps) + 1)
        left = tmp_path / f"left-{cut}"
        cut_power(steps[:until], rng, left)
        log = log_in(left)
        await log.start()
        await log.aclose()

        lines = read(left / "events.jsonl")
        written = Counter(line["event_id"] for line in lines if line["kind"] == "accepted")
        first = lines[0]["seq"]  # retention removed what stood before, and verify finds the record of that
        yes = [step[1] for step in steps[:until] if step[0] == "yes" and numbers[step[1]] >= first]
        assert [event_id for event_id in yes if event_id not in written] == []
        assert [event_id for event_id, count in written.items() if count > 1] == []
        assert verify(left / "events.jsonl").problems == ()


def _numbers(steps: list[tuple[Any, ...]]) -> dict[str, int]:
    """Return the numbers of the records about accepted events, whatever has become of their files."""
    contents = {step[1]: step[2] for step in steps if step[0] == "content" and step[2].startswith(b"{")}
    lines = [json.loads(line) for content in contents.values() for line in content.splitlines()]
    return {line["event_id"]: line["seq"] for line in lines if line["kind"] == "accepted"}
