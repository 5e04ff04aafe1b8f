"""What proves more than the chain: signatures, checkpoints kept elsewhere, records of what was removed."""

from __future__ import annotations

import base64
import os
from bisect import bisect_right
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aperion.audit.checkpoints import checkpoint_message, rotation_message
from aperion.audit.record import parsed
from aperion.audit.signing import VerifyKey
from aperion.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

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
        self._numbers = sorted(self._outside)
        self._key: str | None = None
        self._every = 0
        self._checkpoint_seq = 0
        self._signed_seq = 0
        self._is_overdue = False

    # Signatures

    def checkpoint(self, fields: Mapping[str, Any], link: Link, about: Collection[Link]) -> str | None:  # noqa: PLR0911 - so much can be wrong
        """Return what is wrong with a checkpoint, which is to be about one of these records."""
        found = [known for known in about if (fields.get("count"), fields.get("last")) == (known.seq, known.hash)]
        if not found:
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
        # Itself too, where it stands right behind the record that it is about.
        self._key, self._signed_seq = name, max(known.seq + (known.seq == link.seq - 1) for known in found)
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

    def silent_until(self, seq: int) -> float:
        """Return the number of a record up to which there is nothing to say, as far as no record says otherwise."""
        due = bisect_right(self._numbers, seq)
        known = self._numbers[due] - 1 if due < len(self._numbers) else inf
        if not self._keys or self._is_overdue or not self._every:
            return known
        return min(known, self._checkpoint_seq + 2 * self._every + _SLACK)

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


class Removals:
    """What the log says of files that retention removed, which a gap between files may be.

    The record comes first, then the files go one after another, the oldest first: while they do, and where a process
    died meanwhile, some of those that the record names are still there.
    """

    # Mutable: all of it, record by record.
    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[int, str] = {}  # of those that were removed: number and hash

    def pruned(self, detail: Mapping[str, Any]) -> None:
        """Take note of a record about files that are removed: up to which record."""
        seq, digest = detail.get("last_seq"), detail.get("last_hash")
        if isinstance(seq, int) and isinstance(digest, str):
            self._last[seq] = digest

    def explain(self, end: Link) -> bool:
        """Tell whether the records up to one, and perhaps more that are still there, were removed by the log itself."""
        return self._last.get(end.seq) == end.hash or max(self._last, default=0) > end.seq


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
        torn = found = None
        for number, line in enumerate(lines, start=1):
            where = f"{os.fspath(given)}:{number}"
            try:
                found = parsed(line)
            except ValueError:  # a full disk has cut it off: the others prove what they prove
                torn = torn or where
            else:
                yield found, where
        if found is None:
            raise ConfigurationError(f"{torn} is no checkpoint; pass a file as Checkpoints(copy_to=...) makes it")


def _place(fields: Any, where: str) -> tuple[int, str]:
    try:
        return int(fields["count"]), str(fields["last"])
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError(f"{where} is no checkpoint: it has no count and last") from None
