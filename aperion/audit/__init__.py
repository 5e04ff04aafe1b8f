"""The audit log: an append-only record of what was accepted and how it ended, without secrets."""

from typing import TYPE_CHECKING

from aperion._lazy import loading

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

# A bus without a log needs none of it, and `import aperion` would take a tenth longer.
__getattr__ = loading(
    __name__,
    {
        "AuditLog": "aperion.audit.log",
        "AuditRecord": "aperion.audit.query",
        "AuditStats": "aperion.audit.parts",
        "Checkpoints": "aperion.audit.checkpoints",
        "OnFailure": "aperion.audit.options",
        "Problem": "aperion.audit.verification",
        "ProblemKind": "aperion.audit.verification",
        "Query": "aperion.audit.query",
        "Rotation": "aperion.audit.options",
        "SigningKey": "aperion.audit.signing",
        "Subjects": "aperion.audit.subjects",
        "Sync": "aperion.audit.options",
        "TraceNode": "aperion.audit.trace",
        "Verification": "aperion.audit.verification",
        "VerifyKey": "aperion.audit.signing",
        "verify": "aperion.audit.verification",
    },
)
