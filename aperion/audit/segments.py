"""The files of a log: ``events.jsonl``, which is written, and those before it, ``events.000001.jsonl`` and on."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

GZIP: Final = ".gz"
ZSTD: Final = ".zst"
SUFFIXES: Final = ("", GZIP, ZSTD)


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of a log.

    Args:
        path: of the file.
        number: 1, 2, 3 … in the order written; None for the live file, which is the newest.
        compression: ``""``, ``".gz"`` or ``".zst"``.
    """

    path: Path
    number: int | None
    compression: str = ""


def sealed_path(log: Path, number: int) -> Path:
    """Return the name that a file of the log gets when it is full: ``events.jsonl`` becomes ``events.000001.jsonl``."""
    return log.with_name(f"{log.stem}.{number:06d}{log.suffix}")


def plain_name(name: str) -> str:
    """Return the name that a full file had before it was compressed."""
    return name.removesuffix(GZIP).removesuffix(ZSTD)


def index_path(log: Path, number: int) -> Path:
    """Return where the index of a full file is: ``events.000001.jsonl.idx``, compressed or not."""
    plain = sealed_path(log, number)
    return plain.with_name(f"{plain.name}.idx")


def sealed_segments(log: Path) -> list[Segment]:
    """Return the full files of a log, oldest first; a link or a pipe with such a name is none of them.

    One that is there plain and compressed is about to be compressed; the plain one is whole. Where a number is
    missing it is looked for again: a file that changes its name while a folder is listed may be in no part of the list.
    """
    found = _numbered(log)
    while len(found) > 1 and max(found) - min(found) >= len(found):
        again = _numbered(log)
        if again.keys() == found.keys():
            break
        found = again
    return [found[number] for number in sorted(found)]


def sealed_numbers(log: Path) -> list[int]:
    """Return the numbers of the full files of a log, in order."""
    return [segment.number or 0 for segment in sealed_segments(log)]


def _numbered(log: Path) -> dict[int, Segment]:
    pattern = re.compile(rf"{re.escape(log.stem)}\.(\d{{6,}}){re.escape(log.suffix)}(\.gz|\.zst)?")
    found: dict[int, Segment] = {}
    for name in _files(log.parent):
        match = pattern.fullmatch(name)
        if match is not None and name != log.name:
            number, compression = int(match[1]), match[2] or ""
            known = found.get(number)
            if known is None or SUFFIXES.index(compression) < SUFFIXES.index(known.compression):
                found[number] = Segment(log.with_name(name), number, compression)
    return found


def _files(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def segments(log: Path) -> list[Segment]:
    """Return all files of a log, oldest first; the last is the live one, if there is one."""
    live = [Segment(log, None)] if log.exists() else []
    return [*sealed_segments(log), *live]
