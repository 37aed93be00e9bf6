"""What every loss over pairs does with labels, whatever its formula."""

import pytest
import torch
from support import agree, mapped_is_one_by_one, one_graph, pair, rejects, without_hooks

from lossbook.methods import contrastive

LABELS = torch.tensor([3, 1, 3, 0, 1, 3, 7, 0])
LOSSES = [
    "alignment",
    "cacr_loss",
    "decoupled_contrastive_loss",
    "decoupled_contrastive_weighted",
    "hard_info_nce",
    "info_nce",
    "mann_whitney_loss",
    "nt_xent",
    "rbf_repulsion",
    "simple_contrastive",
    "supervised_contrastive",
    "temperature_free_info_nce",
]
EACH = pytest.mark.parametrize("loss", [getattr(contrastive, name) for name in LOSSES], ids=LOSSES)


@EACH
def test_any_integers_name_classes(loss):
    x, _ = pair()
    value = loss(x, labels=LABELS)
    for dtype in (torch.uint8, torch.int8, torch.int32):
        torch.testing.assert_close(loss(x, labels=LABELS.to(dtype)), value, rtol=0, atol=0)
    # A class has no order and no range: -100 is a class as well.
    torch.testing.assert_close(loss(x, labels=7 - 107 * (LABELS == 7) - LABELS), value)
    rejects(loss, x, labels=LABELS.double(), names="labels")
    rejects(loss, x, labels=LABELS == 3, names="labels")
    rejects(loss, x, labels=LABELS[:5], names="labels")
    rejects(loss, x, labels=LABELS.to("meta"), names="labels")


@EACH
def test_order_of_the_batch_does_not_matter(loss):
    x, _ = pair()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(x[order], labels=LABELS[order]), loss(x, labels=LABELS), rtol=1e-10, atol=1e-10)


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single(loss, dtype):
    x, _ = pair(dtype=dtype)
    value = loss(x.float(), labels=LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(x, labels=LABELS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, value, rtol=0, atol=0)
    assert torch.autograd.grad(found, x)[0].isfinite().all()


@EACH
def test_duplicates_and_zeros_stay_finite(loss):
    x, _ = pair(dtype=torch.float32)
    x = x.detach()[[0, 0, 1, 1, 2, 2, 3, 3]]
    x[7] = 0
    x.requires_grad_()
    value = loss(x, labels=LABELS)
    assert value.isfinite() and torch.autograd.grad(value, x)[0].isfinite().all()


@EACH
def test_mapped_is_one_by_one(loss):
    mapped_is_one_by_one(lambda x, y: loss(x + y, labels=LABELS[:6]))


def test_compile_without_graph_breaks():
    with without_hooks():
        from lossbook.methods import contrastive as plain

        for name in LOSSES:
            torch._dynamo.reset()
            x, _ = pair()
            compiled, loss = one_graph(getattr(plain, name)), getattr(contrastive, name)
            agree(compiled(x, labels=LABELS), loss(x, labels=LABELS), (x,))
