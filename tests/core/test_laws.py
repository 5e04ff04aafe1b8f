"""The laws of the engine, over generated lives: every event is accounted for, at any moment and at the end."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import weakref
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from accounts import check_balance, check_empty, resting
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import aperion
from aperion import BackpressureError, BusNotRunningError, Event, EventBus, OverflowPolicy, Receipt, Retry
from aperion.errors import DeadlockError

BEHAVIOURS = ("returns", "yields", "fails", "retries", "times out", "swallows", "emits", "dispatches", "exits", "waits")
ACTIONS = (
    *("emit", "emit_nowait", "thread", "dispatch", "outbox"),
    *("give up", "turn", "subscriptions", "callback", "expect"),
)


@dataclass
class Life:
    """What a generated bus has to go through."""

    policy: OverflowPolicy
    limit: int
    events: int
    threads: int
    steps: list[tuple[str, str, str | None]]
    drains_at: int | None
    seed: int


lives = st.builds(
    Life,
    policy=st.sampled_from(list(OverflowPolicy)),
    limit=st.integers(1, 6),
    events=st.integers(1, 3),
    threads=st.integers(1, 2),
    steps=st.lists(
        st.tuples(st.sampled_from(ACTIONS), st.sampled_from(BEHAVIOURS), st.sampled_from([None, None, "a", "b"])),
        min_size=1,
        max_size=25,
    ),
    drains_at=st.none() | st.integers(0, 25),
    seed=st.integers(0, 2**16),
)


@dataclass
class Seen:
    """What handlers and emitters have noted."""

    order: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    active: set[str] = field(default_factory=set)
    overlaps: list[str] = field(default_factory=list)
    accepted: list[Receipt] = field(default_factory=list)
    odd: list[BaseException] = field(default_factory=list)
    calls: int = 0


class World:
    """A bus with handlers of every kind, and who uses it."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.seen = Seen()
        self.number = 0
        self.rng = random.Random(life.seed)
        self.stop = threading.Event()
        self.bus = EventBus(
            max_pending_events=life.limit,
            max_concurrent_events=life.events,
            max_concurrent_handlers=life.threads,
            overflow_policy=life.policy,
            handler_timeout=5,
            drain_timeout=10,
        )
        retry = Retry(attempts=2, wait_initial=0.001)
        self.bus.subscribe(self.first, "law.*", 300, name="first", retry=retry)
        self.bus.subscribe(self.timed, "law.*", 200, name="timed", timeout=0.004)
        self.bus.subscribe(self.in_thread, "law.*", 100, name="in thread", where=lambda e: e.payload["n"] % 3 == 0)
        self.coming = self.bus.subscribe(self.comes_and_goes, "law.*", 50, name="comes and goes")
        self.bus.subscribe(self.last, "law.*", 1, name="last")

    # Handlers

    async def first(self, event: Event) -> None:
        key, behaviour = event.key, event.payload["does"]
        if key is not None:
            self.seen.overlaps.extend([key] if key in self.seen.active else [])
            self.seen.active.add(key)
        try:
            await self.behave(event, behaviour)
        finally:
            if key is not None:
                self.seen.active.discard(key)

    async def behave(self, event: Event, behaviour: str) -> None:
        if behaviour == "yields":
            await anyio.sleep(0)
        elif behaviour in ("fails", "retries"):
            await anyio.sleep(0) if behaviour == "fails" else None
            raise ValueError("no")
        elif behaviour == "exits":
            raise SystemExit(3)
        elif behaviour == "emits" and event.hops < 2:
            for _ in range(2):
                with suppress(BackpressureError, BusNotRunningError):
                    await self.bus.emit("law.child", {"n": -1, "does": "emits"})
        elif behaviour == "dispatches" and event.hops < 2:
            with suppress(BackpressureError, BusNotRunningError):
                await self.bus.dispatch("law.child", {"n": -1, "does": "dispatches"})
        elif behaviour == "waits" and event.hops < 1:
            with suppress(BackpressureError, BusNotRunningError, DeadlockError):
                await (await self.bus.emit("law.child", {"n": -1, "does": "yields"}, key=event.key)).settled()

    async def timed(self, event: Event) -> None:
        if event.payload["does"] == "times out":
            await anyio.sleep(5)
        elif event.payload["does"] == "swallows":
            with suppress(asyncio.CancelledError):
                await anyio.sleep(5)

    def in_thread(self, event: Event) -> None:
        if event.payload["does"] == "fails":
            raise SystemExit(4)
        if event.payload["does"] == "emits" and event.hops < 2:
            with suppress(BackpressureError, BusNotRunningError, TimeoutError):
                self.bus.emit_from_thread("law.child", {"n": -1, "does": "returns"}, timeout=2)

    async def comes_and_goes(self, event: Event) -> None: ...

    async def last(self, event: Event) -> None:
        if event.key is not None and event.payload["n"] >= 0:
            self.seen.order[event.key].append(event.payload["n"])

    # Users

    async def act(self, action: str, does: str, key: str | None) -> None:
        """Do one thing; the numbers of events with a key grow in the order in which they are accepted."""
        bus, payload = self.bus, {"n": self.number, "does": does}
        self.number += 1
        try:
            if action == "emit":
                self.accepted(await bus.emit("law.emitted", payload, key=key))
            elif action == "emit_nowait":
                self.accepted(bus.emit_nowait("law.emitted", payload, key=key))
            elif action == "thread":
                emit = lambda: bus.emit_from_thread("law.emitted", payload, key=key, timeout=5)
                self.accepted(await anyio.to_thread.run_sync(emit))
            elif action == "dispatch":
                await bus.dispatch("law.emitted", payload, key=key)
            elif action == "outbox":
                async with bus.outbox() as outbox:
                    outbox.emit("law.emitted", payload, key=key)
                    outbox.emit("law.emitted", payload | {"n": -1}, key=key)
            elif action == "give up":
                with anyio.move_on_after(self.rng.choice([0, 0.001])):
                    self.accepted(await bus.emit("law.emitted", payload, key=key))
            elif action == "callback":
                receipt = bus.emit_nowait("law.emitted", payload, key=key)
                receipt.on_settled(self.called)
                self.accepted(receipt)
            elif action == "expect":
                with suppress(TimeoutError):
                    await bus.expect("law.*", timeout=0.001)
            elif action == "subscriptions":
                await anyio.to_thread.run_sync(self.change_subscriptions)
            else:
                await anyio.sleep(0)
        except (BackpressureError, BusNotRunningError):
            pass

    def accepted(self, receipt: Receipt) -> None:
        if not receipt.dropped:
            self.seen.accepted.append(receipt)

    def called(self) -> None:
        self.seen.calls += 1
        raise SystemExit(5)

    def change_subscriptions(self) -> None:
        self.coming.pause()
        self.coming.resume()
        self.bus.unsubscribe("comes and goes")
        self.coming = self.bus.subscribe(self.comes_and_goes, "law.*", 50, name="comes and goes")

    def look(self) -> None:
        """Ask for the numbers, all the time, from another thread."""
        while not self.stop.is_set():
            stats = self.bus.stats()
            if stats.accepted != stats.settled + stats.dropped_after + stats.pending or stats.pending < 0:
                self.seen.odd.append(AssertionError(stats))
                return

    async def check(self) -> None:
        while True:
            check_balance(self.bus)
            await asyncio.sleep(0)

    # The whole life

    async def live(self) -> None:
        life, bus = self.life, self.bus
        reports: list[Any] = []
        checker = asyncio.create_task(self.check())
        looker = threading.Thread(target=self.look, name="looker")
        looker.start()
        try:
            async with bus:
                for number, step in enumerate(life.steps):
                    if number == life.drains_at:
                        reports.extend(await asyncio.gather(bus.drain(0.002), bus.drain(5)))
                    await self.act(*step)
                if not reports:
                    await bus.wait_settled()
                    check_empty(bus)
                    await resting(bus)
                reports.append(await bus.drain())
        finally:
            self.stop.set()
            looker.join()
            checker.cancel()
            with suppress(asyncio.CancelledError):
                await checker
        self.judge(reports)

    def judge(self, reports: list[Any]) -> None:
        bus, seen = self.bus, self.seen
        stats = bus.stats()
        assert seen.odd == []
        assert stats.pending == bus._ledger.pending == bus._system_ledger.pending == 0
        assert stats.accepted == stats.settled + stats.dropped_after
        assert stats.engine_errors == 0
        assert all(report is reports[0] for report in reports)
        letters = {(letter.event.event_id, letter.subscription) for letter in bus.dead_letters}
        for receipt in seen.accepted:
            assert receipt.is_settled
            outcomes = receipt.outcomes
            assert outcomes is not None
            for outcome in outcomes.failures:
                assert (receipt.event_id, outcome.subscription) in letters
        unfinished = {event_id for _, event_id in reports[0].unfinished}
        assert unfinished <= {event_id for event_id, _ in letters}
        assert seen.overlaps == []
        for numbers in seen.order.values():
            assert numbers == sorted(numbers)


async def whole(life: Life) -> None:
    """Live, and leave the process as it was."""
    await anyio.to_thread.run_sync(int)  # starts what the pool of anyio has
    tasks, files = asyncio.all_tasks(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with anyio.fail_after(30):
        await World(life).live()
        while any(thread.name.startswith("aperion") for thread in threading.enumerate()):
            await anyio.sleep(0.001)
        while asyncio.all_tasks() - tasks:
            await anyio.sleep(0)
    if files:
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= files


def go(life: Life, *, use_uvloop: bool) -> None:
    anyio.run(whole, life, backend_options={"use_uvloop": use_uvloop})


both = pytest.mark.parametrize("use_uvloop", [False, True], ids=["asyncio", "uvloop"])
slow_is_fine = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


@both
@settings(max_examples=40, **slow_is_fine)
@given(life=lives)
def test_every_event_is_accounted_for_whatever_happens(use_uvloop: bool, life: Life) -> None:
    go(life, use_uvloop=use_uvloop)


@pytest.mark.slow
@both
@pytest.mark.parametrize("part", range(12))
def test_every_event_is_accounted_for_in_many_lives(part: int, use_uvloop: bool) -> None:
    @seed(part)
    @settings(max_examples=100, **slow_is_fine)
    @given(life=lives)
    def many(life: Life) -> None:
        go(life, use_uvloop=use_uvloop)

    many()


# Many at once


@pytest.mark.anyio
@pytest.mark.parametrize("policy", list(OverflowPolicy), ids=lambda policy: policy.value)
async def test_a_crowd_of_emitters_keeps_the_laws(policy: OverflowPolicy) -> None:
    steps = [
        (action, behaviour, "ab"[n % 2] if n % 3 else None)
        for n, action in enumerate(ACTIONS)
        for behaviour in BEHAVIOURS
    ]
    world = World(Life(policy, 4, 3, 2, [], None, 7))
    with anyio.fail_after(40):
        async with world.bus as bus:
            checker = asyncio.create_task(world.check())

            async def uses(offset: int) -> None:
                for step in steps[offset::6]:
                    await world.act(*step)

            async with anyio.create_task_group() as group:
                for offset in range(6):
                    group.start_soon(uses, offset)
            await bus.wait_settled()
            check_empty(bus)
            await resting(bus)
            checker.cancel()
            assert not checker.done()
            report = await bus.drain()
        world.seen.order.clear()  # of several emitters, the numbers say nothing about who was first
        world.judge([report])
    assert aperion.current_event() is None


class Kept(aperion.Payload, type="kept.event"):
    number: int


@pytest.mark.anyio
async def test_nothing_of_an_event_is_kept_once_it_has_settled() -> None:
    """What runs its handlers goes on to the next event, and must not hold the last one until then."""

    async def waits(event: Event[Kept]) -> None:
        await asyncio.sleep(0)

    async def fails(event: Event[Kept]) -> None:
        raise ValueError(event.payload)

    async def returns(event: Event[Kept]) -> object:
        return event.payload

    gone: list[weakref.ref[Kept]] = []
    for handler in (waits, fails, returns, None):
        async with EventBus() as bus:
            if handler is not None:
                bus.subscribe(handler, Kept)
            for way in (bus.dispatch, bus.emit):
                payload = Kept(number=len(gone))
                gone.append(weakref.ref(payload))
                await way(payload)
                del payload
            await bus.wait_settled()
            bus.dead_letters.purge()
            gc.collect()
            assert [each() for each in gone] == [None] * len(gone)


@pytest.mark.anyio
async def test_what_runs_handlers_is_kept_for_later_events_up_to_a_bound() -> None:
    async def waits(event: Event[Any]) -> None:
        await asyncio.sleep(0.001)

    async with EventBus() as bus:
        bus.subscribe(waits, "kept.*")
        for _ in range(2):
            await asyncio.gather(*(bus.dispatch("kept.wide", {}) for _ in range(300)))
        assert bus._engine is not None
        free = bus._engine.execution.free
        assert 0 < len(free) <= 64
        before = set(map(id, free))
        for _ in range(100):
            await bus.dispatch("kept.one", {})
        assert set(map(id, free)) == before
