import re
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lossbook.press.extensions import formulas
from lossbook.press.extensions.formulas import FormulaError, render

MATHML = "{http://www.w3.org/1998/Math/MathML}"
ALIGNED = r"\begin{aligned} a &= \operatorname{ReLU}(b) \\ &\ge 0 \end{aligned}"
CASES = r"\begin{cases} 1 & x \in \mathbb{R} \\ \lVert y \rVert_2 & \text{otherwise} \end{cases}"


def mathml(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<math .*</math>", html)[0].replace("&nbsp;", " "))


def words(html: str) -> list[str]:
    return [element.text for element in mathml(html).iter() if element.text and element.text.strip()]


def test_what_is_seen_is_hidden_from_screen_readers_which_get_mathml():
    html = render(r"\frac{x_i}{\sqrt{2}}", False)
    assert html.startswith("<mjx-container") and html.endswith("</mjx-assistive-mml></mjx-container>")
    assert re.search(r'<mjx-math [^>]*aria-hidden="true"', html) and html.count("aria-hidden") == 1
    fraction = mathml(html)[0]
    assert fraction.tag == f"{MATHML}mfrac" and [part.tag for part in fraction] == [f"{MATHML}msub", f"{MATHML}msqrt"]
    assert words(html) == ["x", "i", "2"]


def test_a_displayed_formula_is_larger():
    line, display = (render(r"\sum_{i=1}^n x_i", display) for display in (False, True))
    assert 'display="true"' in display and 'display="true"' not in line
    assert f"{MATHML}munderover" in [e.tag for e in mathml(display).iter()]
    assert "TEX-S2" in display and "TEX-S2" not in line


@pytest.mark.parametrize(
    ("tex", "contains"),
    [
        (ALIGNED, ["ReLU", "≥"]),
        (CASES, ["R", "‖", "otherwise"]),
        (r"\begin{align} x &= 1 \\ y &= 2 \end{align}", ["x", "y"]),
        (r"\begin{smallmatrix} 1 & 0 \\ 0 & 1 \end{smallmatrix}", ["0", "1"]),
        (r"\operatorname*{arg\,max}_\theta \hat{\mathcal{L}}", ["arg", "max", "θ", "L"]),
        (r"\|x\|", ["‖"]),
        (r"a < b \quad\&\quad c > d", ["<", ">", "&"]),
        (r"\text{naïve}", ["naïve"]),
    ],
)
def test_what_papers_write(tex, contains):
    found = words(render(tex, True))
    assert set(contains) <= set(found), found


@pytest.mark.parametrize(
    ("tex", "message"),
    [
        (r"\lossbook + 1", r"Undefined control sequence \lossbook"),
        (r"\frac{1}", r"Missing argument for \frac"),
        (r"x_1_2", "Double subscripts: use braces to clarify"),
        (r"\begin{cases} 1", r"Missing \end{cases}"),
        (r"\def\a{\a\a}\a", "MathJax maximum macro substitution count exceeded"),
    ],
)
def test_a_broken_formula_is_refused_in_mathjaxs_words(tex, message):
    with pytest.raises(FormulaError, match=re.escape(message)):
        render(tex, True)
    assert words(render("x + 1", False)) == ["x", "+", "1"]


@pytest.mark.parametrize(
    ("definition", "use"),
    [
        (r"\newcommand{\mine}{x}", r"\mine"),
        (r"\def\mine{x}", r"\mine"),
        (r"\let\mine=\alpha", r"\mine"),
        (r"\DeclareMathOperator{\mine}{x}", r"\mine"),
        (r"\newenvironment{mine}{(}{)}", r"\begin{mine}x\end{mine}"),
        (r"\DeclarePairedDelimiter{\mine}{|}{|}", r"\mine{x}"),
    ],
)
def test_a_definition_holds_in_its_formula_alone(definition, use):
    assert words(render(definition + use, False))
    with pytest.raises(FormulaError):
        render(use, False)


def test_a_label_may_be_used_on_two_pages():
    assert words(render(r"\label{same} x", True)) == ["x"] and words(render(r"\label{same} y", True)) == ["y"]


def test_equal_formulas_are_rendered_once():
    render.cache_clear()
    assert [render("z", False) for _ in range(3)] and render("z", True)
    assert render.cache_info().misses == 2 and render.cache_info().hits == 2


def _in_a_child(queue):
    render.cache_clear()
    queue.put(render("x^7", False))


def test_a_forked_process_renders_too(patience):
    here, fork = render("x^7", False), get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_in_a_child, args=(queue,))
    child.start()
    assert queue.get(timeout=patience) == here
    child.join(patience)
    assert child.exitcode == 0


def test_a_process_that_rendered_ends(patience):
    code = "from lossbook.press.extensions.formulas import render; print(render('x', True))"
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience)
        assert done.returncode == 0 and done.stdout.startswith("<mjx-container"), done.stderr


def test_the_style_sheet_has_every_glyph_and_its_fonts_are_there():
    style = formulas.style()
    for tex in (ALIGNED, CASES, r"\mathfrak{A}\mathbf{B}\mathtt{C}\mathsf{D}\iint\left(\frac{\frac12}{\frac34}\right)"):
        for glyph in re.findall(r'"(mjx-c[0-9A-F]+)', render(tex, True)):
            assert f".{glyph}::before" in style or f".{glyph}." in style, glyph
    fonts = re.findall(r'url\("\./([^"]+)"\)', style)
    assert len(fonts) > 15
    assert all((formulas.SOURCE / "output/chtml/fonts/woff-v2" / font).is_file() for font in fonts)


CONFIG = """
extensions = ["myst_parser", "lossbook.press.extensions.formulas"]
myst_enable_extensions = ["amsmath", "dollarmath"]
html_math_renderer = "formulas"
math_eqref_format = "({number})"
"""
INDEX = """# Index

```{toctree}
sub/page
plain
```

No formula but the title of another page.
"""
PAGE = r"""# On $\lambda$

The loss $\ell_i$ is

$$
\ell = -\log p
$$ (eq:loss)

by {eq}`eq:loss`, and

\begin{align}
a &= b \\
c &= d
\end{align}

\begin{align*}
e &= f
\end{align*}

$$
x &= 1 \\
y &= 2
$$

```{math}
u = 1

v = 2
```
"""


def built(sphinx, folder: Path, page: str = PAGE, *options: str) -> tuple[Path, subprocess.CompletedProcess]:
    source, site = folder / "source", folder / "site"
    for name, text in (("conf.py", CONFIG), ("index.md", INDEX), ("sub/page.md", page), ("plain.md", "# Plain\n")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    return site, sphinx("-q", *options, source, site, cwd=folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory, sphinx):
    site, done = built(sphinx, tmp_path_factory.mktemp("formulas"), PAGE, "-W", "-j", "2")
    assert done.returncode == 0 and done.stderr == ""
    return site


def test_every_formula_of_a_page_is_html(site):
    text = (site / "sub/page.html").read_text(encoding="utf-8")
    body = text[text.index('<div class="body"') :]
    assert len(re.findall(r'<(?:span|div) class="(?:[^"]* )?math ', text)) == text.count("<mjx-container")
    assert body.count("<mjx-container") == 8 and "\\begin" not in body and "mjx-merror" not in body
    # Sphinx aligns what has several lines.
    tables = [len(mathml(html).findall(f".//{MATHML}mtr")) for html in re.findall(r"<mjx-container.*?</math>", body)]
    assert tables == [0, 0, 0, 2, 1, 2, 3, 0]


def test_numbers_and_links_are_sphinxs(site):
    text = (site / "sub/page.html").read_text(encoding="utf-8")
    assert re.findall(r'<span class="eqno">\((\d)\)<a class="headerlink" href="#', text) == ["1", "2"]
    (anchor,) = re.findall(r'<div class="math notranslate nohighlight" id="(equation-eq-loss)">', text)
    assert re.search(rf'href="#{anchor}">\(1\)</a>', text)
    assert "amsmath" in text


def test_the_site_has_no_mathjax_but_its_fonts(site):
    for path in site.rglob("*.html"):
        assert not re.search(r"<script[^>]*mathjax|window\.MathJax|https?://[^\"']*mathjax", path.read_text(), re.I)
    assert {path.suffix for path in site.rglob("*[Mm]ath[Jj]ax*") if path.is_file()} == {".woff"}
    style = (site / "_static/formulas/formulas.css").read_text(encoding="utf-8")
    for font in re.findall(r'url\("\./([^"]+)"\)', style):
        assert (site / "_static/formulas" / font).is_file()


def test_pages_that_show_formulas_load_the_style_sheet(site):
    link = r'<link rel="stylesheet" type="text/css" href="(\S*)_static/formulas/formulas\.css\?v=\w+" />'
    # The title with a formula is in the sidebar of every page.
    pages = {"sub/page.html": ["../"], "index.html": [""], "plain.html": [""]}
    assert {name: re.findall(link, (site / name).read_text()) for name in pages} == pages


def test_pages_without_formulas_do_not(tmp_path, sphinx):
    site, done = built(sphinx, tmp_path, "# A page\n\nWith $x$.\n")
    assert done.returncode == 0, done.stderr
    assert "formulas.css" in (site / "sub/page.html").read_text()
    assert "formulas" not in (site / "plain.html").read_text()


def test_a_broken_formula_is_a_warning_with_its_place(tmp_path, sphinx):
    page = "# A page\n\nFine: $x$.\n\n$$\n\\lossbook < 1\n$$\n"
    site, done = built(sphinx, tmp_path, page, "-W")
    assert done.returncode != 0
    assert re.search(r"page\.md:5: ?formula: Undefined control sequence \\lossbook: \\lossbook < 1", done.stderr), (
        done.stderr
    )
    site, done = built(sphinx, tmp_path, page, "-E")
    assert done.returncode == 0
    assert re.search(r"<code>\s*\\lossbook &lt; 1\s*</code>", (site / "sub/page.html").read_text())


def test_punctuation_stays_with_its_formula(tmp_path, sphinx):
    (tmp_path / "conf.py").write_text(
        "extensions = ['myst_parser', 'lossbook.press.extensions.formulas']\n"
        "myst_enable_extensions = ['dollarmath']\nhtml_math_renderer = 'formulas'\n"
    )
    (tmp_path / "index.md").write_text("# T\n\nAn ($a$), the $b$, $c$-th and $d$ alone; $e$. $f$\n")
    done = sphinx("-q", "-W", "-b", "html", tmp_path, tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "out" / "index.html").read_text()
    text = re.sub(r"<mjx-container.*?</mjx-container>", "x", html, flags=re.DOTALL)
    found = re.findall(r'<span class="together">(.*?)<span class="math[^>]*>x</span>(.*?)</span>', text)
    assert found == [("(", "),"), ("", ","), ("", "-th"), ("", ".")]
