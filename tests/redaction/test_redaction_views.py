"""Texts of word processors and web pages: other spaces, hyphens, full-width and invisible characters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aperion import Redactor
from aperion.redaction import Mode
from tests.redaction.test_redaction_laws import PIECES

SPACES = "\u00a0\u2007\u2009\u202f\u3000"
HYPHENS = "\u2010\u2011\u2012\u2013\u2212"
UNSEEN = "\u200b\u200d\u2060\ufeff\u00ad"
FULL_WIDTH = {char: chr(char + 0xFEE0) for char in range(ord("!"), ord("~") + 1)}
SPACED = (
    "GB33 BUKB 2020 1555 5555 55",
    "card 4111 1111 1111 1111 was charged",
    "+44 20 7946 0958",
    "phone 030 2312 5123",
    "Authorization: Bearer 7Kd3Qa9Zx2Mf5Wb8",
    "password: hunter2!x",
    "the password is hunter2!",
)
DASHED = ("4111-1111-1111-1111", "ssn 536-22-1234", "536-22-1234", "212-555-0187", "+1-212-555-0187")


def found(text: str) -> str:
    """Return what is written for a text whose odd characters are all plain."""
    return Redactor().redact_text(text)


@pytest.mark.parametrize("space", SPACES, ids=ascii)
@pytest.mark.parametrize("text", SPACED)
def test_any_space_separates(text: str, space: str) -> None:
    """Those that stay are written as they were."""
    assert found(text.replace(" ", space)) == found(text).replace(" ", space)
    assert found(text) != text


@pytest.mark.parametrize("hyphen", HYPHENS, ids=ascii)
@pytest.mark.parametrize("text", DASHED)
def test_any_hyphen_separates(text: str, hyphen: str) -> None:
    assert found(text.replace("-", hyphen)) == found(text)
    assert found(text) != text


@pytest.mark.parametrize("char", UNSEEN, ids=ascii)
@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("mail ada@exa{}mple.com now", "mail [REDACTED_EMAIL] now"),
        ("4111 1111 11{}11 1111", "[REDACTED_CC]"),
        ("pass{}word=hunter2", "pass{}word=[REDACTED]"),
        ("a{}b ghp_7Kd3Qa9Z{}x2Mf5Wb8 c{}d", "a{}b [REDACTED_GITHUB_TOKEN] c{}d"),
        ('[{"secret{}": 7}, "{}"]', '[{"secret{}": "[REDACTED]"}, "{}"]'),
    ],
)
def test_what_nobody_sees_hides_nothing(text: str, clean: str, char: str) -> None:
    assert found(text.replace("{}", char)) == clean.replace("{}", char)


@pytest.mark.parametrize("text", ["ada@example.com", "4111111111111111", "536-22-1234", "+442079460958"])
def test_full_width_forms_are_read(text: str) -> None:
    assert found(f"用户 {text.translate(FULL_WIDTH)} ok") == f"用户 {found(text)} ok"


@pytest.mark.parametrize(
    "text", ["10\u00a0000\u202f€, seit 2010\u20132020", "家族\u200d", "ＡＢＣ\u3000１２", "\ufeff{}"]
)
def test_a_text_with_nothing_to_hide_stays_as_it_is_written(text: str) -> None:
    assert found(text) == text


def test_a_users_pattern_may_mean_such_characters() -> None:
    redactor = Redactor(patterns={"ROOM": "R\u2013\\d{3}", "DESK": "D-\\d{3}"})

    assert redactor.redact_text("R\u2013123 and D\u2013123 \u2013") == "[REDACTED_ROOM] and [REDACTED_DESK] \u2013"


def test_every_value_has_its_own_length_and_parts_are_of_the_plain_view() -> None:
    redactor = Redactor(modes={"CC": Mode.PARTIAL})
    text = "a@b.co\u00a0x\u00a0ada.lovelace@example.com\u00a0y\u00a0４１１１ 1111 1111 1111\u00a0z"

    assert redactor.redact_text(text) == (
        "[REDACTED_EMAIL]\u00a0x\u00a0[REDACTED_EMAIL]\u00a0y\u00a0[REDACTED_CC:1111]\u00a0z"
    )


def test_more_values_than_marks_are_hidden_all_the_same() -> None:
    text = "\u00a0".join(f"user{number}@example.com" for number in range(7_000))

    shown = Redactor(max_text=10**6).redact_text(text)

    assert "example.com" not in shown
    assert "user" not in shown


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(
        st.one_of(st.sampled_from(PIECES), st.sampled_from([*SPACES, *HYPHENS, *UNSEEN, "＠", "："])), max_size=14
    )
)
def test_twice_changes_nothing_more(pieces: list[str]) -> None:
    redactor = Redactor()

    once = redactor.redact_text("".join(pieces))

    assert redactor.redact_text(once) == once
    assert redactor.failures == 0
