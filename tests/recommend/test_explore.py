"""Exploration against formulas written out in full: the covariance of draws, the scale of the head, propensities."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.data.event_log import from_histories, from_sequences
from palate.errors import ConfigError, NumericalError
from palate.meta.head import (
    OBJECTIVE,
    Profile,
    Support,
    learned_or_fixed,
    make_head,
    prior_deviation,
    score_rows,
    scoring_rows,
)
from palate.meta.learner import Events
from palate.meta.model import linear_model
from palate.meta.objectives import find_objective
from palate.meta.online import Posterior, Prior
from palate.meta.table import LEARNERS, build, read_settings
from palate.meta.tasks import make_supports
from palate.recommend import Recommender
from palate.recommend.diversity import diversify
from palate.recommend.explore import EXPLORERS, Belief, ExploreConfig, belief_of, explore

NUM_FEATURES = 12
EVENTS = [f"garden-{place:02}" for place in range(16)]


class MadeUp(NamedTuple):
    """A belief after random events, and the formula of the textbook."""

    belief: Belief
    prior: Prior
    features: np.ndarray
    """Of the events."""

    @property
    def covariance(self) -> np.ndarray:
        """Of the departures in units of the score, with an inverse of the primal form (Bishop eq. 3.51)."""
        precision = np.diag(1 / self.prior.variance) + self.features.T @ self.features / self.prior.noise
        return self.belief.unit**2 * np.linalg.inv(precision)


def made_up(num_events: int, *, noise: float = 0.7, unit: float = 1.3, seed: int = 0) -> MadeUp:
    rng = np.random.default_rng(seed)
    prior = Prior(np.zeros(NUM_FEATURES), rng.uniform(0.2, 1.5, NUM_FEATURES) ** 2, noise)
    features = rng.normal(size=(num_events, NUM_FEATURES))
    return MadeUp(Belief(after(prior, features), unit), prior, features)


def after(prior: Prior, features: np.ndarray) -> Posterior:
    return prior.fit(features, np.zeros(len(features)), np.ones(len(features)))


def support_of(model: Recommender, events: Sequence[str]) -> Support:
    history = model.adapt(list(events)).history
    states = torch.zeros(1, model.items.vectors.shape[1])
    chosen, refused = from_histories([history]), from_sequences([history.refused])
    returning = np.array([history.returning])
    return Support(*(value[0] for value in make_supports(chosen, refused, returning, model.items.features, states)))


def belief_after(model: Recommender, events: Sequence[str]) -> Belief:
    prior = model.adapt(list(events)).fast["prior"]
    return belief_of(model.config.meta.learner, model.config.learner, model.params, support_of(model, events), prior)


def told(model: Recommender, support: Support, learner: str = "ridge", **settings: Any) -> Belief:
    """The belief of someone of whom nothing is expected before the first event."""
    return belief_of(learner, settings, model.params, support, torch.zeros(support.features.shape[1]))


def scores_of(model: Recommender, events: Sequence[str]) -> np.ndarray:
    fast = model.adapt(list(events)).fast
    return np.asarray(score_rows(fast, scoring_rows(model.items)).numpy())


def never() -> NoReturn:
    raise AssertionError("the posterior was asked for")


@pytest.mark.parametrize("num_events", [0, 1, 5, 30])
def test_draws_have_the_covariance_of_the_textbook(num_events: int) -> None:
    made = made_up(num_events)
    draws = made.belief.draw(60_000, np.random.default_rng(1)).astype(np.float64)
    expected = made.covariance
    # The standard error of a sample covariance is √((Σ_aa Σ_bb + Σ_ab²) / draws).
    spread = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / len(draws))
    assert np.abs(draws.T @ draws / len(draws) - expected).max() < (5 * spread).max()
    assert (np.abs(draws.T @ draws / len(draws) - expected) / spread).max() < 5
    assert np.abs(draws.mean(0) / np.sqrt(np.diag(expected) / len(draws))).max() < 5


@pytest.mark.parametrize("num_events", [0, 1, 5, 30])
def test_the_variance_of_items_is_that_of_the_textbook(num_events: int) -> None:
    made = made_up(num_events)
    items = np.random.default_rng(2).normal(size=(20, NUM_FEATURES)).astype(np.float32)
    expected = np.einsum("if,fg,ig->i", items, made.covariance, items)
    np.testing.assert_allclose(made.belief.variance(items), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_the_belief_is_the_one_that_the_head_adapts_with(model: Recommender, size: int) -> None:
    """With its spread before the events, its noise and its gate they give the head's own fast weights."""
    belief, fast = belief_after(model, EVENTS[:size]), model.adapt(EVENTS[:size]).fast
    support = support_of(model, EVENTS[:size])
    features = support.features.double().numpy()
    residual = support.target.double().numpy() - features @ fast["prior"].double().numpy()
    scale = prior_deviation(model.params, torch.tensor(float(size))).double().numpy()
    prior = Prior(np.zeros(len(scale)), scale**2, float(learned_or_fixed(model.params, "learner.log_noise").exp()))
    posterior = prior.fit(features, residual, np.ones(size))
    items = model.items.features.numpy()
    np.testing.assert_allclose(belief.variance(items), belief.unit**2 * posterior.variance(items), rtol=1e-4)
    mean = posterior.mean
    covariance = model.params["fixed.feature_covariance"].double().numpy()
    delta = fast["delta"].double().numpy()
    gate = np.sqrt(delta @ covariance @ delta)  # what the head normalises the evidence's spread to
    np.testing.assert_allclose(
        delta, gate * mean / np.sqrt(mean @ covariance @ mean), atol=2e-4 * np.abs(delta).max(), rtol=0
    )
    expected = gate / np.sqrt(np.trace(np.diag(scale) @ covariance @ np.diag(scale)))
    assert belief.unit == pytest.approx(expected, rel=1e-3)


def test_before_any_event_the_noise_spreads_over_the_catalogue_as_the_evidence_would(model: Recommender) -> None:
    belief = belief_after(model, [])
    gate = torch.nn.functional.softplus(model.params["gates"][1] @ torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]))
    spreads = [(model.items.features.numpy() @ draw).std() for draw in belief.draw(500, np.random.default_rng(0))]
    assert np.sqrt(np.square(spreads).mean()) == pytest.approx(float(gate), rel=0.1)


def test_returning_opens_the_gate_that_the_head_opens(model: Recommender) -> None:
    support = support_of(model, EVENTS[:4])
    again = support._replace(returning=torch.tensor(1.0))
    units = [told(model, some).unit for some in (support, again)]
    gates = []
    for some in (support, again):
        head = make_head(
            model.config.meta.learner,
            len(model.params["fixed.prior.bias"]),
            len(model.params["fixed.prior.profile"]),
            model.config.learner,
        )
        profile = Profile(torch.zeros(len(model.params["fixed.prior.profile"])), some.state)
        delta = head.adapt(model.params, head.prior(model.params, profile), some)["delta"]
        gates.append(float((delta @ model.params["fixed.feature_covariance"] @ delta).sqrt()))
    assert gates[1] > 1.5 * gates[0]
    assert units[1] / units[0] == pytest.approx(gates[1] / gates[0], rel=1e-3)


def test_padding_is_inert(model: Recommender) -> None:
    support = support_of(model, EVENTS[:3])
    padded = support._replace(
        features=torch.cat([support.features, torch.full((2, support.features.shape[1]), torch.nan)]),
        target=torch.cat([support.target, torch.ones(2)]),
        weight=torch.cat([support.weight, torch.zeros(2)]),
    )
    items = model.items.features.numpy()
    one, two = (told(model, some) for some in (support, padded))
    np.testing.assert_array_equal(one.variance(items), two.variance(items))


def test_every_event_takes_from_what_is_unknown_where_gate_and_scale_stay() -> None:
    items = np.random.default_rng(3).normal(size=(30, NUM_FEATURES)).astype(np.float32)
    made = made_up(20)
    variances = [after(made.prior, made.features[:size]).variance(items) for size in range(21)]
    for before, later in pairwise(variances):
        assert (later <= before + 1e-5).all()
    assert variances[-1].mean() < 0.3 * variances[0].mean()


def test_events_of_a_taste_take_from_what_is_unknown_of_it_most(model: Recommender) -> None:
    features = model.items.features.numpy()
    garden = np.array([name.startswith("garden") for name in model.vocabulary.ids])
    deviations = np.sqrt([belief_after(model, EVENTS[:size]).variance(features) for size in (0, 1, 2, 4, 8, 16)])
    known, other = deviations[:, garden].mean(1), deviations[:, ~garden].mean(1)
    assert np.all(np.diff(known) < 0)
    assert known[0] == pytest.approx(other[0], rel=0.05)
    assert known[-1] < 0.85 * known[0]
    assert other[-1] > 0.9 * other[0]


def test_lists_depart_less_from_the_best_the_more_is_known_of_every_item() -> None:
    """Items of which nothing is shared, each seen so many times; share of the shown items that the best list lacks."""
    items, scores = np.eye(NUM_FEATURES, dtype=np.float32), np.linspace(1, 0, NUM_FEATURES, dtype=np.float32)
    away = []
    for times in (0, 2, 20):
        prior = Prior(np.zeros(NUM_FEATURES), np.ones(NUM_FEATURES), 0.7)
        belief = Belief(after(prior, np.repeat(items, times, 0)), 1.0)
        lists = [
            explore("thompson", scores, items, lambda held=belief: held, 4, rng=np.random.default_rng(seed))
            for seed in range(100)
        ]
        away.append(np.mean([(shown.chosen >= 4).mean() for shown in lists]))
    assert away[0] > 1.2 * away[1]
    assert away[1] > 1.2 * away[2] > 0


def test_propensities_are_the_shares_of_an_independent_simulation() -> None:
    """With many draws they approach the probabilities over all draws, here from the dense covariance."""
    made, rng = made_up(4, unit=0.5), np.random.default_rng(4)
    items = rng.normal(size=(15, NUM_FEATURES)).astype(np.float32)
    scores = rng.normal(size=15).astype(np.float32)
    many = 40_000
    drawn = scores + rng.multivariate_normal(np.zeros(NUM_FEATURES), made.covariance, many) @ items.T
    order = np.argsort(-drawn, 1)
    held = np.array([(order[:, :5] == item).any(1).mean() for item in range(15)])
    first = np.array([(order[:, 0] == item).mean() for item in range(15)])
    for seed in range(5):
        shown = explore(
            "thompson",
            scores,
            items,
            lambda: made.belief,
            5,
            rng=np.random.default_rng(seed),
            config=ExploreConfig(num_draws=many),
        )
        np.testing.assert_allclose(shown.propensity, held[shown.chosen], atol=0.015)
        np.testing.assert_allclose(shown.propensity_first, first[shown.chosen], atol=0.015)


def test_inverse_propensities_are_unbiased_given_the_draws() -> None:
    """The draws come from the seed and the pick after them: all picks of one set of draws, weighted by 1 / R."""
    belief, rng = made_up(2, unit=0.4).belief, np.random.default_rng(5)
    items, scores = rng.normal(size=(12, NUM_FEATURES)).astype(np.float32), rng.normal(size=12).astype(np.float32)
    reward, config = rng.random(12), ExploreConfig(num_draws=8)

    class Fixed(np.random.Generator):
        """Draws as its seed says, and picks the list that it is told to."""

        pick = 0

        def integers(self, *args: object, **kwargs: object) -> int:  # type: ignore[override]
            return self.pick

    total, possible = 0.0, set()
    for pick in range(8):
        fixed = Fixed(np.random.PCG64(6))
        fixed.pick = pick
        shown = explore("thompson", scores, items, lambda: belief, 3, rng=fixed, config=config)
        total += float((reward[shown.chosen] / shown.propensity).sum()) / 8
        possible |= set(shown.chosen.tolist())
    assert len(possible) > 4
    assert total == pytest.approx(reward[sorted(possible)].sum())


def test_without_uncertainty_every_explorer_gives_the_best_list() -> None:
    rng = np.random.default_rng(7)
    items, scores = rng.normal(size=(12, NUM_FEATURES)).astype(np.float32), rng.normal(size=12).astype(np.float32)
    certain = made_up(3, unit=0.0).belief
    for name in EXPLORERS:
        for belief, config in ((certain, ExploreConfig()), (made_up(3).belief, ExploreConfig(strength=0.0))):
            shown = explore(name, scores, items, lambda held=belief: held, 4, rng=rng, config=config)
            assert shown.chosen.tolist() == np.argsort(-scores)[:4].tolist()
            np.testing.assert_array_equal(shown.propensity, 1.0)
            np.testing.assert_array_equal(shown.propensity_first, [1.0, 0.0, 0.0, 0.0])
            np.testing.assert_allclose(shown.values, scores[shown.chosen], rtol=1e-6)


def test_upper_bounds_are_the_mean_and_so_many_deviations() -> None:
    made, rng = made_up(3), np.random.default_rng(8)
    items, scores = rng.normal(size=(12, NUM_FEATURES)).astype(np.float32), rng.normal(size=12).astype(np.float32)
    bounds = scores + 2.0 * np.sqrt(np.einsum("if,fg,ig->i", items, made.covariance, items))
    shown = explore("ucb", scores, items, lambda: made.belief, 5, rng=rng, config=ExploreConfig(strength=2.0))
    assert shown.chosen.tolist() == np.argsort(-bounds)[:5].tolist()
    np.testing.assert_allclose(shown.values, bounds[shown.chosen], rtol=1e-4)
    assert shown.chosen.tolist() != np.argsort(-scores)[:5].tolist()


@pytest.mark.parametrize("name", EXPLORERS)
def test_what_may_not_be_listed_never_is(name: str) -> None:
    belief, rng = made_up(3).belief, np.random.default_rng(9)
    items = rng.normal(size=(8, NUM_FEATURES)).astype(np.float32)
    scores = np.full(8, -np.inf, np.float32)
    scores[[1, 6]] = 0.0, 1.0
    shown = explore(name, scores, items, lambda: belief, 5, rng=rng)
    assert sorted(shown.chosen.tolist()) == [1, 6]
    np.testing.assert_array_equal(shown.propensity, 1.0)
    assert np.all(np.diff(shown.values) <= 0)


@pytest.mark.parametrize("name", EXPLORERS)
def test_same_seed_same_list(name: str) -> None:
    belief, items = made_up(3).belief, np.random.default_rng(10).normal(size=(40, NUM_FEATURES)).astype(np.float32)
    scores = np.zeros(40, np.float32)
    one, two = (explore(name, scores, items, lambda: belief, 5, rng=np.random.default_rng(3)) for _ in range(2))
    for left, right in zip(one, two, strict=True):
        np.testing.assert_array_equal(left, right)


def test_every_draw_is_ranked_as_the_caller_ranks() -> None:
    """Under a re-ranking the shown list is a re-ranked draw, and shares are of re-ranked lists."""
    belief, rng = made_up(3).belief, np.random.default_rng(11)
    items, scores = rng.normal(size=(30, NUM_FEATURES)).astype(np.float32), rng.normal(size=30).astype(np.float32)
    unit = items / np.linalg.norm(items, axis=1, keepdims=True)
    seen: list[np.ndarray] = []

    def rank(drawn: np.ndarray, k: int) -> np.ndarray:
        seen.append(diversify(drawn, unit, k, 0.6))
        return seen[-1]

    shown = explore("thompson", scores, items, lambda: belief, 5, rng=rng, rank=rank)
    [lists] = seen
    assert lists.shape == (64, 5)
    assert any((row == shown.chosen).all() for row in lists)
    np.testing.assert_allclose(shown.propensity, [(lists == item).any(1).mean() for item in shown.chosen])


def test_nothing_is_asked_of_the_posterior_where_nothing_is_explored() -> None:
    scores = np.array([1.0, 3.0, 2.0], np.float32)
    shown = explore("none", scores, np.zeros((3, 2), np.float32), never, 2, rng=np.random.default_rng(0))
    assert shown.chosen.tolist() == [1, 2]


def test_a_learner_without_a_posterior_is_refused(model: Recommender) -> None:
    support = support_of(model, EVENTS[:2])
    with pytest.raises(ConfigError, match=r"learner maml has no posterior.*ridge"):
        told(model, support, "maml")
    with pytest.raises(ConfigError, match="no closed form"):
        told(model, support, penalty="l1")


@pytest.mark.parametrize("learner", [name for name, entry in LEARNERS.items() if entry.posterior is not None])
def test_every_posterior_is_the_gaussian_at_the_mode_of_its_learner(model: Recommender, learner: str) -> None:
    """Its precision is the second derivative of what the learner minimises, where the learner has come to."""
    support = support_of(model, EVENTS[:5])
    support = support._replace(target=torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0]))
    features = support.features.double()
    config = read_settings(learner, {})
    own = {"log_noise": torch.tensor(0.3, dtype=torch.float64)}
    params = {**model.params, "learner.log_noise": own["log_noise"].float()}
    prior = 0.1 * torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0))
    belief = belief_of(learner, {}, params, support, prior)
    scale = prior_deviation(params, torch.tensor(5.0)).double()
    core = build(learner, linear_model(features.shape[1]), OBJECTIVE, num_profile=0, **asdict(config))
    start = {"weight": torch.zeros(features.shape[1], dtype=torch.float64)}
    inputs = torch.cat([features * scale, (features @ prior.double())[:, None]], 1)
    events = Events(inputs, support.target.double(), support.weight.double(), torch.zeros(5, dtype=torch.int64))
    shared = {name: value.double() for name, value in core.params.items()}
    mode = core.adapt({**shared, **own}, start, events)["weight"]
    objective = find_objective("ratings" if learner == "ridge" else OBJECTIVE)  # ridge has squared errors inside

    def energy(weight: Tensor) -> Tensor:
        lost = objective.loss(inputs[:, -1] + inputs[:, :-1] @ weight, events.target)
        return 0.5 * lost.sum() / own["log_noise"].exp() + 0.5 * weight.square().sum()

    assert torch.autograd.functional.jacobian(energy, mode).abs().max() < 1e-3, "this is the mode"
    covariance = torch.linalg.inv(torch.autograd.functional.hessian(energy, mode))
    items = model.items.features.double()
    expected = belief.unit**2 * ((items * scale) @ covariance * (items * scale)).sum(1)
    np.testing.assert_allclose(belief.variance(model.items.features.numpy()), expected.numpy(), rtol=1e-3, atol=1e-7)


def test_learned_precisions_are_part_of_the_scale(model: Recommender) -> None:
    support = support_of(model, [])
    precision = torch.linspace(-1, 1, len(model.params["fixed.prior.bias"]))
    params = {**model.params, "learner.log_precision": precision}
    axes = np.eye(len(precision), dtype=np.float32)
    plain = told(model, support)
    learned = told(replace(model, params=params), support, penalty="learned")
    found, expected = (belief.posterior.variance(axes) for belief in (learned, plain))
    np.testing.assert_allclose(found, expected * np.exp(-precision.numpy()), rtol=1e-5)


def test_mistakes_are_named() -> None:
    scores, items, rng = np.zeros(3, np.float32), np.zeros((3, 2), np.float32), np.random.default_rng(0)
    with pytest.raises(ConfigError, match="none, thompson, ucb"):
        explore("greedy", scores, items, never, 2, rng=rng)
    with pytest.raises(ConfigError):
        explore("none", scores, items, never, 0, rng=rng)
    with pytest.raises(NumericalError):
        explore("none", scores * np.nan, items, never, 2, rng=rng)
    with pytest.raises(ConfigError, match=r"explore\.strength"):
        ExploreConfig(strength=-1.0)
    with pytest.raises(ConfigError, match=r"explore\.strength"):
        ExploreConfig(strength=float("nan"))
    with pytest.raises(ConfigError, match=r"explore\.num_draws"):
        ExploreConfig(num_draws=0)


def test_a_posterior_that_is_not_finite_is_refused(model: Recommender) -> None:
    support = support_of(model, EVENTS[:2])
    broken = support._replace(features=support.features * torch.inf)
    with pytest.raises(NumericalError, match="posterior of 2 events"):
        told(model, broken)
