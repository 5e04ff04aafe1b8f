"""Keep an audit log: rotated, signed, searched, verified, and forgetful where a person asks for it.

Prints:
    order.placed was billed: failed, ok
    order.placed
      order.billed
    the chain is whole: True, and all of it is signed: True
    Ada Lovelace
    the key of c-7 is destroyed: True
    the chain is whole: True, and nobody can read who it was
"""

import asyncio
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aperion
from aperion.audit import AuditLog, Checkpoints, Rotation, SigningKey, Subjects
from aperion.redaction import Mode, RedactionKey

folder = Path(tempfile.mkdtemp())
elsewhere = folder / "elsewhere"  # another machine's disk in a service; never made by the log itself
elsewhere.mkdir()
signing = SigningKey.generate("2026a")  # SigningKey.load("/run/secrets/audit.key") in a service
subjects = Subjects(folder / "keys" / "subjects.keys", of=lambda event: event.payload.get("customer"))

audit = AuditLog(
    folder / "log" / "events.jsonl",
    rotation=Rotation(max_bytes=100_000_000, max_age=86_400, keep_age=365 * 86_400, compress="gzip"),
    checkpoints=Checkpoints(every=1000, key=signing, copy_to=elsewhere / "checkpoints.jsonl"),
    redactor=aperion.Redactor(
        modes={"EMAIL": Mode.ENCRYPT},
        key_modes={"name": Mode.ENCRYPT},
        key=RedactionKey("own", b"keep this where other secrets are"),
    ),
    subjects=subjects,
)
bus = aperion.EventBus(audit=audit)
calls = 0


@bus.on("order.placed", name="bill", retry=aperion.Retry(attempts=2, wait_initial=0.01, on=ConnectionError))
async def bill(event: aperion.Event[Any]) -> None:
    """Fail the first time, in a way that passes."""
    global calls
    calls += 1
    if calls == 1:
        raise ConnectionError("the bank does not answer")
    await bus.emit("order.billed", {"customer": event.payload["customer"]})


async def main() -> None:
    """Emit one order, and ask the log about it."""
    order = {"customer": "c-7", "name": "Ada Lovelace", "amount": 12}
    async with bus:
        receipt = await bus.emit("order.placed", order, correlation_id="request-1")
        await receipt.settled()

    since = datetime.now(UTC) - timedelta(minutes=5)
    outcomes = [record.fields["state"] for record in audit.read(subscription="bill", since=since)]
    print("order.placed was billed:", ", ".join(outcomes))
    (root,) = audit.trace("request-1")
    print(root.event_type)
    for child in root.children:
        print("  " + child.event_type)

    found = audit.verify(keys=[signing.public], checkpoints=[elsewhere / "checkpoints.jsonl"])
    print(f"the chain is whole: {found.ok}, and all of it is signed: {found.unsigned_tail == 0}")

    (accepted,) = audit.read(kinds="accepted", types="order.placed")
    print(subjects.reveal(accepted.fields["payload"]["name"]))
    print("the key of c-7 is destroyed:", subjects.forget("c-7") is not None)
    try:
        subjects.reveal(accepted.fields["payload"]["name"])
    except aperion.ConfigurationError:
        print(f"the chain is whole: {audit.verify(keys=[signing.public]).ok}, and nobody can read who it was")


if __name__ == "__main__":
    asyncio.run(main())
