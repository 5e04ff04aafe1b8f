"""Publish only if the database says so: events in a table of your own database, in your own transaction.

Needs SQLAlchemy 2: ``pip install "aperion-bus[sqlalchemy]"``, and a driver of your database. Tried with SQLite
(sqlite3, aiosqlite) and PostgreSQL (asyncpg, psycopg).

    class Base(DeclarativeBase): ...

    OutboxEvent = outbox_model(Base)              # a table beside your own, for your migrations to create

    async with sessions.begin() as session:       # a Session or an AsyncSession
        session.add(order)
        outbox(session).emit(OrderPlaced(number=7))

    app.service(Relay(bus, engine).run)           # moves what is committed to the bus

A transaction that is rolled back emits nothing. One that is committed emits everything, also when the process is
killed right after the commit: the next relay finds the rows. An event is emitted at least once, with the id it got in
the transaction; a bus with a journal handles it once.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, overload

import anyio
import anyio.to_thread

from aperion._logs import logger as _log
from aperion.context import here_now
from aperion.errors import AperionError, CascadeError, ConfigurationError, ValidationError, positive, shown
from aperion.events import Event
from aperion.intake import Intake
from aperion.naming import Naming

try:
    import sqlalchemy as sa
    from sqlalchemy import event as sa_events
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Mapped, Session, mapped_column
except ModuleNotFoundError as error:  # pragma: no cover - the message is tested in a process without it
    raise ModuleNotFoundError(
        'this module needs SQLAlchemy 2; run: pip install "aperion-bus[sqlalchemy]"', name=error.name
    ) from None

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from typing import Unpack

    from aperion.bus import EventBus
    from aperion.events import Payload
    from aperion.intake import EventDetails

__all__ = ["Outbox", "Relay", "outbox", "outbox_model"]

TABLE: Final = "aperion_outbox"
_CHANNEL: Final = "aperion_outbox"
_BATCH: Final = 100
"""Events of one transaction of a relay."""
_POLL: Final = 1.0
_LISTENING_POLL: Final = 15.0
_LONGEST_PAUSE: Final = 30.0
_LONGEST_ERROR: Final = 1_000
_MAX_PAYLOAD: Final = 1 << 20

_models: list[type[Any]] = []


def outbox_model(base: type[Any], *, table: str = TABLE) -> type[Any]:
    """Return a mapped class for the events of an outbox, with its table in the metadata of a declarative base.

    Migrations of Alembic see the table like any other. It holds a row for each event between its commit and the relay,
    and those that the bus has refused, with the reason.

    Args:
        base: the base class of your models.
        table: the name of the table.
    """

    class OutboxEvent(base):  # type: ignore[misc]  # the base is known when this runs
        """An event that waits for the relay."""

        __tablename__ = table

        position: Mapped[int] = mapped_column(
            sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        )
        event_id: Mapped[str] = mapped_column(sa.String(64), nullable=False)
        event: Mapped[str] = mapped_column(sa.Text, nullable=False)
        refused: Mapped[str | None] = mapped_column(sa.Text, nullable=True)

    @sa_events.listens_for(OutboxEvent, "after_insert")
    def notify(_mapper: Any, connection: Any, _target: Any) -> None:
        # PostgreSQL tells of it when the transaction is committed, and once for many.
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text(f"SELECT pg_notify('{_CHANNEL}', '')"))

    _models.append(OutboxEvent)
    return OutboxEvent


class Outbox:
    """Writes events into the transaction of a session; ``outbox`` makes it."""

    __slots__ = ("_intake", "_model", "_session")

    def __init__(self, session: Session | AsyncSession, model: type[Any], intake: Intake) -> None:
        self._session = session
        self._model = model
        self._intake = intake

    @overload
    def emit(self, event: Payload, /, **details: Unpack[EventDetails]) -> Event[Any]: ...
    @overload
    def emit(
        self, event: str, payload: Mapping[str, Any] | Payload, /, **details: Unpack[EventDetails]
    ) -> Event[Any]: ...
    def emit(
        self,
        event: str | Payload,
        payload: Mapping[str, Any] | Payload | None = None,
        /,
        **details: Unpack[EventDetails],
    ) -> Event[Any]:
        """Make an event and add it to the session; takes what ``EventBus.emit`` takes, and does not wait.

        It gets its id, its time, its correlation id and its cause here. The next flush of the session writes it; a
        savepoint or a transaction that is rolled back takes it away again.

        Raises:
            ValidationError: for an event that is not valid.
            SerializationError: for a payload that JSON cannot hold.
        """
        made = self._intake.event(event, payload, details, here_now())
        self._session.add(self._model(event_id=made.event_id, event=made.to_jsonl()))
        return made


def outbox(session: Session | AsyncSession, *, bus: EventBus | None = None, model: type[Any] | None = None) -> Outbox:
    """Return the outbox of a session, whose events belong to its transaction.

    Args:
        session: of SQLAlchemy, sync or async.
        bus: whose rules an event has to follow here already; otherwise the default rules count here, and those of the
            bus when the relay emits it.
        model: what ``outbox_model`` returned, where that was called more than once.

    Raises:
        ConfigurationError: for something that is no session, or when it is not clear which model is meant.
    """
    if not isinstance(session, Session | AsyncSession):
        raise ConfigurationError(f"outbox({shown(session)}) takes a Session or an AsyncSession of SQLAlchemy")
    intake = bus._intake if bus is not None else _DEFAULT
    return Outbox(session, _the_model(model), intake)


_DEFAULT = Intake(Naming(), max_payload_bytes=_MAX_PAYLOAD, max_hops=64, max_cascade=10_000)


def _the_model(model: type[Any] | None) -> type[Any]:
    if model is not None:
        return model
    if len(_models) != 1:
        what = "no table for events; call outbox_model(Base) once" if not _models else "several; pass model="
        raise ConfigurationError(f"there is {what}" if not _models else f"there are {what}")
    return _models[0]


class Relay:
    """Moves committed events from the table to a bus, in the order of their rows.

    Run it as a service of the application, in each process if you like: each row is taken by one relay at a time
    (``FOR UPDATE SKIP LOCKED``; on SQLite the whole table is). PostgreSQL tells it of new rows when the driver is
    asyncpg; elsewhere it looks every ``poll`` seconds.

    A row is deleted when the bus has accepted its event, in the same transaction that has locked the row: killed in
    between, the next relay emits the event once more, with the same id. An event that the bus refuses for good (it is
    not valid there, or a processor raises at it) stays in the table with the reason in ``refused``, and is not tried again. While the bus or the
    database cannot be reached, the relay waits longer and longer, up to half a minute, and logs the first failure.

    Args:
        bus: must run while the relay does.
        engine: an ``AsyncEngine`` or an ``Engine``; the latter is used in a worker thread.
        model: what ``outbox_model`` returned, where that was called more than once.
        poll: seconds between two looks when nobody tells of new rows.
        batch: events of one transaction.
    """

    # Mutable: what it has counted, and whether it was told of new rows.
    def __init__(
        self,
        bus: EventBus,
        engine: AsyncEngine | sa.Engine,
        *,
        model: type[Any] | None = None,
        poll: float = _POLL,
        batch: int = _BATCH,
    ) -> None:
        if not isinstance(engine, AsyncEngine | sa.Engine):
            raise ConfigurationError(f"Relay(engine={shown(engine)}) takes an Engine or an AsyncEngine of SQLAlchemy")
        positive("poll", poll)
        positive("batch", batch, whole=True)
        self.relayed = 0
        self.refused = 0
        self._bus = bus
        self._engine = engine
        self._table: sa.Table = _the_model(model).__table__
        self._poll = poll
        self._batch = batch
        self._told = anyio.Event()

    async def run(self) -> None:
        """Move events until cancelled."""
        async with self._listening() as listens:
            pause, failed = 0.0, False
            while True:
                self._told = anyio.Event()
                try:
                    moved = await self.once()
                except (sa.exc.SQLAlchemyError, OSError, AperionError) as error:
                    if not failed:
                        _log.error(
                            "the relay of the outbox cannot go on; it tries again", error_type=type(error).__name__
                        )
                    failed, pause = True, min(_LONGEST_PAUSE, max(0.1, pause * 2))
                    await anyio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not for secrets
                    continue
                if failed:
                    _log.info("the relay of the outbox goes on")
                pause, failed = 0.0, False
                if moved < self._batch:
                    with anyio.move_on_after(max(self._poll, _LISTENING_POLL) if listens else self._poll):
                        await self._told.wait()

    async def once(self) -> int:
        """Move one batch of what is committed; return how many rows were taken.

        Raises:
            SQLAlchemyError: when the database cannot be reached, and OSError from drivers.
            AperionError: what ``EventBus.emit`` raises when the bus is full, does not run, or cannot keep the event.
        """
        done: list[int] = []
        refused: dict[int, str] = {}
        async with self._connected() as call:
            rows = await call(self._taken)
            try:
                await self._emit(rows, done, refused)
            finally:
                if done or refused:  # cancelled or not: what was accepted is not to be emitted again
                    with anyio.CancelScope(shield=True):
                        await call(self._finish, done, refused)
                    self.relayed += len(done)
                    self.refused += len(refused)
        return len(rows)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """Open a connection, and yield what calls a function with it."""
        if isinstance(self._engine, AsyncEngine):
            async with self._engine.connect() as connection:
                yield connection.run_sync
            return
        blocking = await anyio.to_thread.run_sync(self._engine.connect)

        async def call(work: Callable[..., Any], *rest: Any) -> Any:
            return await anyio.to_thread.run_sync(work, blocking, *rest)

        try:
            yield call
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(blocking.close)

    def _taken(self, connection: sa.Connection) -> Sequence[Any]:
        """Lock the oldest rows that nobody else has locked."""
        table = self._table
        if connection.dialect.name == "sqlite":  # which has no locks for rows: become the one that writes
            connection.execute(sa.delete(table).where(table.c.position < 0))
        query = sa.select(table.c.position, table.c.event).where(table.c.refused.is_(None))
        locked = query.order_by(table.c.position).limit(self._batch).with_for_update(skip_locked=True)
        return connection.execute(locked).all()

    async def _emit(self, rows: Sequence[Any], done: list[int], refused: dict[int, str]) -> None:
        """Emit the events of these rows, in order; note which were accepted, and why others never will be."""
        for position, line in rows:
            try:
                await self._bus._relay(Event.from_jsonl(line))
            except (Exception, SystemExit) as error:
                if isinstance(error, AperionError) and not isinstance(error, ValidationError | CascadeError):
                    raise  # the bus is full, does not run, or cannot keep it: the row is tried again
                # Refused, or code of the user's has failed at it: others must not wait behind it.
                refused[position] = self._bus._hidden(f"{type(error).__name__}: {error}")[:_LONGEST_ERROR]
                _log.error("the bus refuses an event of the outbox; it stays in the table", position=position)
            else:
                done.append(position)

    def _finish(self, connection: sa.Connection, done: list[int], refused: dict[int, str]) -> None:
        table = self._table
        if done:
            connection.execute(sa.delete(table).where(table.c.position.in_(done)))
        for position, why in refused.items():
            connection.execute(sa.update(table).where(table.c.position == position).values(refused=why))
        connection.commit()

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[bool]:
        """Have PostgreSQL tell of new rows, where the driver can; tell whether it does."""
        engine = self._engine
        if not isinstance(engine, AsyncEngine) or engine.dialect.driver != "asyncpg":
            yield False
            return
        try:
            raw = await engine.raw_connection()
            driver: Any = raw.driver_connection
            await driver.add_listener(_CHANNEL, self._tell)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            _log.warning(
                "the relay of the outbox is not told of new rows, and looks now and then", reason=str(type(error))
            )
            yield False
            return
        try:
            yield True
        finally:
            with anyio.CancelScope(shield=True), suppress(Exception):  # the database may be gone
                await driver.remove_listener(_CHANNEL, self._tell)
                raw.close()

    def _tell(self, *_facts: object) -> None:
        self._told.set()
