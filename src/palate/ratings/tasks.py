"""Ratings as models of ratings read them, a view of the record of behaviour, and the few-shot tasks of new people."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from palate.errors import DataError


class Ratings(NamedTuple):
    """What training people said, one row an event; people and items are row numbers of tables beside it."""

    users: Int64[np.ndarray, "event"]
    items: Int64[np.ndarray, "event"]
    values: Float[np.ndarray, "event"]
    """Ratings on any scale; of choices 1 chosen, 0 not."""

    def of(self, users: Int64[np.ndarray, "user"]) -> "Ratings":
        """The rows of some people."""
        kept = np.isin(self.users, users)
        return Ratings(self.users[kept], self.items[kept], self.values[kept])


class Task(NamedTuple):
    """One person: what they have said, and what they are asked about. Query values are for judging alone."""

    user: int
    """Row number in the table of profiles."""
    support_items: Int64[np.ndarray, "event"]
    support_values: Float[np.ndarray, "event"]
    query_items: Int64[np.ndarray, "query"]
    query_values: Float[np.ndarray, "query"]

    def with_support(self, size: int) -> "Task":
        """The same task with the first `size` support events alone."""
        return self._replace(support_items=self.support_items[:size], support_values=self.support_values[:size])


def ratings_of(tasks: Sequence[Task]) -> Ratings:
    """All that the people of some tasks said, query included: for tasks to learn from."""
    return Ratings(
        np.concatenate([np.full(len(task.support_items) + len(task.query_items), task.user) for task in tasks]),
        np.concatenate([part for task in tasks for part in (task.support_items, task.query_items)]),
        np.concatenate([part for task in tasks for part in (task.support_values, task.query_values)]),
    )


def join(parts: Iterable[Ratings]) -> Ratings:
    """One log of several."""
    return Ratings(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def by_user(ratings: Ratings) -> dict[int, tuple[Int64[np.ndarray, "event"], Float[np.ndarray, "event"]]]:
    """Items and values of each person, in the order of the log."""
    order = np.argsort(ratings.users, kind="stable")
    users, starts = np.unique(ratings.users[order], return_index=True)
    parts = zip(np.split(ratings.items[order], starts[1:]), np.split(ratings.values[order], starts[1:]), strict=True)
    return {int(user): part for user, part in zip(users, parts, strict=True)}


def check_tasks(tasks: Sequence[Task], num_users: int, num_items: int) -> None:
    """Refuse what no model could use.

    Raises:
        DataError: there is no task, a row number is out of range, or a support value is not finite.
    """
    if not tasks:
        raise DataError("few-shot tasks: there are none; check the split")
    for place, task in enumerate(tasks):
        items = np.concatenate([task.support_items, task.query_items])
        if not 0 <= task.user < num_users or (len(items) and not 0 <= items.min() <= items.max() < num_items):
            raise DataError(
                f"few-shot task {place} (user {task.user}) names a row that is not there; expected users below "
                f"{num_users} and items below {num_items}"
            )
        if not np.isfinite(task.support_values).all():
            raise DataError(f"few-shot task {place} (user {task.user}) has a support value that is not finite")
