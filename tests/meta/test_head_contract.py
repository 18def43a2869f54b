"""What every learner in the table must do under the recommender's head."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from palate.meta import LEARNERS
from palate.meta.head import Head, Items, Layout, Profile, Query, Support, make_head
from palate.meta.learner import Params

NUM_ITEMS, NUM_FEATURES, DIM, NUM_PROFILE = 30, 8, 4, 3
FIRST_ORDER = {"fomaml", "reptile"}
AMORTISED = {"neural-process"}


def head_of(name: str) -> Head:
    return make_head(name, NUM_FEATURES, NUM_PROFILE, num_scorer_features=2)


def world(name: str, seed: int = 0) -> tuple[Params, Items]:
    torch.manual_seed(seed)
    features, in_context = torch.randn(NUM_ITEMS, NUM_FEATURES), torch.randn(NUM_ITEMS, DIM + 1)
    items = Items(features, in_context[:, :DIM], in_context[:, DIM], torch.randn(NUM_ITEMS))
    layout = Layout(
        torch.randn(NUM_FEATURES) * 0.3,
        torch.tensor([1.0] * 8) if LEARNERS[name].by_feature else torch.tensor([0.0] * 4 + [1.0] * 4),
        torch.tensor([1.0] * 4 + [0.0] * 4),
        NUM_PROFILE,
    )
    params = head_of(name).params(layout, items)
    return with_prior(params, torch.randn(NUM_FEATURES) * 0.2, torch.randn(NUM_PROFILE, NUM_FEATURES) * 0.2), items


def with_prior(params: Params, bias: Tensor, profile: Tensor) -> Params:
    """Another prior mean, which is learned or fixed."""
    begin = "" if "prior.bias" in params else "fixed."
    return {**params, f"{begin}prior.bias": bias, f"{begin}prior.profile": profile}


def support_of(items: Items, chosen: list[int], state: Tensor, width: int | None = None) -> Support:
    width = width or max(1, len(chosen))
    padded = torch.tensor(chosen + [0] * (width - len(chosen)), dtype=torch.int64)
    mask = torch.tensor([1.0] * len(chosen) + [0.0] * (width - len(chosen)))
    return Support(items.features[padded] * mask[:, None], mask.clone(), mask, state, torch.tensor(0.0))


def scores(
    name: str, params: Params, items: Items, profile: Profile, support: Support, head: Head | None = None
) -> Tensor:
    head = head or head_of(name)
    return head.score(params, head.adapt(params, head.prior(params, profile), support), items)


@pytest.fixture(params=sorted(LEARNERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def profile() -> Profile:
    torch.manual_seed(5)
    return Profile(torch.randn(NUM_PROFILE), torch.randn(DIM))


def test_an_empty_support_is_the_prior(name: str, profile: Profile) -> None:
    params, items = world(name)
    head = head_of(name)
    prior = head.prior(params, profile)
    adapted = head.adapt(params, prior, support_of(items, [], profile.state, width=3))
    for part in prior:
        torch.testing.assert_close(adapted[part], prior[part])
        assert torch.isfinite(adapted[part]).all()


def test_padding_changes_nothing(name: str, profile: Profile) -> None:
    params, items = world(name)
    state = torch.randn(DIM)
    tight = scores(name, params, items, profile, support_of(items, [3, 7], state))
    wide = scores(name, params, items, profile, support_of(items, [3, 7], state, width=6))
    torch.testing.assert_close(tight, wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chosen", [[], [3, 7]])
def test_what_padding_holds_is_never_read(name: str, chosen: list[int], profile: Profile) -> None:
    params, items = world(name)
    clean = support_of(items, chosen, profile.state, width=5)
    padding = clean.weight == 0
    dirty = clean._replace(
        features=torch.where(padding[:, None], 9.0, clean.features), target=torch.where(padding, -1.0, clean.target)
    )
    adapt, prior = head_of(name).adapt, head_of(name).prior(params, profile)
    expected = adapt(params, prior, clean) if chosen else prior
    for part, value in adapt(params, prior, dirty).items():
        torch.testing.assert_close(value, expected[part], rtol=1e-5, atol=1e-6)
        assert chosen or torch.equal(value, expected[part])


def test_the_order_of_the_support_changes_nothing(name: str, profile: Profile) -> None:
    params, items = world(name)
    state = torch.randn(DIM)
    one = scores(name, params, items, profile, support_of(items, [3, 7, 11], state))
    other = scores(name, params, items, profile, support_of(items, [11, 3, 7], state))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_vmap_equals_the_loop(name: str) -> None:
    params, items = world(name)
    torch.manual_seed(1)
    profiles = Profile(torch.randn(3, NUM_PROFILE), torch.randn(3, DIM))
    chosen = [[1, 2], [5], []]
    single = [support_of(items, picks, torch.randn(DIM), width=2) for picks in chosen]
    batch = Support(*(torch.stack(parts) for parts in zip(*single, strict=True)))
    head = head_of(name)
    together = vmap(lambda profile, support: scores(name, params, items, profile, support, head))(profiles, batch)
    for row in range(3):
        alone = scores(name, params, items, Profile(*(part[row] for part in profiles)), single[row])
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


def test_a_choice_lifts_its_likes_and_a_refusal_lowers_them(name: str, profile: Profile) -> None:
    if name in AMORTISED:
        pytest.skip("learns from nothing what a choice means; see the planted tastes")
    params, items = world(name)
    liked = support_of(items, [4], profile.state)
    refused = liked._replace(target=-liked.target)
    # The prior mean is left out, so that the sign is the event's alone.
    params = with_prior(params, torch.zeros(NUM_FEATURES), torch.zeros(NUM_PROFILE, NUM_FEATURES))
    up, down = (scores(name, params, items, profile, support)[4] for support in (liked, refused))
    assert up > down


def test_a_refusal_lowers_what_is_like_it_and_a_choice_lifts_it(name: str, profile: Profile) -> None:
    if name in AMORTISED:
        pytest.skip("learns from nothing what a choice means; see the planted tastes")
    params, items = world(name)
    features = items.features.clone()
    features[5] = 0.8 * features[4]
    items = items._replace(features=features)
    for size in (1, 2):  # two events, so that what one says is added to what another has said
        other = support_of(items, [9] * (size - 1), profile.state, width=size)
        liked = support_of(items, [9] * (size - 1) + [4], profile.state)
        refused = liked._replace(target=liked.target * torch.tensor([1.0] * (size - 1) + [-1.0]))
        before, up, down = (entry_delta(name, params, support) @ features[5] for support in (other, liked, refused))
        assert down < before < up


def entry_delta(name: str, params: Params, support: Support) -> Tensor:
    head = head_of(name)
    params = with_prior(params, torch.zeros(NUM_FEATURES), torch.zeros(NUM_PROFILE, NUM_FEATURES))
    profile = Profile(torch.zeros(NUM_PROFILE), support.state)
    return head.adapt(params, head.prior(params, profile), support)["delta"]


def test_every_trained_parameter_gets_a_gradient_that_finite_differences_confirm(name: str, profile: Profile) -> None:
    if name in FIRST_ORDER:
        pytest.skip("first-order by design")
    params, items = world(name)
    params = {
        key: value.double() + (0.0 if key.startswith("fixed.") else 0.1 * torch.randn_like(value).double())
        for key, value in params.items()
    }
    items = Items(*(value.double() for value in items))
    profile = Profile(*(value.double() for value in profile))
    support = Support(*(part.double() for part in support_of(items, [3, 7, 9], torch.randn(DIM))))
    relevant = torch.zeros(NUM_ITEMS, dtype=torch.float64)
    relevant[[1, 8, 20]] = 1.0
    allowed = torch.ones(NUM_ITEMS, dtype=torch.float64)
    allowed[[3, 7, 9]] = 0.0
    head = head_of(name)
    trained = {key: value for key, value in params.items() if not key.startswith("fixed.")}
    fixed = {key: value for key, value in params.items() if key.startswith("fixed.")}

    evidence = torch.randn(NUM_ITEMS, 2, dtype=torch.float64)

    def loss(weights: Params) -> Tensor:
        here = {**fixed, **weights}
        fast = head.adapt(here, head.prior(here, profile), support)
        return head.loss(fast, Query(items, relevant, allowed, evidence))

    gradients = grad(loss)(trained)
    for key, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), key
        place = int(gradient.abs().argmax())
        assert gradient.flatten()[place] != 0, key
        step = torch.zeros_like(trained[key]).flatten()
        step[place] = 1e-6
        step = step.view_as(trained[key])
        ahead, behind = (loss({**trained, key: trained[key] + sign * step}) for sign in (1, -1))
        numeric = (ahead - behind) / 2e-6
        torch.testing.assert_close(
            gradient.flatten()[place], numeric, rtol=1e-4, atol=1e-7, msg=f"{key} {gradient.flatten()[place]} {numeric}"
        )
