"""Whether a bus is well, and what it has counted, over HTTP: pure ASGI, for any framework.

Nothing has to be installed for this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aperion.audit import AuditLog
from aperion.audit.options import OnFailure
from aperion.bus import BusState
from aperion.events import to_json

if TYPE_CHECKING:
    from aperion.bus import EventBus
    from aperion.integrations.asgi import Receive, Scope, Send

__all__ = ["Health", "StatusApp", "health_of"]

Condition: TypeAlias = Literal["ok", "stopped", "draining", "audit_unavailable", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHealth:
    """The state of the audit log.

    Args:
        enabled: whether there is one.
        available: whether it takes records; False without one.
        buffered_bytes: what waits to be written.
        failures: outcomes that it could not record.
    """

    enabled: bool
    available: bool
    buffered_bytes: int
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueHealth:
    """How full the bus is.

    Args:
        pending: events accepted and unsettled.
        queued: those of them that wait for a worker.
        limit: ``max_pending_events``.
    """

    pending: int
    queued: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether a bus is well; every field is JSON.

    Args:
        status: the first thing that is wrong, or "ok".
        live: whether the event loop answers, and so always True.
        ready: whether an event would be accepted now: the bus runs, its audit log takes records (or may
            miss some, under ``best_effort``), and it is not full.
        audit: the state of the audit log.
        queue: how full the bus is.
    """

    status: Condition
    live: bool
    ready: bool
    audit: AuditHealth
    queue: QueueHealth


def health_of(bus: EventBus) -> Health:
    """Return whether a bus is well."""
    stats = bus.stats()
    log = bus.audit.stats() if isinstance(bus.audit, AuditLog) else None
    audit = AuditHealth(
        enabled=stats.audit_enabled,
        available=stats.audit_enabled and (log is None or log.available),
        buffered_bytes=log.buffered_bytes if log is not None else 0,
        failures=stats.audit_failures,
    )
    queue = QueueHealth(pending=stats.pending, queued=stats.queued, limit=stats.max_pending_events)
    status = _condition(bus, audit, queue)
    return Health(status=status, live=True, ready=status == "ok", audit=audit, queue=queue)


def _condition(bus: EventBus, audit: AuditHealth, queue: QueueHealth) -> Condition:
    if bus.state is not BusState.RUNNING:
        return "draining" if bus.state is BusState.DRAINING else "stopped"
    required = not isinstance(bus.audit, AuditLog) or bus.audit._on_failure is OnFailure.REQUIRED
    if audit.enabled and not audit.available and required:
        return "audit_unavailable"
    return "full" if queue.pending >= queue.limit else "ok"


class StatusApp:
    """Answers ``GET /health``, ``/health/live``, ``/health/ready`` and ``/stats`` with JSON; mount it anywhere.

    ``app.mount("/bus", StatusApp(bus))`` answers at ``/bus/health``. ``/health`` and ``/health/ready`` have the
    status 503 when no event would be accepted, ``/health/live`` never. None of them shows payloads, ids or
    paths; ``/stats`` tells how busy a service is, so keep it from the public.
    """

    __slots__ = ("_bus",)

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the shape of ASGI
        """Answer one request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        status, content = self._answer(scope["path"].rstrip("/"))
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        if scope["method"] not in {"GET", "HEAD"}:
            status, content = 405, {"detail": "use GET"}
            headers.append((b"allow", b"GET, HEAD"))
        body = to_json(content)
        headers.append((b"content-length", str(len(body)).encode("ascii")))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _answer(self, path: str) -> tuple[int, Any]:
        # By the end of the path: frameworks disagree about what of it a mounted application gets.
        if path.endswith("/stats"):
            return 200, self._bus.stats()
        health = health_of(self._bus)
        if path.endswith("/health/live"):
            return 200, health
        if path.endswith(("/health", "/health/ready")):
            return 200 if health.ready else 503, health
        return 404, {"detail": "ask for /health, /health/live, /health/ready or /stats"}
