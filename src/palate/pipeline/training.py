"""The main job: from a data set to a recommender.

    content → deal newcomers into folds, one a member → each member of the shared model without its fold
            → meta-train the head, each newcomer met by the member that has not seen them
            → each member on everyone, from those weights → recommender

or, from a served model and the events since:

    content as before → its weights, trained on → meta-train its head on the people it has not met → recommender

The head is trained on people whom the shared model has never seen, because that is whom it will serve; what it learns
(gates by support size, precisions, noise, the prior mean on content) carries over to the members that have gone on to
everyone.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palate.config import Config
from palate.data.choices import Choices
from palate.data.dataset import Dataset
from palate.errors import ConfigError, DataError
from palate.meta.evidence import fit_rotation
from palate.meta.head import catalogue_statistics
from palate.pipeline.head import choose_scorers_on, go_on, layout_of_items, make_head_of, make_world, meta_train_head
from palate.pipeline.members import pre_train
from palate.pipeline.newcomers import check_newcomers, deal, newcomers_of
from palate.pipeline.preparing import Prepared, encode, index_events
from palate.pipeline.shared import alone, assemble, learn_items
from palate.pipeline.taken import as_member, newcomers_to, take_backbone
from palate.pretrain import Pretrained
from palate.progress import Reporter, StageHandle
from palate.ratings.rating_fit import fit_rating_model, why_not
from palate.ratings.rating_model import RatingModel
from palate.ratings.tasks import Ratings
from palate.recommend.bundle import identify
from palate.recommend.item_table import ItemTable
from palate.recommend.recommender import Recommender
from palate.scorers.evidence import refit
from palate.scorers.kin import no_kin
from palate.threads import one_thread


@one_thread()
def train(
    dataset: Dataset,
    config: Config | None = None,
    *,
    start: Recommender | None = None,
    reporter: Reporter | None = None,
    checkpoints: str | Path | None = None,
    workers: int = 1,
) -> Recommender:
    """Train on every event of a data set.

    The members are independent of each other and can train in `workers` processes (a script that asks for more than
    one must be guarded by `if __name__ == "__main__"`). Training uses one thread a process: the same data, config and
    seed give the same model, bit for bit, on the same kind of machine.

    With `checkpoints`, a folder, the members write their progress there after each epoch and an interrupted run goes
    on from it; a run with other data, settings, seed or `start` does not see these checkpoints.

    With `start`, a served model, training goes on from it (`config.retraining` says how far; `config` is by default
    the served model's). Members begin with its weights: items that they know keep their rows by id, new ones begin
    with their content, items without events leave. Content and profiles are encoded as before, so that weights keep
    their meaning: a new attribute column, a new category or a text that was not there waits for a training from
    nothing. For the head the newcomers are the people whose first event is later than all that the served model has
    learned from. They meet the served model as it is, as people to come will meet this one; the members that have read
    them take no part. Where they are too few the head is carried over.

    With `config.backbone`, the folder of a model that `palate pretrain` has trained, that model is the shared model as
    it is. Its head is meta-trained on people whom it has not seen; see `palate.pipeline.taken`.

    Raises:
        ModelError: `config.backbone` is no folder of a trained model.
        DataError: too little data to train on, no ratings where the members are to read them, or items and people
            without an attribute that `start` reads.
        ConfigError: an unknown learner, or settings that `start` was not trained with.
        NumericalError: a loss became NaN or infinite; names the stage and step.
    """
    config = config or (Config() if start is None else start.config)
    reporter = reporter or Reporter()
    taken: Pretrained | None = None
    if start is not None:
        _refuse_another_model(start.config, config)
    elif config.backbone is not None:
        taken, config = take_backbone(config)
    with reporter.stage("encode content") as stage:
        indexed = index_events(dataset, config, first=_first_items(start, taken))
        folds = list[Choices]()
        if config.model.rated and indexed.histories.chosen.values is None:
            raise DataError(
                f"{dataset.name}: model.rated is on and nobody has rated anything; turn it off, or give events of a "
                f"type in rating_events {config.rating_events}"
            )
        if taken is not None:
            folds = [newcomers_to(taken, indexed.histories, config)]
        elif start is None:
            folds = deal(newcomers_of(indexed.histories, config)[1], config.num_members)
        check_newcomers(folds, config)
        prepared = encode(dataset, indexed, config, stage, start=start)
        stage.done(f"{len(prepared.vocabulary):,} items × {prepared.content.shape[1]} features")
    rotation = (
        start.item_table.content_rotation if start else fit_rotation(prepared.content, config.evidence.content_dim)
    )
    content = rotation(prepared.content)

    with reporter.stage("pre-train") as stage:
        if taken is None:
            first, last, losses = pre_train(folds, prepared, config, start, stage, workers, checkpoints)
        else:
            first = last = [as_member(taken, prepared)]
            losses = last[0].losses
            stage.done(f"none: the model in {config.backbone} is taken, {len(losses)} epochs, loss {losses[-1]:.3f}")
    until = _seconds(dataset.interactions["timestamp"].max())
    final = assemble(last, prepared.histories, prepared, content, config, until)
    with reporter.stage("meta-train") as stage:
        if start is None:
            known = prepared.histories.without(*folds)
            shared = assemble(first, known, prepared, content, config, until)
            head = make_head_of(shared.items, prepared, config)
            params = head.params(layout_of_items(shared.items, content, prepared, config), shared.items)
            settings = config.meta
            worlds = [
                make_world(*alone(shared, member, config), fold, prepared.profiles, settings)
                for member, fold in enumerate(folds)
            ]
            scorers = choose_scorers_on(worlds, known.chosen, config)
            learned = meta_train_head(head, params, scorers, worlds, settings, config.seed, stage)
        else:
            learned, scorers = go_on(start, dataset, prepared, final.items, content, config, stage), start.scorers
        scorers = refit(scorers, final.log, len(final.items.bias), config.item_item)
    params = learned.params | catalogue_statistics(final.items, learned.params["fixed.tempered"])
    table = ItemTable(
        vocabulary=prepared.vocabulary,
        titles=prepared.titles,
        rows=final.items,
        num_trained=len(prepared.vocabulary),
        encoder=prepared.item_encoder,
        content_rotation=rotation,
        space=final.space,
        unseen_popularity=final.unseen_popularity,
        posterior=learn_items(final, prepared, content, config, until),
        kin=no_kin(),
    )
    ratings, said = None, dict[str, Any]()
    if prepared.histories.chosen.values is not None:
        with reporter.stage("fit ratings") as stage:
            ratings, said = _fit_ratings(dataset, prepared, table, config, stage)
    recommender = Recommender(
        config=config,
        model_id=identify(final.backbone, params, scorers, table, ratings),
        backbone=final.backbone,
        params=params,
        scorers=scorers,
        item_table=table,
        ratings=ratings,
        profile_encoder=prepared.profile_encoder,
        record=prepared.record,
        profiles=prepared.profiles,
        training={
            "backbone loss": [list(point) for point in enumerate(losses, start=1)],
            "meta loss": [list(point) for point in learned.losses],
            "meta validation": [list(point) for point in learned.validation],
            **({} if learned.quality is None else {"quality": learned.quality.to_dict()}),
            **said,
            **({} if start is None else {"start": {"model_id": start.model_id, "head": stage.detail}}),
        },
        trained_until=until,
    )
    return recommender.add_items(dataset.items)


def _first_items(start: Recommender | None, taken: Pretrained | None) -> Sequence[str]:
    """The items whose rows are there already, in their order."""
    if start is not None:
        return start.vocabulary.ids[: start.num_trained]
    return () if taken is None else taken.items.ids


def _fit_ratings(
    dataset: Dataset, prepared: Prepared, table: ItemTable, config: Config, stage: StageHandle
) -> tuple[RatingModel | None, dict[str, Any]]:
    """The model of ratings and what is said of it in the record of the training; None where there are too few."""
    chosen = prepared.histories.chosen
    assert chosen.values is not None, "some of the choices are ratings"
    rated, users = ~np.isnan(chosen.values), np.repeat(np.arange(chosen.num_users), chosen.lengths())
    ratings = Ratings(users[rated], chosen.items[rated].astype(np.int64), chosen.values[rated])
    reason = why_not(ratings, config.ratings)
    if reason is not None:
        stage.done(f"not learned: {reason}")
        return None, {}
    more = table.unknown(dataset.items)
    content = prepared.content if more is None else torch.cat([prepared.content, table.encode(more, config.text)])
    model, quality = fit_rating_model(
        ratings,
        torch.stack(list(prepared.profiles.values())).numpy(),
        content,
        content.shape[1] - table.encoder.dim,
        config.ratings,
        num_known=table.num_trained,
        seed=config.seed,
        on_step=lambda step, of, loss: stage.step(step, of, f"loss {loss:.3f}"),
    )
    people = f"{len(ratings.values):,} ratings of {len(np.unique(ratings.users)):,} people"
    stage.done(people if quality is None else f"{people}, {quality.describe()}")
    return model, {} if quality is None else {"ratings": quality.to_dict()}


def _refuse_another_model(served: Config, config: Config) -> None:
    """Weights go on only under the settings that gave them their shape and their meaning."""
    text = replace(config.text, cache_dir=served.text.cache_dir, batch_size=served.text.batch_size)
    for name, before, now in (
        ("num_members", served.num_members, config.num_members),
        ("model", served.model, config.model),
        ("text", served.text, text),
        ("attributes", served.attributes, config.attributes),
        ("evidence.content_dim", served.evidence.content_dim, config.evidence.content_dim),
        ("item_item.kinds", served.item_item.kinds, config.item_item.kinds),
        ("meta.learner", served.meta.learner, config.meta.learner),
        ("learner", served.learner, config.learner),
    ):
        if before != now:
            raise ConfigError(
                f"{name}: the served model was trained with {before}, not {now}; keep it, or train from nothing"
            )


def _seconds(moment: Any) -> float:
    return float((moment - datetime(1970, 1, 1)).total_seconds())
