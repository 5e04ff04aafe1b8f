"""What users can change about the redactor: modes, types, names, patterns; and what it refuses."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import pytest

from aperion import Redactor
from aperion.errors import ConfigurationError
from aperion.redaction import Mode, RedactionKey

KEY = RedactionKey("k1", b"0123456789abcdef")
OTHER = RedactionKey("k2", b"fedcba9876543210")


def test_drop_leaves_the_entry_out() -> None:
    """Of a mapping or a list; inside a longer text it becomes a marker."""
    redactor = Redactor(modes={"IP": Mode.DROP}, key_modes={"password": Mode.DROP})

    shown = redactor.redact({"password": "x", "ip": "10.0.0.1", "ips": ["10.0.0.1", "b"], "note": "at 10.0.0.1"})

    assert shown == {"ips": ["b"], "note": "at [REDACTED]"}


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("EMAIL", "Ada@Example.com", "[REDACTED_EMAIL:example.com]"),
        ("CC", "4111 1111 1111 1111", "[REDACTED_CC:1111]"),
        ("PHONE", "+44 20 7946 0958", "[REDACTED_PHONE:0958]"),
        ("IBAN", "GB33 BUKB 2020 1555 5555 55", "[REDACTED_IBAN:5555]"),
    ],
)
def test_partial_shows_the_end(kind: str, value: str, shown: str) -> None:
    """Of cards, phones and accounts; of an e-mail its domain."""
    assert Redactor(modes={kind: Mode.PARTIAL}).redact_text(f"to {value}") == f"to {shown}"


@pytest.mark.parametrize("kind", ["JWT", "KEY", "PASSWORD", "AWS_KEY", "SSN", "GITHUB_TOKEN"])
def test_secrets_are_never_shown_in_part(kind: str) -> None:
    """Nor is what has too few digits to spare."""
    with pytest.raises(ConfigurationError, match="cannot be shown in part"):
        Redactor(modes={kind: Mode.PARTIAL})


def test_a_pseudonym_is_the_same_for_the_same_value_and_differs_by_type_and_key() -> None:
    """80 bits of it, however the value is written."""
    redactor = Redactor(modes={"EMAIL": Mode.PSEUDONYM}, key_modes={"user_id": Mode.PSEUDONYM}, key=KEY)

    first = redactor.redact({"a": "ada@example.com", "user_id": "ada@example.com"})
    second = redactor.redact({"a": "ADA@example.com", "user_id": "ada@example.com"})
    other = Redactor(modes={"EMAIL": Mode.PSEUDONYM}, key=OTHER).redact_text("ada@example.com")

    assert first == second
    assert isinstance(first, dict)
    assert re.fullmatch(r"\[REDACTED_EMAIL:k1:[a-z2-7]{16}\]", first["a"])
    assert re.fullmatch(r"\[REDACTED_USER_ID:k1:[a-z2-7]{16}\]", first["user_id"])
    assert first["a"][-17:] != first["user_id"][-17:]
    assert other[-17:] != first["a"][-17:]


def test_numbers_and_text_under_a_name_get_pseudonyms() -> None:
    """One can still count users."""
    redactor = Redactor(key_modes={"user_id": Mode.PSEUDONYM}, key=KEY)

    shown = [redactor.redact({"user_id": n})["user_id"] for n in (1, 2, 1, "1")]  # type: ignore[index]

    assert shown[0] == shown[2] == shown[3] != shown[1]


def test_what_is_encrypted_can_be_revealed_by_its_key_and_by_no_other() -> None:
    """And only as the type it was."""
    pytest.importorskip("cryptography")
    redactor = Redactor(modes={"EMAIL": Mode.ENCRYPT}, key=KEY)

    marker = redactor.redact_text("ada@example.com")

    assert "ada" not in marker
    assert redactor.redact_text(marker) == marker
    assert redactor.reveal(marker) == "ada@example.com"
    assert Redactor(modes={"EMAIL": Mode.ENCRYPT}, key=OTHER, previous_keys=[KEY]).reveal(marker) == "ada@example.com"
    for broken in (marker.replace("EMAIL", "PHONE"), marker[:-3] + "AA]"):
        with pytest.raises(ConfigurationError, match="was changed"):
            redactor.reveal(broken)
    with pytest.raises(ConfigurationError, match="no key with the id 'k1'"):
        Redactor(key=OTHER).reveal(marker)
    with pytest.raises(ConfigurationError, match="no encrypted value"):
        redactor.reveal("[REDACTED_EMAIL]")


def test_a_marker_that_somebody_made_up_hides_nothing() -> None:
    """Only what this redactor could have written is left alone."""
    assert Redactor().redact_text("[REDACTED_EMAIL:ada@example.com]") != "[REDACTED_EMAIL:ada@example.com]"
    assert "4111" not in Redactor().redact_text("[REDACTED_CC:4111111111111111]")


def test_types_can_be_left_out_or_chosen() -> None:
    """By name."""
    text = "10.0.0.1 ada@example.com password=x B-123456"

    assert Redactor(skip_types={"IP", "KEY"}).redact_text(text) == "10.0.0.1 [REDACTED_EMAIL] password=x B-123456"
    only = Redactor(only_types={"IP"}, patterns={"BADGE": r"B-\d{6}"})
    assert only.redact_text(text) == "[REDACTED_IP] ada@example.com password=x [REDACTED_BADGE]"
    assert only.redact({"password": "x"}) == {"password": "x"}


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"E\d{4,8}", "E12345"),
        (r"(?:AB|CD)-[0-9]{2,6}", "AB-1234"),
        (r"\bid[ ]?\d{3}\b", "id 123"),
        (r"[a-z]{1,20}#\d{4}", "ada#1234"),
    ],
)
def test_a_pattern_with_limits_is_taken(pattern: str, text: str) -> None:
    """It needs no other engine."""
    assert Redactor(patterns={"OWN": pattern}).redact_text(f"see {text}.") == "see [REDACTED_OWN]."


UNBOUNDED = {r"(a+)+b": "aaab", r"(a|aa)*c": "aaac", r".*x.*y": "1x2y", r"[a-z]+@": "ada@"}
BEYOND_RE2 = (r"(\d{1,50}){1,50}z", r"(a)\1b", r"(?P<one>a)(?P=one)b", r"(?=a+)b", r"(?>a+)b", r"(a)?(?(1)b|c)d")


@pytest.mark.parametrize("pattern", [*UNBOUNDED, *BEYOND_RE2])
def test_a_pattern_that_can_blow_up_is_refused_without_re2(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never on an engine that goes back and forth."""
    monkeypatch.setitem(sys.modules, "re2", None)

    with pytest.raises(ConfigurationError, match="can take more than linear time; .* or install aperion-bus"):
        Redactor(patterns={"OWN": pattern})


@pytest.mark.parametrize("pattern", UNBOUNDED)
def test_a_pattern_that_can_blow_up_runs_on_re2(pattern: str) -> None:
    """It hides what it matches; what would take the engine of ``re`` seconds or years is done at once."""
    pytest.importorskip("re2")
    redactor = Redactor(patterns={"OWN": pattern})

    shown = redactor.redact_text(UNBOUNDED[pattern])
    start = time.process_time()
    attacked = redactor.redact_text("a" * 50_000)

    assert shown == "[REDACTED_OWN]"
    assert time.process_time() - start < 1
    assert len(attacked) < 60_000


@pytest.mark.parametrize("pattern", BEYOND_RE2)
def test_what_re2_cannot_run_is_refused_with_its_reason(pattern: str) -> None:
    """References back, looks around, and repeats of repeats."""
    pytest.importorskip("re2")

    with pytest.raises(ConfigurationError, match="linear time, and re2 refuses it: (?:invalid|bad) "):
        Redactor(patterns={"OWN": pattern})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_types": {"EMIAL"}}, "did you mean 'EMAIL'"),
        ({"only_types": "EMAIL"}, "is one string"),
        ({"modes": {"CREDIT": Mode.MASK}}, "which is no type of value"),
        ({"modes": {"EMAIL": "mask"}}, "is no mode"),
        ({"modes": {"EMAIL": Mode.PSEUDONYM}}, "needs a key"),
        ({"key_modes": {"user_id": Mode.ENCRYPT}}, "needs a key"),
        ({"key_modes": {"": Mode.DROP}}, "which is no name"),
        ({"patterns": {"badge": "x"}}, "is no type of value"),
        ({"patterns": {"BADGE": "(x"}}, "does not compile"),
        ({"patterns": {"BADGE": "x*"}}, "matches nothing at all"),
        ({"redact_keys": "badge"}, "is one string"),
        ({"redact_keys": {"_"}}, "which is no name"),
        ({"max_text": 0}, "leaves nothing to show"),
        ({"max_seconds": 0}, "leaves nothing to show"),
    ],
)
def test_a_wrong_option_is_refused_with_what_to_do(options: dict[str, Any], message: str) -> None:
    """When the redactor is made."""
    with pytest.raises(ConfigurationError, match=message):
        Redactor(**options)


def test_a_key_tells_its_id_and_keeps_its_secret() -> None:
    """A short one is refused."""
    assert "0123" not in repr(KEY)
    with pytest.raises(ConfigurationError, match="has 5 bytes"):
        RedactionKey("k1", b"short")
    with pytest.raises(ConfigurationError, match="is no key id"):
        RedactionKey("K 1", b"0123456789abcdef")


def test_a_disabled_redactor_keeps_numbers_as_they_are_wherever_they_stand() -> None:
    """RED-1: a number that could be one of a card, as a key too."""
    data = {4111111111111111: 1, "n": 4111111111111111, "inner": [{4111111111111111: 4111111111111111}]}

    assert Redactor(enabled=False).redact(data) == data
    assert "4111111111111111" not in str(Redactor().redact(data))
