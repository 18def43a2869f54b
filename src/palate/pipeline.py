"""The main job: from a data set to a recommender.

    content → hold out newcomers → shared model without them → meta-train the head on them
            → shared model on everyone, anew or from those weights → recommender

or, from a served model and the events since:

    content as before → its weights, trained on → meta-train its head on the people it has not met → recommender

The head is trained on people whom the shared model has never seen, because that is whom it will serve; what it learns
(gates by support size, precisions, noise, the prior mean on content) carries over to the shared model of everyone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from palate.backbone.ensemble import Ensemble, Job, Trained, run_jobs
from palate.backbone.sequence_model import Catalogue, SequenceModel
from palate.backbone.training_config import TrainingConfig
from palate.backbone.warm_start import renew_model
from palate.config import Config
from palate.data.catalog import Catalog
from palate.data.dataset import Dataset
from palate.data.episodes import History, build_histories, hold_out
from palate.data.event_log import EventLog, from_histories
from palate.data.vocabulary import Vocabulary
from palate.encoders.attributes import AttributeConfig, AttributeEncoder
from palate.errors import ConfigError, DataError, NumericalError
from palate.meta.carry_over import carry_over
from palate.meta.evidence import (
    FeatureSpace,
    fit_features,
    fit_popularity,
    fit_rotation,
    foretell_evidence,
    layout_of,
)
from palate.meta.head import Head, Items, Layout, catalogue_statistics, make_head
from palate.meta.item_tasks import ItemPosterior, fit_item_posterior, rank_of
from palate.meta.learner import Params
from palate.meta.training import MetaConfig, MetaResult, find_cuts, make_episodes, meta_train
from palate.progress import Reporter, StageHandle
from palate.ratings.rating_model import RatingModel, fit_rating_model, why_not
from palate.ratings.tasks import Ratings
from palate.recommend.bundle import identify
from palate.recommend.content import encode_content
from palate.recommend.item_table import ItemTable
from palate.recommend.recommender import Recommender
from palate.scorers.choice import choose_scorers
from palate.scorers.evidence import PER_SCORER, Scorers, refit
from palate.scorers.kin import no_kin
from palate.threads import one_thread

_TASKS_TO_CHOOSE_BY = 2000
"""Episodes on which the settings of item-item scorers are compared, at most."""


class Prepared(NamedTuple):
    """A data set as arrays: what training starts from."""

    vocabulary: Vocabulary
    titles: tuple[str, ...]
    histories: Mapping[str, History]
    """Of everyone with at least one choice, by user id in order."""
    profiles: Mapping[str, Float[Tensor, "profile"]]
    content: Float[Tensor, "item content"]
    item_encoder: AttributeEncoder
    profile_encoder: AttributeEncoder


class Indexed(NamedTuple):
    """The events of a data set as numbers, before anything is encoded."""

    vocabulary: Vocabulary
    """Items with at least one choice."""
    histories: Mapping[str, History]
    """As in `Prepared`."""


class Shared(NamedTuple):
    """A shared model fitted on some people."""

    backbone: Ensemble
    items: Items
    space: FeatureSpace
    unseen_popularity: float
    counts: Float[Tensor, "item"]
    """People who chose each item, as popularity counts them."""
    log: EventLog
    """What these people chose."""


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

    Raises:
        DataError: too little data to train on, no ratings where the members are to read them, or items and people
            without an attribute that `start` reads.
        ConfigError: an unknown learner, or settings that `start` was not trained with.
        NumericalError: a loss became NaN or infinite; names the stage and step.
    """
    config = config or (Config() if start is None else start.config)
    reporter = reporter or Reporter()
    if start is not None:
        _refuse_another_model(start.config, config)
    with reporter.stage("encode content") as stage:
        indexed = index_events(dataset, config, start=start)
        others, newcomers = dict[str, History](), dict[str, History]()
        if config.model.rated and all(history.ratings is None for history in indexed.histories.values()):
            raise DataError(
                f"{dataset.name}: model.rated is on and nobody has rated anything; turn it off, or give events of a "
                f"type in rating_events {config.rating_events}"
            )
        if start is None:
            others, newcomers = newcomers_of(indexed.histories, config)
            check_newcomers(newcomers, config)
        prepared = encode(dataset, indexed, config, stage, start=start)
        stage.done(f"{len(prepared.vocabulary):,} items × {prepared.content.shape[1]} features")
    rotation = (
        start.item_table.content_rotation if start else fit_rotation(prepared.content, config.evidence.content_dim)
    )
    content = rotation(prepared.content)

    with reporter.stage("pre-train") as stage:
        first, last, losses = _pre_train(others, prepared, config, start, stage, workers, checkpoints)
    until = _seconds(dataset.interactions["timestamp"].max())
    final = assemble(last, prepared.histories, prepared, content, config, until)
    with reporter.stage("meta-train") as stage:
        if start is None:
            shared = assemble(first, others, prepared, content, config, until)
            head = _make_head(shared.items, prepared, config)
            params = head.params(_layout(shared.items, content, prepared, config), shared.items)
            learned, scorers = _meta_train(
                head, params, shared, None, newcomers, prepared.profiles, config, config.meta, stage
            )
        else:
            learned, scorers = _go_on(start, dataset, prepared, final.items, content, config, stage), start.scorers
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
    if any(history.ratings is not None for history in prepared.histories.values()):
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
        users=prepared.histories,
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


def _pre_train(
    others: Mapping[str, History],
    prepared: Prepared,
    config: Config,
    start: Recommender | None,
    stage: StageHandle,
    workers: int,
    checkpoints: str | Path | None,
) -> tuple[list[Trained], list[Trained], tuple[float, ...]]:
    """The members without the newcomers (none where training goes on), those for everyone, and the losses of one."""
    number = config.num_members
    again = refit_training(config)
    going_on = [] if start is None else retraining_jobs(start, prepared, config)
    epochs = number * (config.training.num_epochs + again.num_epochs)
    if going_on:
        epochs = sum(job.training.num_epochs for job in going_on)
    done = 0

    def on_epoch(loss: float) -> None:
        nonlocal done
        done += 1
        stage.step(done, max(done, epochs), f"loss {loss:.3f}")

    def run(jobs: list[Job]) -> list[Trained]:
        if checkpoints is not None:
            jobs = [job._replace(folder=Path(checkpoints) / f"{job.name}-{fingerprint(job)}") for job in jobs]
        return run_jobs(jobs, workers, on_epoch)

    everyone = prepared.histories
    if going_on:
        first, last = list[Trained](), run(going_on)
        losses, who = last[-1].losses, f"{number} members"
    else:
        first = run(make_jobs("held-out", others, prepared, config, config.training))
        begin = [member.weights for member in first] if config.refit.share else None
        last = run(make_jobs("everyone", everyone, prepared, config, again, begin))
        losses = (first[-1].losses if begin else ()) + last[-1].losses
        who = f"{number} members for {len(others):,} people and {number}"
    stage.done(f"{who} for all {len(everyone):,}, loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return first, last, losses


def make_jobs(
    name: str,
    people: Mapping[str, History],
    prepared: Prepared,
    config: Config,
    training: TrainingConfig,
    begin: Sequence[Mapping[str, Any]] | None = None,
) -> list[Job]:
    """The members to train on some people, from random weights or from those in `begin`."""
    return [
        Job(
            f"{name}-{member}",
            config.model,
            config.batches,
            training,
            prepared.content,
            list(people.values()),
            torch.stack([prepared.profiles[user] for user in people]),
            config.seed + member,
            None,
            None if begin is None else begin[member],
        )
        for member in range(config.num_members)
    ]


def refit_training(config: Config) -> TrainingConfig:
    """How the members are trained on everyone, after they have met people who were kept from them."""
    training, share = config.training, config.refit.share
    if not share:
        return training
    num_epochs = max(1, round(share * training.num_epochs))
    return replace(training, num_epochs=num_epochs, learning_rate=config.refit.rate * training.learning_rate)


def retraining_jobs(start: Recommender, prepared: Prepared, config: Config) -> list[Job]:
    """The members to train on from those of a served model.

    Raises:
        DataError: none of the served model's items is left.
        ConfigError: an item leaves a table whose rows are shared between items.
    """
    again = config.retraining
    rate = again.rate * config.training.learning_rate
    training = replace(config.training, num_epochs=again.num_epochs, learning_rate=rate)
    return make_jobs("everyone", prepared.histories, prepared, config, training, _renewed(start, prepared))


def _renewed(start: Recommender, prepared: Prepared) -> list[Any]:
    """The weights of a served model's members for the items of now."""
    served = {name: place for place, name in enumerate(start.vocabulary.ids[: start.num_trained])}
    kept = torch.tensor([served[name] for name in prepared.vocabulary.ids if name in served], dtype=torch.int64)
    chosen = np.concatenate([history.items for history in prepared.histories.values()])
    counts = torch.from_numpy(np.bincount(chosen, minlength=len(prepared.vocabulary)))
    catalogue = Catalogue(counts, prepared.content)
    return [dict(renew_model(model, catalogue, kept).state_dict()) for model in start.backbone.models()]


def _meta_train(
    head: Head,
    params: Params,
    shared: Shared,
    scorers: Scorers | None,
    newcomers: Mapping[str, History],
    profiles: Mapping[str, Float[Tensor, "profile"]],
    config: Config,
    meta: MetaConfig,
    stage: StageHandle,
) -> tuple[MetaResult, Scorers]:
    """Meta-train on newcomers whom the shared model has never seen, and the scorers neither; None: fit them first."""
    training, validating = split_newcomers(newcomers)
    train_set, validation_set = (
        make_episodes(
            list(people.values()),
            torch.stack([profiles[user] for user in people]),
            shared.backbone,
            shared.items.vectors,
            shared.items,
            meta.support_sizes,
            meta.min_query,
            meta.window,
        )
        for people in (training, validating)
    )
    if scorers is None:
        known = np.flatnonzero(train_set.log.lengths() > 0)
        known = known[np.unique(np.linspace(0, len(known) - 1, _TASKS_TO_CHOOSE_BY).astype(np.int64))]
        relevant, seen = train_set.relevant.numpy()[known], train_set.seen.numpy()[known]
        scorers = choose_scorers(shared.log, train_set.log.take(known), relevant, seen, config.item_item)
    result = meta_train(
        head,
        params,
        shared.items,
        scorers,
        train_set,
        validation_set,
        meta,
        seed=config.seed,
        on_step=lambda step, of, value: stage.step(step, of, f"NDCG@10 {value:.4f}"),
    )
    first, best = result.validation[0][1], max(value for _, value in result.validation)
    stage.done(
        f"{len(train_set.size):,} episodes of {len(training):,} people, validation NDCG@10 {first:.4f} → {best:.4f}"
    )
    return result, scorers


def _go_on(
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
    head = _make_head(served, prepared, config)
    learned = MetaResult(start.params, (), (), None)
    if len(newcomers) < config.retraining.min_newcomers:
        stage.done(
            f"carried over: {len(newcomers):,} people with {config.meta.min_items} items have come since the served "
            f"model was trained, meta-training needs {config.retraining.min_newcomers:,} (retraining.min_newcomers)"
        )
    else:
        # What the learner has fitted to profiles is part of what it knows, and is not fitted anew.
        head = head._replace(prepare=lambda params, profiles: params)
        meta = replace(config.meta, num_steps=config.retraining.num_steps, search_start=False)
        nobody = from_histories([])
        shared = Shared(start.backbone, served, table.space, table.unseen_popularity, table.posterior.counts, nobody)
        try:
            found, _ = _meta_train(
                head, start.params, shared, start.scorers, newcomers, prepared.profiles, config, meta, stage
            )
            # Tastes that have turned make the served model poor for newcomers: no reason to keep it for longer.
            if found.quality is not None and found.quality.verdict == "worse":
                stage.done(f"carried over: meta-training of {config.meta.learner}: {found.quality.describe()}")
            else:
                learned = found
        except NumericalError as error:
            stage.done(f"carried over: {error}")
    layout = _layout(items, content, prepared, config)
    fresh = _make_head(items, prepared, config).params(layout, items)
    width, others = served.features.shape[1], content.shape[1] + items.vectors.shape[1]
    rank = items.features.shape[1] - others
    return learned._replace(params=carry_over(learned.params, fresh, width, width - others, rank))


def newcomers_since(served: Recommender, dataset: Dataset, config: Config) -> dict[str, History]:
    """The people who chose nothing until the served model was trained; histories are of items that it was trained on.

    How an item fares that nobody had chosen says nothing of a person. Only people with enough items count.
    """
    trained = Vocabulary(served.vocabulary.ids[: served.num_trained])
    moment = datetime(1970, 1, 1) + timedelta(seconds=served.trained_until)
    first = pl.col("timestamp").min().over("user_id")
    events = dataset.interactions.filter((first > moment) & pl.col("item_id").is_in(list(trained.ids)))
    histories = build_histories(events, trained, config.negative_events)
    return {user: history for user, history in histories.items() if len(history.items) >= config.meta.min_items}


def _make_head(items: Items, prepared: Prepared, config: Config) -> Head:
    num_scorers = PER_SCORER * len(config.item_item.kinds)
    return make_head(
        config.meta.learner, items.features.shape[1], prepared.profile_encoder.dim, config.learner, num_scorers
    )


def _layout(items: Items, content: Float[Tensor, "item content"], prepared: Prepared, config: Config) -> Layout:
    dim = items.vectors.shape[1]
    rank = items.features.shape[1] - content.shape[1] - dim
    return layout_of(rank, content.shape[1], dim, prepared.profile_encoder.dim, config.evidence)


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


def fingerprint(job: Job) -> str:
    """Hash all that a member's weights depend on, so that no run goes on from the checkpoint of another."""
    digest = hashlib.sha256(repr((job.seed, job.model, job.batches, job.training)).encode())
    for array in (
        job.content.numpy(),
        job.profiles.numpy(),
        *(part for history in job.histories for part in history[:3]),
    ):
        digest.update(repr(array.shape).encode() + array.tobytes())
    for name, weight in (job.start or {}).items():
        digest.update(name.encode() + repr(weight.shape).encode() + weight.numpy().tobytes())
    return digest.hexdigest()[:16]


def assemble(
    members: Sequence[Trained],
    histories: Mapping[str, History],
    prepared: Prepared,
    content: Float[Tensor, "item content"],
    config: Config,
    until: float,
) -> Shared:
    """Put trained members together and fit the head's item features on the people they were trained on."""
    catalogue = Catalogue(torch.zeros(len(content), dtype=torch.int64), prepared.content)
    ensemble = Ensemble(config.model, config.num_members, catalogue, prepared.profile_encoder.dim)
    for member, trained in zip(ensemble.members, members, strict=True):
        member.load_state_dict(trained.weights)
        if config.batches.first_tile:  # nobody was read from the middle on: who is now begins as everyone did
            model = cast(SequenceModel, member)
            model.resume.data.copy_(model.start.data)
    ensemble.eval()
    people = list(histories.values())
    with torch.no_grad():
        vectors = ensemble.item_vectors()
        features, space = fit_features(people, content, vectors, config.evidence)
        popularity = fit_popularity(people, len(vectors), config.evidence.half_life, until)
        items = Items(features, vectors, ensemble.item_bias(), popularity.items)
    return Shared(ensemble, items, space, popularity.unseen, popularity.counts, from_histories(people))


def learn_items(
    shared: Shared, prepared: Prepared, content: Float[Tensor, "item content"], config: Config, until: float
) -> ItemPosterior:
    """Let items of the training data play the new one, and learn what their first choosers say of them."""
    items = shared.items
    with torch.no_grad():
        vectors = shared.backbone.encode_new(prepared.content)
        evidence = items.features[:, : rank_of(items, config.evidence)]
        foretold = Items(
            torch.cat(
                [
                    foretell_evidence(content, evidence, config.evidence),
                    content,
                    shared.space.vector_rotation(vectors),
                ],
                1,
            ),
            vectors,
            items.bias.min().expand(len(vectors)),
            torch.full((len(vectors),), shared.unseen_popularity),
        )
        return fit_item_posterior(
            list(prepared.histories.values()),
            items,
            foretold,
            shared.counts,
            config.item_tasks,
            config.evidence,
            until=until,
            seed=config.seed,
        )


def _fit_ratings(
    dataset: Dataset, prepared: Prepared, table: ItemTable, config: Config, stage: StageHandle
) -> tuple[RatingModel | None, dict[str, Any]]:
    """The model of ratings and what is said of it in the record of the training; None where there are too few."""
    parts = [history.rated() for history in prepared.histories.values()]
    ratings = Ratings(
        np.repeat(np.arange(len(parts)), [len(items) for items, _ in parts]),
        np.concatenate([items for items, _ in parts]),
        np.concatenate([values for _, values in parts]),
    )
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


def prepare(
    dataset: Dataset, config: Config, stage: StageHandle | None = None, *, start: Recommender | None = None
) -> Prepared:
    """Turn a data set into arrays: `index_events`, then `encode`.

    Raises: as they do.
    """
    return encode(dataset, index_events(dataset, config, start=start), config, stage, start=start)


def index_events(dataset: Dataset, config: Config, *, start: Recommender | None = None) -> Indexed:
    """Number the items and collect the histories; only items and people with choices count, others teach nothing.

    With `start`, the items that it was trained on come first, in its order.

    Raises:
        DataError: no event is a choice.
    """
    chosen = dataset.interactions.filter(~pl.col("event_type").is_in(list(config.negative_events)))
    if chosen.is_empty():
        raise DataError(
            f"{dataset.name}: every event is of a type in negative_events {config.negative_events}; "
            "nothing says what people choose"
        )
    ids = chosen["item_id"].unique().sort()
    if start is not None:
        first = pl.Series("item_id", start.vocabulary.ids[: start.num_trained], dtype=pl.String)
        ids = pl.concat([first.filter(first.is_in(ids.implode())), ids.filter(~ids.is_in(first.implode()))])
    vocabulary = Vocabulary(tuple(ids))
    known = dataset.interactions.filter(pl.col("item_id").is_in(vocabulary.frame["item_id"].implode()))
    histories = {
        user: history
        for user, history in build_histories(known, vocabulary, config.negative_events, config.rating_events).items()
        if len(history.items) > 0
    }
    return Indexed(vocabulary, histories)


def encode(
    dataset: Dataset,
    indexed: Indexed,
    config: Config,
    stage: StageHandle | None = None,
    *,
    start: Recommender | None = None,
) -> Prepared:
    """Encode the content of the indexed items and the profiles of the people; with `start`, as that model does.

    Raises:
        DataError: an attribute is missing that `start` reads.
    """
    vocabulary, histories = indexed
    catalog = _rows(dataset.items, vocabulary)
    people = pl.DataFrame({"user_id": list(histories)}).join(
        dataset.users.frame, on="user_id", how="left", maintain_order="left"
    )

    def on_texts(done: int, of: int) -> None:
        if stage is not None:
            stage.step(done, of, "texts")

    if start is not None:
        item_encoder, profile_encoder = start.item_table.encoder, start.profile_encoder
        content = start.encode_items(catalog, on_texts)
    else:
        # Overrides are by column name, and a name belongs to the table that has it.
        item_encoder = AttributeEncoder.fit(
            catalog.frame,
            catalog.numeric,
            catalog.categorical,
            _overrides_for(config.attributes, (*catalog.numeric, *catalog.categorical)),
        )
        columns = (*dataset.users.numeric, *dataset.users.categorical)
        profile_encoder = AttributeEncoder.fit(
            people, dataset.users.numeric, dataset.users.categorical, _overrides_for(config.attributes, columns)
        )
        content = encode_content(catalog, item_encoder, config.text, on_texts)
    encoded = torch.from_numpy(profile_encoder.transform(people))
    titles = catalog.titles()
    return Prepared(
        vocabulary,
        tuple(titles[name] for name in vocabulary.ids),
        histories,
        dict(zip(histories, encoded, strict=True)),
        content,
        item_encoder,
        profile_encoder,
    )


def newcomers_of(histories: Mapping[str, History], config: Config) -> tuple[dict[str, History], dict[str, History]]:
    """The people of the shared model and those who play the newcomer, the same ones at every call.

    Raises:
        DataError: fewer than three people can play the newcomer.
    """
    others, newcomers = hold_out(
        histories,
        share=config.meta.held_out,
        min_items=config.meta.min_items,
        rng=np.random.default_rng([config.seed, 1]),
    )
    if len(newcomers) < 3 or not others:
        raise DataError(
            f"meta-training: {len(newcomers)} people with at least {config.meta.min_items} distinct items can play "
            "the newcomer, expected at least 3; add data or lower meta.min_items"
        )
    return others, newcomers


def check_newcomers(newcomers: Mapping[str, History], config: Config) -> None:
    """See that there are episodes to train the head on and to validate it on, before anything is computed.

    Raises:
        ConfigError: every support size is above what the backbone reads.
        DataError: nobody has enough items for an episode.
    """
    for people in split_newcomers(newcomers):
        find_cuts(list(people.values()), config.model, config.meta.support_sizes, config.meta.min_query)


def split_newcomers(
    newcomers: Mapping[str, History],
) -> tuple[dict[str, History], dict[str, History]]:
    """Two thirds to train on, one third (every third id) to validate on."""
    places: Sequence[tuple[str, History]] = list(newcomers.items())
    return (
        {user: history for place, (user, history) in enumerate(places) if place % 3 != 2},
        {user: history for place, (user, history) in enumerate(places) if place % 3 == 2},
    )


def _rows(catalog: Catalog, vocabulary: Vocabulary) -> Catalog:
    """The rows of a catalogue in the order of a vocabulary."""
    order = vocabulary.frame.select("item_id")
    return replace(catalog, frame=order.join(catalog.frame, on="item_id", how="left", maintain_order="left"))


def _overrides_for(config: AttributeConfig, columns: Sequence[str]) -> AttributeConfig:
    return replace(config, overrides={k: v for k, v in config.overrides.items() if k in columns})
