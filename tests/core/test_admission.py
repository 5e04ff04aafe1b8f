"""How full a bus may get, and what happens there; laws of its accounts."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import tracemalloc

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aperion
from aperion import BackpressureError, Event, EventBus, OutcomeState, OverflowPolicy

pytestmark = pytest.mark.anyio


class Gate:
    """A handler that holds every event until it is opened."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.begun = anyio.Event()
        self.seen: list[int] = []

    async def __call__(self, event: Event) -> None:
        self.begun.set()
        await self.opened.wait()
        self.seen.append(event.payload["n"])


def accounts_are_right(bus: EventBus) -> bool:
    """The law: accepted = settled + dropped after acceptance + in flight."""
    stats = bus.stats()
    return stats.accepted == stats.settled + stats.dropped_after + stats.pending


async def test_drop_reports_and_counts_what_it_drops() -> None:
    """BP-1 BP-6 BP-g: receipt, counter, metric per type, and a system event."""
    told: list[str] = []
    metrics = aperion.InMemoryMetrics()
    async with EventBus(max_pending_events=5, overflow_policy=OverflowPolicy.DROP, metrics=metrics) as bus:
        gate = Gate()
        bus.subscribe(gate, "chat.sent")
        bus.subscribe(lambda e: told.append(e.payload["original_event_id"]), "system.event_dropped")
        receipts = [await bus.emit("chat.sent", {"n": n}) for n in range(8)]
        gate.opened.set()
        await bus.wait_settled()

        assert [r.dropped for r in receipts] == [False] * 5 + [True] * 3
        assert bus.stats().dropped == 3
        assert metrics.counter("aperion_events_dropped_total", event_type="chat.sent") == 3
        assert (await receipts[7].settled()).dropped
        assert not receipts[7].outcomes.ok  # type: ignore[union-attr]
    assert gate.seen == [0, 1, 2, 3, 4]
    assert sorted(told) == sorted(r.event_id for r in receipts[5:])


async def test_raise_refuses_the_third_of_two() -> None:
    """BP-2 BP-b: with the limit on the exception; a slot is given back exactly once, whatever the handlers."""
    async with EventBus(max_pending_events=2, overflow_policy="raise") as bus:
        gate = Gate()
        bus.subscribe(gate, "chat.sent")
        bus.subscribe(lambda e: None, "chat.sent")
        for n in range(2):
            await bus.emit("chat.sent", {"n": n})
        with pytest.raises(BackpressureError, match="2 events are accepted") as caught:
            await bus.emit("chat.sent", {"n": 2})
        assert caught.value.limit == 2
        assert bus.stats().pending == 2
        gate.opened.set()
        await bus.wait_settled()
        for n in range(2):
            await bus.emit("chat.sent", {"n": n})
        with pytest.raises(BackpressureError):
            bus.emit_nowait("chat.sent", {"n": 2})


async def test_block_waits_for_room_and_everything_is_handled() -> None:
    """BP-3 BP-d BP-e: the emitter waits, the loop does not."""
    ticks = 0
    async with EventBus(max_pending_events=2) as bus:
        gate = Gate()
        bus.subscribe(gate, "chat.sent")
        accepted: list[int] = []

        async def emit_all() -> None:
            for n in range(20):
                await bus.emit("chat.sent", {"n": n})
                accepted.append(n)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(emit_all)
                for _ in range(10):
                    await anyio.sleep(0)
                    ticks += 1
                assert accepted == [0, 1]
                with pytest.raises(BackpressureError):
                    bus.emit_nowait("chat.sent", {"n": 99})
                gate.opened.set()
            await bus.wait_settled()

    assert ticks == 10
    assert sorted(gate.seen) == list(range(20))


async def test_blocked_emitters_are_let_in_in_their_order() -> None:
    """First come, first served; nobody overtakes the line."""
    order: list[int] = []
    async with EventBus(max_pending_events=1) as bus:
        gate = Gate()
        bus.subscribe(gate, "chat.sent")
        await bus.emit("chat.sent", {"n": -1})

        async def emit(n: int) -> None:
            await bus.emit("chat.sent", {"n": n})
            order.append(n)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for n in range(10):
                    group.start_soon(emit, n)
                    await anyio.sleep(0)
                gate.opened.set()

    assert order == list(range(10))


async def test_a_handler_that_emits_never_waits_for_its_parents_place() -> None:
    """BP-i ASY-e: under BLOCK with one place and one worker; it may also wait for what it emitted."""
    done: list[str] = []
    async with EventBus(max_pending_events=1, max_concurrent_events=1) as bus:

        @bus.on("order.placed")
        async def parent(event: Event) -> None:
            receipts = [await bus.emit("order.invoiced", {}) for _ in range(5)]
            for receipt in receipts:
                await receipt.settled()
            done.append("parent")

        @bus.on("order.invoiced")
        async def child(event: Event) -> None:
            await bus.dispatch("order.mailed", {})
            done.append("child")

        @bus.on("order.mailed")
        def in_thread(event: Event) -> None:
            bus.emit_from_thread("order.archived", {}, timeout=5).settled_from_thread(5)

        with anyio.fail_after(10):
            for _ in range(3):
                await (await bus.emit("order.placed", {})).settled()

        assert bus.stats().failures == 0
    assert done == (["child"] * 5 + ["parent"]) * 3


async def test_pending_is_exact() -> None:
    """BP-4 BP-a: zero, then what is in flight, then zero again; slots never leak."""
    async with EventBus(max_pending_events=5, overflow_policy="drop") as bus:

        @bus.on("chat.sent")
        async def instant(event: Event) -> None: ...

        assert bus.stats().pending == 0
        for _ in range(100):
            await bus.emit("chat.sent", {})
            await anyio.sleep(0)
            await bus.wait_settled()
        assert bus.stats().dropped == 0
        gate = Gate()
        bus.subscribe(gate, "held.event")
        for n in range(3):
            await bus.emit("held.event", {"n": n})
        assert bus.stats().pending == 3
        gate.opened.set()
        await bus.wait_settled()
        assert bus.stats().pending == 0


async def test_dispatch_counts_against_the_bound_and_is_not_refused_alone() -> None:
    """BP-5 BP-h: with a limit of 1, one after another goes; eight at once take turns."""
    running = most = 0
    async with EventBus(max_pending_events=1) as bus:

        @bus.on("chat.sent")
        async def handler(event: Event) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await anyio.sleep(0.001)
            running -= 1

        with anyio.fail_after(10):
            for _ in range(3):
                assert (await bus.dispatch("chat.sent", {})).ok
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(bus.dispatch, "chat.sent", {})
            assert bus.stats().settled == 11
    assert most == 1


async def test_drop_oldest_drops_the_oldest_that_has_not_started() -> None:
    """BP-7 BP-c: what runs goes on; keyed events that wait for their key count too."""
    async with EventBus(max_pending_events=4, max_concurrent_events=1, overflow_policy="drop_oldest") as bus:
        gate = Gate()
        bus.subscribe(gate, "chat.sent")
        await bus.emit("chat.sent", {"n": 0}, key="a")
        await gate.begun.wait()
        later = [await bus.emit("chat.sent", {"n": n}, key="a" if n < 3 else None) for n in range(1, 7)]
        assert [r.dropped for r in later] == [True, True, True, False, False, False]
        assert bus.stats().pending == 4
        gate.opened.set()
        await bus.wait_settled()
        assert accounts_are_right(bus)

    assert gate.seen == [0, 4, 5, 6]


async def test_dropping_an_event_that_waits_for_its_key_does_not_let_the_next_one_in() -> None:
    """The key belongs to the event that is being handled, whatever is dropped behind it."""
    seen: list[int] = []
    begun, gate = anyio.Event(), anyio.Event()
    async with EventBus(max_pending_events=3, overflow_policy="drop_oldest") as bus:

        @bus.on("chat.sent")
        async def handler(event: Event) -> None:
            if event.payload["n"] == 0:
                begun.set()
                await gate.wait()
            seen.append(event.payload["n"])

        await bus.emit("chat.sent", {"n": 0}, key="a")
        await begun.wait()
        for n in range(1, 6):
            await bus.emit("chat.sent", {"n": n}, key="a")
            await anyio.sleep(0.001)
        assert seen == []
        gate.set()
        await bus.wait_settled()

    assert seen == [0, 4, 5]


async def test_a_cancelled_emit_gives_its_place_back() -> None:
    """While it waits, and in the very moment in which it was let in."""
    async with EventBus(max_pending_events=1) as bus:
        gate = Gate()
        bus.subscribe(gate, "chat.sent")
        await bus.emit("chat.sent", {"n": 0})
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for n in range(1, 4):
                    group.start_soon(bus.emit, "chat.sent", {"n": n})
                await anyio.sleep(0)
                gate.opened.set()
                while bus.stats().settled < 1:
                    await anyio.sleep(0)
                group.cancel_scope.cancel()  # one of them has its place reserved just now
            await bus.wait_settled()
            await bus.emit("chat.sent", {"n": 9})
            await bus.wait_settled()

        assert accounts_are_right(bus)
        assert bus.stats().pending == 0
    assert 9 in gate.seen


async def test_a_place_reserved_for_an_emit_that_is_cancelled_is_given_back() -> None:
    """The cancellation comes between being let in and going on; the next in line is let in instead.

    A task of plain asyncio: anyio waits with the cancellation until the task has run.
    """
    tasks: list[asyncio.Task[aperion.Receipt]] = []

    def cancel_the_first(_kind: str, name: str, _value: float, _labels: object) -> None:
        # The gauge is set right after the next emitter was let in, before that one has run.
        if name == "aperion_pending_events" and gate.opened.is_set() and tasks:
            assert not tasks[0].done()
            tasks.pop(0).cancel()
            tasks.clear()

    async with EventBus(max_pending_events=1, metrics=aperion.CallbackMetrics(cancel_the_first)) as bus:
        gate = Gate()
        bus.subscribe(gate, "chat.sent")
        await bus.emit("chat.sent", {"n": 0})
        first, second = (asyncio.create_task(bus.emit("chat.sent", {"n": n})) for n in (1, 2))
        tasks += [first, second]
        await anyio.sleep(0)
        gate.opened.set()
        with anyio.fail_after(5):
            await second
            await bus.wait_settled()

        assert first.cancelled()
        assert bus.stats().accepted == 2
        assert bus.stats().pending == 0
    assert gate.seen == [0, 2]


async def test_a_thread_waits_for_room_or_gives_up() -> None:
    """emit_from_thread under BLOCK: it waits; past its timeout the event is not accepted, later neither."""
    async with EventBus(max_pending_events=1) as bus:
        gate = Gate()
        bus.subscribe(gate, "chat.sent")
        await bus.emit("chat.sent", {"n": 0})

        def impatient() -> None:
            with pytest.raises(TimeoutError, match="not accepted"):
                bus.emit_from_thread("chat.sent", {"n": 1}, timeout=0.02)

        with anyio.fail_after(10):
            await anyio.to_thread.run_sync(impatient)
            async with anyio.create_task_group() as group:
                group.start_soon(
                    anyio.to_thread.run_sync, lambda: bus.emit_from_thread("chat.sent", {"n": 2}, timeout=5)
                )
                await anyio.sleep(0.02)
                gate.opened.set()
            await bus.wait_settled()

        assert bus.stats().accepted == 2
        assert accounts_are_right(bus)
    assert gate.seen == [0, 2]


@pytest.mark.slow
async def test_a_pending_event_takes_little_memory() -> None:
    """BP-f: bounded by default, and each event in flight about a kilobyte beside its payload."""
    payload = {"n": 1}
    async with EventBus(overflow_policy="raise") as bus:
        bus.subscribe(Gate(), "chat.sent")  # the loop turns meanwhile, and none may settle
        await bus.emit("chat.sent", payload)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            with pytest.raises(BackpressureError, match="10,000"):
                for _ in range(10_001):
                    await bus.emit("chat.sent", payload)
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        await bus.drain(0.01)

    assert used / 10_000 < 1_536


async def test_a_loop_of_handlers_ends_with_its_chain() -> None:
    """ASY-f: generations and descendants are bounded, and the error names the chain."""
    async with EventBus(max_hops=5, max_cascade=100) as bus:

        @bus.on("ping.sent")
        async def ping(event: Event) -> None:
            await bus.emit("pong.sent", {})

        @bus.on("pong.sent")
        async def pong(event: Event) -> None:
            await bus.emit("ping.sent", {})

        @bus.on("storm.begun")
        async def storm(event: Event) -> None:
            for _ in range(101):
                await bus.emit("storm.grew", {})

        with anyio.fail_after(10):
            await bus.emit("ping.sent", {})
            await bus.wait_settled()
            accepted = bus.stats().accepted
            await (await bus.emit("storm.begun", {})).settled()
        errors = [letter.error for letter in bus.dead_letters.list()]

    assert accepted == 6
    assert "max_cascade=100" in errors[0]
    assert "max_hops=5" in errors[1]
    assert "ping.sent > pong.sent > ping.sent" in errors[1]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(list(OverflowPolicy)),
    limit=st.integers(1, 8),
    workers=st.integers(1, 5),
)
def test_slots_never_leak_and_keys_keep_their_order(
    seed: int, policy: OverflowPolicy, limit: int, workers: int
) -> None:
    """Laws, under random cancellation, failure, timeouts, retries, keys, threads and cascades."""
    rng = random.Random(seed)  # noqa: S311 - a test's dice
    anyio.run(_storm, rng, policy, limit, workers)


async def _storm(rng: random.Random, policy: OverflowPolicy, limit: int, workers: int) -> None:
    done: dict[str, list[int]] = {}
    active: set[str] = set()
    overlaps: list[str] = []  # keys of which two events were handled at once
    bus = EventBus(
        max_pending_events=limit,
        max_concurrent_events=workers,
        max_concurrent_handlers=2,
        overflow_policy=policy,
        handler_timeout=0.02,
        drain_timeout=5,
    )

    @bus.on("storm.*", retry=aperion.Retry(attempts=2, wait_initial=0.001), priority=200)
    async def unruly(event: Event) -> None:
        key = event.key
        if key is not None:
            overlaps.extend([key] if key in active else [])
            active.add(key)
        try:
            dice = rng.random()
            if dice < 0.2:
                await anyio.sleep(0)
            if dice < 0.05:
                await anyio.sleep(1)
            if dice < 0.12:
                raise ValueError
            if dice > 0.9 and event.hops < 3:
                await bus.emit("storm.child", {"n": -1})
        finally:
            if key is not None:
                active.discard(key)

    @bus.on("storm.*")
    async def ordered(event: Event) -> None:
        if event.key is not None and event.payload["n"] >= 0:
            done.setdefault(event.key, []).append(event.payload["n"])

    @bus.on("storm.*", where=lambda e: e.payload["n"] % 7 == 0)
    def in_thread(event: Event) -> None:
        if rng.random() < 0.3:
            raise SystemExit

    async def emitter(name: str) -> None:
        for n in range(rng.randint(1, 12)):
            with anyio.move_on_after(0.005 if rng.random() < 0.2 else 5):
                try:
                    key = name if rng.random() < 0.6 else None
                    if rng.random() < 0.2:
                        await bus.dispatch("storm.dispatched", {"n": n}, key=key)
                    else:
                        await bus.emit("storm.emitted", {"n": n}, key=key)
                except BackpressureError:
                    await anyio.sleep(0.001)
            assert accounts_are_right(bus)

    with anyio.fail_after(30):
        async with bus:
            async with anyio.create_task_group() as group:
                for i in range(4):
                    group.start_soon(emitter, f"key{i}")
            await bus.wait_settled()
            stats = bus.stats()
            assert accounts_are_right(bus)
            assert stats.pending == 0
            assert stats.threads_busy == stats.threads_abandoned
            assert bus._engine.queue.is_empty  # type: ignore[union-attr]
            assert (await bus.dispatch("calm.event", {})).ok
    assert overlaps == []
    for key, seen in done.items():
        assert seen == sorted(seen), key


@settings(max_examples=20, deadline=None)
@given(plan=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=5))
def test_a_redrive_never_runs_a_subscription_that_succeeded(plan: list[tuple[bool, bool]]) -> None:
    """A law: whatever failed, redriving all runs each failed one once more and no other."""

    async def scenario() -> None:
        calls = [0] * len(plan)
        async with EventBus() as bus:
            for index, (fails_first, fails_again) in enumerate(plan):

                async def handler(
                    event: Event, index: int = index, script: tuple[bool, bool] = (fails_first, fails_again)
                ) -> None:
                    calls[index] += 1
                    if script[min(calls[index], 2) - 1]:
                        raise ValueError

                bus.subscribe(handler, "chat.sent", name=f"h{index}")
            await bus.dispatch("chat.sent", {})
            assert calls == [1] * len(plan)
            await bus.redrive_all()
            assert calls == [2 if first else 1 for first, _ in plan]
            left = {letter.subscription for letter in bus.dead_letters.list() if letter.subscription}
            assert left == {f"h{i}" for i, (first, again) in enumerate(plan) if first and again}

    anyio.run(scenario)


async def test_subscribing_and_unsubscribing_from_threads_while_events_fly() -> None:
    """STB-4 SUB-a: no error, everything that should arrive arrives, nothing starts after unsubscribe."""
    steady = 0
    late: list[str] = []
    stop = threading.Event()
    async with EventBus() as bus:

        @bus.on("chat.sent", name="steady")
        async def always(event: Event) -> None:
            nonlocal steady
            steady += 1

        def churn(number: int) -> None:
            ended = threading.Event()
            while not stop.is_set():
                ended.clear()

                def handler(event: Event) -> None:
                    if ended.is_set():
                        late.append("ran after unsubscribe returned")

                subscription = bus.subscribe(handler, "chat.*", name=f"churn{number}")
                time.sleep(0.0005)
                assert bus.unsubscribe(subscription)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for number in range(3):
                    group.start_soon(anyio.to_thread.run_sync, churn, number)
                for _ in range(300):
                    await bus.emit("chat.sent", {})
                    await anyio.sleep(0)
                stop.set()
            await bus.wait_settled()

        assert len(bus.subscriptions) == 1
    assert steady == 300
    assert late == []


async def test_a_queued_event_is_not_delivered_after_unsubscribe() -> None:
    """SUB-a: neither one that waits in the queue nor one that waits for a thread."""
    got: list[str] = []
    release = threading.Event()
    async with EventBus(max_concurrent_handlers=1) as bus:
        bus.subscribe(lambda e: release.wait(10), "block.thread")
        await bus.emit("block.thread", {})
        target = bus.subscribe(lambda e: got.append("late"), "chat.sent")
        receipt = await bus.emit("chat.sent", {})
        await anyio.sleep(0.02)  # it stands in line for the one thread now
        bus.unsubscribe(target)
        release.set()
        with anyio.fail_after(5):
            outcomes = await receipt.settled()

    assert got == []
    assert [o.state for o in outcomes.values()] == [OutcomeState.SKIPPED]
