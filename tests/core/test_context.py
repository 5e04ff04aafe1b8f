"""Correlation ids and the current event: where they come from and where they can be seen."""

from __future__ import annotations

import threading

import anyio
import pytest

import aperion
from aperion import CorrelationContext, Event, EventBus, current_event, get_correlation_id

pytestmark = pytest.mark.anyio


def test_generated_ids_are_distinct_uuids() -> None:
    """COR-1: 36 characters."""
    ids = {aperion.generate_correlation_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(len(i) == 36 for i in ids)


def test_the_id_can_be_set_and_cleared() -> None:
    """COR-2: for the rest of the context."""
    assert get_correlation_id() is None
    aperion.set_correlation_id("req-1")
    assert get_correlation_id() == "req-1"
    aperion.clear_correlation_id()
    assert get_correlation_id() is None


def test_contexts_nest_and_can_be_entered_again() -> None:
    """COR-3 COR-4 COR-5 COR-reent: what was there before is there again, also for one object."""
    with CorrelationContext("outer") as outer:
        assert outer == get_correlation_id() == "outer"
        with CorrelationContext() as inner:
            assert get_correlation_id() == inner != "outer"
        assert get_correlation_id() == "outer"
    context = CorrelationContext("again")
    with context, context:
        assert get_correlation_id() == "again"
    assert get_correlation_id() is None


async def test_the_id_of_an_event_comes_from_argument_context_or_is_new() -> None:
    """COR-6 COR-7: explicit beats context, context beats new."""
    async with EventBus() as bus:
        with CorrelationContext("context"):
            explicit = await bus.emit("chat.sent", {}, correlation_id="explicit")
            inherited = await bus.emit("chat.sent", {})
        fresh = await bus.emit("chat.sent", {})

    assert explicit.event.correlation_id == "explicit"
    assert inherited.event.correlation_id == "context"
    assert fresh.event.correlation_id == fresh.event.event_id


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Correlation-ID": "a1"}, "a1"),
        ({"x-correlation-id": "a1"}, "a1"),
        ({"X-REQUEST-ID": "r1"}, "r1"),
        ({"X-Request-ID": "r1", "X-Correlation-ID": "a1"}, "a1"),
        ([(b"x-correlation-id", b"a1")], "a1"),
        ({b"X-Correlation-Id": b"a1"}, "a1"),
    ],
)
def test_ids_are_read_from_headers(headers: object, expected: str) -> None:
    """COR-8 COR-hdr/2/3: in any letter case, as text or as the bytes of ASGI."""
    assert aperion.extract_correlation_id_from_headers(headers) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", ["", "a" * 129, "a" * 100_000, "two\nlines", "a b", "alice@example.com", "héllo", "\x00", "-x"]
)
def test_ids_from_outside_are_checked(value: str) -> None:
    """COR-8 COR-hdr/2/3: what is missing, too long or has other characters is not taken over."""
    made = aperion.extract_correlation_id_from_headers({"X-Correlation-ID": value})

    assert made != value
    assert len(made) == 36
    with pytest.raises(ValueError, match="no correlation id"):
        CorrelationContext(value)


def test_outgoing_headers_and_log_extra() -> None:
    """COR-9 COR-10: a copy with the id where there is one, and without where there is none."""
    given = {"a": "b"}

    assert aperion.get_headers_with_correlation() == {}
    assert aperion.add_correlation_to_log_extra() == {}
    with CorrelationContext("req-1"):
        assert aperion.get_headers_with_correlation(given) == {"a": "b", "X-Correlation-ID": "req-1"}
        assert aperion.add_correlation_to_log_extra(given) == {"a": "b", "correlation_id": "req-1"}
        assert aperion.add_correlation_to_log_extra(None) == {"correlation_id": "req-1"}
    assert given == {"a": "b"}


@pytest.mark.parametrize("way", ["emit", "dispatch", "emit_from_thread"])
@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("explicit", [True, False])
async def test_the_id_and_the_event_are_visible_in_every_handler(way: str, kind: str, explicit: bool) -> None:  # noqa: FBT001
    """COR-11 COR-*: every kind, every way of emitting, after an await too, and inherited by what is emitted there."""
    seen: list[tuple[str | None, bool]] = []
    children: list[Event] = []

    async def in_task(event: Event) -> None:
        await anyio.sleep(0)
        seen.append((get_correlation_id(), current_event() is event))
        await bus.emit("child.event", {})

    def in_thread(event: Event) -> None:
        seen.append((get_correlation_id(), current_event() is event))
        bus.emit_from_thread("child.event", {})

    details: dict[str, str] = {"correlation_id": "req-1"} if explicit else {}
    async with EventBus() as bus:
        bus.subscribe(in_task if kind == "async" else in_thread, "parent.event")
        bus.subscribe(lambda e: children.append(e), "child.event")
        with anyio.fail_after(5), CorrelationContext("req-1" if not explicit else "other"):
            if way == "emit":
                await bus.emit("parent.event", {}, **details)  # type: ignore[misc]
            elif way == "dispatch":
                await bus.dispatch("parent.event", {}, **details)  # type: ignore[misc]
            else:
                await anyio.to_thread.run_sync(lambda: bus.emit_from_thread("parent.event", {}, **details))  # type: ignore[misc]
        await bus.wait_settled()

    assert seen == [("req-1", True)]
    (child,) = children
    assert child.correlation_id == "req-1"
    assert child.hops == 1
    assert child.causation_id is not None


async def test_a_grandchild_knows_its_parent_and_its_root() -> None:
    """COR-nested: causation goes one step back, correlation to the start, hops count."""
    events: dict[str, Event] = {}
    async with EventBus() as bus:

        @bus.on("*.happened")
        async def chain(event: Event) -> None:
            events[event.event_type] = event
            following = {"a.happened": "b.happened", "b.happened": "c.happened"}.get(event.event_type)
            if following:
                await bus.emit(following, {})

        await bus.emit("a.happened", {})
        await bus.wait_settled()

    a, b, c = (events[f"{name}.happened"] for name in "abc")
    assert (a.hops, b.hops, c.hops) == (0, 1, 2)
    assert (a.causation_id, b.causation_id, c.causation_id) == (None, a.event_id, b.event_id)
    assert a.correlation_id == b.correlation_id == c.correlation_id


async def test_what_one_handler_sets_the_next_does_not_see() -> None:
    """Rule 13: the id in a handler is that of its event."""
    seen: list[str | None] = []
    async with EventBus() as bus:

        @bus.on("chat.sent", priority=2)
        async def meddles(event: Event) -> None:
            aperion.set_correlation_id("mine")
            assert current_event() is event

        @bus.on("chat.sent", priority=1)
        async def reads(event: Event) -> None:
            seen.append(get_correlation_id())

        await bus.dispatch("chat.sent", {}, correlation_id="req-1")
        await (await bus.emit("chat.sent", {}, correlation_id="req-2")).settled()

    assert seen == ["req-1", "req-2"]
    assert get_correlation_id() is None
    assert current_event() is None


async def test_a_hundred_tasks_do_not_mix_their_ids() -> None:
    """COR-11: each with a context of its own."""
    seen: dict[int, str | None] = {}
    async with EventBus() as bus:

        @bus.on("chat.sent")
        async def handler(event: Event) -> None:
            await anyio.sleep(0)
            seen[event.payload["n"]] = get_correlation_id()

        async def request(n: int) -> None:
            with CorrelationContext(f"req-{n}"):
                await anyio.sleep(0)
                await bus.emit("chat.sent", {"n": n})

        async with anyio.create_task_group() as group:
            for n in range(100):
                group.start_soon(request, n)
        await bus.wait_settled()

    assert seen == {n: f"req-{n}" for n in range(100)}


async def test_a_plain_thread_brings_its_own_context() -> None:
    """COR-11 ASY-h: emit_from_thread takes the id of the calling thread."""
    async with EventBus() as bus:
        receipts: list[aperion.Receipt] = []

        def work() -> None:
            with CorrelationContext("from-thread"):
                receipts.append(bus.emit_from_thread("chat.sent", {}))

        thread = threading.Thread(target=work)
        thread.start()
        with anyio.fail_after(5):
            await anyio.to_thread.run_sync(thread.join)

    assert receipts[0].event.correlation_id == "from-thread"
