"""What ``aperion replay`` reads: files cut into lines, lines that say what an event is, and what is shown of them."""

from __future__ import annotations

import gzip
import random
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from aperion.cli.lines import Batch, Feed, open_lines
from aperion.cli.records import parse
from aperion.cli.screen import safe
from aperion.cli.tally import Durations
from aperion.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

GOOD = b'{"type": "order.placed", "payload": {"n": 1}}'


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("[1]", "holds a list"),
        ('"text"', "holds a string"),
        ('{"payload": {}}', "no 'type'"),
        ("{}", "no 'type' and no 'payload'"),
        ('{"type": "a.b"}', "no 'payload'"),
        ('{"type": 3, "payload": {}}', "'type' is a number"),
        ('{"type": "a.b", "payload": []}', "'payload' is a list"),
        ('{"type": "a.b", "payload": {"x": NaN}}', "not JSON"),
        ('{"type": "a.b", "payload": {"x": "\\ud800"}}', "not JSON"),
        ('{"type": "a.b", "payload": ' + '{"x":' * 2000 + "1" + "}" * 2001, "not JSON"),
        ('{"type": "a.b", "payload": {}, "id": ""}', "'id' has 0 characters"),
        ('{"type": "a.b", "payload": {}, "key": 7}', "'key' is a number"),
        ('{"type": "a.b", "payload": {}, "source": true}', "'source' is a boolean"),
        ('{"type": "a.b", "payload": {}, "time": "yesterday"}', "'time' is neither"),
        ('{"type": "a.b", "payload": {}, "time": "2024-05-01T12:00:00"}', "'time' is neither"),
        ('{"type": "a.b", "payload": {}, "time": "2024-02-31T12:00:00Z"}', "'time' is neither"),
        ('{"type": "a.b", "payload": {}, "time": true}', "'time' is neither"),
        ('{"type": "a.b", "payload": {}, "time": 1e300}', "'time' lies outside"),
        ('{"type": "a.b", "payload": {}, "time": -1}', "'time' lies outside"),
        ('{"type": "a.b", "payload": {}, "correlation_id": "a b"}', "no correlation id"),
        ('{"type": "a.b", "payload": {}, "headers": []}', "'headers' is a list"),
        ('{"type": "a.b", "payload": {}, "headers": {"a": 1}}', "'headers' holds a number"),
    ],
)
def test_a_line_that_is_no_event_is_refused_with_what_is_wrong(line: str, part: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(line.encode())

    assert part in str(caught.value)


@pytest.mark.parametrize(
    "time", ["1714564800", "1714564800.0", '"2024-05-01T12:00:00Z"', '"2024-05-01t14:00:00.000+02:00"']
)
def test_a_time_may_be_unix_seconds_or_rfc_3339(time: str) -> None:
    record = parse(f'{{"type": "a.b", "payload": {{}}, "time": {time}}}'.encode())

    assert record.time == 1714564800.0


def test_a_line_that_is_too_long_is_a_bad_line_and_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_bytes(b"x" * (9 * 1024 * 1024) + b"\n" + GOOD)

    lines = [line for batch in open_lines(str(file)).batches() for line in batch.lines]

    assert [line.number for line in lines] == [1, 2]
    assert "longer than 8 MiB" in (lines[0].problem or "")
    assert lines[0].text == b""
    assert lines[1].text == GOOD


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\n\nb\r\n", [b"a", b"", b"b\r"]),
        (b"\xef\xbb\xbfa\nb", [b"a", b"b"]),
        (b"x" * 200_000 + b"\ny", [b"x" * 200_000, b"y"]),
    ],
)
def test_lines_are_cut_at_line_feeds_and_nowhere_else(tmp_path: Path, content: bytes, expected: list[bytes]) -> None:
    file = tmp_path / "lines"
    file.write_bytes(content)

    lines = [line for batch in open_lines(str(file)).batches() for line in batch.lines]

    assert [line.text for line in lines] == expected
    assert [line.number for line in lines] == list(range(1, len(expected) + 1))


def test_gzip_members_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    file = tmp_path / "members.gz"
    file.write_bytes(gzip.compress(b"a\nb") + gzip.compress(b"c\n"))

    lines = [line.text for batch in open_lines(str(file)).batches() for line in batch.lines]

    assert lines == [b"a", b"bc"]


@pytest.mark.anyio
async def test_closing_a_feed_releases_a_reader_that_is_ahead() -> None:
    ended = threading.Event()

    def endless() -> Generator[Batch]:
        try:
            while True:
                yield Batch((), 0)
        finally:
            ended.set()

    with Feed(endless()) as feed:
        async for _batch in feed.batches():
            break

    assert await anyio.to_thread.run_sync(ended.wait, 5)


@pytest.mark.anyio
async def test_a_feed_hands_over_everything_in_order(tmp_path: Path) -> None:
    file = tmp_path / "numbers"
    file.write_bytes(b"".join(b"%d\n" % n for n in range(100_000)))

    with anyio.fail_after(20), Feed(open_lines(str(file)).batches()) as feed:
        lines = [int(line.text) async for batch in feed.batches() for line in batch.lines]

    assert lines == list(range(100_000))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode 日本", "plain, ünïcode 日本"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202ereversed", "\\u202ereversed"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("x" * 600, "x" * 499 + "…"),
    ],
)
def test_nothing_that_moves_the_cursor_is_shown(text: str, shown: str) -> None:
    assert safe(text) == shown


@pytest.mark.parametrize("percent", [50, 95, 99])
def test_percentiles_are_right_within_2_percent(percent: int) -> None:
    dice, durations = random.Random(1), Durations()
    values = sorted(dice.lognormvariate(-6, 2) for _ in range(5000))

    for value in values:
        durations.add(value)

    assert durations.percentile(percent) == pytest.approx(values[5000 * percent // 100 - 1], rel=0.0201)


def test_percentiles_of_nothing_are_none_and_odd_durations_do_no_harm() -> None:
    durations = Durations()
    assert durations.percentile(50) is None

    for odd in (0.0, -1.0, 1e9):
        durations.add(odd)

    assert durations.percentile(50) == pytest.approx(1e-6, rel=0.03)
