"""What a verification found, for people and for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from aperion.audit.query import Query
from aperion.audit.reading import Reading
from aperion.cli.audit_progress import size_of
from aperion.cli.progress import Reporter
from aperion.cli.screen import safe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from aperion.audit.verification import Problem, Verification

_SHOWN = 200


def verified(log: Path, keys: Sequence[Path], copies: Sequence[Path]) -> Verification:
    """Verify a log, and show on standard error how far it is.

    Raises:
        ConfigurationError: for a key or a checkpoint that is none.
        OSError: where a file cannot be read.
    """
    from aperion.audit.signing import VerifyKey
    from aperion.audit.verification import verify

    public = [VerifyKey.load(path) for path in keys]
    with Reporter(size_of(log), "verifying", "bytes") as reporter:
        return verify(log, keys=public, checkpoints=copies, progress=lambda done, _: reporter.advance(done, done, 1))


def newest_checkpoint(log: Path) -> dict[str, Any] | None:
    """Return the fields of the newest checkpoint; None for a log without any."""
    newest = next(iter(Reading(log, Query(kinds=("checkpoint",), newest_first=True, limit=1))), None)
    return None if newest is None else dict(newest.fields)


def end_of(log: Path) -> dict[str, Any] | None:
    """Return number and hash of the last record, as verify takes them for a checkpoint; None for a log without any."""
    last = next(iter(Reading(log, Query(newest_first=True, limit=1))), None)
    if last is None:
        return None
    begin = next(iter(Reading(log, Query(kinds=("segment",), newest_first=True, limit=1))), None)
    name = begin.fields.get("log") if begin is not None else None
    return {"log": name, "time": last.time, "count": last.seq, "last": last.fields["hash"]}


def as_values(found: Verification) -> dict[str, Any]:
    """Return what was found as JSON values."""
    return {
        "ok": found.ok,
        "records": found.records,
        "segments": list(found.segments),
        "checkpoints": found.checkpoints,
        "last": {"seq": found.last.seq, "hash": found.last.hash},
        "unsigned_tail": found.unsigned_tail,
        "unwitnessed_tail": found.unwitnessed_tail,
        "problems": [
            {
                "kind": problem.kind.value,
                "segment": problem.segment,
                "line": problem.line,
                "offset": problem.offset,
                "seq": problem.seq,
                "text": problem.text,
            }
            for problem in found.problems
        ],
    }


def told(found: Verification, keys: Sequence[Path], copies: Sequence[Path]) -> Iterator[Text]:
    """Return the lines of the report: problems, the sum, and what this did not prove."""
    for problem in found.problems[:_SHOWN]:
        yield _problem(problem)
    if len(found.problems) > _SHOWN:
        yield Text(f"… and {len(found.problems) - _SHOWN:,} more; --json has them all")
    of = f"{_many(found.records, 'record')} in {_many(len(found.segments), 'file')}"
    if found.ok:
        yield Text.assemble(("ok", "bold green"), f": {of}, unbroken up to record {found.last.seq:,}")
    else:
        yield Text.assemble((_many(len(found.problems), "problem"), "bold red"), f" in {of}")
    yield Text(f"last hash {found.last.hash}", style="dim")
    yield from (Text(line) for line in _limits(found, keys, copies))


def _problem(problem: Problem) -> Text:
    where = f"{problem.segment}:{problem.line}" if problem.line else problem.segment
    seq = "" if problem.seq is None else f" (record {problem.seq})"
    kind = problem.kind.value.replace("_", " ")
    return Text.assemble((f"{safe(where)}: ", "bold"), (kind, "red"), f"{seq}: {safe(problem.text)}")


def _limits(found: Verification, keys: Sequence[Path], copies: Sequence[Path]) -> Iterator[str]:
    if not keys:
        yield (
            "not proved: no signature was checked. Whoever can write these files can change them and compute all"
            " hashes anew, and nothing would show. Sign checkpoints, and pass the public key with --key."
        )
    elif found.unsigned_tail:
        yield (
            f"not proved: the last {_many(found.unsigned_tail, 'record')} came after the last signed checkpoint, and"
            " could have been changed until the next one."
        )
    if not copies:
        yield (
            "not proved: that the end is still there. Records cut from the end, the last file removed, or an older"
            " copy put back show only against a checkpoint that was kept elsewhere (--checkpoint FILE)."
        )
    yield from _unwitnessed(found)


def _unwitnessed(found: Verification) -> Iterator[str]:
    if found.unwitnessed_tail:
        yield (
            f"not proved: the last {_many(found.unwitnessed_tail, 'record')} came after the last checkpoint that was kept"
            " elsewhere, and others could have stood behind them."
        )


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
