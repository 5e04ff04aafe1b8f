"""Find the values of sensitive names where no sign stands between the two: XML, pairs, flags, encoded forms."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aperion.redaction.expressions import is_placeholder
from aperion.redaction.regexes import regex

if TYPE_CHECKING:
    from aperion.redaction.keys import Keys
    from aperion.redaction.marks import Hide

_FLAG_STARTS: Final = ("-", '"', "'", "`", "[")
_ELEMENT = regex(r"<(?P<name>[A-Za-z_][\w.:\-]{0,63}+)(?:[ ][^<>]{0,200})?>\s{0,64}+(?P<value>[^<]{1,4096}+)(?=</)")
_ATTRIBUTES = regex(
    r"""\b(?:key|name|id|field)=(?P<q>["'])(?P<name>[\w.:\-]{1,64}+)(?P=q)\s{1,8}(?:value|content)=(?P<v>["'])(?P<value>[^"'<>]{1,4096}+)(?P=v)""",
    re.IGNORECASE,
)
_NAME_VALUE = regex(  # of containers and headers: - name: DB_PASSWORD, and on the next line value: …
    r"""(?<![\w])["']?(?:name|key|header)["']?[ ]{0,4}[:=][ ]{0,4}["']?(?P<name>[\w.\-]{1,64}+)["']?\s{0,64},?\s{0,64}
    ["']?value["']?[ ]{0,4}[:=][ ]{0,4}(?:"(?P<double>[^"\n]{1,4096}+)"|'(?P<single>[^'\n]{1,4096}+)'|(?P<bare>[^\s"',}\]]{1,4096}+))""",
    re.VERBOSE | re.IGNORECASE,
)
_PAIR = regex(
    r"""(?P<open>[(\[])\s{0,8}(?P<slash>\\{0,4})(?P<q>["'])(?P<name>[\w.\-]{1,64}+)\\{0,4}(?P=q)\s{0,4},\s{0,4}
    (?P<v>\\{0,4}["'`])(?P<value>[^"'`\\]{1,4096}+)(?P=v)\s{0,4}[)\]]""",
    re.VERBOSE,
)
_SHORT_NAME: Final = 3  # ("csc", "csr") are formats as well
_IDENTIFIER = regex(r"[A-Za-z][A-Za-z_]{0,40}")
_FLAG = regex(
    r"""(?<![^\s"'`=(\[])--?(?P<name>[A-Za-z][\w\-]{1,40}+)[ \t]{1,4}
    (?:(?P<q>["'])(?P<quoted>[^"'\n]{1,512}+)(?P=q)|(?P<bare>(?![\-<$\[{|&(])[^\s"'`|;&]{1,512}+))""",
    re.VERBOSE,
)
_USER_FLAG = regex(
    r"""(?<![^\s])(?:-u|--user|--proxy-user|-U)(?:[ \t]{0,4}|=)(?:"[^"\n:]{0,128}"|'[^'\n:]{0,128}'|["']?[^\s"':]{0,128}+):["']?
    (?P<value>[^\s"']{1,256}+)""",
    re.VERBOSE,
)
_USER_TOOLS: Final = ("curl", "wget", "http ", "https ", "httpie", "rclone")
_PASSWORD_FLAG = regex(
    r"""\b(?:sshpass[ ]+-p[ ]{0,4}|mysql(?:dump|admin)?\b[^|;\n]{0,120}?[ ]-p(?=[^\s])|login\b[^|;\n]{0,120}?[ ]-p[ ]{1,4}
    |redis-cli\b[^|;\n]{0,120}?[ ]-a[ ]{1,4})(?P<q>["']?)(?P<value>[^\s"']{1,256}+)""",
    re.VERBOSE,
)
_ORACLE = regex(
    r"""\b(?:(?:sqlplus|sqlldr|expdp|impdp)[ \t]{1,4}(?:-\w{1,8}[ \t]{1,4}){0,4}|jdbc:oracle:\w{1,8}:)["']?
    [\w$#.\-]{1,64}+/(?P<value>[^\s@"'/]{1,128}+)(?=@)""",
    re.VERBOSE | re.IGNORECASE,
)
_SQL = regex(
    r"""\bidentified\s{1,4}(?:with\s{1,4}\w{1,40}\s{1,4})?by\s{1,4}(?P<q>['"])(?P<value>[^'"\n]{1,256}+)""",
    re.IGNORECASE,
)
_URL_ENCODED = regex(
    r"""(?P<name>[\w.\-]{1,64}+)(?:%22|%27)?(?:%3D|%3A)(?:%20|\+)?(?:%22|%27)?
    (?P<value>(?:[^%\s"'<>&;,]|%(?!26|22|27|3B|2C|7D|0A|0D)[0-9A-Fa-f]{2})++)""",
    re.VERBOSE | re.IGNORECASE,
)
_HTML_QUOTE: Final = r"&(?:quot|\#0?34|\#x22|apos|\#0?39|\#x27);"
_HTML_ESCAPED = regex(
    rf"""(?P<name>[\w.\-]{{1,64}}+){_HTML_QUOTE}\s{{0,4}}(?::|=&gt;|=>|,)\s{{0,4}}{_HTML_QUOTE}
    (?P<value>(?:[^&<]|&(?!(?:quot|\#0?34|\#x22|apos|\#0?39|\#x27);))++)""",
    re.VERBOSE,
)
_COOKIES = regex(r"(?P<name>[^\s=;,\"']{1,128}+)=(?P<value>\"[^\"]{0,4096}\"|[^\s;,\"']{1,8192}+)")
_COOKIE_ATTRIBUTES: Final = frozenset({"path", "domain", "expires", "max-age", "samesite", "version", "priority"})


def hide_in_markup(text: str, hide: Hide, keys: Keys) -> str:
    """Return a text with the values in elements of XML hidden, and in attributes that name one another."""
    if "<" not in text:
        return text
    text = _ELEMENT.sub(lambda found: _named(found, keys, hide), text)
    return _ATTRIBUTES.sub(lambda found: _named(found, keys, hide), text)


def hide_in_pairs(text: str, hide: Hide, keys: Keys) -> str:
    """Return a text with the values in pairs of a name and a value hidden."""
    return _PAIR.sub(lambda found: _paired(found, keys, hide), text) if "," in text else text


def hide_in_flags(text: str, hide: Hide, keys: Keys) -> str:
    """Return a text with the values of the flags of commands hidden."""
    return _flags(text, keys, hide) if " -" in text or "\t-" in text or text[:1] in _FLAG_STARTS else text


def hide_in_entries(text: str, hide: Hide, keys: Keys) -> str:
    """Return a text with the values hidden that stand beside their names: ``name: DB_PASSWORD, value: …``."""
    if not ("value" in text or "Value" in text):
        return text
    return _NAME_VALUE.sub(lambda found: _name_and_value(found, keys, hide), text)


def hide_in_oracle(text: str, hide: Hide) -> str:
    """Return a text with the passwords in what connects to Oracle hidden: ``scott/tiger@orcl``."""
    return _ORACLE.sub(lambda found: _replaced(found, "value", "PASSWORD", hide), text)


def hide_in_sql(text: str, hide: Hide) -> str:
    """Return a text with the passwords in statements of SQL hidden."""
    if not ("dentified" in text or "DENTIFIED" in text):
        return text
    return _SQL.sub(lambda found: _replaced(found, "value", "PASSWORD", hide), text)


def hide_url_encoded(text: str, hide: Hide, keys: Keys) -> str:
    """Return a text with the values in URL-encoded forms hidden."""
    return _URL_ENCODED.sub(lambda found: _named(found, keys, hide), text) if "%3" in text else text


def hide_html_escaped(text: str, hide: Hide, keys: Keys) -> str:
    """Return a text with the values in HTML-escaped JSON hidden."""
    if not ("&quot" in text or "&#" in text or "&apos" in text):
        return text
    return _HTML_ESCAPED.sub(lambda found: _named(found, keys, hide), text)


def hide_cookies(text: str, hide: Hide) -> str:
    """Return the value of a cookie header with the value of each cookie hidden, and its attributes kept (RFC 6265)."""
    if "=" not in text:
        is_setting = len(text) == 1 and text.isdigit()  # tcp_syncookies=1
        return hide("COOKIE", text) if text.strip() and not is_setting else text
    return _COOKIES.sub(lambda found: _cookie(found, hide), text)


def _cookie(found: re.Match[str], hide: Hide) -> str:
    if found["name"].lower() in _COOKIE_ATTRIBUTES:
        return found[0]
    return f"{found['name']}={hide('COOKIE', found['value'])}"


def _flags(text: str, keys: Keys, hide: Hide) -> str:
    text = _FLAG.sub(lambda found: _flag(found, keys, hide), text)
    if "-u" in text or "--proxy-user" in text or "-U" in text:
        lowered = text.lower()
        if any(tool in lowered for tool in _USER_TOOLS):
            text = _USER_FLAG.sub(lambda found: _replaced(found, "value", "PASSWORD", hide), text)
    if " -p" in text or " -a" in text:  # of mysql, redis-cli, docker login
        text = _PASSWORD_FLAG.sub(lambda found: _replaced(found, "value", "PASSWORD", hide), text)
    return text


def _named(found: re.Match[str], keys: Keys, hide: Hide) -> str:
    name = found["name"]
    if found.string[found.start() - 1 : found.start()] == "%":
        name = name[2:]  # the rest of %22 or %26
    return _replaced(found, "value", "KEY", hide) if keys.hides_value(name, found["value"].rstrip()) else found[0]


def _name_and_value(found: re.Match[str], keys: Keys, hide: Hide) -> str:
    group = next(name for name in ("double", "single", "bare") if found[name] is not None)
    return _replaced(found, group, "KEY", hide) if keys.hides_value(found["name"], found[group]) else found[0]


def _paired(found: re.Match[str], keys: Keys, hide: Hide) -> str:
    if not keys.hides_value(found["name"], found["value"]):
        return found[0]
    # ["password", "email"] is a list of names.
    if _IDENTIFIER.fullmatch(found["value"]) and (found["open"] == "[" or _is_list_of_names(found, keys)):
        return found[0]
    return _replaced(found, "value", "KEY", hide)


def _is_list_of_names(found: re.Match[str], keys: Keys) -> bool:
    return len(found["name"]) <= _SHORT_NAME or keys.hides(found["value"])


def _flag(found: re.Match[str], keys: Keys, hide: Hide) -> str:
    group = "quoted" if found["q"] else "bare"
    return _replaced(found, group, "KEY", hide) if keys.hides_value(found["name"], found[group]) else found[0]


def _replaced(found: re.Match[str], group: str, kind: str, hide: Hide) -> str:
    value = found[group].rstrip()
    if not value or is_placeholder(value):
        return found[0]
    start = found.start(group) - found.start()
    return found[0][:start] + hide(kind, value) + found[0][start + len(value) :]
