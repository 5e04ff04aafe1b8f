"""Hide what is secret or personal in one text: each rule in its turn, each behind a test that costs little."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aperion.redaction.addresses import hide_coins, hide_emails, hide_ibans, hide_machines
from aperion.redaction.assignments import hide_assigned
from aperion.redaction.credentials import hide_credentials, hide_schemes
from aperion.redaction.identities import hide_identities, hide_passwords
from aperion.redaction.keyfiles import hide_private_keys
from aperion.redaction.markers import CUT, DROPPED
from aperion.redaction.marks import Hide, Marks
from aperion.redaction.notations import hide_noted
from aperion.redaction.numbers import hide_numbers
from aperion.redaction.regexes import regex
from aperion.redaction.tokens import hide_tokens
from aperion.redaction.urls import hide_in_urls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aperion.redaction.keys import Keys
    from aperion.redaction.modes import Modes

# Most texts in events: words, and the forms of ids, times and versions in which nothing can be hidden.
_HARMLESS = regex(
    r"""[A-Za-z]{1,19}+
      |(?=.{1,14}\Z)[A-Za-z_\-]*+\d{0,6}+[A-Za-z_\-]*+
      |\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+\-]\d\d:?\d\d)?)?
      |[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}
      |v?\d{1,6}(?:\.\d{1,6}){1,2}
      |[0-9a-f]{64}|[0-9a-f]{40}
      |[a-z]{2,6}://(?:[A-Za-z]{1,14}+(?![A-Za-z\d])[./_\-{}]{0,4}+|\d{1,10}+(?![A-Za-z\d.])[/_\-{}]{0,4}+)*+""",
    re.VERBOSE,
)
_PROSE = regex(
    r"[A-Za-z\u00c0-\u024f]{1,24}+(?:(?:[,.!?;)]?[ ][(]?|-(?=\w{3}))[A-Za-z\u00c0-\u024f]{1,24}+)*+[.!?)]{0,3}"
)
_PRIVATE = regex("[\ue000-\uf8ff]")
_VERSION = regex(r"[vV]?\d{1,6}(?:\.\d{1,6}){1,4}(?:[\-+~][\w.+~\-]{0,64})?")
_RUN = regex(r"[A-Za-z0-9_\-]{15}")
"""Every token has a run of so many characters, and few other words have: a look at them settles most texts."""
_DIGITS = regex(r"\d(?:[^\d]{0,2}\d){4}|\d \w+ \d{4}|(?:[a-z]|[A-Z])[ :=\"'#]{1,4}\d{3}")
"""Five digits close together, a date with a month in words, or three after a word: the numbers of people have no fewer."""
_MOST_ROUNDS = 5
_REMEMBERED = 4096
_LONGEST_TAIL = 1024
_GROWTH = 6
"""How many times as long a text can get: ``pw=1`` becomes ``pw=[REDACTED]``."""


class TextRules:
    """Everything that is done to one text, in time linear in it."""

    # Mutable: clean grows to its bound and is then emptied.
    __slots__ = ("_custom", "_keys", "_max", "_modes", "_shown", "clean")

    def __init__(
        self,
        keys: Keys,
        max_text: int,
        modes: Modes,
        custom: Iterable[tuple[str, Any]] = (),
        shown: frozenset[str] = frozenset(),
    ) -> None:
        self._keys = keys
        self._max = max_text
        self._modes = modes
        self._custom = tuple(custom)
        self._shown = shown
        # The hashes of texts in which nothing was found, since most texts of events come again. No text is kept. One
        # that is hidden would be shown if its hash were among them: at 64 bits that is one text in 2**52 by accident.
        # To bring it about on purpose, one must choose a clean text for a secret, and so know the secret; and Python's
        # hashes of texts, SipHash, have another key in every process.
        self.clean: set[int] = set()

    def redact(self, text: str, found: list[str]) -> str:
        """Return a text with what is secret in it hidden, cut where it is too long; note the types of what was."""
        if type(text) is str and hash(text) in self.clean:  # a class of its own may have a hash of its own
            return text
        if len(text) > self._max:
            return self._cut(text, found)
        if not self._custom:
            if _HARMLESS.fullmatch(text) is not None:
                return self._remembered(text)
            if _PROSE.fullmatch(text) is not None and not _tells(text.lower()):
                return self._remembered(text)
        if text.endswith(CUT):
            return self._cut(text, found)
        before = len(found)
        clean = self._clean(text, found)
        if clean == text and len(found) == before:
            return self._remembered(text)
        return clean if len(clean) <= self._max or clean is DROPPED else self._cut(clean, found)

    def _remembered(self, text: str) -> str:
        """Note that nothing is to be hidden in a text, and return it."""
        if type(text) is str:
            if len(self.clean) >= _REMEMBERED:
                self.clean.clear()
            self.clean.add(hash(text))
        return text

    def redact_version(self, text: str, found: list[str]) -> str:
        """Do the same for what stands under a name such as ``app_version``: 1.2.3.4 is no address there."""
        return text if _VERSION.fullmatch(text) is not None else self.redact(text, found)

    def _clean(self, text: str, found: list[str]) -> str:
        marks = Marks(self._modes.marker, self._shown)
        if "[REDACTED" in text or not (text.isascii() or _PRIVATE.search(text) is None):
            text = marks.protected(text, self._modes.known)
        text = self._settled(text, marks.hide)
        if self._modes.may_drop and self._modes.drops(marks.kind(text) or ""):
            found.append(marks.kind(text) or "")
            return DROPPED
        return marks.restored(text, found)

    def _settled(self, text: str, hide: Hide) -> str:
        """Apply the rules until they change nothing more: what was hidden may free what stood beside it."""
        for _ in range(_MOST_ROUNDS):
            clean = self._hidden(text, hide)
            if clean == text or len(clean) == 1:
                return clean
            text = clean
        return text

    def _hidden(self, text: str, hide: Hide) -> str:
        """Apply the rules in an order in which none destroys what another needs to see."""
        for kind, pattern in self._custom:
            text = pattern.sub(lambda match, kind=kind: hide(kind, match.group(0)), text)
        lowered = text.lower()
        if "--" in text or "private-lines" in lowered:
            text = hide_private_keys(text, hide)
        if "/" in text or "%" in text:
            text = hide_in_urls(text, lowered, hide)
        if _RUN.search(text) is not None:
            text = hide_coins(hide_credentials(hide_tokens(text, hide), hide), hide)
        text = hide_machines(hide_emails(text, hide), hide)
        if _DIGITS.search(text) is not None:
            text = hide_numbers(hide_identities(hide_ibans(text, hide), hide), hide)
        text = hide_noted(text, self._keys, hide)
        tells = _tells(lowered)
        if tells:
            text = hide_passwords(text, hide)
        if ":" in text or "=" in text:
            text = hide_assigned(text, self._keys, hide)
        return hide_schemes(text, hide) if tells else text

    def _cut(self, text: str, found: list[str]) -> str:
        # What was cut once may have grown, and is not cut again.
        if text.endswith(CUT) and len(text) <= _GROWTH * self._max + len(CUT):
            return self._clean(text.removesuffix(CUT), found) + CUT
        clean = self._clean(self._head(text), found)
        return (clean if len(clean) <= self._max else self._clean(self._head(clean), [])) + CUT

    def _head(self, text: str) -> str:
        """Return a beginning that ends between words: half a secret is not recognised."""
        head = text[: self._max]
        tail = head[-min(_LONGEST_TAIL, self._max) :]
        kept = max(tail.rfind(" "), tail.rfind("\n"), 0)
        return head[: len(head) - len(tail) + kept]


def _tells(lowered: str) -> bool:
    """Tell whether words alone may give something away: 'the password is …', 'Bearer …', '--token …'."""
    return ("pass" in lowered or "token" in lowered or "secret" in lowered or "key" in lowered) or (
        "pwd" in lowered or "bearer" in lowered or "basic" in lowered or " -" in lowered
    )
