"""Find addresses of people and machines: e-mail, IP, MAC, IBAN, and those of crypto currencies."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from string import hexdigits
from typing import TYPE_CHECKING, Final

from aperion.redaction.checks import base58_payload, iban_length, is_bech32, is_iban
from aperion.redaction.regexes import regex, replaced

if TYPE_CHECKING:
    from aperion.redaction.marks import Hide

# RFC 5321 and RFC 6531: letters of every script. A local part has 64 octets at most; longer ones are met in logs.
_BREAK: Final = r"\s@<>()\[\]{},;:\"'`\\=|?*/&#\ue000-\uf8ff"
_LOCAL: Final = f"[^{_BREAK}]"
_LONGEST_LOCAL: Final = 256
_DOMAIN: Final = r"(?:(?!-)[^\W_](?:[\w\-]{0,62}+)\.){1,12}(?P<top>xn--[a-z0-9\-]{2,59}|[^\W\d_]{2,63})(?![\w\-])"
_EMAIL = regex(
    rf"""(?P<local>(?<![\w\\])\"[^\W_][^"\n:,{{}}]{{0,63}}\"|(?<!{_LOCAL}){_LOCAL}{{1,{_LONGEST_LOCAL}}}+)
    [@\uff20]
    (?P<domain>{_DOMAIN}|\[(?:\d{{1,3}}\.){{3}}\d{{1,3}}\]|\[IPv6:[0-9A-Fa-f:.]{{2,45}}\])""",
    re.VERBOSE | re.IGNORECASE,
)
_ENCODED_EMAIL = regex(  # in a URL, in HTML, in JSON
    rf"(?<![\w.+\-])[\w.+\-]{{1,256}}+(?:%40|&\#64;|&\#x40;|&commat;|\\u0040){_DOMAIN}", re.IGNORECASE
)
_AT = regex("@")
_TO_BREAK = regex(rf"(?s:.*)[{_BREAK}]")
_FULL_WIDTH: Final = "\uff20"
_ENCODED_AT: Final = ("%40", "&#", "&commat;", "\\u0040")
_NO_MAIL: Final = frozenset((
    "png", "jpg", "jpeg", "gif", "svg", "webp", "avif", "ico", "bmp", "css", "js", "mjs", "ts", "tsx", "jsx",
    "json", "html", "htm", "yml", "yaml", "toml", "xml", "txt", "csv", "pdf", "zip", "gz", "tar", "whl",
    "service", "socket", "timer", "mount", "target", "slice", "scope", "device",
))  # fmt: skip
_NO_PERSON: Final = frozenset({"git", "hg", "svn", "gitlab-ci-token", "x-access-token"})
_REMOTE_PATH = regex(r":(?!\d{1,5}(?:\D|\Z))[\w~.\-]+/")
_VERSIONED = regex(r"v?\d+\.\d+(?:\.\d+)*-")

_IPV4 = regex(
    r"""(?<![\w.])(?<![\d.][\-+~])
    (?:(?:25[0-5]|2[0-4]\d|1\d\d|0?[1-9]\d|0{0,2}\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|0?[1-9]\d|0{0,2}\d)
    (?![\w])(?!\.\w)(?!-[\w.]*\w\.)""",
    re.VERBOSE,
)
_DOTTED = regex(r"\.(?<=\d.)\d{1,3}\.\d{1,3}\.")
_OF_VERSIONS: Final = frozenset(
    [
        "v",
        "ver",
        "rv",
        "vers",
        "version",
        "versions",
        "release",
        "releases",
        "released",
        "rel",
        "rev",
        "revision",
        "build",
        "builds",
        "firmware",
        "fw",
        "kernel",
        "driver",
        "bios",
        "sdk",
        "patch",
        "patched",
        "tag",
        "tagged",
        "upgrade",
        "upgraded",
        "upgrading",
        "update",
        "updated",
        "updating",
        "downgrade",
        "downgraded",
        "bump",
        "bumped",
        "package",
        "oid",
        "section",
        "chapter",
        "clause",
        "paragraph",
        "appendix",
        "figure",
        "table",
        "step",
        "annex",
        "§",
    ]
)
_LINKS: Final = frozenset({"from", "to", "is", "was", "of", "at", "number", "no", "no."})
_OPERATORS: Final = ("==", ">=", "<=", "~=", "!=", "~", "^", "§")
_QUOTED: Final = " \t\"'`"
_AROUND: Final = " \t\r\n\"'`([:=,"
_AFTER_VERSION = regex(
    r"(?:[ ](?:release|released|version|stable|beta|alpha|rc|lts|build)\b|[~+]|-\d{1,3}(?:[)~+]|ubuntu|\.el|-r\d))",
    re.IGNORECASE,
)
_RANGE_OF_VERSIONS = regex(r"[ ]?(?:->|→|to|\.\.|and|or|[,/])[ ]?v?\Z")
_HOSTS: Final = frozenset(
    {"ip", "ips", "host", "addr", "address", "hosts", "ipv4", "from", "client", "server", "src", "dst"}
)
_NAME_BREAK = regex(r"[^a-z]+")
_LONGEST_BEFORE: Final = 40

_GROUP_BEFORE = regex(r"(?<![A-Za-z0-9])[0-9A-Fa-f]{0,4}:\Z")
_COLON = regex(r":(?=[0-9A-Fa-f]{0,4}:)")
_COLONS = regex(r"(?<![\w.])(?:[0-9A-Fa-f]{0,4}:){2,8}[0-9A-Fa-f.]{0,15}(?:%[\w.\-]{1,16})?(?![\w:])")
_IN_MAC, _IN_CISCO = 5, 2
"""How many separators a MAC address has at least."""
_ALL_GROUPS: Final = 7
_FEWEST_COLONS: Final = 6  # an IPv4 address may stand for the last two groups

_MAC = regex(
    r"""(?<![\w.\-])(?:
      [0-9A-Fa-f]{2}(?P<mark>[:\-])(?:[0-9A-Fa-f]{2}(?P=mark)){4}[0-9A-Fa-f]{2}
     |[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}
    )(?![\w:\-])(?!\.\w)""",
    re.VERBOSE,
)
_CISCO = regex(r"\.(?<=[0-9A-Fa-f]{4}.)[0-9A-Fa-f]{4}\.")
_IBAN = regex(r"(?<![A-Za-z0-9])(?P<country>[A-Za-z]{2})\d{2}(?:[ \-]?[A-Za-z0-9]){11,30}+")
_IBAN_DIGIT = regex(r"\d(?<=[A-Za-z]{2}.)(?<![A-Za-z0-9][A-Za-z]{2}.)(?=\d)")
_BREAKS = regex(r"[ \-]")

_BASE58: Final = "1-9A-HJ-NP-Za-km-z"
_COIN = regex(
    rf"""(?<![A-Za-z0-9])(?:
      (?P<base58>[13LMDAXTtmn2579KQc][{_BASE58}]{{25,51}})
     |(?P<extended>[xyztuv](?:pub|prv)[{_BASE58}]{{107,108}})
     |(?P<bech32>(?:bc|tb|ltc|addr|cosmos|osmo|bnb|terra|secret|kava|juno|stake|inj|celestia|lnbc|bcrt)1
        [ac-hj-np-z02-9]{{23,120}}|BC1[AC-HJ-NP-Z02-9]{{23,87}})
     |(?P<ether>0x[0-9a-fA-F]{{40}}(?:[0-9a-fA-F]{{24}})?)
     |(?P<monero>[48][0-9AB][{_BASE58}]{{93}})
    )(?![A-Za-z0-9])""",
    re.VERBOSE,
)
_ADDRESS: Final = 42
"""Characters of an Ethereum address with its ``0x``; a private key has 66, and so has the hash of a block."""


def hide_emails(text: str, hide: Hide) -> str:
    """Return a text with its e-mail addresses hidden."""
    if '"@' in text or _FULL_WIDTH in text:  # a quoted local part may begin before another sign
        return _EMAIL.sub(lambda found: _email(found, hide), text)
    return replaced(text, _AT, _EMAIL, lambda found: _email(found, hide), _local_start)


def _local_start(text: str, at: int) -> int:
    """Return where what stands before a sign begins: behind the last break, or too far away for an address."""
    furthest = max(0, at - _LONGEST_LOCAL - 1)
    before = _TO_BREAK.match(text, furthest, at)
    return furthest if before is None else before.end()


def hide_encoded_emails(text: str, hide: Hide) -> str:
    """Return a text with the e-mail addresses hidden that are written for a URL, for HTML or in JSON."""
    if not any(at in text for at in _ENCODED_AT):
        return text
    return _ENCODED_EMAIL.sub(lambda found: hide("EMAIL", found[0]), text)


def _email(found: re.Match[str], hide: Hide) -> str:
    local, text = found["local"], found.string
    if (found["top"] or "").lower() in _NO_MAIL or _VERSIONED.match(found["domain"]):
        return found[0]
    if local in _NO_PERSON or _REMOTE_PATH.match(text, found.end()):
        return found[0]  # where a repository is: git@github.com:org/project.git
    if text[max(0, found.start() - 3) : found.start()] == "://":
        return found[0]  # the user of a URL
    cut = len(local) - len(local.lstrip(".!$%-+'~^"))
    if cut == len(local):
        return found[0]
    return local[:cut] + hide("EMAIL", found[0][cut:])


def hide_macs(text: str, hide: Hide) -> str:
    """Return a text with its MAC addresses hidden."""
    colons, dots = text.count(":"), text.count(".")
    if colons >= _IN_MAC or text.count("-") >= _IN_MAC or (dots >= _IN_CISCO and _CISCO.search(text) is not None):
        text = _MAC.sub(lambda found: found[0] if _goes_on(found) else hide("MAC", found[0]), text)
    return text


def hide_ipv6(text: str, hide: Hide) -> str:
    """Return a text with its IPv6 addresses hidden."""
    return replaced(text, _COLON, _COLONS, lambda found: _ipv6(found, hide), _group_start)


def _group_start(text: str, at: int) -> int:
    """Return where the digits before a colon begin, of which there are four at most."""
    start = at
    while start > max(0, at - 4) and text[start - 1] in hexdigits:
        start -= 1
    return start


def hide_ipv4(text: str, hide: Hide) -> str:
    """Return a text with its IPv4 addresses hidden."""
    return _without_ipv4(text, hide) if _DOTTED.search(text) is not None else text


def _ipv6(found: re.Match[str], hide: Hide) -> str:
    written = found[0]
    stripped = written.rstrip(".")
    if stripped.endswith(":") and not stripped.endswith("::"):
        stripped = stripped[:-1]
    if _goes_on(found) or not _is_ipv6(stripped, found):
        return written
    return hide("IP", stripped) + written[len(stripped) :]


def _goes_on(found: re.Match[str]) -> bool:
    """Tell whether an address is the end of something longer, such as the fingerprint of a key."""
    before = found.string[max(0, found.start() - 6) : found.start()]
    return before.endswith(":") and _GROUP_BEFORE.search(before) is not None


def _is_ipv6(written: str, found: re.Match[str]) -> bool:
    address = written.partition("%")[0]
    if "::" not in address and address.count(":") < _FEWEST_COLONS:
        return False  # such as a time of day; to let the parser refuse it takes twenty times as long
    try:
        IPv6Address(address)
    except AddressValueError:
        return False
    if address.count(":") == _ALL_GROUPS and "::" not in address:
        return True
    if not any(char.isdigit() for char in address):
        # A::B is a name in C++ and Perl; these are none.
        return address.lower().startswith(("fe", "fc", "fd", "ff")) and len(address) > 4
    # a[::2] and x[1::2] take every second item.
    before, after = found.string[: found.start()][-2:], found.string[found.end() : found.end() + 1]
    return not (before.endswith("[") and before[:1].isidentifier() and after == "]")


def _without_ipv4(text: str, hide: Hide) -> str:
    pieces: list[str] = []
    at = last = 0
    was_version = False
    for found in _IPV4.finditer(text):
        start, end = found.span()
        goes_on = was_version and _RANGE_OF_VERSIONS.match(text, last, start) is not None
        was_version, last = goes_on or _is_version(text, start) or _AFTER_VERSION.match(text, end) is not None, end
        if not was_version:
            pieces += text[at:start], hide("IP", found[0])
            at = end
    return "".join([*pieces, text[at:]]) if pieces else text


def _is_version(text: str, start: int) -> bool:
    """Tell a version of four parts from an address by what stands before it."""
    before = text[max(0, start - _LONGEST_BEFORE) : start].lower()
    if before.rstrip(_QUOTED).endswith(_OPERATORS):
        return True
    words = before.rstrip(_AROUND).split()
    if not words:
        return False
    last, mark = words[-1], before[-1]
    if mark in _AROUND:
        links = [word.strip(_AROUND) for word in words[-3:]]
        while len(links) > 1 and links[-1] in _LINKS:
            links.pop()
        return _ends_as_version(links[-1])
    if mark in "/-_":
        name = last[:-1].lstrip(_AROUND)
        return name[:1].isalpha() and name not in _HOSTS and not ("/" in name or (":" in name and mark == "/"))
    return mark == "v" and not last[-2:-1].isalnum()


def _ends_as_version(name: str) -> bool:
    return name.endswith("version") or _NAME_BREAK.split(name)[-1] in _OF_VERSIONS or name in _OF_VERSIONS


def hide_ibans(text: str, hide: Hide) -> str:
    """Return a text with its IBANs hidden."""
    return replaced(text, _IBAN_DIGIT, _IBAN, lambda found: _iban(found, hide), lambda _, at: at - 2)


def hide_coins(text: str, hide: Hide) -> str:
    """Return a text with the addresses and keys of crypto currencies hidden."""
    return _COIN.sub(lambda found: _coin(found, hide), text)


def _iban(found: re.Match[str], hide: Hide) -> str:
    written = found[0]
    length = iban_length(found["country"].upper())
    count = end = 0
    for end, char in enumerate(written, 1):  # noqa: B007 - needed after the loop
        count += char not in " -"
        if count == length:
            break
    if not length or count < length or found.string[found.start() + end : found.start() + end + 1].isalnum():
        return written
    if not is_iban(_BREAKS.sub("", written[:end]).upper()):
        return written
    return hide("IBAN", written[:end]) + written[end:]


def _coin(found: re.Match[str], hide: Hide) -> str:
    written = found[0]
    if found["base58"]:
        payload = base58_payload(written)
        if payload is None:
            return written
        is_key = payload[0] in (0x80, 0xB0, 0xEF) and len(payload) in (33, 34)
        return hide("CRYPTO_KEY" if is_key else "CRYPTO_ADDRESS", written)
    if found["extended"]:
        return hide("CRYPTO_KEY" if "prv" in written[:4] else "CRYPTO_ADDRESS", written)
    if found["bech32"] and not is_bech32(written):
        return written
    if found["ether"] and len(written) > _ADDRESS:
        return written
    return hide("CRYPTO_ADDRESS", written)
