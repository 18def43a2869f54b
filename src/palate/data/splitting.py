"""The temporal split: one moment in time, before which everything may be learnt from and after which nothing
may.

People first seen at or after the cut are the cold-start test; an event of theirs never shares a side with
training. A random split would let a model learn next month's fashion and is therefore not offered.
"""

from dataclasses import dataclass
from datetime import datetime

import polars as pl

from palate.data.dataset import Dataset
from palate.data.times import parse_time
from palate.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Split:
    """The two sides of a cut; event tables are in `INTERACTION_SCHEMA` and in the order of the data set.

    Attributes:
        train: the events before the cut.
        cut: the moment, naive UTC; an event exactly at it is after it.
        cold_user_events: all events of the people first seen at or after the cut.
        warm_user_events: the events at or after the cut of the people in training.
        cold_items: the items whose first event is at or after the cut, sorted.
        train_items: the items with an event before the cut, sorted.
        train_users: the people with an event before the cut, sorted.
    """

    train: pl.DataFrame
    cut: datetime
    cold_user_events: pl.DataFrame
    warm_user_events: pl.DataFrame
    cold_items: tuple[str, ...]
    train_items: tuple[str, ...]
    train_users: tuple[str, ...]


def temporal_split(dataset: Dataset, cut: datetime | str) -> Split:
    """Split a data set at a moment: naive means UTC, text is ISO 8601 or unix seconds.

    Raises:
        DataError: the cut is unreadable, leaves no event on one side, or leaves nobody who is first seen
            after it.
    """
    moment = parse_time(cut, what="cut")
    log = dataset.interactions
    train = log.filter(pl.col("timestamp") < moment)
    later = log.filter(pl.col("timestamp") >= moment)
    if train.is_empty() or later.is_empty():
        side = "before" if train.is_empty() else "after"
        raise DataError(
            f"{dataset.name}: the cut {moment} leaves no events {side} it; {_range(log)}; choose a moment within"
        )
    is_warm = pl.col("user_id").is_in(train["user_id"].unique().implode())
    cold = later.filter(~is_warm)
    if cold.is_empty():
        raise DataError(
            f"{dataset.name}: everyone after the cut {moment} was seen before it, so no user is cold; "
            f"{_range(log)}; choose an earlier cut"
        )
    train_items = _names(train["item_id"])
    return Split(
        train=train,
        cut=moment,
        cold_user_events=cold,
        warm_user_events=later.filter(is_warm),
        cold_items=tuple(sorted(set(_names(later["item_id"])).difference(train_items))),
        train_items=train_items,
        train_users=_names(train["user_id"]),
    )


def default_cut(dataset: Dataset, fraction: float = 0.75) -> datetime:
    """Return the moment that leaves this share of the events before it (at most: equal times stay together).

    Raises:
        ConfigError: the fraction is not between 0 and 1.
        DataError: there are no events.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction is {fraction}; expected a share between 0 and 1, such as 0.75")
    times = dataset.interactions["timestamp"].sort()
    if times.is_empty():
        raise DataError(f"{dataset.name}: there are no events to split")
    cut = times[int(fraction * len(times))]
    assert isinstance(cut, datetime)
    return cut


def _names(ids: pl.Series) -> tuple[str, ...]:
    return tuple(ids.unique().sort().to_list())


def _range(log: pl.DataFrame) -> str:
    times = log["timestamp"].dt.to_string("iso")
    return "the data has no events" if log.is_empty() else f"the data runs from {times.min()!s} to {times.max()!s}"
