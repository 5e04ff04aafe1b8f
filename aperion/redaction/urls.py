"""Find what is secret in URLs: passwords, the paths of webhooks, signatures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aperion.redaction.regexes import regex

if TYPE_CHECKING:
    from aperion.redaction.marks import Hide

_BREAK: Final = r"(?::|%3A)(?://|%2F%2F|\\/\\/)"
_URL = regex(rf"""{_BREAK}[^\s"'<>`]*+""", re.IGNORECASE)
_BREAKS = regex(f"({_BREAK})", re.IGNORECASE)
_USERINFO_END = regex(r"[/?#]")
_PORT = regex(r"\d{0,5}(?:[/?#,]|\Z)")
_TOKEN_USER = regex(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[\w.\-~+=]{16,}")
_TEMPLATE = regex(
    r"\$?\{{1,2}[^{}]{0,64}\}{1,2}|<[^<>]{0,64}>|\$\w{1,64}|%\w{1,64}%|\*{1,64}|x{3,64}|(?-i:(?:YOUR|REPLACE|INSERT|ENTER|CHANGE)[A-Z_]{2,40})|\.{3}|%s",
    re.IGNORECASE,
)

# RFC 3986 queries: AWS Signature Version 4, SAS of Azure, signed URLs of Google, CloudFront, Alibaba; codes of OAuth.
_SIGNED = regex(
    r"""(?<=[?&;])(?P<name>(?:[a-z]{1,10}-){0,3}(?:signature|sig|sign|hmac|sigv4)|code|auth_code)=
    (?P<value>[^&\s"'<>\#;]{8,2048}+)""",
    re.VERBOSE | re.IGNORECASE,
)
_CODE = regex(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[\w.\-/%]{20,}")

_WEBHOOKS: Final = tuple(
    (trigger, regex(pattern, re.IGNORECASE))
    for trigger, pattern in (
        ("hooks.slack.com", r"hooks\.slack\.com/(?:services|workflows|triggers|commands)/(?P<secret>[\w/+\-]{8,200})"),
        ("discord", r"discord(?:app)?\.com/api/(?:v\d{1,2}/)?webhooks/\d{5,25}/(?P<secret>[\w\-]{20,120})"),
        ("webhook.office.com", r"webhook\.office\.com/webhookb?2?/(?P<secret>[\w@\-/.]{20,400})"),
        ("outlook.office", r"outlook\.office(?:365)?\.com/webhook/(?P<secret>[\w@\-/.]{20,400})"),
        ("api.telegram.org", r"api\.telegram\.org/(?:file/)?bot(?P<secret>\d{5,16}:[\w\-]{20,60})"),
        ("hooks.zapier.com", r"hooks\.zapier\.com/hooks/catch/(?P<secret>[\w/]{8,80})"),
        ("maker.ifttt.com", r"maker\.ifttt\.com/trigger/[\w{}\-]{1,64}/(?:json/)?with/key/(?P<secret>[\w\-]{8,80})"),
        (
            "chat.googleapis.com",
            r"chat\.googleapis\.com/v1/spaces/(?P<secret>[\w\-]{5,40}/messages\?key=[\w\-&=%]{10,300})",
        ),
        ("logic.azure.com", r"logic\.azure\.com(?::443)?/workflows/(?P<secret>[\w/?=&%.\-]{20,400})"),
        ("alert.victorops.com", r"alert\.victorops\.com/integrations/generic/\d+/alert/(?P<secret>[\w\-/]{10,120})"),
        ("pipedream", r"[\w\-]{10,40}\.m\.pipedream\.net(?P<secret>/[\w\-/]{8,120})"),
        ("webhook.site", r"webhook\.site/(?P<secret>[0-9a-f\-]{36})"),
        ("/hooks/", r"/hooks/(?P<secret>[a-z0-9]{26})(?![\w])"),
        ("/bot/v2/hook/", r"open\.(?:feishu\.cn|larksuite\.com)/open-apis/bot/v2/hook/(?P<secret>[\w\-]{20,60})"),
        ("oapi.dingtalk.com", r"oapi\.dingtalk\.com/robot/send\?access_token=(?P<secret>\w{20,80})"),
        ("qyapi.weixin", r"qyapi\.weixin\.qq\.com/cgi-bin/webhook/send\?key=(?P<secret>[\w\-]{20,60})"),
    )
)
_WEB: Final = ("ifttt", "/workflows/", "pipedream", "victorops", "messages?key", "robot/send")


def hide_url_passwords(text: str, hide: Hide) -> str:
    """Return a text with the passwords in its URLs hidden."""
    if not ("://" in text or ":\\/" in text or "%" in text):
        return text
    return _URL.sub(lambda url: _without_password(url[0], hide), text)


def hide_signatures(text: str, hide: Hide) -> str:
    """Return a text with the signatures in the queries of its URLs hidden."""
    if not ("/" in text or "%" in text):
        return text  # no URL
    lowered = text.lower()
    if not ("sig" in lowered or "hmac" in lowered or "code=" in lowered):
        return text
    return _SIGNED.sub(lambda found: _without_signature(found, hide), text)


def hide_webhooks(text: str, hide: Hide) -> str:
    """Return a text with those parts of the URLs of webhooks hidden that are passwords."""
    lowered = text.lower()
    if "hook" in lowered or "/bot" in lowered or any(word in lowered for word in _WEB):
        for trigger, pattern in _WEBHOOKS:
            if trigger in lowered:
                text = pattern.sub(lambda found: _without_secret(found, hide), text)
    return text


def _without_signature(found: re.Match[str], hide: Hide) -> str:
    if found["value"] == "REDACTED" or (
        found["name"].lower().endswith("code") and _CODE.fullmatch(found["value"]) is None
    ):
        return found[0]
    return f"{found['name']}={hide('SIGNATURE', found['value'])}"


def _without_secret(found: re.Match[str], hide: Hide) -> str:
    start, end = found.start("secret") - found.start(), found.end("secret") - found.start()
    return found[0][:start] + hide("WEBHOOK", found["secret"]) + found[0][end:]


def _without_password(url: str, hide: Hide) -> str:
    at = "@" if "@" in url else "%40"
    parts = _BREAKS.split(url)
    return "".join(
        _hidden_userinfo(part, at, hide) if part and number % 2 == 0 else part for number, part in enumerate(parts)
    )


def _hidden_userinfo(part: str, sign: str, hide: Hide) -> str:
    """Hide the password of ``user:password@host/path``; it may hold ``@`` and, against the rules, ``/``."""
    end = _USERINFO_END.search(part)
    authority = part if end is None else part[: end.start()]
    if sign not in authority:
        if authority.startswith("[") or ":" not in authority or _PORT.match(part.partition(":")[2]):
            return part
        authority = part
    userinfo, at, _ = authority.rpartition(sign)
    user, colon, password = userinfo.partition(":" if ":" in userinfo or sign == "@" else "%3A")
    if not at:
        return part
    if not colon:
        is_token = _TOKEN_USER.fullmatch(user) is not None
        return f"{hide('URL_PASSWORD', user)}{part[len(userinfo) :]}" if is_token else part
    if not password or _TEMPLATE.fullmatch(password):
        return part
    return f"{user}{colon}{hide('URL_PASSWORD', password)}{part[len(userinfo) :]}"
