"""Verification: is the chain whole, and if not, where is it broken?

A chain without signatures shows every change by somebody who does not compute the hashes anew: faults of
disks, hands, editors. Whoever can write the files and knows this format can compute them anew, and cut
the end, and nothing shows. Signed checkpoints show the first, checkpoints that are kept elsewhere both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aperion.audit.checking import Check
from aperion.audit.findings import Problem, ProblemKind, Verification
from aperion.audit.opening import oldest_first, with_later
from aperion.audit.proofs import Proofs
from aperion.audit.segments import segments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aperion.audit.segments import Segment
    from aperion.audit.signing import VerifyKey

    Progress = Callable[[int, int], object]

__all__ = ["Problem", "ProblemKind", "Verification", "verify"]


def verify(
    log: str | os.PathLike[str],
    *,
    keys: Sequence[VerifyKey] = (),
    checkpoints: Sequence[str | os.PathLike[str] | Mapping[str, Any]] = (),
    progress: Progress | None = None,
) -> Verification:
    """Follow the chain through all files of a log; in constant memory, while it is written too.

    Args:
        log: the path of the live file.
        keys: public keys that checkpoints may be signed with; without any, signatures are not looked at.
        checkpoints: copies kept elsewhere, or files of them.
        progress: called with bytes done and bytes there are.

    Raises:
        OSError: when a file cannot be read.
        ConfigurationError: for keys without the package for them, and for copies that are none.
    """
    path, check = Path(log), Check(Proofs(keys, checkpoints))
    total, done = sum(map(_size, segments(path))), 0
    for segment, file, behind in with_later(oldest_first(path)):
        with file:
            size = os.fstat(file.fileno()).st_size
            for at in check.file(segment, file.fileno(), size, behind):
                if progress is not None:
                    progress(min(done + at, total), total)
            done += size
    if progress is not None:
        progress(total, total)
    return check.result(path)


def _size(segment: Segment) -> int:
    try:
        return segment.path.stat().st_size
    except FileNotFoundError:  # it was compressed, or removed, just now
        return 0
