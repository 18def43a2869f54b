"""Ratings as tables of people by items, for models that read whole rows at a time."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Int64

from palate.errors import DataError
from palate.ratings.tasks import Ratings, Task


def check_ratings(ratings: Ratings, num_users: int, num_items: int) -> None:
    """Refuse training ratings that no model could use.

    Raises:
        DataError: there are none, a row number is out of range, or a value is not finite.
    """
    if not len(ratings.values):
        raise DataError("training ratings: there are none; expected at least one event; check the split")
    for name, rows, bound in (("user", ratings.users, num_users), ("item", ratings.items, num_items)):
        bad = np.flatnonzero((rows < 0) | (rows >= bound))
        if len(bad):
            raise DataError(
                f"training ratings, event {bad[0]}: {name} {rows[bad[0]]} is not in the table of {bound} rows; "
                f"expected 0 to {bound - 1}; check that both use the same numbering"
            )
    bad = np.flatnonzero(~np.isfinite(ratings.values))
    if len(bad):
        raise DataError(f"training ratings, event {bad[0]}: the value is {ratings.values[bad[0]]}; drop such events")


def check_features(what: str, features: Float[np.ndarray, "row feature"]) -> None:
    """Refuse features that are not finite."""
    bad = np.argwhere(~np.isfinite(features))
    if len(bad):
        row, column = bad[0]
        raise DataError(f"{what}, row {row}, column {column}: {features[row, column]}; fill or drop such values first")


def support_events(
    tasks: Sequence[Task],
) -> tuple[Int64[np.ndarray, "event"], Int64[np.ndarray, "event"], Float[np.ndarray, "event"]]:
    """The support of all tasks in long form: place of the task, item, value."""
    sizes = [len(task.support_items) for task in tasks]
    items = np.concatenate([task.support_items for task in tasks]).astype(np.int64)
    values = np.concatenate([task.support_values for task in tasks]).astype(np.float64)
    return np.repeat(np.arange(len(tasks)), sizes), items, values


def mean_matrix(
    rows: Int[np.ndarray, "event"],
    items: Int[np.ndarray, "event"],
    values: Float[np.ndarray, "event"],
    shape: tuple[int, int],
) -> tuple[Float[np.ndarray, "user item"], Float[np.ndarray, "user item"]]:
    """Mean value of each pair, 0 where there is none, and 1 where there is one: what is rated twice counts once."""
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (rows, items), values)
    np.add.at(count, (rows, items), 1.0)
    return total / np.maximum(count, 1), (count > 0).astype(np.float64)


def chosen_matrix(
    rows: Int[np.ndarray, "event"],
    items: Int[np.ndarray, "event"],
    values: Float[np.ndarray, "event"],
    shape: tuple[int, int],
) -> tuple[Float[np.ndarray, "user item"], Float[np.ndarray, "user item"]]:
    """1 where an item was chosen, and 1 where it was shown; what was chosen once is chosen."""
    chosen, shown = np.zeros(shape), np.zeros(shape)
    np.maximum.at(chosen, (rows, items), values)
    shown[rows, items] = 1.0
    return chosen, shown
