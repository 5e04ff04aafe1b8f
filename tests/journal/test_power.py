"""Power cuts: what was acknowledged at level "disk" is there afterwards, whatever the device has made of the rest."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from disk import NOTE, Step, built, cut_power, steps_of
from load import LIFE, body_of

from aperion.journal.database import Database
from aperion.journal.starts import Starts


def recorded(folder: Path, level: str, lives: int = 2, count: int = 12) -> list[Step]:
    library = built(folder)
    if library is None:
        pytest.skip("there is no C compiler")
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("load.py")),
            str(folder / "state"),
            level,
            str(folder / "trace"),
            str(lives),
            str(count),
        ],
        env={**os.environ, "LD_PRELOAD": library},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return steps_of(folder / "trace")


def lost_in_cuts(folder: Path, steps: list[Step], cuts: int, *, strict: bool) -> list[int]:
    """Return for each of so many power cuts how many acknowledged events it has lost."""
    rng, lost = random.Random(3), []
    for number in range(cuts):
        at = rng.randrange(len(steps) // 20, len(steps))
        before = steps[:at]
        image = folder / "cut"
        shutil.rmtree(image, ignore_errors=True)
        cut_power(before, image, rng, strict=strict)
        notes = [step.path for step in before if step.op == NOTE]
        acked = {int(note.split(" ")[1]) for note in notes if note.startswith("acked")}
        settled = {int(note.split(" ")[1]) for note in notes if note.startswith("settled")}
        maps = [step.data for step in before if step.op == NOTE and step.path == "starts"]
        if maps and number % 3:
            (image / "journal-0.starts").write_bytes(rng.choice(maps[-4:]))
        found = recovered(image)
        assert all(body == body_of(seq) for seq, body in found.items())
        lost.append(len(acked - settled - found.keys()))
    return lost


def recovered(image: Path) -> dict[int, bytes]:
    path = image / "journal-0.db"
    database = Database(path, durable=False, window=1000, remembered=1 << 20)
    database.recover(Starts(image / "journal-0.starts"))
    rows = database.page(0, LIFE * 100, 1 << 20)
    assert not rows.bad
    database.close()
    return {row.seq: row.body for row in rows.rows}


@pytest.mark.parametrize("strict", [False, True])
def test_no_power_cut_loses_what_was_acknowledged_at_level_disk(tmp_path: Path, strict: bool) -> None:
    steps = recorded(tmp_path, "disk")

    assert set(lost_in_cuts(tmp_path, steps, 40, strict=strict)) == {0}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strict", [False, True])
def test_none_of_many_power_cuts_loses_what_was_acknowledged_at_level_disk(tmp_path: Path, strict: bool) -> None:
    steps = recorded(tmp_path, "disk", lives=4, count=30)

    assert set(lost_in_cuts(tmp_path, steps, 200, strict=strict)) == {0}


def test_a_power_cut_may_lose_events_at_level_process_as_it_says(tmp_path: Path) -> None:
    steps = recorded(tmp_path, "process")

    assert any(lost_in_cuts(tmp_path, steps, 40, strict=False))
