"""The flow of events as a Mermaid graph: who emits, what, who handles."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aperion.catalogue.contents import Catalogue


def mermaid(contents: Catalogue) -> str:
    """Return a flow chart from left to right, in Mermaid's syntax (version 10 or newer)."""
    return "\n".join(("flowchart LR", *_lines(contents))) + "\n"


def _lines(contents: Catalogue) -> Iterator[str]:
    names = _Names()
    for each in contents.types:
        yield f'    {names.of("t", each.name)}{{{{"{_text(each.name)}"}}}}'
    for each in contents.types:
        event_type = names.of("t", each.name)
        for place in dict.fromkeys(place.function or place.file for place in each.emitters):
            yield f'    {names.of("e", place)}("{_text(place)}") --> {event_type}'
        for handler in each.handlers:
            arrow = "-.->" if handler.paused else "-->"
            yield f'    {event_type} {arrow} {names.of("h", handler.subscription)}["{_text(handler.subscription)}"]'
    for name in contents.unreached:
        yield f'    {names.of("h", name)}["{_text(name)}"]:::orphan'
    for name in contents.unhandled:
        yield f"    {names.of('t', name)}:::orphan"
    yield "    classDef orphan stroke-dasharray: 5 5"


class _Names:
    """Ids of nodes: a letter and a number, since names may hold anything."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}

    def of(self, kind: str, name: str) -> str:
        return self._known.setdefault((kind, name), f"{kind}{len(self._known) + 1}")


def _text(name: str) -> str:
    """Return a name as Mermaid takes it between quotes: whatever could end them, or mean something, by its number."""
    return "".join(char if char.isalnum() or char in "._-: /" else f"#{ord(char)};" for char in name)
