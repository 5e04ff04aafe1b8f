"""Tests of the service on the web, with the TestClient, whose application runs on a loop of its own."""

import warnings
from collections.abc import Iterator

import pytest

import aperion
from aperion.integrations.fastapi import get_bus
from aperion.testing import Recorder, recording
from examples.tested import service, web
from examples.tested.service import MailSent, OrderPlaced, Warehouse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions of Starlette ask for another version of httpx
    from fastapi.testclient import TestClient


@pytest.fixture
def client() -> Iterator[TestClient]:
    web.app.dependency_overrides[web.email_of_user] = lambda: "ada@example.com"
    with TestClient(web.app) as client:  # enters the lifespan, which starts the bus
        yield client
    web.app.dependency_overrides.clear()


@pytest.fixture
def recorded(client: TestClient) -> Iterator[Recorder]:
    with recording(service.bus) as recorder:
        yield recorder


def test_an_order_that_is_posted_is_reserved(client: TestClient, recorded: Recorder, warehouse: Warehouse) -> None:
    answer = client.post("/orders/o-1", headers={"X-Correlation-ID": "req-1"})
    recorded.settle_from_thread()

    assert answer.status_code == 202
    assert recorded.assert_emitted(OrderPlaced, times=1).payload.email == "ada@example.com"
    assert warehouse.reserved == ["o-1"]


def test_a_mail_follows(client: TestClient, recorded: Recorder) -> None:
    client.post("/orders/o-2")

    mail = recorded.wait_for_from_thread(MailSent, timeout=5)

    assert mail.payload.order_id == "o-2"


def test_who_is_not_logged_in_orders_nothing(client: TestClient, recorded: Recorder) -> None:
    web.app.dependency_overrides.clear()

    answer = client.post("/orders/o-3")

    assert answer.status_code == 401
    recorded.assert_not_emitted(OrderPlaced)


def test_an_endpoint_alone_with_a_bus_without_handlers(client: TestClient) -> None:
    bus = aperion.EventBus()
    web.app.dependency_overrides[get_bus] = lambda: bus
    with client.portal.wrap_async_context_manager(bus), recording(bus) as recorded:
        client.post("/orders/o-4")

    recorded.assert_emitted(OrderPlaced, times=1)
