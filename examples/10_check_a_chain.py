"""Check the chain of an audit log without Aperion, as an auditor would who trusts nobody's code.

Prints:
    7 lines, broken at: []
    7 lines, broken at: [4]
"""

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import aperion


def broken(lines: Iterable[bytes], before: str) -> list[int]:
    """Return the numbers of the lines that do not follow from the hash before and their own bytes."""
    found = []
    for number, line in enumerate(lines, start=1):
        stated = json.loads(line)["hash"]
        signed = line[: line.rindex(b',"hash":"')]
        if hashlib.sha256(before.encode() + signed).hexdigest() != stated:
            found.append(number)
        before = stated
    return found


async def main() -> None:
    """Write a log, check it, change one byte, and check it again."""
    path = Path(tempfile.mkdtemp()) / "events.jsonl"
    async with aperion.EventBus(audit=aperion.AuditLog(path)) as bus:
        await bus.emit("door.opened", {"by": "ada"})

    lines = path.read_bytes().splitlines()
    first = json.loads(lines[0])["previous"]  # 64 zeros at the very beginning of a log
    print(f"{len(lines)} lines, broken at: {broken(lines, first)}")
    lines[3] = lines[3].replace(b'"ada"', b'"bob"')
    print(f"{len(lines)} lines, broken at: {broken(lines, first)}")


if __name__ == "__main__":
    asyncio.run(main())
