"""Health and statistics over HTTP, in any framework and as a router of FastAPI."""

# Without "from __future__ import annotations": FastAPI reads the annotations of the endpoints,
# which stand inside the tests.

import json
import warnings
from typing import Any

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from starlette.applications import Starlette
from starlette.routing import Mount

from aperion import EventBus, InMemoryMetrics
from aperion.audit import AuditLog
from aperion.integrations.fastapi import StatusApp, lifespan, status_router
from aperion.integrations.status import health_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions of Starlette ask for httpx2 here
    from fastapi.testclient import TestClient


def as_mounted(bus: EventBus) -> Any:
    """Return an application with the pure ASGI one in it."""
    return Starlette(routes=[Mount("/bus", StatusApp(bus))], lifespan=lifespan(bus))


def as_router(bus: EventBus) -> Any:
    """Return an application with the router in it."""
    app = FastAPI(lifespan=lifespan(bus))
    app.include_router(status_router(bus), prefix="/bus")
    return app


def alone(bus: EventBus) -> Any:
    """Return the pure ASGI application itself."""
    return StatusApp(bus)


both = pytest.mark.parametrize("made", [as_mounted, as_router])


def client_of(app: Any) -> httpx.AsyncClient:
    """Return a client that asks an application on the loop of the test."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")


@both
def test_a_bus_that_runs_is_healthy(made: Any) -> None:
    """Live and ready, with the state of its audit log and of its queue."""
    with TestClient(made(EventBus(max_pending_events=7))) as client:
        answers = [client.get(f"/bus{path}") for path in ("/health", "/health/live", "/health/ready")]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    for answer in answers:
        assert answer.json() == {
            "status": "ok",
            "live": True,
            "ready": True,
            "audit": {"enabled": False, "available": False, "buffered_bytes": 0, "failures": 0},
            "queue": {"pending": 0, "queued": 0, "limit": 7},
        }


@both
def test_stats_are_json(made: Any) -> None:
    """FAST-9: the very same figures, measurements included."""
    bus = EventBus(metrics=InMemoryMetrics())

    with TestClient(made(bus)) as client:
        assert client.portal is not None
        client.portal.call(bus.dispatch, "cart.opened", {})
        answer = client.get("/bus/stats")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert (answer.json()["state"], answer.json()["accepted"]) == ("running", 1)
    assert json.loads(answer.content)["metrics"]


@pytest.mark.anyio
@pytest.mark.parametrize("made", [alone, as_router])
@pytest.mark.parametrize("trouble", ["stopped", "draining", "full", "audit_unavailable"])
async def test_a_bus_that_would_accept_nothing_is_not_ready(trouble: str, made: Any, tmp_path) -> None:
    """A 503 that says why; it is live all the same."""
    log = AuditLog(tmp_path / "log" / "events.jsonl")
    bus, release = EventBus(audit=log, max_pending_events=1), anyio.Event()
    prefix = "/bus" if made is as_router else ""

    @bus.on("cart.opened")
    async def handler(event: Any) -> None:
        await release.wait()

    async def look() -> tuple[httpx.Response, httpx.Response]:
        async with client_of(made(bus)) as client:
            return await client.get(f"{prefix}/health"), await client.get(f"{prefix}/health/live")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group, bus:
            if trouble in {"draining", "full"}:
                await bus.emit("cart.opened", {})
            if trouble == "draining":
                group.start_soon(bus.drain)
                await anyio.lowlevel.checkpoint()
            if trouble == "stopped":
                await bus.drain()
            if trouble == "audit_unavailable":
                await log.aclose()
            answer, live = await look()
            release.set()

    assert (answer.status_code, live.status_code) == (503, 200)
    assert (answer.json()["status"], answer.json()["ready"], answer.json()["live"]) == (trouble, False, True)
    assert answer.json()["audit"]["available"] is (trouble != "audit_unavailable")
    about = {"audit": None}  # what waits to be written may be less by the second look
    assert live.json() | about == answer.json() | about


@pytest.mark.anyio
async def test_an_audit_log_that_may_miss_records_does_not_stop_a_service(tmp_path) -> None:
    """Under best_effort the bus goes on accepting, and health says that the log is not available."""
    log = AuditLog(tmp_path / "log" / "events.jsonl", on_failure="best_effort")

    async with EventBus(audit=log) as bus:
        await log.aclose()
        health = health_of(bus)

    assert (health.status, health.ready, health.audit.available) == ("ok", True, False)


@pytest.mark.anyio
async def test_a_sink_of_ones_own_counts_as_available() -> None:
    """Nobody knows more of it."""

    class Sink:
        def accepted(self, event: Any) -> None: ...
        def ended(self, event: Any, outcome: Any) -> None: ...
        def noted(self, kind: str, event: Any, detail: Any) -> None: ...
        async def start(self) -> None: ...
        async def aclose(self) -> None: ...

    async with EventBus(audit=Sink()) as bus:
        health = health_of(bus)

    assert (health.ready, health.audit.enabled, health.audit.available) == (True, True, True)


def test_requests_of_other_kinds_are_answered_too() -> None:
    """HEAD as GET without a body, others with 405, other paths with 404, websockets not at all."""
    with TestClient(as_mounted(EventBus())) as client:
        head, slash = client.head("/bus/health"), client.get("/bus/health/")
        post, other = client.post("/bus/stats"), client.get("/bus/other")
        with pytest.raises(Exception) as refused:
            client.websocket_connect("/bus/health").__enter__()

    assert (head.status_code, head.content, slash.status_code) == (200, b"", 200)
    assert (post.status_code, post.headers["allow"]) == (405, "GET, HEAD")
    assert (other.status_code, "/health" in other.json()["detail"]) == (404, True)
    assert type(refused.value).__name__ == "WebSocketDisconnect"


def test_the_router_takes_dependencies_and_has_a_schema() -> None:
    """Those who want a password on it; the figures stand in the OpenAPI document."""

    async def login(token: str = Header("")) -> None:
        if token != "let me in":
            raise HTTPException(401)

    bus = EventBus()
    app = FastAPI(lifespan=lifespan(bus))
    app.include_router(status_router(bus), prefix="/bus", dependencies=[Depends(login)])

    with TestClient(app) as client:
        refused, welcome = client.get("/bus/stats"), client.get("/bus/stats", headers={"token": "let me in"})
        schema = client.get("/openapi.json").json()

    assert (refused.status_code, welcome.status_code) == (401, 200)
    assert {"/bus/health", "/bus/health/live", "/bus/health/ready", "/bus/stats"} <= set(schema["paths"])
    assert {"Health", "BusStats"} <= set(schema["components"]["schemas"])
