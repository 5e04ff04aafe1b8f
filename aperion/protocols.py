"""What the bus needs from outside, and the two shapes in which users extend it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from aperion.events import Event
from aperion.outcomes import Delivery

if TYPE_CHECKING:
    import asyncio

    from aperion.outcomes import Attempt, DeadLetter, Outcome

Processor: TypeAlias = Callable[[Event[Any]], Event[Any] | None]
"""Called in order before an event is admitted; returns it, another, or None to drop it. May raise to refuse."""

CallNext: TypeAlias = Callable[[Delivery], Awaitable[Any]]
"""The rest of the chain: the next middleware, and in the end the handler."""

Middleware: TypeAlias = Callable[[Delivery, CallNext], Awaitable[Any]]
"""Called around a handler, once for each attempt: ``await call_next(delivery)`` runs the rest."""


@runtime_checkable
class MetricsBackend(Protocol):
    """Where measurements go. Called on the loop and in worker threads; must not block.

    What a back end raises is counted (``stats().metrics_errors``) and never hurts an event.
    """

    def increment(self, name: str, value: int, labels: Mapping[str, str]) -> None:
        """Add to a counter."""

    def gauge(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""

    def observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add one measurement to a histogram; durations are in seconds."""


@runtime_checkable
class DeadLetterStore(Protocol):
    """Where dead letters are kept. Called on the loop's thread."""

    def put(self, letter: DeadLetter) -> int:
        """Keep a letter, in place of the one with its id if there is one; return how many were evicted."""

    def pop(self, letter_id: str) -> DeadLetter | None:
        """Take a letter out; None when there is none with this id."""

    def __iter__(self) -> Iterator[DeadLetter]:
        """Iterate over the letters, oldest first, over a copy that later changes do not disturb."""

    def __len__(self) -> int:
        """Count the letters."""


@runtime_checkable
class AuditSink(Protocol):
    """Where the record of what was accepted and how it ended goes.

    The three methods that record are called on the loop's thread and do not wait. What they have
    returned from is recorded; ``AuditUnavailable`` says that it could not be, and the event is
    refused.
    """

    def accepted(self, event: Event[Any]) -> None:
        """Record an event before it is dispatched."""

    def ended(self, event: Event[Any], outcome: Outcome) -> None:
        """Record how a delivery, or one attempt of it, ended."""

    def noted(self, kind: str, event: Event[Any], detail: Mapping[str, Any]) -> None:
        """Record what else happened to an event: rejected, dropped, dead_lettered, redriven, a system event."""

    async def start(self) -> None:
        """Open the log; called when the bus starts.

        Raises:
            AuditUnavailable: when it cannot be written.
        """

    async def aclose(self) -> None:
        """Write all that was recorded and close the log; called when the bus has drained."""


class Recorder(AuditSink, Protocol):
    """What records for one bus: an audit sink, and how who emits waits for it."""

    @property
    def waits_for_disk(self) -> bool:
        """Whether an event is handled only once the disk has its record."""

    def when_synced(self) -> asyncio.Future[None] | None:
        """Return what is done when the disk has all that was recorded so far; None where nothing is open."""

    @property
    def is_crowded(self) -> bool:
        """Whether who can wait should."""

    def attempted(self, event: Event[Any], subscription: str, attempt: Attempt) -> None:
        """Record how one attempt at a delivery ended."""

    def wants(self, kind: str) -> bool:
        """Tell whether records of a kind are written."""

    async def room(self) -> None:
        """Wait until there is room for an event and its outcomes."""

    def room_for_thread(self) -> None:
        """Do the same in another thread than the loop's; blocks."""

    def buffered_bytes(self) -> int | None:
        """Return what waits to be written; None where that is not known."""
