"""Patterns, priorities, and the order in which things happen."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aperion
from aperion import Event, EventBus
from aperion.patterns import PatternIndex, check_pattern, matches

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("pattern", "event_type", "expected"),
    [
        ("chat.sent", "chat.sent", True),  # PAT-1
        ("chat.sent", "chat.sent.again", False),
        ("chat.sent", "chat.sen", False),
        ("*", "chat", True),  # PAT-2
        ("*", "a.b.c", True),
        ("chat.*", "chat.user_input", True),  # PAT-3
        ("chat.*", "chat.a.b", True),
        ("chat.*", "chat", False),
        ("chat.*", "chatter.x", False),
        ("chat.*", "user.login", False),
        ("order.*.failed", "order.payment.failed", True),
        ("order.*.failed", "order.failed", False),
        ("order.*.failed", "order.a.b.failed", False),
        ("*.created", "user.created", True),
        ("*.created", "a.b.created", False),
        ("*.*", "a.b.c", True),
    ],
)
def test_patterns_match_by_the_rule(pattern: str, event_type: str, expected: bool) -> None:  # noqa: FBT001
    """PAT-1 PAT-2 PAT-3: exact, everything, a domain at any depth, one segment."""
    index: PatternIndex[str] = PatternIndex()
    index.add(pattern, "it")

    assert matches(pattern, event_type) is expected
    assert index.find(event_type) == (["it"] if expected else [])


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        " ",
        "chat*",
        "*chat",
        "chat.**",
        "**",
        "a..b",
        ".a",
        "a.",
        "Chat.sent",
        "a b",
        "login",
        5,
        None,
        "chat.sent\n",
    ],
)
def test_anything_else_fails_at_registration(pattern: object) -> None:
    """PAT-a/c/d: with what to use instead."""
    with pytest.raises(aperion.PatternError, match="use an event type such as"):
        EventBus().subscribe(lambda e: None, pattern)  # type: ignore[arg-type]


_segment = st.sampled_from(["a", "b", "ab", "c_d"])
_types = st.lists(_segment, min_size=1, max_size=5).map(".".join)
_patterns = st.lists(st.one_of(_segment, st.just("*")), min_size=1, max_size=5).map(".".join)


@given(st.lists(_patterns, max_size=20), _types)
def test_the_index_finds_what_naive_matching_finds(patterns: list[str], event_type: str) -> None:
    """A law: the trie and the rule agree, also after some patterns were taken out again."""
    index: PatternIndex[int] = PatternIndex()
    for number, pattern in enumerate(patterns):
        index.add(pattern, number)
    for number, pattern in enumerate(patterns[::2]):
        index.remove(pattern, number * 2)

    expected = [n for n, p in enumerate(patterns) if n % 2 and matches(p, event_type)]
    assert sorted(index.find(event_type)) == expected


@given(st.lists(_segment, min_size=2, max_size=5).map(".".join))
def test_a_type_is_a_pattern_that_matches_itself(event_type: str) -> None:
    """A law of the grammar."""
    assert matches(check_pattern(event_type), event_type)


async def test_one_subscription_takes_several_patterns_and_nothing_else() -> None:
    """PAT-4: each of them matches."""
    got: list[str] = []
    async with EventBus() as bus:
        bus.subscribe(lambda e: got.append(e.event_type), ["user.login", "chat.*"])
        for name in ("user.login", "chat.sent", "user.logout", "order.placed"):
            await bus.dispatch(name, {})

    assert got == ["user.login", "chat.sent"]


async def test_domains_are_kept_apart() -> None:
    """PAT-5: chat.* twice, system.* for the bus's own, user.login for neither."""
    chat: list[str] = []
    system: list[str] = []
    async with EventBus() as bus:
        bus.subscribe(lambda e: chat.append(e.event_type), "chat.*")
        bus.subscribe(lambda e: system.append(e.event_type), "system.*")
        for name in ("chat.sent", "chat.read", "user.login"):
            await bus.emit(name, {})
        await bus.wait_settled()

    assert sorted(chat) == ["chat.read", "chat.sent"]
    assert "system.shutdown" in system
    assert all(name.startswith("system.") for name in system)


async def test_what_does_not_match_is_not_looked_at() -> None:
    """PAT-7 SCL: 10,000 other subscriptions: a lookup visits a handful of nodes, not each of them."""
    bus = EventBus()
    for n in range(10_000):
        bus.subscribe(lambda e: None, f"domain{n}.*", name=f"s{n}")
    bus.subscribe(lambda e: None, "chat.*", name="wanted")

    visited = 0
    original = PatternIndex.find

    def counting(self: PatternIndex[object], event_type: str) -> list[object]:
        nonlocal visited
        found = original(self, event_type)
        visited += len(found)
        return found

    PatternIndex.find = counting  # type: ignore[method-assign,assignment]
    try:
        for _ in range(100):
            assert [s.name for s in bus.resolve("chat.sent")] == ["wanted"]
    finally:
        PatternIndex.find = original  # type: ignore[method-assign]

    assert visited == 1  # found once, remembered for the other 99


async def test_a_thousand_subscriptions_all_get_their_event() -> None:
    """PAT-7: 1,000 subscriptions, 100 events with waiting."""
    calls = 0

    async def handler(event: Event) -> None:
        nonlocal calls
        calls += 1

    async with EventBus() as bus:
        for n in range(1_000):
            bus.subscribe(handler, f"domain{n % 100}.*", name=f"s{n}")
        with anyio.fail_after(30):
            for n in range(100):
                assert len(await bus.dispatch(f"domain{n}.happened", {})) == 10

    assert calls == 1_000


@pytest.mark.parametrize("way", ["dispatch", "emit", "emit_nowait", "emit_from_thread"])
async def test_handlers_run_by_priority_across_kinds_in_every_way_of_emitting(way: str) -> None:
    """PRI-1 PRI-2 PRI-5 PRI-a0/a1 PRI-b0/b1 PRI-c PRI-d: a slow sync one on top, async ones between; 50 times."""
    orders: set[tuple[str, ...]] = set()
    async with EventBus(max_concurrent_events=8) as bus:

        @bus.on("chat.sent", priority=300)
        def top(event: Event) -> None:
            time.sleep(0.001)
            ran[event.event_id].append("top")

        @bus.on("chat.sent", priority=200)
        async def middle(event: Event) -> None:
            await anyio.sleep(0)
            ran[event.event_id].append("middle")

        @bus.on("chat.sent", priority=10)
        def low(event: Event) -> None:
            ran[event.event_id].append("low")

        @bus.on("chat.sent", priority=1)
        async def last(event: Event) -> None:
            ran[event.event_id].append("last")

        from collections import defaultdict  # noqa: PLC0415

        ran: dict[str, list[str]] = defaultdict(list)
        with anyio.fail_after(30):
            for _ in range(50):
                if way == "dispatch":
                    await bus.dispatch("chat.sent", {})
                elif way == "emit":
                    await bus.emit("chat.sent", {})
                elif way == "emit_nowait":
                    bus.emit_nowait("chat.sent", {})
                else:
                    await anyio.to_thread.run_sync(bus.emit_from_thread, "chat.sent", {})
            await bus.wait_settled()
        orders = {tuple(order) for order in ran.values()}

    assert len(ran) == 50
    assert orders == {("top", "middle", "low", "last")}


async def test_order_holds_when_one_in_the_middle_fails() -> None:
    """PRI-3: 300 goes well, 200 raises, 100 goes well."""
    ran: list[int] = []
    async with EventBus() as bus:
        bus.subscribe(lambda e: ran.append(300), "chat.sent", 300, name="before")

        @bus.on("chat.sent", priority=200)
        async def fails(event: Event) -> None:
            ran.append(200)
            raise ValueError

        bus.subscribe(lambda e: ran.append(100), "chat.sent", name="after")
        outcomes = await bus.dispatch("chat.sent", {})

    assert ran == [300, 200, 100]
    assert [o.state.value for o in outcomes.values()] == ["ok", "failed", "ok"]


async def test_the_default_priority_is_100_and_equal_ones_keep_their_order() -> None:
    """PRI-4: in order of registration, across routers too."""
    ran: list[str] = []
    async with EventBus() as bus:
        bus.subscribe(lambda e: ran.append("below"), "chat.sent", 99, name="below")
        for name in "abcde":
            bus.subscribe(lambda e, name=name: ran.append(name), "chat.sent", name=name)
        bus.subscribe(lambda e: ran.append("above"), "chat.sent", 101, name="above")
        await bus.dispatch("chat.sent", {})

    assert ran == ["above", "a", "b", "c", "d", "e", "below"]


async def test_events_with_one_key_are_handled_in_order_and_others_are_not_held_up() -> None:
    """PRI-e/f PRI-g/h: per key one after another, in the order accepted; another key overtakes."""
    running: dict[str, int] = {"a": 0, "b": 0}
    seen: dict[str, list[int]] = {"a": [], "b": []}
    async with EventBus(max_concurrent_events=16) as bus:

        @bus.on("stock.moved")
        async def handler(event: Event) -> None:
            key = event.key or ""
            running[key] += 1
            assert running[key] == 1
            await anyio.sleep(0.002 * (event.payload["n"] % 3) if key == "a" else 0)
            seen[key].append(event.payload["n"])
            running[key] -= 1

        with anyio.fail_after(20):
            for n in range(60):
                await bus.emit("stock.moved", {"n": n}, key="a" if n % 2 else "b")
            while len(seen["b"]) < 30:
                await anyio.sleep(0.001)
            assert len(seen["a"]) < 30  # b did not wait for a
            await bus.wait_settled()

        assert bus.stats().failures == 0
    assert seen == {"a": list(range(1, 60, 2)), "b": list(range(0, 60, 2))}


async def test_a_retry_holds_the_later_events_of_its_key_and_nothing_else() -> None:
    """PRI-e/f: strictly one after another, retries included."""
    seen: list[str] = []
    failed: set[str] = set()
    async with EventBus() as bus:

        @bus.on("stock.moved", retry=aperion.Retry(attempts=2, wait_initial=0.05, jitter=0))
        async def handler(event: Event) -> None:
            name = event.payload["name"]
            if name == "a1" and name not in failed:
                failed.add(name)
                raise ValueError
            seen.append(name)

        with anyio.fail_after(5):
            for name in ("a1", "a2", "b1"):
                await bus.emit("stock.moved", {"name": name}, key=name[0])
            await bus.wait_settled()

    assert seen == ["b1", "a1", "a2"]


async def test_dispatch_with_a_key_waits_for_its_turn() -> None:
    """The same order for those who run handlers themselves; inside a handler of that key it would wait for itself."""
    seen: list[int] = []
    async with EventBus() as bus:

        @bus.on("stock.moved")
        async def handler(event: Event) -> None:
            await anyio.sleep(0.01)
            seen.append(event.payload["n"])
            if event.payload["n"] == 9:
                await bus.dispatch("stock.moved", {"n": 10}, key="a")

        with anyio.fail_after(5):
            await bus.emit("stock.moved", {"n": 1}, key="a")
            await bus.dispatch("stock.moved", {"n": 2}, key="a")
            outcomes = await bus.dispatch("stock.moved", {"n": 9}, key="a")

    assert seen == [1, 2, 9]
    with pytest.raises(aperion.DeliveryError):
        outcomes.raise_for_failures()
    assert isinstance(outcomes.failures[0].error, aperion.KeyHeldError)


async def test_a_cancelled_dispatch_leaves_the_line_of_its_key() -> None:
    """The next event of the key is handled, whether the dispatch waited or had just been let in."""
    gate = anyio.Event()
    seen: list[int] = []
    async with EventBus() as bus:

        @bus.on("stock.moved")
        async def handler(event: Event) -> None:
            if event.payload["n"] == 1:
                await gate.wait()
            seen.append(event.payload["n"])

        with anyio.fail_after(5):
            await bus.emit("stock.moved", {"n": 1}, key="a")
            with anyio.move_on_after(0.01):
                await bus.dispatch("stock.moved", {"n": 2}, key="a")
            await bus.emit("stock.moved", {"n": 3}, key="a")
            gate.set()
            await bus.wait_settled()

        assert bus.stats().pending == 0
    assert seen == [1, 3]


async def test_a_dispatch_that_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    """Cancelled, but not run since, when the event before it settles; and the other way round."""
    for settles_first in (False, True):
        gate = asyncio.Event()
        seen: list[int] = []
        async with EventBus() as bus:

            @bus.on("stock.moved")
            async def handler(event: Event) -> None:
                if event.payload["n"] == 1:
                    await gate.wait()
                seen.append(event.payload["n"])

            first = await bus.emit("stock.moved", {"n": 1}, key="a")
            waiting = asyncio.create_task(bus.dispatch("stock.moved", {"n": 2}, key="a"))
            await anyio.sleep(0.01)
            await bus.emit("stock.moved", {"n": 3}, key="a")
            if settles_first:
                first.on_settled(lambda: asyncio.get_running_loop().call_soon(waiting.cancel))
            else:
                first.on_settled(waiting.cancel)
            gate.set()
            with anyio.fail_after(5):
                await bus.wait_settled()
                await asyncio.wait([waiting])

            assert bus.stats().pending == 0
        assert seen in ([1, 3], [1, 2, 3])


async def test_a_slow_handler_keeps_no_other_event_waiting() -> None:
    """PRI-g/h STB-10: while one event sleeps, a hundred others are handled."""
    quick = 0
    gate = anyio.Event()
    async with EventBus() as bus:

        @bus.on("slow.one")
        async def slow(event: Event) -> None:
            await gate.wait()

        @bus.on("quick.one")
        async def fast(event: Event) -> None:
            nonlocal quick
            quick += 1

        slow_receipt = await bus.emit("slow.one", {})
        receipts = [await bus.emit("quick.one", {}) for _ in range(100)]
        with anyio.fail_after(5):
            for receipt in receipts:
                await receipt.settled()
        assert not slow_receipt.is_settled
        gate.set()

    assert quick == 100


async def test_a_filter_skips_and_its_own_error_is_a_failure() -> None:
    """``where`` decides on the loop, before a thread is taken."""
    got: list[int] = []
    async with EventBus() as bus:
        bus.subscribe(lambda e: got.append(e.payload["n"]), "chat.sent", where=lambda e: e.payload["n"] > 1, name="big")
        bus.subscribe(lambda e: None, "chat.sent", where=lambda e: e.payload["missing"], name="broken")
        first, second = [await bus.dispatch("chat.sent", {"n": n}) for n in (1, 2)]

    assert got == [2]
    assert first["big"].state is aperion.OutcomeState.SKIPPED
    assert second["big"].state is aperion.OutcomeState.OK
    assert isinstance(second["broken"].error, KeyError)
