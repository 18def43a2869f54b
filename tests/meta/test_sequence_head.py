"""The sequence head against its formula in plain loops, and what may not change a score."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from palate.errors import ConfigError, ModelError
from palate.meta.learner import Params
from palate.meta.sequence_head import (
    KNOTS,
    SequenceItems,
    SequenceSupport,
    adapt,
    check_params,
    compose,
    gather,
    observe,
    prior,
    score,
    start_params,
    start_running,
    surprises,
)

NUM_ITEMS, DIM, EVENTS, GRADES = 12, 3, 7, 3


def catalogue() -> SequenceItems:
    generator = torch.Generator().manual_seed(1)
    return SequenceItems(
        torch.randn(NUM_ITEMS, DIM, generator=generator),
        torch.randn(NUM_ITEMS, generator=generator),
        torch.randn(2, NUM_ITEMS, NUM_ITEMS, generator=generator),
    )


def some_params() -> Params:
    generator = torch.Generator().manual_seed(2)
    start = start_params(DIM, [0.8, 0.6], GRADES)
    return {
        name: torch.rand(len(KNOTS), generator=generator)
        if name == "fixed.trust"
        else value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in start.items()
    }


def some_support(count: int) -> SequenceSupport:
    generator = torch.Generator().manual_seed(3)
    items = torch.randperm(NUM_ITEMS, generator=generator)[:EVENTS]
    grades = torch.randint(GRADES, (EVENTS,), generator=generator)
    states = torch.randn(EVENTS + 1, DIM, generator=generator)
    known = torch.randn(NUM_ITEMS, generator=generator)
    return SequenceSupport(
        items, grades, surprises(states[:-1], items, catalogue()), states[count], torch.tensor(count), known
    )


def by_hand(params: Params, items: SequenceItems, support: SequenceSupport) -> Tensor:
    """The formula of the module, item by item and event by event."""
    n = int(support.size)
    x, knots = math.log1p(n), [math.log1p(knot) for knot in KNOTS]
    upper = next((place for place, knot in enumerate(knots) if knot > x), len(knots))
    part = (x - knots[upper - 1]) / (knots[upper] - knots[upper - 1]) if upper < len(knots) else 0.0

    def at(row: Tensor) -> float:
        after = float(row[min(upper, len(knots) - 1)])
        return (1 - part) * float(row[upper - 1]) + part * after

    gates, trust = [at(row) for row in params["gates"]], at(params["fixed.trust"])
    decay = [1 / (1 + math.exp(-float(value))) for value in params["decay"]]
    result = []
    for item in range(NUM_ITEMS):
        base = float(support.state @ items.vectors[item] + items.bias[item])
        total = base + trust * (gates[0] - 1) * base
        for t in range(n):
            moved = support.surprises[t] @ params["precondition"] @ items.vectors[item]
            total += trust * gates[1] * decay[0] ** (n - 1 - t) * float(moved)
        for k in range(2):
            evidence = sum(
                decay[1 + k] ** (n - 1 - t)
                * float(params["grades"][k, support.grades[t]] * items.tables[k, support.items[t], item])
                for t in range(n)
            )
            sharpness = math.exp(float(params["log_sharpness"][k]))
            total += trust * (gates[2 + k] * evidence + gates[4 + k] * math.log1p(sharpness * max(evidence, 0.0)))
        total += trust * gates[6] * float(support.known[item])
        result.append(total)
    return torch.tensor(result)


@pytest.mark.parametrize("count", [0, 1, 4, EVENTS])
def test_the_score_is_the_formula(count: int) -> None:
    params, items, support = some_params(), catalogue(), some_support(count)
    torch.testing.assert_close(
        score(adapt(params, items, support), items), by_hand(params, items, support), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("count", [9, 200, 5000])
def test_gates_between_and_beyond_the_knots(count: int) -> None:
    params, items, state = some_params(), catalogue(), torch.randn(DIM)
    nothing = start_running(items)._replace(size=torch.tensor(count))
    support = SequenceSupport(
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, DIM),
        state,
        torch.tensor(0),
        torch.zeros(NUM_ITEMS),
    )
    # By hand with this many events, of which none is left to read: what remains is the state's gate.
    expected = by_hand_gate(params, count) * (items.vectors @ state + items.bias)
    assert gather(params, items, support).size == 0
    torch.testing.assert_close(score(compose(params, nothing, state, torch.zeros(NUM_ITEMS)), items), expected)


def by_hand_gate(params: Params, count: int) -> float:
    x, knots = math.log1p(count), [math.log1p(knot) for knot in KNOTS]
    upper = next((place for place, knot in enumerate(knots) if knot > x), len(knots) - 1)
    part = min((x - knots[upper - 1]) / (knots[upper] - knots[upper - 1]), 1.0)
    gate, trust = (
        float((1 - part) * row[upper - 1] + part * row[upper]) for row in (params["gates"][0], params["fixed.trust"])
    )
    return 1 + trust * (gate - 1)


def test_a_surprise_is_minus_the_gradient_of_the_loss_by_the_state() -> None:
    items, support = catalogue(), some_support(EVENTS)
    states = torch.randn(EVENTS, DIM, requires_grad=True)
    found = surprises(states.detach(), support.items, items)
    for t in range(EVENTS):
        logits = states[t] @ items.vectors.T + items.bias
        allowed = [item for item in range(NUM_ITEMS) if item not in support.items[:t].tolist()]
        loss = -logits[allowed].log_softmax(0)[allowed.index(int(support.items[t]))]
        (slope,) = torch.autograd.grad(loss, states)
        torch.testing.assert_close(found[t], -slope[t], rtol=1e-4, atol=1e-5)


def test_an_item_asked_for_again_is_finite() -> None:
    found = surprises(torch.randn(3, DIM), torch.tensor([4, 4, 4]), catalogue())
    assert torch.isfinite(found).all()


def test_event_by_event_equals_all_at_once() -> None:
    params, items, support = some_params(), catalogue(), some_support(EVENTS)
    running = start_running(items)
    for t in range(EVENTS):
        running = observe(params, items, running, support.items[t], support.grades[t], support.surprises[t])
    for one, other in zip(running, gather(params, items, support), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_empty_support_is_the_prior_and_the_untrained_prior_of_a_stranger_the_model() -> None:
    items, support = catalogue(), some_support(0)
    for params in (some_params(), start_params(DIM, [0.8, 0.6], GRADES)):
        found, expected = adapt(params, items, support), prior(params, items, support.state, support.known)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    unknown = prior(params, items, support.state, torch.zeros(NUM_ITEMS))
    torch.testing.assert_close(score(unknown, items), items.vectors @ support.state + items.bias)


def test_padding_is_never_read() -> None:
    params, items, support = some_params(), catalogue(), some_support(4)
    spoiled = support._replace(
        items=support.items.clone().index_fill_(0, torch.tensor([4, 5, 6]), 0),
        surprises=support.surprises.clone().index_fill_(0, torch.tensor([4, 5, 6]), float("nan")),
    )
    short = SequenceSupport(support.items[:4], support.grades[:4], support.surprises[:4], *support[3:])
    for other in (spoiled, short):
        torch.testing.assert_close(
            score(adapt(params, items, other), items), score(adapt(params, items, support), items)
        )


def test_without_trust_the_scores_are_the_models() -> None:
    params, items, support = some_params(), catalogue(), some_support(5)
    params["fixed.trust"] = torch.zeros(len(KNOTS))
    expected = items.vectors @ support.state + items.bias
    torch.testing.assert_close(score(adapt(params, items, support), items), expected)


def test_vmap_equals_a_loop() -> None:
    params, items = some_params(), catalogue()
    supports = [some_support(count) for count in (0, 2, 7)]
    stacked = SequenceSupport(*(torch.stack(column) for column in zip(*supports, strict=True)))
    found = vmap(lambda *support: score(adapt(params, items, SequenceSupport(*support)), items))(*stacked)
    for row, support in zip(found, supports, strict=True):
        torch.testing.assert_close(row, score(adapt(params, items, support), items), rtol=1e-4, atol=1e-4)


def test_bad_settings_and_a_catalogue_of_another_shape() -> None:
    with pytest.raises(ConfigError, match="decays"):
        start_params(DIM, [1.0])
    with pytest.raises(ConfigError, match="grades"):
        start_params(DIM, [0.5], 0)
    with pytest.raises(ModelError, match="train it anew"):
        check_params(start_params(DIM, [0.5]), catalogue())
