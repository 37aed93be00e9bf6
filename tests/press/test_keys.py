"""What decides a run's key, and what does not."""

import dataclasses
import shutil
from pathlib import Path

import jupytext
import pytest

from lossbook.press.project import Project
from lossbook.press.runs import device, keys
from lossbook.press.runs.keys import Key, Keys
from lossbook.press.runs.parameters import Settings

METHOD = "lossbook.methods.contrastive.temperature_free_infonce"
COMMON = "lossbook.methods.contrastive.common"
OTHER = "lossbook.methods.layers.ideal_group_number"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "constraints.txt").write_text("numpy==2.0\n")
    return Project(tmp_path, tmp_path / "_build")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, free to be edited."""
    copy = tmp_path / "lossbook"
    shutil.copytree(keys._package(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(keys, "_package", lambda: copy)
    monkeypatch.setattr(keys, "_shipped", lambda: sorted((copy / "lab" / "data").glob("*.npz")))
    return copy


def settings(**values) -> Settings:
    return Settings("quick", {"device": "cpu", **values})


def key(project: Project, text: str, made_with: Settings | None = None) -> Key:
    return Keys(project).of(jupytext.reads(text, fmt="py:percent"), made_with or settings())


def reached(project: Project, *code: str) -> set[str]:
    return Keys(project).reached(code)


SCRIPT = "# %% [markdown]\n# Some text.\n\n# %%\nx = 1\n\n# %%\ny = x\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Some text.", "Other text."),
        ("# %% [markdown]\n# Some text.\n\n", ""),
        ("# %%\ny", "# %% [markdown]\n# More.\n\n# %%\ny"),
        ("# %%\ny", '# %% tags=["hide-input"]\ny'),
    ],
)
def test_how_it_reads_is_not_in_the_key(project, old, new):
    assert key(project, SCRIPT) == key(project, SCRIPT.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1  # a remark, which a traceback would show"),
        ("\n# %%\ny", "y"),
        ("# %%\ny", '# %% tags=["raises-exception"]\ny'),
        ("# %%\ny", '# %% tags=["skip-execution"]\ny'),
    ],
)
def test_what_runs_is_in_the_key(project, old, new):
    changed = key(project, SCRIPT.replace(old, new, 1))
    assert changed.digest != key(project, SCRIPT).digest
    assert changed.difference(key(project, SCRIPT).parts) == "code changed"


def test_parameters_versions_and_device_are_in_the_key(project, monkeypatch):
    before = key(project, SCRIPT, settings(rate=0.1))
    assert before.difference(key(project, SCRIPT, settings(rate=0.2)).parts) == "parameters changed"
    # One and the same value is not two.
    assert key(project, SCRIPT, settings(a=1, b=2)) == key(
        project, SCRIPT, Settings("full", {"b": 2, "a": 1, "device": "cpu"})
    )
    on_gpu = settings(rate=0.1, device="auto")
    monkeypatch.setattr(device, "device_of_machine", lambda: {"kind": "cuda", "name": "Card 1"})
    card = key(project, SCRIPT, on_gpu)
    monkeypatch.setattr(device, "device_of_machine", lambda: {"kind": "cuda", "name": "Card 2"})
    assert card.difference(key(project, SCRIPT, on_gpu).parts) == "device changed"
    # Processors of one kind are taken for the same.
    monkeypatch.setattr(device, "cpu", lambda: {"kind": "cpu", "name": "another"})
    assert key(project, SCRIPT, settings(rate=0.1)) == before
    (project.root / "constraints.txt").write_text("numpy==2.1\n")
    assert before.difference(key(project, SCRIPT, settings(rate=0.1)).parts) == "versions changed"


def test_words_for_what_changed():
    one, two = Key({"code": "1", "module a": "1"}), Key({"code": "2", "module b": "1"})
    assert one.difference(two.parts) == "code, module a, no more module b changed"
    many = Key({f"module {letter}": "1" for letter in "abcdef"})
    assert many.difference({}) == "module a, module b, module c, module d and 2 more changed"
    assert one.difference(one.parts) == "the way in which runs are stored changed"


def test_modules_that_are_reached_and_no_others(project, package):
    code = f"# %%\nfrom {METHOD} import TemperatureFreeInfoNCE\n"
    before = key(project, code)
    for name, words in {
        "methods/contrastive/temperature_free_infonce.py": f"module {METHOD}",
        "methods/contrastive/common.py": f"module {COMMON}",
        "methods/_validate.py": "module lossbook.methods._validate",
        "__init__.py": "module lossbook",
        "methods/layers/ideal_group_number.py": None,
        "lab/fitting.py": None,
        "press/engine.py": None,
    }.items():
        source = (package / name).read_text()
        (package / name).write_text(source + "\n# edited\n")
        after = key(project, code)
        assert (after.difference(before.parts) == f"{words} changed") if words else (after == before), name
        (package / name).write_text(source)
    assert key(project, code) == before


@pytest.mark.parametrize(
    ("code", "there", "not_there"),
    [
        ("from lossbook.methods.contrastive import info_nce", {METHOD, COMMON}, {OTHER}),
        ("from lossbook.methods.contrastive import *", {METHOD, COMMON}, {OTHER}),
        ("import lossbook.methods.contrastive as c", {METHOD, COMMON}, {OTHER}),
        ("from lossbook.methods import contrastive", {METHOD, COMMON}, {OTHER}),
        ("from lossbook import methods", {METHOD, OTHER}, {"lossbook.lab.fitting"}),
        ("import lossbook", {METHOD, OTHER, "lossbook.lab.fitting"}, set()),
        ("import lossbook as lb, os", {METHOD, OTHER}, set()),
        # A module alone.
        (f"import {COMMON}", {COMMON, "lossbook.methods.contrastive"}, {METHOD, OTHER}),
        ("from lossbook.methods.contrastive import common", {COMMON}, {METHOD, OTHER}),
        # A module beside a name; a module beside the package or the whole.
        ("from lossbook.methods.contrastive import common, temperature_free_info_nce", {COMMON, METHOD}, {OTHER}),
        (f"import {COMMON}\nfrom lossbook.methods.contrastive import x", {COMMON, METHOD}, {OTHER}),
        ("import lossbook\nfrom lossbook.lab import fit", {METHOD, OTHER}, set()),
        # Within a function; by name.
        (f"def f():\n    import {OTHER}", {OTHER}, {METHOD}),
        (f"import importlib\nimportlib.import_module('{OTHER}')", {OTHER}, {METHOD}),
        ("import os\nfrom .lossbook import x\nimport lossbooks", set(), {"lossbook", METHOD}),
        # What is not Python.
        (f"%%time\nimport {OTHER}", {OTHER}, {METHOD}),
        (f"%matplotlib inline\nimport {OTHER}\n!ls", {OTHER}, {METHOD}),
        (f"%time import {OTHER}", {OTHER}, set()),
        (f"files = !ls\nimport {OTHER}", {OTHER}, set()),
        (f"import {OTHER}\nx = (5\n     % 3)", {OTHER}, {METHOD}),
        (f"import {OTHER}\ndef f(:", {OTHER}, set()),
        (f"import {OTHER}\nx = '\0'", {OTHER}, set()),
        ("files = !ls", set(), {"lossbook"}),
    ],
)  # fmt: skip
def test_what_an_import_reaches(project, code, there, not_there):
    found = reached(project, code)
    assert there <= found and not not_there & found


def test_a_part_that_a_method_imports_is_reached_whole(project, monkeypatch, tmp_path):
    import sys

    import grimp

    made = tmp_path / "inkbook"
    for name, text in {
        "__init__": "",
        "methods/__init__": "",
        "methods/a/__init__": "",
        "methods/a/common": "",
        "methods/b/__init__": "",
        "methods/b/paper": "from inkbook.methods.a import triplet\n",
        "methods/b/other": "",
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(keys, "PACKAGE", "inkbook")
    monkeypatch.setattr(Keys, "_graph", grimp.build_graph("inkbook", cache_dir=None))
    found = reached(project, "import inkbook.methods.b.paper")
    assert "inkbook.methods.a.common" in found and "inkbook.methods.b.other" not in found


def test_data_that_are_named_and_no_others(project, package):
    file = package / "lab" / "data" / "fashion_mnist.npz"
    named = "# %%\ndata = load('fashion_mnist')\n"
    scripts = {
        "by the code": (named, settings()),
        "by a parameter": (SCRIPT, settings(name="fashion_mnist")),
        "by one of a list": (SCRIPT, settings(names=["digits", "fashion_mnist"])),
    }
    before = {name: key(project, *args) for name, args in scripts.items()}
    other = key(project, named.replace("fashion_mnist", "digits"))
    with open(file, "ab") as opened:
        opened.write(b"more")
    for name, args in scripts.items():
        assert key(project, *args).difference(before[name].parts) == "data fashion_mnist changed", name
    assert key(project, named.replace("fashion_mnist", "digits")) == other


def test_a_key_is_the_same_everywhere_and_every_time(project, tmp_path):
    code = f"# %%\nimport {METHOD}\n"
    again = dataclasses.replace(project, output=tmp_path / "elsewhere")
    assert key(project, code).digest == key(again, code).digest == key(project, code).digest


@pytest.mark.slow
def test_the_command_says_why(tiny, tmp_path):
    """With an edited copy of the package, as after `git pull`."""
    copy = tmp_path / "path" / "lossbook"
    shutil.copytree(keys._package(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    tiny.program = (
        "-c",
        "from lossbook.press.site import render\nrender.render = lambda *a: None\nfrom lossbook.press.cli.main import main\nmain()",
    )
    tiny.notebook("reaches", f"from {OTHER} import *\n")
    tiny.notebook("does_not", "x = 1\n")
    environment = {"PYTHONPATH": str(copy.parent)}
    assert tiny.run("build", "--explain", **environment).stdout.count("it was never run") == 2
    assert tiny.files() == []
    tiny.run("build", **environment)
    assert tiny.run("build", "--explain", **environment).stdout.count("nothing that decides its result") == 2
    method = copy / "methods" / "layers" / "ideal_group_number.py"
    method.write_text(method.read_text() + "\nEDITED = 1\n")
    lines = tiny.run("build", "--explain", **environment).stdout.splitlines()
    assert any("reaches" in line and "yes" in line and f"module {OTHER} changed" in line for line in lines)
    assert any("does_not" in line and " no " in line for line in lines)
    done = tiny.run("build", **environment)
    assert "reaches, quick: finished" in done.stderr and "does_not, quick:" not in done.stderr
