"""The public part of the library, read from its files: parts, modules, names and what they are.

Nothing of the library is imported here.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lossbook.press.errors import PressError
from lossbook.press.project import Project

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
        """Its place in the site, without ending, if it has a page of its own."""
        return "api/" + self.name.removeprefix("lossbook.").replace(".", "/")

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
    """The public part of the library.

    Attributes:
        parts: of `methods`, the modules of each part.
        shared: what several parts need, modules beside them.
        lab: modules of the bench from which it exports names.
        topics: modules of the bench that a page imports by name.
    """

    parts: dict[str, tuple[Module, ...]]
    shared: tuple[Module, ...]
    lab: tuple[Module, ...]
    topics: tuple[Module, ...]

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
        bench = [module for module in _modules(source / "lab", LAB, shown) if module.names]
        flat = [module for module in bench if {name.name for name in module.names} & {*shown}]
        return cls(parts, tuple(shared), tuple(flat), tuple(module for module in bench if module not in flat))

    def __iter__(self) -> Iterator[Module]:
        yield from (module for modules in self.parts.values() for module in modules)
        yield from self.shared
        yield from self.lab
        yield from self.topics


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
