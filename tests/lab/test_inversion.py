"""Model inversion where the answer is known: invertible models, enumerated posteriors, and nothing to find."""

import math

import pytest
import torch
from scipy.stats import binomtest

from lossbook.lab import inversion

DRAW = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=DRAW)


def test_decoder_inverts_an_invertible_linear_model_and_finds_nothing_in_noise():
    pictures, attacked = normal(300, 1, 2, 3), normal(100, 1, 2, 3)
    weight = torch.linalg.qr(normal(6, 6)).Q * torch.linspace(0.5, 2, 6)
    released, seen = pictures.flatten(1) @ weight, attacked.flatten(1) @ weight
    chance = normal(1, 300, 6)
    decoders = inversion.fit_decoders(torch.stack([released[None], chance]), pictures, epochs=5, progress=None)
    decoded = decoders(torch.stack([seen, normal(100, 6)]))
    assert decoded.shape == (2, *attacked.shape)
    mean = pictures.mean(0).expand_as(attacked)
    assert inversion.explained_share(decoded[0], attacked, mean).low > 0.999
    nothing = inversion.explained_share(decoded[1], attacked, mean)
    assert nothing.low < 0.05 and nothing.effect < 0.05


def test_decoder_beats_least_squares_where_the_model_is_not_linear():
    inputs, attacked = (2 * torch.rand(n, 2, generator=DRAW) - 1 for n in (800, 200))
    decoders = inversion.fit_decoders((inputs**3)[None, None], inputs, epochs=60, learning_rate=0.01, progress=None)
    linear = inversion.fit_decoders((inputs**3)[None, None], inputs, epochs=1, learning_rate=0.0, progress=None)
    assert decoders.trained == [True] and linear.trained == [False]
    mean = torch.zeros_like(attacked)
    shares = [
        inversion.explained_share(each((attacked**3)[None])[0], attacked, mean).effect for each in (decoders, linear)
    ]
    assert shares[0] > 0.99 and 0.7 < shares[1] < 0.95


def test_decoders_do_not_depend_on_what_they_were_fitted_with():
    released, inputs = normal(3, 2, 60, 4), normal(60, 5)
    together = inversion.fit_decoders(released, inputs, epochs=2, progress=None)
    alone = inversion.fit_decoders(released[1:2], inputs, epochs=2, progress=None)
    torch.testing.assert_close(together(released[:, 0])[1], alone(released[1:2, 0])[0], rtol=1e-4, atol=1e-5)


def test_decoder_stands_releases_that_say_nothing_or_twice_the_same():
    inputs = normal(50, 3)
    constant = torch.ones(1, 1, 50, 4)
    double = torch.cat([inputs, inputs, -inputs.sum(1, keepdim=True)], 1)[None, None]
    decoded = inversion.fit_decoders(constant, inputs, epochs=1, learning_rate=0.0, progress=None)(constant[:, 0])
    torch.testing.assert_close(decoded, decoded[:, :1].expand_as(decoded))
    decoded = inversion.fit_decoders(double, inputs, epochs=1, learning_rate=0.0, progress=None)(double[:, 0])
    torch.testing.assert_close(decoded[0], inputs, rtol=1e-4, atol=1e-4)


def test_averaging_takes_noise_out():
    inputs, attacked = normal(400, 3), normal(400, 3)
    noisy = [lambda x=x: x + 2 * normal(*x.shape) for x in (inputs, attacked)]
    shares = []
    for queries in (1, 100):
        auxiliary = torch.stack([inversion.averaged(noisy[0], queries) for _ in range(3)])[None]
        decoders = inversion.fit_decoders(auxiliary, inputs, epochs=3, progress=None)
        decoded = decoders(inversion.averaged(noisy[1], queries)[None])[0]
        shares.append(inversion.explained_share(decoded, attacked, torch.zeros_like(attacked)).effect)
    # The best linear estimate explains 1 / (1 + noise / queries) of the variance.
    assert shares[0] == pytest.approx(1 / 5, abs=0.1) and shares[1] == pytest.approx(1 / 1.04, abs=0.02)


def test_ascent_reaches_the_known_maximum():
    # Gaussian classes with means at a corner, in the middle and outside the box: the posterior's maximum is on the box.
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])

    def posterior(x):
        return torch.log_softmax(x @ weight.T, -1)

    start, targets = torch.full((2, 3, 2), 0.5), torch.arange(3).repeat(2, 1)
    found = inversion.ascend_posterior(posterior, start, targets, steps=100, learning_rate=0.1)
    expected = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(found[:, [0, 2]], expected[[0, 2]].repeat(2, 1, 1), rtol=0, atol=1e-4)
    values = [posterior(each)[..., 1] for each in (found[0, 1], expected[1])]
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-3)
    assert (start == 0.5).all()


def test_ascent_with_a_penalty_stays_at_the_interior_maximum():
    found = inversion.ascend_posterior(
        lambda x: torch.log_softmax(torch.cat([x, torch.zeros_like(x)], -1), -1),
        torch.full((1, 1), 0.9),
        torch.tensor([0]),
        steps=500,
        learning_rate=0.01,
        penalty=0.5,
    )
    x = found.item()
    assert x == pytest.approx(1 - torch.sigmoid(found).item(), abs=1e-3)  # the slope of both terms


def test_ascent_averages_the_posterior_over_queries():
    sides = iter([torch.tensor([8.0]), torch.tensor([-8.0])] * 1000)

    def posterior(x):
        # Either side of a coin toss alone pushes right or left; the mean over both has its maximum in the middle.
        return torch.log_softmax(torch.cat([-((4 * x - 2 - next(sides) / 8) ** 2), torch.zeros_like(x)], -1), -1)

    found = inversion.ascend_posterior(
        posterior, torch.full((1, 1), 0.9), torch.tensor([0]), steps=400, learning_rate=0.01, queries=2
    )
    assert found.item() == pytest.approx(0.5, abs=0.01)


def test_posterior_is_bayes_rule_over_queries():
    table = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], dtype=torch.float64)  # p(release | value)
    prior = torch.tensor([0.3, 0.7], dtype=torch.float64)
    for first in range(3):
        for second in range(3):
            likelihoods = table[:, [first, second]].T[:, None].log()
            found = inversion.attribute_posterior(likelihoods, prior)
            joint = prior * table[:, first] * table[:, second]
            torch.testing.assert_close(found[0], joint / joint.sum())


def test_success_is_that_of_the_enumerated_bayes_guess():
    table = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], dtype=torch.float64)
    prior = torch.tensor([0.3, 0.7], dtype=torch.float64)
    bayes = (prior[:, None] * table).amax(0).sum()
    value, release = (each.flatten() for each in torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij"))
    posterior = inversion.attribute_posterior(table[:, release].T[None].log(), prior)
    success = (inversion.attribute_success(posterior, value) * prior[value] * table[value, release]).sum()
    torch.testing.assert_close(success, bayes)


def test_without_information_the_prior_is_left_and_ties_are_shared():
    truth = torch.tensor([0, 1, 2, 3])
    assert (
        inversion.attribute_success(inversion.attribute_posterior(torch.zeros(5, 4, 4)), truth).tolist() == [0.25] * 4
    )
    impossible = torch.full((1, 4, 4), -math.inf)
    prior = torch.tensor([0.1, 0.2, 0.4, 0.3])
    posterior = inversion.attribute_posterior(impossible, prior)
    torch.testing.assert_close(posterior, prior.double().expand(4, 4), rtol=1e-6, atol=1e-6)
    assert inversion.attribute_success(posterior, truth).tolist() == [0, 0, 1, 0]
    torch.testing.assert_close(inversion.attribute_posterior(torch.zeros(0, 4, 4), prior), posterior)
    # Two of four values can have led to the release.
    halves = torch.tensor([0.0, 0.0, -math.inf, -math.inf]).expand(1, 4, 4)
    assert inversion.attribute_success(inversion.attribute_posterior(halves), truth).tolist() == [0.5, 0.5, 0, 0]


def test_candidates_replace_one_column():
    inputs = normal(5, 3)
    rows = inversion.with_candidates(inputs, 1, torch.tensor([7.0, 8.0]))
    assert rows.shape == (2, 5, 3) and (rows[0, :, 1] == 7).all() and (rows[1, :, 1] == 8).all()
    assert (rows[:, :, [0, 2]] == inputs[:, [0, 2]]).all()


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 7), (7, 7), (260, 1000)])
def test_success_rate_against_scipy(successes, n):
    found = inversion.success_rate(torch.arange(n) < successes)
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert found == (pytest.approx(successes / n), pytest.approx(expected.low), pytest.approx(expected.high), n)


def test_explained_share_and_its_interval():
    originals = normal(4000, 3)
    guess = originals + 0.5 * normal(4000, 3)
    sure = inversion.explained_share(guess, originals, torch.zeros_like(originals), confidence=0.9999)
    assert sure.low < 0.75 < sure.high and sure.n == 4000
    parts = [
        inversion.explained_share(guess[rows], originals[rows], torch.zeros(100, 3))
        for rows in torch.randperm(4000, generator=DRAW).split(100)
    ]
    spread = torch.tensor([part.effect for part in parts]).std().item()  # of 40, known to 11 %
    width = sum(part.high - part.low for part in parts) / len(parts)
    assert width / (2 * 1.96) == pytest.approx(spread, rel=0.5)
    assert inversion.explained_share(originals, originals, guess)[:3] == (1, 1, 1)
    assert inversion.explained_share(guess, originals, guess).effect == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: inversion.averaged(lambda: torch.zeros(1), 0),
            "queries: expected a whole number of at least 1, got 0",
        ),
        (lambda: inversion.fit_decoders(torch.zeros(1, 1, 9, 2), torch.zeros(8, 2)), "originals: expected 9"),
        (
            lambda: inversion.fit_decoders(torch.zeros(1, 1, 9, 2), torch.zeros(9, 2), held_out=0.0),
            "held_out: expected",
        ),
        (
            lambda: inversion.ascend_posterior(lambda x: x, torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)),
            r"targets: expected shape \(3,\), one class for each row of the start, got \(2,\)",
        ),
        (
            lambda: inversion.ascend_posterior(
                lambda x: x, torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), queries=0
            ),
            "queries: expected a whole number of at least 1, got 0",
        ),
        (lambda: inversion.with_candidates(torch.zeros(3, 2), 2, torch.zeros(4)), "column: expected 0 to 1, got 2"),
        (lambda: inversion.attribute_posterior(torch.zeros(1, 3, 2), torch.ones(3)), "prior: expected 2 values"),
        (lambda: inversion.success_rate(torch.tensor([0.5, 1.5])), "hits: expected some values in"),
        (lambda: inversion.success_rate(torch.tensor([])), "hits: expected some values in"),
        (
            lambda: inversion.explained_share(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3)),
            "reconstructed: expected three times the same shape",
        ),
        (
            lambda: inversion.explained_share(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2)),
            "reference: expected one that is not perfect",
        ),
    ],
    ids=[
        "no query",
        "unequal numbers",
        "nothing held out",
        "unequal rows",
        "no query in ascent",
        "no such column",
        "prior of other values",
        "hit beyond one",
        "no hit",
        "unequal shapes",
        "perfect reference",
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_decoders_refuse_another_number_of_models():
    decoders = inversion.fit_decoders(normal(1, 1, 20, 2), normal(20, 2), epochs=1, progress=None)
    with pytest.raises(ValueError, match="released: expected one for each of 1 models, got 2"):
        decoders(normal(2, 5, 2))


def test_what_is_no_number_is_refused():
    nan, inf = math.nan, math.inf
    flat, truth = torch.full((4, 2), 0.5), torch.tensor([0, 1, 0, 1])
    bad = flat.clone()
    bad[1, 0] = nan
    cases = [
        (
            lambda: inversion.attribute_posterior(bad[None].log()),
            "log_likelihoods: expected numbers, got NaN in 1 of 8",
        ),
        (
            lambda: inversion.attribute_posterior(torch.full((1, 4, 2), nan)),
            "log_likelihoods: expected numbers, got NaN",
        ),
        (
            lambda: inversion.attribute_posterior(torch.full((1, 4, 2), inf)),
            "log_likelihoods: expected numbers below inf",
        ),
        (lambda: inversion.attribute_posterior(flat[None], bad), "prior: expected finite values of at least 0"),
        (lambda: inversion.attribute_posterior(flat[None], -flat[0]), "prior: expected finite values of at least 0"),
        (lambda: inversion.attribute_posterior(flat[None], 0 * flat[0]), "prior: expected finite .* some above it"),
        (lambda: inversion.attribute_posterior(flat[None], flat[:3]), "prior: expected 2 values, or so many a row"),
        (lambda: inversion.attribute_success(bad, truth), "posterior: expected numbers, got NaN in 1 of 8 places"),
        (lambda: inversion.attribute_success(flat, truth[:1]), r"truth: expected shape \(4,\), one value for each row"),
        (lambda: inversion.attribute_success(flat, truth + 1), "truth: expected numbers from 0 to 1, got 1 to 2"),
        (lambda: inversion.attribute_success(flat, truth - 1), "truth: expected numbers from 0 to 1, got -1 to 0"),
        (lambda: inversion.explained_share(bad, flat, 0 * flat), "reconstructed: expected finite numbers, got NaN"),
        (lambda: inversion.explained_share(flat, bad, 0 * flat), "originals: expected finite numbers, got NaN"),
        (lambda: inversion.explained_share(flat, flat, bad), "reference: expected finite numbers, got NaN"),
        (lambda: inversion.explained_share(flat, flat, flat, confidence=95), "confidence: expected a number between"),
        (lambda: inversion.success_rate(truth, confidence=1.0), "confidence: expected a number between 0 and 1"),
        (lambda: inversion.success_rate(flat), r"hits: expected shape \(8,\), one for each attack, got \(4, 2\)"),
        (lambda: inversion.success_rate(bad[:, 0]), "hits: expected some values in"),
        (lambda: inversion.fit_decoders(bad[None, None], flat), "released: expected finite numbers, got NaN"),
        (lambda: inversion.fit_decoders(flat[None, None].log() - inf, flat), "released: expected finite numbers"),
        (lambda: inversion.fit_decoders(flat[None, None], bad), "originals: expected finite numbers, got NaN"),
        (
            lambda: inversion.with_candidates(truth[:, None], 0, torch.tensor([0.5])),
            "inputs: expected a floating-point",
        ),
        (lambda: inversion.ascend_posterior(lambda x: x, bad, truth), "start: expected numbers, got NaN in 1 of 8"),
        (
            lambda: inversion.ascend_posterior(lambda x: nan * x, flat, truth),
            "log_posterior: expected numbers, got NaN",
        ),
        (
            lambda: inversion.ascend_posterior(lambda x: x, flat, truth, penalty=-1.0),
            "penalty: expected a finite number of",
        ),
        (lambda: inversion.ascend_posterior(lambda x: x, flat, truth, bounds=(1.0, 0.0)), "bounds: expected the lower"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_truth_and_targets_of_any_whole_dtype():
    posterior, truth = torch.tensor([[0.7, 0.3], [0.5, 0.5]]), torch.tensor([0, 1])
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(inversion.attribute_success(posterior, truth.to(dtype)), torch.tensor([1.0, 0.5]))
        found = inversion.ascend_posterior(lambda x: x.log_softmax(-1), posterior, truth.to(dtype))
        torch.testing.assert_close(found, torch.eye(2), rtol=0, atol=1e-2)
