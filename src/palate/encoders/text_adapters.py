"""Adapter files: what LoRA learned of a text model, apart from the model, and adding it to the model's weights.

Paper: LoRA (2021, arXiv:2106.09685). An adapted layer is W + scale · up · down. Reading and merging need no other
package; training does, see lora.py.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from palate.data.files import write_atomically
from palate.encoders.text_models import first_line
from palate.errors import ModelError

_FORMAT = "palate-lora-1"


class LowRank(NamedTuple):
    """The change of one layer's weight, up to the scale."""

    down: Float32[Tensor, "rank in"]
    up: Float32[Tensor, "out rank"]


class Adapter(NamedTuple):
    """The changes of a model's layers, by the name of the layer."""

    base: str
    """Hash of the model that they belong to."""
    alpha: float
    """The scale is alpha / rank."""
    layers: Mapping[str, LowRank]


def save_adapter(path: Path, adapter: Adapter) -> None:
    """Write an adapter as safetensors, in one step.

    Raises:
        ConfigError: the file cannot be written.
    """
    tensors = {}
    for name, layer in adapter.layers.items():
        tensors[f"{name}.down"] = layer.down.detach().contiguous()
        tensors[f"{name}.up"] = layer.up.detach().contiguous()
    # NOTE: one entry, because safetensors writes several in an order that changes from process to process.
    about = json.dumps({"format": _FORMAT, "base": adapter.base, "alpha": adapter.alpha})
    try:
        write_atomically(path, safetensors.torch.save(tensors, {"palate": about}))
    except OSError as error:
        raise ConfigError(f"adapter {path} cannot be written ({error.strerror}); choose another place") from error


def load_adapter(path: Path, base: str) -> Adapter:
    """Read an adapter that was trained on the model of hash `base`.

    Raises:
        ModelError: no such file, not an adapter, damaged, or of another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("palate", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"text adapter {path} cannot be read ({first_line(error)}); save it again") from error
    names = sorted({name.rpartition(".")[0] for name in tensors})
    if about.get("format") != _FORMAT or set(tensors) != {f"{n}.{part}" for n in names for part in ("down", "up")}:
        raise ModelError(f"text adapter {path} is not an adapter of format {_FORMAT}; save it with LoraTextEncoder")
    if about["base"] != base:
        raise ModelError(
            f"text adapter {path} was trained on other weights (model {about['base'][:12]}, this one is "
            f"{base[:12]}); give the model that it was trained on, or train it again"
        )
    if not names or not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ModelError(f"text adapter {path} is empty or holds a NaN or infinity; train it again")
    layers = {name: LowRank(tensors[f"{name}.down"], tensors[f"{name}.up"]) for name in names}
    return Adapter(base, float(about["alpha"]), layers)


def merge_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Add an adapter to the weights of its model, in place; the model is then as fast as without.

    Raises:
        ModelError: a layer is not in the model, or is of another shape.
    """
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, layer in adapter.layers.items():
            module = modules.get(name)
            change = layer.up @ layer.down * (adapter.alpha / len(layer.down))
            if not isinstance(module, nn.Linear) or module.weight.shape != change.shape:
                raise ModelError(f"text adapter: the model has no linear layer {name} of shape {tuple(change.shape)}")
            module.weight += change


def adapter_hash(path: Path) -> str:
    """Give the sha256 of an adapter file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"text adapter {path} cannot be read ({error.strerror}); correct the path") from error
