"""What is counted: ``python -m benchmarks.counting NAME COUNT`` does one thing so many times, and ends.

It is meant to run under callgrind, which sees instructions only of a whole process. So each thing is counted twice,
with two counts, and all that is not under test (start, imports, warm-up, end) must take the same in both. The
collector begins clean and stays on, as where times are taken: what a bus keeps alive makes it work.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import aperion
from benchmarks.loops import bare_loop, idle_handlers
from benchmarks.payloads import MOST, SORTS, payloads
from benchmarks.peers import aperion as ours
from benchmarks.timing import steady_collector
from benchmarks.wiring import CLEAN, PRIVATE, SMALL, Form, Wiring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from benchmarks.wiring import Batch, Driver

    Subject = Callable[[], AbstractAsyncContextManager[Batch]]

WARM_UP = 200
SLOWER = 100  # about so many times slower than by itself is a program under callgrind
POLL = 0.25  # seconds; looking whether the log is written is counted too


# Time


def slow_down() -> None:
    """Make pauses of threads longer, as callgrind makes everything else.

    A log's writer pauses for milliseconds, in which some dozens of events come. Under callgrind not one would:
    the writer would be counted with a batch for each event, and with more or less of them each time.
    """
    sys.setswitchinterval(sys.getswitchinterval() * SLOWER)
    wait, sleep = threading.Condition.wait, time.sleep

    def slow_wait(self: threading.Condition, timeout: float | None = None) -> bool:
        return wait(self, timeout and timeout * SLOWER)

    def slow_sleep(seconds: Any, /) -> None:
        sleep(seconds * SLOWER)

    threading.Condition.wait = slow_wait  # type: ignore[method-assign]
    time.sleep = slow_sleep
    ours.POLL = POLL


# What is done


@asynccontextmanager
async def _bare() -> AsyncIterator[Batch]:
    yield bare_loop(Wiring(handlers=idle_handlers(1)))


@asynccontextmanager
async def _model() -> AsyncIterator[Batch]:
    model, fields = ours.MODELS[SMALL.model], SMALL.fields

    async def batch(count: int) -> None:
        for _ in range(count):
            model(**fields)

    yield batch


@asynccontextmanager
async def _redactor() -> AsyncIterator[Batch]:
    redact, fields = aperion.Redactor(enabled=False).redact, dict(CLEAN.fields)

    async def batch(count: int) -> None:
        for _ in range(count):
            redact(fields)

    yield batch


def _redacting(sort: str) -> Subject:
    @asynccontextmanager
    async def subject() -> AsyncIterator[Batch]:
        redact, waiting = (
            aperion.Redactor().redact,
            iter(payloads(sort, WARM_UP + MOST)),
        )  # as many, however many are counted

        async def batch(count: int) -> None:
            for payload in islice(waiting, count):
                redact(payload)

        yield batch

    return subject


def _dispatching(*, handlers: int = 1, log: bool = False, **options: Any) -> Subject:
    @asynccontextmanager
    async def subject() -> AsyncIterator[Batch]:
        with TemporaryDirectory() as folder:
            audit = Path(folder, "events.jsonl") if log else None
            async with ours.connect(Wiring(handlers=idle_handlers(handlers), audit=audit, **options)) as driver:
                yield _written(driver) if log else driver.require_dispatch()

    return subject


def _written(driver: Driver) -> Batch:
    """Return a batch that ends when the log's thread has nothing left to do."""
    dispatch, settle = driver.require_dispatch(), driver.settle

    async def batch(count: int) -> None:
        await dispatch(count)
        if settle is not None:
            await settle()

    return batch


@asynccontextmanager
async def _emitting() -> AsyncIterator[Batch]:
    async with ours.connect(Wiring(handlers=idle_handlers(1))) as driver:
        emit, drain = driver.require_emit()

        async def batch(count: int) -> None:
            await emit(count)  # waits by itself when as many are pending as the bus allows
            await drain()

        yield batch


SUBJECTS: Mapping[str, Subject] = {
    "bare": _bare,
    "mapping": _dispatching(form=Form.MAPPING),
    "model": _dispatching(),
    "pydantic": _model,
    "ten": _dispatching(handlers=10),
    "emit": _emitting,
    "audit": _dispatching(load=CLEAN, log=True),
    "redact": _dispatching(load=CLEAN, log=True, redact=True),
    "private": _dispatching(load=PRIVATE, log=True, redact=True),
    "redactor": _redactor,
    **{f"redact_{sort}": _redacting(sort) for sort in SORTS},
}


# The process


async def run(subject: Subject, count: int) -> None:
    """Warm up, and do it ``count`` times."""
    async with subject() as batch:
        await batch(WARM_UP)
        with steady_collector():
            await batch(count)


if __name__ == "__main__":
    slow_down()
    asyncio.run(run(SUBJECTS[sys.argv[1]], int(sys.argv[2])))
