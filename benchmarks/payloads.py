"""Payloads as events have them, every one different, and each text a new object, as it is when it was just received."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Made = dict[str, Any]

_WORDS = [
    "brass",
    "lamp",
    "linen",
    "shade",
    "parcel",
    "neighbour",
    "second",
    "floor",
    "bell",
    "broken",
    "window",
    "garden",
    "yellow",
    "winter",
    "morning",
    "bicycle",
    "courier",
    "kitchen",
    "table",
    "cable",
    "bulb",
    "warm",
    "quiet",
    "street",
    "corner",
    "bakery",
    "Tuesday",
    "afternoon",
    "before",
    "after",
]
_NAMES = ("alice.martin", "bob.stone", "carla.weiss", "dan.okafor", "eve.lindgren", "farid.hamdi")


def _words(random: Random, count: int) -> str:
    return " ".join(random.choices(_WORDS, k=count))


def _hex(random: Random, length: int) -> str:
    return "".join(random.choices("0123456789abcdef", k=length))


def _uuid(random: Random) -> str:
    digits = _hex(random, 32)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _time(random: Random) -> str:
    return f"2026-{random.randint(1, 12):02}-{random.randint(1, 28):02}T{random.randint(0, 23):02}:14:{random.randint(0, 59):02}Z"


def _webhook(random: Random) -> Made:
    name, number = random.choice(("aurora", "basalt", "cinder")), random.randint(1, 9_999)
    home = f"https://code.example.com/harbour/{name}"
    return {
        "action": random.choice(("opened", "closed", "edited", "labeled")),
        "number": number,
        "sender": {"login": f"user{random.randint(1, 500)}", "id": random.randint(1, 10**8), "type": "User"},
        "repository": {"name": name, "full_name": f"harbour/{name}", "private": False, "html_url": home},
        "issue": {
            "html_url": f"{home}/issues/{number}",
            "title": _words(random, 7).capitalize(),
            "body": f"{_words(random, 30)}.\n\nSeen in v2.{random.randint(0, 30)}.1 since {_words(random, 4)}.",
            "labels": [{"name": label, "color": _hex(random, 6)} for label in ("bug", "help wanted")],
            "created_at": _time(random),
            "head": _hex(random, 40),
        },
    }


def _order(random: Random) -> Made:
    return {
        "order_id": _uuid(random),
        "status": random.choice(("placed", "paid", "shipped")),
        "currency": random.choice(("EUR", "GBP", "USD")),
        "total": random.randint(100, 99_999) / 100,
        "placed_at": _time(random),
        "comment": f"{_words(random, 9)}, {_words(random, 5)}.",
        "lines": [
            {"sku": f"LMP-{random.randint(100, 999)}", "title": _words(random, 3), "quantity": random.randint(1, 9)}
            for _ in range(3)
        ],
    }


def _log(random: Random) -> Made:
    took, request = random.randint(1, 900), _hex(random, 8)
    return {
        "level": random.choice(("info", "warning")),
        "logger": "shop.orders",
        "at": _time(random),
        "message": f"request {request} to /orders/{random.randint(1, 9_999)} took {took} ms, {_words(random, 4)}",
        "duration": took / 1_000,
        "worker": f"worker-{random.randint(1, 8)}",
    }


def _note(random: Random) -> str:
    name, last = random.choice(_NAMES), random.randint(100, 199)
    return (
        f"{_words(random, 6)}: write to {name}{random.randint(1, 99)}@example.com or call +1 (212) 555-0{last}, "
        f"from 192.0.2.{random.randint(1, 250)}; the password is hunter{last}! {_words(random, 6)}."
    )


def _private(notes: int) -> Callable[[Random], Made]:
    def make(random: Random) -> Made:
        return {
            "name": random.choice(_NAMES).replace(".", " ").title(),
            "email": f"{random.choice(_NAMES)}@example.com",
            "phone": f"+44 20 7946 0{random.randint(100, 999)}",
            "card": "4111 1111 1111 1111",
            "notes": [_note(random) for _ in range(notes)],
        }

    return make


@dataclass(frozen=True, slots=True)
class Sort:
    """One sort of payload: what it is, and what makes one by chance."""

    what: str
    make: Callable[[Random], Made]


SORTS: Mapping[str, Sort] = {
    "webhook": Sort("a webhook, nothing to hide", _webhook),
    "order": Sort("an order, nothing to hide", _order),
    "log": Sort("a log line, nothing to hide", _log),
    "private_1": Sort("much to hide, one note", _private(1)),
    "private_8": Sort("much to hide, 8 notes", _private(8)),
    "private_64": Sort("much to hide, 64 notes", _private(64)),
}


MOST = 400  # that are counted or timed of one series


def payloads(sort: str, count: int = MOST, series: int = 0) -> list[Made]:
    """Make so many payloads of a sort, the same ones in every process, and others in each series."""
    random = Random(f"{sort} {series}")
    return [json.loads(json.dumps(SORTS[sort].make(random))) for _ in range(count)]
