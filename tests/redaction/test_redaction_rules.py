"""Rules and their guards: what a text does not show, no rule finds, and what is skipped changes nothing."""

from __future__ import annotations

import gzip
import importlib
import json
import pkgutil
import re
import sys
import warnings
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aperion import Redactor, redaction
from aperion.redaction import kinds
from aperion.redaction.keys import Keys
from aperion.redaction.regexes import regex
from aperion.redaction.shapes import shape
from aperion.redaction.signs import is_foreign, signs
from aperion.redaction.table import Rule, rules
from aperion.redaction.text import TextRules
from aperion.redaction.tokens import ISSUERS
from tests.redaction.test_redaction_laws import ATTACKS, PIECES, TEXTS
from tests.webhooks import WEBHOOKS

CORPUS = WEBHOOKS.parent / "pii"
RULES = rules(Keys())
EXAMPLES = (
    *(kind.example.replace("\\n", "\n") for kind in kinds()),
    *(shape(notation).sample for issuer in ISSUERS for notation in issuer.notations),
    *PIECES,
    *(unit * 3 for unit in ATTACKS),
    "https://ada:hunter2@example.com/a",
    "https%3A%2F%2Fada:hunter2%40example.com/a",
    "ada%40example.com",
    "ada&#64;example.com",
    "ada\\u0040example.com",
    "dead.beef.cafe",
    "CF-AE-BD-CE-AB-DE",
    "call 0171 234 5678",
    "(212) 555-0187",
    "12345678Z",
    "AB123456C",
    "use AKIAIOSFODNNEXAMPLEX now",
    "got token_7Kd3Qa9Zx2Mf5Wb8Zr4TbV7n back",
    "wJalrXUtnF/MI1K7MDENG3bP/RfiCYEXAMPL/K1Y",
    "<password>hunter2</password>",
    '<a name="password" value="hunter2"/>',
    '("password", "hunter2!")',
    "run --password hunter2",
    "curl -u ada:hunter2 x",
    "name: DB_PASSWORD\nvalue: hunter2",
    "CREATE USER ada IDENTIFIED BY 'hunter2'",
    "password%3Dhunter2",
    "&quot;password&quot;:&quot;hunter2&quot;",
    "password=hunter2",
    "sqlplus scott/tiger1@orcl",
    "the password is hunter2!",
    "Bearer 7Kd3Qa9Zx2Mf5Wb8",
)


def named(rule: Rule) -> str:
    return getattr(rule.hide, "func", rule.hide).__name__  # type: ignore[attr-defined]


def overlooked(rule: Rule, texts: Any) -> list[str]:
    """Return the texts that a rule changes although its guard says that there is nothing for it."""
    unseen = (text for text in texts if not is_foreign(text) and not rule.may_find(signs(text)))
    return [text for text in unseen if rule.hide(text, lambda _kind, _value: "\ue000") != text]


@cache
def patterns() -> tuple[re.Pattern[str], ...]:
    """Return every pattern of the redactor."""
    modules = [
        importlib.import_module(f"aperion.redaction.{name}") for _, name, _ in pkgutil.iter_modules(redaction.__path__)
    ]
    return tuple(
        re.compile(value.pattern, value.flags)
        for module in modules
        for value in vars(module).values()
        if type(value) is type(regex("a"))
    )


@cache
def recorded() -> tuple[str, ...]:
    """Return the texts of both corpora: what others test such tools with, and what webhooks hold."""
    if not WEBHOOKS.exists() or not CORPUS.exists():
        return ()
    texts = [
        json.loads(line)["text"]
        for path in sorted(CORPUS.glob("*.gz"))
        for line in gzip.open(path, "rt", encoding="utf-8")
    ]
    hooks = [json.loads(line) for line in gzip.open(WEBHOOKS, "rt", encoding="utf-8")]
    return (*texts, *dict.fromkeys(text for hook in hooks for text in strings(hook)))


def strings(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


needs_corpora = pytest.mark.skipif(not recorded(), reason=f"the corpora are not here: {CORPUS}, {WEBHOOKS}")


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_a_rule_finds_nothing_in_an_example_without_its_signs(rule: Rule) -> None:
    assert overlooked(rule, EXAMPLES) == []


@needs_corpora
@pytest.mark.parametrize("rule", RULES, ids=named)
def test_a_rule_finds_nothing_in_a_recorded_text_without_its_signs(rule: Rule) -> None:
    assert overlooked(rule, recorded()) == []


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_a_wrong_guard_is_noticed(rule: Rule) -> None:
    """The examples have something for every rule, so that no guard is trusted without a test."""
    blind = rule._replace(needs=(frozenset({ord("\0")}),))

    assert overlooked(blind, EXAMPLES)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_rule_finds_nothing_in_what_a_pattern_matches_without_its_signs(data: Any) -> None:
    """Whatever any pattern of the redactor matches, alone and among other texts."""
    pattern = data.draw(st.sampled_from(patterns()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generator's own parser does not know possessive repeats
        text = data.draw(TEXTS) + data.draw(st.from_regex(pattern)) + data.draw(TEXTS)

    assert {named(rule): overlooked(rule, [text]) for rule in RULES if overlooked(rule, [text])} == {}


# Rules that are skipped change nothing


def redactors() -> tuple[Redactor, ...]:
    return (Redactor(), Redactor(patterns={"BADGE": r"\bB-\d{3,6}\b"}, redact_keys={"title"}))


def in_full(monkeypatch: pytest.MonkeyPatch, redactor: Redactor, texts: Any) -> list[tuple[str, Counter[str]]]:
    """Redact with every rule on every text, and without remembering any."""
    with monkeypatch.context() as patch:
        patch.setattr(TextRules, "_plan", lambda self, shown: tuple(rule.hide for rule in self._rules))
        patch.setattr(TextRules, "_remembered", lambda self, text: text)
        return [shown(redactor, text) for text in texts]


def shown(redactor: Redactor, text: str) -> tuple[str, Counter[str]]:
    report: Counter[str] = Counter()
    return redactor.redact_text(text, report), report


@pytest.mark.parametrize("installed", [True, False], ids=["re2", "no re2"])
@needs_corpora
def test_skipping_rules_changes_nothing_in_the_corpora(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time, and when a text comes again."""
    if not installed:
        monkeypatch.setitem(sys.modules, "re2", None)
    texts = recorded()
    for made, again in zip(redactors(), redactors(), strict=True):
        full = in_full(monkeypatch, again, texts)

        assert [shown(made, text) for text in texts] == full
        assert [shown(made, text) for text in texts] == full


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.one_of(TEXTS, st.lists(st.sampled_from(EXAMPLES), max_size=5).map(" ".join)))
def test_skipping_rules_changes_nothing_in_any_text(text: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for redactor in redactors():
            full = in_full(monkeypatch, redactor, [text])

            assert [shown(redactor, text)] == full
            assert [shown(redactor, text)] == full


# What guards and memory must not let through


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("use AKIAIOSFODNNEXAMPLEX now", "use [REDACTED_AWS_KEY] now"),
        ("wJalrXUtnF/MI1K7MDENG3/PRfiCYEXAMP/LK1Ya", "[REDACTED_AWS_SECRET]"),
        ("sent eyJhbGciOjB9.eyJhIjoxfQ.abc", "sent [REDACTED_JWT]"),
    ],
)
def test_a_secret_without_digits_or_in_short_pieces_is_found(text: str, clean: str) -> None:
    """It looked like prose to the guards."""
    assert Redactor().redact_text(text) == clean


def test_a_text_with_a_hash_of_its_own_is_not_taken_for_one_seen_before() -> None:
    class Sly(str):
        __slots__ = ()

        def __hash__(self) -> int:
            return hash("nothing to hide")

    redactor = Redactor()
    redactor.redact_text("nothing to hide")

    assert redactor.redact_text(Sly("ada@example.com")) == "[REDACTED_EMAIL]"
    assert redactor.redact([Sly("ada@example.com")]) == ["[REDACTED_EMAIL]"]


def test_what_is_remembered_of_texts_is_their_hash_and_bounded() -> None:
    redactor = Redactor()

    redactor.redact([f"item {number}, and no more" for number in range(10_000)])

    remembered = redactor._rules.clean
    assert remembered
    assert len(remembered) <= 4_096
    assert all(type(entry) is int for entry in remembered)


def test_two_names_that_are_written_alike_keep_both_entries_every_time() -> None:
    redactor, payload = Redactor(), {"ada@example.com": 1, "bob@example.com": 2}

    copies = [redactor.redact(payload) for _ in range(3)]

    assert copies == [{"[REDACTED_EMAIL]": 1, "[REDACTED_EMAIL] #1": 2}] * 3
