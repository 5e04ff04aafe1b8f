"""In Litestar: the ids of requests, the life of the bus, the bus and the outbox in handlers."""

# Without "from __future__ import annotations": Litestar reads the annotations of the handlers,
# which stand inside the tests.

import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from litestar import Litestar, Request, WebSocket, asgi, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.response import Response, Stream
from litestar.testing import TestClient
from serving import served

import aperion
from aperion import BusState, Event, EventBus, get_correlation_id
from aperion.integrations.litestar import (
    BusDep,
    CorrelationMiddleware,
    OutboxDep,
    OutboxMiddleware,
    ServerSentEvents,
    StatusApp,
    lifespan,
    provide_bus,
    provide_outbox,
)

ID = "X-Correlation-ID"


class CartFilled(aperion.Payload, type="litestar_cart.filled"):
    """A payload."""

    article: str


def shop(bus: EventBus, *handlers: Any, **options: Any) -> Litestar:
    """Return an application with what this page is about."""
    return Litestar(
        list(handlers),
        lifespan=[lifespan(bus)],
        middleware=[CorrelationMiddleware, OutboxMiddleware],
        dependencies={"bus": Provide(provide_bus), "outbox": Provide(provide_outbox)},
        **options,
    )


def test_a_handler_emits_with_the_id_of_its_request() -> None:
    """On the loop and in a thread; the body is the payload, and the response names the id."""
    bus, seen = EventBus(), list[tuple[str, str]]()

    @bus.on(CartFilled)
    def handler(event: Event[CartFilled]) -> None:
        seen.append((event.payload.article, event.correlation_id))

    @post("/carts")
    async def fill(request: Request, bus: BusDep) -> list[str | None]:
        await bus.emit(CartFilled(**await request.json()))
        return [get_correlation_id(), request.state.correlation_id]

    @get("/sync", sync_to_thread=True)
    def in_thread(bus: BusDep) -> list[str | None]:
        assert threading.current_thread() is not threading.main_thread()
        bus.emit_from_thread(CartFilled(article="milk"))
        return [get_correlation_id()]

    with TestClient(shop(bus, fill, in_thread)) as client:
        first = client.post("/carts", json={"article": "tea"}, headers={ID: "req-1"})
        second = client.get("/sync")

    assert (first.status_code, first.json(), first.headers[ID]) == (201, ["req-1", "req-1"], "req-1")
    assert second.json() == [second.headers[ID]]
    assert seen == [("tea", "req-1"), ("milk", second.headers[ID])]


def test_the_bus_lives_with_the_application_and_with_a_lifespan_of_ones_own() -> None:
    """Started before those that follow and drained after them; inside one of one's own, too."""
    bus, order = EventBus(), list[str]()

    @bus.on("life.*")
    async def slow(event: Event) -> None:
        await anyio.sleep(0.02)
        order.append(f"handled {event.event_type}")

    @asynccontextmanager
    async def own(app: Litestar) -> AsyncIterator[None]:
        assert app.state.aperion is bus
        await (await bus.emit("life.began", {})).settled()
        yield
        await bus.emit("life.ended", {})
        order.append("down")

    @get("/")
    async def handler(state: State) -> bool:
        return state.aperion is bus

    for app in (
        Litestar([handler], lifespan=[lifespan(bus), own]),
        Litestar([handler], lifespan=[lifespan(bus, own)]),
    ):
        with TestClient(app) as client:
            assert client.get("/").json() is True
        assert order == ["handled life.began", "down", "handled life.ended"]
        assert bus.state is BusState.STOPPED
        order.clear()


@pytest.mark.parametrize("kind", ["well", "raised", "unexpected", "returned", "refused"])
def test_an_outbox_goes_out_with_a_response_that_tells_of_success(kind: str) -> None:
    """And with no other; one that cannot be accepted makes a 503 of it."""
    bus = EventBus(max_pending_events=2, overflow_policy="raise")

    @get("/")
    async def handler(outbox: OutboxDep) -> Response[str]:
        for n in range(3 if kind == "refused" else 1):
            outbox.emit("cart.opened", {"n": n})
        if kind == "raised":
            raise HTTPException(status_code=409)
        if kind == "unexpected":
            raise RuntimeError
        return Response("fine", status_code=422 if kind == "returned" else 200)

    with TestClient(shop(bus, handler), raise_server_exceptions=False) as client:
        status = client.get("/").status_code

    assert status == {"well": 200, "raised": 409, "unexpected": 500, "returned": 422, "refused": 503}[kind]
    assert bus.stats().accepted == {"well": 1, "refused": 2}.get(kind, 0)
    assert bus.stats().dropped == (kind not in {"well", "refused"})


def test_what_streams_and_what_comes_after_see_the_id() -> None:
    """Streams, background tasks and websockets."""
    bus, seen = EventBus(), list[str]()
    bus.subscribe(lambda event: seen.append(event.correlation_id), "cart.*")

    async def parts() -> AsyncIterator[str]:
        for _ in range(3):
            await anyio.sleep(0.001)
            yield f"{get_correlation_id()} "

    @get("/stream")
    async def stream() -> Stream:
        return Stream(parts())

    async def later() -> None:
        await bus.emit("cart.opened", {})

    @get("/after")
    async def after() -> Response[None]:
        return Response(None, background=BackgroundTask(later))

    @websocket("/ws")
    async def ws(socket: WebSocket, bus: BusDep) -> None:
        await socket.accept()
        await bus.emit("cart.opened", {})
        await socket.send_json([get_correlation_id()])
        await socket.close()

    with TestClient(shop(bus, stream, after, ws)) as client:
        assert client.get("/stream", headers={ID: "req-1"}).text == "req-1 " * 3
        client.get("/after", headers={ID: "req-2"})
        with client.websocket_connect("/ws", headers={ID: "req-3"}) as session:
            assert session.receive_json() == ["req-3"]

    assert seen == ["req-2", "req-3"]


def test_the_middleware_takes_options_and_fits_around_the_whole_application() -> None:
    """There it names the id on the response to a path that nobody has, too."""
    bus = EventBus()

    @get("/")
    async def handler() -> str | None:
        return get_correlation_id()

    within = Litestar([handler], middleware=[DefineMiddleware(CorrelationMiddleware, header="X-Trace")])
    around = CorrelationMiddleware(Litestar([handler], lifespan=[lifespan(bus)]))

    with TestClient(within) as client:
        assert client.get("/", headers={"X-Trace": "t-1"}).headers["X-Trace"] == "t-1"
    with served(around) as url:
        found, missing = (httpx.get(f"{url}{path}", headers={ID: "req-1"}, timeout=20) for path in ("/", "/none"))

    assert (found.text, found.headers[ID]) == ("req-1", "req-1")
    assert (missing.status_code, missing.headers[ID]) == (404, "req-1")


def test_health_and_server_sent_events_are_mounted() -> None:
    """Both are ASGI applications."""
    bus = EventBus()
    status, source = StatusApp(bus), ServerSentEvents(bus, "cart.*")

    @asgi("/bus", is_mount=True, copy_scope=True)
    async def bus_status(scope: Any, receive: Any, send: Any) -> None:
        await status(scope, receive, send)

    @asgi("/events", copy_scope=True)
    async def events(scope: Any, receive: Any, send: Any) -> None:
        await source(scope, receive, send)

    with served(shop(bus, bus_status, events)) as url, httpx.Client(base_url=url, timeout=20) as client:
        health, stats = client.get("/bus/health"), client.get("/bus/stats")
        with client.stream("GET", "/events") as response:
            lines = response.iter_lines()
            assert next(lines) == ": welcome"
            bus.emit_from_thread("cart.opened", {"n": 1})
            assert (next(lines), next(lines)) == ("", "event: cart.opened")

    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert stats.json()["state"] == "running"


def test_a_missing_lifespan_is_explained() -> None:
    """As in FastAPI."""

    @get("/")
    async def handler(bus: BusDep) -> None: ...

    app = Litestar([handler], dependencies={"bus": Provide(provide_bus)}, debug=True)

    with TestClient(app) as client:
        answer = client.get("/")

    assert answer.status_code == 500
    assert "lifespan=lifespan(bus)" in answer.text


def test_without_litestar_the_import_says_what_to_install() -> None:
    """And the modules for any framework load none."""
    script = """
import sys
import aperion.integrations.outbox, aperion.integrations.sse, aperion.integrations.status
assert not {"fastapi", "starlette", "litestar"} & set(sys.modules)
sys.modules["litestar"] = None
try:
    import aperion.integrations.litestar
except ImportError as error:
    print(error)
"""

    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=45, check=False)

    assert done.returncode == 0, done.stderr
    assert 'pip install "aperion-bus[litestar]"' in done.stdout
