"""Runs of notebooks: parameters, grids, keys, kernels and their limits, and many runs side by side."""
