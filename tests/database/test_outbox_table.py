"""Events in a table of the user's own database: emitted if, and only if, the transaction was committed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import aperion
from aperion import Event, EventBus
from aperion.integrations import sqlalchemy as integration
from aperion.integrations.sqlalchemy import Relay, outbox, outbox_model

pytestmark = pytest.mark.anyio

SERVER = "127.0.0.1:5432/test"
WAYS = ["sqlite", "sqlite+aiosqlite", "postgresql+psycopg", "postgresql+psycopg_async", "postgresql+asyncpg"]


class Placed(aperion.Payload, type="table.placed"):
    number: int


@dataclass
class Shop:
    """A database with a table of orders and one of events, through one driver."""

    url: str
    engine: Any
    order: Any
    model: Any
    seen: list[Event[Any]] = field(default_factory=list)

    async def place(self, *numbers: int, fails: bool = False, after: Callable[[Any], None] | None = None) -> None:
        """Write an order and its event in one transaction."""

        def work(session: Any) -> None:
            for number in numbers:
                session.add(self.order(number=number))
                outbox(session, model=self.model).emit(Placed(number=number), key=f"order-{number}")
            if after is not None:
                after(session)
            if fails:
                raise ValueError("no such customer")

        if isinstance(self.engine, AsyncEngine):
            async with AsyncSession(self.engine) as session, session.begin():
                work(session)
                await session.flush()
        else:
            with Session(self.engine) as session, session.begin():
                work(session)

    async def count(self, model: Any) -> int:
        """Count the rows of a table."""
        query = sa.select(sa.func.count()).select_from(model)
        if isinstance(self.engine, AsyncEngine):
            async with self.engine.connect() as connection:
                return int((await connection.execute(query)).scalar_one())
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    @asynccontextmanager
    async def bus(self, **options: Any) -> AsyncIterator[EventBus]:
        """Run a bus that notes what is handled."""
        async with EventBus(**options) as bus:

            @bus.on("table.*", name="notes")
            async def notes(event: Event[Any]) -> None:
                self.seen.append(event)

            yield bus

    async def until(self, count: int) -> None:
        """Wait until so many events were handled."""
        with anyio.fail_after(20):
            while len(self.seen) < count:
                await anyio.sleep(0.005)


def models(suffix: str) -> tuple[Any, Any]:
    """Return a model of the user's own, and one for events, with tables of their own names."""

    class Base(DeclarativeBase): ...

    class Order(Base):
        __tablename__ = f"orders_{suffix}"
        number: Mapped[int] = mapped_column(primary_key=True)

    return Order, outbox_model(Base, table=f"outbox_{suffix}")


def reachable(url: str) -> bool:
    engine = sa.create_engine(url.replace("+asyncpg", "+psycopg").replace("_async", ""))
    try:
        with engine.connect():
            return True
    except sa.exc.OperationalError:
        return False
    finally:
        engine.dispose()


@pytest.fixture(params=WAYS)
async def shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shop]:
    driver: str = request.param
    if driver.startswith("sqlite"):
        url = f"{driver}:///{tmp_path / 'shop.db'}"
    else:
        url = f"{driver}://postgres@{SERVER}"
        if not reachable(url):
            pytest.skip(f"no PostgreSQL at {SERVER}")
    is_async = driver in {"sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg_async"}
    url = url.replace("_async", "")
    engine: Any = create_async_engine(url) if is_async else sa.create_engine(url)
    order, model = models(uuid.uuid4().hex[:8])
    metadata = order.metadata
    try:
        await _run(engine, metadata.create_all)
        yield Shop(url, engine, order, model)
        await _run(engine, metadata.drop_all)
    finally:
        integration._models.remove(model)
        if is_async:
            await engine.dispose()
        else:
            engine.dispose()


async def _run(engine: Any, work: Callable[[Any], Any]) -> None:
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as connection:
            await connection.run_sync(work)
    else:
        with engine.begin() as connection:
            work(connection)


@asynccontextmanager
async def relaying(bus: EventBus, shop: Shop, **options: Any) -> AsyncIterator[Relay]:
    relay = Relay(bus, shop.engine, model=shop.model, **options)
    async with anyio.create_task_group() as group:
        group.start_soon(relay.run)
        yield relay
        group.cancel_scope.cancel()


async def test_what_is_committed_is_emitted_with_its_id_its_key_and_its_cause(shop: Shop) -> None:
    async with shop.bus() as bus, relaying(bus, shop, poll=0.01):

        @bus.on("shop.asked", name="asks")
        async def asks(event: Event[Any]) -> None:
            await shop.place(7)

        with aperion.CorrelationContext("req-7"):
            asked = (await bus.dispatch("shop.asked", {})).event
        await shop.until(1)

    [event] = shop.seen
    assert event.payload == Placed(number=7)
    assert (event.key, event.correlation_id) == ("order-7", "req-7")
    assert (event.causation_id, event.hops) == (asked.event_id, 1)
    assert await shop.count(shop.model) == 0
    assert await shop.count(shop.order) == 1


async def test_what_is_rolled_back_is_never_emitted(shop: Shop) -> None:
    """A transaction as a whole, and a savepoint within one that is committed."""

    def savepoint(session: Any) -> None:
        sync = session.sync_session if isinstance(session, AsyncSession) else session
        if isinstance(session, AsyncSession):
            return
        nested = sync.begin_nested()
        outbox(session, model=shop.model).emit(Placed(number=99))
        sync.flush()
        nested.rollback()

    with pytest.raises(ValueError, match="no such customer"):
        await shop.place(1, fails=True)
    await shop.place(2, after=savepoint)
    async with shop.bus() as bus, relaying(bus, shop, poll=0.01):
        await shop.until(1)
        await bus.wait_settled()

    assert [event.payload.number for event in shop.seen] == [2]
    assert await shop.count(shop.order) == 1


async def test_the_order_of_one_transaction_and_of_those_that_follow_it_is_kept(shop: Shop) -> None:
    await shop.place(*range(10))
    await shop.place(*range(10, 20))
    async with shop.bus(max_concurrent_events=1) as bus, relaying(bus, shop, poll=0.01, batch=7) as relay:
        await shop.until(20)

    assert [event.payload.number for event in shop.seen] == list(range(20))
    assert relay.relayed == 20  # the last batch too, although the relay may have been cancelled in it
    assert await shop.count(shop.model) == 0


async def test_a_relay_that_is_cancelled_while_the_bus_is_full_emits_nothing_twice(shop: Shop) -> None:
    """What was accepted is gone from the table; the rest waits there for the next relay."""
    await shop.place(*range(5))
    gate = anyio.Event()
    async with EventBus(max_pending_events=2) as bus:

        @bus.on("table.*", name="waits")
        async def waits(event: Event[Any]) -> None:
            await gate.wait()
            shop.seen.append(event)

        with anyio.fail_after(10):
            async with relaying(bus, shop, poll=0.01):
                while bus.stats().pending < 2:
                    await anyio.sleep(0.005)
        assert await shop.count(shop.model) == 3
        gate.set()
        async with relaying(bus, shop, poll=0.01):
            await shop.until(5)
        await bus.wait_settled()

    assert sorted(event.payload.number for event in shop.seen) == list(range(5))


async def test_two_relays_move_each_event_once(shop: Shop) -> None:
    if shop.url.startswith("sqlite"):
        pytest.skip("one of two would wait for the lock of the whole file")
    await shop.place(*range(60))
    async with shop.bus() as bus, relaying(bus, shop, batch=5), relaying(bus, shop, batch=5):
        await shop.until(60)
        await bus.wait_settled()

    assert sorted(event.payload.number for event in shop.seen) == list(range(60))


@pytest.mark.parametrize("error", [aperion.ValidationError, RuntimeError, SystemExit])
async def test_what_the_bus_refuses_for_good_stays_with_the_reason_and_holds_nobody_up(
    shop: Shop, error: type[BaseException]
) -> None:
    """Whatever a processor raises."""
    await shop.place(1, 2)
    naming = aperion.Naming(pattern=r"table\.(other|placed)")
    async with shop.bus(naming=naming) as bus:

        def only_odd(event: Event[Any]) -> Event[Any]:
            if event.payload.number == 1:
                raise error("password=hunter2 is odd")
            return event

        bus._processors = (only_odd,)
        async with relaying(bus, shop, poll=0.01) as relay:
            await shop.until(1)
            with anyio.fail_after(10):
                while relay.refused < 1:
                    await anyio.sleep(0.01)

    assert [event.payload.number for event in shop.seen] == [2]
    assert await shop.count(shop.model) == 1
    query = sa.select(shop.model.refused)
    told: list[str] = []

    def read(connection: Any) -> None:
        told.extend(connection.execute(query).scalars())

    await _run(shop.engine, read)
    assert told == [f"{error.__name__}: password=[REDACTED] is odd"]


async def test_a_relay_waits_for_a_bus_that_cannot_take_more_and_loses_nothing(shop: Shop) -> None:
    await shop.place(*range(5))
    gate = anyio.Event()
    async with EventBus(max_pending_events=2, overflow_policy=aperion.OverflowPolicy.RAISE) as bus:

        @bus.on("table.*", name="waits")
        async def waits(event: Event[Any]) -> None:
            await gate.wait()
            shop.seen.append(event)

        async with relaying(bus, shop, poll=0.01):
            with anyio.fail_after(10):
                while bus.stats().pending < 2:
                    await anyio.sleep(0.005)
            await anyio.sleep(0.05)
            assert shop.seen == []
            gate.set()
            await shop.until(5)

    assert sorted(event.payload.number for event in shop.seen) == list(range(5))
    assert await shop.count(shop.model) == 0


async def test_the_database_tells_of_new_rows_where_it_can(shop: Shop) -> None:
    if not shop.url.startswith("postgresql+asyncpg"):
        pytest.skip("this driver does not listen")
    async with shop.bus() as bus, relaying(bus, shop, poll=3600):
        await anyio.sleep(0.1)
        for number in range(3):
            await shop.place(number)
            await shop.until(number + 1)


VICTIM = """
    import asyncio, os, signal, sys
    sys.path.insert(0, {here!r})
    import sqlalchemy as sa
    from sqlalchemy.orm import Session
    from test_outbox_table import Placed, models
    from aperion.integrations.sqlalchemy import outbox

    order, model = models("killed")
    engine = sa.create_engine({url!r})
    order.metadata.create_all(engine)
    with Session(engine) as session:
        for number in range(10):
            with session.begin():
                session.add(order(number=number))
                outbox(session).emit(Placed(number=number))
        session.add(order(number=10))
        outbox(session).emit(Placed(number=10))
        session.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_what_was_committed_before_a_kill_is_emitted_by_the_next_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    code = textwrap.dedent(VICTIM).format(here=str(Path(__file__).parent), url=url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr

    order, model = models("killed")
    engine = sa.create_engine(url)
    shop = Shop(url, engine, order, model)
    try:
        async with shop.bus() as bus, relaying(bus, shop, poll=0.01):
            await shop.until(10)
            await bus.wait_settled()
        assert [event.payload.number for event in shop.seen] == list(range(10))
        assert await shop.count(order) == 10
    finally:
        integration._models.remove(model)
        engine.dispose()


def test_mistakes_are_told_when_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(aperion.ConfigurationError, match="takes a Session or an AsyncSession"):
        outbox(object())  # type: ignore[arg-type]
    with pytest.raises(aperion.ConfigurationError, match="takes an Engine or an AsyncEngine"):
        Relay(EventBus(), object())  # type: ignore[arg-type]
    engine = sa.create_engine("sqlite://")
    with Session(engine) as session:
        with pytest.raises(aperion.ConfigurationError, match=r"call outbox_model\(Base\) once"):
            outbox(session)
        _, one = models("one")
        _, two = models("two")
        with pytest.raises(aperion.ConfigurationError, match="several; pass model="):
            outbox(session)
        with pytest.raises(aperion.ValidationError):
            outbox(session, model=one).emit("not a type", {})
        assert not session.new
    integration._models.remove(one)
    integration._models.remove(two)
    engine.dispose()


def test_without_the_package_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['sqlalchemy'] = None; import aperion.integrations.sqlalchemy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=45, check=False)
    assert done.returncode == 1
    assert 'pip install "aperion-bus[sqlalchemy]"' in done.stderr.splitlines()[-1]


async def test_with_a_journal_what_is_relayed_again_is_handled_once(shop: Shop, tmp_path: Path) -> None:
    """As after a kill between the acceptance and the end of the transaction that takes the row away."""
    await shop.place(1)
    relay = Relay(EventBus(), shop.engine, model=shop.model)  # until its bus is known

    def fails(*_: Any) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, Exception("gone"))

    async with shop.bus(journal=aperion.SQLiteJournal(tmp_path / "state")) as bus:
        relay._bus = bus
        finish, relay._finish = relay._finish, fails  # type: ignore[method-assign]
        with pytest.raises(sa.exc.OperationalError):
            await relay.once()
        relay._finish = finish  # type: ignore[method-assign]
        assert await relay.once() == 1
        await bus.wait_settled()

    assert [event.payload.number for event in shop.seen] == [1]
    assert await shop.count(shop.model) == 0
