"""One person's history event by event: after each event it is what `build_histories` makes of the events so far."""

from typing import final

import numpy as np

from palate.data.episodes import History


@final
class GrowingHistory:
    """Takes events in their order; items are vocabulary indices."""

    def __init__(self) -> None:
        self._first: dict[int, float] = {}
        """When each item was first chosen, in that order."""
        self._refused: dict[int, bool] = {}
        """Whether the last word on each item was no, in the order of the first word."""
        self.last: float | None = None
        """Time of the newest event, in seconds since 1970-01-01; None before the first."""

    def add(self, item: int, seconds: float, *, refuses: bool = False) -> None:
        """Take the next event: a choice of the item, or a refusal."""
        if not refuses:
            self._first.setdefault(item, seconds)
        self._refused[item] = refuses
        self.last = seconds

    def knows(self, item: int) -> bool:
        """Whether there was a word on the item: such an item is not listed, whether chosen or refused."""
        return item in self._refused

    def history(self, *, returning: bool = False) -> History:
        """What is known after the events so far."""
        chosen = [item for item in self._first if not self._refused[item]]
        never = [item for item, refused in self._refused.items() if refused and item not in self._first]
        withdrawn = [item for item in self._first if self._refused[item]]
        return History(
            np.array(chosen, np.int64),
            np.array([self._first[item] for item in chosen], np.float64),
            np.array(never + withdrawn, np.int64),
            returning and len(chosen) > 0,
        )
