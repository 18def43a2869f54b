"""Pre-training of the backbone on everyone's sequences: one loop that reads from top to bottom."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from palate.backbone.checkpoint import epoch_rng, load_checkpoint, save_checkpoint
from palate.backbone.losses import full_softmax_loss, future_weights, sampled_softmax_loss
from palate.backbone.transformer import Backbone
from palate.data.episodes import History, pack
from palate.errors import ConfigError, DataError, NumericalError


@dataclass(frozen=True)
class PretrainingConfig:
    """How the backbone is trained."""

    num_epochs: int = 12
    """Passes over all people."""
    batch_size: int = 32
    """People a step."""
    learning_rate: float = 2e-3
    """Peak; warmed up over `warmup_steps`, then linear down to 2 %."""
    warmup_steps: int = 50
    """Steps until the learning rate has its peak."""
    weight_decay: float = 0.01
    """Of AdamW, on all weights."""
    clip_norm: float = 1.0
    """Largest norm of a step's gradient."""
    decay: float = 0.6
    """Weight of each item to come relative to the one before it, as a target (0: the next item alone). Before the first
    event all items to come weigh the same."""
    positions_per_user: int = 16
    """Positions of a sequence that are trained in one step, drawn at random; position 0 is as likely as any."""
    loss: Literal["full", "sampled"] = "full"
    """Softmax over the whole catalogue, or over a sample of it."""
    num_negatives: int = 512
    """Items in the sample, drawn by popularity^0.5; for loss = "sampled"."""
    crop: float = 0.0
    """Share of long histories that start in the middle, so that later purchases are trained on too."""

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "positions_per_user", "num_negatives"):
            if getattr(self, name) < 1:
                raise ConfigError(f"pretraining.{name} is {getattr(self, name)}; it must be at least 1")
        if self.learning_rate <= 0:
            raise ConfigError(f"pretraining.learning_rate is {self.learning_rate}; it must be above 0")
        for name in ("decay", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"pretraining.{name} is {getattr(self, name)}; it must be in [0, 1]")


class PretrainingResult(NamedTuple):
    """What a run leaves behind beside the trained weights."""

    losses: tuple[float, ...]
    """Mean training loss of each epoch, in nats."""


def pretrain(
    backbone: Backbone,
    histories: Sequence[History],
    profiles: Float[Tensor, "user profile"],
    config: PretrainingConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, int, float], None] | None = None,
) -> PretrainingResult:
    """Train `backbone` in place on people's histories; `profiles` has their rows in the same order.

    With `checkpoint`, every epoch ends by writing that file, and a run that finds it goes on from there to the same
    weights, bit for bit, as a run that was never interrupted. `on_epoch(epoch, of, loss)` is called after each.

    Raises:
        DataError: nobody has two items.
        ModelError: the checkpoint is unreadable or of another model.
        NumericalError: the loss or its gradient is not finite; names epoch and step.
    """
    rows = [row for row, history in enumerate(histories) if len(history.items) >= 2]
    if not rows:
        raise DataError("pre-training: no person has two distinct items; add interactions")
    rate = _prepare_catalogue(backbone, [histories[row] for row in rows], config)
    optimiser = torch.optim.AdamW(
        backbone.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    torch.manual_seed(seed)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses = load_checkpoint(checkpoint, backbone, optimiser)["losses"].tolist()

    steps_per_epoch = math.ceil(len(rows) / config.batch_size)
    for epoch in range(len(losses), config.num_epochs):
        rng = epoch_rng(seed, epoch)
        order = rng.permutation(rows)
        backbone.train()
        total = 0.0
        for step in range(steps_per_epoch):
            chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
            batch = [_crop(histories[row], backbone.config.max_events, config.crop, rng) for row in chosen]
            loss = _batch_loss(backbone, batch, profiles[torch.from_numpy(chosen)], config, rate, rng)
            if not torch.isfinite(loss):
                raise NumericalError(
                    f"pre-training: the loss became {loss.item()} at epoch {epoch + 1}, step {step + 1}; "
                    "lower pretraining.learning_rate"
                )
            done = (epoch * steps_per_epoch + step) / (config.num_epochs * steps_per_epoch)
            warm = min(1.0, (epoch * steps_per_epoch + step + 1) / config.warmup_steps)
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * warm * max(0.02, 1 - done)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(backbone.parameters(), config.clip_norm)
            if not torch.isfinite(norm):
                raise NumericalError(
                    f"pre-training: the norm of the gradient became {norm.item()} at epoch {epoch + 1}, "
                    f"step {step + 1}; lower pretraining.learning_rate"
                )
            optimiser.step()
            total += loss.item() * len(chosen)
        losses.append(total / len(rows))
        if checkpoint is not None:
            save_checkpoint(checkpoint, backbone, optimiser, {"losses": torch.tensor(losses, dtype=torch.float64)})
        if on_epoch is not None:
            on_epoch(epoch + 1, config.num_epochs, losses[-1])
    backbone.eval()
    return PretrainingResult(tuple(losses))


class _Catalogue(NamedTuple):
    """What sampling needs to know of the items."""

    probability: Float[Tensor, "item"]
    log_rate: Float[Tensor, "item"]


def _prepare_catalogue(backbone: Backbone, histories: Sequence[History], config: PretrainingConfig) -> _Catalogue:
    """Start the item biases at the log of popularity and fix how negatives are drawn."""
    num_items = len(backbone.items.bias)
    counts = torch.from_numpy(
        np.bincount(np.concatenate([history.items for history in histories]), minlength=num_items)
    ).float()
    with torch.no_grad():
        backbone.items.bias.copy_(((counts + 1) / len(histories)).log())
    probability = counts.sqrt()
    probability = probability / probability.sum()
    return _Catalogue(probability, (probability * config.num_negatives).clamp_min(1e-12).log())


def _crop(history: History, max_events: int, share: float, rng: np.random.Generator) -> History:
    """The stretch of a history that this step reads: its beginning, or with probability `share` a random one."""
    spare = len(history.items) - max_events
    start = int(rng.integers(0, spare + 1)) if spare > 0 and rng.random() < share else 0
    stop = start + max_events + 1  # the last position has something to predict
    return History(history.items[start:stop], history.times[start:stop], history.refused)


def _batch_loss(
    backbone: Backbone,
    batch: Sequence[History],
    profiles: Float[Tensor, "user profile"],
    config: PretrainingConfig,
    catalogue: _Catalogue,
    rng: np.random.Generator,
) -> Float[Tensor, ""]:
    sequences = pack(batch)
    lengths = sequences.mask.sum(1)
    read = sequences._replace(**{f: getattr(sequences, f)[:, : backbone.config.max_events] for f in sequences._fields})
    vectors = backbone.items()
    states = backbone(vectors, read, profiles)
    # Rows are (person, position) pairs: `positions_per_user` of the positions 0 .. length − 1 of each person.
    drawn = [rng.choice(n, min(n, config.positions_per_user), replace=False) for n in lengths.tolist()]
    users = torch.arange(len(batch)).repeat_interleave(torch.tensor([len(places) for places in drawn]))
    places = torch.from_numpy(np.concatenate(drawn))
    targets = sequences.items[users]
    # The list for someone without events is judged by all that follows, not by how their first basket begins.
    weights = torch.where(
        (places == 0)[:, None],
        future_weights(places, lengths[users], targets.shape[1], 1.0),
        future_weights(places, lengths[users], targets.shape[1], config.decay),
    )
    past = torch.arange(targets.shape[1])[None, :] < places[:, None]
    # Padding repeats item 0, so the past is scattered by maximum, which no later False can undo.
    seen = torch.zeros(len(users), len(vectors)).scatter_reduce_(1, targets, past.float(), "amax").bool()
    rows, bias = states[users, places], backbone.items.bias
    if config.loss == "full":
        return full_softmax_loss(rows, vectors, bias, targets, weights, seen)
    negatives = torch.multinomial(catalogue.probability, config.num_negatives, replacement=True)
    return sampled_softmax_loss(rows, vectors, bias, targets, weights, seen, negatives, catalogue.log_rate)
