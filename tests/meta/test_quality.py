"""When a head counts as worse than chance: not before an interval over people says so."""

import numpy as np
import pytest

from palate.meta.quality import MIN_USERS, compare_with_chance
from palate.metrics import ndcg_at_k


def lists_of_chance(
    rng: np.random.Generator, num_users: int, num_items: int, num_relevant: int
) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@10 of one list for everyone, which knows nothing, and of an order for each."""
    relevant = rng.random((num_users, num_items)).argsort(1) < num_relevant
    shared = np.tile(rng.permutation(num_items)[:10], (num_users, 1))
    own = rng.random((num_users, num_items)).argsort(1)[:, :10]
    return ndcg_at_k(shared, relevant), ndcg_at_k(own, relevant)


@pytest.mark.parametrize(("num_items", "num_relevant"), [(40, 5), (300, 8), (3000, 10)])
def test_a_list_that_knows_nothing_is_seldom_called_worse(num_items: int, num_relevant: int) -> None:
    # In the largest catalogue most people are missed: the expectation of a random order would be above nearly all.
    rng = np.random.default_rng(0)
    users = np.arange(20)
    verdicts = [
        compare_with_chance(*lists_of_chance(rng, 20, num_items, num_relevant), users).verdict for _ in range(60)
    ]
    assert verdicts.count("worse") <= 6  # 2.5 % are meant; more than a tenth would be no evidence


def test_a_broken_model_is_called_worse_and_a_good_one_better() -> None:
    rng = np.random.default_rng(1)
    chance = lists_of_chance(rng, 60, 40, 5)[1]
    broken = compare_with_chance(0.1 * chance, chance, np.arange(60))
    assert broken.verdict == "worse"
    assert broken.high < 0
    assert "worse than lists in random order: NDCG@10 0.0" in broken.describe()
    assert compare_with_chance(chance + 0.2, chance, np.arange(60)).verdict == "better"


def test_few_people_are_no_evidence_however_poor_their_lists() -> None:
    poor, chance = np.zeros(MIN_USERS - 1), np.full(MIN_USERS - 1, 0.5)
    found = compare_with_chance(poor, chance, np.arange(MIN_USERS - 1))
    assert found.verdict == "inconclusive"
    assert f"needs at least {MIN_USERS} people" in found.describe()
    one_more = compare_with_chance(np.zeros(MIN_USERS), np.full(MIN_USERS, 0.5), np.arange(MIN_USERS))
    assert one_more.verdict == "worse"


def test_people_are_the_unit_not_episodes() -> None:
    # Forty episodes, but of four people: the same evidence as four.
    users = np.repeat(np.arange(4), 10)
    found = compare_with_chance(np.zeros(40), np.full(40, 0.5), users)
    assert found.num_users == 4
    assert found.verdict == "inconclusive"
    uneven = compare_with_chance(np.array([1.0, 0.0, 0.0]), np.zeros(3), np.array([7, 7, 9]))
    assert uneven.ndcg == pytest.approx((0.5 + 0.0) / 2)


def test_what_is_kept_of_it_is_plain() -> None:
    found = compare_with_chance(np.zeros(12), np.full(12, 0.5), np.arange(12)).to_dict()
    assert found["verdict"] == "worse"
    assert found["text"].startswith("the lists are worse")
    assert (found["num_users"], found["ndcg"], found["random"]) == (12, 0.0, 0.5)
