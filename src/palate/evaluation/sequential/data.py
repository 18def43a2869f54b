"""The data sets of the sequential benchmark, read from a local folder: MovieLens-1M and three of Amazon 2014.

ML-1M as SASRec, BERT4Rec and gSASRec order it: films with fewer than 5 ratings left out, 3,416 films, times known by
their order alone (ties in the original clock were broken by SASRec's authors). Amazon Beauty, Sports and Toys as
S3-Rec, P5 and TIGER use them: people and items with at least 5 events each, in order of time.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32, Int32

from palate.data.event_log import EventLog, from_sequences
from palate.errors import ConfigError, DataError

_AGES = (1, 18, 25, 35, 45, 50, 56)
_NUM_OCCUPATIONS = 21
_COMMONEST_RATING = 4.0


@dataclass(frozen=True, eq=False)
class SequenceData:
    """Everyone's sequence, and what is known of items and people."""

    name: str
    """As in `SEQUENCE_DATA`."""
    log: EventLog
    """Items are rows of the tables below; people are in the order of their ids."""
    item_ids: tuple[str, ...]
    """The ids of the source, in the order of the numbers in it."""
    item_texts: tuple[str, ...] | None = None
    """A few sentences on each item: title, genres, plot."""
    item_attributes: Float32[np.ndarray, "item feature"] | None = None
    """1 where an item has an attribute (a genre, a brand, a category), else 0."""

    @property
    def num_items(self) -> int:
        """Size of the catalogue, every item of which is ranked."""
        return len(self.item_ids)


def open_movielens(folder: Path) -> SequenceData:
    """Read `movielens-1m/`: `sequences.parquet`, `items.parquet` and `users.parquet`.

    The events carry stars (1 to 5) as `values`, and people what they said of themselves as `profiles`, indicators of
    gender, age bracket and occupation; ten that the source lacks are given the commonest rating, 4. The source
    also lacks the second-last event of 23 people (their validation target is the one before) and guesses that of
    22: no test target is touched, but figures may differ from those of the complete data in the third digit. A film
    that `items.parquet` lacks (there is one) has an empty text and no genre.

    Raises:
        DataError: a file is not there or not what it should be; says where to get the data.
    """
    base = folder / "movielens-1m"
    events = _table(base / "sequences.parquet", ("user_id", "position", "item_id", "rating"))
    films = _table(base / "items.parquet", ("item_id", "title", "genres", "plot"))
    people = _table(base / "users.parquet", ("user_id", "gender", "age", "occupation")).sort("user_id")
    events = events.sort("user_id", "position")
    seen = events.select(pl.col("item_id").unique().sort().cast(pl.Int64))
    films = seen.join(films, on="item_id", how="left", maintain_order="left").with_columns(
        pl.col(pl.String).fill_null("")
    )
    people = people.filter(pl.col("user_id").is_in(events["user_id"].unique().to_list()))
    if not len(events) or len(people) != events["user_id"].n_unique():
        raise DataError(f"{base}: no event, or events of people that users.parquet lacks; {_GET_DATA}")
    users = events["user_id"].to_numpy()
    starts = np.flatnonzero(np.diff(users, prepend=users[0] - 1))
    profiles = np.concatenate(
        [
            people["gender"].to_numpy()[:, None] == np.array(["F", "M"]),
            people["age"].to_numpy()[:, None] == np.array(_AGES),
            people["occupation"].to_numpy()[:, None] == np.arange(_NUM_OCCUPATIONS),
        ],
        axis=1,
    ).astype(np.float32)
    log = EventLog(
        items=np.searchsorted(films["item_id"].to_numpy(), events["item_id"].to_numpy()).astype(np.int32),
        offsets=np.append(starts, len(events)).astype(np.int64),
        values=events["rating"].cast(pl.Float32).fill_null(_COMMONEST_RATING).to_numpy(),
        profiles=profiles,
    )
    genres = [[genre.strip() for genre in row.split("|") if genre.strip()] for row in films["genres"]]
    texts = tuple(
        f"{title}. {', '.join(row)}. {plot}" if title else ""
        for title, row, plot in zip(films["title"], genres, films["plot"], strict=True)
    )
    return SequenceData("ml-1m", log, tuple(map(str, films["item_id"])), texts, _indicators(genres))


def open_amazon(folder: Path, name: str, file: str) -> SequenceData:
    """Read `amazon-2014/FILE.txt`, a person a line (an id, then items in time order), and `FILE_item2attributes.json`.

    Raises:
        DataError: a file is not there or not what it should be; says where to get the data.
    """
    path = folder / "amazon-2014" / f"{file}.txt"
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        try:
            user, *items = map(int, line.split())
        except ValueError:
            raise DataError(f"{path}: line {number} is not a person's number and those of items; {_GET_DATA}") from None
        rows.append((user, np.array(items, np.int64)))
    if not any(len(items) for _, items in rows):
        raise DataError(f"{path}: holds no event; {_GET_DATA}")
    rows.sort(key=lambda row: row[0])
    ids = np.unique(np.concatenate([items for _, items in rows]))
    path = path.with_name(f"{file}_item2attributes.json")
    try:
        attributes = {int(item): values for item, values in json.loads(_text(path)).items()}
        described = [[str(value) for value in attributes.get(item, ())] for item in ids.tolist()]
    except (ValueError, TypeError, AttributeError):
        raise DataError(f"{path}: is not a table of items and their attributes; {_GET_DATA}") from None
    log = from_sequences(np.searchsorted(ids, items) for _, items in rows)
    return SequenceData(name, log, tuple(map(str, ids)), item_attributes=_indicators(described))


SEQUENCE_DATA: Mapping[str, Callable[[Path], SequenceData]] = {
    "ml-1m": open_movielens,
    "beauty": partial(open_amazon, name="beauty", file="Beauty"),
    "sports": partial(open_amazon, name="sports", file="Sports_and_Outdoors"),
    "toys": partial(open_amazon, name="toys", file="Toys_and_Games"),
}
"""The readers, from the folder that holds all data sets."""


def open_sequences(name: str, folder: Path) -> SequenceData:
    """Read a data set by its name in `SEQUENCE_DATA`.

    Raises:
        ConfigError: there is none of that name.
        DataError: it is not in the folder; says where to get it.
    """
    if name not in SEQUENCE_DATA:
        raise ConfigError(f"data set is {name!r}; choose one of: {', '.join(SEQUENCE_DATA)}")
    return SEQUENCE_DATA[name](folder)


_GET_DATA = (
    "get ML-1M from grouplens.org/datasets/movielens/1m and the Amazon files from the S3-Rec repository "
    "(github.com/RUCAIBox/CIKM2020-S3Rec), as docs/sequential.md describes, and pass their folder with --data"
)


def _table(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, columns=list(columns))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: not readable ({str(error).splitlines()[0]}); {_GET_DATA}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({error}); {_GET_DATA}") from None


def _indicators(lists: Iterable[Sequence[str]]) -> Float32[np.ndarray, "item feature"]:
    """One column for each word that occurs, in the order of the words (numbers by their value)."""
    rows = list(lists)
    words = sorted(
        {word for row in rows for word in row}, key=lambda word: (word.isdigit(), len(word) * word.isdigit(), word)
    )
    column = {word: place for place, word in enumerate(words)}
    lengths = [len(row) for row in rows]
    found: Int32[np.ndarray, "_"] = np.array([column[word] for row in rows for word in row], np.int32)
    table = np.zeros((len(rows), len(words)), np.float32)
    table[np.repeat(np.arange(len(rows)), lengths), found] = 1.0
    return table
