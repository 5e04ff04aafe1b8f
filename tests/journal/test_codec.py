"""What is written into the journal comes back as it was, or is refused by name."""

from __future__ import annotations

import enum
from collections import namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aperion
from aperion.journal import codec


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclass(frozen=True, slots=True)
class Money:
    amount: Decimal
    currency: str = "EUR"


@dataclass
class Basket:
    items: list[Money] = field(default_factory=list)
    colour: Colour = Colour.RED


Point = namedtuple("Point", "x y")


class Address(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    street: str
    since: date


class JournalOrder(aperion.Payload, type="journal.order"):
    number: int
    at: datetime
    total: Money
    colour: Colour
    address: Address
    tags: frozenset[str] = frozenset()
    note: Annotated[str, pydantic.Field(alias="Note")] = ""


class JournalPlain(aperion.Payload, type="journal.plain"):
    text: str
    number: int
    share: float | None = None


def back(payload: Any, event_type: str = "order.placed", **details: Any) -> aperion.Event[Any]:
    event = aperion.Event(event_type, payload, **details)
    return codec.read(codec.written(event))


VALUES: list[Any] = [
    "text",
    "",
    2**70,
    -1.5,
    True,
    None,
    b"\x00\xff",
    datetime(2026, 5, 1, 12, tzinfo=UTC),
    datetime(2026, 5, 1, 12, 30, 1, 5),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    datetime(1890, 1, 1, tzinfo=timezone(timedelta(minutes=53, seconds=28))),
    date(2026, 1, 1),
    time(1, 2, 3),
    timedelta(days=-1, microseconds=7),
    UUID(int=7),
    Decimal("1.10"),
    (1, (2, "x")),
    frozenset({1, 2}),
    PurePosixPath("a/b"),
    Colour.BLUE,
    Access.READ | Access.WRITE,
    Level.LOW,
    Money(Decimal("1.00")),
    Basket([Money(Decimal("2"))], Colour.BLUE),
    Point(1, (2,)),
    Address(street="Main", since=date(2020, 2, 2)),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    again = back({"value": value, "list": [value], "pair": (value, 1)}).payload

    assert again["value"] == value
    assert type(again["value"]) is type(value)
    assert type(again["list"][0]) is type(value)
    assert again["pair"] == (value, 1)


@pytest.mark.parametrize("key", [1, 1.5, True, None, date(2026, 1, 1), UUID(int=1), Colour.RED, Level.LOW], ids=repr)
def test_a_key_comes_back_as_it_was(key: Any) -> None:
    again = back({"map": {key: "value"}}).payload

    assert list(again["map"]) == [key]
    assert type(next(iter(again["map"]))) is type(key)


def test_the_whole_envelope_comes_back() -> None:
    event = aperion.Event(
        *("order.placed", {"a": 1}, 12.5, "id-1", "web", "corr-1"),
        causation_id="id-0",
        hops=3,
        key="k",
        headers={"a": "b"},
    )

    assert codec.read(codec.written(event)) == event


def test_a_model_comes_back_as_that_model() -> None:
    order = JournalOrder(
        number=1,
        at=datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
        total=Money(Decimal("1.10")),
        colour=Colour.BLUE,
        address=Address(street="Main", since=date(2020, 1, 1)),
        tags=frozenset({"a"}),
        Note="n",
    )

    again = back(order, "journal.order").payload

    assert again == order
    assert type(again) is JournalOrder
    assert again.at.tzinfo == ZoneInfo("Europe/Berlin")


def test_a_value_of_a_class_that_cannot_be_found_again_is_refused_by_name() -> None:
    class Local(enum.Enum):
        ONE = 1

    event = aperion.Event("order.placed", {"lines": [{"kind": Local.ONE}]})

    with pytest.raises(aperion.SerializationError, match=r"payload\.lines\.0\.kind is a .*Local"):
        codec.written(event)


def test_a_dataclass_with_more_than_its_fields_is_refused_by_name() -> None:
    basket = Basket()
    basket.extra = 1  # type: ignore[attr-defined]

    with pytest.raises(aperion.SerializationError, match=r"payload\.basket is a .*Basket, and has attributes"):
        codec.written(aperion.Event("order.placed", {"basket": basket}))


def test_a_class_that_is_gone_is_an_error_and_not_another_value() -> None:
    body = codec.written(aperion.Event("order.placed", {"colour": Colour.RED}))

    with pytest.raises(aperion.SerializationError):
        codec.read(body.replace(b"Colour", b"Colours"))
    with pytest.raises(aperion.SerializationError):
        codec.read(body.replace(b":Colour", b":Money"))


def test_a_model_that_has_changed_is_an_error() -> None:
    body = codec.written(aperion.Event("journal.plain", JournalPlain(text="a", number=1)))

    with pytest.raises(aperion.PayloadError):
        codec.read(body.replace(b'"number"', b'"numbers"'))


class JournalMoved(aperion.Payload, type="journal.moved", version=3):
    city: str
    moves: int
    version: str = "a field of any name"


@JournalMoved.upcaster(from_version=1)
def _town_is_city(fields: dict[str, Any]) -> dict[str, Any]:
    return {"city": fields["town"]}


@JournalMoved.upcaster(from_version=2)
def _moves_are_counted(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "moves": 1}


def test_a_payload_of_an_earlier_version_is_made_one_of_this_version() -> None:
    now = aperion.Event("journal.moved", JournalMoved(city="Ulm", moves=2))
    body = codec.written(now)
    first = aperion.Event("journal.moved", {"town": "Ulm"})

    assert codec.read(body) == now
    assert codec.read(codec.written(first)).payload == JournalMoved(city="Ulm", moves=1)
    second = codec.written(now.replace(payload={"city": "Ulm"})).replace(b'"hops"', b'"version":2,"hops"')
    assert codec.read(second).payload == JournalMoved(city="Ulm", moves=1)
    assert aperion.Event.from_jsonl(now.to_jsonl()) == now
    assert aperion.Event.from_jsonl(first.to_jsonl()).payload == JournalMoved(city="Ulm", moves=1)


def test_a_version_to_which_nothing_leads_is_an_error() -> None:
    class JournalJumped(aperion.Payload, type="journal.jumped", version=2):
        n: int

    body = codec.written(aperion.Event("journal.jumped", {"n": 1}))
    newer = codec.written(aperion.Event("journal.jumped", JournalJumped(n=1))).replace(b'"version":2', b'"version":9')

    with pytest.raises(aperion.SerializationError, match=r"write @JournalJumped.upcaster\(from_version=1\)"):
        codec.read(body)
    with pytest.raises(aperion.SerializationError, match="is of version 9, and its model knows 2"):
        codec.read(newer)
    JournalJumped.upcaster(from_version=1)(lambda fields: fields["missing"])
    with pytest.raises(aperion.SerializationError, match="from version 1 raised KeyError"):
        codec.read(body)


@pytest.mark.parametrize("number", [0, 3, 7, 1])
def test_an_upcaster_that_leads_nowhere_is_refused(number: int) -> None:
    with pytest.raises(aperion.ConfigurationError, match=f"from_version={number} makes no sense"):
        JournalMoved.upcaster(from_version=number)(lambda fields: fields)


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(aperion.ConfigurationError, match="version=0"):

        class JournalZero(aperion.Payload, type="journal.zero", version=0):
            n: int


def test_a_model_that_nobody_has_imported_is_an_error() -> None:
    body = codec.written(aperion.Event("journal.plain", JournalPlain(text="a", number=1)))

    with pytest.raises(aperion.SerializationError, match="import its module"):
        codec.read(body.replace(b"journal.plain", b"journal.plaim"))
    shown = codec.unread(body.replace(b"journal.plain", b"journal.plaim"))
    assert shown is not None
    assert shown.payload["text"] == "a"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.dates()
    | st.sampled_from(Colour),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON))
def test_whatever_is_accepted_comes_back(payload: dict[str, Any]) -> None:
    try:
        event = aperion.Event("order.placed", payload)
    except aperion.SerializationError:
        return

    again = codec.read(codec.written(event))

    assert again == event
    assert repr(again.payload) == repr(event.payload)
