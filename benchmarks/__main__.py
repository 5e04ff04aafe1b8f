"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.budgets import verdicts
from benchmarks.chart import write_chart
from benchmarks.peers import NAMES
from benchmarks.report import text, write_json
from benchmarks.runner import Plan, measure
from benchmarks.scale import SCALES
from benchmarks.scenarios import SCENARIOS


def main(argv: list[str] | None = None) -> int:
    """Measure, report, and return the exit code: 0, whatever the figures, unless ``--strict``."""
    arguments = _parser().parse_args(argv)
    results = measure(_plan(arguments), _progress)
    _progress("")
    sys.stdout.write(text(results) + "\n")
    if arguments.json:
        write_json(results, arguments.json)
    if arguments.svg:
        write_chart(results, arguments.svg)
    broken = results.failures() or any(not verdict.kept for verdict in verdicts(results))
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
