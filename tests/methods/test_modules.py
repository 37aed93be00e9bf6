"""Losses as modules: the function itself, with settings, some of them learned."""

import copy
import io
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from devices import on_any_device
from support import agree, annotations_unchecked, pair, rejects, without_hooks

from lossbook.methods import contrastive
from lossbook.methods.contrastive import info_nce, nt_xent, temperature_free_info_nce
from lossbook.methods.modules import Loss

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 2])


def test_is_the_function_with_its_settings():
    x, y = pair()
    agree(
        Loss(info_nce, temperature=0.3, symmetric=True)(x, y), info_nce(x, y, temperature=0.3, symmetric=True), (x, y)
    )
    loss = Loss("nt_xent", temperature=np.float64(0.3))
    agree(loss(x, labels=LABELS), nt_xent(x, labels=LABELS, temperature=0.3), (x,))
    agree(loss(x, y, temperature=0.5), nt_xent(x, y, temperature=0.5), (x, y))
    assert Loss("info_nce").function is info_nce and not [*loss.parameters()]


def test_a_learned_setting_has_the_gradient_of_its_logarithm():
    x, y = pair()
    loss = Loss(info_nce, temperature=0.3, learn="temperature").double()
    log = torch.tensor(math.log(0.3), requires_grad=True)  # float32, as the module makes it
    ours = torch.autograd.grad(loss(x, y), loss.log_temperature)[0]
    theirs = torch.autograd.grad(info_nce(x, y, temperature=log.double().exp()), log)[0]
    torch.testing.assert_close(ours.float(), theirs)
    assert loss.value("temperature").item() == pytest.approx(0.3)
    assert Loss(info_nce, learn="temperature").value("temperature").item() == pytest.approx(0.1)  # the default


def test_several_settings_are_learned():
    x, y = pair()
    loss = Loss("decoupled_contrastive_weighted", learn=["temperature", "sigma"], detach_weights=False)
    loss(x, y).backward()
    assert {name for name, _ in loss.named_parameters()} == {"log_temperature", "log_sigma"}
    assert all(each.grad != 0 for each in loss.parameters())


def test_training_learns_a_temperature_in_a_compiled_step():
    torch._dynamo.reset()
    x, y = (value.detach().float() for value in pair(32, 8))
    with without_hooks():
        from lossbook.methods.modules import Loss as Plain

        loss = Plain("info_nce", temperature=0.5, learn="temperature")
        step = torch.compile(lambda a, b: loss(a, b), fullgraph=True, backend="eager")
        network = torch.nn.Linear(8, 8)
        optimiser = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=0.05)
        values = []
        for _ in range(30):
            optimiser.zero_grad()
            value = step(network(x), y)
            value.backward()
            optimiser.step()
            values.append(value.item())
    assert values[-1] < values[0] - 0.5 and 0 < loss.value("temperature").item() != pytest.approx(0.5, abs=0.05)


def test_state_goes_round():
    loss = Loss(info_nce, temperature=0.5, learn="temperature")
    with torch.no_grad():
        loss.log_temperature -= 1
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = Loss(info_nce, learn="temperature")
    other.load_state_dict(torch.load(file))
    x, y = pair()
    assert other(x, y).item() == loss(x, y).item() == copy.deepcopy(loss)(x, y).item()


def test_configuration_goes_round():
    loss = Loss.from_config({"loss": "info_nce", "temperature": 0.25, "learn": "temperature", "symmetric": True})
    config = json.loads(json.dumps(loss.config()))
    assert config == {
        "loss": "contrastive.info_nce", "symmetric": True, "temperature": pytest.approx(0.25), "learn": ["temperature"]
    }  # fmt: skip
    assert repr(Loss.from_config(config)) == repr(loss) == "info_nce(symmetric=True, temperature=0.25 (learned))"
    assert (
        repr(torch.nn.Sequential(Loss(temperature_free_info_nce)))
        == "Sequential(\n  (0): temperature_free_info_nce()\n)"
    )
    assert repr(loss.to("meta")) == "info_nce(symmetric=True, temperature=? (learned))"


def test_every_loss_of_pairs_has_its_module():
    for name in ("info_nce", "nt_xent", "supervised_contrastive", "hard_info_nce", "decoupled_contrastive_loss"):
        assert Loss(name).function is getattr(contrastive, name)


def test_what_is_no_loss_or_setting_is_refused():
    rejects(Loss, "info", names="loss")
    rejects(Loss, "layers.info_nce", names="loss")
    rejects(Loss, 3, names="loss")
    assert "temperature" in rejects(Loss, info_nce, tau=0.1, names="tau")
    rejects(Loss, info_nce, learn="tau", names="tau")
    rejects(Loss, info_nce, labels=LABELS, names="labels")
    for value in (0.0, -1.0, math.nan, math.inf, True, "0.1", None):
        rejects(Loss, info_nce, temperature=value, learn="temperature", names="temperature")
    rejects(Loss, info_nce, learn="symmetric", names="symmetric")
    rejects(Loss.from_config, {"temperature": 0.1}, names="config")
    rejects(Loss(lambda x, *, power=1: x**power).config, names="loss")
    with annotations_unchecked(), pytest.raises(ValueError, match="temperature"):
        Loss(info_nce, temperature=-1.0)(*pair())


test_on_any_device = on_any_device(
    partial(Loss(info_nce, temperature=0.1, learn="temperature"), *pair(), symmetric=True),
    partial(Loss(nt_xent), pair()[0], labels=LABELS),
)
