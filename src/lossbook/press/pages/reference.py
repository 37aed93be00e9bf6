"""The reference: every public name of the library, from its source.

Sphinx's autodoc imports the library when the site is rendered, and takes signatures and docstrings from there.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lossbook.press.pages import command_line
from lossbook.press.pages.library import LAB, METHODS, SOURCE, Library, Module, Name
from lossbook.press.pages.model import Page
from lossbook.press.pages.myst import fence, plain, write_page
from lossbook.press.project import Project

# A name's kind: Sphinx's role that links to it and autodoc's directive that describes it.
DIRECTIVES = {"func": "autofunction", "class": "autoclass", "exc": "autoexception", "data": "autodata"}


def chapter(project: Project) -> dict[str, Any]:
    """The reference's entry of the table of contents."""
    library = Library.of(project)
    parts = [
        {
            "file": f"api/methods/{part}",
            **({"sections": [{"file": each.page, "title": each.stem} for each in modules]} if modules else {}),
        }
        for part, modules in library.parts.items()
    ]
    shared, topics = (
        [{"file": each.page, "title": each.stem} for each in modules] for modules in (library.shared, library.topics)
    )
    lab = [{"file": "api/lab", **({"sections": topics} if topics else {})}] if library.lab else []
    return {"file": "api/index", "sections": [*parts, *shared, *lab, {"file": command_line.PAGE}]}


def write(project: Project, pages: Sequence[Page], folder: Path) -> None:
    """Write the reference below `folder`/api.

    Raises:
        PressError: if a module's public names cannot be told from its file.
    """
    library = Library.of(project)
    made = {"api/index": _index(project, library)}
    for part, modules in library.parts.items():
        made[f"api/methods/{part}"] = _part(project, part, modules)
        made |= {module.page: _method(project, part, module, pages) for module in modules}
    made |= {module.page: _by_name(module, pages) for module in (*library.shared, *library.topics)}
    if library.lab:
        made["api/lab"] = _lab(project, library)
    for place, text in made.items():
        write_page(folder, place, text)


def _index(project: Project, library: Library) -> str:
    blocks = ["# Library reference"]
    if library.parts:
        blocks += [
            "Every method of this book is an ordinary PyTorch function or module. Each part exports its names:",
            fence(f"from {METHODS}.{_example(library)}", "python"),
            "Tensors come first, hyperparameters are keywords with the paper's defaults. Annotations give shapes: "
            '`Float[Tensor, "n d"]` is a floating-point tensor with two dimensions, and a letter that occurs '
            'twice in a signature is the same number; `"*n d"` has any number of dimensions before the last, and `""` '
            "has none. Examples stand below `import torch` and what their page imports.",
            "## Methods",
            _table(
                "Part",
                "Names",
                [
                    (f"[{plain(project.part_title(part))}](methods/{part}.md)", _links(modules))
                    for part, modules in library.parts.items()
                ],
            ),
        ]
    if library.shared:
        blocks += ["Parts share:", _table("Module", "Names", _rows(library.shared, "methods"))]
    if library.lab:
        blocks += [
            "## Bench",
            "What every experiment uses, from [`lossbook.lab`](lab.md):",
            _table(
                "Module", "Names", [(f"{{py:mod}}`{each.stem} <{each.name}>`", _links([each])) for each in library.lab]
            ),
        ]
    if library.topics:
        blocks += ["Topics, which a page imports by name:", _table("Module", "Names", _rows(library.topics, "lab"))]
    if library.parts or library.lab:
        source = "<a href='../_modules/index.html'>source of every module</a>"
        blocks.append(f"{{ref}}`All names in alphabetical order <genindex>`; the {source}.")
    return "\n\n".join([*blocks, "## Command line", "[Every command and its options](cli.md)."])


def _example(library: Library) -> str:
    part, names = next(
        (part, [name.name for module in modules for name in module.names][:1])
        for part, modules in library.parts.items()
    )
    return f"{part} import {', '.join(names)}" if names else f"{part} import *"


def _links(modules: Iterable[Module]) -> str:
    return ", ".join(name.link for module in modules for name in module.names)


def _rows(modules: Iterable[Module], folder: str) -> list[tuple[str, str]]:
    """Modules with a page of their own, and their names."""
    return [(f"[{plain(each.stem)}]({folder}/{each.stem}.md)", _links([each])) for each in modules]


def _table(left: str, right: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table in MyST; a bar within a cell would end it."""
    lines = [f"| {left} | {right} |", "|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return ":::{container} lossbook-scroll lossbook-names\n" + "\n".join(lines) + "\n:::"


def _names(names: Iterable[Name]) -> str:
    """Names with their summaries."""
    return "\n\n".join(f"{name.link}\n: {name.summary or 'A constant.'}" for name in names)


def _module_directive(name: str, *, index: bool = True) -> str:
    """A module's docstring; without `index` links do not lead here."""
    return _autodoc(f".. automodule:: {name}\n   :no-members:{'' if index else chr(10) + '   :no-index:'}")


def _autodoc(text: str) -> str:
    return fence(text, "{eval-rst}")


def _entries(package: str, names: Iterable[Name]) -> str:
    """The full descriptions, as autodoc gives them."""
    lines = [f".. currentmodule:: {package}"]
    for name in names:
        lines += ["", f".. {DIRECTIVES[name.kind]}:: {name.path}"]
        if name.kind in ("class", "exc"):
            lines += ["   :members:"]
    return _autodoc("\n".join(lines))


def _version(files: Iterable[Path]) -> str:
    """A comment that changes with the source, so that the page is rendered anew when a docstring has changed."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return f"% {digest[:16]}"


def _part(project: Project, part: str, modules: Sequence[Module]) -> str:
    blocks = [
        f"# {plain(project.part_title(part))}",
        _version([project.root / SOURCE / "methods" / part / "__init__.py"]),
        _module_directive(f"{METHODS}.{part}"),
        fence(f"from lossbook.methods import {part}", "python"),
    ]
    for module in modules:
        blocks += [f"## [{plain(module.stem)}]({part}/{module.stem}.md)", module.summary, _names(module.names)]
    return "\n\n".join(blocks)


def _method(project: Project, part: str, module: Module, pages: Sequence[Page]) -> str:
    package = f"{METHODS}.{part}"
    # Not indexed: a module and the function after which it is named have the same path.
    blocks = [
        f"# {plain(f'{part}.{module.stem}')}",
        _version([module.file]),
        _module_directive(module.name, index=False),
    ]
    if project.bibtex(module.stem):
        blocks += [f"Paper: {{cite:t}}`{module.stem}`"]
    own = [page for page in pages if (page.paper.part, page.paper.slug) == (part, module.stem)]
    others = [page for page in _users(module, pages) if page not in own]
    for title, found in (("In this book", own), ("Also used in" if own else "Used in", others)):
        blocks += _pages(title, found)
    if module.names:
        blocks += [_import(package, module.names), _entries(package, module.names)]
    return "\n\n".join(blocks)


def _by_name(module: Module, pages: Sequence[Page]) -> str:
    """A module that is imported by its name: what several parts share, or a topic of the bench."""
    return "\n\n".join(
        [
            f"# {plain(module.stem)}",
            _version([module.file]),
            _module_directive(module.name),
            *_pages("Used in", _users(module, pages)),
            fence(f"from {module.name.rpartition('.')[0]} import {module.stem}", "python"),
            _entries(module.name, module.names),
        ]
    )


def _users(module: Module, pages: Sequence[Page]) -> list[Page]:
    """The pages that import the module or a name of it."""
    paths = {module.name, *(path for name in module.names for path in (name.path, name.home))}
    return [page for page in pages if page.uses & paths]


def _pages(title: str, pages: Sequence[Page]) -> list[str]:
    links = ", ".join(f"[{page.heading}](/{page.paper.page}.ipynb)" for page in pages)
    return [f"{title}: {links}"] if pages else []


def _import(package: str, names: Sequence[Name]) -> str:
    listed = [name.name for name in names]
    line = f"from {package} import {', '.join(listed)}"
    if len(line) > 76:
        line = f"from {package} import (\n" + "".join(f"    {name},\n" for name in listed) + ")"
    return fence(line, "python")


def _lab(project: Project, library: Library) -> str:
    files = [project.root / SOURCE / "lab" / "__init__.py", *(module.file for module in library.lab)]
    blocks = ["# Bench", _version(files), _module_directive(LAB), fence("from lossbook import lab", "python")]
    if library.topics:
        topics = "\n\n".join(f"[{plain(each.stem)}](lab/{each.stem}.md)\n: {each.summary}" for each in library.topics)
        blocks += ["Topics are modules that a page imports by name:", topics]
    for module in library.lab:
        blocks += [f"## {plain(module.stem)}", _module_directive(module.name), _entries(LAB, module.names)]
    return "\n\n".join(blocks)
