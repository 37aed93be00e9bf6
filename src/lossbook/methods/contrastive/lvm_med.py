"""LVM-Med: two views of a batch are two graphs, and a solver that matches them is to find every picture again."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossbook._extras import require
from lossbook.methods._validate import Reduction, floating, indices, paired, positive, reduce, shaped, together, whole
from lossbook.methods.similarities import cosine_similarity, inner_products, unit

__all__ = [
    "Edges",
    "edge_affinity",
    "graph_convolution",
    "graph_matching",
    "graph_matching_loss",
    "local_affinity",
    "matching_objective",
    "nearest_rows",
]


# So many at a time, 16 MiB in float32.
_DISTANCES = 2**22


class Edges(NamedTuple):
    r"""Affinities of the edges of two graphs that give each of their $n$ vertices $k$ neighbours.

    Attributes:
        affinity: entry $(i,p,a,q)$ is $c^e_{ij,ab}$ of the edge from $i$ to its $p$-th neighbour $j$ and that from $a$
            to its $q$-th neighbour $b$.
        first: the neighbours in the first graph, as `nearest_rows` gives them.
        second: those in the second.

    Examples:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
        >>> near = nearest_rows(x, neighbours=1)
        >>> edges = edge_affinity(x, x, near, near)
        >>> edges.affinity.shape, edges.first.shape
        (torch.Size([3, 1, 3, 1]), torch.Size([3, 1]))
    """

    affinity: Float[Tensor, "n k n k"]
    first: Int[Tensor, "n k"]
    second: Int[Tensor, "n k"]


def nearest_rows(embeddings: Float[Tensor, "n d"], *, neighbours: int = 3) -> Int[Tensor, "n k"]:
    r"""The $k$ nearest other rows of each row, by Euclidean distance: a directed graph whose out-degrees are all $k$.

    Distances are those of differences, so that equal rows are at distance 0, and are held for some rows at a time.

    Args:
        embeddings: `(n, d)`; the graph has no gradient.
        neighbours: $k$, from 1 to $n-1$. The paper does not state its value.

    Raises:
        ValueError: for a shape or number other than these.

    Source:
        Nguyen et al. (2023), arXiv:2306.11925: the graph on the rows of each view.

    Examples:
        >>> nearest_rows(torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), neighbours=1)
        tensor([[1],
                [0],
                [1]])
    """
    embeddings, _ = paired(embeddings, embeddings)
    n = len(embeddings)
    neighbours = whole("neighbours", neighbours, most=n - 1)
    points = embeddings.detach()
    largest = torch.finfo(points.dtype).max
    # One common factor keeps the squares from overflowing and leaves the order.
    points = points / points.abs().nan_to_num(0, 0).amax().clamp(min=torch.finfo(points.dtype).tiny)
    near, rows, place = [], max(1, _DISTANCES // n), torch.arange(n, device=points.device)
    for some, own in zip(points.split(rows), place.split(rows), strict=True):
        # Differences, since products would lose the digits of near points; but never all differences at once.
        distances = torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist")
        # A row that is not finite is far from all others, and nobody is a neighbour of itself.
        distances = distances.nan_to_num(largest, largest).masked_fill(own[:, None] == place, torch.inf)
        near.append(distances.topk(neighbours, largest=False).indices)
    return torch.cat(near)


def graph_convolution(features: Float[Tensor, "n f"], neighbours: Int[Tensor, "n k"]) -> Float[Tensor, "n f"]:
    r"""The linear part of a graph convolution, $\tilde D^{-1/2}(A+I)\tilde D^{-1/2}H$.

    With $\tilde D_{ii}=\sum_j(A+I)_{ij}$. All out-degrees are $k+1$, so it is the mean of a row and its neighbours. The
    paper prints $\tilde D_{ii}=\sum_jA_{ij}$, which makes the result $\frac{k+1}k$ times as large: no cosine sees it.

    Args:
        features: $HW$, the rows already times the layer's weights.
        neighbours: as `nearest_rows` gives them.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Nguyen et al. (2023), arXiv:2306.11925, sec. 3.2.

    Examples:
        >>> features, neighbours = torch.tensor([[1.0], [3.0]]), torch.tensor([[1], [0]])
        >>> graph_convolution(features, neighbours)
        tensor([[2.],
                [2.]])
    """
    features = floating("features", features)
    neighbours = indices("neighbours", neighbours, len(features), "k")
    return (features + features[neighbours].sum(1)) / (neighbours.shape[1] + 1)


def edge_affinity(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    first_neighbours: Int[Tensor, "n k"],
    second_neighbours: Int[Tensor, "n k"],
) -> Edges:
    r"""Cosines of edges, $c^e_{ij,ab}=\cos(z_i-z_j,\;z'_a-z'_b)$.

    An edge between equal rows has no direction; its affinities are 0.

    Args:
        first, second: embeddings of both views; float16 and bfloat16 are computed in float32.
        first_neighbours, second_neighbours: as `nearest_rows` gives them.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        Nguyen et al. (2023), arXiv:2306.11925, sec. 3.2.

    Examples:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
        >>> near = nearest_rows(x, neighbours=1)
        >>> edge_affinity(x, x, near, near).affinity[0, 0, :, 0]  # of the edge from row 0
        tensor([ 1., -1., -1.])
    """
    first, second = paired(first, second)
    first_neighbours = indices("first_neighbours", first_neighbours, len(first), "k")
    second_neighbours = indices("second_neighbours", second_neighbours, len(first), "k")
    (n, k), d = first_neighbours.shape, first.shape[1]
    if second_neighbours.shape != (n, k):
        raise ValueError(f"second_neighbours: expected shape ({n}, {k}), got {tuple(second_neighbours.shape)}")
    edges = [
        unit(rows[:, None] - rows[index]).reshape(n * k, d)
        for rows, index in ((first, first_neighbours), (second, second_neighbours))
    ]
    return Edges(inner_products(*edges).reshape(n, k, n, k), first_neighbours, second_neighbours)


def local_affinity(
    first: Float[Tensor, "n p d"],
    second: Float[Tensor, "n p d"],
    first_positions: Float[Tensor, "n p s"],
    second_positions: Float[Tensor, "n p s"],
) -> Float[Tensor, "n n"]:
    r"""How well the cells of two pictures agree: $c^{lo}(x_i,x'_a)+c^{lo}(x'_a,x_i)$, between -4 and 4.

    $$c^{lo}(x,x')=\frac1P\sum_p\cos(q_p,q'_{m(p)})+\frac1P\sum_p\cos(q_p,q'_{m'(p)})$$

    with $q_p$ the features of cell $p$, $m(p)$ the cell nearest in place and $m'(p)$ the one nearest in features
    (Euclidean); which cell that is has no gradient.

    Args:
        first, second: feature maps of both views as lists of cells `(n, p, d)`.
        first_positions, second_positions: where the centres of the cells lie in the untransformed picture.

    Raises:
        ValueError: for shapes or dtypes other than these.

    Source:
        Nguyen et al. (2023), arXiv:2306.11925, sec. 3.2.

    Examples:
        >>> cells = torch.stack([torch.eye(4), -torch.eye(4)])  # two pictures of four cells
        >>> places = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0)).repeat(2, 1, 1)
        >>> local_affinity(cells, cells, places, places).round(decimals=3)
        tensor([[ 4., -2.],
                [-2.,  4.]])
    """
    for name, value in (("first", first), ("second", second), ("first_positions", first_positions)):
        shaped(name, value, "n p d")
    n, p, d = first.shape
    for name, value, shape in (
        ("second", second, (n, p, d)),
        ("first_positions", first_positions, (n, p, first_positions.shape[2])),
        ("second_positions", second_positions, first_positions.shape),
    ):
        if value.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(value.shape)}")
    first, second = together(first=first, second=second)
    places = together(first_positions=first_positions, second_positions=second_positions)
    cosines = cosine_similarity(first.reshape(n * p, d), second.reshape(n * p, d)).reshape(n, p, n, p)
    near = [_distances(*places), _distances(first.detach(), second.detach())]

    def of_nearest(distances: Tensor, dim: int) -> Tensor:
        least, index = distances.min(dim, keepdim=True)
        # Of a place that is not a number no cell is the nearest.
        return torch.where(least.isnan(), math.nan, cosines.take_along_dim(index, dim)).mean((1, 3))

    there = [of_nearest(each, 3) for each in near]
    back = [of_nearest(each, 1) for each in near]
    return (there[0] + there[1]) + (back[0] + back[1])


def matching_objective(
    vertices: Float[Tensor, "n n"], edges: Edges | None, matching: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    r"""What the solver maximises, $\sum_i c^v_{i\pi(i)}+\sum_{(i,j)\in E,(\pi(i),\pi(j))\in E'}c^e_{ij,\pi(i)\pi(j)}$.

    Args:
        vertices: affinity of vertex $i$ of the first graph and vertex $a$ of the second.
        edges: affinities of edges, or None.
        matching: the permutation $\pi$.

    Raises:
        ValueError: for shapes, dtypes or numbers other than these.

    Source:
        Nguyen et al. (2023), arXiv:2306.11925: the objective of GM.

    Examples:
        >>> vertices = torch.tensor([[0.9, 0.2], [0.1, 0.8]])
        >>> round(matching_objective(vertices, None, torch.tensor([0, 1])).item(), 3)
        1.7
    """
    vertices, edges = _checked(vertices, edges)
    matching = indices("matching", matching, len(vertices))
    rows = torch.arange(len(vertices), device=vertices.device)
    value = vertices[rows, matching].sum()
    if edges is None:
        return value
    affinity = edges.affinity
    return value + (affinity * _matched_edges(edges, matching).to(affinity.dtype)).sum()


def graph_matching(vertices: Float[Tensor, "n n"], edges: Edges | None = None) -> Int[Tensor, " n"]:
    r"""The permutation that maximises `matching_objective`: exactly without edges, approximately with them.

    Without edges this is linear assignment (SciPy's Hungarian algorithm, on the CPU). With edges it is quadratic
    assignment, which is NP-hard: the search starts at the linear solution and swaps the pair of matches that gains most
    until no pair gains anything. The result has no gradient. The search holds an array of $n^4$ numbers.

    Args:
        vertices: affinities, larger is better; finite.
        edges: affinities of edges.

    Returns:
        For each vertex of the first graph its match in the second.

    Raises:
        ValueError: for shapes or dtypes other than these, or affinities that are not finite.

    Source:
        The problem: Nguyen et al. (2023), arXiv:2306.11925, sec. 3.3, who solve it by Lagrange decomposition.

    Examples:
        >>> vertices = torch.tensor([[0.9, 0.8, 0.1], [0.8, 0.1, 0.2], [0.1, 0.2, 0.7]])
        >>> graph_matching(vertices)
        tensor([1, 0, 2])
    """
    vertices, edges = _checked(vertices, edges)
    return _solve(vertices.detach()[None], edges)[0]


def graph_matching_loss(
    vertices: Float[Tensor, "n n"],
    edges: Edges | None = None,
    *,
    strength: float | Float[Tensor, ""] = 80.0,
    noise: float = 1.0,
    gumbel: tuple[Float[Tensor, "n n"], Float[Tensor, "n k n k"] | None] | None = None,
    generator: torch.Generator | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, "*n"]:
    r"""Hamming loss of the matching that a solver finds, with the gradient of implicit maximum-likelihood estimation.

    $$L=\langle\tilde v,1-I\rangle+\langle I,1-\tilde v\rangle=2\cdot\#\{i:\tilde\pi(i)\ne i\},\qquad
      \tilde v=\mathrm{GM}(c^v+\epsilon,c^e+\epsilon')$$

    $$\frac{\partial L}{\partial c^v}:=\frac1\lambda(\tilde v-v_\lambda),\qquad
      v_\lambda=\mathrm{GM}\bigl(c^v+\epsilon-\lambda(1-2I),\,c^e+\epsilon'\bigr)$$

    and for an edge affinity the same difference of products $v_{ia}v_{jb}$. The loss is piecewise constant, so this
    replaces a gradient that is zero almost everywhere. $\nabla_vL=1-2I$ is constant, so both solutions are computed in
    the forward pass, and a factor on the loss scales the gradient (in Algorithm 1 it would scale $\lambda$ as well).

    Args:
        vertices: $c^v$, larger is better; vertex $i$ belongs to vertex $i$.
        edges: $c^e$, or None for linear assignment.
        strength: $\lambda>0$, a number or a tensor without dimensions. The paper does not state its value; 80 is that
            of Rolínek et al. (2020), arXiv:2003.11657, for the same problem.
        noise: factor on the Gumbel noise, 0 for none. The paper's 1 has a standard deviation of 1.28, which hides
            cosines.
        gumbel: standard Gumbel noise for vertices and edges, where it is drawn outside, as under vmap.
        generator: for the noise drawn here.
        reduction: "sum" (the paper's), "mean", or "none" for the loss of each row, 0 or 2.

    Raises:
        ValueError: for shapes, dtypes or hyperparameters other than these, or affinities that are not finite.

    Source:
        Nguyen et al. (2023), arXiv:2306.11925, sec. 3.3 and Algorithm 1.

    Examples:
        >>> vertices = torch.tensor([[0.1, 0.9], [0.9, 0.1]], requires_grad=True)
        >>> loss = graph_matching_loss(vertices, noise=0.0, strength=2.0)  # neither match is right
        >>> loss.backward()
        >>> round(loss.item(), 3), vertices.grad.tolist()
        (4.0, [[-0.5, 0.5], [0.5, -0.5]])
    """
    strength = positive("strength", strength)
    if noise != 0:
        noise = positive("noise", noise)
    vertices, edges = _checked(vertices, edges)
    seen, seen_edges = vertices.detach(), edges
    if noise != 0:
        draws = gumbel or (_gumbel(vertices, generator), edges and _gumbel(edges.affinity, generator))
        seen = seen + noise * _shaped("gumbel[0]", draws[0], vertices)
        if edges is not None:
            drawn = _shaped("gumbel[1]", draws[1], edges.affinity)
            seen_edges = edges._replace(affinity=edges.affinity.detach() + noise * drawn)
    wanted = torch.eye(len(seen), dtype=seen.dtype, device=seen.device)
    favoured = seen - strength * (1 - 2 * wanted)
    found, better = _solve(torch.stack([seen, favoured]), seen_edges)

    rows = torch.arange(len(seen), device=seen.device)
    difference = (found[:, None] == rows).to(seen.dtype) - (better[:, None] == rows).to(seen.dtype)
    slope = (vertices * difference / strength).sum(1)
    if edges is not None:
        changed = _matched_edges(edges, found).to(seen.dtype) - _matched_edges(edges, better).to(seen.dtype)
        slope = slope + (edges.affinity * changed / strength).sum((1, 2, 3))
    losses = 2 * (found != rows).to(seen.dtype)
    # The value is that of the loss, the gradient that of `slope`.
    return reduce(losses + (slope - slope.detach()), reduction)


def _solve(problems: Tensor, edges: Edges | None) -> Tensor:
    """Matchings of several problems that differ in their vertices alone, `(m, n, n)` to `(m, n)`."""
    if edges is None:
        return _assignment(problems)
    affinity = edges.affinity.detach().to(problems.dtype)
    shared = (value.expand(len(problems), *value.shape) for value in (affinity, edges.first, edges.second))
    return _two_swap(problems, *shared)


def _matched_edges(edges: Edges, matching: Int[Tensor, " n"]) -> Tensor:
    r"""Products $v_{ia}v_{jb}$ of all pairs of edges $(i,j)$ and $(a,b)$: true where $\pi(i)=a$ and $\pi(j)=b$."""
    rows = torch.arange(len(matching), device=matching.device)
    ends = matching[edges.first][:, :, None, None] == edges.second
    return (matching[:, None] == rows)[:, None, :, None] & ends


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances of all cells of all pictures, `(n, p, n, p)`, up to one common factor."""
    largest = torch.maximum(first.abs().amax(), second.abs().amax()).clamp(min=torch.finfo(first.dtype).tiny)
    first, second = first / largest, second / largest
    n, p, d = first.shape
    apart = torch.cdist(first.reshape(n * p, d), second.reshape(n * p, d), compute_mode="donot_use_mm_for_euclid_dist")
    return apart.reshape(n, p, n, p)


def _gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    exponential = torch.empty_like(like, requires_grad=False).exponential_(generator=generator)
    return -exponential.clamp(min=torch.finfo(like.dtype).tiny).log()


def _shaped(name: str, value: Tensor | None, like: Tensor) -> Tensor:
    if value is None or value.shape != like.shape:
        got = None if value is None else tuple(value.shape)
        raise ValueError(f"{name}: expected shape {tuple(like.shape)}, got {got}")
    return floating(name, value).to(like.dtype)


def _checked(vertices: Tensor, edges: Edges | None) -> tuple[Tensor, Edges | None]:
    """Affinities of vertices and edges in one dtype, neighbours in int64."""
    vertices = shaped("vertices", vertices, "n n")
    if edges is None:
        return vertices, None
    n = len(vertices)
    first = indices("edges.first", edges.first, n, "k")
    k = first.shape[1]
    second = indices("edges.second", edges.second, n, k)
    vertices, affinity = together(**{"vertices": vertices, "edges.affinity": edges.affinity})
    if affinity.shape != (n, k, n, k):
        raise ValueError(f"edges.affinity: expected shape {(n, k, n, k)}, got {tuple(affinity.shape)}")
    return vertices, Edges(affinity, first, second)


# The solvers branch on values, so they are operators of their own: vmap hands them all problems at once, torch.compile
# does not look inside.


def _assign(affinity: Tensor) -> Tensor:
    """Linear assignment of each problem of a batch, `(b, n, n)` to `(b, n)`."""
    require("scipy", extra="methods", by="graph matching")
    from scipy.optimize import linear_sum_assignment

    problems = affinity.detach().cpu().double().numpy()
    if not np.isfinite(problems).all():
        raise ValueError("vertices: expected finite affinities, got infinite ones or NaN")
    columns = [linear_sum_assignment(each, maximize=True)[1] for each in problems]
    return torch.from_numpy(np.stack(columns)).to(affinity.device, torch.int64)


def _swap(vertices: Tensor, edges: Tensor, first: Tensor, second: Tensor) -> Tensor:
    r"""Steepest ascent by swaps from the linear solution, for each problem of a batch.

    With $S=C+C^\top$ the symmetric form of the quadratic term and $G=c^v+Sv$, exchanging the matches of $r$ and $s$
    gains
    $G_{r\pi(s)}+G_{s\pi(r)}-G_{r\pi(r)}-G_{s\pi(s)}+S_{r\pi(r),s\pi(s)}+S_{r\pi(s),s\pi(r)}$.
    """
    b, n, k = first.shape
    if not edges.isfinite().all():
        raise ValueError("edges: expected finite affinities, got infinite ones or NaN")
    rows = torch.arange(n, device=vertices.device)
    # Edges by the matches they join, (i, a) and (j, b), as entries of C and of its transpose.
    here = (rows.view(n, 1, 1, 1) * n + rows.view(1, 1, n, 1)).expand(b, n, k, n, k)
    there = first.view(b, n, k, 1, 1) * n + second.view(b, 1, 1, n, k)
    symmetric = vertices.new_zeros(b, n**4)
    for entry in (here * n * n + there, there * n * n + here):
        symmetric.scatter_add_(1, entry.reshape(b, -1), edges.reshape(b, -1))
    symmetric = symmetric.view(b, n * n, n * n)
    flat = symmetric.view(b, -1)

    matching = _assign(vertices)
    for _ in range(n * n):
        own = rows * n + matching  # the pairs (i, pi(i)), as rows of S
        slopes = vertices + symmetric.gather(2, own[:, None].expand(b, n * n, n)).sum(2).view(b, n, n)
        crossed = slopes.gather(2, matching[:, None].expand(b, n, n))  # G[r, pi(s)]
        kept = crossed.diagonal(dim1=1, dim2=2)
        swapped = rows[:, None] * n + matching[:, None]  # (r, pi(s))
        both = (own[:, :, None] * n * n + own[:, None]).view(b, -1)
        other = (swapped * n * n + swapped.mT).view(b, -1)
        interaction = (flat.gather(1, both) + flat.gather(1, other)).view(b, n, n)
        gains = crossed + crossed.mT - kept[:, :, None] - kept[:, None] + interaction
        gains.diagonal(dim1=1, dim2=2).zero_()
        gain, pair = gains.view(b, -1).max(1)
        worth = gain > 64 * torch.finfo(gain.dtype).eps * slopes.abs().amax((1, 2))
        if not worth.any():
            break
        two = torch.stack([pair // n, pair % n], 1)
        exchanged = matching.gather(1, torch.where(worth[:, None], two.flip(1), two))
        matching = matching.scatter(1, two, exchanged)
    return matching


def _matchings(problems: Tensor, *_: Tensor) -> Tensor:
    """What the solvers return, without values."""
    return problems.new_empty(problems.shape[:2], dtype=torch.int64)


def _operator(name: str, solver: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The solver as an operator of PyTorch.

    Only the first import defines it: PyTorch frees an operator that is defined anew, under whoever still calls it.
    """
    if not hasattr(torch.ops.lossbook, name):
        operator = torch.library.custom_op(f"lossbook::{name}", solver, mutates_args=())
        operator.register_fake(_matchings)

        def mapped(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
            batches = [
                value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
                for value, dim in zip(tensors, in_dims, strict=True)
            ]
            lead = batches[0].shape[:2]
            return operator(*(each.reshape(-1, *each.shape[2:]) for each in batches)).view(*lead, -1), 0

        operator.register_vmap(mapped)
    return getattr(torch.ops.lossbook, name).default


_assignment = _operator("assignment", _assign)
_two_swap = _operator("two_swap", _swap)
