"""What a scenario asks of a peer, and what an adapter gives back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# Called with the event alone, or, where senders go in front, with the sender and ``payload=``.
Handler = Callable[..., Any]
# Does something so many times.
Batch = Callable[[int], Awaitable[None]]


class UnsupportedError(Exception):
    """Raised where a peer has no way to do what a scenario asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A payload to send: its model's name in the adapters that have models, and its fields."""

    model: str
    fields: Mapping[str, Any]


SMALL = Load(model="Small", fields={"name": "lamp", "count": 3, "ratio": 0.5})
# 300 bytes of JSON each: one with nothing to hide, one with much.
CLEAN = Load(
    model="Order",
    fields={
        "order": "brass lamp with a linen shade",
        "count": 3,
        "ratio": 0.75,
        "channel": "web",
        "comment": "please leave the parcel with the neighbour on the second floor, the bell is broken now",
        "items": ["lamp, brass, small", "shade, linen, white", "bulb, warm", "cable, two metres"],
        "courier": "bicycle, mornings only",
    },
)
PRIVATE = Load(
    model="Person",
    fields={
        "name": "Alice Martin",
        "email": "alice.martin@example.com",
        "phone": "+44 20 7946 0958",
        "password": "correct horse battery",
        "card": "4111 1111 1111 1111",
        "address": "192.0.2.44",
        "note": "write to alice.martin@example.com, or call +1 (212) 555-0187 and ask for her, any day before noon.",
        "count": 3,
        "ok": True,
    },
)


class Form(Enum):
    """In which form a payload reaches the peer.

    Whoever has no models sends fields made anew for each event, by the first form as by the last; whoever has nothing
    but models makes one of them, by either form.
    """

    FRESH = "made anew for each event"
    READY = "one instance of the model for all events"
    MAPPING = "an event type and a mapping, of which the peer makes the model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """How a peer is to be set up."""

    handlers: tuple[Handler, ...]
    sync: bool = False
    strangers: int = 0  # subscriptions that do not match
    load: Load = SMALL
    form: Form = Form.FRESH
    audit: Path | None = None
    level: str = "process"  # what the log is to survive: the death of nothing, of the process, or of the machine
    redact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """A peer that is set up; None for what it cannot do.

    ``dispatch`` returns when the handlers have run, event by event. ``emit`` may return before;
    ``drain`` then waits until every handler has run. ``settle`` waits for what the peer does in
    threads of its own: it belongs to the cost, and must not run on while the bare loop is timed.
    ``record`` hands one ready event to the log, again and again, past the bus.
    """

    dispatch: Batch | None = None
    emit: Batch | None = None
    drain: Callable[[], Awaitable[None]] | None = None
    settle: Callable[[], Awaitable[None]] | None = None
    record: Batch | None = None

    def require_dispatch(self) -> Batch:
        """Return ``dispatch``, or raise ``UnsupportedError``."""
        if self.dispatch is None:
            raise UnsupportedError("cannot wait for its handlers")
        return self.dispatch

    def require_emit(self) -> tuple[Batch, Callable[[], Awaitable[None]]]:
        """Return ``emit`` and ``drain``, or raise ``UnsupportedError``."""
        if self.emit is None or self.drain is None:
            raise UnsupportedError("has no queue")
        return self.emit, self.drain


class Waits(Enum):
    """For what a peer can wait."""

    ONE = "one event"
    ALL = "all that is pending"
    NONE = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a reader must know to compare fairly."""

    name: str
    module: str
    distribution: str
    does: str
    waits: Waits
    guards: bool = False  # validates payloads, or bounds what is pending
    pending_limit: int | None = None  # how many events can be pending at once


Connect = Callable[[Wiring], AbstractAsyncContextManager[Driver]]
# Takes an event in so that it is not lost, and returns what waits until it is handled and gone.
Durable = Callable[[], Awaitable[Callable[[], Awaitable[Any]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One adapter: what it is about, how to set it up, and what it has beside: a redactor, a journal in a folder."""

    about: About
    connect: Connect
    redact_text: Callable[[str], object] | None = None
    redact: Callable[[dict[str, Any]], object] | None = None
    durable: Callable[[Path, str], AbstractAsyncContextManager[Durable]] | None = None
    imports: bool = True


def refuse_ready(wiring: Wiring) -> None:
    """Raise ``UnsupportedError`` when one payload is to serve for all events, and the peer needs one for each."""
    if wiring.form is Form.READY:
        raise UnsupportedError("has no choice of form")


def refuse(wiring: Wiring, *asked: str) -> None:
    """Raise ``UnsupportedError`` when the wiring asks for something that the peer does not have."""
    for option in fields(wiring):
        if option.name in asked and getattr(wiring, option.name) != option.default:
            raise UnsupportedError(f"has no choice of {option.name}")
