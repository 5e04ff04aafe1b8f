"""Replaying a file: every line becomes an event, and what became of it is counted."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from aperion.cli.lines import Feed
from aperion.cli.records import parse
from aperion.cli.summary import Ending, summarise
from aperion.cli.tally import Rejection, Tally, is_of_the_bus
from aperion.errors import (
    AperionError,
    AuditError,
    BackpressureError,
    BusNotRunningError,
    PayloadError,
    ValidationError,
)

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from aperion.app import App
    from aperion.cli.lines import Batch, Line, LineFile
    from aperion.cli.progress import Reporter
    from aperion.cli.records import Record
    from aperion.cli.summary import Summary
    from aperion.receipts import Receipt

_IN_FLIGHT = 1_000  # events of the file, and caused by them, that are unsettled: what bounds memory
_INTERRUPTED = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What to replay, through what, and how far; without a limit, to the end."""

    app: App
    app_path: str
    source: LineFile
    limit: int | None = None


class Replayer:
    """One run of one replay."""

    # Mutable: what has been counted so far, who waits for room, and what ended the reading.
    __slots__ = ("_bus", "_in_flight", "_replay", "_reporter", "_room", "_signal", "_started", "_stopped", "_tally")

    def __init__(self, replay: Replay, reporter: Reporter) -> None:
        self._replay = replay
        self._reporter = reporter
        self._bus = replay.app.bus
        self._tally = Tally()
        self._in_flight = 0
        self._room = anyio.Event()
        self._started = False
        self._signal: int | None = None
        self._stopped: str | None = None

    async def run(self) -> Summary:
        """Start the application, emit every line, drain, and sum up; SIGINT and SIGTERM cut it short.

        Raises:
            Exception: whatever kept the application from starting.
        """
        wall, start = time.time(), time.perf_counter()
        try:
            await self._run()
        except Exception as error:
            if not self._started:
                raise
            self._stopped = f"the application failed: {self._text(error)}"
            self._reporter.failure(error)
        ending = Ending(
            seconds=time.perf_counter() - start, started_at=wall, signal=self._signal, stopped=self._stopped
        )
        return summarise(self._replay.source.name, self._replay.app_path, self._bus, self._tally, ending)

    async def _run(self) -> None:
        reading = anyio.CancelScope()
        async with anyio.create_task_group() as around:
            await around.start(self._watch_signals, reading)
            async with self._replay.app:
                self._started = True
                self._bus.listen(self._listen)
                with reading:
                    await self._read()
                    await self._settle_all()
            around.cancel_scope.cancel()

    async def _watch_signals(self, reading: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if self._signal is not None:
                    self._reporter.close()
                    os._exit(_INTERRUPTED + number)  # at once: not even a stuck handler holds it up
                self._signal = number
                self._reporter.note("stopping: what was emitted is finished first; once more stops at once")
                reading.cancel()

    async def _read(self) -> None:
        with Feed(self._replay.source.batches()) as feed:
            async for batch in feed.batches():
                if not await self._emit_batch(batch):
                    return

    async def _settle_all(self) -> None:
        # Before the drain, in whose course no retry is made; both within one deadline.
        self._reporter.finishing(self._tally.read)
        with anyio.move_on_after(self._bus.drain_timeout) as waiting:
            await self._wait_for_room(1)
        self._bus.drain_timeout = max(0.0, waiting.deadline - anyio.current_time())

    async def _emit_batch(self, batch: Batch) -> bool:
        for index, line in enumerate(batch.lines, start=1):
            if self._stopped or (self._replay.limit is not None and self._tally.read >= self._replay.limit):
                return False
            await self._emit_line(line)
            self._reporter.advance(self._tally.read, batch.position, index / len(batch.lines))
        return True

    async def _emit_line(self, line: Line) -> None:
        if line.problem is not None:
            self._reject(line, line.problem)
        elif line.text and not line.text.isspace():
            try:
                record = parse(line.text)
            except ValidationError as error:
                self._reject(line, str(error))
            else:
                if record is None:
                    self._tally.left_out += 1
                else:
                    await self._emit(line, record)

    async def _emit(self, line: Line, record: Record) -> None:
        self._tally.note_unknown(record.unknown)
        await self._wait_for_room(_IN_FLIGHT)
        try:
            receipt = await self._receipt(record)
        except (AuditError, BusNotRunningError) as error:
            self._stopped = f"line {line.number} could not be emitted: {error}"
        except Exception as error:  # noqa: BLE001 - a processor of the application refuses as it likes
            self._reject(line, self._text(error))
        else:
            self._follow(receipt)

    async def _receipt(self, record: Record) -> Receipt:
        while True:
            try:
                return await self._bus.emit(record.type, record.payload, **_details(record))
            except BackpressureError:  # under OverflowPolicy.RAISE; a file can wait
                if not self._in_flight:
                    raise
                await self._wait_for_room(self._in_flight)

    async def _wait_for_room(self, limit: int) -> None:
        while self._in_flight >= limit:
            self._room = anyio.Event()
            await self._room.wait()

    def _follow(self, receipt: Receipt) -> None:
        if receipt.dropped:
            self._tally.dropped += 1
            return
        self._tally.accepted += 1
        self._count_in_flight(receipt)

    def _listen(self, receipt: Receipt) -> None:
        self._tally.follow(receipt)
        if receipt.event.hops and not is_of_the_bus(receipt.event):  # what the file's events have caused
            self._count_in_flight(receipt)

    def _count_in_flight(self, receipt: Receipt) -> None:
        if not receipt.is_settled:
            self._in_flight += 1
            receipt.on_settled(self._settled)

    def _settled(self) -> None:
        self._in_flight -= 1
        self._room.set()

    def _reject(self, line: Line, reason: str) -> None:
        rejection = Rejection(line.number, reason)
        if self._tally.reject(rejection):
            self._reporter.reject(rejection)

    def _text(self, error: BaseException) -> str:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, PayloadError):  # names fields and rules, never values; "email: required" is no secret
            return str(error)
        text = self._bus.redactor.redact_text(str(error))
        return text if isinstance(error, AperionError) else f"{type(error).__name__}: {text}"


def _details(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        "source": record.source,
        "correlation_id": record.correlation_id,
        "headers": record.headers,
        "event_id": record.id,
        "timestamp": record.time,
    }
