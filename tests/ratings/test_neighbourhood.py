"""Neighbourhood scores against loops over people and items."""

import numpy as np
import pytest

from palate.ratings.neighbourhood import ease_weights, fit_neighbourhood, neighbourhood_scores, user_similarity

RNG = np.random.default_rng(0)
CHOSEN = (RNG.random((30, 12)) < 0.3).astype(float)
CHOSEN[:, 4] = 0
CHOSEN[:, 7] = np.arange(30) == 3
PEOPLE = (RNG.random((5, 12)) < 0.3).astype(float)
PEOPLE[2] = 0
ACTIVE = [item for item in range(12) if item != 4]


def count(*items: int) -> int:
    return sum(all(row[item] for item in items) for row in CHOSEN)


def lift(known: int, item: int, both: int) -> float:
    return float(np.log((both + 1) / (count(known) * count(item) / 30 + 1)))


PAIR_WEIGHTS = {
    "cosine": lambda known, item, both: both / np.sqrt((count(known) + 3) * (count(item) + 3)),
    "conditional": lambda known, item, both: both / (count(known) + 2),
    "shrunk conditional": lambda known, item, both: both / (count(known) + 5),
    "lift": lift,
    "linked": lambda known, item, both: float(both > 0),
}


@pytest.mark.parametrize("name", PAIR_WEIGHTS)
def test_pairs_are_counted(name: str) -> None:
    found = neighbourhood_scores(fit_neighbourhood(CHOSEN), PEOPLE)[name]
    for person in range(5):
        for place, item in enumerate(ACTIVE):
            expected = 0.0
            for known in ACTIVE:
                if PEOPLE[person, known]:
                    both = 0 if known == item else count(known, item)
                    expected += PAIR_WEIGHTS[name](known, item, both)
            np.testing.assert_allclose(found[person, place], expected, atol=1e-12)


@pytest.mark.parametrize("power", [1, 2])
def test_similar_people_are_counted(power: int) -> None:
    found = neighbourhood_scores(fit_neighbourhood(CHOSEN), PEOPLE)[f"similar people {power}"]
    rarity = {item: np.log(31 / (count(item) + 0.5)) ** power for item in ACTIVE}
    for person in range(5):
        expected = np.zeros(len(ACTIVE))
        for other in CHOSEN:
            mine, theirs, shared = (
                sum(rarity[item] for item in ACTIVE if kept[item])
                for kept in (PEOPLE[person], other, PEOPLE[person] * other)
            )
            if shared:
                expected += (shared / np.sqrt(mine * theirs)) ** power * other[ACTIVE]
        np.testing.assert_allclose(found[person], expected, rtol=1e-6)


def test_a_person_is_most_like_themselves() -> None:
    similar = user_similarity(CHOSEN[:, ACTIVE], CHOSEN[:, ACTIVE], np.ones(11))
    np.testing.assert_allclose(np.diag(similar)[CHOSEN.any(1)], 1, atol=1e-6)
    assert similar.max() <= 1 + 1e-9


def test_ease_solves_its_regressions() -> None:
    """Each item from the others by ridge regression, which is what the closed form minimises."""
    chosen = CHOSEN[:, ACTIVE]
    often = [place for place in range(11) if chosen[:, place].sum() >= 2]
    found = ease_weights(chosen, 3.0)
    for item in often:
        others = [place for place in often if place != item]
        left = chosen[:, others]
        expected = np.linalg.solve(left.T @ left + 3.0 * np.eye(len(others)), left.T @ chosen[:, item])
        np.testing.assert_allclose(found[others, item], expected, atol=1e-10)
    rare = [place for place in range(11) if place not in often]
    assert rare
    assert not found[rare].any()
    assert not found[:, rare].any()
    assert not np.diag(found).any()


def test_svd_projects_on_the_leading_axes() -> None:
    found = neighbourhood_scores(fit_neighbourhood(CHOSEN), PEOPLE)["svd 8"]
    root = np.sqrt(np.log(31 / (CHOSEN[:, ACTIVE].sum(0) + 0.5)))
    weighted = CHOSEN[:, ACTIVE] * root
    axes = np.linalg.eigh(weighted.T @ weighted)[1][:, -8:]
    np.testing.assert_allclose(found, (PEOPLE[:, ACTIVE] * root) @ axes @ axes.T, atol=1e-9)


def test_nothing_chosen_gives_zeros_and_other_people_do_not_matter() -> None:
    neighbourhood = fit_neighbourhood(CHOSEN)
    together = neighbourhood_scores(neighbourhood, PEOPLE)
    alone = neighbourhood_scores(neighbourhood, PEOPLE[1:2])
    for name, scores in together.items():
        assert not scores[2].any(), name
        np.testing.assert_allclose(scores[1:2], alone[name], atol=1e-12)


def test_items_that_nobody_chose_are_inert() -> None:
    wider = fit_neighbourhood(np.c_[CHOSEN, np.zeros((30, 3))])
    scores = neighbourhood_scores(wider, np.c_[PEOPLE, np.ones((5, 3))])
    for name, expected in neighbourhood_scores(fit_neighbourhood(CHOSEN), PEOPLE).items():
        np.testing.assert_allclose(scores[name], expected, atol=1e-12)
