"""The redactor: what it hides in payloads, texts and errors, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections import Counter, namedtuple
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple

import pytest
from anyio import fail_after
from pydantic import AnyUrl, BaseModel, SecretBytes, SecretStr

import aperion
from aperion import Public, Redactor, Sensitive

pytestmark = pytest.mark.anyio

E164 = "+14155551234"


def test_a_redactor_that_is_off_changes_nothing() -> None:
    """RED-1: what comes in goes out, as a copy."""
    payload = {"email": "ada@example.com", "password": "hunter2"}

    copy = Redactor(enabled=False).redact(payload)

    assert copy == payload
    assert copy is not payload


def test_redaction_is_on_by_default() -> None:
    """RED-default: nobody has to switch it on."""
    assert aperion.EventBus().redactor.redact_text("ada@example.com") == "[REDACTED_EMAIL]"


def test_an_email_inside_a_text_is_hidden() -> None:
    """RED-2: the words around it stay."""
    assert Redactor().redact_text("Contact ada@example.com today") == "Contact [REDACTED_EMAIL] today"


def test_what_one_rule_hid_keeps_its_type_under_a_name() -> None:
    """And the end of the sentence stays."""
    assert Redactor().redact_text("Email: ada@example.com.") == "Email: [REDACTED_EMAIL]."


def test_sensitive_names_hide_their_values() -> None:
    """RED-3: and others keep theirs."""
    payload = {"username": "ada", "password": "hunter2", "api_key": "k", "token": ["t", 1]}

    assert Redactor().redact(payload) == {
        "username": "ada",
        "password": "[REDACTED]",
        "api_key": "[REDACTED]",
        "token": "[REDACTED]",
    }


def test_nested_mappings_are_redacted_by_name_and_by_value() -> None:
    """RED-4: at every depth."""
    payload = {"user": {"profile": {"secret": "x", "note": "ask ada@example.com", "age": 36}}}

    assert Redactor().redact(payload) == {
        "user": {"profile": {"secret": "[REDACTED]", "note": "ask [REDACTED_EMAIL]", "age": 36}}
    }


class Colour(Enum):
    RED = "red"
    SECRET = "password=hunter2"


class Big(IntEnum):
    CARD = 4111111111111111
    SMALL = 1


class Point(NamedTuple):
    x: int
    password: str


@dataclasses.dataclass
class Account:
    owner: str
    api_key: str


class Model(BaseModel):
    name: str
    client_secret: str
    pin: SecretStr = SecretStr("1234")


Pair = namedtuple("Pair", ["owner", "token"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (["ada@example.com", 1], ["[REDACTED_EMAIL]", 1]),
        (("ada@example.com", 1, 2), ["[REDACTED_EMAIL]", 1, 2]),
        ({"ada@example.com"}, ["[REDACTED_EMAIL]"]),
        (frozenset({"ada@example.com"}), ["[REDACTED_EMAIL]"]),
        (Model(name="ada", client_secret="s"), {"name": "ada", "client_secret": "[REDACTED]", "pin": "[REDACTED]"}),
        (Account("ada", "k"), {"owner": "ada", "api_key": "[REDACTED]"}),
        (Point(1, "s"), {"x": 1, "password": "[REDACTED]"}),
        (Pair("ada", "t"), {"owner": "ada", "token": "[REDACTED]"}),
        ({"ada@example.com": 1}, {"[REDACTED_EMAIL]": 1}),
        ({("a", "ada@example.com"): 1}, {"(a, [REDACTED_EMAIL])": 1}),
        ({4111111111111111: 1}, {"[REDACTED_CC]": 1}),
        ({b"password": 1, 7: "x"}, {"password": "[REDACTED]", 7: "x"}),
        (b"mail ada@example.com", b"mail [REDACTED_EMAIL]"),
        (bytearray(b"ada@example.com"), b"[REDACTED_EMAIL]"),
        (b"\xff\xfe\x00", b"\xff\xfe\x00"),
        (4111111111111111, "[REDACTED_CC]"),
        (Decimal(4111111111111111), "[REDACTED_CC]"),
        (4111111111111111.0, "[REDACTED_CC]"),
        (4111111111111112, 4111111111111112),
        (10**400, 10**400),
        (Decimal("12.50"), Decimal("12.50")),
        (SecretStr("x"), "[REDACTED]"),
        (SecretBytes(b"x"), "[REDACTED]"),
        (AnyUrl("https://ada:hunter2@example.com/"), "https://ada:[REDACTED_URL_PASSWORD]@example.com/"),
        (ip_address("10.0.0.1"), "[REDACTED_IP]"),
        (PurePosixPath("/home/ada"), PurePosixPath("/home/ada")),
        (Colour.RED, Colour.RED),
        (Colour.SECRET, "password=[REDACTED]"),
        (Big.CARD, "[REDACTED_CC]"),
        (Big.SMALL, Big.SMALL),
        (date(1990, 1, 1), date(1990, 1, 1)),
        (ValueError("password=hunter2"), "ValueError: password=[REDACTED]"),
        ([("Authorization", "Bearer abc"), ("Accept", "*/*")], [["Authorization", "[REDACTED]"], ["Accept", "*/*"]]),
        ({"name": "DB_PASSWORD", "value": "x"}, {"name": "DB_PASSWORD", "value": "[REDACTED]"}),
        ({"field": "email", "old": "a", "new": "b"}, {"field": "email", "old": "[REDACTED]", "new": "[REDACTED]"}),
        ({"app_version": "1.2.3.4", "ip": "1.2.3.4"}, {"app_version": "1.2.3.4", "ip": "[REDACTED_IP]"}),
        ({"password": None}, {"password": None}),
        pytest.param(object(), "<object>", id="object"),  # its repr has an address, which differs between workers
    ],
    ids=repr,
)
def test_every_container_and_class_is_redacted(value: object, shown: object) -> None:
    """RED-5 AUD-types: tuples, sets, models, keys that are no text, bytes, numbers."""
    assert Redactor().redact(value) == shown


def test_a_pattern_of_the_users_own_is_added() -> None:
    """RED-6: to those that are there."""
    redactor = Redactor(patterns={"BADGE": r"\bB-\d{6}\b"})

    assert redactor.redact_text("badge B-123456 of ada@example.com") == "badge [REDACTED_BADGE] of [REDACTED_EMAIL]"


@pytest.mark.parametrize("spelling", ["apiKey", "ApiKey", "API_KEY", "x-api-key", "badgeId", "BADGE-ID", "badge id"])
def test_names_of_the_users_own_match_in_any_spelling(spelling: str) -> None:
    """RED-7 RED-case RED-readme: and the defaults stay."""
    redactor = Redactor(redact_keys={"apiKey", "BadgeID"})

    assert redactor.redact({spelling: 1, "token": "t"}) == {spelling: "[REDACTED]", "token": "[REDACTED]"}


def test_nothing_given_means_the_defaults_and_replacement_is_asked_for() -> None:
    """RED-empty: an empty set adds nothing; ``default_keys`` and ``only_types`` replace."""
    text = "password=x badge=1 ada@example.com"

    assert Redactor(redact_keys=set(), patterns={}).redact_text(text) == "password=[REDACTED] badge=1 [REDACTED_EMAIL]"
    assert Redactor(redact_keys={"badge"}, default_keys=False, only_types={"KEY"}).redact_text(text) == (
        "password=x badge=[REDACTED] ada@example.com"
    )


@pytest.mark.parametrize("phone", ["(123) 456-7890", "123-456-7890", "123.456.7890"])
def test_phones_of_the_usa_are_hidden(phone: str) -> None:
    """RED-8: in each layout."""
    assert Redactor().redact_text(f"call {phone} now") == "call [REDACTED_PHONE] now"


@pytest.mark.parametrize("phone", ["+44 20 7123 4567", "+1-123-456-7890", E164])
def test_international_phones_are_hidden(phone: str) -> None:
    """RED-9: by the code of the country and the length of its numbers."""
    assert Redactor().redact_text(f"it is {phone}.") == "it is [REDACTED_PHONE]."


def test_numbers_in_e164_are_found() -> None:
    """(dead): each of many, in every country tried."""
    redactor = Redactor()

    for code, rest in (("1", "2025550143"), ("44", "2079460958"), ("49", "15112345678"), ("81", "9012345678")):
        assert redactor.redact_text(f"+{code}{rest}") == "[REDACTED_PHONE]"


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1:8080", "ip=10.0.0.1", "http://10.0.0.1/"])
def test_ipv4_is_hidden(text: str) -> None:
    """RED-10: the port stays."""
    assert Redactor().redact_text(text) == text.replace("10.0.0.1", "[REDACTED_IP]")


@pytest.mark.parametrize(
    "address",
    ["2001:0db8:85a3:0000:0000:8a2e:0370:7334", "2001:db8::1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "1::"],
)
def test_ipv6_is_hidden_in_every_form(address: str) -> None:
    """RED-11: full and compressed, without a tail left."""
    assert Redactor().redact_text(f"from {address} to") == "from [REDACTED_IP] to"


SECRETS = {
    "AWS_KEY": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "GCP_KEY": "AIza" + "7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb87Kd",
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb8",
    "GITHUB_TOKEN": "ghp_7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb87Kd3",
    "GITLAB_TOKEN": "glpat-7Kd3Qa9Zx2Mf5Wb87Kd3",
    "SLACK_TOKEN": "xoxb-123456789012-123456789012-7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Z",
    "STRIPE_KEY": "sk_test_7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Z",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_the_tokens_of_services_are_hidden(kind: str) -> None:
    """RED-12 RED-13 RED-14 RED-15: whole, wherever they stand."""
    secret = SECRETS[kind]

    for text in (secret, f"use {secret}.", f'"{secret}"', f"a={secret}&b", f"log\\n{secret}\\n"):
        assert Redactor().redact_text(text) == text.replace(secret, f"[REDACTED_{kind}]")


@pytest.mark.parametrize("key", ["sk_test_", "pk_live_", "rk_live_", "sk_live_"])
def test_the_keys_of_stripe_are_hidden(key: str) -> None:
    """RED-16: test ones too."""
    assert Redactor().redact_text(f"{key}7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Z") == "[REDACTED_STRIPE_KEY]"


def test_the_password_in_a_url_is_hidden() -> None:
    """RED-17: the user, the host and the path stay."""
    text = "postgres://app:hunter2@db:5432/users"

    assert Redactor().redact_text(text) == "postgres://app:[REDACTED_URL_PASSWORD]@db:5432/users"


def test_a_bearer_token_is_hidden() -> None:
    """RED-18: its value is gone."""
    assert Redactor().redact_text("sent Bearer abc.def-123") == "sent Bearer [REDACTED_BEARER]"


EXTENDED = (
    "access_token refresh_token client_secret aws_secret_key connection_string phone_number date_of_birth bank_account"
)


@pytest.mark.parametrize("name", EXTENDED.split())
def test_the_longer_names_are_sensitive_too(name: str) -> None:
    """RED-19: as the predecessor listed them."""
    assert Redactor().redact({name: "x"}) == {name: "[REDACTED]"}


@pytest.mark.parametrize("card", ["3782-822463-10005", "3782 822463 10005", "378282246310005"])
def test_amex_cards_are_hidden(card: str) -> None:
    """RED-20: in groups of four, six and five."""
    assert Redactor().redact_text(f"card {card}") == "card [REDACTED_CC]"


@pytest.mark.parametrize(
    "card", ["4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", "4111.1111.1111.1111"]
)
def test_cards_and_social_security_numbers_are_hidden(card: str) -> None:
    """RED-21: with any separator."""
    assert Redactor().redact_text(f"{card}, 536-22-1234") == "[REDACTED_CC], [REDACTED_SSN]"


@pytest.mark.parametrize("secret", ["hunter2-canary", "ada.canary@example.com"])
async def test_the_audit_file_holds_no_secret(secret: str, tmp_path: Any) -> None:
    """RED-22 RED-fields: neither in the payload, nor in source, key, headers, correlation id or error."""
    path = tmp_path / "events.jsonl"
    with fail_after(10):
        async with aperion.EventBus(audit=aperion.AuditLog(path)) as bus:

            @bus.on("user.added")
            async def fail(_event: aperion.Event[Any]) -> None:
                raise ValueError(f"password={secret}")

            receipt = await bus.emit(
                *("user.added", {"password": secret, "note": f"password={secret}", "who": "marker-here"}),
                source=f"password={secret}",
                headers={"authorization": f"Bearer {secret}"},
            )
            await receipt.settled()

    text = path.read_text()
    assert "marker-here" in text
    assert secret not in text


async def test_dead_letters_show_no_secret() -> None:
    """RED-dlq/log: exported or listed."""
    with fail_after(10):
        async with aperion.EventBus() as bus:

            @bus.on("user.added")
            async def fail(_event: aperion.Event[Any]) -> None:
                raise ValueError("password=hunter2-canary")

            receipt = await bus.emit("user.added", {"password": "hunter2-canary", "who": "marker-here"})
            await receipt.settled()

    shown = json.dumps([bus.dead_letters.to_dict(letter) for letter in bus.dead_letters.list()])
    assert "marker-here" in shown
    assert "hunter2-canary" not in shown


def test_what_is_redacted_is_not_changed() -> None:
    """RED-23: a copy is made."""
    payload = {"password": "x", "list": ["ada@example.com", {"token": 1}], "set": {"a"}}
    before = json.dumps(payload, default=sorted)

    Redactor().redact(payload)

    assert json.dumps(payload, default=sorted) == before


KEYS = """
accessToken access-token access_token ACCESS_TOKEN x-api-key X-API-Key apiKey api-key api.key user_password userPassword
UserPassword clientSecret client-secret secret_key secretKey aws_secret_access_key AWS_SECRET_ACCESS_KEY database_url
DATABASE_URL db.password db/password password1 passwordHash password_confirmation newPassword PGPASSWORD MYSQL_PWD
Authorization Proxy-Authorization Cookie Set-Cookie PHPSESSID sessionId session_id JSESSIONID csrf_token xsrf privateKey
private_key ssh_key signingKey encryption_key refresh-token idToken jwt bearer otp totp pin PIN cvv cvc sid pan auth
credentials credential passphrase pass_phrase connectionString dsn webhook_secret oauth_token ssn socialSecurityNumber
creditCardNumber card_number cardNumber iban routing_number emailAddress email e-mail phone phoneNumber mobile
date_of_birth dob birthDate passport_number driversLicense taxId national_id tokens secrets api_keys
""".split()


@pytest.mark.parametrize("name", KEYS)
def test_common_spellings_of_sensitive_names_are_hidden(name: str) -> None:
    """RED-keys: whatever the value is."""
    for value in ("x", 7, 1.5, ["a"], {"a": 1}, b"x", True):
        assert Redactor().redact({name: value}) == {name: "[REDACTED]"}


HARMLESS = """
token_count tokenCount primary_key primaryKey has_password hasPassword is_secret card_brand email_verified max_tokens
prompt_tokens completion_tokens next_page_token cache_key foreign_key sort_key partition_key key keyboard monkey author
authored_by authority pinned spin description span company expand side inside passenger compass bypass passed tokenize
tokenizer secretary cookie_policy_accepted cardinality discard dashboard phone_verified emailed_at password_reset_at
password_changed_at email_count expired_tokens_total signal design assigned sign
""".split()


@pytest.mark.parametrize("name", HARMLESS)
def test_names_that_only_look_sensitive_keep_their_values(name: str) -> None:
    """RED-keys: a false alarm makes people switch it off."""
    assert Redactor().redact({name: "x"}) == {name: "x"}


class Visit(BaseModel):
    email: Annotated[str, Sensitive("email")]
    page: Annotated[str, Public()]
    nested: Annotated[dict[str, Any], Public()]
    note: str


def test_markers_on_fields_decide() -> None:
    """``Sensitive`` hides whatever it holds, ``Public`` is never looked at."""
    visit = Visit(email="none", page="10.0.0.1", nested={"password": "10.0.0.1"}, note="10.0.0.1")

    assert Redactor().redact(visit) == {
        "email": "[REDACTED_EMAIL]",
        "page": "10.0.0.1",
        "nested": {"password": "10.0.0.1"},
        "note": "[REDACTED_IP]",
    }


class Hostile(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise RuntimeError("no")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("password=hunter2")

    def __len__(self) -> int:
        return 1


def test_what_cannot_be_read_is_withheld_and_counted() -> None:
    """A marker stands for it; what is beside it is shown."""
    redactor = Redactor()

    assert redactor.redact({"a": Hostile(), "b": 1}) == {"a": "[REDACTED_ERROR]", "b": 1}
    assert redactor.failures == 1


def test_cycles_depth_size_and_time_end_in_a_marker() -> None:
    """They fail closed."""
    cycle: list[object] = [1]
    cycle.append(cycle)
    deep: object = "hunter2"
    for _ in range(100):
        deep = {"a": deep}

    assert Redactor().redact(cycle) == [1, "[REDACTED_CYCLE]"]
    assert "hunter2" not in str(Redactor().redact(deep))
    assert "[REDACTED_DEPTH]" in str(Redactor().redact(deep))
    assert Redactor(max_nodes=5).redact([[1] * 10, 2]) == ["[REDACTED_SIZE]", 2]
    assert Redactor(max_seconds=1e-9).redact({"a": 1}) == "[REDACTED_TIME]"


def test_a_long_text_is_cut_and_says_so() -> None:
    """The rest is never shown raw."""
    text = "x " * 100 + "ada@example.com"

    short = Redactor(max_text=100).redact_text(text)

    assert short.endswith("[REDACTED_LENGTH]")
    assert len(short) < 130
    assert "ada" not in short


def test_a_report_counts_by_type_and_holds_no_value() -> None:
    """One for each record, and a total."""
    redactor, report = Redactor(), Counter[str]()

    redactor.redact({"password": "x", "to": "ada@example.com, bob@example.com", "n": 1}, report)
    redactor.redact_text("10.0.0.1", report)

    assert report == {"KEY": 1, "EMAIL": 2, "IP": 1}
    assert redactor.counts == report


def test_a_marker_that_is_there_already_is_not_counted() -> None:
    """It was counted when it was written."""
    redactor = Redactor()

    assert redactor.redact({"password": "[REDACTED]", "a": "[REDACTED_EMAIL]"}) == {
        "password": "[REDACTED]",
        "a": "[REDACTED_EMAIL]",
    }
    assert redactor.counts == {}


def test_errors_are_told_without_secrets_and_without_locals() -> None:
    """Message, args, notes, cause and context; never what was in a frame."""
    frame_secret = "hunter2-in-a-frame"
    try:
        try:
            raise KeyError("password=hunter2-in-the-cause")
        except KeyError as cause:
            error = ValueError("token=hunter2-in-the-message", {"password": "hunter2-in-args"})
            error.add_note("api_key: hunter2-in-a-note")
            raise error from cause
    except ValueError as caught:
        message, traceback = Redactor().redact_exception(caught)

    assert "ValueError" in traceback
    assert "KeyError" in traceback
    assert frame_secret not in traceback.replace('frame_secret = "hunter2-in-a-frame"', "")
    assert "hunter2" not in message + traceback


def test_ordinary_values_come_through_untouched() -> None:
    """RED-fp: digests, ids, times, numbers that fail their check."""
    payload = {
        "sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e",
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "uuid": str(uuid.UUID(int=0x550E8400E29B41D4A716446655440000)),
        "ulid": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "epoch": 1_700_000_000,
        "micros": 1_700_000_000_123_456,
        "text": "1700000000 and 1700000000123456",
        "order": "order 123456789 of 2026-11-23T10:00:00.123456Z",
        "isbn": "978-3-16-148410-0, 0306406152",
        "ean": "4006381333931",
        "word": "keyboardInterruptHandlerRegistry asiapacificnortheast",
        "url": "see https://example.com/a at 12:30, ping @alice",
        "colour": "#ff00aa",
        "agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36",
        "when": datetime(2026, 11, 23, tzinfo=UTC),
    }

    assert Redactor().redact(payload) == payload


def test_random_uuids_and_digit_strings_are_not_taken_for_something_else() -> None:
    """RED-fp: of a hundred thousand of each; a card is one in ten of those in the range of an issuer."""
    redactor = Redactor()

    uuids = [str(uuid.UUID(int=(n * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128, version=4)) for n in range(20_000)]
    assert all(redactor.redact_text(f"id {text}") == f"id {text}" for text in uuids)
    for length in (9, 10):
        numbers = [str((n * 7_919_777 + 10**length // 3) % 10**length).zfill(length) for n in range(5_000)]
        assert all(redactor.redact_text(number) == number for number in numbers)


@pytest.mark.parametrize("before", ["", "536-22-1234", "call "])
def test_numbers_that_follow_each_other_without_a_space_are_all_hidden(before: str) -> None:
    """However many there are; one that is hidden makes the next one begin."""
    text = before + "+44 20 7946 0958" * 40

    shown = Redactor().redact_text(text)

    assert not any(char.isdigit() for char in shown)
    assert shown.count("[REDACTED_PHONE]") == 40


@pytest.mark.parametrize("text", ["++44 20 7946 0958", "a+44 20 7946 0958", "1+44 20 7946 0958"])
def test_a_plus_inside_a_word_begins_no_number(text: str) -> None:
    """It is arithmetic, or part of an address."""
    assert Redactor().redact_text(text) == text


def test_a_text_that_was_cut_still_says_so_when_it_is_redacted_again() -> None:
    """The mark at its end is not taken for the rest of a secret value."""
    redactor = Redactor(max_text=60)
    once = redactor.redact_text("Authorization: '''" + "Authorization: " * 4)

    assert once.endswith("[REDACTED_LENGTH]")
    assert redactor.redact_text(once) == once
