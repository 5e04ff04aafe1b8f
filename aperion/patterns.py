"""The grammar of subscription patterns, and the index that finds those that match a type."""

from __future__ import annotations

import re
from typing import Generic, TypeVar

from aperion.errors import PatternError

T = TypeVar("T")

_SEGMENT = re.compile(r"[a-z][a-z0-9_]*")
STAR = "*"


def check_pattern(pattern: object, *, any_name: bool = False) -> str:
    """Return the pattern when it can match an event type.

    A trailing ``*`` stands for one or more segments, ``*`` elsewhere for exactly one, and ``*``
    alone for every event.

    Args:
        pattern: what a subscription asks for.
        any_name: accept the names that a bus with ``Naming(enabled=False)`` accepts.

    Raises:
        PatternError: for anything else.
    """
    if not isinstance(pattern, str) or not pattern.strip():
        handler_first = "it is a function, and the handler comes first: subscribe(handler, 'chat.*')"
        raise PatternError(pattern, handler_first if callable(pattern) else "it is not a non-empty string")
    segments = pattern.split(".")
    for segment in segments:
        if segment != STAR and (STAR in segment or not (any_name or _SEGMENT.fullmatch(segment))):
            raise PatternError(pattern, _complaint(segment))
    if len(segments) == 1 and segments != [STAR] and not any_name:
        raise PatternError(pattern, "an event type has at least two segments")
    return pattern


def is_exact(pattern: str) -> bool:
    """Tell whether a pattern is an event type, without any ``*``."""
    return STAR not in pattern


def matches(pattern: str, event_type: str) -> bool:
    """Tell whether one pattern matches one type: the rule in its plainest form, without an index."""
    segments, names = pattern.split("."), event_type.split(".")
    if segments[-1] == STAR:
        segments += [STAR] * (len(names) - len(segments))
    return len(segments) == len(names) and all(s in (STAR, n) for s, n in zip(segments, names, strict=True))


def overlap(one: str, other: str) -> bool:
    """Tell whether some event type matches both patterns."""
    left, right = one.split("."), other.split(".")
    if left[-1] == STAR:
        left += [STAR] * (len(right) - len(left))
    if right[-1] == STAR:
        right += [STAR] * (len(left) - len(right))
    return len(left) == len(right) and all(a == b or STAR in (a, b) for a, b in zip(left, right, strict=True))


def _complaint(segment: str) -> str:
    if not segment:
        return "it has an empty segment"
    if STAR in segment:
        return f"'*' stands for whole segments, and {segment!r} mixes it with text"
    return f"the segment {segment!r} has characters that no event type has"


class _Node(Generic[T]):
    __slots__ = ("children", "exact", "tail")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.exact: list[T] = []  # patterns that end here
        self.tail: list[T] = []  # patterns that end with a '*' below here

    def is_empty(self) -> bool:
        return not (self.children or self.exact or self.tail)


class PatternIndex(Generic[T]):
    """A trie over segments: finding what matches costs by what matches, not by what is stored.

    It takes no lock; its owner does.
    """

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, pattern: str, value: T) -> None:
        """Store a value under a pattern; the same pair may be stored several times."""
        segments = pattern.split(".")
        node = self._root
        for segment in _stem(segments):
            node = node.children.setdefault(segment, _Node())
        _ends(node, segments).append(value)

    def remove(self, pattern: str, value: T) -> None:
        """Take one pair out again, and the branches that only it used.

        Raises:
            ValueError: when the pair is not stored.
        """
        segments = pattern.split(".")
        path = [self._root]
        for segment in _stem(segments):
            path.append(path[-1].children[segment])
        _ends(path[-1], segments).remove(value)
        for parent, segment, node in reversed(list(zip(path, _stem(segments), path[1:], strict=False))):
            if node.is_empty():
                del parent.children[segment]

    def find(self, event_type: str) -> list[T]:
        """Return every value whose pattern matches, once for each pattern, in no order."""
        found: list[T] = []
        nodes = [self._root]
        for name in event_type.split("."):
            for node in nodes:
                found += node.tail
            nodes = [child for node in nodes for child in _step(node, name)]
        for node in nodes:
            found += node.exact
        return found


def _stem(segments: list[str]) -> list[str]:
    return segments[:-1] if segments[-1] == STAR else segments


def _ends(node: _Node[T], segments: list[str]) -> list[T]:
    return node.tail if segments[-1] == STAR else node.exact


def _step(node: _Node[T], name: str) -> list[_Node[T]]:
    children = (node.children.get(name), node.children.get(STAR))
    return [child for child in children if child is not None]
