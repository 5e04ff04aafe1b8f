"""Processes that are killed: what was acknowledged is handled, and only what was in flight is repeated."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from disk import built

SUBSCRIPTIONS = ("first", "second", "third")


@contextmanager
def victims(preload: str | None = None):
    environment = {**os.environ, **({"LD_PRELOAD": preload} if preload else {})}
    victim = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("victim.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )

    def run(**task: Any) -> int:
        assert victim.stdin is not None
        assert victim.stdout is not None
        print(json.dumps(task), file=victim.stdin, flush=True)
        return int(victim.stdout.readline())

    with victim:
        yield run
        victim.stdin.close()


class Account:
    """What the ledger of a folder says."""

    def __init__(self, folder: Path) -> None:
        self.acked: list[str] = []
        self.keys: dict[str, list[str]] = defaultdict(list)
        self.starts: Counter[tuple[str, str]] = Counter()
        self.done: Counter[tuple[str, str]] = Counter()
        self.order: list[tuple[str, str]] = []
        self.letters: list[tuple[str, ...]] = []
        for line in (folder / "ledger").read_text().splitlines():
            what, event_id, *rest = line.split(" ")
            if what == "acked":
                self.acked.append(event_id)
                self.keys[rest[0]].append(event_id)
            elif what == "start":
                self.starts[event_id, rest[0]] += 1
            elif what == "done":
                self.done[event_id, rest[0]] += 1
                self.order.append((event_id, rest[0]))
            else:
                self.letters.append((event_id, *rest))

    def check(self, kills: int) -> None:
        wanted = {(event_id, name) for event_id in self.acked for name in SUBSCRIPTIONS}
        lost = wanted - self.done.keys() - {letter[:2] for letter in self.letters}
        assert not lost, f"{len(lost)} of {len(wanted)} deliveries were never made"
        # A handler has written its line, and the process died before it could return: once a death at most.
        assert sum(self.done.values()) - len(self.done) <= kills
        firsts: dict[str, list[str]] = defaultdict(list)
        seen = set()
        key_of = {event_id: key for key, events in self.keys.items() for event_id in events if key != "None"}
        for event_id, name in self.order:
            if name == "first" and event_id in key_of and event_id not in seen:
                seen.add(event_id)
                firsts[key_of[event_id]].append(event_id)
        for key, events in firsts.items():
            assert events == self.keys[key], f"the order of {key} was lost"


def killed(folder: Path, rounds: int, level: str, seed: int) -> Account:
    rng = random.Random(seed)
    folder.mkdir()
    with victims() as run:
        for number in range(rounds):
            longest = 0.4 if number % 3 else 0.1  # the latter while it takes up what is left
            code = run(folder=str(folder), seed=rng.random(), level=level, kill_after=rng.uniform(0, longest))
            assert code == -9
        assert run(folder=str(folder), seed=0, level=level, ends=True) == 0
    return Account(folder)


@pytest.mark.parametrize("level", ["disk", "process"])
def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path, level: str) -> None:
    account = killed(tmp_path / "all", 30, level, 1)

    assert len(account.acked) > 100
    account.check(30)
    assert not account.letters


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", ["disk", "process"])
def test_nothing_acknowledged_is_lost_in_many_kills(tmp_path: Path, level: str) -> None:
    account = killed(tmp_path / "all", 250, level, 2)

    account.check(250)
    # Killed three times by chance while it ran: suspected of it, and kept as a dead letter.
    assert {letter[2] for letter in account.letters} <= {"killed"}
    assert len(account.letters) < 5


def test_a_handler_that_kills_the_process_becomes_a_dead_letter_and_all_others_are_delivered(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    with victims() as run:
        codes = [run(folder=str(folder), seed=1, level="process", poison="100.second", count=20, kill_after=20)]
        codes += [run(folder=str(folder), seed=1, level="process", poison="100.second", ends=True) for _ in range(3)]

    account = Account(folder)
    assert codes == [-9, -9, -9, 0]
    (letter,) = account.letters
    assert letter[1:] == ("second", "killed")
    assert account.starts[letter[0], "second"] == 3
    assert account.done[letter[0], "first"] == account.done[letter[0], "third"] == 1
    account.check(3)


def killed_at_calls(folder: Path, numbers: list[int], level: str, library: str) -> Account:
    rng = random.Random(5)
    folder.mkdir()
    with victims(library) as run:
        for number in numbers:
            code = run(folder=str(folder), seed=rng.random(), level=level, kill_at=number, half=rng.randrange(3))
            assert code == -9
        assert run(folder=str(folder), seed=0, level=level, ends=True) == 0
    return Account(folder)


@pytest.mark.parametrize("level", ["disk", "process"])
def test_nothing_acknowledged_is_lost_when_the_process_dies_at_a_call_of_the_system(tmp_path: Path, level: str) -> None:
    library = built(tmp_path)
    if library is None:
        pytest.skip("there is no C compiler")
    numbers = [*range(1, 31), *random.Random(6).choices(range(31, 400), k=30)]

    account = killed_at_calls(tmp_path / "all", numbers, level, library)

    assert len(account.acked) > 50
    account.check(60)
    # It is killed while it takes up what is left, time after time, and what runs then is suspected.
    assert {letter[2] for letter in account.letters} <= {"killed"}
    assert len(account.letters) < 10
