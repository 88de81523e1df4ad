"""Suites that extend others: merging, places of errors, and expressing any change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.cli import main
from optbench.errors import OptbenchError, SuiteError
from optbench.suite import Suite, dump_suite, load_suite, shipped_suites
from optbench.suite.document import MAX_BYTES, MAX_VALUES
from optbench.suite.dump import dump
from optbench.suite.extends import difference, read_document

BASE = """\
name: base
seeds: 3
optimizers:
  sgd: {target: sgd, lr: 0.1, momentum: 0.9}
  adam: {target: adam, lr: 1.0e-3}
experiments:
  e:
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [10]}, wide: {kind: mlp}}
    protocol: {max_epochs: 3, early_stopping: {patience: 2}}
    optimizers: [sgd, adam]
    metrics: [forgetting]
claims:
  c: {experiment: e, metric: forgetting, left: sgd, right: adam, expect: lower}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def load(own: str, base: str = "base.yaml", *overrides: str) -> Suite:
    Path("own.yaml").write_text(f"extends: {base}\n{own}\n")
    return load_suite(Path("own.yaml"), overrides)


def test_a_suite_that_only_extends_equals_its_base(folder: Path) -> None:
    assert load("") == load_suite(Path("base.yaml"))
    assert load("", "smoke") == load_suite(shipped_suites()["smoke"])


def test_mappings_merge_and_lists_and_scalars_replace(folder: Path) -> None:
    suite = load(
        """
name: own
seeds: [7]
optimizers: {sgd: {lr: 0.2, nesterov: true}, lion: {target: lion}}
experiments:
  e: {models: {net: {hidden: [5, 5]}}, protocol: {max_steps: 9}, metrics: [stable_rank]}
  f: {tasks: {kind: rotated}, models: {net: {kind: mlp}}}
"""
    )
    meant = yaml.safe_load(BASE)
    meant |= {"name": "own", "seeds": [7]}
    meant["optimizers"]["sgd"] |= {"lr": 0.2, "nesterov": True}
    meant["optimizers"]["lion"] = {"target": "lion"}
    meant["experiments"]["e"]["models"]["net"]["hidden"] = [5, 5]
    meant["experiments"]["e"]["protocol"]["max_steps"] = 9
    meant["experiments"]["e"]["metrics"] = ["stable_rank"]
    meant["experiments"]["f"] = {"tasks": {"kind": "rotated"}, "models": {"net": {"kind": "mlp"}}}
    assert dump_suite(suite) == dump_suite(Suite.model_validate(meant)), "the order is kept"


def test_null_removes_a_key_of_the_base(folder: Path) -> None:
    suite = load(
        """
optimizers: {sgd: {momentum: null}}
experiments: {e: {models: {wide: null}, tasks: {count: null}}}
claims: null
"""
    )
    assert suite.optimizers["sgd"].hyperparameters == {"lr": 0.1}
    assert suite.experiments["e"].models.keys() == {"net"}
    assert suite.experiments["e"].tasks.count == 3, "the default applies"  # type: ignore[union-attr]
    assert suite.claims == {}
    suite = load("optimizers: {adam: null}\nclaims: {c: null}\nexperiments: {e: {optimizers: {adam: null}}}")
    assert (suite.optimizers.keys(), suite.claims) == ({"sgd"}, {})


def test_null_is_a_value_if_the_schema_gives_it_a_meaning(folder: Path) -> None:
    experiment = load(
        "experiments: {e: {protocol: {early_stopping: null}, metrics: null, optimizers: null}}"
    ).experiments
    assert experiment["e"].protocol.early_stopping is None, "null overrides a default that is not null"
    assert (experiment["e"].metrics, experiment["e"].optimizers) == (None, None)


@pytest.mark.parametrize(
    ("before", "kept", "changes"),
    [
        (
            "schedule: {kind: wsd, decay: 0.1, floor: 0.1}",
            {"kind": "cosine", "floor": 0.1},
            ["kind=cosine", "decay=null"],
        ),
        (
            "early_stopping: {patience: 2}",
            {"on": "train_loss", "target": 0.1},
            ["on=train_loss", "target=0.1", "patience=null"],
        ),
    ],
)
def test_null_removes_keys_that_another_kind_does_not_have(
    tmp_path: Path, before: str, kept: dict[str, object], changes: list[str]
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: s\nseeds: 1\noptimizers: {sgd: {target: sgd, lr: 0.1}}\n"
        "experiments:\n  e:\n    tasks: {kind: permuted}\n"
        f"    models: {{m: {{kind: mlp, hidden: [5]}}}}\n    protocol: {{{before}}}\n"
    )
    key = before.partition(":")[0]
    place = f"experiments.e.protocol.{key}"
    with pytest.raises(SuiteError, match=f"'{changes[-1].partition('=')[0]}: null' removes it"):
        load_suite(file, [f"{place}.{change}" for change in changes[:-1]])
    found = load_suite(file, [f"{place}.{change}" for change in changes]).experiments["e"].protocol
    assert getattr(found, key) == type(getattr(found, key)).model_validate(kept)


def test_null_with_a_tag_is_the_value_null(folder: Path) -> None:
    for null in ("!!null", "!!null null", "!!null ''", "!!null ~"):
        suite = load(f"optimizers:\n  sgd:\n    momentum: {null}")
        assert suite.optimizers["sgd"].hyperparameters == {"lr": 0.1, "momentum": None}
    # In a new mapping null has nothing to remove.
    assert load("optimizers: {own: {target: sgd, momentum: null}}").optimizers["own"].hyperparameters == {
        "momentum": None
    }


def test_a_list_of_optimizers_merges_like_the_equivalent_mapping(folder: Path) -> None:
    merged = load("experiments: {e: {optimizers: {adam: {lr: 0.5}}}}").experiments["e"].optimizers
    assert merged == {"sgd": {}, "adam": {"lr": 0.5}}
    assert load("claims: null\nexperiments: {e: {optimizers: [adam]}}").experiments["e"].optimizers == {"adam": {}}


def test_the_command_line_overrides_a_chain_of_files(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/middle.yaml").write_text("extends: ../base.yaml\nseeds: 5\nname: middle\n")
    suite = load("name: own", "sub/middle.yaml", "optimizers.sgd.lr=7")
    assert (suite.name, suite.seeds) == ("own", [0, 1, 2, 3, 4])
    assert suite.optimizers["sgd"].hyperparameters["lr"] == 7


def test_anchors_and_merge_keys_stay_within_a_file(folder: Path) -> None:
    suite = load("optimizers: {adam: &rate {lr: 0.7}, sgd: {<<: *rate, momentum: null}}")
    assert [o.hyperparameters for o in suite.optimizers.values()] == [{"lr": 0.7}, {"lr": 0.7}]


# Errors name the file that contains the value.

FAULTS = [
    ("optimizers: {sgd: {lr: 0.1}}\nseds: 3", "own.yaml:3:1: unknown key 'seds'; did you mean 'seeds'?"),
    ("experiments: {e: {tasks: {kind: rotated}}}", "base.yaml:8:29: experiments.e.tasks: unknown key 'count'"),
    ("experiments: {e: {protocol: {max_epochs: fast}}}", "own.yaml:2:42: experiments.e.protocol.max_epochs"),
    ("seeds: null", "own.yaml:1:1: expected the key 'seeds'"),
    (
        "optimizers: {adam: null}\nclaims: {c: {margin: 0.1}}",
        "own.yaml:2:14: optimizers: other parts of the suite still use 'adam': claims; replace",
    ),
    ("claims: {c: {left: adan}}", "own.yaml:2:20: claims.c.left: unknown optimizer in e 'adan'"),
    ("optimizers: {sgdd: null}", "own.yaml:2:14: optimizers: unknown name 'sgdd'; did you mean 'sgd'?"),
]


@pytest.mark.parametrize(("own", "message"), FAULTS)
def test_an_error_is_placed_where_the_faulty_value_was_written(folder: Path, own: str, message: str) -> None:
    with pytest.raises(SuiteError, match=re.escape(message)) as caught:
        load(own)
    assert str(caught.value).startswith(message), caught.value


def test_uses_of_a_removed_name_that_must_stay_are_one_error_at_the_removal(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE.replace("[sgd, adam]", "[adam]").partition("claims:")[0])
    with pytest.raises(SuiteError) as caught:
        load("optimizers: {adam: null}")
    assert str(caught.value) == (
        "own.yaml:2:14: optimizers: other parts of the suite still use 'adam': experiments.e.optimizers; "
        "replace these parts or set them to null (first use: base.yaml:11:18)"
    )
    Path("mid.yaml").write_text("extends: base.yaml\noptimizers: {adam: null}\n")
    with pytest.raises(SuiteError, match=r"^mid\.yaml:2:14: optimizers: other parts of the suite still use 'adam'"):
        load("description: no more", "mid.yaml")
    load("optimizers: {adam: {target: adam, lr: 0.1}}", "mid.yaml")
    load("optimizers: {adam: null}\nexperiments: {e: {optimizers: [sgd]}}")
    load("optimizers: {adam: null}\nexperiments: {e: {optimizers: {sgd: null}}}")


def test_uses_of_an_optimizer_that_a_new_list_leaves_out_are_one_error(folder: Path) -> None:
    message = (
        "experiments.e.optimizers: other parts of the suite still use 'adam': claims; "
        "replace these parts or set them to null (first use: base.yaml:"
    )
    with pytest.raises(SuiteError, match=rf"^own\.yaml:2:19: {re.escape(message)}"):
        load("experiments: {e: {optimizers: [sgd]}}")
    with pytest.raises(OptbenchError, match=rf"^--set experiments\.e\.optimizers=\[sgd\]: {re.escape(message)}"):
        load("name: own", "base.yaml", "experiments.e.optimizers=[sgd]")


def test_errors_in_the_base_and_on_the_command_line_name_their_place(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE.replace("max_epochs: 3", "max_epochs: -3"))
    with pytest.raises(SuiteError, match=r"^base\.yaml:10:28: experiments\.e\.protocol\.max_epochs"):
        load("name: own")
    with pytest.raises(OptbenchError, match=r"^--set experiments\.e\.protocol\.max_epochs=x: "):
        load("name: own", "base.yaml", "experiments.e.protocol.max_epochs=x")
    (folder / "base.yaml").write_text("name: [\n")
    with pytest.raises(SuiteError, match=r"^base\.yaml:2:1: invalid YAML"):
        load("name: own")


BASES = [
    ("missing.yaml", "own.yaml:1:10: extends: no such file 'missing.yaml', and no shipped suite of that name"),
    ("smok", "own.yaml:1:10: extends: no such file 'smok', and no shipped suite of that name; did you mean 'smoke'?"),
    ("[smoke]", 'own.yaml:1:10: extends: expected a shipped suite or the path of a suite file, got ["smoke"]'),
    ("null", "own.yaml:1:10: extends: expected a shipped suite or the path of a suite file, got null"),
    (".", "own.yaml:1:10: extends: .: expected a suite file, got a directory"),
    ("own.yaml", "own.yaml:1:10: extends: expected a chain of suites that ends, got own.yaml -> own.yaml"),
    ("list.yaml", "list.yaml:1:1: expected a suite, a mapping"),
    ("bytes.yaml", "bytes.yaml:1:4: not UTF-8 text (byte 0xff)"),
    ("large.yaml", "own.yaml:1:10: extends: large.yaml: larger than 1024 KiB, the limit for all files together"),
    pytest.param(
        "many.yaml",
        f"own.yaml:1:10: extends: too large: more than {MAX_VALUES} values in all files",
        marks=pytest.mark.slow,  # takes 10 s
    ),
]


@pytest.mark.parametrize(("base", "message"), BASES)
def test_an_invalid_base_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], base: str, message: str
) -> None:
    Path("list.yaml").write_text("- a\n")
    Path("bytes.yaml").write_bytes(b"a: \xff\n")
    Path("large.yaml").write_text("# " + "x" * (MAX_BYTES - 3))
    Path("many.yaml").write_text("x: [" + "1," * (MAX_VALUES - 3) + "]\n")
    Path("own.yaml").write_text(f"extends: {base}\nname: own\nseeds: 3\n")
    assert main(["run", "own.yaml", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"optbench: {message}"), error
    assert error.count("\n") == 1


def test_a_cycle_of_several_files_is_refused(folder: Path) -> None:
    Path("a.yaml").write_text("extends: b.yaml\n")
    Path("b.yaml").write_text("name: b\nextends: own.yaml\n")
    with pytest.raises(SuiteError, match=r"^b\.yaml:2:10: extends: .*own\.yaml -> a\.yaml -> b\.yaml -> own\.yaml$"):
        load("name: own", "a.yaml")


def test_targets_in_a_base_are_relative_to_the_base(folder: Path) -> None:
    (folder / "lab").mkdir()
    (folder / "lab/base.yaml").write_text(
        BASE.replace("target: sgd", "target: ./mine.py:Own").replace("target: adam", "target: ./here.py:Own")
    )
    (folder / "lab/mine.py").write_text("")
    (folder / "here.py").write_text("")
    suite = load("optimizers: {outer: {target: sam, base: {target: ./mine.py:Other}}}", "lab/base.yaml")
    assert suite.optimizers["sgd"].target == "./lab/mine.py:Own"
    assert suite.optimizers["adam"].target == "./here.py:Own", "a file of the working directory"
    assert suite.optimizers["outer"].hyperparameters["base"] == {"target": "./mine.py:Other"}
    (folder / "other").mkdir()
    (folder / "other/own.yaml").write_text("extends: ../lab/base.yaml\n")
    assert load_suite(Path("other/own.yaml")).optimizers["sgd"].target == "../lab/mine.py:Own"


@pytest.mark.usefixtures("_train_here")
def test_a_run_and_its_resolved_suite_do_not_need_the_base(folder: Path) -> None:
    small = "batch_size: 32, max_steps: 2, train_examples: 100, validation_examples: 100, test_examples: 100"
    load(f"seeds: 1\nexperiments: {{e: {{models: {{wide: null}}, metrics: [], protocol: {{{small}}}}}}}")
    words = ["--device", "cpu", "--jobs", "1", "--quiet", "--set", "experiments.e.tasks.count=1"]
    assert main(["run", "own.yaml", "--optimizer", "sgd", "--name", "r", *words]) == 0
    written = Path("runs/r/suite.yaml")
    assert "extends" not in yaml.safe_load(written.read_text())
    Path("base.yaml").unlink()
    resolved = load_suite(written)
    assert resolved.experiments["e"].protocol.max_steps == 2
    assert resolved.optimizers["sgd"].hyperparameters["momentum"] == 0.9


# Any difference can be expressed.


def test_every_shipped_suite_can_be_written_as_a_change_of_others(tmp_path: Path) -> None:
    """Each is compared with itself and the three before it, since all pairs would be hundreds."""
    suites = {name: load_suite(path) for name, path in shipped_suites().items()}
    raw = {name: read_document(path).value for name, path in shipped_suites().items()}
    file = tmp_path / "own.yaml"
    names = list(suites)
    for base, meant in ((names[i - k], name) for i, name in enumerate(names) for k in range(4)):
        file.write_text(dump({"extends": base, **difference(raw[base], suites[base], suites[meant])}))
        assert load_suite(file) == suites[meant], (base, meant)
        assert (file.read_text() == f"extends: {base}\n") == (base == meant), "only differences are written"


VALUES = st.sampled_from([None, 0.1, 1, 1.0, True, "no", [0.1, None], {"log": [0.1, 1.0], "points": 3}, {"a": {}}, {}])
HYPERPARAMETERS = st.dictionaries(st.sampled_from(["lr", "momentum", "base", "k"]), VALUES | st.dictionaries(
    st.sampled_from(["lr", "target"]), VALUES, max_size=2
), max_size=4)  # fmt: skip
RECORD = st.fixed_dictionaries(
    {"settings": st.integers(1, 3), "seeds": st.just(2)},
    optional={"edge": st.just(["lr"]), "chosen": st.none() | st.dictionaries(st.just("lr"), VALUES)},
)


@st.composite
def suites(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the plain content of a valid suite, with keys missing, null, abbreviated or written in full."""
    names = draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True))
    protocol = st.fixed_dictionaries(
        {},
        optional={
            "early_stopping": st.sampled_from([None, False, {}, {"patience": 3}, {"on": "test"}]),
            "max_steps": st.sampled_from([None, 5]),
        },
    )
    experiment = st.fixed_dictionaries(
        {
            "tasks": st.sampled_from([{"kind": "permuted"}, {"kind": "permuted", "count": 5}, {"kind": "rotated"}]),
            "models": st.just({"net": {"kind": "mlp"}}),
        },
        optional={
            "protocol": protocol,
            "optimizers": st.sampled_from([None, names, dict.fromkeys(names)])
            | st.fixed_dictionaries(dict.fromkeys(names, HYPERPARAMETERS)),
            "metrics": st.sampled_from([None, [], ["forgetting"]]),
            "pairs": st.sampled_from([None, False, {}, {"controls": None}]),
            "tuning": st.none() | st.dictionaries(st.sampled_from(names), RECORD),
        },
    )
    return {
        "name": draw(st.sampled_from(["one", "two"])),
        "seeds": draw(st.sampled_from([2, [0, 1], [4]])),
        "optimizers": {name: {"target": draw(st.sampled_from(["x", "y"])), **draw(HYPERPARAMETERS)} for name in names},
        "experiments": draw(st.dictionaries(st.sampled_from(["e", "f"]), experiment, min_size=1)),
        **draw(st.fixed_dictionaries({}, optional={"description": st.sampled_from(["", "d"]), "tune": st.just(None)})),
    }


@settings(max_examples=60, deadline=None)
@given(suites(), suites())
def test_any_suite_can_be_written_as_a_change_of_any_other(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, Any], other: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("suites")
    (folder / "base.yaml").write_text(dump(one))
    (folder / "other.yaml").write_text(dump(other))
    try:
        base, meant = load_suite(folder / "base.yaml"), load_suite(folder / "other.yaml")
    except SuiteError:
        return  # for example a sweep with a duplicate value
    (folder / "own.yaml").write_text(dump({"extends": "base.yaml", **difference(one, base, meant)}))
    assert load_suite(folder / "own.yaml") == meant


def test_reading_a_document_resolves_extends(folder: Path) -> None:
    load("optimizers: {mine: {target: sgd}}")
    assert read_document(Path("own.yaml")).value["optimizers"].keys() == {"sgd", "adam", "mine"}
