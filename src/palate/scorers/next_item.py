"""How good a model of sequences is at the next item, beside popularity and EASE with recency, tuned on other people."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from palate.data.event_log import EventLog
from palate.metrics import hit_rate_of_ranks, ndcg_of_ranks, target_ranks
from palate.scorers.item_item import SCORERS, ItemItem, ItemItemConfig, Setting
from palate.significance import bootstrap_interval, paired_difference

Score = Callable[[EventLog], Float32[np.ndarray, "user item"]]
"""Scores of every item for each person, given what they did so far."""

LEAST_EVENTS = 3
"""Events of a person who is judged: one of them is what they are judged by."""
_TOGETHER = 64
_ROUNDING = 1e-6


class Held(NamedTuple):
    """The last events of some people, kept from training."""

    training: EventLog
    """Everyone's events but these."""
    inputs: EventLog
    """What the people did before."""
    targets: Int32[np.ndarray, "person"]


def hold_out_last(log: EventLog, num_people: int) -> Held:
    """Keep the last event of so many people, spread evenly over those with enough events; fewer where there are."""
    able = np.flatnonzero(log.lengths() >= LEAST_EVENTS)
    chosen = able[np.unique(np.linspace(0, len(able) - 1, min(num_people, len(able))).astype(np.int64))]
    drop = np.zeros(log.num_users, np.int64)
    drop[chosen] = 1
    training = log.cut(drop)
    return Held(training, training.take(chosen), np.asarray(log.items[log.offsets[chosen + 1] - 1], np.int32))


def judge_next(score: Score, held: Held, num_items: int) -> Mapping[str, Any]:
    """HR@10 and NDCG@10 of the held-out events among all items, items already chosen left out.

    Every second person chooses the settings of EASE; the others are judged. Returns plain values: for each of "model",
    "popularity" and "ease" the two metrics with 95 % intervals over people, EASE's settings, and the paired difference
    of the model to the better of the two.

    Raises:
        NumericalError: a score is NaN.
    """
    people = np.arange(len(held.targets))
    choosing, judged = people[1::2], people[::2]
    counts = np.bincount(held.training.items, minlength=num_items).astype(np.float32)
    popularity = _ranked_by(lambda log: np.broadcast_to(counts, (log.num_users, num_items)), held, judged)
    ease, setting = _best_ease(held, choosing, counts)
    ranks = {
        "model": _ranked_by(score, held, judged),
        "popularity": popularity,
        "ease": _ranked_by(_with_popularity(ease, counts), held, judged),
    }
    ndcg = {name: ndcg_of_ranks(found, 10) for name, found in ranks.items()}
    best = max(("popularity", "ease"), key=lambda name: float(ndcg[name].mean()))
    found = paired_difference(ndcg["model"], ndcg[best])
    return {
        "people": len(judged),
        "items": num_items,
        **{
            name: {
                "hr@10": bootstrap_interval(hit_rate_of_ranks(ranks[name], 10))._asdict(),
                "ndcg@10": bootstrap_interval(ndcg[name])._asdict(),
            }
            for name in ranks
        },
        "ease settings": setting._asdict(),
        "difference": {"to": best, "mean": found.mean, "low": found.low, "high": found.high},
    }


def describe(quality: Mapping[str, Any]) -> str:
    """Say in a line how good the model is."""

    def figures(name: str) -> str:
        return f"{quality[name]['hr@10']['mean']:.3f}/{quality[name]['ndcg@10']['mean']:.3f}"

    difference = quality["difference"]
    names = {"popularity": "popularity", "ease": "EASE with recency"}
    shown = "is not told apart from"
    if difference["low"] > 0 or difference["high"] < 0:
        shown = "beats" if difference["low"] > 0 else "is worse than"
    return (
        f"next item of {quality['people']:,} people among {quality['items']:,} items, HR@10/NDCG@10: "
        f"this model {figures('model')}, popularity {figures('popularity')}, EASE with recency {figures('ease')}; "
        f"it {shown} {names[difference['to']]} "
        f"({difference['mean']:+.4f}, 95 % interval {difference['low']:+.4f} to {difference['high']:+.4f})"
    )


def _best_ease(
    held: Held, choosing: Int64[np.ndarray, "person"], counts: Float32[np.ndarray, "item"]
) -> tuple[ItemItem, Setting]:
    config, entry = ItemItemConfig(), SCORERS["ease"]
    best: tuple[float, ItemItem] | None = None
    for strength in entry.strengths(config):
        made = entry.fit(held.training, len(counts), strength, config)
        for decay in (*entry.decays(config), 1.0):
            scorer = made._replace(setting=Setting(strength, decay))
            ranks = _ranked_by(_with_popularity(scorer, counts), held, choosing)
            value = float(ndcg_of_ranks(ranks, 10).mean()) if len(choosing) else 0.0
            if best is None or value > best[0]:
                best = (value, scorer)
    assert best is not None
    return best[1], best[1].setting


def _with_popularity(scorer: ItemItem, counts: Float32[np.ndarray, "item"]) -> Score:
    """Items of which nothing is known come in the order of their popularity."""
    share = (_ROUNDING * counts / max(float(counts.max(initial=0)), 1.0)).astype(np.float32)
    return lambda log: scorer.evidence(log) + share


def _ranked_by(score: Score, held: Held, people: Int64[np.ndarray, "person"]) -> Int64[np.ndarray, "person"]:
    ranks = [np.zeros(0, np.int64)]
    for start in range(0, len(people), _TOGETHER):
        some = people[start : start + _TOGETHER]
        log = held.inputs.take(some)
        scores = np.asarray(score(log), np.float32)
        ranks.append(target_ranks(scores, held.targets[some], _seen(log, scores.shape[1])))
    return np.concatenate(ranks)


def _seen(log: EventLog, num_items: int) -> Bool[np.ndarray, "user item"]:
    seen = np.zeros((log.num_users, num_items), bool)
    seen[np.repeat(np.arange(log.num_users), log.lengths()), log.items] = True
    return seen
