"""InfoNCE and NT-Xent, whole and in blocks of rows, against pytorch-metric-learning.

    python benchmarks/contrastive_losses.py [--device cuda] [--sizes 256 1024 8192 32768] [--width 128] [--repeats 3]

pytorch-metric-learning compares every positive pair with every negative one, in memory that grows like n³. All forms
are first compared in float64, value and gradient. Then each is timed in float32, forward and backward, in a process of
its own, whose peak of memory beyond the embeddings is told too (CPU: of the process; CUDA: of PyTorch's allocator).
The last column is the time as a multiple of pytorch-metric-learning's. What does not fit says so: on the CPU a process
may take --limit GB, so that it fails before the machine does.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from pytorch_metric_learning.losses import NTXentLoss

from lossbook.methods.contrastive import info_nce, nt_xent

ROWS, TEMPERATURE = 512, 0.1


def their_info_nce(x, y):
    labels = torch.arange(len(x), device=x.device)
    return NTXentLoss(TEMPERATURE)(x, labels, ref_emb=y, ref_labels=labels.clone())


def their_nt_xent(x, y):
    return NTXentLoss(TEMPERATURE)(torch.cat([x, y]), torch.arange(len(x), device=x.device).repeat(2))


FORMS = {
    "InfoNCE": {
        "pytorch-metric-learning": their_info_nce,
        "whole": lambda x, y: info_nce(x, y, temperature=TEMPERATURE),
        f"blocks of {ROWS}": lambda x, y: info_nce(x, y, temperature=TEMPERATURE, rows=ROWS),
    },
    "NT-Xent": {
        "pytorch-metric-learning": their_nt_xent,
        "whole": lambda x, y: nt_xent(x, y, temperature=TEMPERATURE),
        f"blocks of {ROWS}": lambda x, y: nt_xent(x, y, temperature=TEMPERATURE, rows=ROWS),
    },
}


def embeddings(n, width, device, dtype):
    draw = torch.Generator().manual_seed(0)
    return [part.to(device, dtype).requires_grad_() for part in torch.randn(2, n, width, generator=draw)]


def compare() -> float:
    """Largest difference, in float64, of the whole and of blocks of 16 from pytorch-metric-learning."""
    worst = 0.0
    for theirs, ours in ((their_info_nce, info_nce), (their_nt_xent, nt_xent)):
        x, y = embeddings(100, 16, "cpu", torch.float64)
        expected = theirs(x, y)
        gradients = torch.autograd.grad(expected, (x, y))
        for rows in (None, 16):
            loss = ours(x, y, temperature=TEMPERATURE, rows=rows)
            pairs = zip((expected, *gradients), (loss, *torch.autograd.grad(loss, (x, y))), strict=True)
            worst = max(worst, *(float((a - b).detach().abs().max()) for a, b in pairs))
    return worst


def held(device: str, what: str) -> float:
    """Memory in MB, held now ("VmRSS") or at most since `forget` ("VmHWM")."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if what == "VmHWM" else torch.cuda.memory_allocated()) / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1e3


def forget(device: str) -> None:
    """Start looking for the most memory anew (Linux)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def measure(loss: str, form: str, n: int, width: int, device: str, repeats: int, limit: float) -> None:
    """Print the median of the seconds and the peak of memory."""
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9),) * 2)
    function = FORMS[loss][form]
    small = embeddings(64, width, device, torch.float32)
    function(*small).backward()
    x, y = embeddings(n, width, device, torch.float32)
    forget(device)
    before, seconds = held(device, "VmRSS"), []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.autograd.grad(function(x, y), (x, y))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    print(statistics.median(seconds), held(device, "VmHWM") - before)


def main() -> None:
    """Compare, then measure every form at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 8192])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=6.0, help="GB of memory a process may take on the CPU")
    parser.add_argument("--one", nargs=3, metavar=("LOSS", "FORM", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(*options.one[:2], int(options.one[2]), options.width, options.device, options.repeats, options.limit)
        return
    print(f"largest difference in float64: {compare():.1e}")
    print(f"{'loss':8} {'n':>6}  {'form':24} {'seconds':>9} {'peak MB':>9} {'time ratio':>10}", flush=True)
    for loss, forms in FORMS.items():
        for n in options.sizes:
            theirs = None
            for form in forms:
                settings = ("device", "width", "repeats", "limit")
                shared = [text for name in settings for text in (f"--{name}", str(getattr(options, name)))]
                # Memory goes back to the system when it is freed, or what was left over would count.
                done = subprocess.run(
                    [sys.executable, __file__, *shared, "--one", loss, form, str(n)],
                    capture_output=True,
                    text=True,
                    env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
                )
                if done.returncode:
                    lines = done.stderr.strip().splitlines()
                    reason = lines[-1][:60] if lines else f"killed by signal {-done.returncode}"
                    print(f"{loss:8} {n:6}  {form:24} did not fit: {reason}", flush=True)
                    continue
                seconds, memory = map(float, done.stdout.split())
                theirs = seconds if form == "pytorch-metric-learning" else theirs
                ratio = f"{seconds / theirs:10.2f}" if theirs else f"{'-':>10}"
                print(f"{loss:8} {n:6}  {form:24} {seconds:9.3f} {memory:9.0f} {ratio}", flush=True)


if __name__ == "__main__":
    main()
