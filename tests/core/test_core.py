"""Events, subscriptions and emitting: the first things that a user tries."""

from __future__ import annotations

import copy
import datetime as dt
import json
import multiprocessing
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

import aperion
from aperion import Event, EventBus

pytestmark = pytest.mark.anyio


class UserLogin(aperion.Payload, type="core.login"):
    username: str
    tags: list[str] = []


def test_an_event_keeps_what_it_is_given() -> None:
    """CORE-1: type, payload, timestamp, id, source and correlation id are those given."""
    event = Event("user.login", {"a": 1}, 12.5, "id-1", "web", "req-1", key="k", headers={"h": "v"})

    assert (event.event_type, event.payload, event.timestamp, event.event_id) == ("user.login", {"a": 1}, 12.5, "id-1")
    assert (event.source, event.correlation_id, event.key, event.headers) == ("web", "req-1", "k", {"h": "v"})


def test_the_timestamp_is_that_of_the_making() -> None:
    """CORE-2: seconds since the epoch, between before and after."""
    before = time.time()
    event = Event("user.login", {})

    assert before <= event.timestamp <= time.time()
    assert isinstance(event.timestamp, float)


def test_ids_are_distinct_uuids_of_version_7() -> None:
    """CORE-3: filled in, text, distinct."""
    ids = [Event("user.login", {}).event_id for _ in range(1000)]

    assert len(set(ids)) == 1000
    assert all(len(i) == 36 and i[14] == "7" for i in ids)


@pytest.mark.parametrize(
    "payload",
    [
        {"a": {"b": {"c": [1, "x", None, True, [2.5]]}}},
        {"text": "héllo 🎉 日本語 \u2028"},
        {"big": 1e10, "small": 4.56e-7, "int": 2**80, "no": False, "null": None},
    ],
)
def test_a_line_of_json_round_trips(payload: dict[str, object]) -> None:
    """CORE-4 CORE-5: every field and every kind of value comes back equal."""
    event = Event("user.login", payload, source="s", correlation_id="c", causation_id="p", hops=3, key="k")

    line = event.to_jsonl()

    assert "\n" not in line
    assert Event.from_jsonl(line) == event
    assert event.to_dict() == json.loads(line)


class Opening(aperion.Payload, type="core.opened"):
    at: dt.time
    on: dt.datetime


def test_times_of_day_and_odd_offsets_come_back_to_the_microsecond() -> None:
    """CORE-4: 10,000 microseconds are a hundredth of a second, and offsets of before 1900 have seconds."""
    local = dt.timezone(dt.timedelta(minutes=53, seconds=28))
    opening = Opening(at=dt.time(8, 30, 0, 10_000), on=dt.datetime(1890, 1, 1, 8, 30, tzinfo=local))
    event = Event("core.opened", opening)

    assert Event.from_jsonl(event.to_jsonl()) == event


def test_a_model_comes_back_as_its_model() -> None:
    """CORE-4: the payload of a type that has a model is that model again."""
    event = Event("core.login", UserLogin(username="alice", tags=["a"]))

    again = Event.from_jsonl(event.to_jsonl())

    assert isinstance(again.payload, UserLogin)
    assert again == event


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken", "not JSON"),
        ("[1]", "a list"),
        ('{"payload": {}}', "no event_type"),
        ('{"event_type": "core.login", "payload": {"username": 5}}', "username"),
    ],
)
def test_a_broken_line_gives_a_clean_error(line: str, says: str) -> None:
    """CORE-19: an AperionError that says what is wrong with the line."""
    with pytest.raises(aperion.ValidationError, match=says):
        Event.from_jsonl(line)


def test_an_event_cannot_be_changed() -> None:
    """CORE-6 EVT-a/c/d: neither its attributes nor its payload; it is hashable."""
    event = Event("user.login", {"a": [1], "b": {"c": 1}})

    with pytest.raises(AttributeError, match="replace"):
        event.source = "x"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del event.source  # type: ignore[misc]
    for change in (
        lambda p: p.update(a=2),
        lambda p: p["a"].append(2),
        lambda p: p["b"].pop("c"),
        lambda p: p.__setitem__("z", 1),
    ):
        with pytest.raises(TypeError, match="copy"):
            change(event.payload)
    assert event.payload == {"a": [1], "b": {"c": 1}}
    assert {event: 1}[event] == 1


def test_copies_of_a_payload_can_be_changed_and_events_pickle() -> None:
    """CORE-6: a user who wants to work on the data takes a copy, which is plain."""
    event = Event("user.login", {"a": [1]})

    thawed = copy.deepcopy(event.payload)
    thawed["a"].append(2)

    assert thawed == {"a": [1, 2]}
    assert event.payload == {"a": [1]}
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - our own bytes
    assert event.replace(source="x").source == "x"
    with pytest.raises(TypeError, match="colour"):
        event.replace(colour=1)


def test_the_repr_of_an_event_shows_no_payload() -> None:
    """An event in a log line by accident must not show what it holds."""
    assert "hunter2" not in repr(Event("user.login", {"password": "hunter2"}))


async def test_a_bus_can_be_made_with_defaults_and_limits() -> None:
    """CORE-7 CORE-17: defaults, no audit, a limit of worker threads; stats tell."""
    async with EventBus() as plain, EventBus(max_concurrent_handlers=3) as limited:
        stats = plain.stats()

        assert (stats.audit_enabled, stats.metrics_enabled, stats.threads_limit) == (False, False, 10)
        assert (stats.subscriptions, stats.max_pending_events, stats.overflow_policy) == (0, 10_000, "block")
        assert limited.stats().threads_limit == 3


async def test_subscribing_returns_a_handle_with_a_stable_name() -> None:
    """CORE-8: several patterns, metadata, and a name made of module and function."""

    async def greet(event: Event) -> None: ...

    bus = EventBus()
    first = bus.subscribe(greet, ["chat.*", UserLogin], metadata={"team": "a"})
    second = bus.subscribe(greet, "order.placed")

    assert first.patterns == ("chat.*", "core.login")
    assert first.metadata == {"team": "a"}
    assert first.name.endswith("test_core.test_subscribing_returns_a_handle_with_a_stable_name.<locals>.greet")
    assert second.name == first.name  # no event could go to both
    with pytest.raises(aperion.ConfigurationError, match="is taken by the subscription to chat"):
        bus.subscribe(greet, "chat.sent")
    assert len(bus.subscriptions) == 2


async def test_emit_returns_a_receipt_and_the_handler_gets_the_event() -> None:
    """CORE-9: id, type and payload of the receipt are those that the handler sees."""
    got: list[Event] = []
    async with EventBus() as bus:

        @bus.on("chat.sent")
        async def handler(event: Event) -> None:
            got.append(event)

        receipt = await bus.emit("chat.sent", {"text": "hi"})
        await receipt.settled()

    assert [e.event_id for e in got] == [receipt.event_id]
    assert got[0].event_type == "chat.sent"
    assert got[0].payload == {"text": "hi"}


async def test_unsubscribing_ends_delivery() -> None:
    """CORE-10: True, by handle or by name; False for what is unknown or gone."""
    got: list[str] = []
    async with EventBus() as bus:
        one = bus.subscribe(lambda e: got.append("one"), "chat.sent")
        two = bus.subscribe(lambda e: got.append("two"), "chat.sent", name="two")

        assert bus.unsubscribe(one)
        assert bus.unsubscribe("two")
        assert not bus.unsubscribe(one)
        assert not bus.unsubscribe("nobody")
        assert not bus.unsubscribe(two)
        await bus.dispatch("chat.sent", {})

    assert got == []


async def test_each_handler_gets_an_event_once() -> None:
    """CORE-11 PAT-4: several handlers, and one with several matching patterns."""
    got: list[str] = []
    async with EventBus() as bus:
        bus.subscribe(lambda e: got.append("a"), "chat.sent", name="one pattern")
        bus.subscribe(lambda e: got.append("b"), ["chat.sent", "chat.*", "*.sent"], name="three patterns")
        await bus.dispatch("chat.sent", {})

    assert sorted(got) == ["a", "b"]


async def test_three_threads_emit_and_everything_arrives() -> None:
    """CORE-12: 3 threads with 5 events each."""
    got: list[int] = []
    async with EventBus() as bus:

        @bus.on("chat.sent")
        async def handler(event: Event) -> None:
            got.append(event.payload["n"])

        def emit_five(start: int) -> None:
            for n in range(start, start + 5):
                bus.emit_from_thread("chat.sent", {"n": n}, timeout=5)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for start in (0, 5, 10):
                    group.start_soon(anyio.to_thread.run_sync, emit_five, start)
            await bus.wait_settled()

    assert sorted(got) == list(range(15))


@pytest.mark.parametrize("event_type", ["", "   ", None, 5])
async def test_an_empty_type_is_refused(event_type: object) -> None:
    """CORE-13: with a message that says what a type is."""
    async with EventBus() as bus:
        with pytest.raises(aperion.EventTypeError, match="non-empty string"):
            await bus.emit(event_type, {})  # type: ignore[call-overload]


@pytest.mark.parametrize("payload", [None, "text", 5, ["a"]])
async def test_a_payload_that_is_no_mapping_is_refused(payload: object) -> None:
    """CORE-13: with a message that names the type it has."""
    async with EventBus() as bus:
        with pytest.raises(aperion.PayloadError, match=type(payload).__name__):
            await bus.emit("chat.sent", payload)  # type: ignore[call-overload]


async def test_settled_returns_after_every_handler_has_ended() -> None:
    """CORE-14: emit, then wait: handlers of both kinds are done."""
    done: list[str] = []
    async with EventBus() as bus:

        @bus.on("chat.sent")
        async def slow(event: Event) -> None:
            await anyio.sleep(0.05)
            done.append("async")

        @bus.on("chat.sent")
        def slow_sync(event: Event) -> None:
            time.sleep(0.05)
            done.append("sync")

        receipt = await bus.emit("chat.sent", {})
        assert not receipt.is_settled
        assert receipt.outcomes is None
        outcomes = await receipt.settled()

    assert done == ["async", "sync"]
    assert outcomes.ok
    assert len(outcomes) == 2


def test_plain_sync_code_emits_to_handlers_of_both_kinds() -> None:
    """CORE-15 CORE-16 ASY-h: a program without a loop of its own; the async handler runs on the bus's loop."""
    got: list[tuple[str, bool]] = []
    bus = EventBus()
    loop_thread: list[int] = []

    @bus.on("chat.sent")
    async def on_loop(event: Event) -> None:
        got.append(("async", threading.get_ident() == loop_thread[0]))

    @bus.on("chat.sent")
    def in_thread(event: Event) -> None:
        got.append(("sync", threading.get_ident() != loop_thread[0]))

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(bus):
        loop_thread.append(portal.call(threading.get_ident))
        outcomes = bus.emit_from_thread("chat.sent", {}).settled_from_thread(timeout=5)

    assert outcomes.ok
    assert got == [("async", True), ("sync", True)]


async def test_subscriptions_can_be_listed_paused_and_resumed() -> None:
    """CORE-18 PAT-6: a paused one matches nothing; what came meanwhile is not delivered later."""
    got: list[int] = []
    async with EventBus() as bus:
        subscription = bus.subscribe(lambda e: got.append(e.payload["n"]), "chat.*")
        await bus.dispatch("chat.sent", {"n": 1})

        subscription.pause()
        assert subscription.paused
        assert not subscription.matches("chat.sent")
        await bus.dispatch("chat.sent", {"n": 2})
        assert bus.stats().subscriptions_active == 0
        subscription.resume()
        await bus.dispatch("chat.sent", {"n": 3})

        assert bus.subscriptions == (subscription,)
        assert subscription.active

    assert got == [1, 3]


async def test_one_handler_never_sees_what_another_or_the_emitter_did() -> None:
    """EVT-a/c/d: the caller reuses one dict, a handler changes what it can; nobody else notices."""
    seen: list[list[int]] = []
    async with EventBus() as bus:

        @bus.on("chat.sent", priority=200)
        async def vandal(event: Event) -> None:
            event.payload["items"].append(99)

        @bus.on("chat.sent")
        async def witness(event: Event) -> None:
            seen.append(list(event.payload["items"]))

        payload = {"items": [0]}
        for n in range(5):
            payload["items"] = [n]
            await bus.emit("chat.sent", payload)
        payload["items"].append(7)
        await bus.wait_settled()

        letters = bus.dead_letters.list()

    assert seen == [[0], [1], [2], [3], [4]]
    assert [letter.event.payload["items"] for letter in reversed(letters)] == seen


class Mutable:
    """A dataclass-like thing that stays mutable inside a payload."""


async def test_each_handler_gets_its_own_copy_of_what_cannot_be_frozen() -> None:
    """EVT-a/c/d: objects that can be changed are copied, for each handler and for the dead letter."""
    import dataclasses  # noqa: PLC0415 - the class below lives in this test alone

    @dataclasses.dataclass
    class Point:
        x: int

    seen: list[int] = []
    async with EventBus() as bus:

        @bus.on("chat.sent", priority=200)
        async def vandal(event: Event) -> None:
            event.payload["at"].x = 99
            raise ValueError

        bus.subscribe(lambda e: seen.append(e.payload["at"].x), "chat.sent")
        point = Point(1)
        receipt = await bus.emit("chat.sent", {"at": point})
        point.x = 5
        await receipt.settled()

        assert bus.dead_letters.list()[0].event.payload["at"].x == 1

    assert seen == [1]


async def test_what_a_handler_sets_in_context_variables_stays_there() -> None:
    """Handlers share worker tasks; the context of one event must not leak into the next."""
    from contextvars import ContextVar  # noqa: PLC0415

    user: ContextVar[str | None] = ContextVar("user", default=None)
    seen: list[str | None] = []
    async with EventBus(max_concurrent_events=1) as bus:

        @bus.on("chat.sent")
        async def handler(event: Event) -> None:
            seen.append(user.get())
            user.set(event.payload["user"])
            await anyio.sleep(0)
            assert user.get() == event.payload["user"]

        for name in ("alice", "bob"):
            await bus.emit("chat.sent", {"user": name})
        await bus.wait_settled()
        assert (await bus.dispatch("chat.sent", {"user": "carol"})).ok

    assert seen == [None, None, None]
    assert user.get() is None


def _ids(count: int) -> list[str]:
    return [Event("user.login", {}).event_id for _ in range(count)]


def test_ids_are_distinct_across_processes_and_buses() -> None:
    """ID-a/b/c: forked processes do not continue one random sequence."""
    Event("user.login", {})  # so that the generator is in use before the fork
    with multiprocessing.get_context("fork").Pool(4) as pool:
        ids = [i for part in pool.map(_ids, [2_000] * 8) for i in part]

    assert len(set(ids)) == 16_000


def test_ids_are_distinct_across_threads() -> None:
    """ID-a/b/c: eight threads at once."""
    with ThreadPoolExecutor(8) as pool:
        ids = [i for part in pool.map(_ids, [2_000] * 8) for i in part]

    assert len(set(ids)) == 16_000


async def test_a_router_collects_handlers_for_buses() -> None:
    """Handlers added before and after include reach the bus; unsubscribing at the router ends them."""
    got: list[str] = []
    router, bus = aperion.Router(), EventBus()
    early = router.subscribe(lambda e: got.append("early"), "chat.*", priority=2, name="early")
    bus.include(router)
    router.subscribe(lambda e: got.append("late"), "chat.*", priority=1, name="late")
    async with bus:
        await bus.dispatch("chat.sent", {})
        early.pause()
        await bus.dispatch("chat.sent", {})
        early.resume()
        assert router.unsubscribe(early)
        await bus.dispatch("chat.sent", {})

    assert got == ["early", "late", "late", "late"]


def test_a_router_is_included_once_and_never_in_itself() -> None:
    """Each event would be handled twice, or for ever."""
    outer, inner = aperion.Router(), aperion.Router()
    outer.include(inner)

    with pytest.raises(aperion.ConfigurationError, match="twice"):
        outer.include(inner)
    with pytest.raises(aperion.ConfigurationError, match="itself"):
        inner.include(outer)
    with pytest.raises(aperion.ConfigurationError, match="itself"):
        outer.include(outer)


async def test_a_bus_can_run_again() -> None:
    """A bus at module level serves one application after another."""
    got: list[int] = []
    bus = EventBus()
    bus.subscribe(lambda e: got.append(e.payload["n"]), "chat.sent")
    for n in (1, 2):
        async with bus:
            await bus.emit("chat.sent", {"n": n})

    assert got == [1, 2]
    assert bus.stats().settled == 2


async def test_processors_change_and_drop_before_admission() -> None:
    """A processor returns the event, another one, or None; a dropped one is visible."""
    got: list[str | None] = []

    def stamp(event: Event) -> Event:
        return event.replace(source="stamped")

    def drop_debug(event: Event) -> Event | None:
        return None if event.event_type == "log.debug" else event

    async with EventBus(processors=[stamp, drop_debug]) as bus:
        bus.subscribe(lambda e: got.append(e.source), "log.*")
        kept, dropped = await bus.emit("log.info", {}), await bus.emit("log.debug", {})
        await kept.settled()

        assert dropped.dropped
        assert (await dropped.settled()).dropped
        assert bus.stats().dropped == 1

    assert got == ["stamped"]


async def test_middleware_wraps_handlers_of_every_kind_in_order() -> None:
    """The first is outermost; it sees the delivery and may answer for the handler."""
    trace: list[str] = []

    async def outer(delivery: aperion.Delivery, call_next: aperion.CallNext) -> object:
        trace.append(f"outer {delivery.attempt}")
        try:
            return await call_next(delivery)
        finally:
            trace.append("outer end")

    async def inner(delivery: aperion.Delivery, call_next: aperion.CallNext) -> object:
        trace.append(f"inner {delivery.subscription.name}")
        return await call_next(delivery)

    async with EventBus(middleware=[outer, inner]) as bus:
        bus.subscribe(lambda e: trace.append("sync"), "chat.sent", name="s")

        @bus.on("chat.sent", name="a")
        async def handler(event: Event) -> None:
            trace.append("async")

        await bus.dispatch("chat.sent", {})

    assert trace == ["outer 1", "inner s", "sync", "outer end", "outer 1", "inner a", "async", "outer end"]


async def test_expect_and_stream_see_events_as_they_are_accepted() -> None:
    """The next match, with a filter and a timeout; a stream is bounded and says what it missed."""
    async with EventBus() as bus:
        stream = bus.stream("chat.*", buffer=2)

        async def emit_later() -> None:
            for n in range(4):
                await bus.emit("chat.sent", {"n": n})

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(emit_later)
                event = await bus.expect("chat.*", where=lambda e: e.payload["n"] == 2, timeout=2)
            assert event.payload["n"] == 2
            assert [(await stream.__anext__()).payload["n"] for _ in range(2)] == [0, 1]
            with pytest.raises(aperion.StreamOverflowError, match="missed 2"):
                await stream.__anext__()
            with pytest.raises(TimeoutError, match="order"):
                await bus.expect("order.*", timeout=0.01)
    with anyio.fail_after(1):
        assert [event async for event in stream] == []


async def test_a_stream_that_nobody_holds_costs_nothing() -> None:
    """Leaving a loop early must not leave a listener behind."""
    async with EventBus() as bus:
        stream = bus.stream("chat.*")
        del stream
        await bus.emit("chat.sent", {})

        assert not bus._engine.admission.taps  # type: ignore[union-attr]


async def test_a_processor_that_makes_a_new_event_does_not_cut_its_line_of_causes() -> None:
    """Hops, cause and correlation id are the engine's to keep: without them a loop of handlers would never end."""
    seen: list[Event] = []
    bus = EventBus(processors=[lambda event: Event(event.event_type, event.payload)], max_hops=3)

    @bus.on("ping.sent", name="ping")
    async def ping(event: Event) -> None:
        seen.append(event)
        await bus.emit("ping.sent", {})

    with anyio.fail_after(10):
        async with bus:
            await bus.emit("ping.sent", {}, correlation_id="req-1")
            await bus.wait_settled()

    assert [event.hops for event in seen] == [0, 1, 2, 3]
    assert {event.correlation_id for event in seen} == {"req-1"}
    assert [event.causation_id for event in seen[1:]] == [event.event_id for event in seen[:-1]]
