"""User code that type checkers must refuse: each line that ends with ``# error``. Checked, never run."""

from __future__ import annotations

import aperion
from aperion import blocking
from aperion.audit import Rotation
from aperion.testing import Recorder, call, failing, fake


class UserLogin(aperion.Payload, type="typing.user_login"):
    username: str


class OrderPlaced(aperion.Payload, type="typing.order_placed"):
    order_id: int


bus = aperion.EventBus()


async def wrong(event: aperion.Event[OrderPlaced]) -> None: ...


async def right(event: aperion.Event[UserLogin]) -> None: ...


def no_event() -> None: ...


bus.on(UserLogin)(wrong)  # error
bus.on(UserLogin)(no_event)  # error
bus.on(UserLogin)(5)  # error
bus.on("user.*")(5)  # error
bus.on(UserLogin, priority="high")(right)  # error
bus.on(UserLogin, timeout="long")(right)  # error
bus.on(UserLogin, colour="red")(right)  # error
bus.on(int)(right)  # error
bus.on(5)(right)  # error
bus.subscribe(5, "user.*")  # error
aperion.EventBus(max_pending_events="many")  # error
aperion.Retry("three")  # error


async def main() -> None:
    await bus.emit(42)  # error
    await bus.emit("chat.sent")  # error
    await bus.emit("chat.sent", 5)  # error
    await bus.emit(UserLogin(username="alice"), key=5)  # error
    await bus.emit(UserLogin(username="alice"), durable="no")  # error
    receipt = await bus.emit(UserLogin(username="alice"))
    receipt.settled().raise_for_failures()  # error
    event = await bus.expect(UserLogin)
    event.payload.password  # error
    event.payload = UserLogin(username="bob")  # error


aperion.run(bus, main())  # error

aperion.Redactor(modes={"EMAIL": "partial"})  # error

aperion.AuditLog("events.jsonl", rotation=Rotation(compress="lzma"))  # error
aperion.AuditLog("events.jsonl").read(event="x")  # error
aperion.SQLiteJournal("state/", level="memory")  # error
aperion.EventBus(journal="state/")  # error
aperion.AuditLog("events.jsonl").read(limit="5")  # error
fake(bus, 5)  # error
failing(bus, rate="often")  # error
Recorder(bus).assert_emitted(5)  # error
call(right, OrderPlaced(order_id=1))  # error
call(right, "typing.user_login")  # error
bus.subscribe(right, OrderPlaced, 100, {"owner": "shop"})  # error
blocking.EventBus().emit("order.placed")  # error
