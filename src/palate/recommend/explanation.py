"""Why an item is in a list, and which items are alike: cosines in the metric that the learner has learned."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from palate.metrics import top_k
from palate.recommend.item_table import ItemTable

_LEAST = 1e-12
"""What a length is taken to be at least."""
_NEAR = 0.1
"""Cosine above which an event is named as the reason for an item."""


@dataclass(frozen=True, eq=False, repr=False)
class Explainer:
    """Compares items."""

    items: ItemTable
    metric: Float[Tensor, "feature"]
    """How much each feature counts; see `palate.meta.head.metric`."""

    def directions(self, places: Int64[np.ndarray, "place"]) -> Float[np.ndarray, "place feature"]:
        """Items as unit vectors in the metric: how alike two are is their product."""
        rows: Float[np.ndarray, "place feature"] = self.items.rows.features.numpy().take(places, 0)
        rows *= self.metric.numpy()
        rows /= np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows)), _LEAST)[:, None]
        return rows

    def reasons(
        self, recent: Int64[np.ndarray, "event"], places: Int64[np.ndarray, "place"]
    ) -> list[tuple[str, str | None]]:
        """Say in words why each of these items is in the list of someone who chose the recent ones.

        With it the id of the event that is nearest to the item, where one is near at all.
        """
        if len(recent) == 0:
            return [("popular with people like you", None)] * len(places)
        titles, ids = self.items.titles, self.items.vocabulary.ids
        directions = self.directions(np.concatenate([places, recent]))
        cosine = directions[: len(places)] @ directions[len(places) :].T
        return [
            (f"goes with {titles[recent[event]]}", ids[recent[event]])
            if value > _NEAR
            else ("fits your recent choices", None)
            for value, event in zip(cosine.max(1).tolist(), cosine.argmax(1).tolist(), strict=True)
        ]

    def nearest(self, place: int, k: int) -> list[tuple[int, float]]:
        """The `k` items that are most like another one, the most alike first, with their cosines.

        Raises:
            ConfigError: k is below 1.
        """
        with torch.inference_mode():
            cosine = (self._all_directions @ self._all_directions[place]).numpy().copy()
        cosine[place] = -np.inf
        ranked = top_k(cosine[None], k)[0]
        return [(other, float(cosine[other])) for other in ranked[ranked >= 0].tolist()]

    @cached_property
    def _all_directions(self) -> Float[Tensor, "item feature"]:
        return torch.nn.functional.normalize(self.items.rows.features * self.metric, dim=1)
