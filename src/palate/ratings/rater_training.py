"""Training a few-shot rater: people of the training ratings become tasks, redrawn at every step.

A step draws a support size, then for each of a batch of people a random support of about that size and queries among
the rest. Loss a query: log loss plus the ranked probability score (Gneiting & Raftery, Strictly proper scoring rules,
2007, doi 10.1198/016214506000001437); a task: plus the cross-entropy of the ranking by expected gain (ListNet, Cao et
al., 2007, doi 10.1145/1273496.1273513). The parameters are an average over the steps (Polyak & Juditsky, 1992).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from palate.errors import ConfigError, DataError
from palate.ratings.factors import check_ratings
from palate.ratings.knowledge import Knowledge
from palate.ratings.likeness import ItemContent
from palate.ratings.rater import Gain, Rater, collate, level_indices, pad
from palate.ratings.rater_network import Batch, ItemTables, NetworkConfig, RatingNetwork
from palate.ratings.tasks import Ratings, by_user
from palate.steps import take_step

_MAX_LEVELS = 32
_SHARPNESS = 8.0  # of the ranking's softmax, over gains as a share of the greatest
_CLIP = 1.0
_LAST_RATE = 0.02  # the learning rate falls along a cosine to this share of its peak


@dataclass(frozen=True)
class RaterConfig:
    """How a rater is made and trained. The defaults are for new people and known items."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Size of each network."""
    num_members: int = 1
    """Networks of different seeds whose probabilities are averaged."""
    num_steps: int = 1000
    """Steps of AdamW; half of them for new items, where content is all and is overfitted sooner."""
    batch_size: int = 64
    """Tasks a step."""
    learning_rate: float = 0.002
    """At its peak, of all but the solve."""
    solve_learning_rate: float = 0.02
    """At its peak, of the logarithms of the solve's variances."""
    weight_decay: float = 0.01
    """Decoupled, of all but the solve."""
    average_decay: float = 0.995
    """Share of the average of parameters that a step keeps."""
    cold_share: float = 0.0
    """Share of the tasks whose query is read from content alone: 1 to rate new items, 0 for known ones."""
    cold_support: float = 1.0
    """Share of these in which the support is read from content alone too: 1 where everything is new."""
    min_ratings: int = 8
    """Ratings that a person needs to be a task."""
    support_sizes: tuple[int, int] = (3, 90)
    """Least and most support items; between them the logarithm is uniform."""
    num_queries: int = 24
    """Query items of a task, at most."""
    crps: float = 1.0
    """Weight of the ranked probability score beside the log loss: for absolute error."""
    rank_loss: float = 0.3
    """Weight of the ranking loss."""
    gain: Gain = "exponential"
    """What the ranking loss takes a rating to be worth, on a scale from 1 to 5: 2^rating − 1, or the rating."""

    def __post_init__(self) -> None:
        for name in ("num_members", "num_steps", "batch_size", "min_ratings", "num_queries"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rater.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("learning_rate", "solve_learning_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"rater.{name} is {getattr(self, name)}; expected above 0")
        for name in ("weight_decay", "crps", "rank_loss"):
            if getattr(self, name) < 0:
                raise ConfigError(f"rater.{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("cold_share", "cold_support"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"rater.{name} is {getattr(self, name)}; expected 0 to 1")
        if not 0 <= self.average_decay < 1:
            raise ConfigError(f"rater.average_decay is {self.average_decay}; expected 0 or more and below 1")
        if not 1 <= self.support_sizes[0] <= self.support_sizes[1]:
            raise ConfigError(f"rater.support_sizes is {self.support_sizes}; expected two sizes from 1, least first")


class Person(NamedTuple):
    """A training person: what a task is drawn from."""

    user: int
    table: int
    items: Int64[np.ndarray, "event"]
    levels: Int64[np.ndarray, "event"]


class Drawn(NamedTuple):
    """One step's tasks with the answers."""

    batch: Batch
    level: Int64[Tensor, "task query"]
    use_ratings: Float[Tensor, "task 2"]
    """Of the support and of the query: 0 where items are read from content alone."""


def fit_rater(
    ratings: Ratings,
    profiles: Float[np.ndarray, "user profile"],
    knowledge: Knowledge,
    content: ItemContent,
    config: RaterConfig | None = None,
    *,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Rater:
    """Train on the people of `ratings`, which are those that `knowledge` was fitted on.

    Args:
        ratings: of the training people.
        profiles: a row a user, training people and new ones; no column where nothing is known of people.
        knowledge: the item tables; each person is shown the one that has not seen that person.
        content: features for the correction, and the kernels of a person's taste.
        config: settings; the defaults if left out.
        seed: of everything drawn.
        on_step: called as (step, of, loss) after each step; members count on.

    Raises:
        DataError: ratings, profiles or content that do not fit each other.
        NumericalError: the loss is not finite, or the solve failed; names the step.
    """
    config = config or RaterConfig()
    check_ratings(ratings, len(knowledge.rated))
    levels = np.unique(ratings.values)
    if len(levels) > _MAX_LEVELS:
        raise DataError(f"the ratings have {len(levels)} levels; expected at most {_MAX_LEVELS}: round them")
    if ratings.users.max() >= len(profiles) or not np.isfinite(profiles).all():
        raise DataError(
            f"profiles have {len(profiles)} rows for users up to {ratings.users.max()}; expected a finite row each"
        )
    if content.kernels.num_items != len(knowledge.rated):
        raise DataError(
            f"content has {content.kernels.num_items} items, knowledge {len(knowledge.rated)}; use one catalogue"
        )
    people = _people(ratings, knowledge, levels, config.min_ratings)
    tables = _item_tables(knowledge, content)
    places = torch.from_numpy(knowledge.scaled(levels)).float()
    start = {"mean": knowledge.mean, "user_bias_variance": knowledge.user_bias_variance, "noise": knowledge.noise}
    networks = []
    for member in range(config.num_members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + member)  # of the first parameters and of dropout, which takes no generator
            network = RatingNetwork(tables, places, profiles.shape[1], config.network, **start)
            rng = np.random.default_rng([seed, member])
            networks.append(_train(network, tables, people, profiles, config, rng, member, on_step))
    return Rater(tuple(networks), tables, levels, profiles.shape[1])


def draw(
    people: Sequence[Person],
    order: list[int],
    profiles: Float[np.ndarray, "user profile"],
    config: RaterConfig,
    rng: np.random.Generator,
) -> Drawn:
    """A batch of tasks of one support size; `order` is used up and refilled, so that everyone comes equally often."""
    least, most = config.support_sizes
    size = int(np.exp(rng.uniform(np.log(least), np.log(most + 1))))
    picked: list[Person] = []
    support: list[Int64[np.ndarray, "_"]] = []
    query: list[Int64[np.ndarray, "_"]] = []
    while len(picked) < config.batch_size:
        if not order:
            order.extend(rng.permutation(len(people)).tolist())
        person = people[order.pop()]
        events = rng.permutation(len(person.items))
        cut = min(size, max(len(events) * 2 // 3, len(events) - 10))
        picked.append(person)
        support.append(events[:cut])
        query.append(events[cut : cut + config.num_queries])
    asked = list(zip(picked, query, strict=True))
    told = list(zip(picked, support, strict=True))
    batch = collate(
        np.stack([profiles[person.user] for person in picked]),
        np.array([person.table for person in picked]),
        [person.items[events] for person, events in told],
        [person.levels[events] for person, events in told],
        [person.items[events] for person, events in asked],
    )
    cold = rng.random(len(picked)) < config.cold_share
    cold_support = cold if config.cold_support == 1 else cold & (rng.random(len(picked)) < config.cold_support)
    level = pad([person.levels[events] for person, events in asked])[0]
    return Drawn(batch, level, torch.from_numpy(~np.stack([cold_support, cold], 1)).float())


def task_losses(
    log_probability: Float[Tensor, "task query level"],
    level: Int64[Tensor, "task query"],
    mask: Float[Tensor, "task query"],
    places: Float[Tensor, "level"],
    config: RaterConfig,
) -> Float[Tensor, "task"]:
    """Mean over each task's queries of log loss and ranked probability score, plus its ranking loss."""
    probability = log_probability.exp()
    each = -log_probability.gather(-1, level[..., None])[..., 0]
    if config.crps:
        above = (torch.arange(len(places) - 1) >= level[..., None]).float()
        each = each + config.crps * ((probability.cumsum(-1)[..., :-1] - above).square() * places.diff()).sum(-1)
    total = (each * mask).sum(1) / mask.sum(1)
    if config.rank_loss:
        gain = 2 ** (places + 1) - 1 if config.gain == "exponential" else places + 1
        gain = gain * _SHARPNESS / gain.max()
        absent = (1 - mask) * -1e4
        ideal = F.softmax(gain[level] + absent, 1)
        total = total - config.rank_loss * (ideal * F.log_softmax(probability @ gain + absent, 1)).sum(1)
    return total


def _train(
    network: RatingNetwork,
    tables: ItemTables,
    people: Sequence[Person],
    profiles: Float[np.ndarray, "user profile"],
    config: RaterConfig,
    rng: np.random.Generator,
    member: int,
    on_step: Callable[[int, int, float], None] | None,
) -> RatingNetwork:
    """AdamW with a warm-up and a cosine; the average of the parameters is what is returned."""
    solve = [value for name, value in network.named_parameters() if _is_solve(name)]
    rest = [value for name, value in network.named_parameters() if not _is_solve(name)]
    optimiser = torch.optim.AdamW(
        [
            {"params": rest, "lr": config.learning_rate, "weight_decay": config.weight_decay},
            {"params": solve, "lr": config.solve_learning_rate, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    warm_up = max(1, config.num_steps // 20)

    def rate(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
        return min(1.0, (step + 1) / warm_up) * (_LAST_RATE + (1 - _LAST_RATE) * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    blend = get_ema_multi_avg_fn(config.average_decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=blend)
    network.train()
    order: list[int] = []

    def batch_loss() -> Tensor:
        drawn = draw(people, order, profiles, config, rng)
        found = network(tables, drawn.batch, drawn.use_ratings)
        return task_losses(found, drawn.level, drawn.batch.query_mask, network.places, config).mean()

    for step in range(1, config.num_steps + 1):
        loss = take_step(
            optimiser,
            batch_loss,
            name="rater",
            step=step,
            advice="lower rater.learning_rate and rater.solve_learning_rate",
            clip=_CLIP,
        )
        schedule.step()
        average.update_parameters(network)
        if on_step is not None:
            on_step(member * config.num_steps + step, config.num_members * config.num_steps, loss)
    network.load_state_dict(average.module.state_dict())
    return network.eval().requires_grad_(False)


def _is_solve(name: str) -> bool:
    return name.startswith("solve.log_")


def _people(
    ratings: Ratings, knowledge: Knowledge, levels: Float[np.ndarray, "level"], min_ratings: int
) -> list[Person]:
    people = []
    for user, (items, values) in by_user(ratings).items():
        if len(items) >= min_ratings:
            table = int(knowledge.fold[user]) if user < len(knowledge.fold) else 0
            people.append(Person(user, table, items, level_indices(values, levels, f"ratings of user {user}")))
    if not people:
        raise DataError(f"no training person has {min_ratings} ratings or more; lower rater.min_ratings")
    return people


def _item_tables(knowledge: Knowledge, content: ItemContent) -> ItemTables:
    """The knowledge and the content; what content says of bias and vector is a feature too."""
    said = knowledge.cold[0]
    said = (said - said.mean(0)) / said.std(0, correction=0).clamp_min(1e-6)
    return ItemTables(
        knowledge.warm,
        knowledge.cold,
        knowledge.warm_variance,
        knowledge.cold_variance,
        knowledge.rated.float(),
        torch.cat([said, content.features], 1),
        content.kernels,
    )
