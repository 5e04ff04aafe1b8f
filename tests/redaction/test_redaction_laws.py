"""Laws of redaction: it settles, it never raises, it stays within bounds, and its time grows with the text."""

from __future__ import annotations

import copy
import time
import timeit
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aperion import Redactor
from aperion.redaction import Mode, RedactionKey

KEY = RedactionKey("k1", b"0123456789abcdef" * 2)
REDACTORS = {
    "default": Redactor(),
    "short": Redactor(max_text=60),
    "partial": Redactor(modes={"EMAIL": Mode.PARTIAL, "CC": Mode.PARTIAL, "PHONE": Mode.PARTIAL, "KEY": Mode.DROP}),
    "pseudonym": Redactor(modes={"EMAIL": Mode.PSEUDONYM, "KEY": Mode.PSEUDONYM, "IP": Mode.DROP}, key=KEY),
}
PIECES = (
    *(
        "password",
        "token",
        "secret",
        "cookie",
        "Cookie: ",
        "Authorization: ",
        "Bearer ",
        "Basic YWRhOmh1bnRlcjI=",
        "phone ",
    ),
    *(
        "=",
        ": ",
        " ",
        '"',
        "'",
        "`",
        "\\",
        "\n",
        "\\n",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ",",
        ";",
        "&",
        "?",
        "/",
        "//",
        "://",
        "@",
    ),
    *(
        ".",
        "-",
        "_",
        "+",
        "a",
        "12",
        "1234",
        "4111 1111 1111 1111",
        "ada@example.com",
        "10.0.0.1",
        "2001:db8::1",
        "::1",
    ),
    *(
        "00:1A:2B:3C:4D:5E",
        "ghp_7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb87Kd3",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJI.eyJzdWIiOi.abc",
    ),
    *(
        "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----",
        "MIIEvQIBADANBgkqhkiG9w0B",
        "[REDACTED]",
        "[REDACTED_EMAIL]",
    ),
    *(
        "[REDACTED",
        "\ue000",
        "\uf8ff",
        "é",
        "İ",
        "用户",
        "<password>",
        "</password>",
        "--password ",
        "curl -u a:b ",
        "ssn ",
    ),
    *(
        "536-22-1234",
        "555-123-4567",
        "+44 20 7946 0958",
        "born 1990-01-01",
        "GB33BUKB20201555555555",
        "%3D",
        "%22",
        "&quot;",
    ),
    *(
        "null",
        "str",
        " | None = ",
        "https://",
        "user:pw@host",
        "hooks.slack.com/services/T1/B2/abcdefgh12",
        "plaid=",
        "x.y(",
    ),
    *(
        "5f3a9d8c7b6e5d4c3b2a",
        "password is hunter2",
        "version ",
        "1.2.3.4",
        "=>",
        ":=",
        "$",
        "Authorization: SSWS ",
        "datadog",
        "7kd3qa9zx2mf5wb8",
        "${X}",
        "<",
        ">",
        "%40",
        "\t",
        "\r\n",
    ),
)
TEXTS = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
ATOMS = st.one_of(
    TEXTS, st.integers(), st.floats(), st.booleans(), st.none(), st.binary(max_size=30), st.dates(), st.uuids()
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(TEXTS, st.integers(), st.none()), inner, max_size=5),
    ),
    max_leaves=15,
)


@pytest.mark.parametrize("name", REDACTORS)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS)
def test_redacting_a_text_twice_changes_nothing_more(name: str, text: str) -> None:
    """It never fails, and is never longer than a bound."""
    redactor = REDACTORS[name]

    once = redactor.redact_text(text)

    assert redactor.redact_text(once) == once
    assert redactor.failures == 0
    assert len(once) <= 8 * len(text) + 64


@pytest.mark.parametrize("name", REDACTORS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=VALUES)
def test_redacting_a_value_twice_changes_nothing_more(name: str, value: Any) -> None:
    """What was given stays as it was."""
    redactor, before = REDACTORS[name], copy.deepcopy(value)

    once = redactor.redact(value)

    assert repr(value) == repr(before)
    assert repr(redactor.redact(once)) == repr(once)
    assert redactor.failures == 0


@settings(max_examples=300, deadline=None)
@given(
    value=st.dictionaries(
        st.text(max_size=10), st.one_of(st.text(max_size=30), st.integers(-(2**53), 2**53), st.none())
    )
)
def test_what_was_json_is_json_afterwards(value: dict[str, Any]) -> None:
    """In a payload, and as a text."""
    shown = REDACTORS["default"].redact(value)

    assert orjson.loads(orjson.dumps(shown)) == shown


@settings(max_examples=300, deadline=None)
@given(
    value=st.dictionaries(
        st.sampled_from(["password", "user", "n", "email"]),
        st.one_of(st.text("ab@.1 ", max_size=12), st.integers(0, 99), st.none()),
    )
)
def test_json_in_a_text_stays_json(value: dict[str, Any]) -> None:
    """Whatever is hidden in it."""
    text = orjson.dumps(value).decode()

    shown = orjson.loads(REDACTORS["default"].redact_text(text))

    assert shown.keys() == value.keys()
    assert "password" not in value or shown["password"] in (None, "", "[REDACTED]", "[REDACTED_EMAIL]")


ATTACKS = (
    *(
        "a",
        "1",
        "a@",
        "@a",
        "a.",
        "a.a@",
        "@a.a",
        "a@a.",
        "eyJ",
        "eyJ-",
        "eyJa.",
        "eyJ.eyJ",
        "://a:",
        "://",
        "://a:b@",
        "a:",
        "a=",
    ),
    *(
        "password",
        "password=",
        "password:",
        "password=a ",
        "key=",
        "token: ",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN ",
        "-",
    ),
    *(
        "+1",
        "+1 ",
        "+1-",
        "(1",
        "1 ",
        "1-",
        "1.",
        "1.1.",
        "1.1.1.1 ",
        "4111 ",
        "4111-1111-1111-1111-",
        "DE89 ",
        "GB29A",
        "a:b:",
    ),
    *(
        "1:",
        "::",
        "fe80:",
        "00:",
        "00-",
        "ghp_",
        "ghp_a",
        "xoxb-",
        "AKIA",
        "hf_",
        "00 ",
        "sk-",
        "hvs.",
        "SG.",
        "AIza",
        "<a>",
        "<password>",
    ),
    *(
        "'a', ",
        "('password', ",
        "&quot;a&quot;:",
        "%3D",
        "password%3Da",
        "%22",
        "--password ",
        "-u a:",
        "phone ",
        "phone number is ",
    ),
    *(
        "born ",
        "password is ",
        "bearer ",
        "Bearer a ",
        "basic ",
        "cookie:",
        "a=b;",
        '"',
        '\\"',
        "\\",
        "\n",
        "[",
        "[REDACTED]",
        "[REDACTED",
    ),
    *(
        '{"password":',
        '"password":"',
        "password=(",
        "password=[",
        "A",
        "Aa1/",
        "/",
        "//",
        "é",
        "İpassword=x ",
        "\ue000",
        "x-",
        "_",
    ),
    *(
        "MTk4.",
        "1:A",
        "Q~",
        ".atlasv1.",
        "curl -u a:",
        "sqlplus -s a/",
        "mysql -p",
        "bc1q",
        "0x1f",
        "Private-Lines: 1",
        "Proc-Type: 4,ENCRYPTED\n",
    ),
    *(
        "MIIEpQIBAAKCAQEA\n",
        'key="password" value="',
        "hooks.slack.com/services/",
        "user@host:",
        "social security ",
        "plaidtoken=a1",
    ),
    *(
        "v1.2.3.4 ",
        "1.2.3.4 to ",
        '"a"@',
        "a%40a.",
        "&#64;",
        "123-45-6789 ",
        "4111111111111111 ",
        "a@b.co ",
        "name: password value: ",
    ),
    *(
        "Authorization: Odd ",
        "Authorization: Odd a1",
        "datadog=a1-",
        "key_7Kd3Qa9Zx2Mf5Wb8Zr4T",
        "datadog: 7kd3qa9zx2mf5w.",
        "<heroku>a1</heroku>",
        "--twilio a1b2c3d4e5f6a7 ",
        '-----BEGIN PRIVATE KEY-----\nComment: \\"',
        "-----BEGIN PRIVATE KEY-----\nComment: a\\",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ATTACKS, ids=repr)
def test_time_grows_no_faster_than_the_text(unit: str) -> None:
    """REDOS: eight times the text takes no more than three times eight times the time, with the cut out of the way.

    A pattern that goes back over what it has read takes 64 times the time, every time it is asked; a busy machine can
    make a good one look like that for a moment, so that one good measurement in ten is proof.
    """
    redactor = Redactor(max_text=10**7)
    units = 6_000 // len(unit) + 1  # whole ones: what a text ends with can decide which patterns run at all
    small, large = unit * units, unit * units * 8

    ratios = (_seconds(redactor, large) / max(_seconds(redactor, small), 2e-4) for _ in range(10))

    assert any(ratio < 8 * 3 for ratio in ratios)


def _seconds(redactor: Redactor, text: str) -> float:
    """Return the best of five: what disturbs a run only makes it longer; ``timeit`` keeps the garbage collector off."""
    return min(timeit.repeat(lambda: redactor.redact_text(text), timer=time.process_time, repeat=5, number=1))


def test_the_predecessors_worst_strings_take_no_time() -> None:
    """REDOS: they took it 8.6 to 51.8 seconds; a quadratic rule would need minutes for these."""
    for text in ("a" * 10**6, "eyJ-" * 250_000, "://a:" * 200_000, "deadbeef" * 125_000):
        shown = Redactor().redact_text(text)

        assert shown.endswith("[REDACTED_LENGTH]")
