"""Writing records of an audit log to a file that other programs read: CSV, CloudEvents or Parquet."""

from __future__ import annotations

import csv
import os
import re
import sys
from contextlib import contextmanager
from enum import StrEnum
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any

from aperion.audit.query import Query
from aperion.audit.reading import Reading
from aperion.audit.segments import segments
from aperion.cli.audit_cloudevents import cloud_event, rfc_3339
from aperion.cli.audit_progress import Watched
from aperion.cli.audit_rows import clean, json_line
from aperion.errors import ApplicationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from aperion.audit.query import AuditRecord

STDOUT = "-"
COLUMNS = (
    "seq", "time", "time_ns", "kind", "event_id", "type", "key", "source", "correlation_id", "causation_id", "hops",
    "subscription", "attempt", "state", "duration", "error_type", "error", "headers", "payload", "redacted", "detail",
    "other", "hash", "segment_file",
)  # fmt: skip
_NUMBERS = frozenset({"seq", "time_ns", "hops", "attempt", "duration"})
_JSON = frozenset({"headers", "payload", "redacted", "detail", "other"})
_KNOWN = frozenset(COLUMNS) | {"v"}
# What a spreadsheet takes for the beginning of a formula, the wide forms of East Asian fonts among them.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "|", "%")
_BATCH = 5_000
_LONGEST = sys.maxsize


class Format(StrEnum):
    """What to write."""

    CSV = "csv"
    CLOUDEVENTS = "cloudevents"
    PARQUET = "parquet"


def export(log: Path, query: Query, kind: Format, to: Path) -> tuple[int, int]:
    """Write the records that a query wants; return how many, and how many damaged lines were skipped.

    Raises:
        ApplicationError: when that file is the log itself, or pyarrow is missing.
    """
    _refuse_log(log, to)
    write = {Format.CSV: _csv, Format.CLOUDEVENTS: _cloud_events, Format.PARQUET: _parquet}[kind]
    with Watched(log, query, "exporting", aside=str(to) == STDOUT and sys.stdout.isatty()) as reading:
        return write(reading, to, log), reading.skipped


def write_text(log: Path, to: Path, text: str) -> None:
    """Write one text to a file, which must not be the log.

    Raises:
        ApplicationError: when it is, or cannot be written.
    """
    _refuse_log(log, to)
    with _opened(to) as file:
        file.write(text)


def _refuse_log(log: Path, to: Path) -> None:
    is_segment = to.exists() and any(to.samefile(segment.path) for segment in segments(log))
    # Not there yet, it would be taken for a file of the log just the same; or be its index, ring or lock.
    name = rf"{re.escape(log.stem)}(\.\d{{6,}})?{re.escape(log.suffix)}(\.(gz|zst|idx|ring|torn|new))*"
    is_beside = to.parent.resolve() == log.parent.resolve()
    if is_segment or (is_beside and re.fullmatch(name, to.name)):
        raise ApplicationError(f"{to} is a file of the log; write to another one")


def flat(record: AuditRecord) -> dict[str, Any]:
    """Return a record as the values of the columns; what is nested becomes JSON."""
    fields: Mapping[str, Any] = record.fields
    row = {name: fields.get(name) for name in COLUMNS}
    row["time"], row["time_ns"] = rfc_3339(record.time), record.time
    row["segment_file"] = record.segment
    row["other"] = {name: value for name, value in fields.items() if name not in _KNOWN} or None
    for name in COLUMNS:
        value = row[name]
        if value is not None and (name in _JSON or not isinstance(value, str | int | float)):
            row[name] = json_line(value)
    return row


def cell(name: str, value: object) -> object:
    """Return a value as a cell that no spreadsheet takes for a formula, without control characters."""
    if value is None:
        return ""
    if name in _NUMBERS and isinstance(value, int | float):
        return value
    text = clean(value, _LONGEST)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _csv(records: Iterable[AuditRecord], to: Path, _log: Path) -> int:
    count = 0
    with _opened(to) as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(COLUMNS)
        for record in records:
            writer.writerow([cell(name, value) for name, value in flat(record).items()])
            count += 1
    return count


def _cloud_events(records: Iterable[AuditRecord], to: Path, log: Path) -> int:
    name = _log_id(log)
    count = 0
    with _opened(to) as file:
        for record in records:
            file.write(json_line(cloud_event(record, name)) + "\n")
            count += 1
    return count


def _log_id(log: Path) -> str:
    first = next(iter(Reading(log, Query(kinds=("segment",), limit=1))), None)
    return str(first.fields.get("log")) if first is not None else "unknown"


def _parquet(records: Iterable[AuditRecord], to: Path, _log: Path) -> int:
    try:  # by name: it is no dependency, so that no type checker can know it
        pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise ApplicationError("parquet needs the package pyarrow; run: pip install pyarrow") from None
    if str(to) == STDOUT:
        raise ApplicationError("parquet cannot be written to standard output; pass -o FILE")
    whole = {name: pa.int64() for name in ("seq", "time_ns", "hops", "attempt")}
    schema = pa.schema([(name, whole.get(name, pa.string())) for name in COLUMNS])
    schema = schema.set(schema.get_field_index("duration"), pa.field("duration", pa.float64()))
    schema = schema.set(schema.get_field_index("time"), pa.field("time", pa.timestamp("ns", tz="UTC")))
    count = 0
    with _binary(to) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in _batches(_typed(flat(record), schema) for record in records):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _typed(row: dict[str, Any], schema: Any) -> dict[str, Any]:
    row["time"] = row["time_ns"]
    for field in schema:
        value = row[field.name]
        wanted: Callable[[Any], Any] = (
            str if str(field.type) == "string" else float if field.name == "duration" else int
        )
        try:
            row[field.name] = None if value is None else wanted(value)
        except (TypeError, ValueError):  # of somebody else's record
            row[field.name] = None
    return row


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _opened(to: Path) -> Iterator[IO[str]]:
    if str(to) == STDOUT:
        yield sys.stdout
        sys.stdout.flush()
        return
    with os.fdopen(_descriptor(to), "w", encoding="utf-8", newline="") as file:
        yield file


@contextmanager
def _binary(to: Path) -> Iterator[IO[bytes]]:
    with os.fdopen(_descriptor(to), "wb") as file:
        yield file


def _descriptor(to: Path) -> int:
    # As private as the log itself.
    try:
        return os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ApplicationError(f"{to} cannot be written: {error.strerror}") from error
