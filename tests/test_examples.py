"""Every public function and class of the library shows how it is used, and what it shows is what comes out.

Public is what the reference describes, and an example is read below the import that the reference gives. So it has
`torch`; in methods the public names of its part, as `info_nce(...)`, and the modules that parts share, as
`poincare.distance(...)`; in the bench `lab`, as `lab.fit(...)`, and its topic, as `attacks.pgd(...)`. Type aliases and
constants have no docstring of their own, and no example.
"""

import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch

from lossbook import lab
from lossbook.press.pages.library import Library
from lossbook.press.project import Project

# Statements of an example, and characters of a line with its prompt: a page has room for so many.
STATEMENTS, WIDTH = 4, 92
LIBRARY = Library.of(Project.find(Path(__file__).parents[1], None))
# The home of every name by the path under which it is imported.
HOMES = {name.path: name.home for module in LIBRARY for name in module.names if name.kind != "data"}


def namespace(path: str) -> dict[str, Any]:
    """What a reader has imported who reads the example of a name."""
    package = path.rpartition(".")[0]
    home = import_module(package)
    if package.startswith(lab.__name__):
        return {"torch": torch, "lab": lab, package.rpartition(".")[2]: home}
    shared = {each.stem: import_module(each.name) for each in LIBRARY.shared}
    if home in shared.values():
        return {"torch": torch, **shared}
    return {"torch": torch, **shared, **{name: getattr(home, name) for name in home.__all__}}


def problem(docstring: str | None, names: dict[str, Any]) -> str | None:
    """What is wrong with the example in a docstring; None if nothing is."""
    section = re.search(r"^Examples:\n((?: {4}.*\n?|\n)+)\Z", inspect.cleandoc(docstring or ""), re.MULTILINE)
    if not section:
        return "expected a section `Examples:` at the end of the docstring"
    found = doctest.DocTestParser().get_examples(section[1])
    if not any(each.want for each in found):
        return "expected an example that shows a result"
    if len(found) > STATEMENTS:
        return f"expected at most {STATEMENTS} statements, got {len(found)}"
    if long := [line for line in section[1].splitlines() if len(line) - 4 > WIDTH]:
        return f"expected lines of at most {WIDTH} characters, got {long[0]}"
    said: list[str] = []
    test = doctest.DocTest(found, {**names}, "example", None, 0, section[1])
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    return "".join(said) or None


def in_terminal(*objects: Any, raw: bool = False, **_: Any) -> None:
    """What IPython shows in a terminal."""
    for each in objects:
        print(each["text/plain"] if raw else repr(each))


@pytest.mark.parametrize("path", HOMES)
def test_example(path, monkeypatch):
    monkeypatch.setattr("IPython.display.display", in_terminal)
    module, _, name = HOMES[path].rpartition(".")
    value = getattr(import_module(module), name)
    with mpl.rc_context(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if wrong := problem(value.__doc__, namespace(path)):
            pytest.fail(f"{path}: {wrong}", pytrace=False)


@pytest.mark.parametrize(
    ("docstring", "complaint"),
    [
        (None, "a section `Examples:`"),
        ("Two.\n\nSource:\n    ours.", "a section `Examples:`"),
        ("Two.\n\nExamples:\n    >>> 2\n    2\n\nSource:\n    ours.", "at the end"),
        ("Two.\n\nExamples:\n    >>> two = 2", "shows a result"),
        ("Two.\n\nExamples:\n    >>> 1 + 2\n    2", "Expected:\n    2\nGot:\n    3"),
        ("Two.\n\nExamples:\n    >>> 1 + x\n    2", "NameError"),
        ("Two.\n\nExamples:\n" + 5 * "    >>> 2\n    2\n", "at most 4 statements, got 5"),
        ("Two.\n\nExamples:\n    >>> 2  # " + 85 * "-" + "\n    2", "at most 92 characters"),
        ("Two.\n\nExamples:\n    >>> two = torch.tensor(2)\n    >>> two\n    tensor(2)", None),
    ],
)
def test_what_is_wrong_is_seen(docstring, complaint):
    found = problem(docstring, {"torch": torch})
    assert found is None if complaint is None else complaint in found
