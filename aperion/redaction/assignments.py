"""Find the values that a text gives to sensitive names, such as ``password=hunter2``, in time linear in it.

The search goes from one separator to the next. A name is a run of word characters that is read once,
from its start and without backtracking; what follows is measured by a scanner that only moves forward.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aperion.redaction.expressions import is_expression, is_placeholder
from aperion.redaction.keys import flattened
from aperion.redaction.marks import FIRST, LAST
from aperion.redaction.notations import hide_cookies
from aperion.redaction.regexes import regex
from aperion.redaction.vendors import may_hold_key, random_end

if TYPE_CHECKING:
    from aperion.redaction.keys import Keys
    from aperion.redaction.marks import Hide

_NAMED = regex(
    r"""(?<![\w.\-])
    (?P<name>[\w.\-]++)
    (?P<slashes>\\*+)(?P<quote>["'`]?)[)\]]?
    [ \t]{0,8}(?P<sign>=>|:{1,3}=|[?.+|]=|={1,3}|\|\|:|:(?!:|//))   # neither a::b nor http://
    (?:\s{0,64}+(?=[bBrRuUfF]{0,2}\\{0,8}["'`])|[ \t]{0,64}+)""",
    re.VERBOSE,
)
_SIGN = regex("=|:(?!//)|%3")
_SCHEMES: Final = "bearer|basic|token|digest|apikey|api-key|api-token|negotiate|ntlm|jwt|oauth|aws4-hmac-sha256|hmac|hawk|mac|key|dpop"
_PARAMETERS = regex(r"(?:digest|hawk|oauth|mac|hmac[\w\-]*|aws4-hmac-sha256|signature)[ \t]", re.IGNORECASE)
_SCHEME = regex(rf"(?:(?:{_SCHEMES})[ \t]{{1,8}}+){{1,3}}(?=[^\s,;=])", re.IGNORECASE)
_ODD_SCHEME = regex(  # SSWS, GenieKey, SharedKey: any word, when what follows it is no other
    r"[A-Za-z][\w\-]{1,31}[ \t]{1,8}(?=[\w.+/=~:\-]{16})(?=[^\s\d]{0,64}\d)"
)
_ARN = regex(r"\barn:[\w\-]{1,16}:secretsmanager:[\w\-]{0,32}:[^\s:]{0,16}:\Z")
_LONGEST_ARN: Final = 100
_WORDS_BEFORE = regex(r"(?:(?<![\w.\-])[\w.\-]{1,24}[ ]){1,2}\Z")  # 'social security ' of a number
_OPENING = regex(r"""[bBrRuUfF]{0,2}(?P<slashes>\\{0,8})(?P<quote>\"{3}|'{3}|["'`])""")
_NOTHING = regex(
    r"(?:None|null|nil|undefined|\[[ ]?\]|\{[ ]?\}|\([ ]?\)|[\[{(](?=\s*[\ue000-\uf8ff]?\Z))(?![^\s,;&)\]}\"'`<\\])"
)
_RULE = regex(  # how pydantic says what is wrong with a field; it quotes no value there
    r"Field required|(?:value|assertion) error(?=[;,.]|\Z)|Extra inputs are not permitted"
    r"|(?:Input|String|List|Tuple|Set|Dictionary|Data|Value|Decimal|Bytes|URL|UUID|Date|Datetime|Time|Object) should "
)
_PLAIN = regex(
    r"""(?:[^\s,;&)\]}"'`><\\]
      |[,;&](?!\s|\Z|["']|[\w.\-]{1,64}["']?\s?[=:])     # inside a value, not before the next name
      |[)\]}"'`>](?!\s|\Z|[)\]}"'`>,;:.]|\\["'n])        # inside a value, not at the end of it
      |<(?!/)
      |\\++(?!["'`])
    )*+""",
    re.VERBOSE,
)
_ANNOTATED = regex(  # the rest of 'password: str | None = "…"'
    r"\]{0,4}(?:[ ]\|[ ][\w.\[\]]{1,64}){0,4}[ \t]{0,8}=(?!=)[ \t]{0,8}"
)
_DONE = regex(f"[{FIRST}-{LAST}][.!?:]*")
_WORDS = regex(r"[^\s:=\"'`{}\[\](),;<>\\]{1,64}(?:[ ][^\s:=\"'`{}\[\](),;<>\\]{1,64}){1,15}(?=\s*(?:\n|\Z))")
_DEEPEST_INDENT: Final = 64
_STRUCTURE = regex(r"""[\[({\])}]|\\{0,8}["'`]""")
_LINE_END = regex(r"[\r\n]|\Z")

_INPUT_OF_PYDANTIC = "input_value"
_OF_HTML: Final = "accesskey"  # the attribute: one letter for the keyboard
_LONGEST_PHRASE = 50
_COOKIES: Final = ("cookie", "cookies")
_AUTHORIZATION: Final = "authorization"
_WHOLE_LINES: Final = (*_COOKIES, "passphrase", "mnemonic", "phrase")
"""The ends of names whose values have several words when they are not quoted."""


def hide_assigned(text: str, hide: Hide, keys: Keys) -> str:
    """Return a text with the value of each sensitive name replaced."""
    pieces: list[str] = []
    at = position = 0
    # A look for the sign comes first: most of a text has none.
    while _SIGN.search(text, position) and (named := _NAMED.search(text, position)) is not None:
        position = named.end()
        if _is_in_arn(named):
            continue
        if _is_sensitive(named, keys):
            start, end = _found(text, named)
            if end > start and not (end == start + 1 and named["name"] == _OF_HTML):
                pieces += text[at:start], _hidden(text[start:end], named, hide)
                at = end
            position = max(end, position)
        elif (end := _random_end(text, named)) > position:
            pieces += text[at:position], hide("KEY", text[position:end])
            at = position = end
    return "".join([*pieces, text[at:]]) if pieces else text


def _random_end(text: str, named: re.Match[str]) -> int:
    """Return the end of a random value under the name of a service, as in 'plaid_client: 5f3a…', or 0."""
    end = random_end(text, named.end())
    return end if end and may_hold_key(named["name"]) else 0


def _hidden(value: str, named: re.Match[str], hide: Hide) -> str:
    if len(value) > 1 and _DONE.fullmatch(value) is not None:
        return value  # hidden by another rule; the rest ends a sentence
    scheme = _SCHEME.match(value)
    if scheme is not None:
        return scheme[0] + hide("KEY", value[scheme.end() :])
    if flattened(named["name"]).endswith(_COOKIES):
        return hide_cookies(value, hide)
    mark = named["slashes"] + named["quote"]
    if named["quote"] and named["sign"] == ":" and not _OPENING.match(named.string, named.end()):
        return f"{mark}{hide('KEY', value)}{mark}"  # JSON stays JSON
    return hide("KEY", value)


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


def _is_in_arn(named: re.Match[str]) -> bool:
    """Tell whether the name of a secret follows: arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop/db."""
    start = named.start()
    return (
        named["sign"] == _before(named) == ":"
        and _ARN.search(named.string, max(0, start - _LONGEST_ARN), start) is not None
    )


def _phrase(named: re.Match[str]) -> str:
    """Return a name with up to two words before it, as in 'credit card number: '."""
    if _before(named) != " ":
        return named["name"]
    start = named.start()
    words = _WORDS_BEFORE.search(named.string, max(0, start - _LONGEST_PHRASE), start)
    return named["name"] if words is None else words[0] + named["name"]


def _before(named: re.Match[str]) -> str:
    return named.string[named.start() - 1 : named.start()]


def _found(text: str, named: re.Match[str]) -> tuple[int, int]:
    """Return where a value starts and ends."""
    at = named.end()
    opening = _OPENING.match(text, at)
    if opening is not None:
        end = _quoted_end(text, opening)
        return opening.end(), opening.end() if is_placeholder(text[opening.end() : end]) else end
    return at, _bare_end(text, at, named)


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
    if (
        named["sign"].startswith("==")
        or _RULE.match(text, at)
        or _NOTHING.match(text, at)
        or is_expression(text, at, named["name"])
    ):
        return at
    if text[at : at + 1] in ("[", "{", "("):
        # Prose leaves a parenthesis open; it ends with the line.
        at = _bracket_end(text, at, len(text) if text[at] != "(" else _line_end(text, at))
    elif named["sign"] in ":=" and not named["quote"] and _takes_line(text, at, named):
        return _rest_of_line(text, at, _before(named))
    if named["sign"] == ":" and not named["quote"] and (words := _words_of_line(text, at, named)):
        return words
    scheme = _SCHEME.match(text, at)
    if scheme is None and flattened(named["name"]).endswith(_AUTHORIZATION):
        scheme = _ODD_SCHEME.match(text, at)
    end = _plain_end(text, at if scheme is None else scheme.end())
    annotated = _ANNOTATED.match(text, end) if named["sign"] == ":" else None
    if annotated is None:
        return end
    opening = _OPENING.match(text, annotated.end())
    if opening is None:
        return _plain_end(text, annotated.end())
    end = _quoted_end(text, opening)
    return end + len(opening["quote"]) if text.startswith(opening["quote"], end) else end


def _takes_line(text: str, at: int, named: re.Match[str]) -> bool:
    """Tell whether a value goes to the end of its line; that of ``Authorization: Bearer`` is one word."""
    name = flattened(named["name"])
    if name.endswith(_AUTHORIZATION):
        return _PARAMETERS.match(text, at) is not None
    return named["sign"] == ":" and name.endswith(_WHOLE_LINES)


def _plain_end(text: str, at: int) -> int:
    plain = _PLAIN.match(text, at)
    return at if plain is None else plain.end()


def _rest_of_line(text: str, at: int, before: str) -> int:
    end = _line_end(text, at)
    if before and before in "\"'`":
        quote = text.find(before, at, end)
        end = quote if quote >= 0 else end
    return at + len(text[at:end].rstrip("\\ \t"))


def _words_of_line(text: str, at: int, named: re.Match[str]) -> int:
    """Return the end of a line of YAML, 'password: correct horse battery staple', or 0 where it is none."""
    furthest = max(0, named.start() - _DEEPEST_INDENT)
    start = max(text.rfind("\n", furthest, named.start()) + 1, furthest)
    if text[start : named.start()].strip(" -") or (named["slashes"] and start):
        return 0
    line = _WORDS.match(text, at)
    return line.end() if line is not None else 0


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
