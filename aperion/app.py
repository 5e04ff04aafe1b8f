"""An application: a bus with its life around it, and the entry point that runs it."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import anyio

from aperion._logs import logger as _log
from aperion.bus import EventBus
from aperion.errors import ApplicationError, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

Main: TypeAlias = "Callable[[], Coroutine[Any, Any, Any]]"
Lifespan: TypeAlias = "Callable[[App], AbstractAsyncContextManager[Any]]"
S = TypeVar("S", bound="Callable[[], Coroutine[Any, Any, Any]]")

SETTLED, UNSETTLED, INTERRUPTED = 0, 1, 130


class App:
    """A bus, the services that run beside it, and what is set up before and torn down after.

    ``async with app:`` enters the lifespan, starts the bus, then the services. Leaving cancels the
    services, drains the bus, then leaves the lifespan, so that handlers find their resources until
    the last event has settled. A service that raises ends the application; one that returns does not.

    Examples:
        >>> app = App(EventBus())
        >>> @app.service
        ... async def tick() -> None: ...

    Args:
        bus: the bus; a new one with defaults when None.
        lifespan: an async context manager function of the app, as in Starlette.
    """

    def __init__(self, bus: EventBus | None = None, *, lifespan: Lifespan | None = None) -> None:
        if bus is not None and not isinstance(bus, EventBus):
            raise ApplicationError(f"App() takes an EventBus, not {shown(bus)}")
        self.bus = bus if bus is not None else EventBus()
        self._lifespan = lifespan
        self._services: list[Main] = []
        self._running: AsyncExitStack | None = None

    def service(self, function: S) -> S:
        """Run an async function without parameters as long as the application runs; usable as a decorator.

        Raises:
            ApplicationError: for something else.
        """
        self._services.append(_checked("a service", function))
        return function

    async def __aenter__(self) -> Self:
        """Start."""
        if self._running is not None:
            raise ApplicationError("this application runs already; one 'async with app:' at a time")
        async with AsyncExitStack() as stack:
            if self._lifespan is not None:
                await stack.enter_async_context(self._lifespan(self))
            await stack.enter_async_context(self.bus)
            await stack.enter_async_context(self._beside())
            self._running = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Stop."""
        stack, self._running = self._running, None
        return await stack.__aexit__(kind, error, trace) if stack is not None else None

    @asynccontextmanager
    async def _beside(self) -> AsyncIterator[None]:
        failure: BaseException | None = None
        async with anyio.create_task_group() as services:
            for service in self._services:
                services.start_soon(service, name=getattr(service, "__qualname__", None))
            try:
                yield
            except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - raised below, not in a group
                failure = error
            services.cancel_scope.cancel()
        if failure is not None:
            raise failure


def run(app: App | EventBus, main: Main | None = None, *, use_uvloop: bool = False) -> None:
    """Start an application or a bus, run ``main``, drain and stop; blocks until then.

    Without ``main`` it runs until SIGINT or SIGTERM; with it, these end ``main`` early. Both begin
    the drain, within the bus's ``drain_timeout``. A second one ends the process at once, with code
    130. What ``main`` or a service raises is raised here, after the drain.

    SIGHUP, which ``logrotate`` sends, makes the audit log go on in the file that has its name now, as
    ``AuditLog.reopen()`` does. Without an audit log, and for a process whose standard input is a
    terminal, it means what it always did: the terminal is gone, and the process ends.

    Args:
        app: what to run.
        main: an async function without parameters.
        use_uvloop: run on uvloop, which has to be installed.

    Raises:
        SystemExit: with code 1, when not everything settled in time; the log names what did not.
        ApplicationError: inside a running event loop, or for a ``main`` of the wrong kind.
    """
    code = serve(app, main, use_uvloop=use_uvloop)
    if code:
        sys.exit(code)


def serve(app: App | EventBus, main: Main | None = None, *, use_uvloop: bool = False) -> int:
    """Do what ``run`` does, and return the code: 0 when everything settled, 1 otherwise."""
    if not isinstance(app, App | EventBus):
        raise ApplicationError(f"run() takes an App or an EventBus, not {shown(app)}")
    if main is not None:
        _checked("main", main)
    _check_no_loop()
    application = app if isinstance(app, App) else App(app)
    return anyio.run(_serve, application, main, backend_options={"use_uvloop": use_uvloop})


async def _serve(app: App, main: Main | None) -> int:
    stop = anyio.Event()
    with _signals(stop, app.bus):
        async with app:
            await _until(stop, main)
    return _code(app.bus)


async def _until(stop: anyio.Event, main: Main | None) -> None:
    """Run ``main`` until it returns or the signal comes."""
    failure: BaseException | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_when, stop, group.cancel_scope)
        try:
            await (main() if main is not None else stop.wait())
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - raised below, not in a group
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _cancel_when(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


@contextmanager
def _signals(stop: anyio.Event, bus: EventBus) -> Iterator[None]:
    """Have SIGINT and SIGTERM begin the end, and a second one make it: also while a handler computes.

    Handlers of Python's own run between two steps of whatever runs in the main thread; those of the loop would
    wait until the loop has its turn again, which a handler that computes for ever does not give it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def end(number: int, _frame: object) -> None:
        if stopping:
            with suppress(Exception):  # it was just being written to
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(INTERRUPTED)  # at once: neither a lock nor a handler that cannot be cancelled holds it up
        stopping.append(number)
        loop.call_soon_threadsafe(begin_end, number)

    def begin_end(number: int) -> None:
        pending = bus.stats().pending
        _log.info("stopping", signal=signal.Signals(number).name, pending=pending, hint="a second one quits at once")
        stop.set()

    def reopen(_number: int, _frame: object) -> None:
        if reopens is not None:
            loop.call_soon_threadsafe(reopens)

    # Not of a terminal that hangs up: its user is gone, and nobody would ever stop the process.
    reopens: Callable[[], None] | None = None if os.isatty(0) else getattr(bus.audit, "reopen", None)
    stopping: list[int] = []
    handlers: dict[signal.Signals, Any] = {signal.SIGINT: end, signal.SIGTERM: end}
    if reopens is not None:
        handlers[signal.SIGHUP] = reopen
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _code(bus: EventBus) -> int:
    report = bus.last_drain
    if report is None or report.ok:
        return SETTLED
    for event_type, event_id in report.unfinished:
        _log.error("event did not settle before the deadline", event_type=event_type, event_id=event_id)
    return UNSETTLED


def _checked(what: str, function: Any) -> Any:
    target = function if inspect.isroutine(function) else getattr(type(function), "__call__", None)  # noqa: B004
    if not inspect.iscoroutinefunction(target):
        raise ApplicationError(f"{what} is an async function without parameters, not {shown(function)}")
    return function


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ApplicationError(
        "run() starts an event loop and was called inside one; there, use 'async with app:' or 'async with bus:'"
    )
