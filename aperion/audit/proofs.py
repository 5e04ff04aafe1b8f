"""What proves more than the chain: signatures, checkpoints kept elsewhere, records of what was removed."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aperion.audit.checkpoints import checkpoint_message, rotation_message
from aperion.audit.record import parsed
from aperion.audit.signing import VerifyKey
from aperion.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aperion.audit.chain import Link

_SLACK: Final = 1000
"""Records that may follow a checkpoint that is due: a batch is written before it."""


class Proofs:
    """Judges the records of a chain by what else is known.

    Args:
        keys: public keys; without any, signatures are not looked at.
        checkpoints: copies kept elsewhere, or files of them.
    """

    # Mutable: all of it, record by record.

    def __init__(
        self, keys: Sequence[VerifyKey], checkpoints: Sequence[str | os.PathLike[str] | Mapping[str, Any]]
    ) -> None:
        self._keys = {key.id: key for key in keys}
        self._outside: dict[int, str] = {}
        self._known = 0  # the last record that a copy kept elsewhere knows of
        for fields, where in _outside(checkpoints):
            seq, digest = _place(fields, where)
            self._outside[seq] = digest
            # What is a record itself stood right behind the one that it is about.
            self._known = max(self._known, seq + (fields.get("kind") == "checkpoint"))
        self._key: str | None = None
        self._every = 0
        self._checkpoint_seq = 0
        self._signed_seq = 0
        self._is_overdue = False
        self._unexplained: Link | None = None

    # Signatures

    def checkpoint(self, fields: Mapping[str, Any], link: Link, before: Link) -> str | None:  # noqa: PLR0911 - so much can be wrong
        """Return what is wrong with a checkpoint."""
        if (fields.get("count"), fields.get("last")) != (before.seq, before.hash):
            return "this checkpoint is not about the record before it"
        every = fields.get("every")
        self._every = every if isinstance(every, int) else 0
        self._checkpoint_seq, self._is_overdue = link.seq, False
        if not self._keys:
            return None
        name, signature = fields.get("key"), fields.get("signature")
        if not isinstance(name, str) or not isinstance(signature, str):
            return "this checkpoint is not signed"
        key = self._keys.get(name)
        if key is None:
            return f"this checkpoint is signed with the key {name!r}, which is none of those given"
        if not key.verifies(signature, _message(checkpoint_message, fields)):
            return f"the signature of this checkpoint is not that of the key {name!r}"
        if self._key is not None and name != self._key:
            return f"this checkpoint is signed with the key {name!r}, those before with {self._key!r}, and no record says so"
        self._key, self._signed_seq = name, link.seq
        return None

    def rotation(self, fields: Mapping[str, Any]) -> str | None:
        """Return what is wrong with a change of keys."""
        if not self._keys:
            return None
        old = self._keys.get(str(fields.get("old_key")))
        try:
            new = VerifyKey(str(fields.get("new_key")), base64.b64decode(str(fields.get("public"))))
        except (ConfigurationError, ValueError):
            return "this change of keys holds no key"
        message = _message(rotation_message, fields)
        if old is None or not old.verifies(str(fields.get("signature_old")), message):
            return f"this change of keys is not signed with the key {fields.get('old_key')!r}"
        if not new.verifies(str(fields.get("signature_new")), message):
            return f"this change of keys is not signed with the key {new.id!r}"
        if self._keys.setdefault(new.id, new) != new:
            return f"this change of keys has another key {new.id!r} than the one given"
        self._key = new.id
        return None

    def overdue(self, link: Link) -> str | None:
        """Return that a checkpoint is missing, once."""
        since = link.seq - self._checkpoint_seq
        if not self._keys or self._is_overdue or not self._every or since <= 2 * self._every + _SLACK:
            return None
        self._is_overdue = True
        return f"{since:,} records since the last checkpoint, and one is due every {self._every:,}"

    def unsigned_tail(self, last: Link) -> int | None:
        """Return how many records no signature covers at the end; None without keys."""
        return last.seq - self._signed_seq if self._keys else None

    # Checkpoints kept elsewhere

    def compare(self, link: Link) -> str | None:
        """Return that a checkpoint knows another record than this one."""
        known = self._outside.pop(link.seq, None)
        if known is None or known == link.hash:
            return None
        return "a checkpoint kept elsewhere has another hash for this record"

    def truncated(self, last: Link) -> str | None:
        """Return that a checkpoint knows of records that are not there any more."""
        if self._known <= last.seq:
            return None
        return f"a checkpoint kept elsewhere knows record {self._known:,}, and the log ends with {last.seq:,}"

    @property
    def known(self) -> int | None:
        """The last record that a checkpoint kept elsewhere knows of; None without any."""
        return self._known or None

    # What was removed by the log itself

    def expect_pruned(self, first: Link) -> None:
        """Remember that the records up to this one are not there."""
        self._unexplained = first

    def pruned(self, detail: Mapping[str, Any]) -> None:
        """Take note of a record about files that retention removed."""
        end = (detail.get("last_seq"), detail.get("last_hash"))
        if self._unexplained is not None and end == (self._unexplained.seq, self._unexplained.hash):
            self._unexplained = None

    def not_pruned(self) -> str | None:
        """Return that the beginning is missing without a record of its removal."""
        if self._unexplained is None:
            return None
        return f"the records up to {self._unexplained.seq:,} are missing, and no record says that they were removed"


def _message(make: Any, fields: Mapping[str, Any]) -> bytes:
    try:
        return bytes(make(fields))
    except KeyError:
        return b""


def _outside(checkpoints: Iterable[str | os.PathLike[str] | Mapping[str, Any]]) -> Iterator[tuple[Any, str]]:
    for given in checkpoints:
        if isinstance(given, Mapping):
            yield given, "the checkpoint given"
            continue
        lines = Path(given).read_bytes().splitlines()
        if not lines:
            raise ConfigurationError(f"{os.fspath(given)} holds no checkpoint; it is empty, and would prove nothing")
        for number, line in enumerate(lines, start=1):
            where = f"{os.fspath(given)}:{number}"
            try:
                fields = parsed(line)
            except ValueError:
                raise ConfigurationError(
                    f"{where} is no checkpoint; pass a file as Checkpoints(copy_to=...) makes it"
                ) from None
            yield fields, where


def _place(fields: Any, where: str) -> tuple[int, str]:
    try:
        return int(fields["count"]), str(fields["last"])
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError(f"{where} is no checkpoint: it has no count and last") from None
