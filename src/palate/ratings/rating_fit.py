"""Fitting a model of ratings: networks and factors on most people, their weights and the verdict on the others."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from palate.ratings.bayesian_factors import SamplerConfig
from palate.ratings.biases import shrunk_biases, user_bias
from palate.ratings.knowledge import fit_knowledge
from palate.ratings.likeness import ContentKernels, ItemContent
from palate.ratings.pool import Pool, fit_pool
from palate.ratings.rater import Rater, level_indices, median_rating
from palate.ratings.rater_training import fit_rater
from palate.ratings.rating_model import Filtering, Pooled, RatingModel, RatingsConfig, features_of, snap, units
from palate.ratings.sampled_choices import fit_sampled_choices
from palate.ratings.sampled_ratings import fit_sampled_ratings
from palate.ratings.tasks import Ratings, Task, by_user
from palate.significance import paired_difference

OnStep = Callable[[int, int, float], None]

_MOST_LEVELS = 32
_DIM, _FEATURES = 64, 24
"""Principal axes of each kind of content in the kernels, and in the features."""
_ALIVE = 1e-9
_ASIDE, _LEAST_ASIDE, _MOST_ASIDE = 15, 64, 500
"""One in so many people with enough ratings is kept aside to weigh the parts and to judge them; at least 64 if these
are no more than a quarter, and at most 500."""
_SMALLEST = 30
"""Of fewer people nobody is kept aside."""
_NUM_TASKS, _MOST_QUERIES = 3, 24
"""Tasks of each person kept aside by which the parts are weighed, and items asked about in each."""


class RatingQuality(NamedTuple):
    """Mean absolute error on people kept from the fit: their later half of ratings, given the earlier half."""

    num_people: int
    error: float
    """Of the predicted median; the parts are weighed by the other half of these people."""
    baseline: float
    """Of the item's mean plus the person's bias, rounded to a level."""
    difference: tuple[float, float, float]
    """Error less the baseline's, with the ends of its 95 % interval over people."""

    def describe(self) -> str:
        """Say it in a line."""
        mean, low, high = self.difference
        return (
            f"MAE {self.error:.3f} on {self.num_people:,} people kept aside, item mean + user bias {self.baseline:.3f} "
            f"({mean:+.3f}, {low:+.3f} to {high:+.3f})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON takes."""
        return self._asdict()


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
    on_step: OnStep | None = None,
) -> tuple[RatingModel, RatingQuality | None]:
    """Fit on the ratings of all people but some, and weigh and judge the parts on these.

    The networks stay as they are then; the factors, which take a fraction of the time, are fitted again on everyone.

    Args:
        ratings: each person's in the order in which they were given; `why_not` has nothing against them.
        profiles: a row a person.
        content: a row an item, those included that nobody has rated.
        num_text: the first so many columns of it are the text's; the others are attributes.
        config: settings.
        num_known: items that were in the log, the first ones.
        seed: of everything drawn.
        on_step: called as (step, of, loss); of the factors the loss is the noise's standard deviation.

    Returns:
        The model, and how good it is; None where nobody could be kept aside.

    Raises:
        DataError: ratings that nothing can be fitted on.
        NumericalError: a fit failed; names it and its step.
    """
    ratings = ratings._replace(values=snap(ratings.values, _levels(ratings.values)))
    aside, kept = _keep_aside(ratings, config.rater.min_ratings)
    described = describe_content(content, num_text)
    knowledge = fit_knowledge(kept, len(content), described.kernels, config.knowledge, seed=seed)
    steps = [each.num_members * each.num_steps for each in (config.rater, config.new_items)]
    sweeps = 2 * (config.sampler.num_burn_in + config.sampler.num_samples)
    total = sum(steps) + 2 * sweeps
    known, new = (
        fit_rater(kept, profiles, knowledge, described, each, seed=seed, on_step=_counting(on_step, before, total))
        for each, before in ((config.rater, 0), (config.new_items, steps[0]))
    )
    aside = {user: (items, snap(values, known.levels)) for user, (items, values) in aside.items()}
    if not aside:
        return RatingModel(known, new, num_known, config.most_events, None), None

    def filtering(of: Ratings, before: int) -> Filtering:
        step = _counting(on_step, before, total)
        return _fit_filtering(of, profiles, described.features, known.levels, config.sampler, seed, step)

    answers = _Answers(known, new, filtering(kept, sum(steps)), profiles)
    rng = np.random.default_rng([seed, 1])
    tasks = [_draw(user, *own, config.most_events, rng) for user, own in aside.items() for _ in range(_NUM_TASKS)]
    pool = answers.fit_pool(tasks)
    if pool is None:
        return RatingModel(known, new, num_known, config.most_events, None), None
    halves = [_halved(user, *own, config.most_events) for user, own in aside.items()]
    quality = _judge(answers, tasks, halves, kept, len(content))
    pooled = Pooled(filtering(ratings, sum(steps) + sweeps), pool)
    return RatingModel(known, new, num_known, config.most_events, pooled), quality


def _counting(on_step: OnStep | None, before: int, total: int) -> OnStep | None:
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
        vectors.append(units((centred @ axes[:, :_DIM]).float()))
        features.append((centred @ axes[:, :_FEATURES] / values[:_FEATURES].sqrt()).float())
    kernels = ContentKernels(tuple(vectors) or (torch.zeros(len(content), 1),))
    return ItemContent(kernels, torch.cat(features, 1))


def _levels(values: Float[np.ndarray, "event"]) -> Float[np.ndarray, "level"]:
    """The distinct ratings; where there are too many, even steps from the least to the greatest."""
    levels = np.unique(values)
    return levels if len(levels) <= _MOST_LEVELS else np.linspace(levels[0], levels[-1], _MOST_LEVELS)


def _keep_aside(
    ratings: Ratings, min_ratings: int
) -> tuple[dict[int, tuple[Int64[np.ndarray, "event"], Float[np.ndarray, "event"]]], Ratings]:
    """Items and values of the people to weigh and to judge by; and everyone else's ratings."""
    able = {user: own for user, own in by_user(ratings).items() if len(own[0]) >= min_ratings}
    number = min(max(len(able) // _ASIDE, min(_LEAST_ASIDE, len(able) // 4)), _MOST_ASIDE)
    users = list(able)[:: len(able) // number][:number] if len(able) >= _SMALLEST else []
    return {user: able[user] for user in users}, ratings.of(np.setdiff1d(ratings.users, users))


def _fit_filtering(
    ratings: Ratings,
    profiles: Float[np.ndarray, "user profile"],
    content: Float[Tensor, "item feature"],
    levels: Float[np.ndarray, "level"],
    config: SamplerConfig,
    seed: int,
    on_step: OnStep | None,
) -> Filtering:
    ratings = ratings._replace(values=(ratings.values - levels[0]) / (levels[-1] - levels[0]))
    if len(levels) == 2:
        return fit_sampled_choices(ratings, len(content), config, seed=seed, on_step=on_step)
    features = content.double().numpy()
    return fit_sampled_ratings(ratings, profiles, features, config, seed=seed, on_step=on_step)


def _draw(
    user: int,
    items: Int64[np.ndarray, "event"],
    values: Float[np.ndarray, "event"],
    most: int,
    rng: np.random.Generator,
) -> Task:
    """A task with a random half of the ratings as support."""
    order, size = rng.permutation(len(items)), min(len(items) // 2, most)
    told, asked = order[:size], order[size : size + _MOST_QUERIES]
    return Task(user, items[told], values[told], items[asked], values[asked])


def _halved(user: int, items: Int64[np.ndarray, "event"], values: Float[np.ndarray, "event"], most: int) -> Task:
    half = len(items) // 2
    first = max(half - most, 0)
    return Task(user, items[first:half], values[first:half], items[half:], values[half:])


class _Answers(NamedTuple):
    """What the parts, fitted without the people of the tasks, say of these."""

    known: Rater
    new: Rater
    filtering: Filtering
    profiles: Float[np.ndarray, "user profile"]

    def networks(self, tasks: Sequence[Task]) -> list[Float[np.ndarray, "query level"]]:
        """Of the networks: those for known items, and those for items that nobody has rated."""
        both = (rater.predict(tasks, self.profiles) for rater in (self.known, self.new))
        rated = self.known.tables.rated.numpy() > 0
        return [
            np.where(rated[task.query_items, None], known, new) for task, known, new in zip(tasks, *both, strict=True)
        ]

    def fit_pool(self, tasks: Sequence[Task]) -> Pool | None:
        """Weigh the networks and the filtering on all items asked about that the latter covers; None: on none."""
        parts = []
        for task, said in zip(tasks, self.networks(tasks), strict=True):
            covered = self.filtering.covers(task.query_items)
            some = task._replace(query_items=task.query_items[covered])
            features = features_of(self.filtering, some, self.profiles[task.user], self.known.levels)
            parts.append((said[covered], features, task.query_values[covered]))
        probabilities, features, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        if not len(values):
            return None
        level = level_indices(values, self.known.levels, "people kept aside")
        return fit_pool(probabilities, features, level, np.full(len(level), 1 / _NUM_TASKS))

    def mixed(self, pool: Pool, tasks: Sequence[Task]) -> list[Float[np.ndarray, "query level"]]:
        """Of all parts together."""
        pooled = Pooled(self.filtering, pool)
        return [
            pooled.mix(said, task, self.profiles[task.user], self.known.levels)
            for task, said in zip(tasks, self.networks(tasks), strict=True)
        ]


def _judge(
    answers: _Answers, tasks: Sequence[Task], halves: Sequence[Task], kept: Ratings, num_items: int
) -> RatingQuality | None:
    """On each half of the people with the weights that the other half gives."""
    levels = answers.known.levels
    mean, bias = shrunk_biases(kept, num_items)
    errors, simple_errors = [], []
    for parity in (0, 1):
        judged = [task for place, task in enumerate(halves) if place % 2 == parity]
        users = {task.user for task in judged}
        pool = answers.fit_pool([task for task in tasks if task.user not in users])
        if pool is None or not judged:
            return None
        for task, found in zip(judged, answers.mixed(pool, judged), strict=True):
            simple = snap(mean + bias[task.query_items] + user_bias(task, mean, bias), levels)
            errors.append(np.abs(median_rating(found, levels) - task.query_values).mean())
            simple_errors.append(np.abs(simple - task.query_values).mean())
    error, baseline = np.array(errors), np.array(simple_errors)
    less = paired_difference(error, baseline)
    return RatingQuality(len(halves), float(error.mean()), float(baseline.mean()), (less.mean, less.low, less.high))
