"""The adapters, one module each; importing this package imports none of the peers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.wiring import Peer

NAMES = (
    "bare",
    "aperion",
    "predecessor",
    "blinker",
    "pyee",
    "psygnal",
    "pymitter",
    "abxbus",
    "bubus",
    "to_thread",
)


def load_peer(name: str) -> Peer:
    """Import one adapter, and with it the peer.

    Raises:
        ModuleNotFoundError: when the peer is not installed.

    """
    peer: Peer = import_module(f"benchmarks.peers.{name}").PEER
    return peer
