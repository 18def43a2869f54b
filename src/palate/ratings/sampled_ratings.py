"""What a person's ratings say of other items by sampled factors: features for the pool of a rating model.

Bayesian factors with the profiles, the content and the implicit profiles as side information. One chain of the sampler
predicts the rating, the other its mid-rank among the person's own ratings, which takes out how each person uses the
scale (a ridit: Bross, How to Use Ridit Analysis, 1958, doi 10.2307/2527727). The sampler is in `bayesian_factors`, the
implicit profiles in `implicit_profile`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from palate.ratings.bayesian_factors import SampledFactors, SamplerConfig, places_among, predict, sample_factors
from palate.ratings.implicit_profile import ImplicitProfile, fit_profile, profile_of
from palate.ratings.tasks import Ratings

_PROFILE_DIM, _ITEM_PROFILE_DIM = 24, 24
"""Axes of the sets of rated items, as features of people; of the raters, and again of the lift, as those of items."""
_PSEUDO = 5.0
"""Ratings of the average person that a person's own are added to, before they are ranked."""


class Levels(NamedTuple):
    """The ratings that there are, and how often the training people gave each."""

    values: Float[np.ndarray, "level"]
    pseudo_counts: Float[np.ndarray, "level"]


class SampledRatings(NamedTuple):
    """A fitted model; it covers the most rated items of the training."""

    levels: Levels
    column: Int64[np.ndarray, "item"]
    """Place of each item of the training among those covered; −1: not covered."""
    user_mean: Float[np.ndarray, "feature"]
    profile: ImplicitProfile
    ratings: SampledFactors
    ranks: SampledFactors
    """Of the mid-ranks."""
    scales: Float[np.ndarray, "2"]
    """Standard deviations of ratings and mid-ranks."""

    def covers(self, items: Int64[np.ndarray, "query"]) -> Bool[np.ndarray, "query"]:
        """Which items have features."""
        return places_among(self.column, items) >= 0

    def features(
        self,
        items: Int64[np.ndarray, "event"],
        ratings: Float[np.ndarray, "event"],
        asked: Int64[np.ndarray, "query"],
        profile: Float[np.ndarray, "profile"],
    ) -> Float[np.ndarray, "query 2"]:
        """Expected rating and mid-rank of the items asked about, all covered, in standard deviations."""
        columns = places_among(self.column, items)
        columns, ratings = columns[columns >= 0], ratings[columns >= 0]
        own, place, count = np.unique(columns, return_inverse=True, return_counts=True)
        seen = np.zeros((1, len(self.profile.content)))
        seen[0, own] = 1.0
        person = np.concatenate([profile - self.user_mean, profile_of(self.profile, seen)[0]])
        ranks = mid_ranks(ratings, np.zeros(len(ratings), np.int64), 1, self.levels)
        query = self.column[asked]
        found = []
        for factors, values, scale in ((self.ratings, ratings, self.scales[0]), (self.ranks, ranks, self.scales[1])):
            mean = np.bincount(place, values, minlength=len(own)) / count  # what is rated twice counts once
            scores = predict(factors, factors.items[:, own], mean, np.ones(len(own)), person, factors.items[:, query])
            found.append((scores - factors.mean) / scale)
        return np.stack(found, 1)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything that was fitted, by name."""
        arrays = {"column": self.column, "user_mean": self.user_mean, "scales": self.scales}
        arrays |= {"levels.values": self.levels.values, "levels.pseudo_counts": self.levels.pseudo_counts}
        for part, of in (("profile", self.profile), ("ratings", self.ratings), ("ranks", self.ranks)):
            arrays |= {f"{part}.{name}": value for name, value in of.to_arrays().items()}
        return {name: torch.from_numpy(np.array(value, order="C")) for name, value in arrays.items()}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "SampledRatings":
        """The model that `to_tensors` took apart."""
        arrays = {name: value.numpy() for name, value in tensors.items()}

        def part(name: str) -> dict[str, np.ndarray]:
            return {key.removeprefix(f"{name}."): v for key, v in arrays.items() if key.startswith(f"{name}.")}

        return SampledRatings(
            Levels(**part("levels")),
            arrays["column"],
            arrays["user_mean"],
            ImplicitProfile.from_arrays(part("profile")),
            SampledFactors.from_arrays(part("ratings")),
            SampledFactors.from_arrays(part("ranks")),
            arrays["scales"],
        )


_CHAINS = ("ratings", "ranks")


def fit_sampled_ratings(
    ratings: Ratings,
    profiles: Float[np.ndarray, "user profile"],
    content: Float[np.ndarray, "item feature"],
    config: SamplerConfig,
    *,
    seed: int,
    on_step: Callable[[int, int, float], None] | None = None,
) -> SampledRatings:
    """Fit on the ratings of some people.

    Args:
        ratings: of people and items by row number, on a scale from 0 to 1.
        profiles: of people by row.
        content: features of items by row.
        config: settings.
        seed: of the chains and of the people who are read.
        on_step: called after each sweep as (sweep, of both chains together, standard deviation of the noise).

    Raises:
        NumericalError: a chain diverged; names it and the sweep.
    """
    column, covered, people = readable(ratings, len(content), config, seed)
    kept = np.isin(ratings.users, people) & (column[ratings.items] >= 0)
    people, places = np.unique(ratings.users[kept], return_inverse=True)
    columns, values = column[ratings.items[kept]], ratings.values[kept]
    shape = (len(people), len(covered))
    _, seen = mean_matrix(places, columns, values, shape)
    known, counts = np.unique(ratings.values, return_counts=True)
    levels = Levels(known, _PSEUDO * counts / counts.sum())
    side = content[covered]
    profile = fit_profile(seen, side, _PROFILE_DIM, _ITEM_PROFILE_DIM)
    user_mean = profiles[people].mean(0)
    user_side = np.c_[profiles[people] - user_mean, profile_of(profile, seen)]
    log_count = np.log1p(seen.sum(0))
    item_side = np.c_[side - side.mean(0), log_count - log_count.mean(), profile.item_loadings]
    chains, scales = list[SampledFactors](), list[float]()
    for name, target in zip(_CHAINS, (values, mid_ranks(values, places, len(people), levels)), strict=True):
        before = len(chains) * (config.num_burn_in + config.num_samples)

        def report(sweep: int, of: int, noise: float, before: int = before) -> None:
            if on_step is not None:
                on_step(before + sweep, len(_CHAINS) * of, noise)

        factors = sample_factors(
            mean_matrix(places, columns, target, shape)[0],
            seen,
            user_side,
            item_side,
            config,
            rng=np.random.default_rng([seed, len(chains)]),
            name=f"factors of {name}",
            on_step=report,
        )
        chains.append(factors)
        scales.append(float(target.std()))
    return SampledRatings(levels, column, user_mean, profile, chains[0], chains[1], np.array(scales))


def readable(
    ratings: Ratings, num_items: int, config: SamplerConfig, seed: int
) -> tuple[Int64[np.ndarray, "item"], Int64[np.ndarray, "covered"], Int64[np.ndarray, "user"]]:
    """The place of each item among the most rated ones or −1, these items, and the people who are read."""
    counts = np.bincount(ratings.items, minlength=num_items)
    covered = np.sort(np.argsort(-counts, kind="stable")[: min(config.most_items, int((counts > 0).sum()))])
    column = np.full(num_items, -1)
    column[covered] = np.arange(len(covered))
    people = np.unique(ratings.users[column[ratings.items] >= 0])
    if len(people) > config.most_people:
        people = np.sort(np.random.default_rng(seed).permutation(people)[: config.most_people])
    return column, covered, people


def mid_ranks(
    values: Float[np.ndarray, "event"], people: Int[np.ndarray, "event"], num_people: int, levels: Levels
) -> Float[np.ndarray, "event"]:
    """Share of the person's ratings below each value, plus half of those equal, the average person's counted in."""
    num_levels = len(levels.values)
    code = np.searchsorted(levels.values, values - 1e-9).clip(max=num_levels - 1)
    own = np.bincount(people * num_levels + code, minlength=num_people * num_levels).reshape(num_people, num_levels)
    count = own + levels.pseudo_counts
    share = count / count.sum(1, keepdims=True)
    middle: Float[np.ndarray, "event"] = (share.cumsum(1) - share / 2)[people, code]
    return middle


def mean_matrix(
    rows: Int[np.ndarray, "event"],
    items: Int[np.ndarray, "event"],
    values: Float[np.ndarray, "event"],
    shape: tuple[int, int],
) -> tuple[Float[np.ndarray, "user item"], Float[np.ndarray, "user item"]]:
    """Mean value of each pair, 0 where there is none, and 1 where there is one: what is rated twice counts once."""
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (rows, items), values)
    np.add.at(count, (rows, items), 1.0)
    return total / np.maximum(count, 1), (count > 0).astype(np.float64)
