"""What every learner in the table must do, on a network and on a linear model, for ratings and for choices."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from palate.errors import ConfigError, DataError, NumericalError
from palate.meta import (
    LEARNERS,
    OBJECTIVES,
    Events,
    FitConfig,
    Learner,
    Params,
    Tasks,
    adapt,
    build,
    fit,
    from_module,
    linear_model,
    load_params,
    make_events,
    make_tasks,
    save_params,
)
from palate.meta.outer import constant_losses, predict_tasks, query_loss, vary_support
from palate.meta.quality import MIN_USERS
from palate.meta.table import read_settings

DIM, NUM_PROFILE = 4, 3
FIRST_ORDER = {"fomaml", "reptile"}
CLOSED_FORM = {"ridge", "laplace", "clusters"}
NEEDS_TRAINING = {"neural-process"}
GRADIENT = sorted(set(LEARNERS) - CLOSED_FORM - NEEDS_TRAINING)


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(DIM, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


MODELS = {"network": lambda: from_module(network()), "linear": lambda: linear_model(DIM)}


def inputs_for(model: str, *shape: int) -> Tensor:
    inputs = torch.randn(*shape, DIM)
    return torch.cat([inputs, 0.1 * torch.randn(*shape, 1)], -1) if model == "linear" else inputs


def events(inputs: Tensor, target: Tensor, weight: Tensor | None = None) -> Events:
    return Events(inputs, target, torch.ones_like(target) if weight is None else weight, target.long() * 0)


def perturbed(learner: Learner, scale: float = 0.2, *, double: bool = False) -> Params:
    """Parameters away from the start, where symmetries hide what a learner does."""
    generator = torch.Generator().manual_seed(3)
    params = {
        name: value if name.startswith("fixed.") else value + scale * torch.randn(value.shape, generator=generator)
        for name, value in learner.params.items()
    }
    return {name: value.double() for name, value in params.items()} if double else params


def some_events(model: str, size: int, seed: int = 0) -> Events:
    torch.manual_seed(seed)
    return events(inputs_for(model, size), torch.randn(size).sign())


@pytest.fixture(params=sorted(LEARNERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(OBJECTIVES))
def objective(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(name: str, model: str, objective: str = "ratings", **settings: object) -> Learner:
    return build(name, MODELS[model](), objective, num_profile=NUM_PROFILE, **settings)


PROFILE = torch.tensor([0.3, -1.0, 0.5])


def test_an_empty_support_is_the_prior(name: str, model: str, objective: str) -> None:
    learner = make(name, model, objective)
    params = perturbed(learner)
    prior = learner.prior(params, PROFILE)
    nothing = some_events(model, 3)._replace(weight=torch.zeros(3))
    adapted = learner.adapt(params, prior, nothing)
    assert adapted.keys() == prior.keys()
    for part, value in prior.items():
        torch.testing.assert_close(adapted[part], value)
    assert torch.isfinite(learner.predict(params, adapted, nothing.inputs)).all()
    gradient = grad(lambda params: learner.loss(params, PROFILE, nothing, some_events(model, 4)))(params)
    assert all(torch.isfinite(value).all() for value in gradient.values())


@pytest.mark.parametrize("garbage", [9.0, torch.nan])
def test_padding_and_order_change_nothing(name: str, model: str, objective: str, garbage: float) -> None:
    learner = make(name, model, objective)
    params = perturbed(learner)
    support = some_events(model, 4)
    padded = Events(
        torch.cat([support.inputs, torch.full_like(support.inputs[:2], garbage)]),
        torch.cat([support.target, torch.tensor([-garbage, garbage])]),
        torch.cat([support.weight, torch.zeros(2)]),
        torch.zeros(6, dtype=torch.int64),
    )
    turned = Events(*(value[torch.tensor([4, 2, 0, 5, 3, 1])] for value in padded))
    prior = learner.prior(params, PROFILE)
    expected = learner.adapt(params, prior, support)
    moved = max(float((expected[part] - prior[part]).abs().max()) for part in prior)
    assert moved > 1e-4
    for other in (padded, turned):
        for part, value in learner.adapt(params, prior, other).items():
            torch.testing.assert_close(value, expected[part], rtol=2e-4, atol=2e-5)
    one = learner.loss(params, PROFILE, support, support)
    torch.testing.assert_close(learner.loss(params, PROFILE, padded, padded), one, rtol=2e-4, atol=2e-5)
    tasks = Tasks(PROFILE[None], *(Events(*(v[None] for v in padded)) for _ in range(2)))
    torch.testing.assert_close(learner.losses(params, tasks)[0], one, rtol=2e-4, atol=2e-5)


def test_a_support_of_no_width_is_the_prior(name: str, model: str) -> None:
    learner = make(name, model)
    params = perturbed(learner)
    none = some_events(model, 0)
    prior = learner.prior(params, PROFILE)
    for part, value in learner.adapt(params, prior, none).items():
        torch.testing.assert_close(value, prior[part])


def test_a_model_in_double_precision(name: str) -> None:
    learner = build(name, from_module(network().double()), num_profile=NUM_PROFILE)
    assert {value.dtype for value in learner.params.values()} == {torch.float64}
    support = some_events("network", 4)  # in single precision
    fast = learner.adapt(learner.params, learner.prior(learner.params, PROFILE), support)
    assert all(value.dtype == torch.float64 for value in fast.values())
    assert torch.isfinite(learner.loss(learner.params, PROFILE, support, support))


def test_batched_losses_equal_the_loop(name: str, model: str, objective: str) -> None:
    learner = make(name, model, objective)
    params = perturbed(learner)
    torch.manual_seed(1)
    weight = torch.tensor([[1.0, 1, 1], [0.5, 1, 0], [0, 0, 0], [2, 1, 0.1]])
    tasks = Tasks(
        torch.randn(4, NUM_PROFILE),
        events(inputs_for(model, 4, 3), torch.randn(4, 3).sign(), weight),
        events(inputs_for(model, 4, 5), torch.randn(4, 5).sign()),
    )
    rows = [(tasks.profile[row], *(Events(*(v[row] for v in part)) for part in tasks[1:])) for row in range(4)]
    expected = torch.stack([learner.loss(params, *row) for row in rows])
    torch.testing.assert_close(learner.losses(params, tasks), expected, rtol=1e-4, atol=1e-5)
    fast = vmap(lambda profile, support: learner.adapt(params, learner.prior(params, profile), support))(
        tasks.profile, tasks.support
    )
    for row, (profile, support, _) in enumerate(rows):
        for part, value in learner.adapt(params, learner.prior(params, profile), support).items():
            torch.testing.assert_close(fast[part][row], value, rtol=1e-4, atol=1e-5)


def test_the_meta_gradient_is_that_of_finite_differences(name: str, model: str, objective: str) -> None:
    if name in FIRST_ORDER:
        pytest.skip("first-order by design: see test_maml.py and test_reptile.py")
    learner = make(name, model, objective)
    params = perturbed(learner, double=True)
    support, query = (
        Events(*(v.double() if v.is_floating_point() else v for v in some_events(model, size, size))) for size in (3, 6)
    )
    trained = {key: value for key, value in params.items() if not key.startswith("fixed.")}
    fixed = {key: value for key, value in params.items() if key.startswith("fixed.")}

    def loss(weights: Params) -> Tensor:
        return learner.loss({**fixed, **weights}, PROFILE.double(), support, query)

    one = torch.func.vmap(loss)({key: value[None] for key, value in trained.items()})
    torch.testing.assert_close(one[0], loss(trained))
    tasks = Tasks(PROFILE.double()[None], *(Events(*(v[None] for v in part)) for part in (support, query)))
    leaves = {key: value.clone().requires_grad_() for key, value in trained.items()}
    found = torch.autograd.grad(learner.losses({**fixed, **leaves}, tasks).sum(), list(leaves.values()))
    batched = dict(zip(leaves, found, strict=True))
    for key, gradient in grad(loss)(trained).items():
        torch.testing.assert_close(batched[key], gradient, rtol=1e-6, atol=1e-9)
        place = int(gradient.abs().argmax())
        step = torch.zeros_like(gradient).flatten()
        step[place] = 1e-5
        ahead, behind = (loss({**trained, key: trained[key] + sign * step.view_as(gradient)}) for sign in (1, -1))
        numeric = (ahead - behind) / 2e-5
        torch.testing.assert_close(gradient.flatten()[place], numeric, rtol=1e-4, atol=1e-7, msg=key)


def test_less_weight_moves_less(name: str, model: str) -> None:
    learner = make(name, model)
    params = perturbed(learner)
    prior = learner.prior(params, PROFILE)
    support = some_events(model, 3)

    def moved(scale: float) -> float:
        fast = learner.adapt(params, prior, support._replace(weight=torch.full((3,), scale)))
        return float(torch.stack([(fast[part] - prior[part]).square().sum() for part in prior]).sum())

    assert 0 < moved(0.05) < moved(0.3) < moved(1.0)


def test_event_types_have_learned_weights(name: str) -> None:
    learner = build(name, linear_model(DIM), num_profile=NUM_PROFILE, num_kinds=3)
    assert learner.params["events.log_weight"].shape == (3,)
    params = perturbed(learner)
    support = some_events("linear", 3)._replace(kind=torch.tensor([0, 2, 2]))
    weight = support.weight * params["events.log_weight"].exp()[support.kind]
    plain = make(name, "linear")
    prior = learner.prior(params, PROFILE)
    adapted = learner.adapt(params, prior, support)
    for part, value in plain.adapt(params, prior, support._replace(weight=weight)).items():
        torch.testing.assert_close(adapted[part], value)
    if name not in FIRST_ORDER:  # these learn where to start and nothing else
        gradient = grad(lambda params: learner.loss(params, PROFILE, support, some_events("linear", 5)))(params)
        first, second, third = gradient["events.log_weight"].tolist()
        assert first != 0
        assert second == 0
        assert third != 0


@pytest.mark.parametrize("name", sorted(set(LEARNERS) - NEEDS_TRAINING))
def test_a_choice_lifts_and_a_refusal_lowers(name: str) -> None:
    learner = make(name, "linear", "clicks")
    start = learner.params
    inputs = torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.0]])
    prior = learner.prior(start, PROFILE)
    before, up, down = (
        learner.predict(start, learner.adapt(start, prior, events(inputs, target, weight)), inputs)
        for target, weight in (
            (torch.ones(1), torch.zeros(1)),
            (torch.ones(1), torch.ones(1)),
            (-torch.ones(1), torch.ones(1)),
        )
    )
    assert down < before < up


def planted(num_tasks: int, seed: int, *, size: int = 8) -> Tasks:
    """Ratings that a person's own weights give, around a common taste; the profile tells a part of them."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.tensor([1.0, -0.5, 0.25, 0.0])
    profile = torch.randn(num_tasks, NUM_PROFILE, generator=generator)
    own = common + 0.8 * torch.randn(num_tasks, DIM, generator=generator)
    own[:, :2] += 0.5 * profile[:, :2]
    inputs = torch.randn(num_tasks, 2 * size, DIM, generator=generator)
    target = (inputs @ own[..., None])[..., 0] + 0.3 * torch.randn(num_tasks, 2 * size, generator=generator)
    return Tasks(profile, events(inputs[:, :size], target[:, :size]), events(inputs[:, size:], target[:, size:]))


PLANTED = {"step_size": 0.03, "num_steps": 5}


def fit_planted(name: str, **settings: object) -> tuple[Learner, Params]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(DIM, 16), nn.Tanh(), nn.Linear(16, 1))
    known = read_settings(name, {})
    chosen = {key: value for key, value in {**PLANTED, **settings}.items() if hasattr(known, key)}
    learner = build(name, from_module(body), num_profile=NUM_PROFILE, **chosen)
    config = FitConfig(num_steps=300, batch_size=32, learning_rate=0.01, validate_every=50)
    result = fit(learner, planted(200, 0), planted(60, 1), config, name=name, redraw=vary_support)
    return learner, result.params


def test_more_support_of_a_planted_taste_never_hurts(name: str) -> None:
    learner, params = fit_planted(name)
    test = planted(150, 2)
    curve = []
    for size in (0, 2, 4, 8):
        weight = (torch.arange(8) < size).float().expand(150, 8)
        curve.append(query_loss(learner, params, test._replace(support=test.support._replace(weight=weight))))
    assert all(later < earlier + 0.02 for earlier, later in pairwise(curve)), curve
    assert curve[-1] < 0.75 * curve[0], curve
    assert curve[-1] < 0.5 * constant_losses(learner, planted(200, 0), test).mean(), curve


def test_same_seed_same_parameters_and_a_round_trip_through_a_file(name: str, tmp_path: Path) -> None:
    config = FitConfig(num_steps=20, validate_every=10, learning_rate=0.01)
    step = {"step_size": 0.02} if hasattr(read_settings(name, {}), "step_size") else {}
    learner = make(name, "network", **step)
    train = planted(40, 0)
    one, other = (fit(learner, train, train, config, seed=4).params for _ in range(2))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    save_params(tmp_path / "taste.safetensors", one, {"learner": name})
    read, about = load_params(tmp_path / "taste.safetensors")
    assert about == {"learner": name}
    assert read.keys() == one.keys()
    before, after = (
        predict_tasks(learner, params, train.profile, train.support, train.query.inputs) for params in (one, read)
    )
    assert torch.equal(before, after)


def test_a_nan_names_the_learner_and_the_step(name: str) -> None:
    learner, tasks = make(name, "network"), planted(20, 0)

    def spoil(batch: Tasks, rng: np.random.Generator) -> Tasks:
        parts = (part._replace(inputs=part.inputs * torch.nan) for part in (batch.support, batch.query))
        return Tasks(batch.profile, *parts)

    with pytest.raises(NumericalError, match=f"{name}: (the (loss|gradient) became nan|a solve failed) at step 1"):
        fit(learner, tasks, tasks, FitConfig(num_steps=3), name=name, redraw=spoil)
    weights = {key: value * torch.nan for key, value in learner.params.items() if key.startswith("model.")}
    broken = learner._replace(params={**learner.params, **weights}, check=lambda params, events: None)
    with pytest.raises(NumericalError, match=f"{name}: validation at step 0"):
        fit(broken, tasks, tasks, FitConfig(num_steps=3), name=name)


def test_tasks_that_cannot_be_learned_from_are_refused() -> None:
    learner, tasks = make("maml", "network"), planted(20, 0)
    nobody = Tasks(*(part[:0] if isinstance(part, Tensor) else Events(*(v[:0] for v in part)) for part in tasks))
    unknown = tasks._replace(query=tasks.query._replace(target=tasks.query.target * torch.nan))
    blank = tasks._replace(support=tasks.support._replace(inputs=tasks.support.inputs * torch.nan))
    typed = tasks._replace(support=tasks.support._replace(kind=tasks.support.kind + 7))
    stranger = tasks._replace(profile=torch.zeros(20, 1))
    for given, match in (
        (nobody, "training tasks: there are none"),
        (unknown, "a query target is NaN or infinite"),
        (blank, "a support input is NaN or infinite"),
        (typed, "event types reach from 7 to 7; expected 0 to 0: pass num_kinds"),
        (stranger, "profiles have 1 columns, the learner was built for 3"),
    ):
        with pytest.raises(DataError, match=match):
            fit(learner, given, tasks, FitConfig(num_steps=1), name="maml")
    with pytest.raises(DataError, match="choices are \\+1 and −1"):
        fit(make("maml", "network", "clicks"), tasks, tasks, FitConfig(num_steps=1), name="maml")
    with pytest.raises(ConfigError, match="reads profiles of length 3"):
        adapt(learner, learner.params, make_events(torch.zeros(2, DIM), torch.zeros(2)))
    with pytest.raises(DataError, match="num_support is 8 of 8 events; expected 0 to 7"):
        make_tasks(tasks.query.inputs, tasks.query.target, 8)


@pytest.mark.parametrize("name", GRADIENT)
def test_steps_that_diverge_fail_the_run(name: str) -> None:
    learner = make(name, "network", step_size=1e4)
    with pytest.raises(NumericalError, match=f"^{name}: "):
        fit(learner, planted(20, 0), planted(20, 1), FitConfig(num_steps=3), name=name)


@pytest.mark.parametrize("num_tasks", [9, 20])
def test_worse_than_a_constant_fails_the_run_where_enough_tasks_show_it(num_tasks: int) -> None:
    learner = make("maml", "network", step_size=1e-9)
    far = planted(num_tasks, 1)
    shifted = far._replace(query=far.query._replace(target=far.query.target + 50))
    train = planted(20, 0)
    train = train._replace(query=train.query._replace(target=train.query.target + 50))
    if num_tasks < MIN_USERS:
        assert fit(learner, train, shifted, FitConfig(num_steps=2), name="maml").validation
        return
    with pytest.raises(NumericalError, match=r"^maml: the best validation loss, .* worse than that of a constant"):
        fit(learner, train, shifted, FitConfig(num_steps=2), name="maml")


def departure(learner: Learner, params: Params) -> Tensor:
    support = some_events("network", 6)
    prior = learner.prior(params, PROFILE)
    fast = learner.adapt(params, prior, support)
    return torch.cat([(fast[part] - prior[part]).flatten() for part in fast if part != "latent"])


@pytest.mark.parametrize("name", GRADIENT)
def test_pseudo_events_shorten_the_steps_of_small_supports(name: str) -> None:
    free, held = make(name, "network"), make(name, "network", pseudo_events=6.0)
    params = perturbed(free)
    support, query = some_events("network", 6), some_events("network", 5, 1)
    # Six events among six pseudo events: as if each counted half.
    half = half_of(support)
    prior = free.prior(params, PROFILE)
    expected = free.adapt(params, prior, half)
    for part, value in held.adapt(params, prior, support).items():
        torch.testing.assert_close(value, expected[part])
    tasks = Tasks(PROFILE[None], *(Events(*(v[None] for v in part)) for part in (support, query)))
    if name != "reptile":  # adapts on support and query together there
        torch.testing.assert_close(
            held.losses(params, tasks), free.losses(params, tasks._replace(support=half_of(tasks.support)))
        )


def half_of(support: Events) -> Events:
    return support._replace(weight=0.5 * support.weight)


@pytest.mark.parametrize("penalty", ["l2", "l1", "learned"])
@pytest.mark.parametrize("name", sorted(set(LEARNERS) - CLOSED_FORM))
def test_a_penalty_keeps_fast_weights_near_the_start(name: str, penalty: str) -> None:
    if (name, penalty) == ("reptile", "learned"):
        with pytest.raises(ConfigError, match="learns only where to start"):
            make(name, "network", penalty=penalty)
        return
    free, held = (
        make(name, "network"),
        make(name, "network", penalty=penalty, penalty_weight=0.3 if penalty == "l1" else 3.0),
    )
    params = perturbed(held)
    near, far = departure(held, params), departure(free, params)
    assert 0 < near.norm() < far.norm()
    if penalty == "l1":
        assert (near == 0).sum() > (far == 0).sum()
    if penalty == "learned":
        keys = [key for key in held.params if key.startswith("penalty.")]
        support, query = some_events("network", 6), some_events("network", 5, 1)
        gradient = grad(lambda params: held.loss(params, PROFILE, support, query))(params)
        assert keys
        assert all((gradient[key] != 0).any() for key in keys)


@pytest.mark.parametrize("name", sorted(CLOSED_FORM))
def test_noise_and_precision_keep_the_closed_form_near_the_start(name: str) -> None:
    plain, learned = make(name, "network"), make(name, "network", penalty="learned")
    params = perturbed(learned)
    precise = {**params, "log_precision": params["log_precision"] + 3}
    noisy = {**params, "log_noise": params["log_noise"] + 3}
    without = {key: value for key, value in params.items() if key != "log_precision"}
    assert departure(learned, precise).norm() < departure(learned, params).norm()
    assert departure(learned, noisy).norm() < departure(learned, params).norm()
    torch.testing.assert_close(
        departure(plain, without), departure(learned, {**params, "log_precision": torch.zeros(6)})
    )
    if name == "laplace":
        with pytest.raises(ConfigError, match="use ridge for a sparse closed form"):
            make(name, "network", penalty="l1")
        return
    sparse = departure(make(name, "network", penalty="l1"), without)
    assert (sparse.abs() < 1e-3).sum() > (departure(plain, without).abs() < 1e-3).sum()
