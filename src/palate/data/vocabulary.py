"""A vocabulary: string ids and their contiguous indices, fixed once and saved with a model."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Int64

from palate.errors import DataError

# Similar ids are looked for among at most this many candidates, so that an error stays quick on a large
# catalogue.
_MAX_CANDIDATES = 2_000
_SCHEMA = {"item_id": pl.String, "item": pl.Int64}


@dataclass(frozen=True)
class Vocabulary:
    """Distinct ids; the position of an id is its index, from 0.

    Raises:
        DataError: an id occurs twice.
    """

    ids: tuple[str, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index: dict[str, int] = {}
        for position, name in enumerate(self.ids):
            if index.setdefault(name, position) != position:
                raise DataError(f"vocabulary: id {name!r} occurs at {index[name]} and {position}; ids must be distinct")
        object.__setattr__(self, "_index", index)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def get(self, name: str) -> int | None:
        """Return the index of an id, or None where it is unknown."""
        return self._index.get(name)

    def index(self, ids: Sequence[str]) -> Int64[np.ndarray, "id"]:
        """Return the index of each id, in order.

        Raises:
            DataError: an id is unknown; the nearest known ones are named.
        """
        try:
            return np.fromiter((self._index[name] for name in ids), dtype=np.int64, count=len(ids))
        except KeyError as error:
            raise DataError(self._unknown(error.args[0])) from None

    @cached_property
    def frame(self) -> pl.DataFrame:
        """All ids (`item_id`) and their indices (`item`): what joins and filters of logs read."""
        return pl.DataFrame({"item_id": self.ids, "item": np.arange(len(self))}, schema=_SCHEMA)

    def to_json(self) -> str:
        """Write the ids as a JSON list."""
        return json.dumps(self.ids, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Read what `to_json` wrote.

        Raises:
            DataError: the text is not a JSON list of distinct strings.
        """
        try:
            ids = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"vocabulary: not JSON ({error}); expected a list of ids") from None
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise DataError(f"vocabulary: expected a JSON list of strings, found {text[:40]!r}")
        return cls(tuple(ids))

    def _unknown(self, name: str) -> str:
        same_start = [known for known in self.ids if known[:2].casefold() == name[:2].casefold()]
        candidates = (same_start or list(self.ids))[:_MAX_CANDIDATES]
        near = difflib.get_close_matches(name, candidates, n=3)
        hint = f"nearest known: {', '.join(map(repr, near))}" if near else "no known id is similar"
        return f"unknown id {name!r} ({len(self):,} are known); {hint}"
