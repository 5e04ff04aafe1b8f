"""Receipts: what an emitter holds of an event that the bus has accepted."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol

from aperion.errors import HandlerError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from aperion.events import Event
    from aperion.outcomes import Outcomes


class Ticket(Protocol):
    """What a receipt asks of the engine."""

    event: Event[Any]
    dropped: bool
    settled: bool

    @property
    def duplicate(self) -> bool:
        """Whether an event with this id was accepted before."""

    def outcomes(self) -> Outcomes:
        """Return the outcomes there are."""

    async def wait(self) -> None:
        """Wait until the event has settled."""

    def wait_in_thread(self, timeout: float | None) -> None:
        """Do the same in a thread."""

    def call_back(self, callback: Callable[[], None]) -> None:
        """Call back when it settles."""


class Receipt:
    """What ``emit`` returns: the event, and a way to wait until it has settled."""

    __slots__ = ("_ticket",)

    _ticket: Ticket

    def __repr__(self) -> str:
        """Show the event and its state."""
        ticket = self._ticket
        state = "dropped" if ticket.dropped else "settled" if ticket.settled else "in flight"
        return f"<Receipt of {ticket.event.event_type} {ticket.event.event_id}: {state}>"

    def __eq__(self, other: object) -> bool:
        """Compare: receipts of one acceptance are equal."""
        return isinstance(other, Receipt) and self._ticket is other._ticket

    def __hash__(self) -> int:
        """Hash by the acceptance."""
        return hash(self._ticket)

    @property
    def event(self) -> Event[Any]:
        """The event."""
        return self._ticket.event

    @property
    def event_id(self) -> str:
        """The id of the event."""
        return self._ticket.event.event_id

    @property
    def dropped(self) -> bool:
        """Whether the event was dropped, by a full bus or by a processor."""
        return self._ticket.dropped

    @property
    def duplicate(self) -> bool:
        """Whether an event with this id was accepted before; a bus without a journal never looks."""
        return self._ticket.duplicate

    @property
    def is_settled(self) -> bool:
        """Whether the last delivery has an outcome."""
        return self._ticket.settled

    @property
    def outcomes(self) -> Outcomes | None:
        """The outcomes, or None while the event is in flight."""
        return self._ticket.outcomes() if self._ticket.settled else None

    async def settled(self) -> Outcomes:
        """Wait until the event has settled, retries included; cancelling the wait changes nothing.

        A handler that waits lends its place meanwhile, so that the event can be handled.

        Raises:
            DeadlockError: in a handler for which the event waits: behind its key, or because it is its own.
            WrongLoopError: in another loop than the one of the bus, before the event has settled.
        """
        if not self._ticket.settled:
            await self._ticket.wait()
        return self._ticket.outcomes()

    def settled_from_thread(self, timeout: float | None = None) -> Outcomes:
        """Do the same in a thread other than that of the bus's loop; blocks it.

        Raises:
            TimeoutError: when the event is still in flight after ``timeout`` seconds.
            DeadlockError: as ``settled`` does.
            WrongLoopError: on the thread of the loop, which would wait for itself.
        """
        if not self._ticket.settled:
            self._ticket.wait_in_thread(timeout)
        return self._ticket.outcomes()

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Call back once, on the thread of the loop, when the event settles; at once if it has.

        What the callback raises is logged and hurts nobody.

        Raises:
            HandlerError: for what cannot be called, and for an async function, which nobody would await.
        """
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise HandlerError(
                f"on_settled() takes a plain function without parameters, not {shown(callback)}; "
                "async code waits with 'await receipt.settled()'"
            )
        self._ticket.call_back(callback)


def receipt_of(ticket: Ticket) -> Receipt:
    """Return the receipt; in half the time that an ``__init__`` would take."""
    receipt = Receipt()
    receipt._ticket = ticket
    return receipt
