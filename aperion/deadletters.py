"""Dead letters: where deliveries that failed for good are kept, looked through and shown without secrets."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict
from weakref import ref

from aperion._fitting import fitting, rules_of
from aperion._gone import explains_gone
from aperion._shown import letter_shown, name_shown
from aperion.errors import ConfigurationError, DeadLetterNotFoundError, positive, shown
from aperion.events import new_event_id
from aperion.outcomes import DeadLetter, FailureReason
from aperion.protocols import DeadLetterStore
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Unpack

    from aperion.events import Event
    from aperion.subscriptions import Subscription

# Inside the queue, ``list`` is a method.
Letters: TypeAlias = list[DeadLetter]
Shown: TypeAlias = list[dict[str, Any]]

_AT_ONCE: Final = 1024
"""Letters that are removed in one go."""


class MemoryStore:
    """Keeps the newest ``max_size`` dead letters in memory; safe from any thread.

    Args:
        max_size: how many to keep; one more evicts the oldest.

    Raises:
        ConfigurationError: when that is not a whole number above 0.
    """

    # Mutable: all but max_size, under _lock. _order has every id that _letters has, the oldest first, and before
    # them _gone times those that were taken out. Alone, a plain dict would be slow to find its oldest key, which
    # it seeks behind all that were deleted, and an OrderedDict to go through, which looks each key up.
    __slots__ = ("_gone", "_letters", "_lock", "_order", "_reasons", "max_size")

    def __init__(self, max_size: int) -> None:
        positive("max_size", max_size, whole=True)
        self.max_size = max_size
        self._letters: dict[str, DeadLetter] = {}
        self._order: deque[str] = deque()
        self._gone: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._lock = threading.Lock()

    def put(self, letter: DeadLetter) -> int:
        """Keep a letter, in place of the one with its id if there is one; return how many were evicted."""
        with self._lock:
            before = self._letters.get(letter.letter_id)
            if before is None:
                self._order.append(letter.letter_id)
            else:
                self._reasons[before.reason._value_] -= 1
            self._letters[letter.letter_id] = letter
            self._reasons[letter.reason._value_] += 1
            if len(self._letters) <= self.max_size:
                return 0
            self._evict()
            return 1

    def _evict(self) -> str:
        """Let the oldest letter go, and return its id."""
        while times := self._gone.pop(oldest := self._order.popleft(), 0):
            if times > 1:
                self._gone[oldest] = times - 1
        self._reasons[self._letters.pop(oldest).reason._value_] -= 1
        return oldest

    def get(self, letter_id: str) -> DeadLetter | None:
        """Return the letter with this id and keep it; None when there is none."""
        with self._lock:
            return self._letters.get(letter_id)

    def pop(self, letter_id: str) -> DeadLetter | None:
        """Take the letter with this id out; None when there is none."""
        with self._lock:
            found = self._letters.pop(letter_id, None)
            if found is not None:
                self._reasons[found.reason._value_] -= 1
                self._went([letter_id])
            return found

    def remove(self, letter_ids: Iterable[str]) -> int:
        """Take the letters with these ids out; return how many there were."""
        with self._lock:
            pop = self._letters.pop
            went = [letter for letter_id in letter_ids if (letter := pop(letter_id, None)) is not None]
            self._reasons.subtract(letter.reason._value_ for letter in went)
            self._went([letter.letter_id for letter in went])
            return len(went)

    def by_reason(self) -> dict[str, int]:
        """Return how many letters there are for each reason."""
        with self._lock:
            return dict(+self._reasons)

    def _went(self, letter_ids: list[str]) -> None:
        if len(self._order) > 2 * len(self._letters) + _AT_ONCE:  # so that they take no more room than the rest
            self._order = deque(self._letters)
            self._gone.clear()
        else:
            self._gone.update(letter_ids)

    def __iter__(self) -> Iterator[DeadLetter]:
        """Iterate over a copy, oldest first."""
        with self._lock:
            return iter(list(self._letters.values()))

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


@explains_gone
class DeadLetterQueue:
    """The dead letters of a bus, ``bus.dead_letters``: bounded; the oldest make room for new ones.

    Letters hold events as the handlers got them, for ``redrive``; ``to_dict`` and ``export`` redact.
    Letters are put on the thread of the bus; all else is safe from any thread.

    Examples:
        >>> queue = DeadLetterQueue(max_size=100)
        >>> len(queue), queue.stats().evicted
        (0, 0)

    Args:
        max_size: how many letters to keep in memory; a store of your own has its own bound.
        store: where the letters are kept; in memory by default.
        redactor: hides secrets in what is shown; by default that of the bus which put the letter, and for
            letters that a store made anew, that of the first bus.

    Raises:
        ConfigurationError: for a ``max_size`` below 1, or a store that is none.
    """

    # Mutable: _evicted, _given and _of_letters, on the bus's thread; _size, by whoever counts.
    __slots__ = ("_default", "_evicted", "_given", "_of_letters", "_own", "_size", "_store")

    def __init__(
        self,
        max_size: int = 10_000,
        *,
        store: DeadLetterStore | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        memory = MemoryStore(max_size)
        self._store: DeadLetterStore = memory if store is None else _checked_store(store)
        self._own = redactor
        self._given: Redactor | None = None
        self._default = Redactor()
        # By identity, weakly: the letters of every bus but the first, whose redactor is that of all others.
        self._of_letters: dict[int, tuple[ref[DeadLetter], Redactor]] = {}
        self._evicted = 0
        self._size = 0

    def use_redactor(self, redactor: Redactor) -> None:
        """Redact with this one, unless the queue has one of its own or one was given before.

        The bus calls it, so that the keys it was told to hide are hidden here too.
        """
        if self._given is None:
            self._given = redactor

    def put(self, letter: DeadLetter, redactor: Redactor | None = None) -> None:
        """Keep a letter; one with its id is replaced, and keeps its place in the order.

        Args:
            letter: what is kept.
            redactor: that of the bus which puts it, for when it is shown.
        """
        if redactor is not None:
            self.use_redactor(redactor)
            self._remember(letter, redactor)
        self._evicted += self._store.put(letter)

    def _remember(self, letter: DeadLetter, redactor: Redactor) -> None:
        number, known = id(letter), self._of_letters
        if self._own is not None or redactor is self._given:
            known.pop(number, None)
        else:
            known[number] = ref(letter, lambda _: known.pop(number, None)), redactor

    def _redactor_of(self, letter: DeadLetter) -> Redactor:
        if self._own is not None:
            return self._own
        found = self._of_letters.get(id(letter))
        if found is not None and found[0]() is letter:
            return found[1]
        return self._given or self._default

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
        rules = rules_of(event_type, **filters)
        letters = list(self._store)
        letters.reverse()
        return fitting(letters, rules, limit) if rules else letters[:limit]

    def remove(self, letter_id: str) -> bool:
        """Take a letter out; return False when there is none with this id."""
        return self._store.pop(letter_id) is not None

    def purge(self, event_type: str | None = None, **filters: Unpack[DeadLetterFilters]) -> int:
        """Remove the letters that fit every filter of ``list``, or all; return how many they were.

        Raises:
            PatternError: for an ``event_type`` that cannot match.
            ConfigurationError: for another filter that makes no sense.
        """
        letter_ids = [letter.letter_id for letter in self.list(event_type, **filters)]
        if type(self._store) is not MemoryStore:
            return len([1 for letter_id in letter_ids if self.remove(letter_id)])
        parts = [letter_ids[start : start + _AT_ONCE] for start in range(0, len(letter_ids), _AT_ONCE)]
        return sum(map(self._store.remove, parts))

    def size(self) -> int:
        """Count the letters."""
        return len(self._store)

    def counts(self) -> tuple[int, int]:
        """Return how many letters there are and how many were evicted, without a look at any letter.

        It raises nothing but ``KeyboardInterrupt``: where the store cannot count, it is the last size that was known.
        """
        try:
            self._size = len(self._store)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001, S110 - a store of the user may raise anything; figures must come out
            pass
        return self._size, self._evicted

    def by_reason(self) -> dict[str, int]:
        """Return how many letters there are for each reason, without a look at any letter that is kept in memory.

        It raises nothing but ``KeyboardInterrupt``: where the store cannot be looked through, it is empty.
        """
        try:
            if isinstance(self._store, MemoryStore):
                return self._store.by_reason()
            return dict(Counter([letter.reason._value_ for letter in self._store]))
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - a store of the user may raise anything; figures must come out
            return {}

    @property
    def evicted(self) -> int:
        """Letters that a full store let go since the queue was made."""
        return self._evicted

    def stats(self) -> DeadLetterStats:
        """Return what is in the queue, by reason and by event type."""
        letters = list(self._store)
        times = [letter.failed_at for letter in letters]
        return DeadLetterStats(
            size=len(letters),
            max_size=getattr(self._store, "max_size", None),
            evicted=self._evicted,
            by_reason=dict(Counter([letter.reason._value_ for letter in letters])),
            by_event_type=self._by_event_type(letters),
            oldest_at=min(times, default=None),
            newest_at=max(times, default=None),
        )

    def to_dict(self, letter: DeadLetter) -> dict[str, Any]:
        """Return a letter as plain JSON values, redacted.

        What cannot be shown, because JSON cannot hold it or because the redactor raised, is ``[NOT SHOWN: ...]``
        with the class and the reason; the rest of the letter is shown. It raises nothing but ``KeyboardInterrupt``.
        """
        return letter_shown(letter, self._redactor_of(letter))

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

    def _by_event_type(self, letters: Letters) -> dict[str, int]:
        counted: Counter[str] = Counter()
        redactor = self._own or self._given or self._default
        for event_type, count in Counter([letter.event.event_type for letter in letters]).items():
            counted[name_shown(event_type, redactor)] += count
        return dict(counted)


def letter_from(  # noqa: PLR0913 - what a letter tells
    event: Event[Any],
    subscription: str | None,
    reason: FailureReason,
    error: BaseException,
    attempts: int,
    redactor: Redactor,
    *,
    before: DeadLetter | None = None,
) -> DeadLetter:
    """Return a dead letter about a failure of this moment, its error text and traceback redacted.

    With the letter ``before`` it is that one again, of which a redrive has failed.
    """
    now = time.time()
    text, traceback = _redacted(error, redactor)
    return DeadLetter(
        letter_id=new_event_id() if before is None else before.letter_id,
        event=event,
        subscription=subscription,
        reason=reason,
        error_type=type(error).__name__,
        error=text,
        traceback=traceback,
        attempts=attempts,
        first_failed_at=now if before is None else before.first_failed_at,
        failed_at=now,
    )


def _redacted(error: BaseException, redactor: Redactor) -> tuple[str, str]:
    try:
        text, traceback = redactor.redact_exception(error)
        return str(text), str(traceback)
    except BaseException:  # noqa: BLE001 - a redactor of the user's: a letter without the text is better than none
        return "[REDACTED_ERROR]", ""


def _checked_store(store: object) -> DeadLetterStore:
    if isinstance(store, type) or not isinstance(store, DeadLetterStore):
        raise ConfigurationError(
            f"store={shown(store)} keeps no dead letters; pass an object with put, pop, __iter__ and __len__"
        )
    return store
