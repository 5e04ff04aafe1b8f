"""Tests of the service, one for each tool: ``pytest examples/tested``."""

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aperion
from aperion.testing import Recorder, VirtualClock, call, duplicated, failing, fake, no_leaks, recording
from examples.tested import service
from examples.tested.service import MailSent, OrderPlaced, OrderReserved, Warehouse

pytestmark = [pytest.mark.anyio, pytest.mark.aperion_leaks]


async def test_an_order_is_reserved_and_the_customer_told(recorded: Recorder, warehouse: Warehouse) -> None:
    await service.place_order("o-1", "ada@example.com")
    await recorded.settle()

    assert warehouse.reserved == ["o-1"]
    placed = recorded.assert_emitted(OrderPlaced, times=1)
    told = recorded.assert_emitted(MailSent, where=lambda event: event.payload.order_id == "o-1")
    assert told.correlation_id == placed.correlation_id


async def test_the_mail_comes_some_time(recorded: Recorder) -> None:
    await service.place_order("o-1", "ada@example.com")

    mail = await recorded.wait_for(MailSent, timeout=2)

    assert mail.payload.order_id == "o-1"


async def test_an_outage_is_survived(recorded: Recorder, clock: VirtualClock, warehouse: Warehouse) -> None:
    warehouse.outages = 3
    receipt = await service.place_order("o-1", "ada@example.com")

    await clock.advance(2)
    recorded.assert_not_emitted(OrderReserved)
    await clock.advance(70)  # 10, 20 and 40 seconds at most

    recorded.assert_emitted(OrderReserved, within=72)
    assert receipt.is_settled


async def test_how_long_an_outage_may_last(bus: aperion.EventBus, clock: VirtualClock, warehouse: Warehouse) -> None:
    warehouse.outages = 100
    receipt = await service.place_order("o-1", "ada@example.com")

    seconds = await clock.settle(within=600)

    assert 50 < seconds < 150
    assert not (await receipt.settled()).ok
    assert len(bus.dead_letters.list(OrderPlaced.event_type)) == 1


async def test_no_mail_goes_out_of_a_rehearsal(bus: aperion.EventBus, recorded: Recorder) -> None:
    with fake(bus, OrderReserved) as faked:
        await service.place_order("o-1", "ada@example.com")
        await recorded.settle()

    faked.assert_emitted(OrderReserved, times=1)
    recorded.assert_not_emitted(MailSent)


async def test_the_text_of_the_mail(bus: aperion.EventBus) -> None:
    with fake(bus):
        text = await call(service.send_mail, OrderReserved(order_id="o-1"), correlation_id="req-7")

    assert text == "Your order o-1 is on its way (req-7)"


async def test_an_event_that_comes_twice_reserves_once(
    bus: aperion.EventBus, recorded: Recorder, warehouse: Warehouse
) -> None:
    with duplicated(bus, OrderPlaced):
        await service.place_order("o-1", "ada@example.com")
        await recorded.settle()

    assert warehouse.reserved == ["o-1"]


async def test_whatever_fails_nothing_is_reserved_twice(
    bus: aperion.EventBus, clock: VirtualClock, warehouse: Warehouse
) -> None:
    with failing(bus, OrderPlaced, rate=0.4, seed=11, error=ConnectionError) as faults:
        for number in range(20):
            await service.place_order(f"o-{number}", "ada@example.com")
        await clock.settle()

    assert faults.made
    assert sorted(warehouse.reserved) == sorted(set(warehouse.reserved))


async def test_the_warehouse_is_open_while_the_application_runs(app: aperion.App, warehouse: Warehouse) -> None:
    assert warehouse.is_open
    assert app.bus is service.bus


async def test_nothing_is_left_behind() -> None:
    async with no_leaks(), aperion.EventBus() as bus, anyio.create_task_group() as group:
        group.start_soon(bus.expect, "order.*")
        await anyio.lowlevel.checkpoint()
        await bus.emit("order.placed", {})


@settings(max_examples=20, deadline=None)
@given(amounts=st.lists(st.integers(min_value=1), max_size=20))
async def test_the_sum_is_right_whatever_the_amounts(amounts: list[int]) -> None:
    total = 0
    async with aperion.EventBus() as bus:  # made inside: each example has a bus of its own

        @bus.on("account.credited")
        async def add(event: aperion.Event) -> None:
            nonlocal total
            total += event.payload["cents"]

        with recording(bus) as recorded:
            for cents in amounts:
                await bus.emit("account.credited", {"cents": cents})
            await recorded.settle()

    assert total == sum(amounts)
    assert len(recorded) == len(amounts)
