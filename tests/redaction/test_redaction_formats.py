"""Every format by example: what is found, what only looks like it, and what must stay as it is."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import pytest
from webhooks import WEBHOOKS

from aperion import Redactor
from aperion.redaction import kinds
from aperion.redaction.shapes import shape
from aperion.redaction.tokens import ISSUERS

SHAPES = [(issuer.kind, notation) for issuer in ISSUERS for notation in issuer.notations]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_the_example_of_every_type_is_found(kind: Any) -> None:
    """In the middle of a sentence, and as that type."""
    report = Counter[str]()

    text = Redactor().redact_text("see " + kind.example.replace("\\n", "\n"), report)

    assert text.startswith("see ")
    assert report[kind.name] == 1


@pytest.mark.parametrize(("kind", "notation"), SHAPES)
def test_every_shape_of_token_is_found_wherever_it_stands(kind: str, notation: str) -> None:
    """As its own type and nothing else: in quotes, in a URL, in JSON, after a written-out line break, in a list."""
    token = shape(notation).sample

    for text in (
        "use {}",
        '"{}"',
        "https://x.test/?a={}&b=1",
        '{{"a": "{}"}}',
        "a\\n{}\\n",
        "({})",
        "a,{},b",
        "\t{}\n",
    ):
        assert Redactor().redact_text(text.format(token)) == text.format(f"[REDACTED_{kind}]")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("mailto:ada.lovelace+news@mail.example.co.uk?subject=x", "EMAIL"),
        ('"ada lovelace"@example.com', "EMAIL"),
        ("用户@例子.公司", "EMAIL"),
        ("ada@xn--80ak6aa92e.com", "EMAIL"),
        ("ada%40example.com", "EMAIL"),
        ("<ada@example.com>", "EMAIL"),
        ("ada&#64;example.com", "EMAIL"),
        ("tel:+1-201-555-0123", "PHONE"),
        ("+44 (0)20 7946 0958", "PHONE"),
        ("+49 30 1234567", "PHONE"),
        ("(415)555-0132", "PHONE"),
        ("1 (415) 555-0132", "PHONE"),
        ("phone: 07700 900123", "PHONE"),
        ("call me at 0171 123 45 67", "PHONE"),
        ("Telefon 030/1234567", "PHONE"),
        ("5500-0000-0000-0004", "CC"),
        ("6011 0009 9013 9424", "CC"),
        ("3530111333300000", "CC"),
        ("30569309025904", "CC"),
        ("4111 1111 1111 1111 123", "CC"),
        ("my ssn is 536221234", "SSN"),
        ("GB33BUKB20201555555555", "IBAN"),
        ("de89 3704 0044 0532 0130 00", "IBAN"),
        ("DE89-3704-0044-0532-0130-00", "IBAN"),
        ("[2001:db8::1]:443", "IP"),
        ("2001:db8::/32", "IP"),
        ("fe80::1%eth0", "IP"),
        ("::ffff:192.0.2.1", "IP"),
        ("ip:192.0.2.1", "IP"),
        ("192.0.2.0/24", "IP"),
        ("00-1A-2B-3C-4D-5E", "MAC"),
        ("mac:00:1a:2b:3c:4d:5e", "MAC"),
        ("0012.3456.789A", "MAC"),
        ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "CRYPTO_ADDRESS"),
        ("3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy", "CRYPTO_ADDRESS"),
        ("0x52908400098527886E0F7030069857D2E4169EE7", "CRYPTO_ADDRESS"),
        ("date of birth: 12/05/1990", "DATE_OF_BIRTH"),
        ("born on May 12, 1990", "DATE_OF_BIRTH"),
        ("passports: AB1234567", "PASSPORT"),
        ("account number 12345678", "BANK_ACCOUNT"),
        ("AB 12 34 56 C", "NATIONAL_ID"),
        ("12345678Z", "NATIONAL_ID"),
        ("redis://:hunter2@cache:6379/0", "URL_PASSWORD"),
        ("amqps://u:p@ss/w0rd@mq.example.com", "URL_PASSWORD"),
        ("https://7d3a9f2b7d3a9f2b@o1.ingest.sentry.io/2", "URL_PASSWORD"),
        ("https%3A%2F%2Fu%3Ahunter2%40example.com", "URL_PASSWORD"),
        ("https://discord.com/api/webhooks/123456789/7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb8", "WEBHOOK"),
        ("https://s3.example.com/a?X-Amz-Signature=7d3a9f2b7d3a9f2b7d3a9f2b&x=1", "SIGNATURE"),
        ("https://a.blob.example.com/c?sv=2022&sig=7Kd3Qa9Zx2Mf5Wb8%3D", "SIGNATURE"),
        ("Authorization: Basic YWRhOmh1bnRlcjI=", "KEY"),
        ('Authorization: Digest username="ada", response="6629fae49393a05397450978507c4ef1"', "KEY"),
        ("Cookie: sid=abc123; theme=dark", "COOKIE"),
        ("Set-Cookie: sid=abc123; Path=/; HttpOnly", "COOKIE"),
        ("db_password: hunter2", "KEY"),
        ("export API_KEY=hunter2", "KEY"),
        ("{'password': 'hunter2'}", "KEY"),
        ('{"a": "{\\"password\\": \\"hunter2\\"}"}', "KEY"),
        ("<password>hunter2</password>", "KEY"),
        ('<add key="Password" value="hunter2"/>', "KEY"),
        ('System.setProperty("DB_PASSWORD", "hunter2")', "KEY"),
        ("deploy --token hunter2 --force", "KEY"),
        ("password%3Dhunter2%26a%3D1", "KEY"),
        ("{&quot;password&quot;:&quot;hunter2&quot;}", "KEY"),
        ("password => 'hunter2'", "KEY"),
        ("$password .= 'hunter2'", "KEY"),
        ("password ?= hunter2", "KEY"),
        ("password := `hunter2`", "KEY"),
        ("curl -u ada:hunter2 https://example.com", "PASSWORD"),
        ("CREATE USER a IDENTIFIED BY 'hunter2'", "PASSWORD"),
        ("the password is hunter2", "PASSWORD"),
        ("plaid_client: 5f3a9d8c7b6e5d4c3b2a1f0e", "KEY"),
    ],
)
def test_a_form_is_found(text: str, kind: str) -> None:
    """RED-values: as its type; nothing of it is left in clear."""
    report = Counter[str]()

    shown = Redactor().redact_text(f"see {text} now", report)

    assert report[kind] >= 1, shown
    for secret in ("hunter2", "abc123", "6629fae4", "example.com>", "p@ss", "7d3a9f2b"):
        assert secret not in shown


@pytest.mark.parametrize(
    "text",
    [
        *("git@github.com:org/project.git", "ssh://git@github.com/org/project", "icon@2x.png", "react@18.2.0"),
        *("pkg@1.0.0-beta.rc", "getty@tty1.service", "https://example.com/@ada/profile", "@ada", "a@b", "a @ b.com"),
        *("4111111111111112", "4111 1111 1111 1112", "1234567890123456", "1700000000000000", "1748503543012"),
        *("4006381333931", "012345678905", "978-3-16-148410-0", "9780306406157", "0306406152"),
        *("000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "123-45-0000", "078-05-1120x", "123-45-67890"),
        *("GB33BUKB20201555555556", "DE8937040044053201300", "XX33BUKB20201555555555", "AB12CDEF"),
        *("256.1.1.1", "1.2.3", "1.2.3.4.5", "v1.2.3.4", "version 1.2.3.4", "pkg==1.2.3.4", "Chrome/120.0.0.0"),
        *("upgraded from 1.2.3.4 to 1.2.3.5", "section 4.3.2.1", "libfoo-1.2.3.4.so", "firmware: 10.0.1.2"),
        *("Mozilla/5.0 (Windows NT 6.1; rv:1.9.2.20) Gecko/20110803 Firefox/3.6",),
        *("12:34:56", "::", "a[::2]", "std::vector", "A::B", "Face::Bed", "gggg::1", "1:2:3", "00:01:02.345"),
        *("16:27:ac:a5:76:28:2d:36:63:1b:56:4d:eb:df:a6:48", "ZZ:ZZ:ZZ:ZZ:ZZ:ZZ", "00:1A:2B:3C:4D"),
        *("ff:3e:e0:98:4c:30:ce:2c:b5:63:b6:92:97:42:d7:",),
        *("+01:00", "2026-11-23T10:00:00+01:00", "UTC+0530", "1+1234567", "C++11", "+5 points", "+1 555", "555-1234"),
        *("+9991234567", "+1415555013", "+14155550132777", "+441234"),
        *("555-123-4567-A", "part 555-12-34", "call 2026-11-23", "phone model 1234567", "page 5551234567"),
        *("16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ2", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5", "0x1f", "0xdeadbeef"),
        *("born to run", "her birthday", "529.982.247-26", "12345678A", "BG123456C", "the tin roof 12345"),
        *("50 % of xghp_7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Z", "ghp_short", "hf_hub_download", "sk-learn-contrib-examples", "AKIAZZZ", "npm_config_registry"),
        *("xox", "glpat", "AIzaShort", "s.AcceptanceTimeoutSeconds", "bedrock-api-key-", "pk_test", "SK-12345"),
        *("eyJhbGciOiJIUzI1NiJ9", "eyJ.a.b", "basic training", "Bearer of news", "the bearer must", "basic auth"),
        *("-----BEGIN CERTIFICATE-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END CERTIFICATE-----",),
        *("-----BEGIN PUBLIC KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PUBLIC KEY-----",),
        *("password: str", "token: str | None = None", "token: dict[str, Any]", "email: Field required; password: Input should be a valid string", "(pwd is $cwd)", "a?b=1&sig=REDACTED", "password = get_password()", "token = self.token", "cookies=cookies"),
        *("password=${DB_PASSWORD}", "password: {{ db_password }}", "token: $TOKEN", "api_key=<your key>", "secret: ****"),
        *("password=null", "token = None", "password is required", "the password is incorrect", "forgot password?"),
        *("postgres://app:${PASSWORD}@db/users", "http://localhost:8080/a", "https://example.com:443/", "http://[::]/"),
        *('required: ["username", "password"]', "in ('csc', 'csr')", "key=value", "keyboard=us", "sort_key: name"),
        *("sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==",),
        *("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",),
        *("sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "d41d8cd98f00b204e9800998ecf8427e"),
        *("550e8400-e29b-41d4-a716-446655440000", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "MDEwOlJlcG9zaXRvcnkxODY4NTMwMDI="),
        *("#ff00aa", "rgba(0, 0, 0, 0.5)", "SKU-123456789", "order 4711-2026-0001", "INV-2026-000123456", "A1B2-C3D4-E5F6"),
        *("/var/lib/docker/overlay2/1a2b3c4d5e6f", "C:\\Users\\ada\\file.txt", "src/components/Foo/BarBaz12/HelloWorldxy"),
        *("Content-Type: application/json", "X-Request-ID: 550e8400-e29b-41d4-a716-446655440000", "Accept: */*"),
        *("http_requests_total", "aperion.events.emitted", 'process_cpu_seconds_total{job="a"}', "jvm.memory.used"),
        *("Order 12345ABC ships tomorrow", "Room 1234 at 12:30, 50 % off", "between 1999 and 2026", "3.14159265358979"),
        *("The quick brown fox jumps over the lazy dog.", "Das Passwort wurde zurückgesetzt.", "日本語のテキスト"),
        *("1,234,567.89", "$1,299.00", "192 168 1 1", "10.000.000", "1e10", "0.1234567890123456", "-12345678901234"),
        *("5414 5415 5416 5417 5418 5419 541A", "0000 0000 0000 0000", "11:22:33 44:55:66", "2026/11/23 10:00:00"),
        *("net.ipv4.tcp_syncookies=1", "<a accesskey='n' href='#'>next</a>", "type: secret", "cookie_policy_accepted=1"),
    ],
)  # fmt: skip
def test_what_only_looks_like_it_stays(text: str) -> None:
    """RED-fp: alone, and in a sentence."""
    redactor = Redactor()

    assert redactor.redact_text(text) == text
    assert redactor.redact_text(f"see {text} now") == f"see {text} now"


def _paths(before: Any, after: Any, name: str = "") -> list[str]:
    if isinstance(before, dict):
        return [path for key in before for path in _paths(before[key], after[key], key)]
    if isinstance(before, list):
        return [path for old, new in zip(before, after, strict=True) for path in _paths(old, new, name)]
    return [] if before == after else [name]


@pytest.mark.skipif(not WEBHOOKS.exists(), reason="the file of webhook events is not here")
def test_real_events_come_through_without_a_false_alarm() -> None:
    """RED-fp: of 329 events only addresses, permissions named 'secrets', and signed URLs are touched."""
    redactor, changed = Redactor(), Counter[str]()

    with gzip.open(WEBHOOKS, "rt", encoding="utf-8") as lines:
        for line in lines:
            payload = json.loads(line)["payload"]
            changed.update(_paths(payload, redactor.redact(payload)))

    # 'payload' is a signed commit with the address of its author; 'download_url' has a key and a signature.
    assert set(changed) == {
        *("email", "emails", "organization_billing_email", "secret", "secrets", "organization_secrets"),
        *("payload", "download_url"),
    }
