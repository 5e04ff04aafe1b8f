"""``aperion redact``, run as a user runs it: what comes out, what is counted, exit codes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aperion

COMMAND = (sys.executable, "-m", "aperion.cli", "redact")
PACKAGES = str(Path(aperion.__file__).parent.parent)
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nKs14IReLcYgADhoXk56ZzXI=\n-----END PRIVATE KEY-----\n"


def redact(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": PACKAGES},
        timeout=60,
        check=False,
    )


def test_clean_lines_come_out_byte_for_byte() -> None:
    clean = (
        b'{"b":  1.00,"a":[1e3, 12345678901234567890123]}\r\nplain text\n\n\ttabs \xff\xfe bytes\n  {"not": json}\nlast'
    )

    done = redact(stdin=clean)

    assert done.stdout == clean
    assert (done.returncode, done.stderr) == (0, b"")


def test_json_and_text_are_redacted_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "events.log"
    file.write_text(
        '{"password": "hunter2", "n": 1}\n[{"to":"ada@example.com"}]\nlogin password=hunter2 \xe9\n', "utf-8"
    )

    done = redact(file)

    assert done.stdout.decode() == (
        '{"password": "[REDACTED]", "n": 1}\n[{"to":"[REDACTED_EMAIL]"}]\nlogin password=[REDACTED] \xe9\n'
    )


def test_a_private_key_over_many_lines_is_hidden_whole() -> None:
    done = redact(stdin=f"before\n{KEY}after\n".encode())

    assert done.stdout.decode() == (
        "before\n-----BEGIN PRIVATE KEY-----\n[REDACTED_PRIVATE_KEY]\n-----END PRIVATE KEY-----\nafter\n"
    )


def test_a_key_that_is_cut_off_hides_nothing_of_what_follows() -> None:
    cut = KEY.partition("Ks14")[0]

    done = redact(stdin=f"{cut}a line of words\nanother one\n".encode())

    assert b"MIIEvQ" not in done.stdout
    assert b"a line of words\nanother one\n" in done.stdout


def test_gzip_is_read(tmp_path: Path) -> None:
    file = tmp_path / "events.log.gz"
    file.write_bytes(gzip.compress(b"password=hunter2\n"))

    assert redact(file).stdout == b"password=[REDACTED]\n"


def test_a_name_that_stands_twice_hides_no_value_from_the_redactor() -> None:
    done = redact(stdin=b'{"note": "password=hunter2", "note": "ok"}\n')

    assert b"hunter2" not in done.stdout


def test_names_of_ones_own_are_hidden_too() -> None:
    assert redact("--key", "badge", "--key", "seat", stdin=b"badge=1 seat=2 row=3\n").stdout == (
        b"badge=[REDACTED] seat=[REDACTED] row=3\n"
    )


def test_check_tells_where_and_what_kind_but_no_value(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("fine\nask ada@example.com or bob@example.com\npassword=hunter2\n")

    done = redact("--check", file)

    assert done.returncode == 1
    assert done.stdout.decode().splitlines() == [f"{file}:2: EMAIL x2", f"{file}:3: KEY x1"]
    assert redact("--check", stdin=b"fine\n").returncode == 0
    assert b"<stdin>:1: KEY x1" in redact("--check", stdin=b"password=x").stdout


def test_a_report_counts_by_type_on_standard_error() -> None:
    lines = b"ask ada@example.com or bob@example.com\npassword=hunter2\nfine\n"

    text, as_json = redact("--report", stdin=lines), redact("--report", "--json", stdin=lines)

    assert text.stderr.decode().split() == ["2", "of", "3", "lines", "changed", "EMAIL", "2", "KEY", "1"]
    assert json.loads(as_json.stderr) == {"lines": 3, "changed": 2, "types": {"EMAIL": 2, "KEY": 1}}
    assert text.stdout == as_json.stdout
    assert b"hunter2" not in text.stdout + text.stderr


def test_a_line_that_is_too_long_is_cut_and_says_so() -> None:
    done = redact(stdin=b"word " * 20_000 + b"password=hunter2\n")

    assert done.stdout.endswith(b"[REDACTED_LENGTH]\n")
    assert b"hunter2" not in done.stdout


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_file_that_cannot_be_read_is_an_error_of_one_line(name: str, tmp_path: Path) -> None:
    done = redact(tmp_path / name)

    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert "cannot be read" in done.stderr.decode()


def test_a_damaged_gzip_file_is_an_error_after_what_could_be_read(tmp_path: Path) -> None:
    file = tmp_path / "a.gz"
    file.write_bytes(gzip.compress(b"password=hunter2\n" * 1000)[:-20])

    done = redact(file)

    assert done.returncode == 2
    assert b"damaged" in done.stderr


def test_an_empty_file_gives_nothing() -> None:
    done = redact("--report", stdin=b"")

    assert (done.stdout, done.returncode) == (b"", 0)
    assert b"0 of 0 lines" in done.stderr
