"""The queue of dead letters under hard conditions: what cannot be shown, many letters, many buses, odd stores."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import math
import pickle
import time
import weakref
from collections import OrderedDict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aperion._frozen import FrozenDict
from aperion.deadletters import DeadLetterQueue, MemoryStore
from aperion.events import Event, make_event
from aperion.outcomes import DeadLetter, FailureReason
from aperion.patterns import matches
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterator

WORD = "hunter2"
SURROGATE = "\udcff"
_numbers = itertools.count()


def letter(event: Event[Any] | None = None, **changes: Any) -> DeadLetter:
    """Return a dead letter."""
    fields: dict[str, Any] = {
        "letter_id": f"letter-{next(_numbers)}",
        "event": Event("order.placed", {"n": 1}) if event is None else event,
        "subscription": "app.charge",
        "reason": FailureReason.HANDLER_ERROR,
        "error_type": "ValueError",
        "error": "no such card",
        "attempts": 1,
        "first_failed_at": 1.0,
        "failed_at": 2.0,
    }
    return DeadLetter(**(fields | changes))


def unchecked(payload: dict[Any, Any], **fields: Any) -> Event[Any]:
    """Return an event as the bus makes it of what it refused, without a look at the payload."""
    source, key, headers = (fields.pop(name, None) for name in ("source", "key", "headers"))
    return make_event("order.placed", FrozenDict(payload), source, None, None, 0, key, headers or FrozenDict(), False)


class Careless(Redactor):
    """Returns what it is given."""

    def redact(self, obj: object, *_: Any, **__: Any) -> object:
        return obj

    def redact_text(self, text: str, *_: Any) -> str:
        return text


class Raising(Redactor):
    """Raises, with what it was given in the text."""

    __slots__ = ("error",)

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def redact(self, obj: object, *_: Any, **__: Any) -> object:
        raise self.error(f"cannot hide {obj!r}")

    def redact_text(self, text: str, *_: Any) -> str:
        raise self.error(f"cannot hide {text!r}")


# What cannot be shown


@pytest.mark.parametrize(
    "event",
    [
        Event("order.placed", {"file": PurePosixPath(f"{WORD}{SURROGATE}")}),
        unchecked({"a": {"b": f"{WORD}{SURROGATE}"}}),
        unchecked({f"{WORD}{SURROGATE}": 1}),
        unchecked({}, headers=FrozenDict({"x-a": f"{WORD}{SURROGATE}"})),
        unchecked({}, source=f"{WORD}{SURROGATE}"),
        unchecked({}, key=f"{WORD}{SURROGATE}"),
    ],
    ids=["path", "payload", "key of the payload", "headers", "source", "key"],
)
def test_a_letter_that_cannot_be_written_leaves_a_mark_and_the_others_come_out(event: Event[Any]) -> None:
    queue = DeadLetterQueue(redactor=Careless())
    for each in (letter(), letter(event), letter()):
        queue.put(each)

    first, marked, last = queue.export()

    assert first["event"]["payload"] == last["event"]["payload"] == {"n": 1}
    assert "[NOT SHOWN: " in json.dumps(marked)
    assert "with a lone surrogate]" in json.dumps(marked)
    assert WORD not in json.dumps(marked)
    assert marked["error"] == "no such card"
    assert json.dumps(marked, ensure_ascii=False).encode()


def test_the_rest_of_a_payload_is_shown_beside_what_cannot_be() -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    payload = {"bad": SURROGATE, "good": [1, {"x": ("y", SURROGATE)}], "huge": 10**5000, "deep": deep, "n": math.nan}
    queue = DeadLetterQueue(redactor=Careless())

    shown = queue.to_dict(letter(unchecked(payload)))["event"]["payload"]

    assert shown["bad"] == "[NOT SHOWN: str with a lone surrogate]"
    assert shown["good"] == [1, {"x": ["y", "[NOT SHOWN: str with a lone surrogate]"]}]
    assert shown["huge"] == "[NOT SHOWN: int raised ValueError]"
    assert "[NOT SHOWN: list lies too deep]" in json.dumps(shown["deep"])
    assert shown["n"] is None


def test_a_number_that_is_none_is_shown_as_json_has_it() -> None:
    """Also beside an integer beyond 64 bits, which another library writes."""
    shown = DeadLetterQueue(redactor=Careless()).to_dict(letter(unchecked({"n": math.nan, "big": 2**70})))

    assert shown["event"]["payload"] == {"n": None, "big": 2**70}


def test_a_payload_that_contains_itself_is_shown_to_some_depth() -> None:
    endless: dict[str, Any] = {"n": 1}
    endless["again"] = endless

    shown = DeadLetterQueue(redactor=Careless()).to_dict(letter(unchecked(endless)))

    assert shown["event"]["payload"]["again"]["n"] == 1
    assert "[NOT SHOWN: dict lies too deep]" in json.dumps(shown)


def test_two_keys_that_cannot_be_written_are_two_entries() -> None:
    event = unchecked({chr(0xDCFE): 1, chr(0xDCFF): 2, 5: SURROGATE})

    shown = DeadLetterQueue(redactor=Careless()).to_dict(letter(event))

    payload = shown["event"]["payload"]
    assert sorted(value for value in payload.values() if type(value) is int) == [1, 2]
    assert payload["5"] == "[NOT SHOWN: str with a lone surrogate]"


@pytest.mark.parametrize("field", ["error", "traceback"])
def test_a_message_with_the_name_of_a_file_is_shown_whole(field: str) -> None:
    shown = DeadLetterQueue().to_dict(letter(**{field: f"cannot open {SURROGATE}.txt here"}))

    assert shown[field] == "cannot open \\udcff.txt here"


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError, GeneratorExit, RecursionError])
def test_a_redactor_that_raises_costs_the_fields_that_it_was_to_redact(error: type[BaseException]) -> None:
    event = Event("order.placed", {"password": WORD}, source=WORD, headers={"x": WORD}, key=WORD)
    queue = DeadLetterQueue(redactor=Raising(error))
    queue.put(letter(event, error=WORD, traceback=WORD))
    queue.put(letter(Event(f"{WORD} {WORD}", {})))

    shown = queue.export()

    mark = f"[NOT SHOWN: reading it raised {error.__name__}]"
    assert [each["event"]["payload"] for each in shown] == [mark, mark]
    assert shown[0]["event"]["event_type"] == mark
    assert shown[1]["error"] == shown[1]["traceback"] == shown[1]["event"]["headers"] == mark
    assert shown[1]["event"]["event_id"] == event.event_id
    assert WORD not in json.dumps(shown)
    assert queue.stats().by_event_type == {mark: 1, "order.placed": 1}


def test_ctrl_c_ends_an_export() -> None:
    queue = DeadLetterQueue(redactor=Raising(KeyboardInterrupt))
    queue.put(letter())

    with pytest.raises(KeyboardInterrupt):
        queue.export()


class Hostile:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(f"{WORD} {name}")

    def __repr__(self) -> str:
        raise SystemExit(WORD)

    __str__ = __hash__ = __repr__  # type: ignore[assignment]


def test_an_object_that_raises_whatever_is_asked_of_it_leaves_a_mark() -> None:
    event = unchecked({"a": Hostile(), "b": 1})

    shown = DeadLetterQueue(redactor=Careless()).to_dict(letter(event))

    assert shown["event"]["payload"]["a"].startswith("[NOT SHOWN: Hostile raised ")
    assert shown["event"]["payload"]["b"] == 1
    assert WORD not in json.dumps(shown)


def test_what_a_store_takes_for_a_letter_is_shown_as_far_as_it_goes() -> None:
    class Half:
        letter_id = "half"
        error = "lost"

    shown = DeadLetterQueue().to_dict(Half())  # type: ignore[arg-type]  # that is the point

    assert (shown["letter_id"], shown["error"]) == ("half", "lost")
    assert shown["reason"] == shown["event"]["payload"] == "[NOT SHOWN: reading it raised AttributeError]"


# Many letters


REASONS = list(FailureReason)
TYPES = ["a.b", "a.c", "b.c.d", "odd"]


@given(
    st.lists(st.tuples(st.sampled_from(TYPES), st.sampled_from(REASONS), st.integers(0, 3)), max_size=30),
    st.none() | st.sampled_from(["*", "a.*", "*.c", "a.b", "b.*", "odd"]),
    st.none() | st.sampled_from(REASONS),
    st.none() | st.integers(0, 3),
    st.none() | st.integers(1, 40),
)
def test_listing_is_to_filter_one_letter_after_another(
    made: list[tuple[str, FailureReason, int]],
    pattern: str | None,
    reason: FailureReason | None,
    number: int | None,
    limit: int | None,
) -> None:
    queue = DeadLetterQueue()
    letters = [letter(Event(kind, {}), reason=why, subscription=f"s{n}") for kind, why, n in made]
    for each in letters:
        queue.put(each)

    subscription = None if number is None else f"s{number}"
    found = queue.list(pattern, limit=limit, reason=reason, subscription=subscription)

    expected = [
        each
        for each in reversed(letters)
        if (pattern is None or matches(pattern, each.event.event_type))
        and (reason is None or each.reason is reason)
        and (subscription is None or each.subscription == subscription)
    ]
    assert found == expected[:limit]


def test_a_filter_finds_letters_however_far_back_and_purge_removes_them_all() -> None:
    queue = DeadLetterQueue(5000)
    for n in range(5000):
        queue.put(letter(letter_id=str(n), subscription="rare" if n % 1000 == 0 else "often"))

    rare = queue.list(subscription="rare", limit=4)
    purged = queue.purge(subscription="often")

    assert [each.letter_id for each in rare] == ["4000", "3000", "2000", "1000"]
    assert purged == 4995
    assert [each.letter_id for each in queue] == ["0", "1000", "2000", "3000", "4000"]
    assert queue.purge() == 5
    assert len(queue) == 0


def fastest(function: Any) -> float:
    """Return the least processor time of some calls."""
    times = []
    for _ in range(7):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def test_listing_many_letters_costs_a_fraction_of_asking_each() -> None:
    event = Event("order.placed", {})
    queue = DeadLetterQueue(50_000)
    for _ in range(50_000):
        queue.put(letter(event))
    letters = list(queue)

    asking_each = fastest(lambda: [each for each in letters if all(rule(each) for rule in ())])

    assert fastest(queue.list) < asking_each / 2
    assert fastest(lambda: queue.list("order.*")) < asking_each


# The store in memory


@given(
    st.integers(1, 3), st.lists(st.tuples(st.sampled_from(["put", "pop", "remove"]), st.integers(0, 4)), max_size=60)
)
@example(2, [("put", 0), ("pop", 0), ("put", 0), ("remove", 0), ("put", 1), ("put", 0), ("put", 2), ("put", 3)])
def test_the_memory_store_is_an_ordered_dict_with_a_bound(max_size: int, steps: list[tuple[str, int]]) -> None:
    store, model = MemoryStore(max_size), OrderedDict[str, DeadLetter]()

    for step, number in steps:
        name = str(number)
        if step == "put":
            new = letter(letter_id=name)
            model[name] = new
            evicted = len(model) - max_size
            if evicted > 0:
                model.popitem(last=False)
            assert store.put(new) == max(evicted, 0)
        elif step == "pop":
            assert store.pop(name) is model.pop(name, None)
        else:
            assert store.remove([name, name, "none"]) == (model.pop(name, None) is not None)
        assert list(store) == list(model.values())
        assert len(store) == len(model)


def test_a_letter_that_comes_back_again_and_again_takes_no_more_room() -> None:
    """A redrive that fails takes a letter out and puts it back."""
    store = MemoryStore(10)
    kept, others = letter(), [letter() for _ in range(5)]
    for each in others:
        store.put(each)

    for _ in range(10_000):
        store.put(kept)
        store.pop(kept.letter_id)

    assert len(store._order) < 3000
    assert sum(store._gone.values()) == len(store._order) - len(store)
    assert list(store) == others


# Figures


class Broken:
    """A store that answers as long as it is whole."""

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException | None = None
        self.breaks_with = error
        self.kept: list[DeadLetter] = []

    def put(self, letter: DeadLetter) -> int:
        self.kept.append(letter)
        return 3

    def pop(self, letter_id: str) -> DeadLetter | None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[DeadLetter]:
        raise NotImplementedError

    def __len__(self) -> int:
        if self.error is not None:
            raise self.error
        return len(self.kept)


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_counting_looks_at_no_letter_and_outlives_its_store(error: BaseException) -> None:
    store = Broken(error)
    queue = DeadLetterQueue(store=store)
    assert queue.counts() == (0, 0)
    queue.put(letter())
    assert queue.counts() == (1, 3)

    store.error = error
    queue.put(letter())

    assert queue.counts() == (1, 6)
    assert queue.evicted == 6


def test_counts_are_those_of_stats() -> None:
    queue = DeadLetterQueue(2)
    for _ in range(5):
        queue.put(letter())

    stats = queue.stats()

    assert queue.counts() == (stats.size, stats.evicted) == (2, 3)
    assert stats.by_reason == {"handler_error": 2}


# Redactors


def hiding(*names: str) -> Redactor:
    """Return a redactor that hides these besides the usual."""
    return Redactor(redact_keys=names)


def test_each_letter_is_redacted_as_the_bus_that_put_it_says() -> None:
    queue = DeadLetterQueue()
    payload = {"room": "blue", "floor": "third"}
    one, other = letter(Event("order.placed", payload)), letter(Event("order.placed", payload))
    rooms, floors = hiding("room"), hiding("floor")
    queue.use_redactor(rooms)
    queue.use_redactor(floors)

    queue.put(one, rooms)
    queue.put(other, floors)

    shown = [each["event"]["payload"] for each in queue.export()]
    assert shown == [{"room": "blue", "floor": "[REDACTED]"}, {"room": "[REDACTED]", "floor": "third"}]


def test_a_letter_that_another_bus_puts_back_is_redacted_as_that_one_says() -> None:
    queue = DeadLetterQueue()
    kept = letter(Event("order.placed", {"room": "blue", "floor": "third"}))
    rooms, floors = hiding("room"), hiding("floor")
    queue.put(letter(), rooms)
    queue.put(kept, floors)

    queue.put(kept, rooms)

    assert queue.to_dict(kept)["event"]["payload"] == {"room": "[REDACTED]", "floor": "third"}


def test_the_redactor_of_the_queue_is_used_for_every_letter() -> None:
    queue = DeadLetterQueue(redactor=hiding("room"))
    kept = letter(Event("order.placed", {"room": "blue", "floor": "third"}))

    queue.put(letter(), hiding("floor"))
    queue.put(kept, hiding("floor"))

    assert queue.to_dict(kept)["event"]["payload"] == {"room": "[REDACTED]", "floor": "third"}


def test_a_letter_that_a_store_made_anew_is_redacted_as_the_first_bus_says() -> None:
    queue = DeadLetterQueue()
    event = Event("order.placed", {"room": "blue", "floor": "third"})

    queue.put(letter(event), hiding("room"))
    queue.put(kept := letter(event), hiding("floor"))
    anew = pickle.loads(pickle.dumps(kept))

    assert queue.to_dict(anew)["event"]["payload"] == {"room": "[REDACTED]", "floor": "third"}
    assert queue.to_dict(kept)["event"]["payload"] == {"room": "blue", "floor": "[REDACTED]"}


def test_a_queue_without_a_bus_hides_the_usual() -> None:
    queue = DeadLetterQueue()

    queue.put(kept := letter(Event("order.placed", {"password": WORD})))

    assert queue.to_dict(kept)["event"]["payload"] == {"password": "[REDACTED]"}


def test_a_queue_does_not_keep_letters_that_are_gone_nor_what_it_knew_of_them() -> None:
    queue = DeadLetterQueue(1)
    queue.use_redactor(hiding("room"))
    floors = hiding("floor")

    queue.put(first := letter(), floors)
    gone = weakref.ref(first)
    del first
    queue.put(letter(), floors)
    gc.collect()

    assert gone() is None
    assert len(queue._of_letters) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "put", "remove", "purge"]),
            st.integers(0, 6),
            st.sampled_from([FailureReason.HANDLER_ERROR, FailureReason.HANDLER_TIMEOUT]),
        ),
        max_size=40,
    )
)
def test_letters_are_counted_by_reason_without_a_look_at_them(steps: list[tuple[str, int, FailureReason]]) -> None:
    """A law: whatever is put, replaced, evicted, taken out and purged."""
    queue = DeadLetterQueue(max_size=4)

    for what, number, reason in steps:
        if what == "put":
            queue.put(letter(letter_id=f"l-{number}", reason=reason))
        elif what == "remove":
            queue.remove(f"l-{number}")
        else:
            queue.purge(reason=reason)
        assert queue.by_reason() == queue.stats().by_reason


def test_a_store_of_the_user_is_looked_through_for_reasons_and_may_raise() -> None:
    class Store(list[DeadLetter]):
        broken = False

        def put(self, letter: DeadLetter) -> int:
            self.append(letter)
            return 0

        def __iter__(self) -> Iterator[DeadLetter]:
            if self.broken:
                raise SystemExit
            return super().__iter__()

    store = Store()
    queue = DeadLetterQueue(store=store)
    queue.put(letter())

    assert queue.by_reason() == {"handler_error": 1}
    store.broken = True
    assert queue.by_reason() == {}
