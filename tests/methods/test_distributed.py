"""Two processes, each with its share of the batch, have the gradient of one process with the whole batch."""

from functools import partial

import pytest
import torch
import torch.multiprocessing as mp
from devices import on_any_device
from ranks import LABELS, LOSSES, VIEWS, encoder, gradient, on_a_rank
from support import rejects

from lossbook.methods.distributed import gather, own_rows

UNEVEN = ["nt_xent", "nt_xent with labels", "info_nce of all"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(on_a_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("name", "split"), [*((name, 4) for name in LOSSES), *((name, 5) for name in UNEVEN)])
def test_the_gradient_is_that_of_one_process(ranks, name, split, chunked):
    expected = gradient(encoder(), LOSSES[name][1], *VIEWS, LABELS)
    for found in ranks:
        torch.testing.assert_close(found[name, split, chunked], expected, rtol=1e-10, atol=1e-12)


def test_without_a_gather_it_is_another(ranks):
    expected = gradient(encoder(), LOSSES["nt_xent"][1], *VIEWS, LABELS)
    for chunked in (False, True):
        assert (ranks[0]["nothing gathered", chunked] - expected).norm() > 0.02 * expected.norm()


@pytest.mark.parametrize("split", [4, 5])
def test_rows_come_in_the_order_of_ranks_and_gradients_go_back(ranks, split):
    for found, mine in zip(ranks, (slice(split), slice(split, 8)), strict=True):
        every, back, own, labels = found["gathered", split]
        assert torch.equal(every, VIEWS[0]) and torch.equal(labels, LABELS)
        torch.testing.assert_close(back, 3 * VIEWS[1, mine])
        assert torch.equal(own, torch.arange(8)[mine])


def test_rows_of_other_sizes_are_refused_and_no_rows_are_some(ranks):
    for found in ranks:
        assert found["refused"].startswith("embeddings: expected rows of one size on all ranks")
        none, half = found["of none"]
        assert torch.equal(none, torch.ones(2, 3))
        assert torch.equal(half, torch.tensor([[0.0, 0], [1, 1]], dtype=torch.bfloat16))


def test_one_process_has_all_rows():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x and own_rows(x).tolist() == [0, 1, 2]
    for function in (gather, own_rows):
        rejects(function, torch.tensor(1.0), names="embeddings")


test_on_any_device = on_any_device(partial(gather, torch.ones(3, 2)), partial(own_rows, torch.ones(3, 2)))
