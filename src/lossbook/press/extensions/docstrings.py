r"""Sphinx extension: the library's docstrings, which are Markdown with formulas, become what autodoc reads.

A docstring is written for those who read the source, in a terminal as on a page of the book: `code`, $formula$ and, on
lines of its own, $$formula$$. Autodoc and napoleon want reStructuredText. Signatures keep their shapes,
`Float[Tensor, "n d"]`, without the names of modules.
"""

import inspect
import re
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.domains.python import PythonDomain

# A formula on lines of its own, or an example up to the next empty line.
_BLOCK = re.compile(r"^( *)\$\$(.+?)\$\$ *$|^ *>>> [^\n]*(?:\n *\S[^\n]*)*", re.MULTILINE | re.DOTALL)
# What is reStructuredText already, code, a dollar, a formula in a line.
_PIECES = re.compile(r"(``.+?``|:[\w:]+:`[^`]+`)|(`[^`]+`)|(\\\$)|\$([^$]+?)\$", re.DOTALL)
_ARXIV = re.compile(r"\barXiv:(\d{4}\.\d{4,5})\b")
# Among what Sphinx remembers while it reads a page: by the name under which a thing is described, where it is defined.
HOMES = "lossbook_homes"
# The arguments of a signature that has a line for each.
_LINES = re.compile(r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>")
# In which version something came, changed or will go; on a line of its own, of an argument or of the whole.
_VERSION = re.compile(r"^( *)(Added|Changed|Deprecated) in version (\d[\w.]*?)(?:: (.+?))?\.?$", re.MULTILINE)
# What annotations name without its module, because it is imported by name.
_NAMES = {
    "Tensor": "torch.Tensor",
    "Module": "torch.nn.Module",
    "ndarray": "numpy.ndarray",
    "DataFrame": "pandas.DataFrame",
}


def restructured(text: str) -> str:
    """A docstring's Markdown as reStructuredText; examples, at prompts, stay as they are.

    Raises:
        ValueError: if a formula between double dollars does not stand on lines of its own.
    """
    # Napoleon has no section for sources; a field stands beside arguments and errors.
    text = re.sub(r"^Source:$", ":Source:", text, flags=re.MULTILINE)
    text = _VERSION.sub(_version, text)
    pieces, place = [], 0
    for match in _BLOCK.finditer(text):
        pieces += [_inline(text[place : match.start()]), _block(match)]
        place = match.end()
    return "".join([*pieces, _inline(text[place:])])


def _block(match: re.Match[str]) -> str:
    indent, formula = match.groups()
    if formula is None:
        return match[0]
    lines = "\n".join(f"{indent}   {line.strip()}" for line in formula.strip().splitlines())
    return f"\n{indent}.. math::\n\n{lines}\n\n"


def _version(match: re.Match[str]) -> str:
    indent, verb, number, what = match.groups()
    # Sphinx ends a line without a remark with a full stop of its own.
    remark = f"\n{indent}   {what[:1].upper()}{what[1:]}." if what else ""
    name = "deprecated" if verb == "Deprecated" else f"version{verb.lower()}"
    return f"\n{indent}.. {name}:: {number}{remark}\n"


def _inline(text: str) -> str:
    if "$$" in text:
        line = next(line for line in text.splitlines() if "$$" in line)
        raise ValueError(f"expected a formula between $$ on lines of its own, got {line.strip()!r}")
    return _ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", _PIECES.sub(_piece, text))


def _piece(match: re.Match[str]) -> str:
    literal, code, dollar, formula = match.groups()
    if literal or dollar:
        return literal or "$"
    made = f"``{_line(code.strip('`'))}``" if code else f":math:`{_line(formula)}`"
    # Both must be set off from letters.
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    return ("\\ " if before.isalnum() else "") + made + ("\\ " if after.isalnum() else "")


def _line(text: str) -> str:
    return " ".join(text.split())


def short(annotation: str) -> str:
    """A signature whose types link to their documentation and show no module."""
    annotation = re.sub(r"~?\bjaxtyping\.(\w+)\[", r"~jaxtyping.\1[", annotation)
    for name, whole in _NAMES.items():
        annotation = re.sub(rf"(?<![\w.]){re.escape(name)}\b", f"~{whole}", annotation)
    return annotation


def _docstring(app: "Sphinx", what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what in ("data", "attribute") and "\n".join(lines).strip() == (inspect.getdoc(type(obj)) or "").strip():
        # A constant without a comment of its own would be described by its type.
        lines[:] = []
    try:
        lines[:] = restructured("\n".join(lines)).splitlines()
    except ValueError as error:
        _complain(name, str(error))


def _fields(app: "Sphinx", what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # Sphinx would take the first of two attributes for a type; napoleon parts arguments.
    for line in lines:
        if match := re.match(r":ivar ([^:]+, [^:]+):", line):
            _complain(name, f"expected a line for each attribute, got {match[1]}")


def _complain(name: str, text: str) -> None:
    from sphinx.util import logging

    logging.getLogger(__name__).warning("docstring of %s: %s", name, text)


def _signature(
    app: "Sphinx", what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    home = f"{getattr(obj, '__module__', '')}.{getattr(obj, '__qualname__', '')}"
    if what == "function" and home != name:
        # As autodoc does for classes: links to where a function is defined lead here as well.
        cast("PythonDomain", app.env.get_domain("py")).note_object(home, what, name, aliased=True)
    app.env.temp_data.setdefault(HOMES, {})[name] = home
    return signature and short(signature), returned and short(returned)


def _anchors(app: "Sphinx", domain: str, objtype: str, content: Any) -> None:
    """Where a thing is defined is an anchor as well: pages of source code lead back by that name."""
    from sphinx import addnodes

    homes = app.env.temp_data.get(HOMES, {})
    for signature in content.parent.findall(addnodes.desc_signature):
        name = signature.get("fullname") or ""
        home = homes.get(f"{signature.get('module')}.{name}", "")
        # What is inherited is at home elsewhere.
        if name and home.endswith(f".{name}") and home not in signature["ids"]:
            signature["ids"].append(home)


def _skip(app: "Sphinx", what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    # A named tuple's fields are in its signature; Python's own text on them says "Alias for field number 0".
    return True if type(obj).__name__ == "_tuplegetter" else None


def _quotes(app: "Sphinx", domain: str, objtype: str, content: Any) -> None:
    """Shapes and defaults in double quotes, as in the source."""
    from docutils import nodes
    from sphinx import addnodes

    if domain != "py":
        return
    for literal in list(content.parent.findall(nodes.inline)):
        text = literal.astext()
        if not isinstance(literal, addnodes.desc_sig_literal_string) and "default_value" not in literal["classes"]:
            continue
        if len(text) > 1 and text[0] == text[-1] == "'" and '"' not in text:
            literal.children = []
            literal += nodes.Text(f'"{text[1:-1]}"')


def _arguments(app: "Sphinx", page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    # Sphinx writes these lines as a list of definitions without terms, on which screen readers stumble.
    if "sig-param" in context.get("body", ""):
        context["body"] = _LINES.sub(_divided, context["body"])


def _divided(match: re.Match[str]) -> str:
    lines = match[1].replace("<dd>", "<div>").replace("</dd>", "</div>")
    return f'<div class="sig-lines">\n{lines}</div>'


def setup(app: "Sphinx") -> dict[str, Any]:
    """Connect to autodoc, before napoleon and after it."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-docstring", _fields, priority=600)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    app.connect("object-description-transform", _quotes)
    app.connect("object-description-transform", _anchors)
    app.connect("html-page-context", _arguments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
