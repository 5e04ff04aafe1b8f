"""Tell by their check digits whether numbers are what they look like."""

from __future__ import annotations

import hashlib
from typing import Final

from aperion.redaction.regexes import regex

_BASE58: Final = {char: at for at, char in enumerate("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")}
_BECH32: Final = {char: at for at, char in enumerate("qpzry9x8gf2tvdw0s3jn54khce6mua7l")}
_BECH32_SUMS: Final = (1, 0x2BC830A3)  # of bech32 (BIP 173) and of bech32m (BIP 350)
_BECH32_STEPS: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_DOUBLED: Final = bytes.maketrans(b"0123456789", b"0246813579")
_ZERO: Final = ord("0")
_CHECK_BYTES: Final = 4

# How many characters an IBAN has in each country: SWIFT's IBAN registry, release 99.
_IBAN_LENGTHS: Final = {
    country: int(length)
    for length, countries in (
        entry.split(":")
        for entry in [
            "15:NO",
            "16:BE",
            "18:DK,FI,FK,FO,GL,NL,SD",
            "19:MK,SI",
            "20:AT,BA,EE,KZ,LT,LU,MN,XK",
            "21:CH,HR,LI,LV",
            "22:BG,BH,CR,DE,GB,GE,IE,ME,RS,VA",
            "23:AE,GI,IL,IQ,OM,SO,TL",
            "24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG",
            "25:LY,PT,ST",
            "26:IS,TR",
            "27:BI,DJ,FR,GR,IT,MC,MR,SM",
            "28:AL,AZ,BY,CY,DO,GT,HN,HU,LB,NI,PL,SV",
            "29:BR,EG,PS,QA,UA",
            "30:JO,KW,MU,YE",
            "31:MT,SC",
            "32:LC",
            "33:RU",
        ]
    )
    for country in countries.split(",")
}


# The beginnings of card numbers by length: ISO/IEC 7812 issuer ranges as the networks publish them.
_VISA_MASTER = r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"
_OTHERS = (
    r"220[0-4]|6011|64[4-9]|65|62|35|36|60[78]|508|81|82|9792"  # Mir, Discover, UnionPay, JCB, Diners, RuPay, Troy
    r"|5018|5019|5020|5038|5893|6304|6759|676[1-3]|504|506|509|5612"  # Maestro, Dankort, Elo, Verve
)
_ISSUERS: Final = {
    13: regex("4"),
    14: regex(r"30[0-59]|3[689]"),
    15: regex(r"3[47]|1|2131|1800"),
    16: regex(f"{_VISA_MASTER}|{_OTHERS}"),
    17: regex(r"62|6304|6759|676[1-3]"),
    18: regex(r"62|6304|6759|676[1-3]|50[12]|5893"),
    19: regex(r"4|62|6304|6759|676[1-3]|50[12]|5893|6011|64[4-9]|65|35(?:2[89]|[3-8])"),
}
_EAN: Final = 13


def passes_luhn(digits: str) -> bool:
    """Tell whether the last digit is the check digit of ISO/IEC 7812-1."""
    codes = digits.encode()
    total = sum(codes[-1::-2]) + sum(codes[-2::-2].translate(_DOUBLED))
    return (total - _ZERO * len(codes)) % 10 == 0


def is_card(number: str) -> bool:
    """Tell whether bare digits are a card number: length, issuer range and Luhn."""
    issuers = _ISSUERS.get(len(number))
    if issuers is None or issuers.match(number) is None or not passes_luhn(number):
        return False
    return len(number) != _EAN or not is_ean13(number)


def is_ean13(digits: str) -> bool:
    """Tell whether thirteen digits are an article number of GS1, such as on a bar code."""
    return (sum(map(int, digits[::2])) + 3 * sum(map(int, digits[1::2]))) % 10 == 0


def iban_length(country: str) -> int:
    """Return how many characters an IBAN of a country has, 0 where there are none."""
    return _IBAN_LENGTHS.get(country, 0)


def is_iban(text: str) -> bool:
    """Tell whether letters and digits in upper case are an IBAN: length by country, then ISO 7064 mod 97-10."""
    if len(text) != iban_length(text[:2]):
        return False
    return int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def base58_payload(text: str) -> bytes | None:
    """Return what Base58Check encodes, its version first; None where the checksum is wrong."""
    number = 0
    for char in text:
        digit = _BASE58.get(char)
        if digit is None:
            return None
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    data = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    payload, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    return payload if hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:_CHECK_BYTES] == check else None


def is_bech32(text: str) -> bool:
    """Tell whether a text is bech32 or bech32m, all in one case: BIP 173 and BIP 350."""
    if text not in (text.lower(), text.upper()):
        return False
    prefix, _, data = text.lower().rpartition("1")
    values = [_BECH32.get(char, -1) for char in data]
    if not prefix or -1 in values:
        return False
    spread = [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]
    return _bech32_sum(spread + values) in _BECH32_SUMS


def _bech32_sum(values: list[int]) -> int:
    total = 1
    for value in values:
        top = total >> 25
        total = (total & 0x1FFFFFF) << 5 ^ value
        for bit, step in enumerate(_BECH32_STEPS):
            total ^= step if top >> bit & 1 else 0
    return total


def is_cpf(digits: str) -> bool:
    """Tell whether eleven digits are a Brazilian CPF, with both check digits of the Receita Federal."""
    if len(set(digits)) == 1:
        return False
    return all(_weighted(digits[:end], range(end + 1, 1, -1)) == int(digits[end]) for end in (9, 10))


def is_cnpj(digits: str) -> bool:
    """Tell whether fourteen digits are a Brazilian CNPJ, with both check digits of the Receita Federal."""
    weights = (6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2)
    return all(_weighted(digits[:end], weights[13 - end :]) == int(digits[end]) for end in (12, 13))


def _weighted(digits: str, weights: range | tuple[int, ...]) -> int:
    rest = sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True)) % 11
    return 0 if rest < 2 else 11 - rest


def is_dni(number: str, letter: str) -> bool:
    """Tell whether the letter fits a Spanish DNI or NIE: the number modulo 23 (Real Decreto 1553/2005)."""
    digits = number.upper().translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == letter.upper()
