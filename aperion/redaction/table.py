"""Every rule for texts, in the order in which they run, each with the signs without which it finds nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from aperion.redaction.addresses import (
    hide_coins,
    hide_emails,
    hide_encoded_emails,
    hide_ibans,
    hide_ipv4,
    hide_ipv6,
    hide_macs,
)
from aperion.redaction.assignments import hide_assigned
from aperion.redaction.credentials import hide_aws_secrets, hide_credentials, hide_generic_keys, hide_schemes
from aperion.redaction.identities import hide_identities, hide_passwords, hide_shaped
from aperion.redaction.keyfiles import hide_private_keys
from aperion.redaction.marks import Hide
from aperion.redaction.notations import (
    hide_html_escaped,
    hide_in_entries,
    hide_in_flags,
    hide_in_markup,
    hide_in_oracle,
    hide_in_pairs,
    hide_in_sql,
    hide_url_encoded,
)
from aperion.redaction.numbers import hide_international, hide_numbers
from aperion.redaction.signs import CODED, DIGIT, LONG, PASSWORD, SCHEME, needed
from aperion.redaction.tokens import hide_tokens
from aperion.redaction.urls import hide_signatures, hide_url_passwords, hide_webhooks

if TYPE_CHECKING:
    from aperion.redaction.keys import Keys

HideIn = Callable[[str, Hide], str]
"""Takes a text and what hides a value, and returns the text without the values that a rule finds."""


class Rule(NamedTuple):
    """What finds values of one sort, and the signs without which it cannot: one of each group."""

    needs: tuple[frozenset[int], ...]
    hide: HideIn

    def may_find(self, signs: frozenset[int]) -> bool:
        """Tell whether a text with such signs has to be looked at."""
        return not any(group.isdisjoint(signs) for group in self.needs)


def _rule(hide: HideIn, *needs: str) -> Rule:
    return Rule(needed(needs), hide)


def rules(keys: Keys) -> tuple[Rule, ...]:
    """Return all rules, in an order in which none destroys what another needs to see."""
    return (
        _rule(hide_private_keys, "-"),
        _rule(hide_url_passwords, "/%", "@%"),
        _rule(hide_in_oracle, "/", "@"),
        _rule(hide_signatures, "/%", "="),
        _rule(hide_webhooks, "/"),
        _rule(hide_tokens, LONG),
        _rule(hide_credentials, LONG),
        _rule(hide_generic_keys, LONG, DIGIT),
        _rule(hide_aws_secrets, LONG, "/+"),
        _rule(hide_coins, CODED),
        _rule(hide_emails, "@"),
        _rule(hide_encoded_emails, "%&\\"),
        _rule(hide_macs, ":-."),
        _rule(hide_ipv6, ":"),
        _rule(hide_ipv4, ".", DIGIT),
        _rule(hide_ibans, DIGIT),
        _rule(hide_identities, DIGIT),
        _rule(hide_shaped, DIGIT),
        _rule(hide_international, "+", DIGIT),
        _rule(hide_numbers, DIGIT),
        _rule(partial(hide_in_markup, keys=keys), "<"),
        _rule(partial(hide_in_pairs, keys=keys), "([", "\"'"),
        _rule(partial(hide_in_flags, keys=keys), "-"),
        _rule(partial(hide_in_entries, keys=keys), ":="),
        _rule(hide_in_sql, "\"'"),
        _rule(partial(hide_url_encoded, keys=keys), "%"),
        _rule(partial(hide_html_escaped, keys=keys), "&"),
        _rule(hide_passwords, PASSWORD),
        _rule(partial(hide_assigned, keys=keys), ":="),
        _rule(hide_schemes, SCHEME),
    )
