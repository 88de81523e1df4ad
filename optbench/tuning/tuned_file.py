"""Changing values in the text of a suite file, with its comments and everything else as they were.

Only the characters of what changes are replaced: a YAML writer that keeps comments (ruamel.yaml) still wraps lines,
moves lists, drops anchors without aliases and comments inside brackets, and forgets how null and line ends looked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optbench.errors import SuiteError, escaped
from optbench.suite.document import Place, parse_yaml
from optbench.suite.faults import shown_path
from optbench.suite.scalars import TAG
from optbench.tuning.yaml_nodes import Node, Pair, read_nodes
from optbench.tuning.yaml_values import WIDTH, Written, flow_text, scalar_text, wrapped

MARKER = "# Hyper-parameters chosen by optbench tune:"
"""The first line of the header that `edited` writes; the lines below it begin with `#   `."""

_BOM = "\ufeff"
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
_HEADER = re.compile(rf"{re.escape(MARKER)}[ \t]*(?:\r\n|\n|\r|\Z)(?:#   [^\r\n]*(?:\r\n|\n|\r|\Z))*(?:\r\n|\n|\r)?")
_DASH = re.compile(r"(\s*)-[ \t]+")


@dataclass(frozen=True)
class Edit:
    """One value to set in a suite file."""

    path: tuple[str, ...]
    """The keys that lead to it: `("experiments", "digit-pairs", "optimizers", "shampoo", "base", "lr")`."""
    value: Any
    """None, a bool, a finite number or text; or a list, or a mapping with text keys, of such."""
    alone: bool = False
    """What names the value by an alias keeps what it had, instead of following."""


def edited(text: str, edits: Sequence[Edit], header: Sequence[str] = (), *, source: str = "suite") -> str:
    """The text of a suite file with values set, one edit after the other; what is not edited stays as it was.

    text: as in the file, with its own line ends and, if it has one, its byte-order mark.
    header: comment lines for the top of the file, below `MARKER`; they replace a header written earlier. Without any,
        the header stays, if there is one.
    source: names the text in messages.

    A value that has an anchor keeps it, so what names it by an alias follows, unless the edit is `alone`. A path
    through an alias changes nothing for others: the alias becomes a copy first. What comes through `<<` is set in the
    mapping that merges it. Keys that are missing on the way are made; an experiment's list of optimizers, or none,
    becomes the mapping it stands for.

    Raises:
        SuiteError: `source:line:column: ...`, for a text that is not a suite's YAML, and for a path through a single
            value, a list or a key behind a `?`.
    """
    bom = _BOM if text.startswith(_BOM) else ""
    draft = _Draft(text.removeprefix(_BOM), source)
    for edit in edits:
        draft.apply(edit)
    parse_yaml(draft.text, source)
    return bom + _with_header(draft.text, header, draft.line_break)


def _with_header(text: str, header: Sequence[str], line_break: str) -> str:
    if not header:
        return text
    lines = [f"#   {escaped(line.rstrip())}" for part in header for line in part.splitlines() if line.strip()]
    earlier = _HEADER.match(text)
    # The empty line keeps the file's own comments out of the header, which ends where a line is no longer one of it.
    return line_break.join([MARKER, *lines, "", text[earlier.end() if earlier else 0 :]])


class _Block(dict[str, Any]):
    """A mapping for a line per key, even where it would fit into one."""


class _Draft:
    """The text so far, and its nodes."""

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self.document = parse_yaml(text, source)
        if not isinstance(self.document.value, dict):
            raise SuiteError(f"{self.document.value_place(())}: a suite needs to be a mapping")
        first_break = _LINE_BREAK.search(text)
        self.line_break = first_break[0] if first_break and first_break[0] in ("\r\n", "\n", "\r") else "\n"
        self.root = read_nodes(text)
        self.step = self.indentation()

    def indentation(self) -> int:
        """How many columns further right the blocks of this file stand than what they belong to."""
        for outer in self.root.within():
            if outer.kind == "mapping" and not outer.flow:
                for pair in outer.pairs:
                    if pair.value.kind == "mapping" and not pair.value.flow:
                        return self.column(pair.value.inside) - self.column(outer.inside)
        return 2

    def column(self, offset: int) -> int:
        return offset - max((found.end() for found in _LINE_BREAK.finditer(self.text, 0, offset)), default=0)

    def line_end(self, offset: int) -> int:
        found = _LINE_BREAK.search(self.text, offset)
        return found.start() if found else len(self.text)

    def apply(self, edit: Edit) -> None:
        assert edit.path, "an edit names what it changes"
        while not self.attempt(edit):
            pass  # what stood in the way has been rewritten

    def attempt(self, edit: Edit) -> bool:
        """Set the value, or rewrite the first node that the path cannot lead through; whether the value is set."""
        here = self.root
        for depth, key in enumerate(edit.path, start=1):
            path, rest = edit.path[:depth], edit.path[depth:]
            new = self.made(path, rest, edit.value)
            pair = here.own(key)
            if pair is None:
                merged = here.entries().get(key) if rest else None
                self.insert(here, key, new if merged is None else _copy(merged.target, self.text))
                return merged is None
            if not here.flow and (pair.colon is None or self.column(pair.key.start) != self.column(here.inside)):
                raise self.refusal(path, "is a key with a '?' before it; it needs the form 'key: value'")
            value = pair.value
            if not rest and self.says(value, edit.value):
                return True
            if not rest or value.target.is_null:
                self.replace(here, pair, new, alone=edit.alone)
                return True
            if _is_name_list(path, value.target):
                self.replace_name_list(here, pair)
                return False
            if value.target.kind != "mapping":
                what = "a list" if value.target.kind == "list" else "a single value"
                raise self.refusal(path, f"is {what}, not a mapping; it has no '{escaped(rest[0])}'")
            if value.kind == "alias":
                self.replace(here, pair, _copy(value.target, self.text))
                return False
            here = value
        raise AssertionError("the last key of a path has nothing behind it")

    def says(self, node: Node, value: Any) -> bool:
        """Whether a node has this value already and keeps it, whatever else is changed."""
        if any(part.kind == "alias" for part in node.within()):
            return False
        present = parse_yaml(flow_text(_copy(node, self.text)), self.source).value
        return json.dumps(present) == json.dumps(value)  # unlike `==`, this tells 1, 1.0 and true apart

    def refusal(self, path: tuple[str, ...], message: str) -> SuiteError:
        return SuiteError(f"{self.document.value_place(path)}: '{escaped(shown_path(path))}' {message}")

    def made(self, path: tuple[str, ...], rest: tuple[str, ...], value: Any) -> Any:
        """What needs to stand at `path`, where there is nothing, for `value` to be at `rest` inside it."""
        if not rest:
            return value
        if _lists_optimizers(path):
            every = self.root.entries().get("optimizers")
            names = every.target.entries() if every is not None else {}
            for key in reversed(rest[1:]):
                value = {key: value}
            return _Block({name: {} for name in names} | {rest[0]: value})
        return _Block({rest[0]: self.made((*path, rest[0]), rest[1:], value)})

    def insert(self, mapping: Node, key: str, value: Any) -> None:
        """Add a last key to a mapping."""
        if mapping.flow:
            new = f"{scalar_text(key)}: {flow_text(value)}"
            at = mapping.pairs[-1].value.end if mapping.pairs else mapping.inside + 1
            before = ", " if mapping.pairs else ""
            self.rewrite((at, at, before + new + (" " if self.text[at] == "#" else "")))
            return
        lines = self.entry(key, value, self.column(mapping.inside))
        if not mapping.block_text:
            at = self.line_end(mapping.end)
            self.rewrite((at, at, "".join(self.line_break + line for line in lines)))
            return
        # Block text comes last: what stands in front of its line breaks would be read as more of it.
        if not _LINE_BREAK.fullmatch(self.text[mapping.after - 1]):
            end = Place(self.source, len(_LINE_BREAK.findall(self.text)) + 1, self.column(len(self.text)) + 1)
            raise SuiteError(f"{end}: needs a line break at the end of the file, behind the block text")
        self.rewrite((mapping.after, mapping.after, "".join(line + self.line_break for line in lines)))

    def replace(self, mapping: Node, pair: Pair, value: Any, *, alone: bool = False) -> None:
        """Put another value behind a key; its anchor stays, or goes to the first alias where the value is `alone`."""
        old = pair.value
        anchor = f"&{old.anchor} " if old.anchor and not alone else ""
        moved = self.moved_anchors(old, alone=alone)
        if mapping.flow:
            new = anchor + flow_text(value)
            if old.start == old.end:
                new = (": " if pair.colon is None else " ") + new
            self.rewrite((old.start, old.end, new), *moved)
            return
        assert pair.colon is not None
        column = self.column(pair.colon)
        inline, below = self.layout(value, self.column(mapping.inside), column + len(anchor))
        gap, remarks = self.text[pair.colon : old.start], self.text[old.bare : old.inside]
        if below:
            end = self.line_end(old.end)
            remarks = gap.rstrip() + remarks.rstrip() + self.text[old.end : end]
            new = "".join(self.line_break + line for line in below)
            self.rewrite((pair.colon, end, f" {anchor}".rstrip() + remarks + new), *moved)
        elif gap and not _LINE_BREAK.search(gap + remarks):
            self.rewrite((pair.colon, old.end, gap + anchor + inline), *moved)
        else:
            comments = gap.rstrip() + remarks.rstrip()
            self.rewrite((pair.colon, old.end, f" {anchor}{inline}{comments}"), *moved)

    def moved_anchors(self, old: Node, *, alone: bool) -> list[tuple[int, int, str]]:
        """Where an anchor goes with the value it stands in, the first alias of it takes its place."""
        gone = set(old.within()) - (set() if alone else {old})
        changes = []
        for node in gone:
            left = (alias for alias in self.root.within() if alias.aliased is node and alias not in gone)
            if alias := next(left, None):
                changes.append((alias.start, alias.end, f"&{node.anchor} {flow_text(_copy(node, self.text))}"))
        return changes

    def replace_name_list(self, mapping: Node, pair: Pair) -> None:
        """`optimizers: [sgd, adam]` becomes `optimizers: {sgd: {}, adam: {}}`, in the lines it stands in."""
        old = pair.value
        one_line_list = old.flow and not _LINE_BREAK.search(self.text, old.inside, old.end)
        dashes = [self.dash(item) for item in old.items]
        if old.kind == "alias" or (one_line_list and not mapping.flow) or (not old.flow and None in dashes):
            names = [item.target.text for item in old.target.items]
            self.replace(mapping, pair, _Block({name: {} for name in names}))
            return
        changes = []
        for item, dash in zip(old.items, dashes, strict=True):
            if dash is not None and not old.flow:
                indented = self.column(dash) > self.column(mapping.inside)
                changes.append((dash, item.start, "" if indented else " " * self.step))
            name = scalar_text(item.target.text) if item.kind == "alias" else self.text[item.start : item.end]
            changes.append((item.start, item.end, f"{name}: {{}}"))
        if old.flow:
            changes += [(old.inside, old.inside + 1, "{"), (old.end - 1, old.end, "}")]
        self.rewrite(*changes)

    def dash(self, item: Node) -> int | None:
        """Where the dash before an item of a block list is, if it stands alone before it."""
        found = _DASH.fullmatch(self.text, item.start - self.column(item.start), item.start)
        return found.end(1) if found else None

    def entry(self, key: str, value: Any, column: int) -> list[str]:
        """The lines of a key and its value in a block mapping at `column`."""
        head = f"{' ' * column}{scalar_text(key)}:"
        inline, below = self.layout(value, column, len(head))
        return [f"{head} {inline}".rstrip(), *below]

    def layout(self, value: Any, column: int, used: int) -> tuple[str, list[str]]:
        """What follows the colon of a key at `column`, in a line with `used` columns; or else the lines below it."""
        flow = flow_text(value)
        fits = used + 1 + len(flow) <= WIDTH and not isinstance(value, _Block)
        if fits or not value or not isinstance(value, dict | list | tuple):
            return flow, []
        inner = column + self.step
        if isinstance(value, dict):
            return "", [line for key, item in value.items() for line in self.entry(key, item, inner)]
        return "", wrapped(value, inner)

    def rewrite(self, *changes: tuple[int, int, str]) -> None:
        for start, end, new in sorted(changes, reverse=True):
            self.text = self.text[:start] + new + self.text[end:]
        self.root = read_nodes(self.text)


def _lists_optimizers(path: tuple[str, ...]) -> bool:
    return len(path) == 3 and path[0] == "experiments" and path[2] == "optimizers"


def _is_name_list(path: tuple[str, ...], node: Node) -> bool:
    """Whether this is an experiment's short list of optimizers, each named once."""
    names = [item.target.text for item in node.items if item.target.kind == "scalar"]
    return _lists_optimizers(path) and node.kind == "list" and len(set(names)) == len(node.items)


def _copy(node: Node, text: str) -> Any:
    """A node's value, to be written elsewhere: no anchors, no aliases, scalars as they were."""
    node = node.target
    if node.kind == "list":
        return [_copy(item, text) for item in node.items]
    if node.kind == "mapping":
        mapping = {key: _copy(value, text) for key, value in node.entries().items()}
        return mapping if node.flow else _Block(mapping)
    if node.tag in ("!", TAG + "str") or not node.flow:
        return node.text
    if node.plain and (node.text[:1] == ":" or any(char in node.text for char in ",?[]{}")):
        return node.text  # where it stands in brackets now, this needs quotes
    content = text[node.inside : node.end] or "null"
    return Written(f"!!{node.tag.removeprefix(TAG)} {content}" if node.tag else content)
