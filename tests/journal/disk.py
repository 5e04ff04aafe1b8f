"""The disk of ``disk.c``: built once, told what to do from within a child, and what it wrote down, read."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import struct
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

WRITE, SYNC, TRUNCATE, UNLINK, CREATE, NAMES, NOTE = range(1, 8)
SECTOR = 512


def built(folder: Path) -> str | None:
    """Return the library, or None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "disk.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(Path(__file__).with_name("disk.c")), "-ldl"],
        check=True,
    )
    return str(library)


def disk() -> Any:
    """Return the disk of this process, which was started with it."""
    return ctypes.CDLL(os.environ["LD_PRELOAD"])


class Step(NamedTuple):
    """One thing that was asked of the disk."""

    op: int
    path: str
    offset: int
    data: bytes


def steps_of(trace: Path) -> list[Step]:
    """Read what was written down."""
    content, at, steps = trace.read_bytes(), 0, []
    while at < len(content):
        op, length, offset, size = struct.unpack_from("=4Q", content, at)
        at += 32
        path = content[at : at + length].decode()
        at += length
        has_data = op in (WRITE, NOTE)
        steps.append(Step(op, path, offset, content[at : at + size] if has_data else b""))
        at += size if has_data else 0
    return steps


def cut_power(steps: list[Step], folder: Path, rng: random.Random, *, strict: bool) -> None:
    """Make a folder as a power cut after these steps may leave it.

    What a device has for sure is what was synchronised. Of what came later anything may be there: whole writes and
    sectors of them. By the ways of ext4 a file that was synchronised has its name; strictly only with its folder.
    """
    folder.mkdir(parents=True)
    by_path: dict[str, list[Step]] = defaultdict(list)
    named: dict[str, bool] = {}
    gone: dict[str, list[Step]] = {}
    for step in steps:
        if step.op == CREATE:
            by_path[step.path] = []
            named[step.path] = False
            gone.pop(step.path, None)
        elif step.op == NAMES:
            named = dict.fromkeys(named, True)
            gone.clear()
        elif step.op == UNLINK:
            gone[step.path] = by_path.pop(step.path, [])
        elif step.op != NOTE:
            by_path[step.path].append(step)
            if step.op == SYNC and not strict:
                named[step.path] = True
    for path, of in gone.items():
        if rng.random() < 0.5:
            (folder / Path(path).name).write_bytes(_content(of, rng))
    for path, of in by_path.items():
        if named.get(path) or rng.random() < 0.5:
            (folder / Path(path).name).write_bytes(_content(of, rng))


def _content(steps: list[Step], rng: random.Random) -> bytes:
    last = max((at for at, step in enumerate(steps) if step.op == SYNC), default=-1)
    content = bytearray()
    way = rng.choice(["nothing", "all", "some", "torn"])
    for at, step in enumerate(steps):
        certain = at < last
        if not certain and (way == "nothing" or (way != "all" and rng.random() < 0.5)):
            continue
        if step.op == TRUNCATE:
            del content[step.offset :]
            content.extend(bytes(step.offset - len(content)))
        elif step.op == WRITE:
            for start in range(0, len(step.data), SECTOR):
                if not certain and way == "torn" and rng.random() < 0.3:
                    continue
                part = step.data[start : start + SECTOR]
                begin = step.offset + start
                content.extend(bytes(max(0, begin + len(part) - len(content))))
                content[begin : begin + len(part)] = part
    return bytes(content)
