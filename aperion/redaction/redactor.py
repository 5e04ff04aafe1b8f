"""The redactor: one object that hides what nobody should read, wherever the bus shows something."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aperion.errors import ConfigurationError
from aperion.redaction.keys import Keys, flattened
from aperion.redaction.markers import FAILED, REDACTED
from aperion.redaction.text import TextRules
from aperion.redaction.tracebacks import message_of, traceback_of
from aperion.redaction.walk import Limits, Rules, Walk

if TYPE_CHECKING:
    from collections.abc import Iterable


class Redactor:
    """Hides secrets and personal data in payloads, texts and errors; what it is given is never changed.

    It never raises: what it cannot read is hidden, and counted in ``failures``. It may be used from
    any thread.

    >>> redactor = Redactor(redact_keys={"badge"})
    >>> redactor.redact({"user": "ada", "dbPassword": "hunter2", "Badge": 7})
    {'user': 'ada', 'dbPassword': '[REDACTED]', 'Badge': '[REDACTED]'}
    >>> redactor.redact_text("connect to postgres://app:hunter2@db/users")
    'connect to postgres://app:[REDACTED]@db/users'

    Args:
        redact_keys: names to hide besides those hidden by default; case and word breaks do not matter.
        enabled: False hides nothing, except ``SecretStr`` and the like, and still copies.
        max_text: characters of one text; what is longer is cut, and its end says so.
        max_depth: nested containers; what is deeper is hidden.
        max_nodes: entries of all containers together; a container that holds more is hidden.

    Raises:
        ConfigurationError: for a name that is no text or has no letter or digit, or a limit below one.
    """

    __slots__ = ("_max_text", "_rules")

    def __init__(
        self,
        *,
        redact_keys: Iterable[str] = (),
        enabled: bool = True,
        max_text: int = 65_536,
        max_depth: int = 64,
        max_nodes: int = 100_000,
    ) -> None:
        for name, limit in (("max_text", max_text), ("max_depth", max_depth), ("max_nodes", max_nodes)):
            if limit < 1:
                raise ConfigurationError(f"{name}={limit} leaves nothing to show; pass at least 1")
        keys = Keys(_checked(redact_keys))
        self._max_text = max_text
        limits = Limits(max_depth, max_nodes)
        public = Rules(_hides_nothing, _as_it_is, limits, markers=enabled)
        text = TextRules(keys, max_text, _mask)
        self._rules = Rules(keys.hides, text.redact, limits, public=public) if enabled else public

    @property
    def enabled(self) -> bool:
        """Whether anything is hidden."""
        return self._rules.public is not self._rules

    @property
    def failures(self) -> int:
        """How many values could not be read, and were hidden for that."""
        return self._rules.failures

    def redact(self, obj: object) -> object:
        """Return a redacted copy in plain containers.

        Mappings, models, dataclasses and named tuples become dicts, other collections lists; numbers,
        dates, UUIDs, enums and other atoms stay; an object of any other class is shown as ``<Class>``.
        """
        try:
            return Walk(self._rules).value(obj)
        except Exception:  # noqa: BLE001 - the caller is never to suffer from what it wants to hide
            return self._failed()

    def redact_text(self, text: str) -> str:
        """Return a text without the credentials in it, such as ``password=…``, ``Bearer …`` and ``://user:…@``.

        Doing it twice changes nothing more. It takes time linear in the text.
        """
        try:
            return self._rules.scrub(text)
        except Exception:  # noqa: BLE001
            return self._failed()

    def redact_exception(self, error: BaseException) -> tuple[str, str]:
        """Return the message of an exception on one line, and its traceback without local variables.

        The traceback has causes, contexts, notes and the members of groups. The message of pydantic's
        ``ValidationError`` names fields and rules, never the values.
        """
        scrub = self._rules.scrub
        try:
            return " ".join(message_of(error, scrub).split()), traceback_of(error, scrub, self._max_text)
        except Exception:  # noqa: BLE001
            return self._failed(), FAILED

    def _failed(self) -> str:
        self._rules.failures += 1
        return FAILED


def _checked(names: Iterable[str]) -> list[str]:
    if isinstance(names, str):
        raise ConfigurationError(f"redact_keys={names!r} is one string; pass a set of names")
    checked = list(names)
    for name in checked:
        if not isinstance(name, str) or not flattened(name):
            raise ConfigurationError(f"redact_keys holds {name!r}, which is no name; pass words: 'badge_id'")
    return checked


def _hides_nothing(_name: str) -> bool:
    return False


def _as_it_is(text: str) -> str:
    return text


def _mask(kind: str, _value: str) -> str:
    return REDACTED if kind == "KEY" else f"[REDACTED_{kind}]"
