"""The audit log: an append-only record of what was accepted and how it ended, without secrets."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aperion.audit.checkpoints import Checkpoints
    from aperion.audit.log import AuditLog
    from aperion.audit.options import OnFailure, Rotation, Sync
    from aperion.audit.parts import AuditStats
    from aperion.audit.query import AuditRecord, Query
    from aperion.audit.signing import SigningKey, VerifyKey
    from aperion.audit.subjects import Subjects
    from aperion.audit.trace import TraceNode
    from aperion.audit.verification import Problem, ProblemKind, Verification, verify

__all__ = [
    "AuditLog",
    "AuditRecord",
    "AuditStats",
    "Checkpoints",
    "OnFailure",
    "Problem",
    "ProblemKind",
    "Query",
    "Rotation",
    "SigningKey",
    "Subjects",
    "Sync",
    "TraceNode",
    "Verification",
    "VerifyKey",
    "verify",
]

# Loaded when first asked for: a bus without a log needs none of it, and `import aperion` would take a tenth longer.
_HOMES = {
    "AuditLog": "log",
    "AuditRecord": "query",
    "AuditStats": "parts",
    "Checkpoints": "checkpoints",
    "OnFailure": "options",
    "Problem": "verification",
    "ProblemKind": "verification",
    "Query": "query",
    "Rotation": "options",
    "SigningKey": "signing",
    "Subjects": "subjects",
    "Sync": "options",
    "TraceNode": "trace",
    "Verification": "verification",
    "VerifyKey": "signing",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _HOMES.keys())
