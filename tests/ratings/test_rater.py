import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.errors import ConfigError, DataError, NumericalError
from palate.ratings.factors import FactorConfig
from palate.ratings.kernel_solve import ItemReading, KernelSolve, solve
from palate.ratings.knowledge import Knowledge, KnowledgeConfig, fit_knowledge
from palate.ratings.likeness import ItemContent, KernelTable
from palate.ratings.rater import Rater, collate, expected_gain, level_indices, median_rating
from palate.ratings.rater_network import NetworkConfig
from palate.ratings.rater_training import Person, RaterConfig, draw, fit_rater, task_losses
from palate.ratings.tasks import Ratings, Task

USERS, ITEMS, COLD, FRESH = 160, 50, 5, 60
SMALL = RaterConfig(
    NetworkConfig(16, 2, 0.05), num_steps=120, batch_size=24, support_sizes=(1, 12), learning_rate=0.01,
    average_decay=0.95,
)  # fmt: skip


class World(NamedTuple):
    ratings: Ratings
    knowledge: Knowledge
    content: ItemContent
    profiles: np.ndarray
    tasks: list[Task]


@pytest.fixture(scope="module")
def world() -> World:
    """Stars from one planted taste a person; the last five items are rated by nobody in training."""
    rng = np.random.default_rng(0)
    place = rng.uniform(-1, 1, ITEMS)
    vector, bias = 1.4 * np.sign(place), 0.6 * np.sin(3 * place)
    taste = rng.normal(size=(USERS + FRESH, 1))
    values = (3 + bias + taste * vector + rng.normal(0, 0.3, (USERS + FRESH, ITEMS))).round().clip(1, 5)
    rated = rng.random((USERS, ITEMS)) < 0.5
    rated[:, -COLD:] = False
    users, items = np.nonzero(rated)
    ratings = Ratings(users, items, values[:USERS][rated])
    near = np.exp(-0.5 * ((place[:, None] - place) / 0.3) ** 2)
    same = np.equal.outer(place > 0, place > 0).astype(float)
    kernels = KernelTable(torch.from_numpy(np.stack([near, same], -1)).float())
    content = ItemContent(kernels, torch.from_numpy(place[:, None]).float())
    config = KnowledgeConfig(FactorConfig(2, 10), num_folds=2, num_fold_sweeps=4)
    knowledge = fit_knowledge(ratings, ITEMS, kernels, config, seed=0)
    tasks = []
    for user in range(USERS, USERS + FRESH):
        order = rng.permutation(ITEMS)
        support, query = order[:12], order[12:]
        tasks.append(Task(user, support, values[user, support], query, values[user, query]))
    profiles = (taste > 0).astype(np.float32) + rng.normal(0, 1, taste.shape).astype(np.float32)
    return World(ratings, knowledge, content, profiles, tasks)


def fit(world: World, config: RaterConfig, seed: int = 0) -> Rater:
    return fit_rater(world.ratings, world.profiles, world.knowledge, world.content, config, seed=seed)


@pytest.fixture(scope="module", params=["attention", "ridge"])
def rater(request: pytest.FixtureRequest, world: World) -> Rater:
    network = SMALL.network if request.param == "attention" else NetworkConfig(width=0)
    return fit(world, replace(SMALL, network=network))


def error(rater: Rater, tasks: list[Task], profiles: np.ndarray) -> float:
    found = rater.predict(tasks, profiles)
    return float(
        np.mean(
            [np.abs(median_rating(each, rater.levels) - task.query_values).mean()
             for each, task in zip(found, tasks, strict=True)]
        )
    )  # fmt: skip


class TestSolve:
    def inputs(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(3, 9, 4, generator=generator, dtype=torch.float64)
        covariance = points @ points.transpose(1, 2)
        mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]]).double()
        target = torch.randn(3, 6, generator=generator, dtype=torch.float64)
        noise = torch.rand(3, 6, generator=generator, dtype=torch.float64) + 0.2
        return covariance, target, noise, mask

    def test_it_is_conditioning_a_gaussian(self) -> None:
        covariance, target, noise, mask = self.inputs()
        before = covariance.diagonal(dim1=1, dim2=2)[:, 6:]
        found = solve(covariance[:, :6, :6], covariance[:, 6:, :6], before, target, noise, mask)
        for task in range(3):
            kept = mask[task] > 0
            system = covariance[task, :6, :6][kept][:, kept] + torch.diag(noise[task, kept])
            cross = covariance[task, 6:, :6][:, kept]
            inverse = torch.linalg.inv(system)
            torch.testing.assert_close(found.mean[task], cross @ inverse @ target[task, kept])
            left = before[task] - (cross @ inverse @ cross.T).diagonal()
            torch.testing.assert_close(found.variance[task], left.clamp_min(1e-4))
            fitted = covariance[task, :6, :6][kept][:, kept] @ inverse @ target[task, kept]
            torch.testing.assert_close(found.residual[task, kept], target[task, kept] - fitted)
            assert not found.residual[task, ~kept].any()

    def test_the_linear_part_is_bayesian_regression(self) -> None:
        generator = torch.Generator().manual_seed(1)
        module = KernelSolve(2, 0, 1, 0.3, 0.5)
        torch.nn.init.normal_(module.log_variance, generator=generator)
        torch.nn.init.normal_(module.prior.weight, generator=generator)
        support, query = (
            ItemReading(torch.randn(1, n, 3, generator=generator), torch.rand(1, n, 3, generator=generator),
                        torch.ones(1, n))
            for n in (5, 4)
        )  # fmt: skip
        target = torch.randn(1, 5, generator=generator)
        with torch.no_grad():
            found = module(
                torch.tensor([[0.7]]), support, query, torch.zeros(1, 5, 5, 0), torch.zeros(1, 4, 5, 0),
                torch.zeros(1, 4, 0), target, torch.ones(1, 5),
            )  # fmt: skip
            prior = module.prior(torch.tensor([0.7]))
            variance = module.log_variance.exp()
        rows, asked = (torch.cat([torch.ones(len(x), 1), x[:, 1:]], 1) for x in (support.entries[0], query.entries[0]))
        weight = torch.cat([torch.ones(1), variance[1:]])
        noise = 0.5 + (support.variance[0] * weight).sum(1)
        covariance = torch.linalg.inv(torch.diag(1 / variance) + rows.T @ (rows / noise[:, None]))
        taste = covariance @ (prior / variance + rows.T @ (target[0] / noise))
        torch.testing.assert_close(found.mean[0], asked @ taste, atol=1e-4, rtol=1e-4)
        expected = (asked @ covariance * asked).sum(1) + (query.variance[0] * weight).sum(1)
        torch.testing.assert_close(found.variance[0], expected, atol=1e-4, rtol=1e-4)


class TestPredictions:
    def test_they_are_probabilities(self, rater: Rater, world: World) -> None:
        found = rater.predict(world.tasks, world.profiles)
        assert rater.levels.tolist() == [1, 2, 3, 4, 5]
        for each, task in zip(found, world.tasks, strict=True):
            assert each.shape == (len(task.query_items), 5)
            assert (each > 0).all()
            np.testing.assert_allclose(each.sum(1), 1, atol=1e-5)

    def test_the_order_of_support_and_query_changes_nothing(self, rater: Rater, world: World) -> None:
        task = world.tasks[0]
        rng = np.random.default_rng(0)
        support, query = rng.permutation(len(task.support_items)), rng.permutation(len(task.query_items))
        turned = Task(
            task.user, task.support_items[support], task.support_values[support],
            task.query_items[query], task.query_values[query],
        )  # fmt: skip
        first, second = rater.predict([task], world.profiles)[0], rater.predict([turned], world.profiles)[0]
        np.testing.assert_allclose(second, first[query], atol=1e-5)

    def test_padding_and_company_are_inert(self, rater: Rater, world: World) -> None:
        short = world.tasks[0].with_support(3)._replace(
            query_items=world.tasks[0].query_items[:2], query_values=world.tasks[0].query_values[:2]
        )  # fmt: skip
        alone = rater.predict([short], world.profiles)[0]
        together = rater.predict([world.tasks[1], short, world.tasks[2]], world.profiles)[1]
        np.testing.assert_allclose(together, alone, atol=1e-5)
        whole = rater.predict([world.tasks[0].with_support(3)], world.profiles)[0]
        np.testing.assert_allclose(whole[:2], alone, atol=1e-5)  # queries do not see each other

    def test_tasks_in_many_batches_keep_their_places(
        self, rater: Rater, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mixed = [task.with_support(place % 5) for place, task in enumerate(world.tasks[:9])]
        whole = rater.predict(mixed, world.profiles)
        monkeypatch.setattr("palate.ratings.rater._MAX_PAIRS", 5000)
        for first, second in zip(rater.predict(mixed, world.profiles), whole, strict=True):
            np.testing.assert_allclose(first, second, atol=1e-5)

    def test_query_values_are_not_read(self, rater: Rater, world: World) -> None:
        blind = [task._replace(query_values=np.full(len(task.query_items), np.nan)) for task in world.tasks]
        for first, second in zip(
            rater.predict(world.tasks, world.profiles), rater.predict(blind, world.profiles), strict=True
        ):
            np.testing.assert_array_equal(first, second)

    def test_nothing_said_gives_a_prior_that_knows_the_items_and_the_profile(self, rater: Rater, world: World) -> None:
        none = [task.with_support(0) for task in world.tasks]
        found = rater.predict(none, world.profiles)
        assert all(np.isfinite(each).all() for each in found)
        constant = np.mean([np.abs(task.query_values - 3).mean() for task in world.tasks])
        assert error(rater, none, world.profiles) < constant
        other = rater.predict(none[:1], world.profiles + 3)[0]
        assert np.abs(other - found[0]).max() > 0.01

    def test_more_support_never_hurts_on_average(self, rater: Rater, world: World) -> None:
        errors = [error(rater, [task.with_support(n) for task in world.tasks], world.profiles) for n in (0, 1, 4, 12)]
        assert errors[0] > errors[1] > errors[2] > errors[3] - 0.01
        assert errors[3] < 0.6 * errors[0]

    def test_new_items_are_read_from_content_alone(self, rater: Rater, world: World) -> None:
        task = world.tasks[0]._replace(query_items=np.arange(ITEMS - COLD - 2, ITEMS), query_values=np.zeros(COLD + 2))
        task = task._replace(support_items=np.arange(12, dtype=np.int64), support_values=task.support_values)
        found = rater.predict([task], world.profiles)[0]
        warm = rater.tables.warm.clone()
        warm[:, -COLD - 2 :] += 1.5
        moved = replace(rater, tables=rater.tables._replace(warm=warm)).predict([task], world.profiles)[0]
        np.testing.assert_array_equal(moved[2:], found[2:])
        assert np.abs(moved[:2] - found[:2]).max() > 0.01
        cold = rater.tables.cold.clone()
        cold[:, -COLD - 2 :] += 1.5
        moved = replace(rater, tables=rater.tables._replace(cold=cold)).predict([task], world.profiles)[0]
        np.testing.assert_array_equal(moved[:2], found[:2])
        assert (np.abs(moved[2:] - found[2:]).max(1) > 0.01).all()

    def test_new_people_read_the_table_of_everyone(self, rater: Rater, world: World) -> None:
        warm = rater.tables.warm.clone()
        warm[1:] = float("nan")
        blind = replace(rater, tables=rater.tables._replace(warm=warm))
        np.testing.assert_array_equal(
            blind.predict(world.tasks[:2], world.profiles)[1], rater.predict(world.tasks[:2], world.profiles)[1]
        )

    def test_what_does_not_fit_is_refused(self, rater: Rater, world: World) -> None:
        task = world.tasks[0]
        half = task._replace(support_values=task.support_values + 0.5)
        cases: list[tuple[list[Task], np.ndarray, str]] = [
            ([half], world.profiles, r"support of user 160: rating \d\.5 is none of the levels of training: 1, 2, 3"),
            ([task], world.profiles[:, :0], "profiles have 0 columns; expected the 1 of training"),
            ([task], world.profiles[:9], "names a row that is not there"),
            ([], world.profiles, "there are none"),
            ([task], np.full_like(world.profiles, np.nan), "profiles are not finite"),
        ]
        for tasks, profiles, match in cases:
            with pytest.raises(DataError, match=match):
                rater.predict(tasks, profiles)


class TestDecisions:
    levels = np.array([1.0, 2.0, 4.0])
    rows = np.array([[0.5, 0.1, 0.4], [0.49, 0.1, 0.41], [0.2, 0.2, 0.6]])

    def test_the_median_has_the_least_absolute_error(self) -> None:
        found = median_rating(self.rows, self.levels)
        assert found.tolist() == [1, 2, 4]
        cost = (self.rows[:, None] * np.abs(self.levels[:, None] - self.levels)).sum(-1)
        np.testing.assert_allclose(cost[np.arange(3), np.searchsorted(self.levels, found)], cost.min(1))

    def test_gain(self) -> None:
        assert expected_gain(self.rows, self.levels)[0] == pytest.approx(0.5 * 1 + 0.1 * 3 + 0.4 * 15)
        assert expected_gain(self.rows, self.levels, "linear")[0] == pytest.approx(0.5 + 0.2 + 1.6)

    def test_places_of_ratings(self) -> None:
        assert level_indices(np.array([4.0, 1.0]), self.levels, "here").tolist() == [2, 0]
        with pytest.raises(DataError, match="here: rating 3 is none of the levels of training: 1, 2, 4; round it"):
            level_indices(np.array([4.0, 3.0]), self.levels, "here")


class TestTraining:
    def people(self, sizes: tuple[int, ...]) -> list[Person]:
        return [Person(user, 1, np.arange(size) + 100 * user, np.arange(size) % 5) for user, size in enumerate(sizes)]

    def test_support_and_query_are_apart_and_everyone_comes(self) -> None:
        people, order, rng = self.people((8, 20, 60)), list[int](), np.random.default_rng(0)
        config = replace(SMALL, batch_size=6, cold_share=0.5, num_queries=7)
        cold, sizes = [], set()
        for _ in range(40):
            drawn = draw(people, order, np.arange(3.0)[:, None], config, rng)
            batch = drawn.batch
            assert sorted(batch.profile[:, 0].tolist()) == [0, 0, 1, 1, 2, 2]
            for row in range(6):
                support = batch.support[row][batch.support_mask[row] > 0]
                query = batch.query[row][batch.query_mask[row] > 0]
                assert not set(support.tolist()) & set(query.tolist())
                assert 1 <= len(query) <= 7
                assert (batch.support_level[row, : len(support)] == support % 100 % 5).all()
                assert (drawn.level[row, : len(query)] == query % 100 % 5).all()
            sizes.add(int(batch.support_mask.sum(1).max()))
            cold += drawn.use_ratings.tolist()
        assert 0.3 < np.mean(cold) < 0.7
        assert min(sizes) == 1
        assert max(sizes) == 12

    def test_of_cold_queries_some_have_supports_that_are_known(self) -> None:
        people, rng = self.people((8, 20, 60)), np.random.default_rng(0)
        config = replace(SMALL, batch_size=200, cold_share=0.6, cold_support=0.25)
        support, query = draw(people, [], np.arange(3.0)[:, None], config, rng).use_ratings.bool().T
        assert 0.5 < (~query).float().mean() < 0.7
        assert not (~support & query).any(), "whose query is known has a known support"
        assert 0.15 < (~support)[~query].float().mean() < 0.35

    def test_losses_are_those_of_the_formulas(self) -> None:
        probability = torch.tensor([[[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]])
        level, mask = torch.tensor([[1, 2, 0]]), torch.tensor([[1.0, 1.0, 0.0]])
        places = torch.tensor([0.0, 1.0, 4.0])
        config = RaterConfig(crps=0.5, rank_loss=0.2, gain="linear")
        logs = -(math.log(0.5) + math.log(0.8)) / 2
        scores = ((0.2**2 + 3 * 0.3**2) + (0.1**2 + 3 * 0.2**2)) / 2  # steps of one and of three
        gain = np.array([1.0, 2.0, 5.0]) * 8 / 5
        wanted = np.exp([gain[1], gain[2]]) / np.exp([gain[1], gain[2]]).sum()
        found = probability[0, :2].double().numpy() @ gain
        ranks = -(wanted * (found - np.log(np.exp(found).sum()))).sum()
        loss = task_losses(probability.log(), level, mask, places, config)
        assert loss.item() == pytest.approx(logs + 0.5 * scores + 0.2 * ranks, rel=1e-5)
        plain = task_losses(probability.log(), level, mask, places, replace(config, crps=0.0, rank_loss=0.0))
        assert plain.item() == pytest.approx(logs, rel=1e-5)

    def test_a_person_is_shown_the_table_without_that_person(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = []

        def spy(profiles: np.ndarray, table: np.ndarray, *rest: object) -> object:
            shown.extend(zip(profiles[:, 0].tolist(), table.tolist(), strict=True))
            return collate(profiles, table, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr("palate.ratings.rater_training.collate", spy)
        numbered = np.arange(len(world.profiles), dtype=np.float32)[:, None]
        fit(world._replace(profiles=numbered), replace(SMALL, num_steps=10, learning_rate=1e-6))
        assert len({user for user, _ in shown}) == USERS
        assert all(world.knowledge.fold[int(user)] == table > 0 for user, table in shown)

    def test_a_seed_repeats_and_leaves_the_callers_randomness_alone(self, world: World) -> None:
        config = replace(SMALL, num_steps=15, num_members=2)
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        steps: list[tuple[int, int, float]] = []
        first = fit_rater(
            world.ratings, world.profiles, world.knowledge, world.content, config, seed=3,
            on_step=lambda *step: steps.append(step),
        )  # fmt: skip
        assert torch.equal(torch.rand(3), expected)
        assert [step[:2] for step in steps] == [(step, 30) for step in range(1, 31)]
        starts = [network.head[0].weight for network in first.networks]  # 15 steps move them little
        assert torch.corrcoef(torch.stack([start.flatten() for start in starts]))[0, 1] < 0.5
        second, other = fit(world, config, 3), fit(world, config, 4)
        for name, value in first.networks[0].state_dict().items():
            assert torch.equal(second.networks[0].state_dict()[name], value)
        probabilities = [each.predict(world.tasks[:1], world.profiles)[0] for each in (first, second, other)]
        assert probabilities[0].tobytes() == probabilities[1].tobytes()
        assert np.abs(probabilities[0] - probabilities[2]).max() > 1e-4
        alone = [
            replace(first, networks=(network,)).predict(world.tasks[:1], world.profiles)[0]
            for network in first.networks
        ]
        assert np.abs(alone[0] - alone[1]).max() > 1e-4
        np.testing.assert_allclose(probabilities[0], (alone[0] + alone[1]) / 2, atol=1e-6)

    def test_cold_training_reads_no_rating_of_an_item(self, world: World) -> None:
        config = replace(SMALL, num_steps=5, cold_share=1.0)
        spoilt = replace(world.knowledge, warm=world.knowledge.warm + 7)
        first, second = fit(world, config), fit(world._replace(knowledge=spoilt), config)
        for name, value in first.networks[0].state_dict().items():
            assert torch.equal(second.networks[0].state_dict()[name], value)

    def test_divergence_is_named(self, world: World) -> None:
        broken = replace(world.knowledge, warm=world.knowledge.warm * float("nan"))
        with pytest.raises(NumericalError, match=r"rater: (the loss|a solve) .* at step 1"):
            fit(world._replace(knowledge=broken), SMALL)

    def test_what_cannot_be_trained_on_is_said(self, world: World) -> None:
        noisy = world.ratings._replace(values=world.ratings.values + np.linspace(0, 1, len(world.ratings.values)))
        half = ItemContent(KernelTable(world.content.kernels.values[:9, :9]), world.content.features[:9])
        cases: list[tuple[World, RaterConfig, str]] = [
            (world._replace(ratings=noisy), SMALL, r"the ratings have \d+ levels; expected at most 32"),
            (world._replace(profiles=world.profiles[:7]), SMALL, "profiles have 7 rows for users up to 159"),
            (world._replace(content=half), SMALL, "content has 9 items, knowledge 50"),
            (world, replace(SMALL, min_ratings=99), "no training person has 99 ratings or more"),
        ]
        for case, config, match in cases:
            with pytest.raises(DataError, match=match):
                fit(case, config)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_steps": 0}, r"rater\.num_steps is 0; expected at least 1"),
        ({"learning_rate": 0.0}, r"rater\.learning_rate is 0\.0; expected above 0"),
        ({"crps": -1.0}, r"rater\.crps is -1\.0; expected 0 or more"),
        ({"cold_share": 1.5}, r"rater\.cold_share is 1\.5; expected 0 to 1"),
        ({"average_decay": 1.0}, r"rater\.average_decay is 1\.0"),
        ({"support_sizes": (5, 3)}, r"rater\.support_sizes is \(5, 3\)"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        RaterConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"width": 10}, r"rater\.width is 10; expected a multiple of num_heads = 4, or 0"),
        ({"num_heads": 0}, r"rater\.num_heads is 0"),
        ({"dropout": 1.0}, r"rater\.dropout is 1\.0"),
    ],
)
def test_a_bad_network_is_named(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        NetworkConfig(**settings)  # type: ignore[arg-type]
