"""Dead letters: what the queue keeps, finds, forgets and shows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aperion.deadletters import DeadLetterQueue, MemoryStore, letter_from
from aperion.errors import ConfigurationError, DeadLetterNotFoundError, PatternError, SerializationError
from aperion.events import Event, Payload
from aperion.outcomes import DeadLetter, FailureReason
from aperion.protocols import DeadLetterStore
from aperion.redaction import Redactor, Sensitive
from aperion.subscriptions import HandlerKind, Subscription

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "app.orders.charge"
WORD = "hunter2"
SECRET = f"postgres://app:{WORD}@db/users"
_numbers = itertools.count()


def letter(event_type: str = "order.placed", **changes: Any) -> DeadLetter:  # noqa: ANN401
    """Return a dead letter; ``age`` is in seconds."""
    failed_at = time.time() - changes.pop("age", 0.0)
    fields: dict[str, Any] = {
        "letter_id": f"letter-{next(_numbers)}",
        "event": Event(event_type, {"n": 1}),
        "subscription": NAME,
        "reason": FailureReason.HANDLER_ERROR,
        "error_type": "ValueError",
        "error": "no such card",
        "attempts": 1,
        "first_failed_at": failed_at,
        "failed_at": failed_at,
    }
    return DeadLetter(**(fields | changes))


def filled(*letters: DeadLetter, max_size: int = 100) -> DeadLetterQueue:
    """Return a queue with these letters, put in this order."""
    queue = DeadLetterQueue(max_size)
    for each in letters:
        queue.put(each)
    return queue


class ForeignStore:
    """A store with the methods of the protocol and no others, such as one in a database."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    def put(self, letter: DeadLetter) -> int:
        """Keep a letter, and say that room was made."""
        self.pop(letter.letter_id)
        self.letters.append(letter)
        return 7

    def pop(self, letter_id: str) -> DeadLetter | None:
        """Take a letter out."""
        found = next((each for each in self.letters if each.letter_id == letter_id), None)
        if found is not None:
            self.letters.remove(found)
        return found

    def __iter__(self) -> Iterator[DeadLetter]:
        return iter(tuple(self.letters))

    def __len__(self) -> int:
        return len(self.letters)


# Keeping


def test_a_letter_that_was_put_is_counted_and_found_by_its_id() -> None:
    """DLQ-1: the letter tells the event, the subscription, the reason, the error and the attempts."""
    kept = letter()

    queue = filled(kept)

    assert queue.size() == len(queue) == 1
    assert queue.get(kept.letter_id) is kept


def test_an_unknown_id_is_an_error_that_names_it() -> None:
    """DLQ-1: get does not return None for a letter that is gone."""
    queue = filled(letter())

    with pytest.raises(DeadLetterNotFoundError, match="'nothing'") as caught:
        queue.get("nothing")

    assert caught.value.letter_id == "nothing"


def test_a_full_queue_keeps_the_newest_and_counts_what_it_evicts() -> None:
    """DLQ-2: five letters into a queue of three leave the last three; DLQ-g: evictions are visible."""
    letters = [letter() for _ in range(5)]

    queue = filled(*letters, max_size=3)

    assert queue.list() == letters[:1:-1]
    assert queue.stats().evicted == 2


def test_a_letter_put_again_replaces_itself_in_its_place() -> None:
    """DLQ-d: a redrive that fails again leaves one letter, where it was."""
    old, other = letter(), letter()
    queue = filled(old, other, max_size=2)
    again = dataclasses.replace(old, attempts=2)

    queue.put(again)

    assert list(queue) == [again, other]
    assert queue.stats().evicted == 0


@given(
    max_size=st.integers(1, 8),
    operations=st.lists(st.tuples(st.sampled_from(["put", "put", "remove"]), st.integers(0, 12))),
)
def test_letters_added_are_those_kept_those_removed_and_those_evicted(
    max_size: int, operations: list[tuple[str, int]]
) -> None:
    """DLQ-2: evicted = adds - removals - size, whatever is put twice; and never more than max_size."""
    queue = DeadLetterQueue(max_size)
    added = removed = 0
    for operation, number in operations:
        letter_id = str(number)
        if operation == "remove":
            removed += queue.remove(letter_id)
            continue
        added += all(kept.letter_id != letter_id for kept in queue)
        queue.put(letter(letter_id=letter_id))

    assert queue.stats().evicted == added - removed - len(queue)
    assert len(queue) <= max_size


@pytest.mark.parametrize("max_size", [0, -1, 2.5, True, "10", None])
def test_a_size_that_is_no_whole_number_above_zero_is_refused_when_declared(max_size: Any) -> None:  # noqa: ANN401
    """DLQ-f: max_size=0 used to raise IndexError out of emit."""
    with pytest.raises(ConfigurationError, match="max_size"):
        DeadLetterQueue(max_size)
    with pytest.raises(ConfigurationError, match="max_size"):
        MemoryStore(max_size)


def test_removing_tells_whether_there_was_something_to_remove() -> None:
    """DLQ-3: True for a letter that was there, False for an unknown id and the second time."""
    kept = letter()
    queue = filled(kept)

    answers = [queue.remove("nothing"), queue.remove(kept.letter_id), queue.remove(kept.letter_id)]

    assert answers == [False, True, False]
    assert queue.size() == 0


class CountedId(str):
    """An id that counts how often it is compared with another."""

    __slots__ = ()
    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedId.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_removing_does_not_search_through_the_queue() -> None:
    """DLQ-j: a removal used to take 0.63 ms at 20,000 letters."""
    queue = filled(*(letter(letter_id=CountedId(f"{n:05}")) for n in range(5_000)), max_size=5_000)
    CountedId.comparisons = 0

    removed = [queue.remove(CountedId(f"{n:05}")) for n in range(4_900, 5_000)]

    assert all(removed)
    assert CountedId.comparisons < 5_000  # a search would take 490,000


# Finding


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("order.placed", ["order.placed"]),
        ("order.*", ["order.line.added", "order.placed"]),
        ("order.*.added", ["order.line.added"]),
        ("*", ["user.login", "order.line.added", "order.placed"]),
        ("chat.*", []),
    ],
)
def test_letters_are_found_by_a_pattern_of_event_types_newest_first(pattern: str, found: list[str]) -> None:
    """DLQ-4: the filter by event type takes what a subscription takes."""
    queue = filled(letter("order.placed"), letter("order.line.added"), letter("user.login"))

    assert [each.event.event_type for each in queue.list(pattern)] == found


def test_an_event_refused_for_its_name_is_found_by_that_name() -> None:
    """DLQ-4: letters of events that no subscription could ask for can still be looked up."""
    refused = letter("LOGIN")

    queue = filled(refused, letter())

    assert queue.list("LOGIN") == [refused]


@pytest.mark.parametrize("reason", [FailureReason.HANDLER_TIMEOUT, "handler_timeout"])
def test_letters_are_found_by_reason(reason: FailureReason | str) -> None:
    """DLQ-4: as a member or as its value."""
    late = letter(reason=FailureReason.HANDLER_TIMEOUT)

    queue = filled(letter(), late, letter())

    assert queue.list(reason=reason) == [late]


def test_letters_are_found_by_subscription_or_its_name() -> None:
    """DLQ-4: what one handler has left."""

    async def handler(event: Event[Any]) -> None: ...

    subscription = Subscription(name="mail", patterns=("*",), handler=handler, kind=HandlerKind.ASYNC)
    mine = letter(subscription="mail")
    queue = filled(mine, letter(), letter(subscription=None))

    assert queue.list(subscription="mail") == queue.list(subscription=subscription) == [mine]


def test_filters_narrow_each_other_and_the_limit_keeps_the_newest() -> None:
    """DLQ-4: every filter has to fit."""
    old, young = letter(age=100), letter(age=50)
    queue = filled(old, young, letter(), letter("user.login", age=100), letter(subscription="x", age=100))
    filters: dict[str, Any] = {"reason": "handler_error", "subscription": NAME, "older_than": 10}

    assert queue.list("order.*", **filters) == [young, old]
    assert queue.list("order.*", **filters, limit=1) == [young]


@pytest.mark.parametrize(
    ("filters", "error"),
    [
        ({"event_type": ""}, PatternError),
        ({"event_type": "order*"}, PatternError),
        ({"reason": "handler error"}, ConfigurationError),
        ({"older_than": -1}, ConfigurationError),
        ({"older_than": float("nan")}, ConfigurationError),
        ({"limit": 0}, ConfigurationError),
        ({"limit": 1.5}, ConfigurationError),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(filters: dict[str, Any], error: type[Exception]) -> None:
    """DLQ-4: also by an empty queue, where it would do no harm."""
    with pytest.raises(error):
        DeadLetterQueue().list(**filters)


def test_an_unknown_reason_is_answered_with_those_there_are() -> None:
    """DLQ-4: the error tells what to write."""
    with pytest.raises(ConfigurationError, match="'handler_timeout'"):
        DeadLetterQueue().list(reason="timeout")


def test_iterating_goes_through_a_copy_oldest_first() -> None:
    """DLQ-4: letters may be removed on the way, as a redrive does."""
    letters = [letter(), letter(), letter()]
    queue = filled(*letters)

    seen = [each for each in queue if queue.remove(each.letter_id)]

    assert seen == letters
    assert len(queue) == 0


# Forgetting


def test_purging_by_age_removes_only_the_old() -> None:
    """DLQ-5: the age counts from the last failure."""
    old = letter(age=7_200)
    redriven = dataclasses.replace(letter(age=7_200), failed_at=time.time())
    fresh = letter(age=60)
    queue = filled(old, redriven, fresh)

    removed = queue.purge(older_than=3_600)

    assert removed == 1
    assert queue.list() == [fresh, redriven]


def test_purging_without_a_filter_removes_all_and_counts_them() -> None:
    """DLQ-5: and nothing of it counts as evicted."""
    queue = filled(letter(), letter(), letter())

    removed = queue.purge()

    assert (removed, len(queue), queue.stats().evicted) == (3, 0, 0)


def test_purging_takes_the_filters_of_list() -> None:
    """DLQ-5: pattern, reason and subscription."""
    kept = letter("user.login")
    late = letter(reason=FailureReason.HANDLER_TIMEOUT)
    queue = filled(kept, late, letter(subscription="mail"), letter())

    counts = [
        queue.purge(reason=FailureReason.HANDLER_TIMEOUT),
        queue.purge(subscription="mail"),
        queue.purge("order.*"),
    ]

    assert counts == [1, 1, 1]
    assert list(queue) == [kept]


# Counting


def test_stats_tell_the_size_and_what_there_is_by_reason_and_type() -> None:
    """DLQ-6: size, bound, counts by reason value and event type, and the times of first and last."""
    first, last = letter(age=20), letter("user.login", reason=FailureReason.HANDLER_TIMEOUT)
    queue = filled(last, first, letter(age=10))

    stats = queue.stats()

    assert (stats.size, stats.max_size, stats.evicted) == (3, 100, 0)
    assert stats.by_reason == {"handler_error": 2, "handler_timeout": 1}
    assert stats.by_event_type == {"order.placed": 2, "user.login": 1}
    assert (stats.oldest_at, stats.newest_at) == (first.failed_at, last.failed_at)
    assert json.loads(orjson.dumps(stats)) == dataclasses.asdict(stats)


def test_stats_of_an_empty_queue_have_no_times() -> None:
    """DLQ-6: None and not zero, which would be 1970."""
    stats = DeadLetterQueue(5).stats()

    assert (stats.size, stats.max_size, stats.by_reason, stats.by_event_type) == (0, 5, {}, {})
    assert stats.oldest_at is None
    assert stats.newest_at is None


def test_stats_do_not_show_what_was_refused_for_its_name() -> None:
    """DLQ-6: names that are no event types may be anything, and are redacted."""
    queue = filled(letter(SECRET), letter())

    shown = queue.stats().by_event_type

    assert WORD not in str(shown)
    assert sum(shown.values()) == 2


def test_looking_from_other_threads_never_meets_a_change_half_done() -> None:
    """DLQ-6: stats and list are called by web endpoints while the bus puts and removes."""
    queue = DeadLetterQueue(50)
    failures: list[Exception] = []
    done = threading.Event()

    def look() -> None:
        try:
            while not done.is_set():
                assert queue.stats().size <= 50
                assert len(queue.list()) <= 50
        except Exception as error:  # noqa: BLE001 - told to the test below
            failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3_000):
        queue.put(letter())
    done.set()
    for thread in threads:
        thread.join(10)

    assert failures == []
    assert queue.stats().evicted == 2_950


@pytest.mark.parametrize("reason", list(FailureReason))
def test_every_reason_can_be_kept_found_and_shown(reason: FailureReason) -> None:
    """DLQ-7: all reasons are storable."""
    queue = filled(letter(reason=reason))

    (found,) = queue.list(reason=reason)

    assert found.reason is reason
    assert queue.to_dict(found)["reason"] == reason.value
    assert queue.stats().by_reason == {reason.value: 1}


def test_nobody_can_change_what_is_in_the_queue_through_what_it_returns() -> None:
    """DLQ-k: entries used to be live objects."""
    kept = letter()
    queue = filled(kept)

    queue.list().clear()
    queue.stats().by_reason.clear()

    assert queue.list() == [kept]
    assert queue.stats().by_reason == {"handler_error": 1}
    with pytest.raises(dataclasses.FrozenInstanceError):
        queue.get(kept.letter_id).attempts = 9  # type: ignore[misc]  # what is tested


# Making and showing


def charge() -> None:
    """Fail, with a secret in the text."""
    raise ValueError(f"no such customer in {SECRET}")


def failure() -> BaseException:
    """Return an error that was raised, so that it has a traceback."""
    with pytest.raises(ValueError, match="customer") as caught:
        charge()
    return caught.value


def test_a_letter_gets_an_id_and_the_time_by_itself() -> None:
    """DLQ-12: and another one gets another id."""
    event, error = Event("order.placed", {}), failure()
    before = time.time()

    one, other = (letter_from(event, NAME, FailureReason.HANDLER_ERROR, error, 3, Redactor()) for _ in range(2))

    assert one.letter_id != other.letter_id
    assert before <= one.first_failed_at == one.failed_at <= time.time()
    assert (one.event, one.subscription, one.attempts, one.error_type) == (event, NAME, 3, "ValueError")


def test_a_letter_of_a_later_failure_remembers_the_first() -> None:
    """DLQ-a/b: a redrive that failed does not make the letter young again."""
    event = Event("order.placed", {})
    first = letter_from(event, NAME, FailureReason.HANDLER_ERROR, failure(), 1, Redactor())
    before = dataclasses.replace(first, first_failed_at=5.0, failed_at=6.0)

    made = letter_from(event, NAME, FailureReason.HANDLER_ERROR, failure(), 2, Redactor(), before=before)

    assert made.letter_id == before.letter_id
    assert made.first_failed_at == 5.0
    assert made.failed_at > 6.0


def test_a_letter_tells_where_the_error_arose_without_its_secrets() -> None:
    """DLQ-l: the traceback names the function, and neither text shows the password."""
    made = letter_from(Event("order.placed", {}), NAME, FailureReason.HANDLER_ERROR, failure(), 1, Redactor())

    assert "no such customer" in made.error
    assert "in charge" in made.traceback
    assert WORD not in made.error + made.traceback


def test_a_letter_about_an_error_that_was_never_raised_can_be_made() -> None:
    """DLQ-7: rejections and given-up deliveries have errors without a traceback."""
    error = SerializationError("contains itself")

    made = letter_from(Event("order.placed", {}), None, FailureReason.SERIALIZATION_ERROR, error, 0, Redactor())

    assert (made.error_type, made.error) == ("SerializationError", "contains itself")
    assert made.subscription is None


def test_a_letter_becomes_a_dict_that_json_can_hold() -> None:
    """DLQ-12: id, reason value, error, handler and event."""
    event = Event("order.placed", {"tags": {"a"}, "n": 2**70}, causation_id="cause", hops=2)
    kept = letter(event=event, attempts=3)

    shown = DeadLetterQueue().to_dict(kept)

    assert json.loads(json.dumps(shown)) == shown
    assert shown["letter_id"] == kept.letter_id
    assert shown["subscription"] == NAME
    assert (shown["reason"], shown["error_type"], shown["error"]) == (
        "handler_error",
        "ValueError",
        "no such card",
    )
    assert (shown["attempts"], shown["failed_at"]) == (3, kept.failed_at)
    assert shown["event"]["event_id"] == event.event_id
    assert shown["event"]["payload"] == {"tags": ["a"], "n": 2**70}
    assert (shown["event"]["causation_id"], shown["event"]["hops"]) == ("cause", 2)


def test_a_shown_event_has_the_fields_of_an_event() -> None:
    """DLQ-12: what Event.to_dict has, so that it can be read like one."""
    event = Event("order.placed", {})

    shown = DeadLetterQueue().to_dict(letter(event=event))

    assert shown["event"].keys() == event.to_dict().keys()


@pytest.mark.parametrize(
    "where",
    [
        {"payload": {"to": {"list": [SECRET]}}},
        {"source": SECRET},
        {"correlation_id": SECRET},
        {"key": SECRET},
        {"headers": {"x-user": SECRET}},
        {"event_type": SECRET},
    ],
    ids=lambda where: next(iter(where)),
)
def test_what_is_shown_is_redacted_wherever_it_lies(where: dict[str, Any]) -> None:
    """DLQ-12: the letter keeps the truth for a redrive; what is shown of it holds no secret."""
    event = Event(**({"event_type": "order.placed", "payload": {}} | where))
    queue = filled(letter(event=event))

    (shown,) = queue.export()

    assert WORD not in json.dumps(shown)
    assert queue.list()[0].event is event


def test_a_field_that_its_model_marks_as_sensitive_is_hidden_when_shown() -> None:
    """DLQ-12: the model is redacted, and not its JSON form, which has lost the marks."""

    class Booked(Payload):
        room: Annotated[str, Sensitive("room")]
        nights: int

    kept = letter(event=Event("room.booked", Booked(room="blue", nights=2)))

    shown = DeadLetterQueue().to_dict(kept)

    assert "blue" not in json.dumps(shown)
    assert shown["event"]["payload"]["nights"] == 2


@pytest.mark.parametrize("field", ["error", "traceback"])
def test_letters_that_others_made_are_redacted_when_shown(field: str) -> None:
    """DLQ-12: a store may hold letters that were never redacted."""
    shown = DeadLetterQueue().to_dict(letter(**{field: f"lost {SECRET}"}))

    assert "lost" in shown[field]
    assert WORD not in shown[field]


def test_exporting_takes_the_filters_of_list() -> None:
    """DLQ-12: newest first."""
    letters = [letter(), letter("user.login"), letter(), letter()]
    queue = filled(*letters)

    shown = queue.export("order.*", reason="handler_error", limit=2)

    assert [each["letter_id"] for each in shown] == [letters[3].letter_id, letters[2].letter_id]


def test_a_queue_without_a_redactor_of_its_own_takes_that_of_the_bus() -> None:
    """DLQ-12: the keys that a bus was told to hide are hidden in its dead letters too."""
    queue = filled(letter(event=Event("order.placed", {"room": "blue"})))

    queue.use_redactor(Redactor(redact_keys=["room"]))

    assert "blue" not in json.dumps(queue.export())


def test_a_queue_with_a_redactor_of_its_own_keeps_it() -> None:
    """DLQ-12: what was said explicitly counts."""
    queue = DeadLetterQueue(redactor=Redactor(redact_keys=["room"]))
    queue.put(letter(event=Event("order.placed", {"room": "blue"})))

    queue.use_redactor(Redactor(redact_keys=["floor"]))

    assert "blue" not in json.dumps(queue.export())


def test_the_repr_of_a_queue_shows_no_letter() -> None:
    """DLQ-12: a queue that is logged by accident tells its size."""
    assert repr(filled(letter(error=SECRET))) == "<DeadLetterQueue of 1 letters>"


# Stores


def test_the_memory_store_is_a_store() -> None:
    """DLQ-e: what is documented as a port is one."""
    assert isinstance(MemoryStore(1), DeadLetterStore)


def test_a_store_of_the_users_own_is_used_and_believed() -> None:
    """DLQ-e: a store that is passed is really used, also while it is empty; its evictions are counted."""
    store = ForeignStore()
    queue = DeadLetterQueue(store=store)
    kept, other = letter(), letter()

    queue.put(kept)
    queue.put(other)

    assert store.letters == [kept, other]
    assert queue.get(kept.letter_id) is kept
    assert queue.list() == [other, kept]
    assert (queue.stats().evicted, queue.stats().max_size) == (14, None)
    assert queue.purge() == 2
    with pytest.raises(DeadLetterNotFoundError):
        queue.get(kept.letter_id)


@pytest.mark.parametrize("store", [{}, [], "letters.db", MemoryStore])
def test_what_is_no_store_is_refused_when_declared(store: Any) -> None:  # noqa: ANN401
    """DLQ-e: persist_path used to be taken and never read."""
    with pytest.raises(ConfigurationError, match="store="):
        DeadLetterQueue(store=store)
