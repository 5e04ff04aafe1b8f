"""Which names stand for values that nobody should read."""

from __future__ import annotations

import string
import unicodedata
from typing import TYPE_CHECKING, Final

from aperion.redaction.regexes import regex
from aperion.redaction.vendors import is_random, names_key

if TYPE_CHECKING:
    from collections.abc import Iterable


def _joined(text: str) -> frozenset[str]:
    return frozenset(phrase.strip().replace(" ", "") for phrase in text.replace("\n", ",").split(",")) - {""}


# A name is sensitive when its last words, joined, are one of these: db.userPassword, X-API-Key, apikey.
_SUFFIXES: Final = _joined("""
    password, passwd, pwd, pswd, psw, pw, passphrase, pass phrase, passcode, secret, token, jwt, otp, totp
    user pass, db pass, database pass, smtp pass, mail pass, mysql pass, postgres pass, pg pass, redis pass
    root pass, admin pass, login pass, ftp pass, auth pass, wifi pass
    api key, access key, access key id, access id, private key, private key id, secret key
    secret id, client key, signing key, signature key, encryption key, encrypt key, decryption key
    master key, shared key, root key, symmetric key, session key, ssh key, pgp key, gpg key, rsa key
    aes key, hmac key, ssl key, tls key, crypto key, cipher key, account key, storage key, auth key
    consumer key, application key, app key
    admin key, service key, service account key, server key, webhook key, license key, licence key
    subscription key, functions key, deploy key, vault key, unseal key, recovery key, key material
    aws key, gcp key, google key, azure key, github key, stripe key, openai key, anthropic key, twilio key
    sendgrid key, mailgun key, datadog key, cloud key
    authorization, basic auth, http auth, proxy auth, user auth
    cookie, session id, sess id, credential, cred, creds
    connection string, conn string, conn str, connection url, connection uri, dsn, jdbc url, broker url
    database url, database uri, db url, db uri, mongo url, mongo uri, mongodb url, mongodb uri, redis url
    redis uri, postgres url, postgres uri, postgresql url, postgresql uri, mysql url, mysql uri, amqp url
    amqp uri, rabbitmq url, rabbitmq uri, amz signature, goog signature
    auth code, authorization code, verification code, mfa code, tfa code, 2fa code, two factor code, otp code
    sms code, one time code, login code, access code, security code, recovery code, backup code, reset code
    seed phrase, recovery phrase, mnemonic, mnemonic phrase, security answer, secret answer, maiden name
    ssn, social security, social security number, social security no, social insurance number, nino
    ssn number, national id, national insurance number, national id number, identity number, id card number
    tax id, taxpayer id, tax number, tax identifier, tax identification number, vat number, vat id, aadhaar, aadhar
    aadhaar number, pan number, medicare number, nhs number, personnummer, personal id number
    passport, passport number, passport no, passport id, driver license, drivers license, driving license
    driver licence, drivers licence, driving licence, driver license number, drivers license number
    driver licence number, drivers licence number, driving licence number, driving license number
    credit card, credit card number, debit card, debit card number, card number, card no, card num
    cc number, cc num, ccn, primary account number, cvv, cvc, csc, cvn
    card pin, pin number, atm pin, user pin, pin code, totp seed, otp seed, sas url, sas uri
    email, e mail, email address, mail address, phone, phone number, phone no, phone num, mobile number
    mobile no, cell number, cellphone, telephone, telephone number, tel number, tel no, fax number, msisdn
    contact number, whatsapp number, landline number
    date of birth, birth date, birthday, dob
    bank account, bank account number, account number, account no, acct number, acct no, iban
    routing number, routing no, aba number, sort code
""")

# Too short or too common to be the end of a longer name.
_EXACT: Final = _joined("""
    tin, ein, nin, cpf, cnpj, curp, dni, nie, nif, bsn, pesel, mrn, fax
    pin, sid, pan, auth, pass, bearer, csrf, xsrf, sig, mobile, tel, address
""")

# Long enough to be recognised at the end of a word written without a break: mysecretkey, PHPSESSID.
_STEMS: Final = (
    *("password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "secretkey"),
    *("privatekey", "credential", "authorization", "cookie", "sessionid", "sessid", "sessionkey"),
    *("connectionstring", "databaseurl", "creditcard", "cardnumber", "accountnumber", "phonenumber"),
    *("emailaddress", "dateofbirth"),
)

# What may follow a sensitive name and still holds the value: password_hash, SecretString, token2.
_TAILS: Final = _joined("""
    hash, hashed, digest, salt, value, val, text, plain, plaintext, raw, clear, cleartext, string, str, bytes
    binary, b64, base64, hex, pem, der, encrypted, enc, ciphertext, encoded, header, confirm, confirmation
    last4, e164, repeat, again, verify, new, old, current, previous, prev, tmp, temp, temporary, data, env, list, json
""")

# What opens a name that holds a fact about a value: has_password, maxTokens.
_HEADS: Final = _joined("""
    is, has, had, can, may, must, should, needs, need, requires, require, show, hide, skip, use, uses, with
    without, no, not, allow, allows, enable, enables, enabled, disable, disables, disabled, send, sends
    max, min, num, count, total
""")

# Tokens that open nothing: a place in a list of pages, a mark in a vocabulary.
_HARMLESS: Final = _joined("""
    page token, next token, continuation token, pagination token, cancellation token
    eos token, bos token, pad token, unk token, mask token, sep token
""")
_COUNTED: Final = _joined("""
    prompt, completion, input, output, cached, cache, reasoning, thinking, audio, text, image, used
    remaining, generated, estimated, n
""")

_CAMEL = regex(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = regex(r"[^\W_]+")
_PATH = regex(r"[./:]")
_SEGMENT = regex(r"[.\s/:]")
_DIGITS = "0123456789"
_NO_LETTERS: Final = string.punctuation + string.digits + string.whitespace
_ENDINGS: Final = frozenset(
    (word + plural)[-2:] for word in _SUFFIXES | _EXACT | _TAILS | frozenset(_STEMS) for plural in ("", "s")
)
"""The last two letters of every sensitive name: a look at them settles most names."""
_MARKER: Final = "[REDACTED"  # a name that was hidden itself says nothing about its value
_LONGEST_PHRASE = 4
_LONGEST_NAME = 128
_REMEMBERED = 4096


class Keys:
    """Decides about names, and remembers what it decided."""

    # Mutable: _known grows to its bound and is then emptied.
    __slots__ = ("_custom", "_defaults", "_endings", "_known")

    def __init__(self, custom: Iterable[str] = (), *, defaults: bool = True) -> None:
        self._defaults = defaults
        self._custom = frozenset(flattened(name) for name in custom)
        self._endings = _ENDINGS | {name.rstrip(_NO_LETTERS)[-2:] for name in self._custom}
        self._known: dict[str, bool] = {}

    def hides(self, name: str) -> bool:
        """Tell whether the value under a name is sensitive, in any spelling of the name."""
        known = self._known.get(name)
        if known is not None:
            return known
        return self.may_hide(name) and self._learned(name)

    def hides_value(self, name: str, value: str) -> bool:
        """Tell whether a value is sensitive under a name, for the name, or as a random value under that of a service."""
        return self.hides(name) or (self._defaults and is_random(value) and names_key(name))

    def may_hide(self, name: str) -> bool:
        """Tell, at little cost, whether ``hides`` has to look at a name, or at words that end with it."""
        if not name.isascii():
            return True
        ending = name[-_LONGEST_NAME:].rstrip(_NO_LETTERS)[-2:].lower()
        if ending in self._endings:
            return True
        return bool(self._custom) and not ending.isalpha()  # a custom name may be "007" or "plan_b"

    def _learned(self, name: str) -> bool:
        end = name[-_LONGEST_NAME:]
        answer = _MARKER not in name and (self._is_custom(end) or (self._defaults and is_sensitive(end)))
        if len(name) <= _LONGEST_NAME:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[name] = answer
        return answer

    def _is_custom(self, name: str) -> bool:
        if not self._custom:
            return False
        return flattened(name) in self._custom or flattened(_SEGMENT.split(name)[-1]) in self._custom


def flattened(name: str) -> str:
    """Return a name without case and breaks: ``apikey`` for ``API-Key``."""
    return "".join(_WORD.findall(unicodedata.normalize("NFKC", name).casefold()))


def is_sensitive(name: str) -> bool:
    """Tell whether a name is one of those that everybody should hide."""
    whole = _words(name)
    words = _trimmed([*whole])
    if not words:
        return False
    if _ends_sensitively(_singular(words)) or _ends_sensitively(whole):
        return not _is_harmless(name, words)
    return flattened(_PATH.split(name)[-1]).rstrip(_DIGITS) in _EXACT


def _words(name: str) -> list[str]:
    text = name if name.isascii() else unicodedata.normalize("NFKC", name)
    return _WORD.findall(_CAMEL.sub(" ", text).casefold())


def _trimmed(words: list[str]) -> list[str]:
    while words and (words[-1] in _TAILS or not words[-1].rstrip(_DIGITS)):
        words.pop()
    if words:
        words[-1] = words[-1].rstrip(_DIGITS)
    return words


def _ends_sensitively(words: list[str]) -> bool:
    end = ""
    for word in words[: -_LONGEST_PHRASE - 1 : -1]:
        end = word + end
        if end in _SUFFIXES:
            return True
    return "".join(words).endswith(_STEMS)


def _singular(words: list[str]) -> list[str]:
    last = words[-1]
    return [*words[:-1], last[:-1]] if last[-1] == "s" and last[-2:] != "ss" else words


def _is_harmless(name: str, words: list[str]) -> bool:
    own = _words(_SEGMENT.split(name)[-1])
    if own and own[0] in _HEADS and len(own) > 1:
        return True
    if words[-1] == "tokens":
        return len(words) > 1 and words[-2] in _COUNTED
    return "".join(words[-2:]) in _HARMLESS
