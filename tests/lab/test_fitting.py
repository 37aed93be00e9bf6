"""The stacked loop against runs alone and against the loop that anyone would write."""

from contextlib import nullcontext

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from devices import MadeOnMeta
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from lossbook import lab
from lossbook.lab import fitting
from lossbook.lab.fitting import NOISE_STEPS, choose_device

DRAW = torch.Generator().manual_seed(0)
DATA = {
    "inputs": torch.randn(100, 6, generator=DRAW, dtype=torch.float64),
    "targets": torch.randint(0, 3, (100,), generator=DRAW),
}


def build(run):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def noise(generator, steps):
    return {"noise": 0.1 * torch.randn(steps, 20, 6, generator=generator, dtype=torch.float64)}


def loss(model, batch, run):
    logits = model(batch["inputs"] + batch["noise"])
    return F.cross_entropy(logits, batch["targets"]) * run.get("weight", 1)


def fit(runs, **changes):
    settings = {
        "epochs": 5, "batch_size": 20, "noise": noise, "dtype": torch.float64, "device": "cpu", "progress": None,
    }  # fmt: skip
    return lab.fit(changes.pop("build", build), changes.pop("loss", loss), DATA, runs, **settings | changes)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def plain_loop(seed, optimizer, rate, options, *, build=build, clip_norm=None, schedule=None, epochs=5):
    """One run the ordinary way: the oracle."""
    torch.manual_seed(seed)
    model = build({}).double()
    stepper = optimizer(model.parameters(), lr=rate, **options)
    order, draw = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    history, step = [], 0
    for _ in range(epochs):
        rows = torch.randperm(100, generator=order)
        for start in range(0, 100, 20):
            if step % NOISE_STEPS == 0:
                block = noise(draw, NOISE_STEPS)["noise"]
            picked = rows[start : start + 20]
            value = F.cross_entropy(model(DATA["inputs"][picked] + block[step % NOISE_STEPS]), DATA["targets"][picked])
            stepper.zero_grad()
            value.backward()
            if clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            if schedule:
                stepper.param_groups[0]["lr"] = rate * schedule(step / (5 * epochs))
            stepper.step()
            history.append(value.item())
            step += 1
    return model, history


def test_a_run_does_not_depend_on_the_stack():
    runs = [
        {"seed": seed, "learning_rate": rate, "weight": weight}
        for seed, rate, weight in zip(range(16), torch.logspace(-4, -1, 16).tolist(), [1.0, 3.0] * 8, strict=True)
    ]
    stacked = fit(runs)
    for index in (0, 7, 15):
        alone = fit([runs[index]])
        for name, value in alone.parameters.items():
            close(stacked.parameters[name][index], value[0])
        losses = stacked.history.query("run == @index")["loss"].to_numpy()
        assert losses == pytest.approx(alone.history["loss"].to_numpy(), abs=1e-9)


@pytest.mark.parametrize(
    ("optimizer", "rate", "options"),
    [
        (torch.optim.Adam, 1e-2, {}),
        (torch.optim.SGD, 0.1, {"momentum": 0.9, "weight_decay": 0.01}),
        (torch.optim.AdamW, 1e-2, {"weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("extra", [{}, {"clip_norm": 0.1}, {"schedule": lambda fraction: 1 - fraction}])
def test_agrees_with_a_plain_loop(optimizer, rate, options, extra):
    fitted = fit(lab.grid(seed=[3, 4], learning_rate=[rate]), optimizer=optimizer, options=options, **extra)
    for index, seed in enumerate([3, 4]):
        model, history = plain_loop(seed, optimizer, rate, options, **extra)
        assert fitted.history.query("run == @index")["loss"].to_numpy() == pytest.approx(history, abs=1e-9)
        for name, value in model.named_parameters():
            close(fitted.parameters[name][index], value.detach())


def test_learning_rates_of_their_own():
    fitted = fit(lab.grid(seed=[0], learning_rate=[1e-3, 1e-1]))
    for index, rate in enumerate([1e-3, 1e-1]):
        model, _ = plain_loop(0, torch.optim.Adam, rate, {})
        close(fitted.parameters["0.weight"][index], model[0].weight.detach())


def test_batch_norm_statistics_belong_to_their_run():
    def build(run):
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    fitted = fit(lab.grid(seed=[3, 4], learning_rate=[0.1]), build=build, optimizer=torch.optim.SGD)
    for index, seed in enumerate([3, 4]):
        model, _ = plain_loop(seed, torch.optim.SGD, 0.1, {}, build=build)
        for name, value in model.named_buffers():
            close(fitted.buffers[name][index].double(), value.double())
        close(fitted.predict(DATA["inputs"])[index], model.eval()(DATA["inputs"]).detach())


def test_module_and_predict_are_the_same_network():
    fitted = fit(lab.grid(seed=range(3), learning_rate=[1e-2]))
    outputs = fitted.predict(DATA["inputs"], batch_size=32)
    assert outputs.shape == (3, 100, 3)
    for run in range(3):
        module = fitted.module(run)
        assert not module.training
        close(module(DATA["inputs"]).detach(), outputs[run])
    with torch.no_grad():
        module[0].weight.zero_()
    assert fitted.parameters["0.weight"].abs().min() > 0  # a copy of its own


def test_same_seed_differs_in_nothing_but_hyperparameters():
    fitted = fit(lab.grid(seed=[1], learning_rate=[1e-3, 1e-1]))
    first = fitted.history.query("step == 0")["loss"].to_list()
    assert first[0] == pytest.approx(first[1], abs=1e-12)
    assert fitted.history.query("step == 9")["loss"].nunique() == 2


def test_transform_sees_each_seed_once_and_replaces_the_batch():
    widths = []

    def transform(batch):
        widths.append(tuple(batch["inputs"].shape))
        return {"inputs": batch["inputs"] + batch["noise"], "targets": batch["targets"]}

    def loss(model, batch, run):
        return F.cross_entropy(model(batch["inputs"]), batch["targets"])

    runs = lab.grid(seed=[0, 1], learning_rate=[1e-3, 1e-2])
    ours, theirs = fit(runs, transform=transform, loss=loss), fit(runs)
    close(ours.parameters["0.weight"], theirs.parameters["0.weight"])
    assert widths == [(20, 6)] * 25  # mapped: once a step


def test_what_the_loss_logs_is_kept():
    def logging(model, batch, run):
        value = loss(model, batch, run)
        return value, {"twice": torch.stack([2 * value, value])}

    fitted = fit(lab.grid(seed=range(2), learning_rate=[1e-3]), loss=logging)
    assert fitted.logged["twice"].shape == (2, 25, 2)
    assert not fitted.logged["twice"].requires_grad
    recorded = torch.tensor(fitted.history["loss"].to_numpy()).view(2, 25)
    close(fitted.logged["twice"][..., 1], recorded)


def test_gradient_norm_is_that_before_clipping():
    runs = lab.grid(seed=[0], learning_rate=[0.0])  # nothing moves
    free, clipped = fit(runs), fit(runs, clip_norm=1e-3)
    pd.testing.assert_frame_equal(free.history, clipped.history)
    module, batch = free.module(0).train(), {"inputs": DATA["inputs"][:20], "targets": DATA["targets"][:20]}
    batch["inputs"] = DATA["inputs"][rows := torch.randperm(100, generator=torch.Generator().manual_seed(0))[:20]]
    batch["targets"], batch["noise"] = (
        DATA["targets"][rows],
        noise(torch.Generator().manual_seed(0), NOISE_STEPS)["noise"][0],
    )
    loss(module, batch, {}).backward()
    norm = torch.cat([p.grad.flatten() for p in module.parameters()]).norm().item()
    assert free.history["gradient_norm"][0] == pytest.approx(norm, abs=1e-12)


@pytest.mark.parametrize("at", [0, 7, 24])
def test_the_first_bad_loss_is_named(at):
    calls = []

    def breaking(model, batch, run):
        calls.append(1)
        value = loss(model, batch, run)
        return torch.where((run["seed"] == 5) & torch.tensor(len(calls) == at + 1), torch.inf, value)

    with pytest.raises(fitting.NonFiniteError, match=rf"run 1 \(seed=5, learning_rate=0.001\), step {at}: loss is inf"):
        fit(lab.grid(seed=[4, 5], learning_rate=[1e-3]), loss=breaking)


def test_a_bad_gradient_and_a_bad_parameter_are_named():
    def root(model, batch, run):  # value 0, slope infinite
        return (model(batch["inputs"]) * 0).sum().abs().sqrt() + loss(model, batch, run)

    with pytest.raises(fitting.NonFiniteError, match="step 0: gradient norm is nan"):
        fit(lab.grid(seed=[0], learning_rate=[1e-3]), loss=root)
    with pytest.raises(fitting.NonFiniteError, match=r"run 0 .* step 4: parameter is -?(inf|nan)"):
        fit(
            lab.grid(seed=[0], learning_rate=[1e-3]), epochs=1, optimizer=torch.optim.SGD,
            schedule=lambda fraction: 1e400 if fraction == 0.8 else 1,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": [{"seed": 0}]}, "runs: every run needs a learning_rate"),
        ({"runs": [{"learning_rate": 1.0}]}, "runs: every run needs a seed"),
        ({"runs": []}, "runs: every run needs a seed"),
        ({"runs": [{"seed": 0, "learning_rate": 1.0}, {"seed": 1}]}, "runs: every run needs a learning_rate"),
        ({"batch_size": 101}, "batch_size: expected 1 to 100"),
        ({"batch_size": 0}, "batch_size: expected 1 to 100"),
        ({"epochs": 0}, "epochs: expected at least 1"),
        ({"device": "abacus"}, "device: expected"),
        (
            {"loss": lambda model, batch, run: model(batch["inputs"]).sum(1)},
            "loss: expected a tensor without dimensions",
        ),
    ],
)
def test_bad_settings_are_refused(change, message):
    runs = change.pop("runs", lab.grid(seed=[0], learning_rate=[1e-3]))
    with pytest.raises(ValueError, match=message):
        fit(runs, **change)


def test_networks_of_different_structure_are_refused():
    def build(run):
        return nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2 + 2 * run["seed"], 8), nn.Linear(8, 3))

    with pytest.raises(
        ValueError, match=r"build: expected networks of one structure, (.|\n)*GroupNorm\(4(.|\n)*for run 1"
    ):
        fit(lab.grid(seed=[0, 1], learning_rate=[1e-3]), build=build)


def test_data_of_unequal_length_is_refused():
    with pytest.raises(
        ValueError, match="data: expected tensors of the same length, got {'inputs': 100, 'targets': 99}"
    ):
        lab.fit(
            build, loss, DATA | {"targets": DATA["targets"][:99]}, lab.grid(seed=[0], learning_rate=[1.0]),
            epochs=1, batch_size=5,
        )  # fmt: skip


def test_fitting_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    fit(lab.grid(seed=range(2), learning_rate=[1e-3]))
    assert torch.rand(()) == expected


def test_progress_is_one_line_in_a_notebook_and_nothing_in_a_pipe(monkeypatch, capsys):
    runs = lab.grid(seed=range(2), learning_rate=[1e-3])
    fit(runs, progress="training")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(fitting, "_in_notebook", lambda: True)
    fit(runs, progress="training")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "training: 2 runs, step 1 of 25" in out
    assert out.splitlines()[-1].lstrip("\r").startswith("training: 2 runs of 25 steps in ")


def test_auto_is_cuda_where_there_is_one():
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match='device: expected "auto", "cpu" or "cuda", got \'cuda\''):
            choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu():
    def loss(model, batch, run):
        return F.cross_entropy(model(batch["inputs"]), batch["targets"])

    runs = lab.grid(seed=range(3), learning_rate=[1e-2])
    ours, theirs = fit(runs, loss=loss, noise=None, device="cuda"), fit(runs, loss=loss, noise=None)
    torch.testing.assert_close(ours.parameters["0.weight"].cpu(), theirs.parameters["0.weight"], rtol=1e-7, atol=1e-7)


def test_grid_is_every_combination():
    assert lab.grid(seed=[0, 1], rate=[0.1]) == [{"seed": 0, "rate": 0.1}, {"seed": 1, "rate": 0.1}]


# What a run carries from step to step --------------------------------------------------------------


def with_teacher(model, batch, run, state):
    teacher = fitting.moving_average(state["teacher"], model.parameters, 0.9)
    student, target = model(batch["inputs"] + batch["noise"]), model.at(teacher)(batch["inputs"])
    memory = state["memory"].index_copy(0, batch["index"], student.detach())
    value = F.mse_loss(student, target) + loss(model, batch, run)
    return value, {"fraction": run["fraction"]}, {"teacher": teacher, "memory": memory, "steps": run["step"] + 1}


def start(run, module):
    return {"teacher": dict(module.named_parameters()), "memory": torch.zeros(100, 3), "steps": torch.tensor(0)}


def fit_with_state(runs, **changes):
    data = DATA | {"index": torch.arange(100)}
    settings = {
        "epochs": 3,
        "batch_size": 20,
        "noise": noise,
        "dtype": torch.float64,
        "device": "cpu",
        "progress": None,
    }
    return lab.fit(build, with_teacher, data, runs, state=start, **settings | changes)


def test_a_teacher_and_a_memory_agree_with_a_plain_loop():
    fitted = fit_with_state(lab.grid(seed=[3, 4], learning_rate=[1e-2, 1e-1]))
    for index, run in fitted.runs.iterrows():
        seed = int(run["seed"])
        torch.manual_seed(seed)
        model, teacher = build({}).double(), build({}).double()
        teacher.load_state_dict(model.state_dict())
        stepper = torch.optim.Adam(model.parameters(), lr=run["learning_rate"])
        order, draw = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        memory, step = torch.zeros(100, 3, dtype=torch.float64), 0
        for _ in range(3):
            for rows in torch.randperm(100, generator=order).split(20):
                if step % NOISE_STEPS == 0:
                    block = noise(draw, NOISE_STEPS)["noise"]
                with torch.no_grad():
                    for slow, fast in zip(teacher.parameters(), model.parameters(), strict=True):
                        slow.mul_(0.9).add_(fast, alpha=0.1)
                    target = teacher(DATA["inputs"][rows])
                student = model(DATA["inputs"][rows] + block[step % NOISE_STEPS])
                memory[rows] = student.detach()
                stepper.zero_grad()
                (F.mse_loss(student, target) + F.cross_entropy(student, DATA["targets"][rows])).backward()
                stepper.step()
                step += 1
        for name, value in teacher.named_parameters():
            close(fitted.state["teacher"][name][index], value.detach())
        close(fitted.state["memory"][index], memory)
    assert fitted.state["steps"].tolist() == [15] * 4
    close(fitted.logged["fraction"], torch.arange(15, dtype=torch.float64).expand(4, -1) / 15)


def test_state_does_not_depend_on_the_stack():
    runs = lab.grid(seed=[0, 1, 2], learning_rate=[1e-3, 1e-1])
    stacked, alone = fit_with_state(runs), fit_with_state(runs[3:4])
    close(stacked.state["memory"][3], alone.state["memory"][0])
    close(stacked.state["teacher"]["0.weight"][3], alone.state["teacher"]["0.weight"][0])


def test_the_clock_is_there_without_state_and_cannot_be_a_hyperparameter():
    def ticking(model, batch, run):
        return loss(model, batch, run), {"step": run["step"]}

    fitted = fit(lab.grid(seed=[0, 1], learning_rate=[1e-3]), loss=ticking)
    assert fitted.logged["step"].tolist() == [list(range(25))] * 2
    assert fitted.state == {}
    with pytest.raises(ValueError, match="runs: expected hyperparameters, got 'step'"):
        fit([{"seed": 0, "learning_rate": 1.0, "step": 3}])


def test_the_meta_device_gives_the_shapes_of_all_that_is_returned():
    def views(batch):
        return {**batch, "inputs": batch["inputs"] + batch["noise"]}

    def build(run):
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def strict(*arguments):
        with MadeOnMeta() if device == "meta" else nullcontext():
            return with_teacher(*arguments)

    shapes = {}
    for device in ("cpu", "meta"):
        fitted = lab.fit(
            build, strict, DATA | {"index": torch.arange(100)}, lab.grid(seed=[0, 1], learning_rate=[0.1, 0.2]),
            epochs=2, batch_size=20, noise=noise, transform=views, state=start, clip_norm=1.0, progress=None,
            schedule=lambda fraction: 1 - fraction, device=device,
        )  # fmt: skip
        parts = (
            fitted.parameters,
            fitted.buffers,
            fitted.logged,
            fitted.state,
            fitted.module(1).state_dict(),
            fitted.predict(DATA["inputs"].float(), batch_size=30),
            fitted.each(torch.randn(4, 5, 6)),
            fitted.means(lambda model, inputs: {"mean": model(inputs).mean()}, DATA["inputs"].float()),
        )
        shapes[device] = tree_map(lambda value: (value.shape, value.dtype), parts)
        assert {value.device.type for value in tree_leaves(parts[:2])} == {device}
        assert list(fitted.history) == ["run", "step", "loss", "gradient_norm"] and len(fitted.history) == 40
    assert shapes["cpu"] == shapes["meta"]
    assert fitted.history["loss"].isna().all()


def test_a_loss_that_forgets_its_state_is_refused():
    with pytest.raises(ValueError, match=r"loss: expected \(loss, logged, new state\)"):
        fit(lab.grid(seed=[0], learning_rate=[1.0]), loss=lambda m, b, r, s: loss(m, b, r), state=start)


class Scaled(nn.Module):
    """A linear layer with a temperature to learn, a parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 3), nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs):
        return self.scale * self.layer(inputs)


def test_a_parameter_without_dimensions_is_trained():
    fitted = fit(lab.grid(seed=[0, 1], learning_rate=[0.1]), build=lambda run: Scaled(), clip_norm=1.0)
    assert fitted.parameters["scale"].shape == (2,)
    assert (fitted.parameters["scale"] != 2).all() and fitted.module(1).scale.shape == ()
