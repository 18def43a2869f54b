"""Ratings as a recommender answers them: a trained rater and what it reads of each item.

It is fitted on the ratings of a log and judged on people whom it has not seen. An item that came after the fit is read
as its nearest relatives by content are, from their content alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from palate.errors import ConfigError
from palate.ratings.biases import shrunk_biases, user_bias
from palate.ratings.content import ItemContent
from palate.ratings.knowledge import KnowledgeConfig, fit_knowledge
from palate.ratings.likeness import ContentKernels
from palate.ratings.rater import Rater, median_rating
from palate.ratings.rater_network import ItemTables, RatingNetwork
from palate.ratings.rater_training import RaterConfig, fit_rater
from palate.ratings.tasks import Ratings, Task, by_user
from palate.scorers.kin import Kin
from palate.significance import paired_difference

_MOST_LEVELS = 32
_DIM, _FEATURES = 64, 24
"""Principal axes of each kind of content in the kernels, and in the features."""
_ALIVE = 1e-9
_JUDGED = 15
"""Every so many people with enough ratings are kept from the fit to judge it by, up to `_MOST_JUDGED`."""
_MOST_JUDGED = 500


@dataclass(frozen=True)
class RatingsConfig:
    """How ratings are learned, where a log has events that rate (`rating_events`)."""

    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    """What ratings and content say of each item."""
    rater: RaterConfig = field(default_factory=lambda: RaterConfig(num_steps=600))
    """How a person's few ratings are read, to rate items that others have rated."""
    new_items: RaterConfig = field(default_factory=lambda: RaterConfig(num_steps=300, cold_share=1.0, cold_support=0.5))
    """The same, to rate items that nobody has rated."""
    most_events: int = 100
    """Ratings of a person that are read, the most recent ones."""

    def __post_init__(self) -> None:
        if self.most_events < 1:
            raise ConfigError(f"ratings.most_events is {self.most_events}; it must be at least 1")


class RatingQuality(NamedTuple):
    """Mean absolute error on people kept from the fit: their later half of ratings, given the earlier half."""

    num_people: int
    error: float
    """Of the predicted median."""
    floor: float
    """Of the item's mean plus the person's bias, rounded to a level."""
    difference: tuple[float, float, float]
    """Error less the floor's, with the ends of its 95 % interval over people."""

    def describe(self) -> str:
        """Say it in a line."""
        mean, low, high = self.difference
        return (
            f"MAE {self.error:.3f} on {self.num_people:,} people kept aside, item mean + user bias {self.floor:.3f} "
            f"({mean:+.3f}, {low:+.3f} to {high:+.3f})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON takes."""
        return self._asdict()


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
        return found

    def _nearest(self, ratings: Float[np.ndarray, "event"]) -> Float[np.ndarray, "event"]:
        return _snap(ratings, self.levels)

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
                others[name][place] = _units(mean(values))
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
        return (
            {name: getattr(tables, name)[:1].contiguous() for name in _PER_TABLE}
            | {"rated": tables.rated, "features": tables.features.contiguous()}
            | _named(tables.likeness.vectors)
            | networks
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
        return RatingModel(known, new, num_known, config.most_events)


_NETWORK, _NEW_ITEMS = "network", "new_items"
_PER_TABLE = ("warm", "cold", "warm_variance", "cold_variance")
_VECTORS = "vectors."


def _named(vectors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"{_VECTORS}{place}": values.contiguous() for place, values in enumerate(vectors)}


def why_not(ratings: Ratings, config: RatingsConfig) -> str | None:
    """Why these ratings cannot be learned from, in words; None: they can."""
    enough = config.rater.min_ratings
    people = sum(len(items) >= enough for items, _ in by_user(ratings).values()) if len(ratings.values) else 0
    least = 4 * config.knowledge.num_folds
    counts = np.bincount(ratings.items) if len(ratings.items) else np.zeros(1)
    if people < least:
        return f"{people:,} people have {enough} ratings, {least} are needed"
    if len(np.unique(ratings.values)) < 2:
        return f"all ratings are {ratings.values[0]:g}"
    if (counts >= config.knowledge.min_ratings).sum() < 2:
        return f"fewer than 2 items have {config.knowledge.min_ratings} ratings"
    return None


def fit_rating_model(
    ratings: Ratings,
    profiles: Float[np.ndarray, "user profile"],
    content: Float[Tensor, "item content"],
    num_text: int,
    config: RatingsConfig,
    *,
    num_known: int,
    seed: int,
    on_step: Callable[[int, int, float], None] | None = None,
) -> tuple[RatingModel, RatingQuality | None]:
    """Fit on the ratings of all people but some, and judge it on these.

    Args:
        ratings: each person's in the order in which they were given; `why_not` has nothing against them.
        profiles: a row a person.
        content: a row an item, those included that nobody has rated.
        num_text: the first so many columns of it are the text's; the others are attributes.
        config: settings.
        num_known: items that were in the log, the first ones.
        seed: of everything drawn.
        on_step: called as (step, of, loss).

    Returns:
        The model, and how good it is; None where nobody could be kept aside.

    Raises:
        DataError: ratings that nothing can be fitted on.
        NumericalError: a fit failed; names it and its step.
    """
    ratings = ratings._replace(values=_snap(ratings.values, _levels(ratings.values)))
    judged, kept = _keep_aside(ratings, config)
    described = describe_content(content, num_text)
    knowledge = fit_knowledge(kept, len(content), described.kernels, config.knowledge, seed=seed)
    steps = [each.num_members * each.num_steps for each in (config.rater, config.new_items)]
    known, new = (
        fit_rater(kept, profiles, knowledge, described, each, seed=seed, on_step=_counting(on_step, before, sum(steps)))
        for each, before in ((config.rater, 0), (config.new_items, steps[0]))
    )
    quality = _judge(known, kept, judged, profiles, len(content)) if judged else None
    return RatingModel(known, new, num_known, config.most_events), quality


def _counting(
    on_step: Callable[[int, int, float], None] | None, before: int, total: int
) -> Callable[[int, int, float], None] | None:
    """Count steps on from those of another training."""
    return None if on_step is None else lambda step, of, loss: on_step(before + step, total, loss)


def describe_content(content: Float[Tensor, "item content"], num_text: int) -> ItemContent:
    """Kernels and features from content as a recommender encodes it."""
    vectors, features = [], [torch.zeros(len(content), 0)]
    for part in (content[:, :num_text], content[:, num_text:]):
        centred = (part - part.mean(0)).double()
        if not centred.square().sum() > _ALIVE:
            continue
        values, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
        alive = int((values > _ALIVE * values[-1]).sum())
        axes, values = axes.flip(1)[:, :alive], values.flip(0)[:alive]
        vectors.append(_units((centred @ axes[:, :_DIM]).float()))
        features.append((centred @ axes[:, :_FEATURES] / values[:_FEATURES].sqrt()).float())
    kernels = ContentKernels(tuple(vectors) or (torch.zeros(len(content), 1),))
    names = tuple(f"content {place}" for place in range(kernels.num_kernels))
    return ItemContent(names, kernels, torch.cat(features, 1))


def _units(rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    return F.normalize(rows, dim=1, eps=_ALIVE)


def _levels(values: Float[np.ndarray, "event"]) -> Float[np.ndarray, "level"]:
    """The distinct ratings; where there are too many, even steps from the least to the greatest."""
    levels = np.unique(values)
    return levels if len(levels) <= _MOST_LEVELS else np.linspace(levels[0], levels[-1], _MOST_LEVELS)


def _snap(values: Float[np.ndarray, "event"], levels: Float[np.ndarray, "level"]) -> Float[np.ndarray, "event"]:
    return np.asarray(levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)], np.float64)


def _keep_aside(ratings: Ratings, config: RatingsConfig) -> tuple[list[Task], Ratings]:
    """People to judge by as tasks, the later half of their ratings asked about; and everyone else's ratings."""
    able = {user: own for user, own in by_user(ratings).items() if len(own[0]) >= config.rater.min_ratings}
    users = list(able)[::_JUDGED][:_MOST_JUDGED] if len(able) >= 2 * _JUDGED else []
    tasks = []
    for user in users:
        items, values = able[user]
        half = len(items) // 2
        first = max(half - config.most_events, 0)
        tasks.append(Task(user, items[first:half], values[first:half], items[half:], values[half:]))
    kept = ~np.isin(ratings.users, users)
    return tasks, Ratings(ratings.users[kept], ratings.items[kept], ratings.values[kept])


def _judge(
    rater: Rater, kept: Ratings, tasks: list[Task], profiles: Float[np.ndarray, "user profile"], num_items: int
) -> RatingQuality:
    levels = rater.levels
    told = [task._replace(support_values=_snap(task.support_values, levels)) for task in tasks]
    mean, bias = shrunk_biases(kept, num_items)
    errors, floors = [], []
    for task, found in zip(told, rater.predict(told, profiles), strict=True):
        simple = _snap(mean + bias[task.query_items] + user_bias(task, mean, bias), levels)
        errors.append(np.abs(median_rating(found, levels) - task.query_values).mean())
        floors.append(np.abs(simple - task.query_values).mean())
    error, floor = np.array(errors), np.array(floors)
    less = paired_difference(error, floor)
    return RatingQuality(len(tasks), float(error.mean()), float(floor.mean()), (less.mean, less.low, less.high))
