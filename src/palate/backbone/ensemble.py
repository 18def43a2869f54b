"""Several sequence models side by side: trained from different seeds, scored together.

Item vectors and states are concatenated, so that the score of the ensemble is the sum of its members' scores and still
one inner product. What one random start gets wrong, another does not: the spread between seeds is largest where the
least is known of a person.
"""

import contextlib
import copy
import multiprocessing
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from palate.backbone.batches import Batch, BatchConfig, BatchSource
from palate.backbone.engine import train
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.backbone.warm_start import content_width
from palate.data.event_log import EventLog
from palate.errors import ModelError
from palate.threads import keep_to_one_thread


class Ensemble(nn.Module):
    """Sequence models of one configuration; with one member it is that model.

    Raises:
        ConfigError: settings that do not fit each other, or the catalogue.
    """

    def __init__(
        self, config: SequenceModelConfig, num_members: int, catalogue: Catalogue, num_profile_features: int
    ) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(SequenceModel(config, catalogue, num_profile_features) for _ in range(num_members))
        self._speaking = tuple(range(num_members))

    def alone(self, member: int) -> "Ensemble":
        """The same members, of which only one speaks: what the others say is zero, in vectors, biases and states."""
        other = copy.copy(self)
        other._speaking = (member,)
        return other

    @property
    def num_content_features(self) -> int:
        """The first so many features of an item's content are read."""
        return content_width(self.models()[0])

    @property
    def num_profile_features(self) -> int:
        """Features of a person that are read: all, or none."""
        return len(self.models()[0].profile)

    def models(self) -> list[SequenceModel]:
        """The members, in the order of their parts of a vector."""
        return cast(list[SequenceModel], list(self.members))

    def item_vectors(self) -> Float[Tensor, "item dim"]:
        """Vectors of the items in training, member after member."""
        return self._joined(lambda place, member: member.items.all())

    def item_bias(self) -> Float[Tensor, "item"]:
        """Summed item biases."""
        return torch.stack([self.models()[place].items.bias for place in self._speaking]).sum(0)

    def encode_new(self, content: Float[Tensor, "item content"]) -> Float[Tensor, "item dim"]:
        """Vectors of items that training has never seen; zeros where the members know items by their ids alone.

        Raises:
            DataError: the members were trained with more content features.
        """
        if self.num_content_features == 0:
            return torch.zeros(len(content), len(self.members) * self.config.dim)
        read = content[:, : self.num_content_features]
        return self._joined(lambda place, member: member.items.encode_new(read))

    def states(self, batch: Batch, vectors: Float[Tensor, "item dim"]) -> Float[Tensor, "user position dim"]:
        """States at every position, member after member; `vectors` are those of all items that the batch names.

        Raises:
            DataError: the batch lacks a column that the members read, or is wider than max_events.
        """
        read = torch.split(vectors[batch.items], self.config.dim, dim=-1)
        return self._joined(lambda place, member: member.states(batch, read[place]))

    def last_states(self, batch: Batch, vectors: Float[Tensor, "item dim"]) -> Float[Tensor, "user dim"]:
        """The state after each person's last event.

        Raises:
            DataError: as `states`.
        """
        lengths = batch.mask.sum(1)
        return self.states(batch, vectors)[torch.arange(len(lengths)), lengths]

    def _joined(self, part: Callable[[int, SequenceModel], Tensor]) -> Tensor:
        """What the members say side by side along the last axis; zeros for those that do not speak."""
        models = self.models()
        said = {place: part(place, models[place]) for place in self._speaking}
        nothing = torch.zeros_like(said[self._speaking[0]])
        return torch.cat([said.get(place, nothing) for place in range(len(models))], -1)


def load_members(
    config: SequenceModelConfig,
    weights: Sequence[Mapping[str, Any]],
    content: Float[Tensor, "item content"] | None,
    num_items: int,
) -> Ensemble:
    """Put trained members together, in evaluation mode.

    `content` is that of the items in training. The members read its first features, as many as they were trained with.
    """
    project = weights[0].get("items.project.weight")
    read = None if project is None or content is None else content[:, : project.shape[1]]
    catalogue = Catalogue(torch.zeros(num_items, dtype=torch.int64), read)
    ensemble = Ensemble(config, len(weights), catalogue, len(weights[0]["profile"]))
    for member, theirs in zip(ensemble.models(), weights, strict=True):
        member.load_state_dict(theirs)
    return ensemble.eval()


class Job(NamedTuple):
    """One member to train; everything that it depends on."""

    name: str
    model: SequenceModelConfig
    batches: BatchConfig
    training: TrainingConfig
    content: Float[Tensor, "item content"]
    """Without columns: items have their ids alone."""
    chosen: EventLog
    """What people chose, with their ratings where the model reads them."""
    profiles: Float[Tensor, "user profile"]
    seed: int
    folder: Path | None
    """Where the run leaves its checkpoints, and goes on from them."""
    start: Mapping[str, Any] | None = None
    """The weights to begin with, a model's whole state; None: random ones."""


class Trained(NamedTuple):
    """A trained member's weights, and the mean loss of each epoch."""

    weights: dict[str, Any]
    losses: tuple[float, ...]


def run_job(job: Job, on_epoch: Callable[[float], None]) -> Trained:
    """Train one member; the result depends on the job alone, wherever it runs.

    Raises:
        ConfigError: settings that do not fit each other or the data, or too little memory.
        DataError: nobody has an event, or the events lack a column that the model reads.
        ModelError: the folder holds another run, or cannot be written.
        NumericalError: a loss or a gradient is not finite.
    """
    counts = np.bincount(job.chosen.items, minlength=len(job.content))
    torch.manual_seed(job.seed)
    content = job.content if job.content.shape[1] else None
    model = SequenceModel(job.model, Catalogue(torch.from_numpy(counts), content), job.profiles.shape[1])
    if job.start is not None:
        model.load_state_dict(job.start)
    result = train(
        model,
        BatchSource(job.chosen, job.batches, job.model.max_events, profiles=job.profiles.numpy()),
        job.training,
        seed=job.seed,
        folder=job.folder,
        on_epoch=lambda record: on_epoch(record.loss),
    )
    if job.batches.first_tile:  # nobody was read from the middle on: who is now begins as everyone did
        model.resume.data.copy_(model.start.data)
    return Trained(model.state_dict(), tuple(record.loss for record in result.history))


def run_jobs(jobs: Sequence[Job], workers: int, on_epoch: Callable[[float], None]) -> list[Trained]:
    """Train several members, one thread each, in this process or in `workers` others; same results either way.

    Several single-thread processes beat one process with several threads: matrices here are small, and sums that are
    split among threads are not the same from run to run.

    Raises:
        ConfigError, DataError, ModelError, NumericalError: as `run_job`.
    """
    if min(workers, len(jobs)) <= 1:
        return [run_job(job, on_epoch) for job in jobs]
    context = multiprocessing.get_context("spawn")
    epochs, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start_worker, initargs=(epochs, stop)
    ) as pool:
        try:
            # Arrays travel as numpy: torch would pass file descriptors, which run out.
            futures = [pool.submit(_work, _packed(job)) for job in jobs]
            while not all(future.done() for future in futures):
                with contextlib.suppress(queue.Empty):
                    on_epoch(epochs.get(timeout=0.2))
                for failed in (future for future in futures if future.done() and future.exception()):
                    failed.result()
            results = [future.result() for future in futures]
        except BaseException as error:
            stop.set()  # the others end with their epoch
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise ModelError(
                    "members: a training process was killed, most often for want of memory; train fewer at once"
                ) from None
            raise
    return [
        Trained({name: torch.from_numpy(value) for name, value in weights.items()}, losses)
        for weights, losses in results
    ]


_epochs: Any = None
_stop: Any = None


def _start_worker(epochs: Any, stop: Any) -> None:
    global _epochs, _stop
    _epochs, _stop = epochs, stop
    keep_to_one_thread()


def _report(loss: float) -> None:
    """Pass an epoch on, and end with it where another member has failed."""
    if _stop.is_set():
        raise SystemExit
    _epochs.put(loss)


def _packed(job: Job) -> tuple[Any, ...]:
    start = None if job.start is None else {name: value.numpy() for name, value in job.start.items()}
    packed = job._replace(content=job.content.numpy(), profiles=job.profiles.numpy(), start=start)  # type: ignore[arg-type]
    return tuple(packed)


def _work(fields: tuple[Any, ...]) -> tuple[dict[str, Any], tuple[float, ...]]:
    job = Job(*fields)
    start = None if job.start is None else {name: torch.from_numpy(value) for name, value in job.start.items()}
    job = job._replace(content=torch.from_numpy(job.content), profiles=torch.from_numpy(job.profiles), start=start)
    trained = run_job(job, _report)
    return {name: value.numpy() for name, value in trained.weights.items()}, trained.losses
