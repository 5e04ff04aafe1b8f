"""Events without their handlers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from aperion.testing.recorder import Recorder, recording
from aperion.testing.running import Wanted, flight_behind, listening, meant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aperion.bus import EventBus
    from aperion.receipts import Receipt
    from aperion.subscriptions import Subscription


@contextmanager
def fake(bus: EventBus, *wanted: Wanted) -> Iterator[Recorder]:
    """Record events and run no handler of those that are accepted while the block lasts.

    They are accepted, checked, audited and streamed as ever, and they settle: their outcomes name the
    handlers that would have run, each as ``SKIPPED``.

    Args:
        bus: a bus that runs.
        wanted: the models and patterns whose handlers do not run; all, but for ``system.*``, without any.

    Raises:
        BusNotRunningError: when the bus does not run.
        PatternError: for a pattern that cannot match.
    """
    is_meant = meant(wanted)

    def skip(receipt: Receipt) -> None:
        if is_meant(receipt.event.event_type):
            flight_behind(receipt).plan = tuple(_closed(each) for each in bus.resolve(receipt.event.event_type))

    with listening(bus, skip), recording(bus, *wanted) as recorder:
        yield recorder


def _closed(subscription: Subscription) -> Subscription:
    twin = subscription.copy()
    twin.remove()
    return twin
