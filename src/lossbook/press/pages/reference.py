"""The reference: every public name of the library, from its source, and every command.

Modules and their names are found in the files: nothing of the library is imported here. Sphinx's autodoc imports it
when the site is rendered, and takes signatures and docstrings from there.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossbook.press.errors import PressError
from lossbook.press.pages.model import Page
from lossbook.press.pages.text import fence, plain
from lossbook.press.project import Project

# A name's kind: Sphinx's role that links to it and autodoc's directive that describes it.
DIRECTIVES = {"func": "autofunction", "class": "autoclass", "exc": "autoexception", "data": "autodata"}
# Of the project, the folder of the library.
SOURCE = "src/lossbook"
METHODS, LAB = "lossbook.methods", "lossbook.lab"


@dataclass(frozen=True)
class Name:
    """A public name. People import `path`; `home` is where it is defined, and links there work as well."""

    name: str
    kind: str
    summary: str
    path: str
    home: str

    @property
    def link(self) -> str:
        """The name as a link, in MyST."""
        return f"{{py:{self.kind}}}`{self.name} <{self.path}>`"


@dataclass(frozen=True)
class Module:
    """A module with its public names, read from its file."""

    name: str
    file: Path
    summary: str
    names: tuple[Name, ...]

    @property
    def stem(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]

    @property
    def page(self) -> str:
        """Its place in the site, without ending."""
        if self.name.startswith(f"{METHODS}."):
            return "api/" + self.name.removeprefix("lossbook.").replace(".", "/")
        return "api/lab"

    @classmethod
    def read(cls, name: str, file: Path, package: str, shown: Iterable[str] | None = None) -> "Module":
        """A module that `package` re-exports: all its public names, or only those in `shown`.

        Raises:
            PressError: if its public names are no list of names that it defines.
        """
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        defined = {key: node for node in tree.body for key in _defines(node)}
        names = []
        for each in _exported(tree, file):
            if each not in defined:
                raise PressError(f"{file}: {each} is in __all__ but not defined here")
            above = package if shown is None or each in shown else name
            home = f"{name}.{each}"
            names.append(Name(each, *_described(defined[each]), f"{above}.{each}", home))
        return cls(name, file, _summary(ast.get_docstring(tree)), tuple(names))


@dataclass(frozen=True)
class Library:
    """The public part of the library: `methods` by part, then what parts share, then `lab`."""

    parts: dict[str, tuple[Module, ...]]
    shared: tuple[Module, ...]
    lab: tuple[Module, ...]

    @classmethod
    def of(cls, project: Project) -> "Library":
        """What is in the project's source tree; nothing, if it has none."""
        source = project.root / SOURCE
        folders = {path.parent.name: path.parent for path in sorted((source / "methods").glob("[!_]*/__init__.py"))}
        order = [part for part in project.parts if part in folders]
        parts = {
            part: tuple(_modules(folders[part], f"{METHODS}.{part}"))
            for part in [*order, *(part for part in folders if part not in order)]
        }
        shared = (
            Module.read(f"{METHODS}.{file.stem}", file, f"{METHODS}.{file.stem}")
            for file in sorted((source / "methods").glob("[!_]*.py"))
        )
        init = source / "lab" / "__init__.py"
        shown = _exported(ast.parse(init.read_text(encoding="utf-8")), init) if init.is_file() else []
        # What the lab exports may be defined a folder below.
        below = (
            Module.read(f"{LAB}.{file.parent.name}.{file.stem}", file, LAB, shown)
            for file in sorted((source / "lab").glob("*/[!_]*.py"))
        )
        lab = [module for module in _modules(source / "lab", LAB, shown) if module.names]
        lab += [module for module in below if {name.name for name in module.names} & {*shown}]
        return cls(parts, tuple(shared), tuple(lab))

    def __iter__(self) -> Iterator[Module]:
        yield from (module for modules in self.parts.values() for module in modules)
        yield from self.shared
        yield from self.lab


def _modules(folder: Path, package: str, shown: Iterable[str] | None = None) -> Iterator[Module]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        file = path / "__init__.py" if path.is_dir() else path
        if file.suffix == ".py" and file.is_file() and not path.name.startswith("_"):
            yield Module.read(f"{package}.{path.stem}", file, package, shown)


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _exported(tree: ast.Module, file: Path) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and _defines(node) == ["__all__"]:
            try:
                return [str(name) for name in ast.literal_eval(node.value)]
            except (ValueError, TypeError) as error:
                raise PressError(f"{file}: expected __all__ to be a list of names, got {ast.unparse(node)}") from error
    return []


def _described(node: ast.stmt) -> tuple[str, str]:
    """Kind and summary of a definition."""
    if isinstance(node, ast.FunctionDef):
        return "func", _summary(ast.get_docstring(node))
    if isinstance(node, ast.ClassDef):
        bases = [ast.unparse(base) for base in node.bases]
        error = any(base.endswith(("Error", "Exception")) for base in bases)
        return "exc" if error else "class", _summary(ast.get_docstring(node))
    return "data", ""


def _summary(docstring: str | None) -> str:
    """The first paragraph of a docstring, in one line."""
    return _line((docstring or "").split("\n\n")[0])


def _line(text: str) -> str:
    return " ".join(text.split())


def public(project: Project) -> frozenset[str]:
    """The dotted names that the reference describes, by import path and by the module that defines them."""
    return frozenset(
        place for module in Library.of(project) for name in module.names for place in (name.path, name.home)
    )


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
    shared = [{"file": each.page, "title": each.stem} for each in library.shared]
    lab = [{"file": "api/lab"}] if library.lab else []
    return {"file": "api/index", "sections": [*parts, *shared, *lab, {"file": "api/cli"}]}


def write(project: Project, pages: Sequence[Page], folder: Path) -> None:
    """Write the reference below `folder`/api.

    Raises:
        PressError: if a module's public names cannot be told from its file.
    """
    library = Library.of(project)
    made = {"api/index": _index(project, library), "api/cli": _commands()}
    for part, modules in library.parts.items():
        made[f"api/methods/{part}"] = _part(project, part, modules)
        made |= {module.page: _method(project, part, module, pages) for module in modules}
    made |= {module.page: _shared(project, module, pages) for module in library.shared}
    if library.lab:
        made["api/lab"] = _lab(project, library.lab)
    for place, text in made.items():
        path = folder / f"{place}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


def _index(project: Project, library: Library) -> str:
    blocks = ["# Library reference"]
    if library.parts:
        blocks += [
            "Every method of this book is an ordinary PyTorch function or module. Each part exports its names:",
            fence(f"from {METHODS}.{_example(library)}", "python"),
            "Tensors come first, hyperparameters are keywords with the paper's defaults. Annotations give shapes: "
            '`Float[Tensor, "n d"]` is a floating-point tensor with two dimensions, and a letter that occurs '
            'twice in a signature is the same number; `"*n d"` has any number of dimensions before the last, and `""` '
            "has none.",
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
        rows = [(f"[{plain(each.stem)}](methods/{each.stem}.md)", _links([each])) for each in library.shared]
        blocks += ["Parts share:", _table("Module", "Names", rows)]
    if library.lab:
        blocks += [
            "## Bench",
            "What every experiment uses, from [`lossbook.lab`](lab.md):",
            _table(
                "Module", "Names", [(f"{{py:mod}}`{each.stem} <{each.name}>`", _links([each])) for each in library.lab]
            ),
        ]
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


def _shared(project: Project, module: Module, pages: Sequence[Page]) -> str:
    """What several parts share: a module of its own, in which its names are."""
    return "\n\n".join(
        [
            f"# {plain(module.stem)}",
            _version([module.file]),
            _module_directive(module.name),
            *_pages("Used in", _users(module, pages)),
            fence(f"from {METHODS} import {module.stem}", "python"),
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


def _lab(project: Project, modules: Sequence[Module]) -> str:
    files = [project.root / SOURCE / "lab" / "__init__.py", *(module.file for module in modules)]
    blocks = ["# Bench", _version(files), _module_directive(LAB), fence("from lossbook import lab", "python")]
    for module in modules:
        blocks += [f"## {plain(module.stem)}", _module_directive(module.name), _entries(LAB, module.names)]
    return "\n\n".join(blocks)


def _commands() -> str:
    """Every command of the command line, as it describes itself."""
    import typer.main

    from lossbook.press.cli import main
    from lossbook.press.commands_more import app

    program: Any = typer.main.get_command(app)
    above = program.context_class(program, info_name="lossbook", **program.context_settings)
    blocks = [
        "# Command line",
        plain(program.help),
        plain(_line((main.__doc__ or "").split("\n\n")[1])),
        "These options stand before the command:",
        *_command(program, above, "COMMAND [ARGUMENTS]..."),
    ]
    for name, command in program.commands.items():
        if not command.hidden:
            context = command.context_class(command, info_name=name, parent=above, **command.context_settings)
            blocks += [f"## {name}", plain(command.help), *_command(command, context)]
    return "\n\n".join(blocks)


def _command(command: Any, context: Any, rest: str = "") -> Iterator[str]:
    """Usage, arguments and options of a command."""
    shown = [each for each in command.get_params(context) if not getattr(each, "hidden", False)]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option" and "--help" not in each.opts]
    places = [each.metavar or each.name.upper() for each in arguments] + ([rest] if rest else [])
    yield fence(" ".join([context.command_path, *(["[OPTIONS]"] if options else []), *places]), "text")
    yield f":::{{program}} {context.command_path}\n:::"
    for each in [*arguments, *options]:
        term, text = each.get_help_record(context)
        # The types of typer, "<int range>", as places to fill in.
        term = re.sub(r"<(\w+)[^>]*>", lambda match: match[1].upper(), term)
        if each in arguments:
            term, text = each.metavar or each.name.upper(), each.help
        yield f":::{{option}} {term}\n{plain(text)}\n:::"
