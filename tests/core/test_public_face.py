"""What users write: every name of a public signature is there, and mistakes are told in public names."""

from __future__ import annotations

import inspect
import re

import pytest

import aperion

_OWN = re.compile(r"\b[A-Z]\w+")
# What only a bus or a decorator hands over, and nobody writes down.
_PRIVATE = {"Host", "OnPayload", "Owner", "Recorder", "Ticket"}


def _signatures() -> dict[str, inspect.Signature]:
    found: dict[str, inspect.Signature] = {}
    for name in aperion.__all__:
        thing = getattr(aperion, name)
        if inspect.isfunction(thing):
            found[name] = inspect.signature(thing)
        elif inspect.isclass(thing) and thing.__module__.startswith("aperion"):
            for member, function in vars(thing).items():
                if inspect.isfunction(function) and (not member.startswith("_") or member == "__init__"):
                    found[f"{name}.{member}"] = inspect.signature(function)
    return found


def _classes() -> set[str]:
    """Return the names of the classes of the package that have no underscore."""
    import pkgutil

    names: set[str] = set()
    for module in pkgutil.walk_packages(aperion.__path__, "aperion."):
        if any(
            part in module.name for part in (".cli", ".integrations", ".testing", ".engine", ".redaction.", ".audit.")
        ):
            continue
        loaded = __import__(module.name, fromlist=["_"])
        names |= {n for n, c in vars(loaded).items() if inspect.isclass(c) and c.__module__ == module.name}
    return {name for name in names if not name.startswith("_")}


def test_what_a_public_signature_names_can_be_imported_from_the_package() -> None:
    own = _classes() - _PRIVATE
    missing: dict[str, set[str]] = {}
    for where, signature in _signatures().items():
        texts = [str(p.annotation) for p in signature.parameters.values()] + [str(signature.return_annotation)]
        named = {name for text in texts for name in _OWN.findall(text)} & own
        if unknown := {name for name in named if name not in aperion.__all__}:
            missing[where] = unknown

    assert missing == {}


async def _handler(event: aperion.Event) -> None: ...


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda bus: bus.subscribe(_handler, "a.b", timout=3), r"subscribe\(\) has no option 'timout'.*'timeout'"),
        (lambda bus: bus.on("a.b", retries=3), r"on\(\) has no option 'retries'.*'retry'"),
        (
            lambda bus: aperion.EventBus(handler_timout=3),
            r"EventBus\(\) has no option 'handler_timout'.*'handler_timeout'",
        ),
        (lambda bus: bus.subscribe(_handler, "a.b", zzz=3), r"subscribe\(\) has no option 'zzz'; there are .*timeout"),
    ],
    ids=["subscribe", "on", "EventBus", "nothing near"],
)
def test_an_unknown_option_names_the_function_and_the_nearest_one(call, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        call(aperion.EventBus())


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: aperion.EventBus(event_log_path="events.jsonl"), "pass audit="),
        (lambda: aperion.EventBus(max_workers=4), "max_concurrent_handlers="),
        (lambda: aperion.EventBus(max_log_files=4), r"Rotation\(keep=...\)"),
    ],
    ids=["the log", "the threads", "the files"],
)
def test_an_option_of_the_predecessor_is_told_what_took_its_place(call, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        call()


@pytest.mark.anyio
async def test_waiting_for_handlers_points_to_the_receipt() -> None:
    async with aperion.EventBus() as bus:
        with pytest.raises(TypeError, match=r"'wait_for_handlers'; wait with 'await receipt.settled\(\)'"):
            await bus.emit("a.b", {}, wait_for_handlers=True)  # type: ignore[call-arg]


def test_a_pattern_before_the_handler_is_told_the_order() -> None:
    with pytest.raises(aperion.PatternError, match=r"the handler comes first: subscribe\(handler, "):
        aperion.EventBus().subscribe("a.b", _handler)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_an_unknown_detail_of_an_emit_is_told_like_an_option() -> None:
    async with aperion.EventBus() as bus:
        with pytest.raises(TypeError, match=r"no option 'correlation'.*'correlation_id'"):
            await bus.emit("a.b", {}, correlation="x")  # type: ignore[call-arg]
        assert bus.stats().pending == 0


def test_on_without_parentheses_says_what_to_write() -> None:
    bus = aperion.EventBus()

    with pytest.raises(aperion.ConfigurationError, match=r"@bus\.on\('user\.\*'\)"):

        @bus.on
        async def handler(event: aperion.Event) -> None: ...

    assert bus.subscriptions == ()


@pytest.mark.anyio
async def test_a_path_is_an_audit_log(tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    async with aperion.EventBus(audit=str(path)) as bus:
        await bus.emit("a.b", {})

    assert path.read_text().count('"kind":"accepted"') == 1


@pytest.mark.parametrize("wrong", [5, object(), aperion.AuditLog], ids=["a number", "an object", "a class"])
def test_what_is_no_audit_log_is_refused_at_once(wrong: object) -> None:
    with pytest.raises(aperion.ConfigurationError, match="no audit log"):
        aperion.EventBus(audit=wrong)  # type: ignore[arg-type]
