"""One person's history event by event: after each event it is what `palate.data.choices` makes of the events so far."""

import math
from collections.abc import Callable
from typing import Generic, TypeVar, final

import numpy as np

from palate.data.episodes import History, any_rated

Item = TypeVar("Item", int, str)


@final
class GrowingHistory(Generic[Item]):
    """Takes events in their order; items are vocabulary indices, or ids that `history` is told the indices of."""

    def __init__(self) -> None:
        self._first: dict[Item, float] = {}
        """When each item was first chosen, in that order."""
        self._refused: dict[Item, bool] = {}
        """Whether the last word on each item was no, in the order of the first word."""
        self._ratings: dict[Item, float] = {}
        """The last rating of each item that was rated."""
        self.last: float | None = None
        """Time of the newest event, in seconds since 1970-01-01; None before the first."""

    def add(self, item: Item, seconds: float, *, refuses: bool = False, rating: float | None = None) -> None:
        """Take the next event: a choice of the item, or a refusal; with a rating, where it says one."""
        if not refuses:
            self._first.setdefault(item, seconds)
        self._refused[item] = refuses
        if rating is not None:
            self._ratings[item] = rating
        self.last = seconds

    def knows(self, item: Item) -> bool:
        """Whether there was a word on the item: such an item is not listed, whether chosen or refused."""
        return item in self._refused

    def chosen(self) -> list[Item]:
        """The items whose last word is yes, by the first yes."""
        return [item for item in self._first if not self._refused[item]]

    def refused(self) -> list[Item]:
        """The items whose last word is no: those never chosen, then those chosen once by their first yes."""
        never = [item for item, refused in self._refused.items() if refused and item not in self._first]
        return never + [item for item in self._first if self._refused[item]]

    def history(
        self, number_of: Callable[[Item], int | None] = lambda item: int(item), *, returning: bool = False
    ) -> History:
        """What is known after the events so far; items without a number (None) are left out."""
        numbers: list[int] = []
        times: list[float] = []
        ratings: list[float] = []
        for item in self.chosen():
            if (number := number_of(item)) is not None:
                numbers.append(number)
                times.append(self._first[item])
                if self._ratings:
                    ratings.append(self._ratings.get(item, math.nan))
        refused: list[int] = []
        if True in self._refused.values():
            refused = [number for item in self.refused() if (number := number_of(item)) is not None]
        return History(
            np.array(numbers, np.int64),
            np.array(times, np.float64),
            np.array(refused, np.int64),
            returning and len(numbers) > 0,
            any_rated(np.array(ratings, np.float64)) if ratings else None,
        )
