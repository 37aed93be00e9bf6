"""The key of a run: the content that decides its result. Text and comments, of notebooks and of the library, do not."""

import functools
import hashlib
import importlib.util
import json
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from nbformat import NotebookNode

from lossbook.press.project import Project
from lossbook.press.runs.definitions import Library, Reached
from lossbook.press.runs.device import device_of
from lossbook.press.runs.parameters import Settings

PACKAGE = "lossbook"
# Part of every key: a change of how runs are stored makes all of them anew.
FORMAT = "3"
# Marks of cells that decide what happens, not how it is shown.
TAGS = {"parameters", "raises-exception", "skip-execution"}
# Definitions in a key. Of more, those of a module are put together.
MOST = 300
# Names in a sentence.
NAMED = 4


@dataclass(frozen=True)
class Key:
    """Digests of all that decides a result, by what they are of."""

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """One digest of all."""
        return _hash(json.dumps(sorted(self.parts.items())))[:16]

    def difference(self, other: Mapping[str, str]) -> str:
        """What is different from the parts of another, earlier key, in words."""
        if self.parts.get("format") != other.get("format") or self.parts == other:
            return "the way in which runs are stored changed"
        names = sorted(
            name for name in {*self.parts, *other} if self.parts.get(name) != other.get(name) and name != "names"
        )
        kinds = {
            "changed": [name for name in names if name in self.parts and name in other],
            "new": [name for name in names if name not in other],
            "gone": [name for name in names if name not in self.parts],
        }
        said = [f"{_listed(found)} {kind}" for kind, found in kinds.items() if found]
        return ", ".join(said) or "what the names mean that it imports changed"


class Keys:
    """Makes the keys of a project; what many runs share is looked at once."""

    def __init__(self, project: Project):
        self._project = project

    def of(self, notebook: NotebookNode, settings: Settings) -> Key:
        """The key of one run."""
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        found = self._reached(tuple(cell.source for cell in cells))
        words = set(found.words)
        for value in settings.values.values():
            words |= {word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)}
        device = device_of(settings)
        code = [[cell.source, *sorted(TAGS & {*cell.metadata.get("tags", ())})] for cell in cells]
        parts = {
            "format": FORMAT,
            "code": _hash(json.dumps(code)),
            "parameters": _hash(json.dumps(settings.values, sort_keys=True)),
            "device": f"{device['kind']} {device['name']}" if device["kind"] != "cpu" else "cpu",
            "version python": platform.python_version(),
            **{f"version {name}": number for name, number in _versions(found.libraries).items()},
            **_grouped(found),
        }
        for file in _shipped():
            if {file.stem, file.name} & words:
                parts[f"data {file.stem}"] = _file_hash(file, file.stat().st_mtime_ns)
        return Key(parts)

    @functools.cache  # noqa: B019 - as long-lived as the command
    def _reached(self, code: tuple[str, ...]) -> Reached:
        """What code reaches: the same for all runs of a notebook."""
        return self._library.reach(code)

    @functools.cached_property
    def _library(self) -> Library:
        return library()


def _listed(names: list[str]) -> str:
    short = [name.replace(f"{PACKAGE}.", "", 1) for name in names]
    return ", ".join(short[:NAMED]) + (f" and {len(short) - NAMED} more" if len(short) > NAMED else "")


def _grouped(found: Reached) -> dict[str, str]:
    """The digests of what is reached, or, if these are many, one for all that is reached of a module."""
    if len(found.digests) <= MOST:
        return found.digests
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, digest in sorted(found.digests.items()):
        module = name if name in found.modules or name.rpartition(".")[0] not in found.modules else ""
        groups.setdefault(module or name.rpartition(".")[0], []).append((name, digest))
    return {name: _hash(json.dumps(digests)) for name, digests in groups.items()}


def library() -> Library:
    """The library as it stands on disk now."""
    return Library(_package())


@functools.cache
def _package() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@functools.cache
def _shipped() -> list[Path]:
    return sorted((_package() / "lab" / "data").glob("*.npz"))


@functools.cache
def _file_hash(path: Path, changed: int) -> str:
    return _hash(path.read_bytes())


# Versions ---------------------------------------------------------------------------------------------


def _versions(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of what is imported and of all that it needs itself, by the names of the distributions."""
    found: dict[str, str] = {}
    pending = []
    for library in set(libraries) - sys.stdlib_module_names:
        # (What nobody installed may be installed before the next run.)
        pending += _distributions().get(library) or [library]
    while pending:
        name = pending.pop().lower().replace("_", "-").replace(".", "-")
        if name not in found:
            found[name], needed = _installed(name)
            pending += needed
    return found


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Which distributions bring a module."""
    return packages_distributions()


@functools.cache
def _installed(name: str) -> tuple[str, list[str]]:
    """The version of a distribution, and which others it needs here; of one that is not there, no version."""
    from packaging.requirements import Requirement

    try:
        found = distribution(name)
    except PackageNotFoundError:
        return "", []
    needed = map(Requirement, found.requires or ())
    return found.version, [each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]


def _hash(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
