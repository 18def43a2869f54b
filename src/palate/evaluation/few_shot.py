"""The few-shot curve: how good a newcomer's list is after N = 0, 1, 2, 3, 5, … distinct items.

Every person is one that training has never seen. The first N distinct items are the support, all later ones are
relevant, the whole catalogue is ranked and the support is removed. The same people are used at every N, so that the
points of the curve can be compared. Baselines get their settings from newcomers in the training data, never from the
people judged here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from palate.baselines import NEWCOMER_BASELINES, Scorer, select
from palate.config import Config, EvaluationConfig
from palate.data.choices import Choices, read_choices
from palate.data.episodes import EventMeaning, History
from palate.data.event_log import from_sequences
from palate.data.log import require_columns
from palate.data.splitting import Split
from palate.data.vocabulary import Vocabulary
from palate.errors import DataError
from palate.metrics import RANKING_METRICS, coverage_at_k, ndcg_at_k, top_k
from palate.pipeline.newcomers import newcomers_of, split_newcomers
from palate.progress import StageHandle
from palate.recommend.recommender import Recommender
from palate.significance import bootstrap_interval, paired_difference

ScoreHistories = Callable[[Sequence[History]], Float[np.ndarray, "user item"]]
"""Scores of the whole catalogue for people of whom these histories are known; row i is always the same person."""


class Judged(NamedTuple):
    """A model under evaluation."""

    name: str
    kind: str
    """palate, ablation or baseline."""
    config: Mapping[str, Any]
    score: ScoreHistories


class Newcomers(NamedTuple):
    """The people to judge on, in the order of their ids."""

    ids: tuple[str, ...]
    histories: tuple[History, ...]
    profiles: Float[Tensor, "user profile"]


def newcomers_after(split: Split, users: pl.DataFrame, model: Recommender, config: EvaluationConfig) -> Newcomers:
    """Collect the cold users with enough distinct items that the model knows from training.

    Raises:
        DataError: there is none, or the profiles lack an attribute that the model was trained with.
    """
    names = [column.name for column in model.profile_encoder.columns]
    require_columns(users, names, source="profiles")
    trained = Vocabulary(model.vocabulary.ids[: model.num_trained])
    histories = cold_histories(split, trained, model.config.meaning, config)
    rows = pl.DataFrame({"user_id": histories.users}).join(users, on="user_id", how="left", maintain_order="left")
    profiles = [model.encode_profile(row) for row in rows.select(names).iter_rows(named=True)] if names else []
    stacked = torch.stack(profiles) if profiles else torch.zeros(len(histories), 0)
    return Newcomers(histories.users, tuple(histories.histories()), stacked)


def cold_histories(split: Split, trained: Vocabulary, meaning: EventMeaning, config: EvaluationConfig) -> Choices:
    """The histories of the cold users with enough distinct items that training knows; no model is needed to say.

    Raises:
        DataError: there is none.
    """
    events = split.cold_user_events.filter(pl.col("item_id").is_in(list(trained.ids)))
    # Only choices: what a person refuses later than the support is neither known nor a target.
    events = events.filter(~pl.col("event_type").is_in(list(meaning.negative)))
    found = read_choices(events, trained, meaning)
    lengths = found.chosen.lengths()
    histories = found.take(np.flatnonzero(lengths >= config.min_items))
    if not len(histories):
        most = lengths.max(initial=0)
        raise DataError(
            f"evaluation: no cold user has {config.min_items} distinct items that training knows (the most is {most}, "
            f"of {len(found):,} people first seen at or after {split.cut}); lower evaluation.min_items or move "
            "evaluation.cut"
        )
    return histories


def palate_models(model: Recommender, people: Newcomers) -> list[Judged]:
    """The recommender as it is served, and its backbone without fast weights."""
    known = model.num_trained
    return [
        Judged(
            "Palate",
            "palate",
            {"learner": model.config.meta.learner},
            lambda histories: model.score_many(histories, people.profiles)[:, :known],
        ),
        Judged(
            "backbone alone",
            "ablation",
            {},
            lambda histories: model.backbone_scores(histories, people.profiles)[:, :known],
        ),
    ]


def fit_baselines(model: Recommender, config: Config, stage: StageHandle) -> list[Judged]:
    """Choose each baseline's setting on the validation newcomers in the training data, then fit it on everyone."""
    others, newcomers = newcomers_of(model.users, config)
    validating = split_newcomers(newcomers)[1].histories()
    num_items, training, everyone = model.num_trained, others.chosen, model.users.chosen

    def validate(scorer: Scorer) -> float:
        score = baseline_scores(scorer)
        curve = []
        for size in config.meta.support_sizes:
            people = [history for history in validating if len(history.items) >= size + config.meta.min_query]
            if people:
                sizes = [size] * len(people)
                ranked = rank(score, people, sizes, 10)
                curve.append(ndcg_at_k(ranked, later_items(people, sizes, num_items)).mean())
        return float(np.mean(curve))

    judged = []
    for place, (name, baseline) in enumerate(NEWCOMER_BASELINES.items(), start=1):
        stage.step(place, len(NEWCOMER_BASELINES), name)
        selection = select(baseline, training, num_items, validate)
        scorer = baseline.fit(everyone, num_items, selection.config, selection.decay)
        judged.append(Judged(name, "baseline", selection.settings, baseline_scores(scorer)))
    return judged


def baseline_scores(scorer: Scorer) -> ScoreHistories:
    """Let a baseline read histories."""
    return lambda histories: scorer(from_sequences([history.items for history in histories]))


def few_shot_curve(
    models: Sequence[Judged],
    people: Newcomers,
    num_items: int,
    config: EvaluationConfig,
    *,
    seed: int,
    targets_from: int | None = None,
    known: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Judge every model at every support size; the result is plain values, see docs/evaluation.md for its fields.

    What counts as relevant are the items after the support, or after the first `targets_from` where given. `known` says
    how many items of each person come before the first that is counted: at N = 0 these are the support.

    Raises:
        NumericalError: a model scored NaN.
    """
    sizes = [size for size in config.support_sizes if size < config.min_items]
    known = [0] * len(people.histories) if known is None else known
    names = {name: f"{_SHORT.get(name, name)}@{config.k}" for name in RANKING_METRICS}
    values: dict[str, dict[int, dict[str, Float[np.ndarray, "user"]]]] = {}
    coverage: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        values[model.name] = {}
        coverage[model.name] = []
        for size in sizes:
            ranked = rank(model.score, people.histories, [before + size for before in known], config.k)
            targets = [before + (targets_from or size) for before in known]
            relevant = later_items(people.histories, targets, num_items)
            values[model.name][size] = {
                names[metric]: function(ranked, relevant) for metric, function in RANKING_METRICS.items()
            }
            share = coverage_at_k(ranked, num_items)
            coverage[model.name].append({"n": size, "mean": share, "low": None, "high": None})

    def point(size: int, per_user: Float[np.ndarray, "user"]) -> dict[str, Any]:
        interval = bootstrap_interval(per_user, num_resamples=config.num_resamples, seed=seed)
        return {"n": size, "mean": interval.mean, "low": interval.low, "high": interval.high}

    main = f"ndcg@{config.k}"
    return {
        "metric": main,
        "support_sizes": sizes,
        "num_users": len(people.histories),
        "models": [
            {
                "name": model.name,
                "kind": model.kind,
                "config": dict(model.config),
                "metrics": {
                    metric: [point(size, values[model.name][size][metric]) for size in sizes]
                    for metric in names.values()
                }
                | {f"coverage@{config.k}": coverage[model.name]},
            }
            for model in models
        ],
        "comparisons": compare(
            models, {m: {n: v[main] for n, v in c.items()} for m, c in values.items()}, config, seed
        ),
    }


def compare(
    models: Sequence[Judged],
    values: Mapping[str, Mapping[int, Float[np.ndarray, "user"]]],
    config: EvaluationConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """Set Palate against the best other model at each support size, on the same people."""
    palate = next(model.name for model in models if model.kind == "palate")
    others = [model.name for model in models if model.name != palate]
    rows = []
    for size, ours in values[palate].items():
        best = max(others, key=lambda name: float(values[name][size].mean()))
        difference = paired_difference(ours, values[best][size], num_resamples=config.num_resamples, seed=seed)
        rows.append(
            {
                "n": size,
                "best_baseline": best,
                "difference": difference.mean,
                "low": difference.low,
                "high": difference.high,
                "relative": None if difference.relative is None else difference.relative.mean,
                "significant": difference.significant,
            }
        )
    return rows


def rank(
    score: ScoreHistories, histories: Sequence[History], sizes: Sequence[int], k: int
) -> Int[np.ndarray, "user place"]:
    """Each person's list after their first so many items, those removed."""
    supports = [history.head(size) for history, size in zip(histories, sizes, strict=True)]
    scores = score(supports)
    for row, support in enumerate(supports):
        scores[row, support.items] = -np.inf
    return top_k(scores, k)


def later_items(histories: Sequence[History], sizes: Sequence[int], num_items: int) -> Bool[np.ndarray, "user item"]:
    """Mark the items that come after each person's first so many."""
    relevant = np.zeros((len(histories), num_items), dtype=bool)
    for row, (history, size) in enumerate(zip(histories, sizes, strict=True)):
        relevant[row, history.items[size:]] = True
    return relevant


_SHORT = {"average_precision": "map"}
