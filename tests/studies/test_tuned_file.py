"""Setting values in a suite file: the file keeps its words, and what is read from it is what was meant."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.errors import SuiteError
from optbench.suite import Suite, load_suite, shipped_suites
from optbench.suite.document import parse_yaml
from optbench.suite.scalars import add_scalar_rules
from optbench.tuning.tuned_file import MARKER, Edit, edited
from optbench.tuning.yaml_values import WIDTH

SUITES = {name: path.read_text(encoding="utf-8") for name, path in shipped_suites().items()}
WITHOUT_ALIASES = sorted(name for name, text in SUITES.items() if ": *" not in text)


def edit(path: str, value: Any) -> Edit:
    return Edit(tuple(path.split("/")), value)


class _Shared(yaml.SafeLoader):
    """Reads aliases as the very same objects: a model, independent of characters, of what an edit does to them."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML declares it so)


add_scalar_rules(_Shared)  # but not the merge: `<<` stays a key, so that what it names can still change


def shared(text: str) -> Any:
    return yaml.load(text, Loader=_Shared)


def written_out(value: Any) -> Any:
    """A copy without aliases and merges."""
    if isinstance(value, list):
        return [written_out(item) for item in value]
    if not isinstance(value, dict):
        return value
    merged = value.get("<<", [])
    sources = merged if isinstance(merged, list) else [merged]
    result = {key: item for source in reversed(sources) for key, item in written_out(source).items()}
    return result | {key: written_out(item) for key, item in value.items() if key != "<<"}


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    inner = value.items() if isinstance(value, dict) else ()
    return [(path, value), *(place for key, item in inner for place in places(item, (*path, key)))]


def expected(text: str, edits: list[Edit]) -> Any:
    """The value of the text with the edits made on objects instead of characters."""
    root = shared(text)
    for change in edits:
        at_home: dict[int, tuple[str, ...]] = {}
        for path, value in places(root):
            at_home.setdefault(id(value), path)
        here = root
        for depth, key in enumerate(change.path[:-1], start=1):
            path = change.path[:depth]
            if key not in here and key in (all_of_it := written_out(here)):
                here[key] = all_of_it[key]
            if here.get(key) is None:
                lists_optimizers = path[0] == "experiments" and path[2:] == ("optimizers",)
                here[key] = {name: {} for name in root["optimizers"]} if lists_optimizers else {}
            elif isinstance(here[key], list):
                here[key] = {name: {} for name in here[key]}
            elif at_home.get(id(here[key]), path) != path:
                here[key] = written_out(here[key])
            here = here[key]
        here[change.path[-1]] = copy.deepcopy(change.value)
    return json.loads(json.dumps(written_out(root)))


def exact(value: Any) -> str:
    """Tells 1 from 1.0 and from true."""
    return json.dumps(value, sort_keys=True)


VARIANTS = {
    "as it is": lambda text: text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "byte-order mark": lambda text: "\ufeff" + text,
    "no final line break": lambda text: text.rstrip(),
    "tabs in comments": lambda text: text.replace("# ", "#\t"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SUITES)
def test_without_edits_every_shipped_suite_stays_as_it_is(name: str, variant: str) -> None:
    text = VARIANTS[variant](SUITES[name])
    assert edited(text, []) == text


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SUITES)
def test_an_edit_of_one_value_changes_its_characters_and_no_others(name: str, variant: str) -> None:
    text = VARIANTS[variant](SUITES[name])
    optimizer = next(name for name, its in shared(SUITES[name])["optimizers"].items() if "lr" in its)
    # Up to the first `lr: ` behind the optimizer's name, with no other name in between.
    pattern = rf"(\n  {optimizer}:(?:(?!\n  \S).)*?\blr: )(\{{[^}}]*\}}|[^,}}\r\n]+)"
    by_hand, found = re.subn(pattern, r"\g<1>0.000777", text, count=1, flags=re.DOTALL)
    assert found == 1
    assert edited(text, [Edit(("optimizers", optimizer, "lr"), 0.000777)]) == by_hand


@pytest.mark.parametrize("name", WITHOUT_ALIASES)
def test_setting_what_is_there_already_leaves_it_as_it_is_written(name: str) -> None:
    value = written_out(shared(SUITES[name]))
    leaves = [Edit(path, item) for path, item in places(value) if path and not isinstance(item, dict)]
    assert len(leaves) > 20
    assert edited(SUITES[name], leaves) == SUITES[name]


EDITABLE = st.sampled_from([1e-5, 0.000464, 3.0, 1e20, [0.1, 0.3], {"log": [1e-4, 1.0], "points": 3}])
COST = {"settings": 7, "seeds": 2, "space": {"lr": {"log": [0.003, 3.0], "points": 7}}, "edge": ["lr"]}


@st.composite
def suite_edits(draw: st.DrawFn, text: str) -> list[Edit]:
    """Edits that leave the suite valid: of optimizers, of what is inside wrappers, of experiments, of tuning."""
    value = parse_yaml(text, "suite").value
    inside = [
        path for path, item in places(value["optimizers"]) if isinstance(item, dict) and path and "log" not in item
    ]
    result = []
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(inside))
        experiment = draw(st.sampled_from(sorted(value["experiments"])))
        key, new = draw(st.sampled_from(["lr", "weight_decay"])), draw(EDITABLE)
        of_experiment = Edit(("experiments", experiment, "optimizers", path[0], key), new)
        in_base = Edit(("experiments", experiment, "optimizers", path[0], "base", key), new)
        cost = Edit(("experiments", experiment, "tuning", path[0]), {**COST, "chosen": {key: new}})
        result += draw(
            st.sampled_from(
                [[Edit(("optimizers", *path, key), new)], [of_experiment], [in_base], [of_experiment, cost]]
            )
        )
    return result


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_the_edited_suite_is_the_loaded_suite_with_the_edits(data: st.DataObject) -> None:
    text = SUITES[data.draw(st.sampled_from(sorted(SUITES)))]
    edits = data.draw(suite_edits(text))
    after = edited(text, edits, ["optbench tune"])
    meant = expected(text, edits)
    assert exact(parse_yaml(after, "after").value) == exact(meant)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tuned.yaml"
        path.write_text(after, encoding="utf-8")
        assert load_suite(path) == Suite.model_validate(meant)
    old = 3 if text.startswith(MARKER) else 0  # lines of the header that the shipped suites have, which is replaced
    comments = [line for line in text.splitlines() if line.lstrip().startswith("#")][old:]
    assert [line for line in after.splitlines() if line.lstrip().startswith("#")][2:] == comments


# Every way of writing that the cases below name, in one file.
MIXED = """\
# of its own
optimizers: # all of them
    sgd:   &sgd {target: sgd, lr: 0.1, betas: &betas [0.9, 0.99]}
    adam: {
      target: adam,  # inside
      lr: 1.0e-3, betas: *betas,
    }
    sam: {target: sam, base: *sgd}

    deep: &deep
        target: switch
        first: &first
            target: "adam"
            lr: {log: [1.0e-5, 1.0e-2], points: 7}
        then: *sgd   # the same
    deeper: {<<: *deep, lr: 1}
    deepest:
        <<: [*first, *sgd]
        at: 3
    other: *deep
experiments:
    a:
        optimizers: [sgd, adam]   # two
        tuning:
    b:
        optimizers:
        - sgd  # plain
        # between
        - "adam"
    c: {optimizers: [sgd, adam], tuning: {sgd: {settings: 3}}}
    d: &d {}
    e:
        text: |
            some text

    f: *d
"""
KEYS = ["target", "lr", "betas", "base", "first", "then", "at", "new", "1e-3", "on"]
PATHS = st.one_of(
    st.tuples(
        st.just("optimizers"),
        st.sampled_from(["sgd", "adam", "sam", "deep", "deeper", "deepest", "other", "made"]),
        st.sampled_from(KEYS),
    ),
    st.tuples(
        st.just("optimizers"),
        st.sampled_from(["sam", "deep", "deeper", "other", "made"]),
        st.sampled_from(["base", "first", "then"]),
        st.sampled_from(KEYS),
    ),
    st.tuples(
        st.just("experiments"),
        st.sampled_from("abcdef"),
        st.sampled_from(["optimizers", "tuning"]),
        st.sampled_from(["sgd", "adam", "sam"]),
        st.sampled_from(["lr", "settings"]),
    ),
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8) 
    | st.sampled_from(["on", "1e-3", "null", "nan", "a: b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab:#&* -?", max_size=4), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def modelled(edit: Edit) -> bool:
    """Not where a later edit would lead through a single value, nor where objects are no model: a number is not shared.

    What happens then is said by cases of their own below.
    """
    leads_on = len(edit.path) == 3 and edit.path[-1] in ("base", "first", "then")
    return not leads_on and edit.path != ("optimizers", "sgd", "betas")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.builds(Edit, PATHS, PLAIN).filter(modelled), min_size=1, max_size=4))
def test_any_value_anywhere_is_read_back_exactly(edits: list[Edit]) -> None:
    after = edited(MIXED, edits)
    assert exact(parse_yaml(after, "after").value) == exact(expected(MIXED, edits))
    crlf = edited(MIXED.replace("\n", "\r\n"), edits)
    assert crlf == after.replace("\n", "\r\n")
    assert edited(after, edits[-1:]) == after, "setting it again changes nothing"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_the_same_number_to_every_reader(number: float) -> None:
    text = edited("lr: 1\n", [edit("lr", number)])
    assert exact(parse_yaml(text, "x").value["lr"]) == exact(number) == exact(yaml.safe_load(text)["lr"])
    assert len(text) <= len(f"lr: {number!r}\n") + 2, "and as short as Python writes it, or with `.0` added"


WRITTEN = [
    (0.000464, "0.000464"),
    (1e-05, "1.0e-5"),
    (1.5e-7, "1.5e-7"),
    (1e16, "1.0e+16"),
    (3, "3"),
    (3.0, "3.0"),
    (None, "null"),
    (False, "false"),
    ("tpe", "tpe"),
    ("no", '"no"'),
    ("1.5", '"1.5"'),
    ("a # b", '"a # b"'),
    ({"base.lr": [1, 2.5]}, "{base.lr: [1, 2.5]}"),
    ({}, "{}"),
    ((), "[]"),
]


@pytest.mark.parametrize(("value", "written"), WRITTEN)
def test_values_are_written_as_one_would(value: Any, written: str) -> None:
    assert edited("a: 1 # c\nb: {c: 1}\n", [edit("a", value), edit("b/c", value)]) == (
        f"a: {written} # c\nb: {{c: {written}}}\n"
    )


ALL = "optimizers: {sgd: {target: sgd}, adam: {target: adam}}\n"
CASES = {
    "a value behind wide space keeps its column": ("a:   1  # c\n", ["a"], 2, "a:   2  # c\n"),
    "an empty value": ("a: # c\nb: 1\n", ["a"], 2, "a: 2 # c\nb: 1\n"),
    "a key without a colon": ("a: {x, y: 1}\n", ["a", "x"], 2, "a: {x: 2, y: 1}\n"),
    "a colon with nothing behind it": ("a: {x:, y: 1}\n", ["a", "x"], 2, "a: {x: 2, y: 1}\n"),
    "quoted, without a space": ('a: {"x":1}\n', ["a", "x"], 2, 'a: {"x":2}\n'),
    "a tag goes with its value": ("a: !!float &x 1\nb: *x\n", ["a"], 2, "a: &x 2\nb: *x\n"),
    "block text": ("a: |\n  x\n\n  y\n\nb: 1\n", ["a"], 2, "a: 2\n\nb: 1\n"),
    "a block for a single value": (
        "a: # c\n  # d\n  x: 1\n\n  y: 2 # e\n# f\n", ["a"], 2,
        "a: 2 # c\n  # d # e\n# f\n",
    ),
    "a new key in a block": (
        "a:\n  x: 1  # c\n  # d\n\nb: 1\n", ["a", "y"], 2,
        "a:\n  x: 1  # c\n  y: 2\n  # d\n\nb: 1\n",
    ),
    "a new key in brackets": ("a: {x: 1}  # c\n", ["a", "y"], 2, "a: {x: 1, y: 2}  # c\n"),
    "a new key before a last comma": ("a: {\n  x: 1,\n}\n", ["a", "y"], 2, "a: {\n  x: 1, y: 2,\n}\n"),
    "a first key in brackets": ("a: {}\n", ["a", "y"], 2, "a: {y: 2}\n"),
    "a first key before a comment": ("a: {# c\n  }\n", ["a", "y"], 2, "a: {y: 2 # c\n  }\n"),
    "no final line break": ("a:\n  x: 1", ["a", "y"], 2, "a:\n  x: 1\n  y: 2"),
    "a new key behind block text": (
        "a:\n  x: |+\n    t\n\nb: 1\n", ["a", "y"], 2,
        "a:\n  x: |+\n    t\n\n  y: 2\nb: 1\n",
    ),
    "keys made in a block": ("a:\n   b: 1\n", ["a", "c", "d", "e"], 2, "a:\n   b: 1\n   c:\n      d:\n         e: 2\n"),
    "keys made in brackets": ("a: {b: 1}\n", ["a", "c", "d"], 2, "a: {b: 1, c: {d: 2}}\n"),
    "keys made in place of null": ("a: ~ # c\n", ["a", "b"], 2, "a: # c\n  b: 2\n"),
    "a sequence in the column of its key": ("a:\n- 1\n- 2\nb: 1\n", ["a"], [3], "a: [3]\nb: 1\n"),
    "an anchor's aliases follow": ("a: &x {l: 1}\nb: {c: *x}\n", ["a", "l"], 2, "a: &x {l: 2}\nb: {c: *x}\n"),
    "an anchored value keeps its anchor": ("a: &x 1\nb: {c: *x}\n", ["a"], 2, "a: &x 2\nb: {c: *x}\n"),
    "an anchor above its block": ("a: &x # c\n  l: 1\nb: *x\n", ["a"], {"l": 2}, "a: &x {l: 2} # c\nb: *x\n"),
    "an alias is replaced": ("a: &x 1.0\nb: *x # c\n", ["b"], 2, "a: &x 1.0\nb: 2 # c\n"),
    "through an alias": (
        "a: &x {l: 1.0e-4, m: &y 'n'}\nb: {c: *x, d: *x}\ne: *y\n", ["b", "c", "l"], 2,
        "a: &x {l: 1.0e-4, m: &y 'n'}\nb: {c: {l: 2, m: 'n'}, d: *x}\ne: *y\n",
    ),
    "through an alias of a block": (
        "a: &x\n  # why\n  l: 1\n  m: [a, b] # c\nb: *x\n", ["b", "l"], 2,
        "a: &x\n  # why\n  l: 1\n  m: [a, b] # c\nb:\n  l: 2\n  m: [a, b]\n",
    ),
    "a copied block in brackets": ("a: &x\n  l: say, why?\n  m: 1\nb: {c: *x}\n", ["b", "c", "m"], 2,
        'a: &x\n  l: say, why?\n  m: 1\nb: {c: {l: "say, why?", m: 2}}\n'),
    "a merged key": ("a: &x {l: 1, m: 2}\nb:\n  <<: *x\n  n: 3\n", ["b", "l"], 4,
        "a: &x {l: 1, m: 2}\nb:\n  <<: *x\n  n: 3\n  l: 4\n"),
    "inside a merged key": ("a: &x {l: {m: 1, k: 0}}\nb: {<<: *x}\n", ["b", "l", "m"], 4,
        "a: &x {l: {m: 1, k: 0}}\nb: {<<: *x, l: {m: 4, k: 0}}\n"),
    "an anchor inside what is replaced": ("a: {g: &g [1, 2]}\nb: *g\nc: *g\n", ["a"], 3, "a: 3\nb: &g [1, 2]\nc: *g\n"),
    "a list of optimizers": (
        "experiments:\n  e:\n    optimizers: [sgd, adam]  # c\n", ["experiments", "e", "optimizers", "adam", "lr"], 2,
        "experiments:\n  e:\n    optimizers:  # c\n      sgd: {}\n      adam: {lr: 2}\n",
    ),
    "a list of optimizers over several lines": (
        "experiments: {e: {optimizers: [sgd, # c\n  adam]}}\n", ["experiments", "e", "optimizers", "adam", "lr"], 2,
        "experiments: {e: {optimizers: {sgd: {}, # c\n  adam: {lr: 2}}}}\n",
    ),
    "a block list of optimizers": (
        "experiments:\n  e:\n    optimizers:\n    - sgd # c\n    # d\n    - adam\n",
        ["experiments", "e", "optimizers", "adam", "lr"], 2,
        "experiments:\n  e:\n    optimizers:\n      sgd: {} # c\n    # d\n      adam: {lr: 2}\n",
    ),
    "an optimizer that was not in the list": (
        "experiments:\n  e:\n    optimizers: [sgd]\n", ["experiments", "e", "optimizers", "adam"], {},
        "experiments:\n  e:\n    optimizers:\n      sgd: {}\n      adam: {}\n",
    ),
    "a list of optimizers by its alias": (
        "experiments: {e: {optimizers: &o [sgd]}, f: {optimizers: *o}}\n",
        ["experiments", "f", "optimizers", "sgd", "lr"], 2,
        "experiments: {e: {optimizers: &o [sgd]}, f: {optimizers: {sgd: {lr: 2}}}}\n",
    ),
    "no optimizers: all of them": (
        ALL + "experiments:\n  e:\n    dataset: mnist\n", ["experiments", "e", "optimizers", "adam", "base", "lr"], 2,
        ALL + "experiments:\n  e:\n    dataset: mnist\n    optimizers:\n      sgd: {}\n      adam: {base: {lr: 2}}\n",
    ),
    "null optimizers: all of them": (
        ALL + "experiments: {e: {optimizers: null}}\n", ["experiments", "e", "optimizers", "adam", "lr"], 2,
        ALL + "experiments: {e: {optimizers: {sgd: {}, adam: {lr: 2}}}}\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_way_of_writing(case: str) -> None:
    before, path, value, after = CASES[case]
    assert edited(before, [Edit(tuple(path), value)]) == after
    windows = before.replace("\n", "\r\n")
    assert edited("\ufeff" + windows, [Edit(tuple(path), value)]) == "\ufeff" + after.replace("\n", "\r\n")


def test_an_optimizer_added_by_an_edit_takes_part_where_all_do() -> None:
    edits = [edit("optimizers/sam/target", "sam"), edit("experiments/e/optimizers/sgd/lr", 0.1)]
    value = parse_yaml(edited(ALL + "experiments: {e: {}}\n", edits), "x").value
    assert list(value["experiments"]["e"]["optimizers"].items()) == [("sgd", {"lr": 0.1}), ("adam", {}), ("sam", {})]


def test_what_does_not_fit_into_a_line_gets_several() -> None:
    grid = [1 / n for n in range(1, 40)]
    value = {"settings": 39, "space": {"lr": grid, "note": "x" * 50}, "chosen": {"lr": 1.0}}
    before = "experiments:\n    e:\n        tuning: # c\n            sgd: {settings: 3} # d\n            adam: 1\n"
    after = edited(before, [edit("experiments/e/tuning/sgd", value)])
    assert parse_yaml(after, "x").value["experiments"]["e"]["tuning"] == {"sgd": value, "adam": 1}
    assert max(map(len, after.splitlines())) <= WIDTH
    assert (
        "            sgd: # d\n                settings: 39\n                space:\n                    lr:\n" in after
    )
    assert after.endswith("                chosen: {lr: 1.0}\n            adam: 1\n")


OF_OURS = f"{MARKER}\n#   optbench tune x\n#   run x-1; tuning seeds 1000, 1001\n\n"


@pytest.mark.parametrize("variant", ["as it is", "CRLF", "byte-order mark"])
def test_a_header_stands_above_the_files_own_comments_and_replaces_the_last(variant: str) -> None:
    written = VARIANTS[variant]
    lines = ["optbench tune x", "run x-1; tuning seeds 1000, 1001"]
    for own in ("# why\n#   more of it\nname: x\n", "\n#   indented\nname: x\n", "name: x\n"):
        once = edited(written(own), [], lines)
        assert once == written(OF_OURS + own)
        assert edited(once, [], lines) == once
        assert edited(once, []) == once, "nothing to say leaves what was said"
        assert edited(once, [], ["another"]) == written(f"{MARKER}\n#   another\n\n{own}")


def test_a_header_is_comments_whatever_it_says() -> None:
    after = edited("name: x\n", [], ["two\nlines", "", "a tab\t, \x07 and\u2028a break"])
    assert after == f"{MARKER}\n#   two\n#   lines\n#   a tab\\t, \\x07 and\n#   a break\n\nname: x\n"
    assert parse_yaml(after, "x").value == {"name": "x"}


REFUSED = [
    ("a: 1\nb:\n  c: 1\n", "b/c/d", "s.yaml:3:6: 'b.c' is a single value, not a mapping; it has no 'd'"),
    ("a: 1\n", "new/d", "s.yaml:1:1: 'new' is a single value, not a mapping; it has no 'd'"),
    ("a: [1]\n", "a/d/e", "s.yaml:1:4: 'a' is a list, not a mapping; it has no 'd'"),
    ("a: &x text\nb: *x\n", "b/d", "s.yaml:1:4: 'b' is a single value, not a mapping; it has no 'd'"),
    ("? a\n: 1\n", "a", "s.yaml:2:3: 'a' is a key with a '?' before it; it needs the form 'key: value'"),
    (
        "experiments: {e: {optimizers: [a, a]}}\n",
        "experiments/e/optimizers/a/lr",
        "'experiments.e.optimizers' is a list",
    ),
    ("a:\n  t: |\n    text", "a/x", "s.yaml:3:9: needs a line break at the end of the file, behind the block text"),
    ("- a\n", "a", "s.yaml:1:1: a suite needs to be a mapping"),
    ("a: {b: 1\n", "a/b", "s.yaml:2:1: not a suite's YAML"),
    ("a: 1\na: 2\n", "a", "s.yaml:2:1: the key 'a' is already in line 1"),
]


@pytest.mark.parametrize(("text", "path", "message"), REFUSED)
def test_an_edit_that_cannot_be_made_says_where_and_why(text: str, path: str, message: str) -> None:
    with pytest.raises(SuiteError, match=re.escape(message)) as caught:
        edited(text, [edit("new", 1), edit(path, 2)], source="s.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("s.yaml:")


def test_an_edit_alone_leaves_what_is_named_by_an_alias_as_it_was() -> None:
    text = "a: &budget {settings: 5}  # of a\nb: *budget\nc: *budget\n"
    after = edited(text, [Edit(("a",), {"settings": 7}, alone=True)])
    assert after == "a: {settings: 7}  # of a\nb: &budget {settings: 5}\nc: *budget\n"
    assert edited(text, [Edit(("a",), {"settings": 7})]).startswith("a: &budget {settings: 7}  # of a\nb: *budget")
