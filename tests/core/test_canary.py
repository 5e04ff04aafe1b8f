"""The canary: secrets planted wherever one can enter, and looked for wherever something comes out."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import traceback
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
import structlog
from pydantic import SecretStr

import aperion
import aperion.logging
from aperion.errors import AperionError

pytestmark = pytest.mark.anyio

PACKAGES = str(Path(aperion.__file__).parent.parent)
MARK = "harmless-marker"

# Each a value of its own, so that a leak names where it came in.
CANARIES = {
    "by name": "zq-name-7f3a9",
    "in a list by name": "zq-list-2b8d1",
    "assigned in a text": "zq-assigned-9c4e7",
    "bearer": "zq-bearer-5a1f6",
    "in a url": "zq-url-3d7b2",
    "e-mail": "zq-mail-8e2c4@example.com",
    "token": "ghp_zq7Kd3Qa9Zx2Mf5Wb87Kd3Qa9Zx2Mf5Wb8",
    "card": "4000056655665556",
    "card as a number": "5200828282828210",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ6cSJ9.zqKd3Qa9Zx2Mf5Wb8",
    "key of a mapping": "zq.key-4f6a8@example.com",
    "marked field": "zq-marked-1c9e5",
    "secret type": "zq-secretstr-6d3b7",
    "bytes": "zq-bytes-0a8f2",
    "header": "zq-header-7e5c1",
    "source": "zq-source-2f9d4",
    "event key": "zq-eventkey-8b6a3",
    "error": "zq-error-5c2e9",
    "cause": "zq-cause-1d7f4",
    "context": "zq-context-9a3b6",
    "note": "zq-note-4e8c2",
    "group member": "zq-member-6f1d8",
    "argument": "zq-argument-3b5a7",
    "local variable": "zq-local-0c9e4",
    "returned": "zq-returned-8d2f6",
    "wrong payload": "zq-invalid-5e7b1",
    "unserialisable": "zq-cycle-2a4c9",
    "processor": "zq-processor-7d1e3",
    "middleware": "zq-middleware-4c8b5",
    "type": "zq-type-9f6a2",
    "correlation id": "glpat-zq7Kd3Qa9Zx2Mf5Wb87K",
}
C = CANARIES


class Order(aperion.Payload, type="canary.placed"):
    """Holds what a payload can hold."""

    marker: str
    password: str
    tokens: list[str]
    note: str
    kept: Annotated[str, aperion.Sensitive("reference")]
    pin: SecretStr
    raw: bytes
    number: int
    mapping: dict[str, Any]


def order() -> Order:
    note = (
        f"{MARK} password={C['assigned in a text']} Authorization: Bearer {C['bearer']} at postgres://app:{C['in a url']}@db/x"
        f" to {C['e-mail']} with {C['token']} paid by {C['card']} and {C['jwt']}"
    )
    return Order(
        marker=MARK,
        password=C["by name"],
        tokens=[C["in a list by name"]],
        note=note,
        kept=C["marked field"],
        pin=SecretStr(C["secret type"]),
        raw=f"api_key={C['bytes']}".encode(),
        number=int(C["card as a number"]),
        mapping={C["key of a mapping"]: 1},
    )


def fail(_event: aperion.Event[Any]) -> None:
    """Raise with secrets in every part of an exception."""
    local_variable = C["local variable"]
    try:
        try:
            raise KeyError(f"{MARK} password={C['context']}")
        except KeyError:
            cause = OSError(f"token={C['cause']}", {"password": C["argument"]})
            error = ValueError(f"{MARK} secret={C['error']}{local_variable[:0]}")
            error.add_note(f"api_key: {C['note']}")
            raise error from cause
    except ValueError as error:
        raise ExceptionGroup(f"several {MARK}", [error, RuntimeError(f"passwd={C['group member']}")]) from None


class Exits:
    """Everything that came out, by where."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def take(self, name: str, text: object) -> None:
        self.texts[name] = self.texts.get(name, "") + str(text)

    async def refused(self, name: str, attempt: Callable[[], Awaitable[object]]) -> None:
        """Take the error that an emitter gets: its text, and the traceback that a log would show of it."""
        with pytest.raises(AperionError) as caught:
            await attempt()
        self.take(name, f"{caught.value} {caught.value!r} ")
        self.take(name, "".join(line for line in traceback.format_exception(caught.value) if 'File "' not in line))

    def leaks(self) -> list[tuple[str, str]]:
        return [
            (exit_, name) for exit_, text in self.texts.items() for name, secret in C.items() if _holds(text, secret)
        ]


def _holds(text: str, secret: str) -> bool:
    forms = (
        secret,
        urllib.parse.quote(secret),
        json.dumps(secret)[1:-1],
        base64.b64encode(secret.encode()).decode().rstrip("="),
        base64.b64encode(b"x" + secret.encode()).decode()[4:-4],
        secret.encode().hex(),
    )
    return any(form and form in text for form in forms)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    aperion.logging.configure(stream=stream, level="DEBUG")
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)


async def test_no_secret_comes_out_anywhere(tmp_path: Path, lines: io.StringIO) -> None:
    """RED-fields RED-22: payload, keys, headers, source, errors, return values; files, logs, letters, metrics, errors."""
    exits, labels, system = Exits(), list[str](), list[Any]()
    metrics = aperion.CallbackMetrics(lambda *sample: labels.append(repr(sample)))

    def broken(event: aperion.Event[Any]) -> aperion.Event[Any]:
        if event.event_type == "canary.processed":
            raise ValueError(f"password={C['processor']}")
        return event

    async def wrap(delivery: Any, call_next: Any) -> None:
        if delivery.event.event_type == "canary.wrapped":
            raise ValueError(f"password={C['middleware']}")
        await call_next(delivery)

    async with aperion.EventBus(
        audit=aperion.AuditLog(tmp_path / "log" / "events.jsonl"),
        metrics=metrics,
        processors=[broken],
        middleware=[wrap],
        max_pending_events=50,
        overflow_policy=aperion.OverflowPolicy.RAISE,
    ) as bus:
        bus.subscribe(fail, "canary.*", name="fail", retry=aperion.Retry(attempts=2, wait_initial=0.001))

        @bus.on("canary.*", name="returns")
        async def returns(_event: aperion.Event[Any]) -> str:
            return f"password={C['returned']}"

        @bus.on("canary.slow", timeout=0.01, name="slow")
        async def slow(_event: aperion.Event[Any]) -> None:
            await anyio.sleep(5)

        @bus.on("system.*", name="listen")
        async def listen(event: aperion.Event[Any]) -> None:
            system.append(event.payload)

        secrets = {
            "source": f"password={C['source']}",
            "key": f"token={C['event key']}",
            "headers": {"authorization": f"Bearer {C['header']}", "x-marker": MARK},
        }
        with anyio.fail_after(20):
            receipt = await bus.emit(order(), **secrets, correlation_id=C["correlation id"])
            outcomes = await receipt.settled()
            for event_type in ("canary.slow", "canary.wrapped"):
                await (await bus.emit(event_type, {"marker": MARK, "password": C["by name"]}, **secrets)).settled()
            await anyio.to_thread.run_sync(
                lambda: bus.emit_from_thread("canary.threaded", {"password": C["by name"], "marker": MARK})
            )
            cycle: dict[str, Any] = {"password": C["unserialisable"]}
            cycle["self"] = cycle
            await exits.refused(
                "validation",
                lambda: bus.emit(
                    "canary.placed",
                    {
                        "marker": MARK,
                        "password": C["wrong payload"],
                        "number": f"token={C['wrong payload']}",
                        "kept": C["marked field"],
                    },
                ),
            )
            await exits.refused("cycle", lambda: bus.emit("canary.cycle", cycle))
            await exits.refused("type", lambda: bus.emit(f"password={C['type']}", {}))
            await exits.refused("full", lambda: _overfill(bus))
            with pytest.raises(ValueError, match="password=") as processed:
                await bus.emit("canary.processed", {})
            exits.take("processor", repr(processed.value) if isinstance(processed.value, AperionError) else "")
            await bus.redrive_all()
        exits.take("shown", f"{receipt!r} {receipt.event!r} {outcomes!r} {bus!r} {MARK}")
        with pytest.raises(AperionError) as failed:
            outcomes.raise_for_failures()
        exits.take("failures", f"{failed.value!r} {failed.value} {MARK}")
        exits.take("stats", json.dumps(dataclasses.asdict(bus.stats())) + MARK)
        exits.take("open log", _files(tmp_path))

    letters = bus.dead_letters.list()
    exits.take("letters", json.dumps([bus.dead_letters.to_dict(letter) for letter in letters], default=str))
    exits.take("letters shown", f"{letters} {bus.dead_letters}")
    exits.take("files", _files(tmp_path))
    exits.take("log lines", lines.getvalue())
    exits.take("metrics", "".join(labels) + MARK)
    exits.take("system events", json.dumps(system, default=str) + MARK)

    assert exits.leaks() == []
    _show_what_is_harmless(exits)
    assert len(letters) >= 4
    assert {"canary.placed", "canary.slow", "canary.wrapped", "canary.threaded"} <= {
        letter.event.event_type for letter in letters
    }


def _show_what_is_harmless(exits: Exits) -> None:
    """Fail where an exit is empty, and so could not have leaked."""
    for name in ("files", "open log", "letters", "shown", "failures", "stats", "metrics", "system events"):
        assert MARK in exits.texts[name], name
    for name, words in {
        "files": (
            '"kind":"accepted"',
            '"kind":"outcome"',
            "[REDACTED_GITHUB_TOKEN]",
            "[REDACTED_CC]",
            "[REDACTED_REFERENCE]",
        ),
        "log lines": ("delivery failed", "[REDACTED]", MARK),
        "letters": ("ExceptionGroup", "[REDACTED]", "[REDACTED_JWT]"),
        "system events": ("ExceptionGroup", "[REDACTED]"),
        "metrics": ("fail", "canary"),
        "validation": ("number",),
        "type": ("[REDACTED]",),
        "full": ("50",),
    }.items():
        for word in words:
            assert word in exits.texts[name], (name, word)


async def _overfill(bus: aperion.EventBus) -> None:
    for _ in range(60):
        await bus.emit("canary.queued", {"password": C["by name"]})


def _files(folder: Path) -> str:
    """Return everything under a folder: the ring beside the log too."""
    return "\n".join(path.read_bytes().decode("latin-1") for path in sorted(folder.rglob("*")) if path.is_file())


APP = """
    import aperion
    bus = aperion.EventBus(audit=aperion.AuditLog("audit.jsonl"))
    app = aperion.App(bus)

    @bus.on("*", name="fail")
    async def fail(event):
        raise ValueError(f"harmless-marker password={event.payload['password']}")
"""


@pytest.mark.parametrize("option", [(), ("--json",), ("--debug",)])
def test_no_secret_comes_out_of_a_replay(tmp_path: Path, option: tuple[str, ...]) -> None:
    """Neither on a terminal, nor in JSON, nor with tracebacks, nor in the log that it writes."""
    (tmp_path / "service.py").write_text(textwrap.dedent(APP))
    event = {"type": "canary.placed", "payload": json.loads(_plain(order())), "source": f"password={C['source']}"}
    bad = {"type": f"password={C['type']}", "payload": {"password": C["wrong payload"]}}
    (tmp_path / "events.jsonl").write_text(
        f"{json.dumps(event)}\n{json.dumps(bad)}\n" + '{"password": "' + C["error"] + "\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "aperion", "replay", "events.jsonl", "--app", "service:app", *option],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PACKAGES},
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )

    exits = Exits()
    exits.take("output", done.stdout + done.stderr)
    exits.take("log", "".join(path.read_text("latin-1") for path in tmp_path.glob("audit*")))
    assert done.returncode == 1, done.stderr
    assert exits.leaks() == []
    assert "handler_error" in exits.texts["output"]
    assert MARK in exits.texts["log"]


def _plain(payload: Order) -> str:
    fields = payload.model_dump(exclude={"pin", "raw", "kept"})
    return json.dumps(fields | {"pin": C["secret type"]})
