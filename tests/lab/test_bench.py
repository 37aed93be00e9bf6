"""What `import lossbook.lab` loads, networks and plots."""

import base64
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lossbook import lab

# Rooms


def test_the_bench_loads_what_is_flat_and_no_topic():
    code = "import lossbook.lab, sys; print(*(name for name in sys.modules if name.startswith('lossbook.lab.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    homes = {getattr(lab, name).__module__ for name in lab.__all__}
    assert {name for name in loaded if not name.split(".")[-1].startswith("_")} == homes
    assert len(homes) < len([*iter_modules(lab.__path__)])


def test_the_bench_leaves_the_process_its_threads():
    """One thread a process is for the book's kernels (see test_runs and test_warm), which know what runs beside them."""
    code = """
import os, sys
before = dict(os.environ)
if sys.argv[1:]:
    import torch
    torch.set_num_threads(3)
from lossbook import lab
import torch
print(torch.get_num_threads(), dict(os.environ) == before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    own = [sys.executable, "-c", "import torch; print(torch.get_num_threads(), True)"]
    for command, expected in (
        ([sys.executable, "-c", code, "set"], "3 True\n"),
        ([sys.executable, "-c", code], subprocess.run(own, capture_output=True, text=True, env=environment).stdout),
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.stdout == expected, done.stderr


@pytest.mark.parametrize("name", [i.name for i in iter_modules(lab.__path__) if not i.name.startswith("_")])
def test_every_module_says_what_is_public(name):
    module = import_module(f"lossbook.lab.{name}")
    assert module.__all__ and module.__doc__
    assert all(getattr(module, each) is not None for each in module.__all__)
    # A flat name is the same thing in its module.
    assert all(getattr(lab, each) is getattr(module, each) for each in {*lab.__all__} & {*module.__all__})


# Networks


def test_mlp_has_norm_and_activation_after_all_but_the_last_layer():
    net = lab.mlp([8, 6, 4, 2], norm=lambda width: nn.GroupNorm(2, width), activation=nn.Tanh)
    kinds = [type(layer).__name__ for layer in net]
    assert kinds == ["Flatten"] + ["Linear", "GroupNorm", "Tanh"] * 2 + ["Linear"]
    assert net(torch.ones(3, 2, 2, 2)).shape == (3, 2)
    with pytest.raises(ValueError, match="widths: expected at least two numbers"):
        lab.mlp([8])


def test_cnn_and_projector_shapes():
    net = lab.EncoderProjector(lab.cnn([4, 8]), lab.mlp([8, 3]))
    features, projections = net(torch.ones(5, 1, 28, 28))
    assert features.shape == (5, 8) and projections.shape == (5, 3)


# Plots


@pytest.fixture
def shown(monkeypatch):
    outputs = []
    monkeypatch.setattr(IPython.display, "display", lambda output, **_: outputs.append(output))
    return outputs


def figure(**labels):
    lab.use_theme()
    figure, axes = plt.subplots()
    axes.plot([0, 1], [0, 1])
    axes.set(**{"title": "T", "xlabel": "x (s)", "ylabel": "y (m)"} | labels)
    return figure


def test_a_figure_is_an_svg_with_caption_and_alternative_text(shown):
    lab.show(figure(), caption="A < B", alt='say "rises"')
    html = shown[0]["text/html"]
    assert "<figcaption>A &lt; B</figcaption>" in html and 'alt="say &quot;rises&quot;"' in html
    svg = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1]).decode()
    assert svg.startswith("<?xml") and "</svg>" in svg
    assert not plt.get_fignums()


def test_the_same_figure_is_the_same_file(shown):
    for _ in range(2):
        lab.show(figure(), caption="c", alt="a")
    assert shown[0] == shown[1]


@pytest.mark.parametrize("missing", ["title", "xlabel", "ylabel"])
def test_a_figure_without_title_or_labels_is_refused(shown, missing):
    with pytest.raises(ValueError, match="panel 0 needs a title and labels on both axes"):
        lab.show(figure(**{missing: ""}), caption="c", alt="a")


@pytest.mark.parametrize("missing", ["caption", "alt"])
def test_a_figure_without_words_is_refused(shown, missing):
    with pytest.raises(ValueError, match=f"{missing}: expected a text"):
        lab.show(figure(), **{"caption": "c", "alt": "a"} | {missing: " "})


def test_a_table_is_formatted_and_captioned(shown):
    lab.show_table(pd.DataFrame({"a": [1.23456, np.nan]}), caption="Numbers", formats={"a": "{:.2f}"})
    html = shown[0].data
    assert "1.23<" in html and "–" in html and "Numbers" in html


def test_results_are_kept_as_json_that_pandas_reads_back(shown):
    frame = pd.DataFrame(
        {"method": ["a", "b"], "seed": [0, 1], "accuracy": [0.1 + 0.2, np.nan], "rate": [1e-3, np.inf]}
    )
    lab.record(frame, "runs")
    table = shown[0]["application/vnd.lossbook.results+json"]
    json.dumps(table, allow_nan=False)
    assert table["name"] == "runs"
    back = pd.DataFrame(table["data"], columns=table["columns"])
    assert back["accuracy"][0] == pytest.approx(0.3, abs=1e-15) and pd.isna(back["accuracy"][1])
    assert back[["method", "seed"]].equals(frame[["method", "seed"]])
    with pytest.raises(ValueError, match="columns of different names"):
        lab.record(pd.concat([frame, frame], axis=1))


def test_source_is_the_functions_own_text(shown):
    lab.show_source(lab.accuracy, lab.mlp)
    assert len(shown) == 2
    assert shown[0]["text/markdown"].startswith("```python\ndef accuracy(")
