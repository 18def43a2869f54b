"""Checkpoints of a training run: model, optimiser, random state and progress in one safetensors file.

Written beside the old one, synced and renamed, so that a run killed at any moment finds a complete file.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from palate.errors import ModelError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by new content that is on the disk before the old content goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, progress: Mapping[str, Tensor]
) -> None:
    """Write everything that the next epoch depends on, PyTorch's random state included."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for place, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{place}.{name}": value for name, value in state.items()}
    tensors |= {f"progress.{name}": value for name, value in progress.items()}
    tensors["random"] = torch.get_rng_state()
    write_atomically(path, save({name: value.contiguous() for name, value in tensors.items()}))


def load_checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put a run back to where it was, and return its progress.

    Raises:
        ModelError: the file is unreadable or belongs to another model.
    """
    try:
        tensors = load(path.read_bytes())
        random = tensors["random"]
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: not a checkpoint of this model ({reason}); delete it to start over") from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, place, key = name.split(".", 2)
            state.setdefault(int(place), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    torch.set_rng_state(random)
    return {k.removeprefix("progress."): v for k, v in tensors.items() if k.startswith("progress.")}


def epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """The generator of one epoch's shuffling and cropping: it depends on nothing that came before."""
    return np.random.default_rng([seed, epoch])
