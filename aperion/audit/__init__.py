"""The audit log: an append-only record of what was accepted and how it ended, without secrets."""

from aperion.audit.checkpoints import Checkpoints
from aperion.audit.log import AuditLog, AuditStats
from aperion.audit.options import OnFailure, Rotation, Sync
from aperion.audit.query import AuditRecord, Query
from aperion.audit.signing import SigningKey, VerifyKey
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
    "Sync",
    "Verification",
    "VerifyKey",
    "verify",
]
