"""People as tasks: histories turned into the batched tensors that learners are vectorised over."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from palate.data.episodes import History
from palate.meta.head import Support


def make_supports(
    histories: Sequence[History],
    features: Float[Tensor, "item feature"],
    states: Float[Tensor, "user dim"],
) -> Support:
    """Stack people's supports (every field gets a leading user axis), padded to the longest, at least 1 wide.

    Chosen items have target +1, refused ones −1.
    """
    lengths = [len(history.items) + len(history.refused) for history in histories]
    width = max(1, *lengths) if lengths else 1
    items = torch.zeros(len(histories), width, dtype=torch.int64)
    target = torch.zeros(len(histories), width)
    mask = torch.zeros(len(histories), width)
    for row, (history, length) in enumerate(zip(histories, lengths, strict=True)):
        items[row, :length] = torch.from_numpy(np.concatenate([history.items, history.refused]))
        target[row, : len(history.items)] = 1.0
        target[row, len(history.items) : length] = -1.0
        mask[row, :length] = 1.0
    returning = torch.tensor([float(history.returning) for history in histories])
    return Support(features[items] * mask[..., None], target, mask, states, returning)


def make_support(history: History, features: Float[Tensor, "item feature"], state: Float[Tensor, "dim"]) -> Support:
    """One person's support, without the cost of padding."""
    items = np.concatenate([history.items, history.refused])
    if not len(items):
        [nothing] = zip(*make_supports([history], features, state[None]), strict=True)
        return Support(*nothing)
    target = torch.ones(len(items))
    target[len(history.items) :] = -1.0
    returning = torch.tensor(float(history.returning))
    return Support(features[torch.from_numpy(items)], target, torch.ones(len(items)), state, returning)
