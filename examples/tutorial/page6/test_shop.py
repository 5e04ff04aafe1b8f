"""Tests of the shop: run them with ``python -m pytest``."""

import pytest
import shop
from shop import MailSent, OrderPlaced

from aperion.testing import Recorder, VirtualClock

pytestmark = pytest.mark.anyio

ORDER = OrderPlaced(order_id="o-1", email="ada@example.com", cents=4900, item="chair")


async def test_an_order_leads_to_a_mail(recorded: Recorder) -> None:
    await shop.bus.emit(ORDER)
    await recorded.settle()

    recorded.assert_emitted(MailSent, where=lambda event: event.payload.order_id == "o-1")
    assert shop.warehouse.stock == {"chair": 4}


async def test_an_order_survives_an_outage_of_the_warehouse(recorded: Recorder, clock: VirtualClock) -> None:
    shop.warehouse.outages = 2

    receipt = await shop.bus.emit(ORDER)
    await clock.settle(within=120)  # moves the clock through both retries

    receipt.outcomes.raise_for_failures()
    assert shop.warehouse.stock == {"chair": 4}
