"""Where data comes from: CSV and Parquet files, one person's events, and the data sets inside Palate."""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path

import polars as pl

from palate.data.catalog import Catalog, Profiles
from palate.data.cleaning import Cleaned, clean_online_retail
from palate.data.dataset import Dataset
from palate.data.log import read_ids, require_columns, validate_interactions, validate_items, validate_users
from palate.data.tables import csv_table, parquet_table, read_numbers, rename_columns
from palate.errors import DataError


@dataclass(frozen=True)
class _Bundled:
    file: str
    sha256: str
    unpack: Callable[[pl.DataFrame], pl.DataFrame]
    clean: Callable[[pl.DataFrame], Cleaned]


def _unpack_online_retail(frame: pl.DataFrame) -> pl.DataFrame:
    # The file writes a description only where it differs from the previous line of the same code.
    return frame.with_columns(
        pl.col("Description").forward_fill().over("StockCode"),
        pl.col("Quantity", "CustomerID").cast(pl.Int64),
    )


BUNDLED: dict[str, _Bundled] = {
    "online-retail": _Bundled(
        "online_retail.parquet",
        "cb9d8fc96494dc253821db6349eb9b898e7003198a349ae7df1c178daed9ddf4",
        _unpack_online_retail,
        clean_online_retail,
    ),
}


def load(name: str) -> Dataset:
    """Load and clean a data set that ships with Palate.

    Raises:
        DataError: there is no such data set, or its file is damaged.
    """
    raw = load_raw(name)
    cleaned = BUNDLED[name].clean(raw)
    return Dataset(name, cleaned.interactions, cleaned.items, cleaned.users, cleaned.report)


def load_raw(name: str) -> pl.DataFrame:
    """Load a data set that ships with Palate as its authors published it: every row, in order, uncleaned.

    Raises:
        DataError: there is no such data set, or its file is damaged.
    """
    if name not in BUNDLED:
        raise DataError(f"no bundled data set {name!r}; available: {', '.join(sorted(BUNDLED))}")
    entry = BUNDLED[name]
    content = resources.files("palate.data").joinpath("resources", entry.file).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise DataError(f"{entry.file}: the SHA-256 is {found}, expected {entry.sha256}; install Palate again")
    return entry.unpack(pl.read_parquet(io.BytesIO(content)))


def read_csv(
    interactions: str | Path,
    items: str | Path | None = None,
    users: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    now: datetime | None = None,
) -> Dataset:
    """Read a data set from comma-separated files with a header line.

    Args:
        interactions: the events; see `validate_interactions` for the columns.
        items: the catalogue by `item_id`; without it, the items of the events with no attributes. See
            `Catalog.infer`.
        users: the profiles by `user_id`; people without a row get one of missing values. See
            `Profiles.infer`.
        columns: your name to ours, for any of the files, such as `{"sku": "item_id"}`.
        name: what to call the data; by default the first file's name without its ending.
        now: events after this moment are refused; by default the current time plus one day.

    Raises:
        DataError: a file is missing, empty, unreadable or not CSV; a value is bad; an event names an unknown
            item.
    """
    return _read(csv_table, interactions, items, users, columns, name, now)


def read_parquet(
    interactions: str | Path,
    items: str | Path | None = None,
    users: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    now: datetime | None = None,
) -> Dataset:
    """Read a data set from Parquet files; everything else is as in `read_csv`.

    Raises:
        DataError: as `read_csv`.
    """
    return _read(parquet_table, interactions, items, users, columns, name, now)


def read_events(
    path: str | Path, *, columns: Mapping[str, str] | None = None, now: datetime | None = None
) -> pl.DataFrame:
    """Read one person's events, CSV or Parquet by the file's ending, into `INTERACTION_SCHEMA`.

    Only `item_id` is needed. Without a `user_id` column the person is "". Without a `timestamp` column the
    rows are taken as already in order and row k is put k seconds after 1970-01-01, which keeps the order and
    says nothing of the time.

    Raises:
        DataError: as `read_csv`.
    """
    readers = {".csv": csv_table, ".parquet": parquet_table}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise DataError(f"{path}: unknown ending {suffix!r}; expected one of {', '.join(readers)}")
    frame = rename_columns([(str(path), readers[suffix](path))], columns)[0]
    require_columns(frame, ("item_id",), source=str(path))
    anonymous = "user_id" not in frame.columns
    if anonymous:
        frame = frame.with_columns(user_id=pl.lit("anonymous"))
    if "timestamp" not in frame.columns:
        second = pl.int_range(pl.len()) * timedelta(seconds=1)
        frame = frame.with_columns(timestamp=pl.lit(datetime(1970, 1, 1)) + second)
    events = validate_interactions(frame, source=str(path), now=now)
    return events.with_columns(user_id=pl.lit("")) if anonymous else events


def _read(
    read: Callable[[str | Path], pl.DataFrame],
    interactions: str | Path,
    items: str | Path | None,
    users: str | Path | None,
    columns: Mapping[str, str] | None,
    name: str | None,
    now: datetime | None,
) -> Dataset:
    given = [path for path in (interactions, items, users) if path is not None]
    frames = iter(rename_columns([(str(path), read(path)) for path in given], columns))
    source, events = str(interactions), next(frames)
    log = validate_interactions(events, source=source, now=now)
    if items is None:
        catalog = Catalog.from_ids(log["item_id"])
    else:
        catalog = Catalog.infer(read_numbers(validate_items(next(frames), source=str(items)), key="item_id"))
        _refuse_unknown_items(events, catalog, source=source, items=str(items))
    if users is None:
        profiles = Profiles.from_ids(log["user_id"])
    else:
        known = Profiles.infer(read_numbers(validate_users(next(frames), source=str(users)), key="user_id"))
        others = log.select("user_id").unique().join(known.frame, on="user_id", how="anti").sort("user_id")
        profiles = Profiles(pl.concat([known.frame, others], how="diagonal"), known.numeric, known.categorical)
    return Dataset(name or Path(interactions).stem, log, catalog, profiles)


def _refuse_unknown_items(events: pl.DataFrame, catalog: Catalog, *, source: str, items: str) -> None:
    ids = read_ids(events["item_id"], source=source)
    unknown = ~ids.is_in(catalog.frame["item_id"].implode())
    row = unknown.arg_max()
    if row is not None and unknown[row]:
        raise DataError(
            f'{source}: row {row + 1} (data row, header not counted), column "item_id": {ids[row]!r} is not '
            f"in {items} ({int(unknown.sum()):,} rows name an unknown item); add the items or remove the rows"
        )
