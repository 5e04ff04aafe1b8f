"""Dead letters: where deliveries that failed for good are kept, looked through and shown without secrets."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from pydantic_core import from_json

from aperion.delivery import DeadLetter, FailureReason, positive
from aperion.errors import ConfigurationError, DeadLetterNotFoundError, shown
from aperion.events import model_for, new_event_id, to_json
from aperion.naming import is_valid_event_type
from aperion.patterns import check_pattern, matches
from aperion.protocols import DeadLetterStore
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Unpack

    from aperion.delivery import Subscription
    from aperion.events import Event

# Inside the queue, ``list`` is a method.
Letters: TypeAlias = list[DeadLetter]
Shown: TypeAlias = list[dict[str, Any]]


class MemoryStore:
    """Keeps the newest ``max_size`` dead letters in memory; safe from any thread.

    Args:
        max_size: how many to keep; one more evicts the oldest.

    Raises:
        ConfigurationError: when that is not a whole number above 0.
    """

    # Mutable: _letters, under _lock. A plain dict would be slow: each search for its first key
    # passes over all that were deleted in front of it.
    __slots__ = ("_letters", "_lock", "max_size")

    def __init__(self, max_size: int) -> None:
        positive("max_size", max_size, whole=True)
        self.max_size = max_size
        self._letters: OrderedDict[str, DeadLetter] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, letter: DeadLetter) -> int:
        """Keep a letter, in place of the one with its id if there is one; return how many were evicted."""
        with self._lock:
            self._letters[letter.letter_id] = letter
            if len(self._letters) <= self.max_size:
                return 0
            self._letters.popitem(last=False)
            return 1

    def get(self, letter_id: str) -> DeadLetter | None:
        """Return the letter with this id and keep it; None when there is none."""
        with self._lock:
            return self._letters.get(letter_id)

    def pop(self, letter_id: str) -> DeadLetter | None:
        """Take the letter with this id out; None when there is none."""
        with self._lock:
            return self._letters.pop(letter_id, None)

    def __iter__(self) -> Iterator[DeadLetter]:
        """Iterate over a copy, oldest first."""
        with self._lock:
            return iter(tuple(self._letters.values()))

    def __len__(self) -> int:
        """Count the letters."""
        return len(self._letters)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterStats:
    """What is in a queue of dead letters, at one moment; every field is JSON.

    Args:
        size: how many letters there are.
        max_size: how many there can be; None where the store does not say.
        evicted: letters that a full store let go since the queue was made.
        by_reason: how many there are for each reason.
        by_event_type: how many for each event type; what was refused for its name is redacted.
        oldest_at: the earliest ``failed_at``; None without letters.
        newest_at: the latest one.
    """

    size: int
    max_size: int | None
    evicted: int
    by_reason: dict[str, int]
    by_event_type: dict[str, int]
    oldest_at: float | None
    newest_at: float | None


class DeadLetterFilters(TypedDict, total=False):
    """The filters of ``list``, ``purge`` and ``export``, all by keyword; None lets everything pass.

    ``reason``: why the letters are dead; its value as text also works.
    ``subscription``: the one that failed, or its name.
    ``older_than``: seconds that have passed at least since they failed last.
    """

    reason: FailureReason | str | None
    subscription: Subscription | str | None
    older_than: float | None


class DeadLetterQueue:
    """The dead letters of a bus, ``bus.dead_letters``: bounded; the oldest make room for new ones.

    Letters hold events as the handlers got them, for ``redrive``; ``to_dict`` and ``export`` redact.
    Letters are put on the thread of the bus; all else is safe from any thread.

    >>> queue = DeadLetterQueue(max_size=100)
    >>> len(queue), queue.stats().evicted
    (0, 0)

    Args:
        max_size: how many letters to keep in memory; a store of your own has its own bound.
        store: where the letters are kept; in memory by default.
        redactor: hides secrets in what is shown; that of the bus by default.

    Raises:
        ConfigurationError: for a ``max_size`` below 1, or a store that is none.
    """

    # Mutable: _evicted, on the bus's thread; _redactor, once, by the bus.
    __slots__ = ("_evicted", "_has_own_redactor", "_redactor", "_store")

    def __init__(
        self,
        max_size: int = 10_000,
        *,
        store: DeadLetterStore | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        memory = MemoryStore(max_size)
        self._store: DeadLetterStore = memory if store is None else _checked_store(store)
        self._redactor = Redactor() if redactor is None else redactor
        self._has_own_redactor = redactor is not None
        self._evicted = 0

    def use_redactor(self, redactor: Redactor) -> None:
        """Redact with this one from now on, unless the queue was made with one of its own.

        The bus calls it, so that the keys it was told to hide are hidden here too.
        """
        if not self._has_own_redactor:
            self._redactor = redactor

    def put(self, letter: DeadLetter) -> None:
        """Keep a letter; one with its id is replaced, and keeps its place in the order."""
        self._evicted += self._store.put(letter)

    def get(self, letter_id: str) -> DeadLetter:
        """Return the letter with this id.

        Raises:
            DeadLetterNotFoundError: when there is none: it was removed, evicted, or redriven well.
        """
        letter = self._find(letter_id)
        if letter is None:
            raise DeadLetterNotFoundError(letter_id)
        return letter

    def list(
        self, event_type: str | None = None, *, limit: int | None = None, **filters: Unpack[DeadLetterFilters]
    ) -> Letters:
        """Return the letters that fit every filter, newest first.

        Args:
            event_type: a pattern, such as ``"chat.*"``.
            limit: how many at most.
            filters: see ``DeadLetterFilters``.

        Raises:
            PatternError: for an ``event_type`` that cannot match.
            ConfigurationError: for another filter that makes no sense.
        """
        if limit is not None:
            positive("limit", limit, whole=True)
        fits = _filter(event_type, **filters)
        return list(islice((letter for letter in reversed(tuple(self._store)) if fits(letter)), limit))

    def remove(self, letter_id: str) -> bool:
        """Take a letter out; return False when there is none with this id."""
        return self._store.pop(letter_id) is not None

    def purge(self, event_type: str | None = None, **filters: Unpack[DeadLetterFilters]) -> int:
        """Remove the letters that fit every filter of ``list``, or all; return how many they were.

        Raises:
            PatternError: for an ``event_type`` that cannot match.
            ConfigurationError: for another filter that makes no sense.
        """
        return sum(self.remove(letter.letter_id) for letter in self.list(event_type, **filters))

    def size(self) -> int:
        """Count the letters."""
        return len(self._store)

    def stats(self) -> DeadLetterStats:
        """Return what is in the queue, by reason and by event type."""
        letters = tuple(self._store)
        times = [letter.failed_at for letter in letters]
        return DeadLetterStats(
            size=len(letters),
            max_size=getattr(self._store, "max_size", None),
            evicted=self._evicted,
            by_reason=dict(Counter(letter.reason.value for letter in letters)),
            by_event_type=self._by_event_type(letters),
            oldest_at=min(times, default=None),
            newest_at=max(times, default=None),
        )

    def to_dict(self, letter: DeadLetter) -> dict[str, Any]:
        """Return a letter as plain JSON values, redacted."""
        return {
            "letter_id": letter.letter_id,
            "event": self._event(letter.event),
            "subscription": letter.subscription,
            "reason": letter.reason.value,
            "error_type": letter.error_type,
            # Redacted when the letter was made, but a store may hold what others made.
            "error": self._redactor.redact_text(letter.error),
            "traceback": self._redactor.redact_text(letter.traceback),
            "attempts": letter.attempts,
            "first_failed_at": letter.first_failed_at,
            "failed_at": letter.failed_at,
        }

    def export(
        self, event_type: str | None = None, *, limit: int | None = None, **filters: Unpack[DeadLetterFilters]
    ) -> Shown:
        """Return what ``list`` returns, each letter as ``to_dict`` shows it."""
        return [self.to_dict(letter) for letter in self.list(event_type, limit=limit, **filters)]

    def __iter__(self) -> Iterator[DeadLetter]:
        """Iterate over a copy, oldest first: the order in which they are redriven."""
        return iter(self._store)

    def __len__(self) -> int:
        """Count the letters."""
        return len(self._store)

    def __repr__(self) -> str:
        """Show the size, and no letter."""
        return f"<DeadLetterQueue of {len(self)} letters>"

    def _find(self, letter_id: str) -> DeadLetter | None:
        if isinstance(self._store, MemoryStore):
            return self._store.get(letter_id)
        return next((letter for letter in self._store if letter.letter_id == letter_id), None)

    def _by_event_type(self, letters: tuple[DeadLetter, ...]) -> dict[str, int]:
        counted: Counter[str] = Counter()
        for event_type, count in Counter(letter.event.event_type for letter in letters).items():
            counted[self._name(event_type)] += count
        return dict(counted)

    def _event(self, event: Event[Any]) -> dict[str, Any]:
        fields = {
            "event_id": event.event_id,
            "event_type": self._name(event.event_type),
            "payload": self._payload(event),
            "timestamp": event.timestamp,
            "source": self._text(event.source),
            "correlation_id": self._text(event.correlation_id),
            "causation_id": event.causation_id,
            "hops": event.hops,
            "key": self._text(event.key),
            "headers": self._redactor.redact(dict(event.headers)),
        }
        plain: dict[str, Any] = from_json(to_json(fields))
        return plain

    def _payload(self, event: Event[Any]) -> object:
        # What was refused is a mapping still; the model that it was meant for knows what is sensitive in it.
        if type(self._redactor) is Redactor and isinstance(event.payload, Mapping):
            return self._redactor.redact(event.payload, like=model_for(event.event_type))
        return self._redactor.redact(event.payload)

    def _text(self, text: str | None) -> str | None:
        return None if text is None else self._redactor.redact_text(text)

    def _name(self, event_type: str) -> str:
        # What was refused for its name may be anything, an address or a key for example.
        return event_type if is_valid_event_type(event_type) else self._redactor.redact_text(event_type)


def letter_from(  # noqa: PLR0913 - what a letter tells
    event: Event[Any],
    subscription: str | None,
    reason: FailureReason,
    error: BaseException,
    attempts: int,
    redactor: Redactor,
    *,
    first_failed_at: float | None = None,
) -> DeadLetter:
    """Return a new dead letter about a failure of this moment, its error text and traceback redacted."""
    now = time.time()
    text, traceback = redactor.redact_exception(error)
    return DeadLetter(
        letter_id=new_event_id(),
        event=event,
        subscription=subscription,
        reason=reason,
        error_type=type(error).__name__,
        error=text,
        traceback=traceback,
        attempts=attempts,
        first_failed_at=now if first_failed_at is None else first_failed_at,
        failed_at=now,
    )


def _checked_store(store: object) -> DeadLetterStore:
    if isinstance(store, type) or not isinstance(store, DeadLetterStore):
        raise ConfigurationError(
            f"store={shown(store)} keeps no dead letters; pass an object with put, pop, __iter__ and __len__"
        )
    return store


def _filter(
    event_type: str | None,
    *,
    reason: FailureReason | str | None = None,
    subscription: Subscription | str | None = None,
    older_than: float | None = None,
) -> Callable[[DeadLetter], bool]:
    rules: list[Callable[[DeadLetter], bool]] = []
    if event_type is not None:
        pattern = check_pattern(event_type, any_name=True)
        rules.append(lambda letter: matches(pattern, letter.event.event_type))
    if reason is not None:
        wanted = _reason(reason)
        rules.append(lambda letter: letter.reason is wanted)
    if subscription is not None:
        name = subscription if isinstance(subscription, str) else subscription.name
        rules.append(lambda letter: letter.subscription == name)
    if older_than is not None:
        positive("older_than", older_than)
        latest = time.time() - older_than
        rules.append(lambda letter: letter.failed_at <= latest)
    return lambda letter: all(rule(letter) for rule in rules)


def _reason(reason: FailureReason | str) -> FailureReason:
    try:
        return FailureReason(reason)
    except ValueError:
        choices = ", ".join(repr(choice.value) for choice in FailureReason)
        raise ConfigurationError(f"reason={shown(reason)} is not a reason; use one of {choices}") from None
