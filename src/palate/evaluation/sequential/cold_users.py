"""Cold people: what a next-item model knows of somebody new after 1, 2, 3, 5, 10, 20, 50 and 100 events.

The protocol:

* People are split at random: those who are trained on, some of them to choose the baselines' settings by (validation),
  and the cold ones, on whom nothing is trained or tuned and who are judged once.
* At support size N a model has read a cold person's first N events, from the first one on, and nothing else of them.
* The headline, "next": nDCG@10 of the one item that comes next, all items ranked, those already read taken out;
  averaged over the positions N, N + 1, …, N + min(4, N // 2) (at each of which the model has read that many events),
  which cuts noise: 1 | 2, 3 | 3, 4 | 5 to 7 | 10 to 14 | 20 to 24 | 50 to 54 | 100 to 104.
* Beside it, "later": nDCG@10 of all items after the first N as one relevant set, as in `evaluation/few_shot.py`.
* A person counts at a size if they have an event to foretell at each of its positions; how many do is reported.
* Models are compared on the same people, pair by pair; intervals are bootstrapped over people. The gain averaged over
  sizes is the mean of the relative gains at each; its interval draws people, with all their sizes together.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from palate.baselines import Scorer
from palate.data.event_log import EventLog
from palate.errors import ConfigError, DataError, NumericalError
from palate.metrics import ndcg_at_k, ndcg_of_ranks, target_ranks, top_k
from palate.significance import Interval, paired_difference

SIZES = (1, 2, 3, 5, 10, 20, 50, 100)
"""Support sizes, in events."""
_K = 10

ScoresAt: TypeAlias = Callable[[EventLog, Sequence[int]], Float32[np.ndarray, "user count item"]]
"""Scores of the catalogue for each person after each of some numbers of events; reads no later event."""


class ColdSplit(NamedTuple):
    """Places of people in the log; each in ascending order, none in two."""

    training: Int64[np.ndarray, "others"]
    validation: Int64[np.ndarray, "kept"]
    test: Int64[np.ndarray, "cold"]


def split_people(num_people: int, *, num_test: int, num_validation: int, seed: int = 0) -> ColdSplit:
    """Draw the groups; who is left is for training.

    Raises:
        ConfigError: a group would be empty.
    """
    sizes = (num_test, num_validation)
    if min(sizes) < 1 or sum(sizes) >= num_people:
        raise ConfigError(f"cold split: {sizes} of {num_people} people leave a group empty; ask for fewer, 1 at least")
    order = np.random.default_rng(seed).permutation(num_people)
    test, validation, training = (np.sort(part) for part in np.split(order, np.cumsum(sizes)))
    return ColdSplit(training, validation, test)


def positions_after(size: int) -> range:
    """Numbers of events after which the next item is foretold for a support size."""
    return range(size, size + min(4, size // 2) + 1)


def judge_next(
    scores_at: ScoresAt, log: EventLog, num_items: int, sizes: Sequence[int] = SIZES, *, batch_size: int = 16
) -> Float64[np.ndarray, "user size"]:
    """nDCG@10 of the next item; NaN where a person has too few events for a size.

    Raises:
        DataError: nobody has enough events for any size, or the scores have another shape than (user, count, item).
        NumericalError: a score is NaN.
    """
    counts = sorted({position for size in sizes for position in positions_after(size)})
    values = np.full((log.num_users, len(counts)), np.nan)

    def judge(
        places: Int64[np.ndarray, "some"], part: EventLog, scores: Float32[np.ndarray, "user count item"]
    ) -> None:
        for column, count in enumerate(counts):
            enough = np.flatnonzero(part.lengths() > count)
            targets = part.items[part.offsets[enough] + count]
            ranks = target_ranks(scores[enough, column], targets, _read(part, enough, count, num_items))
            values[places[enough], column] = ndcg_of_ranks(ranks, _K)

    _in_batches(scores_at, log, counts, num_items, batch_size, judge)
    columns = [[counts.index(position) for position in positions_after(size)] for size in sizes]
    # A mean with a NaN is NaN: who lacks one position of a size is not judged there.
    return np.stack([values[:, part].mean(1) for part in columns], axis=1)


def judge_later(
    scores_at: ScoresAt, log: EventLog, num_items: int, sizes: Sequence[int] = SIZES, *, batch_size: int = 32
) -> Float64[np.ndarray, "user size"]:
    """nDCG@10 with everything after the support as relevant; NaN where nothing new follows.

    Raises: as `judge_next`.
    """
    values = np.full((log.num_users, len(sizes)), np.nan)

    def judge(
        places: Int64[np.ndarray, "some"], part: EventLog, scores: Float32[np.ndarray, "user count item"]
    ) -> None:
        everything = _read(part, np.arange(part.num_users), int(part.lengths().max(initial=0)), num_items)
        for column, size in enumerate(sizes):
            known = _read(part, np.arange(part.num_users), size, num_items)
            relevant = everything & ~known
            enough = (part.lengths() > size) & relevant.any(1)
            if enough.any():
                ranked = top_k(np.where(known, -np.inf, scores[:, column])[enough], _K)
                values[places[enough], column] = ndcg_at_k(ranked, relevant[enough])

    _in_batches(scores_at, log, list(sizes), num_items, batch_size, judge)
    return values


def at_counts(scorer: Scorer) -> ScoresAt:
    """Let a scorer of whole histories read each person's first events."""

    def scores_at(log: EventLog, counts: Sequence[int]) -> Float32[np.ndarray, "user count item"]:
        heads = [log.cut(np.maximum(log.lengths() - count, 0)) for count in counts]
        return np.stack([scorer(head) for head in heads], axis=1)

    return scores_at


def compare(
    ours: Float64[np.ndarray, "user size"],
    theirs: Float64[np.ndarray, "user size"],
    sizes: Sequence[int] = SIZES,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[Mapping[str, Any]]:
    """Difference, interval and relative gain at each size, on the people who count there."""
    rows: list[Mapping[str, Any]] = []
    for column, size in enumerate(sizes):
        real = np.isfinite(ours[:, column]) & np.isfinite(theirs[:, column])
        if real.any():
            a, b = ours[real, column], theirs[real, column]
            found = paired_difference(a, b, num_resamples=num_resamples, seed=seed)
            rows.append({"n": size, "people": len(a), "ours": a.mean(), "theirs": b.mean()} | found._asdict())
    return rows


def average_gain(
    ours: Float64[np.ndarray, "user size"],
    theirs: Float64[np.ndarray, "user size"],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over sizes of mean(ours) / mean(theirs) − 1, with a 95 % interval over people (0.05 is five per cent).

    Raises:
        NumericalError: there is a size at which nobody counts or `theirs` hits nothing.
    """
    real = np.isfinite(ours) & np.isfinite(theirs)
    a, b = np.where(real, ours, 0.0), np.where(real, theirs, 0.0)
    if (b.sum(0) <= 0).any():
        raise NumericalError("gain: at one of the sizes the reference hits nothing; leave that size out")

    def gain(times: Float[np.ndarray, "user"]) -> float:
        # Both means are over the same people, so that their number cancels; a draw without any hit is left out.
        below = times @ b
        return float(((times @ a)[below > 0] / below[below > 0] - 1).mean())

    rng = np.random.default_rng(seed)
    people = len(a)
    draws = [gain(np.bincount(rng.integers(0, people, people), minlength=people) + 0.0) for _ in range(num_resamples)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(gain(np.ones(people)), float(low), float(high))


def _in_batches(
    scores_at: ScoresAt,
    log: EventLog,
    counts: Sequence[int],
    num_items: int,
    batch_size: int,
    judge: Callable[[Int64[np.ndarray, "some"], EventLog, Float32[np.ndarray, "user count item"]], None],
) -> None:
    """Score people a few at a time; who is too short for every count is left out."""
    enough = np.flatnonzero(log.lengths() > min(counts))
    if not len(enough):
        raise DataError(f"cold people: nobody of {log.num_users:,} has more than {min(counts)} events; ask for less")
    for start in range(0, len(enough), batch_size):
        places = enough[start : start + batch_size]
        part = log.take(places)
        scores = scores_at(part, counts)
        if scores.shape != (len(places), len(counts), num_items):
            raise DataError(f"model: scores are {scores.shape}; expected {(len(places), len(counts), num_items)}")
        judge(places, part, scores)


def _read(log: EventLog, users: Int64[np.ndarray, "some"], count: int, num_items: int) -> np.ndarray:
    """The items among the first `count` events of some people."""
    marks = np.zeros((len(users), num_items), bool)
    for row, user in enumerate(users.tolist()):
        start, stop = log.offsets[user], log.offsets[user + 1]
        marks[row, log.items[start : min(start + count, stop)]] = True
    return marks
