"""Meta-training of the sequence head: gates, decays and preconditioner through the adaptation of many people.

The people must be ones that neither the sequence model nor the tables were fitted on: on its own people a model looks
too good, and the head would learn to leave it alone. The outer loss is the softmax loss of the next item at support
sizes drawn evenly in their logarithm, with the items already chosen taken out. Then, on people kept back, each range of
support sizes is trusted only as far as their lists are surely better for it; with trust 0 the scores are the sequence
model's own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.func import vmap

from palate.errors import ConfigError, DataError, NumericalError
from palate.meta.learner import Params
from palate.meta.sequence_head import KNOTS, SequenceItems, SequenceSupport, adapt, check_params, score, surprises

TRUSTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How far a range of support sizes can be trusted."""


@dataclass(frozen=True)
class SequenceTrainingConfig:
    """The outer loop."""

    num_epochs: int = 4
    """Passes over the people."""
    batch_size: int = 16
    """People of a step; memory is batch_size · events · items · 4 bytes for each table."""
    num_counts: int = 12
    """Support sizes of a person in a step."""
    learning_rate: float = 0.05
    """Of gates, decays and grades (Adam), falling to 0 along a line."""
    precondition_rate: float = 0.1
    """Learning rate of the preconditioner relative to the others; it has many more numbers."""

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "num_counts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"head.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "precondition_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"head.{name} is {getattr(self, name)}; it must be above 0")


class People(NamedTuple):
    """Histories from their first event on, padded, with what the frozen model made of them."""

    items: Int64[Tensor, "user event"]
    grades: Int64[Tensor, "user event"]
    lengths: Int64[Tensor, "user"]
    """Events that are there."""
    states: Float[Tensor, "user position dim"]
    """The model's state after 0, 1, 2, … events."""
    surprises: Float[Tensor, "user event dim"]
    known: Float[Tensor, "user item"]
    """As in `SequenceSupport`."""

    def take(self, chosen: Int64[Tensor, "chosen"]) -> "People":
        """Some of the people."""
        return People(*(column[chosen] for column in self))


def make_people(
    catalogue: SequenceItems,
    items: Int64[Tensor, "user event"],
    grades: Int64[Tensor, "user event"],
    lengths: Int64[Tensor, "user"],
    states: Float[Tensor, "user position dim"],
    known: Float[Tensor, "user item"] | None = None,
) -> People:
    """Work out everyone's surprises, without gradients; `states` has a position more than there are events.

    `known` is what is known of each before any event, as evidence for the items; by default nothing.

    Raises:
        DataError: there is nobody, or the shapes do not belong together.
    """
    if len(items) == 0 or states.shape[:2] != (len(items), items.shape[1] + 1) or grades.shape != items.shape:
        raise DataError(
            f"people: items {tuple(items.shape)}, grades {tuple(grades.shape)} and states {tuple(states.shape)} do not "
            "fit; expected (user, event) twice and (user, event + 1, dim), with at least one user"
        )
    with torch.no_grad():
        rows = [surprises(s[:-1], chosen, catalogue) for s, chosen in zip(states, items, strict=True)]
    nothing = torch.zeros(1, 1).expand(len(items), len(catalogue.bias))
    return People(items, grades, lengths, states, torch.stack(rows), nothing if known is None else known)


def scores_at(
    params: Params, catalogue: SequenceItems, people: People, counts: Int64[Tensor, "user count"]
) -> Float[Tensor, "user count item"]:
    """Scores of the catalogue for each person after so many events, each adapted to those events alone."""
    width = max(int(counts.max()), 1)

    def one(
        items: Tensor, grades: Tensor, lengths: Tensor, states: Tensor, rows: Tensor, known: Tensor, sizes: Tensor
    ) -> Float[Tensor, "count item"]:
        def after(count: Tensor, state: Tensor) -> Tensor:
            support = SequenceSupport(items[:width], grades[:width], rows[:width], state, count, known)
            return score(adapt(params, catalogue, support), catalogue)

        return vmap(after)(sizes, states[sizes])

    return vmap(one)(*people, counts)


def seen_before(
    items: Int64[Tensor, "user event"], counts: Int64[Tensor, "user count"], num_items: int
) -> Bool[Tensor, "user count item"]:
    """The items among each person's first `counts` events."""
    inside = torch.arange(items.shape[1]) < counts[..., None]
    marks = torch.zeros(*counts.shape, num_items)
    return marks.scatter_add(2, items[:, None].expand(inside.shape), inside.float()) > 0


def next_item_losses(
    params: Params, catalogue: SequenceItems, people: People, counts: Int64[Tensor, "user count"]
) -> Float[Tensor, "user count"]:
    """−log softmax of the event after the first `counts`, the items before it taken out."""
    targets = people.items.gather(1, counts)
    removed = seen_before(people.items, counts, len(catalogue.bias))
    removed = removed.scatter(2, targets[..., None], torch.zeros_like(removed[..., :1]))
    scores = scores_at(params, catalogue, people, counts).masked_fill(removed, -torch.inf)
    # NOTE: a plain softmax: the fused one of the sequence model has no second derivative.
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none").view(counts.shape)


def train_head(
    start: Params,
    catalogue: SequenceItems,
    people: People,
    config: SequenceTrainingConfig,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Params:
    """Meta-train on people with at least 2 events; the start is left as it is.

    Raises:
        DataError: nobody has 2 events.
        ModelError: the start was made for another catalogue.
        NumericalError: a loss is not finite; says at which step.
    """
    check_params(start, catalogue)
    usable = torch.nonzero(people.lengths >= 2)[:, 0]
    if len(usable) == 0:
        raise DataError(f"head: nobody of {len(people.lengths):,} people has 2 events; give longer histories")
    params = {name: value.clone().requires_grad_(not name.startswith("fixed.")) for name, value in start.items()}
    rates = {name: config.learning_rate for name in params if params[name].requires_grad}
    rates["precondition"] *= config.precondition_rate
    optimizer = torch.optim.Adam(
        [{"params": [params[name]], "lr": rate, "full": rate} for name, rate in rates.items()], betas=(0.9, 0.95)
    )
    generator = torch.Generator().manual_seed(seed)
    num_steps, step = config.num_epochs * -(-len(usable) // config.batch_size), 0
    for epoch in range(config.num_epochs):
        total = 0.0
        for chosen in usable[torch.randperm(len(usable), generator=generator)].split(config.batch_size):  # type: ignore[no-untyped-call]
            batch = people.take(chosen)
            losses = next_item_losses(params, catalogue, batch, _draw_counts(batch.lengths, config, generator))
            loss = losses.mean()
            if not torch.isfinite(loss):
                raise NumericalError(f"head: the loss is {loss.item()} at step {step}; lower head.learning_rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = group["full"] * (1 - step / num_steps)
            optimizer.step()
            step += 1
            total += loss.item() * len(chosen)
        say(f"epoch {epoch + 1}: loss {total / len(usable):.4f}")
    return {name: value.detach() for name, value in params.items()}


def fit_trust(
    params: Params,
    catalogue: SequenceItems,
    people: People,
    *,
    batch_size: int = 16,
    num_counts: int = 12,
    seed: int = 0,
) -> Params:
    """Choose how far each range of support sizes is trusted, by the lists of people kept back from `train_head`.

    A support size belongs to the knot that is nearest in the logarithm. The range gets the trust with the best nDCG@10
    of the next item if it beats trust 0, person by person, by more than one standard error; else 0. (The loss would
    choose otherwise: after one event it falls while the lists do not get better.) Where fewer than two people kept back
    have that many events, the range has the trust of the one before.

    Raises:
        DataError: nobody has 2 events.
    """
    usable = torch.nonzero(people.lengths >= 2)[:, 0]
    if len(usable) == 0:
        raise DataError(f"head: nobody of {len(people.lengths):,} people has 2 events; give longer histories")
    generator = torch.Generator().manual_seed(seed)
    knots = torch.tensor(KNOTS, dtype=torch.float32).log1p()
    config = SequenceTrainingConfig(batch_size=batch_size, num_counts=num_counts)
    sums = torch.zeros(len(TRUSTS), len(people.lengths), len(KNOTS), dtype=torch.float64)
    numbers = torch.zeros(len(people.lengths), len(KNOTS), dtype=torch.float64)
    for chosen in usable.split(batch_size):  # type: ignore[no-untyped-call]
        batch = people.take(chosen)
        counts = _draw_counts(batch.lengths, config, generator)
        nearest = (counts[..., None].float().log1p() - knots).abs().argmin(-1)
        numbers[chosen] = numbers[chosen].scatter_add(1, nearest, torch.ones(nearest.shape, dtype=torch.float64))
        for place, trust in enumerate(TRUSTS):
            trusted = {**params, "fixed.trust": torch.full((len(KNOTS),), trust)}
            with torch.no_grad():
                values = _next_item_ndcg(trusted, catalogue, batch, counts)
            sums[place, chosen] = sums[place, chosen].scatter_add(1, nearest, values)
    best = torch.zeros(len(KNOTS))
    for knot in range(len(KNOTS)):
        there = numbers[:, knot] > 0
        if there.sum() < 2:
            best[knot] = best[knot - 1] if knot else 0.0
            continue
        gains = (sums[:, there, knot] - sums[0, there, knot]) / numbers[there, knot]
        top = int(gains.mean(1).argmax())
        error = gains[top].std() / math.sqrt(gains.shape[1])
        best[knot] = TRUSTS[top] if gains[top].mean() > error else 0.0
    return {**params, "fixed.trust": best}


def _next_item_ndcg(
    params: Params, catalogue: SequenceItems, people: People, counts: Int64[Tensor, "user count"]
) -> Float[Tensor, "user count"]:
    """nDCG@10 of the event after the first `counts`, the items before it taken out."""
    targets = people.items.gather(1, counts)[..., None]
    scores = scores_at(params, catalogue, people, counts)
    removed = seen_before(people.items, counts, len(catalogue.bias))
    wanted = scores.gather(2, targets)
    above = ((scores > wanted) & ~removed).sum(2)
    return torch.where(above < 10, 1 / (above + 2).double().log2(), 0.0)


def _draw_counts(
    lengths: Int64[Tensor, "user"], config: SequenceTrainingConfig, generator: torch.Generator
) -> Int64[Tensor, "user count"]:
    """Support sizes from 1 to one less than a person has, evenly in the logarithm."""
    most = lengths[:, None].float()
    drawn = most ** torch.rand(len(lengths), config.num_counts, generator=generator)
    return torch.minimum(drawn.long(), lengths[:, None] - 1).clamp_min(1)
