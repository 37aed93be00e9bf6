"""What code reaches: in doubt more, never less."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jupytext
import pytest

from lossbook.press.runs.definitions import Library

ROOT = Path(__file__).parents[2]
USE = "from made.a import f\nf()\n"


def write(folder: Path, **modules: str) -> Path:
    """A package called `made`; "lab__fit" is `made.lab.fit`, and what ends with "__" is a package."""
    for name, text in {"": "", **modules}.items():
        path = folder.joinpath("made", *name.split("__")) if name else folder / "made" / "__init__.py"
        path = path / "__init__.py" if name.endswith("__") else path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    for path in sorted((folder / "made").rglob("*")):
        if path.is_dir():
            (path / "__init__.py").touch()
    return folder / "made"


def reach(folder: Path, *cells: str, **modules: str):
    return Library(write(folder, **modules)).reach(cells)


def names(found) -> set[str]:
    return {name.removeprefix("made.") for name in found.digests} - {"names"}


# Edits of a module whose `f` is called: what stands there, what stands there then.
EDITS_THAT_COUNT = {
    "body": ("def f():\n    return 1\n", "return 1", "return 2"),
    "default": ("def f(x=1): ...\n", "x=1", "x=2"),
    "keyword's default": ("def f(*, x=1): ...\n", "x=1", "x=2"),
    "order of arguments": ("def f(x, y): ...\n", "x, y", "y, x"),
    "annotation": ("def f(x: int): ...\n", "int", "float"),
    "decorator": ("import functools\n@functools.lru_cache(1)\ndef f(): ...\n", "(1)", "(2)"),
    "decorator of ours": ("def d(g):\n    return g\n@d\ndef f(): ...\n", "return g", "return None"),
    "constant": ("C = 1\ndef f():\n    return C\n", "C = 1", "C = 2"),
    "constant in a default": ("C = 1\ndef f(x=C): ...\n", "C = 1", "C = 2"),
    "constant of a constant": ("A = 1\nB = [A]\ndef f():\n    return B\n", "A = 1", "A = 2"),
    "one of a tuple": ("A, (B, *C) = 1, (2, 3)\ndef f():\n    return C\n", "3)", "4)"),
    "walrus": ("(B := 3)\ndef f():\n    return B\n", "3", "4"),
    "walrus in a comprehension": ("A = [B := 3 for _ in '1']\ndef f():\n    return B\n", "3", "4"),
    "loop variable": ("for B in (1, 2):\n    pass\ndef f():\n    return B\n", "2)", "3)"),
    "rebound": ("A = 1\nA = 2\ndef f():\n    return A\n", "A = 2", "A = 3"),
    "order among bindings": ("A = 1\nB = A\nA = 2\ndef f():\n    return B\n", "B = A\nA = 2", "A = 2\nB = A"),
    "order among effects": ("A = []\nB = len(A)\nA.append(1)\ndef f():\n    return B\n", "B = len(A)\nA.append(1)", "A.append(1)\nB = len(A)"),
    "deleted": ("A = 1\nimport sys\ndef f():\n    return A\n", "import sys", "del A"),
    "condition": ("import sys\nif sys.platform == 'x':\n    def f(): ...\nelse:\n    def f(): return 1\n", "'x'", "'y'"),
    "condition of an import": ("import sys\nif sys.platform == 'x':\n    from math import sin as g\nelse:\n    from math import cos as g\ndef f():\n    return g\n", "'x'", "'y'"),
    "other library's name": ("from math import sin as g\ndef f():\n    return g(1)\n", "sin", "cos"),
    "other library's module": ("import json as g\ndef f():\n    return g\n", "json", "pickle"),
    "what it calls": ("def g():\n    return 1\ndef f():\n    return g()\n", "return 1", "return 2"),
    "what an inner function calls": ("def g():\n    return 1\ndef f():\n    def h():\n        return g()\n    return h\n", "return 1", "return 2"),
    "what a lambda calls": ("def g():\n    return 1\nf = lambda: g()\n", "return 1", "return 2"),
    "what a comprehension begins with": ("g = [1]\ndef f():\n    return [g for g in g]\n", "[1]", "[2]"),
    "a global in spite of a local elsewhere": ("g = 1\ndef f():\n    def h():\n        g = 2\n    return g\n", "g = 1", "g = 3"),
    "a global that is declared": ("g = 1\ndef f():\n    global g\n    g += 1\n", "g = 1", "g = 3"),
    "a name of a class is also looked for outside": ("g = 1\ndef f():\n    class A:\n        g = g\n    return A.g\n", "g = 1", "g = 3"),
    "forward reference": ("class A:\n    x = 1\ndef f(x: 'list[A]'): ...\n", "x = 1", "x = 2"),
    "passed on": ("def g():\n    return 1\ndef f():\n    return map(g, [1])\n", "return 1", "return 2"),
    "in a table": ("def g():\n    return 1\nT = {'g': g}\ndef f(name):\n    return T[name]()\n", "return 1", "return 2"),
    "method": ("class A:\n    def m(self):\n        return 1\ndef f():\n    return A()\n", "return 1", "return 2"),
    "base": ("class B:\n    x = 1\nclass A(B): ...\ndef f():\n    return A()\n", "x = 1", "x = 2"),
    "another base": ("class B: ...\nclass C: ...\nclass A(B): ...\ndef f():\n    return A()\n", "A(B)", "A(C)"),
    "metaclass": ("class M(type):\n    x = 1\nclass A(metaclass=M): ...\ndef f():\n    return A()\n", "x = 1", "x = 2"),
    "field of a dataclass": ("from dataclasses import dataclass, field\n@dataclass\nclass f:\n    x: int = field(default=1)\n", "=1", "=2"),
    "field of a named tuple": ("from typing import NamedTuple\nclass f(NamedTuple):\n    x: int = 1\n", "= 1", "= 2"),
    "overload": ("from typing import overload\n@overload\ndef f(x: int): ...\n@overload\ndef f(x: str): ...\ndef f(x): ...\n", "str", "bytes"),
    "registered": ("import functools\n@functools.singledispatch\ndef f(x): ...\n@f.register\ndef _(x: int):\n    return 1\n", "return 1", "return 2"),
    "a subclass that its base notices": ("ALL = []\nclass B:\n    def __init_subclass__(cls):\n        ALL.append(cls)\nclass A(B):\n    x = 1\ndef f():\n    return ALL\n", "x = 1", "x = 2"),
    "its own names": ("def g():\n    return 1\ndef f():\n    return globals()['g']()\n", "return 1", "return 2"),
    "own names by vars": ("def g():\n    return 1\nimport sys\nN = vars()\ndef f():\n    return N['g']()\n", "return 1", "return 2"),
    "evaluated": ("def g():\n    return 1\ndef f():\n    return eval('g' + '()')\n", "return 1", "return 2"),
    "itself by name": ("import sys\ndef g():\n    return 1\ndef f():\n    return sys.modules[__name__].g()\n", "return 1", "return 2"),
    "by subclasses": ("class B: ...\nclass A(B):\n    x = 1\ndef f():\n    return B.__subclasses__()\n", "x = 1", "x = 2"),
    "by its frame": ("import sys\ndef g():\n    return 1\ndef f():\n    return sys._getframe().f_globals['g']\n", "return 1", "return 2"),
    # What runs on import, whatever is reached.
    "statement": ("import torch\ntorch.set_num_threads(1)\ndef f(): ...\n", "(1)", "(2)"),
    "setting of an attribute": ("import torch\ntorch.x = 1\ndef f(): ...\n", "= 1", "= 2"),
    "setting of an item": ("import os\nos.environ['X'] = '1'\ndef f(): ...\n", "'1'", "'2'"),
    "augmented assignment": ("X = []\nX += [1]\ndef f(): ...\n", "[1]", "[2]"),
    "loop": ("import torch\nfor x in [1]:\n    torch.manual_seed(x)\ndef f(): ...\n", "[1]", "[2]"),
    "with": ("import torch\nwith torch.x:\n    pass\ndef f(): ...\n", "torch.x", "torch.y"),
    "condition of a statement": ("import torch\nif 1:\n    torch.set_num_threads(1)\ndef f(): ...\n", "if 1", "if 0"),
    "assertion": ("assert 1\ndef f(): ...\n", "1", "2"),
    "call in a constant": ("import torch\nX = torch.manual_seed(1)\ndef f(): ...\n", "(1)", "(2)"),
    "call in a default": ("import torch\ndef g(x=torch.manual_seed(1)): ...\ndef f(): ...\n", "(1)", "(2)"),
    "call in a class": ("import torch\nclass A:\n    torch.manual_seed(1)\ndef f(): ...\n", "(1)", "(2)"),
    "what a statement calls": ("def g():\n    return 1\ng()\ndef f(): ...\n", "return 1", "return 2"),
    "what a decorator calls": ("def d(g):\n    return 1\n@d\ndef g(): ...\ndef f(): ...\n", "return 1", "return 2"),
    "what is sorted by": ("def g(x):\n    return 1\nX = sorted([1], key=g)\ndef f(): ...\n", "return 1", "return 2"),
    "what is decorated by something unknown": ("import torch\n@torch.library.custom_op('a::b', mutates_args=())\ndef g(): return 1\ndef f(): ...\n", "return 1", "return 2"),
}  # fmt: skip

EDITS_THAT_DO_NOT = {
    "docstring": ('"""Doc."""\ndef f():\n    """Doc."""\n', "Doc", "Text"),
    "docstring of a method": ('class A:\n    def m(self):\n        """Doc."""\ndef f():\n    return A()\n', "Doc", "Text"),
    "text behind an attribute": ("class f:\n    x = 1\n    'Doc'\n", "Doc", "Text"),
    "a docstring where there was none": ("def f():\n    return 1\n", "return", "'''Doc.'''\n    return"),
    "comment": ("def f():  # one\n    return 1\n", "one", "two"),
    "places": ("def f():\n    return (1 +\n  2)\n", "(1 +\n  2)", "1 + 2\n\n\n"),
    "new function": ("def f(): ...\n", "def f", "def g(): ...\ndef f"),
    "new constant": ("def f(): ...\n", "def f", "X = [1, {2: (3,)}]\ndef f"),
    "new import": ("def f(): ...\n", "def f", "import json\ndef f"),
    "another function": ("def g():\n    return 1\ndef f(): ...\n", "return 1", "return 2"),
    "another constant": ("import re, math\nX = re.compile('a' * len([1])), math.sqrt(1)\ndef f(): ...\n", "'a'", "'b'"),
    "another class": ("class B:\n    x: int = 1\n    @property\n    def y(self): ...\n    @y.setter\n    def y(self, v): ...\nclass A(B): ...\ndef f(): ...\n", "= 1", "= 2"),
    "another dataclass": ("from dataclasses import dataclass, field\n@dataclass(frozen=True)\nclass A:\n    x: list = field(default_factory=list)\ndef f(): ...\n", "list)", "dict)"),
    "list of names": ("__all__ = ['f']\ndef f(): ...\ndef g(): ...\n", "['f']", "['f', 'g']"),
    "longer list of names": ("__all__ = ['f']\n__all__ += ['f']\ndef f(): ...\ndef g(): ...\n", "+= ['f']", "+= ['g']"),
    "what only type checkers see": ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from math import sin\ndef f(x: 'sin'): ...\n", "import sin", "import cos, sin"),
    "what only a program runs": ("def f(): ...\nif __name__ == '__main__':\n    print(1)\n", "1", "2"),
    "what a local name hides": ("g = 1\ndef f():\n    g = 2\n    return g\n", "g = 1", "g = 3"),
    "what an argument hides": ("g = 1\ndef f(g, *h):\n    return lambda: g\n", "g = 1", "g = 3"),
    "what a loop hides": ("g = 1\ndef f():\n    return [g for g in [2] for h in g if g]\n", "g = 1", "g = 3"),
    "what an inner function hides": ("def g(): ...\ndef f():\n    def g(): ...\n    return g\n", "def g(): ...\ndef f", "def g(): 1\ndef f"),
    "what an exception hides": ("g = 1\ndef f():\n    try: ...\n    except OSError as g:\n        print(g)\n", "g = 1", "g = 3"),
    "vars of something else": ("g = 1\ndef f(x):\n    return vars(x)\n", "g = 1", "g = 3"),
    "whether a module is there": ("import sys\ng = 1\ndef f(x):\n    return 'x' in sys.modules and sys.modules['x'].y or sys.modules.get('x')\n", "g = 1", "g = 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS_THAT_COUNT)
def test_edits_that_count(tmp_path, name):
    source, old, new = EDITS_THAT_COUNT[name]
    assert source.count(old)
    compile(source, "", "exec")
    assert reach(tmp_path, USE, a=source).digests != reach(tmp_path, USE, a=source.replace(old, new, 1)).digests


@pytest.mark.parametrize("name", EDITS_THAT_DO_NOT)
def test_edits_that_do_not(tmp_path, name):
    source, old, new = EDITS_THAT_DO_NOT[name]
    assert source.count(old)
    compile(source, "", "exec")
    assert reach(tmp_path, USE, a=source).digests == reach(tmp_path, USE, a=source.replace(old, new, 1)).digests


BOOK = {
    "": "from importlib import import_module\ndef __getattr__(name):\n    return import_module(f'made.{name}')\n",
    "lab__": "from made.lab.fitting import fit\nfrom made.lab.attacks import pgd as attack\n",
    "lab__fitting": "LIMIT = 25\ndef fit():\n    return LIMIT\ndef grid(): ...\n",
    "lab__attacks": "from . import fitting\ndef pgd():\n    return fitting.grid()\ndef fgsm(): ...\n",
    "lab__other": "from ..lab.attacks import pgd, fgsm as quick\ndef run(): return quick\n",
    "methods__": "from importlib import import_module\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.methods import part\n__all__ = ['part']\ndef __getattr__(name):\n    if name in __all__:\n        return import_module(f'{__name__}.{name}')\n    raise AttributeError\n",
    "methods__part__": "from made.methods.part.common import (\n    unit,\n)\nfrom made.methods.part.paper import loss, paper\nfrom made.methods.part import noisy\n__all__ = [\n    'loss',\n]\n",
    "methods__part__paper": "from made.methods.part.common import unit\n__all__ = ['paper', 'loss']\ndef paper(): return unit()\ndef loss(): ...\n",
    "methods__part__common": "__all__ = ['unit']\ndef unit(): ...\ndef hidden(): ...\n",
    "methods__part__noisy": "import torch\n__all__ = []\ntorch.set_num_threads(1)\n",
    "methods__part__unlisted": "def odd(): ...\n",
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "there", "not_there"),
    [
        ("from made.lab import fit\nfit", {"lab.fitting.fit", "lab.fitting.LIMIT"}, {"lab.fitting.grid", "lab.attacks.pgd"}),
        ("from made.lab import fit", set(), {"lab.fitting.fit"}),
        ("from made import lab\nlab.fit()", {"lab.fitting.fit", "__getattr__"}, {"lab.attacks.pgd"}),
        ("from made import lab\nlab.attack", {"lab.attacks.pgd", "lab.fitting.grid"}, {"lab.fitting.fit"}),
        ("from made import lab\nlab.attacks.fgsm", {"lab.attacks.fgsm"}, {"lab.attacks.pgd"}),
        ("from made.lab import other\nother.run()", {"lab.other.run", "lab.attacks.fgsm"}, {"lab.attacks.pgd"}),
        ("import made.lab.attacks\nmade.lab.attacks.fgsm", {"lab.attacks.fgsm"}, {"lab.attacks.pgd"}),
        ("import made.lab.attacks as a, os\na.fgsm.x.y", {"lab.attacks.fgsm"}, {"lab.attacks.pgd"}),
        ("def g():\n    from made.lab import attacks as a\n    return a.fgsm", {"lab.attacks.fgsm"}, {"lab.attacks.pgd"}),
        ("class A:\n    from made.lab.attacks import fgsm\nA().fgsm()", {"lab.attacks.fgsm"}, {"lab.attacks.pgd"}),
        ("try:\n    from made.lab.attacks import fgsm as a\nexcept ImportError:\n    from made.lab.attacks import pgd as a\na()", {"lab.attacks.fgsm", "lab.attacks.pgd"}, {"lab.fitting.fit"}),
        ("from made.lab import attacks\nattacks.pgd = 3", {"lab.attacks.pgd"}, {"lab.attacks.fgsm"}),
        # A module whose use can't be followed.
        ("from made.lab import attacks\nprint(attacks)", {"module made.lab.attacks", "module made.lab.fitting"}, {"lab.other.run", "module made.lab"}),
        ("from made.lab import attacks\na = attacks", {"module made.lab.attacks"}, {"lab.other.run", "module made.lab"}),
        ("from made.lab import attacks\ngetattr(attacks, 'f' + 'gsm')", {"module made.lab.attacks"}, {"lab.other.run", "module made.lab"}),
        ("from made.lab import attacks\nattacks.__dict__['fgsm']", {"module made.lab.attacks"}, {"lab.other.run", "module made.lab"}),
        ("from made.lab.attacks import *", {"module made.lab.attacks"}, {"lab.other.run", "module made.lab"}),
        ("from importlib import import_module as i\ni('made.lab.attacks')", {"module made.lab.attacks"}, {"lab.other.run", "module made.lab"}),
        ("from made.lab import attacks, fit\nlocals()['fit']", {"module made.lab.attacks", "module made.lab.fitting"}, {"module made.lab", "module made.methods"}),
        ("from made import lab\nvars(lab)", {"module made.lab", "module made.lab.attacks", "module made.lab.other"}, {"module made.methods"}),
        ("import made\nprint(made)", {"module made", "module made.lab.other", "module made.methods.part.paper"}, set()),
        ("import importlib\nimportlib.import_module('.lab', 'made')", {"module made"}, set()),
        ("import importlib\nname = 'made'\nimportlib.import_module(f'{name}.lab')", {"module made"}, set()),
        ("__import__('ma' 'de' + '.lab')", {"module made"}, set()),
        ("eval('1')", {"module made"}, set()),
        ("get_ipython().run_cell('1')", {"module made"}, set()),
        ("import os\nfrom .made import x\nimport mades", set(), {"module made"}),
        # What a part exports is its module's; of the others only what they run on import counts.
        ("from made.methods.part import loss\nloss()", {"methods.part.paper.loss", "import made.methods.part.noisy"}, {"methods.part.paper.paper", "methods.part.common.unit", "methods.part.__all__"}),
        ("from made import methods\nmethods.part.loss()", {"methods.part.paper.loss", "methods.__getattr__"}, {"methods.part.paper.paper", "module made.methods", "methods.__all__"}),
        ("from made.methods.part import paper\npaper()", {"methods.part.paper.paper", "methods.part.common.unit"}, {"methods.part.paper.loss", "module made.methods.part.paper"}),
        ("from made.methods.part import common\ncommon.unit", {"methods.part.common.unit"}, {"methods.part.common.hidden", "module made.methods.part.common"}),
        ("from made.methods.part import common\ncommon", {"module made.methods.part.common"}, {"module made.methods.part.paper"}),
        ("from made.methods.part.paper import loss\nloss", {"methods.part.paper.loss"}, {"methods.part.paper.paper"}),
        ("import made.methods.part.paper as p\np()", {"methods.part.paper.paper"}, {"methods.part.paper.loss"}),
        ("import made.methods.part as p\np.unit", {"methods.part.common.unit", "import made.methods.part.noisy"}, {"methods.part.common.hidden"}),
        ("import made.methods.part.common as c\nc.hidden()", {"methods.part.common.hidden", "import made.methods.part.noisy"}, {"methods.part.common.unit"}),
        ("from made.methods.part import *", {"module made.methods.part.unlisted", "module made.methods.part.paper"}, {"lab.fitting.fit"}),
        ("from made.methods.part import missing\nmissing", {"module made.methods.part.unlisted"}, set()),
        # What is not Python.
        ("%%time\nfrom made.lab import attacks\nattacks.fgsm()", {"lab.attacks.fgsm"}, {"lab.attacks.pgd"}),
        ("from made.lab import attacks\n%timeit attacks.fgsm()", {"lab.attacks.fgsm"}, {"lab.attacks.pgd"}),
        ("from made.lab import attacks\nx = 3\nattacks.fgsm?", {"module made"}, set()),
        ("%time import made.lab", {"module made"}, set()),
        ("files = !ls\nimport made.lab", {"module made"}, set()),
        ("import made.lab\ndef f(:", {"module made"}, set()),
        ("import made.lab\nx = '\0'", {"module made"}, set()),
        ("files = !ls", set(), {"module made"}),
        ("import made.lab as l\nx = (5\n     % 3)\nl.fit", {"lab.fitting.fit"}, {"module made"}),
    ],
)  # fmt: skip
def test_what_a_name_means(tmp_path, code, there, not_there):
    found = names(reach(tmp_path, code, **BOOK))
    assert there <= found and not not_there & found


def test_cells_are_read_together(tmp_path):
    found = reach(
        tmp_path, "from made.lab import attacks as a\n", "%pip list\n", "def g():\n    return a.fgsm()\n", **BOOK
    )
    assert "lab.attacks.fgsm" in names(found) and "lab.attacks.pgd" not in names(found)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        # What a package calls by which name.
        ("lab__", "fitting import fit\n", "fitting import grid as fit\n"),
        ("lab__other", "fgsm as quick", "fgsm as slow, pgd as quick"),
        # Statements that run because a module is imported by another.
        ("lab__fitting", "LIMIT", "import torch\ntorch.manual_seed(0)\nLIMIT"),
        ("methods__part__noisy", "(1)", "(2)"),
        ("methods__part__", "paper import loss", "paper import paper as loss"),
        ("methods__", "if name in", "if not name in"),
    ],
)
def test_edits_elsewhere_that_count(tmp_path, module, old, new):
    code = "from made import lab, methods\nfrom made.lab import other\nfrom made.methods.part import loss\nlab.fit(), other.run(), loss(), methods.part"
    before = reach(tmp_path, code, **BOOK)
    assert before.digests != reach(tmp_path, code, **{**BOOK, module: BOOK[module].replace(old, new, 1)}).digests


def test_names_that_change_places_are_a_change(tmp_path):
    """Two names of a package that are exchanged: what is reached stays, what it means does not."""
    code = "from made import lab\nlab.fit(lab.attack)"
    before = reach(tmp_path, code, **BOOK)
    swapped = "from made.lab.fitting import fit as attack\nfrom made.lab.attacks import pgd as fit\n"
    after = reach(tmp_path, code, **{**BOOK, "lab__": swapped})
    assert before.digests.keys() == after.digests.keys()
    assert [name for name in before.digests if before.digests[name] != after.digests[name]] == ["names"]


@pytest.mark.parametrize(
    "code", ["from made.methods.part import loss\nloss()", "from made import methods\nmethods.part.loss()"]
)
def test_a_new_module_of_a_part_is_no_change(tmp_path, code):
    before = reach(tmp_path, code, **BOOK)
    fresh = "import networkx\n__all__ = ['fresh']\ndef fresh():\n    return networkx.Graph()\n"
    listed = {
        "methods__": BOOK["methods__"].replace("import part", "import another, part").replace("['", "['another', '"),
        "methods__another": "def other(): ...\n",
        "methods__part__": "from made.methods.part.fresh import fresh\n"
        + BOOK["methods__part__"].replace("[", "['fresh',"),
        "methods__part__fresh": fresh,
    }
    after = reach(tmp_path, code, **{**BOOK, **listed})
    assert before.digests == after.digests and "networkx" not in after.libraries


def test_libraries_that_are_reached(tmp_path):
    a = """\
        import json
        import scipy.special
        import torch.nn.functional as F
        from sklearn import svm
        import patching
        def f():
            return F.relu(json)
        def g():
            return scipy.special.gamma(1)
        def h():
            from opacus.accountants import gdp
            return svm, gdp
        """
    for use, libraries in {"f": {"torch"}, "g": {"scipy"}, "h": {"sklearn", "opacus"}}.items():
        found = reach(tmp_path, f"from made.a import {use}\nimport pandas\n{use}()", a=a).libraries
        # What nobody uses was imported for what importing it does.
        assert found - sys.stdlib_module_names == {*libraries, "pandas", "patching"}


def test_words_that_are_reached(tmp_path):
    a = "FILE = 'a.npz'\ndef f():\n    '''about'''\n    return FILE, f'x{1}y'\ndef g():\n    return 'no'\n"
    assert reach(tmp_path, f"{USE}\nz = ['z']", a=a).words == {"a.npz", "x", "y", "z"}


def test_what_reads_texts_depends_on_them(tmp_path):
    a = "def f():\n    '''about'''\n"
    for use in ("help(f)", "f.__doc__", "import inspect\ninspect.getsource(f)"):
        found = [reach(tmp_path, USE + use, a=text).digests for text in (a, a.replace("about", "of"))]
        assert found[0] != found[1], use


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(ROOT / "src" / "lossbook")


def test_names_of_parts_mean_what_importing_them_gives(library):
    """The reader knows how parts take up names without running anything: it is held against what does run."""
    from importlib import import_module

    for part in ("contrastive", "layers", "privacy_robustness"):
        package = import_module(f"lossbook.methods.{part}")
        assert package.__all__
        for name in package.__all__:
            found = library.reach([f"from lossbook.methods.{part} import {name}\n{name}"])
            means = getattr(package, name)
            if hasattr(means, "__qualname__"):
                assert f"{means.__module__}.{means.__qualname__}" in found.digests


def test_the_source_of_a_definition(library):
    import inspect

    from lossbook.lab.fitting import Fitted, fit

    for each in (fit, Fitted, Fitted.predict):
        whole = inspect.unwrap(each)
        name = f"{whole.__module__}.{whole.__qualname__}"
        assert library.source(name) == inspect.getsource(whole).rstrip()
    assert library.source("lossbook.lab.fitting.missing") is None and library.source("numpy.zeros") is None


# Runs the cells of a notebook and prints which functions of the library were called, as module and first line.
TRACER = """
import json, sys, threading
cells, folder = json.load(sys.stdin), sys.argv[1]
called = set()
def trace(frame, event, argument):
    code = frame.f_code
    # Bodies of modules and of classes have no optimised locals.
    if event == "call" and code.co_flags & 1 and code.co_filename.startswith(folder):
        called.add((code.co_filename[len(folder) + 1:], code.co_firstlineno, code.co_qualname))
from IPython.core.interactiveshell import InteractiveShell
import matplotlib
matplotlib.use("agg")
shell = InteractiveShell.instance()
threading.setprofile(trace)
sys.setprofile(trace)
try:
    for cell in cells:
        exec(compile(cell, "<cell>", "exec"), shell.user_ns)
finally:
    sys.setprofile(None)
    print("\\n" + json.dumps(sorted(called)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "slug", ["contrastive/temperature_free_infonce", "layers/ideal_group_number", "privacy_robustness/smp_lora"]
)
def test_whatever_a_notebook_calls_is_reached(library, slug):
    """Run for real, no function of the library is called that the reader did not see."""
    import ast

    from lossbook.press.project import Project
    from lossbook.press.runs.parameters import Parameters

    paper = Project(ROOT, ROOT / "_build").paper(slug.split("/")[1])
    notebook = jupytext.read(paper.script, fmt="py:percent")
    values = Parameters(paper, notebook).settings("smoke").values
    sources = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            sources.append(cell.source)
            if "parameters" in cell.metadata.get("tags", ()):
                sources.append("\n".join(f"{name} = {value!r}" for name, value in values.items()))
    folder = ROOT / "src" / "lossbook"
    done = subprocess.run(
        [sys.executable, "-c", TRACER, str(folder)],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "HOME": str(Path.home())},
    )
    assert done.returncode == 0, done.stderr
    called = json.loads(done.stdout.splitlines()[-1])
    digests = library.reach(sources).digests
    missed, seen = [], 0
    for file, line, qualname in called:
        module = ".".join(("lossbook", *Path(file).with_suffix("").parts)).removesuffix(".__init__")
        tree = ast.parse((folder / file).read_text())
        [around] = [
            each
            for each in tree.body
            if min([each.lineno, *(d.lineno for d in getattr(each, "decorator_list", ()))]) <= line <= each.end_lineno
        ]
        # (A lambda is of the constant that it is a part of, and a function within `if` one of the names bound there.)
        bound = {
            getattr(node, "name", None) or node.id
            for node in ast.walk(around)
            if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        }
        names = {around.name} if hasattr(around, "name") else bound
        seen += 1
        if not {f"module {module}", *(f"{module}.{name}" for name in names)} & digests.keys():
            missed.append((file, line, qualname))
    assert not missed and seen > 20
