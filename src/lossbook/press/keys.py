"""The key of a run: the content that decides its result. Text and comments between cells are not in it."""

import ast
import functools
import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from lossbook.press.machine import device_of
from lossbook.press.parameters import Settings
from lossbook.press.project import Project

PACKAGE = "lossbook"
# Part of every key: a change of how runs are stored makes all of them anew.
FORMAT = "1"


@dataclass(frozen=True)
class Key:
    """Digests of all that decides a result, by what they are of."""

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """One digest of all."""
        return _hash(json.dumps([FORMAT, sorted(self.parts.items())]))[:16]

    def difference(self, other: Mapping[str, str]) -> str:
        """What is different from the parts of another key, in words."""
        changed = [name for name in sorted({*self.parts, *other}) if self.parts.get(name) != other.get(name)]
        names = [name if self.parts.get(name) else f"no more {name}" for name in changed]
        return f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''} changed"


class Keys:
    """Makes the keys of a project; what many runs share is looked at once."""

    def __init__(self, project: Project):
        self._project = project

    def of(self, notebook: NotebookNode, settings: Settings) -> Key:
        """The key of one run."""
        code = tuple(cell.source for cell in notebook.cells if cell.cell_type == "code")
        modules, words = self._read(code)
        words = words | {value for value in settings.values.values() if isinstance(value, str)}
        device = device_of(settings)
        parts = {
            "code": _hash(json.dumps(code)),
            "parameters": _hash(json.dumps(settings.values, sort_keys=True)),
            "versions": self._versions,
            "device": f"{device['kind']} {device['name']}" if device["kind"] != "cpu" else "cpu",
        }
        for module in sorted(modules):
            parts[f"module {module}"] = self._source(module)
        for file in _shipped():
            if file.stem in words:
                parts[f"data {file.stem}"] = _file_hash(file, file.stat().st_mtime_ns)
        return Key(parts)

    @functools.cache  # noqa: B019 - as long-lived as the command
    def _read(self, code: tuple[str, ...]) -> tuple[set[str], set[str]]:
        """The modules that code reaches, and the texts in it: the same for all runs of a notebook."""
        words = {node.value for tree in _trees(code) for node in ast.walk(tree) if _is_text(node)}
        return self.reached(code), words

    def reached(self, code: Iterable[str]) -> set[str]:
        """All modules of the package that some code reaches by import."""
        modules = set(self._graph.modules)
        named: set[str] = set()
        for tree in _trees(code):
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    named |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found = named & modules
        # A package that gathers what its modules export, or the whole by its bare name, reaches all of them.
        exact = {name for name in found if not any(other.startswith(f"{name}.") for other in found)}
        gathering = {name for name in exact if name == PACKAGE or name.startswith(f"{PACKAGE}.methods")}
        found |= {module for module in modules for name in gathering if module.startswith(f"{name}.")}
        # Importing a module runs the packages around it. (What these gather without an import statement, a part all its
        # papers, decides nothing about the module's own result.)
        found |= {".".join(name.split(".")[:depth]) for name in found for depth in range(1, name.count(".") + 1)}
        for module in list(found):
            found |= self._graph.find_upstream_modules(module)
        return found

    @functools.cached_property
    def _graph(self) -> Any:
        import grimp

        return grimp.build_graph(PACKAGE, cache_dir=None)

    @functools.cache  # noqa: B019 - as long-lived as the command
    def _source(self, module: str) -> str:
        path = _package().joinpath(*module.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return _hash(path.read_bytes())

    @functools.cached_property
    def _versions(self) -> str:
        constraints = self._project.root / "constraints.txt"
        locked = constraints.read_text(encoding="utf-8") if constraints.is_file() else ""
        return _hash(json.dumps([locked, platform.python_version(), _version("torch"), _version("numpy")]))


def _trees(code: Iterable[str]) -> list[ast.AST]:
    trees = []
    for source in code:
        # Lines for IPython (magics) are not Python; the cell that holds one is in the key as text all the same.
        plain = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
        try:
            trees.append(ast.parse(plain))
        except SyntaxError:
            continue
    return trees


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@functools.cache
def _package() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.submodule_search_locations[0])


@functools.cache
def _shipped() -> list[Path]:
    return sorted((_package() / "lab" / "data").glob("*.npz"))


@functools.cache
def _file_hash(path: Path, changed: int) -> str:
    return _hash(path.read_bytes())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _hash(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
