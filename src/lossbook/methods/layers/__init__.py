"""Layers: what passes forward through a layer, and what its gradient keeps on the way back."""

# From here on written by `make format`: the `__all__` of the modules beside this file.
from lossbook.methods.layers.ideal_group_number import (
    conv_group_norm_gain,
    group_norm_backward,
    group_norm_gain,
    ideal_number_of_groups,
    isometric_group_number,
    measured_gain,
    set_group_numbers,
)

__all__ = [
    "conv_group_norm_gain",
    "group_norm_backward",
    "group_norm_gain",
    "ideal_number_of_groups",
    "isometric_group_number",
    "measured_gain",
    "set_group_numbers",
]
