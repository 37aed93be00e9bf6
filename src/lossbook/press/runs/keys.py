"""The key of a run: the content that decides its result. Text and comments between cells are not in it."""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import json
import platform
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from lossbook.press.project import Project
from lossbook.press.runs.device import device_of
from lossbook.press.runs.parameters import Settings

PACKAGE = "lossbook"
# Part of every key: a change of how runs are stored makes all of them anew.
FORMAT = "2"
# Marks of cells that decide what happens, not how it is shown.
TAGS = {"parameters", "raises-exception", "skip-execution"}


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
        if not changed:
            return "the way in which runs are stored changed"
        names = [name if self.parts.get(name) else f"no more {name}" for name in changed]
        return f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''} changed"


class Keys:
    """Makes the keys of a project; what many runs share is looked at once."""

    def __init__(self, project: Project):
        self._project = project

    def of(self, notebook: NotebookNode, settings: Settings) -> Key:
        """The key of one run."""
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        modules, words = self._read(tuple(cell.source for cell in cells))
        for value in settings.values.values():
            words = words | {word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)}
        device = device_of(settings)
        code = [[cell.source, *sorted(TAGS & {*cell.metadata.get("tags", ())})] for cell in cells]
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
        words = {node.value for tree in _trees(code)[0] for node in ast.walk(tree) if _is_text(node)}
        return self.reached(code), words

    def reached(self, code: Iterable[str]) -> set[str]:
        """All modules of the package that some code reaches by import."""
        modules = set(self._graph.modules)
        trees, unclear = _trees(code)
        # Of what cannot be read, the worst is assumed.
        found = {PACKAGE} if any(PACKAGE in text for text in unclear) else set()
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    within = {f"{node.module}.{alias.name}" for alias in node.names}
                    # Modules by their names; any other name is one of the package's own.
                    found |= within if within <= modules else {node.module, *within}
                elif _is_text(node) and "." in node.value:
                    # As importlib takes it.
                    found.add(node.value)
        found, reached = found & modules, set()
        while found:
            # A package that gathers what its modules export, or the whole by its bare name, reaches all of them.
            gathering = {name for name in found if name == PACKAGE or name.startswith(f"{PACKAGE}.methods")}
            found |= {module for module in modules for name in gathering if module.startswith(f"{name}.")}
            reached |= found
            found = {other for name in found for other in self._graph.find_modules_directly_imported_by(name)} - reached
        # Importing a module runs the packages around it. (What these gather without an import statement, a part all its
        # papers, decides nothing about the module's own result; what they import by one does.)
        around = {".".join(name.split(".")[:depth]) for name in reached for depth in range(1, name.count(".") + 1)}
        for name in around - reached:
            reached |= {name, *self._graph.find_upstream_modules(name)}
        return reached

    @functools.cached_property
    def _graph(self) -> Any:
        import grimp

        with _undisturbed():
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


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals wait until this is left: an exception of their handlers is none that grimp, being Rust, survives."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: late.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in late[:1]:
            signal.raise_signal(number)


def _trees(code: Iterable[str]) -> tuple[list[ast.AST], list[str]]:
    """Cells as Python, and what is none."""
    trees, unclear = [], []
    for source in code:
        # Lines for IPython (magics) are not Python; the cell that holds one is in the key as text all the same.
        magic = [line for line in source.splitlines() if line.lstrip().startswith(("%", "!"))]
        plain = "\n".join("" if line in magic else line for line in source.splitlines())
        for text, rest in ((source, []), (plain, magic)):
            with contextlib.suppress(SyntaxError, ValueError):
                trees.append(ast.parse(text))
                unclear += rest
                break
        else:
            unclear.append(source)
    return trees, unclear


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
