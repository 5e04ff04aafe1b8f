"""The bus's own events: ``system.*``, for handlers that watch the bus itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aperion._frozen import FrozenDict
from aperion.naming import RESERVED_DOMAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aperion.events import Event
    from aperion.outcomes import Attempt, DeadLetter

_TRACE = frozenset({"traceparent", "tracestate", "baggage"})
"""The headers of W3C Trace Context and Baggage: an event of the bus belongs to the trace of its cause."""


class SystemEvents:
    """Announces failures and drops; never because of one of its own events."""

    __slots__ = ("_announce",)

    def __init__(
        self, announce: Callable[[str, Mapping[str, Any], Event[Any] | None, Mapping[str, str]], None]
    ) -> None:
        self._announce = announce

    def dead(self, letter: DeadLetter, attempt: Attempt | None, *, again: bool) -> None:
        """Announce a delivery that has failed for good."""
        if letter.subscription is None or attempt is None or again:
            return
        details = {
            "subscription": letter.subscription,
            "handler_name": letter.subscription.rpartition(".")[2],
            "reason": letter.reason.value,
            "error_type": letter.error_type,
            "error": letter.error,
            "attempts": letter.attempts,
        }
        self._about("system.handler_error", letter.event, details)

    def dropped(self, event: Event[Any], policy: str) -> None:
        """Announce a dropped event."""
        self._about("system.event_dropped", event, {"policy": policy})

    def _about(self, event_type: str, cause: Event[Any], details: dict[str, Any]) -> None:
        if cause.event_type.partition(".")[0] == RESERVED_DOMAIN:
            return
        origin = {"original_event_id": cause.event_id, "original_event_type": cause.event_type}
        headers = FrozenDict({name: value for name, value in cause.headers.items() if name.lower() in _TRACE})
        self._announce(event_type, origin | details, cause, headers)
