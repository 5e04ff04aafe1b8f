"""The figures that this bus promises to keep, and whether it does."""

# ruff: noqa: RUF001, RUF003 - × is meant
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from benchmarks.scenarios import nanoseconds, rate, size, thousands, times, times_exactly

if TYPE_CHECKING:
    from benchmarks.results import Results

Figure = Callable[["Results"], float | None]

OURS = "aperion"
BEFORE = "predecessor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One promise: a figure that stays below its limit, or above it."""

    what: str
    figure: Figure
    limit: float
    show: Callable[[float], str]
    floor: bool = False

    def promise(self) -> str:
        """Return the limit as it is shown."""
        return f"{'≥' if self.floor else '≤'} {self.show(self.limit)}"

    def share(self, value: float) -> float:
        """Return how much of the budget is used; above one, it is over."""
        return self.limit / max(value, 1e-9) if self.floor else value / self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A budget against what was measured."""

    budget: Budget
    value: float
    share: float

    @property
    def kept(self) -> bool:
        """Whether the figure is within its budget."""
        return self.share <= 1

    def __str__(self) -> str:
        """Say ok, or by how much not."""
        return "ok" if self.kept else f"over by {ceil(self.share * 100) / 100:.2f} ×"


def verdicts(results: Results, budgets: Iterable[Budget] | None = None) -> list[Verdict]:
    """Return a verdict for each budget that was measured; those of time and memory, unless others are given."""
    measured = ((budget, budget.figure(results)) for budget in (BUDGETS if budgets is None else budgets))
    return [Verdict(budget=b, value=value, share=b.share(value)) for b, value in measured if value is not None]


def ours(scenario: str, key: str) -> Figure:
    """Return this bus's own figure."""
    return lambda results: results.figure(scenario, OURS, key)


def faster_than_before(scenario: str) -> Figure:
    """Return the predecessor's ratio to bare over ours: each against its own process's bare loop."""

    def figure(results: Results) -> float | None:
        mine, theirs = (results.figure(scenario, peer, "ratio") for peer in (OURS, BEFORE))
        return theirs / mine if mine and theirs else None

    return figure


def ahead_of_guarded_peers(results: Results) -> float | None:
    """Return our rate over that of the best peer that validates or bounds."""
    mine = results.figure("emit", OURS, "ratio")
    guarded = [name for name, about in results.peers.items() if about["guards"] and name != OURS]
    theirs = [ratio for name in guarded if (ratio := results.figure("emit", name, "ratio"))]
    return min(theirs) / mine if mine and theirs else None


def ahead_of_redactor_before(results: Results) -> float | None:
    """Return our rate of redacted payloads over that of the predecessor."""
    mine, theirs = (results.figure("redactor", peer, "rate") for peer in (OURS, BEFORE))
    return mine / theirs if mine and theirs else None


def _times_bare(scenario: str, what: str, limit: float) -> Budget:
    return Budget(what=f"{what}, × bare", figure=ours(scenario, "ratio"), limit=limit, show=times)


def _times_before(scenario: str, what: str, limit: float) -> Budget:
    figure = faster_than_before(scenario)
    return Budget(what=f"{what}, against the predecessor", figure=figure, limit=limit, show=times, floor=True)


BUDGETS = (
    _times_bare("dispatch", "dispatch, one handler", 30),
    _times_before("dispatch", "dispatch, one handler", 6),
    _times_bare("dispatch_10", "dispatch, ten handlers", 7),
    Budget(
        what="10,000 subscriptions against 1,000",
        figure=ours("strangers", "ratio"),
        limit=1.2,
        show=times,
    ),
    Budget(what="emit and drain", figure=ours("emit", "rate"), limit=150_000, show=rate, floor=True),
    Budget(
        what="emit and drain, against the best peer that validates or bounds",
        figure=ahead_of_guarded_peers,
        limit=1,
        show=times,
        floor=True,
    ),
    _times_bare("audit", "with audit log", 160),
    _times_before("audit", "with audit log", 3),
    _times_before("audit_process", "recorded by one emitter", 5),
    Budget(
        what="100 emitters at sync=disk, against raw group commit",
        figure=ours("audit_disk", "share"),
        limit=0.5,
        show=times,
        floor=True,
    ),
    *(
        Budget(
            what=f"handled with a journal, {at_once} at once, against SQLite by hand",
            figure=ours(f"durable_{at_once}", "share"),
            limit=0.5,
            show=times_exactly,
            floor=True,
        )
        for at_once in (1, 16, 256)
    ),
    Budget(
        what="256 at once, against a commit each", figure=ours("durable_256", "ahead"), limit=8, show=times, floor=True
    ),
    Budget(
        what="emit with 16 at once, p99, against fdatasync", figure=ours("durable_16", "slower"), limit=5, show=times
    ),
    Budget(
        what="process against disk, 16 at once", figure=ours("durable_16", "faster"), limit=3, show=times, floor=True
    ),
    Budget(what="one event of many found", figure=ours("audit_search", "ns"), limit=150e6, show=nanoseconds),
    Budget(what="memory for finding it", figure=ours("audit_search", "bytes"), limit=50e6, show=size),
    Budget(
        what="dispatch with nobody watching, against tracing switched off",
        figure=ours("watched", "idle"),
        limit=1.15,
        show=times_exactly,
    ),
    _times_bare("redact", "with redaction, nothing to hide", 200),
    _times_before("redact", "with redaction, nothing to hide", 10),
    _times_bare("redact_private", "with redaction, much to hide", 750),
    _times_before("redact_private", "with redaction, much to hide", 2.5),
    Budget(
        what="payloads redacted, against the predecessor",
        figure=ahead_of_redactor_before,
        limit=1.5,
        show=times,
        floor=True,
    ),
    Budget(what="hostile string of 50 KB", figure=ours("hostile", "ns"), limit=50e6, show=nanoseconds),
    # Twice the text, twice the time, and some room for noise.
    Budget(what="hostile string, 50 KB against 25 KB", figure=ours("hostile", "growth"), limit=2.5, show=times),
    Budget(
        what="emit to handler at 500/s, p99, against a queue with a worker",
        figure=ours("latency", "ratio"),
        limit=2.5,
        show=times,
    ),
    Budget(what="memory per pending event", figure=ours("memory", "bytes"), limit=1024, show=size),
    Budget(what="growth after many events", figure=ours("growth", "bytes"), limit=1024 * 1024, show=size),
    Budget(what="import, against what it needs anyway", figure=ours("import", "ratio"), limit=1.3, show=times_exactly),
)


def _counted(name: str, limit: float) -> Budget:
    return Budget(what=f"instructions, {name}", figure=ours(name, "thousands"), limit=limit, show=thousands)


# In thousands of instructions an event, by the names of what is counted.
COUNTS: Mapping[str, Budget] = {
    "mapping": _counted("mapping", 36),
    "model": _counted("model", 40),
    "ten": _counted("ten", 58),
    "emit": _counted("emit", 44),
    "audit": _counted("audit", 140),
    "redact": _counted("redact", 180),
    "private": _counted("private", 420),
    "redactor": _counted("redactor", 1),  # nothing to do, but a call is a call
    "import": Budget(what="instructions, import", figure=ours("import", "growth"), limit=1.3, show=times_exactly),
}
