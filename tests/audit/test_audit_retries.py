"""A log that could not be written is tried again when somebody asks, and not all the time."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from faulty_disk import Disk

import aperion
from aperion.audit import AuditLog, Rotation, verify

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

PLACED = aperion.Event("order.placed", {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "events.jsonl"


@pytest.fixture
def disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(path.parent, monkeypatch)
    yield disk
    disk.heals()


async def fails(log: AuditLog, disk: Disk) -> None:
    """Let the log meet a disk that is full."""
    disk.fails("write", errno.ENOSPC)
    log.accepted(PLACED)
    while log.stats().failure is None:
        await anyio.sleep(0.001)


async def test_a_log_that_nobody_has_tried_for_long_is_tried_when_an_emitter_asks(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aperion.audit.writer._RETRY_FIRST", 600)
    log = AuditLog(path)
    with anyio.fail_after(20):
        await log.start()
        await fails(log, disk)
        disk.heals()
        while log.stats().failure is not None:
            with pytest.raises(aperion.AuditUnavailable):
                log.accepted(PLACED)
            await anyio.sleep(0.02)
        log.accepted(PLACED)
        await log.aclose()

    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()].count("accepted") == 2


@pytest.mark.parametrize("policy", ["required", "best_effort"])
async def test_however_many_ask_the_disk_is_left_alone_for_a_while(
    path: Path, disk: Disk, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aperion.audit.writer._PROBE", 2)
    log = AuditLog(path, on_failure=policy)
    with anyio.fail_after(20):
        await log.start()
        await fails(log, disk)
        for _ in range(200):
            try:
                log.accepted(PLACED)
            except aperion.AuditUnavailable:
                await anyio.sleep(0)
            await anyio.sleep(0.001)
        failures = log.stats().failures
        disk.heals()
        await log.aclose()

    assert failures == 1


async def test_with_best_effort_nobody_waits_for_a_device_that_is_known_not_to_work(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aperion.audit.writer._PROBE", 2)
    log = AuditLog(path, sync="disk", on_failure="best_effort")
    with anyio.fail_after(20):
        async with aperion.EventBus(audit=log) as bus:
            await fails(log, disk)
            for _ in range(5):
                await bus.emit("order.placed", {})
            failures = log.stats().failures
            disk.heals()

    assert failures == 1


async def test_a_full_file_that_could_not_be_compressed_for_want_of_descriptors_is_compressed_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aperion.audit import compression

    monkeypatch.setattr("aperion.audit.housekeeping._RETRY", 0.001)
    compress, calls = compression.compress, []

    def starved(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) < 4:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return compress(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compression, "compress", starved)
    log = AuditLog(path, rotation=Rotation(max_bytes=2_000, compress="gzip"))
    with anyio.fail_after(20):
        await log.start()
        log.accepted(aperion.Event("order.placed", {"text": "x" * 3_000}))
        while not path.with_name("events.000001.jsonl.gz").exists():
            await anyio.sleep(0.001)
        failures = log.stats().background_failures
        await log.aclose()

    assert failures == 3
    assert verify(path).ok


STARVED = """
import logging, os, resource, sys
import anyio, structlog, aperion
from aperion.audit import AuditLog, Rotation, verify

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

async def main():
    path, sync, policy, spare = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    log = AuditLog(path, sync=sync, on_failure=policy, rotation=Rotation(max_bytes=5_000, compress="gzip", keep=20))
    told, refused = [], 0
    with anyio.fail_after(40):
        async with aperion.EventBus(audit=log) as bus:

            async def emit():
                try:
                    told.append((await bus.emit("order.placed", {"text": "x" * 200})).event_id)
                except aperion.AuditUnavailable:
                    return False
                return True

            bus.subscribe(lambda event: None, "order.placed", name="handler")
            await emit()
            await bus.wait_settled()
            taken = [os.dup(0) for _ in range(spare + 1)]
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1], hard))
            for _ in range(60):
                await emit()
                await anyio.sleep(0.005)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            while not (await emit() and log.stats().available):
                await anyio.sleep(0.005)
    print(log.stats().missing, *told)

anyio.run(main)
"""


@pytest.mark.parametrize("spare", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("policy", ["required", "best_effort"])
@pytest.mark.parametrize("sync", [pytest.param("process", marks=pytest.mark.slow), "disk"])
def test_a_bus_that_runs_out_of_descriptors_goes_on_when_there_are_some(
    path: Path, sync: str, policy: str, spare: int
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", STARVED, str(path), sync, policy, str(spare)]
    environment = {**os.environ, "PYTHONPATH": str(Path(aperion.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    missing, *told = done.stdout.split()

    files = [*path.parent.glob("events.*.jsonl"), path]
    written = {json.loads(line).get("event_id") for file in files for line in file.read_text().splitlines()}
    for file in path.parent.glob("*.gz"):
        written |= {json.loads(line).get("event_id") for line in subprocess.check_output(["zcat", file]).splitlines()}
    assert len(set(told) - written) <= (int(missing) if policy == "best_effort" else 0)
    assert verify(path).ok
