"""The audit log: an append-only record of what was accepted and how it ended, without secrets."""

from aperion.audit.checkpoints import Checkpoints
from aperion.audit.log import AuditLog, AuditStats
from aperion.audit.options import OnFailure, Rotation, Sync

__all__ = ["AuditLog", "AuditStats", "Checkpoints", "OnFailure", "Rotation", "Sync"]
