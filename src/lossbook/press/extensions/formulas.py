"""A Sphinx extension: formulas become HTML when the site is built, so that its pages run no MathJax.

MathJax itself does it, in V8 within this process. A formula is the HTML that MathJax would have made in the browser,
with MathML beside it for screen readers; the style sheet and fonts that it needs are written into the site. What was
made once is kept in the file that the variable `LOSSBOOK_FORMULAS` of the environment names, if it does, so that V8
starts for new formulas alone. The configuration asks for `html_math_renderer: formulas`.
"""

import atexit
import hashlib
import json
import os
import re
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from functools import cache
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from docutils import nodes
from py_mini_racer import MiniRacer
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.domains.math import MathDomain
from sphinx.locale import _ as translated
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

from lossbook import __version__
from lossbook.press.errors import PressError

# The package's own use of these files, MathJax in the browser, is none of ours.
SOURCE = Path(str(import_module("sphinx-mathjax-offline").__file__)).parent / "static" / "mathjax"
COMPONENTS = (
    "startup", "core", "adaptors/liteDOM", "input/tex-full", "output/chtml", "output/chtml/fonts/tex",
    "a11y/assistive-mml",
)  # fmt: skip
# Punctuation at a formula, before and behind it.
OPENS, CLOSES = re.compile(r"[(\[“‘]*$"), re.compile(r"[.,;:!?)\]’”%]*(?:[’'-]\w+)?")
# Of the environment: the file of what was made before.
KEPT = "LOSSBOOK_FORMULAS"
# Within the site's _static.
FOLDER = "formulas"

# MathJax reads its configuration from the variable that it then replaces. A formula with an error is an exception, not
# a red box; `braket` would turn norms (\|) into signs of parallels; all glyphs are in the style sheet, whichever pages
# were rendered before.
CONFIGURE = """
var global = globalThis;
var MathJax = {
  loader: {load: []},
  startup: {typeset: false, document: "", ready() {}},
  tex: {packages: {"[-]": ["braket", "noerrors", "noundefined"]}, formatError(jax, error) { throw error; }},
  chtml: {adaptiveCSS: false, fontURL: "."},
};
"""
# What a formula defines (\newcommand) holds for itself alone: its HTML must not depend on what was rendered before it.
PREPARE = """
const DEFINED = ["new-Command", "new-Environment", "new-Delimiter", "ams-declare-ops", "mathtools-paired-delims"];
function prepare() {
  MathJax.startup.getComponents();
  MathJax.startup.makeMethods();
}
function render(tex, display) {
  const handlers = MathJax.startup.input[0].parseOptions.handlers;
  try {
    MathJax.texReset();
    return JSON.stringify({html: MathJax.startup.adaptor.outerHTML(MathJax.tex2chtml(tex, {display}))});
  } catch (error) {
    return JSON.stringify({error: error.message});
  } finally {
    if (DEFINED.some(name => handlers.retrieve(name)?.map.size)) prepare();
  }
}
function style() {
  return MathJax.startup.adaptor.textContent(MathJax.chtmlStylesheet());
}
prepare();
"""
# MathJax measures the surrounding font's x-height in the browser and scales its own (0.442 em) to it; a style sheet can
# say the same.
SCALE = "mjx-container{font-size:calc(1ex/.442)}"
# A box that scrolls must be reached by keyboard, one that does not must not stop it.
SCRIPT = """\
// Formulas wider than their box can be scrolled by keyboard.
document.addEventListener("DOMContentLoaded", () => {
  const update = box => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    if (wide === box.hasAttribute("tabindex")) return;
    for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", "Formula, scrolls sideways"]])
      if (wide) box.setAttribute(name, value); else box.removeAttribute(name);
  };
  const observer = new ResizeObserver(changes => changes.forEach(change => update(change.target)));
  document.querySelectorAll("div.math > mjx-container, span.math").forEach(box => observer.observe(box));
});
"""

logger = logging.getLogger(__name__)


class FormulaError(PressError):
    """A formula that MathJax rejects."""


# By process: a forked one must neither use nor free its parent's.
_contexts: dict[int, MiniRacer] = {}


@atexit.register
def _close() -> None:
    """End this process's V8 in time: left to the interpreter's own end, it may wait for threads that are gone."""
    if context := _contexts.pop(os.getpid(), None):
        context.close()


def _mathjax() -> MiniRacer:
    """This process's V8 with MathJax in it."""
    if (pid := os.getpid()) not in _contexts:
        context = MiniRacer()
        context.eval(CONFIGURE)
        for component in COMPONENTS:
            # No script's value is asked for: most are objects that would be kept alive.
            context.eval(f"{(SOURCE / f'{component}.js').read_text(encoding='utf-8')}\n;0")
        context.eval(f"{PREPARE};0")
        _contexts[pid] = context
    return _contexts[pid]


@cache
def _maker() -> str:
    """Changes with MathJax and with what we tell it."""
    digest = hashlib.sha256("".join([CONFIGURE, PREPARE]).encode())
    for component in COMPONENTS:
        digest.update((SOURCE / f"{component}.js").read_bytes())
    return digest.hexdigest()


@cache
def _store(process: int) -> sqlite3.Connection | None:
    """This process's connection to what is kept."""
    if not (path := os.environ.get(KEPT)):
        return None
    try:
        return _opened(path)
    except sqlite3.DatabaseError:
        Path(path).unlink()
        return _opened(path)


def _opened(path: str) -> sqlite3.Connection:
    # A transaction each; several processes may write. What is lost with the power is made again.
    store = sqlite3.connect(path, timeout=60, isolation_level=None)
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA synchronous = OFF")
    store.execute("CREATE TABLE IF NOT EXISTS made (key BLOB PRIMARY KEY, text BLOB) WITHOUT ROWID")
    return store


def _kept(question: str, make: Callable[[], str]) -> str:
    """What was made in answer to this question, now or earlier."""
    store = _store(os.getpid())
    if store is None:
        return make()
    key = hashlib.sha256(f"{_maker()}\0{question}".encode()).digest()
    if found := store.execute("SELECT text FROM made WHERE key = ?", [key]).fetchone():
        return zlib.decompress(found[0]).decode()
    text = make()
    store.execute("INSERT OR REPLACE INTO made VALUES (?, ?)", [key, zlib.compress(text.encode())])
    return text


@cache
def render(tex: str, display: bool) -> str:
    r"""A formula as HTML, on its own line (`display`) or within one.

    Args:
        tex: TeX as MathJax knows it, without delimiters; environments of amsmath are displayed formulas. `\newcommand`
            holds within the formula.
        display: whether it stands on a line of its own.

    Returns:
        One element `mjx-container`, which shows as meant on pages with the style sheet `style()`.

    Raises:
        FormulaError: if MathJax rejects it; the message is MathJax's.
    """

    def make() -> str:
        made = json.loads(_mathjax().call("render", tex, display))
        if "error" in made:
            raise FormulaError(made["error"])
        return made["html"]

    return _kept(f"{display:d} {tex}", make)


def style() -> str:
    """The style sheet of all that `render` can make; its fonts are beside it."""
    text = _kept("style", lambda: _mathjax().call("style"))
    return re.sub(r"\s*([{};,])\s*", r"\1", re.sub(r"/\*.*?\*/", "", text)).strip() + SCALE + "\n"


def _source(node: nodes.math_block) -> str:
    """The TeX of a displayed formula, aligned as by Sphinx's own renderer with MathJax in the browser."""
    tex = node.astext()
    if node["nowrap"]:
        return tex
    parts = [part for part in tex.split("\n\n") if part.strip()]
    lines = [rf"\begin{{split}}{part}\end{{split}}" if r"\\" in part else part for part in parts]
    if len(lines) > 1:
        return r"\begin{align}\begin{aligned}" + r"\\".join(lines) + r"\end{aligned}\end{align}"
    return "".join(lines)


def _rendered(node: nodes.math | nodes.math_block, tex: str, display: bool) -> str:
    try:
        return render(tex, display)
    except FormulaError as error:
        logger.warning("formula: %s: %s", error, " ".join(tex.split()), location=node, type="formulas")
        return f"<code>{escape(tex)}</code>"


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    self.body.append(f"{_rendered(node, node.astext(), display=False)}</span>")
    raise nodes.SkipNode


class KeepTogether(SphinxPostTransform):
    """A formula within a line and the punctuation at it stay on one line: browsers would break between them."""

    default_priority = 900
    formats = ("html",)

    def run(self, **_: Any) -> None:
        """Wrap each formula that punctuation touches."""
        for math in list(self.document.findall(nodes.math)):
            parent, place = math.parent, math.parent.index(math)
            before, after = (
                parent[at].astext() if 0 <= at < len(parent) and isinstance(parent[at], nodes.Text) else ""
                for at in (place - 1, place + 1)
            )
            opens, closes = _matched(OPENS.search(before)), _matched(CLOSES.match(after))
            if not opens and not closes:
                continue
            together = nodes.inline(
                "", "", nodes.Text(opens), math.deepcopy(), nodes.Text(closes), classes=["together"]
            )
            if closes:
                parent[place + 1] = nodes.Text(after.removeprefix(closes))
            parent[place] = together
            if opens:
                parent[place - 1] = nodes.Text(before.removesuffix(opens))


def _matched(match: re.Match[str] | None) -> str:
    return match[0] if match else ""


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a displayed formula with its number, which links to it."""
    self.body.append(self.starttag(node, "div", "", CLASS="math notranslate nohighlight"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, translated("Link to this equation"))
        self.body.append("</span>")
    self.body.append(f"{_rendered(node, _source(node), display=True)}</div>\n")
    raise nodes.SkipNode


def _write_files(app: Sphinx) -> None:
    """Write the style sheet, the fonts and the script, before the pages that link to them with a checksum."""
    if not isinstance(app.builder, StandaloneHTMLBuilder) or app.builder.math_renderer_name != "formulas":
        return
    folder = Path(app.outdir) / "_static" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("formulas.css", style()), ("formulas.js", SCRIPT)):
        (folder / name).write_text(text, encoding="utf-8")
    for font in (SOURCE / "output" / "chtml" / "fonts" / "woff-v2").glob("*.woff"):
        shutil.copy(font, folder)


def _link_files(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    if not isinstance(app.builder, StandaloneHTMLBuilder) or app.builder.math_renderer_name != "formulas":
        return
    equations = cast(MathDomain, app.env.get_domain("math"))
    # The sidebar shows the titles of other pages.
    titles = (title for titles in (app.env.titles, app.env.longtitles) for title in titles.values())
    if equations.has_equations(page) or any(title.next_node(nodes.math) for title in titles):
        app.builder.add_css_file(f"{FOLDER}/formulas.css")
        app.builder.add_js_file(f"{FOLDER}/formulas.js")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer("formulas", (visit_math, None), (visit_math_block, None))
    app.add_post_transform(KeepTogether)
    app.connect("builder-inited", _write_files)
    app.connect("html-page-context", _link_files)
    return {"version": __version__, "parallel_read_safe": True, "parallel_write_safe": True}
