"""The nodes of a YAML text with the offsets of their characters, so that a few can be replaced and the rest kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from optbench.suite.scalars import TAG

_PROPERTY = re.compile(r"&[0-9A-Za-z_-]+|!\S*")
_SPACE = re.compile(r"(?:\s|(?<=\s)#[^\r\n\x85\u2028\u2029]*)*")
_COLON = re.compile(r"[ \t]*:")
_NULLS = ("", "~", "null", "Null", "NULL")


@dataclass(eq=False)
class Node:
    """A scalar, a list, a mapping, or an alias of one; offsets count the characters of the text."""

    kind: Literal["scalar", "list", "mapping", "alias"]
    start: int
    """Of its anchor or tag, where it has one."""
    bare: int
    """Behind its anchor and tag."""
    inside: int
    """Of its content: a scalar's first character, the first key or item of a block, the bracket of `{}` and `[]`."""
    end: int
    """Behind its last character; comments, blank lines and the last line break of a block do not belong to it."""
    after: int
    """As `end`, but behind the line breaks of block text, some of which are content."""
    block_text: bool = False
    """It is, or ends in, text behind `|` or `>`."""
    flow: bool = False
    """Between brackets, or a scalar on one line."""
    anchor: str | None = None
    tag: str | None = None
    plain: bool = False
    text: str = ""
    """A scalar's value, as text."""
    items: list[Node] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    aliased: Node | None = None

    @property
    def target(self) -> Node:
        """What an alias stands for; every other node itself."""
        return self.aliased or self

    @property
    def is_null(self) -> bool:
        if self.kind != "scalar":
            return False
        return self.tag == TAG + "null" or (self.tag is None and self.plain and self.text in _NULLS)

    def own(self, key: str) -> Pair | None:
        """The pair with this key that stands in the mapping itself."""
        return next((pair for pair in self.pairs if not pair.is_merge and pair.key.target.text == key), None)

    def entries(self) -> dict[str, Node]:
        """A mapping's keys and values: those merged in with `<<` first, as `optbench.suite.document` orders them."""
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for pair in self.pairs:
            if pair.is_merge:
                value = pair.value.target
                for source in value.items if value.kind == "list" else [value]:
                    for key, item in source.target.entries().items():
                        merged.setdefault(key, item)
            else:
                own[pair.key.target.text] = pair.value
        return {**{key: value for key, value in merged.items() if key not in own}, **own}

    def within(self) -> Iterator[Node]:
        """The node and all that is written in it, in the order of the text."""
        yield self
        for item in self.items:
            yield from item.within()
        for pair in self.pairs:
            yield from pair.key.within()
            yield from pair.value.within()


@dataclass(frozen=True)
class Pair:
    """A key and its value in a mapping."""

    key: Node
    value: Node
    colon: int | None
    """Behind the colon; None where there is none (`{sgd}`) or a `?` before the key lets it stand elsewhere."""

    @property
    def is_merge(self) -> bool:
        return self.key.plain and self.key.tag in (None, TAG + "merge") and self.key.text == "<<"


def read_nodes(text: str) -> Node:
    """The root of a text that `optbench.suite.document.parse_yaml` accepts."""
    return _Reader(text).root


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.anchors: dict[str, Node] = {}
        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        while not isinstance(event := next(self.events), yaml.NodeEvent):
            pass  # the beginnings of the stream and of the document
        self.root = self.node(event)

    def node(self, event: Any) -> Node:
        start, end, anchor = event.start_mark.index, event.end_mark.index, event.anchor
        if type(event) is yaml.AliasEvent:
            return Node("alias", start, start, start, end, end, flow=True, aliased=self.anchors[anchor])
        kind: Literal["scalar", "list", "mapping"] = "scalar"
        if isinstance(event, yaml.CollectionStartEvent):
            kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "mapping"
        bare, inside = self.properties(event)
        node = Node(kind, start, bare, inside, end, end, anchor=anchor, tag=event.tag)
        if anchor:
            self.anchors[anchor] = node
        if isinstance(event, yaml.ScalarEvent):
            self.scalar(node, event)
        else:
            node.flow = bool(event.flow_style)
            self.collection(node)
        return node

    def properties(self, event: Any) -> tuple[int, int]:
        """Where a node's anchor and tag end, and where what follows them begins."""
        bare = inside = event.start_mark.index
        for _ in filter(None, (event.anchor, event.tag)):
            bare = _end(_PROPERTY, self.text, inside)
            inside = _end(_SPACE, self.text, bare)
        return bare, inside

    def scalar(self, node: Node, event: Any) -> None:
        node.text = event.value
        node.plain = event.style is None
        node.inside = min(node.inside, node.end)  # an anchor with nothing behind it
        node.block_text = event.style in ("|", ">")
        if node.block_text:
            node.end = node.start + len(self.text[node.start : node.end].rstrip())
        node.flow = not node.block_text and len(self.text[node.inside : node.end].splitlines()) <= 1

    def collection(self, node: Node) -> None:
        end_event = yaml.MappingEndEvent if node.kind == "mapping" else yaml.SequenceEndEvent
        event: Any = next(self.events)
        while not isinstance(event, end_event):
            if node.kind == "list":
                node.items.append(self.node(event))
            else:
                node.pairs.append(self.pair(self.node(event), self.node(next(self.events))))
            event = next(self.events)
        last = node.items[-1] if node.items else node.pairs[-1].value if node.pairs else None
        if node.flow or last is None:
            assert event.end_mark is not None, "what is read from text has its place"
            node.end = node.after = event.end_mark.index
        else:
            node.end, node.after, node.block_text = last.end, last.after, last.block_text

    def pair(self, key: Node, value: Node) -> Pair:
        colon = _COLON.match(self.text, key.end)
        if colon is None and value.start == value.end:
            # PyYAML puts a missing value where the next token is.
            value.start = value.bare = value.inside = value.end = value.after = key.end
        return Pair(key, value, colon.end() if colon else None)


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    assert found is not None, "the pattern matches nothing, too"
    return found.end()
