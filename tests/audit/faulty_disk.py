"""A disk for tests that fails, stands still, or takes less than it should, when it is told to."""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

BY_DESCRIPTOR = ("write", "fdatasync", "fsync", "ftruncate")
BY_PATH = ("open", "rename")


class Disk:
    """Stands between the system and the files of the logs in one folder, and the folder itself.

    Rings and what else is there are left alone. A descriptor that failed to synchronise must not be
    synchronised again, since the system has forgotten what it could not write: ``synced_again`` tells.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = str(folder)
        self.calls: Counter[str] = Counter()
        self.reached = threading.Event()
        """Somebody waits for a call that stands still."""
        self.synced_again: list[str] = []
        self._go = threading.Event()
        self._faults: dict[str, Callable[..., Any]] = {}
        self._real = {name: getattr(os, name) for name in (*BY_DESCRIPTOR, *BY_PATH)}
        self._opened: dict[int, int] = {}  # which call of open a descriptor is from: numbers come again
        self._failed: set[int] = set()
        self._count = itertools.count()
        for name in (*BY_DESCRIPTOR, *BY_PATH):
            monkeypatch.setattr(os, name, self._in_place_of(name))

    # What it can be told

    def fails(self, call: str, error: int, *, times: int | None = None, after: int = 0) -> None:
        """Let a call fail, so many times, after so many that work; until ``heals`` without a number."""
        numbers = itertools.count(1)

        def fault(real: Callable[..., Any], *arguments: Any) -> Any:
            number = next(numbers) - after
            if number > 0 and (times is None or number <= times):
                raise OSError(error, os.strerror(error))
            return real(*arguments)

        self._faults[call] = fault

    def takes_less(self, most: int) -> None:
        """Let each write take so many bytes and no more."""
        self._faults["write"] = lambda real, fd, content: real(fd, bytes(content)[:most])

    def fills_up(self, room: int, error: int) -> None:
        """Let writes take so many bytes all in all, the last of them a part, and then fail."""
        left = room

        def fault(real: Callable[..., Any], fd: int, content: bytes) -> Any:
            nonlocal left
            if left <= 0:
                raise OSError(error, os.strerror(error))
            written = real(fd, bytes(content)[:left])
            left -= written
            return written

        self._faults["write"] = fault

    def stands_still(self, call: str) -> None:
        """Let a call wait until ``heals``."""
        self._go.clear()
        self.reached.clear()

        def fault(real: Callable[..., Any], *arguments: Any) -> Any:
            self.reached.set()
            assert self._go.wait(60)
            return real(*arguments)

        self._faults[call] = fault

    def goes_on(self) -> None:
        """Do what waits; what is asked later fails or stands still as it was told."""
        self._go.set()

    def heals(self) -> None:
        """Do what is asked from now on, and what waits."""
        self._faults.clear()
        self._go.set()

    # What stands in place of the system

    def _in_place_of(self, name: str) -> Callable[..., Any]:
        real, by_path = self._real[name], name in BY_PATH

        def call(subject: Any, *arguments: Any, **named: Any) -> Any:
            if not self._is_ours(subject if by_path else _path_of(subject)):
                return real(subject, *arguments, **named)
            self.calls[name] += 1
            try:
                fault = self._faults.get(name)
                done = fault(real, subject, *arguments) if fault else real(subject, *arguments, **named)
            except OSError:
                self._note(name, subject, failed=True)
                raise
            self._note(name, done if name == "open" else subject, failed=False)
            return done

        return call

    def _is_ours(self, path: Any) -> bool:
        path = os.fspath(path)
        return path == self.folder or (path.startswith(f"{self.folder}/") and path.endswith(".jsonl"))

    def _note(self, name: str, subject: Any, *, failed: bool) -> None:
        if name == "open" and not failed:
            self._opened[subject] = next(self._count)
        elif name in ("fdatasync", "fsync") and subject in self._opened:
            opened = self._opened[subject]
            if opened in self._failed:
                self.synced_again.append(f"{name} of {_path_of(subject)}")
            if failed:
                self._failed.add(opened)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)")
