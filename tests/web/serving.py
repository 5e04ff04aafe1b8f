"""A real server on the loopback: in a thread of the tests, or in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

import aperion

_START = """
import socket, sys, uvicorn
listener = socket.create_server(("127.0.0.1", 0), backlog=512)
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(sys.argv[1], log_level="warning", lifespan="on")).run(sockets=[listener])
"""


@contextmanager
def served(app: Any, loop: str = "asyncio") -> Iterator[str]:
    """Serve on a free port of the loopback; who connects before the server is up waits in its backlog."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", loop=loop, lifespan="on"))
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


@contextmanager
def served_apart(folder: Path, source: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve the ``app`` of a source in a process of its own; it has to end well when it is told to end."""
    (folder / "service.py").write_text(source, encoding="utf-8")
    packages = Path(aperion.__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", _START, "service:app"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(packages)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, process.communicate(timeout=20)[1]
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        try:
            _, errors = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
    assert "Traceback" not in errors, errors
