"""Evidence for items that came after the fit: what their nearest relatives by content have.

Nobody had chosen a new item when the scorers were fitted, so it has no weights. Left without, it would stand behind
every known item that goes with the last events, however well it fits. It gets the mean of what is added to its
relatives' scores, each weighted by its cosine: an item that is like no other gets next to nothing.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64

NUM_RELATIVES = 10
_TOGETHER = 1024
_LEAST = 1e-9


class Kin(NamedTuple):
    """The relatives of the items that came after the fit, in the order of these items."""

    items: Int64[np.ndarray, "new relative"]
    """Numbers of known items."""
    weights: Float32[np.ndarray, "new relative"]
    """Their cosines, never below 0, over the number of relatives."""

    def inherit(self, known: Float[np.ndarray, "*user item"]) -> Float[np.ndarray, "*user new"]:
        """What the new items get of what the known ones have."""
        found: Float[np.ndarray, "*user new"] = (known[..., self.items] * self.weights).sum(-1)
        return found

    def joined(self, other: "Kin") -> "Kin":
        """These items and then the others."""
        return Kin(*(np.concatenate(parts) for parts in zip(self, other, strict=True)))


def no_kin() -> Kin:
    """Of no item."""
    return Kin(np.zeros((0, NUM_RELATIVES), np.int64), np.zeros((0, NUM_RELATIVES), np.float32))


def find_kin(known: Float[np.ndarray, "item content"], new: Float[np.ndarray, "new content"]) -> Kin:
    """The relatives of new items by the content of all; without content, or known items, nobody has any."""
    found = Kin(np.zeros((len(new), NUM_RELATIVES), np.int64), np.zeros((len(new), NUM_RELATIVES), np.float32))
    count = min(NUM_RELATIVES, len(known))
    if not count:
        return found
    directions = _normalised(known)
    for start in range(0, len(new), _TOGETHER):
        cosine = _normalised(new[start : start + _TOGETHER]) @ directions.T
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        values = np.maximum(np.take_along_axis(cosine, nearest, 1), 0) / NUM_RELATIVES
        found.items[start : start + _TOGETHER, :count] = nearest
        found.weights[start : start + _TOGETHER, :count] = values
    return found


def _normalised(rows: Float[np.ndarray, "row content"]) -> Float32[np.ndarray, "row content"]:
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return np.where(lengths > _LEAST, rows / np.maximum(lengths, _LEAST), 0).astype(np.float32)
