"""What decides a run's key, and what does not."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jupytext
import pytest

from lossbook.press.project import Project
from lossbook.press.runs import device, keys
from lossbook.press.runs.keys import Key, Keys
from lossbook.press.runs.parameters import Settings

ROOT = Path(__file__).parents[2]
METHOD = "lossbook.methods.contrastive.temperature_free_infonce"
OTHER = "lossbook.methods.layers.ideal_group_number"


@pytest.fixture
def project(tmp_path: Path) -> Project:
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


def test_parameters_python_and_device_are_in_the_key(project, monkeypatch):
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
    monkeypatch.setattr(keys.platform, "python_version", lambda: "3.99.0")
    assert before.difference(key(project, SCRIPT, settings(rate=0.1)).parts) == "version python changed"


def test_versions_of_what_is_imported_and_of_no_other(project, monkeypatch):
    """And of all that this needs itself."""
    installed = {
        "scipy": ("1.0", ["numpy"]),
        "numpy": ("2.0", []),
        "scikit-learn": ("1.5", ["Scipy", "threadpoolctl"]),
        "threadpoolctl": ("3.0", []),
        "oracle": ("1.0", ["numpy"]),
    }
    monkeypatch.setattr(keys, "_distributions", lambda: {"sklearn": ["scikit-learn"], "oracle": ["oracle"]})
    monkeypatch.setattr(keys, "_installed", lambda name: installed.get(name, ("", [])))
    scripts = {
        "numpy": "# %%\nimport json, numpy.linalg as la\n",
        "scipy": "# %%\nfrom scipy import special\n",
        "sklearn": "# %%\ndef f():\n    import sklearn.svm\n",
        "missing": "# %%\ntry:\n    import missing\nexcept ImportError: ...\n",
    }
    before = {name: key(project, text) for name, text in scripts.items()}

    def again() -> set[str]:
        after = {name: key(project, text) for name, text in scripts.items()}
        return {name for name in scripts if after[name] != before[name]}

    assert not any("json" in name for name in before["numpy"].parts)
    installed["scipy"] = ("1.1", ["numpy"])
    assert again() == {"scipy", "sklearn"}
    assert key(project, scripts["sklearn"]).difference(before["sklearn"].parts) == "version scipy changed"
    installed["scipy"] = ("1.0", ["numpy"])
    assert again() == set()
    for name in ("oracle", "new"):
        installed[name] = ("2.0", [])
    (project.root / "constraints.txt").write_text("oracle==2.0\n")
    assert again() == set()
    installed["numpy"] = ("2.1", [])
    assert again() == {"numpy", "scipy", "sklearn"}
    installed["numpy"] = ("2.0", [])
    installed["missing"] = ("0.1", [])
    assert again() == {"missing"}


def test_versions_of_this_environment():
    from importlib.metadata import version

    found = keys._versions({"sklearn", "json", "torch"})
    assert {"scikit-learn", "scipy", "numpy", "torch", "joblib"} <= found.keys()
    assert found["numpy"] == version("numpy") and not {"pandas", "pytest", "json"} & found.keys()


def test_words_for_what_changed():
    one, two = Key({"code": "1", "module lossbook.a": "1"}), Key({"code": "2", "lossbook.b.f": "1"})
    assert one.difference(two.parts) == "code changed, module a new, b.f gone"
    many = Key({f"lossbook.{letter}": "1" for letter in "abcdef"})
    assert many.difference({}) == "a, b, c, d and 2 more new"
    assert one.difference(one.parts) == "the way in which runs are stored changed"
    assert one.difference({**one.parts, "format": "1"}) == "the way in which runs are stored changed"
    # What names mean is told by the definitions, where these changed too.
    assert Key({"a": "1", "names": "1"}).difference({"a": "2", "names": "2"}) == "a changed"
    assert "names" in Key({"names": "1"}).difference({"names": "2"})


def test_a_key_stays_small(project, package):
    """Of very many definitions, those of a module are put together."""
    code = "# %%\nfrom lossbook.lab import fitting, results\nprint(results.record)\n"
    small = key(project, code)
    names = [f"part_{number}" for number in range(keys.MOST)]
    (package / "lab" / "results.py").write_text(
        "\n".join(f"def {name}(): ...\n" for name in names) + f"def record():\n    return {', '.join(names)}\n"
    )
    large = key(project, code)
    assert "lossbook.lab.results.record" in small.parts
    assert "lossbook.lab.results" in large.parts and len(large.parts) < 100
    text = (package / "lab" / "results.py").read_text()
    (package / "lab" / "results.py").write_text(text.replace("def part_7(): ...", "def part_7(): 7"))
    assert key(project, code).difference(large.parts) == "lab.results changed"


def test_definitions_that_are_reached_and_no_others(project, package):
    code = f"# %%\nfrom {METHOD} import log_odds\nlog_odds\n"
    before = key(project, code)
    for name, old, new, words in [
        ("methods/contrastive/temperature_free_infonce.py", "def log_odds(", "def log_odds(more, ", METHOD + ".log_odds"),
        ("methods/contrastive/temperature_free_infonce.py", "def temperature_free_info_nce(", "def temperature_free_info_nce(more, ", None),
        ("methods/contrastive/__init__.py", "__all__ =", "import torch\ntorch.manual_seed(0)\n__all__ =", "import lossbook.methods.contrastive"),
        ("methods/contrastive/cacr.py", "def cacr_loss(", "def cacr_loss(more, ", None),
        ("methods/contrastive/cacr.py", "__all__ =", "torch.manual_seed(0)\n__all__ =", "import lossbook.methods.contrastive.cacr"),
        ("methods/contrastive/__init__.py", "    cacr_loss,", "    cacr_loss,\n    another,", None),
        ("methods/__init__.py", "__all__ = [", "__all__ = [\n    'another',", None),
        ("__init__.py", "__version__ = ", "__version__ = '1' + ", "import lossbook, lossbook.__version__"),
        ("methods/layers/ideal_group_number.py", "__all__ =", "torch.manual_seed(0)\n__all__ =", None),
        ("press/runs/engine.py", "TOPIC =", "TOPIC = 2 #", None),
    ]:  # fmt: skip
        source = (package / name).read_text()
        assert source.count(old), (name, old)
        (package / name).write_text(source.replace(old, new, 1))
        after = key(project, code)
        if words:
            said = ", ".join(word.replace("lossbook.", "", 1) for word in words.split(", "))
            assert after.parts != before.parts and said in after.difference(before.parts), (name, new)
        else:
            assert after == before, name
        (package / name).write_text(source)
    assert key(project, code) == before


def test_data_that_are_named_and_no_others(project, package):
    file = package / "lab" / "data" / "fashion_mnist.npz"
    named = "# %%\ndata = load('fashion_mnist')\n"
    scripts = {
        "by the code": (named, settings()),
        "by a parameter": (SCRIPT, settings(name="fashion_mnist")),
        "by one of a list": (SCRIPT, settings(names=["digits", "fashion_mnist"])),
        "by what is reached": ("# %%\nfrom lossbook import lab\nlab.load(name)", settings()),
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


# Edits of the library, and the pages of the book that run again: those whose code tells so. ---------------------


def names(*some: str) -> Callable[[str], bool]:
    """Whether code names one of them."""
    return lambda code: bool(re.search(rf"\b(?:{'|'.join(some)})\b", code))


def every(code: str) -> bool:
    return True


def none(code: str) -> bool:
    return False


# What is edited; what stands there and what instead; pages that run again; pages that may, since definitions of the
# library use what was edited.
EDITS = {
    "new function": ("lab/fitting.py", "def grid(", "def other(x=1):\n    return x\n\n\ndef grid(", none, none),
    "docstring": ("lab/fitting.py", '"""Train all runs together', '"""Fit all runs together', none, none),
    "comment": ("lab/fitting.py", "# No run's loss", "# No one's loss", none, none),
    "pgd": ("lab/attacks.py", "    rate = 2.5 * epsilon / steps", "    rate = 2.0 * epsilon / steps", names("pgd"), none),
    "fit": ("lab/fitting.py", "watch.finish(leaves)", "watch.finish(leaves[:])", names("fit"), names("learned_attack", "fit_decoders", "attack_auc", "judge_attack")),
    "default": ("lab/fitting.py", "clip_norm: float | None = None", "clip_norm: float | None = 1.0", names("fit"), names("learned_attack", "fit_decoders", "attack_auc", "judge_attack")),
    "constant": ("lab/fitting.py", "NOISE_STEPS = 16", "NOISE_STEPS = 32", names("fit"), names("learned_attack", "fit_decoders", "attack_auc", "judge_attack")),
    "decorator": ("lab/statistics.py", "def paired(", "import functools\n@functools.cache\ndef paired(", names(r"lab\.paired"), none),
    "base class": ("lab/augmentations.py", "class _Drawn(ABC):", "class _Drawn(ABC, dict):", names("Views", "SignalViews"), none),
    "statement on import": ("lab/fitting.py", "NOISE_STEPS = 16", "torch.set_num_threads(2)\nNOISE_STEPS = 16", every, none),
    "new name of a part": ("methods/layers/__init__.py", "__all__ = [", "from math import sin as sine\n\n__all__ = [\n    'sine',", none, none),
    "new shared module": ("methods/__init__.py", "__all__ = [", "__all__ = [\n    'another',", none, none),
    "method of one paper": ("methods/layers/ideal_group_number.py", "def group_norm_gain(", "def group_norm_gain(more, ", names("group_norm_gain"), names("ideal_group_number")),
}  # fmt: skip


@pytest.fixture(scope="module")
def papers() -> dict:
    return {path.stem: jupytext.read(path, fmt="py:percent") for path in sorted((ROOT / "notebooks").glob("*/*.py"))}


def planned(project: Project, papers: dict) -> dict[str, Key]:
    maker = Keys(project)
    return {slug: maker.of(notebook, settings()) for slug, notebook in papers.items()}


def test_pages_that_an_edit_runs_again(project, package, papers):
    code = {
        slug: "\n".join(each.source for each in book.cells if each.cell_type == "code") for slug, book in papers.items()
    }
    before = planned(project, papers)
    assert len(papers) >= 20 and max(len(each.parts) for each in before.values()) < 300
    counted = {}
    for edit, (file, old, new, surely, perhaps) in EDITS.items():
        source = (package / file).read_text()
        assert source.count(old) == 1, edit
        (package / file).write_text(source.replace(old, new))
        after = planned(project, papers)
        (package / file).write_text(source)
        again = {slug for slug in papers if after[slug].digest != before[slug].digest}
        counted[edit] = len(again)
        must = {slug for slug in papers if surely(code[slug])}
        may = must | {slug for slug in papers if perhaps(code[slug])}
        assert must <= again <= may, (edit, sorted(must - again), sorted(again - may))
    assert planned(project, papers) == before
    print(counted)


@pytest.mark.slow
def test_the_command_says_why(tiny, tmp_path):
    """With an edited copy of the package, as after `git pull`."""
    copy = tmp_path / "path" / "lossbook"
    shutil.copytree(keys._package(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    tiny.program = (
        "-c",
        "from lossbook.press.site import check, render\nrender.render = lambda *a: None\ncheck.check = lambda *a: []\n"
        "from lossbook.press.cli.main import main\nmain()",
    )
    tiny.notebook("reaches", f"from {OTHER} import *\n")
    tiny.notebook("calls", f"from {OTHER} import group_norm_gain\nf = group_norm_gain\n")
    tiny.notebook("does_not", "x = 1\n")
    environment = {"PYTHONPATH": str(copy.parent)}
    assert tiny.run("build", "--explain", **environment).stdout.count("it was never run") == 3
    assert tiny.files() == []
    tiny.run("build", **environment)
    assert tiny.run("build", "--explain", **environment).stdout.count("nothing that decides its result") == 3
    method = copy / "methods" / "layers" / "ideal_group_number.py"
    method.write_text(method.read_text().replace("def group_norm_gain(", "def group_norm_gain(more, "))
    lines = tiny.run("build", "--explain", **environment).stdout.splitlines()
    assert any("reaches" in line and " yes " in line and f"{OTHER[9:]} changed" in line for line in lines), lines
    assert any("calls" in line and f"{OTHER[9:]}.group_norm_gain changed" in line for line in lines), lines
    assert any("does_not" in line and " no " in line for line in lines)
    done = tiny.run("build", **environment)
    assert "reaches, quick: finished" in done.stderr and "does_not, quick:" not in done.stderr
