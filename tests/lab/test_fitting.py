"""The stacked loop against runs alone and against the loop that anyone would write."""

from contextlib import nullcontext

import numpy as np
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


def test_means_need_examples_and_as_many_in_each():
    fitted, x = fit(lab.grid(seed=[0], learning_rate=[0.1]), epochs=1), DATA["inputs"]
    for inputs in ((), (x[:0],), (x, x[:-1])):
        with pytest.raises(ValueError, match="inputs: expected (at least one example|as many examples in each), got"):
            fitted.means(lambda model, *batch: model(batch[0]).mean(), *inputs)


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


# What networks have beside weights of their own ----------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_run(dtype):
    fitted = fit(lab.grid(seed=[0, 1], learning_rate=[0.1]), dtype=dtype, optimizer=torch.optim.SGD, clip_norm=1.0)
    exact = fit(lab.grid(seed=[0, 1], learning_rate=[0.1]), optimizer=torch.optim.SGD, clip_norm=1.0)
    assert fitted.parameters["0.weight"].dtype == dtype
    assert fitted.history["loss"].to_numpy() == pytest.approx(exact.history["loss"].to_numpy(), abs=0.05)
    outputs = fitted.predict(DATA["inputs"])  # float64, brought to the dtype as the data were
    assert outputs.dtype == dtype and outputs.shape == (2, 100, 3)
    near = {"rtol": 0.05, "atol": 0.02}
    torch.testing.assert_close(fitted.module(1)(DATA["inputs"].to(dtype)).detach(), outputs[1], **near)
    torch.testing.assert_close(fitted.each(DATA["inputs"].expand(2, -1, -1)).detach(), outputs, **near)
    mean = fitted.means(lambda model, inputs: model(inputs).mean(), DATA["inputs"], batch_size=100)
    torch.testing.assert_close(mean.float(), outputs.float().mean((1, 2)), **near)


def test_the_norm_of_half_precision_gradients_does_not_overflow():
    def steep(model, batch, run):
        return 3e4 * model(batch["inputs"]).mean()

    options = {"loss": steep, "dtype": torch.float16, "optimizer": torch.optim.SGD, "clip_norm": 1.0}
    fitted = fit(lab.grid(seed=[0], learning_rate=[1e-6]), **options)
    assert 1e3 < fitted.history["gradient_norm"][0] < 1e5


def with_dropout(run):
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def drawing(model, batch, run):
    """Draws in all the ways that a stack can: see the operators in the middle."""
    logits = model(batch["inputs"]) + 0.1 * torch.rand(20, 3) + 0.1 * torch.randn_like(model(batch["inputs"]))
    kept = torch.bernoulli(torch.sigmoid(logits.detach()))
    picked = torch.multinomial(logits.detach().softmax(1), 1)
    return F.cross_entropy(F.gumbel_softmax(logits) * kept, batch["targets"]) + picked.double().mean()


@pytest.mark.parametrize("loss", [loss, drawing])
def test_what_is_drawn_does_not_depend_on_the_stack(loss):
    runs = lab.grid(seed=[0, 1, 2], learning_rate=[1e-3, 1e-1])
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    stacked = fit(runs, build=with_dropout, loss=loss)
    assert torch.rand(()) == expected
    for index in (0, 3):
        alone = fit([runs[index]], build=with_dropout, loss=loss)
        for name, value in [*alone.parameters.items(), *alone.buffers.items()]:
            close({**stacked.parameters, **stacked.buffers}[name][index].double(), value[0].double())
    first = stacked.history.query("step == 0")["loss"].to_list()
    # Of one seed the same is drawn, of others something else.
    assert first[0] == pytest.approx(first[1], abs=1e-12) and abs(first[0] - first[2]) > 1e-6
    # The first step, which found out that something is drawn, counted once.
    assert stacked.buffers["2.num_batches_tracked"].tolist() == [25 if loss is not drawing else 50] * 6


def test_dropout_agrees_with_a_plain_loop():
    fitted = fit(lab.grid(seed=[3, 4], learning_rate=[0.1]), build=with_dropout, optimizer=torch.optim.SGD)
    for index, seed in enumerate([3, 4]):
        torch.manual_seed(seed)
        model = with_dropout({}).double()
        stepper = torch.optim.SGD(model.parameters(), lr=0.1)
        order, draw = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        for step in range(25):
            if step % 5 == 0:
                rows = torch.randperm(100, generator=order)
            if step % NOISE_STEPS == 0:
                block = noise(draw, NOISE_STEPS)["noise"]
            picked = rows[step % 5 * 20 :][:20]
            inputs = DATA["inputs"][picked] + block[step % NOISE_STEPS]
            stepper.zero_grad()
            F.cross_entropy(model(inputs), DATA["targets"][picked]).backward()
            stepper.step()
        for name, value in model.named_parameters():
            close(fitted.parameters[name][index], value.detach())
        close(fitted.predict(DATA["inputs"])[index], model.eval()(DATA["inputs"]).detach())


def test_what_cannot_be_drawn_for_each_run_is_refused():
    def shuffling(model, batch, run):
        return F.cross_entropy(model(batch["inputs"])[torch.randperm(20)], batch["targets"])

    with pytest.raises(ValueError, match=r"loss: aten.randperm.* cannot be drawn for each run of a stack; draw it in"):
        fit(lab.grid(seed=range(3), learning_rate=[0.1]), loss=shuffling)


class Autoencoder(nn.Module):
    """Weights that are used twice, a module that is used twice, and buffers: shared, and not saved."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode, self.out = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.decode.weight = nn.Parameter(self.encode.weight.T.clone())
        self.again = nn.ModuleDict({"encode": self.encode})
        self.tied = nn.Linear(6, 8)
        self.tied.weight = self.encode.weight
        self.register_buffer("shift", torch.rand(6), persistent=False)
        self.other = nn.Module()
        self.other.register_buffer("shift", self.shift)

    def forward(self, inputs):
        hidden = self.encode(inputs + self.shift) + self.tied(inputs) + self.again["encode"](inputs)
        return self.out(self.decode(hidden.tanh()) - self.other.shift)


def test_shared_weights_and_buffers_that_are_not_saved():
    fitted = fit(lab.grid(seed=[3, 4], learning_rate=[0.1]), build=lambda run: Autoencoder(), optimizer=torch.optim.SGD)
    for index, seed in enumerate([3, 4]):
        model, history = plain_loop(seed, torch.optim.SGD, 0.1, {}, build=lambda run: Autoencoder())
        assert fitted.history.query("run == @index")["loss"].to_numpy() == pytest.approx(history, abs=1e-9)
        module = fitted.module(index)
        assert module.tied.weight is module.encode.weight is module.again["encode"].weight
        assert module.other.shift is module.shift and module.decode.weight is not module.encode.weight
        close(module.shift, model.shift)
        close(module(DATA["inputs"]).detach(), model(DATA["inputs"]).detach())
        close(fitted.predict(DATA["inputs"])[index], model(DATA["inputs"]).detach())


def test_frozen_parameters_stay_and_unused_ones_are_no_fault():
    def build(run):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        model[0].requires_grad_(False)
        model.unused = nn.Parameter(torch.ones(2))
        return model

    def two_layers(model, batch, run):
        weights = model.parameters
        hidden = F.linear(batch["inputs"], weights["0.weight"], weights["0.bias"]).relu()
        return F.cross_entropy(F.linear(hidden, weights["2.weight"], weights["2.bias"]), batch["targets"])

    fitted = fit(lab.grid(seed=[3], learning_rate=[0.1]), build=build, loss=two_layers)
    torch.manual_seed(3)
    start = build({}).double()
    assert torch.equal(fitted.parameters["0.weight"][0], start[0].weight)
    assert torch.equal(fitted.parameters["unused"][0], start.unused)
    assert not torch.equal(fitted.parameters["2.weight"][0], start[2].weight)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.layer(inputs), {"half": self.layer(inputs) / 2}


def test_outputs_in_any_nesting():
    def first(model, batch, run):
        return F.cross_entropy(model(batch["inputs"])[0], batch["targets"])

    fitted = fit(lab.grid(seed=[3, 4], learning_rate=[0.1]), build=lambda run: Pair(), loss=first)
    whole, rest = fitted.predict(DATA["inputs"], batch_size=30)
    assert whole.shape == (2, 100, 3)
    close(whole, 2 * rest["half"])


@pytest.mark.parametrize("parametrised", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal])
def test_parametrisations_and_hooks(parametrised):
    def build(run):
        model = nn.Sequential(parametrised(nn.Linear(6, 6)), nn.Linear(6, 3))
        model[1].register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
        return model

    fitted = fit(lab.grid(seed=[3, 4], learning_rate=[0.1]), build=build, optimizer=torch.optim.SGD)
    for index, seed in enumerate([3, 4]):
        model, _ = plain_loop(seed, torch.optim.SGD, 0.1, {}, build=build)
        for name, value in model.named_parameters():
            close(fitted.parameters[name][index], value.detach())
        close(fitted.module(index)(DATA["inputs"]).detach(), model(DATA["inputs"]).detach())


def test_truth_values_reach_the_loss_and_texts_reach_build():
    seen = []

    def build(run):
        seen.append(run)
        return nn.Sequential(nn.Linear(6, run["width"] or 8), nn.ReLU(), nn.Linear(8, 3))

    def either(model, batch, run):
        assert run["double"].dtype == torch.bool and run["weight"].dtype == torch.float64
        return torch.where(run["double"], 2 * loss(model, batch, run), loss(model, batch, run))

    runs = lab.grid(seed=[0], learning_rate=[0.0], double=[False, np.True_], weight=[np.float32(1), torch.tensor(3)],
        width=[None, 8], form=["x"])  # fmt: skip
    fitted = fit(runs, build=build, loss=either)
    # As they were given: a table would have made NaN of None and 8.0 of 8.
    assert seen == runs and {run["width"] for run in seen} == {None, 8}
    losses = fitted.history.query("step == 0")["loss"].to_numpy()
    assert losses / losses[0] == pytest.approx([1, 1, 3, 3, 2, 2, 6, 6])
    for name in ("form", "width", "missing"):
        with pytest.raises(KeyError, match=f"run: '{name}' is not a number in every run, so the loss does not see it"):
            fit(runs, build=build, loss=lambda model, batch, run, name=name: run[name])


def changed(**attributes):
    """A network with these attributes of a layer, from its run."""

    def build(run):
        model = nn.Sequential(nn.Linear(6, 3))
        for name, value in attributes.items():
            setattr(model[0], name, value(run))
        return model

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (changed(weight=lambda run: nn.Parameter(torch.ones(3, 6, dtype=torch.complex64))), "real floating-point parameters, got torch.complex64.* for 0.weight"),
        (changed(weight=lambda run: nn.Parameter(torch.ones(3, 6).to_sparse())), "dense.* got torch.float32, torch.sparse_coo for 0.weight"),
        (lambda run: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))), "no spectral_norm, .* got 0.parametrizations.weight.0"),
        (lambda run: nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 3))), "got for 0.weight a tensor"),
        (lambda run: nn.LazyLinear(3), "one that waits for a first input: weight"),
        (lambda run: nn.Identity(), "parameters to train, got none"),
        (lambda run: nn.Linear(6, 3).requires_grad_(False), "parameters to train, got none"),
        (lambda run: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, momentum=None)), "batch normalisation with a momentum, got None for 1"),
        # Once taken from the first network, silently.
        (changed(scale=lambda run: 1.0 + run["seed"]), "got for 0.scale 1.0 in run 0 and 2.0 in run 1; what register_buffer makes may"),
        (changed(mask=lambda run: torch.ones(3) * run["seed"]), r"got for 0.mask a tensor of shape \(3,\) in run 0"),
        (changed(sizes=lambda run: (run["seed"], 1)), r"got for 0.sizes \(0, 1\) in run 0 and \(1, 1\)"),
        (lambda run: nn.Linear(6, 3).requires_grad_(run["seed"] == 0), "parameters to train, got none"),
        (changed(weight=lambda run: nn.Parameter(torch.ones(3, 6), requires_grad=run["seed"] == 0)), r"for parameter 0.weight .* \(\(3, 6\), True\) in run 0 and \(\(3, 6\), False\) in run 1"),
        (changed(more=lambda run: nn.Parameter(torch.ones(1 + run["seed"]))), r"parameter 0.more .* \(\(1,\), True\) in run 0 and \(\(2,\)"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_stacked_are_refused(build, message):
    with pytest.raises(ValueError, match=f"build: expected .*{message}"):
        fit(lab.grid(seed=[0, 1], learning_rate=[0.1]), build=build)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": lambda model, batch, run: 1.0}, "loss: expected a tensor without dimensions for each run, got <class 'float'>"),
        ({"loss": lambda model, batch, run: run["seed"] * 1.0}, "loss: expected a loss that depends on the parameters"),
        ({"loss": lambda model, batch, run: (loss(model, batch, run), {}, {})}, r"loss: expected loss or \(loss, logged\)"),
        ({"options": {"lr": 0.1}}, "options: expected no lr"),
        ({"dtype": torch.int64}, "dtype: expected a floating-point one, got torch.int64"),
        ({"runs": [{"seed": 0.5, "learning_rate": 0.1}]}, "runs: expected a whole number for seed, got 0.5"),
        ({"runs": [{"seed": "0", "learning_rate": 0.1}]}, "runs: expected a whole number for seed, got '0'"),
        ({"runs": [{"seed": 0, "learning_rate": "high"}]}, "runs: expected a number for learning_rate, got 'high'"),
        ({"state": lambda run, module: {"steps": 0}}, "state: expected tensors, got <class 'int'>"),
    ],
)  # fmt: skip
def test_more_settings_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit(change.pop("runs", lab.grid(seed=[0], learning_rate=[1e-3])), **change)


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (np.ones((100, 6)), "<class 'numpy.ndarray'>"),
        (torch.tensor(1.0), r"torch.strided, shape \(\)"),
        (torch.ones(100, 6).to_sparse(), "torch.sparse_coo"),
    ],
)
def test_data_that_cannot_be_drawn_from_are_refused(inputs, got):
    with pytest.raises(ValueError, match=f"data: expected dense tensors .* got {got}.* for inputs"):
        lab.fit(build, loss, {"inputs": inputs}, lab.grid(seed=[0], learning_rate=[1.0]), epochs=1, batch_size=5)


def test_a_log_that_changes_is_refused_when_it_does_and_numbers_can_be_logged():
    calls = []

    def growing(model, batch, run):
        calls.append(1)
        return loss(model, batch, run), {"one": 1.0, "rows": torch.ones(min(len(calls), 2))}

    with pytest.raises(
        ValueError, match=r"loss: expected to log the same at every step, got {'one': \(\), 'rows': \(1,\)}"
    ):
        fit(lab.grid(seed=[0], learning_rate=[0.1]), loss=growing)
    assert len(calls) == 2
    fitted = fit(lab.grid(seed=[0, 1], learning_rate=[0.1]), loss=growing)
    assert fitted.logged["one"].tolist() == [[1.0] * 25] * 2


def test_a_mean_over_no_examples_is_refused():
    fitted = fit(lab.grid(seed=[0], learning_rate=[0.1]))
    with pytest.raises(ValueError, match="inputs: expected at least one example, got none"):
        fitted.means(lambda model, inputs: model(inputs).mean(), DATA["inputs"][:0])
    assert fitted.predict(DATA["inputs"][:0]).shape == (1, 0, 3)
