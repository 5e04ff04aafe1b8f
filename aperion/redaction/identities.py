"""Find numbers that mean a person only because of the words before them: passports, tax ids, telephones."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

from aperion.redaction.checks import is_cnpj, is_cpf, is_dni
from aperion.redaction.expressions import is_placeholder
from aperion.redaction.regexes import regex
from aperion.redaction.shapes import trie

if TYPE_CHECKING:
    from collections.abc import Callable

    from aperion.redaction.marks import Hide


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.replace("\n", ",").split(",") if word.strip())


# Groups with a digit each, the first perhaps after letters, a last letter perhaps by itself: AB 12 34 56 C.
_CODE: Final = (
    r"(?:(?-i:[A-Z]{1,3})[ \-]|[A-Z]{1,6}-)?[A-Z]{0,6}\d[A-Z0-9]{0,18}+"
    r"(?:[ \-./][A-Z]{0,3}\d[A-Z0-9]{0,9}+){0,6}+(?:[ \-]?(?-i:[A-Z])(?![A-Za-z]))?"
)
_DIGITS: Final = r"\d(?:[ \-./]?\d){4,17}+"
_DATE: Final = (
    r"(?:\d{1,4}[\-/.]\d{1,2}[\-/.]\d{1,4}|\d{1,2}(?:st|nd|rd|th)?[ ](?:of[ ])?[A-Za-z]{3,9}\.?,?[ ]\d{4}"
    r"|[A-Za-z]{3,9}\.?[ ]\d{1,2}(?:st|nd|rd|th)?,?[ ]\d{4})"
)
_PHONE: Final = r"\+?\(?\d(?:[ .\-/]{0,2}[()]?[ .\-]?\d){5,14}+"

_MEANINGS: Final = (
    ("SSN", r"\d{3}[ .\-]?\d{2}[ .\-]?\d{4}", "ssn, social security, social-security, soc sec"),
    ("PASSPORT", _CODE, "passport, passports, reisepass, passeport, pasaporte, passaporto"),
    (
        *("DRIVER_LICENSE", _CODE),
        """driver license, drivers license, driver's license, driving license, driver licence, drivers licence
        driver's licence, driving licence, license number, licence number""",
    ),
    (
        *("TAX_ID", _CODE),
        """ein, itin, tin number, tin no, vat, vat number, vatin, tax id, tax-id, tax number, taxpayer id, tax identification, utr
        steuer-id, steuernummer, steuerid, ust-id, abn, gstin, partita iva, p.iva, siret, cnpj, cuit""",
    ),
    (
        *("NATIONAL_ID", _CODE),
        """national id, national insurance, nino, aadhaar, aadhar, nhs number, nhs no, sin number, social insurance
        bsn, burgerservicenummer, dni, nie, nif, cpf, pesel, personnummer, personal number, egn, hkid, nric
        curp, codice fiscale, insee, id card, identity card, identity number, personalausweis, medicare, medicaid
        tckn, tc kimlik, ahv, mrn, medical record, health card, pan card, pan number, voter id, resident id, national number""",
    ),
    (
        *("BANK_ACCOUNT", _DIGITS),
        """account number, account no, account num, account #, acct number, acct no, acct #, acct, bank account
        savings account, checking account, kontonummer, konto, routing number, routing no, routing #
        routing, aba, aba number, sort code, sortcode, bsb, transit number, clabe, ifsc""",
    ),
    (
        *("SECURITY_CODE", r"\d{3,8}"),
        """otp, pin, pin code, cvv, cvv2, cvc, security code, verification code, confirmation code, one-time code
        one time code, one-time password, login code, 2fa code, mfa code, auth code, sms code, passcode""",
    ),
    (
        *("DATE_OF_BIRTH", _DATE),
        """dob, date of birth, birth date, birthdate, birthday, born, born on, geboren am, geburtsdatum
        date de naissance, fecha de nacimiento""",
    ),
    (
        *("PHONE", _PHONE),
        """phone, phones, telephone, phone number, tel, tel., mobile, cell, cellphone, fax, call, call me, text me, whatsapp, sms
        telefon, telefono, teléfono, téléphone, telefone, handy, mobil, móvil, movil, celular, portable, gsm, hotline, dial
        landline, contact number, msisdn, desk, pager, viber, signal number, rufnummer, ph""",
    ),
)
_PATTERNS: Final = {kind: value for kind, value, _ in _MEANINGS}
_KINDS: Final = {word: kind for kind, _, words in _MEANINGS for word in _words(words)}
_LINKS: Final = _words(
    """number, numbers, no, num, nr, id, ids, code, is, was, are, of, on, at, me, us, him, her, for, to, in, the, my, our
    home, work, office, main, direct, line, card, registration, holder, customer, account"""
)
_FEWEST_DIGITS: Final = {"DATE_OF_BIRTH": 5, "PHONE": 6, "SSN": 9, "BANK_ACCOUNT": 6, "SECURITY_CODE": 3}
_DIGIT = regex(r"\d")
# Five digits close together, a date with a month in words, or three after a word: no number that is told has fewer.
_NEAR = regex(
    r"""\d(?:(?:[^\d]{0,2}\d){4}|[ ]\w+[ ]\d{4}
      |(?:(?<=[A-Za-z][ :="'\#].)|(?<=[A-Za-z][ :="'\#]{2}.)|(?<=[A-Za-z][ :="'\#]{3}.)|(?<=[A-Za-z][ :="'\#]{4}.))\d{2})""",
    re.VERBOSE,
)
_ISO_DATE = regex(r"(?:19|20)\d\d-\d\d-\d\d")

_TOLD: Final = r"(?:password|passwd|passphrase|passcode|pwd|api[ _\-]?key|access[ _\-]key|secret(?:[ _\-]key)?|(?:access[ _\-])?token)"
_PASSWORD = regex(
    rf"""\b(?:{_TOLD}[ \t]{{1,4}}(?:(?:is|was|are|to|of|set[ ]to|changed[ ]to)[ \t]{{1,4}})?:?[ \t]{{0,4}}
          (?:(?P<quote>["'`])(?P<quoted>[^"'`\n]{{1,128}})(?P=quote)|(?P<told>(?<=is[ ]|as[ ]|re[ ]|to[ ]|of[ ])[^\s"'`<>]{{4,128}}))
        |{_TOLD}[ \t]{{1,4}}(?P<random>[\w\-]{{20,256}})(?![\w\-])
        |login[ ][^\s]{{1,128}}[ ]password[ ](?P<netrc>[^\s]{{1,256}}))""",
    re.IGNORECASE | re.VERBOSE,
)
_LIKE_A_PASSWORD = regex(r"(?=[^\d]*\d|[\w.,'\-]*[^\w.,'\-]|[a-z]+[A-Z])[^\s]{4,}")
_MIXED = regex(r"(?=[^\d]*\d)(?=[^A-Z]*[A-Z])(?=[^a-z]*[a-z])")

_AS_WORDS: Final = bytes(ord(chr(code).lower()) if chr(code).isalnum() and code < 128 else 32 for code in range(256))
# Check digits: Receita Federal (Brazil). Letters: Real Decreto 1553/2005 (Spain), HMRC's NIM39110 (UK).
# The first character comes first, and what may stand before it after that: so re passes over all others in one step.
_SHAPED = regex(
    r"""[\dA-Z](?<![\w.\-].)(?:
      (?P<cpf>(?<=\d)\d{2}\.\d{3}\.\d{3}-\d{2})
     |(?P<cnpj>(?<=\d)\d\.\d{3}\.\d{3}/\d{4}-\d{2})
     |(?P<dni>(?<=[\dXYZ])\d{7}-?[A-HJ-NP-TV-Z])
     |(?P<nino>(?<=[A-CEGHJ-PR-TW-Z])[A-CEGHJ-NPR-TW-Z](?<!BG|GB|KN|NK|NT|TN|ZZ)(?:[ ]?\d{2}){3}[ ]?[A-D])
     |(?P<codice>(?<=[A-Z])[A-Z]{5}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z])
    )(?![\w\-])""",
    re.VERBOSE,
)
_FITTING: Final[dict[str, tuple[str, Callable[[str], bool]]]] = {
    "cpf": ("NATIONAL_ID", lambda text: is_cpf(_only_digits(text))),
    "cnpj": ("TAX_ID", lambda text: is_cnpj(_only_digits(text))),
    "dni": ("NATIONAL_ID", lambda text: is_dni(text[:-1].rstrip("-"), text[-1])),
    "nino": ("NATIONAL_ID", lambda _: True),
    "codice": ("NATIONAL_ID", lambda _: True),
}


@cache
def _first_words(is_ascii: bool) -> frozenset[str]:  # noqa: FBT001 - asked of the text
    """Return how the words begin that can be in a text: the first piece of each."""
    return frozenset(_words_of(word)[0] for word in _KINDS if word.isascii() or not is_ascii)


@lru_cache(256)
def _any_of(words: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, words)))


@cache
def _word() -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9_])(?:{trie(tuple(_KINDS))})(?![A-Za-z0-9_])")


@cache
def _links() -> re.Pattern[str]:
    """Return what may stand between a word and its number, in lower case: up to three words, and signs."""
    return re.compile(rf"(?:[ \t\"'(:=#.,\-\u2013]{{1,4}}(?:{trie(_LINKS)})\b){{0,3}}+[ \t\"'(:=#.\-\u2013>]{{0,4}}+")


@cache
def _value(kind: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<value>{_PATTERNS[kind]})(?:(?=x\d)|(?![\w]))(?!-\w)", re.IGNORECASE)


@cache
def _another(kind: str) -> re.Pattern[str]:
    return re.compile(rf"[ \t]*(?:,|;|and|or|&|/)[ \t]*(?P<value>{_PATTERNS[kind]})(?![\w])", re.IGNORECASE)


def hide_identities(text: str, hide: Hide) -> str:
    """Return a text with the numbers of people hidden, by what is said before them."""
    # Most texts have none of the words; to look at each word once is a third of looking at each letter.
    first = _first_words(text.isascii()).intersection(_words_of(text))
    return _after_words(text, first, hide) if first and _NEAR.search(text) is not None else text


def hide_shaped(text: str, hide: Hide) -> str:
    """Return a text with those national ids hidden that their form tells, most of them by check digits."""
    return _SHAPED.sub(lambda found: _shaped(found, hide), text)


def _words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, in pieces where they have letters outside ASCII."""
    return text.encode("ascii", "replace").translate(_AS_WORDS).decode().split()


def hide_passwords(text: str, hide: Hide) -> str:
    """Return a text with the passwords hidden that a sentence tells: 'the password is …'."""
    return _PASSWORD.sub(lambda found: _password(found, hide), text)


def _lowered(text: str) -> str:
    """Return a text in lower case, each character in its place: the lower case of İ has two."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else text.replace("İ", "i").lower()


def _shaped(found: re.Match[str], hide: Hide) -> str:
    kind, fits = _FITTING[found.lastgroup or ""]
    return hide(kind, found[0]) if fits(found[0]) else found[0]


def _after_words(text: str, first: frozenset[str], hide: Hide) -> str:
    pieces: list[str] = []
    at = position = 0
    lowered = _lowered(text)
    find, is_word = _any_of(first).search, _word().match
    while (beginning := find(lowered, position)) is not None:
        word = is_word(lowered, beginning.start())
        position = beginning.start() + 1 if word is None else word.end()
        if word is None:
            continue
        kind = _KINDS[word[0]]
        links = _links().match(lowered, position)
        found = _value(kind).match(text, position if links is None else links.end())
        while found is not None and _means(kind, found["value"]):
            start, end = found.span("value")
            start -= found["value"].count(")") > found["value"].count("(") and text[start - 1] == "("
            pieces += text[at:start], hide(kind, text[start:end])
            at = position = end
            found = _another(kind).match(text, position)
    return "".join([*pieces, text[at:]]) if pieces else text


def _means(kind: str, value: str) -> bool:
    digits = len(_DIGIT.findall(value))
    if digits < _FEWEST_DIGITS.get(kind, 5):
        return False
    # After 'passport' or 'call' a date is a date.
    return kind == "DATE_OF_BIRTH" or _ISO_DATE.match(value) is None


def _password(found: re.Match[str], hide: Hide) -> str:
    group = next(name for name in ("quoted", "told", "random", "netrc") if found[name] is not None)
    value = found[group] if group == "quoted" else found[group].rstrip(".,;:!?)")
    if is_placeholder(value) or value.startswith("$"):
        return found[0]
    if group == "random" and not _MIXED.match(value):
        return found[0]
    if group in ("quoted", "told") and _LIKE_A_PASSWORD.fullmatch(value) is None:
        return found[0]
    start = found.start(group) - found.start()
    return found[0][:start] + hide("PASSWORD", value) + found[0][start + len(value) :]


def _only_digits(text: str) -> str:
    return "".join(char for char in text if char.isdigit())
