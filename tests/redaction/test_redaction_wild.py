"""What people and programs write that has no name beside it."""

from __future__ import annotations

import random
import string

import pytest

from aperion import Redactor


def found(text: str) -> str:
    return Redactor().redact_text(text)


def test_nearly_every_random_key_that_says_what_it_is_is_found() -> None:
    """A few have no digit or look like words by chance."""
    chance = random.Random(1)
    starts = [f"{word}{sign}" for word in ("token", "secret", "api", "pk", "sk", "key") for sign in "_-"]
    keys = [
        chance.choice(starts) + "".join(chance.choices(string.ascii_letters + string.digits, k=chance.randint(20, 40)))
        for _ in range(1_000)
    ]

    kept = [key for key in keys if key.partition("_")[2] in found(f"got {key} back") and "_" in key]
    kept += [key for key in keys if "-" in key and key.partition("-")[2] in found(f"got {key} back")]

    assert len(kept) <= 20


@pytest.mark.parametrize(
    "text",
    [
        "key_getUserById2FromDatabase",
        "api_DescribeInstanceTypes2Request",
        "token_5203c1d48355cd87694ae60e674653c1e3c0f1ab",
        "key-01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "pod api-7d9f8b6c5d-x2x9z",
        "monkey_7Kd3Qa9Zx2Mf5Wb8Zr4TbV7n",
        "api_v2_get_user_profile_by_email_1",
        "secret-3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        "key_20261126195107000000001",
        "token_Authentication2ProviderFactory",
    ],
)
def test_identifiers_hashes_and_names_stay(text: str) -> None:
    assert found(f"see {text} here") == f"see {text} here"


def iban(country: str, length: int) -> str:
    account = ("7" * length)[: length - 4]
    rest = int("".join(str(int(char, 36)) for char in f"{account}{country}00")) % 97
    return f"{country}{98 - rest:02}{account}"


@pytest.mark.parametrize(
    ("country", "length"), [("YE", 30), ("RU", 33), ("NO", 15), ("HN", 28), ("MN", 20), ("OM", 23)]
)
def test_ibans_have_the_length_of_their_country(country: str, length: int) -> None:
    assert found(f"to {iban(country, length)} today") == "to [REDACTED_IBAN] today"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("jdbc:oracle:thin:scott/tiger@//h/orcl", "jdbc:oracle:thin:scott/[REDACTED_PASSWORD]@//h/orcl"),
        ("sqlplus -s scott/tiger@orcl", "sqlplus -s scott/[REDACTED_PASSWORD]@orcl"),
        ("mysql -psecret", "mysql -p[REDACTED_PASSWORD]"),
        ("curl -u user:pw", "curl -u user:[REDACTED_PASSWORD]"),
        ("PGPASSWORD=hunter2 psql", "PGPASSWORD=[REDACTED] psql"),
        ("sshpass -p hunter2 ssh", "sshpass -p [REDACTED_PASSWORD] ssh"),
        ('authorization=Digest username="u", response="S3cr3t"', "authorization=Digest [REDACTED]"),
        ("+49 (0) 30 / 2312 5123", "[REDACTED_PHONE]"),
        ("4111/1111/1111/1111", "[REDACTED_CC]"),
    ],
)
def test_command_lines_and_other_notations_are_found(text: str, clean: str) -> None:
    assert found(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop-db-a1b2C3",
        "see docs/intro@main and npm i @scope/pkg@1.2.3",
        "jdbc:oracle:thin:@//h/orcl",
    ],
)
def test_names_of_secrets_and_of_packages_stay(text: str) -> None:
    assert found(text) == text


def test_what_is_no_arn_before_a_secret_hides_it() -> None:
    assert "hunter2" not in found("a:b:secret=hunter2 arn:aws:s3:::x secret:hunter2")


@pytest.mark.parametrize("limit", range(18, 32))
def test_a_text_that_is_cut_in_a_card_keeps_no_more_than_four_of_its_digits(limit: int) -> None:
    shown = Redactor(max_text=limit).redact_text("paid with 4111 1111 1111 1111 and more of it")

    assert sum(char.isdigit() for char in shown) <= 4
