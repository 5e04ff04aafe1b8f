"""The scenarios that need no running bus: import time, and hostile text through the redactor."""

from __future__ import annotations

import json
import random
import string
import sys
from statistics import median
from subprocess import run
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from benchmarks.payloads import SORTS
from benchmarks.payloads import payloads as payloads_of
from benchmarks.wiring import CLEAN, PRIVATE, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.scale import Scale
    from benchmarks.wiring import Peer

FRESH = 50  # payloads of a sort that are made at once
PATIENCE_NS = 200_000_000
# What a program loads that imports what this bus is built on, and makes one model.
FLOOR = """
import asyncio, anyio, orjson, pydantic, uuid_utils
class Small(pydantic.BaseModel):
    name: str
    count: int
    ratio: float
"""


async def import_time(peer: Peer, scale: Scale) -> dict[str, float]:
    """Start Python with the import, with nothing, and with what this bus needs anyway, in turns."""
    if not peer.imports:
        raise UnsupportedError("imports nothing")
    statement = f"import {peer.about.module}"
    for warmed in (statement, FLOOR):
        _start(warmed)
    turns = [(_start("pass"), _start(statement), _start(FLOOR)) for _ in range(scale.imports)]
    bare, imported, floor = (median(figures) for figures in zip(*turns, strict=True))
    return {
        "ns": imported - bare,
        "bare_ns": bare,
        "floor_ns": floor - bare,
        # Of a turn first, so that a slow moment of the machine hits both sides.
        "ratio": median(with_it / least for _, with_it, least in turns),
    }


def _start(statement: str) -> int:
    started = perf_counter_ns()
    run([sys.executable, "-c", statement], check=True)
    return perf_counter_ns() - started


async def payloads(peer: Peer, scale: Scale) -> dict[str, float]:
    """Redact payloads, half of them with nothing to hide, without a bus."""
    if peer.redact is None:
        raise UnsupportedError("has no redactor")
    loads = [{"id": number, **load.fields} for number in range(50) for load in (CLEAN, PRIVATE)]
    length = sum(len(json.dumps(load)) for load in loads)
    count, started = 0, perf_counter_ns()
    while (spent := perf_counter_ns() - started) < scale.seconds * 1e9:
        for load in loads:
            peer.redact(load)
        count += 1
    seconds = spent / 1e9
    return {"rate": count * len(loads) / seconds, "bytes": count * length / seconds}


async def sorts(peer: Peer, scale: Scale) -> dict[str, float]:
    """Redact payloads of several sorts, every one different, without a bus."""
    if peer.redact is None:
        raise UnsupportedError("has no redactor")
    return {sort: _per_payload(peer.redact, sort, scale.seconds) for sort in SORTS}


def _per_payload(redact: Callable[[dict[str, Any]], object], sort: str, seconds: float) -> float:
    """Return the nanoseconds for one of as many payloads as the time allows."""
    for payload in payloads_of(sort, FRESH, series=-1):
        redact(payload)
    count = spent = 0
    while spent < seconds * 1e9 / len(SORTS):
        for payload in payloads_of(sort, FRESH, series=count):
            started = perf_counter_ns()
            redact(payload)
            spent += perf_counter_ns() - started
        count += FRESH
    return spent / count


async def hostile_text(peer: Peer, scale: Scale) -> dict[str, float]:
    """Time the worst of several texts that are all near-misses of what a redactor looks for."""
    if peer.redact_text is None:
        raise UnsupportedError("has no redactor")
    halves = [(text[: scale.text // 2], text) for text in _texts(scale.text)]
    pairs = [(_cost(peer.redact_text, half), _cost(peer.redact_text, whole)) for half, whole in halves]
    return {"ns": max(whole for _, whole in pairs), "growth": max(whole / half for half, whole in pairs)}


def _texts(length: int) -> list[str]:
    letters = random.Random(7).choices(string.ascii_letters + string.digits + "-_", k=length)
    hexadecimal = random.Random(7).choices("0123456789abcdef", k=length)
    seeds = ("a", "a.", "1", "eyJ-", "://a:", "a@a")
    return [(seed * length)[:length] for seed in seeds] + ["".join(letters), "".join(hexadecimal)]


def _cost(redact: Callable[[str], object], text: str) -> int:
    """Return the best of up to three tries."""
    best = spent = 0
    for _ in range(3):
        started = perf_counter_ns()
        redact(text)
        took = perf_counter_ns() - started
        best, spent = min(best or took, took), spent + took
        if spent > PATIENCE_NS:
            break
    return best
