"""Where a bus is: what is in flight, and the stack of each handler that has begun."""

from __future__ import annotations

import gc
import inspect
import sys
import textwrap
from itertools import dropwhile
from typing import TYPE_CHECKING, Any

from aperion.engine.flight import Rerun
from aperion.engine.frames import is_ours, outwards, shown
from aperion.engine.threads import Job
from aperion.subscriptions import HandlerKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from aperion.engine.driver import Driver
    from aperion.engine.flight import Unit
    from aperion.engine.lifecycle import Engine
    from aperion.subscriptions import Subscription


def in_flight(engine: Engine) -> str:
    """Tell of every event that has not settled: not started, waiting for a retry, or in which handler and where."""
    told = [_of_unit(unit, driver) for unit, driver in engine.workers.running.items()]
    told += [_waiting(unit) for unit in engine.workers.parked]
    told += [
        f"{_named(rerun)} waits for attempt {rerun.number} in {rerun.subscription.name}"
        for rerun in (*engine.due, *engine.queue.reruns())
    ]
    told += [f"{_named(flight)} waits for the disk of the audit log" for flight in engine.admission.held]
    told += [f"{_named(flight)} is not started" for flight in engine.queue.unstarted()]
    return textwrap.indent("\n".join(told), "  ")


def of_coroutine(coroutine: object) -> str:
    """Return the stack of a coroutine that waits, outermost first, without what aperion runs it with."""
    return shown(dropwhile(is_ours, _frames(coroutine)))


def shown_from(frame: FrameType) -> str:
    """Return the stack of a frame that runs, outermost first."""
    return shown(reversed(list(outwards(frame))))


def _of_unit(unit: Unit, driver: Driver) -> str:
    job = unit.job
    stack = _of_job(job) if job is not None else of_coroutine(driver.coroutine)
    if job is None and not stack and _kind_of(unit) is not HandlerKind.ASYNC:
        return _waiting(unit)
    where = " in its thread" if job is not None else ""
    return f"{_named(unit)} is in {_handler_of(unit)}{where}\n{textwrap.indent(stack, '  ')}".rstrip()


def _named(unit: Unit) -> str:
    return f"{unit.event.event_type} {unit.event.event_id}"


def _waiting(unit: Unit) -> str:
    what = "a process" if _kind_of(unit) is HandlerKind.PROCESS else "a thread"
    return f"{_named(unit)} waits for {what} for {_handler_of(unit)}"


def _subscription_of(unit: Unit) -> Subscription | None:
    if isinstance(unit, Rerun):
        return unit.subscription
    return next(iter(unit.flight.plan[len(unit.flight.results) :]), None)


def _handler_of(unit: Unit) -> str:
    subscription = _subscription_of(unit)
    return "no handler" if subscription is None else subscription.name


def _kind_of(unit: Unit) -> HandlerKind:
    subscription = _subscription_of(unit)
    return HandlerKind.ASYNC if subscription is None else subscription.kind


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
