"""Leave one out, full ranking: a person's last item is the test, the second last the validation, the rest trains.

The protocol of SASRec (Kang & McAuley, "Self-Attentive Sequential Recommendation", 2018, arXiv:1808.09781) without its
100 sampled negatives, which order models wrongly (Krichene & Rendle, 2020, doi 10.1145/3394486.3403226): every item of
the catalogue is ranked. The input of the test holds the validation item; training sees neither.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from palate.baselines import Scorer
from palate.data.event_log import EventLog
from palate.errors import DataError, NumericalError
from palate.metrics import hit_rate_of_ranks, ndcg_of_ranks, target_ranks

CUTOFFS = (5, 10, 20)
"""The k of the metrics."""
_MIN_EVENTS = 3


class Held(NamedTuple):
    """One judged event a person, and all that came before it."""

    users: Int64[np.ndarray, "judged"]
    """Places of the people in the log that was split; the same for validation and test."""
    inputs: EventLog
    """What these people did before, in the same order."""
    targets: Int32[np.ndarray, "judged"]
    """The item that came next."""


class Split(NamedTuple):
    """The three parts; a model learns from `training`, chooses by `validation`, and is judged on `test` once."""

    training: EventLog
    """Everyone, in the order of the log; people with fewer than 3 events keep them all and are not judged."""
    validation: Held
    test: Held


class Ranks(NamedTuple):
    """How many items stand above each person's target; ties stand above it (see `target_ranks`)."""

    removed: Int64[np.ndarray, "judged"]
    """With the items of the input taken out of the list, which is how figures are mostly published."""
    kept: Int64[np.ndarray, "judged"]
    """With every item in the list."""


def leave_one_out(log: EventLog) -> Split:
    """Split a log by the last two events of each person.

    Raises:
        DataError: nobody has 3 events.
    """
    judged = log.lengths() >= _MIN_EVENTS
    users = np.flatnonzero(judged)
    if not len(users):
        raise DataError(f"leave one out: nobody of {log.num_users:,} people has {_MIN_EVENTS} events; give longer ones")
    chosen = log.take(users)
    last = chosen.offsets[1:] - 1
    return Split(
        training=log.cut(np.where(judged, 2, 0)),
        validation=Held(users, chosen.cut(2), chosen.items[last - 1]),
        test=Held(users, chosen.cut(1), chosen.items[last]),
    )


def rank_targets(scorer: Scorer, held: Held, num_items: int, *, batch_size: int = 256) -> Ranks:
    """Rank each person's target among all items.

    Args:
        scorer: is shown the inputs, `batch_size` people at a time, and never a target.
        held: the part to judge.
        num_items: size of the catalogue.
        batch_size: people at a time; memory is batch_size × num_items × 4 bytes, a few times.

    Raises:
        DataError: the scores do not have a row a person and a column an item.
        NumericalError: a score is NaN; names the person.
    """
    ranks = Ranks(np.empty(len(held.targets), np.int64), np.empty(len(held.targets), np.int64))
    for start in range(0, len(held.targets), batch_size):
        part = np.arange(start, min(start + batch_size, len(held.targets)))
        inputs, targets = held.inputs.take(part), held.targets[part]
        scores = scorer(inputs)
        if scores.shape != (len(part), num_items):
            raise DataError(f"scorer: gave scores of shape {scores.shape}; expected {(len(part), num_items)}")
        try:
            ranks.kept[part] = target_ranks(scores, targets)
            ranks.removed[part] = target_ranks(scores, targets, _seen(inputs, num_items))
        except NumericalError as error:
            raise NumericalError(f"people {start:,} to {part[-1]:,} of the judged: {error}") from None
    return ranks


def figures(ranks: Int64[np.ndarray, "judged"]) -> Mapping[str, Float64[np.ndarray, "judged"]]:
    """Hit rate and nDCG of each person at each of `CUTOFFS`, by name: "hr@10", "ndcg@10" …"""
    found = {f"hr@{k}": hit_rate_of_ranks(ranks, k) for k in CUTOFFS}
    return found | {f"ndcg@{k}": ndcg_of_ranks(ranks, k) for k in CUTOFFS}


def _seen(inputs: EventLog, num_items: int) -> Bool[np.ndarray, "user item"]:
    seen = np.zeros((inputs.num_users, num_items), bool)
    seen[np.repeat(np.arange(inputs.num_users), inputs.lengths()), inputs.items] = True
    return seen
