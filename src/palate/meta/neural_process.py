"""A task-adaptive neural process: one network reads the support, another's weights are modulated by what it read.

Lin et al., Task-adaptive Neural Process for User Cold-Start Recommendation, 2021, arXiv:2103.06137; neural processes
are Garnelo et al., 2018, arXiv:1807.01622, FiLM is Perez et al., 2018, arXiv:1709.07871. An encoder turns each event
into a vector; their weighted mean with the profile's, as one more event, is the latent z; z is enriched by the learned
task centroids it is near to (TaNP's task identity) and modulates every decision layer, channel by channel, and shifts
the head. The latent is its mean: nothing is sampled. Adapting is one forward pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from palate.errors import ConfigError
from palate.meta.learner import Events, Fast, Learner, LearnerEntry, Params, make_learner, weights_of
from palate.meta.model import Model
from palate.meta.objectives import Objective
from palate.meta.penalty import PenaltyConfig, init_penalty, shrink
from palate.meta.ridge import num_features


@dataclass(frozen=True)
class NeuralProcessConfig(PenaltyConfig):
    """Sizes of the encoder."""

    hidden: int = 64
    """Width of the encoder's hidden layer."""
    latent: int = 32
    """Length of z."""
    num_centroids: int = 8
    """Learned task centroids."""
    seed: int = 0
    """Of the networks at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden", "latent", "num_centroids"):
            if getattr(self, name) < 1:
                raise ConfigError(f"learner.{name} is {getattr(self, name)}; it must be at least 1")


def build(model: Model, objective: Objective, config: NeuralProcessConfig, num_profile: int) -> Learner:
    """Modulate the decision layers by what the encoder makes of the support."""
    start = {name: model.weights[name] for name in model.decision}

    def modulate(params: Params, latent: Tensor) -> Fast:
        nearness = 1 / (1 + (params["process.centroids"] - latent).square().sum(1))
        identity = latent + (nearness / nearness.sum()) @ params["process.centroids"]
        shared = weights_of(params)
        fast = {}
        for name in model.decision:
            fast[name] = shared[name]
            if f"process.scale.{name}" in params:
                scale = identity @ params[f"process.scale.{name}"]
                fast[name] = (1 + scale.reshape(-1, *[1] * (shared[name].ndim - 1))) * shared[name]
            if f"process.shift.{name}" in params:
                fast[name] = fast[name] + (identity @ params[f"process.shift.{name}"]).view_as(shared[name])
        return fast

    def prior(params: Params, profile: Tensor) -> Fast:
        latent = params["process.latent"] + profile @ params["process.profile"]
        return {**modulate(params, latent), "latent": latent}

    def adapt(params: Params, fast: Fast, support: Events) -> Fast:
        counts = (support.weight > 0)[:, None]
        read = torch.cat([model.features(weights_of(params), support.inputs), support.target[:, None]], 1)
        read = torch.where(counts, read, 0.0)
        hidden = torch.tanh(read @ params["process.in"] + params["process.in_bias"])
        events = hidden @ params["process.out"] + params["process.out_bias"]
        trust = params["process.log_trust"].exp()
        latent = (trust * fast["latent"] + support.weight @ events) / (trust + support.weight.sum())
        before = {name: fast[name] for name in start}
        after = shrink(config, params, before, modulate(params, latent), 1.0)
        return {**after, "latent": latent}

    own = {**_init(model, config, num_profile), **init_penalty(config, start)}
    return make_learner(model, objective, own, prior, adapt)


def _init(model: Model, config: NeuralProcessConfig, num_profile: int) -> Params:
    generator = torch.Generator().manual_seed(config.seed)

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    width = num_features(model) + 1
    params = {
        "process.in": normal(width**-0.5, width, config.hidden),
        "process.in_bias": torch.zeros(config.hidden),
        "process.out": normal(config.hidden**-0.5, config.hidden, config.latent),
        "process.out_bias": torch.zeros(config.latent),
        "process.latent": normal(0.1, config.latent),
        "process.profile": normal(0.1, num_profile, config.latent),
        "process.log_trust": torch.zeros(()),
        "process.centroids": normal(1.0, config.num_centroids, config.latent),
    }
    for name in model.decision:
        weight = model.weights[name]
        # FiLM: the scale of a channel multiplies its row of weights and its bias, the shift is added to the bias alone;
        # the head is shifted weight by weight. Both start at nothing.
        if weight.ndim > 1 or name not in model.head:
            params[f"process.scale.{name}"] = torch.zeros(config.latent, weight.shape[0])
        if weight.ndim == 1 or name in model.head:
            params[f"process.shift.{name}"] = torch.zeros(config.latent, weight.numel())
    return params


NEURAL_PROCESS = LearnerEntry(NeuralProcessConfig, build, by_feature=True)
