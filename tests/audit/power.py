"""A power cut for tests: what was asked of the system is recorded, and any state is built that a cut may leave.

What a device has is what was synchronised: contents by ``fsync`` or ``fdatasync`` of the file, names by
``fsync`` of the folder. Of what came later anything may be there: a beginning, sectors of zeros, names
up to some moment; of memory that is mapped, any pages of any age.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

SECTOR, PAGE = 512, 4096


class Recorder:
    """Records what happens in one folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.steps: list[tuple[Any, ...]] = []
        self._files: dict[int, int] = {}  # by inode, which comes again when a file is removed
        self._real = {name: getattr(os, name) for name in ("open", "write", "fdatasync", "fsync", "ftruncate")}
        for name in self._real:
            monkeypatch.setattr(os, name, getattr(self, f"_{name}"))
        for name in ("rename", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._naming(name, getattr(os, name)))

    def note(self, *step: Any) -> None:
        """Add a step of somebody else's, such as that an emitter was told yes."""
        self.steps.append(step)

    def _file(self, inode: int) -> int:
        return self._files.get(inode, -inode)

    def _open(self, path: Any, flags: int, *rest: Any, **named: Any) -> int:
        ours = Path(os.fspath(path)).parent == self.folder
        is_new = ours and not os.path.lexists(path)
        fd = self._real["open"](path, flags, *rest, **named)
        if is_new:
            self._files[os.fstat(fd).st_ino] = len(self.steps)
            self.note("name", Path(path).name, self._file(os.fstat(fd).st_ino), os.fstat(fd).st_ino)
        return fd

    def _write(self, fd: int, content: Any) -> int:
        written = self._real["write"](fd, content)
        self._content("content", fd)
        return written

    def _ftruncate(self, fd: int, size: int) -> None:
        self._real["ftruncate"](fd, size)
        self._content("content", fd)

    def _fdatasync(self, fd: int) -> None:
        self._real["fdatasync"](fd)
        self._content("synced", fd)

    def _fsync(self, fd: int) -> None:
        self._real["fsync"](fd)
        if _path_of(fd) == str(self.folder):
            self.note("names synced")
        else:
            self._content("synced", fd)

    def _content(self, step: str, fd: int) -> None:
        if Path(_path_of(fd)).parent == self.folder:
            self.note(step, self._file(os.fstat(fd).st_ino), Path(f"/proc/self/fd/{fd}").read_bytes())
            ring = next(self.folder.glob("*.ring"), None)
            if ring is not None and step == "synced":
                self.note("mapped", self._file(ring.stat().st_ino), ring.read_bytes())

    def _naming(self, name: str, real: Any) -> Any:
        def call(path: Any, *target: Any, **named: Any) -> None:
            ours = Path(os.fspath(path)).parent == self.folder
            if ours and target:
                self.note("content", self._file(os.stat(path).st_ino), Path(path).read_bytes())
            file = self._file(os.lstat(path).st_ino) if ours and os.path.lexists(path) else None
            real(path, *target, **named)
            if ours and target:
                self.note("renamed", Path(path).name, Path(target[0]).name, file)
            elif ours:
                self.note("unlinked", Path(path).name, file)

        return call


def cut_power(steps: list[tuple[Any, ...]], rng: random.Random, folder: Path) -> None:
    """Make a folder as a power cut after these steps may leave it."""
    names = _names_after(steps, rng)
    folder.mkdir()
    for name, file in names.items():
        (folder / name).write_bytes(_content_after(file, steps, rng))
    inodes = {step[2]: step[3] for step in steps if step[0] == "name"}
    for ring in folder.glob("*.ring"):
        content = ring.read_bytes()
        for name, file in names.items():  # files are the same after a cut, and have other numbers here
            content = content.replace(_packed(inodes[file]), name.encode().ljust(24))
        for name in names:
            content = content.replace(name.encode().ljust(24), _packed((folder / name).stat().st_ino))
        ring.write_bytes(content)


def _packed(inode: int) -> bytes:
    return inode.to_bytes(8, sys.byteorder)


def _names_after(steps: list[tuple[Any, ...]], rng: random.Random) -> dict[str, int]:
    last = max((at for at, step in enumerate(steps) if step[0] == "names synced"), default=0)
    names: dict[str, int] = {}
    until = rng.choice([last, len(steps), rng.randint(last, len(steps))])
    for what, *of in steps[:until]:
        if what == "name":
            names[of[0]] = of[1]
        elif what == "renamed":
            names.pop(of[0], None)
            names[of[1]] = of[2]
        elif what == "unlinked":
            names.pop(of[0], None)
    return names


def _content_after(file: int, steps: list[tuple[Any, ...]], rng: random.Random) -> bytes:
    mapped = [step[2] for step in steps if step[:2] == ("mapped", file)]
    if mapped:
        return _pages(mapped, rng)
    synced = newest = b""
    for what, *of in steps:
        if what in ("content", "synced") and of[0] == file:
            newest = of[1]
            synced = newest if what == "synced" else synced
    if not newest.startswith(synced):  # it was cut, or the device has not heard of it
        return rng.choice([synced, newest])
    size = rng.choice([len(synced), len(newest), rng.randint(len(synced), len(newest))])
    content = bytearray(newest[:size])
    if rng.random() < 0.5:
        for at in range(len(synced), size, SECTOR):
            if rng.random() < 0.5:
                end = min(at + SECTOR, size)
                content[at:end] = bytes(end - at)
    return bytes(content)


def _pages(versions: list[bytes], rng: random.Random) -> bytes:
    """Return a mapped file of which each page has an age of its own."""
    newest = versions[-1]
    way = rng.choice(["newest", "one", "mixed", "zeros", "empty"])
    if way in ("newest", "one"):
        return newest if way == "newest" else rng.choice(versions)
    if way in ("zeros", "empty"):
        return bytes(len(newest)) if way == "zeros" else b""
    pages = []
    for at in range(0, len(newest), PAGE):
        content = rng.choice([*versions, bytes(len(newest))])
        pages.append(content[at : at + PAGE].ljust(PAGE, b"\0"))
    return b"".join(pages)


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
