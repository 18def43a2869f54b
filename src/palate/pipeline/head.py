"""The head: meta-trained on newcomers, each met by the members that have not seen them, or carried over."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from palate.backbone.ensemble import Ensemble
from palate.config import Config
from palate.data.choices import Choices
from palate.data.dataset import Dataset
from palate.data.event_log import EventLog, join_logs
from palate.errors import NumericalError
from palate.meta.carry_over import carry_over
from palate.meta.evidence import layout_of
from palate.meta.head import Head, Items, Layout, make_head
from palate.meta.learner import Params
from palate.meta.training import MetaConfig, MetaResult, World, make_episodes, meta_train
from palate.pipeline.newcomers import newcomers_since, split_newcomers
from palate.pipeline.preparing import Prepared
from palate.progress import StageHandle
from palate.recommend.recommender import Recommender
from palate.scorers.choice import choose_scorers
from palate.scorers.evidence import PER_SCORER, Scorers

_TASKS_TO_CHOOSE_BY = 2000
"""Episodes on which the settings of item-item scorers are compared, at most."""


def make_world(
    backbone: Ensemble,
    items: Items,
    newcomers: Choices,
    profiles: Mapping[str, Float[Tensor, "profile"]],
    meta: MetaConfig,
) -> World:
    """Make tasks of people whom a shared model has not seen."""
    train, validation = (
        make_episodes(
            people.chosen,
            torch.stack([profiles[user] for user in people]),
            backbone,
            items.vectors,
            items,
            meta.support_sizes,
            meta.min_query,
            meta.window,
        )
        for people in split_newcomers(newcomers)
    )
    return World(items, train, validation)


def choose_scorers_on(worlds: Sequence[World], known: EventLog, config: Config) -> Scorers:
    """Fit the item-item scorers on the people of no fold; those of the folds choose how they are fitted."""
    tasks, relevant, seen = list[EventLog](), list[np.ndarray](), list[np.ndarray]()
    for world in worlds:
        able = np.flatnonzero(world.train.log.lengths() > 0)
        most = _TASKS_TO_CHOOSE_BY // len(worlds)
        able = able[np.unique(np.linspace(0, len(able) - 1, most).astype(np.int64))]
        tasks.append(world.train.log.take(able))
        relevant.append(world.train.relevant.numpy()[able])
        seen.append(world.train.seen.numpy()[able])
    return choose_scorers(known, join_logs(tasks), np.concatenate(relevant), np.concatenate(seen), config.item_item)


def meta_train_head(
    head: Head,
    params: Params,
    scorers: Scorers,
    worlds: Sequence[World],
    meta: MetaConfig,
    seed: int,
    stage: StageHandle,
) -> MetaResult:
    """Meta-train on newcomers whom their shared model has never seen, and the scorers neither."""
    result = meta_train(
        head,
        params,
        scorers,
        worlds,
        meta,
        seed=seed,
        on_step=lambda step, of, value: stage.step(step, of, f"NDCG@10 {value:.4f}"),
    )
    looks = dict(result.validation)
    episodes = sum(len(world.train.size) for world in worlds)
    people = sum(len(np.unique(world.train.user.numpy())) for world in worlds)
    stage.done(
        f"{episodes:,} episodes of {people:,} people, validation NDCG@10 {looks[0]:.4f} → {looks[result.step]:.4f}"
    )
    return result


def go_on(
    start: Recommender,
    dataset: Dataset,
    prepared: Prepared,
    items: Items,
    content: Float[Tensor, "item content"],
    config: Config,
    stage: StageHandle,
) -> MetaResult:
    """Let the served head meet the people who have come since, and fit it to the item features of now."""
    newcomers = newcomers_since(start, dataset, config)
    # A copy, because rows that were added in service cannot be differentiated through.
    table = start.item_table
    served = Items(*(column[: table.num_trained].clone() for column in table.rows_of_training))
    head = make_head_of(served, prepared, config)
    learned = MetaResult(start.params, (), (), 0, None)
    if len(newcomers) < config.retraining.min_newcomers:
        stage.done(
            f"carried over: {len(newcomers):,} people with {config.meta.min_items} items have come since the served "
            f"model was trained, meta-training needs {config.retraining.min_newcomers:,} (retraining.min_newcomers)"
        )
    else:
        # What the learner has fitted to profiles is part of what it knows, and is not fitted anew.
        head = head._replace(prepare=lambda params, profiles: params)
        meta = replace(config.meta, num_steps=config.retraining.num_steps, search_start=False)
        try:
            world = make_world(start.backbone, served, newcomers, prepared.profiles, meta)
            found = meta_train_head(head, start.params, start.scorers, [world], meta, config.seed, stage)
            # Tastes that have turned make the served model poor for newcomers: no reason to keep it for longer.
            if found.quality is not None and found.quality.verdict == "worse":
                stage.done(f"carried over: meta-training of {config.meta.learner}: {found.quality.describe()}")
            else:
                learned = found
        except NumericalError as error:
            stage.done(f"carried over: {error}")
    layout = layout_of_items(items, content, prepared, config)
    fresh = make_head_of(items, prepared, config).params(layout, items)
    width, others = served.features.shape[1], content.shape[1] + items.vectors.shape[1]
    rank = items.features.shape[1] - others
    return learned._replace(params=carry_over(learned.params, fresh, width, width - others, rank))


def make_head_of(items: Items, prepared: Prepared, config: Config) -> Head:
    """The head for items with such features, its learner by the settings."""
    num_scorers = PER_SCORER * len(config.item_item.kinds)
    return make_head(
        config.meta.learner, items.features.shape[1], prepared.profile_encoder.dim, config.learner, num_scorers
    )


def layout_of_items(items: Items, content: Float[Tensor, "item content"], prepared: Prepared, config: Config) -> Layout:
    """Which of the items' features are evidence, content and the backbone's vectors."""
    dim = items.vectors.shape[1]
    rank = items.features.shape[1] - content.shape[1] - dim
    return layout_of(rank, content.shape[1], dim, prepared.profile_encoder.dim, config.evidence)
