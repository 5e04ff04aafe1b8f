"""What pydantic says of an input it refused, as an entry of a payload: which rule and where, never the input."""

from __future__ import annotations

import json
from collections import Counter
from types import MappingProxyType
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import AnyUrl, BaseModel, Field, ValidationError

from aperion import Public, Redactor
from aperion.redaction import Mode

CANARY = "zq-refused-4f1c9"


class Inner(BaseModel):
    answer: int


class Form(BaseModel):
    number: int
    short: Annotated[str, Field(max_length=3)]
    choice: Literal["a", "b"]
    shape: Annotated[str, Field(pattern="^a$")]
    link: AnyUrl
    id: UUID
    inner: Inner
    items: list[int]
    missing: str


@pytest.fixture
def errors() -> ValidationError:
    names = ("number", "short", "choice", "shape", "link", "id")
    with pytest.raises(ValidationError) as caught:
        Form.model_validate({**dict.fromkeys(names, CANARY), "inner": {"answer": [CANARY]}, "items": [1, CANARY]})
    return caught.value


@pytest.mark.parametrize("kind", ["python", "json"])
def test_what_pydantic_refused_is_hidden_in_its_errors(kind: str, errors: ValidationError) -> None:
    """The rule, the place and the message stay."""
    details: Any = errors.errors() if kind == "python" else json.loads(errors.json())

    shown: Any = Redactor().redact(details)

    assert {error["type"] for error in shown} >= {"int_parsing", "string_too_long", "literal_error", "missing"}
    for before, after in zip(details, shown, strict=True):
        hidden = {"input", "ctx"} & before.keys()
        assert after == before | {"loc": list(before["loc"])} | dict.fromkeys(hidden, "[REDACTED]")
    assert CANARY in str(details)
    assert CANARY not in str(shown)


def test_they_are_found_at_any_depth_and_in_any_mapping(errors: ValidationError) -> None:
    """As FastAPI answers with them, in a list of a body in a line of a log."""
    frozen = [MappingProxyType(dict(error)) for error in errors.errors()]
    line = {"status": 422, "body": [{"detail": errors.errors()}, {"detail": {"deeper": frozen}}]}
    redactor, report = Redactor(), Counter[str]()

    shown = redactor.redact(line, report)

    assert CANARY not in str(shown)
    assert report.keys() == {"KEY"}
    assert redactor.redact(shown) == shown


@pytest.mark.parametrize("left_out", ["type", "loc", "msg"])
def test_an_input_of_something_else_stays(left_out: str) -> None:
    """All three names tell an error from a message, a widget or a step of a pipeline."""
    payload = {"type": "a", "loc": ["b"], "msg": "c", "input": "d", "ctx": {"e": 1}}
    del payload[left_out]

    assert Redactor().redact(payload) == payload


class Answer(BaseModel):
    body: Annotated[Any, Public()]


@pytest.mark.parametrize("options", [{"enabled": False}, {"skip_types": {"KEY"}}, {"default_keys": False}], ids=str)
def test_who_turns_the_names_off_sees_the_input(options: dict[str, Any]) -> None:
    """It is hidden for its name; so it is shown where it is marked as public."""
    payload = {"type": "a", "loc": ["b"], "msg": "c", "input": "d", "ctx": {"e": 1}}

    assert Redactor(**options).redact(payload) == payload
    assert Redactor().redact(Answer(body=payload)) == {"body": payload}


def test_an_input_has_the_modes_of_a_name() -> None:
    """It may be left out, for its type or for its own name."""
    payload = {"type": "a", "loc": ["b"], "msg": "c", "input": "d"}
    without = {"type": "a", "loc": ["b"], "msg": "c"}

    assert Redactor(modes={"KEY": Mode.DROP}).redact(payload) == without
    assert Redactor(key_modes={"input": Mode.DROP}).redact(payload) == without
