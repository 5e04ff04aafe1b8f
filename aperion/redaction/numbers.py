"""Find cards, phone numbers and social security numbers by their layouts, lengths and check digits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aperion.redaction.checks import is_card
from aperion.redaction.regexes import regex, replaced

if TYPE_CHECKING:
    from aperion.redaction.marks import Hide

# How many digits follow each country code: ITU-T E.164, its list of assigned codes of 2016, and the
# numbering plans as gathered in the metadata of Google's libphonenumber 9.
_NATIONAL_LENGTHS: Final = {
    code: tuple(map(int, lengths.split("-")))
    for lengths, codes in (
        entry.split(":")
        for entry in [
            "4-5:290",
            "4-7:683,690",
            "4-11:352",
            "4-12:598",
            "5-5:500,682",
            "5-6:247",
            "5-7:676,677,678,688",
            "5-8:47,386,686",
            "5-10:27,64,98,685",
            "5-11:31,852",
            "5-12:61,358,971",
            "5-13:43,49,82",
            "6-6:298,299,672,687",
            "6-7:597",
            "6-9:40,252,355,376,421,508,681,689",
            "6-10:48,53,95,880",
            "6-11:375,595",
            "6-12:39,46,359,381",
            "6-13:63",
            "7-7:238,239,246,248,269,291,297,592,673,674,680,691,692",
            "7-8:241,599,670,675,853,961,965,975",
            "7-9:220,231,245,265,354,385,423,967,968",
            "7-10:44,84,230,243,254,263,267,353,372,960",
            "7-11:501,503,507,679,886,974",
            "7-12:86,882,972",
            "7-13:62,90",
            "8-8:45,216,222,223,226,227,228,232,235,236,253,257,266,350,356,357,370,371,373,374,389,505,509,800,808,973,993",
            "8-9:32,36,51,213,224,233,237,250,258,264,268,377,382,387,591,962,963",
            "8-10:20,60,378,506,850,855,856,964,970,976",
            "8-11:55,57,65,502,504,593,977",
            "8-12:92,383,883",
            "8-13:66,81,91",
            "9-9:33,34,93,94,211,212,218,221,240,242,244,249,251,255,256,260,261,262,351,590,594,596,979,992,994,995,998",
            "9-10:380,881,966,996",
            "9-11:56",
            "9-12:41,420,870",
            "10-10:1,7,52,58,225,229",
            "10-11:54",
            "10-12:30,234",
            "11-11:888",
            "12-12:878",
        ]
    )
    for code in codes.split(",")
}
_MOST_CODE_DIGITS: Final = 3
_FEWEST: Final = 8
"""Digits of a written-out number, the code included, unless its country has shorter ones only."""
_TRUNK_ZERO = regex(r"\(0\)")

_USUAL, _WRITTEN_OUT = 16, 19
_FOUR_BEFORE = regex(r"(?:\A|[ ])[0-9A-Fa-f]{4}[ ]\Z")
_FOUR_AFTER = regex(r"[ ][0-9A-F]{4,5}(?![\w\-/])")

_DIGIT = regex(r"\d")
_NOT_DIGITS = regex(r"\D+")
_NINE = regex(r"\d(?:[ .\-/()]{0,3}\d){8}")  # no card, SSN or NANP number has fewer digits
_PLUS = regex(r"\+(?<![\w+)\]].)(?=\(?\d)")
_INTERNATIONAL = regex(r"\+(?:\(?\d{1,5}\)?(?:[ .\-/]{1,3}|[ ]?\(0\)[ ]?)?){1,10}")
# In these, the first character comes before what may stand before it: so re passes over all others in one step.
_CARD = regex(
    r"""\d(?<![\w.+\-].)
    (?:\d{3}(?P<four>[ .\-/]|[ ]-[ ])\d{4}(?P=four)\d{4}(?P=four)(?:\d{4}(?:(?P=four)\d{3})?|\d{1,3})
      |\d{3}(?P<amex>[ .\-])\d{6}(?P=amex)\d{4,5}
      |\d{5}[ \-]\d{10,13}
      |\d{12,18})
    (?![\w\-])(?!\.\d)""",
    re.VERBOSE,
)
_NANP = regex(  # the North American Numbering Plan, as it is written
    r"""(?:(?<![\w.+\-/(])|(?<=[A-Za-z])(?=\())(?<!\d[ ])
    (?:(?:\+|00)?1[ .\-]{1,2})?
    (?:\(\d{3}\)[ .\-]{0,2}\d{3}[ .\-]\d{4}
      |\d{3}-\d{3}-\d{4}
      |\d{3}[.]\d{3}[.]\d{4}
      |\d{3}/\d{3}-\d{4}
      |[2-9]\d{2}[ ][2-9]\d{2}[ \-]\d{4}
      |[2-9]\d{2}[\-.][2-9]\d{6}
      |\d{10}(?=[ ,]{1,2}(?i:ext|x)[ .]{0,2}\d))
    (?:(?=x\d)|(?![\w\-]))(?!\.\d)""",
    re.VERBOSE,
)
_NANP_START = regex(  # nine digits more follow the first, which may stand behind a sign
    r"[+(\d](?:(?<![\w.+\-/(].)|(?<=[A-Za-z]\())(?<!\d[ ].)(?=(?:[ .\-/()]{0,3}\d){9})"
)
_ENDED = regex(r"(?=x\d)|(?![^\W_])")  # an extension may follow
_SSN = regex(r"\d(?<![\w.\-].)(?<!9)\d{2}(?<!000)(?<!666)-(?!00)\d{2}-(?!0000)\d{4}(?![\w\-])(?!\.\d)")


def hide_numbers(text: str, hide: Hide) -> str:
    """Return a text with its cards, social security numbers and telephone numbers of North America hidden."""
    if _NINE.search(text) is None:
        return text
    text = _CARD.sub(lambda found: _card(found, hide), text)
    text = _SSN.sub(lambda found: hide("SSN", found[0]), text)
    return replaced(text, _NANP_START, _NANP, lambda found: hide("PHONE", found[0]))


def _card(found: re.Match[str], hide: Hide) -> str:
    written = found[0]
    number = written if written.isdigit() else _NOT_DIGITS.sub("", written)
    if not number.isascii() or (found["four"] == " " and _is_in_table(found)):
        return written
    if is_card(number):
        return hide("CC", written)
    if found["four"] and len(number) > _USUAL and is_card(number[:_USUAL]):  # the three digits of the back follow
        return hide("CC", written[:_WRITTEN_OUT]) + written[_WRITTEN_OUT:]
    return written


def _is_in_table(found: re.Match[str]) -> bool:
    """Tell whether groups of four go on to the left or to the right, as in a dump or a table."""
    text, start, end = found.string, found.start(), found.end()
    return _FOUR_BEFORE.search(text, max(0, start - 6), start) is not None or _FOUR_AFTER.match(text, end) is not None


def hide_international(text: str, hide: Hide) -> str:
    """Return a text with the telephone numbers hidden that begin with a plus."""
    pieces: list[str] = []
    at, start = 0, _plus(text, 0)
    while start >= 0:
        found = _INTERNATIONAL.match(text, start)
        end = _number_end(text, found) if found is not None else 0
        if end:
            pieces += text[at:start], hide("PHONE", text[start:end])
            at = end
        # Another may begin right behind one that is hidden now, and else not inside a word.
        start = end if end and text.startswith("+", end) else _plus(text, end or start + 1)
    return "".join([*pieces, text[at:]]) if pieces else text


def _plus(text: str, position: int) -> int:
    """Return where the next plus is that a number may begin with; -1 if nowhere."""
    plus = _PLUS.search(text, position)
    return plus.start() if plus is not None else -1


def _number_end(text: str, found: re.Match[str]) -> int:
    """Return where the longest valid number that a match begins with ends: words may follow it as digits."""
    start, end = found.start(), found.end()
    while end > start:
        written = text[start:end].rstrip(" .-/(")
        end = start + len(written)
        if _is_international(written) and _ENDED.match(text, end) is not None:
            return end
        # Give back the last group and try again; there are at most ten.
        cut = max(written.rfind(sep) for sep in " .-/(")
        end = start + cut if cut > 0 else start
    return 0


def _is_international(written: str) -> bool:
    digits = _NOT_DIGITS.sub("", _TRUNK_ZERO.sub("", written))
    if written.count("(") != written.count(")"):
        return False
    for size in range(1, _MOST_CODE_DIGITS + 1):
        lengths = _NATIONAL_LENGTHS.get(digits[:size])
        if lengths is not None:
            return max(lengths[0], min(lengths[1], _FEWEST - size)) <= len(digits) - size <= lengths[1]
    return False
