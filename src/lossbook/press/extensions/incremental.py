"""Sphinx extension: a builder that keeps what the next build can use, so that an edit makes again what shows it.

Sphinx itself reads again what changed. But it does not write the pages again that show the title, the label or the
citation of another page, it loses entries of the search index, and it leaves pictures and downloads that no page has
any more. This builder gives the site that a build from nothing gives. It writes a page again if it was read, or if
what the page asks of others (`pending_xref`) has another answer than the last time; where the contents in the sidebar
alone differ, these are replaced.
"""

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from docutils import nodes
from docutils.nodes import Node
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.environment import BuildEnvironment
from sphinx.ext import viewcode
from sphinxcontrib.bibtex.nodes import bibliography

from lossbook import __version__
from lossbook.press.extensions import sidebar
from lossbook.press.site.render import SEEN

# Beside Sphinx's doctrees: the search index as it is before it is frozen.
SEARCH = "search.pickle"
# Of what Sphinx keeps: changes with any word, or is settled by files whose change starts everything anew.
IGNORED = {"wordcount", "line", "bibdata", "version"}
INDEX = ("_titles", "_filenames", "_mapping", "_title_mapping", "_all_titles", "_index_entries")
# Within what was seen, beside pages: the contents, and in front of a module's name its source.
CONTENTS, SOURCE = "contents", "_modules/"

# What a page asks: a kind, and a name within it.
Question = tuple[str, str]


def asked(page: str, doctree: nodes.document, notebook: bool) -> set[Question]:
    """What a page asks of others. Where that is not sure, it asks for everything."""
    found: set[Question] = {("term", "")} if notebook else set()
    for node in doctree.findall(addnodes.pending_xref):
        domain, kind, target = node.get("refdomain"), node.get("reftype"), node["reftarget"]
        if domain in ("py", "cite"):
            found.add((domain, ""))
        elif (domain, kind) == ("math", "eq"):
            found.add(("equation", target))
        elif (domain, kind) == ("std", "term"):
            found.add(("term", ""))
        elif (domain, kind) == ("std", "ref"):
            found.add(("label", target))
        elif (domain, kind) == ("doc", "myst"):
            found.add(("place" if node.get("reftargetid") else "page", target))
        else:
            found.add(("all", ""))
    if any(True for _ in doctree.findall(bibliography)):
        found.add(("bibliography", ""))
    if any(not tree.get("hidden") for tree in doctree.findall(addnodes.toctree)):
        found.add(("all", ""))
    return found


class Answers:
    """What an environment answers."""

    def __init__(self, app: Sphinx):
        self.app, self.env = app, app.env

    def of(self, question: Question) -> str:
        """The answer to one question."""
        kind, name = question
        std = self.env.domains["std"]
        if kind == "equation":
            return repr(self.env.domains["math"].equations.get(name))
        if kind == "label":
            return repr((std.labels.get(name), std.anonlabels.get(name)))
        if kind in ("page", "place"):
            title = self.env.titles.get(name)
            more = self.env.metadata.get(name) if kind == "place" else None
            return f"{title.pformat() if title else ''}{_canonical(more)}"
        if kind in ("cite", "bibliography"):
            known = self.env.domains["cite"].data if "cite" in self.env.domains else {}
            return _canonical(known if kind == "bibliography" else known.get("citations"))
        return self._terms if kind == "term" else self._python if kind == "py" else self._all

    @cached_property
    def _terms(self) -> str:
        return _canonical(self.env.domains["std"].data.get("objects"))

    @cached_property
    def _python(self) -> str:
        return _canonical(sorted(map(_canonical, self.env.domains["py"].get_objects())))

    @cached_property
    def _all(self) -> str:
        """Everything that pages see of each other."""
        found: dict[str, Any] = {"titles": self.env.titles, "metadata": self.env.metadata}
        for name, domain in self.env.domains.items():
            # The index is made anew in every build.
            if name != "index":
                found[name] = [sorted(map(_canonical, domain.get_objects())), domain.data]
        return _canonical(found)

    def around(self, relations: list[str | None]) -> str:
        """What a page shows of those before and behind it."""
        return "".join(self.env.titles[page].pformat() for page in relations if page in self.env.titles)


def seen(app: Sphinx) -> dict[str, str]:
    """For each page a digest of what it shows of others, and digests of the contents and of modules' sources."""
    env, answers = app.env, Answers(app)
    relations = env.collect_relations()
    # Then every page loads the style sheet of formulas.
    formulas = any(title.next_node(nodes.math) for title in env.titles.values())
    found = {CONTENTS: sidebar.shown(sidebar.contents(app))}
    for page in env.all_docs:
        questions = sorted(_questions(env).get(page, ()))
        found[page] = "\0".join(
            [f"{formulas}", answers.around(relations.get(page, [])), *map(str, questions), *map(answers.of, questions)]
        )
    for name, module in getattr(env, "_viewcode_modules", {}).items():
        found[SOURCE + name.replace(".", "/")] = repr(module and (module[0], sorted(module[2].items()), module[3]))
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in found.items()}


def _questions(env: BuildEnvironment) -> dict[str, set[Question]]:
    """By page, what it asks; Sphinx keeps it with the environment."""
    return vars(env).setdefault("lossbook_questions", {})


def _read(app: Sphinx, doctree: nodes.document) -> None:
    page = app.env.docname
    _questions(app.env)[page] = asked(page, doctree, app.env.doc2path(page).endswith(".ipynb"))


def _purge(app: Sphinx, env: BuildEnvironment, page: str) -> None:
    _questions(env).pop(page, None)


def _merge(app: Sphinx, env: BuildEnvironment, pages: Iterable[str], other: BuildEnvironment) -> None:
    _questions(env).update({page: _questions(other)[page] for page in pages if page in _questions(other)})


def _canonical(value: Any) -> str:
    if isinstance(value, Node):
        return value.pformat()
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        items = sorted((str(key), _canonical(each)) for key, each in value.items() if key not in IGNORED)
        return "{" + "\n".join(f"{key}: {each}" for key, each in items) + "}"
    if isinstance(value, set | frozenset):
        return "{" + "\n".join(sorted(map(_canonical, value))) + "}"
    if isinstance(value, list | tuple):
        return "[" + "\n".join(map(_canonical, value)) + "]"
    text = repr(value)
    if " at 0x" in text and hasattr(value, "__dict__"):
        # An object without a text of its own; one that has no attributes either counts as changed.
        return f"{type(value).__name__} {_canonical(vars(value))}"
    return text


class IncrementalBuilder(StandaloneHTMLBuilder):
    """Writes HTML, from where the last build ended."""

    # Whether the contents are other than those of pages that were written earlier.
    contents_changed = False

    def prepare_writing(self, docnames: set[str]) -> None:
        """Remember which pages are written."""
        self.now = frozenset(docnames)
        super().prepare_writing(docnames)

    def load_indexer(self, docnames: Iterable[str]) -> None:
        """Take up the search index without the pages that are written again."""
        indexer = self.indexer
        assert indexer is not None, "Sphinx makes it before it loads it"
        path, kept = Path(self.doctreedir, SEARCH), set(self.env.all_docs) - set(docnames)
        if path.is_file():
            vars(indexer).update(pickle.loads(path.read_bytes()))
        indexer.prune(kept)
        entries = indexer._index_entries
        indexer._index_entries = {name: entries[name] for name in entries.keys() & kept}

    def dump_search_index(self) -> None:
        """Write the search index, and keep it in the form that can be gone on with."""
        indexer = self.indexer
        assert indexer is not None, "Sphinx has no index to write otherwise"
        indexer.prune(self.env.all_docs)
        for name in ("_mapping", "_title_mapping"):
            setattr(indexer, name, {word: pages for word, pages in getattr(indexer, name).items() if pages})
        indexer._index_entries = dict(sorted(indexer._index_entries.items()))
        Path(self.doctreedir, SEARCH).write_bytes(pickle.dumps({name: getattr(indexer, name) for name in INDEX}))
        super().dump_search_index()

    def cleanup(self) -> None:
        """Put the contents into the pages that were left; remove what no page has any more."""
        super().cleanup()
        sources = {SOURCE + name.replace(".", "/") for name in getattr(self.env, "_viewcode_modules", {})}
        for path in Path(self.outdir, SOURCE).rglob(f"*{self.out_suffix}"):
            page = path.relative_to(self.outdir).with_suffix("").as_posix()
            if page not in sources and page != f"{SOURCE}index":
                path.unlink()
        if self.contents_changed:
            for page in {*self.env.all_docs, *sources} - self.now:
                path = Path(self.get_outfilename(page))
                text = path.read_text(encoding="utf-8")
                if (made := sidebar.replace(self.app, page, text)) != text:
                    path.write_text(made, encoding="utf-8")
        for folder, files in (("_images", self.env.images), ("_downloads", self.env.dlfiles)):
            wanted = {Path(self.outdir, folder, name) for _, name in files.values()}
            for path in sorted(Path(self.outdir, folder).rglob("*"), reverse=True):
                if path.is_file() and path not in wanted:
                    path.unlink()
                elif path.is_dir() and not any(path.iterdir()):
                    path.rmdir()


def _pages_to_write(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Which pages are written besides those that were read: those that show something new of others."""
    path, now = Path(app.doctreedir, SEEN), seen(app)
    before: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(now), encoding="utf-8")
    changed = {name for name in now if before.get(name) != now[name]}
    if isinstance(app.builder, IncrementalBuilder):
        app.builder.contents_changed = CONTENTS in changed
        for name in changed - env.all_docs.keys() - {CONTENTS}:
            # The page of a module's source: it is written again where it is missing.
            Path(cast(IncrementalBuilder, app.builder).get_outfilename(name)).unlink(missing_ok=True)
    # With nothing to write, Sphinx would not copy files either.
    return sorted(changed & env.all_docs.keys() | {env.config.root_doc})


def _allow_processes(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Let Sphinx read in several processes: this extension, which does nothing here, only does not say that it may."""
    if extension := app.extensions.get("sphinx_multitoc_numbering"):
        extension.parallel_read_safe = True


def _source_is_missing(app: Sphinx, name: str) -> bool:
    """Whether the page of a module's source must be written; Sphinx would import each module to ask for its age."""
    return not Path(cast(IncrementalBuilder, app.builder).get_outfilename(SOURCE + name.replace(".", "/"))).is_file()


def setup(app: Sphinx) -> dict[str, Any]:
    """Take the place of Sphinx's own builder of HTML."""
    app.setup_extension("lossbook.press.extensions.sidebar")
    viewcode.should_generate_module_page = _source_is_missing
    app.add_builder(IncrementalBuilder, override=True)
    app.connect("env-before-read-docs", _allow_processes)
    app.connect("doctree-read", _read)
    app.connect("env-purge-doc", _purge)
    app.connect("env-merge-info", _merge)
    # After other extensions have settled what pages see of each other.
    app.connect("env-get-updated", _pages_to_write, priority=900)
    return {"version": __version__, "parallel_read_safe": True, "parallel_write_safe": True}
