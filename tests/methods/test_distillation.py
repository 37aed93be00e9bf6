"""ARD and RSLAD against PyTorch's losses put together by hand."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from devices import on_any_device
from support import agree, extreme, one_graph, pair, rejects, unhooked

from lossbook.methods.distillation import ard, rslad


def three():
    clean, attacked = pair(scale=2.0)
    return clean, attacked, 2 * pair(seed=1)[0]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_ard(weight, reduction):
    clean, attacked, teacher = three()
    targets = torch.arange(8) % 5
    match = F.kl_div((attacked / 4).log_softmax(1), (teacher.detach() / 4).softmax(1), reduction="none").sum(1)
    each = (1 - weight) * F.cross_entropy(clean, targets, reduction="none") + weight * 16 * match
    ours = ard(clean, attacked, teacher, targets, temperature=4.0, weight=weight, reduction=reduction)
    agree(ours, getattr(each, reduction)(), (clean, attacked))


def test_ard_at_a_high_temperature_matches_centred_logits():
    clean, attacked, teacher = three()
    gap = (attacked - attacked.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    ours = ard(clean, attacked, teacher, torch.zeros(8, dtype=torch.long), temperature=1e4)
    torch.testing.assert_close(ours, gap.square().mean() / 2, rtol=1e-3, atol=0)


@pytest.mark.parametrize("weight", [0.0, 5 / 6, 1.0])
def test_rslad(weight):
    clean, attacked, teacher = three()
    terms = [
        F.kl_div(student.log_softmax(1), teacher.detach().softmax(1), reduction="batchmean")
        for student in (clean, attacked)
    ]
    agree(
        rslad(clean, attacked, teacher, weight=weight),
        (1 - weight) * terms[0] + weight * terms[1],
        (clean, attacked),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["equal", "opposite", "all the same", "zero row", "huge", "tiny"])
def test_extremes_stay_finite(case, dtype):
    clean, attacked = extreme(case, dtype)
    for loss in (
        ard(clean, attacked, clean.flip(1), torch.zeros(8, dtype=torch.long), weight=0.5),
        rslad(clean, attacked, clean.flip(1)),
    ):
        assert loss.isfinite() and loss >= -1e-6
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for gradient in torch.autograd.grad(loss, (clean, attacked)):
            assert gradient.isfinite().all() and gradient.dtype == dtype


def test_gradcheck_and_no_gradient_to_the_teacher():
    clean, attacked, teacher = (value.detach()[:3].requires_grad_() for value in three())
    targets = torch.tensor([0, 4, 2])
    for loss in (
        lambda a, b: ard(a, b, teacher, targets, temperature=2.0, weight=0.4),
        lambda a, b: rslad(a, b, teacher),
    ):
        assert torch.autograd.gradcheck(loss, (clean, attacked))
        assert torch.autograd.grad(loss(clean, attacked), teacher, allow_unused=True) == (None,)


def test_vmap_over_weights_and_compile():
    clean, attacked, teacher = three()
    weights = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    mapped = torch.vmap(lambda weight: rslad(clean, attacked, teacher, weight=weight))(weights)
    single = [rslad(clean, attacked, teacher, weight=weight.item()) for weight in weights]
    torch.testing.assert_close(mapped, torch.stack(single), rtol=1e-12, atol=1e-12)
    compiled = one_graph(unhooked("lossbook.methods.distillation").rslad)
    agree(compiled(clean, attacked, teacher), rslad(clean, attacked, teacher), (clean, attacked))


def test_bad_input_is_refused():
    good, other = torch.ones(3, 4), torch.ones(3, 5)
    rejects(ard, good, good, other, torch.zeros(3, dtype=torch.long), names="teacher_logits")
    rejects(ard, good, good, good, torch.zeros(3), names="targets")
    rejects(ard, good, good, good, torch.zeros(3, dtype=torch.long), weight=2.0, names="weight")
    rejects(rslad, good, good, good, weight=-0.1, names="weight")
    rejects(rslad, good, other, good, names="adversarial_logits")


test_on_any_device = on_any_device(
    partial(ard, *pair(), pair(seed=1)[0], torch.arange(8) % 5, weight=torch.tensor(0.5)),
    partial(rslad, *pair(), pair(seed=1)[0], weight=torch.tensor(0.5)),
)
