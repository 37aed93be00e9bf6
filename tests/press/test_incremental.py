"""However a project was edited and built, the book is the one that a build from scratch gives."""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import grimp
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
MODULES = {
    "contrastive.common": "methods/contrastive/common.py",
    "contrastive.temperature_free_infonce": "methods/contrastive/temperature_free_infonce.py",
    "layers.ideal_group_number": "methods/layers/ideal_group_number.py",
}
# What importing one reaches.
REACHED = {
    "contrastive.common": {"contrastive.common"},
    "contrastive.temperature_free_infonce": {"contrastive.common", "contrastive.temperature_free_infonce"},
    "layers.ideal_group_number": {"layers.ideal_group_number"},
}
# No edit here changes what imports what.
GRAPH = grimp.build_graph("lossbook", cache_dir=None)
SLUGS, words = st.sampled_from(["a", "b", "c"]), st.integers(0, 3)


class Editing(RuleBasedStateMachine):
    """A project that is edited and built; running a notebook is replaced by computing its output at once."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lossbook-test-"))
        self.package = self.folder / "lossbook"
        source = keys._package()
        for path in MODULES.values():
            (self.package / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, self.package, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
        (self.folder / "_config.yml").touch()
        (self.folder / "notebooks" / "part").mkdir(parents=True)
        self.patch = MonkeyPatch()
        self.patch.setattr(keys, "_package", lambda: self.package)
        self.patch.setattr(keys.Keys, "_graph", GRAPH)
        self.patch.setattr(engine, "_results", self.results)
        self.notebooks, self.ran = {}, []
        # What has run well, as it was: nothing of it may run again.
        self.known = set()
        # Steps until the next build.
        self.unbuilt = 0

    def teardown(self):
        self.patch.undo()
        shutil.rmtree(self.folder)

    def results(self, pending, options, board):
        for each in pending:
            request = each.request
            self.ran.append(request.paper.slug)
            notebook = notebooks.lost(request.paper, request.notebook, request.settings, "", "")
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs = [nbformat.v4.new_output("stream", text=self.output(cell.source, request.settings))]
            run = notebook.metadata["lossbook"]["run"]
            if "failing" in str(notebook.cells):
                run["failure"].update(error="failing", cell=1)
            else:
                run["status"] = "finished"
                del run["failure"]
            yield each, notebook

    def output(self, code, made_with):
        """Depends on all that a real run may depend on."""
        found = [
            self.package / MODULES[name]
            for used in re.findall(r"methods\.([\w.]+)", code)
            for name in sorted(REACHED[used])
        ]
        content = json.dumps([code, made_with.values, [path.read_text() for path in found]])
        return hashlib.sha256(content.encode()).hexdigest()

    def state(self, slug):
        return json.dumps([self.notebooks[slug], [(self.package / path).read_text() for path in MODULES.values()]])

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
        code += f"\nimport lossbook.methods.{made['uses']}" if made["uses"] else ""
        path = self.folder / "notebooks" / "part" / f"{slug}.py"
        path.write_text(SCRIPT.format(text=f"Text {made['text']}.", seeds=made["seeds"], code=code))

    @initialize()
    def begin(self):
        self.write("a", uses="contrastive.temperature_free_infonce")
        self.write("b", uses="layers.ideal_group_number")

    @rule(slug=SLUGS, text=words)
    def edit_text(self, slug, text):
        self.write(slug, text=text)

    @rule(slug=SLUGS, code=words)
    def edit_code(self, slug, code):
        self.write(slug, code=code)

    @rule(slug=SLUGS, seeds=words)
    def change_a_default(self, slug, seeds):
        self.write(slug, seeds=seeds)

    @rule(slug=SLUGS, module=st.sampled_from([None, *MODULES]))
    def use_a_method(self, slug, module):
        self.write(slug, uses=module)

    @rule(module=st.sampled_from(sorted(MODULES)), number=words)
    def edit_a_method(self, module, number):
        path = self.package / MODULES[module]
        path.write_text(f"{path.read_text().partition(chr(10) + '# edit')[0]}\n# edit {number}\n")

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
            assert (slug, self.state(slug)) not in self.known, f"{slug} ran again for nothing"
        self.known |= {(slug, self.state(slug)) for slug in self.notebooks if self.notebooks[slug]["code"] != 3}
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        assert book == self.build("scratch")
        assert set(book) == set(self.notebooks)


TestEditing = Editing.TestCase
TestEditing.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
