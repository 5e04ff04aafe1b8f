"""Events as lines of JSON: what was put in comes back, or is refused."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import uuid
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import aperion
from aperion import Event, Payload
from aperion.errors import SerializationError
from aperion.events import to_json

ODD = dt.timezone(dt.timedelta(minutes=53, seconds=28))
BERLIN = ZoneInfo("Europe/Berlin")
SECRET = "hunter2"


class Colour(enum.Enum):
    RED = "red"


class Place(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass(frozen=True)
class Point:
    x: int


class Nested(pydantic.BaseModel):
    y: decimal.Decimal


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal, and of the same kinds all the way down."""
    if type(one) is not type(other) or one != other:
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return all(same(key, twin) and same(value, of_twin) for (key, value), (twin, of_twin) in pairs)
    if isinstance(one, list | tuple):
        return all(same(item, twin) for item, twin in zip(one, other, strict=True))
    if isinstance(one, frozenset):
        return all(any(same(item, twin) for twin in other) for item in one)
    if isinstance(one, dt.datetime | dt.time):
        zones = [getattr(value.tzinfo, "key", None) for value in (one, other)]
        return one.isoformat() == other.isoformat() and zones[0] == zones[1]
    return repr(one) == repr(other)


def back(event: Event[Any]) -> Event[Any]:
    """Return an event after a journey as a line."""
    return Event.from_jsonl(event.to_jsonl())


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
OFFSETS = st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(dt.timezone)
ZONES = st.none() | st.just(dt.UTC) | st.timezones() | OFFSETS
MOMENTS = st.datetimes(timezones=ZONES) | st.datetimes(
    dt.datetime(1890, 1, 1), dt.datetime(1894, 1, 1), timezones=st.just(BERLIN)
)
PATHS = st.one_of(
    TEXT.map(PurePosixPath), TEXT.map(PureWindowsPath), TEXT.filter(lambda text: "\0" not in text).map(Path)
)
KEYS = st.one_of(
    *(TEXT, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()),
    *(
        st.uuids(),
        st.dates(),
        MOMENTS,
        st.times(timezones=ZONES),
        st.sampled_from(["1", "true", "null", "/", "~1", ""]),
    ),
)
ATOMS = KEYS | st.one_of(
    st.timedeltas(), st.decimals(allow_nan=False), st.binary(max_size=5), PATHS, st.sampled_from(["1", "2026-01-01"])
)
HASHABLE = st.recursive(
    ATOMS, lambda inner: st.frozensets(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple), max_leaves=4
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
@example({"at": dt.datetime(2000, 1, 1, tzinfo=dt.timezone(dt.timedelta(microseconds=1)))})
@example({"at": dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(microseconds=1)))})
@example({"at": dt.datetime.min.replace(tzinfo=ODD), "time": dt.time(tzinfo=dt.timezone(dt.timedelta(seconds=-1)))})
@example({"at": dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=1, microseconds=1)))})
@example({"at": dt.datetime(1893, 4, 1, 0, 3, tzinfo=BERLIN)})
def test_every_payload_of_known_kinds_comes_back_equal_kind_by_kind(payload: dict[Any, Any]) -> None:
    """At any depth, keys included; sets are frozen when the event is made."""
    event = Event("a.b", payload)

    again = back(event)

    assert again == event
    assert same(again.payload, event.payload)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_the_payload_of_a_line_is_plain_json_and_to_dict_is_it_without_notes(payload: dict[Any, Any]) -> None:
    """Whoever does not know the notes reads the rest."""
    event = Event("a.b", payload)

    line = json.loads(event.to_jsonl())

    assert event.to_dict() == {name: value for name, value in line.items() if name not in ("types", "key_types")}


@pytest.mark.parametrize(
    ("value", "written", "tag"),
    [
        (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "2026-01-01T00:00:00+00:00", "datetime"),
        (dt.datetime(1890, 1, 1, 8, tzinfo=ODD), "1890-01-01T07:06:32+00:00", "datetime+00:53:28"),
        (dt.datetime(2026, 7, 1, tzinfo=BERLIN), "2026-07-01T00:00:00+02:00", "datetime[Europe/Berlin]"),
        (dt.date(2026, 1, 1), "2026-01-01", "date"),
        (dt.time(8, 30, tzinfo=ODD), "08:30:00+00:53", "time+00:53:28"),
        (dt.timedelta(days=400, microseconds=1), "P1Y35DT0.000001S", "timedelta"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001", "uuid"),
        (decimal.Decimal("1.10"), "1.10", "decimal"),
        (b"\xff", "ÿ", "bytes"),
        ((1, 2), [1, 2], "tuple"),
        ({2, 1}, [1, 2], "frozenset"),
        (PurePosixPath("a/b"), "a/b", "pure_posix_path"),
        (PureWindowsPath("C:/a"), "C:\\a", "pure_windows_path"),
    ],
)
def test_a_value_is_written_plainly_and_its_kind_beside_it(value: object, written: object, tag: str) -> None:
    """The payload says what it said before there were notes."""
    line = json.loads(Event("a.b", {"at/~x": value}).to_jsonl())

    assert line["payload"] == {"at/~x": written}
    assert line["types"] == {"/at~1~0x": tag}
    assert "key_types" not in line


def test_a_path_of_this_system_comes_back_as_one_of_another_as_a_pure_one() -> None:
    event = Event("a.b", {"path": Path("a/b")})

    line = event.to_jsonl()

    assert type(Event.from_jsonl(line).payload["path"]) is type(Path())
    other = Event.from_jsonl(line.replace("posix_path", "windows_path")).payload["path"]
    assert isinstance(other, PurePath)
    assert other == PureWindowsPath("a/b")


def test_a_path_of_any_system_has_a_form_where_json_is_written() -> None:
    """What an event may hold can be shown, sent and recorded."""
    paths = [Path("a/b"), PurePosixPath("a/b"), PureWindowsPath("C:/a")]

    assert json.loads(to_json(paths)) == ["a/b", "a/b", "C:\\a"]


def test_keys_that_are_no_text_come_back() -> None:
    """Their places in the payload do not change."""
    payload = {5: "a", 1.5: {True: 1, None: (2,)}, uuid.UUID(int=1): "b", dt.date(2026, 1, 1): "c"}
    event = Event("a.b", payload)

    line = json.loads(event.to_jsonl())

    assert line["payload"]["1.5"] == {"true": 1, "null": [2]}
    assert line["key_types"]["/1.5"] == "float"
    assert line["types"] == {"/1.5/null": "tuple"}
    assert same(back(event).payload, event.payload)


def test_keys_with_the_same_text_are_both_kept() -> None:
    """An object with two entries of the same name loses one of them."""
    event = Event("a.b", {"m": {1: "number", "1": (1,)}})

    line = json.loads(event.to_jsonl())

    assert line["payload"] == {"m": [[1, "number"], ["1", [1]]]}
    assert line["types"] == {"/m": "mapping", "/m/1/1": "tuple"}
    assert back(event) == event


def test_an_hour_that_a_clock_shows_twice_comes_back_as_the_same_one() -> None:
    """In a zone with summer time, fold included; and one that it never shows."""
    twice = [dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=fold) for fold in (0, 1)]
    event = Event("a.b", {"twice": twice, "never": dt.datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)})

    again = back(event)

    assert again == event
    assert [moment.fold for moment in again.payload["twice"]] == [0, 1]


def test_a_zone_whose_rules_have_changed_since_keeps_the_instant() -> None:
    """The offset of the line is the one that was true when it was written."""
    line = '{"event_type":"a.b","payload":["2026-07-01T00:00:00+05:00"],"types":{"/0":"datetime[Europe/Berlin]"}}'

    (moment,) = Event.from_jsonl(line).payload

    assert moment == dt.datetime(2026, 6, 30, 19, tzinfo=dt.UTC)
    assert moment.tzinfo is BERLIN


def test_a_payload_of_what_json_knows_has_no_notes() -> None:
    """Lines are as they were."""
    line = json.loads(Event("a.b", {"a": [1, "x", None, True, 2.5, {"b": 2**70}]}).to_jsonl())

    assert not line.keys() & {"types", "key_types"}


def test_a_line_without_notes_is_read_as_before() -> None:
    """What stands in a file already."""
    again = Event.from_jsonl('{"event_type":"a.b","payload":{"at":"2026-01-01","pair":[1,2]},"event_id":"x"}')

    assert again.payload == {"at": "2026-01-01", "pair": [1, 2]}
    assert type(again.payload["at"]) is str


@pytest.mark.parametrize(
    ("value", "comes_back_as"),
    [
        (Colour.RED, "red"),
        (Point(1), {"x": 1}),
        (Place(1, 2), [1, 2]),
        (Nested(y=decimal.Decimal("1.0")), {"y": "1.0"}),
        (pydantic.SecretStr("x"), "**********"),
    ],
)
def test_what_cannot_be_restored_comes_back_as_plain_json(value: object, comes_back_as: object) -> None:
    """Its class is not known to whoever reads the line; what stands around it is."""
    event = Event("a.b", {"value": value, "deep": [(value,)], "amount": decimal.Decimal(1), Colour.RED: 1})

    again = back(event)

    assert same(again.payload["value"], Event("a.b", {"v": comes_back_as}).payload["v"])
    assert type(again.payload["deep"][0]) is tuple
    assert again.payload["amount"] == decimal.Decimal(1)
    assert again.payload["red"] == 1


@pytest.mark.parametrize(("value", "comes_back_as"), [(Place(1, 2), [1, 2]), (Point(1), {"x": 1}), (Colour.RED, "red")])
def test_a_set_of_what_cannot_be_restored_is_a_set_still(value: object, comes_back_as: object) -> None:
    """Although plain JSON has no hash, neither alone nor in a tuple."""
    event = Event("a.b", {"set": {value}, "deep": {(value,)}})

    again = back(event)

    assert [*again.payload["set"]] == [comes_back_as]
    assert [*again.payload["deep"]] == [(comes_back_as,)]


# Models


class Opened(Payload, type="lines.opened"):
    at: dt.datetime
    amount: decimal.Decimal
    tags: frozenset[int]
    pair: tuple[int, str]
    colour: Colour


class Loose(Payload, type="lines.loose"):
    content: bytes
    anything: Any
    nested: Nested | None = None


class Strict(Payload, type="lines.strict", strict=True):
    at: dt.datetime
    tags: set[int]


class Inner(pydantic.RootModel[dict[str, bytes]], frozen=True):
    pass


class Rooted(Payload, type="lines.rooted"):
    inner: Inner


class Aliased(Payload, type="lines.aliased"):
    user: str = pydantic.Field(alias="userName")


class Angry(Payload, type="lines.angry"):
    pair: tuple[int, ...]

    @pydantic.field_validator("pair", mode="before")
    @classmethod
    def no_lists(cls, value: object) -> object:
        return 1 / 0 if isinstance(value, list) else value


def test_a_payload_that_its_model_restores_has_no_notes() -> None:
    """The line of a model is as it was."""
    at, amount = dt.datetime(2026, 1, 1, tzinfo=dt.UTC), decimal.Decimal("1.10")
    opened = Opened(at=at, amount=amount, tags={1}, pair=(1, "a"), colour=Colour.RED)
    event = Event("lines.opened", opened)

    line = json.loads(event.to_jsonl())

    assert not line.keys() & {"types", "key_types"}
    assert back(event) == event


@pytest.mark.parametrize(
    "payload",
    [
        Loose(content=b"\xff\x00", anything={"at": (1, decimal.Decimal(2))}),
        Loose(content=b"plain", anything=None),
        Loose(content=b"", anything=frozenset({1}), nested=Nested(y=decimal.Decimal("1.0"))),
        Strict(at=dt.datetime(2026, 1, 1, tzinfo=ODD), tags={1, 2}),
        Rooted(inner=Inner({"a": b"\xff"})),
        Angry(pair=(1, 2)),
    ],
)
def test_what_a_model_does_not_restore_by_itself_is_noted(payload: Payload) -> None:
    """Bytes, fields of any type, strict models, validators with a will of their own."""
    event = Event(payload.event_type, payload)

    again = back(event)

    assert type(again.payload) is type(payload)
    assert again == event
    assert same(vars(again.payload).get("anything"), vars(event.payload).get("anything"))


@pytest.mark.skipif(tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 11), reason="fields by name came in 2.11")
def test_a_model_with_aliases_comes_back() -> None:
    """Lines have the names of fields, as all else that shows an event."""
    event = Event("lines.aliased", Aliased(userName="ada"))

    assert json.loads(event.to_jsonl())["payload"] == {"user": "ada"}
    assert back(event) == event


def test_a_model_that_no_type_has_comes_back_as_plain_json() -> None:
    """Nobody knows its class from the line."""
    event = Event("lines.unknown", Nested(y=decimal.Decimal("1.0")))

    assert "types" not in json.loads(event.to_jsonl())
    assert back(event).payload == {"y": "1.0"}


# Lines that contradict themselves


@pytest.mark.parametrize(
    ("notes", "says"),
    [
        ({"types": 5}, "'types' is a number, not an object"),
        ({"types": None}, "'types' is null, not an object"),
        ({"key_types": []}, "'key_types' is an array, not an object"),
        ({"types": {"/text": 5}}, "'/text' in 'types' has a number for a tag"),
        ({"types": {"/text": {}}}, "an object for a tag"),
        ({"types": {"text": "date"}}, "'text' in 'types' is no JSON pointer"),
        ({"types": {"/te~2xt": "date"}}, "no JSON pointer"),
        ({"types": {"/nowhere": "date"}}, "'/nowhere' in 'types' points to nothing"),
        ({"types": {"/list/2": "date"}}, "'/list/2' in 'types' points to nothing"),
        ({"types": {"/list/01": "date"}}, "points to nothing"),
        ({"types": {"/list/-": "date"}}, "points to nothing"),
        ({"types": {"/text/0": "date"}}, "points to nothing"),
        ({"key_types": {"/nowhere": "int"}}, "'/nowhere' in 'key_types' points to nothing"),
        ({"types": {"/text": "colour"}}, "a tag that is not known; there are datetime, time, date"),
        ({"types": {"/text": ""}}, "a tag that is not known"),
        ({"types": {"/text": "Date"}}, "a tag that is not known"),
        ({"types": {"/id": "uuid+01:00"}}, "says uuid, and what is there is none"),
        ({"types": {"/id": "uuid[UTC]"}}, "says uuid, and what is there is none"),
        ({"types": {"/n": "decimal"}}, "says decimal, which is written as text, not as a number"),
        ({"types": {"/text": "tuple"}}, "says tuple, which is written as an array, not as text"),
        ({"types": {"": "tuple"}}, "'' in 'types' says tuple, which is written as an array, not as an object"),
        ({"types": {"/list": "mapping"}}, "says mapping, and what is there is none"),
        ({"types": {"/pairs": "mapping"}}, "says mapping, and what is there is none"),
        ({"types": {"/lists": "mapping"}}, "says mapping, and what is there is none"),
        ({"types": {"/list/0": "datetime", "/list": "tuple"}}, "'/list/0' in 'types' says datetime"),
        *(
            ({"types": {"/text": tag}}, f"says {tag}, and what is there is none")
            for tag in ("datetime", "date", "time")
        ),
        *(({"types": {"/text": tag}}, f"says {tag}, and what") for tag in ("uuid", "timedelta", "decimal")),
        ({"types": {"/wide": "bytes"}}, "says bytes, and what is there is none"),
        ({"types": {"/naive": "datetime+01:00"}}, "says datetime, and what is there is none"),
        ({"types": {"/naive": "datetime[Europe/Berlin]"}}, "says datetime, and what is there is none"),
        ({"types": {"/aware": "datetime[Europe/Atlantis]"}}, "says datetime, and what is there is none"),
        ({"types": {"/aware": "datetime[Europe]"}}, "says datetime, and what is there is none"),
        ({"types": {"/aware": "datetime[../../etc/passwd]"}}, "says datetime, and what is there is none"),
        ({"types": {"/aware": "datetime+1:00"}}, "says datetime, and what is there is none"),
        ({"types": {"/aware": "datetime+99:00"}}, "says datetime, and what is there is none"),
        ({"types": {"/far": "timedelta"}}, "says timedelta, and what is there is none"),
        ({"key_types": {"/text": "int"}}, "says int, and the key there is none"),
        ({"key_types": {"/text": "bool"}}, "says bool, and the key there is none"),
        ({"key_types": {"/text": "none"}}, "says none, and the key there is none"),
        ({"key_types": {"/text": "decimal"}}, "has a tag that no key has; there are datetime"),
        ({"key_types": {"/text": "?"}}, "has a tag that no key has"),
        ({"key_types": {"/list/0": "int"}}, "'/list/0' in 'key_types' is no entry of an object"),
        ({"key_types": {"": "int"}}, "is the payload, which has no key"),
    ],
)
def test_notes_that_do_not_fit_are_refused_without_any_value(notes: dict[str, Any], says: str) -> None:
    """With the place and what is wrong there."""
    payload = {"text": SECRET, "list": [SECRET, 1], "n": 1, "wide": "日", "pairs": [["a", 1], "ab"], "id": "0" * 32}
    payload |= {"naive": "2026-01-01T00:00:00", "aware": "2026-01-01T00:00:00Z", "far": "P99999999999Y"}
    line = json.dumps({"event_type": "a.b", "payload": {**payload, "lists": [[[], 1]]}, **notes})

    with pytest.raises(SerializationError) as caught:
        Event.from_jsonl(line)

    assert says in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.event_type == "a.b"


@pytest.mark.parametrize("fields", [{"event_type": ["a.b"]}, {"event_type": 5}, {"headers": [1]}, {"headers": "x"}])
def test_an_envelope_of_the_wrong_kinds_is_refused(fields: dict[str, Any]) -> None:
    """With an error of Aperion's own."""
    line = json.dumps({"event_type": "a.b", "payload": {}, **fields})

    with pytest.raises(SerializationError, match="is not an event"):
        Event.from_jsonl(line)


@given(st.dictionaries(TEXT | st.sampled_from(["", "/a", "/a/0", "/b", "/b/x"]), TEXT | st.just("tuple") | st.none()))
def test_whatever_stands_in_the_notes_a_line_is_read_or_refused(notes: dict[str, Any]) -> None:
    """Nothing else is raised."""
    line = json.dumps({"event_type": "a.b", "payload": {"a": [1], "b": {"x": "y"}}, "types": notes, "key_types": notes})

    try:
        assert Event.from_jsonl(line).event_type == "a.b"
    except aperion.ValidationError as error:
        assert str(error)


def test_a_pointer_of_any_length_is_refused_in_a_few_words() -> None:
    """It does not exhaust the stack, and its error is short."""
    line = json.dumps({"event_type": "a.b", "payload": {"a": {}}, "types": {"/a" * 100_000: "date"}})

    with pytest.raises(SerializationError, match="points to nothing") as caught:
        Event.from_jsonl(line)

    assert len(str(caught.value)) < 300
