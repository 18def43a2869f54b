"""A person's fast weights as bytes, to be used again instead of adapting anew, where that would give the same.

What the model makes of the profile alone is not written. The bytes carry a seal: a hash of everything that adapting
reads and of the weights themselves. A model's weights and its rows of the items that it was trained on follow from its
id; the rows of all other items move with their content and with events (`Recommender.with_item_events`), so those of
the person's own events are in the seal.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from palate.data.episodes import History
from palate.meta.head import Items
from palate.meta.learner import Fast

_ARITHMETIC = f"3, torch {torch.__version__}"
"""How adapting computes; the number goes up when what it gives changes in the last bit for the same model."""
_SEAL = "seal"
_SEAL_BYTES = 16


def describe_inputs(
    model_id: str, items: Items, num_trained: int, max_events: int, history: History, profile: Float[Tensor, "profile"]
) -> bytes:
    """Everything that adapting to a history reads, as bytes that differ where any of it does."""
    recent = history.tail(max_events)
    numbers = np.concatenate([recent.items, recent.refused])
    new = numbers >= num_trained
    parts = [
        f"{_ARITHMETIC}, {model_id}, {len(recent.items)} of {len(history.items)}, {history.returning}".encode(),
        np.where(new, -1, numbers).tobytes(),
        recent.times.tobytes(),
        b"" if recent.ratings is None else recent.ratings.tobytes(),
        profile.numpy().tobytes(),
    ]
    if new.any():
        rows = torch.from_numpy(numbers[new])
        # Not the bias, which no support holds and which follows events faster than the rest.
        parts += [items.features[rows].numpy().tobytes(), items.vectors[rows].numpy().tobytes()]
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def to_bytes(fast: Fast, rest: Fast, inputs: bytes) -> bytes:
    """Fast weights that were made of these inputs as safetensors, but for those that are equal in `rest`."""
    kept = {name: value.numpy() for name, value in fast.items() if name not in rest or not _same(value, rest[name])}
    return save({**kept, _SEAL: np.frombuffer(_seal(kept, inputs), np.uint8)})


def from_bytes(payload: bytes, rest: Fast, inputs: bytes) -> Fast | None:
    """The fast weights that `to_bytes` was given; None where they were made of other inputs, or are damaged."""
    try:
        kept = load(payload)
    except (SafetensorError, KeyError, ValueError, TypeError):  # what safetensors raises on bytes of another making
        return None
    seal = kept.pop(_SEAL, None)
    if seal is None or seal.tobytes() != _seal(kept, inputs):
        return None
    return {**rest, **{name: torch.from_numpy(value) for name, value in kept.items()}}


def _seal(kept: Mapping[str, Shaped[np.ndarray, "..."]], inputs: bytes) -> bytes:
    digest = hashlib.blake2b(inputs, digest_size=_SEAL_BYTES)
    for name in sorted(kept):
        value = kept[name]
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.digest()


def _same(one: Tensor, other: Tensor) -> bool:
    """To the bit: equal numbers may differ in the sign of a zero."""
    return one is other or (
        one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
    )
