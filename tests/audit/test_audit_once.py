"""Whatever is raised, and wherever, while the log is written: each record is in it once, and in order."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import aperion
from aperion.audit import AuditLog, Checkpoints, Rotation, verify
from aperion.audit import live as live_module
from aperion.audit import ring as ring_module
from aperion.audit import writer as writer_module
from aperion.audit.files import LogFile
from aperion.audit.live import Live
from aperion.audit.ring import Ring
from aperion.audit.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

MANY = 12
UNTOUCHED = {"_run", "_pass", "_failed", "_next_pause", "_set_mark", "_is_behind"}
"""What deals with failures: it does no more than count and compare."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Raising:
    """Counts the steps of the thread that writes, and raises at the n-th, before it or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
        self.steps = itertools.count(1)
        self.made = self.number = 0
        self.after = False
        self.told = ""
        self.error = error
        for kind in (Live, LogFile, Ring, Writer):
            for name, made in list(vars(kind).items()):
                if callable(made) and not name.startswith("__") and name not in UNTOUCHED:
                    monkeypatch.setattr(kind, name, self._in_place_of(made))
        for module, name in [(live_module, "seal_fields"), (ring_module, "crc32"), (live_module, "sync_folder")]:
            monkeypatch.setattr(module, name, self._in_place_of(getattr(module, name)))

    def begins(self, number: int, *, after: bool) -> None:
        self.steps, self.number, self.after = itertools.count(1), number, after

    def _in_place_of(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            if not threading.current_thread().name.startswith("aperion-audit"):
                return real(*arguments, **named)
            self.made = number = next(self.steps)
            if number == self.number and not self.after:
                self.told = real.__qualname__
                raise self.error
            result = real(*arguments, **named)
            if number == self.number:
                self.told = real.__qualname__
                raise self.error
            return result

        return step


def numbers(path: Path) -> list[int]:
    files = [*sorted(path.parent.glob("events.*.jsonl")), path]
    records = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
    return [record["payload"]["number"] for record in records if record["kind"] == "accepted"]


async def write(path: Path, sync: str) -> AuditLog:
    """Write some records, over several files and checkpoints, and close the log."""
    log = AuditLog(path, sync=sync, rotation=Rotation(max_bytes=1_500), checkpoints=Checkpoints(every=3))
    await log.start()
    for number in range(MANY):
        while True:
            with contextlib.suppress(aperion.AuditUnavailable):
                log.accepted(aperion.Event("order.placed", {"number": number}))
                break
            await anyio.sleep(0.001)
        if number % 4 == 0:
            await anyio.sleep(0.004)
    with anyio.fail_after(10):
        while log.stats().buffered_bytes:
            await anyio.sleep(0.001)
    with contextlib.suppress(aperion.AuditUnavailable):
        await log.aclose()
    return log


@pytest.mark.parametrize("sync", ["process", "disk"])
@pytest.mark.parametrize(
    ("first", "stride"), [(1, 17), *(pytest.param(first, 5, marks=pytest.mark.slow) for first in range(1, 6))]
)
@pytest.mark.parametrize("after", [False, True])
async def test_whatever_step_of_a_batch_fails_no_record_is_written_twice_or_lost(  # noqa: PLR0913
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, first: int, stride: int, after: bool
) -> None:
    monkeypatch.setattr(writer_module, "_RETRY_FIRST", 0.001)
    monkeypatch.setattr(writer_module, "_LONGEST", 0.001)
    raising = Raising(monkeypatch, MemoryError)
    found = {}
    for number in itertools.count(first, stride):
        path = tmp_path / str(number) / "events.jsonl"
        raising.begins(number, after=after)
        await write(path, sync)
        if raising.made < number:
            break
        raising.begins(0, after=after)
        async with aperion.EventBus(audit=AuditLog(path)):  # brings over what may be left
            pass
        if numbers(path) != [*range(MANY)] or not verify(path).ok:
            found[number] = raising.told, numbers(path), [problem.kind for problem in verify(path).problems]

    assert found == {}
    assert number > 100


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, RuntimeError])
async def test_what_ends_other_threads_does_not_end_the_one_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(writer_module, "_RETRY_FIRST", 0.001)
    path = tmp_path / "events.jsonl"
    raising = Raising(monkeypatch, error)
    raising.begins(60, after=True)

    log = await write(path, "process")

    assert raising.made > 60
    assert log.stats().failures == 1
    assert numbers(path) == [*range(MANY)]
    assert verify(path).ok
