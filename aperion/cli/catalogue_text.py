"""The catalogue of an application, and why a handler gets an event, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from aperion.cli.screen import safe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aperion.catalogue import Catalogue, EventType, Explanation, Field, Place, Reaction

_HEAD, _DIM, _BAD = "bold", "dim", "red"


def contents_shown(contents: Catalogue) -> Iterator[Text]:
    """Return the lines of the catalogue: a block for each type, and what is left over."""
    for each in contents.types:
        yield from _type_shown(each)
        yield Text()
    yield from _orphans(contents)


def _type_shown(event_type: EventType) -> Iterator[Text]:
    model = f"  {event_type.model}" if event_type.model else "  no model"
    yield Text.assemble((safe(event_type.name), _HEAD), (safe(model) + _at(event_type.place), _DIM))
    if event_type.description:
        yield Text(f"  {safe(event_type.description)}")
    if event_type.fields:
        yield from _part("fields", map(_field, event_type.fields))
    yield from _part("emitted", _emitters(event_type))
    yield from _part("handled", _handlers(event_type.handlers))


def _part(title: str, lines: Iterable[Text]) -> Iterator[Text]:
    for number, line in enumerate(lines):
        yield Text.assemble((f"  {title if number == 0 else '':<9}", _DIM), line)


def _field(field: Field) -> Text:
    optional = "" if field.required else ", optional"
    hidden = f", hidden as {field.sensitive}" if field.sensitive else ""
    about = f"  {safe(field.description)}" if field.description else ""
    return Text.assemble(safe(field.name), (f": {safe(field.type)}{optional}", _DIM), (hidden, "yellow"), about)


def _emitters(event_type: EventType) -> Iterator[Text]:
    for place in event_type.emitters:
        yield Text.assemble(safe(place.function or "(module)"), (_at(place), _DIM))
    if event_type.logged is not None:
        by = f" by {', '.join(map(safe, event_type.logged.sources))}" if event_type.logged.sources else ""
        yield Text(f"{event_type.logged.count:,} times in the audit log{by}")
    if not event_type.emitters and event_type.logged is None:
        yield Text("not seen", style=_DIM)


def _handlers(handlers: Sequence[Reaction]) -> Iterator[Text]:
    if not handlers:
        yield Text("by nobody", style=_BAD)
    width = max((len(safe(each.subscription)) for each in handlers), default=0)
    for number, each in enumerate(handlers, start=1):
        yield Text.assemble(
            (f"{number}. ", _DIM),
            f"{safe(each.subscription):<{width}}  ",
            ("; ".join(_options(each)), "yellow" if each.paused else _DIM),
            (_at(each.place), _DIM),
        )


def _options(handler: Reaction) -> Iterator[str]:
    if handler.paused:
        yield "paused"
    yield f"{safe(handler.pattern)} matches"
    yield f"priority {handler.priority}"
    yield handler.kind
    yield "no timeout" if handler.timeout is None else f"timeout {handler.timeout:g} s"
    if handler.attempts > 1:
        yield f"up to {handler.attempts} attempts"
    if handler.filtered:
        yield "only what its filter lets through"


def _at(place: Place | None) -> str:
    return f"  {safe(place)}" if place is not None else ""


def _orphans(contents: Catalogue) -> Iterator[Text]:
    yield Text.assemble((f"{len(contents.types):,} types of events", _HEAD), (f" in {safe(contents.title)}", _DIM))
    yield from _left("nobody handles", contents.unhandled, "but for handlers of everything")
    yield from _left("nothing reaches", contents.unreached, "no type that is known matches their patterns")
    yield from _left("emitted, and the source does not tell what", map(str, contents.unknown), "")


def _left(title: str, names: Iterable[str], why: str) -> Iterator[Text]:
    shown = [safe(name) for name in names]
    if shown:
        reason = f" ({why})" if why else ""
        yield Text.assemble((f"{title}: ", _BAD), ", ".join(shown), (reason, _DIM))


def explanation_shown(found: Explanation) -> Iterator[Text]:
    """Return the lines about one type: who gets it in which order, and who nearly does."""
    model = f"  {found.model}" if found.model else "  no model"
    yield Text.assemble((safe(found.event_type), _HEAD), (safe(model), _DIM))
    if found.refusal is not None:
        yield Text(f"emit refuses it: {safe(found.refusal)}", style=_BAD)
    if found.near and repr(found.near[0]) not in (found.refusal or ""):
        yield Text(f"nobody knows this type; did you mean {' or '.join(map(safe, found.near))}?", style="yellow")
    if found.refusal is not None:
        return
    yield Text("\nruns, in this order: the highest priority first, equal ones as they were subscribed", style=_DIM)
    yield from (Text.assemble("  ", line) for line in _handlers(found.handlers))
    if found.misses:
        yield Text("\ndoes not run", style=_DIM)
    for miss in found.misses:
        yield Text.assemble(f"  {safe(miss.subscription)}  ", (f"{safe(miss.pattern)}: {safe(miss.why)}", _DIM))
