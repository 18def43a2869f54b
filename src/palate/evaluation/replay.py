"""Prequential replay: several recommenders read the newest events side by side, each event after it was foretold.

People are read one event at a time, in the order of time. Before each choice of an item that is new to the person,
every model ranks its catalogue from the person's events until then, through the same code that serves
(`Recommender.score_many`); then the history takes the event. Nothing of a model changes but the fast weights, as in
service (A. P. Dawid, Statistical theory: the prequential approach, 1984, doi 10.2307/2981683).

The models may know different items. All are judged on the same events, those whose item any of them knows: an item
that a model does not know is a miss for it, and is not read by it either.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from palate.config import GateConfig
from palate.data.dataset import Dataset
from palate.data.episodes import EventMeaning, History
from palate.data.growing_history import GrowingHistory
from palate.data.vocabulary import Vocabulary
from palate.errors import ConfigError, DataError, ModelError
from palate.metrics import hit_rate_of_ranks, ndcg_of_ranks, target_ranks
from palate.recommend.recommender import Recommender
from palate.significance import Interval, clustered_interval

_TOGETHER = 256
"""Lists that are scored at once."""
_EPOCH = datetime(1970, 1, 1)


class Replay(NamedTuple):
    """What every model made of every judged event; the events are in order within each person."""

    models: tuple[str, ...]
    users: tuple[str, ...]
    """Whose event it is."""
    items: tuple[str, ...]
    """What was chosen."""
    times: Float64[np.ndarray, "event"]
    """When, in seconds since 1970-01-01."""
    ranks: Int64[np.ndarray, "model event"]
    """How many items the model put above the chosen one; MISS where it does not know it."""

    def values(self, metric: str, k: int) -> Float64[np.ndarray, "model event"]:
        """One of `METRICS` of every event, for every model."""
        missed = self.ranks == MISS
        return np.where(missed, 0.0, METRICS[metric](np.where(missed, 0, self.ranks).ravel(), k).reshape(missed.shape))


MISS = -1
METRICS: Mapping[str, Callable[[Int64[np.ndarray, "event"], int], Float64[np.ndarray, "event"]]] = {
    "ndcg": ndcg_of_ranks,
    "hit_rate": hit_rate_of_ranks,
    "reciprocal_rank": lambda ranks, k: 1.0 / (ranks + 1.0),
}
"""(ranks, k) → a value an event; the reciprocal rank looks at the whole catalogue."""


class Comparison(NamedTuple):
    """A model beside another on the same events, by one metric."""

    candidate: Interval
    served: Interval
    difference: Interval
    """candidate − served."""
    num_people: int
    num_events: int


class Decision(NamedTuple):
    """Whether a candidate takes the place of the served model, and why."""

    promote: bool
    reason: str
    """One line."""
    since: float
    """Where the window begins, in seconds since 1970-01-01."""
    metrics: Mapping[str, Comparison]
    """By metric; empty where nothing could be judged."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        metrics = {
            name: {
                "candidate": found.candidate._asdict(),
                "served": found.served._asdict(),
                "difference": found.difference._asdict(),
                "num_people": found.num_people,
                "num_events": found.num_events,
            }
            for name, found in self.metrics.items()
        }
        return {"promote": self.promote, "reason": self.reason, "since": self.since, "metrics": metrics}


def gate(
    candidate: Recommender, served: Recommender, dataset: Dataset, config: GateConfig, *, seed: int = 0
) -> Decision:
    """Decide whether `candidate` may be served: both are replayed on the newest `config.window` days of `dataset`.

    A candidate must have been trained on the events before `window_start` alone, and the served model too. Once it is
    promoted, people's fast weights take in what came since.

    Raises:
        ConfigError: the models do not agree on which events say no.
        DataError: the profiles lack an attribute that a model reads.
        NumericalError: a model scored NaN.
    """
    since = window_start(dataset, config)
    for name, model in (("candidate", candidate), ("served model", served)):
        if model.trained_until >= since:
            return Decision(
                False,
                f"refused: the {name} has learned from events until {_shown(model.trained_until)}, and the window "
                f"that judges it begins at {_shown(since)}",
                since,
                {},
            )
    found = replay({"candidate": candidate, "served": served}, dataset, since, config.max_events, seed=seed)
    people = len(set(found.users))
    if people < config.min_people:
        reason = (
            f"refused: {people:,} people chose something new since {_shown(since)}, {config.min_people:,} are needed"
        )
        return Decision(False, reason, since, {})
    metrics = {metric: compare(found, metric, config, seed=seed) for metric in METRICS}
    decisive = metrics[config.metric]
    low, allowed = decisive.difference.low, -config.margin * decisive.served.mean
    shown = config.metric if config.metric == "reciprocal_rank" else f"{config.metric}@{config.k}"
    reason = (
        f"{shown} {decisive.candidate.mean:.4f}, served {decisive.served.mean:.4f}, difference "
        f"{decisive.difference.mean:+.4f} [{low:+.4f}, {decisive.difference.high:+.4f}] on {decisive.num_events:,} "
        f"events of {people:,} people; at least {allowed:+.4f} is asked for"
    )
    promote = low >= allowed
    return Decision(promote, f"{'promoted' if promote else 'refused'}: {reason}", since, metrics)


def window_start(dataset: Dataset, config: GateConfig) -> float:
    """Where the newest `config.window` days begin, in seconds since 1970-01-01: what is earlier may be learned.

    Raises:
        DataError: there are no events.
    """
    newest = dataset.interactions["timestamp"].max()
    if not isinstance(newest, datetime):
        raise DataError(f"{dataset.name}: there are no events to judge by; add interactions")
    return (newest - _EPOCH).total_seconds() - 86_400 * config.window


def compare(found: Replay, metric: str, config: GateConfig, *, seed: int = 0) -> Comparison:
    """Set the first model of a replay against the second; people are resampled whole.

    Raises:
        DataError: nothing was judged.
    """
    if not found.users:
        raise DataError("replay: no event to compare by; widen the window")
    candidate, served, *_ = found.values(metric, config.k)
    _, people = np.unique(np.array(found.users), return_inverse=True)

    def interval(values: Float64[np.ndarray, "event"]) -> Interval:
        return clustered_interval(
            values, people.astype(np.int64), level=config.confidence, num_resamples=config.num_resamples, seed=seed
        )

    return Comparison(
        interval(candidate), interval(served), interval(candidate - served), len(set(found.users)), len(people)
    )


def replay(
    models: Mapping[str, Recommender], dataset: Dataset, since: float, max_events: int, *, seed: int = 0
) -> Replay:
    """Let every model foretell every choice of a new item from `since` on, each from what came before it.

    Where there are more than `max_events` events in the window, people are drawn at random and read whole.

    Raises:
        ModelError: a model has learned from events of the window.
        ConfigError: the models do not agree on which events say no.
        DataError: the profiles lack an attribute that a model reads.
        NumericalError: a model scored NaN; names nothing that is not in the window.
    """
    for name, model in models.items():
        if model.trained_until >= since:
            raise ModelError(
                f"replay: {name} has learned from events until {_shown(model.trained_until)}, the window begins at "
                f"{_shown(since)}; train it on earlier events, or judge on later ones"
            )
    for setting in ("negative_events", "rating_events"):
        found = {tuple(sorted(getattr(model.config, setting))) for model in models.values()}
        if len(found) != 1:
            raise ConfigError(f"{setting} differ between the models: {sorted(found)}; train both with the same")
    meaning = next(iter(models.values())).config.meaning
    catalogue = Vocabulary(tuple(dict.fromkeys(name for model in models.values() for name in model.vocabulary.ids)))
    steps = _steps(dataset.interactions, catalogue, meaning, since, max_events, seed)
    ranks = np.stack(
        [_ranks(model, dataset, catalogue, steps) for model in models.values()] or [np.zeros(len(steps), np.int64)]
    )
    return Replay(
        tuple(models),
        tuple(step.user for step in steps),
        tuple(catalogue.ids[step.target] for step in steps),
        np.array([step.seconds for step in steps], np.float64),
        ranks,
    )


class _Step(NamedTuple):
    """One choice to foretell; items are numbers of the joint catalogue."""

    user: str
    seconds: float
    target: int
    history: History
    """All events before it."""
    away: float
    """Seconds since the event before; infinite where there is none."""


def _steps(
    interactions: pl.DataFrame,
    catalogue: Vocabulary,
    meaning: EventMeaning,
    since: float,
    max_events: int,
    seed: int,
) -> list[_Step]:
    """The choices of new items in the window, each with what was known of the person right before it."""
    moment = _EPOCH + timedelta(seconds=since)
    events = interactions.filter(pl.col("item_id").is_in(list(catalogue.ids)))
    counts = events.filter(pl.col("timestamp") >= moment)["user_id"].value_counts().sort("user_id")
    order = np.random.default_rng(seed).permutation(counts.height)
    total = counts["count"].to_numpy()[order].cumsum()
    drawn = counts["user_id"].gather(order[: max(1, int((total <= max_events).sum()))])
    events = events.filter(pl.col("user_id").is_in(drawn.implode())).with_columns(
        seconds=pl.col("timestamp").dt.epoch("us") / 1e6,
        refuses=pl.col("event_type").is_in(list(meaning.negative)),
        rating=pl.when(pl.col("event_type").is_in(list(meaning.rating))).then("weight"),
    )
    steps = []
    for (user,), rows in events.group_by("user_id", maintain_order=True):
        known = GrowingHistory[int]()
        places = catalogue.index(rows["item_id"].to_list()).tolist()
        columns = (rows[name].to_list() for name in ("seconds", "refuses", "rating"))
        for item, seconds, refuses, rating in zip(places, *columns, strict=True):
            if seconds >= since and not refuses and not known.knows(item):
                away = np.inf if known.last is None else seconds - known.last
                steps.append(_Step(str(user), seconds, item, known.history(), away))
            known.add(item, seconds, refuses=refuses, rating=rating)
    return steps


def _ranks(
    model: Recommender, dataset: Dataset, catalogue: Vocabulary, steps: Sequence[_Step]
) -> Int64[np.ndarray, "event"]:
    """Where one model put each target; MISS where it does not know it."""
    place = np.array([-1 if (own := model.vocabulary.get(name)) is None else own for name in catalogue.ids])
    profiles = _profiles(model, dataset, [step.user for step in steps])
    gap = 3600 * model.config.model.visit_gap
    ranks = np.full(len(steps), MISS, np.int64)
    known = np.flatnonzero(place[[step.target for step in steps]] >= 0) if steps else np.zeros(0, np.int64)
    for start in range(0, len(known), _TOGETHER):
        rows = known[start : start + _TOGETHER]
        some = [steps[row] for row in rows]
        histories = [_translate(step.history, place, 0 < gap < step.away) for step in some]
        scores = model.score_many(histories, profiles[torch.from_numpy(rows)])
        ranks[rows] = target_ranks(scores, place[[step.target for step in some]], _seen(histories, scores.shape[1]))
    return ranks


def _translate(history: History, place: Int64[np.ndarray, "item"], returning: bool) -> History:
    """A history in a model's own numbers, without the items that it does not know."""
    items, refused = place[history.items], place[history.refused]
    kept = items >= 0
    ratings = None if history.ratings is None else history.ratings[kept]
    returning = returning and bool(kept.any())
    return History(items[kept], history.times[kept], refused[refused >= 0], returning, ratings)


def _seen(histories: Sequence[History], num_items: int) -> Bool[np.ndarray, "user item"]:
    seen = np.zeros((len(histories), num_items), np.bool_)
    for row, history in enumerate(histories):
        seen[row, history.items] = True
        seen[row, history.refused] = True
    return seen


def _profiles(model: Recommender, dataset: Dataset, users: Sequence[str]) -> Float[Tensor, "event profile"]:
    """Encoded profiles, a row an event."""
    rows = pl.DataFrame({"user_id": list(users)}, schema={"user_id": pl.String})
    rows = rows.join(dataset.users.frame, on="user_id", how="left", maintain_order="left")
    return torch.from_numpy(model.profile_encoder.transform(rows))


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
