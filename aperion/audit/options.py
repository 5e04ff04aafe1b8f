"""What an audit log can be asked for: how safe, what when it fails, when a file is full, which records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeAlias

from aperion.errors import ConfigurationError, positive

Codec: TypeAlias = Literal["gzip", "zstd"]


class Sync(Enum):
    """What a record that was taken survives."""

    NONE = "none"
    """Nothing: what the buffer holds is lost with the process."""
    PROCESS = "process"
    """The death of the process, ``kill -9`` included; not that of the machine."""
    DISK = "disk"
    """A power cut: ``emit`` waits until the device has the record."""


class OnFailure(Enum):
    """What happens to an event while the log cannot be written."""

    REQUIRED = "required"
    """``emit`` raises ``AuditUnavailable``, and nothing is dispatched."""
    BEST_EFFORT = "best_effort"
    """It is dispatched; a ``gap`` record tells later how many records are missing, and from when to when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """When a file is full, and what becomes of full ones. Without a limit there is no rotation.

    Args:
        max_bytes: a file of this size is full; the record that makes it so is still in it.
        max_age: seconds after which a file is full, if there is anything in it.
        keep: how many full files stay; None for all.
        keep_bytes: how many bytes of full files stay.
        keep_age: seconds that a full file stays after its last record.
        compress: ``"gzip"``, or ``"zstd"`` with the extra ``compress``; in the background.

    Raises:
        ConfigurationError: for a value that makes no sense.
    """

    max_bytes: int | None = None
    max_age: float | None = None
    keep: int | None = None
    keep_bytes: int | None = None
    keep_age: float | None = None
    compress: Codec | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, value in (("max_bytes", self.max_bytes), ("max_age", self.max_age), ("keep_age", self.keep_age)):
            if value is not None:
                positive(name, value, whole=name == "max_bytes")
        for name, least in (("keep", self.keep), ("keep_bytes", self.keep_bytes)):
            if least is not None and (not isinstance(least, int) or least < 0):
                raise ConfigurationError(f"{name}={least!r} is no number of files or bytes; pass 0 or more, or None")
        if self.compress not in (None, "gzip", "zstd"):
            raise ConfigurationError(f"compress={self.compress!r} is unknown; pass 'gzip', 'zstd' or None")


NO_ROTATION: Final = Rotation()

EVENT_KINDS: Final = frozenset(
    {"accepted", "outcome", "rejected", "dropped", "dead_lettered", "redriven", "system", "handler_started"}
)
"""The kinds of records about events, which can be chosen; those about the log itself are always written."""

DEFAULT_KINDS: Final = EVENT_KINDS - {"handler_started"}


def chosen_kinds(kinds: object) -> frozenset[str]:
    """Return the kinds that a user asked for.

    Raises:
        ConfigurationError: for one that there is not.
    """
    if kinds is None:
        return DEFAULT_KINDS
    chosen = frozenset(kinds) if not isinstance(kinds, str) else frozenset({kinds})  # type: ignore[call-overload]
    if unknown := chosen - EVENT_KINDS:
        raise ConfigurationError(
            f"there is no kind {', '.join(map(repr, sorted(map(str, unknown))))}; choose from {', '.join(sorted(EVENT_KINDS))}"
        )
    return chosen
