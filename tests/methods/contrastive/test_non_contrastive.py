"""VICReg, against NumPy."""

from functools import partial

import numpy as np
import pytest
import torch
from devices import on_any_device
from support import mapped_is_one_by_one, pair

from lossbook.methods.contrastive import vic_reg


def test_vic_reg_against_numpy():
    x, y = (value.detach().numpy() for value in pair(9, 4))
    expected = 3 * np.mean((x - y) ** 2)
    for z in (x, y):
        covariance = np.cov(z.T)
        deviations = np.sqrt(np.diag(covariance) + 1e-4)
        expected += 5 * np.maximum(0, 1 - deviations).mean() / 2
        expected += 7 * (covariance**2)[~np.eye(4, dtype=bool)].sum() / 4
    ours = vic_reg(torch.tensor(x), torch.tensor(y), invariance=3.0, variance=5.0, covariance=7.0)
    assert ours.item() == pytest.approx(expected, abs=1e-12)


def test_gradcheck_and_mapped():
    assert torch.autograd.gradcheck(vic_reg, pair(5, 3))
    mapped_is_one_by_one(vic_reg)


test_on_any_device = on_any_device(partial(vic_reg, *pair(), variance=torch.tensor(25.0)))
