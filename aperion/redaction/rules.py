"""What one redactor hides, shared by all its walks, and how far each of them goes."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

from aperion.redaction.names import FieldView, Hides, KeyView, Scrub

_REMEMBERED: Final = 1024


class Limits(NamedTuple):
    """How far a walk goes."""

    depth: int
    nodes: int
    seconds: float


class HideValue(Protocol):
    """Returns what stands in place of a value of any class, for its type or for the name it stands under."""

    def __call__(self, kind: str, value: object, found: list[str], name: object = "") -> object:
        """Note the type, and return what stands in its place."""


class Rules:
    """What one redactor hides; shared by all its walks."""

    # Mutable: failures counts, the caches grow to their bounds.
    __slots__ = (
        *(
            "_fields",
            "_markers",
            "clean",
            "default_names",
            "drops",
            "failures",
            "hide",
            "hides",
            "limits",
            "names",
            "public",
        ),
        *("scrub", "scrub_version"),
    )

    def __init__(  # noqa: PLR0913 - every one is a part of what a redactor is told
        self,
        hides: Hides,
        scrub: Scrub,
        limits: Limits,
        *,
        hide: HideValue,
        scrub_version: Scrub | None = None,
        clean: set[int] | None = None,
        drops: bool = False,
        default_names: bool = False,
        markers: bool = True,
        public: Rules | None = None,
    ) -> None:
        self.hides = hides
        self.scrub = scrub
        self.scrub_version = scrub_version or scrub
        self.clean = clean  # hashes of texts with nothing to hide; None where nothing is looked at
        self.hide = hide
        self.drops = drops
        self.default_names = default_names  # whether names mean what they mean to everybody
        self.limits = limits
        self.public = self if public is None else public  # what holds inside a Public field
        self.failures = 0
        self.names = KeyView(hides, scrub, cards=public is not None)
        self._markers = markers
        self._fields: dict[type[Any], FieldView] = {}

    def fields(self, kind: type[Any]) -> FieldView:
        """Return what is known about the fields of a class."""
        known = self._fields.get(kind)
        if known is None:
            if len(self._fields) >= _REMEMBERED:
                self._fields.clear()
            known = self._fields[kind] = FieldView(kind, self.hides, markers=self._markers)
        return known
