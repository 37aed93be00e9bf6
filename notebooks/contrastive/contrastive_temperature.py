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
#     idea: The temperature of InfoNCE decides how much of its push goes to the most similar negatives.
#     tags: [self-supervision, temperature, hard negatives, gradient]
#     profiles:
#       smoke:
#         seeds: 2
#         epochs: 1
#         memory: true
#         learning_rates: [0.003]
#         temperatures: [0.1, 0.3, 1.0]
#         cases: 5
#       full:
#         dataset: fashion_mnist
#         encoder: cnn
#         memory: true
#         share: 0.08
#         shift: 2
#         large_shift: 8
#         epochs: 60
#         learning_rates: [0.0003, 0.001, 0.003]
#         temperatures: [0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
# ---

# %% [markdown]
# # What the temperature does
#
# A contrastive loss pulls two views of a picture together and pushes all other pictures, the *negatives*, away. Not all alike: the softmax in
# InfoNCE pushes a negative the harder the more similar it is, by the law that Boltzmann found for the energies of a gas. Wang and Liu show that the
# temperature $\tau$ sets how concentrated that push is. At a small $\tau$ nearly all of it goes to the most similar negatives. They may
# well be pictures of the same kind, and what belongs together is torn apart. At a large $\tau$ every negative gets the same push, and the embeddings
# stay crowded. In between lies a compromise. If only the hardest negatives are kept to begin with, the temperature should matter less.
#
# **To take away.** InfoNCE has a triplet loss on the hardest negative at one end ($\tau\to0$) and at the other ($\tau\to\infty$) a loss that sees no
# negatives at all, only the *mean* of the embeddings: two heaps at opposite poles satisfy it as well as an even spread. The temperature is a dial between them.
# Whether accuracy is best between the ends, and whether choosing hard negatives explicitly frees us from the dial, is measured below.

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn
from typing import Literal

from lossbook import lab
from lossbook.lab import augmentations
from lossbook.methods.contrastive.contrastive_temperature import (
    hard_info_nce,
    hard_info_nce_from_cosines,
    relative_penalties,
    simple_contrastive,
    simple_contrastive_from_cosines,
    tolerance,
)
from lossbook.methods.contrastive.hypersphere import uniformity
from lossbook.methods.similarities import pair_gradients, unit

lab.use_theme()
ledger = lab.Ledger()

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
seeds: int = 5  # independent runs behind every interval
dataset: Literal["digits", "fashion_mnist"] = "digits"  # the pictures
full_data: bool = False  # the whole set, fetched once, or the part that ships
encoder: Literal["mlp", "cnn"] = "mlp"  # the network that makes the embeddings
memory: bool = False  # negatives: all pictures, or the batch
temperatures: list[float] = [0.05, 0.1, 0.2, 0.5, 1.0]  # three or more
shift: int = 0  # views are moved by up to so many pixels
large_shift: int = 1  # and by so many where they differ too much
share: float = 0.1  # of the negatives, what the hard losses keep
learning_rates: list[float] = [0.001, 0.003]  # tried for every method
epochs: int = 12  # passes over the training pictures
batch_size: int = 256  # pictures a step
cases: int = 100  # random cases behind every check
device: str = "auto"  # "auto" takes a GPU where there is one

# %% [markdown]
# ## Derivation
#
# ### Setting
#
# Let $s_{ij}$ be the cosine of the embedding of picture $i$ and candidate $j$. There are $N$ candidates: the positive, $s_{ii}$, which is another view of
# picture $i$ (or what a memory remembers of it), and $N-1$ negatives. The loss is
#
# $$
# \ell_i=-\log P_{ii},\qquad P_{ij}=\frac{e^{s_{ij}/\tau}}{\sum_{k}e^{s_{ik}/\tau}} ,
# $$ (temp-loss)
#
# the cross-entropy of finding the positive. The sum over $k$ includes the positive.
#
# ### Push and pull
#
# Write $\ell_i=-s_{ii}/\tau+\log\sum_ke^{s_{ik}/\tau}$. The derivative of the logarithm by $s_{ij}$ is $\frac1\tau P_{ij}$, and the first term adds
# $-\frac1\tau$ for $j=i$. With $1-P_{ii}=\sum_{k\ne i}P_{ik}$,
#
# $$
# \begin{aligned}
# \frac{\partial\ell_i}{\partial s_{ij}}&=\frac1\tau P_{ij}\quad(j\ne i),\\
# \frac{\partial\ell_i}{\partial s_{ii}}&=-\frac1\tau\sum_{k\ne i}P_{ik}.
# \end{aligned}
# $$ (temp-gradient)
#
# Two things follow. The pull on the positive equals the total push on the negatives. And the *relative penalty*, the share of a negative in that
# push, is
#
# $$
# \begin{aligned}
# r_i(s_{ij})&=\frac{\lvert\partial\ell_i/\partial s_{ij}\rvert}{\lvert\partial\ell_i/\partial s_{ii}\rvert}
# =\frac{e^{s_{ij}/\tau}}{\sum_{k\ne i}e^{s_{ik}/\tau}},\\
# \sum_{j\ne i}r_i(s_{ij})&=1 .
# \end{aligned}
# $$ (temp-penalty)
#
# This is a Boltzmann distribution over the negatives, with similarity in the place of minus the energy. The positive has no part in it. Note also the scale: push and pull together are
# $\frac2\tau(1-P_{ii})\le\frac2\tau$. Plain gradient descent at one learning rate would thus take steps that differ by the ratio of the temperatures. We train
# with Adam, which divides by the size of the gradient, and tune its rate at each temperature.

# %%
generator = torch.Generator().manual_seed(0)


def random_cosines(n=24, d=6):
    """Cosines of random embeddings, in double precision, positives on the diagonal."""
    x, y = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return F.normalize(x) @ F.normalize(y).T


def random_temperature(low=0.05, high=2.0):
    u = float(torch.rand((), generator=generator, dtype=torch.float64))
    return low * (high / low) ** u


def losses(s, temperature):
    """Cross-entropy that picks the diagonal: PyTorch's own, the oracle of this page."""
    return F.cross_entropy(s / temperature, torch.arange(len(s)), reduction="none")


def off_diagonal(matrix):
    """The negatives of each row, `(n, n-1)`."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)].view(len(matrix), -1)


forms, balance = [], []
for _ in range(cases):
    s, tau = random_cosines(), random_temperature()
    automatic = pair_gradients(lambda s, tau=tau: losses(s, tau).sum(), s)
    p = torch.exp(s / tau) / torch.exp(s / tau).sum(1, keepdim=True)
    pushes, pull = off_diagonal(automatic), automatic.diagonal()
    forms.append(lab.max_error(tau * pushes, off_diagonal(p)))
    forms.append(lab.max_error(tau * pull, p.diagonal() - 1))
    penalties = off_diagonal(relative_penalties(s, temperature=tau))
    forms.append(lab.max_error(penalties, pushes / -pull[:, None]))
    balance.append(lab.max_error(tau * pushes.sum(1), -tau * pull))
    balance.append(lab.max_error(penalties.sum(1), 1.0))
ledger.check(
    "gradient",
    "Push, pull and relative penalty have the closed forms above: automatic differentiation of PyTorch's cross-entropy agrees.",
    error=max(forms),
    tolerance=1e-9,
    cases=cases,
)
ledger.check(
    "balance",
    "The pull on the positive equals the total push on the negatives, and the relative penalties sum to 1.",
    error=max(balance),
    tolerance=1e-12,
    cases=cases,
)

# %% [markdown]
# ### A warmer push is a more even push
#
# How many negatives share the push? The entropy $H(r_i)=-\sum_jr_{ij}\log r_{ij}$ tells: $e^{H}$ is $1$ if one negative gets everything and $N-1$ if all get
# the same. Put $\beta=1/\tau$ and $Z=\sum_{k\ne i}e^{\beta s_{ik}}$, so that $\log r_{ij}=\beta s_{ij}-\log Z$. Then
#
# $$
# \begin{aligned}
# H&=\log Z-\beta\,\mathbb E_r[s],\\
# \frac{d\log Z}{d\beta}&=\mathbb E_r[s],\\
# \frac{d\,\mathbb E_r[s]}{d\beta}&=\mathbb E_r[s^2]-\mathbb E_r[s]^2=\operatorname{Var}_r(s).
# \end{aligned}
# $$
#
# The middle one is the definition of $\mathbb E_r$; the last follows by the quotient rule. Together, $\frac{dH}{d\beta}=\mathbb E_r[s]-\mathbb E_r[s]-\beta\operatorname{Var}_r(s)$, and with
# $\frac{d\beta}{d\tau}=-\frac1{\tau^2}$,
#
# $$
# \frac{dH(r_i)}{d\tau}=\frac{\operatorname{Var}_{r_i}(s)}{\tau^3}\ \ge\ 0 .
# $$ (temp-entropy)
#
# Since every $r_{ij}>0$, the variance is zero only if all negatives have the same similarity. In all other cases the entropy grows strictly with $\tau$.

# %%
gaps, tied = [], []
for _ in range(cases):
    s, tau = off_diagonal(random_cosines()), random_temperature()

    def entropy(tau, s=s):
        return torch.distributions.Categorical(logits=s / tau).entropy()

    _, slope = torch.func.jvp(
        entropy,
        (torch.tensor(tau, dtype=torch.float64),),
        (torch.tensor(1.0, dtype=torch.float64),),
    )
    r = torch.softmax(s / tau, 1)
    mean = (r * s).sum(1, keepdim=True)
    gaps.append(lab.max_error(slope, (r * (s - mean) ** 2).sum(1) / tau**3))
    same = torch.full((1, 23), float(s[0, 0]), dtype=torch.float64)
    tied.append(lab.max_error(entropy(tau, same), math.log(23)))
ledger.check(
    "entropy",
    "The entropy of the penalties grows with the temperature at the rate Var(s)/τ³: automatic differentiation agrees.",
    error=max(gaps),
    tolerance=1e-9,
    cases=cases,
)
ledger.check(
    "entropy-tied",
    "Where all negatives tie the entropy is log(N-1) at every temperature.",
    error=max(tied),
    tolerance=1e-12,
    cases=cases,
)

# %% tags=["hide-input"]
batch = random_cosines(256, 16)
negatives = off_diagonal(batch)
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4))
similarity, order = negatives[0].sort()
for index, tau in enumerate([0.05, 0.1, 0.3, 1.0]):
    r = off_diagonal(relative_penalties(batch, temperature=tau))[0, order]
    style = dict(color=f"C{index}", linestyle=["-", "--", "-.", ":"][index])
    left.semilogy(similarity, 255 * r, linewidth=2, label=f"τ = {tau:g}", **style)
left.set(
    title="Who gets the push",
    xlabel="cosine of the negative",
    ylabel="penalty relative to an even share",
    ylim=(1e-4, 300),
)
warmth = np.geomspace(0.01, 10, 60)
number = [
    torch.special.entr(off_diagonal(relative_penalties(batch, temperature=tau)))
    .sum(1)
    .exp()
    .mean()
    for tau in warmth
]
right.loglog(warmth, number, color="C0", linewidth=2)
for level, place in [(255, "all 255"), (1, "the hardest alone")]:
    right.axhline(level, color="0.4", linestyle=":", linewidth=1)
    right.text(0.011, level * 1.12 if level == 1 else level / 1.5, place, fontsize=9)
right.set(
    title="How many negatives share it",
    xlabel="temperature τ",
    ylabel="effective number $e^{H}$",
    ylim=(0.8, 400),
)
figure.legend(loc="outside lower center", ncols=4)
lab.show(
    figure,
    caption="255 negatives with random cosines. Left: relative penalty of each, in multiples of an even share of 1/255. "
    "Right: the effective number of negatives that share the push, mean over 256 queries.",
    alt="Left: straight lines on a logarithmic axis, steep at temperature 0.05 and nearly flat at temperature 1. "
    "Right: a curve that rises from 1 at temperature 0.01 to 255 at temperature 10.",
)

# %% [markdown]
# ### The cold end: a triplet loss
#
# Take $e^{s_{ii}/\tau}$ out of the loss:
# $\tau\ell_i=\tau\log\bigl(1+\sum_{k\ne i}e^{(s_{ik}-s_{ii})/\tau}\bigr)$. Inside the logarithm stand $N$ terms. The largest is $e^{m_i/\tau}$ with
#
# $$
# \begin{aligned}
# &m_i=\max\bigl(\max_{k\ne i}s_{ik}-s_{ii},\,0\bigr),\\
# &m_i\ \le\ \tau\ell_i\ \le\ m_i+\tau\log N ,
# \end{aligned}
# $$ (temp-cold)
#
# because a sum of $N$ positive terms is at least its largest and at most $N$ times it. As $\tau\to0$, $\tau\ell_i\to m_i$: a triplet loss with margin zero
# that looks at the single hardest negative.
#
# ### The hot end: no hardness at all
#
# For large $\tau$ expand the cumulant generating function: the mean of $e^{s/\tau}$ over all $N$ candidates, positive included, has the logarithm
# $\frac1\tau\bar s_i+\frac1{2\tau^2}\operatorname{Var}_k(s_{ik})+O(\tau^{-3})$, with $\bar s_i=\frac1N\sum_ks_{ik}$ and
# $\operatorname{Var}_k$ the variance with divisor $N$. Since $\ell_i=-s_{ii}/\tau+\log N+\log\frac1N\sum_ke^{s_{ik}/\tau}$,
#
# $$
# \begin{aligned}
# \tau(\ell_i-\log N)&=-s_{ii}+\bar s_i\\
# &\quad+\frac{1}{2\tau}\operatorname{Var}_k(s_{ik})+O(\tau^{-2}).
# \end{aligned}
# $$ (temp-hot)
#
# The first line is $-\frac{N-1}Ns_{ii}+\frac1N\sum_{k\ne i}s_{ik}$. So the limit is $\frac{N-1}N$ times what the paper calls the *simple* contrastive loss,
#
# $$
# \ell_i^{\text{simple}}=-s_{ii}+\lambda\sum_{j\ne i}s_{ij},\quad\lambda=\tfrac1{N-1} .
# $$ (temp-simple)
#
# It pushes every negative alike. Hardness first comes in with the remainder, as a variance.

# %%
outside, remainder = [], []
for _ in range(cases):
    s = random_cosines()
    n = len(s)
    hardest = off_diagonal(s).amax(1)
    m = (hardest - s.diagonal()).clamp(min=0)
    for tau in (1e-3, 1e-2, 0.1, 1.0):
        scaled = tau * losses(s, tau)
        outside.append(float((m - scaled).max()))
        outside.append(float((scaled - m - tau * math.log(n)).max()))
    tau = 1e3
    simple = (off_diagonal(s).sum(1) - (n - 1) * s.diagonal()) / n
    rest = tau * (tau * (losses(s, tau) - math.log(n)) - simple)
    half = s.var(1, correction=0) / 2
    remainder.append(float(((rest - half).abs() / half).max()))
ledger.check(
    "cold-end",
    "τ times the loss lies between the zero-margin triplet loss on the hardest negative and that plus τ log N, for τ from 0.001 to 1.",
    error=max(0.0, *outside),
    tolerance=1e-12,
    cases=4 * cases,
)
ledger.check(
    "hot-end",
    "At τ = 1000 the distance to the simple loss is Var/(2τ), to three digits.",
    error=max(remainder),
    tolerance=1e-3,
    cases=cases,
)

# %% tags=["hide-input"]
warmth = np.geomspace(1e-3, 1e3, 61)
n = len(batch)
m = (negatives.amax(1) - batch.diagonal()).clamp(min=0)
flat = (n - 1) / n * simple_contrastive_from_cosines(batch, reduction="none")
cold = [float((tau * losses(batch, tau) - m).mean()) for tau in warmth]
hot = [float((tau * (losses(batch, tau) - math.log(n)) - flat).mean()) for tau in warmth]
figure, axes = plt.subplots(figsize=(7, 3.5))
axes.loglog(warmth, cold, color="C0", linewidth=2, label="above the triplet loss")
axes.loglog(warmth, warmth * math.log(n), color="C0", linestyle=":", label="bound, τ log N")
axes.loglog(
    warmth, hot, color="C1", linestyle="--", linewidth=2, label="above the simple loss"
)
axes.loglog(
    warmth,
    float(batch.var(1, correction=0).mean()) / (2 * warmth),
    color="C1",
    linestyle=":",
    label="Var/(2τ)",
)
axes.set(
    title="InfoNCE between its two ends",
    xlabel="temperature τ",
    ylabel="distance to the limit",
    ylim=(1e-5, 10),
)
figure.legend(loc="outside lower center", ncols=4)
lab.show(
    figure,
    caption="How far InfoNCE, scaled as in the text, is above each of its limits; 256 candidates with random cosines, mean over queries. "
    "The temperatures in use, 0.05 to 1, lie where neither limit is reached.",
    alt="Two curves on logarithmic axes that cross: the distance to the triplet loss rises with temperature below its bound, "
    "the distance to the simple loss falls and joins its asymptote for temperatures above 1.",
)

# %% [markdown]
# ### What the simple loss cannot see
#
# This step is ours. Take the simple loss over a batch, with unit embeddings $u_i$ of one view and $v_j$ of the other. The sum over *all* pairs is
# $\sum_{ij}u_i^\top v_j=(\sum_iu_i)^\top(\sum_jv_j)=N^2\,\bar u^\top\bar v$, with the means $\bar u$ and $\bar v$. Without the $N$ positives it is the
# sum over the negatives, so with $\bar p=\frac1N\sum_is_{ii}$ the mean loss is
#
# $$
# -\bar p+\frac{N^2\bar u^\top\bar v-N\bar p}{N(N-1)}=\frac{N}{N-1}\bigl(\bar u^\top\bar v-\bar p\bigr).
# $$ (temp-means)
#
# The negatives enter through the two *means* alone. If the views of each picture agree, the loss is
# $\frac{N}{N-1}(\lVert\bar u\rVert^2-1)$, and any arrangement with mean zero reaches the minimum, $-\frac N{N-1}$. Half of the pictures at one
# pole and half at the other will do. Such an embedding tells two heaps apart and nothing else.

# %%
gaps = []
for _ in range(cases):
    x, y = torch.randn(2, 24, 6, generator=generator, dtype=torch.float64)
    u, v = F.normalize(x), F.normalize(y)
    s = u @ v.T
    direct = (off_diagonal(s).mean(1) - s.diagonal()).mean()
    gaps.append(
        lab.max_error(24 / 23 * (u.mean(0) @ v.mean(0) - (u * v).sum(1).mean()), direct)
    )
ledger.check(
    "means",
    "The simple loss of a batch is a function of the positives and of the two mean embeddings.",
    error=max(gaps),
    tolerance=1e-12,
    cases=cases,
)

poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64).repeat(120, 1)
angle = 2 * math.pi * torch.arange(240, dtype=torch.float64) / 240
ring = torch.stack([angle.cos(), angle.sin()], 1)
lab.show_table(
    pd.DataFrame(
        {
            "embedding of 240 pictures": ["two heaps", "even spread on the circle"],
            "simple loss": [float(simple_contrastive(x, x)) for x in (poles, ring)],
            "InfoNCE, τ = 0.1": [float(losses(x @ x.T, 0.1).mean()) for x in (poles, ring)],
            "minus uniformity loss": [-float(uniformity(x)) for x in (poles, ring)],
        }
    ),
    caption="Two arrangements with mean zero. The simple loss is at its minimum, -240/239, for both; InfoNCE prefers the spread",
    formats={
        "simple loss": "{:.4f}",
        "InfoNCE, τ = 0.1": "{:.3f}",
        "minus uniformity loss": "{:.3f}",
    },
)

# %% [markdown]
# ### Hardness without the temperature
#
# If hard negatives are what matters, one can pick them. Let $s^{(i)}_\alpha$ be the similarity that a share $\alpha$ of the negatives of query $i$
# reaches, and let $K_i$ be the number that do. The *hard* contrastive loss keeps these only, $k\ne i$ with $s_{ik}\ge s^{(i)}_\alpha$:
#
# $$
# \ell_i^{\text{hard}}=-\log\frac{e^{s_{ii}/\tau}}{e^{s_{ii}/\tau}+\sum_{\text{kept}}e^{s_{ik}/\tau}} .
# $$ (temp-hard)
#
# Let $S$ be the whole denominator of {eq}`temp-loss`, and $S'\le S$ what is left of it. Then $\ell_i-\ell_i^{\text{hard}}=\log(S/S')\ge0$, with
# equality exactly where nothing is left out. The gradient is that of a softmax over fewer entries:
#
# $$
# \begin{aligned}
# \frac{\partial\ell_i^{\text{hard}}}{\partial s_{ij}}&=
# \begin{cases}\frac1\tau P_{ij}\,\frac{S}{S'} & \text{kept,}\\ 0 & \text{left out,}\end{cases}\\
# \frac{\partial\ell_i^{\text{hard}}}{\partial s_{ii}}&=-\frac1\tau\Bigl(1-P_{ii}\frac{S}{S'}\Bigr).
# \end{aligned}
# $$ (temp-hard-gradient)
#
# Each kept negative is pushed harder, all by the same factor $S/S'$, and the positive is pulled more weakly. The penalties are still a Boltzmann
# law, over $K_i$ negatives, so $e^{H}\le K_i$ at any temperature: heat can no longer spread the push over everything. For $\tau\to\infty$ the argument
# of {eq}`temp-hot` gives
#
# $$
# \begin{aligned}
# &\tau\bigl(\ell_i^{\text{hard}}-\log(K_i+1)\bigr)\\
# &\quad\to\ \frac{K_i}{K_i+1}\Bigl(-s_{ii}+\frac1{K_i}\sum_{\text{kept}}s_{ik}\Bigr),
# \end{aligned}
# $$ (temp-hard-hot)
#
# which the paper calls *HardSimple*. It is the hot end of the hard loss, as the simple loss is that of InfoNCE.

# %%
above, left_out, kept_forms, less_push, hot_hard = [], [], [], [], []
for _ in range(cases):
    s, tau = random_cosines(), random_temperature()
    n, kept_number = len(s), 5  # 0.2 of 23 negatives, rounded
    hard = hard_info_nce_from_cosines(s, temperature=tau, share=0.2, reduction="none")
    above.append(float((hard - losses(s, tau)).max()))
    everything = hard_info_nce_from_cosines(s, temperature=tau, share=1.0, reduction="none")
    left_out.append(lab.max_error(everything, losses(s, tau)))

    pushes = pair_gradients(
        lambda s, tau=tau: hard_info_nce_from_cosines(
            s, temperature=tau, share=0.2, reduction="sum"
        ),
        s,
    )
    whole = pair_gradients(lambda s, tau=tau: losses(s, tau).sum(), s)
    place = off_diagonal(s).argsort(1, descending=True)
    ranked = off_diagonal(pushes).gather(1, place)
    ranked_whole = off_diagonal(whole).gather(1, place)
    left_out.append(float(ranked[:, kept_number:].abs().max()))
    factor = torch.exp(losses(s, tau) - hard)[:, None]  # S / S'
    kept_forms.append(
        lab.max_error(
            tau * ranked[:, :kept_number], tau * factor * ranked_whole[:, :kept_number]
        )
    )
    weaker = tau * (ranked_whole - ranked)[:, :kept_number]
    less_push += [float(weaker.max()), float(tau * (whole - pushes).diagonal().max())]

    warm = 1e5
    scaled = warm * (
        hard_info_nce_from_cosines(s, temperature=warm, share=0.2, reduction="none")
        - math.log(kept_number + 1)
    )
    top = off_diagonal(s).topk(kept_number, 1).values.mean(1)
    hot_hard.append(
        lab.max_error(scaled, kept_number / (kept_number + 1) * (top - s.diagonal()))
    )
ledger.check(
    "hard-below",
    "The hard loss is at most InfoNCE.",
    error=max(0.0, *above),
    tolerance=1e-12,
    cases=cases,
)
ledger.check(
    "hard-left-out",
    "It is InfoNCE if nothing is left out, and its gradient by what is left out is 0.",
    error=max(left_out),
    tolerance=1e-12,
    cases=cases,
)
ledger.check(
    "hard-factor",
    "The gradients by what is kept are those of InfoNCE times exp(InfoNCE less hard loss), the same factor for all.",
    error=max(kept_forms),
    tolerance=1e-9,
    cases=cases,
)
ledger.check(
    "hard-order",
    "So no kept negative is pushed less, and no positive is pulled more, than by InfoNCE.",
    error=max(0.0, *less_push),
    tolerance=1e-12,
    cases=cases,
)
ledger.check(
    "hard-hot-end",
    "At τ = 100,000 the hard loss, scaled, is HardSimple.",
    error=max(hot_hard),
    tolerance=1e-5,
    cases=cases,
)

# %% [markdown]
# The error of the last check is the next term of the expansion, at most $1/(2\tau)$ for cosines.
#
# ### When hard negatives are too hard
#
# This step is ours too; a first run of the experiment asked for it (below). Let all embeddings lie close to one point: $u_i\propto e+\epsilon a_i$ and $v_j\propto e+\epsilon b_j$
# with a unit vector $e$, $a_i,b_j\perp e$, and a small $\epsilon$. Normalised, their cosine is
# $(1+\epsilon^2a_i^\top b_j)/\sqrt{(1+\epsilon^2\lVert a_i\rVert^2)(1+\epsilon^2\lVert b_j\rVert^2)}$, that is
# $s_{ij}=1-\frac{\epsilon^2}2\lVert a_i-b_j\rVert^2+O(\epsilon^4)$. With the mean over the kept negatives in {eq}`temp-simple`,
#
# $$
# \begin{aligned}
# \ell_i^{\text{HardSimple}}&=\frac{\epsilon^2}{2}\Bigl(\lVert a_i-b_i\rVert^2-\frac1{K_i}\sum_{\text{kept}}\lVert a_i-b_k\rVert^2\Bigr)\\
# &\quad+O(\epsilon^4).
# \end{aligned}
# $$ (temp-collapse)
#
# The bracket decides what happens to the scale $\epsilon$. If the other view of a picture is nearer than its nearest neighbours are on average, the loss falls as
# $\epsilon$ grows: the embeddings spread. If views differ *more* than neighbours do, the loss falls as $\epsilon\to0$, and everything collapses into one point.
# The hard loss at any fixed temperature behaves the same there, because all differences of $s/\tau$ vanish with $\epsilon$: near a collapse every
# temperature is hot. For InfoNCE the mean is over *all* negatives, and views would have to differ more than two pictures do on average before it is trapped in this way.

# %%
gaps = []
for _ in range(cases):
    a, b = torch.randn(2, 24, 6, generator=generator, dtype=torch.float64)
    a, b = F.pad(a, (0, 1)), F.pad(b, (0, 1))  # the last axis is e
    e = F.one_hot(torch.tensor(6), 7).double()
    distances = torch.cdist(a, b).square()
    nearest = off_diagonal(distances).topk(5, 1, largest=False).values
    slope = (distances.diagonal() - nearest.mean(1)) / 2
    loss = simple_contrastive(e + 1e-3 * a, e + 1e-3 * b, share=0.2, reduction="none")
    gaps.append(lab.max_error(loss / 1e-6, slope))
ledger.check(
    "collapse",
    "Near a common point HardSimple is ε²/2 times (squared distance of the views less mean squared distance of the kept neighbours).",
    error=max(gaps),
    tolerance=1e-3,
    cases=cases,
)

# %% [markdown]
# The tolerance allows for the next term, $O(\epsilon^2)$ relative to the first, at $\epsilon=0.001$.
#
# ### Two measures of an embedding
#
# *Uniformity* is $-\log\mathbb E_{x\ne y}\,e^{-2\lVert f(x)-f(y)\rVert^2}$: large where the embeddings are spread evenly over the sphere. *Tolerance* is
# the mean cosine of two pictures of one class. The paper writes it as $\mathbb E[f(x)^\top f(y)\,\mathbb 1_{l(x)=l(y)}]$ (its eq. 11). Read to the letter this is a
# joint expectation over all pairs, and since a cosine is at most 1,
#
# $$
# \mathbb E\bigl[f(x)^\top f(y)\,\mathbb 1_{l(x)=l(y)}\bigr]\ \le\ \Pr[l(x)=l(y)] ,
# $$ (temp-joint)
#
# which is $0.1$ for ten balanced classes. The paper reports $0.372$ and $0.61$ on CIFAR-10. So it must have divided by that probability:
#
# $$
# T=\mathbb E\bigl[f(x)^\top f(y)\,\big|\,l(x)=l(y),\ x\ne y\bigr].
# $$ (temp-tolerance)
#
# We use this one. Pairs of a picture with itself are left out: they would add $1/n_c$ for a class of $n_c$ pictures.

# %%
gaps, excess = [], []
for _ in range(cases):
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(60) % 10
    u = F.normalize(x)
    same = (labels[:, None] == labels) & ~torch.eye(60, dtype=torch.bool)
    gaps.append(lab.max_error(tolerance(x, labels), (u @ u.T)[same].mean()))
    potential = torch.pdist(u).pow(2).mul(-2).exp().mean().log()
    gaps.append(lab.max_error(uniformity(x), potential))
    clustered = torch.randn(10, 5, generator=generator, dtype=torch.float64)[labels]
    clustered = clustered + 0.1 * x
    excess.append(float(tolerance(clustered, labels, joint=True) - same.sum() / (60 * 59)))
ledger.check(
    "measures",
    "Tolerance is the mean cosine over pairs of one class, uniformity the formula over all distances.",
    error=max(gaps),
    tolerance=1e-12,
    cases=cases,
)
ledger.check(
    "joint-reading",
    "Read to the letter, eq. 11 stays below the share of pairs of one class, however tight the classes are.",
    error=max(0.0, *excess),
    tolerance=1e-12,
    cases=cases,
)

# %% [markdown]
# ## The method
#
# The library's own source. With `share=1` the first is InfoNCE and the second the simple loss.

# %% tags=["hide-input"]
lab.show_source(hard_info_nce, simple_contrastive, tolerance)

# %% [markdown]
# The negatives kept are found anew in every row, by the value of the last one among them; all that tie with it are kept too, as {eq}`temp-hard` says. The positive
# is never dropped, however small its cosine. The oracle for both losses, from raw embeddings to gradients, is PyTorch's cross-entropy over a
# list that a plain sort makes.

# %%
gaps = []
for _ in range(max(1, cases // 5)):
    x, y = torch.randn(2, 24, 6, generator=generator, dtype=torch.float64).requires_grad_()
    s, tau = F.normalize(x) @ F.normalize(y).T, random_temperature()
    rows = []
    for i, row in enumerate(s):
        others = sorted(
            (k for k in range(24) if k != i),
            key=lambda k: float(row[k].detach()),
            reverse=True,
        )
        rows.append(row[[i, *others[:5]]])
    rows = torch.stack(rows)
    first = torch.zeros(24, dtype=torch.long)
    for ours, oracle in [
        (
            hard_info_nce(x, y, temperature=tau, share=0.2),
            F.cross_entropy(rows / tau, first),
        ),
        (
            simple_contrastive(x, y, share=0.2),
            (rows[:, 1:].mean(1) - rows[:, 0]).mean(),
        ),
    ]:
        gaps.append(lab.max_error(ours, oracle))
        expected = torch.autograd.grad(oracle, (x, y), retain_graph=True)
        for one, other in zip(torch.autograd.grad(ours, (x, y)), expected, strict=True):
            gaps.append(lab.max_error(one, other))
ledger.check(
    "library",
    "The library's hard losses and their gradients by raw embeddings agree with losses over negatives sorted one by one.",
    error=max(gaps),
    tolerance=1e-9,
    cases=max(1, cases // 5),
)

# %% [markdown]
# ## The experiment
#
# A network embeds pictures on the unit sphere and is trained without labels on random views of them: with Gaussian noise of standard deviation
# 0.1, with a tenth of the pixels set to zero, and, if `shift` asks for it, moved. There is no projector: the embedding that the loss shapes is the one that is judged, by a logistic regression
# on it (a *linear probe*), by its uniformity and by its tolerance, all on test pictures. The negatives are the other pictures of the batch, or, with
# `memory`, all training pictures as a memory bank recalls them (half of the old entry, half of the new embedding, whenever a picture comes by; the positive is the picture's
# own entry), as in the paper.
#
# Four losses: InfoNCE and the hard loss at each temperature, the simple loss, and HardSimple. All have the same network, views, seeds and steps, and each of
# them, at each temperature, the same grid of learning rates, from which the mean accuracy on validation pictures chooses. Where the best temperature is meant, it
# is chosen on validation as well; the losses with a temperature then have had as many times the budget as there are temperatures.
#
# Two settings were changed after first runs; the criteria below were not. The first run also moved the views by up to a pixel, an eighth of the width of a digit. There
# the hard losses collapsed, as {eq}`temp-collapse` predicts, so that it said nothing about the paper. Digits are now not moved, and the collapse has its own part
# under Results. That setting was found among seven (batch and passes, strength of the views, share, network, Fashion-MNIST), tried with two seeds each and compared by
# accuracy on validation pictures, and by uniformity, tolerance and lead on test pictures: C2, C4 and C7 are judged on what was seen then. The second run had learning rates of 0.003 and 0.01, and the smaller was best almost everywhere; the grid now reaches lower. With it the verdict on C7
# went from supported to inconclusive.

# %%
splits = {
    name: lab.load(dataset, split=name, full=full_data)
    for name in ("train", "validation", "test")
}
train, test = splits["train"].inputs, splits["test"].inputs
sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
candidates = len(train) if memory else batch_size
print(
    f"{splits['train'].name}: {sizes} pictures, {splits['train'].licence}; "
    f"{candidates - 1:,} negatives, of which the hard losses keep {max(1, round(share * (candidates - 1))):,}"
)

# %% [markdown]
# ### What is claimed
#
# The criteria are fixed here, before anything is trained. One point is our margin for accuracies, about the standard deviation of an accuracy near 95 %
# on the 360 test pictures of the digits. *Uniformity* is minus the uniformity loss, in nats.

# %%
c1 = ledger.claim(
    "c1",
    "Reverse U: InfoNCE is best at a temperature between the ends.",
    metric="test accuracy of the probe, InfoNCE at its best temperature inside the grid (by validation) less either end of the grid",
    direction="greater",
    margin=0.0,
    unit="points",
)
c2 = ledger.claim(
    "c2",
    "The dilemma: a higher temperature brings tolerance and costs uniformity.",
    metric="Spearman correlation over the grid, for InfoNCE, of temperature with tolerance and with minus uniformity",
    direction="greater",
    margin=0.8,
    unit="(rank correlation)",
)
c3 = ledger.claim(
    "c3",
    "Hardness matters: the simple loss is well below InfoNCE at its best, and picking hard negatives recovers it.",
    metric="test accuracy of the probe less that of the simple loss, for tuned InfoNCE and for HardSimple",
    direction="greater",
    margin=1.0,
    unit="points",
)
c4 = ledger.claim(
    "c4",
    "The hard loss is less sensitive: its uniformity ranges less over the temperatures.",
    metric="largest less smallest uniformity over the grid, hard loss less InfoNCE",
    direction="less",
    margin=0.0,
    unit="nats",
)
c5 = ledger.claim(
    "c5",
    "The best temperature of the hard loss is higher.",
    metric="log2 of the best temperature (by each seed's validation accuracy, the lower of equals), hard loss less InfoNCE",
    direction="greater",
    margin=0.0,
    unit="octaves",
)
c6 = ledger.claim(
    "c6",
    "At its best the hard loss is no worse than InfoNCE.",
    metric="test accuracy of the probe at the best temperature, hard loss less InfoNCE",
    direction="greater",
    margin=-1.0,
    unit="points",
)
c7 = ledger.claim(
    "c7",
    "As the temperature grows, positives align better and their lead over the ten most similar negatives shrinks.",
    metric="Spearman correlation over the grid, for InfoNCE, of temperature with the mean cosine of positives and with minus the lead",
    direction="greater",
    margin=0.8,
    unit="(rank correlation)",
)
ledger.criteria()

# %% [markdown]
# ### Training
#
# All seeds and settings of a loss are trained in one stack.

# %%
pixels, channels, width = train[0].numel(), train.shape[1], 32 if encoder == "mlp" else 64


def build(run):
    if encoder == "mlp":
        return lab.mlp([pixels, 128, width])
    return nn.Sequential(lab.cnn([32, 64, 128], inputs=channels), nn.Linear(128, width))


def training(method):
    """The loss of one run, without or with a memory as its state; logged is the mean of 1 - P."""
    kept = share if method in ("hard", "HardSimple") else 1.0

    def value(queries, keys, run, positives=None):
        if method in ("simple", "HardSimple"):
            loss = simple_contrastive(queries, keys, share=kept, positives=positives)
            return loss, {}
        losses = hard_info_nce(
            queries,
            keys,
            temperature=run["temperature"],
            share=kept,
            positives=positives,
            reduction="none",
        )
        return losses.mean(), {"unsolved": -torch.expm1(-losses.detach()).mean()}

    def in_batch(model, batch, run):
        return value(model(batch["first"]), model(batch["second"]), run)

    def with_memory(model, batch, run, state):
        queries, index, bank = model(batch["first"]), batch["index"], state["bank"]
        remembered = unit((bank[index] + unit(queries.detach())) / 2)
        bank_after = bank.index_copy(0, index, remembered)
        return *value(queries, bank, run, positives=index), {"bank": bank_after}

    return with_memory if memory else in_batch


@torch.no_grad()
def first_memory(run, network):
    """Before training: what the untrained network makes of every picture."""
    on = next(network.parameters()).device
    return {"bank": torch.cat([unit(network(x.to(on))) for x in train.split(1024)])}


def lead(first, second, number=10):
    """Mean cosine of positives, and how far it is above that of the most similar negatives."""
    s = unit(first) @ unit(second).T
    negatives = s.masked_fill(torch.eye(len(s), dtype=torch.bool), -1)
    positive = s.diagonal().mean()
    return torch.stack([positive, positive - negatives.topk(number, 1).values.mean()])


def train_and_measure(method, runs, shift):
    """One row a run: accuracies of the probe, and the geometry on test pictures."""
    views = augmentations.Views((batch_size, *train.shape[1:]), shift=shift)
    fitted = lab.fit(
        build,
        training(method),
        {"inputs": train, "index": torch.arange(len(train))},
        runs,
        epochs=epochs,
        batch_size=batch_size,
        noise=views.draw,
        transform=views.apply,
        state=first_memory if memory else None,
        device=device,
        progress=f"{method}, shift {shift}",
    )
    embedded = {name: unit(fitted.predict(s.inputs)) for name, s in splits.items()}
    targets = {name: s.targets for name, s in splits.items()}
    frame = fitted.runs.assign(method=method, shift=shift)
    frame = frame.join(100 * lab.accuracies(embedded, targets))
    frame["uniformity"] = [-float(uniformity(x, rows=1024)) for x in embedded["test"]]
    frame["tolerance"] = [
        float(tolerance(x, targets["test"], rows=1024)) for x in embedded["test"]
    ]
    # Two views of every test picture, the same for all runs.
    seen = views.once(test, torch.Generator().manual_seed(0))
    pairs = zip(*(fitted.predict(seen[name]) for name in ("first", "second")), strict=True)
    frame[["positives", "lead"]] = torch.stack([lead(*pair) for pair in pairs]).numpy()
    if "unsolved" in fitted.logged:
        last = len(train) // batch_size  # the steps of the last pass
        frame["unsolved"] = fitted.logged["unsolved"][:, -last:].mean(1).numpy()
    return frame


results = []
for method in ("InfoNCE", "hard", "simple", "HardSimple"):
    grid = {"seed": range(seeds), "learning_rate": learning_rates}
    if method in ("InfoNCE", "hard"):
        grid["temperature"] = temperatures
    results.append(train_and_measure(method, lab.grid(**grid), shift))

results = pd.concat(results, ignore_index=True)
(raw,) = lab.linear_probe(
    train.flatten(1),
    splits["train"].targets,
    (test.flatten(1), splits["test"].targets),
)
print(
    f"{len(results)} runs; a probe on raw pixels reaches {100 * raw:.1f} % on the test pictures"
)
lab.record(results)

# %% [markdown]
# ## Results
#
# Each loss, at each temperature, has the learning rate that was best on the validation pictures.

# %% tags=["hide-input"]
results["condition"] = results["method"].where(
    results["temperature"].isna(),
    results["method"] + ", τ = " + results["temperature"].map("{:g}".format),
)
chosen = lab.best_setting(
    results, "validation accuracy", over=["learning_rate"], per="condition"
)
warm = {name: chosen[chosen["method"] == name] for name in ("InfoNCE", "hard")}
flat = {name: chosen[chosen["method"] == name] for name in ("simple", "HardSimple")}
colors = {"InfoNCE": "C0", "hard": "C1", "simple": "C0", "HardSimple": "C1"}


def draw(axes, column, *, lines=True):
    """A quantity against temperature, mean and interval over seeds; losses without one as lines."""
    for name, rows in warm.items():
        points = [
            lab.mean_interval(rows.loc[rows["temperature"] == t, column])
            for t in temperatures
        ]
        beside = 1.05 if name == "hard" else 1  # so that equal bars do not hide each other
        axes.errorbar(
            [beside * t for t in temperatures],
            [p.effect for p in points],
            yerr=[[p.effect - p.low for p in points], [p.high - p.effect for p in points]]
            if seeds > 2
            else None,
            color=colors[name],
            marker="os"[name == "hard"],
            linestyle=["-", "--"][name == "hard"],
            capsize=3,
            label=f"{name}, all negatives" if name == "InfoNCE" else "hard",
        )
    for name, rows in flat.items() if lines else ():
        axes.axhline(
            rows[column].mean(),
            color=colors[name],
            linestyle=[":", "-."][name == "HardSimple"],
            label=name,
        )
    axes.set(xscale="log", xlabel="temperature τ (logarithmic)")
    axes.set_xticks(temperatures, [f"{t:g}" for t in temperatures])
    axes.minorticks_off()


figure, axes = plt.subplots(figsize=(7, 3.9))
draw(axes, "test accuracy")
axes.axhline(100 * raw, color="0.5", linewidth=1, label="raw pixels, no training")
axes.set(title="Accuracy against temperature", ylabel="test accuracy of the probe (%)")
figure.legend(loc="outside lower center", ncols=3)
averages = chosen.groupby("condition", sort=False)["test accuracy"].mean()
lab.show(
    figure,
    caption=f"Linear-probe accuracy on test pictures, mean and 95 % interval over {seeds} seeds. Lines: losses without a temperature.",
    alt="Accuracy of InfoNCE and of the hard loss at each temperature with error bars, and lines for the simple loss, HardSimple and raw pixels. "
    + "; ".join(f"{name}: {value:.1f} percent" for name, value in averages.items())
    + ".",
)

# %% tags=["hide-input", "card"]
figure, panels = plt.subplots(1, 2, figsize=(7, 3.7))
for panel, column, title, unit_name in [
    (panels[0], "uniformity", "Uniformity", "uniformity (nats)"),
    (panels[1], "tolerance", "Tolerance", "mean cosine within a class"),
]:
    draw(panel, column)
    panel.set(title=title, ylabel=unit_name)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
averages = chosen.groupby("condition", sort=False)[["uniformity", "tolerance"]].mean()
lab.show(
    figure,
    caption=f"The dilemma, on test pictures, mean and 95 % interval over {seeds} seeds. Where the left curve falls and the right one rises, "
    "temperature trades an even spread for keeping classes together.",
    alt="Two panels against temperature: uniformity and tolerance of InfoNCE and of the hard loss, lines for the losses without temperature. "
    + "; ".join(
        f"{name}: uniformity {row.uniformity:.2f}, tolerance {row.tolerance:.2f}"
        for name, row in averages.iterrows()
    )
    + ".",
)

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(7, 3.7))
for panel, column, title, unit_name in [
    (panels[0], "positives", "Two views of one picture", "mean cosine"),
    (panels[1], "lead", "Lead over the top ten negatives", "difference of mean cosines"),
]:
    draw(panel, column)
    panel.set(title=title, ylabel=unit_name)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
averages = chosen.groupby("condition", sort=False)[["positives", "lead"]].mean()
lab.show(
    figure,
    caption="Left: how well the two views agree. Right: how far they are ahead of the ten most similar other pictures. "
    f"Test pictures, mean and 95 % interval over {seeds} seeds.",
    alt="Two panels against temperature: cosine of positives and their lead over the ten most similar negatives. "
    + "; ".join(
        f"{name}: positives {row.positives:.2f}, lead {row.lead:.2f}"
        for name, row in averages.iterrows()
    )
    + ".",
)

# %% tags=["hide-input"]
table = (
    chosen.groupby("condition", sort=False)
    .agg(
        rate=("learning_rate", "first"),
        test=("test accuracy", "mean"),
        spread=("test accuracy", "std"),
        uniformity=("uniformity", "mean"),
        tolerance=("tolerance", "mean"),
        positives=("positives", "mean"),
        lead=("lead", "mean"),
        unsolved=("unsolved", "mean"),
    )
    .reset_index()
)
lab.show_table(
    table.rename(
        columns={
            "condition": "loss",
            "test": "test, %",
            "spread": "s.d.",
            "unsolved": "1 − P",
        }
    ),
    caption=f"Each loss and temperature at its best learning rate: means over {seeds} seeds, test pictures; s.d. of the accuracy",
    formats={"rate": "{:g}", "test, %": "{:.2f}", "s.d.": "{:.2f}"}
    | dict.fromkeys(["uniformity", "tolerance", "positives", "lead", "1 − P"], "{:.3f}"),
)

# %% [markdown]
# The last column is the mean of $1-P_{ii}$ over the last pass: how much of the task is left. By {eq}`temp-gradient` it is $\tau$ times the push. A picture whose positive has won
# against every negative has $1-P_{ii}\approx0$, and asks for nothing more, in particular not for a more even spread.
#
# ### Views that differ too much
#
# Equation {eq}`temp-collapse` says when the hard loss fails: when two views of a picture differ more than the picture and its nearest neighbours. Moving the views by up to
# `large_shift` pixels brings that about. The same networks and seeds, at the middle temperature of the grid and the largest learning rate:

# %%
middle_temperature = sorted(temperatures)[len(temperatures) // 2]
runs = lab.grid(
    seed=range(seeds), learning_rate=[max(learning_rates)], temperature=[middle_temperature]
)
moved = pd.concat(
    [train_and_measure(method, runs, large_shift) for method in ("InfoNCE", "hard")],
    ignore_index=True,
)
lab.record(moved, name="moved")

# %% tags=["hide-input"]
still = results[
    results["method"].isin(["InfoNCE", "hard"])
    & (results["temperature"] == middle_temperature)
    & (results["learning_rate"] == max(learning_rates))
]
both = pd.concat([still, moved])
lab.show_table(
    both.groupby(["shift", "method"])[["uniformity", "tolerance", "positives", "lead"]]
    .mean()
    .reset_index()
    .rename(columns={"shift": "moved by up to", "method": "loss"}),
    caption=f"At τ = {middle_temperature:g}, test pictures, mean over {seeds} seeds",
    formats=dict.fromkeys(["uniformity", "tolerance", "positives", "lead"], "{:.3f}"),
)

# %% [markdown]
# A uniformity of 0 and a tolerance of 1 mean that all embeddings are the same point. A probe that standardises its inputs can still read what little differs, so
# accuracy alone would not have shown the collapse.
#
# ## Claims, judged

# %%
low, *inside, high = sorted(temperatures)
middle = warm["InfoNCE"][warm["InfoNCE"]["temperature"].isin(inside)]
peak = middle.groupby("temperature")["validation accuracy"].mean().idxmax()
print(f"best temperature inside the grid, by validation: {peak:g}")
c1.judge(
    {
        f"τ = {end:g}": lab.paired(
            warm["InfoNCE"], "test accuracy", peak, end, condition="temperature"
        )
        for end in (low, high)
    }
)


# %%
def correlations(column, sign=1):
    """Spearman's coefficient of temperature and a quantity, of InfoNCE, one for each seed."""
    return [
        sign * float(spearmanr(rows["temperature"], rows[column]).statistic)
        for _, rows in warm["InfoNCE"].groupby("seed")
    ]


c2.judge(
    {"tolerance": correlations("tolerance"), "uniformity": correlations("uniformity", -1)}
)
# %%
best = lab.best_setting(chosen, "validation accuracy", over=["temperature"])
c3.judge(
    {
        name: lab.paired(best, "test accuracy", name, "simple")
        for name in ("InfoNCE", "HardSimple")
    }
)
# %%
ranges = {
    name: rows.groupby("seed")["uniformity"].agg(lambda values: values.max() - values.min())
    for name, rows in warm.items()
}
print(
    ", ".join(f"{name}: range {values.mean():.2f} nats" for name, values in ranges.items())
)
c4.judge((ranges["hard"] - ranges["InfoNCE"]).to_numpy())
# %%
favourite = {
    name: rows.sort_values("temperature")
    .pivot(index="seed", columns="temperature", values="validation accuracy")
    .idxmax(axis=1)
    for name, rows in warm.items()
}
print({name: values.tolist() for name, values in favourite.items()})
c5.judge(np.log2(favourite["hard"] / favourite["InfoNCE"]).to_numpy())
# %%
c6.judge(lab.paired(best, "test accuracy", "hard", "InfoNCE"))
# %%
c7.judge({"positives": correlations("positives"), "lead": correlations("lead", -1)})
# %% [markdown]
# ## Beside the paper
#
# The paper trains a ResNet-18 with a memory bank of all training pictures on four sets, for 200 passes. From its Table 1, linear accuracy in percent:

# %% tags=["hide-input"]
lab.show_table(
    pd.DataFrame(
        [
            ["CIFAR-10", "InfoNCE", 79.75, 83.27, 82.69, 82.21, 74.83],
            ["CIFAR-10", "hard", 79.2, 83.63, 84.19, 84.19, 84.84],
            ["CIFAR-100", "InfoNCE", 51.82, 56.44, 50.99, 48.33, 39.31],
            ["CIFAR-100", "hard", 50.77, 56.55, 57.54, 56.77, 55.71],
            ["SVHN", "InfoNCE", 92.55, 95.47, 94.17, 92.07, 70.83],
            ["ImageNet-100", "InfoNCE", 71.53, 75.10, 69.03, 63.57, 48.09],
        ],
        columns=["set", "loss", "τ = 0.07", "0.3", "0.7", "1", "simple (hard: HardSimple)"],
    ),
    caption="The paper's linear accuracy, %",
    formats=dict.fromkeys(
        ["τ = 0.07", "0.3", "0.7", "1", "simple (hard: HardSimple)"], "{:.2f}"
    ),
)

# %% [markdown]
# On CIFAR-10 it reports a uniformity of 3.86, 3.60, 3.17 and 2.96 at these temperatures (simple loss 1.68) and a tolerance of 0.04, 0.178, 0.333 and 0.372
# (0.61).
#
# By default this page has 8x8 digits, a network with one hidden layer, 255 negatives from the batch where the paper has some 50,000 from a memory, and 12
# passes. In the default run most settings are best at the smaller learning rate, so the grid does not bracket the best one. Three differences matter.
#
# - **The peak.** A probe on raw pixels is already good on digits (grey line), so there is little to gain. Accuracy falls towards the hot end, most of all for the simple loss; a fall towards the cold end, the other half of the reversed U, is not
#   resolved by five seeds. It comes from pictures of one class torn apart, and here the tolerance stays far above the paper's 0.04.
# - **The cold end of the dilemma.** In the default run uniformity is not largest at the smallest temperature, and one temperature out of place spoils a rank correlation over
#   five; C7 has the same trouble with the positives. The table has a likely reason: towards the cold end $1-P_{ii}$ falls, so ever more pictures ask for nothing. The triplet loss {eq}`temp-cold` is zero as soon as the positive is ahead of all negatives, and
#   among few negatives that is easier. Among the paper's tens of thousands there is nearly always one that is still too near. Its own grid also starts at 0.07.
# - **The hard loss.** Its hot end stays uniform and accurate here as in the paper, and so does HardSimple. But "the best temperature is higher" needs a best temperature, and the
#   accuracy of the hard loss hardly depends on it; a choice by 359 validation pictures is then mostly chance.
#
# The collapse is our observation. The paper's memory bank makes it less likely: an entry averages several views of a picture, so the positive is
# nearer than another single view would be, and among 50,000 pictures the 8 % kept are not as exclusive a circle of neighbours. What holds on any data is the
# derivation: the Boltzmann law, the two ends, the blindness of the simple loss, and the sign that decides between spread and collapse.
#
# One caution about reading uniformity and tolerance as opposites: both are functions of the same cosines. A tolerance near 1 may mean well-kept classes or a collapse; only together with the uniformity
# does it say which. In the paper the simple loss on SVHN has a tolerance of only 0.074, which breaks the order too.

# %% [markdown]
# ## Try it
#
#     lossbook run contrastive_temperature -p shift=1
#
# reruns the page with the views that made the hard losses collapse. More to try:
#
# - `-p share=0.3`: three times as many hard negatives. By {eq}`temp-collapse` the collapse should need larger shifts; does it?
# - `-p memory=true`: all training pictures as negatives. Are there enough of them to make the coldest temperature the most uniform?
# - `-p dataset=fashion_mnist -p batch_size=128`: raw pixels are far from the ceiling there, and many pictures of one class look alike.
#
# Everything this page found:

# %%
ledger.summary()
