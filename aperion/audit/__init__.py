"""The audit log: an append-only record of what was accepted and how it ended, without secrets."""

from aperion.audit.log import AuditLog, AuditStats

__all__ = ["AuditLog", "AuditStats"]
