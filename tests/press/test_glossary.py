"""Terms of the glossary are linked where a paper first says them."""

import re

import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook

from lossbook.press.extensions.glossary import terms


def test_symbols_and_everyday_words_are_left_alone():
    assert terms(["τ", "tau", "run", "softmax", "linear probe", "N, batch size", "Student's t"]) == [
        "linear probe",
        "Student's t",
        "softmax",
    ]


def test_the_first_mention_is_linked(tmp_path, sphinx):
    (tmp_path / "conf.py").write_text(
        "extensions = ['myst_nb', 'lossbook.press.extensions.glossary']\nnb_execution_mode = 'off'\n"
    )
    (tmp_path / "index.md").write_text(
        "# Book\n\nA softmax.\n\n```{toctree}\npaper\n```\n\n```{glossary}\nlinear probe\n  A layer.\n\nsoftmax\n  Shares.\n\nrun\n  One.\n```\n"
    )
    text = "# On softmax\n\nThe `softmax` in code, *Softmax* in prose, a run, Softmax again. Linear probes [softmax](index.md)."
    nbformat.write(new_notebook(cells=[new_markdown_cell(text)]), tmp_path / "paper.ipynb")
    done = sphinx("-q", "-W", "-b", "html", tmp_path, tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "out" / "paper.html").read_text()
    found = re.findall(r'<a class="[^"]*\bterm\b[^"]*" href="([^"]+)" title="([^"]+)">([^<]+)</a>', html)
    assert found == [
        ("index.html#term-softmax", "Glossary: softmax", "Softmax"),
        ("index.html#term-linear-probe", "Glossary: linear probe", "Linear probes"),
    ]
    assert 'class="term' not in (tmp_path / "out" / "index.html").read_text().split("</h1>")[1].split("<dl")[0]
