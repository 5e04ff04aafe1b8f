"""Emit from Flask: the bus runs in a thread beside the one that serves.

Needs: pip install aperion-bus flask

Prints:
    mail about order 1 for req-1
    POST /orders/1: 201, the id is req-1
    POST /orders/2: 500, the id is req-2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Flask

import aperion
from aperion.blocking import EventBus

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

bus = EventBus(overflow_policy="raise")
app = Flask(__name__)


def correlated(serve: WSGIApplication) -> WSGIApplication:
    """Give each request an id, in whichever thread it is served, and name it in the response; for any WSGI application."""

    def with_id(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        told = {
            "X-Correlation-ID": environ.get("HTTP_X_CORRELATION_ID", ""),
            "X-Request-ID": environ.get("HTTP_X_REQUEST_ID", ""),
        }
        with aperion.CorrelationContext(aperion.extract_correlation_id_from_headers(told)) as correlation_id:

            def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
                return start_response(status, [*headers, ("X-Correlation-ID", correlation_id)], *error)

            return serve(environ, start)

    return with_id


app.wsgi_app = correlated(app.wsgi_app)  # type: ignore[method-assign]  # as Flask's documentation does it


@app.post("/orders/<int:number>")
def place_order(number: int) -> tuple[str, int]:
    """Emit and wait for the handlers; ``bus.emit`` returns as soon as the event is accepted."""
    bus.emit_and_wait("order.placed", {"number": number}, timeout=30).raise_for_failures()
    return "", 201


@bus.on("order.placed")
def send_mail(event: aperion.Event[Any]) -> None:
    """Run in a worker thread of the bus."""
    if event.payload["number"] > 1:
        raise ConnectionError
    print(f"mail about order {event.payload['number']} for {aperion.get_correlation_id()}", flush=True)


def main() -> None:
    """Do what a server does, with two requests."""
    with bus, app.test_client() as client:
        answers = [client.post(f"/orders/{number}", headers={"X-Correlation-ID": f"req-{number}"}) for number in (1, 2)]
    for number, answer in enumerate(answers, 1):
        print(f"POST /orders/{number}: {answer.status_code}, the id is {answer.headers['X-Correlation-ID']}")


if __name__ == "__main__":
    main()
