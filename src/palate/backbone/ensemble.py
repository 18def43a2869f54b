"""Several backbones side by side: trained from different seeds, scored together.

Item vectors and states are concatenated, so that the score of the ensemble is the sum of its members' scores and still
one inner product. What one random start gets wrong, another does not: the spread between seeds is largest where the
least is known of a person.
"""

import multiprocessing
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from palate.backbone.pretraining import PretrainingConfig, pretrain
from palate.backbone.transformer import Backbone, BackboneConfig
from palate.data.episodes import History, Sequences


class Ensemble(nn.Module):
    """Backbones of one configuration; with one member it is that backbone."""

    def __init__(
        self, config: BackboneConfig, content: Float[Tensor, "item content"], num_profile_features: int
    ) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(Backbone(config, content, num_profile_features) for _ in range(config.num_members))

    def backbones(self) -> list[Backbone]:
        """The members, in the order of their parts of a vector."""
        return cast(list[Backbone], list(self.members))

    def item_vectors(self) -> Float[Tensor, "item dim"]:
        """Vectors of the items in training, member after member."""
        return torch.cat([member.items() for member in self.backbones()], 1)

    def item_bias(self) -> Float[Tensor, "item"]:
        """Summed item biases."""
        return torch.stack([member.items.bias for member in self.backbones()]).sum(0)

    def encode_new(self, content: Float[Tensor, "item content"]) -> Float[Tensor, "item dim"]:
        """Vectors of items that training has never seen."""
        return torch.cat([member.items.encode_new(content) for member in self.backbones()], 1)

    def forward(
        self,
        vectors: Float[Tensor, "item dim"],
        sequences: Sequences,
        profiles: Float[Tensor, "user profile"],
    ) -> Float[Tensor, "user position dim"]:
        """States at every position, member after member; `vectors` are `item_vectors()`."""
        parts = torch.split(vectors, self.config.dim, dim=1)
        states = [member(part, sequences, profiles) for member, part in zip(self.backbones(), parts, strict=True)]
        return torch.cat(states, -1)

    def last_states(
        self,
        vectors: Float[Tensor, "item dim"],
        sequences: Sequences,
        profiles: Float[Tensor, "user profile"],
    ) -> Float[Tensor, "user dim"]:
        """The state after each person's last event."""
        lengths: Int64[Tensor, "user"] = sequences.mask.sum(1)
        states: Tensor = self(vectors, sequences, profiles)
        return states[torch.arange(len(lengths)), lengths]


class Job(NamedTuple):
    """One backbone to train; everything that it depends on."""

    name: str
    config: BackboneConfig
    content: Float[Tensor, "item content"]
    histories: Sequence[History]
    profiles: Float[Tensor, "user profile"]
    pretraining: PretrainingConfig
    seed: int
    checkpoint: Path | None


class Trained(NamedTuple):
    """A trained backbone's weights, and the mean loss of each epoch."""

    weights: dict[str, Any]
    losses: tuple[float, ...]


def run_job(job: Job, on_epoch: Callable[[float], None]) -> Trained:
    """Train one backbone; the result depends on the job alone, wherever it runs.

    Raises:
        DataError, ModelError, NumericalError: as `pretrain`.
    """
    torch.manual_seed(job.seed)
    backbone = Backbone(job.config, job.content, job.profiles.shape[1])
    result = pretrain(
        backbone,
        job.histories,
        job.profiles,
        job.pretraining,
        seed=job.seed,
        checkpoint=job.checkpoint,
        on_epoch=lambda epoch, of, loss: on_epoch(loss),
    )
    return Trained(backbone.state_dict(), result.losses)


def run_jobs(jobs: Sequence[Job], workers: int, on_epoch: Callable[[float], None]) -> list[Trained]:
    """Train several backbones, one thread each, in this process or in `workers` others; same results either way.

    Several single-thread processes beat one process with several threads: matrices here are small, and sums that are
    split among threads are not the same from run to run.

    Raises:
        DataError, ModelError, NumericalError: as `pretrain`.
    """
    if min(workers, len(jobs)) <= 1:
        return [run_job(job, on_epoch) for job in jobs]
    context = multiprocessing.get_context("spawn")
    epochs = context.Queue()
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start_worker, initargs=(epochs,)
    ) as pool:
        # Arrays travel as numpy: torch would pass file descriptors, which run out.
        futures = [pool.submit(_work, _packed(job)) for job in jobs]
        while not all(future.done() for future in futures):
            try:
                on_epoch(epochs.get(timeout=0.2))
            except queue.Empty:
                continue
        results = [future.result() for future in futures]
    return [
        Trained({name: torch.from_numpy(value) for name, value in weights.items()}, losses)
        for weights, losses in results
    ]


_epochs: Any = None


def _start_worker(epochs: Any) -> None:
    global _epochs
    _epochs = epochs
    torch.set_num_threads(1)


def _packed(job: Job) -> tuple[Any, ...]:
    return tuple(job._replace(content=job.content.numpy(), profiles=job.profiles.numpy()))  # type: ignore[arg-type]


def _work(fields: tuple[Any, ...]) -> tuple[dict[str, Any], tuple[float, ...]]:
    job = Job(*fields)
    job = job._replace(content=torch.from_numpy(job.content), profiles=torch.from_numpy(job.profiles))
    trained = run_job(job, _epochs.put)
    return {name: value.numpy() for name, value in trained.weights.items()}, trained.losses
