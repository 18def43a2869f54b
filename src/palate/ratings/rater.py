"""Few-shot rating: a distribution over the rating levels of each query item, from a person's rated support items.

The networks are those of `rater_network`, trained by `rater_training.fit_rater`. The median of a distribution is the
rating of least expected absolute error; its expected gain ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from palate.errors import DataError
from palate.ratings.rater_network import Batch, ItemTables, RatingNetwork
from palate.ratings.tasks import Task, check_tasks

Gain = Literal["exponential", "linear"]

_MAX_PAIRS = 4_000_000  # pairs of items in one batch of predictions: their kernels are held at once


@dataclass(frozen=True)
class Rater:
    """Trained networks whose probabilities are averaged, and what they read."""

    networks: tuple[RatingNetwork, ...]
    tables: ItemTables
    levels: Float[np.ndarray, "level"]
    """The distinct training ratings, in rising order."""
    num_profile: int
    """Length of a row of the profiles."""

    @torch.no_grad()
    def predict(
        self, tasks: Sequence[Task], profiles: Float[np.ndarray, "user profile"]
    ) -> list[Float[np.ndarray, "query level"]]:
        """Probabilities of the levels for each task's query items; query values are not read.

        Raises:
            DataError: a task or the profiles do not fit what was trained.
        """
        if profiles.shape[1] != self.num_profile:
            raise DataError(f"profiles have {profiles.shape[1]} columns; expected the {self.num_profile} of training")
        if not np.isfinite(profiles).all():
            raise DataError("profiles are not finite in every row; fill in what is missing")
        check_tasks(tasks, len(profiles), len(self.tables.rated))
        events = [level_indices(task.support_values, self.levels, f"support of user {task.user}") for task in tasks]
        found: list[Float[np.ndarray, "query level"]] = [np.zeros((0, len(self.levels)), np.float32)] * len(tasks)
        for places in _batches(tasks):
            picked = [tasks[place] for place in places]
            batch = collate(
                np.stack([profiles[task.user] for task in picked]),
                np.zeros(len(picked), dtype=np.int64),
                [task.support_items for task in picked],
                [events[place] for place in places],
                [task.query_items for task in picked],
            )
            each = [network(self.tables, batch).exp() for network in self.networks]
            mean = torch.stack(each).mean(0).numpy()
            for row, place in enumerate(places):
                found[place] = mean[row, : len(tasks[place].query_items)].copy()
        return found


def collate(
    profiles: Float[np.ndarray, "task profile"],
    table: Int64[np.ndarray, "task"],
    support: Sequence[Int64[np.ndarray, "_"]],
    support_levels: Sequence[Int64[np.ndarray, "_"]],
    query: Sequence[Int64[np.ndarray, "_"]],
) -> Batch:
    """Pad tasks to one batch."""
    support_rows, support_mask = pad(support)
    query_rows, query_mask = pad(query)
    return Batch(
        torch.from_numpy(table),
        torch.from_numpy(profiles).float(),
        support_rows,
        pad(support_levels)[0],
        support_mask,
        query_rows,
        query_mask,
    )


def pad(rows: Sequence[Int64[np.ndarray, "_"]]) -> tuple[Int64[Tensor, "row column"], Float[Tensor, "row column"]]:
    """Rows of different length to one matrix filled up with 0, and its mask."""
    width = max(1, *(len(row) for row in rows))
    out, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.float32)
    for place, row in enumerate(rows):
        out[place, : len(row)], mask[place, : len(row)] = row, 1
    return torch.from_numpy(out), torch.from_numpy(mask)


def level_indices(
    values: Float[np.ndarray, "event"], levels: Float[np.ndarray, "level"], where: str
) -> Int64[np.ndarray, "event"]:
    """Place of each value among the levels.

    Raises:
        DataError: a value is none of the levels; `where` says whose.
    """
    nearest = np.abs(values[:, None] - levels).argmin(1)
    wrong = np.flatnonzero(~np.isclose(levels[nearest], values))
    if len(wrong):
        known = ", ".join(f"{level:g}" for level in levels)
        raise DataError(f"{where}: rating {values[wrong[0]]:g} is none of the levels of training: {known}; round it")
    return np.asarray(nearest, dtype=np.int64)


def median_rating(
    probabilities: Float[np.ndarray, "query level"], levels: Float[np.ndarray, "level"]
) -> Float[np.ndarray, "query"]:
    """The least level with half of the probability at or below it: least expected absolute error."""
    # The tolerance keeps a rounding error of the sum from skipping a level that holds exactly half.
    return np.asarray(levels[(probabilities[:, :-1].cumsum(1) < 0.5 - 1e-7).sum(1)])


def expected_gain(
    probabilities: Float[np.ndarray, "query level"], levels: Float[np.ndarray, "level"], gain: Gain = "exponential"
) -> Float[np.ndarray, "query"]:
    """What each item is expected to be worth to a ranking: 2^rating − 1, or the rating itself."""
    return np.asarray(probabilities @ (2.0**levels - 1 if gain == "exponential" else levels))


def _batches(tasks: Sequence[Task]) -> Iterator[list[int]]:
    """Places of tasks of like length, in batches of a bounded number of item pairs."""
    lengths = [len(task.support_items) + len(task.query_items) for task in tasks]
    batch: list[int] = []
    for place in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[place] ** 2 > _MAX_PAIRS:
            yield batch
            batch = []
        batch.append(place)
    yield batch
