"""Semantic ids: an item is a few codes, found by quantising its content vector, then what is left of it, and so on.

Residual quantisation as in Rajput et al., Recommender Systems with Generative Retrieval (TIGER), 2023,
arXiv:2305.05065, with k-means on the content itself in place of an RQ-VAE: nothing to tune, and no collapsed codebook.
Items with similar content share their first codes. A new item has codes from its content alone, without training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load, save
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from palate.data.files import write_atomically
from palate.errors import ConfigError, DataError, ModelError
from palate.threads import one_thread

CHUNK = 8192  # items whose distances to a codebook are in memory at a time


@dataclass(frozen=True)
class SemanticIdConfig:
    """How many codes an item has, and how they are found."""

    num_levels: int = 3
    """Codes an item, before the one that tells apart items with the same codes."""
    codebook_size: int = 256
    """Codes a level; at most the number of distinct content vectors."""
    batch_size: int = 4096
    """Items a step of mini-batch k-means."""
    max_epochs: int = 50
    """Most passes over the items for each level; it stops before when the codebook does not improve."""
    seed: int = 0
    """Of k-means: its starting points and its batches."""

    def __post_init__(self) -> None:
        for name, low in (("num_levels", 1), ("codebook_size", 2), ("batch_size", 1), ("max_epochs", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"semantic_ids.{name} is {getattr(self, name)}; it must be at least {low}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"semantic_ids.seed is {self.seed}; it must be from 0 to 2^32 − 1")


class Codes(NamedTuple):
    """What stands for each item: a code at every level."""

    values: Int64[Tensor, "item level"]
    """From 0 to the level's size − 1."""
    sizes: tuple[int, ...]
    """Number of codes at each level."""


class SemanticIds(NamedTuple):
    """The codebooks, and what they make of the items that they were fitted on."""

    codebooks: Float[Tensor, "level code feature"]
    """Level by level, the vectors that an item's residual is compared with."""
    codes: Int64[Tensor, "item level"]
    """The nearest code of each level; items with like content have the same."""
    errors: Float[Tensor, "level"]
    """Mean squared distance between content and its reconstruction after each level, over the content's variance."""


def fit_semantic_ids(content: Float[Tensor, "item feature"], config: SemanticIdConfig) -> SemanticIds:
    """Fit a codebook to the content, then one to what it leaves of each vector, and so on; one seed, the same bytes.

    Distances are Euclidean: scale the features by what they matter, text vectors to length 1, say.

    Raises:
        ConfigError: more codes a level than distinct content vectors.
        DataError: content that is not finite.
    """
    _check_finite(content)
    distinct: set[bytes] = set()
    for vector in content.numpy():  # ends after a few hundred items, as a rule
        distinct.add(vector.tobytes())
        if len(distinct) == config.codebook_size:
            break
    else:
        raise ConfigError(
            f"semantic_ids.codebook_size is {config.codebook_size}, but there are {len(distinct)} distinct content "
            "vectors; lower it"
        )
    residual = content.float()
    spread = (residual - residual.mean(0)).square().sum(1).mean()
    codebooks, errors = [], []
    for level in range(config.num_levels):
        means = MiniBatchKMeans(
            config.codebook_size,
            batch_size=config.batch_size,
            max_iter=config.max_epochs,
            n_init=3,
            random_state=(config.seed + level) % 2**32,
        )
        with one_thread():  # sums in another order would be other bytes
            means.fit(residual.numpy())
        codebook = torch.from_numpy(np.ascontiguousarray(means.cluster_centers_, dtype=np.float32))
        codebooks.append(codebook)
        residual = residual - codebook[_nearest(residual, codebook)]
        errors.append(residual.square().sum(1).mean() / spread)
    stacked = torch.stack(codebooks)
    return SemanticIds(stacked, encode(stacked, content), torch.stack(errors))


def encode(
    codebooks: Float[Tensor, "level code feature"], content: Float[Tensor, "item _"]
) -> Int64[Tensor, "item level"]:
    """Codes of items, new ones as well: at each level the nearest to what the levels before have left.

    Raises:
        DataError: content that is not finite, or of another length than the codebooks'.
    """
    _check_finite(content)
    if content.shape[1] != codebooks.shape[2]:
        raise DataError(
            f"semantic ids: content has {content.shape[1]} features, the codebooks {codebooks.shape[2]}; encode items "
            "with the encoder that the codebooks were fitted on"
        )
    residual, codes = content.float(), []
    for codebook in codebooks:
        codes.append(_nearest(residual, codebook))
        residual = residual - codebook[codes[-1]]
    return torch.stack(codes, dim=1)


def reconstruct(
    codebooks: Float[Tensor, "level code feature"], codes: Int64[Tensor, "item level"]
) -> Float[Tensor, "item feature"]:
    """The content that the codes stand for: the sum of their vectors."""
    return codebooks[torch.arange(len(codebooks)), codes].sum(1)


def deduplicate(codes: Int64[Tensor, "item level"], codebook_size: int) -> Codes:
    """Add TIGER's last level, which counts the items with the same codes: 0 for the first of them, then 1, 2, …

    Items that come after others leave their ids as they are, so new items are put at the end and all are counted again.
    """
    group = torch.from_numpy(np.unique(codes.numpy(), axis=0, return_inverse=True)[1])
    order = group.argsort(stable=True)
    sizes = group.bincount()
    first = sizes.cumsum(0) - sizes
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(codes)) - first[group[order]]
    return Codes(torch.cat([codes, rank[:, None]], dim=1), (*(codebook_size,) * codes.shape[1], int(rank.max()) + 1))


def code_usage(codes: Int64[Tensor, "item level"]) -> Float[Tensor, "level"]:
    """Perplexity of each level: how many codes, used equally often, would be as varied as these."""
    usage = []
    for level in codes.unbind(1):
        share = level.bincount().double() / len(level)
        usage.append(torch.special.entr(share).sum().exp().float())
    return torch.stack(usage)


def save_semantic_ids(path: str | Path, ids: SemanticIds) -> None:
    """Write codebooks, codes and errors as one safetensors file.

    Raises:
        ModelError: it cannot be written; what was there before is untouched.
    """
    content = save({name: value.contiguous() for name, value in ids._asdict().items()})
    try:
        write_atomically(Path(path), content)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror}); free space or choose another") from None


def load_semantic_ids(path: str | Path) -> SemanticIds:
    """Read what `save_semantic_ids` wrote.

    Raises:
        ModelError: the file is missing, damaged, or holds something else.
    """
    try:
        tensors = load(Path(path).read_bytes())
        ids = SemanticIds(**{name: tensors[name] for name in SemanticIds._fields})
        levels, size, _ = ids.codebooks.shape
        sound = ids.codes.shape[1:] == ids.errors.shape == (levels,) and ids.codes.dtype == torch.int64
        sound = sound and int(ids.codes.min()) >= 0 and int(ids.codes.max()) < size
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: no semantic ids can be read ({reason}); fit them again") from None
    if not sound:
        raise ModelError(f"{path}: codes and codebooks do not fit each other; fit them again")
    return ids


def _nearest(vectors: Float[Tensor, "item feature"], codebook: Float[Tensor, "code feature"]) -> Int64[Tensor, "item"]:
    """Argmin of ‖v − c‖² = ‖v‖² − 2 v·c + ‖c‖², whose first term is the same for all codes."""
    half = codebook.square().sum(1) / 2
    starts = range(0, len(vectors), CHUNK)
    return torch.cat([(half - vectors[start : start + CHUNK] @ codebook.T).argmin(1) for start in starts])


def _check_finite(content: Float[Tensor, "item _"]) -> None:
    if not len(content) or not torch.isfinite(content).all():
        raise DataError("semantic ids: content must be of one item at least, and finite; check the encoder")
