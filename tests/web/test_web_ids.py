"""Where the ids of requests come from, and that a real server mixes none of them up."""

# Without "from __future__ import annotations": FastAPI reads the annotations of the endpoints,
# which stand inside the tests.

import warnings

import anyio
import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI, Response
from serving import served_apart
from test_fastapi import asked, says_id

from aperion import Event, EventBus, get_correlation_id
from aperion.integrations.fastapi import BusDep, CorrelationMiddleware, lifespan

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions of Starlette ask for httpx2 here
    from fastapi.testclient import TestClient

ID = "X-Correlation-ID"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


# Traces


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"traceparent", PARENT.encode())], TRACE),
        ([(b"TraceParent", f" {PARENT} ".encode())], TRACE),
        ([(b"traceparent", PARENT.replace("-01", "-00").encode())], TRACE),  # not sampled, and valid
        ([(b"traceparent", f"cc{PARENT[2:]}".encode())], TRACE),  # a version to come
        ([(b"traceparent", f"cc{PARENT[2:]}-what-follows".encode())], TRACE),
        ([(b"traceparent", PARENT.encode()), (b"x-correlation-id", b"a1")], "a1"),
        ([(b"traceparent", PARENT.encode()), (b"x-request-id", b"r1")], "r1"),
        ([(b"traceparent", PARENT.encode()), (b"x-correlation-id", b"a b")], TRACE),
    ],
)
async def test_the_id_of_a_trace_is_the_id_of_a_request_that_has_none(headers, expected: str) -> None:
    """By W3C Trace Context; without OpenTelemetry."""
    start, body = await asked(CorrelationMiddleware(says_id), *headers)

    assert start["headers"][-1] == (b"x-correlation-id", expected.encode())
    assert body["body"].decode() == f"{expected} {expected}"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "given",
    [
        *("", "00", TRACE, PARENT.upper(), PARENT + "-more", PARENT + "x", "x" + PARENT, PARENT + "\n" + PARENT),
        f"ff{PARENT[2:]}",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-b7ad6b7169203331-01",
        f"00-{TRACE[:-1]}g-b7ad6b7169203331-01",
        f"cc{PARENT[2:]}more",
        "00-" + "a" * 100_000,
    ],
    ids=lambda text: repr(text[:60]),
)
async def test_a_malformed_trace_is_passed_over(given: str) -> None:
    """And so are two of them, of which nobody knows which is meant; the request goes on."""
    start, _ = await asked(CorrelationMiddleware(says_id), (b"traceparent", given.encode()))
    twice, _ = await asked(CorrelationMiddleware(says_id), *[(b"traceparent", PARENT.encode())] * 2)

    for message in (start, twice):
        assert len(message["headers"][-1][1]) == 36
        assert message["headers"][-1][1] != TRACE.encode()


# After the response


def test_what_is_emitted_after_the_response_has_the_id_of_the_request() -> None:
    """FAST-2: in a task that the endpoint left, on the loop and in a thread; the response does not wait for it."""
    bus, order = EventBus(), list[str]()

    async def sent(scope, receive, send) -> None:
        async def noting(message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                order.append("response")

        await app(scope, receive, noting)

    app = FastAPI(lifespan=lifespan(bus))
    app.add_middleware(CorrelationMiddleware)

    @bus.on("invoice.*")
    async def handler(event: Event) -> None:
        order.append(f"{event.event_type} {event.correlation_id}")

    async def write(number: int) -> None:
        await (await bus.emit("invoice.written", {"number": number})).settled()

    def send(number: int) -> None:
        bus.emit_from_thread("invoice.sent", {"number": number}).settled_from_thread()

    @app.post("/orders/{number}")
    async def order_placed(number: int, tasks: BackgroundTasks) -> None:
        tasks.add_task(write, number)
        tasks.add_task(send, number)

    with TestClient(sent) as client:
        client.post("/orders/1", headers={"traceparent": PARENT})

    assert order == ["response", f"invoice.written {TRACE}", f"invoice.sent {TRACE}"]


# A real server

SERVICE = """
import anyio
from fastapi import BackgroundTasks, FastAPI, WebSocket
from aperion import EventBus, get_correlation_id
from aperion.integrations.fastapi import BusDep, CorrelationMiddleware, OutboxDep, OutboxMiddleware, lifespan

bus, handled, around = EventBus(), [], []
app = FastAPI(lifespan=lifespan(bus))
app.add_middleware(OutboxMiddleware)
app.add_middleware(CorrelationMiddleware)

@bus.on("cart.opened", name="on the loop")
async def on_loop(event):
    await anyio.sleep(0)
    handled.append((event.payload["n"], event.correlation_id, get_correlation_id()))

@bus.on("cart.opened", name="in a thread")
def in_thread(event):
    handled.append((event.payload["n"], event.correlation_id, get_correlation_id()))

@app.get("/async/{n}")
async def asynchronous(n: int, bus: BusDep):
    await anyio.sleep(0.001 * (n % 7))
    await bus.emit("cart.opened", {"n": n})
    return get_correlation_id()

@app.get("/sync/{n}")
def synchronous(n: int, bus: BusDep):
    bus.emit_from_thread("cart.opened", {"n": n})
    return get_correlation_id()

@app.get("/outbox/{n}")
async def outboxed(n: int, outbox: OutboxDep):
    outbox.emit("cart.opened", {"n": n})
    await anyio.sleep(0.001 * (n % 5))
    return get_correlation_id()

@app.get("/after/{n}")
async def afterwards(n: int, bus: BusDep, tasks: BackgroundTasks):
    tasks.add_task(bus.emit, "cart.opened", {"n": n})
    return get_correlation_id()

@app.get("/handled")
async def told():
    await bus.wait_settled()
    return {"handled": handled, "stats": bus.stats(), "dead": [letter.error for letter in bus.dead_letters.list()]}
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.anyio
async def test_a_thousand_requests_at_a_server_do_not_mix_their_ids(tmp_path) -> None:
    """FAST-4 COR-*: fifty at a time; every response has its own id, and every event that of its request."""
    answers: dict[int, tuple[str, str]] = {}
    ways = ("async", "sync", "outbox", "after")

    async def ask(client: httpx.AsyncClient, numbers: range) -> None:
        for n in numbers:
            headers = [{}, {ID: f"req-{n}"}, {"traceparent": f"00-{n + 1:032x}-b7ad6b7169203331-01"}][n % 3]
            response = await client.get(f"/{ways[n % 4]}/{n}", headers=headers)
            answers[n] = (response.json(), response.headers[ID])

    with served_apart(tmp_path, SERVICE) as (url, _), anyio.fail_after(90):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            async with anyio.create_task_group() as group:
                for first in range(50):
                    group.start_soon(ask, client, range(first, 1000, 50))
            told = (await client.get("/handled")).json()

    assert len(answers) == len({told for told, _ in answers.values()}) == 1000
    assert all(inside == named for inside, named in answers.values())
    assert all(answers[n][0] == f"req-{n}" for n in range(1, 1000, 3))
    assert all(answers[n][0] == f"{n + 1:032x}" for n in range(2, 1000, 3))
    seen = sorted([n, *ids] for n, *ids in told["handled"])
    assert seen == sorted([n, answers[n][0], answers[n][0]] for n in range(1000) for _ in range(2))
    assert (told["stats"]["accepted"], told["stats"]["pending"], told["dead"]) == (1000, 0, [])


@pytest.mark.anyio
async def test_responses_that_come_late_keep_the_id_of_their_request() -> None:
    """Two requests in one application at the same time, each waiting for the other."""
    bus, meeting = EventBus(), [anyio.Event(), anyio.Event()]
    app = FastAPI(lifespan=lifespan(bus))
    app.add_middleware(CorrelationMiddleware)

    @app.get("/{n}")
    async def endpoint(n: int, response: Response, bus: BusDep) -> str | None:
        meeting[n].set()
        await meeting[1 - n].wait()
        return (await bus.emit("cart.opened", {})).event.correlation_id

    found: dict[int, str] = {}

    async def ask(client: httpx.AsyncClient, n: int) -> None:
        found[n] = (await client.get(f"/{n}", headers={ID: f"req-{n}"})).json()

    transport = httpx.ASGITransport(app)
    with anyio.fail_after(10):
        async with lifespan(bus)(app), httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            async with anyio.create_task_group() as group:
                for n in range(2):
                    group.start_soon(ask, client, n)

    assert found == {0: "req-0", 1: "req-1"}
    assert get_correlation_id() is None
