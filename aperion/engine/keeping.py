"""Keeping: what the engine tells its journal, and how it goes on with what an earlier life has left there."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from aperion._logs import logger as _log
from aperion._recent import Recent
from aperion.engine.admission import Admission
from aperion.engine.flight import DUPLICATE, flight_of
from aperion.errors import BusNotRunningError, JournalUnavailable, KilledError, SerializationError
from aperion.journal.rows import Insert, State
from aperion.outcomes import Attempt, FailureReason, OutcomeState
from aperion.subscriptions import Subscription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aperion.engine.flight import Flight
    from aperion.engine.lifecycle import Engine
    from aperion.events import Event
    from aperion.journal.letters import JournalLetters
    from aperion.journal.rows import Page, Row, Summary
    from aperion.journal.slots import Slot, Slots
    from aperion.journal.sqlite import SQLiteJournal
    from aperion.journal.writer import Writer

_PAGE: Final = 256
_ENOUGH: Final = 512
"""Events of an earlier life in flight at once; the others stay in the file until there is room."""
_LOOK: Final = 0.5
"""Seconds between two looks for slots whose process is gone."""


class Later(NamedTuple):
    """A delivery that an earlier life has attempted, and that waits for its time."""

    subscription: Subscription
    attempts: int
    wait: float


class Kept:
    """What is kept of one event in flight."""

    # Mutable: the entry among the starts, what is done and runs, what stays for the next life, what is due later.
    __slots__ = ("done", "entry", "flight", "later", "left", "names", "open", "running", "seq", "starts", "volume")

    def __init__(self, volume: Volume, seq: int, names: tuple[str, ...], flight: Flight) -> None:
        self.volume = volume
        self.seq = seq
        self.names = names
        self.flight = flight
        self.entry = self.done = self.running = 0
        self.open = len(names)  # deliveries that were not attempted in this life
        self.left: set[int] = set()
        self.later: dict[int, Later] = {}  # by the index in the plan of the flight
        self.starts: dict[int, int] = {}

    def place(self, subscription: Subscription) -> int:
        """Return where a subscription stands in the plan that is kept; -1 where it is not kept."""
        return self.names.index(subscription.name) if subscription.name in self.names else -1


class Volume:
    """One slot of the journal, and what of an earlier life is still to be taken up from it."""

    # Mutable: all but the writer.
    __slots__ = (
        "after",
        "asked",
        "before",
        "has_more",
        "next",
        "parked",
        "seen_suspects",
        "suspect",
        "suspects",
        "taken",
        "writer",
    )

    def __init__(self, writer: Writer, summary: Summary) -> None:
        self.writer = writer
        self.next = self.before = summary.last + 1
        self.suspects = deque(summary.suspects)
        self.seen_suspects = frozenset(summary.suspects)
        self.suspect: Kept | None = None
        self.after = 0
        self.taken = 0  # of an earlier life, in flight
        self.asked = False
        self.has_more = summary.events > 0
        # Accepted, with a key, behind what is still to be taken up; dispatches wait for their futures.
        self.parked: list[tuple[Flight, asyncio.Future[None] | None]] = []

    @property
    def is_behind(self) -> bool:
        """Whether there is more of an earlier life than was taken up so far."""
        return self.has_more or self.suspect is not None or bool(self.suspects)


class Keeping:
    """The journal of a bus while it runs; on the loop's thread.

    It is an observer too: the starts and the ends of handlers are facts that it writes down.
    """

    # Mutable: all of it; the engine is set once, before anything is accepted.
    __slots__ = (
        *(
            "_committing",
            "_door",
            "_folder",
            "_group",
            "_journal",
            "_kept",
            "_letters",
            "_loop",
            "_passed_over",
            "_plans",
        ),
        *("_timer", "_volumes", "bad", "engine", "main", "orphans", "taken_up"),
    )

    engine: Engine
    main: Volume

    def __init__(self, journal: SQLiteJournal, letters: JournalLetters | None) -> None:
        self._journal = journal
        self._letters = letters
        self._loop = asyncio.get_running_loop()
        self._volumes: list[Volume] = []
        self._kept: dict[str, Kept] = {}  # by the id of the event
        self._committing: dict[Flight, Kept | None] = {}  # None for what only stands in line
        self._passed_over: Recent[bool] = Recent(1024)
        self._plans: dict[tuple[str, ...], str] = {}
        self._group: list[tuple[Insert | None, Flight]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.orphans = self.bad = self.taken_up = 0

    # Life

    async def open(self) -> None:
        """Take a slot, and those whose process is gone.

        Raises:
            JournalUnavailable: when the folder, or the slot, cannot be used.
        """
        from aperion.journal.slots import Slots  # loads fcntl and mmap, and SQLite below

        self._folder: Slots = Slots(self._journal.folder)
        self.main = await self._opened(self._folder.first_free())
        try:
            await self._adopt(self._folder.abandoned())
        except BaseException:
            await self.close()
            raise

    async def _opened(self, slot: Slot) -> Volume:
        from aperion.journal.writer import Writer

        writer = Writer(slot, self._journal.options, self._loop, self._told)
        summary = await writer.open()
        volume = Volume(writer, summary)
        self._volumes.append(volume)
        if summary.letters and self._letters is not None:
            writer.ask("letters", (), lambda rows: self._letters_read(volume, rows))
        if summary.events:
            _log.info(
                "the journal has events of an earlier life, which are taken up now",
                path=str(slot.database),
                events=summary.events if summary.is_exact else f"up to {summary.events}",
                dead_letters=summary.letters,
            )
        return volume

    async def _adopt(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            try:
                await self._opened(slot)
            except JournalUnavailable as error:
                _log.error("a slot of the journal was left alone", path=str(slot.database), reason=error.reason)

    def begin(self, engine: Engine) -> None:
        """Go on with what there is, now that events are accepted."""
        self.engine = engine
        if self._letters is not None:
            self._letters.attach(self._letter)
        for volume in self._volumes:
            self._go_on(volume)
        self._timer = self._loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        slots = self._folder.abandoned()
        if slots:
            self._loop.create_task(self._take_over(slots), name="aperion journal adopts")
        self._timer = self._loop.call_later(_LOOK, self._look)

    async def _take_over(self, slots: Sequence[Slot]) -> None:
        before = len(self._volumes)
        await self._adopt(slots)
        for volume in self._volumes[before:]:
            self._go_on(volume)

    async def close(self) -> None:
        """Write what is left, and let go of all slots."""
        if self._timer is not None:
            self._timer.cancel()
        if self._letters is not None:
            self._letters.detach()
        for volume in self._volumes:
            await volume.writer.close()

    # Acceptance

    def admission(self, *args: Any, **parts: Any) -> Admission:
        """Return the door of a bus that has this journal."""
        self._door = KeptAdmission(self, *args, **parts)
        return self._door

    def names_kept(self, event: Event[Any], plan: Sequence[Subscription]) -> tuple[str, ...]:
        """Return the names of the subscriptions whose deliveries of an event are kept.

        Raises:
            JournalUnavailable: where there are any, while the journal cannot be written.
        """
        names = tuple([subscription.name for subscription in plan if subscription.durable])
        if not names or self._passed_over.get(event.event_id):
            return ()
        failure = self.main.writer.failure
        if failure is not None:
            raise JournalUnavailable(self._journal.folder, failure)
        return names

    def pass_over(self, event: Event[Any]) -> None:
        """Do not keep an event."""
        self._passed_over.put(event.event_id, value=True)

    def keep(self, flight: Flight, names: tuple[str, ...], body: bytes) -> None:
        """Have an accepted event committed; it is queued when that is done, or dropped."""
        volume = self.main
        if not names:
            if flight.event.key is None or not (self._committing or volume.parked or volume.is_behind):
                return
            item: tuple[Insert | None, Flight] = (None, flight)  # it must not overtake one of its key
            self._committing[flight] = None
        else:
            seq = volume.next
            volume.next += 1
            self._committing[flight] = Kept(volume, seq, names, flight)
            text = self._plans.get(names)
            if text is None:
                text = self._plans[names] = orjson.dumps(names).decode()
            item = (Insert(seq, flight.event.event_id, text, body), flight)
        self._door.held[flight] = self._loop.create_future()
        if self._group is not None:
            self._group.append(item)
        else:
            volume.writer.insert([item])

    def collect(self) -> None:
        """Keep what is accepted from now on in one commit, until ``commit``."""
        if self._group is None:
            self._group = []

    def commit(self) -> None:
        """Commit what was collected."""
        group, self._group = self._group, None
        if group:
            self.main.writer.insert(group)

    def is_committing(self, flight: Flight) -> bool:
        """Tell whether an event is on its way into the journal."""
        return flight in self._committing

    async def kept_here(self, flight: Flight) -> None:
        """Wait until a dispatched event is kept, and it is its turn behind what was taken up; giving up drops it.

        Raises:
            JournalUnavailable: when it could not be kept; it is dropped.
        """
        future = self._door.held.get(flight)
        if future is None:
            return
        try:
            await future
        except BaseException:
            if not flight.settled and flight not in self._committing:  # else the commit does that
                self.engine.settlement.drop(flight, "cancelled", queued=False)
            raise
        finally:
            if flight not in self._committing:
                self._door.held.pop(flight, None)

    def _told(self, tickets: list[Flight], duplicates: set[int], reason: str | None) -> None:
        """Let go of the events of one commit, in the order of acceptance."""
        admission = self._door
        error = JournalUnavailable(self._journal.folder, reason) if reason is not None else None
        for flight in tickets:
            kept, future = self._committing.pop(flight), admission.held.pop(flight, None)
            if error is not None and kept is not None:
                self._refuse(flight, future, error)
            elif kept is not None and (kept.seq in duplicates or flight.event.event_id in self._kept):
                kept.volume.writer.later(
                    "settled", kept.seq, 0
                )  # kept, where it is in flight for longer than the window
                self._repeated(flight, future)
            elif flight.settled or (future is not None and future.done()):  # nobody waits for it any more
                if kept is not None:
                    kept.volume.writer.later("settled", kept.seq, 0)
                if not flight.settled:
                    self.engine.settlement.drop(flight, "cancelled", queued=False)
            else:
                if kept is not None:
                    self._kept[flight.event.event_id] = kept
                self._ready(flight, future)

    def _refuse(self, flight: Flight, future: asyncio.Future[None] | None, error: Exception) -> None:
        if not flight.settled:
            self.engine.settlement.drop(flight, "journal_unavailable", queued=False)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # seen: nobody may wait, as after emit_nowait

    def _repeated(self, flight: Flight, future: asyncio.Future[None] | None) -> None:
        flight.plan = DUPLICATE
        self.engine.settlement.settle(flight)
        if self.engine.facts.dropped is not None:
            self.engine.facts.dropped(flight.event, "duplicate")
        if future is not None and not future.done():
            future.set_result(None)

    def _ready(self, flight: Flight, future: asyncio.Future[None] | None) -> None:
        volume = self.main
        if flight.event.key is not None and volume.is_behind and not self.is_ending:
            volume.parked.append((flight, future))
            if flight.begun and future is not None:  # a dispatch, which waits for itself
                self._door.held[flight] = future
                return
        elif not flight.begun:
            self._door.queue_now(flight)
        if future is not None:
            future.set_result(None)

    def _unpark(self, volume: Volume) -> None:
        parked, volume.parked = volume.parked, []
        for flight, future in parked:
            if flight.settled:
                continue
            if not flight.begun:
                self._door.queue_now(flight)
            elif future is not None and not future.done():
                future.set_result(None)

    def leave_parked(self) -> None:
        """Leave to the next life what waits behind that of an earlier one, since no more of that is taken up."""
        for volume in self._volumes:
            parked, volume.parked = volume.parked, []
            for flight, future in parked:
                if not flight.begun:
                    self.engine.settlement.give_up(flight, "the bus drained before it was the turn of this event")
                elif future is not None and not future.done():
                    future.set_exception(BusNotRunningError("the bus drained before the event had its turn"))

    # What handlers do

    def started(self, event: Event[Any], subscription: Subscription, _number: int) -> None:
        """Write down that a handler begins: it may end the process."""
        kept = self._kept.get(event.event_id)
        place = -1 if kept is None else kept.place(subscription)
        if kept is None or place < 0:
            return
        starts = kept.volume.writer.starts
        if not kept.entry:
            kept.entry = starts.enter(kept.seq)
        kept.open -= 1
        kept.running |= 1 << place
        if kept.entry:
            starts.change(kept.entry, kept.seq, kept.done, kept.running)

    def ended(self, event: Event[Any], subscription: Subscription, attempt: Attempt) -> None:
        """Write down that a handler has ended, and that it need not run again."""
        kept = self._kept.get(event.event_id)
        place = -1 if kept is None else kept.place(subscription)
        if kept is None or place < 0:
            return
        kept.running &= ~(1 << place)
        if attempt.state is OutcomeState.OK:
            kept.done |= 1 << place
        if kept.entry:
            kept.volume.writer.starts.change(kept.entry, kept.seq, kept.done, kept.running)
        if kept.volume.suspect is kept and not kept.running and kept.open <= 0:
            self._suspect_passed(kept.volume)

    def retry(self, event: Event[Any], subscription: Subscription, attempts: int, wait: float, *, here: bool) -> bool:
        """Write down when a delivery is due again; tell whether it is, so that the next life makes the attempt."""
        kept = self._kept.get(event.event_id)
        place = -1 if kept is None else kept.place(subscription)
        if kept is None or place < 0:
            return False
        state = State(kept.seq, place, False, attempts, kept.starts.get(place, 0), time.time() + wait, wait)
        kept.volume.writer.later(state)
        if not here:
            kept.left.add(place)
        return True

    def leave(self, event: Event[Any], subscription: Subscription) -> bool:
        """Leave a delivery that was not finished to the next life; tell whether it is kept."""
        kept = self._kept.get(event.event_id)
        place = -1 if kept is None else kept.place(subscription)
        if kept is None or place < 0:
            return False
        kept.left.add(place)
        return True

    def over(self, event: Event[Any], subscription: Subscription) -> None:
        """Write down that a delivery has failed for good, and stands among the dead letters."""
        kept = self._kept.get(event.event_id)
        place = -1 if kept is None else kept.place(subscription)
        if kept is not None and place >= 0:
            kept.volume.writer.later(State(kept.seq, place, over=True))

    def settled(self, flight: Flight) -> None:
        """Forget an event that has settled, but for what is left to the next life."""
        kept = self._kept.get(flight.event.event_id)
        if kept is None or kept.flight is not flight:
            return
        del self._kept[flight.event.event_id]
        volume = kept.volume
        if kept.left:
            for place in range(len(kept.names)):
                if kept.done >> place & 1:
                    volume.writer.later(State(kept.seq, place, over=True))
        else:
            volume.writer.later("settled", kept.seq, kept.entry)
        if volume.suspect is kept:
            self._suspect_passed(volume)
        if kept.seq < volume.before:
            volume.taken -= 1
            if volume.taken <= _ENOUGH - _PAGE:
                self._go_on(volume)

    @property
    def is_ending(self) -> bool:
        """Whether what is not finished stays for the next life."""
        return not self.engine.settlement.retries

    # What an earlier life has left

    def _go_on(self, volume: Volume) -> None:
        """Ask for the next events, suspects first and one at a time: who takes the process down is found alone."""
        if volume.asked or volume.suspect is not None or self.is_ending:
            return
        if volume.suspects:
            volume.asked = True
            volume.writer.ask("row", (volume.suspects.popleft(),), lambda row: self._suspect_read(volume, row))
        elif volume.has_more and volume.taken <= _ENOUGH - _PAGE:
            volume.asked = True
            volume.writer.ask("page", (volume.after, volume.before, _PAGE), lambda page: self._page_read(volume, page))

    def _suspect_read(self, volume: Volume, row: Row | None) -> None:
        volume.asked = False
        kept = self._take_up(volume, row) if row is not None and not self.is_ending else None
        volume.suspect = kept
        if kept is None:
            self._go_on(volume)

    def _suspect_passed(self, volume: Volume) -> None:
        volume.suspect = None
        self._go_on(volume)

    def _page_read(self, volume: Volume, page: Page) -> None:
        volume.asked = False
        if self.is_ending:
            return
        if page.bad:
            self.bad += page.bad
            _log.critical(
                "events in the journal are damaged; they were set aside",
                path=str(self._journal.folder),
                events=page.bad,
            )
        volume.after, volume.has_more = page.last, page.more
        for row in page.rows:
            if row.seq not in volume.seen_suspects:
                self._take_up(volume, row)
        if not volume.has_more:
            self._unpark(volume)
        self._go_on(volume)

    def _take_up(self, volume: Volume, row: Row) -> Kept | None:
        """Put an event in flight again, with those of its deliveries that are not over; None where there is nothing to do."""
        from aperion.journal.codec import read

        try:
            event = read(row.body)
        except Exception as error:  # noqa: BLE001 - a model of the user's may raise anything
            self._unreadable(volume, row, error)
            return None
        if event.event_id in self._kept:  # it was accepted again after the window
            volume.writer.later("settled", row.seq, 0)
            return None
        engine = self.engine
        flight = flight_of(engine, event)
        kept = Kept(volume, row.seq, row.plan, flight)
        plan: list[Subscription] = []
        for place, name in enumerate(row.plan):
            state = row.states.get(place, State(row.seq, place))
            if state.over:
                continue
            subscription = _named(engine, name, event.event_type)
            if subscription is None:
                kept.left.add(place)
            elif state.starts >= self._journal.options.max_starts:
                killed = KilledError(name, state.starts)
                engine.settlement.lost(event, name, FailureReason.KILLED, killed, state.starts)
                volume.writer.later(state._replace(over=True))
            else:
                kept.starts[place] = state.starts
                if state.attempts:
                    wait = max(0.0, min(state.wait, state.due - time.time()))
                    kept.later[len(plan)] = Later(subscription, state.attempts, wait)
                    subscription = _closed(subscription)
                plan.append(subscription)
        self.orphans += len(kept.left)
        if not plan:
            if not kept.left:
                volume.writer.later("settled", row.seq, 0)
            return None
        kept.open = len(plan) - len(kept.later)
        flight.plan = tuple(plan)
        flight.started = time.monotonic()
        self._kept[event.event_id] = kept
        self.taken_up += 1
        volume.taken += 1
        engine.ledger.accepted += 1
        engine.ledger.pending += 1
        self._door.queue_now(flight)
        return kept

    def _unreadable(self, volume: Volume, row: Row, error: Exception) -> None:
        from aperion.journal.codec import unread

        event = unread(row.body)
        if event is None:
            self.bad += 1
            _log.critical("an event in the journal cannot be read; it stays there", seq=row.seq)
            return
        for place, name in enumerate(row.plan):
            if place not in row.states or not row.states[place].over:
                self.engine.settlement.lost(event, name, FailureReason.SCHEMA, error, 0)
        volume.writer.later("settled", row.seq, 0)

    def resumed(self, flight: Flight, index: int) -> Later | None:
        """Return what is to become of a delivery that waits for its time, once its turn has come."""
        kept = self._kept.get(flight.event.event_id)
        return kept.later.pop(index, None) if kept is not None and kept.flight is flight else None

    # Dead letters

    def _letter(self, letter_id: str, body: bytes | None, number: int) -> None:
        """Keep a letter, or forget it, in the slot that it stands in."""
        self._volumes[number].writer.later("letter", letter_id, body)

    def _letters_read(self, volume: Volume, rows: list[tuple[str, bytes]]) -> None:
        if self._letters is not None:
            self._letters.load(rows, self._volumes.index(volume))

    # Looking at it

    def stats(self) -> dict[str, Any]:
        """Return what the journal says of itself; from any thread."""
        writers = [volume.writer for volume in self._volumes]
        return {
            "level": self._journal.options.level.value,
            "slots": len(writers),
            "kept": len(self._kept),
            "taken_up": self.taken_up,
            "taking_up": any(volume.is_behind for volume in self._volumes),
            "orphans": self.orphans,
            "set_aside": self.bad,
            "commits": sum(writer.commits for writer in writers),
            "failures": sum(writer.failures for writer in writers),
            "degraded": next((writer.failure for writer in writers if writer.failure is not None), None),
        }


def _named(engine: Engine, name: str, event_type: str) -> Subscription | None:
    return next((each for each in engine.router.named(name) if each.wants(event_type)), None)


def _closed(subscription: Subscription) -> Subscription:
    """Return a stand-in that is passed over when its turn comes: its attempt is due later."""
    stand_in = Subscription(
        name=subscription.name, patterns=subscription.patterns, handler=subscription.handler, kind=subscription.kind
    )
    stand_in.set_paused(paused=True)
    return stand_in


class KeptAdmission(Admission):
    """The door of a bus with a journal: what cannot be kept is not accepted, and what is kept is queued then."""

    __slots__ = ("_keeping",)

    def __init__(self, keeping: Keeping, *args: Any, **parts: Any) -> None:
        super().__init__(*args, **parts)
        self._keeping = keeping

    def accept(self, event: Event[Any]) -> Flight:
        """Record an event and begin to keep it.

        Raises:
            SerializationError: for a payload that would not come back from the journal.
            JournalUnavailable: while that cannot be written.
            AuditUnavailable: when it could not be recorded.
        """
        from aperion.journal.codec import written

        plan = self._router.resolve(event.event_type)
        names = self._keeping.names_kept(event, plan)
        try:
            body = written(event) if names else b""
        except SerializationError as error:
            self._counters.rejected += 1
            self._settlement.rejected(event, error)
            raise
        flight = super().accept(event)
        flight.plan = plan  # another thread may have subscribed meanwhile
        self._keeping.keep(flight, names, body)
        return flight

    def queue(self, flight: Flight) -> None:
        """Hand an accepted event on to the workers, once it is kept."""
        if not self._keeping.is_committing(flight):
            self.queue_now(flight)

    def queue_now(self, flight: Flight) -> None:
        """Hand it on once the disk has its record too, where that is asked for."""
        super().queue(flight)
