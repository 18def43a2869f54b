"""A whole evaluation: newcomers, cold items, people in training and example lists, as one JSON-able value."""

import platform
import resource
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import torch

from palate.config import Config
from palate.data.dataset import Dataset
from palate.data.episodes import History
from palate.data.splitting import Split, default_cut, temporal_split
from palate.encoders.text import encode_texts
from palate.errors import DataError
from palate.evaluation.few_shot import (
    Judged,
    Newcomers,
    cold_histories,
    few_shot_curve,
    fit_baselines,
    newcomers_after,
    palate_models,
)
from palate.evaluation.warm import evaluate_warm
from palate.pipeline.newcomers import check_newcomers, deal, newcomers_of
from palate.pipeline.preparing import index_events
from palate.progress import Reporter
from palate.recommend.recommender import Recommender
from palate.threads import one_thread

NUM_EXAMPLES = 3
EXAMPLE_SUPPORT = 5


@one_thread()
def evaluate(
    model: Recommender, dataset: Dataset, cut: datetime | str | None = None, *, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Judge a model on the people of `dataset` who are first seen at or after `cut`, beside the baselines.

    `cut` defaults to evaluation.cut of the model's config, and then to the moment that leaves three quarters of the
    events before it. The model must have been trained on events before the cut alone. docs/evaluation.md describes
    the fields of the result.

    Raises:
        DataError: the model was trained on people or events that it would be judged on, or nobody is left to judge.
        NumericalError: a score is NaN.
    """
    reporter = reporter or Reporter()
    config = model.config
    split = temporal_split(dataset, cut or config.evaluation.cut or default_cut(dataset))
    _refuse_leaks(model, split)
    people = newcomers_after(split, dataset.users.frame, model, config.evaluation)
    with reporter.stage("fit baselines") as stage:
        baselines = fit_baselines(model, config, stage)
        stage.done(", ".join(judged.name for judged in baselines))
    with reporter.stage("evaluate") as stage:
        ours = palate_models(model, people)
        few_shot = few_shot_curve([*ours, *baselines], people, model.num_trained, config.evaluation, seed=config.seed)
        cold_items = evaluate_cold_items(model, dataset, split, people)
        warm = evaluate_warm(model, split, palate_models, baselines)
        stage.done(f"{len(people.ids):,} cold users × N = {', '.join(map(str, few_shot['support_sizes']))}")
    return {
        "dataset": {"name": dataset.name, **dataset.summary()},
        "split": {
            "cut": split.cut.isoformat(),
            "train_users": len(split.train_users),
            "train_items": len(split.train_items),
            "train_interactions": split.train.height,
            "cold_users": split.cold_user_events["user_id"].n_unique(),
            "cold_items": len(split.cold_items),
        },
        "cleaning": None if dataset.cleaning is None else dataset.cleaning.to_dict(),
        "few_shot": few_shot,
        "cold_items": cold_items,
        "warm": warm,
        "training": {
            "stages": [stage._asdict() for stage in reporter.stages],
            "quality": model.training.get("quality"),
            "curves": [
                {"name": name, "x_label": x_label, "y_label": y_label, "points": model.training[name]}
                for name, x_label, y_label in (
                    ("backbone loss", "epoch", "nats"),
                    ("meta loss", "step", "1 − smooth NDCG@10"),
                    ("meta validation", "step", "NDCG@10"),
                )
            ],
        },
        "customers": example_customers(model, dataset, people),
        "environment": {
            "version": _version(),
            "model_id": model.model_id,
            "seed": config.seed,
            "seconds": sum(stage.seconds for stage in reporter.stages),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def check_evaluation(learned: Dataset, split: Split, config: Config) -> None:
    """See on the data alone that a model of `learned`, the events before the cut, can be judged after it.

    What a training itself asks for is checked as well, so that nothing is computed for an evaluation that cannot be.

    Raises:
        DataError: nobody would be left to judge, or too little to train on.
        ConfigError: settings under which no episode can be made.
    """
    indexed = index_events(learned, config)
    folds = deal(newcomers_of(indexed.histories, config)[1], config.num_members)
    check_newcomers(folds, config)
    cold_histories(split, indexed.vocabulary, config.meaning, config.evaluation)


def evaluate_cold_items(model: Recommender, dataset: Dataset, split: Split, people: Newcomers) -> dict[str, Any] | None:
    """Rank the cold items alone, for the newcomers who go on to choose any after the largest support.

    A cold item has no event in training, so only content can place it; the baselines are the summed text similarity to
    the support, and chance. None where the catalogue has no text, no cold item, or nobody chooses one.
    """
    config = model.config.evaluation
    cold = [item for item in split.cold_items if item in model.vocabulary]
    sizes = [size for size in config.support_sizes if size < config.min_items]
    if not cold or dataset.items.text is None:
        return None
    place = {item: position for position, item in enumerate(cold)}
    columns = model.vocabulary.index(cold)
    choices = split.cold_user_events.filter(
        ~pl.col("event_type").is_in(list(model.config.negative_events)) & pl.col("item_id").is_in(cold)
    )
    bought = {
        str(user): rows.select("item_id", pl.col("timestamp").dt.epoch("us") / 1e6).rows()
        for (user,), rows in choices.group_by("user_id")
    }
    rows: list[int] = []
    histories: list[History] = []
    for row, (user, history) in enumerate(zip(people.ids, people.histories, strict=True)):
        # After the largest support, so that the same people and the same targets stand at every N.
        moment = history.times[sizes[-1]]
        targets = sorted({place[item] for item, seconds in bought.get(user, []) if seconds >= moment})
        if targets:
            rows.append(row)
            choices_to_come = History(columns[targets], np.full(len(targets), moment), history.refused[:0])
            histories.append(history.head(sizes[-1]).then(choices_to_come))
    if not rows:
        return None
    judges = Newcomers(tuple(people.ids[row] for row in rows), tuple(histories), people.profiles[torch.tensor(rows)])
    titles = encode_texts(list(model.titles), model.config.text).numpy()
    generator = np.random.default_rng(model.config.seed)
    chance = generator.random((len(rows), len(model.vocabulary))).astype(np.float32)

    def similarity(histories: Sequence[History]) -> np.ndarray:
        return np.stack([titles @ titles[history.items].sum(0) for history in histories])

    scorers = (
        Judged("Palate", "palate", {}, lambda h: model.score_many(h, judges.profiles)),
        Judged("backbone alone", "ablation", {}, lambda h: model.backbone_scores(h, judges.profiles)),
        Judged("text similarity", "baseline", {}, similarity),
        Judged("random", "baseline", {}, lambda h: chance.copy()),
    )
    only = np.full(len(model.vocabulary), -np.inf, dtype=np.float32)
    only[columns] = 0.0
    restricted = [
        judged._replace(score=lambda h, score=judged.score: score(h) + only)  # type: ignore[misc]
        for judged in scorers
    ]
    curve = few_shot_curve(
        restricted, judges, len(model.vocabulary), config, seed=model.config.seed, targets_from=sizes[-1]
    )
    return curve | {"num_items": len(cold)}


def example_customers(model: Recommender, dataset: Dataset, people: Newcomers) -> list[dict[str, Any]]:
    """Lists for a few newcomers, spread over the ids, after their first items; with what they did choose later."""
    titles = dataset.items.titles()
    profiles = {row["user_id"]: row for row in dataset.users.frame.iter_rows(named=True)}
    chosen = np.linspace(0, len(people.ids) - 1, min(NUM_EXAMPLES, len(people.ids))).astype(int)
    customers = []
    attributes = [column.name for column in model.profile_encoder.columns]
    for row in chosen:
        user, history = people.ids[row], people.histories[row]
        known = {name: value for name, value in profiles.get(user, {}).items() if name in attributes}
        support = [model.vocabulary.ids[item] for item in history.items[:EXAMPLE_SUPPORT]]
        later = {model.vocabulary.ids[item] for item in history.items[EXAMPLE_SUPPORT:]}
        customers.append(
            {
                "user_id": user,
                "label": f"a new customer after {len(support)} items",
                "profile": known,
                "support": [{"item_id": item, "title": titles[item]} for item in support],
                "recommended": [
                    line._asdict() | {"bought_later": line.item_id in later}
                    for line in model.recommend(support, profile=known)
                ],
            }
        )
    return customers


def _refuse_leaks(model: Recommender, split: Split) -> None:
    cold = split.cold_user_events["user_id"].unique()
    users, _, log = model.record
    known = sorted(cold.filter(cold.is_in(list(users))).to_list())
    if known:
        raise DataError(
            f"the model was trained on {len(known):,} of the people it would be judged on (first: {known[0]!r}); "
            f"train it on the events before {split.cut} (evaluation.cut)"
        )
    if not users:
        raise DataError(
            "the model folder holds no people, as those of a service do, so it cannot be said whom it was trained on; "
            "evaluate the folder that `palate train` wrote"
        )
    if log.times.max() >= (split.cut - datetime(1970, 1, 1)).total_seconds():
        raise DataError(
            f"the model was trained on events at or after the cut {split.cut}; train it on the events before it "
            "(evaluation.cut)"
        )


def _version() -> str:
    from importlib.metadata import version

    return version("palate")
