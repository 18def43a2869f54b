"""Item features of the adapted head: item-item evidence, content and the backbone's own vectors, side by side.

Linear regression on these features is regression with the kernel k(i, j) = Σ feature_i · feature_j / precision:

* evidence: the leading eigenvectors of the shrunk cosine of joint purchases, scaled so that their inner product is
  that cosine up to one constant. In the limit of large noise the ridge learner on them is item-kNN, with less noise
  it explains away what several events say together, as EASE does (Steck, 2019, arXiv:1905.03375).
* content: principal components of text vectors and attributes; the same axes in every fit.
* backbone: principal components of the item tower's vectors.

An item without events gets its evidence from its content, by ridge regression over the items that have both.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
from scipy.sparse.linalg import eigsh  # type: ignore[import-untyped]
from torch import Tensor

from palate.data.choices import purchase_matrix
from palate.data.event_log import EventLog
from palate.errors import ConfigError
from palate.meta.head import Layout

_ROWS = 1024
"""Rows of the sparse cosine that are worked on at once."""


@dataclass(frozen=True)
class EvidenceConfig:
    """Size and smoothing of the head's item features."""

    rank: int = 384
    """Leading eigenvectors kept of the item-item cosine (fewer where the catalogue is smaller)."""
    shrink: float = 10.0
    """Added to the denominator of the cosine: rare items are trusted less."""
    exponent: float = 0.4
    """Power of the two items' counts in the denominator: 0.5 is the cosine, less favours popular neighbours."""
    content_dim: int = 128
    """Principal components kept of text and attributes."""
    content_precision: float = 15.0
    """Prior precision of content features, where evidence has 1; learners that take steps begin with it."""
    backbone_precision: float = 100.0
    """Prior precision of backbone features; learners that take steps begin with it."""
    content_penalty: float = 10.0
    """Ridge penalty of the map from content to evidence, for items without events."""
    dense_items: int = 8192
    """Up to so many items the cosine is held as a full matrix, which is exact and takes 20 bytes a pair; above, only
    the pairs that occur are."""
    most_items: int = 1000
    """Above dense_items: items of a person that count, the most recent ones. Pairs grow with their square."""
    half_life: float = 0.0
    """Days after which a choice counts half for an item's popularity; 0: every choice counts the same for ever."""

    def __post_init__(self) -> None:
        for name in ("rank", "content_dim", "dense_items", "most_items"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evidence.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("shrink", "exponent", "content_precision", "backbone_precision", "content_penalty"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"evidence.{name} is {getattr(self, name)}; it must be above 0")
        if not self.half_life >= 0:
            raise ConfigError(f"evidence.half_life is {self.half_life}; it must be at least 0 days")


class Rotation(NamedTuple):
    """Principal axes: rows are centred, scaled to length 1 on average and turned."""

    mean: Float[Tensor, "input"]
    axes: Float[Tensor, "input output"]

    def __call__(self, rows: Float[Tensor, "row input"]) -> Float[Tensor, "row output"]:
        """Project rows."""
        return (rows - self.mean) @ self.axes


def fit_rotation(rows: Float[Tensor, "row input"], dim: int) -> Rotation:
    """Principal axes of the rows by falling variance, at most `dim`; the sign makes the largest entry positive."""
    mean = rows.mean(0)
    centred = (rows - mean).double()
    _, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes.flip(1)[:, :dim]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * largest.sign()
    length = centred.square().sum(1).mean().sqrt().clamp_min(1e-12)
    return Rotation(mean, (axes / length).float())


def fit_evidence(chosen: EventLog, num_items: int, config: EvidenceConfig) -> Float[Tensor, "item rank"]:
    """Factor the shrunk cosine C_ij / ((n_i n_j)^exponent + shrink); an item without events has a zero row.

    Rows are scaled to a mean square length of 0.4, so that precisions mean the same in every shop. Up to
    `config.dense_items` the cosine is held and factored whole, above it is sparse and only the leading axes are found.
    """
    sparse = num_items > max(config.dense_items, 4 * config.rank)
    values, axes = (_leading_axes if sparse else _all_axes)(chosen, num_items, config)
    evidence = (axes * values.sqrt()).float()
    length = evidence.square().sum(1)
    evidence = evidence * (0.4 / length[length > 1e-9].mean()).sqrt()
    padding = torch.zeros(num_items, min(config.rank, num_items) - len(values))
    return torch.cat([evidence, padding], 1)


def _all_axes(
    chosen: EventLog, num_items: int, config: EvidenceConfig
) -> tuple[Float64[Tensor, "rank"], Float64[Tensor, "item rank"]]:
    """The largest positive eigenvalues and their axes, from the whole matrix."""
    matrix = torch.from_numpy(purchase_matrix(chosen, num_items))
    counts = matrix.T @ matrix
    size = counts.diagonal() ** config.exponent
    cosine = (counts / (size[:, None] * size[None, :] + config.shrink)).double()
    values, axes = torch.linalg.eigh(cosine)
    rank = min(config.rank, int((values > 1e-9).sum()))
    return values.flip(0)[:rank], axes.flip(1)[:, :rank]


def _leading_axes(
    chosen: EventLog, num_items: int, config: EvidenceConfig
) -> tuple[Float64[Tensor, "rank"], Float64[Tensor, "item rank"]]:
    """The same by implicitly restarted Lanczos (ARPACK) on the pairs of items that someone chose both of.

    Memory: 12 bytes a pair at the peak (Σ choices² over people bounds the pairs), and 6 × rank bytes an item.
    """
    recent = chosen.recent(config.most_items)
    ones = np.ones(len(recent), np.float32)
    people = csr_matrix((ones, recent.items, recent.offsets), shape=(recent.num_users, num_items))
    cosine = (people.T.tocsr() @ people).tocsr()
    size = cosine.diagonal() ** config.exponent
    for start in range(
        0, num_items, _ROWS
    ):  # a block at a time: a number of every pair's row is as large as the matrix
        block = slice(cosine.indptr[start], cosine.indptr[min(start + _ROWS, num_items)])
        own = np.repeat(size[start : start + _ROWS], np.diff(cosine.indptr[start : start + _ROWS + 1]))
        cosine.data[block] /= own * size[cosine.indices[block]] + np.float32(config.shrink)
    # NOTE: left to itself ARPACK draws where it begins, and again where it runs out of directions.
    begin = np.full(num_items, num_items**-0.5, np.float32)
    values, axes = eigsh(
        cosine,
        config.rank,
        which="LA",
        v0=begin,
        ncv=config.rank + config.rank // 2 + 24,
        tol=1e-4,
        rng=np.random.default_rng(0),
    )
    order = np.argsort(-values, kind="stable")[: int((values > 1e-6 * values.max()).sum())]
    values, axes = torch.from_numpy(values[order]).double(), torch.from_numpy(axes[:, order]).double()
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return values, axes * largest.sign()


def foretell_evidence(
    content: Float[Tensor, "item content"], evidence: Float[Tensor, "item rank"], config: EvidenceConfig
) -> Float[Tensor, "item rank"]:
    """What content says of each item's evidence by a regression that has not seen that item (leave-one-out)."""
    rows = content.double()
    gram = rows.T @ rows + config.content_penalty * torch.eye(content.shape[1], dtype=torch.float64)
    told = torch.linalg.solve(gram, rows.T)
    fitted = rows @ (told @ evidence.double())
    leverage = (rows * told.T).sum(1, keepdim=True)
    foretold: Tensor = (fitted - leverage * evidence) / (1 - leverage)
    return foretold.float()


class FeatureSpace(NamedTuple):
    """How any item, with or without events, becomes a row of head features."""

    vector_rotation: Rotation
    content_to_evidence: Float[Tensor, "content rank"]

    def new_items(
        self, content: Float[Tensor, "item content"], vectors: Float[Tensor, "item dim"]
    ) -> Float[Tensor, "item feature"]:
        """Features of items without events; `content` is rotated already."""
        return torch.cat([content @ self.content_to_evidence, content, self.vector_rotation(vectors)], 1)


def fit_features(
    evidence: Float[Tensor, "item rank"],
    content: Float[Tensor, "item content"],
    vectors: Float[Tensor, "item dim"],
    config: EvidenceConfig,
) -> tuple[Float[Tensor, "item feature"], FeatureSpace]:
    """Features of the items in training and the way to those of new ones; `content` is rotated already."""
    rotation = fit_rotation(vectors, vectors.shape[1])
    gram = content.T @ content + config.content_penalty * torch.eye(content.shape[1])
    space = FeatureSpace(rotation, torch.linalg.solve(gram, content.T @ evidence))
    return torch.cat([evidence, content, rotation(vectors)], 1), space


def layout_of(
    rank: int, content_dim: int, vector_dim: int, num_profile_features: int, config: EvidenceConfig
) -> Layout:
    """Where precision starts for each block, and on which features a prior mean can be learned."""
    precision = torch.cat(
        [
            torch.zeros(rank),
            torch.full((content_dim,), config.content_precision).log(),
            torch.full((vector_dim,), config.backbone_precision).log(),
        ]
    )
    has_prior = torch.cat([torch.zeros(rank), torch.ones(content_dim), torch.zeros(vector_dim)])
    tempered = torch.cat([torch.ones(rank), torch.zeros(content_dim + vector_dim)])
    return Layout(precision, has_prior, tempered, num_profile_features)


class Popularity(NamedTuple):
    """Standardised log(1 + number of people)."""

    items: Float[Tensor, "item"]
    """Of the items in training: mean 0, variance 1."""
    unseen: float
    """Of an item that nobody has chosen."""
    counts: Float[Tensor, "item"]
    """The number of people, weighted by how long ago they chose."""


def fit_popularity(chosen: EventLog, num_items: int, half_life: float = 0.0, now: float = 0.0) -> Popularity:
    """Count people per item; with a half-life, in days, a choice weighs less the longer ago it was.

    `now` is the moment that counts as today, in seconds since 1970-01-01. Decayed counts are scaled so that all
    choices together weigh as much as without.
    """
    if half_life > 0:
        weights = decay(now - chosen.times, half_life)
        weights *= len(weights) / weights.sum()
        counts = torch.from_numpy(np.bincount(chosen.items, weights, num_items)).float()
    else:
        counts = torch.from_numpy(np.bincount(chosen.items, minlength=num_items)).float()
    logs = counts.log1p()
    mean, spread = logs.mean(), logs.std(correction=0).clamp_min(1e-6)
    return Popularity((logs - mean) / spread, float(-mean / spread), counts)


def decay(seconds: Float64[np.ndarray, "event"], half_life: float) -> Float64[np.ndarray, "event"]:
    """What a choice so many seconds ago weighs; `half_life` in days, 0: all weigh 1."""
    return np.exp2(-seconds / (86_400 * half_life)) if half_life > 0 else np.ones_like(seconds)
