"""Where a bus is: what is in flight, and the stack of each handler that has begun."""

from __future__ import annotations

import gc
import inspect
import sys
import textwrap
from itertools import dropwhile
from typing import TYPE_CHECKING, Any

from aperion._runtime.backlog import Rerun
from aperion._runtime.frames import is_ours, outwards, shown
from aperion._threads import Job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from aperion._runtime import Runtime
    from aperion._runtime.driver import Suspended
    from aperion.delivery import Run


def in_flight(runtime: Runtime) -> str:
    """Tell of every event that has not settled: not started, waiting for a retry, or in which handler and where."""
    told = [_of_run(runtime, run, rest) for run, rest in runtime.workers.suspended.items()]
    told += [
        f"{_named(rerun)} waits for attempt {rerun.attempt} in {rerun.subscription.name}" for rerun in runtime.retries
    ]
    told += [f"{_named(receipt)} waits for the disk of the audit log" for receipt in runtime.held]
    told += [f"{_named(receipt)} is not started" for receipt in runtime.backlog.unstarted()]
    return textwrap.indent("\n".join(told), "  ")


def of_coroutine(coroutine: object) -> str:
    """Return the stack of a coroutine that waits, outermost first, without what aperion runs it with."""
    return shown(dropwhile(is_ours, _frames(coroutine)))


def shown_from(frame: FrameType) -> str:
    """Return the stack of a frame that runs, outermost first."""
    return shown(reversed(list(outwards(frame))))


def _of_run(runtime: Runtime, run: Run, rest: Suspended) -> str:
    job = runtime.execution.jobs.get(run)
    stack = _of_job(job) if job is not None else of_coroutine(rest._coroutine)
    where = " in its thread" if job is not None else ""
    return f"{_named(run)} is in {_handler_of(run)}{where}\n{textwrap.indent(stack, '  ')}".rstrip()


def _named(run: Run) -> str:
    event = _receipt_of(run).event
    return f"{event.event_type} {event.event_id}"


def _receipt_of(run: Run) -> Any:
    return run.receipt if isinstance(run, Rerun) else run


def _handler_of(run: Run) -> str:
    if isinstance(run, Rerun):
        return run.subscription.name
    receipt = _receipt_of(run)
    left = receipt.plan[len(receipt.results) :]
    return left[0].name if left else "no handler"


def _of_job(job: Job) -> str:
    for innermost in sys._current_frames().values():
        frames: list[FrameType] = []
        for frame in outwards(innermost):
            if frame.f_code is Job._run.__code__ and frame.f_locals.get("self") is job:
                return shown(reversed(frames))
            frames.append(frame)
    return ""  # it has just ended


def _frames(awaited: Any) -> Iterator[FrameType]:
    """Follow what a coroutine waits for."""
    while awaited is not None:
        frame = next((f for name in ("cr_frame", "gi_frame", "ag_frame") if (f := getattr(awaited, name, None))), None)
        if frame is not None:
            yield frame
        awaited = _inner(awaited)


def _inner(awaited: Any) -> Any:
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        if (inner := getattr(awaited, name, None)) is not None:
            return inner
    if type(awaited).__name__.startswith("async_generator_a"):  # one step of a generator, which shows nothing of it
        return next(filter(inspect.isasyncgen, gc.get_referents(awaited)), None)
    return None
