"""Several processes of one service: each has a slot, and what one leaves another takes up, once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import aperion
from aperion.journal.slots import Slots

pytestmark = pytest.mark.anyio

CHILD = """
import asyncio, sys
import aperion

bus = aperion.EventBus(journal=aperion.SQLiteJournal(sys.argv[1]))

@bus.on("order.*", name="ship")
async def ship(event):
    await asyncio.sleep(3600)

async def main():
    async with bus:
        for n in range(int(sys.argv[2])):
            await bus.emit("order.placed", {"n": n})
        print("ready", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@contextmanager
def child(folder: Path, events: int):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(events)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert "ready" in next(line for line in process.stdout if "ready" in line)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def until(condition: Any) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.005)


def bus_of(folder: Path, seen: list[Any]) -> aperion.EventBus:
    bus = aperion.EventBus(journal=aperion.SQLiteJournal(folder, level="process"))
    bus.subscribe(lambda event: seen.append(event.payload["n"]), "order.*", name="ship")
    return bus


def failing(folder: Path) -> aperion.EventBus:
    bus = aperion.EventBus(journal=aperion.SQLiteJournal(folder))

    @bus.on("order.*", name="ship")
    async def ship(event: aperion.Event) -> None:
        raise RuntimeError

    return bus


async def test_two_buses_with_one_folder_have_a_slot_each(tmp_path: Path) -> None:
    seen: list[int] = []
    first, second = bus_of(tmp_path / "state", seen), bus_of(tmp_path / "state", seen)

    async with first, second:
        for n in range(20):
            await first.emit("order.placed", {"n": n})
            await second.emit("order.placed", {"n": 100 + n})
        await first.wait_settled()
        await second.wait_settled()

        assert sorted(each.name for each in (tmp_path / "state").glob("*.db")) == ["journal-0.db", "journal-1.db"]
        assert first.stats().journal["slots"] == second.stats().journal["slots"] == 1
    assert sorted(seen) == [*range(20), *range(100, 120)]


async def test_what_a_killed_process_leaves_is_taken_up_by_a_living_one_once(tmp_path: Path) -> None:
    first: list[int] = []
    second: list[int] = []
    one, other = bus_of(tmp_path / "state", first), bus_of(tmp_path / "state", second)

    with child(tmp_path / "state", 20) as process:
        async with one, other:
            await anyio.sleep(0.7)  # longer than between two looks
            assert not first + second
            process.kill()
            process.wait()
            await until(lambda: len(first + second) == 20)
            await anyio.sleep(0.7)
            taken = one.stats().journal["taken_up"], other.stats().journal["taken_up"]

    assert sorted(first + second) == list(range(20))
    assert sorted(taken) == [0, 20]


async def test_a_process_that_stands_still_keeps_what_is_its_own(tmp_path: Path) -> None:
    seen: list[int] = []

    with child(tmp_path / "state", 5) as process:
        os.kill(process.pid, signal.SIGSTOP)
        async with bus_of(tmp_path / "state", seen):
            await anyio.sleep(1.2)
        os.kill(process.pid, signal.SIGCONT)

    assert seen == []


async def test_a_slot_that_is_left_empty_is_not_looked_into_and_is_the_first_to_be_taken(tmp_path: Path) -> None:
    seen: list[int] = []
    async with bus_of(tmp_path / "state", seen) as first:
        async with bus_of(tmp_path / "state", seen) as second:
            await second.emit("order.placed", {"n": 1})
            await second.wait_settled()
        await anyio.sleep(0.7)
        assert first.stats().journal["slots"] == 1
    async with bus_of(tmp_path / "state", seen):
        pass

    assert len(list((tmp_path / "state").glob("*.db"))) == 2


async def test_dead_letters_of_a_slot_that_was_taken_over_are_there_and_go_away_for_good(tmp_path: Path) -> None:
    seen: list[int] = []
    first, second = failing(tmp_path / "state"), failing(tmp_path / "state")
    async with first:
        async with second:
            await second.dispatch("order.placed", {"n": 1})
        await until(lambda: len(first.dead_letters) == 1)
        first.dead_letters.purge()
    async with bus_of(tmp_path / "state", seen) as third:
        await anyio.sleep(0.7)
        assert len(third.dead_letters) == 0


def test_a_child_that_outlives_its_parent_does_not_keep_the_slot(tmp_path: Path) -> None:
    code = """
    import asyncio, os, signal, sys, time
    import aperion

    async def main():
        async with aperion.EventBus(journal=aperion.SQLiteJournal(sys.argv[1])) as bus:
            child = os.fork()
            if not child:
                time.sleep(60)
                os._exit(0)
            print(child, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())
    """
    with (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(tmp_path / "state")]
        done = subprocess.run(command, stdout=out, timeout=30, check=False)
    child = int((tmp_path / "out").read_text())
    try:
        os.kill(child, 0)  # it lives

        found = Slots(tmp_path / "state").abandoned()
        numbers = [slot.number for slot in found]
        for slot in found:
            slot.release()
    finally:
        os.kill(child, signal.SIGKILL)

    assert done.returncode == -9
    assert numbers == [0]


async def test_letters_of_two_slots_are_told_apart_when_a_bus_runs_again(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first, second = failing(folder), failing(folder)
    async with first, second:
        await first.dispatch("order.placed", {"n": 1})
        await second.dispatch("order.placed", {"n": 2})
    third = failing(folder)
    for _ in range(2):  # in its second run it knows the letters already
        async with third:
            await until(lambda: len(third.dead_letters) == 2)
            await anyio.sleep(0.1)
    one, other = third.dead_letters
    third.dead_letters.remove(one.letter_id)  # while it stands still
    async with third:
        await anyio.sleep(0.2)
        third.dead_letters.remove(other.letter_id)
    async with failing(folder) as last:
        await anyio.sleep(0.7)

        assert len(last.dead_letters) == 0


def test_of_many_events_that_were_left_few_are_in_memory(tmp_path: Path) -> None:
    import asyncio

    from aperion.journal import codec
    from aperion.journal.database import Database
    from aperion.journal.rows import check_of

    slot = Slots(tmp_path / "state").first_free()
    database = Database(slot.database, durable=False, window=1000, remembered=1000)
    body = codec.written(aperion.Event("order.placed", {"n": 1}, event_id="id-NUMBER"))
    bodies = ((seq, body.replace(b"NUMBER", b"%d" % seq)) for seq in range(1, 20_001))
    database.connection.execute("BEGIN")
    database.connection.executemany(
        "INSERT INTO events VALUES(?, ?, ?, ?)",
        ((seq, '["ship"]', body, check_of(seq, '["ship"]', body)) for seq, body in bodies),
    )
    database.connection.execute("COMMIT")
    database.close()
    slot.release()
    seen: list[int] = []

    async def main() -> int:
        bus = bus_of(tmp_path / "state", seen)
        async with bus:
            with anyio.fail_after(10):
                while not seen:
                    await asyncio.sleep(0)
            most = 0
            while bus.stats().journal["taking_up"]:
                most = max(most, bus.stats().pending)
                await asyncio.sleep(0.001)
            await bus.wait_settled()
            return most

    most = asyncio.run(main())

    assert 0 < most <= 512  # the others stay in the file until it is their turn
    assert len(seen) == 20_000


SERVICE = """
import asyncio, os
import aperion
from aperion.integrations.fastapi import lifespan
from fastapi import FastAPI

bus = aperion.EventBus(journal=aperion.SQLiteJournal("state/"))

@bus.on("order.*", name="ship")
async def ship(event):
    await asyncio.sleep(0.1)
    log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{event.payload['n']}\\n".encode())
    os.close(log)

app = FastAPI(lifespan=lifespan(bus))

@app.post("/orders/{n}")
async def place(n: int) -> int:
    await bus.emit("order.placed", {"n": n})
    return os.getpid()
"""


@pytest.mark.slow
async def test_a_worker_of_uvicorn_that_is_killed_leaves_nothing_undone(tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    (tmp_path / "service.py").write_text(SERVICE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "service:app", "--workers", "4", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parent.parent)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                with anyio.fail_after(30):
                    while not await _is_up(client):
                        await anyio.sleep(0.1)
                accepted = 0
                for n in range(200):
                    pid = (await client.post(f"/orders/{n}", headers={"Connection": "close"})).json()
                    accepted += 1
                    if n == 100:
                        os.kill(pid, signal.SIGKILL)
                        await anyio.sleep(1.5)
            log = tmp_path / "log"
            with anyio.fail_after(10):
                while len(log.read_text().splitlines()) < accepted:
                    await anyio.sleep(0.05)
            await anyio.sleep(1)
            handled = sorted(map(int, log.read_text().splitlines()))
        finally:
            server.terminate()

    assert handled == list(range(200))


async def _is_up(client: Any) -> bool:
    import httpx

    try:
        await client.get("/openapi.json")
    except httpx.TransportError:
        return False
    return True
