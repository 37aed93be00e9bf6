import json
from pathlib import Path

import pytest

from lossbook.press.errors import Refused
from lossbook.press.project import Paper
from lossbook.press.runs.notebooks import read_script
from lossbook.press.runs.parameters import Parameters


def parameters(tiny, header: str = "") -> Parameters:
    script = tiny.notebook("paper")
    if header:
        script.write_text(header)
    paper = Paper("part_one", "paper", script, "Paper")
    return Parameters(paper, read_script(paper))


def test_types_defaults_and_comments(tiny):
    found = parameters(tiny)
    assert list(found) == ["seeds", "rate", "rates", "kind", "full", "device"]
    assert (found["seeds"].annotation, found["seeds"].default, found["seeds"].comment) == ("int", 5, "independent runs")
    assert found["kind"].annotation == 'Literal["plain", "fancy"]'
    assert found["rates"].default == [0.1, 0.2]


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ("seeds=3", "seeds", 3),
        ("seeds=012", "seeds", 12),
        ("rate=2", "rate", 2.0),
        ("rate=1e-3", "rate", 0.001),
        ("rate=.5", "rate", 0.5),
        ("rates=[1e-2, 1]", "rates", [0.01, 1.0]),
        ("rates=[]", "rates", []),
        ("kind=fancy", "kind", "fancy"),
        ("full=true", "full", True),
        ("device=cuda:0", "device", "cuda:0"),
        ("device=0", "device", "0"),
        ("device=on", "device", "on"),
        ("device='a b'", "device", "a b"),
        ("device=a=b", "device", "a=b"),
        ("device={", "device", "{"),
        ("device=", "device", ""),
    ],
)
def test_values_are_read_as_their_type(tiny, given, name, value):
    settings = parameters(tiny).settings(given=[given])
    assert settings.injected == {name: value}
    assert type(settings.values[name]) is type(value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("seeds=3.5", ["seeds", "int", "3.5"]),
        ("seeds=true", ["int", "True"]),
        ("seeds=many", ["int", "many"]),
        ("seeds=", ["int"]),
        ("seeds=[1]", ["int", "[1]"]),
        ("rate=fast", ["float", "fast"]),
        ("rate=.nan", ["float", "finite"]),
        ("rate=.inf", ["float", "finite"]),
        ("rates=0.1", ["list[float]", "[0.1, 0.2]"]),
        ("rates=[1, x]", ["rates[1]", "list[float]"]),
        ("rates=[1", ["rates", "cannot read"]),
        ("full=yes", ["bool", "yes"]),
        ("full=1", ["bool", "1"]),
        ("kind=fancier", ["plain", "fancy", "fancier"]),
        ("sedes=3", ["sedes", "'seeds'"]),
        ("seeds", ["name=value"]),
    ],
)
def test_refusals_name_what_is_valid(tiny, given, words):
    with pytest.raises(Refused) as error:
        parameters(tiny).settings(given=[given])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_name_given_twice_is_refused(tiny):
    with pytest.raises(Refused, match="seeds was given before"):
        parameters(tiny).settings(given=["seeds=1", "seeds=2"])


def test_profiles_override_defaults_and_names_override_profiles(tiny):
    settings = parameters(tiny).settings("smoke", ["seeds=9"])
    assert (settings.values["seeds"], settings.values["rate"], settings.values["full"]) == (9, 0.001, False)
    assert settings.injected == {"seeds": 9, "rate": 0.001}
    with pytest.raises(Refused, match="did you mean 'smoke'"):
        parameters(tiny).settings("smok")


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ("{smoke: {seeds: x}}", "profile smoke: seeds: expected int"),
        ("{smoke: {sed: 1}}", "did you mean 'seeds'"),
        ("{quick: {seeds: 1}}", "quick"),
        ("[smoke]", "front matter"),
        ("{smoke: 3}", "front matter"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_script(tiny, profiles, words):
    text = (
        tiny.notebook("paper")
        .read_text()
        .replace("profiles:\n#       smoke: {seeds: 2, rate: 1e-3}", f"profiles: {profiles}")
    )
    with pytest.raises(Refused, match="notebooks/part_one/paper.py") as error:
        parameters(tiny, text).settings("smoke")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "line", ["x: int = 'a'", "x: dict = {}", "x: int = len('a')", "x = 1", "import os", "x: int", "x: int = ("]
)
def test_a_parameters_cell_that_cannot_be_read_is_refused(tiny, line):
    text = tiny.notebook("paper").read_text().replace("seeds: int = 5  # independent runs", line)
    with pytest.raises(Refused, match="parameters cell"):
        parameters(tiny, text)


def test_two_parameters_cells_are_refused(tiny):
    text = tiny.notebook("paper").read_text()
    with pytest.raises(Refused, match="found 2"):
        parameters(tiny, text + '\n# %% tags=["parameters"]\nz: int = 1\n')


def test_names_of_runs_are_readable_and_differ(tiny):
    found = parameters(tiny)
    names = [
        found.settings(profile, given).name
        for profile in ("quick", "smoke")
        for given in (
            [],
            ["seeds=3"],
            ["rates=[1, 2]"],
            ["rates=[12]"],
            ["device=a b"],
            ["device=a/b"],
            ["device=" + 300 * "x"],
            ["device=" + 301 * "x"],
            ["device=ü"],
        )
    ]
    assert len(set(names)) == len(names)
    assert {"quick", "smoke", "quick-seeds=3", "smoke-seeds=3"} <= set(names)
    assert all("/" not in name and len(name.encode()) < 120 for name in names)


def test_options_reproduce_the_settings(tiny):
    found = parameters(tiny)
    settings = found.settings("smoke", ["rates=[1, 2.5]", "full=true", "device=a b", "kind=fancy"])
    words = settings.options
    again = found.settings(words[1], words[3::2])
    assert again == settings
    assert json.loads(json.dumps(settings.values)) == settings.values


def test_the_real_notebooks_can_be_read():
    root = Path(__file__).parents[2] / "notebooks"
    for script in sorted(root.glob("*/*.py")):
        paper = Paper(script.parent.name, script.stem, script, "")
        found = Parameters(paper, read_script(paper))
        assert {"device", "seeds"} <= set(found), script
        for profile in found.profiles:
            found.settings(profile)
