"""A router that runs, or does not: what every side of a bus has to know."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from aperion._runtime.bridge import not_running
from aperion.errors import WrongLoopError
from aperion.router import Router

if TYPE_CHECKING:
    from aperion._runtime import Runtime


class Runs(Router):
    """A router with a runtime while it runs."""

    _runtime: Runtime | None

    def _running(self, method: str) -> Runtime:
        runtime = self._runtime
        if runtime is None:
            raise not_running(method)
        if threading.get_ident() != runtime.thread or not runtime.loop.is_running():
            raise WrongLoopError(method)
        return runtime
