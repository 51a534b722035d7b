"""The op set: each op with its type rule and its numpy meaning.

The meaning is the oracle for export, passes, targets, kernels and the C++ runtime.
"""

from arcompile.ops import (
    attention,
    channels_last,
    kv,
    kv_formats,
    linear,
    nn,
    quant,
    quant_conv,
    quant_static,
    sampling,
    speculation,
    tensor,
)

__all__ = [
    "attention", "channels_last", "kv", "kv_formats", "linear", "nn", "quant", "quant_conv",
    "quant_static",     "sampling", "speculation", "tensor",
]
