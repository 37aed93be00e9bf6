"""Contrastive losses, whole and in blocks of rows, against pytorch-metric-learning and the form that lightly has.

    python benchmarks/contrastive_losses.py [--device cuda] [--sizes 1024 8192 32768] [--width 128] [--repeats 3]

Two views for InfoNCE and NT-Xent, labels of 64 classes for NT-Xent and the supervised contrastive loss. All forms are
first compared in float64, value and gradient. Then each is timed in float32, forward and backward, in a process of its
own, whose peak of memory beyond the embeddings is told too (CPU: of the process; CUDA: of PyTorch's allocator). The
last two columns are time and memory as multiples of the first named alternative that fits: of pytorch-metric-learning,
whose NT-Xent compares every positive pair with every negative one, in memory that grows like n³, or of what lightly
does, products of normalised views, whole, here written out since lightly wants torchvision. What does not fit says so:
on the CPU a process may take --limit GB, so that it fails before the machine does.
"""

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

from lossbook.methods.contrastive import info_nce, nt_xent, supervised_contrastive

ROWS, TEMPERATURE, CLASSES = 512, 0.1, 64
THEIRS = ("pytorch-metric-learning", "as lightly")


def labels_of(x):
    return torch.arange(len(x), device=x.device) % CLASSES


def their_info_nce(x, y):
    labels = torch.arange(len(x), device=x.device)
    return NTXentLoss(TEMPERATURE)(x, labels, ref_emb=y, ref_labels=labels.clone())


def their_nt_xent(x, y):
    return NTXentLoss(TEMPERATURE)(torch.cat([x, y]), torch.arange(len(x), device=x.device).repeat(2))


def cross_entropy_of_products(x, y):
    logits = F.normalize(x) @ F.normalize(y).T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(x), device=x.device))


def lightly_nt_xent(x, y):
    n, x, y = len(x), F.normalize(x), F.normalize(y)
    others = ~torch.eye(n, dtype=torch.bool, device=x.device)
    rows = []
    for own, other in ((x, y), (y, x)):
        within = (own @ own.T / TEMPERATURE)[others].view(n, -1)
        rows.append(torch.cat([own @ other.T / TEMPERATURE, within], 1))
    return F.cross_entropy(torch.cat(rows), torch.arange(n, device=x.device).repeat(2))


def ours(loss, labelled=False):
    def call(x, y, **settings):
        views = {"labels": labels_of(x)} if labelled else {"second" if loss is nt_xent else "keys": y}
        return loss(x, temperature=TEMPERATURE, **views, **settings)

    return {"whole": call, f"blocks of {ROWS}": lambda x, y: call(x, y, rows=ROWS)}


FORMS = {
    "InfoNCE": {THEIRS[0]: their_info_nce, THEIRS[1]: cross_entropy_of_products, **ours(info_nce)},
    "NT-Xent": {THEIRS[0]: their_nt_xent, THEIRS[1]: lightly_nt_xent, **ours(nt_xent)},
    "NT-Xent, labels": {
        THEIRS[0]: lambda x, y: NTXentLoss(TEMPERATURE)(x, labels_of(x)),
        **ours(nt_xent, labelled=True),
    },
    "SupCon, labels": {
        THEIRS[0]: lambda x, y: SupConLoss(TEMPERATURE)(x, labels_of(x)),
        **ours(supervised_contrastive, labelled=True),
    },
}


def embeddings(n, width, device, dtype):
    draw = torch.Generator().manual_seed(0)
    return [part.to(device, dtype).requires_grad_() for part in torch.randn(2, n, width, generator=draw)]


def compare() -> float:
    """Largest difference, in float64, of all forms from pytorch-metric-learning's."""
    worst = 0.0
    for forms in FORMS.values():
        x, y = (
            embeddings(ROWS + 100, 16, "cpu", torch.float64)
            if forms is FORMS["SupCon, labels"]
            else embeddings(150, 16, "cpu", torch.float64)
        )
        results = []
        for form in forms.values():
            loss = form(x, y)
            gradients = torch.autograd.grad(loss, (x, y), allow_unused=True)
            results.append((loss.detach(), *(each for each in gradients if each is not None)))
        for other in results[1:]:
            worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(results[0], other, strict=True)))
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
    # What is done once, at the first call, does not count: in our blocks, with more than one.
    small = embeddings(64 if form in THEIRS else ROWS + 1, width, device, torch.float32)
    function(*small).backward()
    x, y = embeddings(n, width, device, torch.float32)
    forget(device)
    before, seconds = held(device, "VmRSS"), []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.autograd.grad(function(x, y), (x, y), allow_unused=True)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    print(statistics.median(seconds), held(device, "VmHWM") - before)


def main() -> None:
    """Compare, then measure every form at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 8192, 32768])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=8.0, help="GB of memory a process may take on the CPU")
    parser.add_argument("--one", nargs=3, metavar=("LOSS", "FORM", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(*options.one[:2], int(options.one[2]), options.width, options.device, options.repeats, options.limit)
        return
    print(f"largest difference in float64: {compare():.1e}")
    print(f"{'loss':15} {'n':>6}  {'form':24} {'seconds':>9} {'peak MB':>9} {'time':>7} {'memory':>7}", flush=True)
    for loss, forms in FORMS.items():
        for n in options.sizes:
            theirs = (float("nan"), float("nan"))
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
                    print(f"{loss:15} {n:6}  {form:24} did not fit: {reason}", flush=True)
                    continue
                seconds, memory = map(float, done.stdout.split())
                if form in THEIRS and math.isnan(theirs[0]):
                    theirs = seconds, memory
                ratios = f"{seconds / theirs[0]:7.2f} {memory / theirs[1]:7.2f}"
                print(f"{loss:15} {n:6}  {form:24} {seconds:9.3f} {memory:9.0f} {ratios}", flush=True)


if __name__ == "__main__":
    main()
