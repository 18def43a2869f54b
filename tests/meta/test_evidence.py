"""Item features: the cosine by loops, principal axes, items without events, popularity by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.data.episodes import History
from palate.errors import ConfigError
from palate.meta.evidence import (
    EvidenceConfig,
    FeatureSpace,
    fit_evidence,
    fit_features,
    fit_popularity,
    fit_rotation,
    foretell_evidence,
    layout_of,
)
from palate.meta.head import Items, catalogue_statistics
from people import choices_of


def history(items: list[int]) -> History:
    return History(np.array(items, np.int64), np.arange(len(items), dtype=float), np.zeros(0, np.int64))


def evidence_of(people: list[History], num_items: int, config: EvidenceConfig) -> Tensor:
    return fit_evidence(choices_of(people).chosen, num_items, config)


def random_people(num_items: int = 12, num_people: int = 60) -> list[History]:
    """The last item is chosen by nobody."""
    rng = np.random.default_rng(2)
    return [history(rng.permutation(num_items - 1)[: 1 + row % 4].tolist()) for row in range(num_people)]


def shrunk_cosine(people: list[History], num_items: int, shrink: float, exponent: float) -> np.ndarray:
    chosen = [set(person.items.tolist()) for person in people]
    counts = [sum(item in items for items in chosen) for item in range(num_items)]
    cosine = np.zeros((num_items, num_items))
    for one in range(num_items):
        for other in range(num_items):
            together = sum(one in items and other in items for items in chosen)
            cosine[one, other] = together / ((counts[one] * counts[other]) ** exponent + shrink)
    return cosine


class TestEvidence:
    @pytest.mark.parametrize(("shrink", "exponent"), [(10.0, 0.5), (3.0, 0.4)])
    def test_inner_products_are_the_shrunk_cosine(self, shrink: float, exponent: float) -> None:
        people = random_people()
        cosine = shrunk_cosine(people, 12, shrink, exponent)
        assert np.linalg.eigvalsh(cosine).min() > -1e-9  # else only the nearest such matrix has a factor
        evidence = evidence_of(people, 12, EvidenceConfig(rank=50, shrink=shrink, exponent=exponent)).double().numpy()
        assert evidence.shape == (12, 12)
        scale = 0.4 / np.diag(cosine)[:-1].mean()
        np.testing.assert_allclose(evidence @ evidence.T, cosine * scale, atol=1e-6)
        # Of the items with events, the mean square length is 0.4.
        assert np.square(evidence[:-1]).sum(1).mean() == pytest.approx(0.4, rel=1e-5)

    def test_an_item_without_events_has_a_zero_row(self) -> None:
        evidence = evidence_of(random_people(), 12, EvidenceConfig(rank=4))
        assert (evidence[-1].abs() < 1e-6).all()
        assert (evidence[:-1].norm(dim=1) > 0.05).all()

    def test_a_lower_rank_keeps_the_leading_directions(self) -> None:
        people = random_people()
        evidence = evidence_of(people, 12, EvidenceConfig(rank=3)).double()
        values = np.linalg.eigvalsh(shrunk_cosine(people, 12, 10.0, 0.4))[::-1]
        kept = evidence.square().sum(0)
        np.testing.assert_allclose(kept / kept[0], values[:3] / values[0], rtol=1e-4)

    def test_few_people_leave_columns_empty_but_there(self) -> None:
        evidence = evidence_of([history([0, 1])], 6, EvidenceConfig(rank=4))
        assert evidence.shape == (6, 4)
        assert torch.isfinite(evidence).all()
        assert (evidence[:, 1:].abs() < 1e-6).all()

    def test_items_bought_together_are_alike(self) -> None:
        people = [history([0, 1])] * 20 + [history([2, 3])] * 20
        evidence = evidence_of(people, 4, EvidenceConfig(rank=4))
        similar = evidence @ evidence.T
        assert similar[0, 1] > 0.3
        assert similar[0, 2].abs() < 1e-6


class TestRotation:
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 5, 2, 0.5, 3]) + 7

    def test_axes_are_orthogonal_and_rows_have_length_one_on_average(self) -> None:
        rotation = fit_rotation(self.rows, 5)
        gram = rotation.axes.T @ rotation.axes
        torch.testing.assert_close(gram, torch.eye(5) * gram[0, 0], atol=1e-6, rtol=1e-4)
        turned = rotation(self.rows)
        assert turned.square().sum(1).mean().item() == pytest.approx(1, rel=1e-4)
        torch.testing.assert_close(turned.mean(0), torch.zeros(5), atol=1e-5, rtol=0)

    def test_distances_are_kept_up_to_scale(self) -> None:
        ratio = torch.pdist(fit_rotation(self.rows, 5)(self.rows)) / torch.pdist(self.rows)
        torch.testing.assert_close(ratio, ratio[0].expand_as(ratio), rtol=1e-3, atol=0)

    def test_directions_are_uncorrelated_and_fall_in_variance(self) -> None:
        covariance = torch.cov(fit_rotation(self.rows, 5)(self.rows).T)
        torch.testing.assert_close(covariance, torch.diag(covariance.diagonal()), atol=1e-5, rtol=0)
        assert (covariance.diagonal().diff() < 0).all()

    def test_fewer_axes_are_the_first_ones(self) -> None:
        whole, few = fit_rotation(self.rows, 5), fit_rotation(self.rows, 2)
        assert torch.equal(few.axes, whole.axes[:, :2])
        assert fit_rotation(self.rows, 99).axes.shape == (5, 5)

    def test_the_sign_depends_on_the_axis_alone(self) -> None:
        axes = fit_rotation(self.rows, 5).axes
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        assert (largest > 0).all()
        torch.testing.assert_close(fit_rotation(self.rows.flip(0), 5).axes, axes, atol=1e-5, rtol=0)
        # Mirrored rows have the same axes, and the sign rule gives them the same way round.
        torch.testing.assert_close(fit_rotation(-self.rows, 5).axes, axes, atol=1e-5, rtol=0)


class TestFeatures:
    def fit(self) -> tuple[Tensor, Tensor, Tensor, FeatureSpace]:
        """Items 0..9 are bought together, 10..19 too, and content says which is which."""
        generator = torch.Generator().manual_seed(0)
        rng = np.random.default_rng(0)
        people = [history((rng.permutation(10)[:4] + 10 * (row % 2)).tolist()) for row in range(80)]
        taste = (torch.arange(20) >= 10).float()[:, None]
        content = torch.cat([taste, 1 - taste, 0.1 * torch.randn(20, 2, generator=generator)], 1)
        vectors = torch.randn(20, 3, generator=generator)
        config = EvidenceConfig(rank=8, content_penalty=0.1)
        features, space = fit_features(evidence_of(people, 20, config), content, vectors, config)
        return features, content, vectors, space

    def test_blocks_are_evidence_content_and_backbone(self) -> None:
        features, content, vectors, _ = self.fit()
        assert features.shape == (20, 8 + 4 + 3)
        assert torch.equal(features[:, 8:12], content)
        assert torch.equal(features[:, 12:], fit_rotation(vectors, 3)(vectors))

    def test_an_item_without_events_lands_near_one_of_the_same_content(self) -> None:
        features, content, vectors, space = self.fit()
        new = space.new_items(content[[2, 15]], vectors[[2, 15]])
        # Products of two rows and of all of them are summed in another order on some processors.
        torch.testing.assert_close(new[:, 8:], features[[2, 15], 8:], rtol=1e-5, atol=1e-6)
        similar = torch.nn.functional.cosine_similarity(new[:, None, :8], features[None, :, :8], dim=-1)
        own = (torch.arange(20) >= 10)[None, :] == torch.tensor([[False], [True]])
        assert similar[own].min() > 0.5
        assert similar[~own].max() < 0.2

    def test_the_way_from_content_to_evidence_is_ridge_regression(self) -> None:
        features, content, _, space = self.fit()
        way = space.content_to_evidence
        # At the minimum of |C B − E|² + penalty |B|² the gradient is zero.
        gradient = content.T @ (content @ way - features[:, :8]) + 0.1 * way
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


def test_popularity_by_hand() -> None:
    popularity = fit_popularity(choices_of([history([0, 1]), history([0]), history([0])]).chosen, 3)
    logs = np.log([4.0, 2.0, 1.0])
    expected = (logs - logs.mean()) / logs.std()
    np.testing.assert_allclose(popularity.items, expected, rtol=1e-5)
    assert popularity.unseen == pytest.approx(expected[2], rel=1e-5)


def test_popularity_of_equals_is_zero() -> None:
    assert fit_popularity(choices_of([history([0, 1, 2])]).chosen, 3).items.tolist() == [0, 0, 0]


def test_layout_gives_each_block_its_start() -> None:
    layout = layout_of(2, 3, 1, 4, EvidenceConfig(content_precision=5.0, backbone_precision=7.0))
    torch.testing.assert_close(layout.precision.exp(), torch.tensor([1.0, 1, 5, 5, 5, 7]))
    assert layout.has_prior.tolist() == [0, 0, 1, 1, 1, 0]
    assert layout.tempered.tolist() == [1, 1, 0, 0, 0, 0]
    assert layout.num_profile_features == 4


def test_catalogue_statistics_by_hand() -> None:
    features = torch.tensor([[2.0, 0, 1, 3], [2, 0, -1, 1]])
    items = Items(features, torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 4.0]), torch.zeros(2))
    statistics = catalogue_statistics(items, torch.tensor([1.0, 1, 1, 0]))
    # Mean squares 4, 0 and 1: the dead one is left out, the mean of the others is 2.5.
    expected = torch.tensor([4 / 2.5, 1, 1 / 2.5, 1]).log()
    torch.testing.assert_close(statistics["fixed.spectrum"], expected)
    # Of the vectors with the bias behind them: [1, 0] and [3, 4].
    assert statistics["fixed.vector_covariance"].tolist() == [[1, 2], [2, 4]]
    assert statistics["fixed.feature_covariance"].diagonal().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "bad", [{"rank": 0}, {"content_dim": 0}, {"shrink": 0.0}, {"content_precision": 0.0}, {"content_penalty": 0.0}]
)
def test_a_bad_setting_is_named(bad: dict[str, Any]) -> None:
    (setting,) = bad
    with pytest.raises(ConfigError, match=f"evidence.{setting} is 0"):
        EvidenceConfig(**bad)


class TestSparse:
    """Above `dense_items` only the leading axes are found, and they are the same ones."""

    config = EvidenceConfig(rank=12, shrink=4.0)
    num_items = 90

    def people(self) -> list[History]:
        """Six tastes; the last five items are chosen by nobody."""
        rng = np.random.default_rng(5)
        return [
            history((15 * (row % 6) + rng.permutation(15)[: 2 + row % 5]).clip(0, 84 - row % 3).tolist())
            if row % 4
            else history(np.unique(rng.integers(0, 85, 4)).tolist())
            for row in range(400)
        ]

    def both(self, people: list[History]) -> tuple[Tensor, Tensor]:
        unique = [history(list(dict.fromkeys(person.items.tolist()))) for person in people]
        dense = evidence_of(unique, self.num_items, self.config)
        return dense, evidence_of(unique, self.num_items, replace(self.config, dense_items=10))

    def test_inner_products_are_those_of_the_full_matrix(self) -> None:
        dense, sparse = self.both(self.people())
        assert sparse.shape == dense.shape
        torch.testing.assert_close(sparse @ sparse.T, dense @ dense.T, atol=2e-4, rtol=0)
        assert (dense @ dense.T).abs().max() > 0.3
        torch.testing.assert_close(sparse.square().sum(0), dense.square().sum(0), rtol=1e-3, atol=1e-5)

    def test_the_same_bytes_every_time_and_signs_by_the_largest_entry(self) -> None:
        people = self.people()
        _, first = self.both(people)
        np.random.seed(3)  # noqa: NPY002 - ARPACK's own draws must not matter
        _, second = self.both(people)
        assert torch.equal(first, second)
        assert (first.gather(0, first.abs().argmax(0, keepdim=True)) > 0).all()

    def test_items_without_events_have_zero_rows(self) -> None:
        _, sparse = self.both(self.people())
        assert torch.isfinite(sparse).all()
        assert (sparse[85:].abs() < 1e-4).all()
        assert (sparse[:80].norm(dim=1) > 0.05).all()

    def test_few_people_leave_columns_empty_but_there(self) -> None:
        dense, sparse = self.both([history([0, 1]), history([3, 4, 5])])
        assert sparse.shape == (90, 12)
        assert torch.isfinite(sparse).all()
        torch.testing.assert_close(sparse @ sparse.T, dense @ dense.T, atol=2e-4, rtol=0)

    def test_the_full_matrix_is_taken_up_to_the_size_that_is_set(self) -> None:
        people = [history(list(dict.fromkeys(person.items.tolist()))) for person in self.people()]
        at = evidence_of(people, 90, replace(self.config, dense_items=90))
        assert torch.equal(at, evidence_of(people, 90, self.config))
        assert not torch.equal(at, evidence_of(people, 90, replace(self.config, dense_items=89)))

    def test_of_a_long_history_the_most_recent_items_count(self) -> None:
        people = [history(list(range(80))), history([79, 78, 77])] * 3
        cut = [history(person.items[-5:].tolist()) for person in people]
        config = replace(self.config, rank=3, dense_items=10)
        assert torch.equal(
            evidence_of(people, 90, replace(config, most_items=5)),
            evidence_of(cut, 90, config),
        )


def test_a_half_life_of_popularity_by_hand() -> None:
    """Days 0 and 10 with a half-life of 10 at day 10: weights 1/2 and 1, scaled to two choices in all."""
    day = 86_400.0
    people = [History(np.array([0, 1]), np.array([0.0, 10 * day]), np.zeros(0, np.int64))]
    found = fit_popularity(choices_of(people).chosen, 3, half_life=10.0, now=10 * day)
    np.testing.assert_allclose(found.counts, [2 / 3, 4 / 3, 0], rtol=1e-6)
    plain = fit_popularity(choices_of(people).chosen, 3)
    assert plain.counts.tolist() == [1, 1, 0]
    assert found.items[1] > plain.items[1]


def test_what_content_foretells_of_an_item_has_not_seen_it() -> None:
    """Leave-one-out in closed form is the regression on all other items."""
    generator = torch.Generator().manual_seed(4)
    content, evidence = torch.randn(9, 3, generator=generator), torch.randn(9, 2, generator=generator)
    config = EvidenceConfig(content_penalty=0.7)
    foretold = foretell_evidence(content, evidence, config)
    for item in range(9):
        rest = [other for other in range(9) if other != item]
        gram = content[rest].T @ content[rest] + 0.7 * torch.eye(3)
        way = torch.linalg.solve(gram, content[rest].T @ evidence[rest])
        torch.testing.assert_close(foretold[item], content[item] @ way, atol=1e-5, rtol=1e-4)
