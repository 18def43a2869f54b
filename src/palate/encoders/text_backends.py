"""The forward pass of a text model at each precision: what `TextConfig.precision` names.

Measured on one core of an AMD EPYC (AVX-512 with bfloat16 and VNNI), see benchmarks/text_encoding.py. The figures of
equality and speed that a choice rests on stand in the docstring of `TextConfig.precision`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from palate.encoders.text_onnx import quantised

Forward = Callable[[Int64[Tensor, "text token"]], Float32[Tensor, "text token dim"]]
"""Token ids without padding to the states of the last layer."""
Backend = Callable[[Any, str, Path], Forward]
"""A float32 model of transformers, the hash of what it was loaded from, and a folder for files made of it."""


def full(model: Any, key: str, cache: Path) -> Forward:
    """float32 in PyTorch."""
    pack_linear_layers(model)
    return lambda ids: model(input_ids=ids).last_hidden_state


def half(model: Any, key: str, cache: Path) -> Forward:
    """bfloat16 matrix products; sums over tokens, layer norms and the residual stream stay float32."""

    def forward(ids: Int64[Tensor, "text token"]) -> Float32[Tensor, "text token dim"]:
        with torch.autocast("cpu", torch.bfloat16):
            return model(input_ids=ids).last_hidden_state.float()  # type: ignore[no-any-return]

    return forward


BACKENDS: Mapping[str, Backend] = {"float32": full, "bfloat16": half, "int8": quantised}


class PackedLinear(nn.Module):
    """A linear layer for inference, its weight in the layout that oneDNN reads fastest."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight  # some models look at its dtype
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().clone(), None)

    def forward(self, x: Float32[Tensor, "*batch in"]) -> Float32[Tensor, "*batch out"]:
        """Return x Wᵀ + b."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")  # type: ignore[no-any-return]


def pack_linear_layers(model: nn.Module) -> None:
    """Replace the linear layers of a float32 model, in place; nothing where PyTorch comes without oneDNN.

    A linear layer in float32 goes through MKL otherwise, which on an AMD CPU runs at half the speed; the results
    differ by rounding (2.5e-7 in a vector of length 1).
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:  # a subclass may mean something else by its weight
                setattr(module, name, PackedLinear(child))
