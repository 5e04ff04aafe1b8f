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
