"""Hide what is secret or personal in one text: each rule in its turn, each behind a test that costs little."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aperion.redaction.markers import CUT, DROPPED
from aperion.redaction.marks import Hide, Marks
from aperion.redaction.regexes import regex
from aperion.redaction.signs import all_signs, is_foreign, signs
from aperion.redaction.table import rules
from aperion.redaction.views import as_written, is_odd, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aperion.redaction.keys import Keys
    from aperion.redaction.modes import Modes
    from aperion.redaction.table import HideIn

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
_PRIVATE = regex("[\ue000-\uf8ff]")
_VERSION = regex(r"[vV]?\d{1,6}(?:\.\d{1,6}){1,4}(?:[\-+~][\w.+~\-]{0,64})?")
_MOST_ROUNDS = 5
_REMEMBERED = 4096
_GOES_ON = regex(r"[ ]\d")
_GROUPS = regex(r"(?<!\d)\d{1,6}(?:[ ]\d{1,6}){0,5}\Z")
_LONGEST_NUMBER = 32
_LONGEST_TAIL = 1024
_GROWTH = 6
"""How many times as long a text can get: ``pw=1`` becomes ``pw=[REDACTED]``."""


class TextRules:
    """Everything that is done to one text, in time linear in it."""

    # Mutable: clean and _plans grow to their bounds and are then emptied.
    __slots__ = ("_custom", "_max", "_modes", "_plans", "_rules", "_shown", "clean")

    def __init__(
        self,
        keys: Keys,
        max_text: int,
        modes: Modes,
        custom: Iterable[tuple[str, Any]] = (),
        shown: frozenset[str] = frozenset(),
    ) -> None:
        self._rules = rules(keys)
        self._plans: dict[frozenset[int], tuple[HideIn, ...]] = {}
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
        if not self._custom and _HARMLESS.fullmatch(text) is not None:
            return self._remembered(text)
        return self._cut(text, found) if text.endswith(CUT) else self._looked_at(text, found)

    def _looked_at(self, text: str, found: list[str]) -> str:
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
        text = self._as_written(text, marks) if is_odd(text) else self._settled(text, marks.hide)
        if self._modes.may_drop and self._modes.drops(marks.kind(text) or ""):
            found.append(marks.kind(text) or "")
            return DROPPED
        return marks.restored(text, found)

    def _as_written(self, text: str, marks: Marks) -> str:
        """Hide what rules find in the plain view of a text; all else stays as it is written."""
        for kind, pattern in self._custom:  # a pattern of the user may mean such characters
            text = pattern.sub(lambda match, kind=kind: marks.hide(kind, match.group(0)), text)
        marks.lengths = {}
        view = plain(text)
        clean = self._settled(view, marks.hide)
        if clean == view:
            return text
        written = as_written(text, clean, marks.lengths)
        return clean if written is None or marks.is_full else written

    def _settled(self, text: str, hide: Hide) -> str:
        """Apply the rules until they change nothing more: what was hidden may free what stood beside it."""
        foreign = is_foreign(text)
        for _ in range(_MOST_ROUNDS):
            clean = text
            for kind, pattern in self._custom:
                clean = pattern.sub(lambda match, kind=kind: hide(kind, match.group(0)), clean)
            for hide_in in self._plan(all_signs() if foreign else signs(clean)):
                clean = hide_in(clean, hide)
            if clean == text or len(clean) == 1:
                return clean
            text = clean
        return text

    def _plan(self, shown: frozenset[int]) -> tuple[HideIn, ...]:
        """Return the rules that may find something in a text with such signs."""
        plan = self._plans.get(shown)
        if plan is None:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            plan = self._plans[shown] = tuple(rule.hide for rule in self._rules if rule.may_find(shown))
        return plan

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
        head = head[: len(head) - len(tail) + kept]
        if _GOES_ON.match(text, len(head)) is None:
            return head
        number = _GROUPS.search(head, max(0, len(head) - _LONGEST_NUMBER))
        return head if number is None else head[: number.start()]
