"""What people chose after training, held so that one more event costs what its person's history is long.

Sums are enough: of an item in training the decayed number of its choosers; of one that came later when it was chosen,
and how often its choosers had chosen each other item, from which its row follows (`palate.meta.item_tasks`). Nobody is
held by name.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
from torch import Tensor

from palate.data.episodes import History
from palate.meta.evidence import EvidenceConfig, FeatureSpace, decay
from palate.meta.head import Items
from palate.meta.item_tasks import (
    Choosers,
    ItemPosterior,
    ItemTaskConfig,
    exposure,
    known_by,
    popularity_of,
    warm_rows,
)


class _Chosen:
    """What the choosers of an item add up to."""

    __slots__ = ("others", "times", "told")

    def __init__(self) -> None:
        self.times = array("d")
        """When each chose it, the earliest first."""
        self.told = 0
        """How many of them had chosen other items in training by then."""
        self.others: dict[int, tuple[int, float]] = {}
        """Of each such item how many, and the sum of its shares of their others."""

    def add(self, at: float, others: Int64[np.ndarray, "other"]) -> None:
        insort(self.times, at)
        self.told += len(others) > 0
        for other in others.tolist():
            count, share = self.others.get(other, (0, 0.0))
            self.others[other] = count + 1, share + 1 / len(others)

    def take_out(self, at: float, others: Int64[np.ndarray, "other"]) -> None:
        """Undo an `add`; the time may be rounded in another way."""
        place = bisect_left(self.times, at)
        if place == len(self.times) or (place and at - self.times[place - 1] < self.times[place] - at):
            place -= 1
        self.times.pop(place)
        self.told -= len(others) > 0
        for other in others.tolist():
            count, share = self.others.pop(other)
            if count > 1:
                self.others[other] = count - 1, share - 1 / len(others)


@final
class ItemChoices:
    """First choices of items after training, by anybody; changed in place, in any order of people."""

    def __init__(self, posterior: ItemPosterior, half_life: float) -> None:
        """Nothing was chosen yet.

        Args:
            posterior: what training learned of items.
            half_life: of a choice, in days, as in training.
        """
        self._posterior, self._half_life = posterior, half_life
        self._num_trained = len(posterior.counts)
        self._until = self._moment = float(posterior.shelf[1])
        self._sums = np.zeros(self._num_trained)
        """Of each item in training its choices since, each weighing what it does at `_moment`."""
        self._new: dict[int, _Chosen] = {}
        """Of each item that came later and was chosen."""

    def exchange(self, before: Mapping[str, History], after: Mapping[str, History]) -> None:
        """Take people's histories out as they were and in as they are.

        Args:
            before: by person; those of whom nothing was taken in may be missing.
            after: likewise; those who are to count no more may be missing.
        """
        self._add(list(before.values()), -1.0)
        self._add(list(after.values()), 1.0)
        for history in before.values():
            for item, at, others in self._choices_of_new(history):
                self._new[item].take_out(at, others)
        for history in after.values():
            for item, at, others in self._choices_of_new(history):
                self._new.setdefault(item, _Chosen()).add(at, others)

    def counts(self, num_items: int, now: float, trust: float) -> Float[Tensor, "item"]:
        """Choosers of every item as training would have counted them, had it seen as much time and ended now.

        Args:
            num_items: all items, those in training first. A new one is taken to be on the shelf since its first choice.
            now: the moment asked for, in seconds since 1970-01-01.
            trust: share of a new item's rate that counts; its choosers so far count in any case.
        """
        half_life, num_trained, most = self._half_life, self._num_trained, self._posterior.counts.max().item()
        begin, until, per_choice = self._posterior.shelf.tolist()
        counts = np.zeros(num_items)
        aged = self._posterior.counts.double().numpy() / per_choice * self._faded(until, now)
        whole, then = exposure(now - begin, half_life), exposure(until - begin, half_life)
        counts[:num_trained] = (self._sums * self._faded(self._moment, now) + aged) * (then / whole)
        choices, days = self._posterior.rate.double().tolist()
        for item, one in self._new.items():
            if not one.times:
                continue
            times = np.array(one.times)
            chosen = float(decay(now - times, half_life).sum())
            later = chosen - self._faded(float(times[0]), now)
            rate = (choices + later) / (days + exposure(now - times[0], half_life))
            # A burst of an hour is no rate for years: the most popular item is the limit.
            counts[item] = max(chosen, min(trust * then * rate, most / per_choice))
        counts *= per_choice
        return torch.from_numpy(counts).float()

    def choosers(self, num_items: int) -> Choosers:
        """Who chose each of the items that came after training, as `item_tasks.warm_rows` reads it."""
        rows, columns, counts, shares = [], [], [], []
        chosen = np.zeros(num_items - self._num_trained, np.int64)
        for item, one in sorted(self._new.items()):
            row = item - self._num_trained
            chosen[row] = len(one.times)
            for other, (count, share) in sorted(one.others.items()):
                rows.append(row)
                columns.append(other)
                counts.append(count)
                shares.append(share / one.told)
        shape = len(chosen), self._num_trained
        joint, mean = (
            csr_matrix((np.array(values, np.float64), (rows, columns)), shape=shape) for values in (counts, shares)
        )
        return Choosers(chosen, joint, mean)

    def rows(
        self, base: Items, now: float, config: ItemTaskConfig, evidence: EvidenceConfig, space: FeatureSpace
    ) -> Items:
        """Rows of all items after these choices: of those in training the popularity moves, of chosen new ones all.

        Args:
            base: the rows that training left, and of new items those that content foretells.
            now: the moment that counts as today, in seconds since 1970-01-01.
            config: how a new item's row follows its first events.
            evidence: how the evidence was fitted.
            space: for the part of the features that follows from the vector.
        """
        known, num_items = self._num_trained, len(base.features)
        counts = self.counts(num_items, now, config.trust)
        trained, prior = (Items(*(column[some] for column in base)) for some in (slice(known), slice(known, None)))
        moved = trained._replace(popularity=popularity_of(self._posterior, counts[:known]))
        if num_items == known:
            return moved
        new = warm_rows(
            self._posterior, config, evidence, space, trained, prior, self.choosers(num_items), counts[known:]
        )
        return Items(*(torch.cat(pair) for pair in zip(moved, new, strict=True)))

    def _add(self, histories: Sequence[History], sign: float) -> None:
        """Add choices of items in training to the sums."""
        if not histories:
            return
        items = np.concatenate([history.items for history in histories])
        times = np.concatenate([history.times for history in histories])
        counted = (times > self._until) & (items < self._num_trained)
        items, times = items[counted], times[counted]
        newest = float(times.max(initial=self._moment))
        self._sums *= self._faded(self._moment, newest)
        self._moment = newest
        self._sums += np.bincount(items, sign * decay(newest - times, self._half_life), self._num_trained)

    def _choices_of_new(self, history: History) -> Iterator[tuple[int, float, Int64[np.ndarray, "other"]]]:
        """Items that came after training: which, when, and what else of training the person had chosen by then."""
        items = history.items
        for place in np.flatnonzero((items >= self._num_trained) & (history.times > self._until)).tolist():
            known = known_by(items, history.times, place)
            yield int(items[place]), float(history.times[place]), known[known < self._num_trained]

    def _faded(self, then: float, now: float) -> float:
        return float(decay(np.array([now - then]), self._half_life)[0])
