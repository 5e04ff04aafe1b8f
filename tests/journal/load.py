"""A load on the storage of a journal, under the disk of ``disk.c``."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from disk import disk

from aperion.journal.options import Level, Options
from aperion.journal.rows import Insert, State
from aperion.journal.slots import Slots
from aperion.journal.writer import Writer

LIFE = 10_000


def body_of(seq: int) -> bytes:
    return f"{seq} ".encode() * (seq % 400 + 1)


async def main(folder: str, level: str, trace: str, lives: int, count: int) -> None:
    control = disk()
    control.disk_trace(trace.encode())
    rng = random.Random(1)
    for life in range(lives):
        told: dict[int, asyncio.Future[str | None]] = {}

        def tell(tickets: list[int], _duplicates: set[int], reason: str | None, told: dict = told) -> None:
            for seq in tickets:
                if reason is None:
                    control.disk_note(f"acked {seq}".encode(), None, 0)
                told.pop(seq).set_result(reason)

        slot = Slots(Path(folder)).first_free()
        writer = Writer(slot, Options(level=Level(level)), asyncio.get_running_loop(), tell)
        summary = await writer.open()
        starts = Path(slot.starts)

        async def emit(task: int, life: int = life, writer: Writer = writer, told: dict = told) -> None:
            for n in range(count):
                seq = life * LIFE + n * 8 + task + 1
                told[seq] = asyncio.get_running_loop().create_future()
                future = told[seq]
                writer.insert([(Insert(seq, f"id-{seq}", '["a","b"]', body_of(seq)), seq)])
                await future
                entry = writer.starts.enter(seq, 0)
                writer.starts.change(entry, seq, 0, 1)
                if rng.random() < 0.2:
                    writer.later(State(seq, 0, attempts=1))
                writer.starts.change(entry, seq, 0b11, 0)
                if rng.random() < 0.7:
                    control.disk_note(f"settled {seq}".encode(), None, 0)
                    writer.later("settled", seq, entry, True)
                if rng.random() < 0.1:
                    content = starts.read_bytes()
                    control.disk_note(b"starts", content, len(content))

        await asyncio.gather(*[emit(task) for task in range(8)])
        if life < lives - 1:
            await writer.close()
    assert summary is not None
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
