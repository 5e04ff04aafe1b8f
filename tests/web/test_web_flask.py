"""In frameworks whose code is sync: the blocking bus, as docs/web.md shows it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx
import pytest
from flask import Flask

import aperion
from aperion import Event, get_correlation_id
from aperion.blocking import EventBus

EXAMPLES = Path(__file__).parents[2] / "examples"
ID = "X-Correlation-ID"


def load(name: str) -> ModuleType:
    """Import an example, anew."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example() -> ModuleType:
    return load("16_flask")


def shop(example: ModuleType, bus: EventBus) -> Flask:
    """Return an application that emits with a bus, and answers with the id that its code sees."""
    app = Flask("shop")
    app.wsgi_app = example.correlated(app.wsgi_app)

    @app.get("/<int:n>")
    def endpoint(n: int) -> list[str | None]:
        receipt = bus.emit("cart.opened", {"n": n}, timeout=10)
        return [get_correlation_id(), receipt.event.correlation_id]

    return app


def test_a_view_emits_and_the_handlers_run_in_the_background(example: ModuleType) -> None:
    """Async handlers on the loop of the bus, sync ones in its threads; both with the id of the request."""
    bus, seen = EventBus(), list[tuple[str, str | None, bool]]()
    here = threading.get_ident()

    @bus.on("cart.opened")
    async def on_loop(event: Event) -> None:
        seen.append(("async", get_correlation_id(), threading.get_ident() != here))

    @bus.on("cart.opened")
    def in_thread(event: Event) -> None:
        seen.append(("sync", get_correlation_id(), threading.get_ident() != here))

    with bus, shop(example, bus).test_client() as client:
        answer = client.get("/1", headers={ID: "req-1"})

    assert answer.json == ["req-1", "req-1"]
    assert answer.headers[ID] == "req-1"
    assert seen == [("async", "req-1", True), ("sync", "req-1", True)]
    assert bus.stats().state == "stopped"
    assert get_correlation_id() is None


def test_threads_of_a_server_do_not_mix_their_ids(example: ModuleType) -> None:
    """COR-*: eight threads and 200 requests, with ids and without; what a thread served before leaves nothing."""
    bus, seen = EventBus(), dict[int, str]()
    app = shop(example, bus)

    @bus.on("cart.opened")
    def handler(event: Event) -> None:
        seen[event.payload["n"]] = event.correlation_id

    def ask(n: int) -> list[str]:
        headers = {"X-Request-ID": f"req-{n}"} if n % 2 else {}
        answer = app.test_client().get(f"/{n}", headers=headers)
        assert get_correlation_id() is None
        return [*answer.json, answer.headers[ID]]

    with bus, ThreadPoolExecutor(8) as pool:
        answers = dict(enumerate(pool.map(ask, range(200))))

    assert all(len(set(ids)) == 1 for ids in answers.values())
    assert {n: ids[0] for n, ids in answers.items()} == seen
    assert len(set(seen.values())) == 200
    assert all(seen[n] == f"req-{n}" for n in range(1, 200, 2))


def test_a_real_server_serves_it(example: ModuleType) -> None:
    """Over HTTP; a bad id is not taken over."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: object) -> None: ...

    bus = EventBus()
    with make_server("127.0.0.1", 0, shop(example, bus), handler_class=Quiet) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        with bus, httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
            taken, refused = client.get("/1", headers={ID: "req-1"}), client.get("/2", headers={ID: "a b"})
        server.shutdown()
        serving.join(10)

    assert taken.json() == ["req-1"] * 2
    assert refused.json() == [refused.headers[ID]] * 2
    assert len(refused.headers[ID]) == 36
    assert bus.stats().settled == 2


def test_what_the_bus_says_reaches_the_view(example: ModuleType) -> None:
    """A full bus, an invalid event, a bus that does not run; the failure of a handler where the view asks for it."""
    bus = EventBus()
    app = shop(example, bus)

    @bus.on("cart.closed")
    async def fails(event: Event) -> None:
        raise LookupError

    with bus, app.test_request_context():
        with pytest.raises(aperion.ValidationError):
            bus.emit("Nonsense", {})
        with pytest.raises(aperion.DeliveryError):
            bus.emit_and_wait("cart.closed", {}, timeout=10).raise_for_failures()
    with pytest.raises(aperion.BusNotRunningError):
        bus.emit("cart.closed", {})


def test_django_emits_with_the_middleware_of_the_docs() -> None:
    """With Django's own client, twice: the second request has an id of its own."""
    pytest.importorskip("django")
    script = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("shop", sys.argv[1])
shop = sys.modules["shop"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shop)
shop.settings.configure(ROOT_URLCONF="shop", MIDDLEWARE=["shop.correlation"], ALLOWED_HOSTS=["*"])
shop.django.setup()
given, made = (shop.Client().post("/orders/1", headers=h) for h in ({"X-Correlation-ID": "req-1"}, {}))
shop.bus.close()
assert given["X-Correlation-ID"] == "req-1" and len(made["X-Correlation-ID"]) == 36
assert shop.mails == [f"mail about order 1 for {r['X-Correlation-ID']}" for r in (given, made)], shop.mails
assert shop.aperion.get_correlation_id() is None
"""
    command = [sys.executable, "-c", script, str(EXAMPLES / "17_django.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=45, check=False)

    assert done.returncode == 0, done.stderr
