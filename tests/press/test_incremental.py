"""However a project was edited and built, the book is the one that a build from scratch gives."""

import builtins
import hashlib
import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pytest import MonkeyPatch
from rich.console import Console

from lossbook.press.project import Project
from lossbook.press.runs import engine, keys, notebooks
from lossbook.press.runs.parameters import Parameters

SCRIPT = """\
# %% [markdown]
# {text}

# %% tags=["parameters"]
seeds: int = {seeds}

# %%
{code}
"""
# A library small enough to be run in an instant. What a function returns tells everything that it depends on.
MODULE = '''\
"""{about}"""
import builtins
import functools
{imports}

__all__ = ["Shape", "one", "two"]  # {remark}
LIMIT = {limit}
{statement}


class Base:
    size = {size}


class Shape(Base):
    """{about}"""


@functools.lru_cache({decorated})
def two(x={default}):
    return x, LIMIT, two.cache_parameters()


def one():
    """{about}"""
    # {remark}
    return {body}, Shape.size, {call}
{more}
'''
PARTS = {
    "__init__": "",
    "lab/__init__": "from made.lab.fitting import one as fit\nfrom made.lab import attacks\n",
    "methods/__init__": "",
    "methods/part/__init__": "from made.methods.part.common import cShape, cone, ctwo\nfrom made.methods.part.paper import pShape, pone, ptwo\n",
}
# What a module imports, and what its `one` calls: a name, a module's attribute, an import of its own, nothing.
CALLS = {
    "lab/fitting": ("", "None"),
    "lab/attacks": ("from .fitting import two as fitted", "fitted(1)"),
    "methods/part/common": ("", "__import__('math').pi"),
    "methods/part/paper": ("from made.methods.part import common", "common.ctwo()"),
}
# The part takes up names, which no two modules may share.
OWN = {"methods/part/common": "c", "methods/part/paper": "p"}
FIELDS = ["about", "remark", "limit", "statement", "size", "decorated", "default", "body", "more"]
# How notebooks use it.
USES = {
    "fit": "from made import lab\nfound = lab.fit()",
    "two": "from made.lab.fitting import two\nfound = two(3)",
    "attack": "from made import lab\nfound = lab.attacks.one()",
    "within": "def f():\n    from made.lab import attacks as a\n    return a.two()\nfound = f()",
    "shape": "from made.methods.part import cShape\nfound = cShape.size",
    "paper": "import made.methods.part as part\nfound = part.pone()",
    "nothing": "import made.lab\nfound = 0",
    "any": "from made.lab import attacks\nfound = getattr(attacks, 'one')()",
    "star": "from made.methods.part.common import *\nfound = ctwo()",
    None: "found = None",
}
# Of these the whole module counts.
WHOLE = {"any", "star"}
SLUGS, words = st.sampled_from(["a", "b", "c"]), st.integers(0, 3)


class Editing(RuleBasedStateMachine):
    """A project and its library that are edited and built; code is run here, without a kernel."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lossbook-test-"))
        self.package = self.folder / "made"
        for name, text in PARTS.items():
            path = self.package / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.modules = {name: dict.fromkeys(FIELDS, 0) for name in CALLS}
        for name in self.modules:
            self.write_module(name)
        (self.folder / "_config.yml").touch()
        (self.folder / "notebooks" / "part").mkdir(parents=True)
        self.patch = MonkeyPatch()
        self.patch.setattr(keys, "_package", lambda: self.package)
        self.patch.setattr(engine, "_results", self.results)
        self.patch.syspath_prepend(str(self.folder))
        # An edit within the same second that leaves the size would go unseen.
        self.patch.setattr(sys, "dont_write_bytecode", True)
        self.patch.setattr(builtins, "MADE", [], raising=False)
        self.notebooks, self.ran = {}, []
        # What has run well, as it was: nothing of it may run again.
        self.known = set()
        # Steps until the next build.
        self.unbuilt = 0

    def teardown(self):
        self.forget()
        self.patch.undo()
        shutil.rmtree(self.folder)

    def forget(self):
        for name in [name for name in sys.modules if name.partition(".")[0] == "made"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def results(self, pending, options, board):
        for each in pending:
            request = each.request
            self.ran.append(request.paper.slug)
            notebook = notebooks.lost(request.paper, request.notebook, request.settings, "", "")
            code = [cell for cell in notebook.cells if cell.cell_type == "code"]
            run = notebook.metadata["lossbook"]["run"]
            if "failing" in str(notebook.cells):
                run["failure"].update(error="failing", cell=1)
            else:
                found = self.output([cell.source for cell in code], request.settings)
                for cell in code:
                    cell.outputs = [nbformat.v4.new_output("stream", text=found)]
                run["status"] = "finished"
                del run["failure"]
            yield each, notebook

    def output(self, sources, made_with):
        """What the code finds, run for real; with all else that a run may depend on."""
        self.forget()
        builtins.MADE.clear()
        names = {}
        for source in sources:
            exec(source, names)
        content = repr([sources, made_with.values, names["found"], builtins.MADE])
        return hashlib.sha256(content.encode()).hexdigest()

    def state(self, slug):
        made = self.notebooks[slug]
        names = {}
        self.forget()
        builtins.MADE.clear()
        exec(USES[made["uses"]], names)
        return repr([made, names["found"], builtins.MADE])

    def build(self, output):
        """As `lossbook build` does, up to the pages."""
        project = Project(self.folder, self.folder / output)
        wanted = []
        for paper in project.papers.values():
            script = notebooks.read_script(paper)
            wanted.append(engine.Request(paper, script, Parameters(paper, script).settings()))
        self.ran.clear()
        console = Console(quiet=True)
        book = {}
        for outcome in engine.carry_out(project, engine.plan(project, wanted), engine.Options(jobs=1), console):
            shown = notebooks.with_text(outcome.executed, outcome.request.notebook)
            for name in ("started", "seconds"):
                shown.metadata["lossbook"]["run"].pop(name)
            book[outcome.request.paper.slug] = json.loads(nbformat.writes(shown))
        return book

    def write(self, slug, **change):
        self.notebooks[slug] = {
            "text": 0,
            "seeds": 5,
            "code": 0,
            "uses": None,
            **self.notebooks.get(slug, {}),
            **change,
        }
        made = self.notebooks[slug]
        code = f"x = {made['code']}" if made["code"] != 3 else "failing"
        code += f"\n{USES[made['uses']]}"
        path = self.folder / "notebooks" / "part" / f"{slug}.py"
        path.write_text(SCRIPT.format(text=f"Text {made['text']}.", seeds=made["seeds"], code=code))

    def write_module(self, name):
        imports, call = CALLS[name]
        own = OWN.get(name, "")
        fields = self.modules[name]
        statement = f"builtins.MADE.append(({name!r}, {fields['statement']}))" if fields["statement"] else ""
        more = f"\n\ndef more{fields['more']}():\n    return LIMIT\n" if fields["more"] else ""
        filled = {**fields, "statement": statement, "more": more}
        text = MODULE.format(imports=imports, call=call, **filled)
        for each in ("one", "two", "Shape") if own else ():
            text = text.replace(f'"{each}"', f'"{own}{each}"')
            text = text.replace(f"def {each}(", f"def {own}{each}(").replace(f"class {each}(", f"class {own}{each}(")
        if own:
            text = text.replace("Shape.size", f"{own}Shape.size").replace("two.cache", f"{own}two.cache")
        (self.package / f"{name}.py").write_text(text)

    @initialize()
    def begin(self):
        self.write("a", uses="fit")
        self.write("b", uses="paper")

    @rule(slug=SLUGS, text=words)
    def edit_text(self, slug, text):
        self.write(slug, text=text)

    @rule(slug=SLUGS, code=words)
    def edit_code(self, slug, code):
        self.write(slug, code=code)

    @rule(slug=SLUGS, seeds=words)
    def change_a_default(self, slug, seeds):
        self.write(slug, seeds=seeds)

    @rule(slug=SLUGS, uses=st.sampled_from(list(USES)))
    def use_the_library(self, slug, uses):
        self.write(slug, uses=uses)

    @rule(module=st.sampled_from(sorted(CALLS)), field=st.sampled_from(FIELDS), number=words)
    def edit_the_library(self, module, field, number):
        self.modules[module][field] = number
        self.write_module(module)

    @precondition(lambda self: len(self.notebooks) > 1)
    @rule(data=st.data())
    def remove_a_notebook(self, data):
        slug = data.draw(st.sampled_from(sorted(self.notebooks)))
        del self.notebooks[slug]
        (self.folder / "notebooks" / "part" / f"{slug}.py").unlink()

    @rule(data=st.data(), content=st.sampled_from(["", "{}", "half"]))
    def damage_a_stored_run(self, data, content):
        stored = sorted((self.folder / "_build").rglob("*.ipynb"))
        if stored:
            path = data.draw(st.sampled_from(stored))
            text = path.read_text()
            path.write_text(text[: len(text) // 2] if content == "half" else content)
            self.known.clear()

    @rule()
    def delete_what_was_built(self):
        shutil.rmtree(self.folder / "_build", ignore_errors=True)
        self.known.clear()

    @rule()
    def edit_more_before_building(self):
        self.unbuilt = 2

    @invariant()
    def a_build_gives_what_one_from_scratch_gives(self):
        self.unbuilt -= 1
        if self.unbuilt >= 0 or not self.notebooks:
            return
        book = self.build("_build")
        for slug in self.ran:
            whole = self.notebooks[slug]["uses"] in WHOLE
            assert whole or (slug, self.state(slug)) not in self.known, f"{slug} ran again for nothing"
        self.known |= {(slug, self.state(slug)) for slug in self.notebooks if self.notebooks[slug]["code"] != 3}
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        assert book == self.build("scratch")
        assert set(book) == set(self.notebooks)


TestEditing = Editing.TestCase
TestEditing.settings = settings(max_examples=30, stateful_step_count=14, deadline=None)
