"""One process, one figure: ``python -m benchmarks.worker SCENARIO PEER`` prints one line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from benchmarks.peers import load_peer
from benchmarks.scale import SCALES
from benchmarks.scenarios import SCENARIOS
from benchmarks.wiring import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.wiring import Peer

ABOUT = "about"


def main() -> None:
    """Measure, and answer on what was stdout; whatever a peer prints goes to stderr."""
    arguments = _arguments()
    answer_to = os.dup(1)
    os.dup2(2, 1)
    answer = _answer(arguments)
    with os.fdopen(answer_to, "w") as out:
        out.write(json.dumps(answer) + "\n")
    # Threads that a peer left behind must not hold the next measurement up.
    sys.stderr.flush()
    os._exit(0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("scenario", choices=[ABOUT, *SCENARIOS])
    parser.add_argument("peer")
    parser.add_argument("--scale", choices=list(SCALES), default="quick")
    parser.add_argument("--uvloop", action="store_true")
    return parser.parse_args()


def _answer(arguments: argparse.Namespace) -> dict[str, Any]:
    try:
        peer = load_peer(arguments.peer)
    except ModuleNotFoundError as error:
        return {"absent": str(error)}
    if arguments.scenario == ABOUT:
        return {"about": _about(peer)}
    measure = SCENARIOS[arguments.scenario].measure
    try:
        with asyncio.Runner(loop_factory=_loop_factory(uvloop=arguments.uvloop)) as runner:
            return {"figures": runner.run(measure(peer, SCALES[arguments.scale]))}
    except UnsupportedError as reason:
        return {"unsupported": str(reason)}


def _about(peer: Peer) -> dict[str, Any]:
    return {
        **asdict(peer.about),
        "waits": peer.about.waits.value,
        "version": _version(peer.about.distribution),
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution) if distribution else ""
    except PackageNotFoundError:
        return "(checkout)"


def _loop_factory(*, uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not uvloop:
        return None
    import uvloop as fast

    factory: Callable[[], asyncio.AbstractEventLoop] = fast.new_event_loop
    return factory


if __name__ == "__main__":
    main()
