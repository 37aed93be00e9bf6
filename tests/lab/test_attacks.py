"""Attacks against torchattacks on the same model, and what holds for any attack."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import nn
from torchattacks.attacks.apgdt import APGDT

from lossbook import lab
from lossbook.lab import attacks

EPSILON = 0.15
ATTACKS = {
    "fgsm": lambda **k: attacks.fgsm(**k),
    "pgd": lambda **k: attacks.pgd(generator=draw(), restarts=2, **k),
    "auto_pgd": lambda **k: attacks.auto_pgd(generator=draw(), steps=20, **k),
    "square": lambda **k: attacks.square(generator=draw(), queries=60, **k),
}


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(steps=60, robust=True, seed=0):
    """A small network for digits, in double precision, trained against PGD; and test digits."""
    train, test = (lab.load("digits", split=name) for name in ("train", "test"))
    x, y = train.inputs.double(), train.targets
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = lab.mlp([64, 48, 10]).double()
    adam, order = torch.optim.Adam(model.parameters(), lr=0.01), draw()
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=order)
        seen = attacks.pgd(model, x[rows], y[rows], epsilon=EPSILON, steps=4) if robust else x[rows]
        adam.zero_grad()
        F.cross_entropy(model(seen), y[rows]).backward()
        adam.step()
    return model.eval(), test.inputs[:60].double(), test.targets[:60]


MODEL, X, Y = trained()


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_fgsm_is_that_of_torchattacks():
    same(attacks.fgsm(MODEL, X, Y, epsilon=EPSILON), torchattacks.FGSM(MODEL, eps=EPSILON)(X, Y))


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_is_that_of_torchattacks(targeted):
    theirs = torchattacks.PGD(MODEL, eps=EPSILON, alpha=0.03, steps=10)
    goal = (Y + 3) % 10
    if targeted:
        theirs.set_mode_targeted_by_function(lambda _, labels: (labels + 3) % 10)
    torch.manual_seed(1)
    expected = theirs(X, Y)
    torch.manual_seed(1)
    start = torch.empty_like(X).uniform_(-EPSILON, EPSILON)
    same(
        attacks.pgd(
            MODEL, X, goal if targeted else Y, epsilon=EPSILON, step_size=0.03, start=start, targeted=targeted, steps=10
        ),
        expected,
    )


def test_pgd_in_l2_is_that_of_torchattacks():
    torch.manual_seed(1)
    expected = torchattacks.PGDL2(MODEL, eps=0.8, alpha=0.2, steps=10)(X, Y)
    torch.manual_seed(1)
    delta = torch.empty_like(X).normal_()
    length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    start = delta * torch.zeros_like(length).uniform_(0, 1) / length * 0.8
    # They add 1e-10 to the length of the gradient of a mean.
    ours = attacks.pgd(MODEL, X, Y, epsilon=0.8, step_size=0.2, start=start, norm="l2")
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_pgd_on_the_divergence_is_that_of_torchattacks():
    torch.manual_seed(1)
    expected = torchattacks.TPGD(MODEL, eps=EPSILON, alpha=0.03, steps=10)(X, Y)
    torch.manual_seed(1)
    start = 0.001 * torch.randn_like(X)
    same(attacks.pgd(MODEL, X, loss="kl", epsilon=EPSILON, step_size=0.03, start=start), expected)


def test_losses_are_those_of_torchattacks():
    logits = torch.randn(50, 10, generator=draw(), dtype=torch.float64)
    targets = torch.randint(10, (50,), generator=draw())
    same(attacks.logit_ratio(logits, targets), torchattacks.APGD(MODEL).dlr_loss(logits, targets))
    margin, _ = torchattacks.Square(MODEL, loss="margin").margin_and_loss(X, Y)
    same(attacks.logit_margin(MODEL(X), Y), -margin)
    assert isinstance(torchattacks.APGDT(MODEL), APGDT)
    same(attacks.logit_ratio(3 * logits + 7, targets), attacks.logit_ratio(logits, targets))


def test_any_function_is_a_loss():
    start = attacks.random_start(X, generator=draw(), epsilon=EPSILON)[0]
    named = {
        "cross_entropy": lambda z, y: F.cross_entropy(z, y, reduction="none"),
        "margin": attacks.logit_margin,
        "ratio": attacks.logit_ratio,
    }
    for name, function in named.items():
        by_name, by_function = (
            attacks.pgd(MODEL, X, Y, epsilon=EPSILON, loss=loss, start=start) for loss in (name, function)
        )
        same(by_name, by_function)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_stays_in_the_ball_and_in_the_bounds_and_does_harm(attack, norm):
    radius = EPSILON if norm == "linf" else 1.0
    found = ATTACKS[attack](model=MODEL, inputs=X, targets=Y, epsilon=radius, norm=norm)
    away = (found - X).flatten(1)
    lengths = away.abs().amax(1) if norm == "linf" else away.norm(dim=1)
    assert lengths.max() <= radius + 1e-12 and found.min() >= 0 and found.max() <= 1
    assert found.dtype == X.dtype and not found.requires_grad
    assert lab.accuracy(MODEL(found), Y) < lab.accuracy(MODEL(X), Y) - 0.05


def test_targeted_goes_where_it_is_told():
    goal = (Y + 1) % 10
    for attack in (attacks.pgd, attacks.auto_pgd):
        found = attack(MODEL, X, goal, epsilon=0.4, targeted=True, steps=30)
        assert lab.accuracy(MODEL(found), goal) > 0.5
    first = attacks.fgsm(MODEL, X, goal, epsilon=0.01, targeted=True)
    assert (F.cross_entropy(MODEL(first), goal) < F.cross_entropy(MODEL(X), goal)).item()


def test_restarts_and_more_steps_only_help():
    once = attacks.logit_margin(MODEL(attacks.pgd(MODEL, X, Y, epsilon=EPSILON, generator=draw())), Y)
    often = attacks.logit_margin(MODEL(attacks.pgd(MODEL, X, Y, epsilon=EPSILON, generator=draw(), restarts=6)), Y)
    assert (often >= once - 1e-12).all() and (often > once).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_auto_pgd_reaches_higher_losses_than_pgd(norm):
    radius = EPSILON if norm == "linf" else 1.0
    fixed, halving = (
        F.cross_entropy(MODEL(attack(MODEL, X, Y, epsilon=radius, steps=20, norm=norm, **more)), Y, reduction="none")
        for attack, more in ((attacks.pgd, {"step_size": radius / 4}), (attacks.auto_pgd, {}))
    )
    right = MODEL(X).argmax(1) == Y
    assert halving[right].mean() > fixed[right].mean() - 0.02


def test_linear_model_has_a_known_optimum():
    """Of two classes, the margin under the worst perturbation is the clean one plus ε times the dual norm."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    x = 0.5 + 0.01 * torch.randn(20, 1, 3, 4, generator=draw(), dtype=torch.float64)
    y = torch.randint(2, (20,), generator=draw())
    slope = (linear[1].weight[0] - linear[1].weight[1]).detach()
    clean = attacks.logit_margin(linear(x), y).detach()
    for norm, dual in (("linf", slope.abs().sum()), ("l2", slope.norm())):
        for attack in (attacks.pgd, attacks.auto_pgd):
            found = attack(linear, x, y, epsilon=0.1, loss="margin", norm=norm, steps=40)
            torch.testing.assert_close(attacks.logit_margin(linear(found), y).detach(), clean + 0.1 * dual)


def test_random_starts_fill_the_ball():
    for norm in ("linf", "l2"):
        start = attacks.random_start(X[:1], generator=draw(), epsilon=0.5, norm=norm, restarts=4000).flatten(2)[:, 0]
        radius = start.abs().amax(1) if norm == "linf" else start.norm(dim=1)
        # The radius to the power of the dimension is uniform.
        share = np.sort((radius / 0.5).numpy() ** 64)
        assert np.abs(share - (np.arange(4000) + 0.5) / 4000).max() < 0.04  # one sample in 100,000 is further off


def test_ensemble_is_no_weaker_than_torchattacks():
    x, y = X[:40], Y[:40]
    found = attacks.ensemble(MODEL, x, y, epsilon=EPSILON, generator=draw(), steps=50, queries=200)
    ours = found.robust_accuracy()
    torch.manual_seed(0)
    pgd = torchattacks.PGD(MODEL, eps=EPSILON, alpha=EPSILON / 4, steps=40)(x, y)
    auto = torchattacks.AutoAttack(MODEL.float(), eps=EPSILON, seed=0)(x.float(), y)
    theirs = min(lab.accuracy(MODEL(pgd.float()), y), lab.accuracy(MODEL(auto), y))
    MODEL.double()
    assert 0 < ours <= theirs + 1.5 / 40  # one of forty, since all are random
    assert set(found.by) == {"clean", "cross_entropy", "ratio", "margin", "targeted", "square"}
    assert torch.equal(torch.stack([*found.by.values()]).any(0), found.success)
    assert torch.equal(MODEL(found.inputs).argmax(1) != y, found.success)
    untouched = ~found.success | found.by["clean"]
    assert torch.equal(found.inputs[untouched], x[untouched])


def test_robust_accuracy_counts_what_is_right_before_and_after():
    options = {"epsilon": EPSILON, "steps": 10}
    chunks = zip(X.split(17), Y.split(17), strict=True)
    found = torch.cat([attacks.pgd(MODEL, x, y, **options) for x, y in chunks])
    expected = (MODEL(X).argmax(1) == Y) & (MODEL(found).argmax(1) == Y)
    assert attacks.robust_accuracy(MODEL, X, Y, attacks.pgd, batch_size=17, **options) == expected.double().mean()
    whole = attacks.ensemble(MODEL, X, Y, epsilon=EPSILON, generator=draw(), steps=8, queries=10)
    chunk = attacks.robust_accuracy(MODEL, X, Y, epsilon=EPSILON, generator=draw(), steps=8, queries=10)
    torch.testing.assert_close(chunk, whole.robust_accuracy())


def test_ties_earn_nothing():
    def constant(x):
        return 0 * x.flatten(1)[:, :10]

    options = {"epsilon": 0.1, "generator": draw(), "steps": 2, "queries": 2, "classes": 1}
    assert attacks.robust_accuracy(constant, X, Y, **options) == 0
    assert attacks.ensemble(constant, X, Y, **options).success.all()


def build(run):
    return lab.mlp([64, 16, 10])


def adversarial_training(model, batch, run):
    x, y = batch["inputs"], batch["targets"]
    found = attacks.pgd(model, x, y, epsilon=run["epsilon"], steps=2, start=0.05 * batch["start"])
    return F.cross_entropy(model(found), y), {"away": (found - x).abs().amax()}


@pytest.fixture(scope="module")
def fitted():
    train = lab.load("digits")
    return lab.fit(
        build,
        adversarial_training,
        {"inputs": train.inputs, "targets": train.targets},
        [{"seed": seed, "learning_rate": 0.01, "epsilon": e} for seed, e in ((0, 0.02), (1, 0.05), (2, 0.1))],
        epochs=8,
        batch_size=128,
        noise=lambda generator, steps: {"start": 2 * torch.rand(steps, 128, 1, 8, 8, generator=generator) - 1},
        device="cpu",
        progress=None,
    )


def test_attacks_in_stacked_training(fitted):
    torch.testing.assert_close(fitted.logged["away"].amax(1), torch.tensor([0.02, 0.05, 0.1]))


def test_training_against_attacks_has_the_gradient_of_a_fixed_example():
    model, x = trained(5)[0], X
    start = attacks.random_start(x, generator=draw(), epsilon=0.1)[0]
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, found=None):
        def network(x):
            return torch.func.functional_call(model, parameters, (x,))

        return F.cross_entropy(
            network(attacks.pgd(network, x, Y, epsilon=0.1, start=start) if found is None else found), Y
        )

    fixed = attacks.pgd(model, x, Y, epsilon=0.1, start=start)
    gradients = [torch.func.grad(loss)(parameters, found) for found in (None, fixed)]
    for name in parameters:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


@pytest.fixture(scope="module")
def double(fitted):
    """The same runs in double precision: where rounding decides a sign it grows, and there it does not get so far."""
    return dataclasses.replace(fitted, parameters={name: value.double() for name, value in fitted.parameters.items()})


def alone(double, run):
    module = double.module(run).double()
    module.load_state_dict({name: value[run] for name, value in double.parameters.items()})
    return module


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_all_runs_at_once_are_the_runs_one_by_one(double, attack):
    x, y = X[:20], Y[:20]
    together = ATTACKS[attack](model=double, inputs=x, targets=y, epsilon=EPSILON)
    assert together.shape == (3, *x.shape)
    for run in range(3):
        single = ATTACKS[attack](model=alone(double, run), inputs=x, targets=y, epsilon=EPSILON)
        torch.testing.assert_close(together[run], single, rtol=0, atol=1e-9)
    own = ATTACKS[attack](model=double, inputs=together, targets=y.expand(3, -1), epsilon=EPSILON)
    assert own.shape == together.shape


def test_robust_accuracy_of_all_runs(double):
    def judged(model):
        options = {"steps": 5, "queries": 10, "classes": 2, "batch_size": 25}
        return attacks.robust_accuracy(model, X, Y, epsilon=EPSILON, generator=draw(), **options)

    found = judged(double)
    assert found.tolist() == [judged(alone(double, run)).item() for run in range(3)]
    torch.testing.assert_close(double.each(X.expand(3, *X.shape)), double.predict(X))
    assert (found < lab.accuracy(double.predict(X), Y)).all()


def test_module_is_in_evaluation_mode_meanwhile_and_left_as_it_was():
    modes = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.drop = nn.Linear(64, 10), nn.Dropout(0.5)

        def forward(self, x):
            modes.append((self.training, self.drop.training))
            return self.drop(self.inner(x.flatten(1)))

    spy = Spy().double()
    spy.drop.eval()
    attacks.pgd(spy, X, Y, epsilon=0.1, steps=2)
    assert spy.training and not spy.drop.training and spy.inner.training
    assert set(modes) == {(False, False)}
    assert all(p.grad is None for p in spy.parameters())


def test_own_bounds():
    shifted = nn.Sequential(lab.mlp([64, 10]).double())
    found = attacks.pgd(shifted, 4 * X - 2, Y, epsilon=0.5, bounds=(-2.0, 2.0))
    assert found.min() >= -2 and found.max() <= 2 and found.min() < -1
    with pytest.raises(ValueError, match=r"inputs: expected values within bounds=\(0.0, 1.0\), got -2 to 2"):
        attacks.robust_accuracy(shifted, 4 * X - 2, Y, attacks.pgd, epsilon=0.5)


def test_square_takes_series_and_vectors():
    for shape in ((64,), (1, 64), (4, 16), (4, 4, 4)):
        x = X.reshape(-1, *shape)
        found = attacks.square(MODEL, x, Y, epsilon=EPSILON, queries=80, generator=draw())
        assert found.shape == x.shape
        assert lab.accuracy(MODEL(found), Y) < lab.accuracy(MODEL(X), Y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -0.1}, "epsilon: expected a finite number of at least 0, got -0.1"),
        ({"epsilon": math.nan}, "epsilon: expected a finite number of at least 0, got nan"),
        ({"epsilon": math.inf}, "epsilon: expected a finite number of at least 0, got inf"),
        ({"epsilon": torch.tensor(-0.1)}, "epsilon: expected a finite number of at least 0, got -0.1"),
        ({"epsilon": torch.tensor([0.1])}, r"epsilon: .* got torch.float32 of shape \(1,\)"),
        ({"epsilon": torch.tensor(1)}, r"epsilon: .* got torch.int64 of shape \(\)"),
        ({"inputs": (255 * X).byte()}, "inputs: expected a floating-point tensor, got torch.uint8"),
        ({"inputs": 4 * X - 2}, r"inputs: expected values within bounds=\(0.0, 1.0\), got -2 to 2"),
        ({"inputs": math.nan * X}, "inputs: expected numbers, got NaN in 3840 of 3840 places"),
        ({"targets": Y[:3]}, r"targets: expected shape \(60,\), one class for each example, got \(3,\)"),
        (
            {"targets": Y[:, None]},
            r"targets: expected shape \(60, 1\), one class for each example, got \(60, 1\)|model: ",
        ),
        ({"targets": Y.float()}, "targets: expected whole numbers, got torch.float32"),
        ({"targets": Y + 8}, "targets: expected numbers from 0 to 9, got 8 to 17"),
        ({"targets": Y - 100}, "targets: expected numbers of at least 0, got -100 to -91"),
        (
            {"model": lambda x: x.flatten(1)[:, :1]},
            r"model: expected logits of shape \(60, classes\), .* got \(60, 1\)",
        ),
        ({"model": lambda x: (x, x)}, r"model: expected logits of shape \(60, classes\), .* got tuple"),
        (
            {"loss": lambda z, y: F.cross_entropy(z, y)},
            r"loss: expected shape \(60,\), one number for each .* got \(\)",
        ),
        ({"steps": 0}, "steps: expected a whole number of at least 1, got 0"),
        ({"norm": "l1"}, "norm: expected 'linf' or 'l2', got 'l1'"),
        ({"loss": "ce"}, "loss: expected 'cross_entropy', 'margin', 'ratio', 'kl' or a function, got 'ce'"),
        ({"loss": "kl"}, "start: expected one, or a generator: the gradient of 'kl' vanishes"),
        ({"restarts": 3}, "generator: expected one, to draw 3 starts from, got None"),
        ({"start": torch.zeros(2)}, r"start: expected the inputs' shape \(60, 1, 8, 8\), got \(2,\)"),
        ({"start": torch.zeros(2), "generator": torch.Generator()}, "start: expected either .* got both"),
        ({"bounds": (1.0, 0.0)}, "bounds: expected the lower before the higher"),
        ({"targets": None}, "targets: expected classes for the loss 'cross_entropy', got None"),
    ],
)
def test_bad_input_is_refused(options, message):
    for attack in (attacks.pgd, attacks.auto_pgd):
        with pytest.raises(ValueError, match=message):
            attack(**{"model": MODEL, "inputs": X, "targets": Y, "epsilon": 0.1, **options})


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="logits: expected at least three classes, got 2"):
        attacks.logit_ratio(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="share: expected a number above 0 and at most 1, got 2"):
        attacks.square(MODEL, X, Y, epsilon=0.1, share=2, generator=draw())
    with pytest.raises(ValueError, match="targeted: expected False"):
        attacks.robust_accuracy(MODEL, X, Y, attacks.pgd, epsilon=0.1, targeted=True)
    with pytest.raises(ValueError, match="step_size: expected a positive, finite number, got 0"):
        attacks.pgd(MODEL, X, Y, epsilon=0.1, step_size=0)
    with pytest.raises(ValueError, match=r"targets: expected shape \(60,\), one class for each example, got \(59,\)"):
        attacks.robust_accuracy(MODEL, X, Y[:-1], attacks.pgd, epsilon=0.1)
    with pytest.raises(
        ValueError, match=r"attack: expected shape \(60, 1, 8, 8\), that of the inputs, got \(30, 1, 8, 8\)"
    ):
        attacks.robust_accuracy(MODEL, X, Y, lambda model, x, y, **_: x[:30])


EVERY = {
    **ATTACKS,
    "ensemble": lambda **k: attacks.ensemble(generator=draw(), steps=4, queries=4, classes=2, **k).inputs,
}


@pytest.mark.parametrize("attack", EVERY)
def test_every_attack_refuses_what_it_cannot_attack(attack):
    for inputs, message in (
        (4 * X - 2, r"inputs: expected values within bounds=\(0.0, 1.0\), got -2 to 2"),
        ((255 * X).byte(), "inputs: expected a floating-point tensor, got torch.uint8"),
        (X[:5], r"targets: expected shape \(5,\), one class for each example, got \(60,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            EVERY[attack](model=MODEL, inputs=inputs, targets=Y, epsilon=0.1)
    with pytest.raises(ValueError, match="epsilon: expected a finite number of at least 0, got -0.1"):
        EVERY[attack](model=MODEL, inputs=X, targets=Y, epsilon=torch.tensor(-0.1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", EVERY)
def test_no_radius_returns_the_inputs(attack, norm):
    for nothing in (0, 0.0, torch.tensor(0.0), np.float32(0)):
        assert torch.equal(EVERY[attack](model=MODEL, inputs=X, targets=Y, epsilon=nothing, norm=norm), X)


@pytest.mark.parametrize("attack", EVERY)
def test_a_radius_is_a_number_of_any_kind_and_targets_of_any_dtype(attack):
    expected = EVERY[attack](model=MODEL, inputs=X, targets=Y, epsilon=0.125)
    for radius, targets in ((np.float32(0.125), Y.to(torch.uint8)), (torch.tensor(0.125), Y.to(torch.int16))):
        same(EVERY[attack](model=MODEL, inputs=X, targets=targets, epsilon=radius), expected)


# Not a number


def spoilt_beyond(limit):
    """The model, with NaN for inputs whose sum exceeds their clean one by so much."""

    def model(x):
        logits = MODEL(x)
        far = (x - X[: len(x)]).flatten(1).abs().sum(1) > limit
        return torch.where(far[:, None], math.nan, logits)

    return model


NAN = r"model: expected logits, and a loss and its gradient, that are numbers, got NaN for \d+ of \d+ examples"


@pytest.mark.parametrize("limit", [-1.0, 1e-6], ids=["always", "under attack"])
@pytest.mark.parametrize("attack", EVERY)
def test_a_model_that_answers_nan_is_not_robust(attack, limit):
    model = spoilt_beyond(limit)

    def moved(_, inputs, targets, **options):
        return EVERY[attack](model=MODEL, inputs=inputs, targets=targets, **options)

    if attack != "fgsm" or limit < 0:  # it does not ask the model what came of its one step; who counts does
        with pytest.raises(ValueError, match=NAN):
            EVERY[attack](model=model, inputs=X, targets=Y, epsilon=0.1)
    with pytest.raises(ValueError, match=NAN):
        attacks.robust_accuracy(model, X, Y, moved, epsilon=0.1)


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "auto_pgd", "ensemble"])
def test_a_gradient_that_is_nan_does_not_stand_still(attack):
    with pytest.raises(ValueError, match=NAN):
        EVERY[attack](
            model=lambda x: MODEL(x) + 0 * x.flatten(1)[:, :1].sqrt(), inputs=X.clamp(min=0), targets=Y, epsilon=0.1
        )
    with pytest.raises(ValueError, match="model: expected logits with a gradient by the inputs, got none"):
        EVERY[attack](model=lambda x: MODEL(x).detach(), inputs=X, targets=Y, epsilon=0.1)


def test_under_vmap_what_cannot_be_refused_comes_out_as_nan():
    scale = torch.tensor([1.0, math.nan, 1.0])

    def run(scale, epsilon):
        return attacks.pgd(lambda x: scale * MODEL(x), X, Y, epsilon=epsilon, norm="l2", steps=3)

    for scales, radii, bad in (
        (scale, torch.full((3,), 0.5), [False, True, False]),
        (torch.ones(3), torch.tensor([0.5, -0.5, 0.0]), [False, True, False]),
    ):
        found = torch.func.vmap(run)(scales, radii.double())
        assert found.isnan().flatten(1).all(1).tolist() == found.isnan().flatten(1).any(1).tolist() == bad
        same(found[0], attacks.pgd(MODEL, X, Y, epsilon=0.5, norm="l2", steps=3))

    def share(scale):
        return attacks.robust_accuracy(lambda x: scale * MODEL(x), X, Y, attacks.pgd, epsilon=0.0)

    assert torch.func.vmap(share)(scale).tolist() == [lab.accuracy(MODEL(X), Y), 0, lab.accuracy(MODEL(X), Y)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_under_vmap_inputs_outside_the_bounds_move_no_further_than_the_radius(norm):
    inputs = torch.stack([6 * X - 3, X])
    for attack in (attacks.pgd, partial(attacks.auto_pgd, steps=8)):
        attack = partial(attack, MODEL, targets=Y, epsilon=0.1, norm=norm)
        found = torch.func.vmap(attack)(inputs)
        away = (found - inputs).flatten(2)
        lengths = away.abs().amax(-1) if norm == "linf" else away.norm(dim=-1)
        assert 0.05 < lengths[0].max() <= 0.1 + 1e-12 and lengths[1].max() <= 0.1 + 1e-12
        # What lies outside is not moved further out.
        assert (found[0][inputs[0] > 1] <= inputs[0][inputs[0] > 1]).all()
        assert (found[0][inputs[0] < 0] >= inputs[0][inputs[0] < 0]).all()
        same(found[1], attack(X))


def test_a_start_outside_the_ball_is_cut_back():
    start = torch.ones_like(X)
    for attack in (attacks.pgd, attacks.auto_pgd):
        found = attack(MODEL, X, Y, epsilon=0.1, start=start, steps=1)
        assert (found - X).abs().max() <= 0.1 + 1e-12


@pytest.mark.parametrize("attack", sorted(EVERY))
def test_of_no_examples_there_are_no_adversarial_ones(attack, double):
    for model, lead in ((MODEL, ()), (double, (3,))):
        for norm in ("linf", "l2"):
            found = EVERY[attack](model=model, inputs=X[:0], targets=Y[:0], epsilon=0.1, norm=norm)
            assert found.shape == (*lead, 0, 1, 8, 8)


def test_shares_of_no_examples_are_refused():
    none = attacks.ensemble(MODEL, X[:0], Y[:0], epsilon=0.1, generator=draw(), steps=2, queries=2)
    assert {name: len(each) for name, each in none.by.items()} == dict.fromkeys(none.by, 0)
    for call in (none.robust_accuracy, lambda: attacks.robust_accuracy(MODEL, X[:0], Y[:0], attacks.pgd, epsilon=0.1)):
        with pytest.raises(ValueError, match="inputs: expected examples, got none"):
            call()


# Gradients


@pytest.mark.parametrize("scale", [1e-30, 1e30], ids=["tiny", "huge"])
def test_l2_direction_does_not_depend_on_the_scale_of_the_gradient(scale):
    """In float32 the square of 1e30 overflows, that of 1e-30 vanishes."""
    model, x = trained(5)[0].float(), X.float()
    for attack in (attacks.pgd, attacks.auto_pgd):
        options = {"epsilon": 0.5, "norm": "l2", "steps": 3, "loss": "margin"}
        expected = attack(model, x, Y, **options)
        found = attack(lambda x: scale * model(x), x, Y, **options)
        assert ((expected - x).flatten(1).norm(dim=1) > 0.4).all()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Classic(torch.autograd.Function):
    """The square as a function with a backward pass of its own, in the form that torch.func does not take."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = MODEL

    def forward(self, x):
        return self.inner(x.square())


class WithFunction(Plain):
    def forward(self, x):
        return self.inner(Classic.apply(x))


class WithCheckpoint(Plain):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)


class WithGradient(Plain):
    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            # The gradient of a third of the cube is the square.
            (square,) = torch.autograd.grad((x**3).sum() / 3, x, create_graph=True)
            return self.inner(square)


@pytest.mark.parametrize("kind", [WithFunction, WithCheckpoint, WithGradient])
@pytest.mark.parametrize("attack", sorted(EVERY))
def test_models_that_torch_func_does_not_take(attack, kind):
    options = {"inputs": X, "targets": Y, "epsilon": EPSILON}
    same(EVERY[attack](model=kind(), **options), EVERY[attack](model=Plain(), **options))


def test_no_gradient_reaches_or_leaves_parameters():
    model = trained(5)[0]
    for value in model.parameters():
        value.grad = None
    attacks.ensemble(model, X, Y, epsilon=0.1, generator=draw(), steps=2, queries=2)
    assert all(value.grad is None and value.requires_grad for value in model.parameters())


def test_attacks_in_inference_mode():
    expected = attacks.pgd(MODEL, X, Y, epsilon=EPSILON)
    with torch.inference_mode():
        same(attacks.pgd(MODEL, X.clone(), Y.clone(), epsilon=EPSILON), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attack", sorted(EVERY))
def test_half_precision(attack, dtype):
    model, x = trained(20)[0].to(dtype), X.to(dtype)
    found = EVERY[attack](model=model, inputs=x, targets=Y, epsilon=EPSILON)
    assert found.dtype == dtype and (found - x).abs().max() <= EPSILON + 0.01
    assert lab.accuracy(model(found), Y) < lab.accuracy(model(x), Y)


# The targeted ratio


def test_targeted_ratio_is_that_of_torchattacks():
    logits = torch.randn(50, 10, generator=draw(), dtype=torch.float64)
    targets, goals = torch.randint(10, (2, 50), generator=draw())
    theirs = APGDT(MODEL)
    theirs.y_target = goals
    ours = attacks.targeted_logit_ratio(logits, targets, goals)
    same(ours, theirs.dlr_loss_targeted(logits, targets, goals))
    top = logits.sort(1, descending=True).values
    rows = torch.arange(50)
    gap = logits[rows, targets] - logits[rows, goals]
    same(ours, -gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2))
    same(attacks.targeted_logit_ratio(3 * logits + 7, targets, goals), ours)
    with pytest.raises(ValueError, match="logits: expected at least four classes, got 3"):
        attacks.targeted_logit_ratio(logits[:, :3], targets % 3, goals % 3)
    with pytest.raises(ValueError, match=r"goals: expected shape \(50,\)"):
        attacks.targeted_logit_ratio(logits, targets, goals[:4])


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_ensemble_raises_the_targeted_ratio_from_four_classes_on(classes, monkeypatch):
    losses = []
    ascend = attacks.auto_pgd
    monkeypatch.setattr(attacks, "auto_pgd", lambda *a, loss, **k: losses.append(loss) or ascend(*a, loss=loss, **k))
    y = Y % classes
    attacks.ensemble(lambda x: MODEL(x)[:, :classes], X, y, epsilon=0.1, generator=draw(), steps=2, queries=0)
    targeted = [loss for loss in losses if callable(loss)]
    assert len(targeted) == classes - 1
    logits = MODEL(X)[:, :classes].detach()
    goal = logits.scatter(1, y[:, None], -math.inf).argmax(1)
    gap = (logits.gather(1, goal[:, None]) - logits.gather(1, y[:, None]))[:, 0]
    expected = gap if classes < 4 else attacks.targeted_logit_ratio(logits, y, goal)
    same(targeted[0](logits, y), expected)
