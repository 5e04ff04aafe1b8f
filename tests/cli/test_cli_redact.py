"""``aperion redact``, run as a user runs it: what comes out, what is counted, exit codes."""

from __future__ import annotations

import gzip
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

import aperion

COMMAND = (sys.executable, "-m", "aperion", "redact")
PACKAGES = str(Path(aperion.__file__).parent.parent)
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nKs14IReLcYgADhoXk56ZzXI=\n-----END PRIVATE KEY-----\n"


def redact(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": PACKAGES},
        timeout=45,
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


# What a filter must neither let through nor lose

MATERIAL = b"MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n"


@pytest.mark.parametrize(
    "count", [200, 201, *(pytest.param(count, marks=pytest.mark.slow) for count in (199, 399, 700))]
)
def test_a_private_key_of_any_length_is_hidden_whole(count: int) -> None:
    done = redact(stdin=b"-----BEGIN PRIVATE KEY-----\n" + MATERIAL * count + b"-----END PRIVATE KEY-----\nafter\n")

    assert MATERIAL.strip() not in done.stdout
    assert done.stdout.endswith(b"-----END PRIVATE KEY-----\nafter\n")


def test_no_line_is_lost_after_words_about_a_private_key() -> None:
    lines = b"".join(b"line %d %s\n" % (n, b"word " * 50) for n in range(600))

    done = redact(stdin=b"see -----BEGIN PRIVATE KEY----- in the docs\n" + lines)

    assert done.stdout.endswith(lines)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"Private-Lines: 2\n", b"Private-MAC: 01\n"),
        (b"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\n", b"---- END SSH2 ENCRYPTED PRIVATE KEY ----\n"),
        (b"-----BEGIN OpenVPN Static key V1-----\n", b"-----END OpenVPN Static key V1-----\n"),
    ],
)
def test_every_private_key_that_a_redactor_knows_is_taken_together(before: bytes, after: bytes) -> None:
    done = redact(stdin=before + MATERIAL * 2 + after)

    assert done.stdout == before + b"[REDACTED_PRIVATE_KEY]\n" + after


def test_a_json_line_after_an_open_key_is_redacted_by_its_structure() -> None:
    done = redact("--key", "badge", stdin=b'-----BEGIN PRIVATE KEY-----\n{"badge":{"n":[7,8]}}\n')

    assert done.stdout.endswith(b'\n{"badge":"[REDACTED]"}\n')


@pytest.mark.parametrize(
    "rest",
    [
        b'"a":1.00,"b":1E+400,"c":0.1234567890123456789012',
        b'"n":123456789012345678901234567890,"m":-0.5',
        b'"x":NaN,"y":-Infinity',
        b'"s":"\\ud800"',
        b'"s":"caf\xe9 \\ud800"',
        b'"s":"\xf0\x9f\x98\x80"',
    ],
)
def test_what_stands_beside_a_hidden_value_keeps_every_digit_and_byte(rest: bytes) -> None:
    done = redact(stdin=b'  {"password":"x",' + rest + b"} \r\n")

    assert done.stdout == b'  {"password":"[REDACTED]",' + rest + b"} \r\n"


def test_no_name_that_comes_again_takes_the_place_of_another() -> None:
    done = redact("--key", "badge", stdin=b'{"badge":[1],"badge":[2],"badge #":[3],"badge":null,"badge #-":[4]}\n')

    assert not any(digit in done.stdout for digit in (b"1", b"2", b"3", b"4"))


def test_a_name_made_for_a_second_value_takes_the_place_of_no_other() -> None:
    done = redact(stdin=b'{"a":1,"a #-":"password=hunter2","a":2}\n')

    assert b"hunter2" not in done.stdout


def test_a_byte_order_mark_stays_and_hides_nothing() -> None:
    assert redact(stdin=b"\xef\xbb\xbfplain\n").stdout == b"\xef\xbb\xbfplain\n"
    assert redact(stdin=b'\xef\xbb\xbf{"password":[1]}').stdout == b'\xef\xbb\xbf{"password":"[REDACTED]"}'


def test_utf_16_is_refused_and_not_let_through() -> None:
    done = redact(stdin="password=hunter2\n".encode("utf-16"))

    assert (done.returncode, done.stdout) == (2, b"")
    assert b"UTF-16" in done.stderr


def test_a_check_finds_a_line_that_was_not_read_to_its_end() -> None:
    done = redact("--check", stdin=b"word " * 20_000 + b"password=hunter2\n")

    assert (done.returncode, done.stdout) == (1, b"<stdin>:1: UNREAD x1\n")


@pytest.mark.parametrize("filling", [b" x", b"  "])
def test_a_line_of_many_megabytes_is_cut_and_the_next_one_is_read(filling: bytes) -> None:
    done = redact(stdin=b'{"a":1}' + filling * (5 * 1024**2) + b"more\r\npassword=hunter2\n")

    assert done.returncode == 0
    assert done.stdout.endswith(b"[REDACTED_LENGTH]\r\npassword=[REDACTED]\n")


def test_a_line_from_a_pipe_comes_out_before_the_pipe_ends() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, env={**os.environ, "PYTHONPATH": PACKAGES}) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"password=hunter2\n")
        process.stdin.flush()

        ready, _, _ = select.select([process.stdout], [], [], 20)
        process.stdin.close()

        assert ready
        assert process.stdout.read() == b"password=[REDACTED]\n"


def test_a_pipe_that_is_closed_ends_the_command_without_a_word() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, "PYTHONPATH": PACKAGES}
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate(b"plain\n" * 50_000, timeout=45)

    assert errors == b""
