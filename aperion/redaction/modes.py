"""What is written in place of a hidden value: a mark, a part of it, a pseudonym, or the value under a key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from aperion.errors import ConfigurationError
from aperion.redaction.markers import KEY, kind_marker
from aperion.redaction.regexes import regex

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Iterator, Mapping

_KEY_ID = regex(r"[a-z0-9]{1,16}")
_LEAST_SECRET = 16
_TOKEN_BYTES = 10
_NONCE_BYTES = 12
_LONGEST_ENCRYPTED = 8_192
_LAST = 4
_NOT_DIGITS = regex(r"\D+")
_MAIL_DOMAIN = regex(r"(?:@|\uff20|%40)(?P<domain>[\w.\-]{1,255})\Z")


class Mode(Enum):
    """What happens to a hidden value."""

    MASK = "mask"
    """``[REDACTED_EMAIL]``: its type is told, and nothing else."""
    DROP = "drop"
    """Its entry is left out; inside a longer text it becomes ``[REDACTED]``."""
    PARTIAL = "partial"
    """``[REDACTED_CC:1111]``: the last four of a card, phone or IBAN, the domain of an e-mail; never of secrets."""
    PSEUDONYM = "pseudonym"
    """``[REDACTED_EMAIL:k1:mzxw6ytboi4gk3dp]``: the same for the same value, under one key."""
    ENCRYPT = "encrypt"
    """``[REDACTED_EMAIL:k1:…]``: the value itself, for whoever has the key and calls ``reveal``."""


@dataclass(frozen=True, slots=True)
class RedactionKey:
    """A key for pseudonyms and encryption, and the id by which it is told from later ones.

    Args:
        id: up to 16 lower-case letters and digits; written with each value.
        secret: 16 bytes or more, kept where other secrets are: whoever has it can undo both.

    Raises:
        ConfigurationError: for another id or a shorter secret.
    """

    id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what could not be read back, or guessed."""
        if not _KEY_ID.fullmatch(self.id):
            raise ConfigurationError(f"{self.id!r} is no key id; pass up to 16 lower-case letters and digits: 'k1'")
        if len(self.secret) < _LEAST_SECRET:
            raise ConfigurationError(
                f"the secret of key {self.id!r} has {len(self.secret)} bytes; pass {_LEAST_SECRET} or more: "
                "secrets.token_bytes(32)"
            )


_in_use: ContextVar[RedactionKey | None] = ContextVar("aperion_redaction_key", default=None)


@contextmanager
def encrypting_with(key: RedactionKey | None) -> Iterator[None]:
    """Encrypt with this key inside of ``with``, whatever key a redactor has; pseudonyms stay what they are.

    None is for its own key again.
    """
    token = _in_use.set(key)
    try:
        yield
    finally:
        _in_use.reset(token)


PARTIAL_KINDS: Final = frozenset({"EMAIL", "CC", "PHONE", "IBAN"})


class Modes:
    """How each type of value is written; one for each redactor."""

    __slots__ = ("_keys", "_modes", "_used", "known", "may_drop")

    def __init__(
        self, modes: Mapping[str, Mode], by_key: Mapping[str, Mode] | None = None, keys: Iterable[RedactionKey] = ()
    ) -> None:
        self._modes = dict(modes)
        self._keys = {key.id: key for key in keys}
        used = [*self._modes.items(), *(by_key or {}).items()]
        self._check(used)
        self._used = {mode for _, mode in used}
        self.may_drop = Mode.DROP in self._modes.values()
        self.known = regex(self._known_pattern())

    def _check(self, used: Iterable[tuple[str, Mode]]) -> None:
        for kind, mode in used:
            if not isinstance(mode, Mode):
                raise ConfigurationError(f"{mode!r} is no mode for {kind}; pass one of aperion.redaction.Mode")
            if mode is Mode.PARTIAL and kind not in PARTIAL_KINDS:
                raise ConfigurationError(
                    f"{kind} cannot be shown in part; only {', '.join(sorted(PARTIAL_KINDS))} can: choose another mode"
                )
            if mode in (Mode.PSEUDONYM, Mode.ENCRYPT) and not self._keys:
                raise ConfigurationError(
                    f"{mode} of {kind} needs a key; pass key=RedactionKey('k1', secrets.token_bytes(32))"
                )
            if mode is Mode.ENCRYPT:
                _aes_gcm()

    def drops(self, kind: str) -> bool:
        """Tell whether the entries of a type are left out."""
        return self._modes.get(kind) is Mode.DROP

    def marker(self, kind: str, value: str, mode: Mode | None = None) -> str:
        """Return what stands in place of a value of a type, in the mode of that type or in another."""
        mode = mode or self._modes.get(kind, Mode.MASK)
        if mode is Mode.MASK:
            return kind_marker(kind)
        if mode is Mode.DROP:
            return kind_marker(KEY)
        marker = f"{kind_marker(kind)[:-1]}:{self._detail(mode, kind, value)}]"
        # What would not be known again as a marker is not written.
        return marker if self.known.fullmatch(marker) is not None else kind_marker(kind)

    def _detail(self, mode: Mode, kind: str, value: str) -> str:
        if mode is Mode.PARTIAL:
            return _part(kind, value)
        key = next(iter(self._keys.values()))
        if mode is Mode.PSEUDONYM:
            return f"{key.id}:{_pseudonym(key, kind, value)}"
        key = _in_use.get() or key
        data = value.encode("utf-8", "surrogatepass")
        return f"{key.id}:{_encrypted(key, kind, data)}" if len(data) <= _LONGEST_ENCRYPTED else ""

    def reveal(self, marker: str) -> str:
        """Return the value that a marker of ``Mode.ENCRYPT`` holds."""
        name = key_of(marker)
        key = self._keys.get(name)
        if key is None:
            raise ConfigurationError(
                f"no key with the id {name!r}; this redactor has {', '.join(map(repr, self._keys)) or 'none'}"
            )
        return revealed(marker, key)

    def _known_pattern(self) -> str:
        """Return what a marker of ours looks like; whatever else is in brackets is looked at like any text."""
        details = [r"k?[a-z0-9]{1,16}:[a-z2-7]{16}"] if Mode.PSEUDONYM in self._used else []
        if Mode.ENCRYPT in self._used:
            details.append(rf"[a-z0-9]{{1,16}}:[A-Za-z0-9_\-]{{38,{2 * _LONGEST_ENCRYPTED}}}")
        if Mode.PARTIAL in self._used:
            details.append(rf"[A-Z0-9]{{{_LAST}}}|(?:[\w\-]{{1,63}}\.){{1,8}}[^\W\d_][\w\-]{{1,62}}")
        detail = f"(?::(?:{'|'.join(details)}))?" if details else ""
        return rf"\[REDACTED(?:_[A-Z0-9_]{{1,48}})?{detail}\]|[\ue000-\uf8ff]"


_ENCRYPTED = regex(r"\[REDACTED(?:_(?P<kind>[A-Z0-9_]{1,48}))?:(?P<id>[a-z0-9]{1,16}):(?P<data>[\w\-]+)\]")


def key_of(marker: str) -> str:
    """Return the id of the key that the value in a marker was encrypted with.

    Raises:
        ConfigurationError: where it is no such marker.
    """
    return _parsed(marker)["id"]


def revealed(marker: str, key: RedactionKey) -> str:
    """Return the value that a marker holds.

    Raises:
        ConfigurationError: where it is no such marker, or was encrypted with another secret, or changed.
    """
    found = _parsed(marker)
    return _decrypted(key, found["kind"], found["data"])


def check_encryption() -> None:
    """See that values can be encrypted here.

    Raises:
        ConfigurationError: without the package for it.
    """
    _aes_gcm()


def _parsed(marker: str) -> re.Match[str]:
    found = _ENCRYPTED.fullmatch(marker)
    if found is None:
        raise ConfigurationError("that is no encrypted value; pass one marker: [REDACTED_EMAIL:k1:…]")
    return found


def _part(kind: str, value: str) -> str:
    if kind == "EMAIL":
        found = _MAIL_DOMAIN.search(value)
        return found["domain"].strip(".").lower() if found is not None else ""
    return _plain(kind, value)[-_LAST:]


def _plain(kind: str, value: str) -> str:
    """Return a value without what differs between two ways to write it."""
    if kind == "EMAIL":
        return value.strip().lower()
    if kind in ("CC", "PHONE", "SSN"):
        return _NOT_DIGITS.sub("", value)
    return "".join(value.split()).upper() if kind == "IBAN" else value


def _pseudonym(key: RedactionKey, kind: str, value: str) -> str:
    """Return 80 bits of HMAC-SHA-256 (RFC 2104) in base32; the type goes in, so that types do not mix."""
    text = f"{kind}\0{_plain(kind, value)}".encode("utf-8", "surrogatepass")
    digest = hmac.digest(_derived(key, b"pseudonym"), text, "sha256")
    return base64.b32encode(digest[:_TOKEN_BYTES]).decode().lower()


def _encrypted(key: RedactionKey, kind: str, data: bytes) -> str:
    """Return AES-256-GCM (NIST SP 800-38D) of a value, the nonce first, bound to its type."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = _aes_gcm()(_derived(key, b"encrypt")).encrypt(nonce, data, kind.encode())
    return base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("=")


def _decrypted(key: RedactionKey, kind: str | None, text: str) -> str:
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    try:
        opened = _aes_gcm()(_derived(key, b"encrypt")).decrypt(
            data[:_NONCE_BYTES], data[_NONCE_BYTES:], (kind or KEY).encode()
        )
    except Exception:  # noqa: BLE001 - cryptography's InvalidTag, which is not to be named without importing it
        raise ConfigurationError(
            f"the value was not encrypted with the secret of key {key.id!r}, or was changed"
        ) from None
    return bytes(opened).decode("utf-8", "surrogatepass")


def _derived(key: RedactionKey, purpose: bytes) -> bytes:
    return hashlib.blake2b(b"aperion redaction " + purpose, key=key.secret[:64], digest_size=32).digest()


def _aes_gcm() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ConfigurationError("Mode.ENCRYPT needs cryptography; install aperion-bus[sign]") from error
    return AESGCM
