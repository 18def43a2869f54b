"""One person's fast weights by the quick way: those of the head, for every learner of the table."""

from typing import Any

import pytest
import torch

from palate.meta.adapter import Adapter
from palate.meta.head import Items, Layout, Support, make_head
from palate.meta.ridge import RidgeConfig, quick
from palate.meta.table import LEARNERS

NUM_FEATURES, NUM_PROFILE, NUM_ITEMS, DIM = 6, 3, 40, 4
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in LEARNERS),
    ("ridge", {"penalty": "learned"}),
    ("ridge", {"penalty": "l1"}),
    ("ridge", {"noise": 0.3}),
]


def make_params(learner: str, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Parameters as after a training: nothing is 0 that training moves."""
    generator = torch.Generator().manual_seed(0)
    features, in_context = torch.randn(NUM_ITEMS, NUM_FEATURES), torch.randn(NUM_ITEMS, DIM + 1)
    items = Items(features, in_context[:, :DIM], in_context[:, DIM], torch.randn(NUM_ITEMS))
    half = torch.arange(NUM_FEATURES) % 2
    layout = Layout(torch.linspace(-1, 1, NUM_FEATURES), half.float(), 1 - half.float(), NUM_PROFILE)
    params = make_head(learner, NUM_FEATURES, NUM_PROFILE, settings).params(layout, items)
    return {
        name: value
        if name.startswith("fixed.") or not value.is_floating_point()
        else value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in params.items()
    }


def make_support(size: int, returning: bool) -> Support:
    """Some chosen, some refused; nobody's has a place of weight 0, as `make_support` gives it."""
    target = torch.where(torch.arange(max(size, 1)) % 3 == 2, -1.0, 1.0)
    weight = torch.ones(max(size, 1)) if size else torch.zeros(1)
    features = torch.randn(max(size, 1), NUM_FEATURES) * weight[:, None]
    return Support(features, target * weight, weight, torch.randn(DIM), torch.tensor(float(returning)))


@pytest.mark.parametrize(("learner", "settings"), CASES, ids=lambda value: str(value))
def test_the_quick_way_leads_to_the_same_fast_weights(learner: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    params = make_params(learner, settings)
    head, adapter = make_head(learner, NUM_FEATURES, NUM_PROFILE, settings), Adapter(learner, settings, params)
    for size, returning in [(0, False), (1, True), (5, False), (5, True), (17, True), (5, False)]:
        support, profile = make_support(size, returning), torch.randn(NUM_PROFILE)
        with torch.inference_mode():
            expected = head.adapt(params, head.begin(params, profile), support)
            found = adapter.adapt(profile, support)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_system_that_rounding_makes_singular_is_solved() -> None:
    rows = torch.ones(3, 2).numpy()
    solve = quick(RidgeConfig(), {"log_noise": torch.tensor(-80.0).numpy()})
    assert solve is not None
    torch.testing.assert_close(torch.from_numpy(solve(rows, torch.ones(3).numpy())), torch.full((2,), 0.5))
