"""The checkpoint folder of a training run: everything that the next step depends on, in one safetensors file a save.

A save goes to a temporary file, is synced, renamed, and the folder synced, so that a run killed at any moment, inside
a save too, finds a whole file. A checksum over all bytes tells a damaged file from a whole one; the file before the
last is kept, and is gone on from where the last is damaged.
"""

import json
import os
import sys
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palate.errors import ModelError

KEPT = 2
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class EpochRecord(NamedTuple):
    """What one epoch did; an epoch that a budget cut short has a record too."""

    epoch: int
    """From 1."""
    steps: int
    """Optimiser steps of this epoch."""
    loss: float
    """Mean over the target tokens."""
    parts: dict[str, float]
    """The named parts of the loss, as means over the target tokens."""
    learning_rate: float
    """Of the last step."""
    seconds: float
    """Wall seconds, validation and saving included."""
    cpu_seconds: float
    """CPU seconds of all workers together."""
    validation: float | None
    """What `validate` said, where it was asked."""


@dataclass
class RunState:
    """Where a run is. Numbers only: the tensors stand beside it in the file."""

    settings: dict[str, str]
    """The settings and the seed that a run cannot change under way, as text."""
    epoch: int = 0
    """Epochs that are over."""
    batch: int = 0
    """Batches of the present epoch that are over: with `epoch` the data cursor."""
    step: int = 0
    """Optimiser steps that are over."""
    seconds: float = 0.0
    """Wall seconds used, over all resumes."""
    cpu_seconds: float = 0.0
    """CPU seconds used by all workers, over all resumes."""
    epoch_start: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Wall and CPU seconds at which the present epoch began."""
    targets: int = 0
    """Target tokens of the present epoch so far."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the loss and of its parts over these tokens."""
    best: float | None = None
    """The best validation so far."""
    stale: int = 0
    """Validations since then."""
    history: list[EpochRecord] = field(default_factory=list)
    """The epochs that are over."""


def save_run(folder: Path, tensors: Mapping[str, Tensor], state: RunState) -> None:
    """Write a checkpoint of step `state.step`, then let go of all but the last two.

    Raises:
        ModelError: the file cannot be written (a full disk, say); what was there before is untouched.
    """
    text = json.dumps(asdict(state) | {"history": [record._asdict() for record in state.history]})
    path = folder / f"step-{state.step:012}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_tensors(path, tensors, text)
        for old in _checkpoints(folder)[KEPT:]:
            old.unlink()
    except OSError as error:
        raise ModelError(
            f"{path}: the checkpoint cannot be written ({error.strerror}); free space or choose another folder, then "
            "start again: the run goes on from its last whole checkpoint"
        ) from error


def load_run(folder: Path) -> tuple[dict[str, Tensor], RunState] | None:
    """Read the last whole checkpoint of a folder; None where there is none yet.

    A damaged file is passed over with a warning.

    Raises:
        ModelError: there are checkpoints, and all of them are damaged.
    """
    damaged = []
    for path in _checkpoints(folder):
        try:
            tensors, text = _read_tensors(path)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            damaged.append(f"{path.name} ({str(error).splitlines()[0]})")
            continue
        if damaged:
            warnings.warn(f"{folder}: damaged: {', '.join(damaged)}; going on from {path.name}", stacklevel=2)
        fields = json.loads(text)
        fields["history"] = [EpochRecord(**record) for record in fields["history"]]
        return tensors, RunState(**fields)
    if damaged:
        raise ModelError(f"{folder}: no checkpoint is whole: {', '.join(damaged)}; delete the folder to start over")
    return None


def tidy_run(folder: Path, step: int) -> None:
    """Remove what a killed run left half written, and checkpoints later than `step`, which were damaged."""
    for path in [*folder.glob(".*.tmp"), *folder.glob("step-*.safetensors")]:
        if path.suffix == ".tmp" or int(path.stem.removeprefix("step-")) > step:
            path.unlink()


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Weights by name from the last checkpoint of a run: the best validated, else the averaged, else the last ones.

    Raises:
        ModelError: the folder holds no whole checkpoint.
    """
    found = load_run(folder)
    if found is None:
        raise ModelError(f"{folder}: there is no checkpoint here; give the folder of a training run")
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "best": {}}
    for name, value in found[0].items():
        group, _, rest = name.partition(".")
        groups.get(group, {})[rest] = value
    return groups["best"] or groups["model"] | groups["average"]


def _checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """Write a safetensors file tensor by tensor, so that the checkpoint is never in memory a second time."""
    tensors = dict(sorted(tensors.items()))
    header: dict[str, object] = {"__metadata__": {"run": text, "crc32": str(_checksum(tensors, text))}}
    end = 0
    for name, value in tensors.items():
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for value in tensors.values():
                file.write(_bytes_of(value))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    if str(_checksum(tensors, metadata["run"])) != metadata["crc32"]:
        raise ValueError("the checksum differs")
    return tensors, metadata["run"]


def _checksum(tensors: Mapping[str, Tensor], text: str) -> int:
    """CRC-32 of the text and of all names, types, shapes and numbers, in the order of the names."""
    value = zlib.crc32(text.encode())
    for name, tensor in tensors.items():
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(_bytes_of(tensor), value)
    return value


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it lies contiguously in main memory."""
    assert sys.byteorder == "little"  # as the format wants it
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _sync_folder(folder: Path) -> None:
    """Put a rename on the disk: the file's own sync does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
