"""A grid of runs of one notebook: which they are, and how long they may take."""

import hashlib
import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lossbook.press.errors import Refused, unknown
from lossbook.press.files import duration
from lossbook.press.project import Paper, Project
from lossbook.press.runs.parameters import Parameters, Settings

# A larger grid is a slip of the hand.
MOST = 100_000
# What a value is written with: quoted text, a bracket, a comma, a plain word (which may hold quotes), a space.
_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"\\]|\\.)*" | [\[{] | [\]}] | , | [^\s'"\[\]{},][^\[\]{},]* | .""",
    re.VERBOSE | re.DOTALL,
)
_RANGE = re.compile(r"\s*([-+]?\d+):([-+]?\d+)(?::([-+]?\d+))?\s*", re.ASCII)


@dataclass(frozen=True)
class Grid:
    """Every combination of the values of some parameters."""

    profile: str
    # The values of each parameter, as they were given.
    values: dict[str, list[Any]]
    # One a run; the last parameter varies fastest.
    settings: list[Settings]

    @property
    def varying(self) -> list[str]:
        """The parameters that have more than one value."""
        return [name for name, values in self.values.items() if any(value != values[0] for value in values)]

    @property
    def name(self) -> str:
        """A name for a folder that people can read; different grids have different names."""
        words = [f"{name}={_words(values)}" for name, values in self.values.items()]
        plain = "-".join([self.profile, *words])
        name = re.sub(r"[^\w.=+-]+", "_", plain, flags=re.ASCII)[:100]
        given = [settings.given for settings in self.settings]
        crossed = len(given) == math.prod(len(values) for values in self.values.values())
        if name == plain and crossed and all(len(values) <= 4 for values in self.values.values()):
            return name
        return f"{name}-{hashlib.sha256(json.dumps(given).encode()).hexdigest()[:8]}"


def grid(parameters: Parameters, profile: str, given: Sequence[str], zipped: Sequence[str] = ()) -> Grid:
    """The grid for values written `name=VALUES`.

    VALUES is one value, several separated by commas, or, for an integer, a half-open range `0:5` or `0:10:2`.

    Args:
        parameters: those of the notebook.
        profile: the values of all other parameters.
        given: one text a parameter.
        zipped: names separated by commas, whose values go together instead of being crossed.

    Raises:
        Refused: for whatever does not fit, naming parameter and value.
    """
    base = parameters.settings(profile)
    if not given:
        raise Refused("nothing to sweep over: lossbook sweep SLUG -p name=VALUE,VALUE")
    values: dict[str, list[Any]] = {}
    for item in given:
        name, equals, text = item.partition("=")
        name = name.strip()
        if not equals:
            raise Refused(f"-p {item}: expected name=VALUES")
        if name in values:
            raise Refused(f"-p {item}: {name} was given before")
        if name not in parameters:
            raise Refused(f"{parameters.paper.slug}: {unknown('parameter', name, parameters)}")
        values[name] = [parameters[name].parse(piece) for piece in _pieces(item, parameters[name].annotation, text)]
    groups = _groups(values, zipped)
    axes = [list(zip(*(values[name] for name in group), strict=True)) for group in groups]
    if (number := math.prod(map(len, axes))) > MOST:
        raise Refused(f"the grid has {number:,} runs; expected at most {MOST:,}")
    settings, seen = [], set()
    for combination in itertools.product(*axes):
        found = {
            name: value
            for group, chosen in zip(groups, combination, strict=True)
            for name, value in zip(group, chosen, strict=True)
        }
        own = {name: found[name] for name in values}
        if (text := json.dumps(own)) in seen:
            raise Refused(f"{', '.join(f'{name}={value!r}' for name, value in own.items())} is in the grid twice")
        seen.add(text)
        settings.append(Settings(profile, {**base.values, **own}, {**base.injected, **own}, own))
    return Grid(profile, values, settings)


def _pieces(item: str, annotation: str, text: str) -> list[str]:
    """The texts of single values."""
    pieces: list[str] = []
    parts = split(text)
    for piece in parts:
        if len(parts) > 1 and not piece.strip():
            raise Refused(f"-p {item}: there is nothing between two commas (write '' for an empty text)")
        found = _RANGE.fullmatch(piece) if annotation == "int" else None
        if not found:
            pieces.append(piece.strip())
            continue
        step = int(found[3] or 1)
        numbers = range(int(found[1]), int(found[2]), step) if step else ()
        if not numbers:
            raise Refused(f"-p {item}: the range {piece.strip()} is empty")
        if len(numbers) > MOST:
            raise Refused(
                f"-p {item}: the range {piece.strip()} has {len(numbers):,} values; expected at most {MOST:,}"
            )
        pieces += map(str, numbers)
    return pieces


def split(text: str) -> list[str]:
    """Parts of a text between commas that stand outside brackets, braces and quotes."""
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth = max(0, depth + (token in ("[", "{")) - (token in ("]", "}")))
        if token == "," and not depth:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def _groups(values: dict[str, list[Any]], zipped: Sequence[str]) -> list[list[str]]:
    """Parameters by what varies together, in the order given."""
    group_of: dict[str, list[str]] = {}
    for text in zipped:
        names = [name.strip() for name in text.split(",")]
        if len(names) < 2:
            raise Refused(f"--zip {text}: expected two or more names, separated by commas")
        for name in names:
            if name not in values:
                raise Refused(f"--zip {text}: {unknown('swept parameter', name, values)}")
            if name in group_of or names.count(name) > 1:
                raise Refused(f"--zip {text}: {name} is zipped already")
        lengths = {name: len(values[name]) for name in names}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise Refused(f"--zip {text}: expected as many values of each, but {counts}")
        group_of |= dict.fromkeys(names, names)
    groups: list[list[str]] = []
    for name in values:
        if (group := group_of.get(name, [name])) not in groups:
            groups.append(group)
    return groups


def _words(values: list[Any]) -> str:
    words = ["+".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]
    return "+".join(words) if len(words) <= 4 else f"{words[0]}..{words[-1]}"


def estimate(project: Project, paper: Paper, profile: str, runs: int, jobs: int) -> str:
    """How long some runs may take, in words, from how long this paper's earlier runs took."""
    if not runs:
        return "nothing is left to run"
    earlier = list(_durations(project, paper))
    alike = [seconds for name, seconds in earlier if name == profile]
    if not earlier:
        return "no estimate of time: there are no earlier runs of this paper"
    typical = statistics.median(alike or [seconds for _, seconds in earlier])
    number = len(alike or earlier)
    basis = f"the median of {number} earlier run{'s' if number > 1 else ''}"
    if not alike:
        basis += f", none with the profile {profile}"
    total = duration(typical * math.ceil(runs / jobs))
    return f"about {total}: {runs} run{'s' if runs > 1 else ''} of {duration(typical)} ({basis}), {jobs} at once"


def _durations(project: Project, paper: Paper) -> Iterable[tuple[str, float]]:
    """Profile and seconds of every finished run that is kept."""
    for path in [project.executed(paper), *(project.output / "runs" / paper.slug).glob("*.ipynb")]:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))["metadata"]["lossbook"]["run"]
            if run["status"] == "finished":
                yield str(run["profile"]), float(run["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # what is damaged teaches nothing
