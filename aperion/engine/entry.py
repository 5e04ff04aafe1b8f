"""The door of a bus with a journal: what cannot be kept is not accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from aperion.engine.admission import Admission
from aperion.errors import SerializationError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from aperion.engine.flight import Flight
    from aperion.events import Event
    from aperion.subscriptions import Subscription


class Keeper(Protocol):
    """The journal, as far as the door needs it."""

    def names_kept(self, event: Event[Any], plan: Sequence[Subscription]) -> tuple[str, ...]:
        """Return the names of the subscriptions whose deliveries of an event are kept."""

    def keep(self, flight: Flight, names: tuple[str, ...], body: bytes) -> None:
        """Have an accepted event committed."""

    def is_committing(self, flight: Flight) -> bool:
        """Tell whether an event is on its way into the journal."""


class KeptAdmission(Admission):
    """The door of a bus with a journal: what cannot be kept is not accepted, and what is kept is queued then."""

    # Mutable: the turns of dispatches that are kept and go on in a moment; None for one whose key is free.
    __slots__ = ("_keeping", "_turns")

    def __init__(self, keeping: Keeper, *args: Any, **parts: Any) -> None:
        super().__init__(*args, **parts)
        self._keeping = keeping
        self._turns: dict[Flight, asyncio.Future[None] | None] = {}

    def accept(self, event: Event[Any]) -> Flight:
        """Record an event and begin to keep it.

        Raises:
            SerializationError: for a payload that would not come back from the journal.
            JournalUnavailable: while that cannot be written.
            AuditUnavailable: when it could not be recorded.
        """
        from aperion.journal.codec import written

        plan = self._router.resolve(event.event_type)
        names = self._keeping.names_kept(event, plan)
        try:
            body = written(event) if names else b""
        except SerializationError as error:
            self._counters.rejected += 1
            self._settlement.rejected(event, error)
            raise
        flight = super().accept(event)
        flight.plan = plan  # another thread may have subscribed meanwhile
        self._keeping.keep(flight, names, body)
        return flight

    def queue(self, flight: Flight) -> None:
        """Hand an accepted event on to the workers, once it is kept."""
        if not self._keeping.is_committing(flight):
            self.queue_now(flight)

    def queue_now(self, flight: Flight) -> None:
        """Hand it on once the disk has its record too, where that is asked for."""
        super().queue(flight)

    def give_up_held(self) -> list[Flight]:
        """Drop what the disk has not got in time, and return it."""
        given_up = super().give_up_held()
        for flight in given_up:
            self.held[flight].exception()  # seen: nobody may wait, as after emit_nowait
        return given_up

    def reserve(self, flight: Flight) -> None:
        """Put a dispatched event into the line for its key now, since others of its commit are queued in this moment."""
        turn = self._engine.loop.create_future()
        self._turns[flight] = None if self._queue.wait_turn(flight, turn) else turn

    def give_back(self, flight: Flight) -> None:
        """Leave that line."""
        if flight in self._turns:
            del self._turns[flight]
            self._queue.give_up_turn(flight)

    async def turn(self, flight: Flight) -> None:
        """Wait until the key of a dispatched event is free; giving up drops the event.

        Raises:
            KeyHeldError: when whoever has the key waits for this dispatch.
        """
        if flight not in self._turns:  # it is not kept
            await super().turn(flight)
        elif (turn := self._turns.pop(flight)) is not None:
            await self._until_turn(flight, turn)
