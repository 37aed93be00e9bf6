"""Every public function and class says what goes in, what is refused, and of a method where it comes from."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from lossbook.press.pages.library import LAB, Library
from lossbook.press.project import Project

LIBRARY = Library.of(Project.find(Path(__file__).parents[1], None))
HOMES = [name.home for module in LIBRARY for name in module.names if name.kind in ("func", "class")]


def sections(docstring: str) -> dict[str, str]:
    parts = re.split(r"^([A-Z]\w+):\n", docstring, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def described(section: str) -> set[str]:
    """The names before the colons of a section; `first, second: ...` are two."""
    heads = re.findall(r"^ {4}((?:\*{0,2}\w+(?:, )?)+)(?: \([^)]*\))?:", section, re.MULTILINE)
    return {name.lstrip("*") for head in heads for name in head.split(", ")}


def refuses(node: ast.AST) -> bool:
    """Whether it raises by itself (`NotImplementedError` says that others do)."""
    raised = [ast.unparse(each.exc) for each in ast.walk(node) if isinstance(each, ast.Raise) and each.exc]
    return any(not text.startswith("NotImplementedError") for text in raised)


def problems(value, node: ast.FunctionDef | ast.ClassDef, checks: set[str], method: bool) -> list[str]:
    """What a docstring lacks.

    Args:
        value: the function or class.
        node: what it is in its file.
        checks: names of functions there that check arguments.
        method: whether it must say its source.
    """
    found = sections(inspect.cleandoc(value.__doc__ or ""))
    found["Args"] = found.get("Args", "") + found.pop("Attributes", "")
    made = node
    if isinstance(node, ast.ClassDef):
        made = next((each for each in node.body if getattr(each, "name", "") == "__init__"), None)
    if made is not node and isinstance(made, ast.FunctionDef):
        # (What makes an object may be described where it is made.)
        of_init = sections(ast.get_docstring(made) or "")
        found = {**found, **of_init, "Args": found["Args"] + of_init.get("Args", "")}
    if isinstance(made, ast.FunctionDef):
        arguments = {each.arg for each in ast.walk(made.args) if isinstance(each, ast.arg)} - {"self"}
    else:
        # Fields of a dataclass or a named tuple.
        arguments = {e.target.id for e in node.body if isinstance(e, ast.AnnAssign) and not e.target.id.startswith("_")}
    said = described(found["Args"])
    wrong = [f"{name} is not among Args" for name in sorted(arguments - said)] if made or arguments else []
    checked = made is not None and (
        refuses(made)
        or any(isinstance(each, ast.Call) and getattr(each.func, "id", "") in checks for each in ast.walk(made))
    )
    if checked and "Raises" not in found:
        wrong.append("it refuses arguments, and has no Raises")
    if method and "Source" not in found:
        wrong.append("no Source")
    return wrong


@pytest.mark.parametrize("home", HOMES)
def test_a_docstring_says_what_goes_in(home):
    module, _, name = home.rpartition(".")
    tree = ast.parse(Path(import_module(module).__file__).read_text())
    [node] = [each for each in tree.body if getattr(each, "name", "") == name][-1:]
    checks = {
        alias.asname or alias.name
        for each in tree.body
        if isinstance(each, ast.ImportFrom) and (each.module or "").endswith("._validate")
        for alias in each.names
    } | {each.name for each in tree.body if isinstance(each, ast.FunctionDef) and each.name.startswith("_check")}
    value = getattr(import_module(module), name)
    wrong = problems(value, node, checks, method=not module.startswith(LAB) and isinstance(node, ast.FunctionDef))
    if wrong:
        pytest.fail(f"{home}: {'; '.join(wrong)}", pytrace=False)


WHOLE = """Twice.

Args:
    x, y: numbers.
    *more: as `x`.

Raises:
    ValueError: for no number.

Source:
    ours.
"""


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (WHOLE, []),
        (WHOLE.replace("x, y", "x"), ["y is not among Args"]),
        (WHOLE.replace("*more", "less"), ["more is not among Args"]),
        (WHOLE.replace("Raises:", "Notes:"), ["it refuses arguments, and has no Raises"]),
        (WHOLE.replace("Source:", "Notes:"), ["no Source"]),
        ("Twice.", ["more", "x", "y", "Raises", "Source"]),
    ],
)
def test_what_is_wrong_is_seen(docstring, expected):
    def twice(): ...

    twice.__doc__ = docstring
    for body in ("return positive('x', x)", "raise ValueError"):
        [node] = ast.parse(f"def twice(x, y=1, *more): {body}").body
        found = problems(twice, node, {"positive"}, method=True)
        assert len(found) == len(expected) and all(each in text for each, text in zip(expected, found, strict=True))
