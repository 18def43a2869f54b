"""Explanation by hand: four items in two dimensions, of which the metric counts one double."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from palate.data.vocabulary import Vocabulary
from palate.errors import ConfigError
from palate.meta.head import Items
from palate.recommend import Recommender
from palate.recommend.explanation import Explainer

FEATURES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
METRIC = torch.tensor([2.0, 1.0])


def numbers(*places: int) -> np.ndarray:
    return np.array(places, np.int64)


@pytest.fixture
def explainer(model: Recommender) -> Explainer:
    nothing = torch.zeros(4)
    rows = Items(FEATURES, torch.zeros(4, 1), nothing, nothing)
    vocabulary = Vocabulary(("a", "b", "c", "d"))
    table = replace(model.item_table, rows=rows, titles=("A", "B", "C", "D"), vocabulary=vocabulary)
    return Explainer(table, METRIC)


def test_directions_are_unit_vectors_in_the_metric(explainer: Explainer) -> None:
    half = np.sqrt(0.5)
    expected = [[1, 0], [0, 1], [half, half], [0, 0]]
    np.testing.assert_allclose(explainer.directions(numbers(0, 1, 2, 3)), expected, atol=1e-6)
    assert torch.equal(FEATURES, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0], [0.0, 0.0]])), "a copy was scaled"


def test_the_reason_is_the_nearest_event(explainer: Explainer) -> None:
    assert explainer.reasons(numbers(0, 1), numbers(2)) == [("goes with A", "a")], "the first of two that are as near"
    assert explainer.reasons(numbers(1), numbers(2, 0)) == [("goes with B", "b"), ("fits your recent choices", None)]
    assert explainer.reasons(numbers(3), numbers(0)) == [("fits your recent choices", None)]
    assert explainer.reasons(numbers(), numbers(0, 1)) == [("popular with people like you", None)] * 2
    assert explainer.reasons(numbers(0), numbers()) == []


def test_the_nearest_items_are_those_with_the_largest_cosine(explainer: Explainer) -> None:
    found = explainer.nearest(0, 2)
    assert [place for place, _ in found] == [2, 1]
    assert [value for _, value in found] == pytest.approx([np.sqrt(0.5), 0])
    assert len(explainer.nearest(0, 10)) == 3
    with pytest.raises(ConfigError):
        explainer.nearest(0, 0)


def test_a_model_explains_with_its_own_parts(model: Recommender) -> None:
    places = numbers(3, 7)
    explainer = model._explainer
    state = model.adapt(["garden-01", "toys-02"])
    assert model.reasons(state, places) == explainer.reasons(state.history.items, places)
    np.testing.assert_array_equal(model.directions(places), explainer.directions(places))
