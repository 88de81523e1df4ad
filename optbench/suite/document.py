"""YAML text as plain values, with the location of every key and value."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeGuard

import yaml

from optbench.errors import SuiteError, escaped
from optbench.suite.scalars import TAG, add_scalar_rules, read_scalar

MAX_BYTES = 1 << 20
# These limits are far above any real suite. They reject files that would exhaust memory (by aliases) or the stack (by
# nesting).
MAX_VALUES = 250_000
MAX_DEPTH = 40

# `<<` merges mappings only as a key; as a value, it is text.
_SCALARS = ("str", "null", "bool", "int", "float", "merge")

KeyPath = tuple[str | int, ...]


class ExplicitNull:
    """The value null, for places where None would remove a key; written as `!!null ''`."""


@dataclass(frozen=True)
class Place:
    """The location of a key or value: `suite.yaml:3:5`, or `--set key=value`."""

    source: str
    line: int = 0
    """The line, counted from 1; 0 for an override."""
    column: int = 0

    @property
    def is_override(self) -> bool:
        return self.line == 0

    def __str__(self) -> str:
        return self.source if self.is_override else f"{self.source}:{self.line}:{self.column}"


@dataclass
class Document:
    """A parsed suite file: its value, and the locations of the key and value at every path into it."""

    value: Any
    sources: tuple[str, ...] = ()
    """The files that were merged; each extends the one before it."""
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    implied: set[KeyPath] = field(default_factory=set)
    """Mappings that are not in the file but were created for an override."""
    removed: dict[KeyPath, Place] = field(default_factory=dict)
    """Paths at which null removes a key of the base, with the location of each."""
    followed: dict[KeyPath, list[KeyPath]] = field(default_factory=dict)
    """Paths at which null removes a key of the base, with the paths of the references that were removed as well."""
    explicit_nulls: set[KeyPath] = field(default_factory=set)
    """Paths at which null is written with its tag, `!!null`."""

    def value_place(self, path: KeyPath) -> Place:
        """Return the location of the value at `path`, or of the nearest enclosing mapping or list."""
        return next(self.values[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.values)

    def key_place(self, path: KeyPath) -> Place:
        """Return the location of the last key of `path`, or, if `path` ends at a list item, of that item."""
        return self.keys[path] if path in self.keys else self.value_place(path)

    def is_above(self, place: Place, other: Place) -> bool:
        """Return whether `place` takes precedence over `other`.

        An override takes precedence over a file, and an extending file over the file that it extends.
        """
        if place.is_override or other.is_override:
            return place.is_override and not other.is_override
        return self.sources.index(place.source) > self.sources.index(other.source)

    def override(self, path: KeyPath, place: Place) -> None:
        """Record that everything at and below `path` now comes from `place`."""
        for places in (self.keys, self.values):
            for known in [known for known in places if known[: len(path)] == path]:
                del places[known]
            places[path] = place


def is_name_list(value: Any) -> TypeGuard[list[str]]:
    """Return whether a value is a list of strings, such as an experiment's `optimizers: [sgd, adam]`."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_optimizer_list(path: KeyPath, value: Any) -> TypeGuard[list[str]]:
    """Return whether the value at `path` is an experiment's list of distinct optimizer names.

    Such a list abbreviates a mapping from these names to empty settings.
    """
    is_experiment = len(path) == 3 and path[0] == "experiments" and path[2] == "optimizers"
    # A repeated name is kept for validation to report.
    return is_experiment and is_name_list(value) and len(set(value)) == len(value)


class _YamlLoader(yaml.SafeLoader):
    """A loader that composes nodes by YAML 1.2's rules for scalars and constructs no objects."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML declares it so)
    depth = 0
    count = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tagged: set[int] = set()
        """Positions in the text at which tagged scalars start."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=self.get_mark()
            )
        self.count += 1
        if self.count > MAX_VALUES:  # checked while reading, because nodes take far more memory than their text
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES} values", problem_mark=self.get_mark())
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if event.tag is not None:
            self.tagged.add(event.start_mark.index)
        return super().compose_scalar_node(anchor)


add_scalar_rules(_YamlLoader)
_YamlLoader.add_implicit_resolver(TAG + "merge", re.compile(r"<<\Z"), ["<"])


def parse_yaml(text: str, source: str) -> Document:
    """Parse one YAML document.

    source: the name of the text in messages.

    Raises:
        SuiteError: the text is not a single document made of lists, mappings with distinct text keys, and the scalars
            that `read_scalar` allows. The message begins with `source:line:column:`.
    """
    odd = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if odd:
        place = _place_of_offset(text, odd.start(), source)
        raise SuiteError(f"{place}: the character U+{ord(odd.group()):04X} is not allowed in YAML")
    loader = _YamlLoader(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark or error.context_mark, source)
        what = ", ".join(part for part in (error.problem, error.context) if part)
        raise SuiteError(f"{place}: invalid YAML: {escaped(what)}") from None
    except (ValueError, OverflowError) as error:
        # PyYAML passes escapes such as "\UFFFFFFFF" and version numbers straight to chr() and int().
        raise SuiteError(f"{_place(loader.get_mark(), source)}: invalid YAML: {escaped(str(error))}") from None
    if node is None:
        raise SuiteError(f"{source}:1:1: the file is empty")
    return _Reading(source, loader.tagged).document(node)


def decode(data: bytes, source: str) -> str:
    """Decode UTF-8, with or without a byte-order mark; raise SuiteError with the position of the first invalid byte."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        place = _place_of_offset(before, len(before), source)
        raise SuiteError(f"{place}: not UTF-8 text (byte 0x{data[error.start]:02x})") from None


def _place_of_offset(text: str, offset: int, source: str) -> Place:
    before = text[:offset]
    return Place(source, before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _place(mark: Any, source: str) -> Place:
    return Place(source, mark.line + 1, mark.column + 1) if mark else Place(source, 1, 1)


class _Reading:
    """A conversion of nodes to values that records locations; aliases become independent copies."""

    def __init__(self, source: str, tagged: set[int]) -> None:
        self.source, self.tagged = source, tagged
        self.extents: dict[int, tuple[int, int] | None] = {}

    def document(self, root: yaml.Node) -> Document:
        self.measure(root)
        self.result = Document(None, (self.source,))
        self.result.value = self.read(root, ())
        return self.result

    def fail(self, node: yaml.Node, message: str) -> NoReturn:
        raise SuiteError(f"{_place(node.start_mark, self.source)}: {message}")

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        self.result.values[path] = _place(node.start_mark, self.source)
        if isinstance(node, yaml.ScalarNode):
            value = self.scalar(node, node.tag.removeprefix(TAG), plain=node.style is None)
            if value is None and node.start_mark.index in self.tagged:
                self.result.explicit_nulls.add(path)
            return value
        if isinstance(node, yaml.SequenceNode):
            self.expect_tag(node, "seq")
            return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)
        return self.mapping(node, path)

    def measure(self, node: yaml.Node) -> tuple[int, int]:
        """Return the number of values and the depth of a node with its aliases expanded, without expanding them.

        Each node is measured once, because an anchor precedes its aliases. A node that is reached again before its
        measurement is complete contains itself.
        """
        if isinstance(node, yaml.ScalarNode):
            return 1, 0
        if id(node) in self.extents:
            extent = self.extents[id(node)]
            if extent is None:
                self.fail(node, "this anchor contains an alias to itself")
            return extent
        self.extents[id(node)] = None
        pairs = isinstance(node, yaml.MappingNode)
        parts = [self.measure(part) for item in node.value for part in (item if pairs else (item,))]
        size, depth = 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)
        if size > MAX_VALUES:
            self.fail(node, f"too large: more than {MAX_VALUES} values once its aliases are expanded")
        if depth > MAX_DEPTH:
            self.fail(node, f"nested more than {MAX_DEPTH} levels deep once its aliases are expanded")
        self.extents[id(node)] = size, depth
        return size, depth

    def expect_tag(self, node: yaml.Node, *kinds: str) -> None:
        if node.tag.removeprefix(TAG) not in kinds:
            shown = node.tag.replace(TAG, "!!", 1) if node.tag.startswith(TAG) else node.tag
            self.fail(node, f"the tag {escaped(shown)} is not allowed in a suite")

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        self.expect_tag(node, "map")
        result: dict[str, Any] = {}
        for key, (key_node, value_node) in self.entries(node).items():
            self.result.keys[(*path, key)] = _place(key_node.start_mark, self.source)
            result[key] = self.read(value_node, (*path, key))
        return result

    def entries(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return a mapping's entries by key: first those merged with `<<` whose keys it lacks, then its own."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merge_key: yaml.Node | None = None
        for key_node, value_node in node.value:
            if key_node.tag == TAG + "merge":
                if merge_key is not None:
                    self.fail(key_node, f"the key '<<' is already on line {merge_key.start_mark.line + 1}")
                merge_key = key_node
                merged = self.merged(value_node)
                continue
            key = self.key(key_node)
            if key in own:
                first = own[key][0].start_mark.line + 1
                self.fail(key_node, f"the key '{escaped(key)}' is already on line {first}")
            own[key] = (key_node, value_node)
        return {**{key: entry for key, entry in merged.items() if key not in own}, **own}

    def merged(self, node: yaml.Node) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self.fail(source, "'<<': expected a mapping, or a list of mappings")
            # If several sources have the same key, the first one provides its value.
            for key, entry in self.entries(source).items():
                result.setdefault(key, entry)
        return result

    def key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self.fail(node, "expected text as a key, got a list or a mapping")
        # Keys are read as written, regardless of their tags: `10:`, `on:` and `null:` are names like any other.
        return str(self.scalar(node, "str", plain=False))

    def scalar(self, node: yaml.ScalarNode, kind: str, plain: bool) -> bool | int | float | str | None:
        self.expect_tag(node, *_SCALARS)
        try:
            return read_scalar(kind, node.value, plain)
        except ValueError as error:
            self.fail(node, escaped(str(error)))
