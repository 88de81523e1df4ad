"""Loading targets: neighbouring modules, edits, equal names in two folders, and the hash of the executed code."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import spawn
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench import targets
from optbench.targets import Source, TargetError, load, read_file, read_source, source_hash, use, using


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])


def write(folder: Path, **files: str) -> None:
    """Write Python files; argument names are file names without `.py`."""
    for name, text in files.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


# Ways to import a neighbouring file, and an expression for the value it defines
IMPORTS = {
    "a module": ("import helper\n", "helper.VALUE"),
    "under another name": ("import helper as h\n", "h.VALUE"),
    "a name of it": ("from helper import VALUE\n", "VALUE"),
    "everything": ("from helper import *\n", "VALUE"),
    "in a package": ("import parts.deep\n", "parts.deep.VALUE"),
    "from a package": ("from parts import deep\n", "deep.VALUE"),
    "from within a package": ("from parts.deep import VALUE\n", "VALUE"),
    "from a folder": ("from plain.deep import VALUE\n", "VALUE"),
    "relatively": ("from .helper import VALUE\n", "VALUE"),
    "from here": ("from . import helper\n", "helper.VALUE"),
    "if it is there": ("try:\n    import helper\nexcept ImportError:\n    helper = None\n", "helper.VALUE"),
    "through another": ("import through\n", "through.helper.VALUE"),
    "what imports it in turn": ("BASE = 1\nimport circular\n", "circular.value()"),
}
DEEP = {"parts/__init__": "", "parts/deep": "from .here import VALUE\n", "parts/here": "from helper import VALUE\n"}
OTHERS = {
    **DEEP,
    "plain/deep": "import helper\nVALUE = helper.VALUE\n",
    "through": "import helper\n",
    "circular": "import mine, helper\ndef value(): return mine.BASE * helper.VALUE\n",
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("how", IMPORTS)
def test_neighbours_are_imported_and_edits_of_them_are_noticed(how: str, late: bool, tmp_path: Path) -> None:
    """Any form of import works, also within a function called later, and the hash covers imported files."""
    statement, value = IMPORTS[how]
    if late and "*" in statement:
        pytest.skip("Python allows it at the top of a module only")
    inner = "    " + statement.replace("BASE = 1\n", "").replace("\n", "\n    ").rstrip() + "\n"
    text = (
        f"BASE = 1\ndef value():\n{inner}    return {value}\n" if late else f"{statement}def value(): return {value}\n"
    )
    write(tmp_path, mine=text, **OTHERS, unrelated="raise SystemExit\n")
    hashes = set()
    for number in (1, 2, 3, 3):
        write(tmp_path, helper=f"VALUE = {number}\n")
        assert load("./mine.py:value")() == number
        hashes.add(source_hash(["./mine.py:value"]))
        assert "unrelated.py" not in read_file("./mine.py").files
    assert len(hashes) == 3


def test_equal_names_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for folder, number in (("a", 1), ("b", 2)):
        write(
            tmp_path / folder,
            mine="def value():\n    import helper\n    return helper.VALUE\n",
            helper=f"VALUE = {number}\n",
        )
    one, other = (load(f"./{folder}/mine.py:value") for folder in "ab")
    assert (one(), other(), one()) == (1, 2, 1)
    assert "helper" not in sys.modules
    with pytest.raises(ImportError):
        __import__("helper")


def test_the_executed_code_is_the_code_that_was_read(tmp_path: Path) -> None:
    """All processes of a run use the same code even if the file is edited or removed during training."""
    write(tmp_path, mine="def value():\n    import helper\n    return helper.VALUE\n", helper="VALUE = 1\n")
    source = read_file("./mine.py")
    write(tmp_path, helper="VALUE = 2\n")
    with using({"./mine.py": source}):
        (tmp_path / "mine.py").unlink()
        assert load("./mine.py:value")() == 1
        assert source_hash(["./mine.py:value", "./mine.py:other"]) == source.hash
    with pytest.raises(TargetError, match="there is no file"):
        load("./mine.py:value")


def test_a_file_is_executed_once_per_version(tmp_path: Path) -> None:
    write(
        tmp_path,
        mine="import pathlib\nlog = pathlib.Path('log')\nlog.write_text(log.read_text() + 'x')\nclass A: pass\n",
    )
    (tmp_path / "log").write_text("")
    first = load("./mine.py:A")
    assert load("./mine.py:A") is load(f"{tmp_path}/mine.py:A") is first
    (tmp_path / "mine.py").touch()
    assert load("./mine.py:A") is first
    assert sys.modules[first.__module__].A is first, "dataclasses and typing look up modules there"
    assert (tmp_path / "log").read_text() == "x"
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize("name", ["torch", "random", "my-own", "a.b", "lion"])
def test_a_file_can_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("import torch, random\nclass Mine(torch.nn.Module): draw = random.random\n")
    assert load(f"./{name}.py:Mine").draw


def test_files_are_looked_up_next_to_the_suite_first(tmp_path: Path) -> None:
    write(tmp_path, mine="A = 'here'\n", only="A = 'here'\n")
    write(tmp_path / "suites", mine="A = 'beside'\n")
    folders = [tmp_path / "suites"]
    assert read_file("./mine.py", folders).path == tmp_path / "suites" / "mine.py"
    assert read_file("./only.py", folders).path == tmp_path / "only.py"
    with pytest.raises(TargetError, match=r"no file gone.py, neither in .*suites nor in the working directory"):
        read_file("./gone.py", folders)


def test_modules_of_the_working_directory_are_found(tmp_path: Path) -> None:
    name = f"found_{tmp_path.name}".replace("-", "_")
    write(tmp_path, **{name: "import near_it\nclass Mine: value = near_it.VALUE\n", "near_it": "VALUE = 1\n"})
    try:
        assert load(f"{name}:Mine").value == 1
        source = read_source(f"{name}:Mine")
        assert source is not None
        assert set(source.files) == {f"{name}.py", "near_it.py"}
        write(tmp_path, near_it="VALUE = 2\n")
        changed = read_source(f"{name}:Mine")
        assert changed is not None
        assert changed.hash != source.hash
        with using({name: source}), pytest.raises(TargetError, match="has changed since the run began"):
            load(f"{name}:Mine")
    finally:
        sys.modules.pop("near_it", None)


def test_packages_of_the_working_directory_are_hashed_completely(tmp_path: Path) -> None:
    package = f"package_{tmp_path.name}".replace("-", "_")
    write(
        tmp_path,
        **{
            f"{package}/__init__": "",
            f"{package}/one": "import json\nfrom .two import Mine\n",
            f"{package}/two": "class Mine: pass\n",
        },
    )
    source = read_source(f"{package}.one:Mine")
    assert source is not None
    assert set(source.files) == {f"{package}/__init__.py", f"{package}/one.py", f"{package}/two.py"}


def test_for_an_installed_package_only_the_file_of_the_class_is_hashed() -> None:
    source = read_source("torch.optim:SGD")
    assert source is not None
    assert (source.main, source.is_installed) == ("sgd.py", True)
    assert read_source("math:pi") is None


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(["a.py", "b.py", "c/d.py"]), st.binary(max_size=20)), st.data())
def test_the_hash_covers_only_names_and_contents(files: dict[str, bytes], data: st.DataObject) -> None:
    one = Source(Path("/x"), "a.py", {"a.py": b"", **files})
    assert one.hash == Source(Path("/y"), "a.py", dict(reversed(one.files.items()))).hash
    name = data.draw(st.sampled_from(sorted(one.files)))
    assert one.hash != Source(Path("/x"), "a.py", {**one.files, name: one.files[name] + b"x"}).hash
    assert one.hash != Source(Path("/x"), "a.py", {**one.files, "e.py": b""}).hash


def test_many_targets_have_one_hash_in_any_order(tmp_path: Path) -> None:
    write(tmp_path, a="A = 1\n", b="B = 1\n")
    both = source_hash(["./a.py:A", "./b.py:B"])
    assert both == source_hash(["./b.py:B", "./a.py:A", "./a.py:A"])
    assert len({both, source_hash(["./a.py:A"]), source_hash(["./b.py:B"])}) == 3
    assert source_hash([]) is None


def test_a_file_with_a_syntax_error_is_refused_when_executed(tmp_path: Path) -> None:
    write(tmp_path, mine="def\n", helper="VALUE = 1\n", calls="import helper, mine\n")
    assert set(read_file("./mine.py").files) == {"mine.py"}
    assert set(read_file("./calls.py").files) == {"calls.py", "helper.py", "mine.py"}
    for target in ("./mine.py:A", "./calls.py:A"):
        with pytest.raises(TargetError, match="SyntaxError"):
            load(target)


def test_sources_set_for_a_process_are_kept(tmp_path: Path) -> None:
    write(tmp_path, mine="VALUE = 1\n")
    use({"./mine.py": read_file("./mine.py")})
    try:
        write(tmp_path, mine="VALUE = 2\n")
        assert load("./mine.py:VALUE") == 1
    finally:
        use({})
    assert load("./mine.py:VALUE") == 2
    assert targets.is_file("./mine.py")


def test_processes_are_started_without_the_working_directory_and_the_main_module(tmp_path: Path) -> None:
    # In an editable installation a file `optbench.py` there would be imported instead of optbench.
    write(tmp_path, only_there_and_once="VALUE = 3\n")
    assert load("only_there_and_once:VALUE") == 3
    assert sys.path[-1] == str(tmp_path)
    with targets.starting_processes(), ThreadPoolExecutor() as elsewhere:
        found = spawn.get_preparation_data("worker")
        theirs = elsewhere.submit(spawn.get_preparation_data, "another library's").result()
    assert str(tmp_path) not in found["sys_path"]
    assert str(tmp_path) in theirs["sys_path"]
    assert not any(key.startswith("init_main") for key in found)
    assert theirs.keys() == spawn.get_preparation_data("elsewhere").keys()
    assert sys.path[-1] == str(tmp_path)
