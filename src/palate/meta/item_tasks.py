"""Items as few-shot tasks: what the first people who choose a new item say of it, on top of its content.

An item that came after training has the row that its content foretells. Each block of the row has a posterior in
closed form, a weighted sum of two guesses:

* evidence: what content foretells, and the fold-in of the item into the eigenvectors of the item-item cosine, from the
  other items of its choosers (Nyström's extension; a row that the item would have if the cosine had been fitted with
  it, damped on the weak axes);
* vector: what content foretells, and the mean vector of the choosers' other items.

The weights depend on how many have chosen the item. They are learned on items of the training data that play the new
one: content is asked to foretell a row as if the item had not been there (leave-one-out), the first n choosers are
read, and the row that training gave the item in the end is the answer.

Bias and popularity follow a count of choosers: that which training would have seen had the item been on the shelf all
the time. Its rate has a gamma posterior: the prior is that of the items which came during training, the data are the
choices after the first one and the days since. Without it a new item would have to wait for as many choosers as the
others gathered in years. The rate is calibrated, and still too much for a list: see `ItemTaskConfig.trust`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from jaxtyping import Float, Float64, Int, Int64
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import gammaln  # type: ignore[import-untyped]
from torch import Tensor

from palate.data.event_log import EventLog
from palate.errors import ConfigError
from palate.meta.evidence import EvidenceConfig, FeatureSpace, decay
from palate.meta.head import Items

_FEWEST = 10
"""Items that must play the new one at a size for their weights to be learned there."""
_PULL = 10.0
"""Items' worth of belief in content alone, behind the learned weights."""
_DAMPING = 1.0
"""Added to the square length of each evidence axis, in mean square lengths: weak axes of a fold-in are noise."""


@dataclass(frozen=True)
class ItemTaskConfig:
    """How a new item's row follows its first events."""

    sizes: tuple[int, ...] = (1, 3, 10, 30)
    """Numbers of choosers at which weights are learned; between them they are interpolated in log(1 + n)."""
    num_items: int = 1000
    """Items that play the new one at each size, at most."""
    trust: float = 0.08
    """Share of a new item's rate that counts for its bias and popularity. Lists that believe the whole rate fill with
    what is new, at the cost of all other items; 0: choosers are counted one by one."""

    def __post_init__(self) -> None:
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise ConfigError(f"item_tasks.sizes is {self.sizes}; expected rising sizes from 1 on")
        if self.num_items < 1:
            raise ConfigError(f"item_tasks.num_items is {self.num_items}; it must be at least 1")
        if not 0 <= self.trust <= 1:
            raise ConfigError(f"item_tasks.trust is {self.trust}; it must be from 0 to 1")


class ItemPosterior(NamedTuple):
    """What was learned of items as tasks; the first `len(counts)` items of the catalogue are those in training."""

    evidence: Float[Tensor, "size 2"]
    """Weights of content and of choosers, at 0 and at each of the sizes."""
    vectors: Float[Tensor, "size 2"]
    """The same, for the backbone's vectors as they differ from the mean vector."""
    bias: Float[Tensor, "2"]
    """Height and slope of the bias over log(1 + choosers)."""
    popularity: Float[Tensor, "2"]
    """Mean and spread of log(1 + choosers) in training."""
    counts: Float[Tensor, "item"]
    """Choosers in training, weighted as `fit_popularity` weights them."""
    rate: Float[Tensor, "2"]
    """The gamma prior of a new item's choices: how many, in how many days on the shelf."""
    shelf: Float64[Tensor, "3"]
    """When training's first choice was, its last (seconds since 1970-01-01), and what a choice of that day weighs."""


class Choosers(NamedTuple):
    """The people who chose some items, and what else they had chosen by then."""

    counts: Int64[np.ndarray, "item"]
    """How many chose each item."""
    joint: sp.csr_matrix
    """How many choosers of an item (row) had chosen another (column, an item in training)."""
    mean: sp.csr_matrix
    """Rows that average: over the choosers of an item, over the other items of each."""


def gather_choosers(
    items: Sequence[int], choosers: Sequence[Sequence[Int64[np.ndarray, "_"]]], num_trained: int
) -> Choosers:
    """Collect for each of `items` the other items of its choosers; `choosers[row]` has an array a person."""
    rows, columns, shares = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for row, (item, people) in enumerate(zip(items, choosers, strict=True)):
        others = [one[(one != item) & (one < num_trained)] for one in people]
        told = [one for one in others if len(one) > 0]
        for one in told:
            rows.append(np.full(len(one), row))
            columns.append(one)
            shares.append(np.full(len(one), 1 / (len(told) * len(one))))
    where = (np.concatenate(rows), np.concatenate(columns))
    shape = (len(items), num_trained)
    joint = sp.csr_matrix((np.ones(len(where[0])), where), shape=shape)
    mean = sp.csr_matrix((np.concatenate(shares), where), shape=shape)
    return Choosers(np.array([len(people) for people in choosers], np.int64), joint, mean)


def fit_item_posterior(
    chosen: EventLog,
    items: Items,
    foretold: Items,
    counts: Float[Tensor, "item"],
    config: ItemTaskConfig,
    evidence: EvidenceConfig,
    *,
    until: float,
    seed: int,
) -> ItemPosterior:
    """Learn from the items in training how far to trust content and choosers.

    Args:
        chosen: everyone in training, the time of each choice included.
        items: the rows that training gave.
        foretold: the rows that content foretells of the same items, without having seen them.
        counts: choosers of each, as popularity counts them.
        config: sizes and numbers.
        evidence: how the evidence was fitted.
        until: when training's last event was, in seconds since 1970-01-01.
        seed: of the draw of items.
    """
    rng = np.random.default_rng(seed)
    logs = counts.log1p()
    ends = chosen.offsets[1:-1]
    items_of, times_of = np.split(chosen.items.astype(np.int64), ends), np.split(chosen.times, ends)
    users, places, times, starts = _choices(chosen, len(counts))
    rank = rank_of(items, evidence)
    weights: dict[str, list[Float64[np.ndarray, "2"]]] = {"evidence": [_CONTENT], "vectors": [_CONTENT]}
    centre = items.vectors.mean(0)
    for size in config.sizes:
        # So many more are still to come that the row in the end says more than they did.
        able = np.flatnonzero(np.diff(starts) >= max(2 * size, size + 5))
        drawn = np.sort(rng.permutation(able)[: config.num_items])
        first = [slice(start, start + size) for start in starts[drawn].tolist()]
        told = gather_choosers(
            drawn.tolist(),
            [
                [
                    known_by(items_of[user], times_of[user], place)
                    for user, place in zip(users[some].tolist(), places[some].tolist(), strict=True)
                ]
                for some in first
            ],
            len(counts),
        )
        folded, near = _guesses(told, items, counts, evidence)
        some = torch.from_numpy(drawn)
        blocks: dict[str, tuple[Tensor, Tensor, Float64[np.ndarray, "item part"]]] = {
            "evidence": (items.features[some, :rank], foretold.features[some, :rank], folded),
            "vectors": (items.vectors[some] - centre, foretold.vectors[some] - centre, near),
        }
        for name, (target, prior, guess) in blocks.items():
            enough = len(drawn) >= _FEWEST
            weights[name].append(_weigh(_array(target), _array(prior), guess) if enough else weights[name][-1])
    height, slope = _line(logs, items.bias)
    begin = float(times.min())
    per_choice = float(counts.sum()) / float(decay(until - times, evidence.half_life).sum())
    rate = _fit_rate(times, starts, begin, until, evidence.half_life)
    return ItemPosterior(
        torch.from_numpy(np.stack(weights["evidence"])).float(),
        torch.from_numpy(np.stack(weights["vectors"])).float(),
        torch.tensor([height, slope]),
        torch.stack([logs.mean(), logs.std(correction=0).clamp_min(1e-6)]),
        counts.float(),
        torch.tensor(rate),
        torch.tensor([begin, until, per_choice], dtype=torch.float64),
    )


def warm_rows(
    posterior: ItemPosterior,
    config: ItemTaskConfig,
    evidence: EvidenceConfig,
    space: FeatureSpace,
    items: Items,
    prior: Items,
    told: Choosers,
    counts: Float[Tensor, "new"],
) -> Items:
    """Rows of new items after their first choosers; one without choosers keeps what content foretells.

    Args:
        posterior: what was learned.
        config: the sizes it was learned at.
        evidence: how the evidence was fitted.
        space: for the part of the features that follows from the vector.
        items: the rows of the items in training.
        prior: the rows that content foretells of the new ones.
        told: the choosers of the new ones.
        counts: what `fresh_counts` makes of the new ones.
    """
    rank, dim = rank_of(items, evidence), items.vectors.shape[1]
    folded, near = _guesses(told, items, posterior.counts, evidence)
    sizes, number = np.log1p(np.array([0, *config.sizes])), np.log1p(told.counts)

    def weigh(weights: Tensor, content: Tensor, choosers: Float64[np.ndarray, "item part"]) -> Tensor:
        own, others = (torch.from_numpy(np.interp(number, sizes, column)[:, None]) for column in weights.T.numpy())
        return (own * content + others * torch.from_numpy(choosers)).float()

    centre = items.vectors.mean(0)
    vectors = centre + weigh(posterior.vectors, prior.vectors - centre, near)
    features = torch.cat(
        [
            weigh(posterior.evidence, prior.features[:, :rank], folded),
            prior.features[:, rank:-dim],
            space.vector_rotation(vectors),
        ],
        1,
    )
    height, slope = posterior.bias
    bias = torch.maximum(prior.bias, height + slope * counts.log1p())
    warm = torch.from_numpy(told.counts > 0)[:, None]
    return Items(
        torch.where(warm, features, prior.features),
        torch.where(warm, vectors, prior.vectors),
        torch.where(warm[:, 0], bias, prior.bias),
        torch.where(warm[:, 0], popularity_of(posterior, counts), prior.popularity),
    )


def popularity_of(posterior: ItemPosterior, counts: Float[Tensor, "item"]) -> Float[Tensor, "item"]:
    """Standardise counts as training did."""
    mean, spread = posterior.popularity
    standard: Tensor = (counts.log1p() - mean) / spread
    return standard


def exposure(seconds: Any, half_life: float) -> Any:
    """Days on the shelf, each weighted as a choice of it is."""
    days = np.maximum(seconds, 0) / 86_400
    return days if half_life == 0 else half_life / np.log(2) * (1 - np.exp2(-days / half_life))


def _fit_rate(
    times: Float64[np.ndarray, "choice"],
    starts: Int64[np.ndarray, "item_and_one"],
    begin: float,
    until: float,
    half_life: float,
) -> tuple[float, float]:
    """Gamma prior of the rate at which items that came during training were chosen after their first choice.

    Counts over times on the shelf are negative binomial then; the most likely prior is searched for.
    """
    some = np.flatnonzero(np.diff(starts) > 0)
    first = times[starts[some]]
    weights = decay(until - times, half_life)
    later = np.add.reduceat(weights, starts[some]) - weights[starts[some]]
    # In the first quarter nobody can tell what is new; who came on the last day has shown nothing yet.
    fresh = (first > begin + 0.25 * (until - begin)) & (first < until - 86_400)
    chosen = fresh if fresh.sum() >= _FEWEST else np.ones_like(fresh)
    count, days = later[chosen], np.maximum(exposure(until - first[chosen], half_life), 1e-3)

    def loss(logs: Float64[np.ndarray, "2"]) -> float:
        choices, span = np.exp(logs)
        value = gammaln(choices + count) - gammaln(choices) - choices * np.log1p(days / span)
        return -float((value - count * np.log1p(span / days)).sum())

    mean = np.log(max(count.sum(), 0.5) / days.sum())
    begin_at = np.array([0.0, np.clip(-mean, -7, 14)])
    found = minimize(loss, begin_at, method="Nelder-Mead", bounds=[(-7, 7), (-7, 14)])
    choices, span = np.exp(found.x)
    return float(choices), float(span)


def rank_of(items: Items, evidence: EvidenceConfig) -> int:
    """How many features of the items in training are evidence."""
    return min(evidence.rank, len(items.features))


def known_by(
    items: Int[np.ndarray, "choice"], seconds: Float64[np.ndarray, "choice"], place: int
) -> Int[np.ndarray, "other"]:
    """What a person had chosen when they made this choice, it and others of the same moment included."""
    return items[: int(np.searchsorted(seconds, seconds[place], "right"))]


_CONTENT = np.array([1.0, 0.0])
"""The weights without choosers."""


def _choices(
    chosen: EventLog, num_items: int
) -> tuple[
    Int64[np.ndarray, "choice"],
    Int64[np.ndarray, "choice"],
    Float64[np.ndarray, "choice"],
    Int64[np.ndarray, "item_and_one"],
]:
    """All choices by item and time: whose, which of theirs and when, and where each item begins."""
    lengths = chosen.lengths()
    users = np.repeat(np.arange(chosen.num_users), lengths)
    places = np.arange(len(chosen)) - np.repeat(chosen.offsets[:-1], lengths)
    order = np.lexsort((users, chosen.times, chosen.items))
    starts = np.concatenate([[0], np.cumsum(np.bincount(chosen.items, minlength=num_items))])
    return users[order], places[order], chosen.times[order], starts


def _guesses(
    told: Choosers, items: Items, counts: Float[Tensor, "item"], evidence: EvidenceConfig
) -> tuple[Float64[np.ndarray, "new rank"], Float64[np.ndarray, "new dim"]]:
    """What choosers say of evidence and of the vector; zero where nobody says anything."""
    axes = _array(items.features[:, : rank_of(items, evidence)])
    length = np.square(axes).sum(0)
    both = told.joint.tocoo()
    size = (
        np.maximum(told.counts, 1)[both.row] * np.maximum(counts.double().numpy(), 1)[both.col]
    ) ** evidence.exponent
    cosine = sp.csr_matrix((both.data / (size + evidence.shrink), (both.row, both.col)), shape=both.shape)
    vectors = _array(items.vectors)
    folded = (cosine @ axes) / (length + _DAMPING * length.mean())
    return np.asarray(folded), np.asarray(told.mean @ (vectors - vectors.mean(0)))


def _weigh(
    target: Float64[np.ndarray, "item part"],
    content: Float64[np.ndarray, "item part"],
    choosers: Float64[np.ndarray, "item part"],
) -> Float64[np.ndarray, "2"]:
    """The two weights with the least squared error, drawn a little to content alone."""
    sources = np.stack([content.ravel(), choosers.ravel()], 1)
    gram = sources.T @ sources
    pull = _PULL / len(target) * np.diag(np.diag(gram)) + 1e-12 * np.eye(2)
    return np.asarray(np.linalg.solve(gram + pull, sources.T @ target.ravel() + pull @ _CONTENT))


def _line(x: Float[Tensor, "item"], y: Float[Tensor, "item"]) -> tuple[float, float]:
    """Height and slope of the line of least squares; level where all x are the same."""
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum().clamp_min(1e-9))
    return float(y.mean() - slope * x.mean()), slope


def _array(values: Tensor) -> Float64[np.ndarray, "row column"]:
    return values.double().numpy()
