"""The item features that the learners read: cross-fitted over the training people."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from palate.encoders.text import TextConfig, encode_texts
from palate.evaluation.protocols.base import Draw, Features, Setting
from palate.evaluation.protocols.content import item_kernels
from palate.ratings.factors import FactorConfig
from palate.ratings.knowledge import KnowledgeConfig, fit_knowledge
from palate.ratings.likeness import KernelTable

_FOLDS = 5
_AXES = 16
_TEXT_LENGTH = 96


def rating_features(num_factors: int) -> Callable[[Setting, Draw], Features]:
    """Cross-fitted factors and biases, from content where nobody has rated an item."""

    def make(setting: Setting, draw: Draw) -> Features:
        config = KnowledgeConfig(FactorConfig(num_factors), num_folds=_FOLDS)
        known = fit_knowledge(draw.ratings, len(setting.items), _content_kernels(setting), config, seed=draw.seed)
        warm = known.warm.double().numpy()
        offset = known.least + known.unit * (known.mean + warm[..., 0])
        fold = np.zeros(len(setting.profiles), np.int64)
        fold[: len(known.fold)] = known.fold
        return Features(warm[..., 1:], offset, fold)

    return make


def choice_features(setting: Setting, draw: Draw) -> Features:
    """Axes of the shrunk cosine of joint choices, and the log odds that a shown item is chosen; both cross-fitted."""
    ratings, num_items = draw.ratings, len(setting.items)
    users = np.unique(ratings.users)
    fold = np.zeros(len(setting.profiles), np.int64)
    fold[np.random.default_rng(draw.seed).permutation(users)] = np.arange(len(users)) % _FOLDS + 1
    chosen = ratings.values > 0

    def cosine(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        matrix = np.zeros((len(setting.profiles), num_items))
        matrix[ratings.users[kept & chosen], ratings.items[kept & chosen]] = 1.0
        counts = matrix.sum(0)
        together = matrix.T @ matrix
        np.fill_diagonal(together, 0.0)
        return together / np.sqrt(np.outer(counts + 3, counts + 3)), counts

    whole, _ = cosine(np.ones(len(chosen), bool))
    values, axes = np.linalg.eigh(whole)
    axes = axes[:, ::-1][:, :_AXES] / np.sqrt(np.maximum(values[::-1][:_AXES], 1e-9))
    vectors, offsets = [], []
    for left_out in range(_FOLDS + 1):
        kept = (fold[ratings.users] != left_out) | (left_out == 0)
        similar, counts = cosine(kept)
        shown = (kept & ~chosen).sum() / num_items  # what is not chosen was drawn evenly
        vectors.append(similar @ axes)
        offsets.append(np.log((counts + 0.5) / (shown + 0.5)))
    stacked = np.stack(vectors)
    return Features(stacked / stacked[0].std(), np.stack(offsets), fold)


def _content_kernels(setting: Setting) -> KernelTable:
    """How alike the items are, texts by the bundled encoder."""
    if setting.content is None:
        raise ValueError("this data set has no content")
    encode = partial(encode_texts, config=TextConfig(max_length=_TEXT_LENGTH))
    kernels = item_kernels(setting.items, setting.content, encode)
    return KernelTable(torch.stack([torch.from_numpy(kernel).float() for kernel in kernels.values()], -1))
