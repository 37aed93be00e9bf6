"""What a run can be given: typed parameters, profiles, and values from the command line."""

import ast
import io
import json
import re
import tokenize
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from lossbook.press.errors import Refused, unknown
from lossbook.press.project import DEFAULT_PROFILE, Paper

if typing.TYPE_CHECKING:
    from nbformat import NotebookNode

# What an annotation may be made of.
TYPES = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list": list,
    "Literal": typing.Literal,
    "typing": typing,
}


class Yaml(yaml.SafeLoader):
    """YAML with the numbers and booleans of version 1.2: `1e-3` is a number and `on` is a word."""

    yaml_implicit_resolvers: typing.ClassVar = {}


for tag, pattern, first in [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
]:
    Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first))
# YAML 1.1 would read 012 as an octal number.
Yaml.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
Yaml.add_constructor(
    "tag:yaml.org,2002:float", lambda loader, node: float(re.sub(r"\.(?=[in])", "", node.value.lower()))
)


@dataclass(frozen=True)
class Parameter:
    """One line of the cell tagged `parameters`."""

    name: str
    annotation: str
    default: Any
    comment: str

    def check(self, value: Any) -> Any:
        """The value in the parameter's type.

        Raises:
            Refused: if it does not fit.
        """
        # JSON has no other numbers, and the notebook records its parameters as JSON.
        config = ConfigDict(strict=True, allow_inf_nan=False)
        kind = eval(self.annotation, {"__builtins__": {}}, TYPES)
        try:
            return TypeAdapter(kind, config=config).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"[{step}]" for step in first["loc"] if isinstance(step, int))
            example = f", such as {self.default!r}"
            raise Refused(
                f"{self.name}{where}: expected {self.annotation}{example if 'list' in self.annotation else ''}, "
                f"got {value!r} ({first['msg'][0].lower()}{first['msg'][1:]})"
            ) from None

    def parse(self, text: str) -> Any:
        """The value written as `text` on the command line.

        Raises:
            Refused: if it cannot be read or does not fit.
        """
        try:
            value = yaml.load(text, Yaml)
        except (yaml.YAMLError, ValueError, RecursionError):
            if self.annotation != "str":
                raise Refused(f"{self.name}: cannot read {text!r}, expected {self.annotation}") from None
            value = text
        if self.annotation == "str" and not isinstance(value, str):
            value = text
        return self.check(value)


@dataclass(frozen=True)
class Settings:
    """What one run is made with: the values of a profile and what was given beside it."""

    profile: str
    values: dict[str, Any]
    # Those that differ from the cell's defaults, for papermill to inject.
    injected: dict[str, Any] = field(default_factory=dict)
    # Those given by name, beside the profile.
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name for files that people can read; different settings have different names."""
        # In one order, however they were given.
        words = [f"{key}={_word(value)}" for key, value in sorted(self.given.items())]
        plain = "-".join([self.profile, *words])
        name = re.sub(r"[^\w.=+-]+", "_", plain, flags=re.ASCII)[:100]
        if name == plain:
            return name
        import hashlib

        return f"{name}-{hashlib.sha256(json.dumps(self.given, sort_keys=True).encode()).hexdigest()[:8]}"

    @property
    def options(self) -> list[str]:
        """The same as command line options."""
        options = [] if self.profile == DEFAULT_PROFILE else ["--profile", self.profile]
        for key, value in self.given.items():
            options += ["-p", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        return options


def _word(value: Any) -> str:
    return "+".join(map(_word, value)) if isinstance(value, list) else str(value)


class Parameters(Mapping[str, Parameter]):
    """The parameters and profiles of one notebook."""

    def __init__(self, paper: Paper, notebook: "NotebookNode"):
        self.paper = paper
        cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        if len(cells) > 1:
            raise Refused(f"{paper.source}: expected one cell tagged parameters, found {len(cells)}")
        self._parameters = {each.name: each for each in _read(paper, cells[0].source)} if cells else {}
        self.profiles: dict[str, dict[str, Any]] = {DEFAULT_PROFILE: {}, **_profiles(paper)}

    def __getitem__(self, name: str) -> Parameter:
        return self._parameters[name]

    def __iter__(self):
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def settings(self, profile: str = DEFAULT_PROFILE, given: Sequence[str] = ()) -> Settings:
        """The settings for a profile and values written `name=value`.

        Raises:
            Refused: for an unknown profile or name, a value that does not fit, or a name given twice.
        """
        if profile not in self.profiles:
            raise Refused(f"{self.paper.slug}: {unknown('profile', profile, self.profiles)}")
        chosen = {}
        for name, value in self.profiles[profile].items():
            try:
                chosen[name] = self._get(name).check(value)
            except Refused as error:
                raise Refused(f"{self.paper.source}, profile {profile}: {error}") from None
        named = {}
        for item in given:
            name, equals, text = item.partition("=")
            name = name.strip()
            if not equals:
                raise Refused(f"-p {item}: expected name=value")
            if name in named:
                raise Refused(f"-p {item}: {name} was given before")
            named[name] = self._get(name).parse(text)
        injected = {**chosen, **named}
        values = {name: injected.get(name, parameter.default) for name, parameter in self.items()}
        return Settings(profile, values, injected, named)

    def _get(self, name: str) -> Parameter:
        if name not in self:
            raise Refused(f"{self.paper.slug}: {unknown('parameter', name, self)}")
        return self[name]


def _read(paper: Paper, source: str) -> list[Parameter]:
    """Parameters of a cell. (Papermill's own inspection knows neither Literal nor two `=` in a line.)"""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise Refused(f"{paper.source}: cannot read the parameters cell, line {error.lineno}: {error.msg}") from None
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }

    def comment(statement: ast.stmt) -> str:
        # A formatter may have wrapped the line, and left the comment within.
        lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        return " ".join(comments[line] for line in lines if line in comments)

    parameters = []
    for statement in statements:
        text = ast.get_source_segment(source, statement)
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
                try:
                    default = ast.literal_eval(value)
                    parameter = Parameter(name, ast.unparse(annotation).replace("'", '"'), default, comment(statement))
                    parameter.check(default)
                except Refused as error:
                    raise Refused(f"{paper.source}, parameters cell: {error}") from None
                except Exception:
                    raise Refused(
                        f"{paper.source}, parameters cell: cannot use {text!r}: expected a literal value of a type "
                        f"made of {', '.join(name for name in TYPES if name != 'typing')}"
                    ) from None
                parameters.append(parameter)
            case _:
                raise Refused(f"{paper.source}, parameters cell: expected `name: type = value`, got {text!r}")
    return parameters


def _profiles(paper: Paper) -> dict[str, dict[str, Any]]:
    """The profiles in the script's front matter."""
    lines = paper.script.read_text(encoding="utf-8").splitlines()
    header: list[str] = []
    if lines and lines[0].strip() == "# ---":
        for line in lines[1:]:
            if line.strip() == "# ---":
                break
            header.append(line.removeprefix("#").removeprefix(" "))
    try:
        front = yaml.load("\n".join(header), Yaml) or {}
        profiles = ((front.get("jupyter") or {}).get("lossbook") or {}).get("profiles") or {}
        if not all(isinstance(values or {}, dict) for values in profiles.values()):
            raise TypeError
    except (yaml.YAMLError, AttributeError, TypeError):
        raise Refused(f"{paper.source}: cannot read the profiles in the front matter") from None
    if DEFAULT_PROFILE in profiles:
        raise Refused(f"{paper.source}: the profile {DEFAULT_PROFILE} is the parameters cell itself, not front matter")
    return {str(name): values or {} for name, values in profiles.items()}
