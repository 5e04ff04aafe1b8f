"""In FastAPI and Starlette: the ids of requests, the life of the bus, and the bus in endpoints."""

# Without "from __future__ import annotations": FastAPI reads the annotations of the endpoints,
# which stand inside the tests.

import asyncio
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from serving import served
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Route
from starlette.types import Message, Scope

import aperion
from aperion import App, BusState, BusStats, Event, EventBus, FailureReason, get_correlation_id
from aperion.integrations.asgi import lifespan as asgi_lifespan
from aperion.integrations.fastapi import BusDep, CorrelationMiddleware, get_bus, lifespan

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions of Starlette ask for httpx2 here
    from fastapi.testclient import TestClient

ID = "X-Correlation-ID"
BUS = EventBus()  # for the tests of one that lives as long as its module


class CartFilled(aperion.Payload, type="cart.filled"):
    """A model, so that an endpoint can take it as its body."""

    article: str
    pieces: int


def shop(bus: EventBus | App, **options: Any) -> FastAPI:
    """Return an application with what this page is about."""
    app = FastAPI(lifespan=lifespan(bus))
    app.add_middleware(CorrelationMiddleware, **options)
    return app


async def asked(app: Any, *headers: tuple[bytes, bytes], kind: str = "http") -> list[Message]:
    """Return what an ASGI application sends when it is asked with raw headers."""
    sent: list[Message] = []
    scope = {"type": kind, "method": "GET", "path": "/", "headers": list(headers), "asgi": {"version": "3.0"}}

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    with anyio.fail_after(5):
        await app(scope, receive, send)
    return sent


async def says_id(scope: Scope, _receive: Any, send: Any) -> None:
    """Answer with the id; a pure ASGI application, without any framework."""
    body = f"{get_correlation_id()} {scope['state']['correlation_id']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Other", b"1")]})
    await send({"type": "http.response.body", "body": body})


# Emitting in endpoints


def test_an_endpoint_emits_and_the_handler_gets_it() -> None:
    """FAST-1: with the bus as a dependency; the body is the payload."""
    bus, seen = EventBus(), list[tuple[str, int]]()
    app = shop(bus)

    @bus.on(CartFilled)
    async def handler(event: Event[CartFilled]) -> None:
        seen.append((event.payload.article, event.payload.pieces))

    @app.post("/carts", status_code=201)
    async def fill(cart: CartFilled, bus: BusDep) -> dict[str, str]:
        return {"event": (await bus.emit(cart)).event_id}

    with TestClient(app) as client:
        response = client.post("/carts", json={"article": "tea", "pieces": 2})
        refused = client.post("/carts", json={"article": "tea", "pieces": "many"})

    assert response.status_code == 201
    assert response.json()["event"]
    assert seen == [("tea", 2)]
    assert refused.status_code == 422


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Correlation-ID": "req-1"},
        {"x-correlation-id": "req-1"},
        {"X-CORRELATION-ID": "  req-1 "},
        {"X-Request-ID": "req-1"},
        {"X-Request-ID": "other", "X-Correlation-ID": "req-1"},
        {"X-Request-ID": "req-1", "X-Correlation-ID": "alice@example.com"},
    ],
    ids=str,
)
def test_an_incoming_id_is_taken_over(headers: dict[str, str]) -> None:
    """FAST-2: API-fastapi: seen by the endpoint, the event and its handler; the response names it."""
    bus, seen = EventBus(), list[str | None]()
    app = shop(bus)

    @bus.on("cart.opened")
    def handler(event: Event) -> None:
        seen.extend([event.correlation_id, get_correlation_id()])

    @app.get("/")
    async def endpoint(request: Request, bus: BusDep) -> list[str | None]:
        await bus.emit("cart.opened", {})
        return [get_correlation_id(), request.state.correlation_id]

    with TestClient(app) as client:
        response = client.get("/", headers=headers)

    assert response.json() == ["req-1", "req-1"]
    assert response.headers.get_list(ID) == ["req-1"]
    assert seen == ["req-1", "req-1"]


def test_a_missing_id_is_made_and_used_throughout() -> None:
    """FAST-3: one new id in the endpoint, the event and the response; none outside."""
    bus, events = EventBus(), list[Event]()
    app = shop(bus)
    bus.subscribe(events.append, "cart.opened")

    @app.get("/")
    async def endpoint(bus: BusDep) -> str | None:
        await bus.emit("cart.opened", {})
        return get_correlation_id()

    with TestClient(app) as client:
        response = client.get("/")

    assert len(response.json()) == 36
    assert response.json() == response.headers[ID] == events[0].correlation_id
    assert get_correlation_id() is None


def test_two_requests_get_different_ids() -> None:
    """FAST-4: the first one leaves nothing behind, on one connection."""
    app = shop(EventBus())

    @app.get("/")
    async def endpoint() -> str | None:
        return get_correlation_id()

    with served(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        given = client.get("/", headers={ID: "req-1"}).json()
        first, second = client.get("/").json(), client.get("/").json()

    assert given == "req-1"
    assert len({given, first, second}) == 3


def test_an_endpoint_can_wait_for_the_handlers() -> None:
    """FAST-5: the outcomes are in the response."""
    bus, seen = EventBus(), list[Event]()
    app = shop(bus)

    @bus.on("cart.opened", name="keep")
    async def keep(event: Event) -> None:
        await anyio.sleep(0.01)
        seen.append(event)

    @app.get("/")
    async def endpoint(bus: BusDep) -> dict[str, str]:
        receipt = await bus.emit("cart.opened", {"n": 1})
        return {name: outcome.state.value for name, outcome in (await receipt.settled()).items()}

    with TestClient(app) as client:
        response = client.get("/")
        assert response.json() == {"keep": "ok"}
        assert [event.payload["n"] for event in seen] == [1]


@pytest.mark.parametrize("way", ["/emit", "/dispatch", "/thread"])
def test_handlers_of_all_kinds_run_in_order(way: str) -> None:
    """FAST-6: async and sync mixed, by priority, from async and from sync endpoints."""
    bus, seen = EventBus(), list[tuple[int, str | None]]()
    app = shop(bus)

    async def on_loop(event: Event) -> None:
        await anyio.sleep(0.005)
        seen.append((priorities[len(seen)], get_correlation_id()))
        assert asyncio.get_running_loop()

    def in_thread(event: Event) -> None:
        seen.append((priorities[len(seen)], get_correlation_id()))
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()

    priorities = [400, 300, 200, 100]
    for priority in reversed(priorities):
        handler = on_loop if priority in {400, 200} else in_thread
        bus.subscribe(handler, "cart.opened", priority, name=f"at {priority}")

    @app.get("/emit")
    async def emits(bus: BusDep) -> list[str]:
        return list(await (await bus.emit("cart.opened", {})).settled())

    @app.get("/dispatch")
    async def dispatches(bus: BusDep) -> list[str]:
        return list(await bus.dispatch("cart.opened", {}))

    @app.get("/thread")
    def emits_from_thread(bus: BusDep) -> list[str]:
        return list(bus.emit_from_thread("cart.opened", {}).settled_from_thread())

    with TestClient(app) as client:
        response = client.get(way, headers={ID: "req-1"})

    assert response.json() == ["at 400", "at 300", "at 200", "at 100"]
    assert seen == [(priority, "req-1") for priority in priorities]
    assert bus.stats().failures == 0


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_failing_handler_does_not_fail_the_request(kind: str) -> None:
    """FAST-7: HTTP 200, and a dead letter with the reason and the id of the request."""
    bus = EventBus()
    app = shop(bus)

    async def fails(event: Event) -> None:
        raise SystemExit("no")

    def fails_in_thread(event: Event) -> None:
        raise RuntimeError("no")

    bus.subscribe(fails if kind == "async" else fails_in_thread, "cart.opened", name="mail")

    @app.get("/")
    async def endpoint(bus: BusDep) -> bool:
        return (await (await bus.emit("cart.opened", {})).settled()).ok

    with TestClient(app) as client:
        response = client.get("/", headers={ID: "req-1"})

    assert (response.status_code, response.json()) == (200, False)
    (letter,) = bus.dead_letters.list()
    assert (letter.subscription, letter.reason) == ("mail", FailureReason.HANDLER_ERROR)
    assert letter.event.correlation_id == "req-1"


def test_the_bus_is_drained_when_the_application_stops() -> None:
    """FAST-8: what requests emitted is finished first, and then nothing is accepted any more."""
    bus, done = EventBus(), list[int]()
    app = shop(bus)

    @bus.on("cart.opened")
    async def slow(event: Event) -> None:
        await anyio.sleep(0.1)
        done.append(event.payload["n"])

    @app.get("/{n}")
    async def endpoint(n: int, bus: BusDep) -> int:
        await bus.emit("cart.opened", {"n": n})
        return len(done)

    with TestClient(app) as client:
        before = [client.get(f"/{n}").json() for n in range(3)]
        assert bus.stats().state == "running"

    assert before == [0, 0, 0]
    assert sorted(done) == [0, 1, 2]
    assert bus.last_drain is not None
    assert bus.last_drain.ok
    assert bus.state is BusState.STOPPED
    assert not hasattr(app.state, "aperion")


def test_stats_are_a_response() -> None:
    """FAST-9: as they are, and as the response model."""
    bus = EventBus(metrics=aperion.InMemoryMetrics())
    app = shop(bus)
    bus.subscribe(lambda e: None, "cart.opened")

    @app.get("/model")
    async def as_model(bus: BusDep) -> BusStats:
        await bus.dispatch("cart.opened", {})
        return bus.stats()

    @app.get("/plain", response_model=None)
    async def as_it_is(bus: BusDep) -> Any:
        return bus.stats()

    with TestClient(app) as client:
        model, plain = client.get("/model"), client.get("/plain")

    assert model.status_code == plain.status_code == 200
    assert (model.json()["state"], model.json()["accepted"], model.json()["deliveries"]) == ("running", 1, 1)
    assert plain.json() == model.json()
    assert json.loads(model.content)["metrics"]


# The id


BAD_IDS = ["", " ", "a b", "-x", "\x00", "h\xe9llo", "two\nlines", "two\r\nX-Admin: 1", "alice@example.com"]


@pytest.mark.anyio
@pytest.mark.parametrize("given", [*BAD_IDS, "a" * 129, "a" * 100_000], ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("name", [b"x-correlation-id", b"x-request-id"])
async def test_what_is_no_id_is_not_taken_over(given: str, name: bytes) -> None:
    """COR-hdr/2/3: too long, a line break, an address: a new one instead, and the request goes on."""
    start, body = await asked(CorrelationMiddleware(says_id), (name, given.encode("latin-1")))

    answered = dict(start["headers"])[b"x-correlation-id"].decode()
    assert start["status"] == 200
    assert len(answered) == 36
    assert body["body"].decode() == f"{answered} {answered}"


@pytest.mark.parametrize("given", ["a" * 10_000, "alice@example.com", "a b"], ids=lambda text: text[:20])
def test_a_server_passes_bad_ids_on_and_they_are_not_taken_over(given: str) -> None:
    """COR-hdr/2/3: through a real server; the event has the new one as well."""
    bus, events = EventBus(), list[Event]()
    app = shop(bus)
    bus.subscribe(events.append, "cart.opened")

    @app.get("/")
    async def endpoint(bus: BusDep) -> None:
        await bus.emit("cart.opened", {})

    with served(app) as url:
        response = httpx.get(url, headers={ID: given}, timeout=20)

    assert response.status_code == 200
    assert response.headers[ID] == events[0].correlation_id != given
    assert len(events[0].correlation_id) == 36


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"X-Correlation-Id", b"a1")], "a1"),  # servers send names in lower case, tests may not
        ([(b"x-correlation-id", b"\xff"), (b"x-correlation-id", b"a1")], "a1"),
        ([(b"x-correlation-id", b"a1"), (b"x-correlation-id", b"a2")], "a1"),
        ([(b"x-request-id", b"r1"), (b"x-correlation-id", b"a1")], "a1"),
        ([(b"x-correlation-id", b"a" * 128)], "a" * 128),
    ],
)
async def test_ids_are_read_from_the_bytes_of_asgi(headers: list[tuple[bytes, bytes]], expected: str) -> None:
    """COR-hdr/2/3: names in any case, the first valid one, up to 128 characters."""
    start, body = await asked(CorrelationMiddleware(says_id), *headers)

    assert start["headers"] == [(b"X-Other", b"1"), (b"x-correlation-id", expected.encode())]
    assert body["body"].decode() == f"{expected} {expected}"


@pytest.mark.anyio
async def test_other_headers_can_be_chosen() -> None:
    """And the fallback left out; a name that no header can have is refused when declared."""
    custom = CorrelationMiddleware(says_id, header="X-Trace", fallback="X-Correlation-ID")
    alone = CorrelationMiddleware(says_id, fallback=None)

    preferred, _ = await asked(custom, (b"x-trace", b"t1"), (b"x-correlation-id", b"a1"))
    fallen, _ = await asked(custom, (b"x-correlation-id", b"a1"))
    ignored, _ = await asked(alone, (b"x-request-id", b"r1"))

    assert preferred["headers"][-1] == (b"x-trace", b"t1")
    assert fallen["headers"][-1] == (b"x-trace", b"a1")
    assert ignored["headers"][-1][1] != b"r1"
    for wrong in ("", "two words", "a:b", "n\xe4me", "line\n", 7):
        with pytest.raises(aperion.ConfigurationError, match="no name of a header"):
            CorrelationMiddleware(says_id, header=wrong)  # type: ignore[arg-type]  # the point of the test
        with pytest.raises(aperion.ConfigurationError, match="fallback="):
            CorrelationMiddleware(says_id, fallback=wrong)  # type: ignore[arg-type]  # the point of the test


@pytest.mark.anyio
async def test_what_the_application_sends_is_not_changed() -> None:
    """Its message may be one that it sends again; a message may come without headers."""
    constant: dict[str, Any] = {"type": "http.response.start", "status": 204}

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(constant)
        await send({"type": "http.response.body", "headers": "not of this message"})

    start, body = await asked(CorrelationMiddleware(app), (b"x-correlation-id", b"a1"))

    assert start == {**constant, "headers": [(b"x-correlation-id", b"a1")]}
    assert body == {"type": "http.response.body", "headers": "not of this message"}
    assert "headers" not in constant


@pytest.mark.anyio
async def test_what_is_no_request_passes_through() -> None:
    """The lifespan, and whatever ASGI may add: the very same objects, and no id."""
    seen: list[Any] = []

    async def app(*details: Any) -> None:
        seen.extend([*details, get_correlation_id()])

    for kind in ("lifespan", "something.new"):
        given: list[Any] = [{"type": kind}, object(), object()]
        await CorrelationMiddleware(app)(*given)

        assert all(a is b for a, b in zip(seen, [*given, None], strict=True))
        assert given[0] == {"type": kind}
        seen.clear()


def test_a_header_that_the_application_set_is_replaced() -> None:
    """However it is spelled; its other headers stay."""
    app = shop(EventBus())

    @app.get("/")
    async def endpoint(response: Response) -> None:
        response.headers.append("x-CORRELATION-id", "its own")
        response.headers.append("X-Correlation-ID", "another")
        response.headers["X-Other"] = "1"

    with TestClient(app) as client:
        response = client.get("/", headers={ID: "req-1"})

    assert response.headers.get_list(ID) == ["req-1"]
    assert response.headers["X-Other"] == "1"


@pytest.mark.anyio
async def test_one_inside_another_keeps_the_id() -> None:
    """Also one that the outer one has made; a stale id in the state is none of it."""
    nested = CorrelationMiddleware(CorrelationMiddleware(says_id))
    start, body = await asked(nested)
    outer = dict(start["headers"])[b"x-correlation-id"].decode()

    assert body["body"].decode() == f"{outer} {outer}"

    async def with_stale_state(scope: Scope, receive: Any, send: Any) -> None:
        await CorrelationMiddleware(says_id)({**scope, "state": {"correlation_id": "stale"}}, receive, send)

    start, _ = await asked(with_stale_state, (b"x-correlation-id", b"a1"))
    assert start["headers"][-1] == (b"x-correlation-id", b"a1")


@pytest.mark.anyio
async def test_an_id_that_the_server_was_started_with_is_not_that_of_every_request() -> None:
    """The context around the server is not the request."""
    with aperion.CorrelationContext("starting"):
        first, _ = await asked(CorrelationMiddleware(says_id))
        second, _ = await asked(CorrelationMiddleware(says_id))
        assert get_correlation_id() == "starting"

    assert len({first["headers"][-1], second["headers"][-1], (b"x-correlation-id", b"starting")}) == 3


@pytest.mark.parametrize("path", ["/async", "/sync", "/dependency", "/mounted/"])
def test_all_kinds_of_endpoints_see_the_id(path: str) -> None:
    """In threads too, behind a BaseHTTPMiddleware, in dependencies and in mounted applications."""
    app, mounted = shop(EventBus()), FastAPI()
    app.mount("/mounted", mounted)

    async def pass_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)

    @app.get("/async")
    @mounted.get("/")
    async def on_loop() -> str | None:
        return get_correlation_id()

    @app.get("/sync")
    def in_thread() -> str | None:
        assert threading.current_thread().name.startswith("AnyIO")
        return get_correlation_id()

    def dependency() -> Iterator[str | None]:
        yield get_correlation_id()

    @app.get("/dependency")
    async def depends(seen: str = Depends(dependency)) -> str:
        return seen

    with TestClient(app) as client:
        response = client.get(path, headers={ID: "req-1"})

    assert response.json() == "req-1"
    assert response.headers[ID] == "req-1"


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("server", ["uvicorn", "TestClient"])
def test_streamed_responses_see_the_id_to_their_end(kind: str, server: str) -> None:
    """The header comes first, the parts as they are made."""
    app = shop(EventBus())

    async def on_loop() -> AsyncIterator[str]:
        for _ in range(3):
            await anyio.sleep(0.001)
            yield f"{get_correlation_id()} "

    def in_thread() -> Iterator[str]:
        for _ in range(3):
            yield f"{get_correlation_id()} "

    @app.get("/")
    async def endpoint() -> StreamingResponse:
        return StreamingResponse(on_loop() if kind == "async" else in_thread())

    if server == "uvicorn":
        with served(app) as url:
            response: Any = httpx.get(url, headers={ID: "req-1"}, timeout=20)
    else:
        with TestClient(app) as client:
            response = client.get("/", headers={ID: "req-1"})

    assert response.text == "req-1 " * 3
    assert response.headers[ID] == "req-1"


@pytest.mark.anyio
async def test_a_streamed_response_is_not_collected_first() -> None:
    """Each part goes out before the next one is made."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for n in range(3):
            await send({"type": "http.response.body", "body": b"%d" % n, "more_body": n < 2})
            assert len(sent) == n + 2

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with anyio.fail_after(5):
        await CorrelationMiddleware(app)({"type": "http", "headers": []}, receive, send)

    assert [message.get("body") for message in sent] == [None, b"0", b"1", b"2"]


def test_background_tasks_see_the_id_and_can_emit() -> None:
    """On the loop and in a thread, after the response."""
    bus, seen = EventBus(), list[tuple[str, str]]()
    app = shop(bus)
    bus.subscribe(lambda event: seen.append((event.payload["kind"], event.correlation_id)), "cart.opened")

    async def on_loop() -> None:
        await bus.emit("cart.opened", {"kind": "async"})

    def in_thread() -> None:
        bus.emit_from_thread("cart.opened", {"kind": "sync"})

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(on_loop)
        tasks.add_task(in_thread)

    with TestClient(app) as client:
        assert client.get("/", headers={ID: "req-1"}).status_code == 200

    assert sorted(seen) == [("async", "req-1"), ("sync", "req-1")]


def test_a_websocket_has_one_id_from_accept_to_close() -> None:
    """It is named when the connection is accepted, and the bus is there too."""
    bus, events = EventBus(), list[Event]()
    app = shop(bus)
    bus.subscribe(events.append, "cart.opened")

    @app.websocket("/ws")
    async def endpoint(socket: WebSocket, bus: BusDep) -> None:
        await socket.accept(headers=[(b"X-Correlation-ID", b"its own"), (b"x-other", b"1")])
        async for _ in socket.iter_text():
            await bus.emit("cart.opened", {})
            await socket.send_json([get_correlation_id(), socket.state.correlation_id])

    with TestClient(app) as client:
        with client.websocket_connect("/ws", headers={ID: "req-1"}) as session:
            for _ in range(2):
                session.send_text("open")
                assert session.receive_json() == ["req-1", "req-1"]
            assert session.extra_headers == [(b"x-other", b"1"), (b"x-correlation-id", b"req-1")]
        with client.websocket_connect("/ws") as session:
            session.send_text("open")
            made, _ = session.receive_json()

    assert [event.correlation_id for event in events] == ["req-1", "req-1", made]
    assert len(made) == 36


@pytest.mark.anyio
async def test_a_refused_websocket_names_the_id() -> None:
    """In the response that the denial extension of ASGI sends."""

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})

    (start,) = await asked(CorrelationMiddleware(app), (b"x-correlation-id", b"a1"), kind="websocket")

    assert start["headers"] == [(b"x-correlation-id", b"a1")]


def test_responses_to_errors_name_the_id() -> None:
    """Those to expected errors always; those to unexpected ones where the middleware is around it all."""
    app = FastAPI()
    seen: list[str | None] = []

    @app.exception_handler(LookupError)
    async def explain(request: Request, error: LookupError) -> JSONResponse:
        seen.append(get_correlation_id())
        return JSONResponse({}, 404)

    @app.get("/{kind}")
    async def endpoint(kind: str) -> None:
        raise {"http": HTTPException(409), "handled": LookupError(), "unexpected": RuntimeError()}[kind]

    client = TestClient(CorrelationMiddleware(app), raise_server_exceptions=False)
    responses = [client.get(f"/{kind}", headers={ID: "req-1"}) for kind in ("http", "handled", "unexpected")]

    assert [response.status_code for response in responses] == [409, 404, 500]
    assert [response.headers.get(ID) for response in responses] == ["req-1"] * 3
    assert seen == ["req-1"]


@pytest.mark.anyio
async def test_a_failing_application_leaves_no_id_behind() -> None:
    """What was around is there again, and the error is the server's."""

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        raise LookupError

    with aperion.CorrelationContext("around"):
        with pytest.raises(LookupError):
            await asked(CorrelationMiddleware(app))
        assert get_correlation_id() == "around"


# The life of the bus


def test_one_bus_runs_again_and_again() -> None:
    """Each test of a module with an application of its own may enter it; nothing is lost in between."""
    app = shop(BUS)

    @app.get("/")
    async def endpoint(bus: BusDep) -> bool:
        assert bus is BUS
        return (await (await bus.emit("cart.opened", {})).settled()).ok

    before = BUS.stats().settled
    for _ in range(3):
        with TestClient(app) as client:
            assert client.get("/").json() is True
            assert app.state.aperion is BUS
        assert BUS.state is BusState.STOPPED
    with TestClient(shop(BUS)), pytest.raises(RuntimeError, match="already"), TestClient(shop(BUS)):
        pytest.fail("one bus in two applications at the same time")

    assert BUS.stats().settled == before + 3


def test_the_bus_runs_around_the_inner_lifespan() -> None:
    """Started before, drained after: inner emits from its first line to its last."""
    bus, order = EventBus(), list[str]()

    @bus.on("life.*")
    async def slow(event: Event) -> None:
        await anyio.sleep(0.05)
        order.append(f"handled {event.event_type}")

    @asynccontextmanager
    async def inner(app: FastAPI) -> AsyncIterator[None]:
        assert app.state.aperion is bus
        await (await bus.emit("life.began", {})).settled()
        order.append("up")
        yield
        await bus.emit("life.ended", {})
        order.append("down")

    with TestClient(FastAPI(lifespan=lifespan(bus, inner=inner))):
        order.append("serving")

    assert order == ["handled life.began", "up", "serving", "down", "handled life.ended"]


def test_state_of_the_inner_lifespan_is_kept() -> None:
    """Merged with the bus, for requests and for mounted applications."""
    bus = EventBus()

    @asynccontextmanager
    async def inner(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"pool": "connections"}

    app, mounted = FastAPI(lifespan=lifespan(bus, inner)), FastAPI()
    app.mount("/mounted", mounted)

    @app.get("/")
    @mounted.get("/")
    async def endpoint(request: Request, found: BusDep) -> list[Any]:
        return [request.state.pool, request.state.aperion is bus, found is bus]

    with TestClient(app) as client:
        assert client.get("/").json() == ["connections", True, True]
        assert client.get("/mounted/").json() == ["connections", True, True]


def test_it_can_be_used_inside_a_lifespan_of_ones_own() -> None:
    """What is opened around it is there until the last event has settled; no state has to be passed on."""
    bus, order = EventBus(), list[str]()

    @bus.on("cart.opened")
    async def slow(event: Event) -> None:
        await anyio.sleep(0.05)
        order.append("handled")

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(bus)(app):
            yield
        order.append("closed")

    app = FastAPI(lifespan=own)

    @app.get("/")
    async def endpoint(bus: BusDep) -> None:
        await bus.emit("cart.opened", {})

    with TestClient(app) as client:
        assert client.get("/").status_code == 200

    assert order == ["handled", "closed"]


def test_a_failing_inner_lifespan_stops_the_bus() -> None:
    """The error is the one that it raised; the next try finds nothing of this one."""
    bus, tries = EventBus(), list[int]()

    @asynccontextmanager
    async def inner(app: FastAPI) -> AsyncIterator[None]:
        tries.append(len(tries))
        if len(tries) == 1:
            raise LookupError("no database")
        yield

    app = FastAPI(lifespan=lifespan(bus, inner))

    with pytest.raises(LookupError, match="no database"), TestClient(app):
        pytest.fail("started all the same")
    assert bus.state is BusState.STOPPED
    assert not hasattr(app.state, "aperion")
    with TestClient(app):
        assert bus.stats().state == "running"


def test_an_application_with_services_runs_too() -> None:
    """Its services run beside the bus; endpoints get the bus."""
    application = App(EventBus())
    ticks: list[str] = []

    @application.service
    async def tick() -> None:
        ticks.append("up")
        try:
            await anyio.sleep_forever()
        finally:
            ticks.append("down")

    app = shop(application)

    @app.get("/")
    async def endpoint(bus: BusDep) -> bool:
        return bus is application.bus

    with TestClient(app) as client:
        assert client.get("/").json() is True
        assert ticks == ["up"]

    assert ticks == ["up", "down"]


def test_starlette_needs_no_fastapi_for_it() -> None:
    """The lifespan and the middleware are those of the ASGI module; the bus is in the state."""
    bus = EventBus()

    async def endpoint(request: Request) -> Response:
        receipt = await request.app.state.aperion.emit("cart.opened", {})
        return JSONResponse([request.state.aperion is bus, receipt.event.correlation_id])

    app = Starlette(routes=[Route("/", endpoint)], lifespan=asgi_lifespan(bus))
    app.add_middleware(CorrelationMiddleware)

    with TestClient(app) as client:
        assert client.get("/", headers={ID: "req-1"}).json() == [True, "req-1"]
    assert asgi_lifespan is lifespan


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_missing_lifespan_is_explained(kind: str) -> None:
    """Never given, given and not entered, or left already."""
    bus = EventBus()
    without, entered = FastAPI(), shop(bus)
    for app in (without, entered):

        @app.get("/")
        async def endpoint(bus: BusDep) -> None: ...

        @app.websocket("/ws")
        async def ws(socket: WebSocket, bus: BusDep) -> None: ...

    left = TestClient(entered)
    with left:
        pass

    for client in (TestClient(without), TestClient(entered), left):
        with pytest.raises(aperion.BusNotRunningError, match=r"FastAPI\(lifespan=lifespan\(bus\)\)"):
            if kind == "http":
                client.get("/")
            else:
                with client.websocket_connect("/ws"):
                    pass


def test_the_bus_can_be_overridden_in_tests() -> None:
    """With the dependency that BusDep stands for."""
    app, other = shop(EventBus()), EventBus()
    app.dependency_overrides[get_bus] = lambda: other

    @app.get("/")
    async def endpoint(bus: BusDep) -> bool:
        return bus is other

    with TestClient(app) as client:
        assert client.get("/").json() is True


@pytest.mark.anyio
async def test_getting_the_bus_does_not_wait_for_a_thread() -> None:
    """Sync endpoints that hold every worker thread hold up no endpoint that only wants the bus."""
    bus = EventBus()
    app = shop(bus)
    threads = anyio.to_thread.current_default_thread_limiter()
    slow_endpoints = range(int(threads.total_tokens))

    @app.get("/")
    async def endpoint(bus: BusDep) -> str:
        return bus.stats().state

    transport = httpx.ASGITransport(app)
    async with lifespan(bus)(app), httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        for each in slow_endpoints:
            await threads.acquire_on_behalf_of(each)
        try:
            with anyio.fail_after(5):
                response = await client.get("/")
        finally:
            for each in slow_endpoints:
                threads.release_on_behalf_of(each)

    assert response.json() == "running"


@pytest.mark.anyio
async def test_two_buses_in_one_application_are_refused() -> None:
    """There is one place for it; the first one stays."""
    app, first, second = FastAPI(), EventBus(), EventBus()

    with anyio.fail_after(5):
        async with lifespan(first)(app):
            with pytest.raises(aperion.ApplicationError, match="has a bus"):
                await lifespan(second)(app).__aenter__()
            assert app.state.aperion is first
            assert second.state is BusState.STOPPED


def test_a_mounted_application_gets_the_nearest_bus() -> None:
    """Its own where it has one, and else that of the application around it; the one around keeps its own."""
    outer_bus, own_bus = EventBus(), EventBus()
    own, other = FastAPI(), FastAPI()

    @asynccontextmanager
    async def both(app: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(outer_bus)(app) as state, lifespan(own_bus)(own):
            yield state

    outer = FastAPI(lifespan=both)
    for app in (outer, own, other):

        @app.get("/bus")
        async def endpoint(bus: BusDep) -> str:
            return {id(outer_bus): "outer", id(own_bus): "own"}[id(bus)]

    outer.mount("/own", own)
    outer.mount("/other", other)
    with TestClient(outer) as client:
        found = [client.get(path).json() for path in ("/bus", "/own/bus", "/other/bus")]

    assert found == ["outer", "own", "outer"]


def _bare(app: FastAPI) -> Iterator[None]:
    yield


async def _bare_async(app: FastAPI) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((FastAPI(),), r"lifespan=lifespan\(bus\)"),  # what FastAPI(lifespan=lifespan) calls
        ((None,), "takes an EventBus"),
        ((EventBus(), "inner"), "cannot be called"),
        ((EventBus(), _bare), "@asynccontextmanager"),
        ((EventBus(), _bare_async), "@asynccontextmanager"),
    ],
    ids=["lifespan itself", "None", "text", "generator", "async generator"],
)
def test_wrong_use_fails_when_declared(arguments: tuple[Any, ...], advice: str) -> None:
    """With what to do."""
    with pytest.raises(aperion.ConfigurationError, match=advice):
        lifespan(*arguments)


def test_without_fastapi_the_import_says_what_to_install() -> None:
    """And the ASGI module loads no framework."""
    script = """
import sys
import aperion.integrations.asgi
assert not {"fastapi", "starlette"} & set(sys.modules)
sys.modules["fastapi"] = None
try:
    import aperion.integrations.fastapi
except ImportError as error:
    print(error)
"""

    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=45, check=False)

    assert done.returncode == 0, done.stderr
    assert 'pip install "aperion-bus[fastapi]"' in done.stdout


# A real server


@pytest.mark.anyio
@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=pytest.mark.slow)])
async def test_two_hundred_requests_at_once_do_not_mix_their_ids(loop: str) -> None:
    """FAST-4: COR-*: each response and each event has the id of its request, in threads too."""
    bus, seen = EventBus(), dict[int, tuple[str, str | None]]()
    app = shop(bus)

    @bus.on("cart.opened")
    async def handler(event: Event) -> None:
        await anyio.sleep(0)
        seen[event.payload["n"]] = (event.correlation_id, get_correlation_id())

    @app.get("/async/{n}")
    async def on_loop(n: int, bus: BusDep) -> str | None:
        await anyio.sleep(0.01)
        await bus.emit("cart.opened", {"n": n})
        return get_correlation_id()

    @app.get("/sync/{n}")
    def in_thread(n: int, bus: BusDep) -> str | None:
        bus.emit_from_thread("cart.opened", {"n": n})
        return get_correlation_id()

    answers: dict[int, tuple[str, str]] = {}

    async def ask(client: httpx.AsyncClient, n: int) -> None:
        path, headers = ("async" if n % 2 else "sync"), ({ID: f"req-{n}"} if n % 4 < 2 else {})
        response = await client.get(f"/{path}/{n}", headers=headers)
        answers[n] = (response.json(), response.headers[ID])

    limits = httpx.Limits(max_connections=None)
    with served(app, loop) as url, anyio.fail_after(45):
        async with (
            httpx.AsyncClient(base_url=url, timeout=50, limits=limits) as client,
            anyio.create_task_group() as group,
        ):
            for n in range(200):
                group.start_soon(ask, client, n)

    assert len({told for told, _ in answers.values()}) == 200
    assert answers == seen
    assert all(answers[n] == (f"req-{n}", f"req-{n}") for n in range(200) if n % 4 < 2)
    assert not bus.dead_letters.list()


def test_a_server_that_stops_drains_the_bus() -> None:
    """FAST-8: SHD-b: what was emitted in its last moment is handled."""
    bus, done = EventBus(), list[int]()
    app = shop(bus)

    @bus.on("cart.opened")
    async def slow(event: Event) -> None:
        await anyio.sleep(0.3)
        done.append(event.payload["n"])

    @app.get("/{n}")
    async def endpoint(n: int, bus: BusDep) -> int:
        await bus.emit("cart.opened", {"n": n})
        return len(done)

    with served(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        assert [client.get(f"/{n}").json() for n in range(5)] == [0] * 5

    assert sorted(done) == [0, 1, 2, 3, 4]
    assert bus.last_drain is not None
    assert bus.last_drain.ok


def test_retries_run_under_a_server_while_other_handlers_run() -> None:
    """Rule 4: what a timer starts finds its worker under a server too, which runs its loop without anyio."""
    bus, attempts = EventBus(), list[int]()
    app = shop(bus)

    @bus.on("cart.opened", retry=aperion.Retry(attempts=2, wait_initial=0.01))
    async def flaky(event: Event) -> None:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise ConnectionError

    @bus.on("cart.closed")
    async def slow(event: Event) -> None:
        await anyio.sleep(0.2)

    @app.get("/")
    async def endpoint(bus: BusDep) -> bool:
        receipt = await bus.emit("cart.opened", {})
        await bus.emit("cart.closed", {})
        with anyio.fail_after(5):
            return (await receipt.settled()).ok

    with served(app) as url:
        response = httpx.get(url, timeout=20)

    assert response.json() is True
    assert attempts == [0, 1]
