"""Low-rank factors against peft, and that everything else stays frozen."""

import warnings

import pytest
import torch
from torch import nn

from lossbook import lab
from lossbook.lab import lora


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.inner = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten())
        self.head = nn.Linear(16, 3)

    def forward(self, inputs):
        return self.head(self.inner(self.conv(inputs)))


LAYERS = ("conv", "inner.1", "head")
INPUTS = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def filled(module):
    """With random factors, as after training."""
    draw = torch.Generator().manual_seed(1)
    for value in module.parameters():
        if value.requires_grad:
            value.data = torch.randn(value.shape, generator=draw) * 0.3
    return module


def test_agrees_with_peft():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net = Net()
    ours = filled(lora.add_lora(net, rank=4, scale=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=list(LAYERS), lora_dropout=0.0)
        theirs = peft.inject_adapter_in_model(config, net)
    for name in LAYERS:
        mine, other = ours.get_submodule(name), theirs.get_submodule(name)
        other.lora_A["default"].weight.data = mine.down.weight.data.clone()
        other.lora_B["default"].weight.data = mine.up.weight.data.clone()
    torch.testing.assert_close(ours(INPUTS), theirs(INPUTS))
    torch.testing.assert_close(lora.merge_lora(ours)(INPUTS), theirs(INPUTS), rtol=1e-4, atol=1e-5)
    trained = {name: value for name, value in ours.named_parameters() if value.requires_grad}
    expected = [value for value in theirs.parameters() if value.requires_grad]
    assert sum(value.numel() for value in trained.values()) == sum(value.numel() for value in expected)
    gradients = torch.autograd.grad(ours(INPUTS).square().sum(), list(trained.values()))
    theirs(INPUTS).square().sum().backward()
    for name, gradient in zip(trained, gradients, strict=True):
        layer, factor, _ = name.rsplit(".", 2)
        other = getattr(theirs.get_submodule(layer), "lora_A" if factor == "down" else "lora_B")["default"]
        torch.testing.assert_close(gradient, other.weight.grad)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Linear(7, 5), (3, 4, 7)),
        (lambda: nn.Conv1d(3, 5, 3, dilation=2), (2, 3, 9)),
        (lambda: nn.Conv2d(3, 5, (3, 2), padding=1, padding_mode="circular", bias=False), (2, 3, 6, 6)),
        (lambda: nn.Conv2d(3, 5, 3, padding="same"), (2, 3, 6, 6)),
        (lambda: nn.Conv3d(2, 3, 2, stride=2), (2, 2, 4, 4, 4)),
    ],
    ids=["linear", "conv1d", "conv2d", "same", "conv3d"],
)
def test_merged_layer_is_the_adapted_one(layer, shape):
    torch.manual_seed(0)
    base, inputs = layer(), torch.randn(shape)
    ours = lora.LoRA(base, rank=2, scale=0.7)
    assert torch.equal(ours(inputs), base(inputs))  # B is zero
    filled(ours)
    assert not torch.allclose(ours(inputs), base(inputs))
    torch.testing.assert_close(ours.merged()(inputs), ours(inputs), rtol=1e-4, atol=1e-5)
    assert type(ours.merged()) is type(base)


def test_only_the_factors_learn_and_the_network_given_is_untouched():
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ours = lora.add_lora(net, rank=3)
    assert {name.rsplit(".", 2)[1] for name, value in ours.named_parameters() if value.requires_grad} == {"down", "up"}
    assert all(value.requires_grad for value in net.parameters())
    stepper = torch.optim.AdamW(ours.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        stepper.zero_grad()
        ours(INPUTS).square().sum().backward()
        stepper.step()
    for name in LAYERS:
        layer = ours.get_submodule(name)
        assert torch.equal(layer.base.weight, before[f"{name}.weight"]) and layer.up.weight.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(isinstance(layer, lora.LoRA) for layer in lora.merge_lora(ours).modules())


def test_where_and_grouped_convolutions():
    ours = lora.add_lora(Net(), rank=2, where=lambda name, layer: isinstance(layer, nn.Conv2d))
    assert [name for name, layer in ours.named_modules() if isinstance(layer, lora.LoRA)] == ["conv", "inner.1"]
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 2))
    assert [name for name, each in lora.add_lora(grouped, rank=1).named_modules() if isinstance(each, lora.LoRA)] == [
        "1"
    ]


def test_learns_in_a_stack_what_it_learns_alone():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    data = {"x": torch.randn(20, 4), "y": torch.randn(20, 1)}

    def fit(seeds):
        return lab.fit(
            lambda run: lora.add_lora(base, rank=2), lambda model, batch, run: (model(batch["x"]) - batch["y"]).square().mean(),
            data, lab.grid(seed=seeds, learning_rate=[1e-2]), epochs=10, batch_size=10, dtype=torch.float64,
            optimizer=torch.optim.AdamW, device="cpu", progress=None,
        )  # fmt: skip

    both, alone = fit([0, 1]), fit([1])
    for name, value in alone.parameters.items():
        torch.testing.assert_close(both.parameters[name][1], value[0], rtol=1e-8, atol=1e-8)
        if ".base." in name:
            torch.testing.assert_close(value[0], base.state_dict()[name.replace(".base", "")].double())
    assert not torch.allclose(both.parameters["0.up.weight"][0], both.parameters["0.up.weight"][1])
    merged = lora.merge_lora(both.module(1).double())
    torch.testing.assert_close(merged(data["x"].double()), both.predict(data["x"].double())[1])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="rank: expected at least 1, got 0"):
        lora.LoRA(nn.Linear(2, 2), rank=0)
    with pytest.raises(ValueError, match="base: expected a linear layer or a convolution"):
        lora.LoRA(nn.ReLU(), rank=1)
    with pytest.raises(ValueError, match="scale: expected a finite number"):
        lora.LoRA(nn.Linear(2, 2), rank=1, scale=float("nan"))
    with pytest.raises(ValueError, match="module: expected a network with a layer to adapt"):
        lora.add_lora(nn.Sequential(nn.ReLU()), rank=1)
