"""The tree of events that one request led to, as the log tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

import aperion
from aperion.audit.chain import START, seal
from aperion.audit.trace import TraceNode, trace, walk


def write(path: Path, *records: dict[str, Any]) -> Path:
    """Write records as a log, with times of their own where they say so."""
    bodies = [orjson.dumps({"time": 10**18 + at, **record}) + b"\n" for at, record in enumerate(records)]
    lines, _ = seal(bodies, START)
    path.write_bytes(b"".join(lines))
    return path


def accepted(event_id: str, cause: str | None = None, correlation: str = "req-1") -> dict[str, Any]:
    fields = {"kind": "accepted", "event_id": event_id, "type": "order.placed", "correlation_id": correlation}
    return {**fields, **({"causation_id": cause} if cause else {}), "hops": 0, "payload": {"id": event_id}}


def outcome(event_id: str, subscription: str, attempt: int, state: str, **more: Any) -> dict[str, Any]:
    fields = {**accepted(event_id), "kind": "outcome", "subscription": subscription, "attempt": attempt}
    del fields["payload"]
    return {**fields, "state": state, "duration": 0.25, **more}


def shape(roots: tuple[TraceNode, ...]) -> list[tuple[int, str]]:
    return [(depth, node.event_id) for depth, node in walk(roots)]


@pytest.mark.anyio
async def test_a_real_bus_leaves_a_tree_with_handlers_and_attempts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    async with aperion.EventBus(audit=aperion.AuditLog(path)) as bus:

        @bus.on("order.placed", name="pay")
        async def pay(event: aperion.Event) -> None:
            await bus.emit("payment.taken", {"n": 1})

        @bus.on("payment.taken", name="ship", retry=aperion.Retry(attempts=2, wait_initial=0.001))
        async def ship(event: aperion.Event) -> None:
            raise ValueError("no ship")

        with anyio.fail_after(10):
            await bus.emit("order.placed", {"order": 7}, correlation_id="req-1", source="shop")
            await bus.emit("order.placed", {"order": 8}, correlation_id="req-2")
            await bus.wait_settled()

    (root,) = trace(path, "req-1")

    assert (root.event_type, root.payload, root.source) == ("order.placed", {"order": 7}, "shop")
    assert [(d.subscription, [a.state for a in d.attempts]) for d in root.deliveries] == [("pay", ["ok"])]
    (child,) = root.children
    assert (child.event_type, child.payload, child.source) == ("payment.taken", {"n": 1}, None)
    (delivery,) = child.deliveries
    assert [(a.number, a.state, a.error_type, a.error) for a in delivery.attempts] == [
        (1, "failed", "ValueError", "no ship"),
        (2, "failed", "ValueError", "no ship"),
    ]
    assert all(root.time <= child.time <= attempt.ended for attempt in delivery.attempts)
    assert [note.kind for note in child.notes] == ["dead_lettered"]
    assert [node.event_type for node in child.children] == ["system.handler_error"]


def test_children_stand_in_the_order_recorded_whatever_their_times(tmp_path: Path) -> None:
    late = {**accepted("c", "a"), "time": 5}
    log = write(tmp_path / "events.jsonl", accepted("a"), accepted("b", "a"), late, accepted("d", "b"))

    assert shape(trace(log, "req-1")) == [(0, "a"), (1, "b"), (2, "d"), (1, "c")]


def test_an_event_whose_cause_is_not_in_the_log_is_a_root(tmp_path: Path) -> None:
    log = write(tmp_path / "events.jsonl", accepted("b", "pruned"), accepted("a"), accepted("c", "b"))

    assert shape(trace(log, "req-1")) == [(0, "b"), (1, "c"), (0, "a")]


def test_other_correlation_ids_are_left_out(tmp_path: Path) -> None:
    log = write(tmp_path / "events.jsonl", accepted("a"), accepted("b", "a", "req-2"))

    assert shape(trace(log, "req-1")) == [(0, "a")]
    assert trace(log, "req-3") == ()


@pytest.mark.parametrize(
    ("causes", "expected"),
    [
        ([("a", "a")], [(0, "a")]),
        ([("a", "b"), ("b", "a")], [(0, "a"), (1, "b")]),
        ([("a", "c"), ("b", "a"), ("c", "b"), ("d", "c")], [(0, "a"), (1, "b"), (2, "c"), (3, "d")]),
    ],
)
def test_events_that_cause_each_other_in_a_circle_each_show_once(
    tmp_path: Path, causes: list[tuple[str, str]], expected: list[tuple[int, str]]
) -> None:
    log = write(tmp_path / "events.jsonl", *(accepted(event_id, cause) for event_id, cause in causes))

    assert shape(trace(log, "req-1")) == expected


def test_a_thousand_generations_are_no_problem(tmp_path: Path) -> None:
    chain = [accepted(f"e{n}", f"e{n - 1}" if n else None) for n in range(5000)]
    log = write(tmp_path / "events.jsonl", *chain)

    roots = trace(log, "req-1")

    assert shape(roots) == [(n, f"e{n}") for n in range(5000)]
    assert "e0" in repr(roots)


def test_an_event_known_only_by_its_outcome_is_there_without_its_payload(tmp_path: Path) -> None:
    log = write(tmp_path / "events.jsonl", outcome("a", "pay", 1, "ok"), outcome("a", "ship", 1, "timed_out"))

    (root,) = trace(log, "req-1")

    assert (root.payload, root.time) == (None, 10**18)
    assert [(d.subscription, d.attempts[0].duration) for d in root.deliveries] == [("pay", 0.25), ("ship", 0.25)]


@pytest.mark.parametrize(
    "odd",
    [
        {"event_id": 7},
        {"event_id": ["a"]},
        {"causation_id": ["a"], "source": {"b": 1}, "type": 3},
        {"kind": "outcome", "attempt": "x", "duration": "y", "state": None, "subscription": [1], "error": {}},
        {"kind": "outcome", "attempt": 1e308, "duration": -1},
        {"kind": 5, "detail": 7},
    ],
)
def test_records_that_somebody_else_wrote_do_not_hide_the_others(tmp_path: Path, odd: dict[str, Any]) -> None:
    log = write(tmp_path / "events.jsonl", accepted("a"), {**accepted("odd"), **odd}, accepted("b", "a"))

    assert [each for each in shape(trace(log, "req-1")) if each[1] in "ab"] == [(0, "a"), (1, "b")]


def test_a_damaged_line_is_left_out_and_the_rest_is_there(tmp_path: Path) -> None:
    log = write(tmp_path / "events.jsonl", accepted("a"), accepted("b", "a"), accepted("c", "b"))
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b'{"v":1,"req-1"\n' + lines[2])

    assert shape(trace(log, "req-1")) == [(0, "a"), (0, "c")]
