"""The records of one correlation id, each with the run of the process that it belongs to.

A replay takes the ids from its file: where it is run twice with one log, the same events are accepted twice.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aperion.audit.query import AuditRecord

_ACCEPTED = "accepted"


def by_run(records: Iterable[AuditRecord], starts: Sequence[int]) -> list[list[AuditRecord]]:
    """Return the records of each run that has some, in the order in which the log has them.

    An event belongs to the run in which it was accepted last before: what a later run says of it, or of what it
    caused, belongs there too, as where a process goes on with what another one has left.

    Args:
        records: in the order in which the log has them.
        starts: the numbers of the records with which the log was opened, in ascending order.
    """
    runs: dict[int, list[AuditRecord]] = {}
    run_of: dict[object, int] = {}
    for record in records:
        now = bisect_right(starts, record.seq)
        if record.kind == _ACCEPTED or record.event_id not in run_of:
            cause = record.fields.get("causation_id")
            run_of[record.event_id] = run_of.get(cause, now) if isinstance(cause, str) else now
        runs.setdefault(run_of[record.event_id], []).append(record)
    return [runs[number] for number in sorted(runs)]
