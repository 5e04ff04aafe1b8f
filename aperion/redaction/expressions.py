"""Tell code, types and placeholders from values: ``token = read_token()`` gives nothing away."""

from __future__ import annotations

import re
from typing import Final

from aperion.redaction.regexes import regex

_OWNERS: Final = (
    r"self|this|cls|os|process|config|settings|request|req|ctx|context|env|args|options|params|event|response|res|app"
    r"|kwargs|opts|props|state|secrets|vars?|local|module|cfg|conf|session|resource|inputs?|values|env|builder|super"
)
_TYPES: Final = (
    r"str|string|String|int|integer|Integer|bool|boolean|Boolean|bytes|float|number|object|any|Any|None|null|nil|void|char"
    r"|text|varchar|undefined|True|true|False|false|SecretStr|StrictStr|Optional|List|Dict|Union|Literal|Mapping|Sequence|dict|list|set|frozenset|tuple|type|callable|Callable|Iterable"
)
_PLACEHOLDER: Final = r"\$\{\{[^{}\n]{0,200}\}\}|\$?\{\{[^{}\n]{0,200}\}\}|\$\{[^{}\n]{0,200}\}|\$\(?[A-Za-z_]\w{0,100}\)?|<[A-Za-z][\w \-./]{0,60}>|%\([\w.]{1,60}\)[sdr]|%[sdr]|\{[A-Za-z_][\w.]{0,60}\}|\*{2,64}|\.{3,8}|[xX]{4,64}|REDACTED"
_END: Final = r"(?=[\s,;)\]}\"'`]|\Z)"

_EXPRESSION = regex(
    rf"""(?:(?:await|new|not|yield|async|return)[ ])?(?:
      (?:{_TYPES})(?:\[[^\n\]]{{0,100}}\]+)?(?:[ ]?\|[ ]?[A-Za-z_][\w.\[\]]{{0,60}}){{0,4}}{_END}
     |(?:{_PLACEHOLDER}){_END}
     |(?:{_OWNERS})(?:(?:\.|->|\?\.)\w{{1,60}}|\[["']?\w{{1,60}}["']?\]){{1,8}}
     |[$@&]?[A-Za-z_]\w{{0,60}}(?:(?:\.|->|::|\?\.)[A-Za-z_]\w{{0,60}}){{0,8}}+(?:
        \((?:[^()\n]|\([^()\n]{{0,100}}\)){{0,200}}\)(?:[.\[][\w.()\[\]"']{{0,100}})?(?=[ \t]*(?:[;,)\]}}#:.|*/+\-]|\Z)|\s)
       |[(\[{{](?=[ \t]*(?:\Z|\n))
       |\[["']?[\w.\-]{{0,60}}["']?\]{_END})
    )""",
    re.VERBOSE,
)
_NAME = regex(r"[$@&]?(?:[A-Za-z_]\w{0,60}(?:\.|->)){0,4}(?P<last>[A-Za-z_]\w{0,60})" + _END)


def is_expression(text: str, at: int, name: str) -> bool:
    """Tell whether what is assigned to a name here is code, a type or a placeholder, or the name once more."""
    if _EXPRESSION.match(text, at) is not None:
        return True
    other = _NAME.match(text, at)
    return other is not None and _bare(other["last"]) == _bare(name)


def is_placeholder(value: str) -> bool:
    """Tell whether a value in quotes stands for one that comes later: ``"${DB_PASSWORD}"``."""
    return _WHOLE_PLACEHOLDER.fullmatch(value) is not None


def _bare(name: str) -> str:
    return name.rpartition(".")[2].replace("_", "").replace("-", "").lower()


_WHOLE_PLACEHOLDER = regex(_PLACEHOLDER)
