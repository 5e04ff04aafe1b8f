"""What a verification finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aperion.audit.chain import Link


class ProblemKind(Enum):
    """What is wrong."""

    DAMAGED = "damaged"
    """A line that is no record."""
    ALTERED = "altered"
    """A record whose hash is not that of its bytes."""
    MISSING = "missing"
    """Records that are not there."""
    OUT_OF_PLACE = "out_of_place"
    """A record that stands there twice, or elsewhere than it belongs."""
    MISSING_SEGMENT = "missing_segment"
    """A file that is not there, or not where it belongs."""
    FORGED = "forged"
    """A checkpoint that is not signed by whom it should be, or that says otherwise."""
    UNSIGNED = "unsigned"
    """More records without a checkpoint than there can be."""
    TRUNCATED = "truncated"
    """The log ends before a checkpoint that is kept elsewhere."""
    ROLLED_BACK = "rolled_back"
    """The log has another record where a checkpoint that is kept elsewhere knows one."""
    NOTHING = "nothing"
    """There is no log, or no record in it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where.

    Args:
        kind: what.
        segment: the name of the file.
        line: from 1 on; 0 where it is about the file as a whole.
        offset: of the line, in bytes, as if the file were not compressed.
        seq: number of the record, as far as it can be told.
        text: for people.
    """

    kind: ProblemKind
    segment: str
    line: int
    offset: int
    seq: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found.

    Args:
        problems: in the order in which they stand in the log.
        records: that were looked at.
        segments: names of the files.
        checkpoints: how many there are.
        first: the record before the first one there is.
        last: the last one.
        unsigned_tail: records after the last checkpoint with a valid signature; None without keys.
        unwitnessed_tail: records after the last checkpoint that is kept elsewhere; None without any.
    """

    problems: tuple[Problem, ...]
    records: int
    segments: tuple[str, ...]
    checkpoints: int
    first: Link
    last: Link
    unsigned_tail: int | None
    unwitnessed_tail: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems
