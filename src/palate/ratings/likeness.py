"""How alike items are by their content, as several kernels: looked up in a table, or computed from what is known.

A table holds every pair, which is exact for any kernel and grows with the square of the catalogue. Computed kernels
need a short vector an item and kind of content, so that a catalogue of any size and items that come later have them.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_NEAR = 0.3
"""How fast likeness falls with the cosine of two vectors."""


@runtime_checkable
class Likeness(Protocol):
    """Kernels over items: positive semidefinite, about 1 for an item and itself."""

    @property
    def num_items(self) -> int:
        """Items there are."""

    @property
    def num_kernels(self) -> int:
        """Kernels there are, at least 1."""

    def between(
        self, rows: Int64[Tensor, "row"], columns: Int64[Tensor, "column"]
    ) -> Float[Tensor, "row column kernel"]:
        """Of each of some items and each of others."""

    def among(
        self, left: Int64[Tensor, "task left"], right: Int64[Tensor, "task right"]
    ) -> Float[Tensor, "task left right kernel"]:
        """Of each pair of each task's items."""

    def own(self, items: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape kernel"]:
        """Of each item and itself."""


class KernelTable(NamedTuple):
    """Every pair of items."""

    values: Float[Tensor, "item item kernel"]

    @property
    def num_items(self) -> int:
        """Items there are."""
        return self.values.shape[0]

    @property
    def num_kernels(self) -> int:
        """Kernels there are."""
        return self.values.shape[2]

    def between(
        self, rows: Int64[Tensor, "row"], columns: Int64[Tensor, "column"]
    ) -> Float[Tensor, "row column kernel"]:
        """Of each of some items and each of others."""
        return self._pairs(rows[:, None], columns)

    def among(
        self, left: Int64[Tensor, "task left"], right: Int64[Tensor, "task right"]
    ) -> Float[Tensor, "task left right kernel"]:
        """Of each pair of each task's items."""
        return self._pairs(left[:, :, None], right[:, None, :])

    def own(self, items: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape kernel"]:
        """Of each item and itself."""
        return self._pairs(items, items)

    def _pairs(self, left: Tensor, right: Tensor) -> Tensor:
        # One flat look-up is several times faster than two-way indexing.
        return self.values.reshape(-1, self.num_kernels)[left * self.num_items + right]


class ContentKernels(NamedTuple):
    """For each kind of content the cosine and one that falls fast with it; then the cosines' products, two by two."""

    vectors: tuple[Float[Tensor, "item dim"], ...]
    """For each kind of content, at least one, the items' unit vectors; 0 for an item of which nothing is known."""

    @property
    def num_items(self) -> int:
        """Items there are."""
        return len(self.vectors[0])

    @property
    def num_kernels(self) -> int:
        """Kernels there are."""
        kinds = len(self.vectors)
        return 2 * kinds + kinds * (kinds - 1) // 2

    def between(
        self, rows: Int64[Tensor, "row"], columns: Int64[Tensor, "column"]
    ) -> Float[Tensor, "row column kernel"]:
        """Of each of some items and each of others."""
        return _kernels([each[rows] @ each[columns].T for each in self.vectors])

    def among(
        self, left: Int64[Tensor, "task left"], right: Int64[Tensor, "task right"]
    ) -> Float[Tensor, "task left right kernel"]:
        """Of each pair of each task's items."""
        return _kernels([each[left] @ each[right].transpose(1, 2) for each in self.vectors])

    def own(self, items: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape kernel"]:
        """Of each item and itself."""
        return _kernels([each[items].square().sum(-1) for each in self.vectors])


class ItemContent(NamedTuple):
    """What is known of items without behaviour."""

    kernels: Likeness
    """Likeness of each pair."""
    features: Float[Tensor, "item feature"]
    """About the size of 1."""


def _kernels(cosines: list[Float[Tensor, "*shape"]]) -> Float[Tensor, "*shape kernel"]:
    parts = [part for cosine in cosines for part in (cosine, ((cosine - 1) / _NEAR).exp())]
    parts += [left * right for place, left in enumerate(cosines) for right in cosines[place + 1 :]]
    return torch.stack(parts, -1)
