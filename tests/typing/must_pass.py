"""User code that type checkers must accept. Checked, never run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, assert_type

import aperion
from aperion import blocking
from aperion.audit import (
    AuditRecord,
    AuditStats,
    Checkpoints,
    OnFailure,
    Rotation,
    SigningKey,
    Subjects,
    TraceNode,
    Verification,
    VerifyKey,
)
from aperion.redaction import Mode, RedactionKey
from aperion.testing import (
    Faults,
    Recorder,
    VirtualClock,
    call,
    duplicated,
    failing,
    fake,
    no_leaks,
    recording,
    virtual_time,
)


class UserLogin(aperion.Payload, type="typing.user_login"):
    username: str


class OrderPlaced(aperion.Payload, type="typing.order_placed"):
    order_id: int


class Versioned(aperion.Payload, type="typing.versioned", version=2):
    number: int


@Versioned.upcaster(from_version=1)
def older(fields: dict[str, Any]) -> dict[str, Any]:
    return {"number": fields["count"]}


bus = aperion.EventBus(
    audit=aperion.AuditLog("events.jsonl"),
    journal=aperion.SQLiteJournal("state/", level="process", max_starts=5, window=60),
    overflow_policy=aperion.OverflowPolicy.RAISE,
    naming=aperion.Naming(allowed_domains={"typing"}),
    metrics=aperion.InMemoryMetrics(),
)


@bus.on(UserLogin, priority=200)
async def greet(event: aperion.Event[UserLogin]) -> None:
    assert_type(event.payload.username, str)
    assert_type(event.correlation_id, str)


@bus.on(UserLogin)
def count(event: aperion.Event[UserLogin]) -> int:
    return len(event.payload.username)


@bus.on(UserLogin)
async def any_payload(event: aperion.Event[aperion.Payload]) -> None: ...


@bus.on("user.*", timeout=5)
def untyped(event: aperion.Event) -> None: ...


@bus.on([UserLogin, OrderPlaced], retry=aperion.Retry(attempts=3), where=lambda event: event.hops == 0)
async def both(event: aperion.Event[Any]) -> None: ...


class Service:
    def __init__(self) -> None:
        bus.subscribe(self.on_login, UserLogin)
        bus.subscribe(self.on_login, [UserLogin, "chat.*"], 10, name="login", metadata={"team": "a"})

    async def on_login(self, event: aperion.Event[UserLogin]) -> None: ...


router = aperion.Router()


@router.on(OrderPlaced, isolation="process")
def elsewhere(event: aperion.Event[OrderPlaced]) -> None: ...


async def middleware(delivery: aperion.Delivery, call_next: aperion.CallNext) -> object:
    return await call_next(delivery)


def processor(event: aperion.Event[Any]) -> aperion.Event[Any] | None:
    return event.replace(source="x")


async def main() -> None:
    bus.include(router)
    async with aperion.EventBus(processors=[processor], middleware=[middleware]) as other:
        assert_type(other, aperion.EventBus)
    async with bus:
        receipt = await bus.emit(UserLogin(username="alice"), key="alice", correlation_id="req-1")
        assert_type(receipt, aperion.Receipt)
        await bus.emit("chat.sent", {"text": "hi"}, headers={"a": "b"}, durable=False)
        assert_type(receipt.duplicate, bool)
        await bus.emit("typing.user_login", UserLogin(username="alice"))
        outcomes = await receipt.settled()
        assert_type(outcomes, aperion.Outcomes)
        mapping: Mapping[str, aperion.Outcome] = outcomes
        assert_type(mapping["x"].state, aperion.OutcomeState)
        assert_type(await bus.dispatch(UserLogin(username="alice")), aperion.Outcomes)
        assert_type(bus.emit_nowait("chat.sent", {}), aperion.Receipt)
        assert_type((await bus.expect(UserLogin, timeout=1)).payload.username, str)
        async for event in bus.stream(OrderPlaced):
            assert_type(event.payload.order_id, int)
        letters = bus.dead_letters.list("user.*", reason=aperion.FailureReason.HANDLER_ERROR)
        await bus.redrive(letters[0].letter_id)


def from_thread() -> None:
    receipt = bus.emit_from_thread(UserLogin(username="alice"), timeout=5)
    receipt.settled_from_thread(5).raise_for_failures()


parent: aperion.Event[aperion.Payload] = aperion.Event("typing.user_login", UserLogin(username="alice"))
with aperion.CorrelationContext("req-1") as correlation_id:
    assert_type(correlation_id, str)
aperion.run(bus, main)
aperion.run(aperion.App(bus))


redactor = aperion.Redactor(
    redact_keys=["badge"],
    patterns={"BADGE": "B-[0-9]{6}"},
    skip_types={"IP"},
    modes={"EMAIL": Mode.PARTIAL},
    key_modes={"user_id": Mode.PSEUDONYM},
    key=RedactionKey("k1", b"0123456789abcdef"),
)
report = Counter[str]()
assert_type(redactor.redact({"a": 1}, report), object)
assert_type(redactor.redact_text("a", report), str)
assert_type(redactor.redact_exception(ValueError()), tuple[str, str])
assert_type(redactor.counts, dict[str, int])


audit = aperion.AuditLog(
    "events.jsonl",
    sync="disk",
    on_failure=OnFailure.BEST_EFFORT,
    rotation=Rotation(max_bytes=1_000_000, keep=10, compress="zstd"),
    checkpoints=Checkpoints(every=100, key=SigningKey.generate("k1"), copy_to=print),
    kinds={"accepted"},
    subjects=Subjects("subjects.keys", of=lambda event: event.key),
)


async def look() -> None:
    for record in audit.read(types="order.*", kinds=["outcome"], limit=5, newest_first=True):
        assert_type(record, AuditRecord)
    async for record in audit.read(since=datetime.now(UTC)):
        assert_type(record.seq, int)
    async for record in audit.afollow(from_end=False, event_id="x"):
        assert_type(record.event_id, str | None)
    assert_type(audit.trace("request-1"), tuple[TraceNode, ...])
    assert_type(audit.verify(keys=[VerifyKey.load("audit.pub")], checkpoints=["copies", {"count": 1}]), Verification)
    assert_type(audit.stats(), AuditStats)
    assert_type(await audit.forget("c-7"), bool)
    audit.rotate_key(SigningKey.load("audit.key"))


async def length(event: aperion.Event[UserLogin]) -> int:
    return len(event.payload.username)


async def test(recorded: Recorder, clock: VirtualClock) -> None:
    assert_type(recorded.assert_emitted(UserLogin, times=1, within=3.5), aperion.Event[UserLogin])
    assert_type(await recorded.wait_for(UserLogin, timeout=2, where=lambda e: True), aperion.Event[UserLogin])
    assert_type(await recorded.wait_for("user.*", times=2), aperion.Event[Any])
    assert_type(await call(length, UserLogin(username="a"), correlation_id="req-1"), int)
    assert_type(await call(count, UserLogin(username="a"), timeout=None), int)
    assert_type(await call(length, "typing.user_login", {"username": "a"}), int)
    await call(untyped, UserLogin(username="a"))
    await clock.advance(30)
    assert_type(await clock.settle(within=60), float)
    async with no_leaks(grace=1):
        with recording(bus, "user.*") as some, fake(bus, UserLogin, "chat.*") as faked, virtual_time(bus) as own:
            assert_type((some, faked, own), tuple[Recorder, Recorder, VirtualClock])
        with duplicated(bus, rate=0.5), failing(bus, UserLogin, seed=1, error=ConnectionError) as faults:
            assert_type(faults, Faults)


def synchronous() -> None:
    with blocking.EventBus(max_pending_events=5) as sync_bus:
        assert_type(sync_bus.emit(UserLogin(username="a"), timeout=1, key="k"), aperion.Receipt)
        assert_type(sync_bus.emit("typing.user_login", {"username": "a"}), aperion.Receipt)
        assert_type(sync_bus.emit_and_wait(UserLogin(username="a")), aperion.Outcomes)
        assert_type(sync_bus.subscribe(count, UserLogin, 5), aperion.Subscription)
        assert_type(sync_bus.running, aperion.EventBus)
        assert_type(sync_bus.close(timeout=5), aperion.DrainReport | None)
