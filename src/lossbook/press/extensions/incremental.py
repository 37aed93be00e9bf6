"""Sphinx extension: a builder that keeps what the next build can use, so that an edited page alone is made again.

Sphinx itself reads again what changed. But it does not write the pages again that show the title, the label or the
citation of another page, it loses entries of the search index, and it leaves pictures and downloads that no page has
any more. This builder gives the site that a build from nothing gives.
"""

import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils.nodes import Node
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.environment import BuildEnvironment

from lossbook.press.site.render import SEEN

# Beside Sphinx's doctrees: the search index as it is before it is frozen.
SEARCH = "search.pickle"
# Of Sphinx's environment, what a page shows of others: in sidebars, at its foot, in references.
ATTRIBUTES = (
    "titles",
    "longtitles",
    "tocs",
    "toctree_includes",
    "toc_secnumbers",
    "toc_fignumbers",
    "metadata",
    "nb_metadata",
)
# Changes with any word, or is settled by files whose change starts everything anew.
IGNORED = {"wordcount", "line", "bibdata", "version"}
INDEX = ("_titles", "_filenames", "_mapping", "_title_mapping", "_all_titles", "_index_entries")


def seen(env: BuildEnvironment) -> str:
    """Everything that the pages see of each other, in an order of its own."""
    found: dict[str, Any] = {name: getattr(env, name, None) for name in ATTRIBUTES}
    for name, domain in env.domains.items():
        # The index is made anew in every build.
        if name != "index":
            found[f"domain {name}"] = [sorted(map(_canonical, domain.get_objects())), domain.data]
    return _canonical(found)


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
        """Remove pictures and downloads that no page has any more."""
        super().cleanup()
        for folder, files in (("_images", self.env.images), ("_downloads", self.env.dlfiles)):
            wanted = {Path(self.outdir, folder, name) for _, name in files.values()}
            for path in sorted(Path(self.outdir, folder).rglob("*"), reverse=True):
                if path.is_file() and path not in wanted:
                    path.unlink()
                elif path.is_dir() and not any(path.iterdir()):
                    path.rmdir()


def _pages_to_write(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Which pages are written besides those that were read: all, if any shows others something new."""
    path, now = Path(app.doctreedir, SEEN), seen(env)
    if path.is_file() and path.read_text(encoding="utf-8") == now:
        # With nothing to write, Sphinx would not copy files either.
        return [env.config.root_doc]
    path.write_text(now, encoding="utf-8")
    # Pages of source code, which Sphinx writes only if they are missing or the code is newer.
    shutil.rmtree(Path(app.outdir, "_modules"), ignore_errors=True)
    return sorted(env.all_docs)


def setup(app: Sphinx) -> dict[str, Any]:
    """Take the place of Sphinx's own builder of HTML."""
    app.add_builder(IncrementalBuilder, override=True)
    # After other extensions have settled what pages see of each other.
    app.connect("env-get-updated", _pages_to_write, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
