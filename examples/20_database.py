"""An order and its event in one transaction: the event goes out if, and only if, the order is committed."""

import anyio
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import aperion
from aperion.integrations.sqlalchemy import Relay, outbox, outbox_model


class Base(DeclarativeBase):
    """The base of your models."""


class Order(Base):
    """A row of your own."""

    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]


OutboxEvent = outbox_model(Base)  # a table for events, which your migrations create


class OrderPlaced(aperion.Payload, type="order.placed"):
    """What happened."""

    number: int


bus = aperion.EventBus()
emitted = anyio.Event()


@bus.on(OrderPlaced)
async def confirm(event: aperion.Event[OrderPlaced]) -> None:
    """Tell the customer."""
    print("confirming order", event.payload.number)
    emitted.set()


async def main() -> None:
    """Place two orders, of which one fails."""
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(engine)

    try:
        async with sessions.begin() as session:
            session.add(Order(number=6, customer="bob"))
            outbox(session).emit(OrderPlaced(number=6))
            raise ValueError("the card was refused")  # noqa: TRY301 - what fails belongs into the block
    except ValueError as error:
        print("order 6 is rolled back:", error)

    async with sessions.begin() as session:
        session.add(Order(number=7, customer="alice"))
        outbox(session).emit(OrderPlaced(number=7))

    async with bus, anyio.create_task_group() as services:
        services.start_soon(Relay(bus, engine).run)  # in a service: app.service(Relay(bus, engine).run)
        await emitted.wait()
        services.cancel_scope.cancel()
    await engine.dispose()


if __name__ == "__main__":
    anyio.run(main)
