"""Redaction: copies of payloads, texts and errors without what nobody should read."""

from aperion.redaction.kinds import Kind, kinds
from aperion.redaction.markers import Public, Sensitive
from aperion.redaction.modes import Mode, RedactionKey
from aperion.redaction.redactor import Redactor

__all__ = ["Kind", "Mode", "Public", "RedactionKey", "Redactor", "Sensitive", "kinds"]
