"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import instructions
from benchmarks.budgets import verdicts
from benchmarks.chart import write_chart
from benchmarks.peers import NAMES
from benchmarks.report import text, write_json
from benchmarks.runner import Plan, measure
from benchmarks.scale import SCALES
from benchmarks.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Collection

    from benchmarks.budgets import Verdict
    from benchmarks.results import Results


def main(argv: list[str] | None = None) -> int:
    """Measure, report, and return the exit code: 0, whatever the figures, unless ``--strict``."""
    arguments = _parser().parse_args(argv)
    if arguments.instructions is not None:
        return _count(arguments)
    results = measure(_plan(arguments), _progress)
    _progress("")
    sys.stdout.write(text(results) + "\n")
    if arguments.json:
        write_json(results, arguments.json, verdicts(results))
    if arguments.svg:
        write_chart(results, arguments.svg)
    return _code(arguments, results, verdicts(results))


def _count(arguments: argparse.Namespace) -> int:
    """Count instructions instead, and return the exit code: 2 where there is nothing to count with."""
    if not instructions.is_available():
        sys.stderr.write(f"{instructions.MISSING}\n")
        return 2
    results = instructions.count([name for name in instructions.ROWS if name in _wanted(arguments)], _progress)
    _progress("")
    sys.stdout.write(instructions.text(results) + "\n")
    found = instructions.judged(results)
    if arguments.json:
        write_json(results, arguments.json, found)
    return _code(arguments, results, found)


def _wanted(arguments: argparse.Namespace) -> Collection[str]:
    return arguments.instructions or instructions.ROWS


def _code(arguments: argparse.Namespace, results: Results, found: list[Verdict]) -> int:
    broken = results.failures() or any(not verdict.kept for verdict in found)
    return 1 if arguments.strict and broken else 0


def _plan(arguments: argparse.Namespace) -> Plan:
    return Plan(
        scenarios=[name for name in SCENARIOS if name in (arguments.only or SCENARIOS)],
        peers=[name for name in NAMES if name in (arguments.peers or NAMES)],
        scale=arguments.scale,
        rounds=arguments.rounds or SCALES[arguments.scale].rounds,
        uvloop=arguments.uvloop,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this bus and its peers.")
    size = parser.add_mutually_exclusive_group()
    for name, purpose in (("quick", "minutes, not hours"), ("tiny", "only to see that all of it runs")):
        size.add_argument(f"--{name}", dest="scale", action="store_const", const=name, help=purpose)
    parser.add_argument(
        "--instructions",
        nargs="*",
        choices=list(instructions.ROWS),
        metavar="ROW",
        help=f"count instructions with valgrind instead, of all or of some: {', '.join(instructions.ROWS)}",
    )
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--peers", nargs="+", choices=NAMES, metavar="PEER", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, help="processes per figure")
    parser.add_argument("--uvloop", action="store_true", help="use uvloop instead of asyncio")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every round as JSON")
    parser.add_argument("--svg", type=Path, metavar="PATH", help="write a chart, such as docs/benchmarks.svg")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a budget is exceeded or a peer fails")
    parser.set_defaults(scale="full")
    return parser


def _progress(step: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{step}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
