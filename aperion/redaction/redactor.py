"""The redactor: one object that hides what nobody should read, wherever the bus shows something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakMethod

from aperion.errors import ConfigurationError
from aperion.redaction.custom import compiled
from aperion.redaction.keys import Keys, flattened
from aperion.redaction.kinds import checked, names
from aperion.redaction.markers import DROPPED, FAILED, KEY, REDACTED, kept, kind_marker, kind_name
from aperion.redaction.modes import Mode, Modes, RedactionKey
from aperion.redaction.rules import Limits, Rules
from aperion.redaction.text import TextRules
from aperion.redaction.tracebacks import message_of, traceback_of
from aperion.redaction.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_NOTHING: Final[MappingProxyType[str, Any]] = MappingProxyType({})
_TELLABLE: Final = (str, int, float, bytes)


class Report(Protocol):
    """Takes the type of each value that was hidden; ``collections.Counter`` counts them."""

    def update(self, types: Iterable[str], /) -> object:
        """Add types, one for each value."""


class Redactor:
    r"""Hides secrets and personal data in payloads, texts and errors; what it is given is never changed.

    It never raises: what it cannot read is hidden, and counted in ``failures``. It may be used from
    any thread. Doing it twice changes nothing more, and the time it takes is linear in what it is given.

    Examples:
        >>> redactor = Redactor(redact_keys={"badge"})
        >>> redactor.redact({"user": "ada", "dbPassword": "hunter2", "Badge": 7})
        {'user': 'ada', 'dbPassword': '[REDACTED]', 'Badge': '[REDACTED]'}
        >>> redactor.redact_text("ask ada@example.com for postgres://app:hunter2@db/users")
        'ask [REDACTED_EMAIL] for postgres://app:[REDACTED_URL_PASSWORD]@db/users'

    Args:
        redact_keys: names to hide besides those hidden by default; case and word breaks do not matter.
        patterns: regular expressions to hide, by type: ``{"BADGE": r"\bB-\d{6}\b"}``. One that could take
            more than linear time runs on re2 (``aperion-bus[re2]``) or is refused.
        skip_types: types that are not hidden, such as ``{"IP"}``; ``KEY`` stands for all that is hidden for
            its name.
        only_types: these types are hidden, and no others; the types of ``patterns`` always are.
        default_keys: False hides only the names in ``redact_keys`` and ``key_modes``.
        modes: what is written instead, by type: ``{"EMAIL": Mode.PSEUDONYM}``; ``Mode.MASK`` for all others.
        key_modes: the same by name, for entries of mappings and fields: ``{"user_id": Mode.PSEUDONYM}``.
        key: the key for pseudonyms and encryption.
        previous_keys: keys of before, with which ``reveal`` reads what was encrypted then.
        enabled: False hides nothing, except ``SecretStr`` and the like, and still copies.
        max_text: characters of one text; what is longer is cut, and its end says so.
        max_depth: nested containers; what is deeper is hidden.
        max_nodes: entries of all containers together; a container that holds more is hidden.
        max_seconds: time for one ``redact``; containers that are reached later are hidden.

    Raises:
        ConfigurationError: for a name that is no text or has no letter or digit, an unknown type, a pattern
            that is no good, a mode without its key, or a limit that leaves nothing.
    """

    __slots__ = ("_counts", "_key_modes", "_listeners", "_lock", "_max_text", "_modes", "_rules")

    def __init__(  # noqa: PLR0913 - each is one thing that users ask of a redactor
        self,
        *,
        redact_keys: Iterable[str] = (),
        patterns: Mapping[str, str] = _NOTHING,
        skip_types: Collection[str] = (),
        only_types: Collection[str] | None = None,
        default_keys: bool = True,
        modes: Mapping[str, Mode] = _NOTHING,
        key_modes: Mapping[str, Mode] = _NOTHING,
        key: RedactionKey | None = None,
        previous_keys: Iterable[RedactionKey] = (),
        enabled: bool = True,
        max_text: int = 65_536,
        max_depth: int = 64,
        max_nodes: int = 100_000,
        max_seconds: float = 5.0,
    ) -> None:
        limits = {"max_text": max_text, "max_depth": max_depth, "max_nodes": max_nodes, "max_seconds": max_seconds}
        for name, limit in limits.items():
            if limit < 1 and not (name == "max_seconds" and limit > 0):
                raise ConfigurationError(f"{name}={limit} leaves nothing to show; pass at least 1")
        custom = compiled(patterns)
        shown = _shown(skip_types, only_types, patterns)
        checked("modes", modes.keys(), patterns)
        self._key_modes = {flattened(name): (kind_name(name), mode) for name, mode in key_modes.items()}
        keys = Keys([*_checked("redact_keys", redact_keys), *_checked("key_modes", key_modes)], defaults=default_keys)
        self._modes = Modes(modes, key_modes, [*([key] if key else []), *previous_keys])
        self._counts: Counter[str] = Counter()
        self._lock = Lock()
        self._listeners: tuple[WeakMethod[Callable[[Counter[str]], object]], ...] = ()
        self._max_text = max_text
        hides = _hides_nothing if KEY in shown else keys.hides
        text = TextRules(keys, max_text, self._modes, custom, shown)
        bounds = Limits(max_depth, max_nodes, max_seconds)
        public = Rules(_hides_nothing, _as_it_is, bounds, hide=self._hidden, markers=enabled)
        self._rules = public
        if enabled:
            drops = Mode.DROP in {*modes.values(), *key_modes.values()}
            self._rules = Rules(
                *(hides, text.redact, bounds),
                hide=self._hidden,
                scrub_version=text.redact_version,
                clean=text.clean,
                drops=drops,
                default_names=default_keys and KEY not in shown,
                public=public,
            )

    @property
    def enabled(self) -> bool:
        """Whether anything is hidden."""
        return self._rules.public is not self._rules

    @property
    def failures(self) -> int:
        """How many values could not be read, and were hidden for that."""
        return self._rules.failures

    @property
    def counts(self) -> dict[str, int]:
        """How many values were hidden since it was made, by type."""
        with self._lock:
            return dict(self._counts)

    def redact(self, obj: object, report: Report | None = None, *, like: type[Any] | None = None) -> object:
        """Return a redacted copy in plain containers.

        Mappings, models, dataclasses and named tuples become dicts, other collections lists; numbers,
        dates, UUIDs, enums and other atoms stay; an exception is shown as its class and message, an object
        of any other class as ``<Class>``.

        Args:
            obj: anything.
            report: the number of hidden values is added to it, by type; it never gets a value.
            like: a model or dataclass that a mapping was meant for, whose ``Sensitive`` fields are hidden in it.
        """
        found: list[str] = []
        walk = Walk(self._rules, found)
        try:
            if like is not None and isinstance(obj, Mapping):
                copy: object = walk.mapping_like(obj, like)
            else:
                copy = walk.value(obj)
        except Exception:  # noqa: BLE001 - the caller is never to suffer from what it wants to hide
            copy = self._failed()
        if found:
            self._count(found, report)
        return REDACTED if copy is DROPPED else copy

    def redact_text(self, text: str, report: Report | None = None) -> str:
        """Return a text without what is secret or personal in it.

        Args:
            text: any text; it takes time linear in its length.
            report: the number of hidden values is added to it, by type; it never gets a value.
        """
        found: list[str] = []
        try:
            clean: str = kept(self._rules.scrub(text, found))
        except Exception:  # noqa: BLE001
            clean = self._failed()
        if found:
            self._count(found, report)
        return clean

    def redact_exception(self, error: BaseException) -> tuple[str, str]:
        """Return the message of an exception on one line, and its traceback without local variables.

        The traceback has causes, contexts, notes and the members of groups. The message of pydantic's
        ``ValidationError`` names fields and rules, never the values.
        """
        found: list[str] = []

        def scrub(text: str) -> str:
            return str(kept(self._rules.scrub(text, found)))

        try:
            return " ".join(message_of(error, scrub).split()), traceback_of(error, scrub, self._max_text)
        except Exception:  # noqa: BLE001
            return self._failed(), FAILED
        finally:
            if found:
                self._count(found, None)

    def report_to(self, listener: Callable[[Counter[str]], object]) -> None:
        """Call a bound method with the counts by type whenever something was hidden.

        It is called on the thread that redacts, right then, must not raise, and is held weakly.
        """
        living = (known for known in self._listeners if known() is not None)
        self._listeners = (*living, WeakMethod(listener))

    def reveal(self, marker: str) -> str:
        """Return the value that a marker written in ``Mode.ENCRYPT`` holds.

        Raises:
            ConfigurationError: where it is no such marker, its key is not here, or it was changed.
        """
        return self._modes.reveal(marker)

    def _hidden(self, kind: str, value: object, found: list[str], name: object = "") -> object:
        """Return what stands in place of a value that its name or its class hides."""
        if isinstance(value, str) and self._modes.known.fullmatch(value) is not None:
            return value  # it was hidden before
        found.append(kind)
        mode = None
        if self._key_modes and isinstance(name, str):
            kind, mode = self._key_modes.get(flattened(name), (kind, None))
        if mode is Mode.DROP or (mode is None and self._modes.drops(kind)):
            return DROPPED
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        return self._modes.marker(kind, str(value), mode) if isinstance(value, _TELLABLE) else kind_marker(kind)

    def _count(self, found: list[str], report: Report | None) -> None:
        with self._lock:
            self._counts.update(found)
        for known in self._listeners:
            listener = known()
            if listener is not None:
                listener(Counter(found))
        if report is not None:
            report.update(found)

    def _failed(self) -> str:
        self._rules.failures += 1
        return FAILED


def _shown(skip: Collection[str], only: Collection[str] | None, patterns: Mapping[str, str]) -> frozenset[str]:
    """Return the types that are not hidden."""
    skipped = checked("skip_types", skip, patterns)
    if only is None:
        return skipped
    return skipped | (names() - checked("only_types", only, patterns) - frozenset(patterns))


def _checked(option: str, given: Iterable[str]) -> list[str]:
    if isinstance(given, str):
        raise ConfigurationError(f"{option}={given!r} is one string; pass a set of names")
    checked_names = list(given)
    for name in checked_names:
        if not isinstance(name, str) or not flattened(name):
            raise ConfigurationError(f"{option} holds {name!r}, which is no name; pass words: 'badge_id'")
    return checked_names


def _hides_nothing(_name: str) -> bool:
    return False


def _as_it_is(text: str, found: list[str]) -> str:  # noqa: ARG001 - nothing is found
    return text
