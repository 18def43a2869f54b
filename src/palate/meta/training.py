"""The outer loop: meta-train a learner on people who play the newcomer.

The tasks are people whom the backbone and the evidence have not been fitted on: on its own training people the shared
model looks better than it is, and a learner trained there would trust it too much. Each set of people comes with the
shared model that has not seen them, as a world of its own; one head is trained in all worlds.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.func import vmap

from palate.backbone.batches import inputs
from palate.backbone.ensemble import Ensemble
from palate.backbone.sequence_model import SequenceModelConfig
from palate.data.choices import with_ratings
from palate.data.event_log import EventLog
from palate.errors import ConfigError, DataError
from palate.meta.head import Head, Items, Profile, Query, Support, Terms, catalogue_statistics, with_start
from palate.meta.learner import Fast, Params
from palate.meta.outer import FitConfig, run_outer_loop
from palate.meta.quality import Quality, compare_with_chance
from palate.meta.tasks import make_supports
from palate.metrics import ndcg_at_k, top_k
from palate.scorers.evidence import Scorers
from palate.scorers.kin import Kin, no_kin
from palate.significance import clustered_interval


@dataclass(frozen=True)
class MetaConfig:
    """Which learner adapts to a person, and how it is meta-trained."""

    learner: str = "ridge"
    """A name in `palate.meta.LEARNERS`."""
    support_sizes: tuple[int, ...] = (0, 1, 2, 3, 5, 10, 20)
    """Support sizes of the training episodes."""
    held_out: float = 0.2
    """Share of the people with enough items who are kept from the shared model to play newcomers."""
    min_items: int = 12
    """Distinct items that a held-out person needs."""
    min_query: int = 5
    """Distinct items that an episode keeps for its query."""
    window: int = 0
    """How many of the items to come a list is judged by: the next so many, or all (0)."""
    num_steps: int = 300
    """Steps of the outer loop (Adam)."""
    batch_size: int = 64
    """Episodes a step."""
    learning_rate: float = 0.003
    """Of the outer loop at the start; falls linearly."""
    search_start: bool = True
    """Whether the start of the gates is looked for on the training episodes before the first step."""
    prior_pull: float = 10.0
    """Quadratic pull of the prior mean to zero, where one is learned: newcomers of one season must not teach the next
    what to expect."""
    validate_every: int = 25
    """Steps between looks at the validation people (a third of the held-out ones); the best look is kept."""

    def __post_init__(self) -> None:
        if not self.support_sizes or min(self.support_sizes) < 0:
            raise ConfigError(f"meta.support_sizes is {self.support_sizes}; expected sizes from 0 on")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"meta.held_out is {self.held_out}; it must be between 0 and 1")
        if self.window < 0:
            raise ConfigError(f"meta.window is {self.window}; it must be at least 0")
        for name in ("min_items", "min_query", "num_steps", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"meta.{name} is {getattr(self, name)}; it must be at least 1")
        if self.learning_rate <= 0:
            raise ConfigError(f"meta.learning_rate is {self.learning_rate}; it must be above 0")


RETURN = -1
"""Instead of a support size: the support is all that came before another visit."""


_TOGETHER = 256
"""Episodes whose states are computed together."""
_EPISODES_TO_START_BY = 1000
"""Training episodes on which the start is chosen, at most."""
_SHARES = (1.0, 0.3, 0.1, 0.03)
"""Of the usual start, that are tried."""
_MOST_CELLS = 2**28
"""Episodes × items of a set of tasks: it holds what is relevant and what was seen as a byte each."""
_CELLS_AT_ONCE = 2**26
"""Episodes × items, and episodes × what a support holds, that are scored together in validation."""


class Episodes(NamedTuple):
    """A set of tasks; every tensor has the episode as its first axis."""

    size: Int64[Tensor, "episode"]
    """Support size, or `RETURN`."""
    profile: Profile
    support: Support
    relevant: Bool[Tensor, "episode item"]
    seen: Bool[Tensor, "episode item"]
    user: Int64[Tensor, "episode"]
    """Whose it is: a row of the people."""
    log: EventLog
    """The chosen items of each support, which item-item scorers read."""
    terms: Terms | None = None
    """What the supports say, where nothing that is learned changes it."""


class World(NamedTuple):
    """Tasks of people beside what a shared model that has not seen them says of the items."""

    items: Items
    train: Episodes
    validation: Episodes


class MetaResult(NamedTuple):
    """The chosen parameters and the curves that led to them."""

    params: Params
    losses: tuple[tuple[int, float], ...]
    """(step, mean training loss since the last look)."""
    validation: tuple[tuple[int, float], ...]
    """(step, mean NDCG@10 over support sizes on the validation people)."""
    step: int
    """The step that they are from."""
    quality: Quality | None
    """Of the chosen parameters on the validation people, against chance; None where nothing was trained."""


class Cut(NamedTuple):
    """Where a history is cut into what is known and what is to be predicted."""

    row: int
    """Of the history."""
    place: int
    """Items before the cut."""
    returning: bool
    """Whether what follows is another visit."""


def find_cuts(chosen: EventLog, model: SequenceModelConfig, sizes: Sequence[int], min_query: int) -> list[Cut]:
    """Cut each person's choices after each size that leaves `min_query` to predict, and before each later visit too.

    This is all that episodes ask of the data, so a training asks it before anything is computed.

    Raises:
        ConfigError: every size is above what the backbone reads.
        DataError: nobody has chosen enough for any size.
    """
    if min(sizes) > model.max_events:
        raise ConfigError(
            f"meta.support_sizes is {tuple(sizes)}, but model.max_events is {model.max_events}; "
            "add a smaller size or raise max_events"
        )
    sizes, lengths = [size for size in sizes if size <= model.max_events], chosen.lengths().tolist()
    cuts = [Cut(row, size, False) for row, length in enumerate(lengths) for size in sizes if length >= size + min_query]
    if model.visit_gap:
        visits = np.flatnonzero(np.diff(chosen.times) > 3600 * model.visit_gap) + 1
        rows = np.searchsorted(chosen.offsets, visits, "right") - 1
        cuts += [
            Cut(row, place, True)
            for row, place in zip(rows.tolist(), (visits - chosen.offsets[rows]).tolist(), strict=True)
            if place and lengths[row] >= place + min_query
        ]
    if not cuts:
        raise DataError(
            f"meta-training: no held-out person has {min(sizes) + min_query} distinct items; lower meta.min_query"
        )
    return cuts


@torch.no_grad()
def make_episodes(
    chosen: EventLog,
    profiles: Float[Tensor, "user profile"],
    backbone: Ensemble,
    vectors: Float[Tensor, "item dim"],
    items: Items,
    sizes: Sequence[int],
    min_query: int,
    window: int = 0,
) -> Episodes:
    """Make a task of each person's choices at each of their cuts (`find_cuts`).

    A list after so many events is asked for right away; visits are told apart where the model's `visit_gap` says how.
    Where the catalogue is so large that the episodes would not fit in memory, some are drawn.

    Raises:
        ConfigError: every size is above what the backbone reads.
        DataError: nobody has chosen enough for any size.
    """
    most = backbone.config.max_events
    cuts = find_cuts(chosen, backbone.config, sizes, min_query)
    most_episodes = max(1, _MOST_CELLS // len(vectors))
    if len(cuts) > most_episodes:
        drawn = np.random.default_rng(0).choice(len(cuts), most_episodes, replace=False)
        cuts = [cuts[place] for place in np.sort(drawn).tolist()]
    rows, known, returning = (np.array(column) for column in zip(*cuts, strict=True))
    users = torch.from_numpy(rows)
    whole = chosen.take(rows)
    supports = whole.cut(whole.lengths() - known).recent(most)
    places = torch.from_numpy(supports.lengths())
    before, after = [], []
    for start in range(0, len(cuts), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        part = supports.take(np.arange(len(cuts))[some])
        read = inputs(with_ratings(part, backbone.config.rated), most, returning=returning[some])
        states = backbone.states(read._replace(profiles=profiles[users[some]]), vectors)
        # Who is read from the middle on begins as everyone does.
        before.append(states[:, 0])
        after.append(states[torch.arange(len(states)), places[some]])
    relevant = torch.zeros(len(cuts), len(vectors), dtype=torch.bool)
    seen = torch.zeros(len(cuts), len(vectors), dtype=torch.bool)
    for episode, choices in enumerate(np.split(whole.items.astype(np.int64), whole.offsets[1:-1])):
        place = known[episode]
        relevant[episode, choices[place : place + window if window else None]] = True
        seen[episode, choices[:place]] = True
    return Episodes(
        torch.where(torch.from_numpy(returning), RETURN, torch.from_numpy(known)),
        Profile(profiles[users], torch.cat(before)),
        make_supports(supports, supports.recent(0), returning, items.features, torch.cat(after)),
        relevant,
        seen,
        users,
        supports,
    )


def meta_train(
    head: Head,
    params: Params,
    scorers: Scorers,
    worlds: Sequence[World],
    config: MetaConfig,
    *,
    seed: int,
    on_step: Callable[[int, int, float], None] | None = None,
) -> MetaResult:
    """Train every parameter that is not "fixed." on the mean episode loss; return the last ones, or better ones.

    It begins where `find_start` says; each step is taken in one world. The highest of many looks is partly luck: the
    parameters of an earlier look are returned where an interval over the validation people says that they are better
    than the last. Parameters that rank no better than chance are
    returned like others; `MetaResult.quality` says so.
    `on_step(step, of, validation)` is called at each look at the validation people.

    Raises:
        NumericalError: the loss or a score is not finite (names the step).
    """
    rng = np.random.default_rng(seed)
    shares = [_even_shares(world.train) for world in worlds]
    start = head.prepare(params, torch.cat([world.train.profile.features for world in worlds]))
    if head.closed:
        worlds = [_with_terms(head, start, world) for world in worlds]

    def batch_loss(weights: Params) -> Tensor:
        number = int(rng.integers(len(worlds))) if len(worlds) > 1 else 0
        items, train = worlds[number].items, worlds[number].train

        def episode_loss(fast: Fast, relevant: Tensor, allowed: Tensor, evidence: Tensor) -> Tensor:
            return head.loss(fast, Query(items, relevant, allowed, evidence))

        drawn = rng.choice(len(train.size), min(config.batch_size, len(train.size)), False, shares[number])
        batch = take(train, torch.from_numpy(drawn))
        evidence = torch.from_numpy(scorers.features(batch.log, len(items.bias)))
        allowed = (~batch.seen).float()
        fast = _fast_weights(head, _here(weights, items), batch)
        return vmap(episode_loss)(fast, batch.relevant.float(), allowed, evidence).mean()

    def pull(weights: Params) -> Tensor:
        means = [weight.square().sum() for name, weight in weights.items() if name.startswith("prior.")]
        return 0.5 * config.prior_pull * sum(means, start=torch.zeros(()))

    result = run_outer_loop(
        find_start(head, start, scorers, worlds, seed=seed) if config.search_start else start,
        batch_loss,
        lambda weights: validate(head, weights, scorers, worlds),
        FitConfig(config.num_steps, config.batch_size, config.learning_rate, 0.0, config.validate_every, math.inf),
        name=f"meta-training of {config.learner}",
        maximise=True,
        penalty=pull,
        on_step=on_step,
    )
    judged = [world.validation for world in worlds]
    users, balance = _users(judged), _balance(judged)

    def values(weights: Params) -> Float[np.ndarray, "episode"]:
        return np.concatenate([_judge(head, weights, scorers, world.items, world.validation) for world in worlds])

    kept, step, found = result.last, config.num_steps, values(result.last)
    if result.step != config.num_steps:
        best = values(result.params)
        if clustered_interval((best - found) * balance, users).low > 0:
            kept, step, found = result.params, result.step, best
    chance = np.concatenate([_ndcg(some, lambda part: _random_scores(part, seed)) for some in judged])
    return MetaResult(kept, result.losses, result.validation, step, compare_with_chance(found, chance, users))


def _balance(parts: Sequence[Episodes]) -> Float[np.ndarray, "episode"]:
    """Weights of mean 1 under which every support size counts the same."""
    sizes = np.concatenate([part.size.numpy() for part in parts])
    _, group, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    return np.asarray(len(sizes) / counts[group] / len(counts))


@torch.no_grad()
def find_start(head: Head, params: Params, scorers: Scorers, worlds: Sequence[World], *, seed: int) -> Params:
    """Look where meta-training should begin: how far adapted weights and popularity count beside the shared model.

    Steps move a gate by a few tenths. How much better a shared model ranks than the features that are adapted on
    differs between data sets by more than that: where it has much to learn from, the usual start drowns it. So shares
    of that start are tried on training episodes, and one takes its place where an interval over people says that it is
    better.
    """
    rng = np.random.default_rng([seed, 2])
    parts = []
    for world in worlds:
        few = min(_EPISODES_TO_START_BY // len(worlds), len(world.train.size))
        drawn = rng.choice(len(world.train.size), few, False, _even_shares(world.train))
        parts.append(take(world.train, torch.from_numpy(np.sort(drawn))))
    users = _users(parts)

    def judge(weights: Params) -> Float[np.ndarray, "episode"]:
        values = [_judge(head, weights, scorers, world.items, some) for world, some in zip(worlds, parts, strict=True)]
        return np.concatenate(values)

    best, value = params, judge(params)
    for evidence, popularity in itertools.product(_SHARES, _SHARES):
        other = with_start(params, evidence, popularity)
        found = judge(other)
        if found.mean() > value.mean() and clustered_interval(found - value, users).low > 0:
            best, value = other, found
    return best


def _even_shares(episodes: Episodes) -> Float[np.ndarray, "episode"]:
    """How likely each episode is drawn: every support size as often, however many episodes there are of it."""
    _, group, counts = np.unique(episodes.size.numpy(), return_inverse=True, return_counts=True)
    return np.asarray(1 / counts[group] / len(counts))


@torch.no_grad()
def validate(head: Head, params: Params, scorers: Scorers, worlds: Sequence[World]) -> float:
    """Mean over support sizes of the mean NDCG@10 over the validation people, seen items removed."""
    values = np.concatenate([_judge(head, params, scorers, world.items, world.validation) for world in worlds])
    sizes = np.concatenate([world.validation.size.numpy() for world in worlds])
    return float(np.mean([values[sizes == size].mean() for size in np.unique(sizes)]))


def _judge(
    head: Head, params: Params, scorers: Scorers, items: Items, episodes: Episodes
) -> Float[np.ndarray, "episode"]:
    """NDCG@10 of each episode beside the items of its world."""
    here = _here(params, items)
    return _ndcg(
        episodes, lambda some: _score(head, here, items, scorers, _fast_weights(head, here, some), some.log, no_kin())
    )


def _here(params: Params, items: Items) -> Params:
    """The parameters beside the items of a world."""
    return {**params, **catalogue_statistics(items, params["fixed.tempered"])}


@torch.no_grad()
def _with_terms(head: Head, params: Params, world: World) -> World:
    """The tasks with what their supports say, for a learner in closed form: the supports need not be read again."""
    here = _here(params, world.items)

    def terms(profile: Profile, support: Support) -> Terms:
        return head.terms(here, head.prior(here, profile), support)

    def computed(episodes: Episodes) -> Episodes:
        parts = [
            vmap(terms)(some.profile, some.support)
            for some in (
                take(episodes, torch.arange(start, min(start + _TOGETHER, len(episodes.size))))
                for start in range(0, len(episodes.size), _TOGETHER)
            )
        ]
        return episodes._replace(terms=_each(lambda *values: torch.cat(values), *parts))

    return world._replace(train=computed(world.train), validation=computed(world.validation))


def _each(change: Callable[..., Tensor], *parts: Terms) -> Terms:
    """The terms whose tensors are made of those of the parts, one by one."""
    start = {name: change(*(part.start[name] for part in parts)) for name in parts[0].start}
    tensors = {name: change(*(getattr(part, name) for part in parts)) for name in Terms._fields if name != "start"}
    return Terms(**tensors, start=start)


def _fast_weights(head: Head, params: Params, episodes: Episodes) -> Fast:
    """Everyone's fast weights, with a leading axis."""

    def adapted(profile: Profile, support: Support) -> Fast:
        return head.adapt(params, head.prior(params, profile), support)

    def weighed(terms: Terms) -> Fast:
        return head.weigh(params, terms)

    if episodes.terms is None:
        return vmap(adapted)(episodes.profile, episodes.support)
    return vmap(weighed)(episodes.terms)


def _users(parts: Sequence[Episodes]) -> Int64[np.ndarray, "episode"]:
    """Whose each episode is, a number for every person of all parts."""
    first = np.cumsum([0, *(int(part.user.max()) + 1 for part in parts)])
    return np.concatenate([part.user.numpy() + start for part, start in zip(parts, first, strict=False)])


def _ndcg(
    episodes: Episodes, score: Callable[[Episodes], Float[np.ndarray, "some item"]]
) -> Float[np.ndarray, "episode"]:
    """NDCG@10 of each episode, seen items removed."""
    support = episodes.support.features
    together = max(1, _CELLS_AT_ONCE // max(episodes.seen.shape[1], support.shape[1] * support.shape[2]))
    parts = []
    for start in range(0, len(episodes.size), together):
        some = episodes
        if together < len(episodes.size):
            some = take(episodes, torch.arange(start, min(start + together, len(episodes.size))))
        ranked = top_k(np.where(some.seen.numpy(), -np.inf, score(some)), 10)
        parts.append(ndcg_at_k(ranked, some.relevant.numpy()))
    return np.concatenate(parts)


def _random_scores(episodes: Episodes, seed: int) -> Float[np.ndarray, "episode item"]:
    """One order for each person, whatever the episode: a model's lists for one person are much alike too."""
    num_items = episodes.seen.shape[1]
    return np.stack([np.random.default_rng([seed, user]).random(num_items) for user in episodes.user.tolist()])


def score_supports(
    head: Head,
    params: Params,
    items: Items,
    scorers: Scorers,
    profile: Profile,
    support: Support,
    log: EventLog,
    kin: Kin | None = None,
) -> Float[np.ndarray, "user item"]:
    """Adapt and score many people at once.

    Profile and support carry a leading user axis; the log has the chosen items of each support. `kin` are those of the
    items that came after training, where there are any.
    """

    def adapted(profile: Profile, support: Support) -> Fast:
        return head.adapt(params, head.prior(params, profile), support)

    return _score(head, params, items, scorers, vmap(adapted)(profile, support), log, kin or no_kin())


def _score(
    head: Head, params: Params, items: Items, scorers: Scorers, fast: Fast, log: EventLog, kin: Kin
) -> Float[np.ndarray, "user item"]:
    scores: Float[np.ndarray, "user item"] = vmap(lambda one: head.score(params, one, items))(fast).numpy()
    scorers.add_to(scores, log, fast["scorers"].numpy(), kin)
    return scores


def take(episodes: Episodes, rows: Int64[Tensor, "row"]) -> Episodes:
    """Select episodes."""
    return Episodes(
        episodes.size[rows],
        Profile(*(value[rows] for value in episodes.profile)),
        Support(*(value[rows] for value in episodes.support)),
        episodes.relevant[rows],
        episodes.seen[rows],
        episodes.user[rows],
        episodes.log.take(rows.numpy()),
        None if episodes.terms is None else _each(lambda value: value[rows], episodes.terms),
    )
