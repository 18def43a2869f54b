"""Items as tasks: choosers by hand, the fold-in by loops, weights that find what is planted, counts as rates."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.data.episodes import History
from palate.errors import ConfigError
from palate.meta.evidence import EvidenceConfig, FeatureSpace, Rotation
from palate.meta.head import Items
from palate.meta.item_tasks import (
    ItemPosterior,
    ItemTaskConfig,
    fit_item_posterior,
    gather_choosers,
    known_by,
    popularity_of,
    warm_rows,
)
from people import choices_of

DAY = 86_400.0
EVIDENCE = EvidenceConfig(rank=4, shrink=2.0, exponent=0.5)


def history(items: list[int], times: list[float] | None = None) -> History:
    when = np.arange(len(items), dtype=float) if times is None else np.array(times, dtype=float)
    return History(np.array(items, np.int64), when, np.zeros(0, np.int64))


def make_items(num: int = 12, seed: int = 0) -> Items:
    """Four evidence features, three of content, two of the vector turned by the identity."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num, 2, generator=generator)
    features = torch.cat([torch.randn(num, 7, generator=generator), vectors], 1)
    return Items(features, vectors, torch.randn(num, generator=generator), torch.zeros(num))


def make_posterior(num: int = 12, **changes: Any) -> ItemPosterior:
    return ItemPosterior(
        evidence=torch.tensor([[1.0, 0.0], [0.5, 1.5]]),
        vectors=torch.tensor([[1.0, 0.0], [0.25, 2.0]]),
        bias=torch.tensor([-3.0, 2.0]),
        popularity=torch.tensor([1.0, 0.5]),
        counts=torch.arange(num).float(),
        rate=torch.tensor([1.0, 10.0]),
        shelf=torch.tensor([0.0, 100 * DAY, 1.0], dtype=torch.float64),
    )._replace(**changes)


SPACE = FeatureSpace(Rotation(torch.zeros(2), torch.eye(2)), torch.zeros(3, 4))


def test_choosers_by_hand() -> None:
    told = gather_choosers([12, 3, 13], [[np.array([0, 1, 12]), np.array([1])], [np.array([3])], []], 12)
    assert told.counts.tolist() == [2, 1, 0]
    assert told.joint.toarray()[0].tolist() == [1, 2] + [0] * 10
    assert told.mean.toarray()[0].tolist() == [0.25, 0.75] + [0] * 10
    assert not told.joint.toarray()[1:].any(), "an item says nothing of itself, and nobody nothing"


def test_what_was_known_when_the_choice_was_made() -> None:
    person = history([4, 2, 7, 9], [0.0, 5.0, 5.0, 6.0])
    assert known_by(person.items, person.times, 0).tolist() == [4]
    assert known_by(person.items, person.times, 1).tolist() == [4, 2, 7], "of one basket all is known"
    assert known_by(person.items, person.times, 3).tolist() == [4, 2, 7, 9]


def warm(counts: Tensor, people: list[list[np.ndarray]], config: ItemTaskConfig, prior: Items) -> Items:
    told = gather_choosers([12, 13], people, 12)
    return warm_rows(make_posterior(), config, EVIDENCE, SPACE, make_items(), prior, told, counts)


def test_rows_by_loops() -> None:
    items, prior = make_items(), make_items(2, seed=1)
    people = [[np.array([0, 5, 12]), np.array([5, 7])], []]
    found = warm(torch.tensor([6.0, 0.0]), people, ItemTaskConfig(sizes=(2,)), prior)
    counts = make_posterior().counts
    axes = items.features[:, :4].double()
    length = axes.square().sum(0)
    folded = torch.zeros(4, dtype=torch.float64)
    for other, together in ((0, 1), (5, 2), (7, 1)):
        cosine = together / ((2 * max(float(counts[other]), 1)) ** 0.5 + 2.0)
        folded += cosine * axes[other]
    folded /= length + length.mean()
    evidence = 0.5 * prior.features[0, :4] + 1.5 * folded
    torch.testing.assert_close(found.features[0, :4].double(), evidence.double(), atol=1e-6, rtol=1e-5)
    assert torch.equal(found.features[0, 4:7], prior.features[0, 4:7]), "content stays what it is"
    centre = items.vectors.mean(0)
    first, second = items.vectors[[0, 5]].mean(0), items.vectors[[5, 7]].mean(0)
    vector = centre + 0.25 * (prior.vectors[0] - centre) + 2.0 * ((first + second) / 2 - centre)
    torch.testing.assert_close(found.vectors[0], vector, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.features[0, 7:], vector, atol=1e-6, rtol=1e-5)
    assert found.bias[0] == pytest.approx(max(float(prior.bias[0]), -3 + 2 * np.log(7)))
    assert found.popularity[0] == pytest.approx((np.log(7) - 1) / 0.5, rel=1e-6)
    for part, before in zip(found, prior, strict=True):
        assert torch.equal(part[1], before[1]), "without choosers nothing changes"


def test_weights_are_interpolated_in_the_logarithm() -> None:
    prior = make_items(2, seed=1)
    one = warm(torch.ones(2), [[np.array([5])], []], ItemTaskConfig(sizes=(8,)), prior)
    share = np.log(2) / np.log(9)
    own = 1 + share * (0.5 - 1)
    items = make_items()
    axes = items.features[:, :4].double()
    length = axes.square().sum(0)
    folded = axes[5] / (make_posterior().counts[5].item() ** 0.5 + 2.0) / (length + length.mean())
    expected = own * prior.features[0, :4] + share * 1.5 * folded
    torch.testing.assert_close(one.features[0, :4].double(), expected.double(), atol=1e-6, rtol=1e-5)


class TestLearning:
    """Two worlds: in one content foretells every row, in the other it foretells nothing and choosers do."""

    num_items, num_people = 60, 400

    def world(self) -> tuple[list[History], Items, Tensor]:
        rng = np.random.default_rng(0)
        people = [
            history((20 * (row % 3) + rng.permutation(20)[:9]).tolist(), (row + np.arange(9.0) / 20).tolist())
            for row in range(self.num_people)
        ]
        taste = torch.nn.functional.one_hot(torch.arange(self.num_items) // 20).float()
        vectors = taste[:, :2] * 2
        evidence = torch.cat([taste * 0.6, torch.zeros(self.num_items, 1)], 1)
        features = torch.cat([evidence, torch.zeros(self.num_items, 3), vectors], 1)
        counts = torch.from_numpy(np.bincount(np.concatenate([one.items for one in people]))).float()
        nothing = torch.zeros(self.num_items)
        return people, Items(features, vectors, nothing, nothing), counts

    def fit(self, foretold: Items) -> ItemPosterior:
        people, items, counts = self.world()
        return fit_item_posterior(
            choices_of(people).chosen,
            items,
            foretold,
            counts,
            ItemTaskConfig(sizes=(1, 5)),
            EVIDENCE,
            until=400.0,
            seed=0,
        )

    def test_content_that_tells_all_is_believed(self) -> None:
        _, items, _ = self.world()
        posterior = self.fit(items)
        for weights in (posterior.evidence, posterior.vectors):
            torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0]] * 3), atol=0.02, rtol=0)

    def test_content_that_tells_nothing_gives_way_to_choosers(self) -> None:
        _, items, _ = self.world()
        mixed = torch.randperm(self.num_items, generator=torch.Generator().manual_seed(1))
        posterior = self.fit(Items(*(column[mixed] for column in items)))
        for weights in (posterior.evidence, posterior.vectors):
            assert weights[0].tolist() == [1, 0]
            assert weights[2, 0] < 0.3
            assert weights[2, 1] > 0.5
        assert torch.equal(self.fit(Items(*(column[mixed] for column in items))).evidence, posterior.evidence)

    def test_with_too_few_items_content_is_believed(self) -> None:
        people, items, counts = self.world()
        posterior = fit_item_posterior(
            choices_of(people[:3]).chosen,
            items,
            items,
            counts,
            ItemTaskConfig(sizes=(1, 3)),
            EVIDENCE,
            until=9.0,
            seed=0,
        )
        assert posterior.evidence.tolist() == posterior.vectors.tolist() == [[1, 0]] * 3

    def test_the_bias_is_a_line_over_counts(self) -> None:
        people, items, counts = self.world()
        items = items._replace(bias=-2 + 1.5 * counts.log1p())
        posterior = fit_item_posterior(
            choices_of(people).chosen, items, items, counts, ItemTaskConfig(sizes=(1,)), EVIDENCE, until=400.0, seed=0
        )
        torch.testing.assert_close(posterior.bias, torch.tensor([-2.0, 1.5]), atol=1e-3, rtol=0)
        standard = popularity_of(posterior, counts)
        assert standard.mean().item() == pytest.approx(0, abs=1e-5)
        assert standard.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_the_rate_of_new_items_is_found() -> None:
    """Items come all the time and are chosen at rates drawn from a gamma with 2 choices in 4 days."""
    rng = np.random.default_rng(1)
    rows: list[tuple[float, int]] = []
    for item in range(1500):
        birth = rng.uniform(0, 100)
        number = rng.poisson(rng.gamma(2.0, 1 / 4.0) * (100 - birth))
        rows += [(birth, item), *((time, item) for time in rng.uniform(birth, 100, number))]
    people = [history([item], [time * DAY]) for time, item in rows]
    items = make_items(1500)
    counts = torch.from_numpy(np.bincount([item for _, item in rows], minlength=1500)).float()
    posterior = fit_item_posterior(
        choices_of(people).chosen, items, items, counts, ItemTaskConfig(sizes=(1,)), EVIDENCE, until=100 * DAY, seed=0
    )
    choices, days = posterior.rate.tolist()
    assert choices == pytest.approx(2.0, rel=0.2)
    assert choices / days == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("bad", [{"sizes": ()}, {"sizes": (0, 1)}, {"sizes": (3, 1)}, {"num_items": 0}, {"trust": 1.5}])
def test_a_bad_setting_is_named(bad: dict[str, Any]) -> None:
    (setting,) = bad
    with pytest.raises(ConfigError, match=f"item_tasks.{setting} is "):
        ItemTaskConfig(**bad)
