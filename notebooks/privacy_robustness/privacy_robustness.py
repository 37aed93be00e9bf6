# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   lossbook:
#     idea: Seven papers on attackers and defences in one table of threat models, and the yardsticks by which all of them are judged, put to the test.
#     tags: [privacy, robustness, attack, membership inference, comparison]
#     profiles:
#       smoke:
#         seeds: 2
#         pool: 200
#         networks: 4
#         membership_epochs: 5
#         epochs: 2
#         attack_steps: 5
#         restarts: 2
#         queries: 10
#         decoder_epochs: 3
#         repetitions: 20
#         cases: 5
#       full:
#         seeds: 20
#         pool: 1000
#         networks: 64
#         attack_steps: 50
#         restarts: 20
#         queries: 2000
#         repetitions: 2000
#         cases: 1000
# ---

# %% [markdown]
# # Privacy and robustness: threat models and yardsticks
#
# In the other parts a loss is judged on data that nobody has tampered with. Here somebody works against it. An attacker wants to know whether your
# picture was used in training, or to reconstruct what was asked of a model, or makes a network see what is not there, or has tampered with its
# training data. The seven papers of this part each defend against one of them. A defence can only be judged along with its attacker: who knows what,
# who changes what, and what counts as success. This page puts the seven side by side in these terms, derives the yardsticks that their pages share,
# and tries out where a yardstick misleads.
#
# **To take away.** The same area under the ROC curve can stand for an attacker who knows a little about everybody and for one who is certain about a
# few. A network can withstand every gradient attack because its gradient is useless, and fall to the first attack that does without it. A good part
# of what looks like a reconstruction may be nothing but the label. And measurements never show that a defence holds, only that those who tried did
# not break it. Each of these is derived, constructed and measured below.

# %% tags=["hide-input"]
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.metrics import roc_auc_score

from lossbook import lab
from lossbook.lab import attacks, inversion, membership

lab.use_theme()
ledger = lab.Ledger()

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
seeds: int = 5  # independent runs behind every interval
pool: int = 600  # pictures; a network of the first experiment gets half
networks: int = 16  # for each seed, an even number; each is attacked in turn
wrong_labels: float = 0.1  # share of the pool that is mislabelled
membership_epochs: int = 40  # passes over the pool
false_positives: float = 0.01  # the low false-positive rate
epsilon: float = 0.125  # radius of attacks, in units of full brightness
epochs: int = 20  # passes over the training pictures, other experiments
attack_steps: int = 20  # of every gradient attack that judges
restarts: int = 5  # random starts
queries: int = 100  # of the black-box attack
decoder_epochs: int = 30  # passes of the decoders that invert
examples: int = 100  # members, and as many others, to test intervals
repetitions: int = 200  # of that test, for each seed
cases: int = 100  # random cases behind every check
device: str = "auto"  # "auto" takes a GPU where there is one

# %% [markdown]
# ## Who works against whom
#
# A *threat model* says three things. What does the attacker **know**: the weights, the answers only, other data of the same kind? What may they
# **change**, and when: training data, the input, nothing? And by what are they **measured**? A claim of safety without the three is empty. Each of
# the seven has another answer. On six of the pages something is attacked in earnest; on the seventh, cryptography keeps everybody out, and the method
# has to make it affordable.
#
# :::::{div} lossbook-scroll
# ::::{list-table} The attacker
# :header-rows: 1
#
# * - Page
#   - Knows
#   - Changes
# * - [SMP-LoRA](smp_lora.ipynb)
#   - the adapted model, its errors on any picture, and for some other pictures whether they are members
#   - nothing; looks after training
# * - [MID](mutual_information_defense.ipynb)
#   - the model, its answer (or many of them), the label, other data from the same source
#   - nothing; asks after training
# * - [SmoothInv](smoothinv.ipynb)
#   - training pictures, nothing about the model; the *defender* has the model and one clean picture
#   - a tenth of the training data, before training; later the input, by the same trigger
# * - [WEAT](weighted_energy_adversarial.ipynb)
#   - everything: weights, training, true class
#   - every pixel of the input by at most $\epsilon$, after training
# * - [B-MTARD](mtard.ipynb)
#   - everything about the student; the teachers are not attacked
#   - every pixel of the input by at most $\epsilon$, after training
# * - [Hyp-OC](hyp_oc.ipynb)
#   - nothing about the detector: the fakes were not made for it
#   - the whole input: a fake in place of a real thing, of a kind never trained on
# * - [Entropy-guided attention](entropy_guided_attention.ipynb)
#   - the server its model, the client its prompt; each keeps to the protocol and is curious about the other
#   - nothing
# ::::
# :::::
#
# :::::{div} lossbook-scroll
# ::::{list-table} What the attacker must not reach, and how one knows
# :header-rows: 1
#
# * - Page
#   - At stake
#   - Measured by
# * - [SMP-LoRA](smp_lora.ipynb)
#   - that a picture was in the training
#   - ROC of fresh attackers, true-positive rate at a low false-positive rate; Fréchet distance for what the model is worth
# * - [MID](mutual_information_defense.ipynb)
#   - the input behind an answer, or one attribute of it
#   - share of the class mean's error that a decoder removes, success of guesses, recognised pictures of gradient ascent; accuracy
# * - [SmoothInv](smoothinv.ipynb)
#   - the answer on triggered inputs
#   - success rate of the recovered trigger on other pictures, likeness to the true one; clean classifiers as control
# * - [WEAT](weighted_energy_adversarial.ipynb)
#   - the answer on perturbed inputs
#   - accuracy under PGD with restarts and under an ensemble of attacks; clean accuracy
# * - [B-MTARD](mtard.ipynb)
#   - the same, for a small student
#   - mean of clean and robust accuracy, under PGD and an ensemble
# * - [Hyp-OC](hyp_oc.ipynb)
#   - the answer on fakes
#   - area under the ROC curve, half total error
# * - [Entropy-guided attention](entropy_guided_attention.ipynb)
#   - prompt and model, by cryptography
#   - perplexity and attention entropy at a number of nonlinear operations; no attack
# ::::
# :::::
#
# The figure puts the seven on the path from data to answer. Crosses mark where attackers change something, open circles where they look.

# %% tags=["hide-input", "card"]
STAGES = ["data", "training", "model", "input", "answer"]
# Columns in which the attacker changes, the attacker looks, something is to be protected, the method acts.
PLACES = {
    "SMP-LoRA": ([], [2], [0], [1]),
    "MID": ([], [2, 4], [3], [1, 4]),
    "SmoothInv": ([0, 3], [], [4], [2]),
    "WEAT": ([3], [2], [4], [1]),
    "B-MTARD": ([3], [2], [4], [1]),
    "Hyp-OC": ([3], [], [4], [1]),
    "Entropy-guided\nattention": ([], [], [2, 3], [1, 2]),
}
SYMBOLS = [
    ("the attacker changes it", {"marker": "X", "color": "C3"}),
    ("the attacker looks", {"marker": "o", "color": "C3", "markerfacecolor": "white"}),
    ("to be protected", {"marker": "*", "color": "C0", "markersize": 13}),
    ("the method acts here", {"marker": "s", "color": "C2"}),
]
figure, axes = plt.subplots(figsize=(4.5, 4.8))
for column, stage in enumerate(STAGES):
    axes.text(
        column,
        -1,
        stage,
        ha="center",
        va="center",
        fontsize=9,
        bbox={"boxstyle": "round,pad=0.18", "facecolor": "0.92", "edgecolor": "0.4"},
    )
    axes.axvline(column, ymax=0.86, color="0.85", linewidth=6, zorder=0)
for row, places in enumerate(PLACES.values()):
    for column in range(len(STAGES)):
        here = [symbol for symbol, at in zip(SYMBOLS, places, strict=True) if column in at]
        for index, (_, style) in enumerate(here):
            shift = 0.3 * (index - (len(here) - 1) / 2)
            axes.plot(
                column + shift,
                row,
                linestyle="none",
                markeredgewidth=1.5,
                **{"markersize": 9, **style},
            )
    axes.axhline(row + 0.5, color="0.9", linewidth=0.8, zorder=0)
for label, style in SYMBOLS:
    axes.plot([], [], linestyle="none", label=label, **{"markersize": 9, **style})
axes.plot(
    np.arange(4) + 0.5,
    [-1] * 4,
    linestyle="none",
    marker=">",
    color="0.4",
    markersize=3.5,
)
axes.set(
    title="From data to answer: where the seven take place",
    xlabel=" ",
    ylabel=" ",
    xlim=(-0.5, 4.5),
    ylim=(6.6, -1.6),
    xticks=[],
    yticks=range(len(PLACES)),
    yticklabels=list(PLACES),
)
axes.title.set_x(0.35)
axes.grid(visible=False)
axes.spines[:].set_visible(False)
figure.legend(loc="outside lower center", ncols=2)
lab.show(
    figure,
    caption="Each row is a page of this part, each column a station from data to answer. Two families show: above, attackers who only look and want what went in; "
    "in the middle, attackers who change what goes in and want a wrong answer. In the last row nobody gets to look.",
    alt="A grid of seven papers by five stations: data, training, model, input, answer. SMP-LoRA: the attacker looks at the model, the data are protected, the method acts in training. "
    "MID: the attacker looks at model and answer, the input is protected, the method acts in training and answer. SmoothInv: the attacker changes data and input, the answer is protected, the method acts on the model. "
    "WEAT and B-MTARD: the attacker looks at the model and changes the input, the answer is protected, the method acts in training. Hyp-OC: the same, but the attacker looks at nothing. "
    "Entropy-guided attention: model and input are protected, nobody looks or changes, the method acts in training and model.",
)

# %% [markdown]
# ## The yardsticks
#
# ### Telling members apart
#
# An attacker gives every example a score $s$, and says "member" above a threshold $t$. Members' scores have a distribution $P$, those of others $Q$.
# The true-positive rate $\tau$ and the false-positive rate $f$ are
#
# $$
# \begin{aligned}
# \tau(t)&=P(s>t),\\
# f(t)&=Q(s>t),
# \end{aligned}
# $$ (pr-rates)
#
# and $\tau$ as a function of $f$ is the ROC curve, straight where scores are tied. Its area is the chance that a member scores above a non-member,
# ties counted half,
#
# $$
# \begin{aligned}
# \mathrm{AUC}&=\int_0^1\tau\,df\\
# &=\Pr(s>s')+\tfrac12\Pr(s=s'),
# \end{aligned}
# $$ (pr-auc)
#
# where $s$ is drawn from $P$ and $s'$ from $Q$.
#
# **One threshold.** The *advantage* of an attack is $J=\max_t\,(\tau-f)$. It is the difference of two probabilities of one and the same set, so no
# attack whatsoever exceeds the total variation,
#
# $$
# \begin{aligned}
# J&\le\mathrm{TV}(P,Q)\\
# &=\max_S\bigl(P(S)-Q(S)\bigr)\\
# &=\tfrac12\sum_s\lvert P(s)-Q(s)\rvert ,
# \end{aligned}
# $$ (pr-tv)
#
# with equality if the score is the likelihood ratio $P/Q$, since the best $S$ is where $P>Q$. The curve lies below $\min(f+J,1)$, which bounds the
# area,
#
# $$
# \mathrm{AUC}\ \le\ \tfrac12+J-\tfrac12J^2 ,
# $$ (pr-above)
#
# and if the curve is concave, as that of the likelihood ratio is, it lies above the triangle through its best point, so
# $\mathrm{AUC}\ge\frac12+\frac12J$.
#
# **Low false-positive rates.** An accusation is worth something only if it is hardly ever false. What does the area say about $\tau$ at a small $f$?
# A concave curve lies above the lines from $(0,0)$ to $(f,\tau)$ to $(1,1)$, and the area below these is $\frac12+\frac12(\tau-f)$. Hence
#
# $$
# \tau\ \le\ f+2\,\mathrm{AUC}-1 .
# $$ (pr-low)
#
# An area of 0.52 thus allows four per cent of the members to be found *without a single false accusation*, and this happens. Take an attack that is
# *certain about a few*: it gives a share $\pi$ of the members a score that nobody else gets, and knows nothing about the rest. Its mirror image is
# *certain about a few others*: a share $\pi$ of the non-members gets the lowest score. The curves are
#
# $$
# \begin{aligned}
# \tau_{\text{few}}&=\pi+(1-\pi)f,\\
# \tau_{\text{others}}&=\min\Bigl(\frac f{1-\pi},\,1\Bigr) .
# \end{aligned}
# $$ (pr-few)
#
# Both have the area $\frac12+\frac\pi2$ and the advantage $\pi$. At $f\to0$ the first finds the share $\pi$, as much as {eq}`pr-low` allows, and the
# second nobody. **Neither area nor advantage can tell them apart.** Hence the page on SMP-LoRA reports $\tau$ at a low $f$ beside the area.
#
# **Differential privacy** bounds the curve itself. Let a training have $(\varepsilon,\delta)$-differential privacy. For the attacker who knows all
# the rest, $P$ and $Q$ are the distributions of the result with and without one example, so for every threshold
#
# $$
# \begin{aligned}
# \tau&\le e^{\varepsilon}f+\delta,\\
# 1-f&\le e^{\varepsilon}(1-\tau)+\delta .
# \end{aligned}
# $$ (pr-dp)
#
# At $\delta=0$ the two lines meet at $f=1/(1+e^\varepsilon)$, $\tau=e^\varepsilon f$, and no attack has more than
#
# $$
# J\le\frac{e^\varepsilon-1}{e^\varepsilon+1},\qquad\mathrm{AUC}\le\frac{e^\varepsilon}{1+e^\varepsilon},
# $$ (pr-dp-area)
#
# which randomised response attains. A large $\varepsilon$ promises little: at $\varepsilon=8$ and $f=10^{-3}$ {eq}`pr-dp` allows $\tau>0.999$. A
# mechanism that adds Gaussian noise of standard deviation $\sigma$ to a number that one example changes by 1 has the curve
# $\tau=\Phi(\Phi^{-1}(f)+1/\sigma)$. Where it is farthest above the line of slope $e^\varepsilon$, the densities have the ratio $e^\varepsilon$: at
# the threshold $\varepsilon\sigma+\frac1{2\sigma}$ (in units of $\sigma$). So the curve touches its bound at the smallest $\delta$ possible,
#
# $$
# \begin{aligned}
# \delta(\varepsilon)&=\Phi\Bigl(\frac1{2\sigma}-\varepsilon\sigma\Bigr)\\
# &\quad-e^\varepsilon\,\Phi\Bigl(-\frac1{2\sigma}-\varepsilon\sigma\Bigr) .
# \end{aligned}
# $$ (pr-gauss)
#
# Read the other way round, an attack that reaches $(f,\tau)$ proves that $\varepsilon\ge\log\frac{\tau-\delta}f$: attacks audit promises.

# %%
generator = torch.Generator().manual_seed(0)
outcomes = 8
# Every set of outcomes, for the maximum in the definition of total variation.
sets = torch.tensor(list(itertools.product([0.0, 1.0], repeat=outcomes))).double()


def distributions():
    return torch.rand(2, outcomes, generator=generator).double().pow(3).softmax(1)


def curve(scores, p, q):
    """Rates at every threshold, from the strictest on, for outcomes with these scores."""
    order = scores.argsort(descending=True)
    start = torch.zeros(1, dtype=torch.float64)
    return (torch.cat([start, each[order].cumsum(0)]) for each in (q, p))


auc_gaps, tv_gaps, beyond, ideal_gaps, outside, low = [], [], [], [], [], []
for _ in range(cases):
    members, others = torch.randint(0, 12, (2, 30), generator=generator).double()
    members += 2
    oracle = roc_auc_score([1] * 30 + [0] * 30, torch.cat([members, others]))
    auc_gaps.append(abs(membership.attack_auc(members, others).item() - oracle))
    p, q = distributions()
    tv = (sets @ (p - q)).max().item()
    tv_gaps.append(abs(tv - (p - q).abs().sum().item() / 2))
    for scores in (torch.rand(outcomes, generator=generator), p / q):
        f, tau = curve(scores, p, q)
        advantage = (tau - f).max().item()
        area = torch.trapezoid(tau, f).item()
        beyond += [advantage - tv, area - (0.5 + advantage - advantage**2 / 2)]
    # The last of the two is the likelihood ratio.
    ideal_gaps.append(abs(advantage - tv))
    outside.append(0.5 + tv / 2 - area)
    low.append((tau - f - (2 * area - 1)).max().item())
ledger.check(
    "area",
    "The laboratory's area is that of scikit-learn, ties included.",
    error=max(auc_gaps),
    tolerance=1e-12,
    cases=cases,
)
ledger.check(
    "advantage",
    "Half the L1 distance is the largest difference over all 256 sets, and the likelihood ratio reaches it.",
    error=max(tv_gaps + ideal_gaps),
    tolerance=1e-12,
    cases=cases,
)
ledger.check(
    "advantage-bound",
    "No attack has an advantage above the total variation, nor an area above 1/2 + J - J²/2.",
    error=max(beyond),
    tolerance=1e-12,
    cases=2 * cases,
)
ledger.check(
    "concave",
    "For the likelihood ratio the area is at least 1/2 + J/2, and at every f the true-positive rate is at most f + 2 AUC - 1.",
    error=max(outside + low),
    tolerance=1e-12,
    cases=cases,
)

# %%
rates = torch.linspace(0, 1, 4001, dtype=torch.float64)


def few(share):
    return share + (1 - share) * rates


def few_others(share):
    return (rates / (1 - share)).clamp(max=1)


normal = torch.distributions.Normal(0.0, 1.0)


def gaussian_delta(eps, sigma):
    up, down = 1 / (2 * sigma) - eps * sigma, -1 / (2 * sigma) - eps * sigma
    return stats.norm.cdf(up) - math.exp(eps) * stats.norm.cdf(down)


same, touching, above, response = [], [], [], []
thresholds = np.linspace(-12, 12, 20001)
for _ in range(cases):
    share = torch.rand((), generator=generator).item() * 0.5
    areas = [torch.trapezoid(each(share), rates).item() for each in (few, few_others)]
    gains = [(each(share) - rates).max().item() for each in (few, few_others)]
    same += [abs(area - 0.5 - share / 2) for area in areas]
    same += [abs(gain - share) for gain in gains]
    eps, sigma = (torch.rand(2, generator=generator) * 2 + 0.3).tolist()
    f, tau = stats.norm.sf(thresholds), stats.norm.sf(thresholds - 1 / sigma)
    delta = gaussian_delta(eps, sigma)
    touching.append(abs((tau - math.exp(eps) * f).max() - delta))
    above.append((tau - math.exp(eps) * f).max() - delta)
    above.append((1 - f - math.exp(eps) * (1 - tau)).max() - delta)
    # Randomised response: the truth with probability e^ε/(1+e^ε).
    truth = math.exp(eps) / (1 + math.exp(eps))
    at, up = torch.tensor([0, 1 - truth, 1]), torch.tensor([0, truth, 1])
    response.append(abs(torch.trapezoid(up, at).item() - truth))
    response.append(abs((up - at).max().item() - (math.exp(eps) - 1) / (math.exp(eps) + 1)))
ledger.check(
    "few",
    "Certain about few members, or about few others: both have the area 1/2 + π/2 and the advantage π.",
    error=max(same),
    # The grid of rates sees the kink of the second curve to within one step.
    tolerance=3e-4,
    cases=2 * cases,
)
ledger.check(
    "privacy",
    "The curve of the Gaussian mechanism never exceeds either bound of differential privacy.",
    error=max(above),
    tolerance=1e-12,
    cases=2 * cases,
)
ledger.check(
    "privacy-tight",
    "It touches the first at the δ of the closed form; randomised response attains area and advantage.",
    error=max(touching + response),
    tolerance=1e-6,
    cases=2 * cases,
)

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.7))
SHARE = 0.04
left.plot(rates[1:], few(SHARE)[1:], label="certain about a few members")
left.plot(rates[1:], few_others(SHARE)[1:], "--", label="certain about a few others")
left.plot(rates[1:], rates[1:], color="0.5", linewidth=0.8, label="chance")
left.set(
    title=f"Two attacks with an area of {0.5 + SHARE / 2:.2f}",
    xlabel="false-positive rate",
    ylabel="true-positive rate",
    xscale="log",
    yscale="log",
    xlim=(5e-4, 1),
    ylim=(5e-4, 1.2),
)
EPS, SIGMA = 1.0, 1.0
bound = math.exp(EPS) * rates + gaussian_delta(EPS, SIGMA)
second = 1 - math.exp(-EPS) * (1 - rates - gaussian_delta(EPS, SIGMA))
bound = torch.minimum(bound, second).clamp(max=1)
f = stats.norm.sf(thresholds)
right.fill_between(rates, bound, 1, color="C3", alpha=0.15, linewidth=0)
right.plot(rates, bound, color="C3", label="bound at ε = 1")
right.plot(
    f, stats.norm.sf(thresholds - 1 / SIGMA), color="C2", label="Gaussian noise, σ = 1"
)
right.plot(rates, rates, color="0.5", linewidth=0.8)
right.set(
    title="What privacy forbids",
    xlabel="false-positive rate",
    ylabel="true-positive rate",
    xlim=(0, 1),
    ylim=(0, 1.02),
)
figure.legend(loc="outside lower center", ncols=2)
lab.show(
    figure,
    caption="Left: the two curves of equal area and equal advantage; only the first accuses with reason. Right: no attack on a mechanism with (ε, δ)-differential privacy has a curve in the shaded region; "
    f"δ = {gaussian_delta(EPS, SIGMA):.3f} is the smallest at which Gaussian noise has ε = 1, and the curve touches the bound.",
    alt="Two panels of true-positive rate against false-positive rate. Left, with logarithmic axes: one curve stays at four per cent as the false-positive rate falls, the other falls with it along the line of chance. "
    "Right: the curve of Gaussian noise lies below a bound made of two straight lines and touches both.",
)

# %% [markdown]
# ### Accuracy under attack
#
# Let $h$ be a classifier and $B_\epsilon(x)$ all valid inputs within $\epsilon$ of $x$. The *robust accuracy* is the share of examples that are right
# everywhere in it,
#
# $$
# A(\epsilon)=\tfrac1n\#\{i:h=y_i\text{ on }B_\epsilon(x_i)\} .
# $$ (pr-robust)
#
# Two facts follow without any computation. Balls are nested, so $A$ cannot rise with $\epsilon$. And an attack looks at *some* points of the ball, so
# the accuracy that it leaves is never below $A(\epsilon)$: **every measured robust accuracy is an upper bound**. Of several attacks, count an example
# as broken if any breaks it; this union can only come closer. One attack alone has no such order: a longer PGD may miss what FGSM hit.
#
# How far above may an attack be? A linear classifier has an exact answer. With weights $w_k$ and biases $b_k$, valid values in $[0,1]$ and
# $v=w_k-w_y$, the other class $k$ wins somewhere in the ball if
#
# $$
# \begin{aligned}
# &v^\top x+b_k-b_y\\
# &\quad+\sum_j\max(v_ju_j,\,-v_jl_j)>0,
# \end{aligned}
# $$ (pr-linear)
#
# where $u_j=\min(\epsilon,1-x_j)$ and $l_j=\min(\epsilon,x_j)$ are how far pixel $j$ can go up and down: each moves by itself. Without the limits on
# values the sum is $\epsilon\lVert v\rVert_1$.
#
# **Where gradients lie.** Gradient attacks follow $\nabla_x(-\log p_y)=\sum_kp_k\nabla_x(z_k-z_y)$. Multiply all logits by $c$: the class is the same
# at every point of space, so $A(\epsilon)$ is unchanged. But wherever the input is classified rightly, the probabilities of all other classes go to
# zero exponentially in $c$, and in floating point they *are* zero: the attack stands still. Rounding the input to multiples of $h$ stops it, too,
# since a step function has slope zero. If the data are multiples of $h$ (our digits are, with $h=\frac1{16}$) and $\epsilon$ is, then every point of
# that grid within the ball is classified as before, so little is gained. Such defences *mask* the gradient. The ratio of the margin to the spread of
# the logits, $(\max_{k\ne y}z_k-z_y)/(z_{(1)}-z_{(3)})$ with $z_{(1)}\ge z_{(2)}\ge\dots$, does not notice the factor $c$; a search without gradients
# notices neither; and whoever knows the trick attacks the network behind it.

# %%
train, validation, test = (
    lab.load("digits", split=name) for name in ("train", "validation", "test")
)
pixels, classes = train.inputs[0].numel(), 10
# A linear classifier by least squares, in closed form.
features = F.pad(train.inputs.flatten(1), (0, 1), value=1.0).double()
goal = F.one_hot(train.targets, classes).double()
solution = torch.linalg.lstsq(
    features.mT @ features + 1e-2 * torch.eye(pixels + 1), features.mT @ goal
).solution


def linear(inputs):
    return 10 * (inputs.flatten(1) @ solution[:-1] + solution[-1])


def worst_case(inputs, targets, radius):
    """Which examples no perturbation within the radius can break, by the closed form."""
    x = inputs.flatten(1)
    up, down = (1 - x).clamp(max=radius), x.clamp(max=radius)
    v = solution[:-1].T[None] - solution[:-1].T[targets][:, None]
    gain = torch.maximum(v * up[:, None], -v * down[:, None]).sum(-1)
    logits = linear(inputs) / 10
    best = logits - logits.gather(1, targets[:, None]) + gain
    best.scatter_(1, targets[:, None], -math.inf)
    return (best < 0).all(1)


# In double precision: whether the last bit breaks an example must not matter.
pictures = test.inputs.double()


def withstands(attack, radius, **options):
    found = attack(linear, pictures, test.targets, epsilon=radius, **options)
    found = found.inputs if isinstance(found, attacks.Attacked) else found
    clean = linear(pictures).argmax(1) == test.targets
    return clean & (linear(found).argmax(1) == test.targets)


radii = [0.025, 0.05, 0.1]
exact = {radius: worst_case(pictures, test.targets, radius) for radius in radii}
attack_options = {
    "FGSM": {"attack": attacks.fgsm},
    f"PGD, {attack_steps} steps": {"attack": attacks.pgd, "steps": attack_steps},
    "ensemble": {"attack": attacks.ensemble, "steps": attack_steps, "queries": 0},
}
left_by = {name: {} for name in attack_options}
for name, radius in itertools.product(attack_options, radii):
    options = dict(attack_options[name])
    if name == "ensemble":
        options["generator"] = torch.Generator().manual_seed(0)
    left_by[name][radius] = withstands(radius=radius, **options)
ledger.check(
    "nested",
    "The exact robust accuracy of a linear classifier never rises with the radius, example by example.",
    error=max((exact[b] & ~exact[a]).sum().item() for a, b in itertools.pairwise(radii)),
    tolerance=0.0,
    cases=len(test) * (len(radii) - 1),
)
ledger.check(
    "upper",
    "No attack breaks an example that the closed form says cannot be broken.",
    error=max(
        (exact[r] & ~kept).sum().item()
        for each in left_by.values()
        for r, kept in each.items()
    ),
    tolerance=0.0,
    cases=len(test) * len(radii) * len(attack_options),
)
ledger.check(
    "reached",
    "The ensemble, aimed at each class in turn, breaks every example that can be broken.",
    error=max((left_by["ensemble"][r] & ~exact[r]).sum().item() for r in radii),
    tolerance=0.0,
    cases=len(test) * len(radii),
)
single = {
    name: [100 * each[r].double().mean().item() for r in radii]
    for name, each in left_by.items()
}
single["exact"] = [100 * exact[r].double().mean().item() for r in radii]
lab.show_table(
    pd.DataFrame({"radius": radii, **single}),
    caption="A linear classifier of digits: accuracy (%) that each attack leaves, and the exact robust accuracy.",
    formats={"radius": "{:g}", **dict.fromkeys(single, "{:.1f}")},
)

# %% [markdown]
# ### Working back to the input
#
# An attacker sees a release $r$, made from the input $x$ and perhaps random. By the squared error the best reconstruction is
# $\hat x(r)=\mathbb E[x|r]$. Suppose that the release gives away the label, $y=y(r)$; who hears the label alone says the mean of the class,
# $\hat x(y)=\mathbb E[x|y]$. By the law of total variance, applied within each class,
#
# $$
# \begin{aligned}
# \mathbb E\lVert x-\hat x(r)\rVert^2&=\mathbb E\lVert x-\hat x(y)\rVert^2\\
# &\quad-\mathbb E\lVert\hat x(r)-\hat x(y)\rVert^2 .
# \end{aligned}
# $$ (pr-label)
#
# The first term on the right is the error of the label alone. It is the **floor of every score**: a service that classifies gives the label away, by
# its purpose, and an attack has shown something only by what it adds, the second term. The same holds for guesses: who may guess $x$, or an attribute
# of it, by the most probable value is right with probability
#
# $$
# \begin{aligned}
# \mathbb E\max_xp(x|r)&\ge\mathbb E\max_xp(x|y)\\
# &\ge\max_xp(x),
# \end{aligned}
# $$ (pr-guess)
#
# since a maximum of means is at most the mean of maxima. A success rate of 80 % is nothing if 80 % have that value.


# %%
def reconstructed(joint, x):
    """Means of the inputs given each release (a column), and the error that is left."""
    means = joint.T @ x / joint.sum(0)[:, None]
    return means, (joint * (x[:, None] - means[None]).square().sum(-1)).sum()


identity, guesses = [], []
for _ in range(cases):
    # 12 inputs in a plane, releases of 6 kinds; the first three belong to class 0.
    joint = torch.rand(12, 6, generator=generator).double().pow(4)
    joint /= joint.sum()
    x = torch.randn(12, 2, generator=generator).double()
    by_class = joint.unflatten(1, (2, 3)).sum(2)

    fine, fine_error = reconstructed(joint, x)
    coarse, coarse_error = reconstructed(by_class, x)
    added = (fine - coarse.repeat_interleave(3, 0)).square().sum(1) @ joint.sum(0)
    identity.append(abs((coarse_error - added - fine_error).item()))
    right = [joint.amax(0).sum(), by_class.amax(0).sum(), joint.sum(1).max()]
    guesses += [(right[1] - right[0]).item(), (right[2] - right[1]).item()]
ledger.check(
    "label-floor",
    "The error given the release is that given the label, less the mean squared distance of the two reconstructions.",
    error=max(identity),
    tolerance=1e-12,
    cases=cases,
)
ledger.check(
    "guess-floor",
    "Guesses from the release are right at least as often as guesses from the label, and these as guesses from nothing.",
    error=max(guesses),
    tolerance=1e-12,
    cases=cases,
)

# %% [markdown]
# ### Intervals of rates
#
# Success rates and true-positive rates are shares $\hat p$ of $n$ tries. The textbook interval $\hat p\pm z\sqrt{\hat p(1-\hat p)/n}$ has no length
# at $\hat p=0$, just where privacy is decided. Wilson's interval collects the $p$ that a test would not reject,
# $\lvert\hat p-p\rvert\le z\sqrt{p(1-p)/n}$, whose ends solve a quadratic equation. Clopper and Pearson's takes the binomial distribution itself and
# never covers less than it says. How often an interval covers $p$ is a finite sum,
#
# $$
# C(p)=\sum_{k:\,p\in I(k)}\binom nkp^k(1-p)^{n-k} .
# $$ (pr-coverage)
#
# **An interval for $\tau$ at a given $f$ needs more.** The threshold is taken from $m$ non-members, and moves with them: the false-positive rate that
# it really has is spread about $f$ with the variance $f(1-f)/m$, and a change of $f$ changes $\tau$ by the slope $\tau'=d\tau/df$ of the curve. To
# that comes the chance of the $n$ members. To first order
#
# $$
# \begin{aligned}
# \mathrm{Var}(\hat\tau)&\approx\frac{\tau(1-\tau)}n\\
# &\quad+\tau'^2\,\frac{f(1-f)}m .
# \end{aligned}
# $$ (pr-power)
#
# Binomial intervals know the first term only: they hold *at the threshold that was used*, not at the rate $f$ that was meant. At a small $f$ the
# slope is large, and the second term may be the larger one. How much this matters is measured further down.

# %%
number, level = 50, 0.95
z = stats.norm.ppf(0.5 + level / 2)
counts = np.arange(number + 1)
shares = counts / number
half = z * np.sqrt(shares * (1 - shares) / number)
wilson = np.array(
    [inversion.success_rate(torch.arange(number) < k, confidence=level)[1:3] for k in counts]
)
limits = {
    "textbook": np.stack([shares - half, shares + half], 1),
    "Wilson": wilson,
    "Clopper-Pearson": np.array(
        [stats.binomtest(int(k), number).proportion_ci(level, "exact") for k in counts]
    ),
}
truths = np.linspace(0.002, 0.998, 499)
weights = stats.binom.pmf(counts[:, None], number, truths[None])
coverage = {
    name: (weights * ((ends[:, :1] <= truths) & (truths <= ends[:, 1:]))).sum(0)
    for name, ends in limits.items()
}
oracle = np.array(
    [stats.binomtest(int(k), number).proportion_ci(level, "wilson") for k in counts]
)
ends = wilson[1:-1]
residue = np.abs(
    np.abs(shares[1:-1, None] - ends) - z * np.sqrt(ends * (1 - ends) / number)
)
ledger.check(
    "wilson",
    "The laboratory's interval is Wilson's as SciPy has it, and its ends solve the equation of the test.",
    error=max(np.abs(wilson - oracle).max(), residue.max()),
    tolerance=1e-9,
    cases=number + 1,
)
ledger.check(
    "exact-interval",
    f"Clopper and Pearson's interval covers at least 95 % at every p tried, n = {number}.",
    error=max(0.0, level - coverage["Clopper-Pearson"].min()),
    tolerance=1e-12,
    cases=len(truths),
)
ledger.check(
    "wilson-coverage",
    "Over all p alike, Wilson's covers 95 % to within half a point.",
    error=abs(coverage["Wilson"].mean() - level),
    tolerance=0.005,
    cases=len(truths),
)

# Two normal distributions, one apart: the rate at a threshold drawn anew each time.
rate, apart, size = 0.05, 1.0, 400
true_power = stats.norm.sf(stats.norm.isf(rate) - apart)
# The slope of the curve is the ratio of the densities at the threshold.
slope = math.exp(apart * stats.norm.isf(rate) - apart**2 / 2)
first_term, second_term = true_power * (1 - true_power), slope**2 * rate * (1 - rate)
draws = 4000
scores = torch.randn(draws, 2 * size, generator=generator)
cuts = scores[:, :size].sort(descending=True).values[:, round(rate * size)]
estimates = (scores[:, size:] + apart > cuts[:, None]).double().mean(1)
ledger.check(
    "power-variance",
    "The variance of the true-positive rate at a threshold taken from the data has the two terms.",
    error=abs(estimates.var().item() * size / (first_term + second_term) - 1),
    # Four standard errors of the simulation, and the second order.
    tolerance=4 * math.sqrt(2 / draws) + 0.05,
    cases=draws,
)

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(7, 3.4))
for (name, values), style in zip(coverage.items(), [":", "-", "--"], strict=True):
    axes.plot(100 * truths, 100 * values, style, label=name, linewidth=1.2)
axes.axhline(95, color="0.4", linewidth=0.8)
axes.set(
    title=f"How often intervals of a share of {number} cover the truth",
    xlabel="true share (%)",
    ylabel="coverage (%)",
    ylim=(60, 101),
)
figure.legend(loc="outside lower center", ncols=3)
lab.show(
    figure,
    caption="Exact coverage, by summing the binomial distribution. The line marks the 95 % that all three promise.",
    alt=f"Coverage against the true share. The textbook interval falls far below 95 per cent at both ends and is there off the chart; Wilson's oscillates about 95, lowest at {100 * coverage['Wilson'].min():.0f} per cent; Clopper-Pearson stays above 95 throughout.",
)

# %% [markdown]
# ## One experiment with each
#
# **Members.** A pool of digits, a tenth of them with a wrong label. Each network is trained on one half of the pool, and the attacker is to tell the
# halves apart, knowing the network's answer on each picture and the label that it was given. The *plain* attack takes the loss alone: small means
# member. The *calibrated* attack also has reference networks, trained on halves that the attacker knows, and so learns of each picture how it is
# answered by networks that have seen it and by those that have not. With $\varphi=\log\frac{p_y}{1-p_y}$ of the attacked network, and
# $\bar\varphi_{\text{in}},\bar\varphi_{\text{out}}$ the means over the references,
#
# $$
# \begin{aligned}
# s&=\bigl(\varphi-\tfrac12(\bar\varphi_{\text{in}}+\bar\varphi_{\text{out}})\bigr)\\
# &\quad\cdot(\bar\varphi_{\text{in}}-\bar\varphi_{\text{out}}),
# \end{aligned}
# $$ (pr-calibrated)
#
# the log-likelihood ratio of two normal distributions with one variance for all pictures, up to a factor. It is a simple form of the likelihood-ratio
# attack of [Carlini and co-authors](https://arxiv.org/abs/2112.03570). Every network is attacked in turn. References are the others of its seed,
# without its twin, which got the other half.
#
# Why wrong labels? They make the two attacks of {eq}`pr-few`. A wrong label can be known only by heart. To the plain attack, a mislabelled member
# looks like any picture with a small loss, and a mislabelled non-member has a loss like nobody else's: *certain about a few others*. To the
# calibrated attack a small loss on a picture that others find absurd is proof: *certain about a few*.
#
# **Robustness.** Four networks that classify digits. *Undefended*: plain training. *Inflated*: the same weights, all logits times 1000. *Rounded*:
# the same weights, inputs rounded to multiples of $\frac1{16}$ first. On every clean picture these three say the same. *Adversarial training*: the
# cross-entropy of pictures attacked by PGD during training. Attacks get stronger from left to right: FGSM; PGD; PGD from several random starts as
# well; the ensemble (PGD with momentum and shrinking steps on cross-entropy, ratio and margin, and towards three classes, and a search without
# gradients); and last the attacker who knows the trick, and tries what the ensemble found against the weights behind it. Each attack adds to those
# before: a picture counts as right if it withstands them all.
#
# **Inversion.** The attacker sees the log-probabilities that the undefended network gives a test picture, and has trained a decoder on validation
# pictures. The score is the share of the squared error of the *mean picture* that the decoder removes. Beside it the score of somebody who hears the
# predicted label only, and says the mean of validation pictures with that prediction.
#
# **Intervals.** Scores of members are normal with mean 1, of others with mean 0. What `membership.judge_attack` reports on so many of each is compared with
# the true values.
#
# ### What is claimed
#
# The claims are ours, and so are the criteria, which were fixed before the first run and have stayed. C2 is a guess from {eq}`pr-few`. C8 is how such
# an interval is often read; {eq}`pr-power` makes us doubt it. After the first run the search without gradients was cut from 200 to 100 queries, and
# the radii of the linear check from five to three, to save time.

# %%
PLAIN, CALIBRATED = "plain", "calibrated"
UNDEFENDED, INFLATED, ROUNDED = "undefended", "inflated", "rounded"
TRAINED = "adversarial training"
c1 = ledger.claim(
    "c1",
    f"At a false-positive rate of {100 * false_positives:g} % the calibrated attack finds more members than the plain one.",
    metric="true-positive rate, calibrated less plain",
    direction="greater",
    margin=3.0,
    unit="points",
)
c2 = ledger.claim(
    "c2",
    "The area under the ROC curve hardly tells the two attacks apart.",
    metric="area under the ROC curve, in per cent, calibrated less plain",
    direction="within",
    margin=5.0,
    unit="points",
)
c3 = ledger.claim(
    "c3",
    "The harm is concentrated: those with a wrong label are found, the others hardly.",
    metric="share of members found by the calibrated attack at the low rate, wrong less right labels",
    direction="greater",
    margin=20.0,
    unit="points",
)
c4 = ledger.claim(
    "c4",
    "Under FGSM, networks with masked gradients look more robust than adversarial training.",
    metric="accuracy under FGSM, inflated and rounded less adversarial training",
    direction="greater",
    margin=0.0,
    unit="points",
)
c5 = ledger.claim(
    "c5",
    "The ranking turns round with the attacker: under all attacks together, adversarial training is more robust.",
    metric="accuracy under all attacks, adversarial training less inflated and less rounded",
    direction="greater",
    margin=10.0,
    unit="points",
)
c6 = ledger.claim(
    "c6",
    "Where gradients are not masked, one run of PGD is close to the strongest attack.",
    metric="accuracy after FGSM and PGD less that after all attacks, undefended and adversarial training",
    direction="less",
    margin=5.0,
    unit="points",
)
c7 = ledger.claim(
    "c7",
    "More than half of what the inversion scores against the mean picture is the label.",
    metric="score of the label alone over that of the decoder, in per cent",
    direction="greater",
    margin=50.0,
    unit="%",
)
c8 = ledger.claim(
    "c8",
    "The 95 % interval of the true-positive rate at 5 % false positives covers its true value.",
    metric="coverage less 95 %",
    direction="greater",
    margin=-2.0,
    unit="points",
)
c9 = ledger.claim(
    "c9",
    "The 95 % interval of the area under the ROC curve covers its true value.",
    metric="coverage less 95 %",
    direction="greater",
    margin=-2.0,
    unit="points",
)
ledger.criteria()

# %% [markdown]
# ### Runs
#
# All networks of an experiment are trained in one stack.

# %%
per_seed = networks
inputs = train.inputs[:pool]
given = torch.empty(seeds, pool, dtype=torch.long)
wrong = torch.zeros(seeds, pool, dtype=torch.bool)
inside = torch.zeros(seeds, per_seed, pool, dtype=torch.bool)
for seed in range(seeds):
    draw = torch.Generator().manual_seed(seed)
    changed = torch.randperm(pool, generator=draw)[: round(wrong_labels * pool)]
    shift = torch.randint(1, classes, (len(changed),), generator=draw)
    given[seed] = train.targets[:pool]
    given[seed, changed] = (given[seed, changed] + shift) % classes
    wrong[seed, changed] = True
    for first in range(0, per_seed, 2):
        chosen = torch.randperm(pool, generator=draw)[: pool // 2]
        inside[seed, first, chosen] = True
        # The twin gets the other half.
        inside[seed, first + 1] = ~inside[seed, first]
labels, members = given.repeat_interleave(per_seed, 0), inside.flatten(0, 1)


def member_loss(model, batch, run):
    row = run["row"].long()
    counts = members.to(batch["x"].device)[row, batch["index"]].to(batch["x"])
    target = labels.to(batch["x"].device)[row, batch["index"]]
    losses = F.cross_entropy(model(batch["x"]), target, reduction="none")
    return (counts * losses).sum() / counts.sum().clamp(min=1)


fitted = lab.fit(
    lambda run: lab.mlp([pixels, 64, classes]),
    member_loss,
    {"x": inputs, "index": torch.arange(pool)},
    [
        {"seed": 1000 * seed + index, "learning_rate": 0.01, "row": per_seed * seed + index}
        for seed in range(seeds)
        for index in range(per_seed)
    ],
    epochs=membership_epochs,
    batch_size=100,
    device=device,
    progress="members",
)
log_p = fitted.predict(inputs).log_softmax(-1)
own = F.one_hot(labels, classes).bool()
# The log-odds of the given label; the other classes together by logsumexp, exact near certainty.
phi = log_p[own].view_as(labels) - log_p.masked_fill(own, -math.inf).logsumexp(-1)
phi = phi.view(seeds, per_seed, pool).double()
rows = []
for seed, target in itertools.product(range(seeds), range(per_seed)):
    twin = target ^ 1
    references = [index for index in range(per_seed) if index not in (target, twin)]
    seen = inside[seed, references].double()
    values = phi[seed, references]
    mean_in = (values * seen).sum(0) / seen.sum(0)
    mean_out = (values * (1 - seen)).sum(0) / (1 - seen).sum(0)
    scores = {
        PLAIN: phi[seed, target],
        CALIBRATED: (phi[seed, target] - (mean_in + mean_out) / 2) * (mean_in - mean_out),
    }
    yes, odd = inside[seed, target], wrong[seed]
    for name, score in scores.items():
        allowed = int(false_positives * int((~yes).sum()))
        cut = score[~yes].sort(descending=True).values[allowed]
        found = score > cut
        rows.append(
            {
                "seed": seed,
                "method": name,
                "area": 100 * membership.attack_auc(score[yes], score[~yes]).item(),
                "found": 100 * found[yes].double().mean().item(),
                "found, wrong label": 100 * found[yes & odd].double().mean().item(),
                "found, right label": 100 * found[yes & ~odd].double().mean().item(),
            }
        )
        if seed == target == 0:
            shown = scores
membership_scores = pd.DataFrame(rows).groupby(["method", "seed"], as_index=False).mean()

# %%
batch_size = 64


def clean_loss(model, batch, run):
    return F.cross_entropy(model(batch["x"]), batch["y"])


def attacked_loss(model, batch, run):
    found = attacks.pgd(
        model,
        batch["x"],
        batch["y"],
        epsilon=epsilon,
        steps=5,
        start=epsilon * batch["kick"],
    )
    return F.cross_entropy(model(found), batch["y"])


def kicks(generator, steps):
    """Random starts within the ball, in units of its radius."""
    drawn = torch.rand(
        steps, batch_size, 1, 8, 8, generator=generator, device=generator.device
    )
    return {"kick": 2 * drawn - 1}


def classifier(loss, noise, name):
    return lab.fit(
        lambda run: lab.mlp([pixels, 128, classes]),
        loss,
        {"x": train.inputs, "y": train.targets},
        lab.grid(seed=range(seeds), learning_rate=[0.003]),
        epochs=epochs,
        batch_size=batch_size,
        noise=noise,
        device=device,
        progress=name,
    )


undefended = classifier(clean_loss, None, UNDEFENDED)
hardened = classifier(attacked_loss, kicks, TRAINED)
STEP = 1 / 16  # all pixels of the digits are multiples of it
models = {
    UNDEFENDED: undefended.each,
    INFLATED: lambda x: 1000 * undefended.each(x),
    ROUNDED: lambda x: undefended.each(STEP * (x / STEP).round()),
    TRAINED: hardened.each,
}
where = lab.choose_device(device)
x = test.inputs.to(where).expand(seeds, *test.inputs.shape)
y = test.targets.to(where).expand(seeds, -1)


def randomly():
    return torch.Generator().manual_seed(1)


ladder = {
    "FGSM": lambda model: attacks.fgsm(model, x, y, epsilon=epsilon),
    "PGD": lambda model: attacks.pgd(model, x, y, epsilon=epsilon, steps=attack_steps),
    "restarts": lambda model: attacks.pgd(
        model,
        x,
        y,
        epsilon=epsilon,
        steps=attack_steps,
        restarts=restarts,
        generator=randomly(),
    ),
    "ensemble": lambda model: (
        attacks.ensemble(
            model,
            x,
            y,
            epsilon=epsilon,
            steps=attack_steps,
            classes=3,
            queries=queries,
            generator=randomly(),
        ).inputs
    ),
}
with torch.no_grad():
    clean = {name: model(x).argmax(-1) for name, model in models.items()}
same_answers = sum(
    (clean[name] != clean[UNDEFENDED]).sum().item() for name in (INFLATED, ROUNDED)
)
ledger.check(
    "same-answers",
    "Inflated and rounded networks give every clean test picture the class that the undefended one gives it.",
    error=same_answers,
    tolerance=0.0,
    cases=2 * y.numel(),
)
rows, behind = [], None
for name, model in models.items():
    right = clean[name] == y
    together = right
    for rung in ["clean", *ladder, "knows the trick"]:
        if rung == "clean":
            kept = right
        else:
            # Of adversarial training there is no trick to know: what was found before stands.
            if rung != "knows the trick":
                found = ladder[rung](model)
            elif name != TRAINED:
                found = behind
            kept = model(found).argmax(-1) == y
        if name == UNDEFENDED and rung == "ensemble":
            behind = found
        together = together & kept
        for seed in range(seeds):
            rows.append(
                {
                    "seed": seed,
                    "method": name,
                    "attack": rung,
                    "alone": 100 * (kept & right)[seed].double().mean().item(),
                    "together": 100 * together[seed].double().mean().item(),
                }
            )
robust = pd.DataFrame(rows)

# %%
with torch.no_grad():
    released = {
        name: undefended.predict(split.inputs).log_softmax(-1)
        for name, split in (("known", validation), ("asked", test))
    }
decoders = inversion.fit_decoders(
    released["known"][:, None],
    validation.inputs,
    epochs=decoder_epochs,
    device=device,
    progress="decoders",
)
drawn = decoders(released["asked"])
mean_picture = validation.inputs.mean(0).expand_as(test.inputs)
rows, pictures = [], []
for seed in range(seeds):
    known, asked = (released[name][seed].argmax(-1) for name in ("known", "asked"))
    means = torch.stack([validation.inputs[known == k].mean(0) for k in range(classes)])
    by_label = means.nan_to_num()[asked]
    rows.append(
        {
            "seed": seed,
            "label": 100 * inversion.explained_share(by_label, test.inputs, mean_picture).effect,
            "decoder": 100
            * inversion.explained_share(drawn[seed], test.inputs, mean_picture).effect,
            "added": 100 * inversion.explained_share(drawn[seed], test.inputs, by_label).effect,
        }
    )
    pictures.append(by_label)
inverted = pd.DataFrame(rows)
inverted["share"] = 100 * inverted["label"] / inverted["decoder"]

# %%
true_area = stats.norm.cdf(apart / math.sqrt(2))
rows = []
for seed in range(seeds):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(repetitions):
        members_scores = apart + torch.randn(examples, generator=draw)
        found = membership.judge_attack(
            members_scores, torch.randn(examples, generator=draw), false_positives=rate
        )
        rows.append(
            {
                "seed": seed,
                "estimate": found.power.effect,
                "power covered": found.power.low <= true_power <= found.power.high,
                "area covered": found.auc.low <= true_area <= found.auc.high,
            }
        )
tried = pd.DataFrame(rows)
covered = 100 * tried.groupby("seed")[["power covered", "area covered"]].mean()
print(
    f"s.d. of the estimated true-positive rate: {tried['estimate'].std():.3f} over repetitions; "
    f"{math.sqrt((first_term + second_term) / examples):.3f} by both terms, {math.sqrt(first_term / examples):.3f} by the first alone"
)
lab.record(
    pd.concat(
        [
            membership_scores.assign(experiment="members"),
            robust.assign(experiment="robustness"),
            inverted.assign(experiment="inversion"),
            covered.reset_index().assign(experiment="intervals"),
        ],
        ignore_index=True,
    )
)

# %% [markdown]
# ## Results
#
# ### Members

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6, 3.9))
yes = inside[0, 0]
for name, style in ((PLAIN, "--"), (CALIBRATED, "-")):
    score = shown[name]
    at = torch.cat([score.sort(descending=True).values, score.new_tensor([-math.inf])])
    f = (score[~yes][None] >= at[:, None]).double().mean(1)
    tau = (score[yes][None] >= at[:, None]).double().mean(1)
    area = membership_scores[membership_scores["method"] == name]["area"].mean()
    axes.step(f, tau, style, where="post", label=f"{name}, mean area {area / 100:.2f}")
axes.plot([1e-3, 1], [1e-3, 1], color="0.5", linewidth=0.8, label="chance")
axes.axvline(false_positives, color="0.4", linestyle=":", linewidth=1)
axes.set(
    title="Two attacks on one network",
    xlabel="false-positive rate",
    ylabel="true-positive rate",
    xscale="log",
    yscale="log",
    xlim=(2e-3, 1),
    ylim=(2e-3, 1.2),
)
figure.legend(loc="outside lower center", ncols=3)
means = membership_scores.groupby("method")[["area", "found"]].mean()
lab.show(
    figure,
    caption=f"ROC curves on the first network of the first seed; areas are means over all networks. The dotted line marks the false-positive rate of {100 * false_positives:g} %.",
    alt=f"Two ROC curves with logarithmic axes. At the dotted line the plain attack finds on average {means.loc[PLAIN, 'found']:.1f} per cent of the members, "
    f"the calibrated one {means.loc[CALIBRATED, 'found']:.1f} per cent.",
)
summary = membership_scores.groupby("method", as_index=False).mean().drop(columns="seed")
lab.show_table(
    summary.rename(columns={"method": "attack", "area": "area, %"}),
    caption=f"Means over {seeds} seeds with {networks} networks each: area under the ROC curve, and members found (%) at a false-positive rate of {100 * false_positives:g} %.",
    formats=dict.fromkeys(
        ["area, %", "found", "found, wrong label", "found, right label"], "{:.1f}"
    ),
)

# %% [markdown]
# ### Robustness

# %% tags=["hide-input"]
rungs = list(dict.fromkeys(robust["attack"]))
figure, axes = plt.subplots(figsize=(6, 4.2))
for index, name in enumerate(models):
    own_rows = robust[robust["method"] == name]
    ends = [
        lab.mean_interval(own_rows.loc[own_rows["attack"] == rung, "together"])
        for rung in rungs
    ]
    middle = [each.effect for each in ends]
    axes.plot(
        rungs,
        middle,
        marker="osD^"[index],
        linestyle=["-", "--", ":", "-"][index],
        label=name,
    )
    if seeds > 1:
        low, high = ([getattr(each, end) for each in ends] for end in ("low", "high"))
        axes.fill_between(
            rungs,
            np.maximum(low, 0),
            np.minimum(high, 100),
            alpha=0.15,
            linewidth=0,
            color=f"C{index}",
        )
axes.set(
    title="What is left as attacks are added",
    xlabel="attack, along with those to its left",
    ylabel="accuracy (%)",
    ylim=(-2, 102),
)
axes.set_xticks(range(len(rungs)), [rung.replace(" the ", "\nthe ") for rung in rungs])
figure.legend(loc="outside lower center", ncols=2)
final = robust[robust["attack"] == rungs[-1]].groupby("method")["together"].mean()
by_fgsm = robust[robust["attack"] == "FGSM"].groupby("method")["together"].mean()
lab.show(
    figure,
    caption=f"Test accuracy at a radius of {epsilon:g}, mean and 95 % interval over {seeds} seeds. A picture counts as right if it withstands the attack and all to its left.",
    alt="Four falling lines over six attacks of rising strength. After FGSM: "
    + ", ".join(f"{name} {by_fgsm[name]:.0f}" for name in models)
    + " per cent; after all: "
    + ", ".join(f"{name} {final[name]:.0f}" for name in models)
    + " per cent.",
)
alone = robust.groupby(["method", "attack"], sort=False)["alone"].mean().unstack()
lab.show_table(
    alone.reset_index().rename(columns={"method": "network"}),
    caption="The same with each attack alone: accuracy (%). The undefended network and adversarial training have no trick to know; their last column is the ensemble's.",
    formats=dict.fromkeys(rungs, "{:.1f}"),
)

# %% [markdown]
# ### Inversion and intervals

# %% tags=["hide-input"]
chosen = [int((test.targets == digit).nonzero()[0]) for digit in range(8)]
figure, panels = plt.subplots(3, 8, figsize=(6, 2.9))
kinds_shown = {"original": test.inputs, "label only": pictures[0], "decoder": drawn[0]}
for line, (name, images) in zip(panels, kinds_shown.items(), strict=True):
    for column, (panel, index) in enumerate(zip(line, chosen, strict=True)):
        panel.imshow(images[index].squeeze(), cmap="gray_r", vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[], xlabel=" ", ylabel=name if column == 0 else " ")
figure.suptitle("Test pictures, and what their answers give away", fontsize=11)
levels = inverted[["label", "decoder", "added", "share"]].mean()
lab.show(
    figure,
    caption="One picture of each of eight classes; the mean of its predicted class; the decoder's reconstruction from all log-probabilities. First seed.",
    alt="Three rows of eight digits: originals, class means, reconstructions. The reconstructions look like the class means, with some of the originals' slant.",
)
lab.show_table(
    pd.DataFrame(
        [
            {"score": "label only, against the mean picture", "%": levels["label"]},
            {"score": "decoder, against the mean picture", "%": levels["decoder"]},
            {"score": "decoder, against the class mean", "%": levels["added"]},
            {
                "score": "95 % intervals of the area that cover",
                "%": covered["area covered"].mean(),
            },
            {
                "score": "95 % intervals of the true-positive rate that cover",
                "%": covered["power covered"].mean(),
            },
        ]
    ),
    caption=f"Means over {seeds} seeds: share of the squared error removed, and coverage of intervals.",
    formats={"%": "{:.1f}"},
)

# %% [markdown]
# ### Claims, judged

# %%
c1.judge(lab.paired(membership_scores, "found", CALIBRATED, PLAIN))
# %%
c2.judge(lab.paired(membership_scores, "area", CALIBRATED, PLAIN))
# %%
sharp = membership_scores[membership_scores["method"] == CALIBRATED]
# Without any wrong label there is nothing to judge.
c3.judge((sharp["found, wrong label"] - sharp["found, right label"]).dropna())
# %%
first = robust[robust["attack"] == "FGSM"]
c4.judge({name: lab.paired(first, "alone", name, TRAINED) for name in (INFLATED, ROUNDED)})
# %%
last = robust[robust["attack"] == rungs[-1]]
c5.judge(
    {name: lab.paired(last, "together", TRAINED, name) for name in (INFLATED, ROUNDED)}
)
# %%
honest = {}
for name in (UNDEFENDED, TRAINED):
    own_rows = robust[robust["method"] == name]
    honest[name] = lab.paired(own_rows, "together", "PGD", rungs[-1], condition="attack")
c6.judge(honest)
# %%
c7.judge(inverted["share"])
# %%
c8.judge(covered["power covered"] - 95)
# %%
c9.judge(covered["area covered"] - 95)

# %% [markdown]
# ## What follows, and what does not
#
# **For reading the seven pages.** What is said of the claims here is said of the default run.
#
# - **An area alone is not enough (C1, C3).** The calibrated attack is sure of most mislabelled members, while the plain one finds at the low rate
#   about as many as chance would: what stands out for it are mislabelled *non-members*. Whoever judges a defence by the plain loss alone would call
#   these networks harmless. Who is harmed are those that are unlike the rest; an average over everybody hides them.
# - **But areas do differ (C2).** Our guess from {eq}`pr-few` was too bold. It holds for two ideal attacks on the wrong labels; the calibrated one
#   also learns from pictures with right labels, which add little at the low rate (see the table) and much to the area. The direction in which the
#   area errs is that of {eq}`pr-low`: with a concave curve, the area of the plain attack would *allow* a fifth of the members to be found at a rate
#   of 1 %, and it finds next to none.
# - **The attacker decides who wins (C4, C5).** FGSM and PGD without a random start see hardly anything of the two masked networks, whose weights are
#   those of the undefended one. Random starts uncover a little. An attack on a ratio of logits undoes the inflation at once; rounding gives way to
#   the search without gradients in part, and wholly to whoever leaves the rounding out. Hence the pages on WEAT and B-MTARD judge by an ensemble with
#   such parts. A network that withstands strong gradient attacks and falls to random search, or is better against PGD than against FGSM, has given
#   itself away.
# - **Without masking, PGD goes far (C6).** It may then serve to compare. It stays an upper bound: for the linear classifier the table shows by how
#   much FGSM and PGD are too kind.
# - **An inversion is scored against the label (C7).** Against the mean picture the label alone has most of the score. The share of the class mean's
#   error, which the page on MID reports, leaves it out.
# - **Binomial intervals of a rate at a rate are too narrow (C8).** They treat the threshold as given. The printed standard deviations show that
#   {eq}`pr-power` accounts for the rest. At a low rate with a hundred non-members the threshold is the larger source of error. So we rest verdicts on
#   intervals over seeds, for which everything is drawn anew, and read the interval of a single attack as one *at its threshold*. The area has no
#   threshold; the verdict on its interval is C9.
#
# **About real systems.** These are networks with some ten thousand weights and pictures of 64 pixels.
#
# - *What carries over* are the inequalities, the constructions, and the order in which things can go wrong. An evaluation that is fooled here can be
#   fooled elsewhere.
# - *What does not* are the sizes. Large networks remember in other ways and amounts, large pictures leave an attacker far more directions, and text
#   has no ball of radius $\epsilon$ at all. Nobody should conclude from seven small experiments that a system is safe, or that a method which fails
#   here fails everywhere.
# - *Threat models are simpler than threats.* Attackers here keep to one door. Real ones combine doors, take time, and choose the cheapest. Pictures
#   moved by at most $\epsilon$ a pixel are a yardstick, not a description of what people do.
# - *Privacy has a bound, robustness hardly.* Differential privacy holds against all attackers, those to come included, at a price in accuracy. None
#   of the losses of this part comes with such a guarantee. Certified robustness exists for small radii and is not used here.
# - *Who owns what is protected is left out.* Whether somebody's picture should have been used at all, no attack can tell.

# %% [markdown]
# ## Try it
#
# - Only right labels, `lossbook run privacy_robustness -p wrong_labels=0`: how much does either attack find then?
# - Fewer passes, `-p membership_epochs=10`: wrong labels are learned last. What becomes of C1 and C3?
# - Fewer references, `-p networks=4`.
# - A smaller ball, `-p epsilon=0.0625`, or a larger one, `-p epsilon=0.1875` (keep to multiples of 1/16).
# - A more patient search, `-p queries=1000`: how far does rounding hold?
# - Larger samples for the intervals, `-p examples=1000 -p repetitions=100`: does C8 improve?
#
# Everything this page found:

# %%
ledger.summary()
