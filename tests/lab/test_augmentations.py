"""Views of pictures and signals: what they do, one by one and mapped over runs."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook.lab import augmentations
from lossbook.lab.augmentations import permuted, shifted


def drawn(views, seed=0):
    return {name: value[0] for name, value in views.draw(torch.Generator().manual_seed(seed), 2).items()}


def test_shifted_pictures():
    pictures = torch.arange(1.0, 13).view(1, 1, 3, 4)
    moved = shifted(pictures, torch.tensor([[1, -2]]), 2)[0, 0]
    assert moved.tolist() == [[0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]]


@pytest.mark.parametrize(("length", "expected"), [(6, [4, 5, 0, 1, 2, 3]), (7, [5, 6, 0, 1, 2, 3, 4])])
def test_permuted_signals(length, expected):
    signals = torch.arange(float(length)).view(1, 1, length)
    # Segments of 7 samples: three, two and two.
    assert permuted(signals, torch.tensor([[0.2, 0.7, 0.1]]))[0, 0].tolist() == expected
    assert torch.equal(permuted(signals, torch.tensor([[0.5]])), signals)


PICTURES = {"inputs": torch.rand(4, 1, 8, 8), "index": torch.arange(4)}
SIGNALS = {"inputs": torch.randn(4, 2, 30), "index": torch.arange(4)}


@pytest.mark.parametrize(
    ("kind", "batch"),
    [(augmentations.Views, PICTURES), (augmentations.SignalViews, SIGNALS)],
    ids=["pictures", "signals"],
)
def test_two_views_by_name_or_any_number_stacked(kind, batch):
    shape = tuple(batch["inputs"].shape)
    two, five = kind(shape), kind(shape, number=5)
    pair = two.apply(batch | drawn(two))
    assert set(pair) == {"first", "second", "index"}
    assert pair["first"].shape == shape and not torch.equal(pair["first"], pair["second"])
    many = five.apply(batch | drawn(five))
    assert set(many) == {"views", "index"} and many["views"].shape == (5, *shape)
    assert len({view.numpy().tobytes() for view in many["views"]}) == 5
    same = kind(shape, number=2).apply(batch | drawn(two))["views"]
    assert torch.equal(same, torch.stack([pair["first"], pair["second"]]))


@pytest.mark.parametrize(
    ("views", "batch"),
    [
        (augmentations.Views((4, 1, 8, 8), number=3), PICTURES),
        (augmentations.SignalViews((4, 2, 30), segments=4), SIGNALS),
    ],
    ids=["pictures", "signals"],
)
def test_mapped_is_one_by_one(views, batch):
    runs = [batch | drawn(views, seed) for seed in range(2)]
    mapped = torch.func.vmap(views.apply)({name: torch.stack([run[name] for run in runs]) for name in runs[0]})
    for index, run in enumerate(runs):
        for name, value in views.apply(run).items():
            assert torch.equal(mapped[name][index], value)


def test_signals_without_change_and_their_noise():
    still = augmentations.SignalViews((4, 2, 30), scale=0, noise=0)
    assert torch.equal(still.apply(SIGNALS | drawn(still))["first"], SIGNALS["inputs"])
    loud = augmentations.SignalViews((2000, 1, 8), scale=0.5, noise=0.2)
    seen = loud.apply({"inputs": torch.zeros(2000, 1, 8)} | drawn(loud))["first"]
    assert seen.std().item() == pytest.approx(0.2, rel=0.05)
    tall = augmentations.SignalViews((2000, 1, 8), scale=0.5, noise=0)
    factors = tall.apply({"inputs": torch.ones(2000, 1, 8)} | drawn(tall))["first"]
    assert (factors == factors[..., :1]).all() and factors.std().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("views", "inputs"),
    [
        (augmentations.Views((2, 1, 8, 8), shift=2), torch.rand(5, 1, 8, 8)),
        (augmentations.SignalViews((2, 3, 16), segments=4), torch.rand(5, 3, 16)),
    ],
    ids=["pictures", "signals"],
)
def test_once_is_one_step_for_any_number_of_inputs(views, inputs):
    seen = views.once(inputs, torch.Generator().manual_seed(3))
    wider = dataclasses.replace(views, shape=tuple(inputs.shape))
    drawn = wider.draw(torch.Generator().manual_seed(3), 1)
    step = wider.apply({"inputs": inputs, **{name: value[0] for name, value in drawn.items()}})
    assert seen.keys() == step.keys() == {"first", "second"}
    assert all(torch.equal(seen[name], step[name]) for name in seen)


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
    views = augmentations.Views((50, 1, 8, 8), shift=1, noise=0.3, drop=0.2)
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
