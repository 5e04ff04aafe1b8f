"""The types of values that are found: how each looks, how it is checked, and where that is written."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from aperion.errors import ConfigurationError
from aperion.redaction.markers import KEY
from aperion.redaction.shapes import shape
from aperion.redaction.tokens import ISSUERS

if TYPE_CHECKING:
    from collections.abc import Iterable


class Kind(NamedTuple):
    """One type of value, as the documentation tells of it."""

    name: str
    what: str
    looks: str
    check: str
    source: str
    example: str


PERSONAL: Final = (
    Kind("EMAIL", "e-mail address", "local@domain, quoted, in any script; %40, &#64; for the sign", "a domain with a top level that is no file extension; no repository, no version", "RFC 5321, RFC 6531", "ada@example.com"),
    Kind("PHONE", "telephone number", "+ and country code; (NXX) NXX-XXXX and the other North American layouts; other layouts after a word such as phone, tel, mobile", "country code, and the digits that its plan has", "ITU-T E.164, NANPA", "+44 20 7946 0958"),
    Kind("CC", "payment card", "13 to 19 digits, alone or in the usual groups", "issuer range, length, Luhn", "ISO/IEC 7812-1", "4111 1111 1111 1111"),
    Kind("SSN", "social security number of the USA", "AAA-GG-SSSS; nine bare digits after a word that says so", "area, group and serial that can be issued", "SSA, POMS RM 10201", "536-22-1234"),
    Kind("IBAN", "bank account", "country, two digits, account; spaces or not", "length by country, mod 97", "ISO 13616, SWIFT's registry", "GB33 BUKB 2020 1555 5555 55"),
    Kind("BANK_ACCOUNT", "account, routing, sort code number", "six digits or more", "the words before it", "", "account number 12345678"),
    Kind("IP", "IPv4 and IPv6 address", "four octets; every textual form of IPv6", "values; no version number, no slice, no name in code", "RFC 791, RFC 4291, RFC 5952", "2001:db8::1"),
    Kind("MAC", "hardware address", "six pairs with : or -, three groups with .", "not a part of something longer", "IEEE 802", "00:1A:2B:3C:4D:5E"),
    Kind("CRYPTO_ADDRESS", "address of a crypto currency", "Base58Check, bech32, 0x and 40 digits", "checksum (the mixed case of Ethereum is not checked)", "BIP 173, BIP 350, EIP-55", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"),
    Kind("CRYPTO_KEY", "private key of a crypto currency", "wallet import format, extended private keys", "checksum", "BIP 32", "5HueCGU8rMjxEXxiPuD5BDku4MkFqeZyd4dZ1jvhTVqvbTLvyTJ"),
    Kind("DATE_OF_BIRTH", "date of birth", "a date", "the words before it, such as born", "", "born on 12 May 1990"),
    Kind("SECURITY_CODE", "one-time code, PIN, CVV", "three to eight digits", "the words before it", "", "your verification code is 123456"),
    Kind("PASSPORT", "passport number", "letters and digits", "the words before it", "", "passport number is CD7654321"),
    Kind("DRIVER_LICENSE", "driving licence", "letters and digits", "the words before it", "", "driver's license D1234567"),
    Kind("TAX_ID", "tax number", "letters and digits; the CNPJ of Brazil", "the words before it, or check digits", "Receita Federal", "EIN 12-3456789"),
    Kind("NATIONAL_ID", "national id", "letters and digits; CPF, DNI, NIE, NINO, codice fiscale by their form", "the words before it, or check digits", "Receita Federal, RD 1553/2005, HMRC NIM39110", "529.982.247-25"),
)  # fmt: skip
SECRETS: Final = (
    Kind(KEY, "whatever stands under a sensitive name", "name=value, name: value, JSON, YAML, dotenv, XML, flags, query strings, pairs, encoded forms", "the name", "", "db_password=hunter2"),
    Kind("PASSWORD", "a password that a sentence or a command tells", "password is …, curl -u user:…, IDENTIFIED BY '…'", "looks like no word", "", "the password is hunter2!"),
    Kind("URL_PASSWORD", "password in a URL", "scheme://user:password@host; long tokens without a user", "no placeholder", "RFC 3986", "postgres://app:hunter2@db/users"),
    Kind("WEBHOOK", "URL that is a password itself", "the webhooks of Slack, Discord, Teams, Telegram, Zapier and others", "host and path", "", "https://hooks.slack.com/services/T0000000/B0000000/7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Z"),
    Kind("SIGNATURE", "signature of a URL", "signature=, sig=, X-Amz-Signature= and the like", "in a query string", "AWS SigV4, Azure SAS, Google V4", "https://b.example.com/a?Expires=1&Signature=7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Z"),
    Kind("BEARER", "bearer token", "Bearer and a token", "no word of a sentence", "RFC 6750", "Bearer 7Kd3Qa9Zx2Mf5Wb8"),
    Kind("BASIC_AUTH", "basic credentials", "Basic and base64", "base64 of user:password", "RFC 7617", "Basic YWRhOmh1bnRlcjI="),
    Kind("COOKIE", "value of a cookie", "Cookie and Set-Cookie; names and attributes stay", "the name of the header", "RFC 6265", "Cookie: sid=7Kd3Qa9Zx2"),
    Kind("JWT", "JSON web token", "two to five parts in base64url that begin with an object", "parts", "RFC 7519, RFC 7516", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb8"),
    Kind("PRIVATE_KEY", "private key", "PEM of every kind, PuTTY; whole, cut off, or on one line", "BEGIN line", "RFC 7468, RFC 4880", "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\\n-----END PRIVATE KEY-----"),
    Kind("AWS_SECRET", "secret access key", "40 characters of base64 with / or +", "changes case as no path does", "AWS IAM", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    Kind("AZURE_SECRET", "client secret of Microsoft Entra", "three characters, a digit, Q~, 31 to 34 more", "", "Microsoft", "7Kd8Q~7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb8"),
    Kind("DISCORD_TOKEN", "token of a bot", "id, time and HMAC with dots between", "lengths", "Discord", "MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2M"),
    Kind("TELEGRAM_TOKEN", "token of a bot", "id, colon, A and 34 more", "lengths", "core.telegram.org/bots", "110201543:A7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb8Z"),
    Kind("OKTA_TOKEN", "API token", "00 and 40 characters in both cases", "", "Okta", "00Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx"),
    Kind("TERRAFORM_TOKEN", "token of HCP Terraform", "14 characters, .atlasv1., 60 to 70 more", "", "HashiCorp", "7Kd3Qa9Zx2Mf5W.atlasv1.7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf"),
    Kind("MAXMIND_KEY", "licence key", "6, 29 characters and mmk", "", "MaxMind", "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"),
    Kind("TWITTER_TOKEN", "bearer token", "twenty A and 60 or more", "", "gitleaks", "AAAAAAAAAAAAAAAAAAAAAA7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb8"),
)  # fmt: skip


@cache
def token_kinds() -> tuple[Kind, ...]:
    """Return the tokens that have a prefix, in the notation of ``shapes``."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for issuer in ISSUERS:
        rows.setdefault(issuer.kind, []).extend((issuer.name, notation) for notation in issuer.notations)
    return tuple(
        Kind(
            kind,
            entries[0][0],
            ", ".join(f"`{notation}`" for _, notation in entries),
            "not made of words",
            "its maker, gitleaks, secretlint",
            shape(entries[0][1]).sample,
        )
        for kind, entries in rows.items()
    )


def kinds() -> tuple[Kind, ...]:
    """Return every type of value that is found."""
    return (*PERSONAL, *SECRETS, *token_kinds())


@cache
def names() -> frozenset[str]:
    """Return the name of every type of value that is found."""
    return frozenset(kind.name for kind in (*PERSONAL, *SECRETS)) | {issuer.kind for issuer in ISSUERS}


def checked(option: str, given: Iterable[str], also: Iterable[str] = ()) -> frozenset[str]:
    """Return names of types, each of them known.

    Raises:
        ConfigurationError: for one that is not, with the nearest.
    """
    if isinstance(given, str):
        raise ConfigurationError(f"{option}={given!r} is one string; pass a set of types: {{{given!r}}}")
    known = names() | set(also)
    chosen = frozenset(given)
    for name in chosen - known:
        from difflib import get_close_matches

        near = get_close_matches(str(name).upper(), known, 1)
        raise ConfigurationError(
            f"{option} has {name!r}, which is no type of value; "
            + (f"did you mean {near[0]!r}?" if near else "the page on redaction lists them")
        )
    return chosen
