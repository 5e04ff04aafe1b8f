"""What is measured: each scenario sets a peer up, drives it, and returns named figures."""

# ruff: noqa: RUF001, RUF003 - × is meant, and the numbers are where units change
from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from benchmarks import archive, audit, durable, memory, outside, speed, watched
from benchmarks.scale import Scale
from benchmarks.wiring import CLEAN, PRIVATE, Form, Peer

Figures = dict[str, float]
Measure = Callable[[Peer, Scale], Coroutine[Any, Any, Figures]]


def nanoseconds(value: float) -> str:
    """Show a time in the unit that suits it."""
    for limit, divisor, unit in ((1e3, 1, "ns"), (1e6, 1e3, "µs"), (1e9, 1e6, "ms")):
        if value < limit:
            return f"{value / divisor:.3g} {unit}"
    return f"{value / 1e9:.3g} s"


def times(value: float) -> str:
    """Show a ratio."""
    return f"{value:,.1f} ×" if value < 1_000 else f"{value:,.0f} ×"


def times_exactly(value: float) -> str:
    """Show a ratio that may be far below one."""
    return f"{value:.3f} ×"


def rate(value: float) -> str:
    """Show events per second."""
    return f"{value:,.0f}/s"


def size(value: float) -> str:
    """Show bytes."""
    return f"{value:,.0f} B" if abs(value) < 10_000 else f"{value / 1024:,.0f} KB"


def thousands(value: float) -> str:
    """Show thousands of something, small ones more exactly."""
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"


def speed_of(value: float) -> str:
    """Show bytes per second."""
    return f"{value / 1e6:,.1f} MB/s"


def whole(value: float) -> str:
    """Show a count."""
    return f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a scenario, and how it is shown."""

    key: str
    heading: str
    show: Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One table of the report; its first column is the one that ranks."""

    name: str
    title: str
    measure: Measure
    columns: tuple[Column, ...]
    most_first: bool = False
    once: bool = False  # one round is enough: no times, or such as differ by orders of magnitude


# The ratio ranks, since each process may have met the machine in another mood.
_COST = (
    Column("ratio", "× bare", times),
    Column("ns", "per event", nanoseconds),
    Column("bare_ns", "bare", nanoseconds),
)
_DRAINED = (
    Column("rate", "events/s", rate),
    Column("ns", "per event", nanoseconds),
    Column("ratio", "× bare", times),
    Column("events", "events", whole),
)
_RECORDED = (
    Column("ratio", "× append", times),
    Column("one", "one emitter", rate),
    Column("many", "100 emitters", rate),
    Column("alone", "the log alone", rate),
    Column("append", "append", rate),
)
_DURABLE = (
    Column("share", "× by hand", times_exactly),
    Column("bus", "events/s", rate),
    Column("raw", "by hand", rate),
    Column("plain", "a commit each", rate),
    Column("ahead", "× a commit each", times),
    Column("process", "at process", rate),
    Column("faster", "process × disk", times),
    Column("bus_p99", "emit p99", nanoseconds),
    Column("slower", "× fdatasync p99", times),
    Column("bus_bytes", "disk an event", size),
    Column("persistqueue", "persist-queue", rate),
    Column("litequeue", "litequeue", rate),
)

_ALL = (
    Scenario(
        name="dispatch",
        title="one async handler, three fields, from an event type and a mapping, delivered",
        measure=speed.dispatching(form=Form.MAPPING),
        columns=_COST,
    ),
    Scenario(
        name="dispatch_model",
        title="the same, from a model made anew for each event",
        measure=speed.dispatching(),
        columns=_COST,
    ),
    Scenario(
        name="dispatch_ready",
        title="the same, one payload made beforehand: what the bus alone takes",
        measure=speed.dispatching(form=Form.READY),
        columns=_COST,
    ),
    Scenario(
        name="dispatch_10",
        title="ten async handlers, from a model made anew, delivered",
        measure=speed.dispatching(handlers=10),
        columns=_COST,
    ),
    Scenario(
        name="strangers",
        title="one handler among subscriptions that do not match",
        measure=speed.among_strangers,
        columns=(
            Column("ratio", "growth", times),
            Column("few_ns", "among 1,000", nanoseconds),
            Column("many_ns", "among 10,000", nanoseconds),
        ),
    ),
    Scenario(
        name="emit",
        title="emit 10,000 events (fewer where that takes too long), then drain",
        measure=speed.emit_and_drain,
        columns=_DRAINED,
        most_first=True,
    ),
    Scenario(
        name="concurrent",
        title="100 tasks at once, a handler that yields, delivered",
        measure=speed.concurrently,
        columns=_COST,
    ),
    Scenario(
        name="sync",
        title="one sync handler, delivered",
        measure=speed.dispatching(sync=True),
        columns=_COST,
    ),
    Scenario(
        name="audit",
        title="with a log on disk, 300 bytes, delivered",
        measure=speed.dispatching(load=CLEAN, audit=True),
        columns=_COST,
    ),
    Scenario(
        name="audit_none",
        title="records at sync=none, until they are in the file, in turns with one write a line by hand",
        measure=audit.recording("none"),
        columns=_RECORDED,
    ),
    Scenario(
        name="audit_process",
        title="records at sync=process, the default, until they are in the file",
        measure=audit.recording("process"),
        columns=_RECORDED,
    ),
    Scenario(
        name="audit_disk",
        title="records at sync=disk, in turns with one write and fdatasync for 100 lines, and with 100 emitters at process",
        measure=audit.recording("disk"),
        columns=(
            Column("share", "100 × / by hand", times_exactly),
            Column("many", "100 emitters", rate),
            Column("alone", "the log alone", rate),
            Column("grouped", "100 by hand", rate),
            Column("unsynced", "100 at process", rate),
            Column("reached", "of the slower", times_exactly),
            Column("many_lines", "lines a sync", whole),
            Column("one", "one emitter", rate),
            Column("synced", "1 by hand", rate),
        ),
        most_first=True,
    ),
    Scenario(
        name="audit_emit",
        title="how long emit takes at 500 events/s, with log and redaction and without",
        measure=audit.paced,
        columns=(
            Column("p99_ns", "p99", nanoseconds),
            Column("p50_ns", "p50", nanoseconds),
            Column("max_ns", "max", nanoseconds),
            Column("without_p99_ns", "p99 without", nanoseconds),
            Column("without_p50_ns", "p50 without", nanoseconds),
            Column("without_max_ns", "max without", nanoseconds),
        ),
    ),
    Scenario(
        name="audit_search",
        title="one event by its id, in a log of twenty files",
        measure=archive.search,
        columns=(
            Column("ns", "found in", nanoseconds),
            Column("worst_ns", "worst", nanoseconds),
            Column("grep_ns", "grep -c -F", nanoseconds),
            Column("ratio", "× grep", times_exactly),
            Column("bytes", "memory", size),
            Column("records", "records", whole),
        ),
        once=True,
    ),
    Scenario(
        name="audit_files",
        title="what is done with the files of a log, beside nothing but SHA-256, or orjson.loads, of their lines",
        measure=archive.tending,
        columns=(
            Column("ratio", "verify × SHA-256", times),
            Column("verified", "verify", speed_of),
            Column("sha256", "SHA-256", speed_of),
            Column("read_ratio", "read × orjson", times),
            Column("read", "read", speed_of),
            Column("parsed", "orjson", speed_of),
            Column("indexed", "index", speed_of),
            Column("gzip", "gzip, index", speed_of),
            Column("zstd", "zstd, index", speed_of),
        ),
        once=True,
    ),
    *(
        Scenario(
            name=f"durable_{at_once}",
            title=f"with a journal, {at_once} at once, 300 bytes: emitted, handled and gone, in turns with SQLite by hand",
            measure=durable.handled(at_once),
            columns=_DURABLE,
            most_first=True,
        )
        for at_once in (1, 16, 256)
    ),
    Scenario(
        name="redact",
        title="with log and redaction, 300 bytes with nothing to hide, delivered",
        measure=speed.dispatching(load=CLEAN, audit=True, redact=True),
        columns=_COST,
    ),
    Scenario(
        name="redact_private",
        title="with log and redaction, 300 bytes with much to hide, delivered",
        measure=speed.dispatching(load=PRIVATE, audit=True, redact=True),
        columns=_COST,
    ),
    Scenario(
        name="redactor",
        title="the redactor alone, payloads of 300 bytes, every second one with much to hide",
        measure=outside.payloads,
        columns=(Column("rate", "payloads", rate), Column("bytes", "bytes a second", size)),
        most_first=True,
    ),
    Scenario(
        name="redactor_sorts",
        title="the redactor alone, payloads of several sorts, every one different; those with notes have much to hide",
        measure=outside.sorts,
        columns=(
            Column("order", "order", nanoseconds),
            Column("webhook", "webhook", nanoseconds),
            Column("log", "log line", nanoseconds),
            Column("private_1", "one note", nanoseconds),
            Column("private_8", "8 notes", nanoseconds),
            Column("private_64", "64 notes", nanoseconds),
        ),
    ),
    Scenario(
        name="hostile",
        title="the worst of eight hostile strings of 50 KB through the redactor",
        measure=outside.hostile_text,
        columns=(
            Column("ns", "worst", nanoseconds),
            Column("growth", "against 25 KB", times),
        ),
        once=True,
    ),
    Scenario(
        name="watched",
        title="one async handler, three fields, delivered, and watched in different ways; × an unwatched one",
        measure=watched.dispatching,
        columns=(
            Column("idle", "no SDK", times_exactly),
            Column("memory", "in-memory metrics", times_exactly),
            Column("prometheus", "Prometheus", times_exactly),
            Column("few", "1 % of spans", times_exactly),
            Column("all", "all spans", times_exactly),
            Column("off_ns", "unwatched", nanoseconds),
        ),
        once=True,
    ),
    Scenario(
        name="requests",
        title="ids for requests: what the middleware adds to one",
        measure=watched.requests,
        columns=(
            Column("ns", "added", nanoseconds),
            Column("with_ns", "request with", nanoseconds),
            Column("bare_ns", "bare", nanoseconds),
        ),
    ),
    Scenario(
        name="latency",
        title="from emit to handler, 500 events/s, in turns with an asyncio.Queue and one worker",
        measure=speed.steadily,
        columns=(
            Column("p99_ns", "p99", nanoseconds),
            Column("p50_ns", "p50", nanoseconds),
            Column("max_ns", "max", nanoseconds),
            Column("ratio", "p99 × queue", times),
            Column("queue_p99_ns", "queue p99", nanoseconds),
            Column("queue_p50_ns", "queue p50", nanoseconds),
        ),
    ),
    Scenario(
        name="memory",
        title="memory of a pending event, payload included (tracemalloc)",
        measure=memory.pending,
        columns=(
            Column("bytes", "per event", size),
            Column("events", "pending", whole),
        ),
        once=True,
    ),
    Scenario(
        name="growth",
        title="growth after many events (tracemalloc; resident memory in a run without it)",
        measure=memory.growth,
        columns=(
            Column("bytes", "traced", size),
            Column("events", "after events", whole),
            Column("resident_bytes", "resident", size),
            Column("resident_events", "after events", whole),
        ),
        once=True,
    ),
    Scenario(
        name="import",
        title="import, over bare Python; the floor is what this bus needs anyway, the ratio of the whole times",
        measure=outside.import_time,
        columns=(
            Column("ns", "import", nanoseconds),
            Column("ratio", "× floor", times_exactly),
            Column("floor_ns", "floor", nanoseconds),
            Column("bare_ns", "bare Python", nanoseconds),
        ),
    ),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}
