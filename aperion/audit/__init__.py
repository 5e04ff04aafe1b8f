"""The audit log: an append-only record of what was accepted and how it ended, without secrets."""

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
