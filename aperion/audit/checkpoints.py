"""Checkpoints: now and then the chain is summed up in a record of its own, signed, and copied elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from aperion.audit.signing import SigningKey
from aperion.errors import ConfigurationError, positive

if TYPE_CHECKING:
    from aperion.audit.chain import Link

Copy: TypeAlias = str | os.PathLike[str] | Callable[[Mapping[str, Any]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """How often a checkpoint is written; at the end there always is one.

    Args:
        every: records after which one is due.
        seconds: after which one is due, if there are records since the last.
        key: signs each.
        copy_to: where a copy of each goes: a file to which it is appended, on another machine's disk if
            possible, or a function that is called with it in a thread of the log.

    Raises:
        ConfigurationError: for a value that makes no sense.
    """

    every: int = 1000
    seconds: float = 60.0
    key: SigningKey | None = None
    copy_to: Copy | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        positive("every", self.every, whole=True)
        positive("seconds", self.seconds)
        if self.key is not None and not isinstance(self.key, SigningKey):
            raise ConfigurationError("key is no SigningKey; pass SigningKey.load(path) or SigningKey.generate(id)")
        if isinstance(self.copy_to, str | os.PathLike):  # the process may change its folder
            object.__setattr__(self, "copy_to", Path(self.copy_to).absolute())


def checkpoint_body(  # noqa: PLR0913 - what a checkpoint says
    *, log: str, segment: int, last: Link, before: int, every: int, key: SigningKey | None, time_ns: int
) -> bytes:
    """Return a checkpoint as a record for the chain."""
    fields: dict[str, Any] = {
        "time": time_ns,
        "kind": "checkpoint",
        "log": log,
        "segment": segment,
        "count": last.seq,
        "last": last.hash,
        "checkpoint_before": before,
        "every": every,
    }
    if key is not None:
        fields["key"] = key.id
        fields["signature"] = key.sign(checkpoint_message(fields))
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def checkpoint_message(fields: Mapping[str, Any]) -> bytes:
    """Return the bytes that a checkpoint's signature is over: one value a line, after a line that says what it is."""
    names = ("log", "segment", "count", "last", "checkpoint_before", "every", "time", "key")
    return "\n".join(["aperion audit checkpoint 1", *(str(fields[name]) for name in names)]).encode()


def rotation_body(old: SigningKey, new: SigningKey, log: str, last: Link, time_ns: int) -> bytes:
    """Return the record of a change of keys, signed with both."""
    fields: dict[str, Any] = {
        "time": time_ns,
        "kind": "key_rotated",
        "log": log,
        "count": last.seq,
        "last": last.hash,
        "old_key": old.id,
        "new_key": new.id,
        "public": new.public.text,
    }
    message = rotation_message(fields)
    fields["signature_old"], fields["signature_new"] = old.sign(message), new.sign(message)
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def rotation_message(fields: Mapping[str, Any]) -> bytes:
    """Return the bytes that both signatures of a change of keys are over."""
    names = ("log", "count", "last", "time", "old_key", "new_key", "public")
    return "\n".join(["aperion audit key rotation 1", *(str(fields[name]) for name in names)]).encode()


def copy_checkpoint(line: bytes, copy_to: Copy) -> None:
    """Bring a checkpoint to a second place; waits for the disk.

    Raises:
        OSError: when it cannot be written there, and whatever a function raises.
    """
    if callable(copy_to):
        copy_to(orjson.loads(line))
        return
    path = Path(copy_to)
    # What a full disk has cut off must not take this one with it.
    rest = memoryview(b"\n" + line if _is_torn(path) else line)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_torn(path: Path) -> bool:
    """Tell whether the last line of a file has no end; not of one that can only be written."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        size = os.fstat(fd).st_size
        return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
    except OSError:  # no file that has an end
        return False
    finally:
        os.close(fd)
