"""Every exception that Aperion raises."""

from __future__ import annotations

import math
from functools import wraps
from typing import TYPE_CHECKING, Final, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

P = ParamSpec("P")


class AperionError(Exception):
    """The root of every exception that Aperion raises."""


class ConfigurationError(AperionError, ValueError):
    """Raised when something is declared wrongly: a bus, a subscription, a router, an application."""


class HandlerError(ConfigurationError, TypeError):
    """Raised by ``on`` and ``subscribe`` for something that cannot handle an event."""


class PatternError(ConfigurationError):
    """Raised by ``on``, ``subscribe``, ``expect`` and ``stream`` for a pattern that cannot be parsed."""

    def __init__(self, pattern: object, reason: str) -> None:
        super().__init__(
            f"{shown(pattern)} is not a pattern: {reason}; use an event type such as 'chat.sent', "
            "'chat.*' for a whole domain, 'order.*.failed' for one free segment, or '*' for everything"
        )
        self.pattern = pattern


class ValidationError(AperionError, ValueError):
    """Raised to the emitter of an event that the bus does not accept.

    The text names fields and rules, never the values that broke them.
    """

    def __init__(self, message: str, *, event_type: str | None = None, fields: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.event_type = event_type
        self.fields = tuple(fields)


class EventTypeError(ValidationError):
    """Raised for a name that is not an event type, or that the naming policy forbids."""


class UnknownEventTypeError(EventTypeError, LookupError):
    """Raised for an event type that no payload model has, where one is required or nearly matches."""

    def __init__(self, event_type: str, near: str | None) -> None:
        hint = f"did you mean {near!r}?" if near else "declare one with class Name(Payload, type=...)"
        allow = "; if the type is meant, declare a model for it or pass Naming(unknown='allow')" if near else ""
        super().__init__(f"no payload model has the event type {event_type!r}; {hint}{allow}", event_type=event_type)
        self.near = near


class PayloadError(ValidationError):
    """Raised for a payload of the wrong shape."""


class SerializationError(PayloadError):
    """Raised for a payload that cannot be written down: cyclic, too deep, NaN, a lone surrogate."""


class PayloadTooLargeError(PayloadError):
    """Raised for a payload whose JSON form exceeds ``max_payload_bytes``."""

    def __init__(self, event_type: str, size: int, limit: int) -> None:
        super().__init__(
            f"the payload of {event_type!r} takes {size:,} bytes as JSON and {limit:,} are allowed; "
            "send a reference to the content, or raise max_payload_bytes",
            event_type=event_type,
        )
        self.size = size
        self.limit = limit


class BusNotRunningError(AperionError, RuntimeError):
    """Raised when an event is handed to a bus that is not running, or that is draining."""


class WrongLoopError(AperionError, RuntimeError):
    """Raised when a bus is used from another event loop or thread than the one that it runs on."""

    def __init__(self, method: str, *, inside: bool = False) -> None:
        where = "on the thread of" if inside else "outside"
        twin = method.removesuffix("_from_thread")
        advice = f"use {twin}() there" if inside else "use emit_from_thread() from other threads and loops"
        super().__init__(f"{method}() was called {where} the event loop that this bus runs on; {advice}")


class BackpressureError(AperionError):
    """Raised by ``emit`` under ``RAISE``, and by ``emit_nowait``, when the bus is full."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit:,} events are accepted and unsettled, the limit of this bus; "
            "emit more slowly, raise max_pending_events, or choose OverflowPolicy.BLOCK"
        )
        self.limit = limit


class DeadlockError(AperionError, RuntimeError):
    """Raised in a handler that would wait for itself: what it asked to wait for cannot end before it does."""


class KeyHeldError(DeadlockError):
    """Raised by ``dispatch`` in a handler whose own event has the same key: it would wait for itself."""

    def __init__(self, event_type: str, key: str) -> None:
        super().__init__(
            f"dispatch of {event_type!r} with key {shown(key)} waits until the event now being handled has settled, "
            "which has the same key; use emit(), or leave the key out"
        )
        self.key = key


class CascadeError(AperionError):
    """Raised in a handler whose emit would exceed ``max_hops`` or ``max_cascade``."""

    def __init__(self, message: str, chain: Sequence[str]) -> None:
        super().__init__(f"{message}: {' > '.join(chain)}")
        self.chain = tuple(chain)


class HandlerTimeoutError(AperionError, TimeoutError):
    """The error of a delivery that took longer than its timeout; a handler never sees it."""

    def __init__(self, subscription: str, timeout: float) -> None:
        super().__init__(f"handler {subscription} did not end within {timeout:g} s")
        self.subscription = subscription
        self.timeout = timeout


class ThreadsExhaustedError(AperionError, RuntimeError):
    """The error of a delivery to a sync handler when every worker thread is stuck in an abandoned one."""

    def __init__(self, limit: int, stuck: Sequence[str]) -> None:
        super().__init__(
            f"all {limit} worker threads are stuck in handlers that timed out ({', '.join(stuck)}); "
            "let those handlers end (aperion.check_cancelled()), or run them with isolation='process'"
        )
        self.limit = limit
        self.stuck = tuple(stuck)


class NotDeliveredError(AperionError):
    """The error of a delivery that the bus gave up: it drained, or its deadline passed."""


class KilledError(AperionError):
    """The error of a delivery whose handler has taken the process down too often; see ``SQLiteJournal(max_starts=)``."""

    def __init__(self, subscription: str, starts: int) -> None:
        super().__init__(f"the process died {starts} times while {subscription} ran; it is not started again")
        self.subscription = subscription
        self.starts = starts


class EngineError(AperionError, RuntimeError):
    """The error of a delivery that a fault of the engine itself has ended; please report it."""

    def __init__(self, subscription: str, error: BaseException) -> None:
        super().__init__(f"a fault of the engine ended the delivery to {subscription}: {type(error).__name__}")
        self.subscription = subscription


class DeliveryError(AperionError):
    """Raised by ``outcomes.raise_for_failures()`` with the handlers' errors in ``errors``."""

    def __init__(self, event_type: str, errors: Sequence[tuple[str, BaseException]]) -> None:
        names = ", ".join(f"{name} ({type(error).__name__})" for name, error in errors)
        super().__init__(f"{len(errors)} of the deliveries of {event_type!r} failed: {names}")
        self.event_type = event_type
        self.errors = dict(errors)


class InjectedError(AperionError):
    """Raised on purpose in a test, around a handler, by ``aperion.testing.failing``."""


class StreamOverflowError(AperionError):
    """Raised to the reader of ``stream`` who fell further behind than its buffer."""

    def __init__(self, limit: int, missed: int) -> None:
        super().__init__(
            f"this reader fell more than {limit:,} events behind and missed {missed:,}; "
            "read faster, raise buffer=, or subscribe a handler, which misses none"
        )
        self.limit = limit
        self.missed = missed


class DeadLetterNotFoundError(AperionError, LookupError):
    """Raised for the id of a dead letter that the store does not hold."""

    def __init__(self, letter_id: str) -> None:
        super().__init__(f"no dead letter has the id {letter_id!r}; dead_letters.list() shows those there are")
        self.letter_id = letter_id


class RedriveError(AperionError):
    """Raised for a dead letter that cannot be redriven; its reason stands in the message."""


class AuditError(AperionError):
    """The root of what can go wrong with the audit log."""


class AuditUnavailable(AuditError, OSError):  # noqa: N818 - reads as a state, the way operators name it
    """Raised by ``emit`` when the audit log cannot take the record; the event was not dispatched.

    Also where a bus starts and its log cannot be opened.
    """

    def __init__(self, path: object, reason: str, *, opening: bool = False) -> None:
        what = "opened" if opening else "written"
        follows = (
            "so the bus did not start; fix that, or use another path"
            if opening
            else "so the event was not accepted; free the disk or fix the file, then emit again"
        )
        super().__init__(f"the audit log {path} cannot be {what} ({reason}), {follows}")
        self.path = path
        self.reason = reason


class JournalError(AperionError):
    """The root of what can go wrong with the journal."""


class JournalUnavailable(JournalError, OSError):  # noqa: N818 - reads as a state, the way operators name it
    """Raised by ``emit`` when the journal cannot keep the event, which is not accepted then.

    Also where a bus starts and its journal cannot be opened.
    """

    def __init__(self, path: object, reason: str, *, opening: bool = False) -> None:
        what = "opened" if opening else "written"
        follows = (
            "so the bus did not start; fix that, or use another folder"
            if opening
            else "so the event was not accepted; free the disk or fix the file, then emit again"
        )
        super().__init__(f"the journal {path} cannot be {what} ({reason}), {follows}")
        self.path = path
        self.reason = reason


class ApplicationError(AperionError):
    """Raised when an application cannot be found, imported or started."""


def shown(value: object, limit: int = 80) -> str:
    """Return a short ``repr`` of a value for an error text; never raises."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the error being reported
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def positive(name: str, value: float, *, whole: bool = False, infinite: bool = False) -> None:
    """Check an option that has to be a number above zero.

    Raises:
        ConfigurationError: naming the option and its value.
    """
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number or not value > 0 or (math.isinf(value) and not infinite):
        kind = "a whole number" if whole else "a number of seconds"
        raise ConfigurationError(f"{name}={value!r} makes no sense; it is {kind} above 0")


def check_options(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an option that a public function does not have.

    Raises:
        TypeError: naming the function, the option, and the nearest one that there is.
    """
    for name in given:
        if name not in (names := list(known)):
            raise TypeError(f"{function}() has no option {name!r}; {_INSTEAD.get(name) or _nearest(name, names)}")


def explains_options(function: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Have a constructor refuse an option that it does not have as ``check_options`` does."""

    def explain(init: Callable[P, None]) -> Callable[P, None]:
        known = init.__kwdefaults__ or {}

        @wraps(init)
        def explained(*args: P.args, **options: P.kwargs) -> None:
            check_options(function, options, known)
            init(*args, **options)

        return explained

    return explain


# What aperion-event-bus 1.2.1 had, whose users come with it.
_INSTEAD: Final = {
    "enable_audit": "without audit= there is no audit log",
    "event_log_path": "pass audit='events.jsonl'",
    "max_log_files": "pass audit=AuditLog(path, rotation=Rotation(keep=...))",
    "max_log_size_bytes": "pass audit=AuditLog(path, rotation=Rotation(max_bytes=...))",
    "max_workers": "the number of threads is max_concurrent_handlers=",
    "span_name": "the option is name=",
    "validate_events": "names are always checked; naming=Naming(...) says how",
    "validator": "names are always checked; naming=Naming(...) says how",
    "wait_for_handlers": "wait with 'await receipt.settled()' for what emit() returns, or use 'await bus.dispatch(...)'",
}


def _nearest(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
