r"""Find private keys in the formats in which they are kept: PEM, PuTTY, and one line of either with ``\n``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aperion.redaction.regexes import regex

if TYPE_CHECKING:
    from aperion.redaction.marks import Hide

_BEGIN = regex(r"-{4,5} ?BEGIN (?P<what>[A-Za-z0-9 ]{0,40}?(?:PRIVATE KEY|Static key)[A-Z0-9 ]{0,20}) ?-{4,5}")
_END = regex(r"-{4,5} ?END ")
_PUTTY = regex(r"Private-Lines: {0,4}\d{1,4}(?=\s|\\)")
# The rest of a key that was cut off: headers, then lines in base64, the last of them short.
_BODY = regex(
    r"""(?:(?:[\s"'+,>|\#]|\\+[nrt"'])*+
        (?:[A-Z][\w\-]{2,20}:[ ](?:[^\r\n\\]|\\++["']){0,200}+(?=[\r\n\\])|[A-Za-z0-9+/=]{16,}+(?!\w)))*+
    (?:[ \t\r]*+(?:\n|\\+n)[\s>|+\#]{0,64}[A-Za-z0-9+/]{1,76}={0,2}(?=[ \t]*+(?:\Z|["'\\\r\n])))?""",
    re.VERBOSE,
)


def hide_private_keys(text: str, hide: Hide) -> str:
    """Return a text with the inside of its private keys hidden; the lines around it say what it was."""
    if "PRIVATE KEY" in text or "Static key" in text:
        text = _without_bodies(text, _BEGIN, hide)
    if "Private-Lines" in text:
        text = _without_bodies(text, _PUTTY, hide)
    return text


def _without_bodies(text: str, opening: re.Pattern[str], hide: Hide) -> str:
    pieces: list[str] = []
    at = 0
    while (begin := opening.search(text, at)) is not None:
        start = begin.end()
        end = _end(text, start, opening)
        body = text[start:end]
        core = body.strip("\\nrt \t\r\n\"'+,")
        pieces.append(text[at:start])
        if core:
            lead = body.index(core)
            pieces += body[:lead], hide("PRIVATE_KEY", core), body[lead + len(core) :]
        else:
            pieces.append(body)
        at = end
    return "".join([*pieces, text[at:]]) if pieces else text


def _end(text: str, start: int, opening: re.Pattern[str]) -> int:
    """Return where the body of a key ends: before its END line, or after the last line that looks like a key."""
    following = opening.search(text, start)
    limit = len(text) if following is None else following.start()
    closing = _END.search(text, start, limit) if opening is _BEGIN else None
    if closing is not None:
        return closing.start()
    body = _BODY.match(text, start, limit)
    return start if body is None else body.end()
