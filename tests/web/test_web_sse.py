"""Server-sent events: what a browser gets, and that no browser holds up the bus."""

# Without "from __future__ import annotations": FastAPI reads the annotations of the endpoints,
# which stand inside the tests.

import asyncio
import json
import signal
import socket
import threading
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from serving import served, served_apart
from starlette.applications import Starlette
from starlette.routing import Route

import aperion
from aperion import ConfigurationError, Event, EventBus, Sensitive
from aperion.errors import PatternError
from aperion.integrations.fastapi import AppResponse, ServerSentEvents, lifespan

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions of Starlette ask for httpx2 here
    from fastapi.testclient import TestClient


class CardPaid(aperion.Payload, type="sse_card.paid"):
    """A payload with something in it that nobody should see."""

    amount: int
    holder: Annotated[str, Sensitive("name")]


class Browser:
    """One client of an ASGI application on the loop of a test; it takes what it gets, or stops taking."""

    def __init__(self, app: Any, **scope: Any) -> None:
        self._app = app
        self._scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], **scope}
        self._news = asyncio.Condition()
        self._gone = anyio.Event()
        self.takes = anyio.Event()  # takes nothing until it is set
        self.takes.set()
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.more = True
        self.done = anyio.Event()

    async def run(self) -> None:
        """Ask, until the application has ended."""
        try:
            await self._app(self._scope, self._receive, self._send)
        finally:
            self.done.set()

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.takes.wait()
        async with self._news:
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], dict(message["headers"])
            else:
                self.body += message.get("body", b"")
                self.more = message.get("more_body", False)
            self._news.notify_all()

    async def until(self, text: str) -> None:
        """Wait until a text has come."""
        async with self._news:
            await self._news.wait_for(lambda: text.encode() in self.body)

    def leave(self) -> None:
        """Close the page."""
        self._gone.set()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What came, as a browser reads it, comments left out."""
        found = []
        for block in self.body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
            if fields:
                found.append({**fields, "data": json.loads(fields["data"])})
        return found


@asynccontextmanager
async def watching(app: Any, **scope: Any) -> AsyncIterator[Browser]:
    """Have a browser look at an application; it is connected inside the block, and leaves at its end."""
    browser = Browser(app, **scope)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(browser.run)
            await browser.until("welcome")
            try:
                yield browser
            finally:
                browser.leave()


# What is sent


@pytest.mark.anyio
async def test_a_browser_gets_the_chosen_events() -> None:
    """With type, id and data, in the order accepted; nothing else, and nothing from before."""
    async with EventBus() as bus:
        await bus.emit("order.placed", {"n": 0})
        async with watching(ServerSentEvents(bus, ["order.*", CardPaid])) as browser:
            sent = [(await bus.emit("order.placed", {"n": n}, source="shop")).event for n in (1, 2)]
            await bus.emit("cart.opened", {})
            paid = (await bus.emit(CardPaid(amount=7, holder="Alice"))).event
            await browser.until(paid.event_id)

    assert browser.status == 200
    assert browser.headers[b"content-type"].startswith(b"text/event-stream")
    assert browser.headers[b"cache-control"] == b"no-store"
    assert [event["id"] for event in browser.events] == [sent[0].event_id, sent[1].event_id, paid.event_id]
    assert [event["event"] for event in browser.events] == ["order.placed", "order.placed", "sse_card.paid"]
    assert browser.events[0]["data"] == {
        "event_id": sent[0].event_id,
        "event_type": "order.placed",
        "timestamp": sent[0].timestamp,
        "source": "shop",
        "correlation_id": sent[0].correlation_id,
        "payload": {"n": 1},
    }


@pytest.mark.anyio
async def test_what_is_sent_is_redacted() -> None:
    """By the redactor of the bus: keys, fields and values, of models and mappings, in ids and sources too."""
    forged = "dave@example.com\n\nevent: forged"  # no emitter may give such an id, but a processor might

    def forge(event: Event) -> Event:
        return event.replace(event_id=forged) if event.event_type == "user.left" else event

    async with EventBus(processors=[forge]) as bus:
        async with watching(ServerSentEvents(bus, "*")) as browser:
            await bus.emit(CardPaid(amount=7, holder="Alice Example"))
            await bus.emit("user.added", {"password": "hunter2", "note": "write to bob@example.com"})
            await bus.emit("user.left", {"n": 1}, source="carol@example.com")
            await browser.until("user.left")

    text = browser.body.decode()
    assert not [word for word in ("Alice", "hunter2", "bob@", "carol@", "dave@", "\nevent: forged") if word in text]
    assert browser.events[0]["data"]["payload"]["amount"] == 7
    assert [event["event"] for event in browser.events] == ["sse_card.paid", "user.added", "user.left"]


@pytest.mark.anyio
async def test_what_an_event_holds_cannot_break_the_format() -> None:
    """Line breaks of any kind stay inside the data."""
    text = "one\ntwo\r\nthree\rfour\u2028five\n\nevent: forged\ndata: {}\n\n"
    async with EventBus() as bus:
        async with watching(ServerSentEvents(bus, "note.*")) as browser:
            await bus.emit("note.written", {"text": text})
            await browser.until("forged")

    (event,) = browser.events
    assert (event["event"], event["data"]["payload"]["text"]) == ("note.written", text)
    assert b"\r" not in browser.body


class Surrogates:
    """A redactor of the user's, which gives what no stream takes, or raises."""

    counts: dict[str, int] = {}

    def __init__(self, how: str) -> None:
        self.how = how

    def redact(self, value: Any) -> Any:
        if self.how == "raises":
            raise LookupError
        return {"text": "\udc80"} if self.how == "surrogates" else value

    def redact_text(self, text: str) -> str:
        if self.how == "raises":
            raise LookupError
        return f"{text}\udc80\n\nevent: forged" if self.how == "surrogates" else text

    def redact_exception(self, error: BaseException) -> tuple[str, str]:
        return "", ""


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["nothing", "surrogates", "raises"])
@pytest.mark.parametrize(
    "changes",
    [
        {"event_type": "odd\n\nevent: forged\ndata: {}\n\n"},
        {"event_type": "odd.\udc80"},
        {"source": "\udc80"},
        {"source": "a\r\nevent: forged"},
        {"correlation_id": "\udc80\n\nevent: forged"},
        {"event_id": "\udc80\x00\n\nevent: forged"},
        {"payload": {"text": "\udc80"}},
        {"payload": {"text": object()}},
        {},
    ],
    ids=lambda changes: " ".join(changes),
)
async def test_whatever_is_in_an_event_it_is_one_frame_and_the_next_one_comes(how: str, changes: Any) -> None:
    """Intake refuses all of these; here they come from a processor, with names unchecked, to two browsers."""

    def change(event: Event) -> Event:
        return make_event_like(event, **changes) if event.event_type == "note.written" else event

    bus = EventBus(processors=[change], naming=aperion.Naming(enabled=False), redactor=Surrogates(how))
    shown = ServerSentEvents(bus, "*", where=lambda event, scope: not event.event_type.startswith("system."))
    async with bus:
        async with watching(shown) as browser, watching(shown) as other:
            await bus.emit("note.written", {"n": 1}, source="shop")
            await bus.emit("note.closed", {"n": 2})
            await browser.until("event: note.closed")
            await other.until("event: note.closed")

    frames = [block for block in browser.body.decode().split("\n\n") if block and not block.startswith(":")]
    assert [[line.split(": ")[0] for line in frame.split("\n")] for frame in frames] == [["event", "id", "data"]] * 2
    assert browser.body == other.body
    assert b"\0" not in browser.body
    assert len(browser.events) == 2


def make_event_like(event: Event, **changes: Any) -> Event:
    """Return the event with fields that no check has seen."""
    twin = event.replace()
    for name, value in changes.items():
        object.__setattr__(twin, name, value)
    return twin


@pytest.mark.anyio
async def test_an_event_is_written_down_once_for_all_browsers() -> None:
    """Redaction takes most of the time, and its counters count each value once."""
    async with EventBus() as bus:
        source = ServerSentEvents(bus, "user.*")
        async with watching(source) as first, watching(source) as second:
            await bus.emit("user.added", {"password": "hunter2"})
            await first.until("user.added")
            await second.until("user.added")
            assert sum(bus.redactor.counts.values()) == 1
            for n in range(300):  # more than are remembered
                await bus.emit("user.left", {"n": n})
                await bus.wait_settled()
            await first.until('"n":299')
            await second.until('"n":299')

    assert first.events == second.events
    assert [event["data"]["payload"].get("n") for event in first.events] == [None, *range(300)]


@pytest.mark.anyio
@pytest.mark.parametrize("query", [b"types=order.placed,user.*", b"types=order.placed&types=user.*&other=1"])
async def test_a_browser_may_ask_for_less(query: bytes) -> None:
    """And never for more than the service offers."""
    async with EventBus() as bus:
        async with watching(ServerSentEvents(bus, "order.*"), query_string=query) as browser:
            for event_type in ("order.failed", "user.added", "cart.opened", "order.placed"):
                await bus.emit(event_type, {})
            await browser.until("order.placed")

    assert [event["event"] for event in browser.events] == ["order.placed"]


@pytest.mark.anyio
async def test_a_filter_sees_the_event_and_the_client() -> None:
    """So that people see what is theirs."""

    def own(event: Event, scope: Any) -> bool:
        return bool(event.payload["user"] == dict(scope["headers"])[b"x-user"].decode())

    async with EventBus() as bus:
        source = ServerSentEvents(bus, "order.*", where=own)
        async with (
            watching(source, headers=[(b"x-user", b"alice")]) as alice,
            watching(source, headers=[(b"x-user", b"bob")]) as bob,
        ):
            for n, user in enumerate(["alice", "bob", "alice"]):
                await bus.emit("order.placed", {"user": user, "n": n})
            await alice.until('"n":2')
            await bob.until('"n":1')

    assert [event["data"]["payload"]["n"] for event in alice.events] == [0, 2]
    assert [event["data"]["payload"]["n"] for event in bob.events] == [1]


@pytest.mark.anyio
async def test_silence_is_filled_with_comments() -> None:
    """So that proxies do not give up."""
    async with EventBus() as bus, watching(ServerSentEvents(bus, "*", heartbeat=0.02)) as browser:
        await browser.until("still here\n\n: still here")

    assert browser.events == []


# Who is let go


@pytest.mark.anyio
async def test_a_browser_that_is_too_slow_gets_what_is_buffered_and_is_let_go() -> None:
    """Told how many it has missed; the bus has waited for nothing, and the others have it all."""
    async with EventBus() as bus:
        source = ServerSentEvents(bus, "order.*", buffer=10)
        async with watching(source) as slow, watching(source) as quick:
            slow.takes = anyio.Event()
            for n in range(100):
                await bus.emit("order.placed", {"n": n})
                await quick.until(f'"n":{n}' + "}")
            assert bus.stats().accepted == 100
            slow.takes.set()
            await slow.done.wait()
            assert source.clients == 1

    assert [event["data"]["payload"]["n"] for event in quick.events] == list(range(100))
    *got, missed = slow.events
    assert 10 <= len(got) <= 11
    assert (missed["event"], missed["data"]) == ("aperion.missed", {"missed": 100 - len(got)})
    assert not slow.more


@pytest.mark.anyio
async def test_a_browser_that_takes_nothing_is_let_go() -> None:
    """After one heartbeat, however little waits for it."""
    async with EventBus() as bus:
        source = ServerSentEvents(bus, "order.*", heartbeat=0.05)
        async with watching(source) as browser:
            browser.takes = anyio.Event()
            await bus.emit("order.placed", {})
            await browser.done.wait()

            assert source.clients == 0


@pytest.mark.parametrize("rest", ["reads on", "never reads"])
def test_a_slow_client_of_a_real_server_holds_up_nobody(rest: str) -> None:
    """It stops reading, until the buffers of the system are full; 40 MB go past it."""
    bus = EventBus(max_payload_bytes=1 << 21)
    source = ServerSentEvents(bus, "order.*", buffer=3, heartbeat=0.5)
    app = Starlette(routes=[Route("/events", source)], lifespan=lifespan(bus))

    with served(app) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(b"GET /events HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        client.settimeout(20)
        assert b"200 OK" in client.recv(1 << 16)
        for _ in range(40):
            bus.emit_from_thread("order.placed", {"texts": ["some words " * 5_000] * 20}).settled_from_thread()
        got = 0
        while rest == "reads on" and (part := client.recv(1 << 20)):
            got += len(part)
        client.close()

    assert bus.stats().settled == 40
    assert source.clients == 0
    assert got < 40 << 20


@pytest.mark.anyio
async def test_a_browser_that_leaves_is_forgotten() -> None:
    """Its stream listens no more."""
    async with EventBus() as bus:
        source = ServerSentEvents(bus, "*")
        async with watching(source) as browser:
            assert source.clients == 1
            browser.leave()
            await browser.done.wait()

            assert source.clients == 0
            await bus.emit("order.placed", {})
    assert b"order.placed" not in browser.body


@pytest.mark.anyio
async def test_a_server_that_says_by_an_error_that_the_client_has_gone_is_understood() -> None:
    """ASGI lets it raise OSError from send."""
    async with EventBus() as bus:
        source = ServerSentEvents(bus, "order.*", heartbeat=0.02)
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 3:
                raise OSError("gone")

        with anyio.fail_after(10):
            scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
            await source(scope, anyio.sleep_forever, send)

        assert (len(sent), source.clients) == (3, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["leaving the block", "drain"])
async def test_the_stream_ends_with_the_bus(way: str) -> None:
    """The response ends as it should, and the last events are in it."""
    bus = EventBus()
    async with anyio.create_task_group() as group:
        async with bus:
            browser = Browser(ServerSentEvents(bus, "*"))
            group.start_soon(browser.run)
            with anyio.fail_after(10):
                await browser.until("welcome")
                await bus.emit("order.placed", {})
                if way == "drain":
                    await bus.drain()
                    await browser.done.wait()
        with anyio.fail_after(10):
            await browser.done.wait()

    assert browser.events[0]["event"] == "order.placed"
    assert (browser.status, browser.more) == (200, False)


SERVICE = """
from fastapi import FastAPI
from aperion import EventBus
from aperion.integrations.fastapi import ServerSentEvents, lifespan

bus = EventBus()
app = FastAPI(lifespan=lifespan(bus))
app.mount("/events", ServerSentEvents(bus, "*"))

@bus.on("system.shutdown")
async def told(event):
    print("drained", flush=True)
"""


def test_a_page_that_is_open_does_not_keep_a_server_from_ending(tmp_path) -> None:
    """uvicorn waits for its responses before it tells the application; without being told, it would wait for ever."""
    with served_apart(tmp_path, SERVICE) as (url, process):
        with httpx.stream("GET", f"{url}/events/", timeout=20) as response:
            lines = response.iter_lines()
            assert next(lines) == ": welcome"
            process.send_signal(signal.SIGTERM)
            rest = list(lines)

        assert rest == [""]
        assert process.stdout is not None
        assert process.stdout.readline() == "drained\n"
        assert process.wait(20) in {0, -signal.SIGTERM}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("nested", [False, True], ids=["run", "serve inside another coroutine"])
def test_a_page_that_is_open_does_not_keep_a_server_in_a_thread_from_ending(loop: str, nested: bool) -> None:
    """Signals reach the main thread only; ``should_exit`` is all that it is told."""
    bus = EventBus()
    app = Starlette(lifespan=lifespan(bus), routes=[Route("/events", ServerSentEvents(bus, "*"))])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", loop=loop, lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def outer() -> None:
            await server.serve(sockets=[listener])

        run = (lambda: anyio.run(outer)) if nested else (lambda: server.run(sockets=[listener]))
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        with httpx.stream("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/events", timeout=20) as response:
            lines = response.iter_lines()
            assert next(lines) == ": welcome"
            server.should_exit = True
            rest = list(lines)
        thread.join(20)

    assert rest == [""]
    assert not thread.is_alive()
    assert bus.stats().state == "stopped"


# Who is refused


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("scope", "status", "word"),
    [
        ({"method": "POST"}, 405, "GET"),
        ({"query_string": b"types=Nonsense"}, 400, "pattern"),
        ({"query_string": b"types=" + b"a.b," * 30 + b"a.b"}, 400, "more than 20"),
        ({"query_string": b"types=%FF%00"}, 400, "pattern"),
    ],
)
async def test_what_cannot_be_answered_is_refused(scope: dict[str, Any], status: int, word: str) -> None:
    """At once, with what to do."""
    async with EventBus() as bus:
        browser = Browser(ServerSentEvents(bus, "*"), **scope)
        with anyio.fail_after(10):
            await browser.run()

    assert browser.status == status
    assert word in json.loads(browser.body)["detail"]
    assert (b"allow" in browser.headers) == (status == 405)


@pytest.mark.anyio
async def test_there_is_room_for_so_many_browsers() -> None:
    """One more is refused, and let in when one has left; so is one without a bus that runs."""
    bus = EventBus()
    source = ServerSentEvents(bus, "*", max_clients=2)

    async def refused() -> int:
        browser = Browser(source)
        with anyio.fail_after(10):
            await browser.run()
        return browser.status

    assert await refused() == 503
    async with bus:
        async with watching(source):
            async with watching(source):
                assert await refused() == 503
            async with watching(source):
                assert source.clients == 2


def test_a_websocket_is_closed() -> None:
    """It is no way to read server-sent events."""
    bus = EventBus()
    app = FastAPI(lifespan=lifespan(bus))
    app.mount("/events", ServerSentEvents(bus, "*"))

    with TestClient(app) as client, pytest.raises(Exception) as refused:
        client.websocket_connect("/events").__enter__()

    assert type(refused.value).__name__ == "WebSocketDisconnect"


@pytest.mark.parametrize("options", [{"buffer": 0}, {"max_clients": 0}, {"heartbeat": 0}, {"heartbeat": -1.0}])
def test_impossible_options_are_refused_when_declared(options: dict[str, Any]) -> None:
    """And so is a pattern that cannot be parsed."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        ServerSentEvents(EventBus(), "*", **options)
    with pytest.raises(PatternError):
        ServerSentEvents(EventBus(), "Not A Pattern")


def test_an_endpoint_can_check_who_asks() -> None:
    """Its dependencies run first; its background tasks run when the stream has ended."""
    bus, after = EventBus(), list[str]()
    app = FastAPI(lifespan=lifespan(bus))
    source = ServerSentEvents(bus, "order.*")

    async def login(token: str = Header("")) -> None:
        if token != "let me in":
            raise HTTPException(401)

    @app.get("/events", dependencies=[Depends(login)])
    async def events(request: Request) -> AppResponse:
        from starlette.background import BackgroundTask

        response = AppResponse(source)
        response.background = BackgroundTask(after.append, "done")
        return response

    with served(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        refused = client.get("/events")
        with client.stream("GET", "/events", headers={"token": "let me in"}) as response:
            lines = response.iter_lines()
            assert next(lines) == ": welcome"
            bus.emit_from_thread("order.placed", {"n": 1})
            assert (next(lines), next(lines)) == ("", "event: order.placed")

    assert refused.status_code == 401
    assert after == ["done"]
