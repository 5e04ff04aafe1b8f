"""Redaction: copies of payloads, texts and errors without what nobody should read."""

from aperion.redaction.markers import Public, Sensitive
from aperion.redaction.redactor import Redactor

__all__ = ["Public", "Redactor", "Sensitive"]
