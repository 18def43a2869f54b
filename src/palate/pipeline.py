"""The main job: from a data set to a recommender.

    content → hold out newcomers → shared model without them → meta-train the head on them
            → shared model on everyone → recommender

The head is trained on people whom the shared model has never seen, because that is whom it will serve; what it learns
(gates by support size, precisions, noise, the prior mean on content) carries over to the shared model of everyone.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from palate.backbone.ensemble import Ensemble, Job, Trained, run_jobs
from palate.backbone.sequence_model import Catalogue, SequenceModel
from palate.config import Config
from palate.data.catalog import Catalog
from palate.data.dataset import Dataset
from palate.data.episodes import History, build_histories, hold_out
from palate.data.vocabulary import Vocabulary
from palate.encoders.attributes import AttributeConfig, AttributeEncoder
from palate.errors import DataError
from palate.meta.evidence import (
    FeatureSpace,
    fit_features,
    fit_popularity,
    fit_rotation,
    layout_of,
    make_items,
)
from palate.meta.head import Items, catalogue_statistics, make_head
from palate.meta.training import make_episodes, meta_train
from palate.progress import Reporter, StageHandle
from palate.recommend.content import encode_content
from palate.recommend.recommender import Recommender
from palate.recommend.storage import identify


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


class Shared(NamedTuple):
    """A shared model fitted on some people."""

    backbone: Ensemble
    items: Items
    space: FeatureSpace
    unseen_popularity: float


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread for a while: sums that threads share are not the same from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def train(
    dataset: Dataset,
    config: Config | None = None,
    *,
    reporter: Reporter | None = None,
    checkpoints: Path | None = None,
    workers: int = 1,
) -> Recommender:
    """Train on every event of a data set.

    The members are independent of each other and can train in `workers` processes (a script that asks for more than
    one must be guarded by `if __name__ == "__main__"`). Training uses one thread a process: the same data, config and
    seed give the same model, bit for bit, on the same kind of machine.

    With `checkpoints`, a folder, the members write their progress there after each epoch and an interrupted run goes
    on from it; a run with other data, settings or seed does not see these checkpoints.

    Raises:
        DataError: too little data to train on.
        ConfigError: an unknown learner.
        NumericalError: a loss became NaN or infinite; names the stage and step.
    """
    config = config or Config()
    reporter = reporter or Reporter()
    with reporter.stage("encode content") as stage:
        prepared = prepare(dataset, config, stage)
        stage.done(f"{len(prepared.vocabulary):,} items × {prepared.content.shape[1]} features")
    rotation = fit_rotation(prepared.content, config.evidence.content_dim)
    content = rotation(prepared.content)
    profiles = prepared.profiles

    others, newcomers = newcomers_of(prepared.histories, config)
    groups = {"held-out": others, "everyone": prepared.histories}
    jobs = [
        Job(
            f"{name}-{member}",
            config.model,
            config.batches,
            config.training,
            prepared.content,
            list(people.values()),
            torch.stack([profiles[user] for user in people]),
            config.seed + member,
            None,
        )
        for name, people in groups.items()
        for member in range(config.num_members)
    ]
    if checkpoints is not None:
        jobs = [job._replace(folder=checkpoints / f"{job.name}-{fingerprint(job)}") for job in jobs]
    with reporter.stage("pre-train") as stage:
        done = 0

        def on_epoch(loss: float) -> None:
            nonlocal done
            done += 1
            stage.step(done, max(done, len(jobs) * config.training.num_epochs), f"loss {loss:.3f}")

        trained = run_jobs(jobs, workers, on_epoch)
        losses = trained[-1].losses
        stage.done(
            f"{config.num_members} members for {len(others):,} people and {config.num_members} "
            f"for all {len(prepared.histories):,}, loss {losses[0]:.3f} → {losses[-1]:.3f}"
        )
    half = config.num_members
    shared = assemble(trained[:half], others, prepared, content, config)
    with reporter.stage("meta-train") as stage:
        training, validating = split_newcomers(newcomers)
        train_set, validation_set = (
            make_episodes(
                list(people.values()),
                torch.stack([profiles[user] for user in people]),
                shared.backbone,
                shared.items.vectors[:, :-1],
                shared.items,
                config.meta.support_sizes,
                config.meta.min_query,
            )
            for people in (training, validating)
        )
        width, dim = shared.items.features.shape[1], shared.items.vectors.shape[1] - 1
        rank = width - content.shape[1] - dim
        layout = layout_of(rank, content.shape[1], dim, prepared.profile_encoder.dim, config.evidence)
        head = make_head(config.meta.learner, width, prepared.profile_encoder.dim, config.learner)
        result = meta_train(
            head,
            head.params(layout, shared.items),
            shared.items,
            train_set,
            validation_set,
            config.meta,
            seed=config.seed,
            on_step=lambda step, of, value: stage.step(step, of, f"NDCG@10 {value:.4f}"),
        )
        start, best = result.validation[0][1], max(value for _, value in result.validation)
        stage.done(
            f"{len(train_set.size):,} episodes of {len(training):,} people, validation NDCG@10 {start:.4f} → {best:.4f}"
        )
    final = assemble(trained[half:], prepared.histories, prepared, content, config)
    recommender = Recommender(
        config=config,
        model_id="",
        backbone=final.backbone,
        params=result.params | catalogue_statistics(final.items, result.params["fixed.tempered"]),
        items=final.items,
        num_trained=len(prepared.vocabulary),
        vocabulary=prepared.vocabulary,
        titles=prepared.titles,
        item_encoder=prepared.item_encoder,
        profile_encoder=prepared.profile_encoder,
        content_rotation=rotation,
        space=final.space,
        unseen_popularity=final.unseen_popularity,
        users=prepared.histories,
        profiles=profiles,
        training={
            "backbone loss": [list(point) for point in enumerate(losses, start=1)],
            "meta loss": [list(point) for point in result.losses],
            "meta validation": [list(point) for point in result.validation],
        },
    )
    recommender = replace(recommender, model_id=identify(recommender))
    return recommender.add_items(dataset.items)


def fingerprint(job: Job) -> str:
    """Hash all that a member's weights depend on, so that no run goes on from the checkpoint of another."""
    digest = hashlib.sha256(repr((job.seed, job.model, job.batches, job.training)).encode())
    for array in (
        job.content.numpy(),
        job.profiles.numpy(),
        *(part for history in job.histories for part in history[:3]),
    ):
        digest.update(repr(array.shape).encode() + array.tobytes())
    return digest.hexdigest()[:16]


def assemble(
    members: Sequence[Trained],
    histories: Mapping[str, History],
    prepared: Prepared,
    content: Float[Tensor, "item content"],
    config: Config,
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
        popularity = fit_popularity(people, len(vectors))
        items = make_items(features, vectors, ensemble.item_bias(), popularity.items)
    return Shared(ensemble, items, space, popularity.unseen)


def prepare(dataset: Dataset, config: Config, stage: StageHandle | None = None) -> Prepared:
    """Turn a data set into arrays; only items and people with events count, the others teach nothing.

    Raises:
        DataError: no event is a choice.
    """
    chosen = dataset.interactions.filter(~pl.col("event_type").is_in(list(config.negative_events)))
    if chosen.is_empty():
        raise DataError(
            f"{dataset.name}: every event is of a type in negative_events {config.negative_events}; "
            "nothing says what people choose"
        )
    vocabulary = Vocabulary(tuple(chosen["item_id"].unique().sort()))
    catalog = _rows(dataset.items, vocabulary)
    known = dataset.interactions.filter(pl.col("item_id").is_in(list(vocabulary.ids)))
    histories = {
        user: history
        for user, history in build_histories(known, vocabulary, config.negative_events).items()
        if len(history.items) > 0
    }
    people = pl.DataFrame({"user_id": list(histories)}).join(
        dataset.users.frame, on="user_id", how="left", maintain_order="left"
    )
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
    encoded = torch.from_numpy(profile_encoder.transform(people))
    titles = catalog.titles()
    return Prepared(
        vocabulary,
        tuple(titles[name] for name in vocabulary.ids),
        histories,
        dict(zip(histories, encoded, strict=True)),
        encode_content(
            catalog,
            item_encoder,
            config.text,
            progress=None if stage is None else lambda done, of: stage.step(done, of, "texts"),
        ),
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
    order = pl.DataFrame({"item_id": list(vocabulary.ids)})
    return replace(catalog, frame=order.join(catalog.frame, on="item_id", how="left", maintain_order="left"))


def _overrides_for(config: AttributeConfig, columns: Sequence[str]) -> AttributeConfig:
    return replace(config, overrides={k: v for k, v in config.overrides.items() if k in columns})
