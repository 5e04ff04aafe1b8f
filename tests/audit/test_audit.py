"""The audit log: every record once and in order, whatever happens to the process, the disk or the files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aperion
from aperion.audit import AuditLog
from aperion.audit import record as records
from aperion.audit.chain import GENESIS, START, opened, seal
from aperion.audit.checkpoints import Checkpoints
from aperion.audit.files import LogFile
from aperion.audit.housekeeping import Housekeeper
from aperion.audit.live import Live
from aperion.audit.options import NO_ROTATION
from aperion.audit.recovery import recover
from aperion.audit.ring import HEADER, Place, Ring, leftover, lock
from aperion.audit.writer import Writer
from aperion.outcomes import Attempt, Outcome, OutcomeState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

pytestmark = pytest.mark.anyio

SMALL = 1 << 16


class OrderPlaced(aperion.Payload, type="audit_order.placed"):
    """What most of these tests record."""

    order: str
    email: Annotated[str, aperion.Sensitive("email")] = "ada@example.com"
    count: int = 1


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "events.jsonl"


@contextlib.asynccontextmanager
async def open_log(path: Path, **options: Any) -> AsyncIterator[AuditLog]:
    log = AuditLog(path, **options)
    with anyio.fail_after(20):
        await log.start()
        try:
            yield log
        finally:
            await log.aclose()


def placed(order: str = "order-1", **fields: Any) -> aperion.Event[Any]:
    return aperion.Event("audit_order.placed", OrderPlaced(order=order), **fields)


OWN = {"segment", "started", "stopped", "checkpoint"}
"""Records that every log has."""


def read_all(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; fails for a line that is torn, empty, or not plain ASCII."""
    content = path.read_bytes()
    assert content.isascii()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file but those that every log has, without what the chain adds."""
    return [
        {name: value for name, value in line.items() if name not in {"v", "hash"}}
        for line in read_all(path)
        if line["kind"] not in OWN
    ]


def chained(*paths: Path) -> int:
    """Follow the chain through files, and return how many records it has; fails where it is broken."""
    end = None
    for path in paths:
        for line in path.read_bytes().splitlines(keepends=True):
            sealed = opened(line)
            assert sealed is not None, line
            if end is not None:
                assert sealed.link.seq == end.seq + 1
                assert sealed.follows(end.hash)
            end = sealed.link
    return end.seq if end is not None else 0


def orders(path: Path) -> list[str]:
    return [line["payload"]["order"] for line in read(path) if line["kind"] == "accepted"]


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread brings about; the caller bounds it."""
    while not condition():
        await anyio.sleep(0.005)


async def refused(log: AuditLog, event: aperion.Event[Any]) -> aperion.AuditUnavailable:
    """Record until the log refuses."""
    while True:
        try:
            log.accepted(event)
        except aperion.AuditUnavailable as error:
            return error
        await anyio.sleep(0.005)


async def run_in_child(code: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    with anyio.fail_after(45):
        done = await anyio.run_process(command, check=False, env=child_environment())
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def child_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parents[1])}


# What a line says


async def test_an_accepted_event_is_one_line_with_its_envelope_and_its_redacted_payload(path: Path) -> None:
    event = placed(source="web", key="order-1", correlation_id="req-7", causation_id="cause-1", hops=2)
    before = time.time_ns()

    async with open_log(path) as log:
        log.accepted(event)

    [line] = read(path)
    assert before <= line.pop("time") <= time.time_ns()
    assert line == {
        "seq": 3,  # after the first line of the file, and started
        "kind": "accepted",
        "event_id": event.event_id,
        "type": "audit_order.placed",
        "key": "order-1",
        "source": "web",
        "correlation_id": "req-7",
        "causation_id": "cause-1",
        "hops": 2,
        "payload": {"order": "order-1", "email": "[REDACTED_EMAIL]", "count": 1},
        "redacted": {"EMAIL": 1},
    }


async def test_what_an_event_does_not_have_is_left_out(path: Path) -> None:
    async with open_log(path) as log:
        log.accepted(placed())

    [line] = read(path)
    assert not {"key", "source", "causation_id", "headers"} & line.keys()


async def test_an_outcome_tells_who_how_often_how_long_and_why_not(path: Path) -> None:
    event, error = placed(), ValueError("password=hunter2")
    failed = Outcome("shop.pay", OutcomeState.FAILED, (Attempt(2, OutcomeState.FAILED, 0.25, error),))

    async with open_log(path) as log:
        log.ended(event, failed)
        log.ended(event, Outcome("shop.call", OutcomeState.SKIPPED))

    first, second = read(path)
    assert (first["kind"], first["event_id"], first["subscription"]) == ("outcome", event.event_id, "shop.pay")
    assert (first["attempt"], first["state"], first["duration"]) == (2, "failed", 0.25)
    assert (first["error_type"], first["error"]) == ("ValueError", "password=[REDACTED]")
    assert second["state"] == "skipped"
    assert not {"attempt", "error", "error_type", "payload"} & second.keys()


@pytest.mark.parametrize("kind", ["rejected", "dropped", "dead_lettered", "redriven", "system"])
async def test_a_note_has_its_own_kind_and_its_detail_redacted(path: Path, kind: str) -> None:
    async with open_log(path) as log:
        log.noted(kind, placed(), {"reason": "full", "password": "hunter2"})

    [line] = read(path)
    assert (line["kind"], line["detail"]) == (kind, {"reason": "full", "password": "[REDACTED]"})
    assert "payload" not in line


async def test_a_bus_records_each_event_and_each_outcome_once_and_in_order(path: Path) -> None:
    bus = aperion.EventBus(audit=AuditLog(path))

    @bus.on(OrderPlaced)
    async def handle(event: aperion.Event[OrderPlaced]) -> None:
        if event.payload.count == 13:
            raise RuntimeError("token=abc123secret")

    async def emitter(name: str) -> None:
        for count in range(20):
            await bus.emit(OrderPlaced(order=f"{name}-{count}", count=count), key=name)

    with anyio.fail_after(20):
        async with bus, anyio.create_task_group() as group:
            for number in range(25):
                group.start_soon(emitter, f"emitter{number}")

    lines, written = read(path), read_all(path)
    assert [line["seq"] for line in written] == list(range(1, len(written) + 1))
    assert chained(path) == len(written)
    accepted = orders(path)
    for number in range(25):
        mine = [order for order in accepted if order.startswith(f"emitter{number}-")]
        assert mine == [f"emitter{number}-{count}" for count in range(20)]
    kinds = Counter(line["kind"] for line in lines)
    assert kinds["accepted"] == kinds["outcome"] == 500
    assert kinds["dead_lettered"] == 25
    ended = Counter(line["event_id"] for line in lines if line["kind"] == "outcome")
    assert set(ended.values()) == {1}
    assert "abc123secret" not in path.read_text()


async def test_no_secret_reaches_the_file_from_any_field(path: Path) -> None:
    leaky = {"password": "hunter2", "note": "api_key=hunter2", "list": [{"token": "hunter2"}]}
    event = aperion.Event(
        "audit_user.seen",
        leaky,
        source="app password=hunter2",
        key="https://ada:hunter2@example.com",
        correlation_id="token=hunter2",
        headers={"authorization": "Bearer hunter2", "x-note": "secret=hunter2"},
    )
    error = RuntimeError("cannot log in with password=hunter2")
    outcome = Outcome("shop.pay", OutcomeState.FAILED, (Attempt(1, OutcomeState.FAILED, 0.1, error),))

    async with open_log(path) as log:
        log.accepted(event)
        log.ended(event, outcome)
        log.noted("rejected", event, {"error": "password=hunter2"})

    assert len(read(path)) == 3
    assert "hunter2" not in path.read_text()
    assert path.read_text().count("[REDACTED]") >= 9


async def test_the_log_redacts_with_the_redactor_of_the_bus_unless_it_has_its_own(tmp_path: Path) -> None:
    event = aperion.Event("audit_user.seen", {"badge": "b-17"})
    badges = aperion.Redactor(redact_keys={"badge"})
    shared, own = AuditLog(tmp_path / "shared.jsonl"), AuditLog(tmp_path / "own.jsonl", redactor=aperion.Redactor())

    for log in (shared, own):
        recorder = log.recorder(badges)
        with anyio.fail_after(20):
            await recorder.start()
            recorder.accepted(event)
            await recorder.aclose()

    assert read(shared.path)[0]["payload"] == {"badge": "[REDACTED]"}
    assert read(own.path)[0]["payload"] == {"badge": "b-17"}


class BrokenRedactor(aperion.Redactor):
    """Raises whatever it is asked."""

    def redact(self, obj: object) -> object:
        raise RuntimeError("broken")

    def redact_text(self, text: str) -> str:
        raise RuntimeError("broken")

    def redact_exception(self, error: BaseException) -> tuple[str, str]:
        raise RuntimeError("broken")


async def test_a_redactor_that_raises_costs_the_content_and_never_the_record(path: Path) -> None:
    error = RuntimeError("hunter2")
    outcome = Outcome("shop.pay", OutcomeState.FAILED, (Attempt(1, OutcomeState.FAILED, 0.1, error),))
    event = aperion.Event("audit_user.seen", {"secret": "hunter2"}, key="not plain: hunter2")

    async with open_log(path, redactor=BrokenRedactor()) as log:
        log.accepted(event)
        log.ended(event, outcome)

    first, second = read(path)
    assert first["payload"] == first["key"] == second["error"] == "[REDACTED_ERROR]"
    assert first["event_id"] == second["event_id"] == event.event_id


async def test_a_line_is_plain_ascii_whatever_the_payload_holds(path: Path) -> None:
    odd = "smile \U0001f600, line\u2028break, delete\x7f, escape\x1b[31m, é, newline\nend"

    async with open_log(path) as log:
        log.accepted(aperion.Event("audit_user.seen", {"text": odd, "é\x7f": 1}, key=odd))

    content = path.read_bytes()
    assert content.isascii()
    assert all(byte >= 0x20 for byte in content.replace(b"\n", b""))
    assert all(line["kind"] for line in read_all(path))
    assert b"\x7f" not in content
    [line] = read(path)
    assert line["payload"] == {"text": odd, "é\x7f": 1}
    assert line["key"] == odd


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Opaque:
    def __repr__(self) -> str:
        return "password=hunter2"


ODD: list[tuple[object, object]] = [
    (datetime(2026, 5, 1, 12, 30, tzinfo=UTC), "2026-05-01T12:30:00+00:00"),
    (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (Decimal("1.50"), "1.50"),
    (Path("/tmp/file"), "/tmp/file"),  # noqa: S108
    (Colour.RED, "red"),
    (frozenset({3}), [3]),
    ({3}, [3]),
    (b"\xff\x00", "\xff\x00"),
    (Point(1, 2), {"x": 1, "y": 2}),
    (2**80, 2**80),
    (10**5000, hex(10**5000)),
    ((1, (2,)), [1, [2]]),
    (float("inf"), "inf"),
    ([float("nan"), None, -float("inf"), 1.5], ["nan", None, "-inf", 1.5]),
    (timedelta(seconds=90), "PT1M30S"),
    ({1: "a", "1": "b"}, {"1": "a", "1#2": "b"}),
    ({None: 1, True: 2}, {"null": 1, "true": 2}),
    ({(1, 2): 3}, {"(1, 2)": 3}),
    (Opaque(), "<Opaque>"),
    ({"deep": [Opaque(), 2**80]}, {"deep": ["<Opaque>", 2**80]}),
    ("lone \udc80", "lone \\udc80"),
    ({"\udc80": 1}, {"\\udc80": 1}),
    ([2**80, "lone \udc80", float("nan")], [2**80, "lone \\udc80", "nan"]),
]


@pytest.mark.parametrize(("value", "written"), ODD, ids=lambda value: type(value).__name__)
async def test_every_type_has_a_written_form(path: Path, value: object, written: object) -> None:
    async with open_log(path) as log:
        log.noted("rejected", placed(), {"value": value})

    [line] = read(path)
    assert line["detail"] == {"value": written}
    assert "hunter2" not in path.read_text()


async def test_a_payload_with_many_types_goes_through_the_bus_into_the_log(path: Path) -> None:
    bus = aperion.EventBus(audit=AuditLog(path))
    values = [value for value, _ in ODD[:9]]

    with anyio.fail_after(20):
        async with bus:
            await bus.emit("audit_user.seen", {"values": values, "big": 2**80})

    [line] = [line for line in read(path) if line["kind"] == "accepted"]
    assert len(line["payload"]["values"]) == len(values)
    assert line["payload"]["big"] == 2**80


def nested(depth: int) -> object:
    value: object = "end"
    for _ in range(depth):
        value = [value]
    return value


class Hostile:
    """An object that fails at every question."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError("hostile")

    def __str__(self) -> str:
        raise RuntimeError("hostile")

    def __hash__(self) -> int:
        return 1


HOSTILE: dict[str, Callable[[], object]] = {
    "deep": lambda: nested(5000),
    "object": Hostile,
    "key": lambda: {Hostile(): 1},
    "set": lambda: {"key": {Hostile()}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_not_even_a_hostile_value_keeps_a_record_from_being_written(name: str) -> None:
    line = records.line({"seq": 1, "kind": "accepted", "payload": HOSTILE[name]()})

    assert json.loads(line)["seq"] == 1
    assert line.isascii()


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.decimals()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner), max_leaves=20
)


@given(VALUES)
def test_any_value_becomes_one_line_of_ascii_that_json_reads(value: object) -> None:
    line = records.line({"seq": 1, "payload": value})

    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1
    assert b"\x7f" not in line
    assert json.loads(line)["seq"] == 1


@given(st.text())
def test_any_text_without_a_lone_surrogate_is_read_back_as_it_was(text: str) -> None:
    assert json.loads(records.line({"payload": {"text": text}}))["payload"]["text"] == text


def test_a_delete_alone_is_escaped_too() -> None:
    assert records.line({"text": "a\x7fb"}) == b'{"text":"a\\u007fb"}\n'


class SuspiciousRedactor(aperion.Redactor):
    """Hides every text that it is shown."""

    def redact_text(self, text: str) -> str:
        return "[HIDDEN]"


@pytest.mark.parametrize(
    "key",
    ["4111111111111111", "4111-1111-1111-1111", "n1234567", "ada@example.com", "pw:x", "a=b", "x" * 60, "a\n", "é", ""],
)
async def test_only_what_is_plainly_an_identifier_is_not_shown_to_the_redactor(path: Path, key: str) -> None:
    async with open_log(path, redactor=SuspiciousRedactor()) as log:
        log.accepted(placed(key=key, source="shop.web", correlation_id="order-42"))

    [line] = read(path)
    assert (line["key"], line["source"], line["correlation_id"]) == ("[HIDDEN]", "shop.web", "order-42")


async def test_what_is_too_large_for_the_ring_leaves_a_record_that_says_so(path: Path) -> None:
    event = aperion.Event("audit_user.seen", {"text": "x" * 50_000}, key="k y" * 20_000)

    async with open_log(path, buffer_bytes=SMALL) as log:
        log.accepted(event)

    [line] = read(path)
    assert line["payload"] == {"[TOO_LARGE]": 50_011}
    assert line["key"].endswith("[TOO_LARGE]")
    assert line["event_id"] == event.event_id


# The life of a log


async def test_records_reach_the_file_while_the_log_is_open(path: Path) -> None:
    async with open_log(path) as log:
        for number in range(3):
            log.accepted(placed(str(number)))
            await until(lambda number=number: orders(path) == [str(n) for n in range(number + 1)])

        assert log.stats().buffered_bytes == 0


async def test_a_writer_that_fell_asleep_is_woken(path: Path) -> None:
    async with open_log(path) as log:
        await anyio.sleep(1.5)  # its pauses grow to a second; what it must do then is being tested

        log.accepted(placed())
        start = time.monotonic()
        await until(lambda: log.stats().buffered_bytes == 0)

    assert time.monotonic() - start < 0.5


async def test_more_than_the_ring_holds_goes_through_it_in_order(path: Path) -> None:
    async with open_log(path, buffer_bytes=SMALL) as log:
        for number in range(5000):
            log.accepted(placed(f"order-{number}"))
            if number % 50 == 0:
                await until(lambda: log.stats().buffered_bytes < SMALL // 2)

    assert path.stat().st_size > 10 * SMALL
    assert orders(path) == [f"order-{number}" for number in range(5000)]
    assert chained(path) >= 5004


async def test_a_closed_log_leaves_one_file_and_can_be_started_again(path: Path) -> None:
    log = AuditLog(path)

    for order in ("first", "second"):
        with anyio.fail_after(20):
            await log.start()
            log.accepted(placed(order))
            await log.aclose()
            await log.aclose()

    assert orders(path) == ["first", "second"]
    assert [line["seq"] for line in read(path)] == [3, 7]
    assert chained(path) == 9
    assert os.listdir(path.parent) == [path.name]


async def test_a_log_that_is_not_open_refuses(path: Path) -> None:
    log = AuditLog(path)

    with pytest.raises(aperion.AuditUnavailable, match="not open"):
        log.accepted(placed())
    async with open_log(path) as opened:
        pass
    with pytest.raises(aperion.AuditUnavailable, match="not open"):
        opened.ended(placed(), Outcome("shop.pay", OutcomeState.OK))
    with pytest.raises(aperion.AuditUnavailable, match="not open"):
        opened.noted("dropped", placed(), {})


async def test_stats_tell_the_state_without_reading_a_file(path: Path) -> None:
    async with open_log(path) as log:
        log.accepted(placed())
        log.noted("dropped", placed(), {})
        await until(lambda: log.stats().buffered_bytes == 0)

        stats, size = log.stats(), path.stat().st_size

    assert (stats.path, stats.available, stats.records) == (str(path), True, 2)
    assert stats.bytes_written == size
    assert (stats.failures, stats.recovered) == (0, 0)
    assert not log.stats().available
    assert log.stats().records == 2


@pytest.mark.parametrize("where", ["", ".", "/"])
def test_a_path_without_a_file_name_is_refused_at_once(where: str) -> None:
    with pytest.raises(aperion.ConfigurationError, match="no path of a file"):
        AuditLog(where)


@pytest.mark.parametrize("size", [0, SMALL - 1, "4MB"])
def test_a_buffer_that_is_too_small_is_refused_at_once(path: Path, size: Any) -> None:
    with pytest.raises(aperion.ConfigurationError, match="buffer_bytes"):
        AuditLog(path, buffer_bytes=size)


async def test_the_log_stays_where_it_is_when_the_process_changes_its_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parents[1])
    log = AuditLog("here.jsonl")

    with anyio.fail_after(20):
        await log.start()
        monkeypatch.chdir("/")
        log.accepted(placed())
        await log.aclose()

    assert orders(path.parents[1] / "here.jsonl") == ["order-1"]


# Who may


async def test_files_and_folder_are_for_their_owner_alone(path: Path) -> None:
    old = os.umask(0)
    try:
        async with open_log(path):
            ring = path.with_name("events.jsonl.ring")
            modes = [stat.S_IMODE(file.stat().st_mode) for file in (path, ring, path.parent)]
    finally:
        os.umask(old)

    assert modes == [0o600, 0o600, 0o700]


async def test_a_link_is_refused_and_what_it_points_to_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "events.jsonl"
    target.write_text("precious")
    link.symlink_to(target)

    with pytest.raises(aperion.AuditUnavailable, match="symbolic link"), anyio.fail_after(20):
        await AuditLog(link).start()

    assert target.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["events.jsonl", "target"]


async def test_a_link_in_place_of_the_ring_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "events.jsonl.ring").symlink_to(tmp_path / "target")

    with pytest.raises(aperion.AuditUnavailable, match="symbolic link"), anyio.fail_after(20):
        await AuditLog(tmp_path / "events.jsonl").start()

    assert (tmp_path / "target").stat().st_size == 0


async def test_a_pipe_is_refused_without_waiting_for_a_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")

    with pytest.raises(aperion.AuditUnavailable, match="no regular file"), anyio.fail_after(5):
        await AuditLog(tmp_path / "events.jsonl").start()


@pytest.mark.parametrize("where", ["/proc/nope/a.jsonl", "/dev/null", "/etc"])
async def test_a_path_that_cannot_be_a_log_is_refused(where: str) -> None:
    with pytest.raises(aperion.AuditUnavailable, match=where), anyio.fail_after(5):
        await AuditLog(where).start()


async def test_a_file_that_is_no_ring_is_refused_and_stays_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    ring = path.with_name("events.jsonl.ring")
    ring.write_bytes(b"somebody else's notes")

    with pytest.raises(aperion.AuditUnavailable, match="move it away"), anyio.fail_after(20):
        await AuditLog(path).start()

    assert ring.read_bytes() == b"somebody else's notes"


async def test_a_damaged_ring_is_refused_and_stays_as_it_is(path: Path) -> None:
    crash(path, [b'{"seq":1}\n'])
    ring = path.with_name("events.jsonl.ring")
    os.truncate(ring, HEADER + 100)

    with pytest.raises(aperion.AuditUnavailable, match="damaged"), anyio.fail_after(20):
        await AuditLog(path).start()

    assert ring.stat().st_size == HEADER + 100


async def test_a_second_log_of_the_same_file_is_refused_with_the_process_that_has_it(path: Path) -> None:
    second = (
        "import anyio, sys, aperion\ntry: anyio.run(aperion.AuditLog(sys.argv[1]).start)\nexcept OSError as e: print(e)"
    )

    async with open_log(path) as log:
        message = await run_in_child(second, path)
        with pytest.raises(aperion.AuditUnavailable, match=str(os.getpid())):
            await AuditLog(path).start()
        with pytest.raises(aperion.AuditUnavailable, match="open already"):
            await log.start()
        log.accepted(placed())

    assert f"process {os.getpid()} writes it" in message
    assert orders(path) == ["order-1"]


async def test_a_forked_child_is_refused_and_the_log_of_the_parent_is_unharmed(path: Path) -> None:
    release, hold = os.pipe()

    async with open_log(path) as log:
        log.accepted(placed("before"))
        child = os.fork()
        if child == 0:
            os.close(hold)
            code = 1
            with contextlib.suppress(BaseException):
                try:
                    log.accepted(placed("child"))
                except aperion.AuditUnavailable as error:
                    code = 0 if "forked" in str(error) else 2
            os.read(release, 1)  # lives on after the parent has closed its log
            os._exit(code)
        log.accepted(placed("after"))
    async with open_log(path) as log:  # the child does not hold the lock
        log.accepted(placed("again"))
    os.close(hold)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert orders(path) == ["before", "after", "again"]


# When the process is killed


def crash(path: Path, lines: Sequence[bytes], in_log: bytes = b"", *, full_laps: int = 0) -> None:
    """Leave behind what a process does that was killed with these lines in its ring."""
    path.parent.mkdir(exist_ok=True)
    ring_path = path.with_name(f"{path.name}.ring")
    live = began(path)
    ring = Ring(ring_path, lock(ring_path, path), SMALL, live.place)
    ring.beyond = lambda _end: None
    for _ in range(full_laps):  # lines that were written, so that the next ones pass the end of the ring
        ring.put(b"x" * (SMALL - 21) + b"\n")
        ring.commit(SMALL - 20, live.place)
    for line in lines:
        ring.put(line)
    live.file.write_all(in_log)
    live.file.close()
    ring.close()


def began(path: Path) -> Live:
    """Return a log that is open, with nothing but its first line, or what is there already."""
    live = Live(path, LogFile(path), durable=False)
    live.resume()
    if not live.first:
        live.begin()
    return live


LINES = [b'{"time":%d,"kind":"accepted","payload":{"order":"%d"}}\n' % (n, n) for n in range(1, 4)]


def whole(path: Path) -> bytes:
    """Return the lines as they will stand in a log that is there."""
    live = began(path)
    try:
        return b"".join(seal(LINES, live.link)[0])
    finally:
        live.file.close()


@pytest.mark.parametrize("laps", [0, 1])
@pytest.mark.parametrize("written", range(0, 424, 7))
async def test_a_batch_cut_short_anywhere_is_completed_with_each_line_once(path: Path, written: int, laps: int) -> None:
    path.parent.mkdir()
    first, content = began(path).size, whole(path)
    assert len(content) == 423
    crash(path, LINES, content[:written], full_laps=laps)

    async with open_log(path) as log:
        assert log.stats().recovered == 3 - content[:written].count(b"\n")

    assert path.read_bytes()[first : first + len(content)] == content
    assert orders(path) == ["1", "2", "3"]
    assert chained(path) == 7  # with the first line, started, stopped and the checkpoint
    assert os.listdir(path.parent) == [path.name]


async def test_recovery_that_is_cut_short_can_be_done_again(path: Path) -> None:
    crash(path, LINES)
    image = path.with_name("events.jsonl.ring").read_bytes()
    async with open_log(path):
        pass
    path.with_name("events.jsonl.ring").write_bytes(image)  # killed before the ring was emptied

    async with open_log(path) as log:
        assert log.stats().recovered == 0

    assert orders(path) == ["1", "2", "3"]
    assert chained(path) == 10


async def test_a_torn_last_line_is_moved_aside_and_noted(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"".join(seal([records.segment("x", 1, GENESIS), LINES[0]], START)[0]) + b'{"seq":2,"ki')

    async with open_log(path) as log:
        log.accepted(placed("next"))

    first, note, last = read(path)
    assert first["seq"] == 2
    assert note["kind"] == "log"
    assert chained(path) == 7
    assert note["detail"] == {"torn_bytes": 12, "moved_to": "events.jsonl.torn"}
    assert last["payload"]["order"] == "next"
    torn = path.with_name("events.jsonl.torn")
    assert torn.read_bytes() == b'{"seq":2,"ki\n'
    assert stat.S_IMODE(torn.stat().st_mode) == 0o600


async def test_a_torn_line_longer_than_a_block_is_moved_aside_whole(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(NINE + b"x" * 200_000)

    async with open_log(path):
        pass

    assert path.with_name("events.jsonl.torn").read_bytes() == b"x" * 200_000 + b"\n"
    assert path.read_bytes().startswith(NINE)
    assert [line["kind"] for line in read(path)] == ["foreign", "log"]


async def test_what_stands_in_the_place_of_a_lost_batch_is_moved_aside(path: Path) -> None:
    path.parent.mkdir()
    crash(path, LINES, whole(path)[:20] + b"\0\0\0 from a power cut")

    async with open_log(path):
        pass

    assert orders(path) == ["1", "2", "3"]
    assert b"from a power cut" in path.with_name("events.jsonl.torn").read_bytes()


async def test_what_is_no_record_in_the_ring_is_moved_aside(path: Path) -> None:
    crash(path, [LINES[0], b"\0" * 40 + b"\n", LINES[1]])

    async with open_log(path) as log:
        assert log.stats().recovered == 2

    assert orders(path) == ["1", "2"]
    assert b"\0" * 40 in path.with_name("events.jsonl.torn").read_bytes()


NINE = b'{"v":0,"seq":9,"kind":"foreign"}\n'


@pytest.mark.parametrize("content", [None, b"", NINE, b'{"v":1,"torn', NINE * 200])
async def test_a_log_that_was_moved_away_meanwhile_does_not_lose_the_ring(path: Path, content: bytes | None) -> None:
    path.parent.mkdir()
    crash(path, LINES, whole(path)[:20])
    moved = path.with_name("moved.jsonl")
    path.rename(moved)
    if content is not None:
        path.write_bytes(content)

    async with open_log(path):
        pass

    assert orders(path) == ["1", "2", "3"]
    assert [line["seq"] for line in read(path) if line["kind"] == "foreign"] == [9] * (content or b"").count(b"9")
    if not content:
        os.truncate(moved, moved.stat().st_size - 20)
        assert chained(moved, path) == 8  # the chain goes on from the file that was moved


@pytest.mark.parametrize(
    "content",
    [
        b"notes of mine\n",
        b"no end",
        b'{"mine":1}\n',
        b"\x89PNG\r\n\x1a\n" + bytes(5_000),
        b"\n\n",
        b"{\n}\n",
        b"\0\0\0mine\n",
    ],
)
async def test_a_file_of_somebody_else_is_left_alone(path: Path, content: bytes) -> None:
    """A mistyped path must not cost a file: it is refused, whole, and no other file is made of it."""
    path.parent.mkdir(0o700)
    path.write_bytes(content)
    path.chmod(0o644)

    with pytest.raises(aperion.AuditUnavailable, match="the file there is no audit log"):
        await AuditLog(path).start()

    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("number", [2**63, 2**64 + 1, -(2**70), 10**308, 10**309, 10**4_000, -(10**4_000)])
async def test_an_integer_of_any_size_is_written_read_and_verified(path: Path, number: int) -> None:
    """AUD-types: exactly, in a payload and where a handler returned it; and it hides its record from nobody."""

    async def returns(event: aperion.Event) -> int:
        return number

    async with aperion.EventBus(audit=(log := AuditLog(path))) as bus:
        bus.subscribe(returns, "order.placed")
        receipt = await bus.emit("order.placed", {"amount": number, "more": [number]})
        await receipt.settled()

    found = log.read(event_id=receipt.event_id)
    accepted, outcome = list(found)
    assert found.skipped == 0
    assert accepted.fields["payload"] == {"amount": number, "more": [number]}
    assert accepted.kind == "accepted"
    assert outcome.kind == "outcome"
    assert log.verify().ok
    assert [event.event_id for event in log.trace(receipt.event.correlation_id)] == [receipt.event_id]


async def test_an_integer_of_any_size_is_recovered(path: Path) -> None:
    """From the ring of a process that was killed: what is JSON is a record."""
    line = b'{"time":1,"kind":"accepted","payload":{"order":"1","amount":%d}}\n' % 10**400
    crash(path, [line, LINES[1]])

    async with open_log(path) as log:
        assert log.stats().recovered == 2

    assert [json.loads(line)["payload"] for line in path.read_text().splitlines() if '"kind":"accepted"' in line] == [
        {"order": "1", "amount": 10**400},
        {"order": "2"},
    ]


async def test_a_file_that_anybody_could_read_is_closed_to_them(path: Path) -> None:
    """As logrotate may have made it."""
    path.parent.mkdir(0o700)
    path.touch()
    path.chmod(0o666)

    async with open_log(path):
        pass

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("left", "kept"), [(0, 0), (1, 1), (2, 2), (1.5, 1)])
async def test_a_log_that_was_cut_meanwhile_says_so_and_does_not_lose_the_ring(
    path: Path, left: float, kept: int
) -> None:
    async with open_log(path) as log:
        for order in "abc":
            log.accepted(placed(order))
    crash(path, LINES)
    lines = path.read_bytes().splitlines(keepends=True)
    size = sum(map(len, lines[: 2 + int(left)])) + (5 if left % 1 else 0)
    os.truncate(path, size if left else 0)

    async with open_log(path):
        pass

    assert orders(path) == [*"abc"[:kept], "1", "2", "3"]
    missing = [line["detail"]["missing"] for line in read(path) if line["kind"] == "gap"]
    assert missing == [len(lines) - (2 + kept if left else 0)]
    assert chained(path)


class BreakingFile(LogFile):
    """A file that takes half of what it should, and then fails."""

    __slots__ = ()

    def write_all(self, content: bytes) -> None:
        super().write_all(content[: len(content) // 2])
        raise OSError(28, "No space left on device")


async def test_recovery_into_another_file_that_is_cut_short_can_be_done_again(path: Path) -> None:
    crash(path, LINES)
    path.rename(path.with_name("moved.jsonl"))
    path.write_bytes(NINE * 30)
    ring_path = path.with_name("events.jsonl.ring")
    fd = lock(ring_path, path)
    with contextlib.closing(BreakingFile(path)) as file, pytest.raises(OSError, match="No space"):
        recover(ring_path, fd, Live(path, file, durable=False))
    os.close(fd)

    async with open_log(path):
        pass

    assert path.read_bytes().startswith(NINE * 30)
    assert orders(path) == ["1", "2", "3"]


FORKING = """
import os, sys, time
import anyio, aperion

async def main():
    log = aperion.AuditLog(sys.argv[1])
    await log.start()
    log.accepted(aperion.Event("audit_order.placed", {"order": "1"}))
    if os.fork() == 0:
        os.close(1)
        sys.stdin.read()  # lives on
        os._exit(0)
    os.write(1, b"forked")
    os.kill(os.getpid(), 9)

anyio.run(main)
"""


async def test_a_child_that_outlives_its_killed_parent_does_not_keep_the_log_locked(path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()) as process:
        assert process.stdout is not None
        assert await anyio.to_thread.run_sync(process.stdout.read) == b"forked"
        process.wait(30)

        async with open_log(path):
            pass

    assert orders(path) == ["1"]


async def test_a_ring_that_its_process_had_not_begun_to_use_is_taken_over(path: Path) -> None:
    path.parent.mkdir()
    path.with_name("events.jsonl.ring").write_bytes(bytes(HEADER + 100))

    async with open_log(path) as log:
        log.accepted(placed())

    assert orders(path) == ["order-1"]


# When the disk fails

LIMITED = """
import resource, sys
import anyio, aperion

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    path, ending = sys.argv[1:]
    log = aperion.AuditLog(path)
    await log.start()
    told, refusals = [], []
    limit(20_000)
    with anyio.fail_after(30):
        while not refusals:
            event = aperion.Event("audit_order.placed", {"n": len(told)})
            try:
                log.accepted(event)
                told.append(event.event_id)
            except aperion.AuditUnavailable as error:
                refusals.append(str(error))
            await anyio.sleep(0)
        assert not log.stats().available and log.stats().failures and log.stats().buffered_bytes
        if ending == "raised":
            limit(resource.RLIM_INFINITY)
            while not log.stats().available:
                await anyio.sleep(0.01)
            event = aperion.Event("audit_order.placed", {"n": -1})
            log.accepted(event)
            told.append(event.event_id)
        try:
            await log.aclose()
        except aperion.AuditUnavailable as error:
            refusals.append(str(error))
    print(*refusals, sep="\\n")
    print(*told)

anyio.run(main)
"""


@pytest.mark.parametrize("ending", ["raised", "closed"])
async def test_a_full_disk_reaches_the_emitter_and_loses_nothing_that_was_accepted(path: Path, ending: str) -> None:
    *refusals, told = (await run_in_child(LIMITED, path, ending)).splitlines()

    assert "file too large" in refusals[0]
    if ending == "closed":
        assert "records wait in" in refusals[1]
        assert path.with_name("events.jsonl.ring").exists()
        async with open_log(path) as log:
            assert f"{log.stats().recovered:,} records" in refusals[1]
    accepted = [line["event_id"] for line in read(path) if line["kind"] == "accepted"]
    assert accepted == told.split()
    assert chained(path)


async def test_a_removed_folder_reaches_the_emitter_and_the_log_comes_back_with_the_folder(path: Path) -> None:
    async with open_log(path) as log:
        log.accepted(placed("before"))
        await until(lambda: log.stats().buffered_bytes == 0)
        path.parent.rename(path.parents[1] / "elsewhere")

        error = await refused(log, placed("meanwhile"))
        path.parent.mkdir()
        await until(lambda: log.stats().available)
        log.accepted(placed("after"))
        await until(lambda: log.stats().buffered_bytes == 0)
        survives = path.with_name("events.jsonl.ring").read_bytes()

    assert "no such file or directory" in error.reason
    assert orders(path.parents[1] / "elsewhere" / path.name)[0] == "before"
    accepted = orders(path)
    assert accepted[-1] == "after"
    assert set(accepted[:-1]) <= {"meanwhile"}
    assert b'"after"' in survives


async def test_a_log_that_is_moved_away_goes_on_in_a_new_file_that_says_so(path: Path) -> None:
    async with open_log(path) as log:
        log.accepted(placed("old"))
        await until(lambda: log.stats().buffered_bytes == 0)
        path.rename(path.with_name("events.1.jsonl"))
        log.accepted(placed("between"))
        await until(path.exists)
        log.accepted(placed("new"))

    assert [*orders(path.with_name("events.1.jsonl")), *orders(path)] == ["old", "between", "new"]
    assert orders(path)[-1] == "new"
    assert read(path)[0]["detail"] == {"continued": "the file before was moved or removed"}
    assert chained(path.with_name("events.1.jsonl"), path)


async def test_a_ring_that_is_removed_is_replaced_and_keeps_others_out_again(path: Path) -> None:
    ring = path.with_name("events.jsonl.ring")

    async with open_log(path) as log:
        log.accepted(placed("1"))
        told = ["1"]
        ring.unlink()
        await until(ring.exists)
        while f'"order":"{told[-1]}"'.encode() not in ring.read_bytes():  # the old one is used until it is empty
            with contextlib.suppress(aperion.AuditUnavailable):
                log.accepted(placed(str(len(told) + 1)))
                told.append(str(len(told) + 1))
            await anyio.sleep(0.005)
        with pytest.raises(aperion.AuditUnavailable, match="writes it"):
            await AuditLog(path).start()
        log.accepted(placed("last"))

    assert orders(path) == [*told, "last"]
    assert os.listdir(path.parent) == [path.name]


async def test_another_process_that_took_the_place_of_a_removed_ring_is_reported(path: Path) -> None:
    ring = path.with_name("events.jsonl.ring")
    log = AuditLog(path)

    with anyio.fail_after(20):
        await log.start()
        elsewhere = path.with_name("thief")
        thief = Ring(elsewhere, lock(elsewhere, path), SMALL, Place((1, 1), 0, START))
        thief.beyond = lambda _end: None
        thief.put(LINES[0])  # and was killed before it wrote that
        elsewhere.replace(ring)
        error = await refused(log, placed())
        thief.close()
        await until(lambda: log.stats().available)
        log.accepted(placed("after"))
        await log.aclose()

    assert f"process {os.getpid()} writes it" in error.reason
    found = orders(path)
    assert found[-1] == "after"
    assert found.count("1") == 1


async def test_lines_that_somebody_else_appends_do_not_disturb(path: Path) -> None:
    async with open_log(path) as log:
        log.accepted(placed("1"))
        await until(lambda: log.stats().buffered_bytes == 0)
        with path.open("ab") as other:
            other.write(NINE)
        await anyio.sleep(0.6)  # longer than between two looks at the file
        log.accepted(placed("2"))

    assert [line.get("payload", {}).get("order", line["kind"]) for line in read(path)] == ["1", "foreign", "2"]


async def test_a_log_that_is_emptied_while_open_goes_on(path: Path) -> None:
    async with open_log(path) as log:
        log.accepted(placed("1"))
        await until(lambda: log.stats().buffered_bytes == 0)
        os.truncate(path, 0)
        log.accepted(placed("2"))

    assert orders(path) == ["2"]


class StalledFile(LogFile):
    """A file on a disk that stands still until it is let go."""

    __slots__ = ("go", "reached")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go, self.reached = threading.Event(), threading.Event()

    def write(self, content: bytes | memoryview) -> int:
        if b'"segment"' not in bytes(content):
            self.reached.set()
            assert self.go.wait(30)
        return super().write(content)


class DrippingFile(LogFile):
    """A file whose writes take a few bytes each, and fail now and then."""

    __slots__ = ("calls",)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls = 0

    def write(self, content: bytes | memoryview) -> int:
        self.calls += 1
        if self.calls % 50 == 0:
            raise OSError(5, "Input/output error")
        return super().write(content[:333])


@pytest.fixture
def wired(path: Path) -> Callable[[type[LogFile]], tuple[Any, Ring, Writer]]:
    """Return the parts of an open log, with a file of a kind that this machine's disk is not."""

    def wire(kind: type[LogFile]) -> tuple[Any, Ring, Writer]:
        path.parent.mkdir()
        file, ring_path = kind(path), path.with_name("events.jsonl.ring")
        live = Live(path, file, durable=False)
        live.begin()
        ring = Ring(ring_path, lock(ring_path, path), SMALL, live.place)
        checkpoints = Checkpoints(every=10**9, seconds=10**9)
        writer = Writer(ring, live, rotation=NO_ROTATION, checkpoints=checkpoints, housekeeper=Housekeeper(path, None))
        writer.start()
        return file, ring, writer

    return wire


async def test_a_disk_that_stands_still_never_holds_the_loop_and_a_full_ring_is_refused(
    path: Path, wired: Callable[[type[LogFile]], tuple[Any, Ring, Writer]]
) -> None:
    file, ring, writer = wired(StalledFile)
    line, told, waits = b'{"x":"' + b"y" * 500 + b'"}\n', 0, []

    with anyio.fail_after(20):
        ring.put(line)
        await anyio.to_thread.run_sync(file.reached.wait, 10)
        with pytest.raises(aperion.AuditUnavailable, match="the buffer of 65,536 bytes is full"):
            while True:
                ring.put(line)
                told += 1
        for _ in range(200):
            start = time.perf_counter()
            with pytest.raises(aperion.AuditUnavailable):
                ring.put(line)
            waits.append(time.perf_counter() - start)
        file.go.set()
        await until(lambda: ring.head == ring.tail)
        ring.put(line)
        left = await anyio.to_thread.run_sync(writer.stop)

    assert statistics.median(waits) < 0.02  # what was waited once is not waited again
    assert left == 0
    assert bodies(path) == [line] * (told + 2)


async def test_writes_that_are_cut_short_or_fail_lose_nothing_and_repeat_nothing(
    path: Path, wired: Callable[[type[LogFile]], tuple[Any, Ring, Writer]]
) -> None:
    _, ring, writer = wired(DrippingFile)
    told = []

    with anyio.fail_after(45):
        for number in range(300):
            line = b'{"n":%d,"x":"%s"}\n' % (number, b"y" * (number * 7 % 900))
            while not told or told[-1] != line:
                try:
                    ring.put(line)
                    told.append(line)
                except aperion.AuditUnavailable:
                    await anyio.sleep(0.01)
        while await anyio.to_thread.run_sync(lambda: ring.head != ring.tail):
            await anyio.sleep(0.01)
        assert await anyio.to_thread.run_sync(writer.stop) == 0

    assert bodies(path) == told
    assert writer.failures > 0
    assert chained(path)


def bodies(path: Path) -> list[bytes]:
    """Return the records of a file as they were put into the ring."""
    found = [opened(line) for line in path.read_bytes().splitlines(keepends=True)]
    return [line.body for line in found if line and not any(b'"kind":"%b"' % k.encode() in line.body for k in OWN)]


class HalfFile(LogFile):
    """A file on a disk that is full in the middle of a line, until there is room."""

    __slots__ = ("room",)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.room = threading.Event()

    def write(self, content: bytes | memoryview) -> int:
        if self.room.is_set() or b'"segment"' in bytes(content):
            return super().write(content)
        if len(content) < 130:  # the rest of what is below
            raise OSError(28, "No space left on device")
        return super().write(content[:30])

    def cut(self, size: int) -> None:
        if not self.room.is_set():
            raise OSError(30, "Read-only file system")
        super().cut(size)


async def test_a_line_in_two_halves_becomes_whole_when_the_ring_is_replaced_between_them(
    path: Path, wired: Callable[[type[LogFile]], tuple[Any, Ring, Writer]]
) -> None:
    file, ring, writer = wired(HalfFile)

    with anyio.fail_after(20):
        ring.put(LINES[0])
        await until(lambda: writer.failure)
        ring.path.unlink()
        file.room.set()
        await until(lambda: ring.head == ring.tail)
        await anyio.to_thread.run_sync(writer.stop)

    assert orders(path) == ["1"]
    assert chained(path)


async def test_a_line_in_two_halves_becomes_whole_when_the_log_is_moved_between_them(
    path: Path, wired: Callable[[type[LogFile]], tuple[Any, Ring, Writer]]
) -> None:
    file, ring, writer = wired(HalfFile)

    with anyio.fail_after(20):
        ring.put(LINES[0])
        await until(lambda: writer.failure)
        path.rename(path.with_name("moved.jsonl"))
        file.room.set()
        await until(lambda: ring.head == ring.tail)
        await anyio.to_thread.run_sync(writer.stop)

    assert orders(path) == ["1"]
    assert len(path.with_name("moved.jsonl").read_bytes().splitlines()[-1]) == 30


async def test_lines_that_went_into_a_file_that_was_removed_meanwhile_are_written_anew(
    path: Path, wired: Callable[[type[LogFile]], tuple[Any, Ring, Writer]]
) -> None:
    file, ring, writer = wired(StalledFile)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            ring.put(LINES[0])
            await anyio.to_thread.run_sync(file.reached.wait, 10)
            path.unlink()
            ring.put(LINES[1])
            group.start_soon(anyio.to_thread.run_sync, writer.stop)
            await until(lambda: writer._stopping)
            file.go.set()

    assert orders(path) == ["1", "2"]


async def test_after_lines_of_somebody_else_the_ring_says_where_the_next_one_belongs(
    path: Path, wired: Callable[[type[LogFile]], tuple[Any, Ring, Writer]]
) -> None:
    _, ring, writer = wired(LogFile)

    with anyio.fail_after(20):
        ring.put(LINES[0])
        await until(lambda: ring.head == ring.tail)
        with path.open("ab") as other:
            other.write(NINE)
        await until(lambda: ring.place.size == path.stat().st_size)
        ring.put(LINES[1])
        await until(lambda: ring.head == ring.tail)
        await anyio.to_thread.run_sync(writer.stop)

    found = leftover(os.open(ring.path, os.O_RDONLY), ring.path, path)
    assert found is not None
    assert found.place.size == path.stat().st_size


def test_a_ring_goes_over_to_a_new_file_when_it_is_empty_and_not_before(path: Path) -> None:
    path.parent.mkdir()
    new = path.with_name("new")
    place = Place((1, 1), 0, START)
    ring = Ring(path, lock(path, path), SMALL, place)
    ring.beyond = lambda _end: None
    ring.put(LINES[0])
    ring.path = new
    ring.prepare(lock(new, path))

    early = ring.renew()
    ring.commit(len(LINES[0]), dataclasses.replace(place, size=77))
    late = ring.renew()
    ring.put(LINES[1])

    assert (early, late) == (False, True)
    found = leftover(os.open(new, os.O_RDONLY), new, path)
    assert found is not None
    assert (found.content, found.place.size) == (LINES[1], 77)


def test_a_line_is_in_shared_memory_before_the_writer_may_take_it(path: Path) -> None:
    path.parent.mkdir()
    fd = lock(path, path)
    ring = Ring(path, fd, 1 << 25, Place((1, 1), 0, START))
    ring.beyond = lambda _end: None
    line = b'{"x":"%b"}\n' % (b"y" * (30 << 20))  # so long that its checksum takes a while
    putting = threading.Thread(target=ring.put, args=[line])

    putting.start()
    while ring.head == 0:
        pass
    found = leftover(fd, path, path)
    putting.join()

    assert found is not None
    assert len(found.content) == len(line)


async def test_a_closed_log_is_free_although_a_child_still_has_its_files_open(path: Path) -> None:
    """A child that was just forked closes them when it has its turn, which may be later than the next start."""
    async with open_log(path) as log:
        assert log._parts is not None
        held = [os.dup(fd) for fd in (log._parts.ring._fd, log._parts.live.file._fd)]  # what fork does to each
    try:
        async with open_log(path) as log:
            log.accepted(placed("again"))
    finally:
        for fd in held:
            os.close(fd)

    assert orders(path) == ["again"]
