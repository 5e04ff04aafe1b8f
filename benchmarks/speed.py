"""The scenarios about time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from benchmarks.loops import bare_loop, counting_handlers, idle_handlers, sync_handlers, yielding_handlers
from benchmarks.timing import elapsed, in_turns, steady_collector
from benchmarks.wiring import SMALL, Batch, Driver, Form, Load, Waits, Wiring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator

    from benchmarks.scale import Scale
    from benchmarks.wiring import Handler, Peer

PROOFS = 3
EVERY = 0.002
LATENCY_TURNS = 5


@contextmanager
def _log(*, wanted: bool) -> Iterator[Path | None]:
    if not wanted:
        yield None
        return
    with TemporaryDirectory() as folder:
        yield Path(folder, "events.jsonl")


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def dispatching(
    *,
    handlers: int = 1,
    sync: bool = False,
    load: Load = SMALL,
    form: Form = Form.FRESH,
    audit: bool = False,
    redact: bool = False,
    strangers: int = 0,
) -> Callable[[Peer, Scale], Coroutine[Any, Any, dict[str, float]]]:
    """Return the scenario that dispatches, one event after the other."""

    async def measure(peer: Peer, scale: Scale) -> dict[str, float]:
        made = sync_handlers() if sync else idle_handlers(handlers)
        options: dict[str, Any] = {"sync": sync, "load": load, "form": form, "redact": redact, "strangers": strangers}
        with _log(wanted=audit) as log:
            await prove(peer, Wiring(handlers=made, audit=log, **options))
        with _log(wanted=audit) as log:
            wiring = Wiring(handlers=made, audit=log, **options)
            async with peer.connect(wiring) as driver:
                # A log writer that lags behind needs longer turns, or its pauses would weigh too much.
                seconds = scale.seconds * (3 if audit else 1)
                return await in_turns(driver.require_dispatch(), bare_loop(wiring), seconds, settle=driver.settle)

    return measure


async def prove(peer: Peer, wiring: Wiring) -> None:
    """Check that every handler sees every event, and the log too.

    Raises:
        AssertionError: when that is not so; a figure would be worthless.

    """
    calls: list[None] = []
    counting = counting_handlers(wiring, lambda: calls.append(None))
    parts = {name: getattr(wiring, name) for name in ("sync", "load", "form", "redact", "strangers", "audit")}
    async with peer.connect(Wiring(handlers=counting, **parts)) as driver:
        await driver.require_dispatch()(PROOFS)
        if len(calls) != PROOFS * len(counting):
            raise AssertionError(f"{peer.about.name} made {len(calls)} of {PROOFS * len(counting)} calls")
    if wiring.audit and _lines(wiring.audit) < PROOFS:
        raise AssertionError(f"{peer.about.name} wrote {_lines(wiring.audit)} of {PROOFS} events to its log")


async def among_strangers(peer: Peer, scale: Scale) -> dict[str, float]:
    """Compare a dispatch among few and among many subscriptions that do not match."""
    few, many = scale.strangers
    small = await dispatching(strangers=few)(peer, scale)
    large = await dispatching(strangers=many)(peer, scale)
    return {"ratio": large["ratio"] / small["ratio"], "few_ns": small["ns"], "many_ns": large["ns"]}


async def emit_and_drain(peer: Peer, scale: Scale) -> dict[str, float]:
    """Emit many events, wait until all are handled, and repeat."""
    wiring = Wiring(handlers=idle_handlers(1))
    async with peer.connect(wiring) as driver:
        emit, drain = driver.require_emit()
        events = await _affordable(emit, drain, scale)

        async def cycles(count: int) -> None:
            for _ in range(count):
                await emit(events)
                await drain()

        figures = await in_turns(cycles, _repeated(bare_loop(wiring), events), scale.seconds, per=events)
    return {**figures, "rate": 1e9 / figures["ns"], "events": events}


async def _affordable(emit: Batch, drain: Callable[[], Awaitable[None]], scale: Scale) -> int:
    # Some peers need seconds for a thousand events.
    sample = scale.events // 50

    async def batch(count: int) -> None:
        await emit(count)
        await drain()

    await batch(1)
    cost = await elapsed(batch, sample) / sample
    return max(sample, min(scale.events, round(scale.patience * 1e9 / cost)))


def _repeated(bare: Batch, events: int) -> Batch:
    async def batch(count: int) -> None:
        for _ in range(count):
            await bare(events)

    return batch


async def concurrently(peer: Peer, scale: Scale) -> dict[str, float]:
    """Let many tasks send at once; each waits for its own events where the peer can do that."""
    wiring = Wiring(handlers=yielding_handlers())
    async with peer.connect(wiring) as driver:
        batch = _crowd_of(driver, peer, scale.emitters)
        return await in_turns(batch, _crowd(bare_loop(wiring), scale.emitters), scale.seconds, per=scale.emitters)


def _crowd_of(driver: Driver, peer: Peer, emitters: int) -> Batch:
    if driver.dispatch is not None and peer.about.waits is Waits.ONE:
        return _crowd(driver.dispatch, emitters)
    emit, drain = driver.require_emit()
    crowd = _crowd(emit, emitters)

    async def batch(count: int) -> None:
        await crowd(count)
        await drain()

    return batch


def _crowd(batch: Batch, emitters: int) -> Batch:
    async def crowd(count: int) -> None:
        await asyncio.gather(*(batch(count) for _ in range(emitters)))

    return crowd


async def steadily(peer: Peer, scale: Scale) -> dict[str, float]:
    """Send at a steady pace and note when the handler begins, in turns with a queue that one worker empties."""
    clock = _Delays()
    async with peer.connect(Wiring(handlers=(clock.handler,))) as driver, _queue(clock.handler) as queue:
        ways = {"": driver, "queue_": queue}
        delays: dict[str, list[int]] = {name: [] for name in ways}
        with steady_collector():
            for _ in range(LATENCY_TURNS):
                for name, way in ways.items():
                    delays[name] += await clock.paced(way, scale.steady_seconds / LATENCY_TURNS)
    figures = {f"{name}{key}": value for name, each in delays.items() for key, value in _percentiles(each).items()}
    return {**figures, "ratio": figures["p99_ns"] / figures["queue_p99_ns"]}


class _Delays:
    """Send events at a steady pace, and collect how long each took to its handler."""

    def __init__(self) -> None:
        self._sent = 0
        self._delays: list[int] = []

        async def handler(event: object, payload: object = None) -> None:
            self._delays.append(perf_counter_ns() - self._sent)

        self.handler = handler

    async def paced(self, driver: Driver, seconds: float) -> list[int]:
        """Return the delays of so many seconds, without those of the first tenth."""
        send, loop = driver.emit or driver.require_dispatch(), asyncio.get_running_loop()
        self._delays = []
        due = loop.time()
        for _ in range(round(seconds / EVERY)):
            due += EVERY
            await asyncio.sleep(due - loop.time())
            self._sent = perf_counter_ns()
            await send(1)
        if driver.drain is not None:
            await driver.drain()
        return self._delays[len(self._delays) // 10 :]


@asynccontextmanager
async def _queue(handler: Handler) -> AsyncIterator[Driver]:
    """Yield the least that hands an event over to somebody else."""
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def work() -> None:
        while True:
            await handler(await queue.get())
            queue.task_done()

    async def emit(count: int) -> None:
        for _ in range(count):
            await queue.put({**SMALL.fields})

    worker = asyncio.create_task(work())
    yield Driver(emit=emit, drain=queue.join)
    worker.cancel()


def _percentiles(delays: list[int]) -> dict[str, float]:
    cuts = quantiles(delays, n=100, method="inclusive")
    return {"p50_ns": cuts[49], "p99_ns": cuts[98], "max_ns": float(max(delays))}
