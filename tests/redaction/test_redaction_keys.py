"""Keys of well-known formats, made up anew on each run: in no form of theirs is a piece of one left."""

from __future__ import annotations

import base64
import json
import secrets
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from aperion import Redactor

DASHES = "-" * 5
PEM = (
    *("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY", "OPENSSH PRIVATE KEY"),
    *("ENCRYPTED PRIVATE KEY", "PGP PRIVATE KEY BLOCK", "SSH2 ENCRYPTED PRIVATE KEY"),
)
HEADERS = {
    "RSA PRIVATE KEY": "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n",
    "PGP PRIVATE KEY BLOCK": "Version: GnuPG v2\n\n",
    "SSH2 ENCRYPTED PRIVATE KEY": 'Comment: "my key"\n',
}
WRITTEN: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "in a JSON": lambda text: json.dumps({"note": text}),
    "in a JSON in a JSON": lambda text: json.dumps({"line": json.dumps({"note": text})}),
    "on one line": lambda text: text.replace("\n", "\\n"),
    "on one line of a .env": lambda text: "NOTE='" + text.replace("\n", "\\n") + "'",
    "with CRLF": lambda text: text.replace("\n", "\r\n"),
    "indented": lambda text: textwrap.indent(text, "    "),
    "quoted": lambda text: textwrap.indent(text, "> "),
}
CUT: dict[str, Callable[[str, str], str]] = {
    "whole": lambda text, _last: text,
    "without its end": lambda text, last: text.partition(last)[0] + last + "\n",
    "within a line": lambda text, last: text.partition(last)[0] + last[:-9],
}


def base64_lines(size: int) -> list[str]:
    return textwrap.wrap(base64.b64encode(secrets.token_bytes(size)).decode(), 64)


def letters(size: int) -> str:
    """Both cases and a digit, as every real one has."""
    return "aB3" + secrets.token_hex(size)[: size - 3]


def assert_nothing_left(shown: object, *pieces: str) -> None:
    text = str(shown)
    left = [piece for piece in pieces if any(piece[at : at + 8] in text for at in range(len(piece) - 7))]
    assert not left, text


@pytest.mark.parametrize("cut", CUT)
@pytest.mark.parametrize("way", WRITTEN)
@pytest.mark.parametrize("kind", PEM)
def test_private_keys_in_pem_are_hidden(kind: str, way: str, cut: str) -> None:
    """Their first line stays and says what it was."""
    lines, dashes = base64_lines(500), "-" * (4 if "SSH2" in kind else 5)
    key = "\n".join(
        [f"{dashes}BEGIN {kind}{dashes}", HEADERS.get(kind, "") + lines[0], *lines[1:], f"{dashes}END {kind}{dashes}\n"]
    )
    text = WRITTEN[way](CUT[cut](key, lines[-2]))

    shown = Redactor().redact_text(text)

    assert f"BEGIN {kind}{dashes}" in shown
    assert shown.count("[REDACTED_PRIVATE_KEY]") == 1
    assert_nothing_left(shown, *lines)


@pytest.mark.parametrize("cut", CUT)
@pytest.mark.parametrize("way", WRITTEN)
def test_private_keys_of_putty_are_hidden(way: str, cut: str) -> None:
    """The public half stays."""
    public, private = base64_lines(120), base64_lines(240)
    key = "\n".join(
        [
            *("PuTTY-User-Key-File-3: ssh-ed25519", "Encryption: none", "Comment: ada", f"Public-Lines: {len(public)}"),
            *(*public, f"Private-Lines: {len(private)}", *private, f"Private-MAC: {secrets.token_hex(32)}\n"),
        ]
    )
    text = WRITTEN[way](CUT[cut](key, private[-2]))

    shown = Redactor().redact_text(text)

    assert all(line in shown for line in public)
    assert "[REDACTED_PRIVATE_KEY]" in shown
    assert_nothing_left(shown, *private)


def service_account() -> tuple[dict[str, str], list[str]]:
    lines, name = base64_lines(1_200), "the-robot@some-project-1.iam.gserviceaccount.com"
    account = {
        "type": "service_account",
        "project_id": "some-project-1",
        "private_key_id": secrets.token_hex(20),
        "private_key": "\n".join(
            [DASHES + "BEGIN PRIVATE KEY" + DASHES, *lines, DASHES + "END PRIVATE KEY" + DASHES, ""]
        ),
        "client_email": name,
        "client_id": "104857600000000000001",
        "token_uri": "https://oauth2.googleapis.com/token",
        "client_x509_cert_url": f"https://www.googleapis.com/robot/v1/metadata/x509/{name.replace('@', '%40')}",
    }
    return account, [*lines, account["private_key_id"], "the-robot"]


def test_a_service_account_of_gcp_is_hidden() -> None:
    """As a payload, and as a text in every layout; what tells the project and where to go stays."""
    account, hidden = service_account()
    texts = (json.dumps(account), json.dumps(account, indent=2), str(account), json.dumps(json.dumps(account)))

    shown = [Redactor().redact(account), *map(Redactor().redact_text, texts)]

    for copy in shown:
        assert_nothing_left(copy, *hidden)
        assert "some-project-1" in str(copy)
        assert "https://oauth2.googleapis.com/token" in str(copy)


def test_a_service_account_that_was_cut_is_hidden() -> None:
    """In the middle of its key."""
    account, hidden = service_account()
    text = json.dumps(account)

    shown = Redactor().redact_text(text[: len(text) // 2])

    assert_nothing_left(shown, *hidden)


AZURE = {
    "storage": "DefaultEndpointsProtocol=https;AccountName=shop;AccountKey={};EndpointSuffix=core.windows.net",
    "shared access": "BlobEndpoint=https://shop.blob.core.windows.net/;SharedAccessSignature=sv=2022-11-02&sp=rl&sig={}",
    "service bus": "Endpoint=sb://shop.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey={};EntityPath=q",
    "devices": "HostName=shop.azure-devices.net;DeviceId=d1;SharedAccessKey={}",
    "cosmos": "AccountEndpoint=https://shop.documents.azure.com:443/;AccountKey={};",
}


@pytest.mark.parametrize("around", ["{}", '{{"a": "{}"}}', "cannot connect to {} now", "X='{}'", "CONNECTION={}"])
@pytest.mark.parametrize("service", AZURE)
def test_the_key_in_a_connection_string_of_azure_is_hidden(service: str, around: str) -> None:
    """The account stays."""
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    key = key.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D") if service == "shared access" else key

    shown = Redactor().redact_text(around.format(AZURE[service].format(key)))

    marker = "[REDACTED_SIGNATURE]" if service == "shared access" else "[REDACTED]"
    assert shown == around.format(AZURE[service].format(marker))


@pytest.mark.parametrize(
    "around",
    [
        *("Authorization: {}", 'curl -H "Authorization: {}" https://x.test/a', "sent Authorization: {} to x.test"),
        *('{{"Authorization": "{}"}}', "headers={{'authorization': '{}'}}", "Authorization: {}, Accept: text/html"),
        *("Proxy-Authorization: {}\r\nAccept: */*", "INFO Authorization={}", "authorization: {}\n"),
    ],
)
@pytest.mark.parametrize(
    "scheme", ["Token ", "token ", "TOKEN ", "Token token=", "Key ", "ApiKey ", "SSWS ", "GenieKey ", "SharedKey a:"]
)
def test_what_authorizes_is_hidden_whatever_its_scheme(scheme: str, around: str) -> None:
    """The header and what stands around it stay."""
    for token in (secrets.token_hex(20), letters(24), base64.b64encode(b"1" + secrets.token_bytes(32)).decode()):
        shown = Redactor().redact_text(around.format(scheme + token))

        assert "uthorization" in shown
        assert "[REDACTED" in shown
        assert around.rpartition("}")[2].strip("'\"}") in shown
        assert_nothing_left(shown, token)
        assert Redactor().redact_text(shown) == shown


def a_uuid() -> str:
    """One with letters and digits in its longest part, as all but one in three hundred have."""
    return f"{secrets.token_hex(4)}-{secrets.token_hex(2)}-4{secrets.token_hex(2)[1:]}-a{secrets.token_hex(2)[1:]}-a1{secrets.token_hex(5)}"


VENDORS: dict[str, Callable[[], str]] = {
    **dict.fromkeys(
        ["datadog", "datadogApp", "DATADOG_APPLICATION", "DD_APP_KEY"], lambda: "a1" + secrets.token_hex(19)
    ),
    **dict.fromkeys(["heroku", "heroku_api", "herokuKey", "HEROKU_PRODUCTION"], a_uuid),
    **dict.fromkeys(["twilio", "twilio_auth", "TWILIO_AUTH_TOKEN"], lambda: "a1" + secrets.token_hex(15)),
    **dict.fromkeys(["okta", "okta_api", "oktaClient", "OKTA_API_TOKEN"], lambda: "00" + letters(40)),
}
NOTATIONS = (
    *("{n}={v}", "{n}: {v}", '{n} = "{v}"', "export {n}={v}", "'{n}' => '{v}'", "{n}:{v}", "{n} := {v}"),
    *('"{n}": "{v}"', '{{"{n}": "{v}", "x": 1}}', '"{{\\"{n}\\": \\"{v}\\"}}"', '{n}=\\"{v}\\"', "?{n}={v}&b=1"),
    *("run --{n} {v} now", "java -D{n}={v} -jar a.jar", "<{n}>{v}</{n}>", "('{n}', '{v}')", "name: {n}, value: {v}"),
)


@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize("name", VENDORS)
def test_a_name_gives_the_key_of_a_service_away(name: str, notation: str) -> None:
    """Which by itself looks like any digest or id."""
    value = VENDORS[name]()

    shown = Redactor().redact_text(notation.format(n=name, v=value))

    assert name in shown
    assert_nothing_left(shown, value)


@pytest.mark.parametrize("name", VENDORS)
def test_a_name_gives_the_key_of_a_service_away_in_a_payload(name: str) -> None:
    """At any depth, unless names hide nothing."""
    payload = {"config": [{name: VENDORS[name](), "n": 1}]}

    shown: Any = Redactor().redact(payload)

    assert shown["config"][0][name].startswith("[REDACTED")
    assert shown["config"][0]["n"] == 1
    assert Redactor().redact(shown) == shown
    # The tokens of Okta have a shape of their own.
    assert Redactor(skip_types={"KEY", "OKTA_TOKEN"}).redact(payload) == payload


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("datadog", "7"), ("datadog_site", "datadoghq.example"), ("datadog_url", "https://a1b2c3.example/d4e5f6a7")),
        *(("stripe_customer_id", "cus_7kd3qa9zx2mf5w"), ("twilioMessageId", "7kd3qa9zx2mf5wb8"), ("zoom_at", "7kd3qa9zx2mf5wb8")),
        *(("twilio_sent", "2026-11-23T10:00:00Z"), ("segment", "new-customers-2026"), ("heroku_release", "v12")),
        *(("herokuOn", "7kd3qa9zx2mf5wb8"), ("monday", "7kd3qa9zx2mf5wb8"), ("sha", "6dcb09b5b57875f334f61aebed695e2e4193db5e")),
    ],
)  # fmt: skip
def test_what_a_service_calls_something_else_stays(name: str, value: str) -> None:
    """Ids, dates, words and addresses of pages."""
    assert Redactor().redact({name: value}) == {name: value}
