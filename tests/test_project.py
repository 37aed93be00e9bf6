"""The project's own files agree with each other."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import files, packages_distributions, requires, version
from pathlib import Path
from pkgutil import iter_modules

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from lossbook.press.errors import PressError
from lossbook.press.pages import exports
from lossbook.press.project import Project

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXPORTS = exports.written_out(Project.find(ROOT))
CONDA_NAMES = {"pytorch": "torch"}


def declared() -> dict[str, SpecifierSet]:
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    requirements = map(Requirement, texts)
    return {canonicalize_name(r.name): r.specifier for r in requirements if r.name != PROJECT["name"]}


def pinned() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = dict(re.fullmatch(r"([\w.-]+)==([\w.+!-]+)", line).groups() for line in lines)
    return {canonicalize_name(name): version for name, version in pins.items()}


def test_environment_states_the_dependencies_of_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    flat = [text for item in listed for text in (item["pip"] if isinstance(item, dict) else [item]) if text != "pip"]
    requirements = [Requirement(text) for text in flat]
    stated = {canonicalize_name(CONDA_NAMES.get(r.name, r.name)): r.specifier for r in requirements}
    assert stated.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert stated == declared()


def test_constraints_pin_every_dependency_within_its_range():
    pins = pinned()
    for name, specifier in declared().items():
        assert pins[name] in specifier, name
    assert pins["torch"] == "2.13.0"


def needed(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """Everything that a distribution pulls in here, itself excepted."""
    found, queue = set(), [(name, extras)]
    while queue:
        name, extras = queue.pop()
        for text in requires(name) or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                key = canonicalize_name(requirement.name)
                if (key, *requirement.extras) not in found:
                    found.add((key, *requirement.extras))
                    queue.append((requirement.name, tuple(requirement.extras)))
    return {key for key, *_ in found} - {PROJECT["name"]}


def test_constraints_are_what_is_installed():
    pins = pinned()
    # What torch brings for a GPU differs from machine to machine.
    ours = {name for name in needed("lossbook", ("dev",)) if not name.startswith(("nvidia", "cuda", "triton"))}
    ours -= {"setuptools"}
    assert {name: version(name).split("+")[0] for name in ours} == {name: pins.get(name) for name in ours}
    assert not pins.keys() - ours, "pinned, but nothing needs it"


def test_importing_the_library_imports_nothing_heavy():
    code = "import sys, lossbook; print(*(m for m in ('torch', 'pandas', 'seaborn', 'sklearn', 'typer') if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# What an installation with these extras lacks, seen from a fresh interpreter.
HIDING = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name.partition(".")[0] in {hidden} else find(name, *where)
"""


def with_extras(code: str, *extras: str, expect: int = 0) -> subprocess.CompletedProcess:
    """Run code where nothing is installed but the library and these extras."""
    lacking = needed("lossbook", ("dev",)) - needed("lossbook", extras)
    hidden = {
        module
        for module, owners in packages_distributions().items()
        if {canonicalize_name(owner) for owner in owners} <= lacking
    }
    code = HIDING.format(hidden=hidden) + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == expect, done.stderr
    return done


def test_methods_need_nothing_but_the_library_dependencies():
    code = """
import lossbook, torch
for part in lossbook.methods.__all__:
    print(*getattr(lossbook.methods, part).__all__)
x = torch.eye(3)
lossbook.methods.contrastive.info_nce(x, x)
try:
    lossbook.methods.contrastive.graph_matching(x)
except ModuleNotFoundError as error:
    print(error)
"""
    said = with_extras(code).stdout
    assert {"info_nce", "isometric_group_number"} <= set(said.split())
    assert said.endswith('graph matching needs scipy: pip install "lossbook[methods]"\n')
    assert with_extras(code, "methods").stdout == said[: said.index("graph matching needs")]


@pytest.mark.parametrize("code", ["import lossbook.lab", "from lossbook import lab", "from lossbook import *",
    "from lossbook.lab import attacks", "import lossbook.lab.fitting"])  # fmt: skip
def test_a_missing_bench_is_named(code):
    last = with_extras(code, "methods", expect=1).stderr.splitlines()[-1]
    assert re.fullmatch(
        r'ModuleNotFoundError: the bench, lossbook.lab, needs IPython, .*, tqdm: pip install "lossbook\[lab\]"', last
    )
    assert "scipy" not in last


def test_asking_for_a_missing_bench_is_no_error():
    code = """
import inspect, lossbook
assert hasattr(lossbook, "methods") and not hasattr(lossbook, "lab") and getattr(lossbook, "lab", None) is None
inspect.getmembers(lossbook)
try:
    lossbook.lab
except AttributeError as error:
    print(error)
"""
    said = with_extras(code).stdout
    assert said.startswith(
        "module 'lossbook' has no attribute 'lab': the bench, lossbook.lab, needs IPython, matplotlib, "
    )
    assert said.endswith('pip install "lossbook[lab]"\n')


def test_a_missing_book_is_named():
    code = 'import sys\nsys.argv = ["lossbook", "list"]\nfrom lossbook.press.cli.main import main\nmain()'
    said = with_extras(code, "lab", expect=1).stderr
    assert re.fullmatch(
        r'lossbook: \w+ is not installed; running the book needs: pip install "lossbook\[book\]"\n', said
    )


def test_the_bench_needs_nothing_but_its_extra():
    """Some calls; and all that it imports, also within functions, is looked for before it is imported."""
    code = """
import pkgutil, torch
from importlib import import_module
from lossbook import lab
for module in pkgutil.iter_modules(lab.__path__):
    import_module(f"lossbook.lab.{module.name}")
lab.use_theme()
train, test = lab.load("digits", split="train"), lab.load("digits", split="test")
flat = [(each.inputs.flatten(1), each.targets) for each in (train, test)]
print(lab.linear_probe(*flat[0], flat[1])[0] > 0.9)
print(lab.mean_interval([1.0, 2.0, 3.0]))
from lossbook.lab.data.sentences import SentenceEncoder
try:
    SentenceEncoder()
except ModuleNotFoundError as error:
    print(error)
"""
    said = with_extras(code, "lab").stdout
    assert "True" in said and said.endswith(
        'SentenceEncoder needs safetensors, tokenizers: pip install "lossbook[sentences]"\n'
    )
    tree = ast.parse((ROOT / "src/lossbook/lab/_needs.py").read_text())
    [looked_for] = [{each.value for each in node.args} for node in ast.walk(tree) if isinstance(node, ast.Call)]
    files = [*(ROOT / "src/lossbook/lab").rglob("*.py"), ROOT / "src/lossbook/formats.py"]
    own = {"numpy", "torch", "jaxtyping"}
    # (These, of one module, its extra `sentences` brings.)
    assert imported(*files) == looked_for | own | {"safetensors", "tokenizers"}
    assert imported(*(ROOT / "src/lossbook/methods").rglob("*.py")) == own | {"scipy"}
    owners = packages_distributions()
    extra = {Requirement(text).name for text in PROJECT["optional-dependencies"]["lab"]} - {"lossbook"}
    assert {canonicalize_name(owners[name][0]) for name in looked_for} == extra


def imported(*files: Path) -> set[str]:
    """The other libraries that files import, anywhere in them."""
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"lossbook"}


def test_an_unknown_attribute_is_an_attribute_error():
    import lossbook

    with pytest.raises(AttributeError, match="module 'lossbook' has no attribute 'loss'"):
        _ = lossbook.loss
    with pytest.raises(
        AttributeError, match="no attribute 'contrastve'; it has accumulation, adversarial, contrastive, "
    ):
        _ = lossbook.methods.contrastve
    assert lossbook.__version__ == PROJECT["version"]


EXPORTED = [".".join(path.parent.relative_to(ROOT / "src").parts) for path in EXPORTS]


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.parent.name)
def test_parts_export_what_their_modules_have(path):
    assert path.read_text() == EXPORTS[path], f"{path}: run `make format`"


def test_what_a_part_exports(tmp_path):
    (tmp_path / "_config.yml").touch()
    methods = tmp_path / "src/lossbook/methods"
    (methods / "part").mkdir(parents=True)
    (methods / "__init__.py").write_text((ROOT / "src/lossbook/methods/__init__.py").read_text())
    (methods / "shared.py").write_text("")
    (methods / "part/__init__.py").write_text('"""A part."""\n')
    (methods / "part/one.py").write_text('__all__ = ["loss", "Loss"]\nloss = 1\nclass Loss: ...\n')

    def write() -> None:
        for path, text in exports.written_out(Project(tmp_path, tmp_path / "_build")).items():
            path.write_text(text)

    for _ in range(2):  # the second time nothing changes
        write()
        assert (methods / "part/__init__.py").read_text() == (
            '"""A part."""\n\n# From here on written by `make format`: the `__all__` of the modules beside this file.\n'
            "from lossbook.methods.part.one import (\n    Loss,\n    loss,\n)\n\n"
            '__all__ = [\n    "Loss",\n    "loss",\n]\n'
        )
        text = (methods / "__init__.py").read_text()
        assert "    from lossbook.methods import (\n        part,\n        shared,\n    )\n" in text
        assert '__all__ = [\n    "part",\n    "shared",\n]\n' in text and "privacy" not in text
    (methods / "part/two.py").write_text('__all__ = ["loss"]\nloss = 2\n')
    with pytest.raises(PressError, match=r"lossbook.methods.part: loss is public in both one and two"):
        write()
    (methods / "part/two.py").write_text('__all__ = ["one"]\none = 2\n')
    with pytest.raises(
        PressError, match=r"lossbook.methods.part: one is a module, and a public name in two: rename it"
    ):
        write()


def test_no_public_name_hides_a_module():
    for package in ("lossbook", "lossbook.lab", *EXPORTED):
        home = import_module(package)
        for info in iter_modules(home.__path__):
            module = import_module(f"{package}.{info.name}")
            assert getattr(home, info.name) is module, f"{package}.{info.name}"
            assert info.name not in getattr(module, "__all__", ()), f"{package}.{info.name}"


# What a type checker must know, and what it must find wrong. (`{}` is code of the README.)
STATIC = """
# pyright: strict, reportUnusedExpression=false
import lossbook
from lossbook import lab, methods
from lossbook.lab import attacks
from lossbook.methods import poincare
{}
info_nce, methods.contrastive.info_nce, lossbook.methods.contrastive.info_nce, poincare.distance, methods.poincare
lab.fit, lossbook.lab.fit, attacks.pgd, lossbook.press
methods.contrastve  # wrong
methods.contrastive.info_nec  # wrong
lossbook.metods  # wrong
"""


@pytest.mark.slow
def test_static_tools_know_every_name(tmp_path):
    """The README's examples and what is exported, by the rules that pyright calls strict."""
    code = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert code
    (tmp_path / "use.py").write_text(STATIC.format("\n".join(code)))
    exported = [f"from {name} import {', '.join(import_module(name).__all__)}" for name in EXPORTED]
    (tmp_path / "names.py").write_text("\n".join(["# pyright: strict, reportUnusedImport=false", *exported]))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    errors = [each for each in json.loads(done.stdout)["generalDiagnostics"] if each["severity"] == "error"]
    found = {(Path(each["file"]).name, each["range"]["start"]["line"]) for each in errors}
    lines = (tmp_path / "use.py").read_text().splitlines()
    assert found == {("use.py", index) for index, line in enumerate(lines) if line.endswith("# wrong")}, errors


# A notebook called like its part opens the part, and is no paper.
PAPERS = sorted(
    path.relative_to(ROOT / "notebooks").with_suffix("")
    for path in (ROOT / "notebooks").glob("*/*.py")
    if path.stem != path.parent.name
)


@pytest.mark.parametrize("paper", PAPERS, ids=str)
def test_a_paper_has_the_same_name_in_every_tree(paper):
    part, slug = paper.parts
    assert (ROOT / "src/lossbook/methods" / part / f"{slug}.py").is_file()
    assert (ROOT / "tests/methods" / part / f"test_{slug}.py").is_file()
    assert re.search(rf"^{part},{slug},", (ROOT / "book/catalogue.csv").read_text(), re.MULTILINE)
    assert re.search(rf"@\w+{{{slug},", (ROOT / "book/references.bib").read_text())


@pytest.mark.parametrize("paper", PAPERS, ids=str)
def test_public_functions_say_what_they_compute(paper):
    tree = ast.parse((ROOT / "src/lossbook/methods" / paper.with_suffix(".py")).read_text())
    listed = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in listed:
            text = ast.get_docstring(node) or ""
            assert "Args:" in text and "Source:" in text, f"{node.name} lacks a section"


def test_no_executed_notebook_is_in_the_repository():
    files = subprocess.run(["git", "ls-files", "*.ipynb"], cwd=ROOT, capture_output=True, text=True).stdout
    assert not files


ADDRESS = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_citation_is_that_of_this_version():
    book = CITATION["preferred-citation"]
    assert CITATION["version"] == book["edition"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]
    assert book["title"] == CITATION["title"] and book["authors"] == CITATION["authors"]


def test_the_address_is_the_same_everywhere_or_nowhere():
    assert PROJECT.get("urls", {}).get("Repository", "") == CITATION.get("repository-code", "") == ADDRESS


def test_versions_in_docstrings_came_after_the_first_and_are_not_to_come():
    named = {
        (path.name, found)
        for path in (ROOT / "src/lossbook").rglob("*.py")
        for found in re.findall(
            r"^ *(?:Added|Changed) in version (\d[\w.]*?)[:.]?(?: .*)?$", path.read_text(), re.MULTILINE
        )
    }
    assert {each for each in named if not Version("0.1.0") < Version(each[1]) <= Version(PROJECT["version"])} == set()


def test_hooks_fetch_nothing_and_run_tools_of_the_environment():
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    tools = {Path(file).name for name in declared() for file in files(name) or []}
    for hook in repository["hooks"]:
        # pre-commit makes an environment of its own, from the network, for every other language.
        assert hook["language"] in ("system", "fail"), hook["id"]
        assert hook["language"] == "fail" or Path(hook["entry"].split()[0]).name in tools, hook["id"]
