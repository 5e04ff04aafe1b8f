"""Emit from Django, whose code is sync: the bus runs in a thread beside the one that serves.

Needs: pip install aperion-bus django

Prints:
    POST /orders/1: 201, the id is req-1
    mail about order 1 for req-1
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

import aperion
from aperion.blocking import EventBus

if TYPE_CHECKING:
    from collections.abc import Callable

bus = EventBus(overflow_policy="raise")  # starts in each worker with its first event, and drains when that ends


def correlation(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Give each request an id; for the top of MIDDLEWARE."""

    def serve(request: HttpRequest) -> HttpResponse:
        given = aperion.extract_correlation_id_from_headers(request.headers)
        with aperion.CorrelationContext(given) as correlation_id:
            response = get_response(request)
        response["X-Correlation-ID"] = correlation_id
        return response

    return serve


def place_order(_request: HttpRequest, number: int) -> HttpResponse:
    """Emit; with a database, in transaction.on_commit, so that nobody hears of what was rolled back."""
    bus.emit("order.placed", {"number": number})
    return HttpResponse(status=201)


@bus.on("order.placed")
def send_mail(event: aperion.Event[Any]) -> None:
    """Run in a worker thread of the bus, never in that of the request."""
    mails.append(f"mail about order {event.payload['number']} for {event.correlation_id}")


mails: list[str] = []
urlpatterns = [path("orders/<int:number>", place_order)]


def main() -> None:
    """Do what a server does, with one request."""
    settings.configure(ROOT_URLCONF=__name__, MIDDLEWARE=[f"{__name__}.correlation"], ALLOWED_HOSTS=["*"])
    django.setup()
    answer = Client().post("/orders/1", headers={"X-Correlation-ID": "req-1"})
    bus.close()
    print(f"POST /orders/1: {answer.status_code}, the id is {answer['X-Correlation-ID']}")
    print(*mails, sep="\n")


if __name__ == "__main__":
    main()
