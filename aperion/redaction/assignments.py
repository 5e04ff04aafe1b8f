"""Find the values that a text gives to sensitive names, such as ``password=hunter2``, in time linear in it.

The search goes from one separator to the next. A name is a run of word characters that is read once,
from its start and without backtracking; what follows is measured by a scanner that only moves forward.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aperion.redaction.keys import flattened
from aperion.redaction.markers import REDACTED

if TYPE_CHECKING:
    from aperion.redaction.keys import Keys

_NAMED = re.compile(
    r"""(?<![\w.\-])
    (?P<name>[\w.\-]++)
    (?P<slashes>\\*+)(?P<quote>["'`]?)[)\]]?
    [ \t]{0,8}(?P<sign>=>|[:?]=|={1,3}|:(?!:|//))          # neither a::b nor http://
    (?:\s{0,64}+(?=[bBrRuUfF]{0,2}\\{0,8}["'`])|[ \t]{0,64}+)""",
    re.VERBOSE,
)
_SIGN = re.compile("[:=]")
_WORDS_BEFORE = re.compile(r"(?:(?<![\w.\-])[\w.\-]{1,24}[ ]){1,2}\Z")  # 'social security ' of a number
_OPENING = re.compile(r"""[bBrRuUfF]{0,2}(?P<slashes>\\{0,8})(?P<quote>\"{3}|'{3}|["'`])""")
_MARKER: Final = r"\[REDACTED[A-Z0-9_]{0,48}\]"
_AT_MARKER = re.compile(_MARKER)
_NOTHING = re.compile(r"(?:None|null|nil|undefined)(?![^\s,;&)\]}\"'`<\\])")
_PLAIN = re.compile(
    rf"""(?:(?i:bearer|basic|token|digest|apikey|negotiate|ntlm|jwt|oauth)[ \t]{{1,8}}+)?
    (?:{_MARKER}
      |[^\s,;&)\]}}"'`><\\]
      |[,;&](?!\s|\Z|["']|[\w.\-]{{1,64}}["']?\s?[=:])     # inside a value, not before the next name
      |[)\]}}"'`>](?!\s|\Z|[)\]}}"'`>,;:.]|\\["'n])        # inside a value, not at the end of it
      |<(?!/)
      |\\++(?!["'`])
    )*+""",
    re.VERBOSE,
)
_ANNOTATED = re.compile(  # the rest of 'password: str | None = "…"'
    r"\]{0,4}(?:[ ]\|[ ][\w.\[\]]{1,64}){0,4}[ \t]{0,8}=(?!=)[ \t]{0,8}"
)
_STRUCTURE = re.compile(r"""[\[({\])}]|\\{0,8}["'`]""")
_LINE_END = re.compile(r"[\r\n]|\Z")

_INPUT_OF_PYDANTIC = "input_value"
_LONGEST_PHRASE = 50
_WHOLE_LINES: Final = ("authorization", "cookie", "passphrase", "mnemonic", "phrase")
"""The ends of names whose values have several words when they are not quoted."""


def hide_assigned(text: str, keys: Keys) -> str:
    """Return a text with the value of each sensitive name replaced."""
    pieces: list[str] = []
    at = position = 0
    # A look for the sign comes first: most of a text has none.
    while _SIGN.search(text, position) and (named := _NAMED.search(text, position)) is not None:
        position = named.end()
        if _is_sensitive(named, keys):
            start, end, value = _found(text, named)
            pieces += text[at:start], value
            at = position = max(end, position)
    return "".join([*pieces, text[at:]]) if pieces else text


def _is_sensitive(named: re.Match[str], keys: Keys) -> bool:
    name = named["name"]
    if not keys.may_hide(name):
        return False
    if keys.hides(_phrase(named)) or name == _INPUT_OF_PYDANTIC:
        return True
    if (named["sign"] != ":" or named["quote"]) and keys.hides(name):
        return True
    # The run after a written-out line break, '\npin=1', has its letter in front.
    return _before(named) == "\\" and name[0] in "nrt" and keys.hides(name[1:])


def _phrase(named: re.Match[str]) -> str:
    """Return a name with up to two words before it, as in 'credit card number: '."""
    if _before(named) != " ":
        return named["name"]
    start = named.start()
    words = _WORDS_BEFORE.search(named.string, max(0, start - _LONGEST_PHRASE), start)
    return named["name"] if words is None else words[0] + named["name"]


def _before(named: re.Match[str]) -> str:
    return named.string[named.start() - 1 : named.start()]


def _found(text: str, named: re.Match[str]) -> tuple[int, int, str]:
    """Return where a value starts and ends, and what to write there."""
    at = named.end()
    opening = _OPENING.match(text, at)
    if opening is not None:
        end = _quoted_end(text, opening)
        return opening.end(), end, REDACTED if end > opening.end() else ""
    end = _bare_end(text, at, named)
    if end == at:
        return at, at, ""
    if named["quote"] and named["sign"] == ":":  # JSON stays JSON
        mark = named["slashes"] + named["quote"]
        return at, end, f"{mark}{REDACTED}{mark}"
    return at, end, REDACTED


def _quoted_end(text: str, opening: re.Match[str]) -> int:
    start, quote = opening.end(), opening["quote"]
    if len(quote) > 1:
        end = text.find(quote, start)
        return end if end >= 0 else len(text)
    end = _closing(text, start, quote, len(opening["slashes"]), len(text))
    return end if end >= 0 else _line_end(text, start)


def _closing(text: str, start: int, quote: str, depth: int, limit: int) -> int:
    """Return where the closing quote begins, its backslashes included, or -1.

    Text in JSON in JSON has quotes behind one backslash; what lies deeper does not close it.
    """
    at = text.find(quote, start, limit)
    while at >= 0:
        slashes = 0
        while at - slashes > start and text[at - slashes - 1] == "\\":
            slashes += 1
        if depth and slashes <= depth:
            return at - slashes
        if not depth and slashes % 2 == 0:
            return at
        at = text.find(quote, at + 1, limit)
    return -1


def _bare_end(text: str, at: int, named: re.Match[str]) -> int:
    if _NOTHING.match(text, at):
        return at
    if text[at : at + 1] in ("[", "{", "(") and not _AT_MARKER.match(text, at):
        # Prose leaves a parenthesis open; it ends with the line.
        at = _bracket_end(text, at, len(text) if text[at] != "(" else _line_end(text, at))
    elif named["sign"] == ":" and not named["quote"] and flattened(named["name"]).endswith(_WHOLE_LINES):
        return _rest_of_line(text, at, _before(named))
    end = _plain_end(text, at)
    annotated = _ANNOTATED.match(text, end) if named["sign"] == ":" else None
    if annotated is None:
        return end
    opening = _OPENING.match(text, annotated.end())
    if opening is None:
        return _plain_end(text, annotated.end())
    end = _quoted_end(text, opening)
    return end + len(opening["quote"]) if text.startswith(opening["quote"], end) else end


def _plain_end(text: str, at: int) -> int:
    plain = _PLAIN.match(text, at)
    return at if plain is None else plain.end()


def _rest_of_line(text: str, at: int, before: str) -> int:
    end = _line_end(text, at)
    if before and before in "\"'`":
        quote = text.find(before, at, end)
        end = quote if quote >= 0 else end
    return at + len(text[at:end].rstrip("\\ \t"))


def _line_end(text: str, at: int) -> int:
    end = _LINE_END.search(text, at)
    return len(text) if end is None else end.start()


def _bracket_end(text: str, start: int, limit: int) -> int:
    """Return the end of what is in brackets, or the limit when they do not close before it."""
    depth, at = 0, start
    while (mark := _STRUCTURE.search(text, at, limit)) is not None:
        at = mark.end()
        if mark[0] in "[({":
            depth += 1
        elif mark[0] in "])}":
            depth -= 1
            if depth == 0:
                return at
        else:
            closing = _closing(text, at, mark[0][-1], len(mark[0]) - 1, limit)
            at = at if closing < 0 else closing + len(mark[0])
    return limit
