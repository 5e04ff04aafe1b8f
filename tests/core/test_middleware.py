"""Middleware: how it wraps a handler, and the one that logs slow handlers."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from aperion.errors import ConfigurationError
from aperion.events import Event
from aperion.middleware import compose, log_slow
from aperion.outcomes import Delivery
from aperion.subscriptions import HandlerKind, Subscription

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from aperion.protocols import CallNext, Middleware

pytestmark = pytest.mark.anyio


async def handler(_event: Event[Any]) -> None: ...


SUBSCRIPTION = Subscription(name="app.greet", patterns=("*",), handler=handler, kind=HandlerKind.ASYNC)


@pytest.fixture
def delivery() -> Delivery:
    """Return a second attempt at a delivery."""
    return Delivery(Event("user.login", {"password": "hunter2"}), SUBSCRIPTION, 2)


@pytest.fixture
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    """Return the log lines that the test writes."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
    with capture_logs() as captured:
        yield captured


async def echo(delivery: Delivery) -> str:
    """Return the id that arrives, as a handler at the end of the chain."""
    return delivery.event.event_id


def test_without_middleware_the_handler_is_called_as_it_is() -> None:
    """Nothing is paid for what is not used."""
    assert compose([], echo) is echo


async def test_the_first_middleware_is_the_outermost(delivery: Delivery) -> None:
    """And each may look at the result on its way back."""
    seen: list[str] = []

    def noting(name: str) -> Middleware:
        async def middleware(delivery: Delivery, call_next: CallNext) -> Any:  # noqa: ANN401
            seen.append(f"{name} in")
            result = await call_next(delivery)
            seen.append(f"{name} out")
            return f"{name}({result})"

        return middleware

    result = await compose([noting("a"), noting("b")], echo)(delivery)

    assert seen == ["a in", "b in", "b out", "a out"]
    assert result == f"a(b({delivery.event.event_id}))"


async def test_a_middleware_may_pass_on_another_delivery(delivery: Delivery) -> None:
    """What comes after it sees that one."""

    async def replacing(_delivery: Delivery, call_next: CallNext) -> Any:  # noqa: ANN401
        return await call_next(Delivery(Event("user.login", {}, event_id="other"), SUBSCRIPTION))

    assert await compose([replacing], echo)(delivery) == "other"


async def test_one_chain_can_be_called_many_times(delivery: Delivery) -> None:
    """Composing changes neither the list nor the handler."""
    chain = compose((log_slow(), log_slow()), echo)

    assert await chain(delivery) == await chain(delivery) == delivery.event.event_id


class Callable_:  # noqa: N801
    """An object that is a middleware, and has a method that is one."""

    async def __call__(self, delivery: Delivery, call_next: CallNext) -> Any:  # noqa: ANN401
        """Pass on."""
        return await call_next(delivery)

    async def method(self, delivery: Delivery, call_next: CallNext) -> Any:  # noqa: ANN401
        """Pass on."""
        return await call_next(delivery)

    async def options(self, _option: int, delivery: Delivery, call_next: CallNext) -> Any:  # noqa: ANN401
        """Pass on."""
        return await call_next(delivery)


@pytest.mark.parametrize(
    "middleware",
    [
        Callable_(),
        Callable_().method,
        functools.partial(Callable_().options, 1),
        functools.partial(Callable_()),
    ],
)
async def test_what_is_async_when_called_is_middleware(middleware: Middleware, delivery: Delivery) -> None:
    """Objects, bound methods and partials are taken for what they are."""
    assert await compose([middleware], echo)(delivery) == delivery.event.event_id


def plain(delivery: Delivery, call_next: CallNext) -> Any:  # noqa: ANN401
    """Pass on, without being async."""
    return call_next(delivery)


async def generator(_delivery: Delivery, _call_next: CallNext) -> Any:  # noqa: ANN401
    """Yield, and so never run."""
    yield


@pytest.mark.parametrize("middleware", [plain, generator, functools.partial(plain), Callable_, None, "log"])
def test_what_is_not_async_is_refused_when_composed(middleware: Any) -> None:  # noqa: ANN401
    """The error says what to write."""
    with pytest.raises(ConfigurationError, match="async def name"):
        compose([log_slow(), middleware], echo)


async def test_a_slow_handler_is_logged_without_its_payload(
    lines: list[MutableMapping[str, Any]], delivery: Delivery
) -> None:
    """Event, type, subscription, attempt and seconds."""

    async def slow(_delivery: Delivery) -> str:
        await anyio.sleep(0.02)
        return "done"

    result = await compose([log_slow(0.01)], slow)(delivery)

    assert result == "done"
    (line,) = lines
    assert line.pop("seconds") >= 0.02
    assert line == {
        "event": "handler was slow",
        "log_level": "warning",
        "event_id": delivery.event.event_id,
        "event_type": "user.login",
        "subscription": "app.greet",
        "attempt": 2,
    }


async def test_a_fast_handler_is_not_logged(lines: list[MutableMapping[str, Any]], delivery: Delivery) -> None:
    """The default is a second."""
    await compose([log_slow()], echo)(delivery)

    assert lines == []


async def test_a_slow_handler_that_fails_is_logged_and_fails(
    lines: list[MutableMapping[str, Any]], delivery: Delivery
) -> None:
    """The error passes unchanged."""
    error = ValueError("hunter2")

    async def failing(_delivery: Delivery) -> None:
        await anyio.sleep(0.02)
        raise error

    with pytest.raises(ValueError, match="hunter2") as caught:
        await compose([log_slow(0.01)], failing)(delivery)

    assert caught.value is error
    assert len(lines) == 1
    assert "hunter2" not in str(lines)


async def test_a_slow_handler_that_is_cancelled_is_logged_and_stays_cancelled(
    lines: list[MutableMapping[str, Any]], delivery: Delivery
) -> None:
    """A timeout is slow too."""

    async def endless(_delivery: Delivery) -> None:
        await anyio.sleep_forever()

    with anyio.move_on_after(0.02) as scope:
        await compose([log_slow(0.01)], endless)(delivery)

    assert scope.cancelled_caught
    assert len(lines) == 1


@pytest.mark.parametrize("threshold", [0, -1, float("nan"), float("inf"), True, "1"])
def test_a_threshold_that_makes_no_sense_is_refused(threshold: Any) -> None:  # noqa: ANN401
    """When declared, not when the first event comes."""
    with pytest.raises(ConfigurationError, match="threshold"):
        log_slow(threshold)
