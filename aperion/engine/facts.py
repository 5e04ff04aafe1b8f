"""What an engine tells its observers: facts, of which none can be changed by being told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from aperion._logs import logger as _log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aperion.engine.ledger import Counters
    from aperion.events import Event
    from aperion.outcomes import Attempt, DeadLetter, FailureReason
    from aperion.subscriptions import Subscription


class Observer(Protocol):
    """Somebody who is told of what happened, by those of these methods that it has; all on the loop's thread.

    What it raises is counted and logged once, and changes nothing.
    """

    def accepted(self, event: Event[Any], pending: int) -> None:
        """An event was accepted, and so many are in flight with it."""

    def begun(self, event: Event[Any], waited: float) -> None:
        """The first handler of an event is to run, so many seconds after its acceptance."""

    def started(self, event: Event[Any], subscription: Subscription, number: int) -> None:
        """An attempt at a delivery begins, in the context of the handler."""

    def ended(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        """An attempt has ended."""

    def retried(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        """Another attempt will follow a failed one."""

    def dead(self, letter: DeadLetter, attempt: Attempt | None, *, again: bool) -> None:
        """A letter was left, or left again after a redrive; the attempt that led to it, where one did."""

    def left(self, event: Event[Any], subscription: Subscription, number: int) -> None:
        """All that follows from an attempt was told."""

    def dropped(self, event: Event[Any], policy: str) -> None:
        """An event was dropped."""

    def rejected(self, event: Event[Any], reason: FailureReason, text: str) -> None:
        """An event was refused; the event is a stand-in with as much as could be kept."""

    def redriven(self, letter: DeadLetter) -> None:
        """A letter was delivered after all, and is gone."""

    def pending(self, count: int) -> None:
        """So many events are in flight now."""

    def announced(self, event: Event[Any], payload: Mapping[str, Any]) -> None:
        """The bus has something to say of itself."""


_NAMES = (
    *("accepted", "announced", "begun", "dead", "dropped", "ended", "left", "pending"),
    *("redriven", "rejected", "retried", "started"),
)


class Facts:
    """The observers of one bus, by what each wants to be told: None where nobody does, so that it costs nothing."""

    # Mutable: what ``attach`` sets when a bus starts, since only then is it known who listens.
    __slots__ = (*_NAMES, "_counters", "_told", "interrupt")

    accepted: Callable[[Event[Any], int], None] | None
    announced: Callable[[Event[Any], Mapping[str, Any]], None] | None
    begun: Callable[[Event[Any], float], None] | None
    dead: Callable[..., None] | None
    dropped: Callable[[Event[Any], str], None] | None
    ended: Callable[[Event[Any], Subscription, Attempt], None] | None
    left: Callable[[Event[Any], Subscription, int], None] | None
    pending: Callable[[int], None] | None
    redriven: Callable[[DeadLetter], None] | None
    rejected: Callable[[Event[Any], FailureReason, str], None] | None
    retried: Callable[[Event[Any], Subscription, Attempt], None] | None
    started: Callable[[Event[Any], Subscription, int], None] | None

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._told: set[str] = set()
        self.interrupt: Callable[[KeyboardInterrupt], None] | None = None  # what Ctrl-C does while the bus runs
        self.attach(())

    def attach(self, observers: Iterable[object]) -> None:
        """Tell these from now on."""
        found = tuple(observers)
        for name in _NAMES:
            tells = [tell for each in found if (tell := getattr(each, name, None)) is not None]
            setattr(self, name, self._telling(name, tells) if tells else None)

    def _telling(self, name: str, tells: list[Callable[..., None]]) -> Callable[..., None]:
        def tell(*facts: Any, **more: Any) -> None:
            for each in tells:
                try:
                    each(*facts, **more)
                except BaseException as error:  # noqa: BLE001 - an observer must not hurt what it is told of
                    self.fault(f"{type(getattr(each, '__self__', each)).__name__}.{name}", error)

        return tell

    def fault(self, where: str, error: BaseException) -> None:
        """Count what something raised that a user has put in, and log the first of each kind."""
        self._counters.faults += 1
        if where not in self._told and len(self._told) < 256:
            self._told.add(where)
            try:
                _log.error("an extension failed", where=where, error_type=type(error).__name__)
            except KeyboardInterrupt as interrupt:  # what else a log raises stays there
                error = interrupt
        if isinstance(error, KeyboardInterrupt) and self.interrupt is not None:
            self.interrupt(error)
