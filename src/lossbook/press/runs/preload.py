"""What the process from which kernels fork has imported: importing this module is all that it does."""

import contextlib
import gc
import os
import sys
from importlib import import_module

# Before the numerical libraries load: a pool of threads does not survive a fork. Nor does the one with which Arrow's
# allocator tidies up.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"

for name in (
    "torch",
    "torch.func",
    "pandas",
    "scipy.stats",
    "seaborn",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "sklearn.neighbors",
    "sklearn.pipeline",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "matplotlib_inline.backend_inline",
    "lossbook.lab",
):
    # A library that is missing or broken is missed by the notebooks that import it, and by no other.
    with contextlib.suppress(Exception):
        import_module(name)

# Our own modules as they were imported: file, time of its last edit.
LOADED = {
    file: os.stat(file).st_mtime_ns
    for name, module in list(sys.modules.items())
    if name.partition(".")[0] == "lossbook" and (file := getattr(module, "__file__", None))
}

# Collecting garbage would write into every page that children share with their parent.
gc.collect()
gc.freeze()
