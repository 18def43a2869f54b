"""Learners against slow, obvious references: plain autograd loops, primal posteriors, numerical modes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from palate.errors import ConfigError, DataError
from palate.meta import (
    Events,
    Params,
    Tasks,
    adapt,
    build,
    from_module,
    linear_model,
    make_events,
    make_tasks,
)
from palate.meta.clusters import classes_of
from palate.meta.outer import FitConfig, fit
from palate.meta.penalty import PenaltyConfig, shrink

STEPS, RATE = 3, 0.1


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def some_events(seed: int, size: int) -> Events:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    target = torch.randn(size, generator=generator, dtype=torch.float64)
    weight = torch.rand(size, generator=generator, dtype=torch.float64) + 0.2
    return Events(inputs, target, weight, torch.zeros(size, dtype=torch.int64))


SUPPORT, QUERY = some_events(1, 4), some_events(2, 6)


def plain_loss(net: nn.Module, weights: Params, events: Events) -> Tensor:
    """Event by event, in a loop."""
    total = torch.zeros((), dtype=torch.float64)
    for place in range(len(events.target)):
        prediction = functional_call(net, weights, (events.inputs[place : place + 1],))[0, 0]
        total = total + events.weight[place] * (prediction - events.target[place]) ** 2
    return total / len(events.target)


def plain_maml(net: nn.Module, moving: list[str], *, second_order: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The meta-loss and meta-gradient by `torch.autograd.grad` alone."""
    start = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}
    fast: Params = dict(start)
    for _ in range(STEPS):
        slopes = torch.autograd.grad(
            plain_loss(net, fast, SUPPORT), [fast[name] for name in moving], create_graph=second_order
        )
        fast |= {name: fast[name] - RATE * slope for name, slope in zip(moving, slopes, strict=True)}
    loss = plain_loss(net, fast, QUERY)
    names = list(start)
    return loss, dict(zip(names, torch.autograd.grad(loss, [start[name] for name in names]), strict=True))


@pytest.mark.parametrize(
    ("name", "prefixes", "second_order"),
    [
        ("maml", ("0.", "2.", "4."), True),
        ("fomaml", ("0.", "2.", "4."), False),
        ("anil", ("4.",), True),
        ("melu", ("2.", "4."), True),
        ("meta-sgd", ("0.", "2.", "4."), True),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_meta_gradients_equal_those_of_plain_autograd(
    name: str, prefixes: tuple[str, ...], second_order: bool, batched: bool
) -> None:
    net = network()
    learner = build(name, from_module(net, decision=["2"]), num_steps=STEPS, step_size=RATE)
    moving = [key for key, _ in net.named_parameters() if key.startswith(prefixes)]
    expected, gradient = plain_maml(net, moving, second_order=second_order)
    none = torch.zeros(0, dtype=torch.float64)

    params = {key: value.double().requires_grad_() for key, value in learner.params.items()}
    support, query = (Events(*(value[None] for value in part)) for part in (SUPPORT, QUERY))
    tasks = Tasks(none[None], support, query)
    loss = learner.losses(params, tasks)[0] if batched else learner.loss(params, none, SUPPORT, QUERY)
    torch.testing.assert_close(loss, expected)
    weights = [key for key in params if key.startswith("model.")]
    found = dict(zip(weights, torch.autograd.grad(loss, [params[key] for key in weights]), strict=True))
    for key, value in found.items():
        torch.testing.assert_close(value, gradient[key.removeprefix("model.")], rtol=1e-6, atol=1e-9)
    # Inside a transform of torch.func the same comes out.
    again = grad(lambda params: learner.losses(params, tasks).sum())({k: v.detach() for k, v in params.items()})
    for key in weights:
        torch.testing.assert_close(again[key], found[key], rtol=1e-6, atol=1e-9)


def test_reptile_moves_the_start_towards_the_solution_of_all_events() -> None:
    net = network()
    learner = build("reptile", from_module(net), num_steps=STEPS, step_size=RATE)
    params = {key: value.double() for key, value in learner.params.items()}
    everything = Events(*(torch.cat(parts) for parts in zip(SUPPORT, QUERY, strict=True)))
    fast: Params = {key: value.detach().clone().requires_grad_() for key, value in net.named_parameters()}
    start = {key: value.detach().clone() for key, value in fast.items()}
    for _ in range(STEPS):
        slopes = torch.autograd.grad(plain_loss(net, fast, everything), list(fast.values()))
        fast = {
            key: (value - RATE * slope).detach().requires_grad_()
            for (key, value), slope in zip(fast.items(), slopes, strict=True)
        }
    gradient = grad(lambda p: learner.loss(p, torch.zeros(0).double(), SUPPORT, QUERY))(params)
    for key, value in fast.items():
        torch.testing.assert_close(gradient[f"model.{key}"], start[key] - value.detach(), rtol=1e-6, atol=1e-9)


def linear_events(seed: int, size: int, features: int) -> Events:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, features + 1, generator=generator, dtype=torch.float64)
    target = torch.randn(size, generator=generator, dtype=torch.float64).sign()
    return Events(
        inputs,
        target,
        torch.rand(size, generator=generator, dtype=torch.float64) + 0.1,
        torch.zeros(size, dtype=torch.int64),
    )


@pytest.mark.parametrize("size", [1, 3, 12])
def test_ridge_is_the_primal_posterior(size: int) -> None:
    events, features = linear_events(0, size, 6), 6
    learner = build("ridge", linear_model(features), penalty="learned")
    params = {
        "model.weight": torch.linspace(-1, 1, features).double(),
        "log_noise": torch.tensor(-0.3).double(),
        "log_precision": torch.linspace(-1, 2, features).double(),
    }
    precision, noise = torch.diag(params["log_precision"].exp()), params["log_noise"].exp()
    rows, weight = events.inputs[:, :-1], torch.diag(events.weight)
    covariance = torch.linalg.inv(precision + rows.T @ weight @ rows / noise)
    wanted = events.target - events.inputs[:, -1]
    expected = covariance @ (precision @ params["model.weight"] + rows.T @ weight @ wanted / noise)
    prior = learner.prior(params, torch.zeros(0).double())
    torch.testing.assert_close(learner.adapt(params, prior, events)["weight"], expected)


def test_a_sparse_ridge_is_the_mode_under_a_laplace_prior() -> None:
    # Two events on the first feature, nothing on the others: they stay, and reweighting converges on the first.
    inputs = torch.tensor([[1.0, 0.01, 0.0, 0.0], [1.0, -0.01, 0.0, 0.0]])
    events = Events(inputs, torch.tensor([2.0, 2.0]), torch.ones(2), torch.zeros(2, dtype=torch.int64))
    learner = build("ridge", linear_model(3), penalty="l1", noise=0.1)
    weight = learner.adapt(learner.params, learner.prior(learner.params, torch.zeros(0)), events)["weight"]
    # Reweighting with variance |w| has the fixed point w = y − σ² / 2 · (1 / n events), the soft threshold of 2.
    assert weight[0].item() == pytest.approx(2 - 0.1 / 2, abs=1e-3)
    assert weight[1:].abs().max() < 1e-3


@pytest.mark.parametrize("size", [1, 4, 15])
def test_laplace_finds_the_mode(size: int) -> None:
    events, features = linear_events(1, size, 5), 5
    learner = build("laplace", linear_model(features), "clicks", num_steps=12)
    params = {"model.weight": torch.linspace(-0.5, 0.5, features).double(), "log_noise": torch.tensor(-0.2).double()}
    fast = learner.adapt(params, learner.prior(params, torch.zeros(0).double()), events)["weight"]

    def energy(weight: Tensor) -> Tensor:
        margin = events.target * (events.inputs[:, :-1] @ weight + events.inputs[:, -1])
        loss = (events.weight * torch.nn.functional.softplus(-margin)).sum()
        return 0.5 * loss / params["log_noise"].exp() + 0.5 * (weight - params["model.weight"]).square().sum()

    assert grad(energy)(fast).abs().max() < 1e-6


def test_laplace_does_not_overshoot_where_the_loss_is_flat() -> None:
    # One like of an item that the start is sure to be disliked: a whole Newton step flies past the mode and back.
    inputs = torch.tensor([[8.0, 0.0, -4.0]], dtype=torch.float64)
    one = Events(inputs, torch.ones(1).double(), torch.ones(1).double(), torch.zeros(1, dtype=torch.int64))
    learner = build("laplace", linear_model(2), "clicks", num_steps=8)
    params = {key: value.double() for key, value in learner.params.items()}
    fast = learner.adapt(params, learner.prior(params, torch.zeros(0).double()), one)
    grid = torch.linspace(-1, 3, 400_001).double()
    energy = torch.nn.functional.softplus(-(8 * grid - 4)) + 0.5 * grid.square()
    torch.testing.assert_close(fast["weight"][0], grid[energy.argmin()], atol=2e-3, rtol=0)


def test_laplace_on_squared_error_is_ridge() -> None:
    events = linear_events(2, 7, 5)
    params = {"model.weight": torch.linspace(-0.5, 0.5, 5).double(), "log_noise": torch.tensor(-0.2).double()}
    results = []
    for name, settings in (("ridge", {}), ("laplace", {"num_steps": 1})):
        learner = build(name, linear_model(5), "ratings", **settings)
        results.append(learner.adapt(params, learner.prior(params, torch.zeros(0).double()), events)["weight"])
    torch.testing.assert_close(*results)


def two_groups() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(90) % 3
    centres = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 60.0]])
    return centres[group] + torch.randn(90, 2, generator=generator) * torch.tensor([0.7, 7.0]), group


@pytest.mark.parametrize("method", ["kmeans", "gmm", "svm"])
def test_classes_are_found_and_each_has_its_prior(method: str) -> None:
    profiles, group = two_groups()
    learner = build("clusters", linear_model(2), num_profile=2, method=method, num_classes=3)
    params = learner.prepare(learner.params, profiles, group if method == "svm" else None)
    shares = torch.stack([classes_of(params, profile, soft=method == "gmm") for profile in profiles])
    torch.testing.assert_close(shares.sum(1), torch.ones(90))
    found = shares.argmax(1)
    if method == "svm":
        assert (found == group).float().mean() > 0.95
    pairs = {(int(a), int(b)) for a, b in zip(found, group, strict=True)}
    assert sum((found[group == g] == found[group == g].mode().values).sum() for g in range(3)) > 85
    assert len(pairs) < 7
    params["class.weight"] = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    prior = learner.prior(params, profiles[0])["weight"]
    torch.testing.assert_close(prior, shares[0] @ params["class.weight"])


def test_gmm_shares_are_those_of_the_mixture() -> None:
    from sklearn.mixture import GaussianMixture

    profiles, _ = two_groups()
    learner = build("clusters", linear_model(2), num_profile=2, method="gmm", num_classes=3)
    params = learner.prepare(learner.params, profiles, None)
    z = (profiles - profiles.mean(0)) / profiles.std(0, correction=0)
    mixture = GaussianMixture(3, covariance_type="diag", reg_covar=1e-2, n_init=5, random_state=0).fit(
        z.double().numpy()
    )
    expected = mixture.predict_proba(z.double().numpy())
    shares = torch.stack([classes_of(params, profile, soft=True) for profile in profiles])
    np.testing.assert_allclose(np.sort(shares.numpy(), 1), np.sort(expected, 1), atol=1e-3)  # classes have no order


def test_what_classes_cannot_be_fitted_on_is_said() -> None:
    profiles, _ = two_groups()
    svm = build("clusters", linear_model(2), num_profile=2, method="svm", num_classes=3)
    with pytest.raises(DataError, match="give the class of every training task"):
        svm.prepare(svm.params, profiles, None)
    with pytest.raises(DataError, match=r"the given classes are \[0, 1\]; expected every number from 0 to 2"):
        svm.prepare(svm.params, profiles, torch.arange(90) % 2)
    kmeans = build("clusters", linear_model(2), num_profile=2, num_classes=3)
    with pytest.raises(DataError, match=r"1 different profiles, fewer than learner\.num_classes = 3"):
        kmeans.prepare(kmeans.params, torch.zeros(9, 2), None)


@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_a_proximal_step_minimises_its_objective(penalty: str) -> None:
    moved = torch.linspace(-2, 2, 9).double()
    config = PenaltyConfig(penalty=penalty, penalty_weight=0.4)  # type: ignore[arg-type]
    start = {"w": torch.full((9,), 0.5).double()}
    found = shrink(config, {}, start, {"w": start["w"] + moved}, 1.5)["w"] - start["w"]
    grid = torch.linspace(-3, 3, 6001).double()
    cost = 0.4 * 1.5 * (grid.abs() if penalty == "l1" else 0.5 * grid.square())
    best = grid[(0.5 * (grid[:, None] - moved).square() + cost[:, None]).argmin(0)]
    torch.testing.assert_close(found, best, atol=2e-3, rtol=0)


class TestFromModule:
    def test_a_module_of_its_own_with_embeddings(self) -> None:
        class Taste(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.items = nn.Embedding(10, 4)
                self.hidden = nn.Linear(4, 6)
                self.out = nn.Linear(6, 1, bias=False)

            def forward(self, ids: Tensor) -> Tensor:
                score: Tensor = self.out(torch.relu(self.hidden(self.items(ids))))
                return score.squeeze(-1)

        net = Taste()
        model = from_module(net, head="out", decision=["hidden"])
        ids = torch.tensor([3, 1, 9])
        assert model.head == ("out.weight",)
        assert model.decision == ("hidden.weight", "hidden.bias", "out.weight")
        torch.testing.assert_close(model.predict(model.weights, ids), net(ids))
        features = model.features(model.weights, ids)
        torch.testing.assert_close(features @ net.out.weight[0], net(ids))
        for name in ("melu", "ridge", "neural-process"):
            learner = build(name, model)
            support = Events(ids, torch.ones(3), torch.ones(3), torch.zeros(3, dtype=torch.int64))
            fast = learner.adapt(learner.params, learner.prior(learner.params, torch.zeros(0)), support)
            assert "items.weight" not in fast
            assert torch.isfinite(learner.predict(learner.params, fast, ids)).all()

    def test_the_features_with_a_one_for_the_bias_give_the_prediction(self) -> None:
        net = network()
        model = from_module(net)
        inputs = torch.randn(7, 3, dtype=torch.float64)
        head = torch.cat([model.weights[name].flatten() for name in model.head])
        torch.testing.assert_close(model.features(model.weights, inputs) @ head, net(inputs)[:, 0])
        assert model.layers is not None
        assert model.layers.names == (("0.weight", "0.bias"), ("2.weight", "2.bias"), ("4.weight", "4.bias"))

    def test_what_is_no_plain_stack_has_no_fast_path(self) -> None:
        for net in (
            nn.Sequential(nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 1)),
            nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh(), nn.Linear(2, 1)),
            nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)),
            nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1)),
        ):
            assert from_module(net).layers is None

    def test_the_module_is_left_alone(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        before = {name: value.clone() for name, value in net.state_dict().items()}
        model = from_module(net)
        inputs = torch.randn(6, 3)
        for name in ("ridge", "maml"):
            learner = build(name, model)
            support = make_events(inputs, torch.randn(6))
            one, other = (adapt(learner, learner.params, support) for _ in range(2))
            assert all(torch.equal(value, other[part]) for part, value in one.items())
        assert net.training
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_weights_that_ask_for_no_gradient_stay(self) -> None:
        net = network()
        net[0].requires_grad_(False)
        model = from_module(net)
        assert set(model.weights) == {"2.weight", "2.bias", "4.weight", "4.bias"}
        assert model.layers is None
        torch.testing.assert_close(model.predict(model.weights, SUPPORT.inputs), net(SUPPORT.inputs)[:, 0])
        with pytest.raises(ConfigError, match="'0' has no weights that are trained"):
            from_module(net, decision=["0"])

    def test_a_container_decides_with_all_that_is_in_it(self) -> None:
        net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 1))
        assert from_module(net, decision=["1"]).decision == ("1.0.weight", "1.0.bias", "2.weight", "2.bias")

    def test_a_layer_that_appears_twice_has_no_fast_path(self) -> None:
        tied, act = nn.Linear(3, 3), nn.Tanh()
        assert from_module(nn.Sequential(tied, act, tied, act, nn.Linear(3, 1))).layers is None

    @pytest.mark.parametrize("name", ["ridge", "laplace", "clusters"])
    def test_a_closed_form_refuses_a_head_whose_output_is_changed(self, name: str) -> None:
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid())
        learner = build(name, from_module(net, head="2"), num_profile=2)
        tasks = make_tasks(torch.randn(8, 6, 3), torch.rand(8, 6), 3, torch.randn(8, 2))
        with pytest.raises(ConfigError, match="changes its head's output"):
            fit(learner, tasks, tasks, FitConfig(num_steps=1))

    @pytest.mark.parametrize(
        ("net", "settings", "match"),
        [
            (nn.ReLU(), {}, "has no nn.Linear"),
            (nn.Sequential(nn.Linear(3, 2)), {}, "expected an nn.Linear with one output"),
            (nn.Sequential(nn.Linear(3, 1)), {"head": "7"}, "no module '7'; known here: 0"),
            (nn.Sequential(nn.Linear(3, 1)), {"decision": ["x"]}, "no module 'x'"),
        ],
    )
    def test_a_cut_that_is_not_there_is_named(self, net: nn.Module, settings: dict[str, object], match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            from_module(net, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("maml", {"num_step": 3}, "has no setting 'num_step'; did you mean num_steps?"),
        ("maml", {"num_steps": 0}, "learner.num_steps is 0"),
        ("maml", {"step_size": "fast"}, "learner.step_size is 'fast'; expected float"),
        ("maml", {"penalty": "l3"}, "learner.penalty is 'l3'; expected one of none, l2, l1, learned"),
        ("ridge", {"noise": -1}, "learner.noise is -1"),
        ("maml2", {}, "choose one of: ridge"),
    ],
)
def test_a_bad_setting_is_named(name: str, settings: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(name, linear_model(2), **settings)


def test_a_run_from_start_to_taste_on_a_plain_module() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(64, 3, 1, generator=generator)
    inputs = torch.randn(64, 12, 3, generator=generator)
    target = (inputs @ own)[..., 0]
    zeros = torch.zeros(64, 6, dtype=torch.int64)
    parts = [
        Events(inputs[:, half], target[:, half], torch.ones(64, 6), zeros) for half in (slice(0, 6), slice(6, None))
    ]
    tasks = Tasks(torch.zeros(64, 0), *parts)
    learner = build("maml", from_module(net), step_size=0.1)
    result = fit(learner, tasks, tasks, FitConfig(num_steps=60, learning_rate=0.01, validate_every=20))
    assert result.validation[-1][1] < 0.7 * result.validation[0][1]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
