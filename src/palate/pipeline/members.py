"""The members of the shared model: what each is trained on, from which weights, and how they are trained."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palate.backbone.ensemble import Ensemble, Job, Trained, run_jobs
from palate.backbone.sequence_model import Catalogue
from palate.backbone.training_config import TrainingConfig
from palate.backbone.warm_start import renew_model
from palate.config import Config
from palate.data.choices import Choices, with_ratings
from palate.pipeline.preparing import Prepared
from palate.progress import StageHandle
from palate.recommend.recommender import Recommender


def pre_train(
    folds: Sequence[Choices],
    prepared: Prepared,
    config: Config,
    start: Recommender | None,
    stage: StageHandle,
    workers: int,
    checkpoints: str | Path | None,
) -> tuple[list[Trained], list[Trained], tuple[float, ...]]:
    """The members that have not met their folds (none where training goes on), those that serve, the losses of one."""
    everyone, again = prepared.histories, refit_training(config)
    if start is not None:
        jobs = retraining_jobs(start, prepared, config)
    else:
        jobs = [
            make_job(f"member-{member}", member, everyone.without(*folds[member : member + 1]), prepared, config)
            for member in range(config.num_members)
        ]
    epochs, done = sum(job.training.num_epochs for job in jobs), 0
    if start is None and again is not None:
        epochs += len(folds) * again.num_epochs

    def on_epoch(loss: float) -> None:
        nonlocal done
        done += 1
        stage.step(done, max(done, epochs), f"loss {loss:.3f}")

    def run(jobs: list[Job]) -> list[Trained]:
        if checkpoints is not None:
            jobs = [job._replace(folder=Path(checkpoints) / f"{job.name}-{fingerprint(job)}") for job in jobs]
        return run_jobs(jobs, workers, on_epoch)

    trained = run(jobs)
    losses, said = trained[0].losses, f"{len(jobs)} members, {jobs[0].chosen.num_users:,} people each"
    if start is not None:
        first, last = list[Trained](), trained
    elif again is None:
        first, last = trained, trained
    else:  # who has no fold has seen everyone
        more = [
            make_job(f"everyone-{member}", member, everyone, prepared, config, again, trained[member].weights)
            for member in range(len(folds))
        ]
        first, last = trained, run(more) + trained[len(folds) :]
        losses, said = losses + last[0].losses, f"{said}, then all {len(everyone):,}"
    stage.done(f"{said}, loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return first, last, losses


def refit_training(config: Config) -> TrainingConfig | None:
    """How the members are trained on everyone, after people who were kept from them have met them; None: not at all."""
    training, share = config.training, config.refit.share
    if not share:
        return None
    num_epochs = max(1, round(share * training.num_epochs))
    return replace(training, num_epochs=num_epochs, learning_rate=config.refit.rate * training.learning_rate)


def make_job(
    name: str,
    member: int,
    people: Choices,
    prepared: Prepared,
    config: Config,
    training: TrainingConfig | None = None,
    begin: Mapping[str, Any] | None = None,
    reads: Ensemble | None = None,
) -> Job:
    """One member to train on some people, from random weights or from those in `begin`; it reads what `reads` does."""
    profiles = torch.stack([prepared.profiles[user] for user in people])
    return Job(
        name,
        config.model,
        config.batches,
        training or config.training,
        prepared.content if reads is None else prepared.content[:, : reads.num_content_features],
        with_ratings(people.chosen, config.model.rated),
        profiles if reads is None else profiles[:, : reads.num_profile_features],
        config.seed + member,
        None,
        begin,
    )


def retraining_jobs(start: Recommender, prepared: Prepared, config: Config) -> list[Job]:
    """The members to train on from those of a served model.

    Raises:
        DataError: none of the served model's items is left.
        ConfigError: an item leaves a table whose rows are shared between items.
    """
    again = config.retraining
    rate = again.rate * config.training.learning_rate
    training = replace(config.training, num_epochs=again.num_epochs, learning_rate=rate)
    return [
        make_job(f"everyone-{member}", member, prepared.histories, prepared, config, training, weights, start.backbone)
        for member, weights in enumerate(_renewed(start, prepared))
    ]


def _renewed(start: Recommender, prepared: Prepared) -> list[Any]:
    """The weights of a served model's members for the items of now."""
    served = {name: place for place, name in enumerate(start.vocabulary.ids[: start.num_trained])}
    kept = torch.tensor([served[name] for name in prepared.vocabulary.ids if name in served], dtype=torch.int64)
    counts = torch.from_numpy(np.bincount(prepared.histories.chosen.items, minlength=len(prepared.vocabulary)))
    width = start.backbone.num_content_features
    catalogue = Catalogue(counts, prepared.content[:, :width] if width else None)
    return [dict(renew_model(model, catalogue, kept).state_dict()) for model in start.backbone.models()]


def fingerprint(job: Job) -> str:
    """Hash all that a member's weights depend on, so that no run goes on from the checkpoint of another."""
    digest = hashlib.sha256(repr((job.seed, job.model, job.batches, job.training)).encode())
    log = job.chosen
    for array in (job.content.numpy(), job.profiles.numpy(), log.offsets, log.items, log.seconds, log.values):
        if array is None:
            continue
        digest.update(repr(array.shape).encode() + array.tobytes())
    for name, weight in (job.start or {}).items():
        digest.update(name.encode() + repr(weight.shape).encode() + weight.numpy().tobytes())
    return digest.hexdigest()[:16]
