"""Find credentials by their form where no prefix says what they are: JWTs, bearer tokens, bot tokens, AWS secrets."""

from __future__ import annotations

import base64
import re
from functools import partial
from typing import TYPE_CHECKING, Final

from aperion.redaction.regexes import regex

if TYPE_CHECKING:
    from aperion.redaction.marks import Hide

# RFC 7519 and RFC 7516: base64url of '{"…', then one to four more parts; the signature may be missing.
_JWT = regex(
    r"""(?:(?<![A-Za-z0-9_\-])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))
    e(?:y[JA]|w[o0k])[\w\-]{8,}+\.(?=[\w\-]{4})[\w\-]*+(?:\.[\w\-+/=]*+){0,3}(?<!\.)""",
    re.VERBOSE,
)
_JWT_HEADS: Final = ("eyJ", "eyA", "ewo", "ew0", "ewk")
_ENCODED_JWT = regex(r"(?<![A-Za-z0-9+/])ZXlK[A-Za-z0-9+/_\-]{60,}+={0,2}")  # base64 of 'eyJ…'

_BARE: Final = (
    # The id of the bot in base64, the time, an HMAC: the page on Discord's tokens.
    ("DISCORD_TOKEN", ".", regex(r"(?<![\w\-])[MNO][\w\-]{22,27}\.[\w\-]{6,7}\.[\w\-]{27,45}(?![\w\-])")),
    # core.telegram.org/bots: the id of the bot, a colon, 35 characters that begin with A.
    ("TELEGRAM_TOKEN", ":A", regex(r"(?<![\w\-])(?:bot)?\d{6,16}:A[\w\-]{32,36}(?![\w\-])")),
    ("FACEBOOK_TOKEN", "|", regex(r"(?<!\w)\d{15,16}(?:\||%7C)[\w\-]{27,40}(?![\w\-])")),
    # Client secrets of Microsoft Entra: 3 characters, a digit, 'Q~', 31 to 34 more.
    ("AZURE_SECRET", "Q~", regex(r"(?<![\w.~])[\w.~]{3}\dQ~[\w.~\-]{31,34}(?![\w~\-])")),
    ("TERRAFORM_TOKEN", ".atlasv1.", regex(r"(?<!\w)[A-Za-z0-9]{14}\.atlasv1\.[\w=\-]{40,80}(?![\w\-])")),
    ("MAILCHIMP_KEY", "-us", regex(r"(?<![\w\-])[0-9a-f]{32}-us\d{1,2}(?![\w\-])")),
    ("MAILGUN_KEY", "-", regex(r"(?<![\w\-])[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8}(?![\w\-])")),
    ("MAXMIND_KEY", "_mmk", regex(r"(?<![\w\-])[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk(?!\w)")),
    (
        "OKTA_TOKEN",
        "00",
        regex(r"(?<![\w\-])00(?=[\da-z_\-]{0,39}[A-Z])(?=[\dA-Z_\-]{0,39}[a-z])[\w\-]{40}(?![\w\-])"),
    ),
    ("TWITTER_TOKEN", "AAAAAAAAAA", regex(r"(?<!\w)A{20,22}[A-Za-z0-9%]{60,120}(?!\w)")),
    ("DROPBOX_TOKEN", "AAAAAAAAAA", regex(r"(?<!\w)[\w\-]{11}AAAAAAAAAA[\w\-=]{43}(?!\w)")),
)

_AWS_SECRET = regex(r"(?:(?<![\w/+.\-])|(?<=\\[nrt]))[A-Za-z0-9/+]{40}(?![\w/+=\-])(?!\.\w)")
_CHANGES = regex(r"[a-z](?=[A-Z0-9])|[A-Z](?=[a-z0-9])|[0-9](?=[A-Za-z])")
_FEWEST_CHANGES: Final = 10

# A key of no known maker: what it is, a sign, and twenty characters or more that change case and have a digit.
_GENERIC = regex(
    r"""[_\-](?=[A-Za-z0-9]{20})
    (?:(?<=(?<![A-Za-z0-9/])token.)|(?<=(?<![A-Za-z0-9/])secret.)|(?<=(?<![A-Za-z0-9/])api.)|(?<=(?<![A-Za-z0-9/])key.)
      |(?<=(?<![A-Za-z0-9/])[ps]k.))
    (?P<value>[A-Za-z0-9]{20,64}+)(?![\w\-])""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_PART_OF_NAME = regex(r"[A-Z]?[a-z]{3,}|[A-Z]{6,}")

_SCHEME = regex(r"\b(?P<before>(?:(?:bearer|basic)[ \t]{1,8}+){1,4}+)(?P<token>[\w.~+/=\-]++)", re.IGNORECASE)
_PLAIN_WORD = regex(r"[A-Za-z]?[a-z]*[.\-]?")
_BASE64 = regex(r"[A-Za-z0-9+/_\-]{6,}={0,2}")
_MIXED: Final = (regex(r"[a-z]"), regex(r"[A-Z]"), regex(r"[0-9]"))
_ABOUT_BEARERS: Final = frozenset(
    {"token", "tokens", "auth", "authentication", "authorization", "scheme", "credentials", "realm", "error"}
    | {"of", "is", "was", "not", "must", "or", "and", "the", "in", "for", "to", "bond", "bonds", "shares"}
)


def hide_credentials(text: str, hide: Hide) -> str:
    """Return a text with its JWTs, bot tokens and the like hidden."""
    if any(head in text for head in _JWT_HEADS):
        text = _JWT.sub(lambda found: hide("JWT", found[0]), text)
    if "ZXlK" in text:
        text = _ENCODED_JWT.sub(lambda found: hide("JWT", found[0]), text)
    for kind, trigger, pattern in _BARE:
        if trigger in text:
            text = pattern.sub(partial(_hidden, kind, hide), text)
    return text


def hide_generic_keys(text: str, hide: Hide) -> str:
    """Return a text with random values hidden that say themselves what they are, such as ``token_7Kd3…``."""
    return _GENERIC.sub(lambda found: _generic(found, hide), text)


def _generic(found: re.Match[str], hide: Hide) -> str:
    """Tell a key from a hash and a ULID, which have one case, and from a name, most of which is words."""
    value = found["value"]
    odd = len(_PART_OF_NAME.sub("", value))
    if 3 * odd < len(value) or not all(kind.search(value) for kind in _MIXED):
        return found[0]
    return found[0][0] + hide("KEY", value)


def hide_aws_secrets(text: str, hide: Hide) -> str:
    """Return a text with the secret access keys of AWS hidden."""
    return _AWS_SECRET.sub(lambda found: _aws_secret(found[0], hide), text)


def _hidden(kind: str, hide: Hide, found: re.Match[str]) -> str:
    return hide(kind, found[0])


def hide_schemes(text: str, hide: Hide) -> str:
    """Return a text with what follows ``Bearer`` and ``Basic`` hidden: RFC 6750 and RFC 7617."""
    return _SCHEME.sub(lambda found: _without_token(found, hide), text)


def _aws_secret(token: str, hide: Hide) -> str:
    """Tell the 40 characters of a secret access key from a path: those change case at every turn."""
    if not ("/" in token or "+" in token) or len(_CHANGES.findall(token)) < _FEWEST_CHANGES:
        return token
    return hide("AWS_SECRET", token) if all(kind.search(token) for kind in _MIXED) else token


def _without_token(match: re.Match[str], hide: Hide) -> str:
    scheme, token = match["before"].split()[-1], match["token"]
    found = _is_bearer(scheme, token) if scheme.lower() == "bearer" else _is_basic(token)
    return (
        match["before"] + hide("BEARER" if scheme.lower() == "bearer" else "BASIC_AUTH", token) if found else match[0]
    )


def _is_bearer(scheme: str, token: str) -> bool:
    if _PLAIN_WORD.fullmatch(token):
        return scheme[0] == "B" and token.lower().rstrip(".-") not in _ABOUT_BEARERS
    return True


def _is_basic(token: str) -> bool:
    """Tell credentials, the base64 of ``user:password``, from the next word of a sentence."""
    token = token.rstrip(".")
    if not _BASE64.fullmatch(token):
        return False
    if token.endswith("=") or all(kind.search(token) for kind in _MIXED):
        return True
    try:
        decoded = base64.b64decode(token + "=" * (-len(token) % 4)).decode()
    except ValueError:
        return False
    return ":" in decoded and decoded.isprintable()
