"""Low-rank factors against peft, and that everything else stays frozen."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

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


PARAMETRISED = {
    "spectral": parametrizations.spectral_norm,
    "weight": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral by hook": spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
}


@pytest.mark.parametrize("name", PARAMETRISED)
def test_parametrised_layers_are_merged_as_they_are_in_evaluation(name):
    torch.manual_seed(0)
    net, inputs = nn.Sequential(PARAMETRISED[name](nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2)), torch.randn(7, 6)
    with torch.no_grad():  # what a hook computes with gradients cannot be copied
        net.train()(inputs)
    ours = filled(lora.add_lora(net, rank=2, scale=0.7)).eval()
    before = copy.deepcopy(ours.state_dict())
    merged = lora.merge_lora(ours)
    torch.testing.assert_close(merged(inputs), ours(inputs), rtol=1e-4, atol=1e-5)
    # Plain for good: nothing acts on the weights when they are used or trained on.
    assert not parametrize.is_parametrized(merged[0]) and not merged[0]._forward_pre_hooks
    assert {name for name, _ in merged.named_parameters()} == {"0.bias", "0.weight", "2.bias", "2.weight"}
    torch.testing.assert_close(merged.train()(inputs), merged.eval()(inputs))
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["attention", "layer", "layers"])
def test_attention_reads_the_weights_of_adapted_layers(kind, training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = {
        "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        "layer": lambda: layer,
        "layers": lambda: nn.TransformerEncoder(layer, 2),
    }[kind]()
    ours = filled(lora.add_lora(net, rank=2)).train(training)
    inputs = torch.randn(3, 5, 8)

    def call(module):
        return module(inputs, inputs, inputs)[0] if kind == "attention" else module(inputs)

    merged = lora.merge_lora(ours)
    torch.testing.assert_close(call(ours), call(merged), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(call(ours), call(net.train(training)), atol=1e-3)
    with torch.no_grad():  # in evaluation PyTorch takes another way, which reads weights itself
        torch.testing.assert_close(call(ours), call(merged), rtol=1e-4, atol=1e-5)
    factors = {name: value for name, value in ours.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(call(ours).square().sum(), list(factors.values()))
    assert all(gradient.any() for gradient in gradients)
    # That of the merged weights, by the chain rule.
    name = next(name for name in factors if name.endswith("out_proj.down.weight"))
    adapted, plain = (module.get_submodule(name.removesuffix(".down.weight")) for module in (ours, merged))
    plain.requires_grad_(True)
    (by_weight,) = torch.autograd.grad(call(merged).square().sum(), plain.weight)
    found = dict(zip(factors, gradients, strict=True))[name]
    torch.testing.assert_close(found, adapted.up.weight.T @ by_weight, rtol=1e-4, atol=1e-4)


def test_what_is_asked_of_a_layer_is_answered():
    ours = lora.LoRA(nn.Linear(7, 5, bias=False), rank=2)
    assert (ours.in_features, ours.out_features, ours.bias) == (7, 5, None)
    with pytest.raises(AttributeError):
        _ = ours.kernel_size
    with pytest.raises(AttributeError):
        _ = ours.other


def test_a_second_adapter_stands_beside_the_first():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    inputs = torch.randn(7, 6)
    first = filled(lora.add_lora(net, rank=4, scale=0.5))
    asked = []
    second = lora.add_lora(first, rank=2, scale=0.25, where=lambda name, layer: not asked.append((name, type(layer))))
    assert asked == [("0", nn.Linear), ("2", nn.Linear)]
    assert torch.equal(second(inputs), first(inputs))
    trained = [name for name, value in second.named_parameters() if value.requires_grad]
    assert trained == ["0.down.weight", "0.up.weight", "2.down.weight", "2.up.weight"]
    filled(second)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = copy.deepcopy(net)
        for name, rank, alpha in (("a", 4, 2.0), ("b", 2, 0.5)):
            config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0", "2"])
            theirs = peft.inject_adapter_in_model(config, theirs, adapter_name=name)
    for index in (0, 2):
        theirs[index].set_adapter(["a", "b"])
        for name, adapter in (("a", second[index].base), ("b", second[index])):
            theirs[index].lora_A[name].weight.data = adapter.down.weight.data.clone()
            theirs[index].lora_B[name].weight.data = adapter.up.weight.data.clone()
    torch.testing.assert_close(second(inputs), theirs(inputs))
    torch.testing.assert_close(lora.merge_lora(second)(inputs), theirs(inputs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lora.load_lora(net, lora.lora_state(second))(inputs), theirs(inputs))


def test_a_layer_in_two_places_stays_one():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    ours = filled(lora.add_lora(nn.Sequential(shared, nn.ReLU(), shared), rank=2))
    assert ours[0] is ours[2] and isinstance(ours[0], lora.LoRA)
    merged, inputs = lora.merge_lora(ours), torch.randn(3, 4)
    assert merged[0] is merged[2]
    torch.testing.assert_close(merged(inputs), ours(inputs), rtol=1e-4, atol=1e-5)


def test_factors_are_drawn_on_the_device_and_in_the_dtype_of_the_layer():
    class Made(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                assert result.device.type == "meta", function
            return result

    with torch.device("meta"):
        net = Net()
    with Made():
        ours = lora.add_lora(net, rank=3)
    assert {value.device.type for value in ours.parameters()} == {"meta"}
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert {value.dtype for value in lora.add_lora(Net().to(dtype), rank=3).parameters()} == {dtype}
        assert {value.dtype for value in lora.merge_lora(lora.add_lora(Net().to(dtype), rank=3)).parameters()} == {
            dtype
        }


def test_merging_in_half_precision_rounds_once():
    torch.manual_seed(0)
    layer = filled(lora.LoRA(nn.Linear(64, 32).bfloat16(), rank=16, scale=0.3)).bfloat16()
    exact = layer.base.weight.double() + 0.3 * layer.up.weight.double() @ layer.down.weight.double()
    torch.testing.assert_close(layer.merged().weight, exact.bfloat16(), rtol=2**-8, atol=1e-6)
    assert (layer.merged().weight == exact.bfloat16()).double().mean() > 0.99


def test_factors_are_saved_and_loaded_alone():
    torch.manual_seed(0)
    net = Net()
    ours = filled(lora.add_lora(net, rank=3, scale=0.1))
    file = io.BytesIO()
    torch.save(lora.lora_state(ours), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert {name.split(".", 1)[0] for name in state} == {name.split(".", 1)[0] for name in LAYERS}
    assert sum(value.numel() for value in state.values()) == len(LAYERS) + sum(
        value.numel() for value in ours.parameters() if value.requires_grad
    )
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in state.items() if "scale" not in name)
    loaded = lora.load_lora(net, state)
    assert torch.equal(loaded(INPUTS), ours(INPUTS))
    learns = [[name for name, value in each.named_parameters() if value.requires_grad] for each in (loaded, ours)]
    assert learns[0] == learns[1]
    single = filled(lora.LoRA(nn.Linear(4, 3), rank=2, scale=2.0))
    again = lora.load_lora(single.base, lora.lora_state(single))
    assert torch.equal(again(torch.ones(2, 4)), single(torch.ones(2, 4)))


@pytest.mark.parametrize("adapters", [1, 2])
def test_unmerging_is_the_inverse_of_merging(adapters):
    torch.manual_seed(0)
    net = Net().double()
    ours = net
    for _ in range(adapters):
        ours = filled(lora.add_lora(ours, rank=3, scale=0.4)).double()
    inputs, state = INPUTS.double(), lora.lora_state(ours)
    merged = lora.merge_lora(ours)
    again = lora.unmerge_lora(merged, state)
    torch.testing.assert_close(again(inputs), ours(inputs), rtol=1e-10, atol=1e-10)
    for name in LAYERS:
        plain = again.get_submodule(name)
        while isinstance(plain, lora.LoRA):
            plain = plain.base
        torch.testing.assert_close(plain.weight, net.get_submodule(name).weight.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lora.lora_state(again), state)


def test_states_that_do_not_fit_are_refused():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    state = lora.lora_state(lora.add_lora(net, rank=2))
    with pytest.raises(ValueError, match="module: expected a network with adapted layers"):
        lora.lora_state(net)
    with pytest.raises(ValueError, match=r"state: expected down.weight.*other"):
        lora.load_lora(net, {**state, "other": torch.ones(())})
    with pytest.raises(ValueError, match=r"state: expected down.weight.*1.scale"):
        lora.load_lora(net, {name: value for name, value in state.items() if name != "1.scale"})
    with pytest.raises(ValueError, match="state: expected down.weight"):
        lora.load_lora(net, {})
    with pytest.raises(ValueError, match=r"module: expected a network with the layers \['1'\]"):
        lora.load_lora(net[:1], state)
    with pytest.raises(ValueError, match=r"state: expected 1.down.weight.*\(2, 3\)"):
        lora.load_lora(nn.Sequential(nn.Linear(4, 3), nn.Linear(5, 2)), state)
    with pytest.raises(ValueError, match="base: expected a linear layer"):
        lora.load_lora(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), state)
    with pytest.raises(ValueError, match="module: expected merged layers, got '0'"):
        lora.unmerge_lora(nn.Sequential(parametrizations.weight_norm(net[0]), net[1]), state)


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
