"""The reference: what is public is found in the files, described on a page, and can be linked to."""

import importlib
import importlib.util
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
import typer.main
import yaml
from sphinx.util.inventory import InventoryFile

from lossbook.press.cli.main import application
from lossbook.press.errors import PressError
from lossbook.press.extensions import docstrings
from lossbook.press.pages import command_line, exports, reference
from lossbook.press.project import Project

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(application())
INVENTORIES = ROOT / "book" / "inventories"
ADDED = '''"""Mimsy losses."""

from jaxtyping import Float
from torch import Tensor

__all__ = ["MOME", "Raths", "RathsError", "outgrabe"]

#: What raths are.
MOME = 3


class RathsError(ValueError):
    """Too many raths."""


class Raths:
    """Raths.

    Attributes:
        count: how many.
    """

    count: int

    def whistle(self) -> int:
        """As loud as $a_i^2$."""
        return 1


def outgrabe(raths: Float[Tensor, "n d"], *, how: str = "loudly") -> Float[Tensor, "*n"]:
    r"""The sum of $x_i$, by `sum`.

    $$\\sum_i x_i$$

    and no more, see arXiv:2501.17683.

    Added in version 0.2.0: softly.

    Args:
        raths: of shape `(n, d)`, $n>0$.
        how: the manner.
            Added in version 0.3.0.

    Returns:
        The sum.

    Raises:
        RathsError: never.

    Source:
        ours.

    Examples:
        >>> outgrabe(torch.eye(2), how="`mimsily`")
        tensor([1., 1.])
    """
    return raths.sum(1)


def _hidden():
    """Not public."""
'''


class Tree:
    """A copy of the project's library, with a page for the reference and nothing else."""

    def __init__(self, root: Path, python=None, methods: bool = True):
        ignored = shutil.ignore_patterns("__pycache__", *([] if methods else ["methods", "lab"]))
        shutil.copytree(ROOT / "src", root / "src", ignore=ignored)
        shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("*.md"))
        shutil.copy(ROOT / "_config.yml", root)
        (root / "notebooks").mkdir()
        self.python, self.root, self.source, self.site = (
            python,
            root,
            root / "source",
            root / "made" / "_build" / "html",
        )
        self.project = Project(root, root / "_build")

    def add(self, place: str, text: str) -> None:
        path = self.root / "src" / "lossbook" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def render(self, intro: str = "") -> subprocess.CompletedProcess:
        """Write the reference, and what parts export, and render it."""
        for path, text in exports.written_out(self.project).items():
            path.write_text(text)
        shutil.rmtree(self.source, ignore_errors=True)
        shutil.copytree(self.root / "book", self.source)
        shutil.copy(self.root / "_config.yml", self.source)
        (self.source / "extra").mkdir(exist_ok=True)
        (self.source / "intro.md").write_text(f"# Intro\n\n{intro}\n")
        (self.source / "references.md").write_text("# Papers\n\n```{bibliography}\n:all:\n```\n")
        reference.write(self.project, [], self.source)
        command_line.write(COMMANDS, self.source)
        chapters = [reference.chapter(self.project), {"file": "references"}]
        (self.source / "_toc.yml").write_text(
            yaml.safe_dump({"format": "jb-book", "root": "intro", "chapters": chapters})
        )
        environment = {"PYTHONPATH": str(self.root / "src"), "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}
        options = ["build", str(self.source), "--path-output", str(self.root / "made"), "-W", "--keep-going"]
        code = "from jupyter_book.cli.main import main; main()"
        return self.python(code, *options, cwd=self.root, **environment)

    def page(self, name: str) -> str:
        return (self.site / f"{name}.html").read_text(encoding="utf-8")

    @property
    def objects(self) -> set[str]:
        """Every Python name that the site has an anchor for."""
        with open(self.site / "objects.inv", "rb") as file:
            found = InventoryFile.load(file, "", lambda base, place: place)
        return {name for kind, names in found.items() if kind.startswith("py:") for name in names}


@pytest.fixture(scope="module")
def tree(tmp_path_factory, python):
    """The library with one more module, rendered."""
    tree = Tree(tmp_path_factory.mktemp("reference") / "tree", python)
    tree.add("methods/contrastive/borogove.py", ADDED)
    done = tree.render("See {py:func}`lossbook.methods.contrastive.outgrabe` and {option}`lossbook run --profile`.")
    assert done.returncode == 0, done.stdout + done.stderr
    return tree


def library() -> list[str]:
    files = [
        path
        for part in ("methods/[!_]*.py", "methods/*/*.py", "lab/*.py", "lab/*/__init__.py")
        for path in (ROOT / "src/lossbook").glob(part)
    ]
    names = [
        str(path.relative_to(ROOT / "src").with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in files
    ]
    return [name for name in names if not name.rpartition(".")[2].startswith("_") and name != "lossbook.lab"]


@pytest.mark.slow
def test_every_public_name_has_an_anchor(tree):
    names = set()
    for module in map(importlib.import_module, library()):
        exported = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
        names |= {f"{module.__name__}.{name}" for name, value in exported.items() if callable(value)}
    for package in ("lossbook.lab", *(f"lossbook.methods.{part}" for part in reference.Library.of(tree.project).parts)):
        names |= {f"{package}.{name}" for name in importlib.import_module(package).__all__}
    assert len(names) > 50
    assert names <= tree.objects


@pytest.mark.slow
def test_a_module_more_is_a_page_more(tree):
    below = {name.removeprefix("lossbook.methods.contrastive.") for name in tree.objects}
    assert {"outgrabe", "Raths", "Raths.whistle", "RathsError", "MOME", "borogove.outgrabe"} <= below
    assert not any("_hidden" in name for name in below)
    for page in ("api/index", "api/methods/contrastive"):
        assert "lossbook.methods.contrastive.outgrabe" in tree.page(page)
    assert "api/methods/contrastive/borogove.html#lossbook.methods.contrastive.outgrabe" in tree.page("intro")


@pytest.mark.slow
def test_entry(tree):
    page = tree.page("api/methods/contrastive/borogove")
    entry = page[page.index('id="lossbook.methods.contrastive.outgrabe"') :]
    text = re.sub(r"\s+", " ", unescape(re.sub("<[^>]+>", "", entry)))
    assert 'raths: Float[Tensor, "n d"]' in text and 'Float[Tensor, "*n"]' in text and 'how: str = "loudly"' in text
    for address in (
        "https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor",
        "https://docs.kidger.site/jaxtyping/api/array/#dtype",
        "https://docs.python.org/3/library/stdtypes.html#str",
        "https://arxiv.org/abs/2501.17683",
        "_modules/lossbook/methods/contrastive/borogove.html#outgrabe",
    ):
        assert address in entry
    # A line for each argument, and no list of definitions without a term.
    assert entry.count("<div><em") == 3 and "<dl>" not in entry
    assert "Added in version 0.2.0: Softly." in text and "how – the manner. Added in version 0.3.0." in text
    # Three formulas, and the code between backticks.
    assert entry.count('class="math') == 3 and "$" not in text
    assert re.search(r"<code[^>]*><span[^>]*>sum</span></code>", entry)
    fields = re.findall(r'<dt class="field-\w+">(\w+)', entry)
    assert fields == ["Parameters", "Returns", "Raises", "Source"]
    # Last an example, highlighted, its code as it is; prompts and results can be left out when it is copied.
    shown = entry[entry.index("ours.") :]
    assert '<p class="rubric">Examples</p>' in shown and '<span class="gp">&gt;&gt;&gt; </span>' in shown
    assert '>>> outgrabe(torch.eye(2), how="`mimsily`")' in text and '<span class="go">tensor([1., 1.])</span>' in shown
    scripts = (tree.site / "_static" / "copybutton.js").read_text()
    assert r"'>>> |\\.\\.\\. '" in scripts


@pytest.mark.slow
def test_docstrings_leave_no_markdown(tree):
    for path in (tree.site / "api").rglob("*.html"):
        article = re.search(r"<article.*?</article>", path.read_text(encoding="utf-8"), re.DOTALL)[0]
        text = re.sub(r"<(code|script|pre)\b.*?</\1>", "", article, flags=re.DOTALL)
        assert not re.findall(r"[$`]|(?<!\w):\w+:", re.sub("<[^>]+>", "", text)), path


@pytest.mark.slow
def test_source_code_leads_back_to_what_describes_it(tree):
    # Sphinx knows one name for all of a module, here the one that is not flat.
    links = set(re.findall(r'href="[^"]*api/lab.html#([^"]+)"', tree.page("_modules/lossbook/lab/fitting")))
    page = tree.page("api/lab")
    assert len(links) > 5 and [link for link in links if f'id="{link}"' not in page] == []


@pytest.mark.slow
def test_papers_are_cited(tree):
    page = tree.page("api/methods/contrastive/temperature_free_infonce")
    assert re.search(r'href="[./]*references.html#[^"]*"', page)


@pytest.mark.slow
def test_the_command_line_is_complete(tree):
    page = tree.page("api/cli")
    for name, command in COMMANDS.commands.items():
        assert f">{name}<" in page and command.help.split("\n")[0].replace("'", "’") in page
        for each in command.params:
            if each.param_type_name == "option":
                assert f'id="cmdoption-lossbook-{name}-{each.opts[-1].lstrip("-")}"' in page, (name, each.opts)


BROKEN = [
    ("{py:func}`lossbook.methods.contrastive.no_such`", "lossbook.methods.contrastive.no_such"),
    ("{py:class}`torch.NoSuch`", "torch.NoSuch"),
    ("{option}`lossbook run --no-such`", "--no-such"),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory, python):
    """What is said of a tree with two modules whose docstrings, and a page whose references, are wrong."""
    tree = Tree(tmp_path_factory.mktemp("reference") / "tree", python, methods=False)
    for place in ("methods/__init__.py", "methods/contrastive/__init__.py"):
        tree.add(place, (ROOT / "src/lossbook" / place).read_text())
    tree.add(
        "methods/contrastive/borogove.py",
        ADDED.replace("        count: how many.\n", "        count, sum: how many.\n"),
    )
    tree.add(
        "methods/contrastive/tove.py",
        '"""Toves."""\n\n__all__ = ["gyre"]\n\n\ndef gyre():\n    """See $$a$$ here."""\n',
    )
    done = tree.render("\n\n".join(text for text, _ in BROKEN))
    assert done.returncode
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for _, name in BROKEN])
def test_a_broken_reference_fails_the_build(broken, name):
    complaints = [line for line in broken.splitlines() if "WARNING" in line and "intro.md" in line]
    assert len(complaints) == len(BROKEN) and sum(name in line for line in complaints) == 1, broken


@pytest.mark.slow
def test_a_docstring_that_cannot_be_read_fails_the_build(broken):
    assert "contrastive.Raths: expected a line for each attribute, got count, sum" in broken
    assert re.search(r"contrastive.gyre: expected a formula between \$\$ on lines of its own", broken)


def test_a_page_for_all_that_a_change_of_source_changes(tmp_path):
    tree = Tree(tmp_path / "tree")
    reference.write(tree.project, [], tmp_path / "one")
    file = tree.root / "src/lossbook/methods/contrastive/infonce.py"
    file.write_text(file.read_text().replace("over cosines divided by a temperature", "over tempered cosines"))
    reference.write(tree.project, [], tmp_path / "two")
    pages = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.md")]
    changed = {
        str(path) for path in pages if (tmp_path / "one" / path).read_text() != (tmp_path / "two" / path).read_text()
    }
    assert changed == {"api/methods/contrastive.md", "api/methods/contrastive/infonce.md"}


def test_the_bench_has_a_page_and_one_for_each_topic(tmp_path):
    import lossbook.lab

    tree = Tree(tmp_path / "tree")
    reference.write(tree.project, [], tmp_path / "made")
    found = reference.Library.of(tree.project)
    flat = {name.path.removeprefix("lossbook.lab.") for module in found.lab for name in module.names}
    assert {*lossbook.lab.__all__} <= flat and "fitting.Fitted" in flat
    assert not {module.stem for module in found.lab} & {module.stem for module in found.topics}
    page = (tmp_path / "made/api/lab.md").read_text()
    assert "autofunction:: lossbook.lab.fit\n" in page and "pgd" not in page
    for module in found.topics:
        assert f"(lab/{module.stem}.md)" in page
        topic = (tmp_path / f"made/{module.page}.md").read_text()
        assert f"from lossbook.lab import {module.stem}" in topic
        assert all(f":: {module.name}.{name.name}\n" in topic + "\n" for name in module.names)
    bench = next(part for part in reference.chapter(tree.project)["sections"] if part["file"] == "api/lab")
    assert [each["title"] for each in bench["sections"]] == [module.stem for module in found.topics]


def test_a_project_without_the_library_has_its_commands(tmp_path):
    (tmp_path / "notebooks").mkdir()
    project = Project(tmp_path, tmp_path / "_build")
    reference.write(project, [], tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made" / "api").iterdir()) == ["index.md"]
    assert reference.chapter(project) == {"file": "api/index", "sections": [{"file": "api/cli"}]}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('__all__ = ["gyre"]\n', "gyre is in __all__ but not defined here"),
        ('names = ["a"]\n__all__ = names + ["b"]\n', "expected __all__ to be a list of names"),
    ],
)
def test_public_names_that_cannot_be_told_are_refused(tmp_path, text, complaint):
    tree = Tree(tmp_path / "tree")
    tree.add("methods/contrastive/borogove.py", text)
    with pytest.raises(PressError, match=f"borogove.py: {complaint}"):
        reference.write(tree.project, [], tmp_path / "made")


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("the `n` losses", "the ``n`` losses"),
        ("of $x_i$, at", "of :math:`x_i`, at"),
        ("the $n$s and 2$n$", "the :math:`n`\\ s and 2\\ :math:`n`"),
        ("$a$ of\n$b\n c$", ":math:`a` of\n:math:`b c`"),
        ("`$HOME` and \\$3", "``$HOME`` and $3"),
        ("``as is``, :func:`f`", "``as is``, :func:`f`"),
        ("A\n\n$$a\n  b$$\n\nB", "A\n\n\n.. math::\n\n   a\n   b\n\n\n\nB"),
        ("A\n  $$a$$\n  B", "A\n\n  .. math::\n\n     a\n\n\n  B"),
        ("Sum.\n\nAdded in version 0.2.0.", "Sum.\n\n\n.. versionadded:: 0.2.0\n"),
        ("    n: it.\n        Changed in version 1.2: may be `0`.\n    m: on", "    n: it.\n\n        .. versionchanged:: 1.2\n           May be ``0``.\n\n    m: on"),
        ("Deprecated in version 2.0: use $f$.", "\n.. deprecated:: 2.0\n   Use :math:`f`.\n"),
        ("It was added in version 0.2.0.", "It was added in version 0.2.0."),
        ("`a`:\n\n  >>> f('`$a$`')\n  '$a$'\n\n`b`", "``a``:\n\n  >>> f('`$a$`')\n  '$a$'\n\n``b``"),
        ("Source:\n    arXiv:2501.17683, eq. 4.", ":Source:\n    `arXiv:2501.17683 <https://arxiv.org/abs/2501.17683>`__, eq. 4."),
    ],
)  # fmt: skip
def test_markdown_of_docstrings(markdown, expected):
    assert docstrings.restructured(markdown) == expected


def test_types_link_without_their_modules():
    assert docstrings.short("(a: ~jaxtyping.Float[Tensor, 'n'], b: np.ndarray)") == (
        "(a: ~jaxtyping.Float[~torch.Tensor, 'n'], b: np.ndarray)"
    )
    assert docstrings.short("~torch.Tensor | MyTensor") == "~torch.Tensor | MyTensor"


def test_the_inventories_are_there_and_small():
    mapping = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]["intersphinx_mapping"]
    assert {f"inventories/{path.name}" for path in INVENTORIES.glob("*.inv")} == {
        place for _, place in mapping.values()
    }
    assert sum(path.stat().st_size for path in INVENTORIES.glob("*.inv")) < 300_000
    known = {}
    for address, place in mapping.values():
        with open(ROOT / "book" / place, "rb") as file:
            for names in InventoryFile.load(file, address, lambda base, end: base + end).values():
                known |= {name: entry[2] for name, entry in names.items()}
    for name, address in {
        "torch.nn.functional.cross_entropy": "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html#torch.nn.functional.cross_entropy",
        "torch.nn.modules.linear.Linear": "https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html#torch.nn.Linear",
        "torch.optim.adam.Adam": "https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html#torch.optim.Adam",
        "torch._C.Generator": "https://docs.pytorch.org/docs/stable/generated/torch.Generator.html#torch.Generator",
        "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html#numpy.ndarray",
        "pandas.core.frame.DataFrame": "https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.html#pandas.DataFrame",
        "collections.abc.Mapping": "https://docs.python.org/3/library/collections.abc.html#collections.abc.Mapping",
        "matplotlib.figure.Figure": "https://matplotlib.org/stable/api/figure_api.html#matplotlib.figure.Figure",
    }.items():
        assert known[name] == address


def test_the_script_makes_the_inventories(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make", INVENTORIES / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    monkeypatch.setattr(make, "HERE", tmp_path)

    def loaded(path: Path) -> dict:
        with open(path, "rb") as file:
            return InventoryFile.load(file, "", lambda base, place: place)

    for library in ("torch", "numpy", "matplotlib", "jaxtyping"):
        assert loaded(make.write(library, make.made(library))) == loaded(INVENTORIES / f"{library}.inv")
    # An inventory cut once more is the same.
    assert loaded(make.write("python", make.cut(INVENTORIES / "python.inv"))) == loaded(INVENTORIES / "python.inv")
