"""Shapes and dtypes of `lossbook.methods` are checked against its annotations; one thread a process."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports the library. The hook lives as long as the tests do.
install_import_hook("lossbook.methods", "beartype.beartype")

# The same examples everywhere, so that a red run can be repeated; no deadline on a busy machine.
settings.register_profile("lossbook", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("lossbook")
