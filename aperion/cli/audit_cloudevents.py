"""Records as CloudEvents 1.0 (https://github.com/cloudevents/spec), in their JSON format.

An ``accepted`` record becomes the event itself: its id, type, source and payload. Any other record becomes
an event about it: of the type ``aperion.audit.outcome`` and so on, with the number of the record as id and
the log as source. Attributes that the specification does not have are its extensions: ``sequence`` and
``partitionkey`` as it defines them, the others below. Of the headers, those of W3C Trace Context are kept.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aperion.cli.audit_rows import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aperion.audit.query import AuditRecord

# Lower-case letters and digits, 20 at most: nothing else is allowed in the name of an attribute.
EXTENSIONS = {
    "correlation_id": "correlationid",
    "causation_id": "causationid",
    "key": "partitionkey",
    "hops": "hops",
    "hash": "recordhash",
}
_TRACE = ("traceparent", "tracestate")
_ELSEWHERE = frozenset({"v", "seq", "time", "kind", "event_id", "type", "source", *EXTENSIONS})


def cloud_event(record: AuditRecord, log_id: str) -> dict[str, Any]:
    """Return a record as the JSON values of a CloudEvent."""
    fields: Mapping[str, Any] = record.fields
    is_event = record.kind == "accepted"
    log = f"urn:uuid:{quote(log_id)}"
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": _text(record.event_id) if is_event else str(record.seq),
        "source": _reference(fields.get("source"), log) if is_event else log,
        "type": _text(record.event_type) if is_event else f"aperion.audit.{_text(record.kind)}",
        "datacontenttype": "application/json",
        "sequence": f"{record.seq:020d}",
        "auditkind": _text(record.kind),
    }
    if time := rfc_3339(record.time):
        event["time"] = time
    if not is_event and record.event_id:
        event["subject"] = _text(record.event_id)
        event["eventtype"] = _text(record.event_type)
    for name, attribute in EXTENSIONS.items():
        value = fields.get(name)
        if value is not None and value != "":
            event[attribute] = value if name == "hops" and isinstance(value, int) else _text(value)
    headers = fields.get("headers")
    if isinstance(headers, dict):
        event |= {name: _text(headers[name]) for name in _TRACE if headers.get(name)}
    event["data"] = fields.get("payload") if is_event else _rest(fields)
    return event


def rfc_3339(time_ns: int) -> str:
    """Return a time in UTC with all its nanoseconds; nothing for one beyond the calendar, of a damaged record."""
    whole, rest = divmod(time_ns, 1_000_000_000)
    try:
        return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
    except (OverflowError, ValueError, OSError):
        return ""


def _rest(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _ELSEWHERE}


def _text(value: object) -> str:
    # Control characters are not allowed in attributes; neither is an empty text where one is required.
    return clean(value, 10_000) or "-"


def _reference(source: object, log: str) -> str:
    return quote(str(source), safe="/:@!$&'()*+,;=-._~") if source else log
