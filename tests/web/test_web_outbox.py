"""Events of a request that go out with its response, and only with one that tells of success."""

# Without "from __future__ import annotations": FastAPI reads the annotations of the endpoints,
# which stand inside the tests.

import json
import logging
import warnings
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx
import pytest
import structlog
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from serving import served
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Route

import aperion
from aperion import ConfigurationError, Event, EventBus, InMemoryMetrics, OverflowPolicy
from aperion.audit import AuditLog
from aperion.errors import AuditUnavailable, BackpressureError
from aperion.integrations.fastapi import BusDep, CorrelationMiddleware, OutboxDep, OutboxMiddleware, get_bus, lifespan
from aperion.integrations.outbox import outbox_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions of Starlette ask for httpx2 here
    from fastapi.testclient import TestClient

ID = "X-Correlation-ID"


def shop(bus: EventBus) -> FastAPI:
    """Return an application with what this page is about."""
    app = FastAPI(lifespan=lifespan(bus))
    app.add_middleware(OutboxMiddleware)
    app.add_middleware(CorrelationMiddleware)
    return app


class RefusingLog:
    """An audit log that can be told to refuse."""

    def __init__(self, path: Path) -> None:
        self._log = AuditLog(path)
        self.refuses = False
        self.start, self.aclose = self._log.start, self._log.aclose
        self.ended, self.noted = self._log.ended, self._log.noted

    def accepted(self, event: Event[Any]) -> None:
        """Record an event, or not."""
        if self.refuses:
            raise AuditUnavailable(self._log.path, "no space left on device")
        self._log.accepted(event)


def test_events_go_out_when_the_request_ends_well() -> None:
    """In order, from endpoints on the loop and in threads, with the id of the request; and not before."""
    bus, seen, early = EventBus(), list[tuple[int, str]](), list[int]()
    app = shop(bus)
    bus.subscribe(lambda event: seen.append((event.payload["n"], event.correlation_id)), "cart.opened")

    @app.get("/async")
    async def on_loop(outbox: OutboxDep, bus: BusDep) -> None:
        for n in range(3):
            outbox.emit("cart.opened", {"n": n}, key="one after another")
        await anyio.lowlevel.checkpoint()
        early.append(bus.stats().accepted)

    @app.get("/sync")
    def in_thread(outbox: OutboxDep) -> None:
        for n in range(3):
            outbox.emit("cart.opened", {"n": n}, key="one after another")

    with TestClient(app) as client:
        assert client.get("/async", headers={ID: "req-1"}).status_code == 200
        assert client.get("/sync", headers={ID: "req-2"}).status_code == 200

    assert early == [0]
    assert seen == [(n, f"req-{request}") for request in (1, 2) for n in range(3)]
    assert bus.stats().dropped == 0


FAILURES = ["http", "handled", "unexpected", "returned", "set", "validation"]


@pytest.mark.parametrize("kind", FAILURES)
def test_events_of_a_request_that_fails_are_discarded_visibly(kind: str, tmp_path) -> None:
    """Whichever way it fails, a response with an error status that the endpoint returned included."""
    metrics, told, seen = InMemoryMetrics(), list[str](), list[Event]()
    bus = EventBus(metrics=metrics, audit=AuditLog(tmp_path / "log" / "events.jsonl"))
    app = shop(bus)
    bus.subscribe(seen.append, "cart.opened")
    bus.subscribe(lambda event: told.append(event.payload["policy"]), "system.event_dropped")

    @app.exception_handler(LookupError)
    async def explain(request: Request, error: LookupError) -> JSONResponse:
        return JSONResponse({}, 404)

    @app.get("/")
    async def endpoint(response: Response, outbox: OutboxDep) -> int:
        outbox.emit("cart.opened", {})
        if kind == "returned":
            return JSONResponse({}, 409)  # type: ignore[return-value]  # FastAPI takes it
        if kind == "validation":
            return "no number"  # type: ignore[return-value]  # the point of the test
        if kind == "set":
            response.status_code = 409
            return 1
        raise {"http": HTTPException(409), "handled": LookupError(), "unexpected": RuntimeError()}[kind]

    with TestClient(app, raise_server_exceptions=False) as client:
        status = client.get("/").status_code

    assert status >= 400
    assert (seen, told) == ([], ["outbox"])
    assert (bus.stats().accepted, bus.stats().dropped) == (0, 1)
    assert metrics.counter("aperion_events_dropped_total", policy="outbox") == 1
    records = [json.loads(line) for line in (tmp_path / "log" / "events.jsonl").read_text().splitlines()]
    assert [record["detail"]["policy"] for record in records if record["kind"] == "dropped"] == ["outbox"]


@pytest.mark.parametrize("kind", ["redirect", "handled well", "nothing held"])
def test_the_response_decides(kind: str) -> None:
    """A redirection is no failure, nor is an exception that a handler has made a success of."""
    bus = EventBus()
    app = shop(bus)

    @app.exception_handler(LookupError)
    async def explain(request: Request, error: LookupError) -> JSONResponse:
        return JSONResponse({}, 202)

    @app.get("/")
    async def endpoint(outbox: OutboxDep) -> Response:
        if kind == "nothing held":
            return Response()
        outbox.emit("cart.opened", {})
        if kind == "redirect":
            return RedirectResponse("/elsewhere", 303)
        raise LookupError

    with TestClient(app, follow_redirects=False) as client:
        status = client.get("/").status_code

    assert status == {"redirect": 303, "handled well": 202, "nothing held": 200}[kind]
    assert (bus.stats().accepted, bus.stats().dropped) == (kind != "nothing held", 0)


@pytest.mark.parametrize("refusal", ["audit", "full", "stopped"])
@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_response_claims_no_success_when_the_events_are_not_accepted(kind: str, refusal: str, tmp_path) -> None:
    """A 503 in its place; its background tasks do not run."""
    log = RefusingLog(tmp_path / "log" / "events.jsonl")
    bus = EventBus(audit=log, max_pending_events=1, overflow_policy=OverflowPolicy.RAISE)
    app = shop(bus)
    after: list[str] = []

    def collect(outbox: aperion.outbox.Outbox) -> None:
        for n in range(2 if refusal == "full" else 1):
            outbox.emit("cart.opened", {"n": n})

    @app.get("/async", status_code=201)
    async def on_loop(outbox: OutboxDep, bus: BusDep, tasks: BackgroundTasks) -> str:
        collect(outbox)
        tasks.add_task(after.append, "task")
        log.refuses = refusal == "audit"
        if refusal == "stopped":
            await bus.drain()
        return "done"

    @app.get("/sync", status_code=201)
    def in_thread(outbox: OutboxDep, tasks: BackgroundTasks) -> str:
        collect(outbox)
        tasks.add_task(after.append, "task")
        log.refuses = refusal == "audit"
        if refusal == "stopped":
            anyio.from_thread.run(bus.drain)
        return "done"

    with TestClient(app) as client:
        response = client.get(f"/{kind}", headers={ID: "req-1"})
        log.refuses = False

    assert response.status_code == 503
    assert response.json() == {"detail": "the events of this request could not be accepted"}
    assert response.headers[ID] == "req-1"
    assert after == []
    assert bus.stats().accepted == (refusal == "full")


@pytest.mark.parametrize("handled", [BackpressureError, Exception])
def test_a_refusal_is_logged_and_answered_once(handled: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever handlers of exceptions the application has: it has begun its response, as far as it knows."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    bus, starts = EventBus(max_pending_events=1, overflow_policy=OverflowPolicy.RAISE), list[int]()
    app = shop(bus)

    @app.exception_handler(handled)
    async def explain(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({}, 418)

    @app.get("/")
    async def endpoint(outbox: OutboxDep) -> None:
        outbox.emit("cart.opened", {})
        outbox.emit("cart.opened", {})

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def noting(message: Any) -> None:
            starts.extend([message["status"]] if message["type"] == "http.response.start" else [])
            await send(message)

        await app(scope, receive, noting)

    with TestClient(watched) as client:
        assert client.get("/").status_code == 503

    assert starts == [503]
    assert "the events of a request were not accepted" in (log := capsys.readouterr().out)
    assert "BackpressureError" in log


def test_the_response_waits_for_room() -> None:
    """Under BLOCK; in the end all events are handled."""
    bus, seen = EventBus(max_pending_events=2), list[int]()
    app = shop(bus)
    bus.subscribe(lambda event: seen.append(event.payload["n"]), "cart.opened")

    @app.get("/")
    async def endpoint(outbox: OutboxDep) -> None:
        for n in range(20):
            outbox.emit("cart.opened", {"n": n})

    with served(app) as url:
        assert httpx.get(url, timeout=20).status_code == 200

    assert sorted(seen) == list(range(20))


def test_one_request_has_one_outbox() -> None:
    """In the endpoint and in its dependencies, and in a mounted application with a middleware of its own."""
    bus, seen = EventBus(), list[str]()
    app, mounted = shop(bus), FastAPI()
    mounted.add_middleware(OutboxMiddleware)
    app.mount("/mounted", mounted)
    bus.subscribe(lambda event: seen.append(event.event_type), "cart.*")

    async def first(outbox: OutboxDep) -> aperion.outbox.Outbox:
        outbox.emit("cart.opened", {}, key="k")
        return outbox

    @app.get("/")
    @mounted.get("/")
    async def endpoint(earlier: Annotated[Any, Depends(first)], outbox: OutboxDep) -> bool:
        outbox.emit("cart.closed", {}, key="k")
        return earlier is outbox and len(outbox) == 2

    with TestClient(app) as client:
        assert client.get("/").json() is True
        assert client.get("/mounted/").json() is True

    assert seen == ["cart.opened", "cart.closed"] * 2


def test_requests_at_the_same_time_do_not_share_an_outbox() -> None:
    """Every other one fails; behind a BaseHTTPMiddleware too."""
    bus, seen = EventBus(), list[int]()
    app = shop(bus)
    bus.subscribe(lambda event: seen.append(event.payload["n"]), "cart.opened")

    async def pass_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)

    @app.get("/{n}")
    async def endpoint(n: int, outbox: OutboxDep) -> None:
        outbox.emit("cart.opened", {"n": n})
        await anyio.sleep(0.01)
        if n % 2:
            raise HTTPException(409)

    async def ask(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=20) as client, anyio.create_task_group() as group:
            for n in range(40):
                group.start_soon(client.get, f"/{n}")

    with served(app) as url:
        anyio.run(ask, url)

    assert sorted(seen) == list(range(0, 40, 2))
    assert (bus.stats().accepted, bus.stats().dropped) == (20, 20)


def test_a_streamed_response_sends_its_events_first() -> None:
    """With its first byte; once it has begun, there is no outbox any more."""
    bus, seen = EventBus(), list[str]()
    app = shop(bus)
    bus.subscribe(lambda event: seen.append("event"), "cart.opened")

    @app.get("/")
    async def endpoint(outbox: OutboxDep, request: Request) -> StreamingResponse:
        outbox.emit("cart.opened", {})

        async def parts() -> Any:
            yield f"{bus.stats().accepted}"
            for use in (lambda: outbox.emit("cart.opened", {}), lambda: None):
                with pytest.raises(ConfigurationError, match="ended"):
                    use()
                    await outbox_of(request.scope)
            yield " fine"

        return StreamingResponse(parts())

    with TestClient(app) as client:
        assert client.get("/").text == "1 fine"

    assert seen == ["event"]


def test_starlette_has_it_by_the_scope() -> None:
    """Without FastAPI."""
    bus = EventBus()

    async def endpoint(request: Request) -> Response:
        outbox = await outbox_of(request.scope)
        outbox.emit("cart.opened", {})
        return JSONResponse([], int(request.query_params["status"]))

    app = Starlette(routes=[Route("/", endpoint)], lifespan=lifespan(bus))
    app.add_middleware(OutboxMiddleware)

    with TestClient(app) as client:
        for status in (200, 400, 503):
            assert client.get(f"/?status={status}").status_code == status

    assert (bus.stats().accepted, bus.stats().dropped) == (1, 2)


def test_wrong_use_is_explained() -> None:
    """Without the middleware, without a bus, and in a websocket, which has no response."""
    without, silent, app = FastAPI(lifespan=lifespan(EventBus())), FastAPI(), shop(EventBus())
    silent.add_middleware(OutboxMiddleware)

    @without.get("/")
    @silent.get("/")
    async def endpoint(outbox: OutboxDep) -> None: ...

    @app.websocket("/ws")
    async def ws(socket: WebSocket, outbox: OutboxDep) -> None: ...

    with TestClient(without) as client, pytest.raises(ConfigurationError, match="add_middleware"):
        client.get("/")
    with pytest.raises(aperion.BusNotRunningError, match="lifespan"):
        TestClient(silent).get("/")
    with TestClient(app) as client, pytest.raises(ConfigurationError, match=r"bus\.outbox\(\)"):
        client.websocket_connect("/ws").__enter__()


def test_the_outbox_is_that_of_the_bus_that_a_test_puts_in() -> None:
    """Overriding the bus overrides its outboxes."""
    app, other = shop(EventBus()), EventBus()

    async def another() -> EventBus:
        return other

    app.dependency_overrides[get_bus] = another

    @app.get("/")
    async def endpoint(outbox: OutboxDep) -> None:
        outbox.emit("cart.opened", {})

    with TestClient(app) as client:
        portal = client.portal
        assert portal is not None
        with portal.wrap_async_context_manager(other):
            assert client.get("/").status_code == 200

    assert other.stats().accepted == 1


@pytest.mark.anyio
async def test_a_request_that_is_cancelled_discards() -> None:
    """A client that went away, where the framework tells so; nothing is left open."""
    bus = EventBus()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        (await outbox_of(scope, bus)).emit("cart.opened", {})
        await anyio.sleep_forever()

    async with bus:
        with anyio.move_on_after(0.05):
            await OutboxMiddleware(endless)({"type": "http"}, None, None)  # type: ignore[arg-type]  # never used

        assert (bus.stats().accepted, bus.stats().dropped) == (0, 1)
