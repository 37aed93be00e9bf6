"""What grows with pairs must not be held for all pairs at once: peak memory of a process of its own."""

import subprocess
import sys

import pytest

# By how many MiB a call raises the peak of its process, after a small call has loaded what is needed.
MEASURE = """
import resource, sys, torch
torch.set_num_threads(1)
{prepare}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
call({small})
before = peak()
call({large})
print(peak() - before)
"""
AREA = """
from lossbook.lab import membership
def call(n):
    membership.attack_auc(torch.randn(n), torch.randn(n))
"""
INTERVALS = AREA.replace("attack_auc(", "judge_attack(")
THRESHOLD = """
from lossbook.lab import membership
def call(n):
    membership.threshold_attack(torch.randn(n), torch.arange(n) % 2 == 0, torch.randn(n))
"""
NEIGHBOURS = """
from lossbook.methods.contrastive import nearest_rows
def call(n):
    nearest_rows(torch.randn(n, 64), neighbours=3)
"""
TAUGHT = """
from lossbook import lab
def call(n):
    x, y = torch.randn(n, 8), torch.arange(n) % 3
    lab.k_nearest_neighbours(x, y, (x, y))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no peak")
@pytest.mark.parametrize(
    ("prepare", "large", "limit"),
    [
        # All pairs of 20,000 and 20,000 scores, as doubles, would be 3 GiB.
        (AREA, 20_000, 150),
        (INTERVALS, 20_000, 150),
        (THRESHOLD, 20_000, 150),
        # The distances of 4,000 rows are 61 MiB, the differences of all pairs 4 GiB.
        (NEIGHBOURS, 4000, 250),
        (TAUGHT, 20_000, 500),
    ],
    ids=["area", "intervals", "threshold", "nearest rows", "neighbours"],
)
def test_peak_memory(prepare, large, limit):
    code = MEASURE.format(prepare=prepare, small=50, large=large)
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(grown) < limit
