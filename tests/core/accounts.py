"""What the engine of a bus has to show at any moment, and once nothing is in flight; for tests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aperion import EventBus


def check_balance(bus: EventBus) -> None:
    """Whatever happens: accepted = settled + dropped + in flight, and none of it is negative."""
    for ledger in (bus._ledger, bus._system_ledger):
        balance = ledger.balance()
        reserved = ledger.pending - balance.pending
        assert balance.pending >= 0
        assert 0 <= reserved <= ledger.limit
    stats = bus.stats()
    assert stats.accepted == stats.settled + stats.dropped_after + stats.pending
    assert 0 <= stats.queued <= stats.pending + 1
    assert 0 <= stats.threads_abandoned <= stats.threads_busy


async def resting(bus: EventBus) -> None:
    """Wait until no worker looks at the queue any more; one that is counted and does not would be waited for in vain."""
    assert bus._engine is not None
    while bus._engine.workers.awake:
        await asyncio.sleep(0)


def check_empty(bus: EventBus) -> None:
    """Nothing is in flight, and nothing of what was is left in the engine."""
    engine = bus._engine
    assert engine is not None
    for ledger in (engine.ledger, engine.system_ledger):
        balance = ledger.balance()
        assert balance.accepted == balance.settled + balance.dropped
        assert ledger.pending == 0
        assert not ledger.line
        assert not ledger.quiet
    assert engine.queue.is_empty
    assert not engine.queue._turns
    assert not engine.workers.running
    assert not engine.workers.parked
    assert engine.workers.places == engine.settings.max_concurrent_events
    assert engine.workers.awake >= 0
    assert not engine.admission.held
    assert not list(engine.due)
    assert not bus._bridge._tasks
    assert engine.threads.slots.busy == engine.threads.abandoned
    assert engine.threads.slots.lent == 0
    assert not engine.threads.slots._waiting
