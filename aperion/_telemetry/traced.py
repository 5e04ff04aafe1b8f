"""A decorator that puts a span around a function."""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Never, ParamSpec, TypeVar, overload

from aperion._telemetry import configured
from aperion.errors import ConfigurationError, check_options, shown
from aperion.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping

    from opentelemetry.trace import Span, SpanKind

Parameters = ParamSpec("Parameters")
R = TypeVar("R")
Kind = Literal["internal", "server", "client", "producer", "consumer"]

_KINDS = frozenset({"internal", "server", "client", "producer", "consumer"})
_PLAIN = (str, bool, int, float)
_redactor = Redactor()


@overload
def traced(function: Callable[Parameters, R], /) -> Callable[Parameters, R]: ...
@overload
def traced(
    *, name: str | None = ..., kind: Kind | SpanKind = ..., attributes: Mapping[str, object] | None = ...
) -> Callable[[Callable[Parameters, R]], Callable[Parameters, R]]: ...
def traced(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    kind: Kind | SpanKind = "internal",
    attributes: Mapping[str, object] | None = None,
    **unknown: Never,
) -> Callable[..., Any]:
    """Put a span around each call of a function: ``@traced`` or ``@traced(name="charge card")``.

    Of an async function, the span lasts until it returns; of a generator, sync or async, until it ends or is
    closed, and it is the current span while the generator runs. An exception is recorded once, redacted and
    without local variables, and goes on. Where no SDK is set up, the function is called as it is.

    Args:
        function: what is decorated; its name and signature stay.
        name: of the span; the qualified name of the function if None.
        kind: of the span: one of OpenTelemetry's, or its name in lower case.
        attributes: of the span; texts are redacted.
        unknown: nothing else.

    Raises:
        ConfigurationError: for what cannot be called, or another kind.
        TypeError: for an option that there is not.
    """
    check_options("traced", unknown, ("name", "kind", "attributes"))
    if function is None:
        return functools.partial(traced, name=name, kind=kind, attributes=attributes)
    if not callable(function):
        named = f"; for a span of that name, write @traced(name={shown(function)})" if isinstance(function, str) else ""
        raise ConfigurationError(f"traced() decorates a function, not {shown(function)}{named}")
    around = _Around(name or str(getattr(function, "__qualname__", type(function).__qualname__)), kind, attributes)
    if inspect.isasyncgenfunction(function):
        return around.async_generator(function)
    if inspect.isgeneratorfunction(function):
        return around.generator(function)
    return around.coroutine(function) if inspect.iscoroutinefunction(function) else around.call(function)


class _Around:
    """The span that goes around the calls of one function."""

    __slots__ = ("_attributes", "_kind", "_name")

    def __init__(self, name: str, kind: Any, attributes: Mapping[str, object] | None) -> None:
        self._name = name
        self._kind = str(getattr(kind, "name", kind)).lower()
        if self._kind not in _KINDS:
            raise ConfigurationError(
                f"kind={shown(kind)} is not a kind of span; use one of {', '.join(sorted(_KINDS))}"
            )
        self._attributes = {key: redacted_attribute(value, key) for key, value in (attributes or {}).items()}

    def call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if configured.tracer_provider() is None:
                return function(*args, **kwargs)
            with self._current(self._begun()):
                return function(*args, **kwargs)

        return wrapper

    def coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            if configured.tracer_provider() is None:
                return await function(*args, **kwargs)
            with self._current(self._begun()):
                return await function(*args, **kwargs)

        return wrapper

    def generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            if configured.tracer_provider() is None:
                return (yield from function(*args, **kwargs))
            inner, span = function(*args, **kwargs), self._begun()
            step: Callable[[], Any] = functools.partial(next, inner)
            try:
                while True:
                    with self._current(span, ends=False):
                        try:
                            value = step()
                        except StopIteration as stop:
                            return stop.value
                    try:
                        sent = yield value
                    except GeneratorExit:
                        inner.close()
                        raise
                    except BaseException as error:  # noqa: BLE001 - thrown in by the caller, for the generator
                        step = functools.partial(inner.throw, error)
                    else:
                        step = functools.partial(inner.send, sent)
            finally:
                span.end()

        return wrapper

    def async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            inner, span = function(*args, **kwargs), None
            if configured.tracer_provider() is not None:
                span = self._begun()
            step: Callable[[], Any] = inner.__anext__
            try:
                while True:
                    with self._current(span, ends=False):
                        try:
                            value = await step()
                        except StopAsyncIteration:
                            return
                    try:
                        sent = yield value
                    except GeneratorExit:
                        await inner.aclose()
                        raise
                    except BaseException as error:  # noqa: BLE001 - thrown in by the caller, for the generator
                        step = functools.partial(inner.athrow, error)
                    else:
                        step = functools.partial(inner.asend, sent)
            finally:
                if span is not None:
                    span.end()

        return wrapper

    def _begun(self) -> Span:
        from opentelemetry import trace

        kind = trace.SpanKind[self._kind.upper()]
        return trace.get_tracer("aperion").start_span(self._name, kind=kind, attributes=self._attributes)

    @contextmanager
    def _current(self, span: Span | None, *, ends: bool = True) -> Iterator[None]:
        """Make a span current for a block, and tell what is raised there."""
        if span is None:
            yield
            return
        from opentelemetry import trace

        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield
        except (StopIteration, StopAsyncIteration, GeneratorExit):
            raise
        except BaseException as error:
            _tell(span, error)
            raise
        finally:
            if ends:
                span.end()


def _tell(span: Span, error: BaseException) -> None:
    """Say on a span that it failed, and how, without a secret and without local variables."""
    from opentelemetry import trace

    text, stack = _redactor.redact_exception(error)
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(trace.Status(trace.StatusCode.ERROR, text))
    details = {"exception.type": type(error).__qualname__, "exception.message": text, "exception.stacktrace": stack}
    span.add_event("exception", details)


def redacted_attribute(value: object, name: str = "") -> Any:
    """Return what a span may hold of a value: texts redacted, what is no attribute as text."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple) and len({type(each) for each in value}) == 1 and isinstance(value[0], _PLAIN):
        return [redacted_attribute(each, name) for each in value]
    shown_as = _redactor.redact({name: str(value)})
    return str(shown_as[name]) if isinstance(shown_as, dict) and name in shown_as else str(shown_as)
