"""Scores for the next item from everyone's sequences: members of the large model, and what goes with what.

Members are trained from different random starts; their log-probabilities are averaged. Beside them stand item-item
models with recency (EASE, neighbours, transitions): a linear count of who chose what together knows of rare items what
a sequence model has had no time to learn. How much each counts is fitted to validation items by maximum likelihood
(stacking: Wolpert, Stacked Generalization, 1992, doi 10.1016/S0893-6080(05)80023-1).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int32
from torch import Tensor

from palate.backbone.batches import BatchConfig, BatchSource, inputs
from palate.backbone.engine import train
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.baselines.item_item import Scorer, item_item_scorer
from palate.data.event_log import EventLog
from palate.errors import ConfigError, DataError
from palate.metrics import ndcg_of_ranks, target_ranks
from palate.scorers.item_weights import Weights, ease_weights, neighbour_weights, transition_weights

_LEAST = 1e-3
"""Evidence below this counts as this in a logarithm: no evidence is not proof."""

ITEM_ITEM: Mapping[str, Callable[[EventLog, int, float], Weights]] = {
    "ease": ease_weights,
    "neighbours": neighbour_weights,
    "transitions": lambda log, num_items, strength: transition_weights(log, num_items),
}
"""Kinds of item-item evidence: (training events, number of items, strength) to weights."""


@dataclass(frozen=True)
class EvidenceConfig:
    """One item-item model, and the settings that validation chooses from."""

    kind: str = "ease"
    """A line of `ITEM_ITEM`: ease, neighbours or transitions."""
    strengths: tuple[float, ...] = (100.0, 1000.0)
    """EASE's λ, or how much neighbours are shrunk, in people; transitions have none and read one value."""
    decays: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    """Weight of an event relative to the one after it."""

    def __post_init__(self) -> None:
        if self.kind not in ITEM_ITEM:
            raise ConfigError(f"evidence.kind is {self.kind!r}; choose one of: {', '.join(ITEM_ITEM)}")
        if not self.strengths or not self.decays:
            raise ConfigError(f"evidence {self.kind}: strengths and decays need a value each")


@dataclass(frozen=True)
class SequenceConfig:
    """How a sequence scorer is trained."""

    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    """Shape and loss of a member."""
    batches: BatchConfig = field(default_factory=BatchConfig)
    """How histories become batches."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How a member is trained."""
    num_members: int = 2
    """Members trained from different seeds."""
    profiles: bool = False
    """Whether members read what the log says of people."""
    evidence: tuple[EvidenceConfig, ...] = (
        EvidenceConfig("ease"),
        EvidenceConfig("neighbours", (10.0, 100.0)),
        EvidenceConfig("transitions", (0.0,), (0.0,)),
    )
    """Item-item models beside the members; none: the members alone."""
    people: int = 2000
    """People whose validation items choose settings and weights, evenly spread over the log."""

    def __post_init__(self) -> None:
        for name in ("num_members", "people"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sequence.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, eq=False)
class SequenceScorer:
    """Trained members, item-item models and their weights; called with events, it scores every item."""

    members: tuple[SequenceModel, ...]
    evidence: tuple[Scorer, ...]
    weights: Float[Tensor, "feature"]
    """Of the features of `_features`: the members first."""
    settings: Mapping[str, object]
    """What was chosen, for the record."""

    def __call__(self, log: EventLog) -> Float32[np.ndarray, "user item"]:
        """Score every item for each person of a log, given their events; higher is better."""
        return np.asarray(_combine(_features(self.members, self.evidence, log), self.weights).numpy())

    def alone(self) -> "SequenceScorer":
        """The members without evidence."""
        return SequenceScorer(self.members, (), torch.ones(1), {})


def fit_sequences(
    training: EventLog,
    validation: EventLog,
    targets: Int32[np.ndarray, "person"],
    num_items: int,
    config: SequenceConfig,
    *,
    seed: int,
    content: Float[Tensor, "item content"] | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> SequenceScorer:
    """Train members and item-item models on `training`, and weigh them by what people of `validation` did next.

    Args:
        training: everyone's events to learn from; it must not hold the targets.
        validation: what some people did before their target.
        targets: what each of them did next.
        num_items: size of the catalogue.
        config: the settings.
        seed: of the first member; the others count on from it.
        content: features of the items, for members that read them.
        folder: takes checkpoints, so that a run that was killed goes on from them.
        say: takes lines about the progress.

    Raises:
        DataError: nobody to validate on, too little to train on, or a log without what members should read.
        NumericalError: a loss became NaN or infinite.
    """
    if validation.num_users == 0 or validation.num_users != len(targets):
        raise DataError(
            f"sequences: {validation.num_users} people to validate on and {len(targets)} targets; give both"
        )
    places = np.unique(np.linspace(0, len(targets) - 1, config.people).astype(np.int64))
    judged, goals = validation.take(places), targets[places]
    evidence, settings = [], dict[str, object]()
    for one in config.evidence:
        scorer, chosen = _choose(one, training, judged, goals, num_items)
        evidence.append(scorer)
        settings[one.kind if one.kind not in settings else f"{one.kind} {len(evidence)}"] = chosen
        say(f"{one.kind}: {chosen}")
    trained = [
        _train_member(training, num_items, config, seed + place, content, folder, partial(say_member, say, place))
        for place in range(config.num_members)
    ]
    members = tuple(model for model, _ in trained)
    settings["training CPU seconds of each member"] = [round(seconds, 1) for _, seconds in trained]
    weights = _stack(members, evidence, judged, goals)
    settings["weights"] = [round(value, 3) for value in weights.tolist()]
    say(f"weights {settings['weights']}")
    return SequenceScorer(members, tuple(evidence), weights, settings)


def say_member(say: Callable[[str], None], place: int, line: str) -> None:
    """Say a line of one member."""
    say(f"member {place + 1}: {line}")


def _train_member(
    log: EventLog,
    num_items: int,
    config: SequenceConfig,
    seed: int,
    content: Float[Tensor, "item content"] | None,
    folder: Path | None,
    say: Callable[[str], None],
) -> tuple[SequenceModel, float]:
    """A trained member and the CPU seconds that it took, over all resumes."""
    torch.manual_seed(seed)
    counts = torch.from_numpy(np.bincount(log.items, minlength=num_items))
    if config.profiles and log.profiles is None:
        raise DataError("sequences: sequence.profiles is on and the log has no profiles; give them or turn it off")
    width = log.profiles.shape[1] if config.profiles and log.profiles is not None else 0
    model = SequenceModel(config.model, Catalogue(counts, content), width)
    result = train(
        model,
        BatchSource(log, config.batches, config.model.max_events),
        config.training,
        seed=seed,
        folder=None if folder is None else folder / f"member-{seed}",
        on_epoch=lambda record: say(f"epoch {record.epoch}, loss {record.loss:.4f}, {record.cpu_seconds:.0f} CPU s"),
    )
    return model.eval(), sum(record.cpu_seconds for record in result.history)


def _choose(
    config: EvidenceConfig,
    training: EventLog,
    judged: EventLog,
    goals: Int32[np.ndarray, "person"],
    num_items: int,
) -> tuple[Scorer, Mapping[str, float]]:
    """The setting with the best nDCG@10 of the targets, items already chosen left out."""
    best: tuple[float, Scorer, Mapping[str, float]] | None = None
    popularity = np.zeros(num_items, np.float32)  # where nothing is known, the members speak alone
    for strength in config.strengths:
        weights = ITEM_ITEM[config.kind](training, num_items, strength)
        for decay in config.decays:
            scorer = item_item_scorer(weights, decay, popularity)
            values = [
                ndcg_of_ranks(target_ranks(scorer(part), wanted, _seen(part, num_items).numpy()), 10)
                for part, wanted in _batches(judged, goals)
            ]
            value = float(np.concatenate(values).mean())
            if best is None or value > best[0]:
                best = (value, scorer, {"strength": strength, "decay": decay})
    assert best is not None
    return best[1], best[2]


def _features(
    members: Sequence[SequenceModel], evidence: Sequence[Scorer], log: EventLog
) -> list[Float[Tensor, "user item"]]:
    """The members' mean log-probability; then each evidence as it is, and its logarithm."""
    features = []
    with torch.inference_mode():
        total = None
        for member in members:
            with torch.autocast("cpu", torch.bfloat16):
                states = member.last_states(inputs(log, member.config.max_events))
            scores = (states @ member.items.all().T + member.items.bias).log_softmax(1)
            total = scores if total is None else total.add_(scores)
        assert total is not None
        features.append(total / len(members))
        for scorer in evidence:
            known = torch.from_numpy(scorer(log))
            features += [known, known.clamp_min(_LEAST).log()]
    return features


def _combine(features: Sequence[Float[Tensor, "user item"]], weights: Float[Tensor, "feature"]) -> Tensor:
    total = weights[0] * features[0]
    for weight, feature in zip(weights[1:], features[1:], strict=True):
        total = total + weight * feature
    return total


def _stack(
    members: Sequence[SequenceModel],
    evidence: Sequence[Scorer],
    judged: EventLog,
    goals: Int32[np.ndarray, "person"],
) -> Float[Tensor, "feature"]:
    """Weights of the features with the most likely targets among the items not yet chosen (convex; L-BFGS)."""
    if not evidence:
        return torch.ones(1)
    kept = []
    for part, wanted in _batches(judged, goals):
        features = torch.stack(_features(members, evidence, part), -1).clamp(-60_000, 60_000).half()
        target = torch.from_numpy(wanted.astype(np.int64))
        out = _seen(part, features.shape[1])
        out[torch.arange(len(target)), target] = False
        kept.append((features, target, out))
    weights = torch.zeros(kept[0][0].shape[-1])
    weights[0] = 1
    weights.requires_grad_()
    optimiser = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimiser.zero_grad()
        total = 0.0
        for features, target, out in kept:
            scores = (features.float() @ weights).masked_fill(out, -torch.inf)
            part = F.cross_entropy(scores, target, reduction="sum") / len(goals)
            part.backward()  # type: ignore[no-untyped-call]
            total += part.item()
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


def _batches(
    log: EventLog, goals: Int32[np.ndarray, "person"], size: int = 256
) -> Sequence[tuple[EventLog, Int32[np.ndarray, "part"]]]:
    return [
        (log.take(np.arange(start, min(start + size, len(goals)))), goals[start : start + size])
        for start in range(0, len(goals), size)
    ]


def _seen(log: EventLog, num_items: int) -> Bool[Tensor, "user item"]:
    seen = torch.zeros(log.num_users, num_items, dtype=torch.bool)
    seen[
        torch.from_numpy(np.repeat(np.arange(log.num_users), log.lengths())),
        torch.from_numpy(log.items.astype(np.int64)),
    ] = True
    return seen
