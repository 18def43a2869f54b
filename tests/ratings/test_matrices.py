"""Ratings as tables: what is said twice, and what is refused."""

import numpy as np
import pytest

from palate.errors import DataError
from palate.ratings.matrices import check_ratings, chosen_matrix, mean_matrix, support_events
from palate.ratings.tasks import Ratings, Task

ROWS, ITEMS = np.array([0, 1, 1, 1]), np.array([2, 0, 0, 1])


def test_what_is_rated_twice_counts_once_with_its_mean() -> None:
    values, seen = mean_matrix(ROWS, ITEMS, np.array([4.0, 1.0, 3.0, 0.0]), (3, 3))
    np.testing.assert_array_equal(values, [[0, 0, 4], [2, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(seen, [[0, 0, 1], [1, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("twice", [[1.0, 0.0], [0.0, 1.0]])
def test_what_was_chosen_once_is_chosen(twice: list[float]) -> None:
    chosen, shown = chosen_matrix(ROWS, ITEMS, np.array([0.0, *twice, 0.0]), (3, 3))
    np.testing.assert_array_equal(chosen, [[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(shown, [[0, 0, 1], [1, 1, 0], [0, 0, 0]])


def test_supports_of_any_length_become_one_log() -> None:
    none, some = np.zeros(0, np.int64), np.array([5, 3])
    tasks = [Task(9, none, np.zeros(0), some, np.zeros(2)), Task(4, some, np.array([1.0, 2.0]), none, np.zeros(0))]
    places, items, values = support_events(tasks)
    assert (places.tolist(), items.tolist(), values.tolist()) == ([1, 1], [5, 3], [1.0, 2.0])


@pytest.mark.parametrize(
    ("users", "items", "values", "match"),
    [
        ([], [], [], "there are none"),
        ([0, 3], [0, 0], [1.0, 1.0], "event 1: user 3 is not in the table of 3 rows; expected 0 to 2"),
        ([0, 1], [0, -1], [1.0, 1.0], "event 1: item -1 is not in the table of 2 rows"),
        ([0, 1], [0, 1], [1.0, np.nan], "event 1: the value is nan"),
    ],
)
def test_unusable_ratings_are_named(users: list[int], items: list[int], values: list[float], match: str) -> None:
    ratings = Ratings(np.array(users, np.int64), np.array(items, np.int64), np.array(values, np.float64))
    with pytest.raises(DataError, match=match):
        check_ratings(ratings, num_users=3, num_items=2)
