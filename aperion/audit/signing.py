"""Signatures under checkpoints: Ed25519 (RFC 8032), by the package cryptography."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aperion.errors import ConfigurationError

_ID = re.compile(r"[A-Za-z0-9._\-]{1,64}")
_LENGTH = 32
_PUBLIC, _PRIVATE = "public", "private"


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """The public half of a key, and its id.

    Args:
        id: as checkpoints name it.
        raw: 32 bytes.
    """

    id: str
    raw: bytes

    def __post_init__(self) -> None:
        """Refuse what is no key."""
        _check(self.id, self.raw)

    @property
    def text(self) -> str:
        """The key in base64."""
        return base64.b64encode(self.raw).decode()

    def verifies(self, signature: str, message: bytes) -> bool:
        """Tell whether a signature is that of a message under this key."""
        try:
            _ed25519().Ed25519PublicKey.from_public_bytes(self.raw).verify(base64.b64decode(signature), message)
        except ConfigurationError:
            raise
        except Exception:  # noqa: BLE001 - InvalidSignature, or no base64 at all
            return False
        return True

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as one line: its id, the word "public", and the key in base64."""
        Path(path).write_text(f"{self.id} {_PUBLIC} {self.text}\n", encoding="ascii")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VerifyKey:
        """Read what ``save`` wrote.

        Raises:
            ConfigurationError: for a file that holds no public key.
        """
        return cls(*_read(path, _PUBLIC))


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs checkpoints, and its id.

    Args:
        id: up to 64 letters, digits, dots, dashes and underscores.
        private: 32 bytes, kept where other secrets are and not beside the log.
    """

    id: str
    private: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what is no key, and what could not sign."""
        _check(self.id, self.private)
        _ed25519()

    @classmethod
    def generate(cls, id: str) -> SigningKey:  # noqa: A002 - the word for it
        """Make a new key."""
        return cls(id, os.urandom(_LENGTH))

    @property
    def public(self) -> VerifyKey:
        """The half that checks signatures."""
        return VerifyKey(self.id, self._key().public_key().public_bytes_raw())

    def sign(self, message: bytes) -> str:
        """Return the signature of a message in base64."""
        return base64.b64encode(self._key().sign(message)).decode()

    def _key(self) -> Any:
        return _ed25519().Ed25519PrivateKey.from_private_bytes(self.private)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a new file with mode 0600.

        Raises:
            FileExistsError: when there is one.
        """
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(f"{self.id} {_PRIVATE} {base64.b64encode(self.private).decode()}\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SigningKey:
        """Read what ``save`` wrote.

        Raises:
            ConfigurationError: for a file that holds no private key.
        """
        return cls(*_read(path, _PRIVATE))


def _read(path: str | os.PathLike[str], wanted: str) -> tuple[str, bytes]:
    try:
        name, kind, text = Path(path).read_text(encoding="ascii").split()
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raise ConfigurationError(
            f"{os.fspath(path)} holds no key; one is a line such as 'k1 {wanted} MC4CAQ…'"
        ) from None
    if kind != wanted:  # a private key taken for a public one would call every signature forged
        raise ConfigurationError(f"{os.fspath(path)} holds a {kind} key; pass the file with the {wanted} one")
    return name, raw


def _check(name: str, raw: bytes) -> None:
    if not _ID.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no key id; pass up to 64 letters, digits and '._-'")
    if not isinstance(raw, bytes) or len(raw) != _LENGTH:
        raise ConfigurationError(f"the key {name!r} does not have {_LENGTH} bytes; SigningKey.generate makes one")


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigurationError("signing needs cryptography; install aperion-bus[sign]") from error
    return ed25519
