"""``aperion journal``, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

import aperion
from aperion.journal import codec
from aperion.journal.database import Database
from aperion.journal.rows import Batch, Insert, State
from aperion.journal.slots import Slots

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parent.parent)}


def run(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "aperion", "journal", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=45,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    slot = Slots(tmp_path / "state").first_free()
    database = Database(slot.database, durable=False, window=1000, remembered=1000)
    inserts = [Insert(n, f"id-{n}", '["old","bill"]', codec.written(_event(n))) for n in range(1, 4)]
    states = {(1, 0): State(1, 0, over=True), (2, 1): State(2, 1, starts=1)}
    database.apply(Batch(inserts=inserts, states=states))
    database.close()
    slot.release()
    return tmp_path / "state"


def _event(n: int) -> aperion.Event[Any]:
    return aperion.Event("order.placed", {"n": n, "password": "hunter2"}, event_id=f"id-{n}", timestamp=1.7e9)


def test_stats_count_what_is_kept_and_for_whom(folder: Path) -> None:
    text, values = run("stats", folder), json.loads(run("stats", folder, "--json"))

    assert values["subscriptions"] == {"old": 2, "bill": 3}
    (slot,) = values["slots"]
    assert (slot["slot"], slot["process"], slot["events"], slot["dead_letters"]) == (0, None, 3, 0)
    assert "bill" in text


def test_list_shows_where_each_delivery_stands(folder: Path) -> None:
    lines = [json.loads(line) for line in run("list", folder, "--json").splitlines()]

    assert [line["event_id"] for line in lines] == ["id-1", "id-2", "id-3"]
    assert lines[0]["deliveries"] == {"old": "over", "bill": "pending"}
    assert lines[1]["deliveries"]["bill"] == "pending, 1 starts that ended with the process"
    assert "hunter2" not in str(lines)
    assert "3 events" in run("list", folder)
    assert "2 events" in run("list", folder, "--subscription", "old")


def test_show_hides_secrets(folder: Path) -> None:
    shown = json.loads(run("show", folder, "id-2"))

    assert shown["payload"]["n"] == 2
    assert "hunter2" not in str(shown)
    assert "no event in" in run("show", folder, "id-9", code=2)


def test_what_is_kept_for_a_name_that_is_gone_can_be_assigned(folder: Path) -> None:
    assert "3 deliveries of old go to new" in run("assign", folder, "old", "new")

    assert json.loads(run("stats", folder, "--json"))["subscriptions"] == {"new": 2, "bill": 3}
    assert "all can be read" in run("check", folder)


def test_what_is_not_wanted_any_more_can_be_discarded(folder: Path) -> None:
    assert "2 deliveries were given up" in run("discard", folder, "--subscription", "old")
    assert "1 deliveries were given up" in run("discard", folder, "--id", "id-2")

    assert json.loads(run("stats", folder, "--json"))["subscriptions"] == {"bill": 2}
    assert len(run("list", folder, "--json").splitlines()) == 2
    assert "--subscription or --id" in run("discard", folder, code=2)


def test_an_event_that_is_damaged_is_found(folder: Path) -> None:
    import sqlite3

    other = sqlite3.connect(folder / "journal-0.db")
    other.execute("UPDATE events SET crc = crc + 1 WHERE seq = 2")
    other.commit()
    other.close()

    assert "1 damaged: 2" in run("check", folder, code=1)
    assert len(run("list", folder, "--json").splitlines()) == 2


def test_a_journal_that_a_service_has_is_only_read(folder: Path) -> None:
    async def main() -> None:
        bus = aperion.EventBus(journal=aperion.SQLiteJournal(folder))
        async with bus:
            stats = await anyio.to_thread.run_sync(lambda: json.loads(run("stats", folder, "--json")))
            assert stats["slots"][0]["process"] == os.getpid()
            assert stats["subscriptions"] == {"old": 2, "bill": 3}
            text = await anyio.to_thread.run_sync(lambda: run("assign", folder, "old", "new", code=2))
            assert f"process {os.getpid()} has it; stop the service first" in text

    anyio.run(main)


def test_a_folder_without_a_journal_is_said_to_be_one(tmp_path: Path) -> None:
    assert "holds no journal" in run("stats", tmp_path, code=2)
    assert list(tmp_path.iterdir()) == []


def test_what_was_assigned_is_handled(folder: Path) -> None:
    run("assign", folder, "old", "new")
    seen: list[tuple[str, int]] = []

    async def main() -> None:
        bus = aperion.EventBus(journal=aperion.SQLiteJournal(folder))
        bus.subscribe(lambda event: seen.append(("new", event.payload["n"])), "order.*", name="new")
        bus.subscribe(lambda event: seen.append(("bill", event.payload["n"])), "order.*", name="bill")
        async with bus:
            with anyio.fail_after(10):
                while len(seen) < 5:
                    await anyio.sleep(0.01)
            await bus.wait_settled()

    anyio.run(main)

    assert sorted(seen) == [("bill", 1), ("bill", 2), ("bill", 3), ("new", 2), ("new", 3)]
    assert orjson.loads(run("stats", folder, "--json"))["subscriptions"] == {}
