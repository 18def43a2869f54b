"""What all item-item scorers of a model say together: their features of an item, and what these add to its score.

Each scorer gives an item two features: its evidence e ≥ or ≤ 0, and log(max(e, ε) / ε), which tells little evidence
from none. Both are 0 for an item of which nothing is known, so that only the neighbours of a person's last events have
features at all. They are divided by their spread, so that a weight of 1 moves the list as much as any other unit of
the score. What each is worth for whom is the head's to learn (`palate.meta.head`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from palate.data.event_log import EventLog
from palate.scorers.item_item import SCORERS, ItemItem, ItemItemConfig, Setting
from palate.scorers.kin import Kin

LEAST = 1e-3
"""ε: evidence below this counts as none in the logarithm."""
_DENSE = 16
"""Sums over the whole catalogue where it has at most so many times the items that are named, else over these."""
_ARRAYS = ("starts", "items", "weights")
PER_SCORER = 2
"""Features of each scorer."""


@dataclass(frozen=True, eq=False, repr=False)
class Scorers:
    """The fitted scorers of a model, by name."""

    fitted: Mapping[str, ItemItem]
    spread: Float32[np.ndarray, "feature"]
    """Of each feature, in people and items that it was measured on."""

    @property
    def num_features(self) -> int:
        """Two a scorer, in the order of the scorers."""
        return PER_SCORER * len(self.fitted)

    @property
    def num_items(self) -> int:
        """Items that were there when the scorers were fitted."""
        return next((scorer.num_items for scorer in self.fitted.values()), 0)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything but the settings, by name."""
        arrays: dict[str, np.ndarray] = {"spread": self.spread}
        for name, scorer in self.fitted.items():
            arrays |= {f"{name}.{part}": getattr(scorer, part) for part in _ARRAYS}
        return arrays

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Sequence[float]]) -> "Scorers":
        """The scorers that `to_arrays` was called on; KeyError for an array that is missing."""
        fitted = {}
        for name, setting in settings.items():
            starts, items, weights = (arrays[f"{name}.{part}"] for part in _ARRAYS)
            fitted[name] = ItemItem(starts, items, weights, Setting(*map(float, setting)))
        return Scorers(fitted, arrays["spread"])

    def features(self, log: EventLog, num_items: int) -> Float32[np.ndarray, "user item feature"]:
        """The features of every item for everyone of a log; items that came after the fit have none."""
        found = np.zeros((log.num_users, num_items, self.num_features), np.float32)
        for place, scorer in enumerate(self.fitted.values()):
            evidence = scorer.evidence(log)
            some = found[:, : scorer.num_items]
            some[..., PER_SCORER * place] = evidence / self.spread[PER_SCORER * place]
            some[..., PER_SCORER * place + 1] = _log(evidence) / self.spread[PER_SCORER * place + 1]
        return found

    def add_to(
        self,
        scores: Float32[np.ndarray, "user item"],
        log: EventLog,
        weights: Float[np.ndarray, "user feature"],
        kin: Kin,
    ) -> None:
        """Add what the features are worth to everyone's scores, in place; `kin` are those of items after the fit."""
        if not self.fitted:
            return
        added = np.zeros((log.num_users, self.num_items), np.float32)
        for place, scorer in enumerate(self.fitted.values()):
            evidence = scorer.evidence(log)
            linear, logarithm = (weights / self.spread).T[PER_SCORER * place : PER_SCORER * (place + 1), :, None]
            added += linear * evidence + logarithm * _log(evidence)
        scores[:, : self.num_items] += added
        scores[:, self.num_items : self.num_items + len(kin.items)] += kin.inherit(added)

    def contribution(
        self, chosen: Int64[np.ndarray, "event"], weights: Float[np.ndarray, "feature"], kin: Kin
    ) -> tuple[Int64[np.ndarray, "item"], Float32[np.ndarray, "item"]]:
        """The items of which a person's events, the oldest first, say anything, and what that adds to each score.

        `kin` are those of the items that came after the fit.
        """
        items, added = self._of_known(chosen, weights)
        if not len(kin.items) or not len(items):
            return items, added
        known = np.zeros(self.num_items, np.float32)
        known[items] = added
        inherited = kin.inherit(known)
        new = np.flatnonzero(inherited)
        return np.concatenate([items, self.num_items + new]), np.concatenate([added, inherited[new]])

    def each_contribution(
        self,
        chosen: Int64[np.ndarray, "event"],
        weights: Float[np.ndarray, "feature"],
        kin: Kin,
        places: Int64[np.ndarray, "place"],
    ) -> dict[str, Float32[np.ndarray, "place"]]:
        """What each scorer adds to the scores of some items: `contribution`, taken apart."""
        found = {}
        for number, (name, scorer) in enumerate(self.fitted.items()):
            own = slice(PER_SCORER * number, PER_SCORER * (number + 1))
            items, added = Scorers({name: scorer}, self.spread[own]).contribution(chosen, weights[own], kin)
            whole = np.zeros(self.num_items + len(kin.items), np.float32)
            whole[items] = added
            found[name] = whole[places]
        return found

    def _of_known(
        self, chosen: Int64[np.ndarray, "event"], weights: Float[np.ndarray, "feature"]
    ) -> tuple[Int64[np.ndarray, "item"], Float32[np.ndarray, "item"]]:
        if not weights.any():
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        worth = (weights / self.spread).astype(np.float32)
        named = [scorer.neighbours(chosen) for scorer in self.fitted.values()]
        together = np.concatenate([np.zeros(0, np.int32), *(items for items, _ in named)])
        if not len(together):
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        size = self.num_items
        if size <= _DENSE * len(together):
            items, places, size = np.arange(size), together, size
        else:
            items, places = np.unique(together, return_inverse=True)
            size = len(items)
        added, start = np.zeros(size, np.float32), 0
        for number, (own, values) in enumerate(named):
            if len(own):
                # Sums in double, logarithms in single precision, which take a tenth of the time.
                evidence = np.bincount(places[start : start + len(own)], values, size).astype(np.float32)
                start += len(own)
                added += worth[PER_SCORER * number] * evidence
                added += worth[PER_SCORER * number + 1] * _log(evidence)
        said = np.flatnonzero(added)  # of the whole catalogue few are; an index asks for these one by one
        return items[said].astype(np.int64), added[said]


def no_scorers() -> Scorers:
    """None: the adapted head alone."""
    return Scorers({}, np.zeros(0, np.float32))


def refit(scorers: Scorers, log: EventLog, num_items: int, config: ItemItemConfig) -> Scorers:
    """The same scorers, with the same settings, of other events.

    Raises:
        NumericalError: EASE's matrix cannot be factored, which a larger penalty cures.
    """
    fitted = {
        name: SCORERS[name].fit(log, num_items, scorer.setting.strength, config)._replace(setting=scorer.setting)
        for name, scorer in scorers.fitted.items()
    }
    return Scorers(fitted, scorers.spread)


def _log(evidence: Float32[np.ndarray, "*user item"]) -> Float32[np.ndarray, "*user item"]:
    found: Float32[np.ndarray, "*user item"] = np.log(np.maximum(evidence, np.float32(LEAST)) * np.float32(1 / LEAST))
    return found
