"""What parts re-export, written into their `__init__`: names that static tools see, and that nobody types.

`make format` does it; a test says so where it was not done.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from lossbook.press.errors import PressError
from lossbook.press.pages.library import METHODS, SOURCE, Library, Module
from lossbook.press.project import Project

_REMARK = "# From here on written by `make format`: the `__all__` of the modules beside this file."


def written_out(project: Project) -> dict[Path, str]:
    """The `__init__` of `lossbook.methods` and of each part as it should be.

    Raises:
        PressError: if a part cannot export a name: two modules have it, or it is that of a module.
    """
    library, folder = Library.of(project), project.root / SOURCE / "methods"
    found = {folder / part / "__init__.py": _part(part, library.parts[part], folder) for part in library.parts}
    names = sorted([*library.parts, *(module.stem for module in library.shared)])
    return {folder / "__init__.py": _methods((folder / "__init__.py").read_text(encoding="utf-8"), names), **found}


def _part(part: str, modules: Iterable[Module], folder: Path) -> str:
    package, owners = f"{METHODS}.{part}", {}
    modules = [module for module in modules if module.names]
    for module in modules:
        for name in module.names:
            if other := owners.get(name.name):
                raise PressError(f"{package}: {name.name} is public in both {other} and {module.stem}")
            owners[name.name] = module.stem
    if hidden := sorted({*owners} & {module.stem for module in modules}):
        raise PressError(f"{package}: {hidden[0]} is a module, and a public name in {owners[hidden[0]]}: rename it")
    # What stands above, the docstring, is written by hand.
    text = (folder / part / "__init__.py").read_text(encoding="utf-8")
    above = re.split(r"^(?:#|from|import|__all__)", text, maxsplit=1, flags=re.MULTILINE)[0].rstrip()
    imports = (
        f"from {package}.{module.stem} import (\n{_lines(4, sorted(name.name for name in module.names))})\n"
        for module in modules
    )
    return f"{above}\n\n{_REMARK}\n{''.join(imports)}\n__all__ = [\n{_lines(4, sorted(owners), quoted=True)}]\n"


def _methods(text: str, names: list[str]) -> str:
    for indent, above, each in (8, f"    from {METHODS} import (", r"\w+"), (4, "__all__ = [", r'"\w+"'):
        listed = _lines(indent, names, quoted=indent == 4)
        text = re.sub(rf"(?<=^{re.escape(above)}\n)( {{{indent}}}{each},\n)*", listed, text, flags=re.MULTILINE)
    return text


def _lines(indent: int, names: Iterable[str], quoted: bool = False) -> str:
    """One a line, so that additions side by side seldom meet."""
    return "".join(" " * indent + (f'"{name}"' if quoted else name) + ",\n" for name in names)


if __name__ == "__main__":
    for path, text in written_out(Project.find()).items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
