"""Hide credentials in a text by what stands before them."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final

from aperion.redaction.assignments import hide_assigned
from aperion.redaction.markers import CUT, REDACTED

if TYPE_CHECKING:
    from aperion.redaction.keys import Keys

_URL = re.compile(r"""://[^\s"'<>`]*+""")
_USERINFO_END = re.compile(r"[/?#]")
_PORT = re.compile(r"\d{0,5}(?:[/?#,]|\Z)")

_SCHEME = re.compile(r"\b(?P<before>(?:(?:bearer|basic)[ \t]{1,8}+){1,4}+)(?P<token>[\w.~+/=\-]++)", re.IGNORECASE)
_PLAIN_WORD = re.compile(r"[A-Za-z]?[a-z]*[.\-]?")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-]{6,}={0,2}")
_MIXED: Final = (re.compile(r"[a-z]"), re.compile(r"[A-Z]"), re.compile(r"[0-9]"))
_ABOUT_BEARERS: Final = frozenset(
    {"token", "tokens", "auth", "authentication", "authorization", "scheme", "credentials", "realm", "error"}
    | {"of", "is", "was", "not", "must", "or", "and", "the", "in", "for", "to", "bond", "bonds", "shares"}
)

_LONGEST_TAIL = 1024
_GROWTH = 4
"""How many times as long a text can get: ``pw=1`` becomes ``pw=[REDACTED]``."""


class TextRules:
    """Everything that is done to one text: each rule has a cheap test before it, and costs linear time."""

    __slots__ = ("_keys", "_max")

    def __init__(self, keys: Keys, max_text: int) -> None:
        self._keys = keys
        self._max = max_text

    def redact(self, text: str) -> str:
        """Return a text with its credentials hidden, and cut where it is too long."""
        if len(text) > self._max:
            return self._cut(text)
        if ":" in text or "=" in text or " " in text or "\t" in text:
            clean = self._clean(text)
            return clean if len(clean) <= self._max else self._cut(clean)
        return text

    def _clean(self, text: str) -> str:
        if "@" in text and "://" in text:
            text = _URL.sub(_without_password, text)
        if ":" in text or "=" in text:
            text = hide_assigned(text, self._keys)
        lowered = text.lower()
        if "bearer" in lowered or "basic" in lowered:
            text = _SCHEME.sub(_without_token, text)
        return text

    def _cut(self, text: str) -> str:
        # What was cut once may have grown, and is not cut again.
        if text.endswith(CUT) and len(text) <= _GROWTH * self._max + len(CUT):
            return self._clean(text.removesuffix(CUT)) + CUT
        clean = self._clean(self._head(text))
        return (clean if len(clean) <= self._max else self._clean(self._head(clean))) + CUT

    def _head(self, text: str) -> str:
        """Return a beginning that ends between words: half a secret is not recognised."""
        head = text[: self._max]
        tail = head[-min(_LONGEST_TAIL, self._max) :]
        kept = max(tail.rfind(" "), tail.rfind("\n"), 0)
        return head[: len(head) - len(tail) + kept]


def _without_password(url: re.Match[str]) -> str:
    return "://".join(_hidden_userinfo(part) for part in url[0].split("://"))


def _hidden_userinfo(part: str) -> str:
    """Hide the password of ``user:password@host/path``; it may hold ``@`` and, against the rules, ``/``."""
    end = _USERINFO_END.search(part)
    authority = part if end is None else part[: end.start()]
    if "@" not in authority:
        if authority.startswith("[") or _PORT.match(part.partition(":")[2]):
            return part
        authority = part
    userinfo, at, _ = authority.rpartition("@")
    user, colon, password = userinfo.partition(":")
    if not (at and colon and password):
        return part
    return f"{user}:{REDACTED}{part[len(userinfo) :]}"


def _without_token(match: re.Match[str]) -> str:
    scheme, token = match["before"].split()[-1], match["token"]
    found = _is_bearer(scheme, token) if scheme.lower() == "bearer" else _is_basic(token)
    return f"{match['before']}{REDACTED}" if found else match[0]


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
