"""One person's fast weights on top of a frozen sequence model.

    score(i) = g_s(n) · (⟨state, v_i⟩ + b_i) + t(n) · [ g_p(n) · p(i) + g_u(n) · ⟨A Σ γ_u^age r_t, v_i⟩
                                                       + Σ_k (g_k(n) · e_k(i) + l_k(n) · log(1 + s_k · e_k(i)⁺)) ]
    e_k(i) = Σ γ_k^age · w_k(grade_t) · B_k[item_t, i]

state is what the model read in context. p is the prior: what is known of the person before any event says of each
item, such as `fit_profile_table`. r_t = v_chosen − E_p[v], p the model's own softmax just before event t, is the
surprise: minus the gradient of the event's loss by the state, so that the sum is one step of preconditioned gradient
descent on all events (dynamic evaluation: Krause et al., 2018, arXiv:1709.07432), with the preconditioner A learned as
in Meta-Curvature (Park & Oliva, 2019, arXiv:1902.03356). B_k are item-item tables, such as EASE (Steck, 2019,
arXiv:1905.03375) and `next_item_table`; the logarithm tells some evidence from none, the plain sum strong evidence
from some. How much each counts after n events (g, l), how fast it fades (γ), what a low or high rating is worth (w),
where the logarithm bends (s) and how far all of it is trusted (t) are meta-learned; see `sequence_training`.

Everything is a sum over events, so a new event costs one row of each table, and a person's state is a few vectors.
Functions are of ONE person; the caller vectorises them with `torch.func.vmap`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from palate.errors import ConfigError, ModelError
from palate.meta.learner import Fast, Params

KNOTS = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200)
"""Support sizes at which gates are learned; between them they are linear in log(1 + n), beyond the last constant."""
_SURPRISE_START, _TABLE_START, _LOG_START, _SHARPNESS_START = 0.02, 2.0, 0.1, 4.0
_KNOWN_START = 0.3
_SURPRISE_DECAY = 0.95


class SequenceItems(NamedTuple):
    """What scoring reads of the catalogue."""

    vectors: Float[Tensor, "item dim"]
    bias: Float[Tensor, "item"]
    tables: Float[Tensor, "table item item"]
    """Evidence of an event (row) for each item (column)."""


class SequenceSupport(NamedTuple):
    """The events that a person is adapted to, oldest first, padded to any width."""

    items: Int64[Tensor, "event"]
    grades: Int64[Tensor, "event"]
    """Class of each event, such as its stars; 0 where there is one class."""
    surprises: Float[Tensor, "event dim"]
    """As `surprises` gives them."""
    state: Float[Tensor, "dim"]
    """The model's state after these events."""
    size: Int64[Tensor, ""]
    """Events that are there; later ones are padding and never read."""
    known: Float[Tensor, "item"]
    """What is known of the person before any event, as evidence for each item; 0 where nothing is."""


class Running(NamedTuple):
    """A person's events added up: all that the head remembers of them."""

    tables: Float[Tensor, "table item"]
    surprise: Float[Tensor, "dim"]
    size: Int64[Tensor, ""]


def start_params(dim: int, decays: Sequence[float], num_grades: int = 1) -> Params:
    """Parameters before meta-training, for one table a decay; deterministic.

    Raises:
        ConfigError: a decay is not inside (0, 1), or there is no grade.
    """
    if not all(0 < decay < 1 for decay in decays):
        raise ConfigError(f"head: decays are {list(decays)}; each must lie between 0 and 1")
    if num_grades < 1:
        raise ConfigError(f"head: the number of grades is {num_grades}; it must be at least 1")
    rows = [1.0, _SURPRISE_START, *[_TABLE_START] * len(decays), *[_LOG_START] * len(decays), _KNOWN_START]
    fading = [_SURPRISE_DECAY, *decays]
    return {
        "gates": torch.tensor(rows)[:, None].repeat(1, len(KNOTS)),
        "decay": torch.tensor([math.log(decay / (1 - decay)) for decay in fading]),
        "grades": torch.ones(len(decays), num_grades),
        "log_sharpness": torch.full((len(decays),), _SHARPNESS_START),
        "precondition": torch.eye(dim),
        "fixed.trust": torch.ones(len(KNOTS)),
    }


def check_params(params: Params, items: SequenceItems) -> None:
    """Refuse parameters that were trained for another catalogue's width or number of tables.

    Raises:
        ModelError: says what does not fit.
    """
    found = (len(params["precondition"]), len(params["grades"]))
    needed = (items.vectors.shape[1], len(items.tables))
    if found != needed:
        raise ModelError(f"head: trained for (dim, tables) = {found}, the catalogue has {needed}; train it anew")


def surprises(
    states: Float[Tensor, "event dim"], chosen: Int64[Tensor, "event"], items: SequenceItems
) -> Float[Tensor, "event dim"]:
    """How each choice departs from what the model foretold just before it: v_chosen − E_p[v].

    `states[t]` is the state before event t; items already chosen are out of the softmax.
    """
    logits = states @ items.vectors.T + items.bias
    before = torch.ones(len(chosen), len(chosen), dtype=torch.bool).tril(-1)
    places = chosen.expand(len(chosen), -1)
    # An item already chosen earlier is marked; padded and later places mark nothing.
    seen = torch.zeros_like(logits).scatter_add(1, places, before.to(logits)) > 0
    seen = seen.scatter(1, chosen[:, None], torch.zeros_like(before[:, :1]))  # asked for again: it was possible
    expected = logits.masked_fill(seen, -torch.inf).softmax(-1) @ items.vectors
    return items.vectors[chosen] - expected


def start_running(items: SequenceItems) -> Running:
    """Nothing known."""
    return Running(
        items.vectors.new_zeros(len(items.tables), len(items.bias)),
        items.vectors.new_zeros(items.vectors.shape[1]),
        torch.zeros((), dtype=torch.int64),
    )


def observe(
    params: Params,
    items: SequenceItems,
    running: Running,
    item: Int64[Tensor, ""],
    grade: Int64[Tensor, ""],
    surprise: Float[Tensor, "dim"],
) -> Running:
    """One event more, in O(tables · items)."""
    decay = params["decay"].sigmoid()
    worth = params["grades"][:, grade]
    return Running(
        decay[1:, None] * running.tables + worth[:, None] * items.tables[:, item],
        decay[0] * running.surprise + surprise,
        running.size + 1,
    )


def gather(params: Params, items: SequenceItems, support: SequenceSupport) -> Running:
    """All events of a support at once; equals `observe` one by one."""
    decay = params["decay"].sigmoid()
    ages = support.size - 1 - torch.arange(len(support.items))
    real = ages >= 0
    weights = torch.where(real, decay[:, None] ** ages.clamp_min(0), 0.0)
    worth = weights[1:] * params["grades"][:, support.grades]
    rows = items.tables[:, support.items]
    surprise = weights[0] @ torch.where(real[:, None], support.surprises, 0.0)
    return Running((worth[:, None] @ rows)[:, 0], surprise, support.size)


def compose(params: Params, running: Running, state: Float[Tensor, "dim"], known: Float[Tensor, "item"]) -> Fast:
    """The fast weights after what was added up; `state` is the model's own, `known` as in `SequenceSupport`."""
    knots = _interpolate(running.size)
    gates = params["gates"] @ knots
    trust = params["fixed.trust"] @ knots
    scale = 1 + trust * (gates[0] - 1)
    moved = running.surprise @ params["precondition"]
    bent = (running.tables.clamp_min(0) * params["log_sharpness"].exp()[:, None]).log1p()
    return {
        "query": scale * state + trust * gates[1] * moved,
        "bias": scale,
        "evidence": trust * (gates[2:] @ torch.cat([running.tables, bent, known[None]])),
    }


def prior(params: Params, items: SequenceItems, state: Float[Tensor, "dim"], known: Float[Tensor, "item"]) -> Fast:
    """Before any event: the sequence model from its first state, and what is known of the person."""
    return compose(params, start_running(items), state, known)


def adapt(params: Params, items: SequenceItems, support: SequenceSupport) -> Fast:
    """Fast weights after a support; an empty one gives the prior."""
    return compose(params, gather(params, items, support), support.state, support.known)


def score(fast: Fast, items: SequenceItems) -> Float[Tensor, "item"]:
    """Scores of the catalogue."""
    return items.vectors @ fast["query"] + fast["bias"] * items.bias + fast["evidence"]


def _interpolate(count: Int64[Tensor, ""]) -> Float[Tensor, "knot"]:
    """Weights of the knots at a support size: at most two are not 0, and all add up to 1."""
    places = torch.tensor(KNOTS, dtype=torch.float32).log1p()
    passed = (count.float().log1p() - places[:-1]) / places.diff()
    rising, falling = torch.cat([torch.ones(1), passed]), torch.cat([1 - passed, torch.ones(1)])
    return torch.minimum(rising, falling).clamp(0, 1)
