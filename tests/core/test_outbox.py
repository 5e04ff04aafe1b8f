"""Outboxes: events that go out when a block has ended well."""

from __future__ import annotations

import json

import anyio
import anyio.to_thread
import pytest

import aperion
from aperion import BackpressureError, ConfigurationError, Event, EventBus, OverflowPolicy, ValidationError
from aperion.audit import AuditLog
from aperion.testing import recording

pytestmark = pytest.mark.anyio


class OrderPlaced(aperion.Payload, type="outbox_order.placed"):
    number: int


async def test_events_go_out_in_order_when_the_block_ends_well() -> None:
    """And not a moment before."""
    async with EventBus() as bus:
        with recording(bus) as recorded:
            async with bus.outbox() as outbox:
                made = [outbox.emit(OrderPlaced(number=n)) for n in range(3)]
                await anyio.lowlevel.checkpoint()
                held, early = len(outbox), len(recorded)

            assert (held, early) == (3, 0)
            assert recorded.events == made
            assert len(outbox) == 0


async def test_events_of_a_block_that_fails_are_discarded_visibly(tmp_path) -> None:
    """A counter, a metric, a system event and an audit record each; the error goes on."""
    metrics, told = aperion.InMemoryMetrics(), []
    async with EventBus(audit=AuditLog(tmp_path / "log" / "events.jsonl"), metrics=metrics) as bus:
        bus.subscribe(lambda event: told.append(event.payload["policy"]), "system.event_dropped")
        with pytest.raises(KeyError):
            async with bus.outbox() as outbox:
                made = outbox.emit(OrderPlaced(number=1))
                raise KeyError
        await bus.wait_settled()

        assert (bus.stats().accepted, bus.stats().dropped) == (0, 1)
        assert metrics.counter("aperion_events_dropped_total", policy="outbox") == 1
        assert told == ["outbox"]
    records = [json.loads(line) for line in (tmp_path / "log" / "events.jsonl").read_text().splitlines()]
    dropped = [record for record in records if record["kind"] == "dropped"]
    assert [(record["event_id"], record["detail"]["policy"]) for record in dropped] == [(made.event_id, "outbox")]


async def test_a_block_that_is_cancelled_discards() -> None:
    """A client that went away has not got what the events tell of."""
    async with EventBus() as bus:
        with anyio.CancelScope() as scope:
            async with bus.outbox() as outbox:
                outbox.emit(OrderPlaced(number=1))
                scope.cancel()
                await anyio.sleep_forever()

        assert (bus.stats().accepted, bus.stats().dropped) == (0, 1)


async def test_an_event_is_checked_when_it_is_collected() -> None:
    """The line that is wrong raises, and not the end of the block."""
    async with EventBus() as bus, bus.outbox() as outbox:
        with pytest.raises(ValidationError):
            outbox.emit("outbox_order.placed", {"number": "many"})

        assert bus.stats().rejected == 1
        assert len(outbox) == 0


async def test_an_event_belongs_to_where_it_was_collected() -> None:
    """Its correlation id and its cause are those of the handler that collected it; details are kept."""
    seen: list[Event] = []
    async with EventBus() as bus:

        @bus.on("outbox_cart.checked")
        async def check(event: Event) -> None:
            async with bus.outbox() as outbox:
                outbox.emit(OrderPlaced(number=1), key="k", source="shop")

        bus.subscribe(seen.append, OrderPlaced)
        with aperion.CorrelationContext("req-1"):
            receipt = await bus.emit("outbox_cart.checked", {})
        await bus.wait_settled()

    [event] = seen
    assert (event.correlation_id, event.causation_id, event.hops) == ("req-1", receipt.event_id, 1)
    assert (event.key, event.source) == ("k", "shop")


async def test_a_thread_can_collect_too() -> None:
    """Endpoints that are plain functions run in one; its context counts, and its errors are raised there."""

    def collect(outbox: aperion.Outbox) -> Event:
        with aperion.CorrelationContext("req-2"):
            with pytest.raises(ValidationError):
                outbox.emit("outbox_order.placed", {})
            return outbox.emit(OrderPlaced(number=2))

    async with EventBus() as bus:
        with recording(bus) as recorded, anyio.fail_after(10):
            async with bus.outbox() as outbox:
                event = await anyio.to_thread.run_sync(collect, outbox)

            assert recorded.events == [event]
            assert event.correlation_id == "req-2"


async def test_what_was_discarded_by_hand_does_not_go_out() -> None:
    """For a block that ends without an error and has failed all the same; what comes later goes out."""
    async with EventBus() as bus:
        with recording(bus) as recorded:
            async with bus.outbox() as outbox:
                outbox.emit(OrderPlaced(number=1))
                outbox.discard()
                kept = outbox.emit(OrderPlaced(number=2))

            assert recorded.events == [kept]
            assert bus.stats().dropped == 1


async def test_a_closed_outbox_takes_nothing() -> None:
    """An event that nobody would ever send must not be lost without a word."""
    async with EventBus() as bus:
        async with bus.outbox() as outbox:
            pass

        with pytest.raises(ConfigurationError, match="block of this outbox has ended"):
            outbox.emit(OrderPlaced(number=1))


async def test_a_full_bus_refuses_the_rest_visibly() -> None:
    """RAISE: what fits is accepted, the one that does not fit raises, those after it are discarded."""
    gate = anyio.Event()
    async with EventBus(max_pending_events=2, overflow_policy=OverflowPolicy.RAISE) as bus:
        bus.subscribe(_waits_for(gate), OrderPlaced)
        with pytest.raises(BackpressureError):
            async with bus.outbox() as outbox:
                for number in range(4):
                    outbox.emit(OrderPlaced(number=number))
        gate.set()

        assert (bus.stats().accepted, bus.stats().dropped) == (2, 1)
        assert len(outbox) == 0


async def test_the_end_of_the_block_waits_for_room() -> None:
    """BLOCK: as emit does."""
    gate, left = anyio.Event(), []
    async with EventBus(max_pending_events=1) as bus, anyio.create_task_group() as tasks:
        bus.subscribe(_waits_for(gate), OrderPlaced)

        async def send() -> None:
            async with bus.outbox() as outbox:
                outbox.emit(OrderPlaced(number=1))
                outbox.emit(OrderPlaced(number=2))
            left.append(bus.stats().accepted)

        tasks.start_soon(send)
        with anyio.fail_after(10):
            while bus.stats().accepted == 0:
                await anyio.lowlevel.checkpoint()
        assert left == []
        gate.set()
    assert left == [2]


async def test_an_outbox_needs_a_running_bus() -> None:
    """It says so at once."""
    with pytest.raises(aperion.BusNotRunningError, match=r"outbox\(\) needs a running bus"):
        async with EventBus().outbox():
            pass


async def test_a_bus_that_stopped_meanwhile_discards_visibly() -> None:
    """Nothing is lost without a word: the block raises."""
    bus = EventBus()
    async with bus:
        outbox = bus.outbox()
        held = await outbox.__aenter__()
        held.emit(OrderPlaced(number=1))
        held.emit(OrderPlaced(number=2))
    with pytest.raises(aperion.BusNotRunningError):
        await outbox.__aexit__(None, None, None)

    assert bus.stats().dropped == 1


async def test_what_a_processor_drops_is_not_held() -> None:
    """It is dropped at once, as emit would."""
    async with EventBus(processors=[lambda _event: None]) as bus, bus.outbox() as outbox:
        event = outbox.emit(OrderPlaced(number=1))

        assert event.payload.number == 1
        assert (len(outbox), bus.stats().dropped) == (0, 1)


def _waits_for(gate: anyio.Event):
    async def wait(event: Event) -> None:
        await gate.wait()

    return wait
