"""What the bus does not accept: names, payloads, sizes; and what a refused event leaves behind."""

from __future__ import annotations

import datetime as dt
import enum
import json
import uuid
from pathlib import Path
from typing import Any

import anyio
import pydantic
import pytest

import aperion
from aperion import Event, EventBus, FailureReason, Naming, extract_action, extract_domain, is_valid_event_type
from aperion.catalogue import explain

pytestmark = pytest.mark.anyio


class OrderPlaced(aperion.Payload, type="valid.order_placed"):
    order_id: int
    note: str = ""
    items: list[dict[str, Any]] = []


VALID = ["user.login", "chat.user_input", "api.request.received", "metrics.cpu.usage", "a.b", "user123.login456"]
INVALID = [
    "",
    "login",
    ".login",
    "user.",
    "User.Login",
    "user-login",
    "user.Login",
    "123.action",
    "a..b",
    "user.login\n",
    " user.login",
    "a." + "b" * 300,
]


@pytest.mark.parametrize("name", VALID)
async def test_valid_names_are_accepted(name: str) -> None:
    """VAL-1 VAL-8: by the function and by the bus."""
    assert is_valid_event_type(name)
    async with EventBus() as bus:
        assert (await bus.emit(name, {})).event.event_type == name


@pytest.mark.parametrize("name", INVALID)
async def test_invalid_names_are_refused(name: str) -> None:
    """VAL-2 VAL-3 VAL-8 VAL-a..g: with the rule in the message; neither delivered nor counted as accepted."""
    got: list[str] = []
    async with EventBus() as bus:
        bus.subscribe(lambda e: got.append(e.event_type), "*", where=lambda e: not e.event_type.startswith("system."))
        assert not is_valid_event_type(name)
        with pytest.raises(aperion.EventTypeError, match=r"must match|non-empty"):
            await bus.emit(name, {})
        with pytest.raises(aperion.EventTypeError):
            await bus.dispatch(name, {})
        with pytest.raises(aperion.EventTypeError):
            bus.emit_nowait(name, {})
        stats = bus.stats()

        assert (stats.accepted, stats.rejected) == (0, 3)
        assert [letter.reason for letter in bus.dead_letters.list()] == [FailureReason.VALIDATION_ERROR] * 3
    assert got == []


@pytest.mark.parametrize(
    "naming",
    [Naming(), Naming(unknown="allow"), Naming(unknown="refuse"), Naming(enabled=False), Naming(allowed_domains={"a"})],
    ids=["default", "allow", "refuse", "off", "domains"],
)
@pytest.mark.parametrize(
    "name", ["valid.order_placed", "valid.order_plaecd", "a.b", "far.away", "system.it", "a\x00", *INVALID]
)
async def test_what_emit_refuses_for_its_name_is_explained_as_refused(naming: Naming, name: str) -> None:
    """A law: by the naming of this very bus, and in the words of the error; what nearly is a known type included."""
    refusal, near = None, None
    async with EventBus(naming=naming) as bus:
        try:
            await bus.emit(name, {"order_id": 1})
        except aperion.EventTypeError as error:
            refusal, near = str(error), getattr(error, "near", None)

        found = explain(bus, name)

    assert (found.refusal, found.valid) == (refusal, refusal is None)
    assert near is None or found.near[0] == near == "valid.order_placed"
    assert explain(bus, "system.startup").valid  # the bus emits it itself


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    "key", [1, 1.5, True, None, uuid.UUID(int=7), dt.date(2026, 1, 2), dt.time(3, 4), Colour.RED], ids=repr
)
async def test_a_key_that_json_can_write_is_accepted_and_kept(key: Any, tmp_path: Path) -> None:
    """As the page about the log says: handlers get it as it is, the log has its text, a line gives it back."""
    got: list[Any] = []
    async with EventBus(audit=tmp_path / "log.jsonl") as bus:
        bus.subscribe(lambda event: got.append(event.payload), "key.odd")
        receipt = await bus.emit("key.odd", {key: 2})
        await receipt.settled()

    assert got == [{key: 2}]
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    [payload] = [record["payload"] for record in records if record["kind"] == "accepted"]
    assert list(payload.values()) == [2]
    restored = Event.from_jsonl(receipt.event.to_jsonl()).payload
    assert restored == ({"red": 2} if key is Colour.RED else {key: 2})  # enums come back as their value
    assert "`{1: 2}` is accepted" in (Path(__file__).parents[2] / "docs/audit.md").read_text()


@pytest.mark.parametrize("key", [(1, 2), b"x", frozenset({1}), object()], ids=lambda key: type(key).__name__)
async def test_a_key_that_json_cannot_write_is_refused(key: Any) -> None:
    """With the place and the kind of it."""
    async with EventBus() as bus:
        with pytest.raises(aperion.SerializationError, match=rf"has a key of type {type(key).__name__}"):
            await bus.emit("key.odd", {key: 2})


@pytest.mark.parametrize("name", [*VALID, "chat.message.sent", "", "nope", None])
def test_domain_and_action(name: str) -> None:
    """VAL-7: what stands before and after the first dot; None for what is no name."""
    domain, _, action = (name or "").partition(".")

    assert extract_domain(name) == (domain if action else None)
    assert extract_action(name) == (action or None)


async def test_naming_can_be_tightened() -> None:
    """VAL-4 VAL-10 VAL-a..g: domains, sources and a pattern of one's own are enforced by the bus."""
    naming = Naming(allowed_domains={"user", "order"}, require_source=True, pattern=r"[a-z]+\.[a-z]+")
    async with EventBus(naming=naming) as bus:
        with pytest.raises(aperion.EventTypeError, match="allowed domains: order, user"):
            await bus.emit("chat.sent", {}, source="s")
        with pytest.raises(aperion.EventTypeError, match="has no source"):
            await bus.emit("user.login", {})
        with pytest.raises(aperion.EventTypeError, match="does not match the pattern"):
            await bus.emit("user.log_in", {}, source="s")
        with pytest.raises(aperion.EventTypeError, match="domain"):
            bus.subscribe(print, "chat.sent")
        await bus.emit("user.login", {}, source="s")


async def test_naming_can_be_switched_off() -> None:
    """VAL-9: any name that is not empty; patterns follow."""
    got: list[str] = []
    async with EventBus(naming=Naming(enabled=False)) as bus:
        bus.subscribe(lambda e: got.append(e.event_type), ["Login", "User-Login", "Chat.*"])
        for name in ("Login", "User-Login", "Chat.Sent"):
            await bus.dispatch(name, {})
        with pytest.raises(aperion.EventTypeError):
            await bus.emit("  ", {})

    assert got == ["Login", "User-Login", "Chat.Sent"]


@pytest.mark.parametrize("name", ["system.startup", "system.custom_event"])
async def test_the_domain_system_is_the_bus_s_own(name: str) -> None:
    """VAL-5 SYS-c: emitting there is refused, also with naming switched off; listening is fine."""
    for naming in (Naming(), Naming(enabled=False)):
        async with EventBus(naming=naming) as bus:
            bus.subscribe(print, "system.startup")
            with pytest.raises(aperion.EventTypeError, match="reserved"):
                await bus.emit(name, {})


@pytest.mark.parametrize("options", [{"unknown": "maybe"}, {"allowed_domains": "user"}, {"pattern": "("}])
def test_a_naming_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    """When it is declared."""
    with pytest.raises(aperion.ConfigurationError):
        Naming(**options)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("valid.order_plcaed", True),  # two letters swapped
        ("valid.order_place", True),
        ("valid.order_placedd", True),
        ("valid.order_plaqed", True),
        ("valid.order_shipped", False),
        ("other.order_placed", False),
    ],
)
async def test_a_type_one_typing_error_away_from_a_known_one_is_refused(typed: str, near: bool) -> None:  # noqa: FBT001
    """At emit and at registration, with what was probably meant; other unknown types are fine."""
    async with EventBus() as bus:
        if not near:
            await bus.emit(typed, {})
            bus.subscribe(print, typed)
            return
        with pytest.raises(aperion.UnknownEventTypeError, match="did you mean 'valid.order_placed'"):
            await bus.emit(typed, {})
        with pytest.raises(aperion.UnknownEventTypeError, match="did you mean"):
            bus.subscribe(print, typed)
    async with EventBus(naming=Naming(unknown="allow")) as bus:
        await bus.emit(typed, {})


async def test_every_type_can_be_required_to_have_a_model() -> None:
    """Naming(unknown='refuse')."""
    async with EventBus(naming=Naming(unknown="refuse")) as bus:
        await bus.emit("valid.order_placed", {"order_id": 1})
        with pytest.raises(aperion.UnknownEventTypeError, match="declare one"):
            await bus.emit("never.declared", {})


def test_versions_are_not_typing_errors() -> None:
    """order.v1 and order.v2 differ by one letter and are both meant."""

    class First(aperion.Payload, type="valid.invoice_v1"): ...

    EventBus().subscribe(print, "valid.invoice_v2")
    assert First.event_type == "valid.invoice_v1"


@pytest.mark.parametrize("form", ["instance", "mapping", "type and instance"])
async def test_a_payload_with_a_model_is_validated_in_every_form(form: str) -> None:
    """VAL-6: the handler gets the model; defaults are filled in."""
    got: list[OrderPlaced] = []
    async with EventBus() as bus:

        @bus.on(OrderPlaced)
        async def handler(event: aperion.Event[OrderPlaced]) -> None:
            got.append(event.payload)

        model = OrderPlaced(order_id=1)
        if form == "instance":
            outcomes = await bus.dispatch(model)
        elif form == "mapping":
            outcomes = await bus.dispatch("valid.order_placed", {"order_id": 1})
        else:
            outcomes = await bus.dispatch("valid.order_placed", model)

    assert outcomes.ok
    assert got == [model]


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        ({}, ["order_id"]),
        ({"order_id": "hunter2"}, ["order_id"]),
        ({"order_id": 1, "extra": "hunter2"}, ["extra"]),
        ({"order_id": 1, "items": ["hunter2"]}, ["items.0"]),
        (OrderPlaced.model_construct(order_id="hunter2"), ["order_id"]),
        (OrderPlaced(order_id=1).model_copy(update={"note": 5}), ["note"]),
    ],
)
async def test_what_does_not_fit_the_model_is_refused_without_its_values(payload: Any, fields: list[str]) -> None:  # noqa: ANN401
    """VAL-6: fields are named, values are not; a dead letter stays, redacted as shown."""
    async with EventBus() as bus:
        with pytest.raises(aperion.PayloadError) as caught:
            await bus.emit("valid.order_placed", payload)
        (letter,) = bus.dead_letters.list()

    assert list(caught.value.fields) == fields
    assert fields[0] in str(caught.value)
    assert "hunter2" not in str(caught.value) + letter.error + letter.traceback
    assert caught.value.__cause__ is None
    assert letter.subscription is None
    assert letter.event.event_type == "valid.order_placed"


async def test_the_words_of_a_users_validator_are_not_shown() -> None:
    """They may quote the value."""

    class Strict(aperion.Payload, type="valid.strict"):
        password: str

        @pydantic.field_validator("password")
        @classmethod
        def check(cls, value: str) -> str:
            raise ValueError(f"{value} is too weak")

    async with EventBus() as bus:
        with pytest.raises(aperion.PayloadError, match="password: value error") as caught:
            await bus.emit("valid.strict", {"password": "hunter2"})

    assert "hunter2" not in str(caught.value)
    assert Strict.event_type == "valid.strict"


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"x": value}
    return value


def _cycle() -> dict[str, Any]:
    value: dict[str, Any] = {"a": [1]}
    value["a"].append(value)
    return value


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (_cycle(), r"payload\.a\[1\] contains itself"),
        (_nested(2_000), "levels deep"),
        ({"a": "\ud800"}, "payload.a is text with a lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ({"a": [1.0, float("nan")]}, r"payload\.a\[1\] is nan"),
        ({"a": float("-inf")}, "-inf"),
        ({(1, 2): 3}, "key of type tuple"),
        ({"a": object()}, "of type object"),
        ({"a": lambda: None}, "of type function"),
    ],
    ids=range(9),
)
async def test_a_payload_that_cannot_be_serialised_is_refused(payload: dict[Any, Any], says: str) -> None:
    """Each with the place and the reason; what was accepted before is not lost."""
    async with EventBus() as bus:
        before = await bus.emit("free.event", {"n": 1})
        with pytest.raises(aperion.SerializationError, match=says):
            await bus.emit("free.event", payload)
        with anyio.fail_after(5):
            assert (await before.settled()).ok
        (letter,) = bus.dead_letters.list()

    assert letter.reason is FailureReason.SERIALIZATION_ERROR
    assert letter.event.payload == {"not_serialisable": "dict"}


async def test_text_that_cannot_be_written_is_found_in_models_too() -> None:
    """The fast way for flat models does not skip the check; big integers are fine."""

    class Flat(aperion.Payload, type="valid.flat"):
        text: str = ""
        number: int = 0

    async with EventBus() as bus:
        for _ in range(2):  # the second takes the fast way
            await bus.emit(Flat(text="fine", number=2**80))
            with pytest.raises(aperion.SerializationError, match="text is text with a lone surrogate"):
                await bus.emit(Flat.model_construct(text="\ud800"))
            with pytest.raises(aperion.SerializationError, match="lone surrogate"):
                await bus.emit(Flat(text="\ud800"))
            with pytest.raises(aperion.PayloadError, match="number"):
                await bus.emit(Flat.model_construct(number="many"))
            with pytest.raises(aperion.PayloadError, match="number"):
                await bus.emit(Flat().model_copy(update={"number": "many"}))


@pytest.mark.parametrize("form", ["mapping", "model"])
async def test_a_payload_over_the_limit_is_refused(form: str) -> None:
    """With its size and the limit; one just below passes."""

    class Big(aperion.Payload, type="valid.big"):
        text: str

    async with EventBus(max_payload_bytes=1_000) as bus:

        def emit(size: int) -> aperion.Receipt:
            text = "x" * size
            return bus.emit_nowait(Big(text=text)) if form == "model" else bus.emit_nowait("free.event", {"text": text})

        for _ in range(2):
            emit(900)
            with pytest.raises(aperion.PayloadTooLargeError, match="1,000 are allowed") as caught:
                emit(1_100)
        assert caught.value.size > 1_100
        assert bus.dead_letters.list()[0].event.payload == {"too_large": "Big" if form == "model" else "dict"}
    assert EventBus()._intake.max_payload_bytes == 1_048_576


async def test_every_value_that_json_can_show_is_accepted() -> None:
    """Dates, UUIDs, Decimals, paths, enums, sets, bytes, dataclasses, models, big integers, keys that are no text."""
    import dataclasses  # noqa: PLC0415
    import datetime as dt  # noqa: PLC0415
    import decimal  # noqa: PLC0415
    import enum  # noqa: PLC0415
    import pathlib  # noqa: PLC0415
    import uuid  # noqa: PLC0415

    @dataclasses.dataclass
    class Point:
        x: int

    class Colour(enum.Enum):
        RED = "red"

    class Nested(pydantic.BaseModel):
        y: int

    payload = {
        "datetime": dt.datetime.now(dt.UTC),
        "uuid": uuid.uuid4(),
        "decimal": decimal.Decimal("1.50"),
        "path": pathlib.Path("a/b"),
        "enum": Colour.RED,
        "set": {1, 2},
        "bytes": b"abc",
        "bytearray": bytearray(b"abc"),
        "dataclass": Point(1),
        "model": Nested(y=2),
        "big": 2**80,
        "tuple": (1, "x"),
        5: "int key",
        None: "no key",
    }
    async with EventBus() as bus:
        receipt = await bus.emit("free.event", payload)

    again = aperion.Event.from_jsonl(receipt.event.to_jsonl())
    assert again.payload["decimal"] == decimal.Decimal("1.50")
    assert again.payload["dataclass"] == {"x": 1}
    assert again.payload["model"] == {"y": 2}
    assert again.payload["big"] == 2**80
    assert again.payload[5] == "int key"


@pytest.mark.parametrize(
    "details",
    [{"key": ""}, {"key": 5}, {"source": 5}, {"event_id": ""}, {"correlation_id": "two words"}, {"headers": {"a": 1}}],
)
async def test_details_that_make_no_sense_are_refused(details: dict[str, Any]) -> None:
    """With the name and the value."""
    async with EventBus() as bus:
        with pytest.raises(aperion.ValidationError, match=next(iter(details))):
            await bus.emit("chat.sent", {}, **details)
        with pytest.raises(TypeError, match="colour"):
            await bus.emit("chat.sent", {}, colour=1)  # type: ignore[call-overload]


def test_models_are_declared_rightly_or_not_at_all() -> None:
    """A bad type, one that another model has, a model that is not frozen, one without type."""
    with pytest.raises(aperion.ConfigurationError, match="no event type|not an event type"):

        class Bad(aperion.Payload, type="Bad"): ...

    with pytest.raises(aperion.ConfigurationError, match="already has"):

        class Again(aperion.Payload, type="valid.order_placed"): ...

    with pytest.raises(aperion.ConfigurationError, match="frozen"):

        class Thawed(aperion.Payload, type="valid.thawed", frozen=False): ...

    with pytest.raises(pydantic.ValidationError):
        OrderPlaced(order_id=1).order_id = 2  # type: ignore[misc]


async def test_a_model_without_a_type_cannot_be_emitted() -> None:
    """It says how to give it one."""

    class Typeless(aperion.Payload):
        n: int = 0

    async with EventBus() as bus:
        with pytest.raises(aperion.EventTypeError, match="type='domain.action'"):
            await bus.emit(Typeless())
        with pytest.raises(aperion.EventTypeError):
            await bus.emit(42)  # type: ignore[call-overload]
        with pytest.raises(aperion.PayloadError, match="second payload"):
            await bus.emit(OrderPlaced(order_id=1), {"order_id": 1})  # type: ignore[call-overload]
        with pytest.raises(aperion.PayloadError, match=r"valid\.order_placed"):
            await bus.emit("free.event", OrderPlaced(order_id=1))


async def test_lists_in_a_model_cannot_be_changed_by_anyone() -> None:
    """EVT-a/c/d: frozen models freeze their fields only; the bus freezes what the fields hold."""
    model = OrderPlaced(order_id=1, items=[{"sku": "a"}])
    async with EventBus() as bus:
        receipt = await bus.emit(model)
    model.items.append({"sku": "late"})

    assert receipt.event.payload.items == [{"sku": "a"}]
    with pytest.raises(TypeError):
        receipt.event.payload.items.append({})
    with pytest.raises(TypeError):
        receipt.event.payload.items[0]["sku"] = "b"


async def test_a_type_that_gets_its_model_later_is_validated_from_then_on(bus: EventBus, request: Any) -> None:
    """And what is one typing error away from it is refused from then on."""
    domain = f"late_{abs(hash(request.node.name))}"  # models are known by name until they are collected
    right, wrong = f"{domain}.arrived", f"{domain}.arived"
    await bus.emit(right, {"late": True})
    await bus.emit(wrong, {"late": True})

    class Arrived(aperion.Payload, type=right):
        minutes: int

    with pytest.raises(aperion.PayloadError):
        await bus.emit(right, {"late": True})
    with pytest.raises(aperion.EventTypeError, match=right):
        await bus.emit(wrong, {"late": True})
    assert (await bus.emit(right, {"minutes": 5})).event.payload == Arrived(minutes=5)


class _Raising(dict):
    def items(self):
        raise RuntimeError("hunter2")


@pytest.mark.parametrize("payload", [_Raising(a=1), {"inner": _Raising(a=1)}])
async def test_a_value_that_raises_when_it_is_read_rejects_the_event(payload) -> None:
    """VAL-8: as any other that cannot be written down, with a dead letter, and without its words."""
    async with aperion.EventBus() as bus:
        with pytest.raises(aperion.ValidationError, match="cannot be read: RuntimeError") as raised:
            await bus.emit("user.login", payload)

        assert "hunter2" not in str(raised.value)
        assert bus.stats().rejected == 1
        assert len(bus.dead_letters) == 1
