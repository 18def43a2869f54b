"""People as tasks: their choices and refusals turned into the batched tensors that learners are vectorised over."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from palate.data.episodes import History
from palate.data.event_log import EventLog
from palate.meta.head import Support


def make_supports(
    chosen: EventLog,
    refused: EventLog,
    returning: Bool[np.ndarray, "user"],
    features: Float[Tensor, "item feature"],
    states: Float[Tensor, "user dim"],
) -> Support:
    """Stack people's supports (every field gets a leading user axis), padded to the longest, at least 1 wide.

    Chosen items come first and have target +1, refused ones −1.
    """
    num_chosen, lengths = chosen.lengths(), chosen.lengths() + refused.lengths()
    places = np.arange(max(1, int(lengths.max(initial=0))))
    likes, real = places < num_chosen[:, None], places < lengths[:, None]
    items = np.zeros(real.shape, np.int64)
    items[likes] = chosen.items
    items[real & ~likes] = refused.items
    target = torch.from_numpy(np.where(likes, np.float32(1), np.float32(-1)) * real)
    mask = torch.from_numpy(real).float()
    found = features[torch.from_numpy(items)] * mask[..., None]
    return Support(found, target, mask, states, torch.from_numpy(returning).float())


def make_support(history: History, features: Float[Tensor, "item feature"], state: Float[Tensor, "dim"]) -> Support:
    """One person's support, without the cost of padding; without events it is one place wide and masked."""
    returning = torch.tensor(float(history.returning))
    items = np.concatenate([history.items, history.refused])
    if not len(items):
        return Support(torch.zeros_like(features[:1]), torch.zeros(1), torch.zeros(1), state, returning)
    target = torch.ones(len(items))
    target[len(history.items) :] = -1.0
    return Support(features[torch.from_numpy(items)], target, torch.ones(len(items)), state, returning)
