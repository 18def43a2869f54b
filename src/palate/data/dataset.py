"""A data set: the interaction log with what is known about its items and people."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from palate.data.catalog import Catalog, Profiles
from palate.data.cleaning import CleaningReport
from palate.data.log import INTERACTION_SCHEMA
from palate.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Everything that a model is trained on and judged by.

    Attributes:
        name: what to call the data.
        interactions: the events in `INTERACTION_SCHEMA`, sorted by time.
        items: every item that the events name, and perhaps more.
        users: every person that the events name, and perhaps more.
        cleaning: what was done to the raw rows, where they needed it.

    Raises:
        DataError: the interactions have another schema, or name an item or a person that is not described.
    """

    name: str
    interactions: pl.DataFrame
    items: Catalog
    users: Profiles
    cleaning: CleaningReport | None = None

    def __post_init__(self) -> None:
        if self.interactions.schema != INTERACTION_SCHEMA:
            raise DataError(
                f"{self.name}: the interactions have the columns {dict(self.interactions.schema)}; "
                "pass them through validate_interactions first"
            )
        if not self.interactions["timestamp"].is_sorted():
            raise DataError(f"{self.name}: the interactions are not sorted by time; sort them by timestamp first")
        for key, frame in (("item_id", self.items.frame), ("user_id", self.users.frame)):
            unknown = self.interactions.join(frame.select(key), on=key, how="anti", maintain_order="left")
            if not unknown.is_empty():
                table = "catalogue" if key == "item_id" else "profiles"
                raise DataError(
                    f"{self.name}: {unknown[key].n_unique():,} values of {key} in the interactions are not "
                    f"in the {table}, first {unknown[key][0]!r}; add them to the {table}"
                )

    def summary(self) -> dict[str, object]:
        """Return num_users, num_items, num_interactions and the first and last time as ISO text.

        People and items are counted where they occur in the interactions; the times are None where there are
        none.
        """
        log = self.interactions
        times = log["timestamp"].dt.to_string("%Y-%m-%dT%H:%M:%S")
        return {
            "num_users": log["user_id"].n_unique(),
            "num_items": log["item_id"].n_unique(),
            "num_interactions": log.height,
            "first": times.min(),
            "last": times.max(),
        }

    def fingerprint(self) -> str:
        """Return the hexadecimal SHA-256 of all values in the three tables and the parts of their columns.

        Equal content gives the same digest on every run and machine; the name and the cleaning report do not
        count.
        """
        digest = hashlib.sha256()
        parts = (
            self.items.text,
            self.items.numeric,
            self.items.categorical,
            self.users.numeric,
            self.users.categorical,
        )
        digest.update(repr(parts).encode())
        for frame in (self.interactions, self.items.frame, self.users.frame):
            for chunk in _content(frame):
                digest.update(chunk)
        return digest.hexdigest()


def _content(frame: pl.DataFrame) -> Iterator[bytes]:
    """A frame's values as bytes; names, types, missing values and text lengths keep the columns apart."""
    yield repr((frame.height, [(name, str(dtype)) for name, dtype in frame.schema.items()])).encode()
    for values in frame.iter_columns():
        yield values.is_null().to_numpy().tobytes()
        if values.dtype.is_numeric():
            yield values.fill_null(0).to_numpy().astype("<f8").tobytes()
        else:
            text = (values.dt.epoch("us") if isinstance(values.dtype, pl.Datetime) else values).cast(pl.String)
            yield text.str.len_bytes().fill_null(0).to_numpy().astype("<u4").tobytes()
            yield text.fill_null("").str.join("").item().encode()
