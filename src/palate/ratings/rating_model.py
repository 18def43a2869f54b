"""Ratings as a recommender answers them: few-shot networks on item tables, and collaborative filtering beside them.

It is fitted on the ratings of a log and judged on people whom it has not seen. The networks (`rater`) answer for every
item; an item that came after the fit is read as its nearest relatives by content are, from their content alone. For
items that the log has enough of, sampled factors (`sampled_ratings`; `sampled_choices` where there are two levels) add
what they know; how much of either counts is learned on people kept aside (`pool`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from palate.errors import ConfigError
from palate.ratings.bayesian_factors import SamplerConfig
from palate.ratings.knowledge import KnowledgeConfig
from palate.ratings.likeness import ContentKernels
from palate.ratings.pool import Pool
from palate.ratings.rater import Rater
from palate.ratings.rater_network import ItemTables, RatingNetwork
from palate.ratings.rater_training import RaterConfig
from palate.ratings.sampled_choices import SampledChoices
from palate.ratings.sampled_ratings import SampledRatings
from palate.ratings.tasks import Task
from palate.scorers.kin import Kin

_ALIVE = 1e-9


@dataclass(frozen=True)
class RatingsConfig:
    """How ratings are learned, where a log has events that rate (`rating_events`)."""

    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    """What ratings and content say of each item."""
    rater: RaterConfig = field(default_factory=lambda: RaterConfig(num_steps=600))
    """How a person's few ratings are read, to rate items that others have rated."""
    new_items: RaterConfig = field(default_factory=lambda: RaterConfig(num_steps=300, cold_share=1.0, cold_support=0.5))
    """The same, to rate items that nobody has rated."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Of the factors beside the networks."""
    most_events: int = 100
    """Ratings of a person that are read, the most recent ones."""

    def __post_init__(self) -> None:
        if self.most_events < 1:
            raise ConfigError(f"ratings.most_events is {self.most_events}; it must be at least 1")


Filtering = SampledRatings | SampledChoices
"""Where there are more than two levels, and where there are two."""


class Pooled(NamedTuple):
    """Collaborative filtering beside the networks."""

    filtering: Filtering
    pool: Pool
    """How the networks and the features of `filtering` are weighed."""

    def mix(
        self,
        probabilities: Float[np.ndarray, "query level"],
        task: Task,
        profile: Float[np.ndarray, "profile"],
        levels: Float[np.ndarray, "level"],
    ) -> Float[np.ndarray, "query level"]:
        """What the networks say of a task's query, with what the filtering knows of the items that it covers."""
        covered = self.filtering.covers(task.query_items)
        mixed = probabilities.astype(np.float64)
        if covered.any():
            features = features_of(
                self.filtering, task._replace(query_items=task.query_items[covered]), profile, levels
            )
            mixed[covered] = self.pool.mix(mixed[covered], features)
        return mixed


def features_of(
    filtering: Filtering, task: Task, profile: Float[np.ndarray, "profile"], levels: Float[np.ndarray, "level"]
) -> Float[np.ndarray, "query feature"]:
    """Features of a task's query items, all covered."""
    scaled = (task.support_values - levels[0]) / (levels[-1] - levels[0])
    return filtering.features(task.support_items, scaled, task.query_items, profile)


@dataclass(frozen=True, eq=False)
class RatingModel:
    """A fitted model of ratings. Items have the numbers of the recommender's vocabulary."""

    rater: Rater
    """Of items that others have rated."""
    new_items: Rater
    """Of items that nobody has rated; it reads the same tables."""
    num_known: int
    """Items that were in the log; those from here on have relatives."""
    most_events: int
    pooled: Pooled | None
    """None: too few people to keep some aside, on whom the parts could be weighed."""

    @property
    def levels(self) -> Float[np.ndarray, "level"]:
        """The ratings that there are, in rising order."""
        return self.rater.levels

    def predict(
        self,
        items: Int64[np.ndarray, "event"],
        ratings: Float[np.ndarray, "event"],
        asked: Int64[np.ndarray, "query"],
        profile: Float[Tensor, "profile"],
        kin: Kin,
    ) -> Float[np.ndarray, "query level"]:
        """Probabilities of the levels for the items asked about, given what the person rated, oldest first.

        A rating between two levels counts as the nearer one.
        """
        items, ratings = items[-self.most_events :], ratings[-self.most_events :]
        numbers, places = np.unique(np.concatenate([items, asked]), return_inverse=True)
        task = Task(0, places[: len(items)], self._nearest(ratings), places[len(items) :], np.zeros(len(asked)))
        tables, profiles = self._read(numbers, kin), profile.numpy()[None].astype(np.float64)
        unrated = tables.rated.numpy()[task.query_items] == 0
        found = np.zeros((len(asked), len(self.levels)), np.float32)
        for rater, theirs in ((self.rater, ~unrated), (self.new_items, unrated)):
            if theirs.any():
                some = task._replace(query_items=task.query_items[theirs], query_values=np.zeros(theirs.sum()))
                found[theirs] = replace(rater, tables=tables).predict([some], profiles)[0]
        if self.pooled is None:
            return found
        return self.pooled.mix(found, task._replace(support_items=items, query_items=asked), profiles[0], self.levels)

    def _nearest(self, ratings: Float[np.ndarray, "event"]) -> Float[np.ndarray, "event"]:
        return snap(ratings, self.levels)

    def _read(self, numbers: Int64[np.ndarray, "item"], kin: Kin) -> ItemTables:
        """The tables of some items; items that came after the fit are read as their relatives are."""
        tables = self.rater.tables
        assert isinstance(tables.likeness, ContentKernels)
        fitted = tables.warm.shape[1]
        rows = torch.from_numpy(np.where(numbers < fitted, numbers, 0))
        later = numbers >= fitted
        columns = {name: getattr(tables, name)[0][rows] for name in _PER_TABLE}
        others = {"features": tables.features[rows]} | _named(tuple(each[rows] for each in tables.likeness.vectors))
        rated = tables.rated[rows]
        if later.any():
            relatives = torch.from_numpy(kin.items[numbers[later] - self.num_known])
            weights = torch.from_numpy(kin.weights[numbers[later] - self.num_known])
            weights = weights / weights.sum(1, keepdim=True).clamp_min(_ALIVE)
            place = torch.from_numpy(later)

            def mean(values: Tensor) -> Tensor:
                return (values[relatives] * weights[..., None]).sum(1)

            for name in ("warm", "cold"):
                columns[name][place] = mean(tables.cold[0])
            for name in ("warm_variance", "cold_variance"):
                columns[name][place] = tables.cold_variance[0][relatives].mean(1)
            others["features"][place] = mean(tables.features)
            for name, values in _named(tables.likeness.vectors).items():
                others[name][place] = units(mean(values))
            rated[place] = 0
        vectors = tuple(values for name, values in others.items() if name != "features")
        return ItemTables(
            **{name: values[None] for name, values in columns.items()},
            rated=rated,
            features=others["features"],
            likeness=ContentKernels(vectors),
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything that was fitted, by name."""
        tables = self.rater.tables
        assert isinstance(tables.likeness, ContentKernels)
        networks = {
            f"{kind}.{member}.{name}": value
            for kind, rater in ((_NETWORK, self.rater), (_NEW_ITEMS, self.new_items))
            for member, network in enumerate(rater.networks)
            for name, value in network.state_dict().items()
        }
        pooled = {}
        if self.pooled is not None:
            filtering, pool = self.pooled
            kind = _CHOICES if len(self.levels) == 2 else _RATINGS
            pooled = {f"{kind}{name}": value for name, value in filtering.to_tensors().items()}
            pooled |= {f"{_POOL}{name}": torch.from_numpy(np.asarray(value)) for name, value in pool._asdict().items()}
        return (
            {name: getattr(tables, name)[:1].contiguous() for name in _PER_TABLE}
            | {"rated": tables.rated, "features": tables.features.contiguous()}
            | _named(tables.likeness.vectors)
            | networks
            | pooled
            | {"levels": torch.from_numpy(self.levels)}
            | {"sizes": torch.tensor([self.num_known, self.rater.num_profile])}
        )

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], config: RatingsConfig) -> "RatingModel":
        """The model that `to_tensors` took apart."""
        vectors = [tensors[name] for name in sorted(tensors) if name.startswith(_VECTORS)]
        tables = ItemTables(
            **{name: tensors[name] for name in _PER_TABLE},
            rated=tensors["rated"],
            features=tensors["features"],
            likeness=ContentKernels(tuple(vectors)),
        )
        levels, (num_known, num_profile) = tensors["levels"].double().numpy(), tensors["sizes"].tolist()
        raters = []
        for kind, settings in ((_NETWORK, config.rater), (_NEW_ITEMS, config.new_items)):
            networks = []
            for member in range(settings.num_members):
                prefix = f"{kind}.{member}."
                own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
                start = {"mean": 0.0, "user_bias_variance": 1.0, "noise": 1.0}
                with torch.random.fork_rng(devices=[]):
                    network = RatingNetwork(tables, own["places"], num_profile, settings.network, **start)
                network.load_state_dict(own)
                networks.append(network.eval().requires_grad_(False))
            raters.append(Rater(tuple(networks), tables, levels, num_profile))
        known, new = raters
        return RatingModel(known, new, num_known, config.most_events, _pooled(tensors))


_NETWORK, _NEW_ITEMS = "network", "new_items"
_PER_TABLE = ("warm", "cold", "warm_variance", "cold_variance")
_VECTORS, _CHOICES, _RATINGS, _POOL = "vectors.", "choices.", "ratings.", "pool."


def _pooled(tensors: Mapping[str, Tensor]) -> Pooled | None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    pool, choices = part(_POOL), part(_CHOICES)
    if not pool:
        return None
    filtering = SampledChoices.from_tensors(choices) if choices else SampledRatings.from_tensors(part(_RATINGS))
    return Pooled(filtering, Pool(float(pool["trust"]), pool["weights"].numpy(), pool["bias"].numpy()))


def _named(vectors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"{_VECTORS}{place}": values.contiguous() for place, values in enumerate(vectors)}


def units(rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Rows of length 1, or of 0."""
    return F.normalize(rows, dim=1, eps=_ALIVE)


def snap(values: Float[np.ndarray, "event"], levels: Float[np.ndarray, "level"]) -> Float[np.ndarray, "event"]:
    """The nearest level of each value."""
    return np.asarray(levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)], np.float64)
