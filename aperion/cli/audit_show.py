"""One event with all that the log says of it, for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.text import Text

from aperion.cli.audit_rows import STYLES, clock, what
from aperion.cli.screen import safe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from aperion.audit.reading import AuditRecord

_FACTS = ("event_id", "type", "key", "source", "correlation_id", "causation_id", "hops")
_LONGEST_LINE = 10_000


def shown(records: Sequence[AuditRecord]) -> Iterator[Text]:
    """Return the lines about one event: who it is, what it carries, and what happened to it when."""
    facts: dict[str, Any] = {}
    for record in reversed(records):  # the first record that names something has the last word
        facts.update(record.fields)
    for name in _FACTS:
        if name in facts:
            yield _fact(name.replace("_", " "), safe(facts[name]))
    for name in ("headers", "payload", "redacted"):
        if name in facts:
            yield Text(f"\n{name}", style="bold")
            yield from _pretty(facts[name])
    yield Text("\nwhat happened", style="bold")
    for record in records:
        yield _happening(record)


def _fact(name: str, value: str) -> Text:
    return Text.assemble((f"{name:<15} ", "dim"), value)


def _pretty(value: object) -> Iterator[Text]:
    for line in json.dumps(value, indent=2, ensure_ascii=False).split("\n"):
        yield Text(f"  {safe(line, _LONGEST_LINE)}")


def _happening(record: AuditRecord) -> Text:
    fields: Mapping[str, Any] = record.fields
    said = "" if record.kind == "accepted" else what(fields)
    style = STYLES.get(str(fields.get("state")), "")
    return Text.assemble(
        (f"  {clock(record.time)}  ", "dim"),
        (f"{safe(record.kind, 40):<13} ", "cyan"),
        (said, style),
        (f"  seq {record.seq}", "dim"),
    )
