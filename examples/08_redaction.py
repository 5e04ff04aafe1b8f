"""Hide what nobody should read: in the audit log, in dead letters, in texts, on its own.

Prints:
    {'user': 'ada', 'dbPassword': '[REDACTED]', 'note': 'call [REDACTED_PHONE] or [REDACTED_EMAIL]'}
    card [REDACTED_CC], from [REDACTED_IP]
    {'user_id': '[REDACTED_USER_ID:2026a:6cpsoryj6xejok4u]', 'to': '[REDACTED_EMAIL:example.com]'}
    Counter({'EMAIL': 2, 'KEY': 1, 'PHONE': 1})
"""

from collections import Counter
from typing import Annotated

import aperion
from aperion.redaction import Mode, RedactionKey


class Visit(aperion.Payload, type="shop.visited"):
    """A field says what it holds; one that is public is never looked at."""

    visitor: Annotated[str, aperion.Sensitive("email")]
    build: Annotated[str, aperion.Public()]


redactor = aperion.Redactor()
bus = aperion.EventBus(redactor=redactor)  # on by default: this is the same as EventBus()

payload = {"user": "ada", "dbPassword": "hunter2", "note": "call +44 20 7946 0958 or ada@example.com"}
print(redactor.redact(payload))
print(redactor.redact_text("card 4111 1111 1111 1111, from 10.0.0.1"))

key = RedactionKey("2026a", b"keep this where other secrets are")
counting = aperion.Redactor(
    redact_keys={"badge"},
    patterns={"TICKET": r"\bT-\d{6}\b"},
    skip_types={"IP"},
    modes={"EMAIL": Mode.PARTIAL},
    key_modes={"user_id": Mode.PSEUDONYM},
    key=key,
)
print(counting.redact({"user_id": 4711, "to": "ada@example.com"}))

report = Counter[str]()
redactor.redact(payload, report)
redactor.redact(Visit(visitor="ada@example.com", build="1.2.3.4"), report)
print(report)
