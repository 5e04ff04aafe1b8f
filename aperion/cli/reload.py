"""Running an application in a child process that starts again when its code changes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from aperion.cli.screen import DEBUG
from aperion.engine.pulse import WATCHDOG
from aperion.errors import ApplicationError

if TYPE_CHECKING:
    from collections.abc import Iterator


def run_reloading(app_path: str) -> int:
    """Run ``aperion run`` in a child until a signal, and again after each change in this directory.

    Raises:
        ApplicationError: when watchfiles is missing.
    """
    child: subprocess.Popen[bytes] | None = None
    for _ in chain([None], _changes()):
        if child is not None:
            _stop(child)
            print("aperion: the code changed; starting again", file=sys.stderr)
        # A group of its own: Ctrl-C must reach it once, from here, since a second one ends the drain.
        command = [sys.executable, "-m", "aperion", "run", app_path, *([DEBUG] if DEBUG in sys.argv else [])]
        child = subprocess.Popen(command, process_group=0, env={WATCHDOG: "0.2", **os.environ})  # noqa: S603
    return _stop(child) if child is not None else 0


def _changes() -> Iterator[object]:
    try:
        from watchfiles import PythonFilter, watch
    except ModuleNotFoundError:
        raise ApplicationError('--reload needs the package watchfiles; run: pip install "aperion-bus[cli]"') from None
    logging.getLogger("watchfiles").addHandler(logging.NullHandler())  # it announces each Ctrl-C
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return watch(Path.cwd(), watch_filter=PythonFilter(), stop_event=stop, raise_interrupt=False)


def _stop(child: subprocess.Popen[bytes]) -> int:
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
    try:
        return child.wait()
    except KeyboardInterrupt:  # the second Ctrl-C: at once
        child.kill()
        return 128 + signal.SIGINT
