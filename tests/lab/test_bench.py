"""Networks, views, evaluation and plots."""

import base64
import json
import re

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lossbook import lab
from lossbook.lab.views import shifted

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


# Views


@given(rows=st.integers(-2, 2), columns=st.integers(-2, 2), seed=st.integers(0, 9))
def test_shift_is_a_roll_with_black_edges(rows, columns, seed):
    image = torch.rand(1, 2, 5, 6, generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros_like(image)
    for row in range(5):
        for column in range(6):
            if 0 <= row - rows < 5 and 0 <= column - columns < 6:
                expected[..., row, column] = image[..., row - rows, column - columns]
    assert torch.equal(shifted(image, torch.tensor([[rows, columns]]), 2), expected)


def test_views_have_the_noise_and_the_share_of_lost_pixels_that_they_say():
    views = lab.Views((50, 1, 8, 8), shift=1, noise=0.3, drop=0.2)
    drawn = views.draw(torch.Generator().manual_seed(0), 20)
    assert drawn["offsets"].unique().tolist() == [-1, 0, 1]
    assert drawn["grain"].std().item() == pytest.approx(0.3, rel=0.02)
    assert drawn["kept"].double().mean().item() == pytest.approx(0.8, abs=0.005)
    step = {name: value[0] for name, value in drawn.items()}
    batch = views.apply({"inputs": torch.ones(50, 1, 8, 8), "targets": torch.arange(50), **step})
    assert set(batch) == {"first", "second", "targets"}
    assert not torch.equal(batch["first"], batch["second"])
    inner = batch["first"][..., 2:-2, 2:-2]
    assert inner[inner != 0].mean().item() == pytest.approx(1, abs=0.03)


# Evaluation


def blobs(n, seed):
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 3
    return 4 * torch.eye(3)[targets] + torch.randn(n, 3, generator=draw), targets


@pytest.mark.parametrize("probe", [lab.linear_probe, lab.k_nearest_neighbours])
def test_probes_separate_what_can_be_separated_and_nothing_else(probe):
    train, test = blobs(300, 0), blobs(300, 1)
    shuffled = test[1][torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    good, chance = probe(*train, test, (test[0], shuffled))
    assert good > 0.9 and 0.2 < chance < 0.47


def test_probe_does_not_depend_on_scale():
    train, test = blobs(300, 0), blobs(300, 1)
    scale = torch.tensor([1e-3, 1.0, 1e3])
    assert lab.linear_probe(*train, test) == lab.linear_probe(train[0] * scale, train[1], (test[0] * scale, test[1]))


def test_accuracy_keeps_leading_dimensions():
    logits = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [0, 1]]])
    assert lab.accuracy(logits, torch.tensor([0, 1])).tolist() == [1.0, 0.5]


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
