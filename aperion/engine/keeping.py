"""Keeping: what the engine tells its journal, and how it goes on with what an earlier life has left there."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from aperion._logs import logger as _log
from aperion._recent import Recent
from aperion.engine.entry import KeptAdmission
from aperion.engine.flight import DUPLICATE
from aperion.engine.kept import Kept, Volume
from aperion.engine.takeup import TakeUp
from aperion.errors import JournalUnavailable
from aperion.journal.rows import Insert, State
from aperion.outcomes import OutcomeState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aperion.engine.admission import Admission
    from aperion.engine.facts import Facts
    from aperion.engine.flight import Flight, Host
    from aperion.engine.kept import Later
    from aperion.engine.ledger import Ledger
    from aperion.engine.settlement import Settlement
    from aperion.events import Event
    from aperion.journal.letters import JournalLetters
    from aperion.journal.slots import Slot, Slots
    from aperion.journal.sqlite import SQLiteJournal
    from aperion.outcomes import Attempt
    from aperion.router import Router
    from aperion.subscriptions import Subscription

_LOOK: Final = 0.5
"""Seconds between two looks for slots whose process is gone."""


class Keeping:
    """The journal of a bus while it runs; on the loop's thread.

    It is an observer too: the starts and the ends of handlers are facts that it writes down.
    """

    # Mutable: all of it; the parts of the engine are set once, before anything is accepted.
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
        *("_adopting", "_facts", "_settlement", "_takeup", "_timer", "_volumes", "main"),
    )

    main: Volume
    _door: KeptAdmission
    _facts: Facts
    _settlement: Settlement
    _takeup: TakeUp

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
        self._adopting: asyncio.Task[None] | None = None

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
        if summary.events:
            _log.info(
                "the journal has events of an earlier life, which are taken up now",
                path=str(slot.database),
                events=summary.events if summary.is_exact else f"up to {summary.events}",
                oldest=None if summary.oldest is None else datetime.fromtimestamp(summary.oldest, UTC).isoformat(),
                dead_letters=summary.letters,
            )
        return volume

    async def _adopt(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            try:
                await self._opened(slot)
            except JournalUnavailable as error:
                _log.error("a slot of the journal was left alone", path=str(slot.database), reason=error.reason)

    def begin(self, host: Host, router: Router, ledger: Ledger, settlement: Settlement, facts: Facts) -> None:
        """Go on with what there is, now that events are accepted."""
        self._facts, self._settlement = facts, settlement
        most = self._journal.options.max_starts
        self._takeup = TakeUp(host, router, ledger, settlement, self._door, self._kept, most)
        if self._letters is not None:
            self._letters.attach(self._letter)
        for volume in self._volumes:
            self._join(volume)
        self._timer = self._loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK, self._look)
        if self._adopting is not None and not self._adopting.done():
            return
        slots: list[Slot] = []
        with suppress(OSError):  # somebody removes the folder, or no descriptor is free: the next look tells more
            slots = self._folder.abandoned()
        if slots:
            self._adopting = self._loop.create_task(self._take_over(slots), name="aperion journal adopts")

    async def _take_over(self, slots: Sequence[Slot]) -> None:
        before = len(self._volumes)
        await self._adopt(slots)
        for volume in self._volumes[before:]:
            self._join(volume)

    def _join(self, volume: Volume) -> None:
        if self._letters is not None:
            volume.writer.ask("letters", (), lambda rows: self._letters_read(volume, rows))
        self._takeup.go_on(volume)

    async def close(self) -> None:
        """Write what is left, and let go of all slots."""
        if self._timer is not None:
            self._timer.cancel()
        if self._adopting is not None:
            await asyncio.wait([self._adopting])
        if self._letters is not None:
            self._letters.detach()
        if self._committing and self.main.writer.failure is None:
            await self._caught_up()
        for volume in self._volumes:
            await volume.writer.close()

    async def _caught_up(self) -> None:
        """Wait for what is being committed: what was refused meanwhile has to be taken out again."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        self.main.writer.ask("row", (0,), answer.set_result)
        await asyncio.wait([answer], timeout=1.0)

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
            self._door.give_back(flight)
            if not flight.settled and flight not in self._committing:  # else the commit does that
                self._settlement.drop(flight, "cancelled", queued=False)
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
                # It may have been kept: one that is in flight for longer than the window is no longer known there.
                kept.volume.writer.later("settled", kept.seq, 0, False)
                self._repeated(flight, future)
            elif flight.settled or (future is not None and future.done()):  # nobody waits for it any more
                if kept is not None:
                    kept.volume.writer.later("settled", kept.seq, 0, False)
                if not flight.settled:
                    self._settlement.drop(flight, "cancelled", queued=False)
            else:
                if kept is not None:
                    self._kept[flight.event.event_id] = kept
                self._ready(flight, future)

    def _refuse(self, flight: Flight, future: asyncio.Future[None] | None, error: Exception) -> None:
        if not flight.settled:
            self._settlement.drop(flight, "journal_unavailable", queued=False)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # seen: nobody may wait, as after emit_nowait

    def _repeated(self, flight: Flight, future: asyncio.Future[None] | None) -> None:
        flight.plan = DUPLICATE
        self._settlement.settle(flight)
        if self._facts.dropped is not None:
            self._facts.dropped(flight.event, "duplicate")
        if future is not None and not future.done():
            future.set_result(None)

    def _ready(self, flight: Flight, future: asyncio.Future[None] | None) -> None:
        volume = self.main
        if flight.event.key is not None and volume.is_behind and not self._takeup.is_ending:
            volume.parked.append((flight, future))
            if flight.begun and future is not None:  # a dispatch, which waits for itself
                self._door.held[flight] = future
                return
        elif not flight.begun:
            self._door.queue_now(flight)
        elif flight.event.key is not None:
            self._door.reserve(flight)
        if future is not None:
            future.set_result(None)

    # What handlers do

    def started(self, event: Event[Any], subscription: Subscription, _number: int) -> None:
        """Write down that a handler begins: it may end the process."""
        kept = self._kept.get(event.event_id)
        place = -1 if kept is None else kept.place(subscription)
        if kept is None or place < 0:
            return
        starts = kept.volume.writer.starts
        kept.open -= 1
        kept.running |= 1 << place
        if kept.entry:
            starts.change(kept.entry, kept.seq, kept.done, kept.running)
        else:
            kept.entry = starts.enter(kept.seq, kept.running)

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
            self._takeup.passed(kept.volume)

    def retry(self, event: Event[Any], subscription: Subscription, attempts: int, wait: float, *, here: bool) -> bool:
        """Write down when a delivery is due again; tell whether it is, so that the next life makes the attempt."""
        kept = self._kept.get(event.event_id)
        place = -1 if kept is None else kept.place(subscription)
        if kept is None or place < 0:
            return False
        state = State(kept.seq, place, False, attempts, (kept.starts or {}).get(place, 0), time.time() + wait, wait)
        kept.volume.writer.later(state)
        kept.stated = True
        if not here:
            kept.left |= {place}
        return True

    def leave(self, event: Event[Any], subscription: Subscription) -> bool:
        """Leave a delivery that was not finished to the next life; tell whether it is kept."""
        kept = self._kept.get(event.event_id)
        place = -1 if kept is None else kept.place(subscription)
        if kept is None or place < 0:
            return False
        kept.left |= {place}
        return True

    def over(self, event: Event[Any], subscription: Subscription) -> None:
        """Write down that a delivery has failed for good, and stands among the dead letters."""
        kept = self._kept.get(event.event_id)
        place = -1 if kept is None else kept.place(subscription)
        if kept is not None and place >= 0:
            kept.volume.writer.later(State(kept.seq, place, over=True))
            kept.stated = True

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
            volume.writer.later("settled", kept.seq, kept.entry, kept.stated)
        if volume.suspect is kept:
            self._takeup.passed(volume)
        if kept.seq < volume.before:
            self._takeup.gone(volume)

    def leave_parked(self) -> None:
        """Leave to the next life what waits behind that of an earlier one; the drain begins."""
        for volume in self._volumes:
            self._takeup.leave_parked(volume)

    def resumed(self, flight: Flight, index: int) -> Later | None:
        """Return what is to become of a delivery that waits for its time, once its turn has come."""
        kept = self._kept.get(flight.event.event_id)
        return kept.later.pop(index, None) if kept is not None and kept.flight is flight and kept.later else None

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
            "taken_up": self._takeup.taken_up,
            "taking_up": any(volume.is_behind for volume in self._volumes),
            "orphans": self._takeup.orphans,
            "set_aside": self._takeup.bad,
            "commits": sum(writer.commits for writer in writers),
            "failures": sum(writer.failures for writer in writers),
            "degraded": next((writer.failure for writer in writers if writer.failure is not None), None),
        }
