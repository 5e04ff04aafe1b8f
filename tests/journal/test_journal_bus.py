"""A bus with a journal: what was accepted is handled, in this life or the next."""

from __future__ import annotations

import enum
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

import aperion
from aperion.journal import codec
from aperion.journal.rows import Insert, State

pytestmark = pytest.mark.anyio


def bus_of(folder: Path, **options: Any) -> aperion.EventBus:
    return aperion.EventBus(journal=aperion.SQLiteJournal(folder / "state", level="process"), **options)


async def until(condition: Any) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.005)


@asynccontextmanager
async def left(folder: Path, *rows: Insert, states: tuple[State, ...] = ()):
    """What a life before has left, as if it had been killed."""
    from aperion.journal.database import Database
    from aperion.journal.rows import Batch
    from aperion.journal.slots import Slots

    slot = Slots(folder / "state").first_free()
    database = Database(slot.database, durable=False, window=1000, remembered=1000)
    database.apply(Batch(inserts=list(rows), states={state[:2]: state for state in states}))
    database.close()
    slot.release()
    yield


def kept(seq: int, event_type: str, payload: Any, plan: list[str], **details: Any) -> Insert:
    import orjson

    event = aperion.Event(event_type, payload, **details)
    return Insert(seq, event.event_id, orjson.dumps(plan).decode(), codec.written(event))


class Trouble(Exception):
    pass


# Acceptance


async def test_emit_returns_when_the_event_is_kept_and_its_handler_runs_after(tmp_path: Path) -> None:
    bus, seen = bus_of(tmp_path), []
    bus.subscribe(lambda event: seen.append(event.payload["n"]), "order.placed", name="ship")

    async with bus:
        receipt = await bus.emit("order.placed", {"n": 1})
        commits = bus.stats().journal["commits"]
        outcomes = await receipt.settled()

    assert commits == 1
    assert outcomes.ok
    assert seen == [1]
    assert not receipt.duplicate


async def test_what_is_settled_is_not_there_for_the_next_life(tmp_path: Path) -> None:
    for _ in range(2):
        bus = bus_of(tmp_path)
        bus.subscribe(_nothing, "order.*", name="ship")
        async with bus:
            assert bus.stats().journal["taken_up"] == 0
            for n in range(50):
                await bus.emit("order.placed", {"n": n})
            await bus.emit_nowait("order.placed", {"n": 1}).settled()
            await bus.dispatch("order.placed", {"n": 2})
            await anyio.to_thread.run_sync(lambda: bus.emit_from_thread("order.placed", {"n": 3}))


async def _nothing(event: aperion.Event) -> None:
    pass


async def test_a_payload_that_would_not_come_back_is_refused_by_name(tmp_path: Path) -> None:
    class Local(enum.Enum):
        ONE = 1

    bus = bus_of(tmp_path)
    bus.subscribe(_nothing, "order.*", name="ship")

    async with bus:
        with pytest.raises(aperion.SerializationError, match=r"payload\.kind is a .*Local"):
            await bus.emit("order.placed", {"kind": Local.ONE})
        receipt = await bus.emit("order.placed", {"kind": Local.ONE}, durable=False)
        await receipt.settled()
        stats = bus.stats()

    assert (stats.rejected, stats.accepted, stats.settled) == (1, 1, 1)
    assert [letter.reason for letter in bus.dead_letters] == [aperion.FailureReason.SERIALIZATION_ERROR]


async def test_an_outbox_is_one_commit(tmp_path: Path) -> None:
    bus, seen = bus_of(tmp_path), []
    bus.subscribe(lambda event: seen.append(event.payload["n"]), "order.*", name="ship")

    async with bus:
        before = bus.stats().journal["commits"]
        async with bus.outbox() as outbox:
            for n in range(100):
                outbox.emit("order.placed", {"n": n}, key="k")
        after = bus.stats().journal["commits"]
        await bus.wait_settled()

    assert after - before == 1
    assert seen == list(range(100))


async def test_an_id_that_was_accepted_before_is_a_duplicate_and_handled_once(tmp_path: Path) -> None:
    seen: list[str] = []
    for _ in range(2):
        bus = bus_of(tmp_path)
        bus.subscribe(lambda event: seen.append(event.event_id), "order.*", name="ship")
        async with bus:
            first = await bus.emit("order.placed", {}, event_id="request-1")
            second = await bus.emit("order.placed", {}, event_id="request-1")
            third = bus.emit_nowait("order.placed", {}, event_id="request-1")
            outcomes = await third.settled()
            dispatched = await bus.dispatch("order.placed", {}, event_id="request-1")
            await bus.wait_settled()
            balance = bus.stats()

    assert seen == ["request-1"]
    assert first.duplicate
    assert second.duplicate
    assert third.duplicate
    assert outcomes.ok
    assert len(dispatched) == 0
    assert balance.accepted == balance.settled == 4


async def test_an_event_without_durable_handlers_is_not_kept(tmp_path: Path) -> None:
    bus = bus_of(tmp_path)
    bus.subscribe(_nothing, "order.placed", name="cheap", durable=False)

    async with bus:
        await (await bus.emit("order.placed", {})).settled()
        await (await bus.emit("other.thing", {})).settled()

        assert bus.stats().journal["commits"] == 0


async def test_without_a_journal_nothing_is_said_of_one() -> None:
    bus = aperion.EventBus()
    bus.subscribe(_nothing, "order.placed", name="ship", durable=False)

    async with bus:
        receipt = await bus.emit("order.placed", {}, durable=False)

        assert bus.stats().journal is None
        assert not receipt.duplicate


@pytest.mark.parametrize("options", [{"level": "paper"}, {"max_starts": 0}, {"window": -1}])
def test_an_option_that_makes_no_sense_is_refused(options: Any, tmp_path: Path) -> None:
    with pytest.raises(aperion.ConfigurationError, match=next(iter(options))):
        aperion.SQLiteJournal(tmp_path, **options)


def test_what_is_no_journal_is_refused() -> None:
    with pytest.raises(aperion.ConfigurationError, match="journal='state/' is no journal"):
        aperion.EventBus(journal="state/")


async def test_events_of_a_key_keep_their_order_whether_they_are_kept_or_not(tmp_path: Path) -> None:
    bus, seen = bus_of(tmp_path), []

    @bus.on("order.*", name="ship")
    async def ship(event: aperion.Event) -> None:
        seen.append(event.payload["n"])
        await anyio.sleep(0)

    async with bus:
        for n in range(60):
            bus.emit_nowait("order.placed", {"n": n}, key="k", durable=n % 3 != 0)
        await bus.wait_settled()

    assert seen == list(range(60))


async def test_a_dispatch_keeps_its_place_in_the_line_of_its_key(tmp_path: Path) -> None:
    bus, seen = bus_of(tmp_path), []

    @bus.on("order.*", name="ship")
    async def ship(event: aperion.Event) -> None:
        seen.append(event.payload["n"])
        await anyio.sleep(0)

    async with bus, anyio.create_task_group() as group:
        for n in range(0, 30, 3):
            bus.emit_nowait("order.placed", {"n": n}, key="k")
            group.start_soon(lambda n=n: bus.dispatch("order.placed", {"n": n + 1}, key="k"))
            await anyio.lowlevel.checkpoint()
            bus.emit_nowait("order.placed", {"n": n + 2}, key="k")

    assert seen == list(range(30))


async def test_a_dispatch_that_is_cancelled_gives_back_its_place_in_the_line(tmp_path: Path) -> None:
    bus, seen = bus_of(tmp_path), []
    bus.subscribe(lambda event: seen.append(event.payload["n"]), "order.*", name="ship")

    async with bus:
        for delay in (0, 0.0001, 0.001, 0.002, 0.005):
            with anyio.move_on_after(delay):
                await bus.dispatch("order.placed", {"n": "cancelled"}, key="k")
        await bus.emit("order.placed", {"n": 1}, key="k")
        with anyio.fail_after(5):
            await bus.wait_settled()

    assert seen[-1] == 1


async def test_an_emit_that_is_cancelled_while_it_waits_leaves_nothing(tmp_path: Path) -> None:
    bus, seen = bus_of(tmp_path), []
    bus.subscribe(lambda event: seen.append(event), "order.*", name="ship")

    async with bus:
        with anyio.move_on_after(0):
            await bus.emit("order.placed", {})
        await bus.wait_settled()
        stats = bus.stats()
    async with bus:
        assert bus.stats().journal["taken_up"] == 0

    assert seen == []
    assert stats.accepted == stats.dropped_after


# The next life


async def test_what_was_not_handled_is_handled_by_the_next_life_in_order(tmp_path: Path) -> None:
    rows = [kept(n, "order.placed", {"n": n}, ["ship"], key="k") for n in range(1, 700)]
    bus, seen = bus_of(tmp_path, max_pending_events=100), []

    @bus.on("order.placed", name="ship")
    async def ship(event: aperion.Event) -> None:
        seen.append(event.payload["n"])

    async with left(tmp_path, *rows), bus:
        for n in range(700, 720):  # of this life, with the same key
            await bus.emit("order.placed", {"n": n}, key="k")
        await until(lambda: len(seen) == 719)
        await bus.wait_settled()
        stats = bus.stats()

    assert seen == list(range(1, 720))
    assert stats.journal["taken_up"] == 699
    assert stats.accepted == stats.settled == 719


async def test_a_dispatch_waits_behind_what_has_its_key(tmp_path: Path) -> None:
    rows = [kept(n, "order.placed", {"n": n}, ["ship"], key="k") for n in range(1, 600)]
    bus, seen = bus_of(tmp_path), []

    @bus.on("order.placed", name="ship")
    async def ship(event: aperion.Event) -> None:
        seen.append(event.payload["n"])

    async with left(tmp_path, *rows), bus:
        with anyio.fail_after(10):
            outcomes = await bus.dispatch("order.placed", {"n": 600}, key="k")

    assert outcomes.ok
    assert seen == list(range(1, 601))


async def test_a_handler_that_is_done_does_not_run_again_because_its_neighbour_is_not(tmp_path: Path) -> None:
    row = kept(1, "order.placed", {"n": 1}, ["ship", "bill", "mail"])
    bus, seen = bus_of(tmp_path), []
    for name in ("ship", "bill", "mail"):
        bus.subscribe(lambda event, name=name: seen.append(name), "order.placed", name=name)

    async with left(tmp_path, row, states=(State(1, 1, over=True),)), bus:
        await until(lambda: len(seen) == 2)
        await bus.wait_settled()

    assert seen == ["ship", "mail"]


@dataclass(frozen=True)
class Parcel:
    weight: int


class JournalShipped(aperion.Payload, type="journal.shipped"):
    number: int
    at: datetime
    parcel: Parcel


async def test_a_handler_of_the_next_life_gets_the_event_as_it_was(tmp_path: Path) -> None:
    payload = JournalShipped(number=1, at=datetime(2026, 1, 1, tzinfo=UTC), parcel=Parcel(7))
    event = aperion.Event("journal.shipped", payload, key="k", headers={"a": "b"}, hops=2, causation_id="c")
    seen: list[Any] = []
    bus = bus_of(tmp_path)
    bus.subscribe(lambda event: seen.append(event), JournalShipped, name="ship")

    async with left(tmp_path, Insert(1, event.event_id, '["ship"]', codec.written(event))), bus:
        await until(lambda: seen)

    assert seen == [event]
    assert type(seen[0].payload) is JournalShipped


async def test_a_retry_survives_with_its_time_and_its_number(tmp_path: Path) -> None:
    row = kept(1, "order.placed", {}, ["ship", "bill"])
    state = State(1, 0, attempts=2, due=time.time() + 0.2, wait=0.3)
    bus, seen = bus_of(tmp_path), []
    begun = time.monotonic()

    @bus.on("order.placed", name="ship", retry=aperion.Retry(attempts=4, wait_initial=0.0))
    async def ship(event: aperion.Event) -> None:
        seen.append(("ship", time.monotonic() - begun))
        raise Trouble

    @bus.on("order.placed", name="bill")
    async def bill(event: aperion.Event) -> None:
        seen.append(("bill", time.monotonic() - begun))

    async with left(tmp_path, row, states=(state,)), bus:
        await until(lambda: len(seen) == 3)
        await bus.wait_settled()

    assert [name for name, _ in seen] == ["bill", "ship", "ship"]
    assert seen[1][1] >= 0.15
    (letter,) = bus.dead_letters
    assert letter.attempts == 4


async def test_a_clock_that_was_set_back_does_not_hold_a_retry_longer_than_it_asked_for(tmp_path: Path) -> None:
    row = kept(1, "order.placed", {}, ["ship"])
    state = State(1, 0, attempts=1, due=time.time() + 3600, wait=0.05)
    bus, seen = bus_of(tmp_path), []
    bus.subscribe(lambda event: seen.append(event), "order.placed", name="ship")

    async with left(tmp_path, row, states=(state,)), bus:
        await until(lambda: seen)


async def test_who_takes_the_process_down_too_often_becomes_a_dead_letter_and_the_others_are_delivered(
    tmp_path: Path,
) -> None:
    rows = [kept(n, "order.placed", {"n": n}, ["ship", "bill"]) for n in range(1, 11)]
    bus, seen = bus_of(tmp_path), []
    bus.subscribe(lambda event: seen.append(("ship", event.payload["n"])), "order.placed", name="ship")
    bus.subscribe(lambda event: seen.append(("bill", event.payload["n"])), "order.placed", name="bill")

    async with left(tmp_path, *rows, states=(State(5, 0, starts=3), State(7, 1, starts=2))), bus:
        await until(lambda: len(seen) == 19)
        await bus.wait_settled()

    assert sorted(seen) == sorted(
        (name, n) for name in ("ship", "bill") for n in range(1, 11) if (name, n) != ("ship", 5)
    )
    (letter,) = bus.dead_letters
    assert (letter.reason, letter.subscription, letter.attempts) == (aperion.FailureReason.KILLED, "ship", 3)


async def test_suspects_run_one_at_a_time_before_the_others_of_their_life(tmp_path: Path) -> None:
    rows = [kept(n, "order.placed", {"n": n}, ["ship"]) for n in range(1, 11)]
    bus, running, most, order = bus_of(tmp_path), 0, 0, []

    @bus.on("order.placed", name="ship")
    async def ship(event: aperion.Event) -> None:
        nonlocal running, most
        order.append(event.payload["n"])
        running += 1
        if event.payload["n"] in (3, 6, 9):
            most = max(most, running)
        await anyio.sleep(0.02)
        running -= 1

    async with left(tmp_path, *rows, states=tuple(State(n, 0, starts=1) for n in (3, 6, 9))), bus:
        await until(lambda: len(order) == 10)

    assert most == 1
    assert order == [3, 6, 9, 1, 2, 4, 5, 7, 8, 10]


async def test_a_delivery_whose_subscription_is_gone_stays_and_is_made_when_it_is_back(tmp_path: Path) -> None:
    row = kept(1, "order.placed", {"n": 1}, ["ship", "bill"])
    first, second, seen = bus_of(tmp_path), bus_of(tmp_path), []
    first.subscribe(lambda event: seen.append("bill"), "order.placed", name="bill")
    second.subscribe(lambda event: seen.append("ship"), "order.placed", name="ship")
    second.subscribe(lambda event: seen.append("bill"), "order.placed", name="bill")

    async with left(tmp_path, row), first:
        await until(lambda: seen)
        await first.wait_settled()
        assert first.stats().journal["orphans"] == 1
    async with second:
        await until(lambda: len(seen) == 2)

    assert seen == ["bill", "ship"]


async def test_a_subscription_takes_what_was_kept_for_a_name_that_it_had(tmp_path: Path) -> None:
    rows = [kept(n, "order.placed", {"n": n}, ["old.name", "ship"]) for n in (1, 2)]
    bus, seen = bus_of(tmp_path), []
    bus.subscribe(lambda event: seen.append(("new", event.payload["n"])), "order.*", name="new", aliases=["old.name"])
    bus.subscribe(lambda event: seen.append(("ship", event.payload["n"])), "order.*", name="ship", aliases=["new"])

    async with left(tmp_path, *rows), bus:
        await until(lambda: len(seen) == 4)
        await bus.wait_settled()
        assert bus.stats().journal["orphans"] == 0
    async with bus:
        assert bus.stats().journal["taken_up"] == 0

    assert sorted(seen) == [("new", 1), ("new", 2), ("ship", 1), ("ship", 2)]


@pytest.mark.parametrize("options", [{"aliases": "old"}, {"aliases": [""]}, {"durable": 1}])
def test_an_option_of_a_subscription_that_makes_no_sense_is_refused(options: Any) -> None:
    with pytest.raises(aperion.ConfigurationError, match=next(iter(options))):
        aperion.EventBus().subscribe(_nothing, "order.*", **options)


async def test_a_payload_that_its_model_refuses_by_now_becomes_a_dead_letter(tmp_path: Path) -> None:
    good = kept(1, "journal.shipped", {"number": 1}, ["ship"])
    bus = bus_of(tmp_path)
    bus.subscribe(_nothing, "journal.shipped", name="ship")

    async with left(tmp_path, good), bus:
        await until(lambda: len(bus.dead_letters))
        (letter,) = bus.dead_letters

    assert letter.reason is aperion.FailureReason.SCHEMA
    assert letter.event.payload == {"number": 1}
    assert letter.subscription == "ship"


async def test_a_row_that_is_damaged_is_set_aside_and_told_and_the_others_go_on(tmp_path: Path) -> None:
    import sqlite3

    rows = [kept(n, "order.placed", {"n": n}, ["ship"]) for n in range(1, 6)]
    bus, seen = bus_of(tmp_path), []
    bus.subscribe(lambda event: seen.append(event.payload["n"]), "order.placed", name="ship")

    async with left(tmp_path, *rows):
        other = sqlite3.connect(tmp_path / "state" / "journal-0.db")
        other.execute("UPDATE events SET body = replace(body, '\"n\":3', '\"n\":4') WHERE seq = 3")
        other.commit()
        other.close()
        async with bus:
            await until(lambda: len(seen) == 4)
            assert bus.stats().journal["set_aside"] == 1

    assert sorted(seen) == [1, 2, 4, 5]


# The end of a life


async def test_what_did_not_finish_in_the_drain_is_handled_by_the_next_life_and_is_no_dead_letter(
    tmp_path: Path,
) -> None:
    first, second, seen = bus_of(tmp_path, drain_timeout=0.05, max_concurrent_events=1), bus_of(tmp_path), []

    @first.on("order.placed", name="done", priority=200)
    async def done(event: aperion.Event) -> None:
        seen.append(("done", event.payload["n"]))

    @first.on("order.placed", name="ship")
    async def stuck(event: aperion.Event) -> None:
        await anyio.sleep(60)

    second.subscribe(lambda event: seen.append(("done", event.payload["n"])), "order.placed", 200, name="done")
    second.subscribe(lambda event: seen.append(("ship", event.payload["n"])), "order.placed", name="ship")

    async with first:
        await first.emit("order.placed", {"n": 1})
        await first.emit("order.placed", {"n": 2})
    assert len(first.last_drain.unfinished) == 2
    assert list(first.dead_letters) == []
    async with second:
        await until(lambda: len(seen) == 4)
        await second.wait_settled()

    assert seen == [("done", 1), ("ship", 1), ("done", 2), ("ship", 2)]


async def test_a_retry_that_waits_when_the_bus_drains_is_made_by_the_next_life(tmp_path: Path) -> None:
    first, second, seen = bus_of(tmp_path), bus_of(tmp_path), []
    retry = aperion.Retry(attempts=3, wait_initial=0.3, jitter=0)

    @first.on("order.placed", name="ship", retry=retry)
    async def fails(event: aperion.Event) -> None:
        raise Trouble

    @first.on("late.thing", name="late", retry=retry)
    async def fails_late(event: aperion.Event) -> None:
        await anyio.sleep(0.1)  # until the drain has begun
        raise Trouble

    for pattern, name in (("order.placed", "ship"), ("late.thing", "late")):
        second.subscribe(lambda event, name=name: seen.append(name), pattern, name=name)

    async with first:
        await first.emit("order.placed", {})
        await first.emit("late.thing", {})
        await anyio.sleep(0.02)
    assert list(first.dead_letters) == []
    async with second:
        await until(lambda: len(seen) == 2)

    assert sorted(seen) == ["late", "ship"]


# Dead letters


async def test_dead_letters_survive_and_are_redriven_by_a_later_life(tmp_path: Path) -> None:
    first, second, third, seen = bus_of(tmp_path), bus_of(tmp_path), bus_of(tmp_path), []

    @first.on("order.placed", name="ship")
    async def fails(event: aperion.Event) -> None:
        raise Trouble("boom")

    second.subscribe(lambda event: seen.append(event.payload), "order.placed", name="ship")

    async with first:
        for n in range(3):
            await first.emit("order.placed", {"n": n, "parcel": Parcel(n)})
        await first.wait_settled()
        before = list(first.dead_letters)
    async with second:
        await until(lambda: len(second.dead_letters) == 3)
        after = list(second.dead_letters)
        second.dead_letters.remove(after[2].letter_id)
        await second.redrive(after[0].letter_id)
    async with third:
        await until(lambda: len(third.dead_letters) == 1)
        (last,) = third.dead_letters

    assert after == before
    assert seen == [{"n": 0, "parcel": Parcel(0)}]
    assert last.letter_id == before[1].letter_id


async def test_a_letter_that_was_removed_while_the_bus_stood_still_does_not_come_back(tmp_path: Path) -> None:
    bus = bus_of(tmp_path)

    @bus.on("order.placed", name="ship")
    async def fails(event: aperion.Event) -> None:
        raise Trouble("boom")

    async with bus:
        await bus.emit("order.placed", {})
        await bus.wait_settled()
    bus.dead_letters.purge()
    async with bus:
        await bus.emit("other.thing", {})
        await anyio.sleep(0.1)
        assert len(bus.dead_letters) == 0
    async with bus:
        await anyio.sleep(0.1)
        assert len(bus.dead_letters) == 0


async def test_a_journal_and_an_audit_log_on_the_disk_go_together(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    bus = aperion.EventBus(
        audit=aperion.AuditLog(log, sync="disk"), journal=aperion.SQLiteJournal(tmp_path / "state"), redactor=None
    )
    seen: list[Any] = []
    bus.subscribe(lambda event: seen.append(event.event_id), "order.*", name="ship")

    async with bus:
        receipts = [await bus.emit("order.placed", {"n": n}) for n in range(5)]
        receipts.append(bus.emit_nowait("order.placed", {"n": 5}))
        outcomes = await bus.dispatch("order.placed", {"n": 6})
        again = await bus.emit("order.placed", {}, event_id=receipts[0].event_id)
        await bus.wait_settled()

    assert outcomes.ok
    assert again.duplicate
    assert seen[:5] == [receipt.event_id for receipt in receipts[:5]]
    assert len(seen) == 7
    text = log.read_text()
    assert text.count('"kind":"accepted"') == 8
    assert text.count('"kind":"dropped"') == 1


async def test_what_is_in_flight_when_the_drain_gives_up_does_not_come_back_if_it_was_refused(tmp_path: Path) -> None:
    bus, seen = bus_of(tmp_path, drain_timeout=0.0001), []
    bus.subscribe(lambda event: seen.append(event.payload["n"]), "order.*", name="ship")

    async with bus:
        receipts = [bus.emit_nowait("order.placed", {"n": n}) for n in range(50)]
    dropped = {n for n, receipt in enumerate(receipts) if receipt.dropped}
    async with bus_of(tmp_path) as other:
        other.subscribe(lambda event: seen.append(event.payload["n"]), "order.*", name="ship")
    again = bus_of(tmp_path)
    again.subscribe(lambda event: seen.append(event.payload["n"]), "order.*", name="ship")
    async with again:
        await until(lambda: not again.stats().journal["taking_up"])
        await again.wait_settled()

    assert sorted(seen) == [n for n in range(50) if n not in dropped]


async def test_a_letter_that_a_full_queue_lets_go_is_gone_from_the_file_too(tmp_path: Path) -> None:
    def bus_of_few() -> aperion.EventBus:
        bus = bus_of(tmp_path)
        bus.dead_letters._store.max_size = 3

        @bus.on("order.placed", name="ship")
        async def fails(event: aperion.Event) -> None:
            raise Trouble("boom")

        return bus

    bus = bus_of_few()
    async with bus:
        for n in range(5):
            await bus.dispatch("order.placed", {"n": n})
    again = bus_of(tmp_path)
    async with again:
        await until(lambda: len(again.dead_letters) == 3)

        assert [letter.event.payload["n"] for letter in again.dead_letters] == [2, 3, 4]


async def test_a_redrive_is_made_with_what_the_letter_of_an_earlier_life_holds(tmp_path: Path) -> None:
    first, second, seen = bus_of(tmp_path), bus_of(tmp_path), []

    @first.on("journal.shipped", name="ship")
    async def fails(event: aperion.Event) -> None:
        raise Trouble("boom")

    second.subscribe(lambda event: seen.append(event), "journal.shipped", name="ship")
    payload = JournalShipped(number=1, at=datetime(2026, 1, 1, tzinfo=UTC), parcel=Parcel(7))

    async with first:
        receipt = await first.emit(payload, key="k")
        await receipt.settled()
    async with second:
        await until(lambda: len(second.dead_letters))
        await second.redrive_all()

    assert seen == [receipt.event]
    assert type(seen[0].payload) is JournalShipped
